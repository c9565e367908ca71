"""Absence: what was begun and not followed in time, and what should keep coming and does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ...vocabulary import JsonObject, JsonValue
from ..model import Automation
from .form import Arm, EventRef, Firing, Kind, Seen
from .keyed import Keyed

__all__ = ["Absence", "Heartbeat"]

_MAX_ANSWERS = 64
"""Of a key, each of which occurred before the one recorded before it, all within the lateness."""


def _deadline(seen: Seen, within: float, lateness: float) -> float:
    """Return by when the next event has to be recorded: ``within`` of this one's occurrence.

    In order and in time this is just ``time + within``. An event that itself came late leaves the answer as long
    as an event may be late, but not longer than the rule's own time.
    """
    return max(seen.time + within, seen.recorded + min(lateness, within))


class Absence:
    """``after`` … ``expect`` … ``within``: what was begun and not followed in time.

    The first opening event of a key counts; more of them while it waits change nothing. The expected event answers
    if it is recorded before the deadline and did not occur before the opening one (by more than the lateness);
    recorded before the opening event (by no more than the lateness) but occurred after it, it answers too.
    """

    def __init__(self, automation: Automation, *, lateness: float, arm: Arm) -> None:
        self._within = automation.within or 0.0
        self._lateness = lateness
        self._arm = arm
        # deadline, time, seq, id, depth
        self._waiting: Keyed[str, tuple[float, float, int, str, int]] = Keyed()
        # recorded, time, recorded, time, …: expected events that an opening one still to come may have occurred before.
        # One that is later in both than another says more, so the times fall.
        self._answers: Keyed[str, tuple[float, ...]] = Keyed()

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        part = self._waiting.part(key)
        waiting = part.get(key)
        if role == 0:
            if waiting is not None and seen.time >= waiting[1] - self._lateness:
                del part[key]
            if self._lateness > 0:
                self._answered(key, seen)
            return None
        if waiting is not None:
            return None
        answers = self._answers.get(key)
        if answers is not None and any(
            seen.recorded - answers[i] <= self._lateness and answers[i + 1] > seen.time
            for i in range(0, len(answers), 2)
        ):
            return None
        deadline = _deadline(seen, self._within, self._lateness)
        part[key] = (deadline, seen.time, seen.seq, seen.id, seen.depth)
        if self._waiting.is_full(key):
            self._waiting.sweep(key)
        self._arm(key, deadline)
        return None

    def _answered(self, key: str, seen: Seen) -> None:
        answers = self._answers.part(key)
        known = answers.get(key)
        if known is None:
            answers[key] = (seen.recorded, seen.time)
            if self._answers.is_full(key):
                now, keep = seen.recorded, self._lateness
                self._answers.sweep(key, lambda part: [k for k, a in part.items() if now - a[-2] > keep])
            return
        kept: list[float] = []
        for i in range(0, len(known), 2):
            if known[i + 1] > seen.time and seen.recorded - known[i] <= self._lateness:
                kept += known[i : i + 2]
        answers[key] = (*kept[-2 * (_MAX_ANSWERS - 1) :], seen.recorded, seen.time)

    def due(self, key: str, at: float, now: float) -> Firing | None:
        part = self._waiting.part(key)
        waiting = part.get(key)
        if waiting is None or waiting[0] != at:
            return None
        del part[key]
        _, time, seq, id_, depth = waiting
        return Firing(at, 1, (EventRef(id_, seq, time),), None, depth)

    def deadline(self, key: str) -> float | None:
        waiting = self._waiting.get(key)
        return waiting[0] if waiting is not None else None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        return [(key, waiting[0]) for key, waiting in self._waiting.items()]

    def keys(self) -> int:
        return len(self._waiting)

    def window(self, key: str) -> int:
        return int(key in self._waiting)

    def look(self, key: str) -> JsonObject:
        return {"waits_until": self.deadline(key)}

    def dump(self) -> JsonValue:
        return _dumped(self._waiting.whole(), self._answers.whole())

    def load(self, state: Any) -> None:
        self._waiting.update((key, tuple(w)) for key, w in state["waiting"].items())
        self._answers.update((key, tuple(a)) for key, a in state["answers"].items())

    def kinds(self) -> tuple[Kind, ...]:
        waiting, answers = self._waiting, self._answers
        return (
            Kind(waiting, lambda cells: _dumped(waiting.of(cells), {})),
            Kind(answers, lambda cells: _dumped({}, answers.of(cells))),
        )

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False


def _dumped(waiting: Any, answers: Any) -> JsonValue:
    return {"waiting": waiting, "answers": answers}


class Heartbeat:
    """``expect`` … ``within`` without ``after``: what should keep coming, and does not.

    A key is watched from its first event on (a rule without ``for_each`` from its adoption). Every further
    ``within`` of silence fires again. Time that passed while nobody could look (an engine that was down) fires once.
    """

    def __init__(self, automation: Automation, *, lateness: float, arm: Arm) -> None:
        self._within = automation.within or 1.0
        self._lateness = lateness
        self._keyed = automation.for_each is not None
        self._arm = arm
        # deadline, missed so far, time, seq, id, depth of the last event (seq 0: none yet)
        self._watched: Keyed[str, tuple[float, int, float, int, str, int]] = Keyed()

    def start(self, now: float) -> None:
        if not self._keyed and "" not in self._watched:
            self._watch("", (now + self._within, 0, now, 0, "", 0))

    def _watch(self, key: str, state: tuple[float, int, float, int, str, int]) -> None:
        self._watched.part(key)[key] = state
        if self._watched.is_full(key):
            self._watched.sweep(key)
        self._arm(key, state[0])

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        deadline = _deadline(seen, self._within, self._lateness)
        known = self._watched.get(key)
        if known is None or deadline > known[0] or (known[1] and seen.time > known[2]):
            self._watch(key, (deadline, 0, seen.time, seen.seq, seen.id, seen.depth))
        return None

    def due(self, key: str, at: float, now: float) -> Firing | None:
        known = self._watched.get(key)
        if known is None or known[0] != at:
            return None
        _, missed, time, seq, id_, depth = known
        later = at + self._within
        if later <= now:
            later = at + self._within * (math.floor((now - at) / self._within) + 1)
        self._watch(key, (later, missed + 1, time, seq, id_, depth))
        refs = (EventRef(id_, seq, time),) if seq else ()
        return Firing(at, missed + 1, refs, None, depth, mark=f"{at:.6f}")

    def deadline(self, key: str) -> float | None:
        known = self._watched.get(key)
        return known[0] if known is not None else None

    def deadlines(self) -> Iterable[tuple[str, float]]:
        return [(key, known[0]) for key, known in self._watched.items()]

    def keys(self) -> int:
        return len(self._watched)

    def window(self, key: str) -> int:
        return int(key in self._watched)

    def look(self, key: str) -> JsonObject:
        known = self._watched.get(key)
        return {"expected_until": self.deadline(key), "missed": known[1] if known is not None else 0}

    def dump(self) -> JsonValue:
        state: Any = self._watched.whole()
        dumped: JsonValue = state
        return dumped

    def load(self, state: Any) -> None:
        self._watched.update((key, tuple(k)) for key, k in state.items())

    def kinds(self) -> tuple[Kind, ...]:
        return (Kind(self._watched, self._watched.of),)

    def watch(self, before: Callable[[Any], None]) -> bool:
        return False
