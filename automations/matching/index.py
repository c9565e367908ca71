"""How one pattern is looked up, and the tables it is found in: lookup keys, residual checks, sorted limits."""

from __future__ import annotations

import itertools
import operator
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

from .comparison import Comparison, Moment
from .condition import Compare, Node, Not
from .path import MISSING, Path, follow, values_of
from .where import Check, compile_node, every_of, leaves

__all__ = [
    "DIFFERS",
    "Bucket",
    "Entry",
    "Indexing",
    "Limits",
    "Many",
    "Part",
    "Row",
    "Signature",
    "T",
    "Table",
    "both",
    "choose_index",
    "indexed_by",
]

T = TypeVar("T", bound=Hashable)
Row: TypeAlias = "dict[str, Any]"

_MAX_KEYS = 64
_MAX_PRODUCT = 4096
_RANGE_FROM = 4
DIFFERS = "not"


@dataclass(frozen=True, slots=True)
class Part:
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


Signature: TypeAlias = tuple[Part, ...]


@dataclass(slots=True)
class Entry(Generic[T]):
    """A pattern in one bucket: what is left to check, and the one comparison that the plans make themselves."""

    handle: T
    check: Check | None
    limit: tuple[Path, str, Any] | None = None
    order: int = 0


@dataclass(slots=True, eq=False)
class Ranges(Generic[T]):
    """Patterns with a limit on one path, in one direction, sorted by it."""

    path: Path
    op: str
    limits: list[float]
    entries: list[Entry[T]]
    handles: tuple[T, ...] | None
    """The handles in the order of their limits where nothing else is left to check: a slice of them is the answer."""

    @property
    def edge(self) -> float:
        """The limit that is passed most easily."""
        return self.limits[0] if self.op in _UPWARD else self.limits[-1]

    def collect(self, value: Any, event: Row, hits: list[T]) -> None:
        """Add the patterns whose limit a value passes; of an array, some element."""
        if value.__class__ is list:
            numbers = [v for v in values_of(value) if v.__class__ is float or v.__class__ is int]
            if not numbers:
                return
            # The one that passes most limits decides.
            value = max(numbers) if self.op in _UPWARD else min(numbers)
        elif value.__class__ is not float and value.__class__ is not int:
            return
        passed = _passed(self.op, self.limits, value)
        if self.handles is not None:
            hits += self.handles[passed]
        else:
            entries = self.entries[passed]
            hits += [entry.handle for entry in entries if entry.check is None or entry.check(event)]


class Limits(tuple[tuple[float, Any], ...]):
    """(limit, handle) of a few patterns: compared in the plan itself, which has read the value already.

    A limit is a number to be above or below, or a text to differ from.

    A check would be a call, and of ten thousand each lies in cold memory.
    """

    __slots__ = ()


class Many(tuple[Any, ...]):
    """The handles of patterns of which nothing is left to check."""

    __slots__ = ()


_NONE = Many()


