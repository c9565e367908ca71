"""YAML 1.2 read into plain JSON values that remember where each of them stood.

``on:`` stays a word, dates stay text, duplicate keys and tags are faults, and nothing a file can say makes it large:
size, nesting, and what aliases expand to are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..vocabulary import JsonValue, sendable
from .fault import Fault, Position

__all__ = ["MAX_BYTES", "MAX_FILES", "Node", "Source", "config_files", "parse_yaml", "read_source"]

MAX_BYTES = 1 << 20
"""Largest file; the reader that keeps positions takes about 20 seconds for this much, so split larger ones."""
MAX_DEPTH = 40
"""Deepest nesting; the deepest sensible rule has about 12 levels."""
MAX_NODES = 200_000
"""Most values after aliases are expanded: stops "billion laughs" documents."""
MAX_FILES = 1000
"""Most files a configuration folder may hold."""

_T = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+")
_MAX_CHARS = 100


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. ``value`` of a mapping or list is built of the children's values.

    Attributes:
        keys: for mappings, the place of each key; children: the nodes below by key or index.
    """

    value: JsonValue
    at: Position
    children: Mapping[str | int, Node] = field(default_factory=dict)
    keys: Mapping[str, Position] = field(default_factory=dict)

    def find(self, path: Sequence[str | int]) -> Node | None:
        """Return the node at ``path`` below this one, or None."""
        node: Node | None = self
        for part in path:
            node = node.children.get(part) if node else None
        return node


@dataclass(frozen=True, slots=True)
class Source:
    """One file, read: its root (None when it is empty or does not parse) and what was wrong with it."""

    file: str
    root: Node | None
    faults: tuple[Fault, ...]


