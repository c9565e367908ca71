"""Counting: so many events in so long a time."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Any

from ...vocabulary import JsonObject, JsonValue
from ..model import Automation
from .form import EventRef, Firing, Kind, Seen, Timeless
from .keyed import Keyed

__all__ = ["Counting"]


class Counting(Timeless):
    """``on`` with ``count`` and ``within``: so many events in so long a time; 1 fires at once and keeps no state.

    The window slides in event time. An event older than the newest of its key by more than the allowed lateness is
    too late and not counted. Firing empties the window of the key.
    """

    def __init__(self, automation: Automation, *, lateness: float) -> None:
        self._count = automation.count or 1
        self._within = automation.within or 0.0
        self._lateness = lateness
        self._keep = self._within + lateness
        # One event is the usual state of a key: a flat tuple (recorded, time, seq, id) costs no garbage collection.
        # More are a list [recorded, (time, seq, id), …], sorted by time.
        self._windows: Keyed[str, Any] = Keyed()

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        count = self._count
        if count == 1:
            return Firing(seen.time, 1, (seen.ref,), seen.row, seen.depth)
        windows = self._windows.part(key)
        current = windows.get(key)
        if current is None or seen.recorded - current[0] > self._keep:
            windows[key] = (seen.recorded, seen.time, seen.seq, seen.id)
            if current is None and self._windows.is_full(key):
                now, keep = seen.recorded, self._keep
                self._windows.sweep(key, lambda part: [k for k, w in part.items() if now - w[0] > keep])
            return None
        time, entry = seen.time, (seen.time, seen.seq, seen.id)
        if current.__class__ is tuple:
            current = [current[0], current[1:]]
        newest = current[-1][0]
        if time < newest:
            if time < newest - self._lateness:
                return None
            return self._out_of_order(windows, key, current, entry, seen)
        # In order, as nearly always: put behind the others where they lie, and only what ends here can be full.
        current.append(entry)
        current[0] = seen.recorded
        # Whatever may still come is no older than this, so no window can reach further back.
        oldest = time - self._lateness - self._within
        if current[1][0] < oldest:
            current[1:] = [e for e in current[1:] if e[0] >= oldest]
        if len(current) > count and time - current[-count][0] <= self._within:
            del windows[key]
            return _firing(current[-count:], seen)
        windows[key] = current if len(current) > 2 else (seen.recorded, *entry)
        return None

    def _out_of_order(
        self, windows: dict[str, Any], key: str, current: list[Any], entry: tuple[float, int, str], seen: Seen
    ) -> Firing | None:
        """Count an event that occurred before the newest of its key: any window it lies in may be full now."""
        count, entries = self._count, current[1:]
        insort(entries, entry)
        oldest = entries[-1][0] - self._lateness - self._within
        if entries[0][0] < oldest:
            entries = [e for e in entries if e[0] >= oldest]
        at = entries.index(entry)
        last = len(entries) - count
        for first in range(max(0, at - count + 1), min(at, last) + 1) if last >= 0 else ():
            if entries[first + count - 1][0] - entries[first][0] <= self._within:
                del windows[key]
                return _firing(entries[first : first + count], seen)
        windows[key] = [seen.recorded, *entries]
        return None

    def keys(self) -> int:
        return len(self._windows)

    def window(self, key: str) -> int:
        current = self._windows.get(key)
        return 0 if current is None else 1 if current.__class__ is tuple else len(current) - 1

    def look(self, key: str) -> JsonObject:
        looked: JsonObject = {"counted": self.window(key), "needs": self._count}
        current = self._windows.get(key)
        if current is not None:
            looked["newest"] = current[1] if current.__class__ is tuple else current[-1][0]
        return looked

    def dump(self) -> JsonValue:
        state: JsonValue = self._windows.whole()
        return state

    def load(self, state: Any) -> None:
        self._windows.update(
            (key, tuple(w) if w[1].__class__ is not list else [w[0], *(tuple(e) for e in w[1:])])
            for key, w in state.items()
        )

    def kinds(self) -> tuple[Kind, ...]:
        return (Kind(self._windows, self._windows.of),)

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False


def _firing(entries: list[tuple[float, int, str]], seen: Seen) -> Firing:
    refs = tuple([EventRef(id_, seq, time) for time, seq, id_ in entries])
    return Firing(refs[-1].time, len(refs), refs, seen.row, seen.depth)