@dataclass(slots=True, eq=False)
class Bucket(Generic[T]):
    """Patterns that share a lookup key.

    ``live`` is the dictionary the plans probe. Under ``key`` it holds this bucket; or, once its kind is known, what
    spares the plans the bucket. Of ten thousand rules everything that is found lies in cold memory, and costs by the
    number of objects on the way to the handle, so the usual case, one pattern, has the shortest:

    - the handle itself, where one pattern has nothing left to check; ``Many`` handles, where several have;
    - a plain tuple (limit, handle), where one pattern has a limit of the table's ``usual`` path and direction;
      ``Limits``, where several have;
    - the list of (check, handle), where that is all there is.
    """

    live: dict[Any, Any]
    key: Any
    usual: tuple[Path, str] | None = None
    entries: dict[T, Entry[T]] = field(default_factory=dict)
    plain: Many = _NONE
    checked: tuple[tuple[Check, T], ...] = ()
    ranges: tuple[Ranges[T], ...] = ()
    dirty: bool = True

    def settle(self) -> None:
        """Sort the entries into those that match at once, those to check, and those found by bisection."""
        by_limit: dict[tuple[Path, str], list[Entry[T]]] = {}
        rest: list[Entry[T]] = []
        for entry in self.entries.values():
            if entry.limit is not None:
                by_limit.setdefault(entry.limit[:2], []).append(entry)
            else:
                rest.append(entry)
        ranges = []
        for (path, op), entries in by_limit.items():
            if len(entries) < _RANGE_FROM or op == DIFFERS:
                rest.extend(entries)
                continue
            entries.sort(key=lambda e: (e.limit[2] if e.limit else 0.0, e.order))
            is_bare = all(e.check is None for e in entries)
            handles = tuple(e.handle for e in entries) if is_bare else None
            ranges.append(Ranges(path, op, [e.limit[2] for e in entries if e.limit], entries, handles))
        self.ranges = tuple(ranges)
        limit_check = {id(e): _limit_check(e.limit) for e in rest if e.limit is not None}
        self.plain = Many(e.handle for e in rest if e.check is None and e.limit is None)
        self.checked = tuple(
            (both(limit_check.get(id(e)), e.check), e.handle)
            for e in rest
            if e.check is not None or e.limit is not None
        )
        self.dirty = False
        self.live[self.key] = self._brief(rest)

    def _brief(self, rest: list[Entry[T]]) -> Any:
        """Return what the plans find instead of this bucket, see the class."""
        if self.ranges:
            return self
        if not self.checked:
            (first, *others) = self.plain
            return self.plain if others or first.__class__ in self._meant else first
        if self.usual is not None and all(
            e.limit is not None and e.limit[:2] == self.usual and e.check is None for e in rest
        ):
            pairs = [(_bound_of(e.limit), e.handle) for e in rest if e.limit is not None]
            return pairs[0] if len(pairs) == 1 else Limits(pairs)
        return self if self.plain else list(self.checked)

    @property
    def _meant(self) -> tuple[type, ...]:
        """Classes of which a thing found is no handle."""
        ours = (Many, Limits, Bucket, type(None))
        return ours if self.usual is None else (*ours, tuple)

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
        for group in self.ranges:
            group.collect(follow(event, group.path), event, hits)


def _passed(op: str, limits: list[float], value: float) -> slice:
    """Return where the limits lie that ``value`` passes."""
    if op == "gt":
        return slice(bisect_left(limits, value))
    if op == "gte":
        return slice(bisect_right(limits, value))
    if op == "lt":
        return slice(bisect_right(limits, value), None)
    return slice(bisect_left(limits, value), None)


_EXACT = 2**53


@lru_cache(maxsize=4096)
def _bound(number: float) -> float:
    """Return a limit as Python compares it soonest: a float, where that is exact. The cache lets rules share it."""
    return float(number) if -_EXACT <= number <= _EXACT else number


def _bound_of(limit: tuple[Path, str, Any]) -> Any:
    return _shared(limit[2]) if limit[1] == DIFFERS else _bound(limit[2])


_OPERATOR = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def _limit_check(limit: tuple[Path, str, Any] | None) -> Check | None:
    if limit is None:
        return None
    path, op, bound = limit
    if op == DIFFERS:
        return compile_node(Not(Compare(path, (Comparison("in", (bound,)),)), path))
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


def both(first: Check | None, second: Check | None) -> Check:
    if first is None:
        assert second is not None
        return second
    if second is None:
        return first
    return lambda e: first(e) and second(e)


@dataclass(frozen=True, slots=True)
class Indexing:
    """How one pattern is looked up: by which signature, under which keys, with what left to check."""

    signature: Signature
    keys: tuple[Any, ...]
    check: Check | None
    limit: tuple[Path, str, Any] | None


_UPWARD = frozenset({"gt", "gte"})
_PLAIN_LIMITS = ("gt", "gte", "lt", "lte")


def _hashable(node: Node) -> tuple[Path, tuple[Any, ...]] | None:
    """Return the path and the values of an equality that can be hashed."""
    if isinstance(node, Compare) and len(node.tests) == 1:
        test = node.tests[0]
        if test.op == "in" and not test.ignore_case:
            return node.path, test.operand
    return None


