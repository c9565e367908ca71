"""What ``where`` says, as a tree: parsed from the written form, with every fault named at its place.

The written form looks like the event: keys are paths and are ANDed, lists are alternatives. This file knows the
words; ``where.py`` makes the tree into something that runs.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from ..problem import Loc, Problem, did_you_mean
from .comparison import Comparison, Limit, Moment, compile_regex, glob_to_regex, parse_limit
from .path import ATTRIBUTES, Path, parse_path, show_path

__all__ = ["OPERATORS", "AllOf", "AnyOf", "Compare", "Element", "Exists", "Node", "Not", "parse_where"]

OPERATORS = (
    "not", "any", "all", "prefix", "suffix", "contains", "glob", "regex", "exists", "gt", "gte", "lt", "lte",
    "between", "cidr", "ignore_case",
)  # fmt: skip
_FOREIGN = {
    "startswith": "prefix", "starts_with": "prefix", "begins_with": "prefix", "endswith": "suffix",
    "ends_with": "suffix", "in": "any", "one_of": "any", "any_of": "any", "or": "any", "and": "all", "all_of": "all",
    "ne": "not", "neq": "not", "nequals": "not", "anything-but": "not", "anything_but": "not", "not_in": "not",
    "match": "regex", "matches": "regex", "matchregex": "regex", "re": "regex", "wildcard": "glob",
    "matchwildcard": "glob", "like": "glob", "greaterthan": "gt", "greater_than": "gt", "above": "gt", "min": "gte",
    "ge": "gte", "lessthan": "lt", "less_than": "lt", "below": "lt", "max": "lte", "le": "lte", "range": "between",
    "includes": "contains", "has": "contains", "icontains": "contains", "defined": "exists", "present": "exists",
    "ip": "cidr", "network": "cidr", "iequals": "ignore_case", "equals-ignore-case": "ignore_case",
    "case_insensitive": "ignore_case", "ignorecase": "ignore_case",
}  # fmt: skip
_EQUALS = frozenset({"eq", "equals", "equal", "is", "=="})
_SIGNED = re.compile(r"(>=|<=|==|!=|>|<)(\s*)(.*)", re.DOTALL)
_MISSPELT = re.compile(r"(=>|=<|=!|<>|>>|<<|===|≥|≤|≠|=)\s*(?![=<>!])(.*)", re.DOTALL)
_MEANT = {
    "=>": ">=", "=<": "<=", "=!": "!=", "<>": "!=", ">>": ">", "<<": "<", "===": "==", "≥": ">=", "≤": "<=", "≠": "!=",
    "=": "==",
}  # fmt: skip
_SIGN = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
MAX_NODES = 500
MAX_DEPTH = 12
MAX_ALTERNATIVES = 10_000
"""Values in one list of "any of these"."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Some value at ``path`` satisfies every one of ``tests``."""

    path: Path
    tests: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """``path`` leads to something (null counts), or to nothing."""

    path: Path
    wanted: bool


@dataclass(frozen=True, slots=True)
class Not:
    """``inner`` does not hold; with a path, there also has to be something at it."""

    inner: Node
    path: Path | None


@dataclass(frozen=True, slots=True)
class AllOf:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Element:
    """Some element (``every``: each element, and there is one) at ``path`` satisfies ``inner``, whose paths start at it."""

    path: Path
    inner: Node
    every: bool


Node: TypeAlias = "Compare | Exists | Not | AllOf | AnyOf | Element"


class _Fault(Exception):
    """Parsing of this branch cannot go on; the problem has been noted."""


