"""Metric: a figure over a sliding window, compared with a limit, and held so for a time.

A rule fires when its figure has passed the limit for ``for`` without a break, and not again before it has come back.
The window slides in steps of a sixtieth of itself, so that a quiet log need not be woken for every sample that leaves.
Samples count by when they were recorded: what is late is a sample of now. Quantiles are exact, over at most
``MAX_SAMPLES`` of a key, the latest.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

from ...vocabulary import JsonObject, JsonValue
from ..composite import Limit, Metric, show_figure
from ..matching.path import follow
from ..model import Automation
from .form import Arm, EventRef, Firing, Kind, Seen
from .keyed import Keyed

__all__ = ["Key", "Measuring", "sample_of"]

MAX_SAMPLES = 10_000
_STEPS = 60
_FORGET_S = 30 * 86_400.0
_QUANTILE = {"p50_duration": 0.5, "p95_duration": 0.95, "p99_duration": 0.99, "lateness": 0.95}
_GOOD = frozenset({"completed", "cached"})


def sample_of(metric: Metric, row: dict[str, Any]) -> float | None:
    """Return what one event says: a time (s), 1 or 0, or None when it says nothing (a run that was never timed)."""
    measure = metric.measure
    if measure in ("count", "event_rate"):
        return 1.0
    if metric.is_share:
        good = row["type"].partition(".")[2] in _GOOD
        return float(good if measure == "success_rate" else not good)
    if measure == "lateness":
        data = row.get("data")
        run = data.get("run") if isinstance(data, dict) else None
        if not isinstance(run, dict):
            return None
        due, began = run.get("scheduled_at"), run.get("started_at")
        with suppress(ValueError, TypeError):
            return max(
                0.0, (datetime.fromisoformat(str(began)) - datetime.fromisoformat(str(due))).total_seconds()
            )
        return None
    value = follow(row, ("data", "run", "duration_s"))
    return float(value) if value.__class__ in (int, float) else None


class Key:
    """The samples of one key and how it stands."""

    __slots__ = ("armed", "began", "depth", "firing", "last", "ref", "samples", "since", "sorted", "total")

    def __init__(self, began: float) -> None:
        self.began = began
        self.last = began
        self.since: float | None = None  # the limit has been passed since
        self.firing = False
        self.armed: float | None = None
        self.depth = 0
        self.ref: tuple[str, int, float] = ("", 0, 0.0)
        self.samples: deque[tuple[float, float]] = deque()  # recorded, value
        self.sorted: list[float] = []
        self.total = 0.0

    def add(self, recorded: float, value: float) -> None:
        self.samples.append((recorded, value))
        insort(self.sorted, value)
        self.total += value
        if len(self.samples) > MAX_SAMPLES:
            self.drop()

    def drop(self) -> None:
        _, value = self.samples.popleft()
        del self.sorted[bisect_left(self.sorted, value)]
        self.total = self.total - value if self.samples else 0.0

    def dump(self) -> JsonValue:
        out: Any = [
            self.began, self.last, self.since, self.firing, self.armed, self.depth, self.ref, list(self.samples),
        ]  # fmt: skip
        dumped: JsonValue = out
        return dumped

    @classmethod
    def load(cls, state: Any) -> Key:
        key = cls(state[0])
        key.last, key.since, key.firing, key.armed, key.depth = state[1:6]
        key.ref = tuple(state[6])
        key.samples = deque((r, v) for r, v in state[7])
        key.sorted = sorted(v for _, v in key.samples)
        key.total = math.fsum(key.sorted)
        return key


class Measuring:
    """``metric`` … ``is`` … ``for``."""

    key_class = Key

    def __init__(self, automation: Automation, *, arm: Arm) -> None:
        assert automation.metric is not None
        assert automation.is_ is not None
        self._metric = automation.metric
        self._limit = Limit(automation.is_, automation.metric)
        self._over = automation.metric.over
        self._step = self._over / _STEPS
        self._for = automation.for_ or 0.0
        self._forget_s = _FORGET_S + self._over + self._for
        self._keyed = automation.for_each is not None
        self._arm = arm
        self._known: Keyed[str, Key] = Keyed()

    def start(self, now: float) -> None:
        if not self._keyed and "" not in self._known:
            key = self._known.part("")[""] = self.key_class(now)
            self._plan("", key, now)

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        value = sample_of(self._metric, seen.row)
        if value is None:
            return None
        known = self._heard(key, seen)
        self._slide(known, seen.recorded)
        known.add(seen.recorded, value)
        return self._decide(key, known, seen.recorded, seen.row)

    def _heard(self, key: str, seen: Seen) -> Key:
        """Return the state of a key that an event was about."""
        known = self._known.get(key)
        if known is None or seen.recorded - known.last > self._forget_s:
            known = self._known.part(key)[key] = self.key_class(seen.recorded)
            if self._known.is_full(key):
                now, keep = seen.recorded, self._forget_s
                self._known.sweep(
                    key, lambda part: [k for k, known in part.items() if now - known.last > keep]
                )
        known.last, known.depth, known.ref = seen.recorded, seen.depth, (seen.id, seen.seq, seen.time)
        return known

    def _count(self, known: Key, now: float) -> int:
        """Return how many samples a figure rests on."""
        return len(known.samples)

    def _slide(self, known: Key, now: float) -> None:
        """Let samples go that have left the window, which moves in steps."""
        if not self._step:
            return
        # A moment that was planned as a step must count as one, whatever its last bits say.
        start = math.floor(now / self._step + 1e-6) * self._step - self._over
        while known.samples and known.samples[0][0] < start:
            known.drop()

    def _figure(self, known: Key, now: float) -> float | None:
        """Return the figure, None if there is too little to say one."""
        metric, n = self._metric, len(known.samples)
        if metric.measure in ("count", "event_rate"):
            if not self._limit.is_upward and now < known.began + self._over:
                return None  # too early to say that little came
            return float(n) if metric.measure == "count" else n / self._over
        if n < metric.at_least:
            return None
        quantile = _QUANTILE.get(metric.measure)
        if quantile is not None:
            return known.sorted[min(n - 1, max(0, math.ceil(quantile * n) - 1))]
        return math.fsum(known.sorted) / n if metric.measure == "avg_duration" else known.total / n

    def _decide(self, key: str, known: Key, now: float, row: dict[str, Any] | None) -> Firing | None:
        figure = self._figure(known, now)
        made: Firing | None = None
        if figure is None or not self._limit.holds(figure):
            known.since = None
            if known.firing:
                known.firing = False
                made = self._firing(known, now, figure, row, is_over=True)
        else:
            if known.since is None:
                known.since = now
            if not known.firing and now >= known.since + self._for:
                known.firing = True
                made = self._firing(known, now, figure, row)
        self._plan(key, known, now)
        return made

    def _firing(
        self,
        known: Key,
        at: float,
        figure: float | None,
        row: dict[str, Any] | None,
        *,
        is_over: bool = False,
    ) -> Firing:
        id_, seq, time = known.ref
        shown = show_figure(self._metric, figure) if figure is not None else None
        n = self._count(known, at)
        extra: JsonObject = {
            "metric": {
                "measure": self._metric.measure, "value": figure, "shown": shown, "samples": n,
                "since": known.since,
            }
        }  # fmt: skip
        refs = (EventRef(id_, seq, time),) if seq else ()
        return Firing(at, n, refs, row, known.depth, mark=f"{at:.6f}", extra=extra, is_over=is_over)

    def _plan(self, key: str, known: Key, now: float) -> None:
        """Arm the next moment at which something may change without an event."""
        moment = min((m for m in self._moments(known, now) if m > now), default=None)
        if moment is None:
            known.armed = None
        elif known.armed is None or moment < known.armed or known.armed <= now:
            known.armed = moment
            self._arm(key, moment)

    def _moments(self, known: Key, now: float) -> list[float]:
        """Return moments at which something may change without an event."""
        moments: list[float] = []
        if known.since is not None and not known.firing:
            moments.append(known.since + self._for)
        if known.samples:
            # The first step at which the oldest sample lies before the window.
            leaves = known.samples[0][0] + self._over
            step = (math.floor(leaves / self._step) + 1) * self._step
            moments.append(step if step > now else now + self._step)
        if not self._limit.is_upward and now < known.began + self._over:
            moments.append(known.began + self._over)
        return moments

    def due(self, key: str, at: float, now: float) -> Firing | None:
        known = self._known.get(key)
        if known is None or known.armed != at:
            return None
        known.armed = None
        self._slide(known, at)
        return self._decide(key, known, at, None)

    def deadline(self, key: str) -> float | None:
        known = self._known.get(key)
        return known.armed if known is not None else None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        return [(key, known.armed) for key, known in self._known.items() if known.armed is not None]

    def keys(self) -> int:
        return len(self._known)

    def window(self, key: str) -> int:
        known = self._known.get(key)
        return len(known.samples) if known is not None else 0

    def look(self, key: str) -> JsonObject:
        known = self._known.get(key)
        figure = self._figure(known, known.last) if known is not None else None
        return {
            "samples": self.window(key), "figure": show_figure(self._metric, figure) if figure is not None else None,
            "holds_since": known.since if known is not None else None, "fired": known is not None and known.firing,
        }  # fmt: skip

    def dump(self) -> JsonValue:
        return {key: known.dump() for key, known in self._known.items()}

    def load(self, state: Any) -> None:
        self._known.update((key, self.key_class.load(s)) for key, s in state.items())

    def kinds(self) -> tuple[Kind, ...]:
        known = self._known
        return (Kind(known, lambda cells: {key: k.dump() for key, k in known.of(cells).items()}),)

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False
