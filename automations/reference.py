"""Back-references of a sequence: ``where: {data.service: "{{ deploy.data.service }}"}``.

What a step asks for is taken apart once: conditions on the event alone go into the index, equalities with an earlier
event become a key to look waits up by, and whatever else speaks of an earlier event is rendered and parsed for each
wait, when it reaches the step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from ..errors import TemplateError
from ..template import check_template, render_value, template_paths
from .matching.condition import Node, parse_where
from .matching.path import MISSING, Path, follow, parse_path, values_of
from .matching.where import Check, compile_node
from .problem import Problem

__all__ = ["Linked", "captured", "link", "link_problems"]

RESERVED = frozenset({
    "event", "events", "key", "keys", "count", "suppressed", "automation", "firing", "run", "variables", "secrets",
    "env", "metric", "resolved", "approval", "steps",
})  # fmt: skip
"""Names templates read anyway, which no step may take."""
MAX_CAPTURED_BYTES = 4096
"""The most that is remembered of one event; what is larger counts as missing."""
_MAX_JOINS = 256
_PLACEHOLDERS = ("1", "10.0.0.0/8")


def is_template(value: Any) -> bool:
    """Return whether a written condition has a template anywhere in it."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(is_template(k) or is_template(v) for k, v in value.items())
    return isinstance(value, list | tuple) and any(is_template(item) for item in value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if is_template(value):
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _filled(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return text if is_template(value) and value.strip().startswith("{{") else _patched(value, text)
    if isinstance(value, Mapping):
        return {key: _filled(item, text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, text) for item in value]
    return value


def _patched(value: str, text: str) -> str:
    head, _, rest = value.partition("{{")
    return head + text + rest.rpartition("}}")[2] if rest else value


def link_problems(where: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the conditions of a step; which names they may read is checked by the sequence."""
    static = {key: want for key, want in where.items() if not is_template({key: want})}
    problems = list(parse_where(static)[1]) if static else []
    for key, want in where.items():
        if is_template(key):
            problems.append(
                Problem((key,), "a path cannot hold a template; only what it is compared with can")
            )
            continue
        if not is_template(want):
            continue
        try:
            for text in _texts(want):
                check_template(text)
        except TemplateError as exc:
            problems.append(Problem((key,), str(exc)))
            continue
        tried = [parse_where({key: _filled(want, text)})[1] for text in _PLACEHOLDERS]
        if all(tried):
            problems += tried[0]
    return problems


@dataclass(frozen=True, slots=True)
class Linked:
    """The conditions of one step.

    Attributes:
        node: those on the event alone; None if there are none.
        joins: paths whose value has to equal a template's.
        rest: other conditions with templates, as written.
        reads: (alias, path) of what the templates read.
    """

    node: Node | None
    joins: tuple[tuple[Path, str], ...]
    rest: tuple[tuple[str, Any], ...]
    reads: frozenset[tuple[str, Path]]

    def place(self, earlier: Mapping[str, Any]) -> tuple[str | None, Check | None] | None:
        """Return under which join key a wait stands and what is left to check of an event; None: nothing can match.

        Args:
            earlier: what is remembered of the earlier events, by alias. A key of None means: look at every event.
        """
        try:
            values = [render_value(template, earlier) for _, template in self.joins]
            rest = {key: render_value(want, earlier) for key, want in self.rest}
        except TemplateError:
            return None
        if any(value.__class__ in (list, dict) for value in values):
            # "One of these": rare enough to be looked at event by event.
            for (path, _), value in zip(self.joins, values, strict=True):
                rest[_written(path)] = value
            key = None
        else:
            key = _join_text(values)
        if not rest:
            return key, None
        check = _compiled(orjson.dumps(rest, default=str))
        return None if check is None else (key, check)

    def asks(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """Return the conditions on earlier events as a ``where`` with their values filled in; empty if there are none.

        Args:
            earlier: as for ``place``.
        """
        try:
            out = {_shown(path): render_value(template, earlier) for path, template in self.joins}
            return out | {key: render_value(want, earlier) for key, want in self.rest}
        except TemplateError:
            return {}

    def keys_in(self, row: Mapping[str, Any]) -> list[str]:
        """Return the join keys an event answers to; one empty key when there are no joins."""
        if not self.joins:
            return [_NO_JOIN]
        columns = []
        for path, _ in self.joins:
            column = [v for v in values_of(follow(row, path)) if v is not MISSING and v.__class__ is not dict]
            if not column:
                return []
            columns.append(column[:_MAX_JOINS])
        combos = itertools.islice(itertools.product(*columns), _MAX_JOINS)
        return list(dict.fromkeys(_join_text(list(combo)) for combo in combos))


_NO_JOIN = "[]"


def _written(path: Path) -> str:
    return path[0] + "".join(f"[{orjson.dumps(part).decode()}]" for part in path[1:])


def _shown(path: Path) -> str:
    return ".".join(path) if all(part.isidentifier() for part in path) else _written(path)


def _join_text(values: list[Any]) -> str:
    # 1 and 1.0 are one number; true is neither.
    same = [int(v) if v.__class__ is float and v.is_integer() else v for v in values]
    return orjson.dumps(same, default=str).decode()


@lru_cache(maxsize=4096)
def _compiled(raw: bytes) -> Check | None:
    node, problems = parse_where(orjson.loads(raw))
    return None if problems or node is None else compile_node(node)


def link(where: Mapping[str, Any] | None) -> Linked:
    """Return the conditions of a step, taken apart."""
    static: dict[str, Any] = {}
    joins: list[tuple[Path, str]] = []
    rest: list[tuple[str, Any]] = []
    reads: set[tuple[str, Path]] = set()
    for key, want in (where or {}).items():
        if not is_template(want):
            static[key] = want
            continue
        for text in _texts(want):
            reads |= {(chain[0], chain[1:]) for chain in template_paths(text)}
        if isinstance(want, str) and key not in ("any", "all", "not") and want.strip()[:2] == "{{":
            joins.append((parse_path(key), want))
        else:
            rest.append((key, want))
    node = parse_where(static)[0] if static else None
    return Linked(node, tuple(joins), tuple(rest), frozenset(reads))


def captured(row: Mapping[str, Any], paths: frozenset[Path]) -> dict[str, Any]:
    """Return the parts of an event that later steps read, in the event's own shape; what is missing stays missing."""
    out: dict[str, Any] = {}
    for path in paths:
        found = follow(row, path)
        if found is MISSING or not path or len(orjson.dumps(found)) > MAX_CAPTURED_BYTES:
            continue
        at = out
        for part in path[:-1]:
            inner = at.setdefault(part, {})
            if inner.__class__ is not dict:
                break
            at = inner
        else:
            at.setdefault(path[-1], found)
    return out
