"""Counting: so many events in so long a time."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from typing import Any

from ..vocabulary import JsonObject, JsonValue
from .form import EventRef, Firing, Seen, Sweep
from .model import Automation

__all__ = ["Counting"]


class Counting:
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
        self._windows: dict[str, Any] = {}
        self._sweep = Sweep()

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        count = self._count
        if count == 1:
            return Firing(seen.time, 1, (seen.ref,), seen.row, seen.depth)
        windows = self._windows
        current = windows.get(key)
        if current is None or seen.recorded - current[0] > self._keep:
            windows[key] = (seen.recorded, seen.time, seen.seq, seen.id)
            if self._sweep.due(len(windows)):
                self._forget(seen.recorded)
            return None
        entries: list[tuple[float, int, str]] = [current[1:]] if current.__class__ is tuple else current[1:]
        newest = entries[-1][0]
        if seen.time < newest - self._lateness:
            return None  # too late to count
        entry = (seen.time, seen.seq, seen.id)
        if seen.time >= newest:
            entries.append(entry)
        else:
            insort(entries, entry)
        # Whatever may still come is no older than this, so no window can reach further back.
        oldest = entries[-1][0] - self._lateness - self._within
        if entries[0][0] < oldest:
            entries = [e for e in entries if e[0] >= oldest]
        at = len(entries) - 1 if entries[-1] is entry else entries.index(entry)
        last = len(entries) - count
        for first in range(max(0, at - count + 1), min(at, last) + 1) if last >= 0 else ():
            if entries[first + count - 1][0] - entries[first][0] <= self._within:
                del windows[key]
                refs = tuple(EventRef(e[2], e[1], e[0]) for e in entries[first : first + count])
                return Firing(refs[-1].time, count, refs, seen.row, seen.depth)
        windows[key] = (seen.recorded, *entries[0]) if len(entries) == 1 else [seen.recorded, *entries]
        return None

    def _forget(self, now: float) -> None:
        for key in [k for k, w in self._windows.items() if now - w[0] > self._keep]:
            del self._windows[key]
        self._sweep.done(len(self._windows))

    def due(self, key: str, at: float, now: float) -> Firing | None:
        return None

    def deadline(self, key: str) -> float | None:
        return None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        return ()

    def keys(self) -> int:
        return len(self._windows)

    def window(self, key: str) -> int:
        current = self._windows.get(key)
        return 0 if current is None else 1 if current.__class__ is tuple else len(current) - 1

    def look(self, key: str) -> JsonObject:
        return {"counted": self.window(key), "needs": self._count}

    def dump(self) -> JsonValue:
        state: JsonValue = self._windows
        return state

    def load(self, state: Any) -> None:
        self._windows.update(
            (key, tuple(w) if w[1].__class__ is not list else [w[0], *(tuple(e) for e in w[1:])])
            for key, w in state.items()
        )
        self._sweep.done(len(self._windows))

    def cells(self) -> list[Any]:
        return list(self._windows)

    def dump_cells(self, cells: Iterable[Any]) -> JsonValue:
        found: Any = {key: state for key in cells if (state := self._windows.get(key)) is not None}
        dumped: JsonValue = found
        return dumped

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False
