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
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from ..bus.subject import matches as type_matches
from .comparison import Comparison, Moment
from .condition import Compare, Node
from .path import MISSING, Path, follow, getter, step, values_of
from .where import Check, compile_node, every_of, leaves

__all__ = ["HIDDEN_WORDS", "Matcher", "indexed_by", "pattern_covers"]

T = TypeVar("T", bound=Hashable)
Row: TypeAlias = "dict[str, Any]"

HIDDEN_WORDS = frozenset({"automation", "action", "notification", "hark"})
"""First words of the room's own bookkeeping: a pattern that begins with a wildcard does not cover them."""

_MAX_KEYS = 64
_MAX_PLANS = 10_000
_MAX_PRODUCT = 4096
_RANGE_FROM = 4


def pattern_covers(pattern: str, type_: str) -> bool:
    """Return whether ``pattern`` covers ``type_``: bookkeeping events only when their first word is written out."""
    if pattern[0] in "*>" and type_.partition(".")[0] in HIDDEN_WORDS:
        return False
    return type_matches(pattern, type_)


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of a signature: what is hashed. ``kind`` is eq, fold, prefix or suffix; ``size`` for the last two."""

    path: Path
    kind: str = "eq"
    size: int = 0

    def of(self, value: Any) -> Any:
        """Return what to look up for one value; MISSING when it cannot match."""
        if self.kind == "eq":
            return value if value.__class__ is not dict else MISSING
        if value.__class__ is not str:
            return MISSING
        if self.kind == "fold":
            return value.casefold()
        return value[: self.size] if self.kind == "prefix" else value[-self.size :]


_Signature: TypeAlias = tuple[_Part, ...]


@dataclass(slots=True)
class _Entry(Generic[T]):
    """A pattern in one bucket: what is left to check, or the one numeric limit it can be sorted by."""

    handle: T
    check: Check | None
    limit: tuple[Path, str, float] | None = None
    order: int = 0


@dataclass(slots=True, eq=False)
class _Bucket(Generic[T]):
    """Patterns that share a lookup key.

    ``live`` is the dictionary the plans probe; under ``key`` it holds this bucket, or just the tuple of its handles
    once it is known that nothing is left to check.
    """

    live: dict[Any, Any]
    key: Any
    entries: dict[T, _Entry[T]] = field(default_factory=dict)
    plain: tuple[T, ...] = ()
    checked: tuple[tuple[Check, T], ...] = ()
    ranges: tuple[tuple[Callable[[Any], Any], str, list[float], list[_Entry[T]]], ...] = ()
    dirty: bool = True

    def settle(self) -> None:
        """Sort the entries into those that match at once, those to check, and those found by bisection."""
        by_limit: dict[tuple[Path, str], list[_Entry[T]]] = {}
        rest: list[_Entry[T]] = []
        for entry in self.entries.values():
            if entry.limit is not None:
                by_limit.setdefault(entry.limit[:2], []).append(entry)
            else:
                rest.append(entry)
        ranges = []
        for (path, op), entries in by_limit.items():
            if len(entries) < _RANGE_FROM:
                rest.extend(entries)
                continue
            entries.sort(key=lambda e: (e.limit[2] if e.limit else 0.0, e.order))
            ranges.append((getter(path), op, [e.limit[2] for e in entries if e.limit], entries))
        self.ranges = tuple(ranges)
        limit_check = {id(e): _limit_check(e.limit) for e in rest if e.limit is not None}
        self.plain = tuple(e.handle for e in rest if e.check is None and e.limit is None)
        self.checked = tuple(
            (_both(limit_check.get(id(e)), e.check), e.handle)
            for e in rest
            if e.check is not None or e.limit is not None
        )
        self.dirty = False
        self.live[self.key] = self if self.checked or self.ranges else self.plain

    def touch(self) -> None:
        """Note that the entries have changed; they are sorted when first needed."""
        self.dirty = True
        if self.entries:
            self.live[self.key] = self
        else:
            self.live.pop(self.key, None)

    def collect(self, event: Row, hits: list[T]) -> None:
        """Add the patterns of this bucket that ``event`` satisfies."""
        if self.dirty:
            self.settle()
        if self.plain:
            hits += self.plain
        for check, handle in self.checked:
            if check(event):
                hits.append(handle)
        for get, op, limits, entries in self.ranges:
            value = get(event)
            if value.__class__ is float or value.__class__ is int:
                if not (limits[0] <= value if op in _UPWARD else limits[-1] >= value):
                    continue
                for entry in _passed(op, limits, entries, value):
                    if entry.check is None or entry.check(event):
                        hits.append(entry.handle)
            elif value.__class__ is list:
                numbers = [v for v in values_of(value) if v.__class__ is float or v.__class__ is int]
                if numbers:
                    # Some element: the one that passes most limits decides.
                    extreme = max(numbers) if op in ("gt", "gte") else min(numbers)
                    for entry in _passed(op, limits, entries, extreme):
                        if entry.check is None or entry.check(event):
                            hits.append(entry.handle)


def _passed(op: str, limits: list[float], entries: list[_Entry[T]], value: float) -> list[_Entry[T]]:
    """Return the entries whose limit ``value`` passes."""
    if op == "gt":
        return entries[: bisect_left(limits, value)]
    if op == "gte":
        return entries[: bisect_right(limits, value)]
    if op == "lt":
        return entries[bisect_right(limits, value) :]
    return entries[bisect_left(limits, value) :]


_OPERATOR = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def _limit_check(limit: tuple[Path, str, float] | None) -> Check | None:
    if limit is None:
        return None
    path, op, bound = limit
    thorough = compile_node(Compare(path, (Comparison(op, (bound,)),)))
    if len(path) != 2:
        return thorough
    # The usual case, `data.x > n`, in one call instead of three.
    (a, b), passes = path, _OPERATOR[op]

    def check(event: Any) -> bool:
        value = event.get(a)
        if value.__class__ is dict:
            value = value.get(b)
            if value.__class__ is float or value.__class__ is int:
                return bool(passes(value, bound))
        return thorough(event)

    return check


def _both(first: Check | None, second: Check | None) -> Check:
    if first is None:
        assert second is not None
        return second
    if second is None:
        return first
    return lambda e: first(e) and second(e)


@dataclass(frozen=True, slots=True)
class _Indexing:
    """How one pattern is looked up: by which signature, under which keys, with what left to check."""

    signature: _Signature
    keys: tuple[Any, ...]
    check: Check | None
    limit: tuple[Path, str, float] | None


_UPWARD = frozenset({"gt", "gte"})
_PLAIN_LIMITS = ("gt", "gte", "lt", "lte")


def _hashable(node: Node) -> tuple[Path, tuple[Any, ...]] | None:
    """Return the path and the values of an equality that can be hashed."""
    if isinstance(node, Compare) and len(node.tests) == 1:
        test = node.tests[0]
        if test.op == "in" and not test.ignore_case:
            return node.path, test.operand
    return None


def _index(node: Node | None, extra: Check | None) -> _Indexing:
    """Choose how a pattern is looked up. ``extra`` is checked last (an ``if``, a narrower type)."""
    parts = list(leaves(node))
    chosen: list[tuple[_Part, tuple[Any, ...]]] = []
    rest: list[Node] = []
    product = 1
    for part in sorted(parts, key=lambda p: len(h[1]) if (h := _hashable(p)) else 0):
        same = _hashable(part)
        if same is None or product * len(same[1]) > _MAX_KEYS or any(c[0].path == same[0] for c in chosen):
            rest.append(part)
            continue
        product *= len(same[1])
        chosen.append((_Part(same[0]), same[1]))
        # The hash table takes True for 1 and 1.0 for True: those are looked at again.
        if any(isinstance(v, bool) or (isinstance(v, int | float) and v in (0, 1)) for v in same[1]):
            rest.append(part)
    if not chosen:
        for part in rest:
            keyed = _text_key(part)
            if keyed is not None:
                chosen.append(keyed)
                if keyed[0].kind != "fold":
                    rest = [p for p in rest if p is not part]
                break
    limit = None
    for i, part in enumerate(rest):
        if (
            isinstance(part, Compare)
            and len(part.tests) == 1
            and part.tests[0].op in _PLAIN_LIMITS
            and part.path
        ):
            operand = part.tests[0].operand[0]
            if not isinstance(operand, Moment):
                limit = (part.path, part.tests[0].op, operand)
                del rest[i]
                break
    # Cheap checks first; the order of an AND does not change its outcome.
    checks = [compile_node(p) for p in rest]
    if extra is not None:
        checks.append(extra)
    check: Check | None = None
    if checks:
        check = checks[0] if len(checks) == 1 else every_of(tuple(checks))
    chosen.sort(key=lambda c: (c[0].path, c[0].kind, c[0].size))
    keys: tuple[Any, ...]
    if len(chosen) == 1:
        keys = chosen[0][1]
    else:
        keys = tuple(itertools.product(*(values for _, values in chosen)))
    return _Indexing(tuple(part for part, _ in chosen), keys, check, limit)


def _text_key(node: Node) -> tuple[_Part, tuple[Any, ...]] | None:
    """Return the lookup of a lone prefix, suffix or case-insensitive text."""
    if not isinstance(node, Compare) or len(node.tests) != 1:
        return None
    test = node.tests[0]
    if test.op == "in" and test.ignore_case and all(isinstance(o, str) for o in test.operand):
        return _Part(node.path, "fold"), tuple(dict.fromkeys(o.casefold() for o in test.operand))
    if (
        test.op in ("prefix", "suffix")
        and not test.ignore_case
        and len(test.operand) == 1
        and test.operand[0]
    ):
        return _Part(node.path, test.op, len(test.operand[0])), test.operand
    return None


def indexed_by(types: Iterable[str], node: Node | None, *, has_if: bool) -> str:
    """Return how a pattern is found, in words; empty when it is looked at for every event of every type."""
    found = _index(node, None)
    if found.signature:
        return " and ".join(".".join(part.path) for part in found.signature)
    if found.limit is not None and not has_if and found.check is None:
        return ".".join(found.limit[0])
    return "type" if all(t[0] not in "*>" for t in types) else ""


# --- tables of one type pattern ----------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Table(Generic[T]):
    """The patterns of one type pattern that share a signature: lookup key -> bucket."""

    signature: _Signature
    buckets: dict[Any, _Bucket[T]] = field(default_factory=dict)
    live: dict[Any, Any] = field(default_factory=dict)

    def collect_array(self, values: list[Any], event: Row, hits: list[T]) -> None:
        """Look up each element of an array, for a signature of one equality."""
        found: list[T] = []
        get = self.live.get
        n = 0
        for value in values:
            if value.__class__ is str:
                c = get(value)
            elif value.__class__ is list:
                self.collect(event, hits)
                return
            else:
                c = get(value) if value.__class__ is not dict else None
            if c is not None:
                n += 1
                if c.__class__ is tuple:
                    found += c
                else:
                    c.collect(event, found)
        if found:
            hits += found if n == 1 else dict.fromkeys(found)

    def collect(self, event: Row, hits: list[T]) -> None:
        """Look an event up the thorough way: arrays, objects and all."""
        choices: list[list[Any]] = []
        for part in self.signature:
            found = follow(event, part.path)
            if found is MISSING:
                return
            keys = {(k.__class__ is bool, k): k for v in values_of(found) if (k := part.of(v)) is not MISSING}
            if not keys:
                return
            choices.append(list(keys.values()))
        product = 1
        for choice in choices:
            product *= len(choice)
        seen: list[T] = []
        if len(choices) == 1:
            candidates: Iterable[_Bucket[T]] = (b for k in choices[0] if (b := self.buckets.get(k)))
        elif product <= _MAX_PRODUCT:
            candidates = (b for k in itertools.product(*choices) if (b := self.buckets.get(k)))
        else:  # an event with huge arrays under several paths: go through the table instead
            sets = [set(choice) for choice in choices]
            candidates = (
                b
                for k, b in self.buckets.items()
                if all(one in have for one, have in zip(k, sets, strict=True))
            )
        for bucket in list(candidates):
            bucket.collect(event, seen)
        hits += dict.fromkeys(seen)


@dataclass(slots=True, eq=False)
class _TypeIndex(Generic[T]):
    """All patterns that ask for one type, or for one wildcard of types."""

    tables: dict[_Signature, _Table[T]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a pattern was put, to take it out again."""

    types: str
    signature: _Signature
    keys: tuple[Any, ...]


