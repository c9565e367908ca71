"""The forms a rule can take, each a small state machine over keys: counting, started absence, repeating absence.

A form is told of matching events and of deadlines that have passed, and answers with a ``Firing`` or nothing. It
reads no clock: times are seconds since 1970 and come from the log (``recorded``: when the broker stored the event;
``time``: when it occurred, never later than recorded).

What looks like forgetting is decided by those times alone: an entry that is too old counts as gone whether or not
it has been swept away, so sweeping changes no decision and a restart at any point decides the same.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ..vocabulary import JsonValue
from .condition import Node
from .model import Automation
from .where import Check

__all__ = ["Absence", "Counting", "EventRef", "Firing", "Form", "Heartbeat", "Role", "Seen", "form_of"]


@dataclass(frozen=True, slots=True)
class EventRef:
    """An event a decision rests on."""

    id: str
    seq: int
    time: float


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that matched, and when. ``row`` is the parsed CloudEvent."""

    row: dict[str, Any]
    seq: int
    recorded: float
    time: float
    id: str
    depth: int

    @property
    def ref(self) -> EventRef:
        return EventRef(self.id, self.seq, self.time)


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule's condition has come true for a key.

    Attributes:
        at: when, in event time: of the last event, or the deadline.
        count: how many events, or how many deadlines in a row.
        refs: the events it rests on, oldest first; empty if there never was one.
        row: the last of them if at hand, else it is found in the log by its sequence.
        depth: causal depth of the last event.
        mark: what tells this firing from others with the same events.
    """

    at: float
    count: int
    refs: tuple[EventRef, ...]
    row: dict[str, Any] | None
    depth: int
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of events a rule listens to."""

    types: tuple[str, ...]
    node: Node | None
    extra: Check | None


Arm: TypeAlias = Callable[[str, float], None]
"""Asks to be told when a deadline (of a key, at a time) has passed."""


class Form(Protocol):
    """The state of one rule, by key."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """What it listens to; ``event`` is told the index. A lower role is told first of one event."""
        ...

    def start(self, now: float) -> None:
        """Begin: the rule has just been adopted."""
        ...

    def event(self, role: int, key: str, seen: Seen) -> Firing | None: ...

    def due(self, key: str, at: float, now: float) -> Firing | None:
        """Hear that the deadline ``at`` of ``key`` has passed; an outdated one is ignored."""
        ...

    def deadline(self, key: str) -> float | None:
        """Return the deadline a key waits for, None if it does not."""
        ...

    def deadlines(self) -> Iterable[tuple[str, float]]:
        """Return every key that waits, with its deadline."""
        ...

    def keys(self) -> int:
        """Return how many keys have state."""
        ...

    def window(self, key: str) -> int:
        """Return how many events are counted, or deadlines open, for a key (for explanations)."""
        ...

    def dump(self) -> JsonValue: ...

    def load(self, state: Any) -> None: ...


def form_of(automation: Automation, *, lateness_s: float, arm: Arm) -> Form:
    """Return a fresh form for a rule."""
    lateness = automation.allowed_lateness if automation.allowed_lateness is not None else lateness_s
    match automation.kind:
        case "count":
            return Counting(automation, lateness=lateness)
        case "absence":
            return Absence(automation, lateness=lateness, arm=arm)
        case "heartbeat":
            return Heartbeat(automation, lateness=lateness, arm=arm)


def _role(automation: Automation, types: tuple[str, ...], node: Node | None, *ifs: str | None) -> Role:
    from .condition import AllOf
    from .expression import compile_expression

    both = [n for n in (automation.node, node) if n is not None]
    merged = None if not both else both[0] if len(both) == 1 else AllOf(tuple(both))
    checks = [compile_expression(text).holds for text in (automation.if_, *ifs) if text is not None]
    extra: Check | None = None
    if checks:
        extra = checks[0] if len(checks) == 1 else _all(tuple(checks))
    return Role(types, merged, extra)


def _all(checks: tuple[Callable[[Any], bool], ...]) -> Check:
    return lambda e: all(check(e) for check in checks)


_SWEEP_FROM = 1024


class _Sweep:
    """Says when a dictionary has doubled since it was last swept, so that sweeping costs little per entry."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = _SWEEP_FROM

    def due(self, n: int) -> bool:
        return n >= self.size

    def done(self, n: int) -> None:
        self.size = max(_SWEEP_FROM, 2 * n)


