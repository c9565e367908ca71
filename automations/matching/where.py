"""Deciding a ``where``: compiled to closures over the parsed event, and explained predicate by predicate.

Semantics, in one place:

- keys AND, lists OR; a missing field does not match, whatever is asked of it but ``exists: false``;
- a path into an array: some element; operators in one mapping hold for the same element, and so do the fields
  under ``any:``; ``not`` holds when there is something at the path and no value of it satisfies the inside;
- a value of the wrong kind does not match; the explanation says so. ``true`` is not ``1``, ``"1"`` is not ``1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

import orjson

from ...vocabulary import JsonObject, JsonValue
from ..problem import RuleInvalid
from .comparison import Comparison, Test, compile_comparison, misfit
from .condition import AllOf, AnyOf, Compare, Element, Exists, Node, Not, parse_where
from .path import MISSING, Path, follow, getter, show_path, values_of

__all__ = ["Check", "Predicate", "compile_node", "compile_where", "describe", "explain"]

Check: TypeAlias = Callable[[Any], bool]


def compile_where(value: object) -> Check:
    """Return the function that decides a written ``where`` for a parsed event.

    Raises:
        RuleInvalid: it does not stand; ``problems`` says where.
    """
    node, problems = parse_where(value)
    if node is None:
        raise RuleInvalid(problems)
    return compile_node(node)


def compile_node(node: Node) -> Check:
    """Return the function that decides ``node``; it never raises, whatever the event holds."""
    match node:
        case Compare():
            return _compile_compare(node)
        case Exists():
            get, wanted = getter(node.path), node.wanted
            return lambda e: (get(e) is not MISSING) is wanted
        case Not(inner=Compare(path=path, tests=(test,))) if path == node.path:
            return _compile_differs(path, test)
        case Not():
            inner = compile_node(node.inner)
            if node.path is None:
                return lambda e: not inner(e)
            there = getter(node.path)
            return lambda e: there(e) is not MISSING and not inner(e)
        case AllOf():
            return _all_of([compile_node(n) for n in node.nodes])
        case AnyOf():
            checks = tuple(compile_node(n) for n in node.nodes)

            def some(e: Any) -> bool:
                for check in checks:  # noqa: SIM110  # `any(generator)` costs three times as much
                    if check(e):
                        return True
                return False

            return some
        case Element():
            get, inner = getter(node.path), compile_node(node.inner)
            if node.every:

                def every(e: Any) -> bool:
                    items = list(values_of(get(e)))
                    return bool(items) and all(inner(item) for item in items)

                return every
            return lambda e: any(inner(item) for item in values_of(get(e)))
    assert_never(node)


def _all_of(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda e: first(e) and second(e)
    return every_of(tuple(checks))


def every_of(checks: tuple[Check, ...]) -> Check:
    """Return the function that holds when all of ``checks`` do."""

    def every(e: Any) -> bool:
        for check in checks:  # noqa: SIM110  # `all(generator)` costs three times as much
            if not check(e):
                return False
        return True

    return every


def _compile_compare(node: Compare) -> Check:
    get = getter(node.path)
    tests = [compile_comparison(t) for t in node.tests]
    test: Test = _all_of(list(tests))

    def holds(e: Any) -> bool:
        value = get(e)
        if value.__class__ is list:
            return any(test(v) for v in values_of(value))
        return value is not MISSING and test(value)

    return holds


def _compile_differs(path: Path, comparison: Comparison) -> Check:
    """Return ``not`` of one comparison, the usual case, in one call instead of three."""
    get, test = getter(path), compile_comparison(comparison)

    def differs(e: Any) -> bool:
        value = get(e)
        if value.__class__ is list:
            return not any(test(v) for v in values_of(value))
        return value is not MISSING and not test(value)

    return differs


# --- why ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Predicate:
    """One condition, as it fared with one event.

    Attributes:
        path: the path looked at, empty for a group.
        wanted: the condition in words.
        seen: the value found, shortened; None when there was nothing.
        found: whether there was anything at the path.
        ok: whether it held.
        note: why not, where the value alone does not say it (missing field, wrong kind).
        inner: the parts of a group (``any``, ``not``, …).
    """

    path: str
    wanted: str
    seen: JsonValue
    found: bool
    ok: bool
    note: str = ""
    inner: tuple[Predicate, ...] = ()

    def to_json(self) -> JsonObject:
        out: JsonObject = {"path": self.path, "wanted": self.wanted, "seen": self.seen, "ok": self.ok}
        if self.note:
            out["note"] = self.note
        if self.inner:
            out["inner"] = [p.to_json() for p in self.inner]
        return out

    def __str__(self) -> str:
        mark = "ok" if self.ok else "no"
        subject = f"{self.path} " if self.path else ""
        seen = f": saw {_short(self.seen)}" if self.found else ""
        note = f" ({self.note})" if self.note else ""
        return f"{mark}  {subject}{self.wanted}{seen}{note}"


def explain(node: Node | None, event: Any) -> list[Predicate]:
    """Return how each condition of ``node`` fares with ``event``; all of them have to be ok for a match."""
    if node is None:
        return []
    if isinstance(node, AllOf):
        return [p for part in node.nodes for p in explain(part, event)]
    return [_explain_one(node, event)]


def _explain_one(node: Node, event: Any) -> Predicate:
    ok = compile_node(node)(event)
    match node:
        case Compare():
            found = follow(event, node.path)
            wanted = " and ".join(str(t) for t in node.tests)
            note = ""
            if found is MISSING:
                note = _nearest(event, node.path)
            elif not ok:
                values = list(values_of(found))
                notes = [n for v in values[:20] for t in node.tests if (n := misfit(t, v))]
                note = notes[0] if notes else "the array is empty" if not values else ""
            return Predicate(show_path(node.path), wanted, _bounded(found), found is not MISSING, ok, note)
        case Exists():
            found = follow(event, node.path)
            wanted = "is there" if node.wanted else "is not there"
            return Predicate(show_path(node.path), wanted, _bounded(found), found is not MISSING, ok)
        case Not():
            inner = tuple(explain(node.inner, event))
            found = follow(event, node.path) if node.path is not None else MISSING
            note = _nearest(event, node.path) if node.path is not None and found is MISSING else ""
            path = show_path(node.path) if node.path is not None else ""
            return Predicate(
                path, f"not ({describe(node.inner)})", _bounded(found), found is not MISSING, ok, note, inner
            )
        case AnyOf():
            inner = tuple(
                p
                for part in node.nodes
                for p in (explain(part, event) if not isinstance(part, AllOf) else [_group(part, event)])
            )
            return Predicate(
                "", f"any of ({describe(node)})", None, False, ok, "" if ok else "none held", inner
            )
        case Element():
            found = follow(event, node.path)
            word = "every element" if node.every else "some element"
            note = _nearest(event, node.path) if found is MISSING else ""
            first = next((i for i in values_of(found)), MISSING)
            inner = tuple(explain(node.inner, first)) if first is not MISSING else ()
            return Predicate(
                show_path(node.path),
                f"{word}: {describe(node.inner)}",
                _bounded(found),
                found is not MISSING,
                ok,
                note,
                inner,
            )
        case AllOf():
            return _group(node, event)
    assert_never(node)


def _group(node: AllOf, event: Any) -> Predicate:
    inner = tuple(explain(node, event))
    return Predicate("", describe(node), None, False, all(p.ok for p in inner), "", inner)


def describe(node: Node) -> str:
    """Return the condition in words, on one line."""
    match node:
        case Compare():
            return f"{show_path(node.path) or 'it'} " + " and ".join(str(t) for t in node.tests)
        case Exists():
            return f"{show_path(node.path)} is {'' if node.wanted else 'not '}there"
        case Not():
            return f"not ({describe(node.inner)})"
        case AllOf():
            return " and ".join(describe(n) for n in node.nodes)
        case AnyOf():
            return " or ".join(
                f"({describe(n)})" if isinstance(n, AllOf) else describe(n) for n in node.nodes
            )
        case Element():
            return f"{'every' if node.every else 'some'} element of {show_path(node.path)} with {describe(node.inner)}"
    assert_never(node)


def _nearest(event: Any, path: tuple[str, ...]) -> str:
    """Say how far the path got, and which fields there were instead."""
    at, walked = event, []
    for key in path:
        inner = follow(at, (key,))
        if inner is MISSING:
            break
        walked.append(key)
        at = inner
    here = show_path(tuple(walked)) or "the event"
    if isinstance(at, dict):
        names = ", ".join(sorted(str(k) for k in at)[:8])
        return f"missing; {here} has {names}" if names else f"missing; {here} is empty"
    return f"missing; {here} is {_short(_bounded(at))}"


def _bounded(value: Any) -> JsonValue:
    """Return ``value`` small enough to show."""
    if value is MISSING:
        return None
    if isinstance(value, str) and len(value) > 200:
        return value[:197] + "…"
    if isinstance(value, dict | list) and len(orjson.dumps(value)) > 400:
        return f"({'object' if isinstance(value, dict) else 'array'} of {len(value)})"
    result: JsonValue = value
    return result


def _short(value: JsonValue) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 120 else text[:117] + "…"


def leaves(node: Node | None) -> Iterator[Node]:
    """Yield the conditions that all have to hold: the top-level AND, flattened."""
    if node is None:
        return
    if isinstance(node, AllOf):
        for part in node.nodes:
            yield from leaves(part)
    else:
        yield node