class Matcher(Generic[T]):
    """An index of patterns. Handles are what ``match`` returns: any hashable things, each pattern its own."""

    def __init__(self) -> None:
        self._exact: dict[str, _TypeIndex[T]] = {}
        self._wild: _Trie[T] = _Trie()
        self._places: dict[T, list[_Place]] = {}
        self._plans: dict[str, Callable[[Row], list[T]] | None] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, handle: T) -> bool:
        return handle in self._places

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
                check = _both(extra, _narrowed(earlier))
            found = _index(node, check)
            index = self._type_index(pattern)
            table = index.tables.get(found.signature)
            if table is None:
                table = index.tables[found.signature] = _Table(found.signature)
                self._forget_plans(pattern)
            entry = _Entry(handle, found.check, found.limit, next(self._order))
            for key in found.keys:
                bucket = table.buckets.get(key)
                if bucket is None:
                    bucket = table.buckets[key] = _Bucket(table.live, key)
                bucket.entries[handle] = entry
                bucket.touch()
            places.append(_Place(pattern, found.signature, found.keys))
        self._places[handle] = places

    def remove(self, handle: T) -> None:
        """Take a pattern out; nothing happens if it is not in."""
        for place in self._places.pop(handle, ()):
            index = self._type_index(place.types)
            table = index.tables[place.signature]
            for key in place.keys:
                bucket = table.buckets[key]
                bucket.entries.pop(handle, None)
                bucket.touch()
                if not bucket.entries:
                    del table.buckets[key]
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
        plan = _compile_plan(tables) if tables else None
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