class Counting:
    """``on`` with ``count`` and ``within``: so many events in so long a time; 1 fires at once and keeps no state.

    The window slides in event time. An event older than the newest of its key by more than the allowed lateness is
    too late and not counted. Firing empties the window of the key.
    """

    def __init__(self, automation: Automation, *, lateness: float) -> None:
        assert automation.on is not None
        self.roles = (_role(automation, automation.on, None),)
        self._count = automation.count or 1
        self._within = automation.within or 0.0
        self._lateness = lateness
        self._keep = self._within + lateness
        # One event is the usual state of a key: a flat tuple (recorded, time, seq, id) costs no garbage collection.
        # More are a list [recorded, (time, seq, id), …], sorted by time.
        self._windows: dict[str, Any] = {}
        self._sweep = _Sweep()

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
        for first in range(max(0, at - count + 1), min(at, len(entries) - count) + 1):
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

    def dump(self) -> JsonValue:
        state: JsonValue = self._windows
        return state

    def load(self, state: Any) -> None:
        self._windows = {
            key: tuple(w) if not isinstance(w[1], list) else [w[0], *(tuple(e) for e in w[1:])]
            for key, w in state.items()
        }
        self._sweep.done(len(self._windows))


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
    recorded before the opening event but occurred after it, it answers too.
    """

    def __init__(self, automation: Automation, *, lateness: float, arm: Arm) -> None:
        assert automation.after is not None
        assert automation.expect is not None
        self.roles = (
            _role(automation, automation.expect.on, automation.expect.node, automation.expect.if_),
            _role(automation, automation.after.on, automation.after.node, automation.after.if_),
        )
        self._within = automation.within or 0.0
        self._lateness = lateness
        self._arm = arm
        self._waiting: dict[str, tuple[float, float, int, str, int]] = {}  # deadline, time, seq, id, depth
        self._answers: dict[
            str, tuple[float, float]
        ] = {}  # recorded, time: expected events that nobody waited for
        self._sweep = _Sweep()

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        waiting = self._waiting.get(key)
        if role == 0:
            if waiting is not None and seen.time >= waiting[1] - self._lateness:
                del self._waiting[key]
            elif self._lateness > 0:
                self._answers[key] = (seen.recorded, seen.time)
                if self._sweep.due(len(self._answers)):
                    self._forget(seen.recorded)
            return None
        if waiting is not None:
            return None
        answer = self._answers.get(key)
        if answer is not None and seen.recorded - answer[0] <= self._lateness and answer[1] > seen.time:
            return None
        deadline = _deadline(seen, self._within, self._lateness)
        self._waiting[key] = (deadline, seen.time, seen.seq, seen.id, seen.depth)
        self._arm(key, deadline)
        return None

    def _forget(self, now: float) -> None:
        self._answers = {k: a for k, a in self._answers.items() if now - a[0] <= self._lateness}
        self._sweep.done(len(self._answers))

    def due(self, key: str, at: float, now: float) -> Firing | None:
        waiting = self._waiting.get(key)
        if waiting is None or waiting[0] != at:
            return None
        del self._waiting[key]
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

    def dump(self) -> JsonValue:
        state: Any = {"waiting": self._waiting, "answers": self._answers}
        dumped: JsonValue = state
        return dumped

    def load(self, state: Any) -> None:
        self._waiting = {key: tuple(w) for key, w in state["waiting"].items()}
        self._answers = {key: tuple(a) for key, a in state["answers"].items()}
        self._sweep.done(len(self._answers))


class Heartbeat:
    """``expect`` … ``within`` without ``after``: what should keep coming, and does not.

    A key is watched from its first event on (a rule without ``for_each`` from its adoption). Every further
    ``within`` of silence fires again. Time that passed while nobody could look (an engine that was down) fires once.
    """

    def __init__(self, automation: Automation, *, lateness: float, arm: Arm) -> None:
        assert automation.expect is not None
        self.roles = (_role(automation, automation.expect.on, automation.expect.node, automation.expect.if_),)
        self._within = automation.within or 1.0
        self._lateness = lateness
        self._keyed = automation.for_each is not None
        self._arm = arm
        # deadline, missed so far, time, seq, id, depth of the last event (seq 0: none yet)
        self._watched: dict[str, tuple[float, int, float, int, str, int]] = {}

    def start(self, now: float) -> None:
        if not self._keyed and "" not in self._watched:
            self._watch("", (now + self._within, 0, now, 0, "", 0))

    def _watch(self, key: str, state: tuple[float, int, float, int, str, int]) -> None:
        self._watched[key] = state
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

    def dump(self) -> JsonValue:
        state: Any = self._watched
        dumped: JsonValue = state
        return dumped

    def load(self, state: Any) -> None:
        self._watched = {key: tuple(k) for key, k in state.items()}
