"""An EventBridge event pattern as a rule's ``on`` and ``where``. Pure.

``detail`` is Hark's ``data``, ``detail-type`` the type; ``source``, ``id``, ``time``, ``account`` and ``region`` keep their names, and
Hark's own names (``type``, ``subject``, ``data``) may be written too. A ``detail-type`` that is not lower-case dotted words is
looked for in ``originaltype``, where doors keep what a sender wrote.

What differs. ``anything-but`` of an array: EventBridge wants one element to be another, here none may be the
value. Fields of one array of objects: its matcher, Event Ruler, wants them of one element, here they may be of several, since the
pattern does not say what is an array. ``exists`` is true of objects and arrays, too. ``resources`` has no place in the
envelope: what came with it stands in ``data``, so write its path there.

Source: Amazon EventBridge user guide, "Comparison operators for use in event patterns".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..bus.event import check_type
from ..errors import EventInvalid
from .problem import Loc, Problem, refuse

__all__ = ["convert_pattern", "with_pattern"]

_TOP = {"detail": "data", "detail-type": "type", "data": "data", "type": "type"}
_KEPT = ("source", "subject", "id", "time", "account", "region")
_SIMPLE = re.compile(r"[^.\[\]'\"\s]+")
_SIGNED = re.compile(r"(>=|<=|==|!=|>|<)")
_COMPARE = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_OPERATORS = (
    "prefix",
    "suffix",
    "anything-but",
    "numeric",
    "exists",
    "cidr",
    "equals-ignore-case",
    "wildcard",
)
_MAX_DEPTH = 8


class _Converter:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def fault(self, loc: Loc, message: str) -> None:
        self.problems.append(Problem(loc, message))

    # --- fields ---------------------------------------------------------------------------------------

    def top(self, pattern: Mapping[Any, Any], loc: Loc) -> list[dict[str, Any]]:
        """Return the conditions of a whole pattern, to be ANDed."""
        found: list[dict[str, Any]] = []
        for key, value in pattern.items():
            here = (*loc, str(key))
            if key == "$or":
                found += self.either(value, here, self.top)
            elif key in _TOP:
                place = _TOP[str(key)]
                if place == "data":
                    found += self.field("data", value, here, depth=0)
                else:
                    found += self.type(value, here)
            elif key in _KEPT:
                found += self.field(str(key), value, here, depth=0)
            elif key == "resources":
                self.fault(here, "`resources` has no place in a CloudEvent; write its path under `detail`")
            else:
                self.fault(here, f"unknown field {key!r}; there are {', '.join((*_TOP, *_KEPT))} and `$or`")
        return found

    def either(self, value: Any, loc: Loc, convert: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, Mapping) for v in value):
            self.fault(loc, "`$or` takes a list of at least two patterns")
            return []
        return [{"any": [_and(convert(item, (*loc, i))) for i, item in enumerate(value)]}]

    def field(self, path: str, value: Any, loc: Loc, *, depth: int) -> list[dict[str, Any]]:
        if depth > _MAX_DEPTH:
            self.fault(loc, f"a pattern nests {_MAX_DEPTH} levels deep at most")
            return []
        if isinstance(value, Mapping):
            if not value:
                self.fault(loc, "an empty object says nothing; leave it out")
            found: list[dict[str, Any]] = []
            for key, inner in value.items():
                here = (*loc, str(key))
                if key == "$or":
                    found += self.either(
                        inner, here, lambda item, at: self.field(path, item, at, depth=depth + 1)
                    )
                else:
                    found += self.field(_below(path, str(key)), inner, here, depth=depth + 1)
            return found
        conditions = self.alternatives(value, loc)
        return [] if conditions is None else [{path: conditions}]

    def type(self, value: Any, loc: Loc) -> list[dict[str, Any]]:
        """Return the conditions on ``detail-type``: on the type, or on what it was before it was made to fit."""
        if not isinstance(value, list):
            self.fault(loc, "a field of a pattern has a list of values")
            return []
        plain = [v for v in value if _is_type(v)]
        foreign = [v for v in value if isinstance(v, str) and not _is_type(v)]
        operators = [v for v in value if not isinstance(v, str)]
        branches: list[dict[str, Any]] = []
        if plain:
            branches.append({"type": plain})
        if foreign:
            branches.append({"originaltype": [_text(v) for v in foreign]})
        if operators:
            conditions = self.alternatives(operators, loc)
            branches += [{"type": conditions}, {"originaltype": conditions}] if conditions is not None else []
        if len(branches) < 2:
            return branches
        return [{"any": branches}]

    # --- values ---------------------------------------------------------------------------------------

    def alternatives(self, value: Any, loc: Loc) -> Any:
        if not isinstance(value, list):
            self.fault(loc, f"a field of a pattern has a list of values, such as [{value!r:.40}]")
            return None
        if not value:
            self.fault(loc, "an empty list can never match")
            return None
        made = [self.one(item, (*loc, i)) for i, item in enumerate(value)]
        # A lone null stays in its list: nothing at all is what stands for a fault here.
        return made[0] if len(made) == 1 and made[0] is not None else made

    def one(self, item: Any, loc: Loc) -> Any:
        if isinstance(item, str):
            return _text(item)
        if item is None or isinstance(item, bool | int | float):
            return item
        if not isinstance(item, Mapping) or len(item) != 1:
            self.fault(loc, f"{item!r:.60} is neither a value nor one operator of {', '.join(_OPERATORS)}")
            return None
        op, operand = next(iter(item.items()))
        match op:
            case "prefix" | "suffix":
                return self.affix(op, operand, (*loc, op))
            case "equals-ignore-case":
                if isinstance(operand, str):
                    return {"ignore_case": _text(operand)}
            case "wildcard":
                if isinstance(operand, str):
                    return {"regex": _wildcard(operand)}
            case "cidr":
                if isinstance(operand, str):
                    return {"cidr": operand}
            case "exists":
                if isinstance(operand, bool):
                    return {"exists": operand}
            case "numeric":
                return self.numeric(operand, (*loc, op))
            case "anything-but":
                return self.anything_but(operand, (*loc, op))
            case _:
                self.fault(loc, f"unknown operator {op!r}; there are {', '.join(_OPERATORS)}")
                return None
        self.fault((*loc, str(op)), f"{operand!r:.60} is not what `{op}` takes")
        return None

    def affix(self, op: str, operand: Any, loc: Loc) -> Any:
        if isinstance(operand, str):
            return {op: operand}
        if isinstance(operand, list) and operand and all(isinstance(v, str) for v in operand):
            return {op: operand}
        if isinstance(operand, Mapping) and set(operand) == {"equals-ignore-case"}:
            return {op: operand["equals-ignore-case"], "ignore_case": True}
        self.fault(loc, f"{operand!r:.60} is not what `{op}` takes")
        return None

    def numeric(self, operand: Any, loc: Loc) -> Any:
        made: dict[str, Any] = {}
        if not isinstance(operand, list) or len(operand) not in (2, 4):
            self.fault(loc, '`numeric` takes one or two comparisons, such as [">", 0, "<=", 5]')
            return None
        for sign, limit in zip(operand[::2], operand[1::2], strict=True):
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                self.fault(loc, f"{limit!r:.40} is not a number")
            elif sign == "=":
                made["between"] = [limit, limit]
            elif sign in _COMPARE:
                made[_COMPARE[sign]] = limit
            else:
                self.fault(loc, f"{sign!r:.40} is not one of <, <=, =, >, >=")
        return made

    def anything_but(self, operand: Any, loc: Loc) -> Any:
        if isinstance(operand, Mapping) and len(operand) == 1:
            op, inner = next(iter(operand.items()))
            items = inner if isinstance(inner, list) else [inner]
            if op in ("prefix", "suffix", "wildcard", "equals-ignore-case"):
                made = [self.one({op: one}, (*loc, str(op))) for one in items]
                return {"not": made[0] if len(made) == 1 else made}
            self.fault(
                loc, f"`anything-but` takes prefix, suffix, wildcard and equals-ignore-case, not {op!r}"
            )
            return None
        items = operand if isinstance(operand, list) else [operand]
        if not items or not all(isinstance(v, str | int | float) for v in items):
            self.fault(loc, f"{operand!r:.60} is not what `anything-but` takes")
            return None
        made = [_text(v) if isinstance(v, str) else v for v in items]
        return {"not": made[0] if len(made) == 1 else made}


def _below(path: str, key: str) -> str:
    if _SIMPLE.fullmatch(key):
        return f"{path}.{key}"
    return f'{path}["{key}"]' if '"' not in key else f"{path}['{key}']"


def _is_type(value: object) -> bool:
    try:
        check_type(value)
    except EventInvalid:
        return False
    return True


def _text(text: str) -> str:
    """Return a text that `where` compares as it is, also if it looks like a comparison."""
    return f"== '{text}'" if _SIGNED.match(text) else text


def _wildcard(text: str) -> str:
    """Return the expression of a wildcard: `*` is anything, `\\*` a star, `\\\\` a backslash."""
    parts = re.split(r"(\\\\|\\\*|\*)", text)
    made = {"*": ".*", "\\*": r"\*", "\\\\": r"\\"}
    return "(?s)^" + "".join(made.get(part) or re.escape(part) for part in parts) + "$"


def _and(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return conditions as one mapping; those on one path stand under `all`."""
    merged: dict[str, Any] = {}
    for one in conditions:
        if merged.keys() & one.keys():
            return {"all": conditions}
        merged |= one
    return merged