# --- generated plans ---------------------------------------------------------------------------------------


class _Names:
    """Gives generated code its variables."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"MISSING": MISSING, "step": step}
        self._n = itertools.count()

    def bind(self, value: Any) -> str:
        name = f"k{next(self._n)}"
        self.values[name] = value
        return name


def _compile_plan(tables: list[_Table[T]]) -> Callable[[Row], list[T]]:
    """Return a function that reads every path of ``tables`` once and collects what they hold for an event.

    The code is generated, from names of our own making alone: paths and tables reach it as bound values.
    """
    names = _Names()
    lines = ["def plan(e):", " hits = []", " try:"]
    variables: dict[Path, str] = {(): "e"}
    for table in tables:
        for part in table.signature:
            for n in range(1, len(part.path) + 1):
                way = part.path[:n]
                if way in variables:
                    continue
                parent = variables[way[:-1]]
                variables[way] = f"v{len(variables)}"
                key = names.bind(way[-1])
                if n == 1:
                    lines.append(f"  {variables[way]} = e.get({key}, MISSING)")
                else:
                    lines.append(
                        f"  {variables[way]} = {parent}.get({key}, MISSING) if {parent}.__class__ is dict else step({parent}, {key})"
                    )
    probe = ["if c is not None:", " if c.__class__ is tuple: hits += c", " else: c.collect(e, hits)"]
    for table in tables:
        if not table.signature:
            lines.append(f"  c = {names.bind(table.live)}.get(())")
            lines += ["  " + line for line in probe]
            continue
        reads = [variables[part.path] for part in table.signature]
        if len(reads) == 1 and table.signature[0].kind == "eq":
            thorough = f"{names.bind(table.collect_array)}({reads[0]}, e, hits)"
        else:
            thorough = f"{names.bind(table.collect)}(e, hits)"
        arrays = " or ".join(f"{v}.__class__ is list" for v in dict.fromkeys(reads))
        keys = []
        for part, v in zip(table.signature, reads, strict=True):
            if part.kind == "eq":
                keys.append(v)
            else:
                cut = {"fold": ".casefold()", "prefix": f"[:{part.size}]", "suffix": f"[-{part.size}:]"}[
                    part.kind
                ]
                keys.append(f"({v}{cut} if {v}.__class__ is str else MISSING)")
        key = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
        lines.append(f"  if {arrays}: {thorough}")
        lines.append("  else:")
        lines.append(f"   c = {names.bind(table.live)}.get({key})")
        lines += ["   " + line for line in probe]
    # An object where a text was looked for cannot be hashed: rare, so nothing is spent on it above.
    lines += [
        " except TypeError:",
        "  hits = []",
        "  for collect in thorough: collect(e, hits)",
        " return hits",
    ]
    names.values["thorough"] = tuple(table.collect for table in tables)
    scope = dict(names.values)
    exec(compile("\n".join(lines), "<matching plan>", "exec"), scope)  # noqa: S102  # see the docstring
    plan: Callable[[Row], list[T]] = scope["plan"]
    return plan