def choose_index(node: Node | None, extra: Check | None) -> Indexing:
    """Choose how a pattern is looked up. ``extra`` is checked last (an ``if``, a narrower type)."""
    parts = list(leaves(node))
    chosen: list[tuple[Part, tuple[Any, ...]]] = []
    rest: list[Node] = []
    product = 1
    for part in sorted(parts, key=lambda p: len(h[1]) if (h := _hashable(p)) else 0):
        same = _hashable(part)
        if same is None or product * len(same[1]) > _MAX_KEYS or any(c[0].path == same[0] for c in chosen):
            rest.append(part)
            continue
        product *= len(same[1])
        chosen.append((Part(same[0]), same[1]))
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
    limit: tuple[Path, str, Any] | None = None
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
    if limit is None and chosen:
        for i, part in enumerate(rest):
            if (text := _other_than(part)) is not None:
                limit = text
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
    # Once each: a table holds True and 1 under one key.
    return Indexing(tuple(part for part, _ in chosen), tuple(dict.fromkeys(map(_shared, keys))), check, limit)


def _shared(key: Any) -> Any:
    """Return a key with texts that all rules share: what one table has looked at need not be fetched for the next."""
    if key.__class__ is tuple:
        return tuple(map(_shared, key))
    return sys.intern(key) if key.__class__ is str else key


def _other_than(node: Node) -> tuple[Path, str, Any] | None:
    """Return the path and the one text it is not to be."""
    if not isinstance(node, Not) or not isinstance(node.inner, Compare) or node.path != node.inner.path:
        return None
    path, tests = node.inner.path, node.inner.tests
    if not path or len(tests) != 1 or tests[0].op != "in" or tests[0].ignore_case:
        return None
    operand = tests[0].operand
    return (path, DIFFERS, operand[0]) if len(operand) == 1 and isinstance(operand[0], str) else None


def _text_key(node: Node) -> tuple[Part, tuple[Any, ...]] | None:
    """Return the lookup of a lone prefix, suffix or case-insensitive text."""
    if not isinstance(node, Compare) or len(node.tests) != 1:
        return None
    test = node.tests[0]
    if test.op == "in" and test.ignore_case and all(isinstance(o, str) for o in test.operand):
        return Part(node.path, "fold"), tuple(dict.fromkeys(o.casefold() for o in test.operand))
    if (
        test.op in ("prefix", "suffix")
        and not test.ignore_case
        and len(test.operand) == 1
        and test.operand[0]
    ):
        return Part(node.path, test.op, len(test.operand[0])), test.operand
    return None


def indexed_by(types: Iterable[str], node: Node | None, *, has_if: bool) -> str:
    """Return how a pattern is found, in words; empty when it is looked at for every event of every type."""
    found = choose_index(node, None)
    if found.signature:
        return " and ".join(".".join(part.path) for part in found.signature)
    if found.limit is not None and not has_if and found.check is None:
        return ".".join(found.limit[0])
    return "type" if all(t[0] not in "*>" for t in types) else ""


@dataclass(slots=True, eq=False)
class Table(Generic[T]):
    """The patterns of one type pattern that share a signature: lookup key -> bucket."""

    signature: Signature
    buckets: dict[Any, Bucket[T]] = field(default_factory=dict)
    live: dict[Any, Any] = field(default_factory=lambda: {MISSING: None})
    """What the plans probe, see ``Bucket``. A key that is no text makes Python keep hashes beside the keys: otherwise
    looking for a text that is not there reads other texts, which of ten thousand rules lie in cold memory."""
    usual: tuple[Path, str] | None = None
    """Path and direction of the first limit that came; most rules of a kind share it."""

    def make_usual(self, usual: tuple[Path, str]) -> None:
        """Have the plans compare limits of this path and direction themselves."""
        self.usual = usual
        for bucket in self.buckets.values():
            bucket.usual = usual
            bucket.touch()

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
                if c.__class__ is list:
                    found += [handle for check, handle in c if check(event)]
                else:
                    self.buckets[value].collect(event, found)
        if found:
            hits += found if n == 1 else dict.fromkeys(found)

    def collect_unusual(self, key: Any, value: Any, event: Row, hits: list[T]) -> None:
        """Add what lies under a key when the value on the ``usual`` path is not of the kind that plans compare."""
        if self.live[key].__class__ in (tuple, Limits):
            assert self.usual is not None
            if value is MISSING or (self.usual[1] != DIFFERS and value.__class__ is not list):
                return
        self.buckets[key].collect(event, hits)

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
            candidates: Iterable[Bucket[T]] = (b for k in choices[0] if (b := self.buckets.get(k)))
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