class _Parser:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.nodes = 0

    def fault(self, loc: Loc, message: str) -> _Fault:
        self.problems.append(Problem(loc, message))
        return _Fault()

    def where(self, value: object, loc: Loc, *, relative: bool = False, depth: int = 0) -> Node:
        """Parse a mapping of paths (and ``any``, ``all``, ``not`` over such mappings)."""
        if not isinstance(value, Mapping):
            raise self.fault(
                loc,
                f"`where` is a mapping of paths to conditions, such as data.flow.name: etl; got {value!r:.80}",
            )
        if not value:
            raise self.fault(loc, "an empty `where` says nothing; leave it out")
        self._bound(loc, depth)
        parts: list[Node] = []
        for key, want in value.items():
            here = (*loc, str(key))
            try:
                parts.append(self._entry(str(key), want, here, relative=relative, depth=depth))
            except _Fault:
                continue
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _entry(self, key: str, want: object, here: Loc, *, relative: bool, depth: int) -> Node:
        if not relative and key in ("any", "all"):
            items = want if isinstance(want, list | tuple) else [want]
            if not items:
                raise self.fault(here, f"`{key}` needs at least one mapping of paths")
            nodes = tuple(self.where(item, (*here, i), depth=depth + 1) for i, item in enumerate(items))
            return AnyOf(nodes) if key == "any" else AllOf(nodes)
        if not relative and key == "not":
            return Not(self.where(want, here, depth=depth + 1), None)
        try:
            path = parse_path(key, relative=relative)
        except ValueError as exc:
            hint = did_you_mean(key, ATTRIBUTES) if "." not in key else ""
            raise self.fault(
                here, str(exc).partition("; did you mean")[0] + hint if hint else str(exc)
            ) from None
        return self.condition(path, want, here, depth=depth + 1)

    def _bound(self, loc: Loc, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fault(loc, f"more than {MAX_NODES} conditions in one `where`")
        if depth > MAX_DEPTH:
            raise self.fault(loc, f"conditions nest deeper than {MAX_DEPTH}")

    def condition(self, path: Path, want: object, loc: Loc, *, depth: int, ignore_case: bool = False) -> Node:
        """Parse what is wanted of the values at ``path``."""
        self._bound(loc, depth)
        if isinstance(want, Mapping):
            return self.operators(path, want, loc, depth=depth, ignore_case=ignore_case)
        if isinstance(want, list | tuple):
            return self.alternatives(path, list(want), loc, depth=depth, ignore_case=ignore_case)
        if isinstance(want, str):
            return self.text(path, want, loc, ignore_case=ignore_case)
        if want is None or isinstance(want, bool | int | float):
            return Compare(path, (Comparison("in", (want,)),))
        if isinstance(want, datetime):
            return Compare(path, (Comparison("in", (want.isoformat().replace("+00:00", "Z"),)),))
        raise self.fault(loc, f"{want!r:.80} is not something to compare with")

    def text(self, path: Path, want: str, loc: Loc, *, ignore_case: bool) -> Node:
        """Parse a text: an operator with a limit, such as ``">= 2"``, or the text itself."""
        self._misspelt(want, loc)
        signed = _SIGNED.fullmatch(want)
        if signed:
            sign, space, rest = signed[1], signed[2], signed[3].strip()
            if sign in ("==", "!="):
                if not rest:
                    raise self.fault(loc, f"{want!r} compares with nothing; write the value after {sign}")
                same = Compare(path, (Comparison("in", (_plain(rest),), ignore_case),))
                return same if sign == "==" else Not(same, path)
            try:
                return Compare(path, (Comparison(_SIGN[sign], (parse_limit(rest),)),))
            except ValueError as exc:
                # "<none>" is a text; ">= two" and ">3 and <5" are mistakes.
                if space or not rest or rest[0].isdigit():
                    two = (
                        "; for two bounds write {gt: 3, lt: 5}, or {between: [3, 5]}"
                        if rest[:1].isdigit()
                        else ""
                    )
                    raise self.fault(loc, f"{want!r}: {exc}{two}") from None
        return Compare(path, (Comparison("in", (want,), ignore_case),))

    def _misspelt(self, want: str, loc: Loc) -> None:
        """Refuse a sign that is none before a number, duration or time: equal to that very text, nothing ever is."""
        found = _MISSPELT.fullmatch(want)
        if found is None:
            return
        try:
            parse_limit(found[2])
        except ValueError:
            return
        meant = f"{_MEANT[found[1]]} {found[2].strip()}"
        raise self.fault(
            loc, f"{want!r} is no comparison (for that very text: {'== ' + want!r}); did you mean {meant!r}?"
        )

    def alternatives(
        self, path: Path, items: list[object], loc: Loc, *, depth: int, ignore_case: bool
    ) -> Node:
        if not items:
            raise self.fault(loc, "an empty list of alternatives can never match")
        if len(items) > MAX_ALTERNATIVES:
            raise self.fault(loc, f"more than {MAX_ALTERNATIVES} alternatives in one list")
        nodes: list[Node] = []
        scalars: dict[bool, list[Any]] = {}  # by whether their case is ignored
        for i, item in enumerate(items):
            try:
                node = self.condition(path, item, (*loc, i), depth=depth + 1, ignore_case=ignore_case)
            except _Fault:
                continue
            if isinstance(node, Compare) and len(node.tests) == 1 and node.tests[0].op == "in":
                scalars.setdefault(node.tests[0].ignore_case, []).extend(node.tests[0].operand)
            else:
                nodes.append(node)
        same: list[Node] = [
            Compare(path, (Comparison("in", _distinct(values), fold),))
            for fold, values in sorted(scalars.items())
        ]
        nodes = same + nodes
        return nodes[0] if len(nodes) == 1 else AnyOf(tuple(nodes))

    def operators(
        self, path: Path, want: Mapping[Any, Any], loc: Loc, *, depth: int, ignore_case: bool
    ) -> Node:
        """Parse a mapping of operators. The comparing ones hold for one and the same value."""
        if not want:
            raise self.fault(loc, f"no operator given; there are {', '.join(OPERATORS)}")
        flag = want.get("ignore_case")
        fold = flag if isinstance(flag, bool) else ignore_case
        nodes: list[Node] = []
        tests: list[Comparison] = []
        for key, operand in want.items():
            here = (*loc, str(key))
            try:
                made = self._operator(path, str(key), operand, here, depth=depth, fold=fold)
            except _Fault:
                continue
            if isinstance(made, Comparison):
                tests.append(made)
            elif made is not None:
                nodes.append(made)
        if tests:
            nodes.insert(0, Compare(path, tuple(tests)))
        if not nodes:
            raise (
                self.fault(loc, "`ignore_case: true` needs another operator beside it")
                if not self.problems
                else _Fault()
            )
        return nodes[0] if len(nodes) == 1 else AllOf(tuple(nodes))

    def _operator(
        self, path: Path, op: str, operand: Any, loc: Loc, *, depth: int, fold: bool
    ) -> Comparison | Node | None:
        match op:
            case "not":
                return Not(self.condition(path, operand, loc, depth=depth + 1, ignore_case=fold), path)
            case "any" | "all":
                if isinstance(operand, Mapping):
                    inner = self.element(operand, loc, depth=depth + 1, ignore_case=fold)
                    return Element(path, inner, every=op == "all")
                items = list(operand) if isinstance(operand, list | tuple) else [operand]
                if op == "any" or not items:
                    return self.alternatives(path, items, loc, depth=depth, ignore_case=fold)
                return AllOf(
                    tuple(
                        self.condition(path, item, (*loc, i), depth=depth + 1, ignore_case=fold)
                        for i, item in enumerate(items)
                    )
                )
            case "exists":
                if not isinstance(operand, bool):
                    raise self.fault(loc, f"`exists` is true or false, got {operand!r}")
                return Exists(path, operand)
            case "ignore_case":
                if isinstance(operand, bool):
                    return None
                return self.condition(path, operand, loc, depth=depth + 1, ignore_case=True)
            case "gt" | "gte" | "lt" | "lte":
                return Comparison(op, (self._limit(operand, loc),))
            case "between":
                if not isinstance(operand, list | tuple) or len(operand) != 2:
                    raise self.fault(
                        loc, f"`between` takes a list of two, [lowest, highest], got {operand!r}"
                    )
                low, high = (self._limit(item, (*loc, i)) for i, item in enumerate(operand))
                if isinstance(low, Moment) is not isinstance(high, Moment):
                    raise self.fault(loc, "`between` compares with two numbers or two times, not one of each")
                if _number(low) > _number(high):
                    raise self.fault(loc, f"`between` is never true: {operand[0]!r} is above {operand[1]!r}")
                return Comparison(op, (low, high))
            case "prefix" | "suffix" | "contains" | "glob" | "regex" | "cidr":
                return Comparison(op, self._texts(op, operand, loc, fold=fold), fold and op != "cidr")
        if op in _EQUALS:
            raise self.fault(
                loc,
                f"unknown operator {op!r}; to compare for equality write the value itself: {show_path(path)}: {operand}",
            )
        near = did_you_mean(op, OPERATORS, also=_FOREIGN)
        known = (
            ""
            if near
            else f"; there are {', '.join(OPERATORS)}. Nested fields are written as a path: {show_path(path)}.{op}"
        )
        raise self.fault(loc, f"unknown operator {op!r}{near or known}")

    def element(self, want: Mapping[Any, Any], loc: Loc, *, depth: int, ignore_case: bool) -> Node:
        """Parse what one element of an array has to be: operators on itself, or conditions on its fields."""
        keys = [str(key) for key in want]
        if keys and all(key in OPERATORS for key in keys):
            return self.operators((), want, loc, depth=depth, ignore_case=ignore_case)
        if any(key in OPERATORS for key in keys) and not any("." in key for key in keys):
            mixed = next(key for key in keys if key not in OPERATORS)
            raise self.fault(
                (*loc, mixed),
                f"{mixed!r} is a field and stands beside operators{did_you_mean(mixed, OPERATORS, also=_FOREIGN)}",
            )
        return self.where(want, loc, relative=True, depth=depth)

    def _limit(self, value: object, loc: Loc) -> Limit:
        try:
            return parse_limit(value)
        except ValueError as exc:
            raise self.fault(loc, str(exc)) from None

    def _texts(self, op: str, operand: object, loc: Loc, *, fold: bool) -> tuple[str, ...]:
        items = list(operand) if isinstance(operand, list | tuple) else [operand]
        if not items:
            raise self.fault(loc, f"`{op}` needs a text, or a list of texts of which one has to fit")
        if op not in ("prefix", "suffix") and len(items) > MAX_NODES:
            # Each of them goes through the whole text, which may be a megabyte.
            raise self.fault(loc, f"more than {MAX_NODES} alternatives in one `{op}`")
        check = _CHECKS.get(op)
        for i, item in enumerate(items):
            here = (*loc, i) if isinstance(operand, list | tuple) else loc
            if not isinstance(item, str):
                raise self.fault(here, f"`{op}` needs text, got {item!r}")
            try:
                if check is not None:
                    check(item)
                elif op == "regex":
                    compile_regex(item, ignore_case=fold)
                elif op == "glob":
                    compile_regex(glob_to_regex(item), ignore_case=fold)
            except ValueError as exc:
                raise self.fault(here, str(exc)) from None
        return tuple(str(item) for item in items)


def _network(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network such as 10.0.0.0/8") from None


_CHECKS: Mapping[str, Callable[[str], None]] = {"cidr": _network}


def _plain(text: str) -> Any:
    """Return the scalar written in ``text``: a number, true, false, null, or the text without its quotes."""
    if text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"[+-]?\d+\.\d+", text):
        return float(text)
    return text


def _distinct(items: list[Any]) -> tuple[Any, ...]:
    seen: set[tuple[bool, Any]] = set()
    out = []
    for item in items:
        mark = (isinstance(item, bool), item)
        if mark not in seen:
            seen.add(mark)
            out.append(item)
    return tuple(out)


def _number(limit: Limit) -> float:
    return limit.at if isinstance(limit, Moment) else float(limit)


def parse_where(value: object) -> tuple[Node | None, list[Problem]]:
    """Return the tree of a written ``where`` and the problems found; the tree is None if there are any."""
    parser = _Parser()
    try:
        node: Node | None = parser.where(value, ())
    except _Fault:
        node = None
    return (None, parser.problems) if parser.problems else (node, [])
