"""Groups: ``any_of`` so many, ``all_of``, nested, in so long a time and in any order.

Every pattern keeps its latest events by key. When one comes, the group is looked at over each window that holds it
and ends with an event; if enough of it has occurred in one, the rule fires with just those events, and the key begins
anew. An event older than the newest of its key by more than the allowed lateness is too late.

A sequence inside a group is looked for among the events of its steps, from its end backwards: of all that end in time
that finds the one that begins last, which every window that holds another one holds too. Its order is that of the
times at which the events occurred.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...vocabulary import JsonObject, JsonValue
from ..composite import Branch, Step, leaves_of
from ..model import Automation
from .form import EventRef, Firing, Kind, Seen, Timeless, Used
from .keyed import Keyed

__all__ = ["Group"]

_MAX_KEPT = 1000
"""Events of one pattern and key that may lie within the lateness; beyond, the oldest are forgotten."""

_Entry = tuple[float, int, str]


@dataclass(frozen=True, slots=True)
class _Node:
    """A branch: a pattern by its number, so many (``need``) of the nodes inside, or a chain of them (``in_order``)."""

    need: int = 0
    leaf: int = -1
    count: int = 1
    inner: tuple[_Node, ...] = ()
    in_order: bool = False
    alias: str | None = None
    within: float | None = None

    def found(self, lists: list[list[_Entry]], start: float, end: float) -> list[_Entry] | None:
        """Return the events that make it true from ``start`` to ``end``, None if it is not."""
        if self.in_order:
            chain = self.chain(lists, start, end)
            return None if chain is None else [entry for part in chain for entry in part]
        if not self.need:
            entries = lists[self.leaf]
            last = bisect_right(entries, (end, _LAST))
            first = last - self.count
            return entries[first:last] if first >= 0 and entries[first][0] >= start else None
        out: list[_Entry] = []
        met = 0
        for node in self.inner:
            found = node.found(lists, start, end)
            if found is not None:
                met += 1
                out += found
        return out if met >= self.need else None

    def chain(self, lists: list[list[_Entry]], start: float, end: float) -> list[list[_Entry]] | None:
        """Return the events of each step, one step after the other, the last possible ones; None if there are none."""
        parts: list[list[_Entry]] = []
        before: tuple[Any, ...] = (end, _LAST)
        for step in reversed(self.inner):
            entries = lists[step.leaf]
            part: list[_Entry] | None = None
            for last in range(bisect_left(entries, before), step.count - 1, -1):
                some = entries[last - step.count : last]
                if step.within is None or some[-1][0] - some[0][0] <= step.within:
                    part = some
                    break
            if part is None or part[0][0] < start:
                return None
            parts.append(part)
            before = part[0]
        return parts[::-1]

    def names(self, lists: list[list[_Entry]], start: float, end: float) -> dict[str, _Entry]:
        """Return the events of named steps, of the chains that are there from ``start`` to ``end``."""
        chain = self.chain(lists, start, end) if self.in_order else None
        if chain is not None:
            return {
                s.alias: part[-1] for s, part in zip(self.inner, chain, strict=True) if s.alias is not None
            }
        out: dict[str, _Entry] = {}
        for node in self.inner if self.need else ():
            out |= node.names(lists, start, end)
        return out


_LAST = float("inf")


def _node(branch: Branch, numbers: Iterator[int]) -> _Node:
    if branch.on is not None:
        return _Node(leaf=next(numbers), count=branch.count or 1)
    if branch.sequence is not None:
        steps = tuple(
            _Node(leaf=next(numbers), count=step.count, alias=step.as_, within=step.within)
            for step in branch.sequence
        )
        return _Node(inner=steps, in_order=True)
    of = branch.any_of.of if branch.any_of is not None else branch.all_of or ()
    inner = tuple(_node(one, numbers) for one in of)
    return _Node(need=branch.any_of.need if branch.any_of is not None else len(inner), inner=inner)


class Group(Timeless):
    """``any_of``, ``all_of``."""

    def __init__(self, automation: Automation, *, lateness: float) -> None:
        root = automation.root
        assert root is not None
        leaves = [leaf for _, leaf in leaves_of(root)]
        self._names = [one.name for one in automation.listens]
        self._counts = [leaf.count or 1 for leaf in leaves]
        self._is_step = [isinstance(leaf, Step) for leaf in leaves]
        self._root = _node(root, iter(range(len(leaves))))
        self._within = automation.within or 0.0
        self._lateness = lateness
        # [last recorded, newest time, entries of pattern 0, entries of pattern 1, …], entries sorted by time
        # More parts than is usual: to let lists go takes longer than a few numbers.
        self._windows: Keyed[str, list[Any]] = Keyed(parts=256)
        self._used = Used()

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        if self._used.by(key, seen.seq):
            return None
        window = self._windows.get(key)
        if window is None or seen.recorded - window[0] > self._within + self._lateness:
            window = self._windows.part(key)[key] = [seen.recorded, seen.time, *([] for _ in self._counts)]
            if self._windows.is_full(key):
                now, keep = seen.recorded, self._within + self._lateness
                self._windows.sweep(key, lambda part: [k for k, w in part.items() if now - w[0] > keep])
        newest = window[1]
        if seen.time < newest - self._lateness:
            return None  # too late to count
        window[0], window[1] = seen.recorded, max(newest, seen.time)
        lists: list[list[_Entry]] = window[2:]
        entries = lists[role]
        entry = (seen.time, seen.seq, seen.id)
        if entries and entry < entries[-1]:
            insort(entries, entry)
        else:
            entries.append(entry)
        self._trim(entries, role, window[1])
        for end in self._ends(lists, seen.time):
            start = end - self._within
            if start > seen.time:
                break
            found = self._root.found(lists, start, end)
            if found is not None:
                del self._windows.part(key)[key]
                self._used.up(key, seen.seq)
                refs = tuple(EventRef(id_, seq, time) for time, seq, id_ in sorted(set(found)))
                named: JsonObject = {
                    alias: {"id": id_, "seq": seq}
                    for alias, (_, seq, id_) in self._root.names(lists, start, end).items()
                }
                extra: JsonObject | None = {"steps": named} if named else None
                return Firing(refs[-1].time, len(refs), refs, seen.row, seen.depth, extra=extra)
        return None

    def _ends(self, lists: list[list[_Entry]], time: float) -> list[float]:
        """Return the times from ``time`` on at which an event stands, where a window may end."""
        ends = {time}
        for entries in lists:
            if entries and entries[-1][0] > time:
                ends.update(e[0] for e in entries[bisect_right(entries, (time, _LAST)) :])
        return sorted(ends)

    def _trim(self, entries: list[_Entry], role: int, newest: float) -> None:
        """Forget what no window to come can hold: all but the latest ``count`` of what is beyond being late.

        Of the steps of a sequence any may be the one that others follow, for as long as a window reaches back.
        """
        count = self._counts[role]
        if self._is_step[role]:
            gone = bisect_left(entries, (newest - self._lateness - self._within,))
            del entries[: max(gone, len(entries) - count - _MAX_KEPT)]
            return
        settled = bisect_left(entries, (newest - self._lateness,))
        drop = max(0, settled - count, len(entries) - count - _MAX_KEPT)
        if drop:
            del entries[:drop]

    def keys(self) -> int:
        return len(self._windows)

    def window(self, key: str) -> int:
        """Return how many events are held for a key."""
        window = self._windows.get(key)
        return sum(len(entries) for entries in window[2:]) if window is not None else 0

    def look(self, key: str) -> JsonObject:
        window = self._windows.get(key)
        if window is None:
            return {
                "patterns": [
                    {"name": n, "has": 0, "needs": c} for n, c in zip(self._names, self._counts, strict=True)
                ]
            }
        oldest = window[1] - self._within
        return {
            "patterns": [
                {"name": name, "has": sum(e[0] >= oldest for e in entries), "needs": count}
                for name, count, entries in zip(self._names, self._counts, window[2:], strict=True)
            ],
            "newest": window[1],
        }

    def dump(self) -> JsonValue:
        state: Any = self._windows.whole()
        dumped: JsonValue = state
        return dumped

    def load(self, state: Any) -> None:
        self._windows.update(
            (key, [w[0], w[1], *([tuple(e) for e in entries] for entries in w[2:])])
            for key, w in state.items()
        )

    def kinds(self) -> tuple[Kind, ...]:
        return (Kind(self._windows, self._windows.of),)

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False
