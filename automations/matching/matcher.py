"""Which patterns an event satisfies, at a cost that does not grow with the number of patterns.

How: patterns are grouped by the types they ask for, and within those by the *set of paths* they compare for equality
(their signature). One hash lookup per signature finds the few that can match; what is left of their conditions is
checked by closures. Patterns with nothing but a numeric limit lie in sorted arrays, found by bisection; those with
nothing but a prefix, suffix or case-insensitive text are hashed by that. For every concrete event type a *plan* is
made once: a generated function that reads each path it needs exactly once and probes the tables.

A pattern enters or leaves by touching its own buckets and forgetting the plans of the types it asks for, so a change
among ten thousand rules costs microseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

from ...bus.subject import matches as type_matches
from .condition import Node
from .index import Bucket, Entry, Row, Signature, T, Table, both, choose_index, indexed_by
from .plan import compile_plan
from .where import Check

__all__ = ["HIDDEN_WORDS", "Matcher", "indexed_by", "pattern_covers"]

HIDDEN_WORDS = frozenset({"automation", "action", "notification", "hark"})
"""First words of the room's own bookkeeping: a pattern that begins with a wildcard does not cover them."""

_MAX_PLANS = 10_000


def pattern_covers(pattern: str, type_: str) -> bool:
    """Return whether ``pattern`` covers ``type_``: bookkeeping events only when their first word is written out."""
    if pattern[0] in "*>" and type_.partition(".")[0] in HIDDEN_WORDS:
        return False
    return type_matches(pattern, type_)