class _TooMuch(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class _Builder:
    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[Fault] = []
        self._count = 0
        self._open: set[int] = set()

    def position(self, mark: Any) -> Position:
        return Position(self.file, mark.line + 1, mark.column + 1) if mark else Position(self.file, 1, 1)

    def fault(self, at: Position, message: str, path: str, suggestion: str = "") -> None:
        self.faults.append(Fault(at, message, path, suggestion))

    def build(self, raw: Any, path: str, depth: int) -> Node:
        at = self.position(raw.start_mark)
        self._count += 1
        if self._count > MAX_NODES:
            raise _TooMuch(
                Fault(at, f"the file has more than {MAX_NODES} values once its aliases are expanded")
            )
        if depth > MAX_DEPTH:
            raise _TooMuch(Fault(at, f"nested deeper than {MAX_DEPTH} levels", path))
        kind = type(raw).__name__
        if kind == "ScalarNode":
            return Node(self._scalar(raw, at, path), at)
        if id(raw) in self._open:
            raise _TooMuch(Fault(at, "an alias stands inside the very thing it names", path))
        self._open.add(id(raw))
        try:
            if kind == "SequenceNode":
                self._refuse_tag(raw, "seq", at, path)
                items: dict[str | int, Node] = {
                    i: self.build(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(raw.value)
                }
                return Node([n.value for n in items.values()], at, items)
            self._refuse_tag(raw, "map", at, path)
            return self._mapping(raw, at, path, depth)
        finally:
            self._open.discard(id(raw))

    def _mapping(self, raw: Any, at: Position, path: str, depth: int) -> Node:
        children: dict[str | int, Node] = {}
        keys: dict[str, Position] = {}
        merged: list[Node] = []
        for raw_key, raw_value in raw.value:
            key_at = self.position(raw_key.start_mark)
            if type(raw_key).__name__ != "ScalarNode":
                self.fault(key_at, "a key must be a plain word, not a list or mapping", path)
                continue
            if raw_key.tag == _T + "merge":
                merged.extend(self._merged(raw_value, key_at, path, depth))
                continue
            # `1: x` and `true: x` are words here: every name in the configuration is text.
            key = self._text(str(raw_key.value), key_at, path)
            below = f"{path}.{key}" if path else key
            if key in keys:
                first = keys[key]
                self.fault(
                    key_at,
                    f"the key {key!r} is already set on line {first.line}",
                    below,
                    "remove one of the two",
                )
                continue
            keys[key] = key_at
            children[key] = self.build(raw_value, below, depth + 1)
        for node in merged:
            for name, child in node.children.items():
                if name not in children:
                    children[name] = child
                    keys[str(name)] = node.keys[str(name)]
        return Node({str(k): n.value for k, n in children.items()}, at, children, keys)

    def _merged(self, raw_value: Any, key_at: Position, path: str, depth: int) -> list[Node]:
        node = self.build(raw_value, path, depth + 1)
        nodes = list(node.children.values()) if isinstance(node.value, list) else [node]
        if any(not isinstance(n.value, dict) for n in nodes):
            self.fault(
                key_at, "`<<` merges mappings, and this is none", path, "name an anchor: `<<: *defaults`"
            )
            return []
        return nodes

    def _refuse_tag(self, raw: Any, want: str, at: Position, path: str) -> None:
        if str(raw.tag) != _T + want:
            self.fault(at, f"the tag {raw.tag} is not used here", path, "write the plain value")

    def _text(self, text: str, at: Position, path: str) -> str:
        whole = sendable(text)
        if whole != text:
            self.fault(
                at,
                "holds half a character (\\ud800 to \\udfff), which is no text",
                path,
                "write the whole one",
            )
        return whole

    def _scalar(self, raw: Any, at: Position, path: str) -> JsonValue:
        tag, text = str(raw.tag), str(raw.value)
        match tag.removeprefix(_T):
            # Dates stay text: JSON has none, and the fields that want one parse it themselves.
            case "str" | "timestamp" | "merge":
                return self._text(text, at, path)
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                if not _INT.fullmatch(text):
                    return text
                base = 0 if text[:2] in ("0o", "0x") else 10
                whole = 2**64 if len(text) > _MAX_CHARS else int(text.replace("_", ""), base)
                if not -(2**63) <= whole < 2**64:
                    self.fault(
                        at, f"{text[:40]} is beyond 64 bits and would lose digits", path, "quote it as a text"
                    )
                    return None
                return whole
            case "float":
                try:
                    number = float(text.replace("_", ""))
                except ValueError:
                    number = math.inf
                if not math.isfinite(number):
                    self.fault(at, f"{text} is no number that can be stored", path, "quote it if it is text")
                    return None
                return number
            case _:
                self.fault(at, f"the tag {tag} is not used here", path, "write the plain value")
                return None


def _bounded_composer(file: str) -> Any:
    """Return a composer that gives up at the depth bound: reading on would take long, and then overflow the stack."""
    from ruamel.yaml.composer import Composer

    class Bounded(Composer):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > MAX_DEPTH + 1:
                mark = self.parser.peek_event().start_mark
                raise _TooMuch(
                    Fault(
                        Position(file, mark.line + 1, mark.column + 1),
                        f"nested deeper than {MAX_DEPTH} levels",
                    )
                )
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    return Bounded


def parse_yaml(text: str, file: str, *, is_config: bool = True) -> Source:
    """Return what ``text`` says; never raises for anything the text holds. A configuration has a mapping at its root."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    start = Position(file, 1, 1)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        fault = Fault(
            start, f"the file is {size} bytes, and at most {MAX_BYTES} are read", "", "split it into a folder"
        )
        return Source(file, None, (fault,))
    builder = _Builder(file)
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Composer = _bounded_composer(file)
        raw = yaml.compose(text)
        if raw is None:
            return Source(file, None, ())
        root = builder.build(raw, "", 0)
    except _TooMuch as exc:
        return Source(file, None, (*builder.faults, exc.fault))
    except MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        context = f" {exc.context}" if exc.context else ""
        return Source(
            file,
            None,
            (
                Fault(
                    builder.position(mark),
                    f"not YAML: {exc.problem}{context}",
                    "",
                    _yaml_hint(str(exc.problem)),
                ),
            ),
        )
    except YAMLError as exc:
        return Source(file, None, (Fault(start, f"not YAML: {' '.join(str(exc).split())}"),))
    if is_config and not isinstance(root.value, dict):
        fault = Fault(root.at, "the file must be a mapping of sections such as `automations:`")
        return Source(file, None, (*builder.faults, fault))
    return Source(file, root, tuple(builder.faults))


def _yaml_hint(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "check the indentation, or quote a text that contains `: `"
    if r"'\t'" in problem:
        return "indent with spaces; YAML refuses tabs"
    if "got ':'" in problem:
        return "quote a text that contains `: `"
    if "another document" in problem:
        return "write one document per file; a folder may hold many files"
    if "undefined alias" in problem:
        return "define the anchor with `&name` before it is used"
    if "'{'" in problem or "'}'" in problem or "%" in problem or "'@'" in problem or "'`'" in problem:
        return "quote a text that begins with a special character"
    return ""


@lru_cache(maxsize=64)
def _parse_cached(file: str, text: str) -> Source:
    return parse_yaml(text, file)


def read_source(path: Path, *, shown_as: str | None = None) -> Source:
    """Read one file. A file that has not changed since it was last read is not parsed again."""
    file = shown_as or str(path)
    start = Position(file, 1, 1)
    try:
        if path.stat().st_size > MAX_BYTES:
            size = path.stat().st_size
            message = f"the file is {size} bytes, and at most {MAX_BYTES} are read"
            return Source(file, None, (Fault(start, message, "", "split it into a folder"),))
        raw = path.read_bytes()
    except OSError as exc:
        return Source(file, None, (Fault(start, f"cannot be read: {exc.strerror or exc}"),))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        column = exc.start - (raw.rfind(b"\n", 0, exc.start) + 1) + 1
        return Source(file, None, (Fault(Position(file, line, column), "is not UTF-8 text"),))
    return _parse_cached(file, text)


def config_files(path: Path) -> list[Path]:
    """Return the YAML files a configuration path stands for, sorted by name; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(str(path))
    return [
        p
        for p in sorted(path.rglob("*"))
        if p.suffix in (".yaml", ".yml")
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(path).parts)
    ]