def convert_pattern(pattern: object) -> tuple[list[str], dict[str, Any]]:
    """Return ``on`` and ``where`` of an event pattern; ``on`` is everything where the pattern names no plain types.

    Raises:
        ValidationError: it is no event pattern; each problem says where.
    """
    converter = _Converter()
    if not isinstance(pattern, Mapping) or not pattern:
        converter.fault(
            (), "an event pattern is an object such as {source: [aws.ec2], detail: {state: [stopped]}}"
        )
        refuse("pattern", converter.problems, pattern)
    assert isinstance(pattern, Mapping)
    conditions = converter.top(pattern, ())
    if converter.problems:
        refuse("pattern", converter.problems, pattern)
    written = pattern.get("detail-type", pattern.get("type"))
    on = [">"]
    if isinstance(written, list) and written and all(_is_type(v) for v in written):
        on = list(dict.fromkeys(written))
        conditions = [one for one in conditions if set(one) != {"type"}]
    return on, _and(conditions)


def with_pattern(value: Any) -> Any:
    """Return a rule (or a part of one) as written, its ``pattern`` made into ``on`` and ``where``."""
    if not isinstance(value, Mapping) or "pattern" not in value:
        return value
    rest = {key: one for key, one in value.items() if key != "pattern"}
    if "where" in rest:
        refuse("pattern", [Problem(("pattern",), "write `pattern` or `where`, not both")], value)
    on, where = convert_pattern(value["pattern"])
    rest.setdefault("on", on)
    return {**rest, **({"where": where} if where else {})}
