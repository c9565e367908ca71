"""The metric ``queue_depth``: how many flow runs wait to start now, counted from what happens to them.

A run waits from the moment it is due until a worker takes it, or it ends: late ones, those that wait for a limit and
those that are to be tried again among them. The order is that of the log, which is the order of the transitions.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...vocabulary import JsonValue
from ..matching.path import follow
from .form import Firing, Seen
from .metric import MAX_SAMPLES, Key, Measuring

__all__ = ["QueueDepth", "due_of"]

_WAITING = frozenset({"scheduled", "late", "awaiting-retry", "awaiting-concurrency-slot", "resuming"})


def due_of(row: Mapping[str, Any], *, now: float) -> float | None:
    """Return since when (or from when on) the run of an event waits, in seconds since 1970; None if it does not."""
    if str(row["type"]).rpartition(".")[2] not in _WAITING:
        return None
    written = follow(dict(row), ("data", "run", "scheduled_at"))
    try:
        due = datetime.fromisoformat(written).timestamp() if isinstance(written, str) else now
    except (ValueError, OverflowError, OSError):
        return now
    return due


class _Depth(Key):
    """The runs of one key that wait; ``sorted`` are the moments they are due at."""

    __slots__ = ("waiting",)

    def __init__(self, began: float) -> None:
        super().__init__(began)
        self.waiting: dict[str, float] = {}

    def leave(self, run: str) -> None:
        due = self.waiting.pop(run, None)
        if due is not None:
            del self.sorted[bisect_left(self.sorted, due)]

    def wait(self, run: str, due: float) -> None:
        self.leave(run)
        if len(self.waiting) >= MAX_SAMPLES:
            self.leave(next(iter(self.waiting)))
        self.waiting[run] = due
        insort(self.sorted, due)

    def dump(self) -> JsonValue:
        base: Any = super().dump()
        waiting: JsonValue = [[run, due] for run, due in self.waiting.items()]
        return [*base, waiting]

    @classmethod
    def load(cls, state: Any) -> _Depth:
        key = super().load(state[:-1])
        assert isinstance(key, cls)
        key.waiting = dict(state[-1])
        key.sorted = sorted(key.waiting.values())
        return key


class QueueDepth(Measuring):
    """``metric: {measure: queue_depth}``. At most ``MAX_SAMPLES`` runs of a key are counted."""

    key_class = _Depth

    def start(self, now: float) -> None:
        super().start(now)
        known = self._known.get("")
        if known is not None and self._limit.holds(0.0):
            # Nothing waits, which can be said at once: there is no window to be watched first.
            known.armed = now
            self._arm("", now)

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        known = self._heard(key, seen)
        assert isinstance(known, _Depth)
        run = str(seen.row.get("subject") or "")
        due = due_of(seen.row, now=seen.recorded - seen.ahead_s)
        if due is None:
            known.leave(run)
        else:
            known.wait(run, due + seen.ahead_s)
        return self._decide(key, known, seen.recorded, seen.row)

    def set_back(self, by: float, now: float) -> None:
        """See ``Dated``: a run that is asked for ahead waits from the same reading of the clock, which comes later."""
        for known in self._known.values():
            assert isinstance(known, _Depth)
            for run, due in known.waiting.items():
                if due > now:
                    known.waiting[run] = due + by
            known.sorted = sorted(known.waiting.values())

    def _figure(self, known: Key, now: float) -> float | None:
        return float(self._count(known, now))

    def _count(self, known: Key, now: float) -> int:
        return bisect_right(known.sorted, now)

    def _moments(self, known: Key, now: float) -> list[float]:
        following = bisect_right(known.sorted, now)
        return [*super()._moments(known, now), *known.sorted[following : following + 1]]

    def window(self, key: str) -> int:
        known = self._known.get(key)
        return len(known.sorted) if known is not None else 0