@dataclass(slots=True, eq=False)
class _TypeIndex(Generic[T]):
    """All patterns that ask for one type, or for one wildcard of types."""

    tables: dict[Signature, Table[T]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a pattern was put, to take it out again."""

    types: str
    signature: Signature
    keys: tuple[Any, ...]


class Matcher(Generic[T]):
    """An index of patterns. Handles are what ``match`` returns: any hashable things, each pattern its own."""

    def __init__(self) -> None:
        self._exact: dict[str, _TypeIndex[T]] = {}
        self._wild: _Trie[T] = _Trie()
        self._places: dict[T, list[_Place]] = {}
        self._plans: dict[str, Callable[[Row], list[T]] | None] = {}
        self._order = itertools.count()
        self._asked: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, handle: T) -> bool:
        return handle in self._places

    @property
    def types(self) -> Collection[str]:
        """The types and wildcards that are asked for, each once; of those one covers another, perhaps only the wider."""
        return self._asked.keys()

    def add(
        self, handle: T, types: Iterable[str], node: Node | None = None, *, extra: Check | None = None
    ) -> None:
        """Put a pattern in.

        Args:
            types: event types and wildcards, of which one has to fit.
            node: the parsed ``where``; None matches every event of the types.
            extra: a further check, not indexed (an ``if``).
        Raises:
            ValueError: the handle is in already.
        """
        if handle in self._places:
            raise ValueError(f"{handle!r} is in already")
        wanted = list(dict.fromkeys(types))
        places = []
        for i, pattern in enumerate(wanted):
            others = [w for j, w in enumerate(wanted) if j != i and w != pattern]
            if "*" not in pattern and ">" not in pattern and any(pattern_covers(w, pattern) for w in others):
                continue  # the wildcard beside it finds those events
            earlier = [w for w in wanted[:i] if "*" in w or ">" in w]
            check = extra
            if earlier and ("*" in pattern or ">" in pattern):
                check = both(extra, _narrowed(earlier))
            found = choose_index(node, check)
            index = self._type_index(pattern)
            table = index.tables.get(found.signature)
            if table is None:
                table = index.tables[found.signature] = Table(found.signature)
                self._forget_plans(pattern)
            elif not found.signature:
                self._forget_plans(pattern)  # what is not looked up is written out in the plans
            if found.limit is not None and table.usual is None and found.signature:
                table.make_usual(found.limit[:2])
                self._forget_plans(pattern)
            entry = Entry(handle, found.check, found.limit, next(self._order))
            for key in found.keys:
                bucket = table.buckets.get(key)
                if bucket is None:
                    bucket = table.buckets[key] = Bucket(table.live, key, table.usual)
                bucket.entries[handle] = entry
                bucket.touch()
            places.append(_Place(pattern, found.signature, found.keys))
            self._asked[pattern] = self._asked.get(pattern, 0) + 1
        self._places[handle] = places

    def remove(self, handle: T) -> None:
        """Take a pattern out; nothing happens if it is not in."""
        for place in self._places.pop(handle, ()):
            self._asked[place.types] -= 1
            if not self._asked[place.types]:
                del self._asked[place.types]
            index = self._type_index(place.types)
            table = index.tables[place.signature]
            for key in place.keys:
                bucket = table.buckets[key]
                bucket.entries.pop(handle, None)
                bucket.touch()
                if not bucket.entries:
                    del table.buckets[key]
            if not place.signature:
                self._forget_plans(place.types)
            if not table.buckets:
                del index.tables[place.signature]
                self._forget_plans(place.types)
                if not index.tables:
                    self._drop(place.types)

    def match(self, event: Row) -> list[T]:
        """Return the handles of the patterns that ``event`` (a parsed CloudEvent) satisfies, each once, in no order."""
        type_ = event["type"]
        try:
            plan = self._plans[type_]
        except KeyError:
            plan = self._plan_for(type_)
        return plan(event) if plan is not None else []

    def wants(self, type_: str) -> bool:
        """Return whether any pattern asks for events of this type."""
        try:
            return self._plans[type_] is not None
        except KeyError:
            return self._plan_for(type_) is not None

    # --- inside ---

    def _type_index(self, pattern: str) -> _TypeIndex[T]:
        if "*" in pattern or ">" in pattern:
            return self._wild.at(pattern, self._forget_plans)
        index = self._exact.get(pattern)
        if index is None:
            index = self._exact[pattern] = _TypeIndex()
        return index

    def _drop(self, pattern: str) -> None:
        if "*" in pattern or ">" in pattern:
            self._wild.drop(pattern)
        else:
            self._exact.pop(pattern, None)

    def _forget_plans(self, pattern: str) -> None:
        if "*" not in pattern and ">" not in pattern:
            self._plans.pop(pattern, None)
            return
        for type_ in [t for t in self._plans if pattern_covers(pattern, t)]:
            del self._plans[type_]

    def _plan_for(self, type_: str) -> Callable[[Row], list[T]] | None:
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()  # types are few; whoever invents one per event pays for it alone
        indexes = list(self._wild.covering(type_))
        exact = self._exact.get(type_)
        if exact is not None:
            indexes.append(exact)
        tables = [table for index in indexes for table in index.tables.values()]
        plan = compile_plan(tables) if tables else None
        self._plans[type_] = plan
        return plan


def _narrowed(earlier: list[str]) -> Check:
    fixed = tuple(earlier)
    return lambda e: not any(pattern_covers(p, e["type"]) for p in fixed)


class _Trie(Generic[T]):
    """Wildcards of types by their words, so that finding the ones covering a type does not look at the others."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}

    def at(self, pattern: str, on_new: Callable[[str], None]) -> _TypeIndex[T]:
        node = self._root
        for word in pattern.split("."):
            node = node.setdefault(word, {})
        index: _TypeIndex[T] | None = node.get("")
        if index is None:
            index = node[""] = _TypeIndex()
            on_new(pattern)
        return index

    def drop(self, pattern: str) -> None:
        way = []
        node = self._root
        for word in pattern.split("."):
            way.append((node, word))
            node = node[word]
        node.pop("", None)
        for parent, word in reversed(way):
            if parent[word]:
                break
            del parent[word]

    def covering(self, type_: str) -> Iterator[_TypeIndex[T]]:
        words = type_.split(".")
        hidden = words[0] in HIDDEN_WORDS
        stack: list[tuple[dict[str, Any], int]] = [(self._root, 0)]
        while stack:
            node, i = stack.pop()
            if i == len(words):
                if "" in node:
                    yield node[""]
                continue
            if not (hidden and i == 0):
                if ">" in node:
                    yield node[">"][""]
                if "*" in node:
                    stack.append((node["*"], i + 1))
            if words[i] in node:
                stack.append((node[words[i]], i + 1))
