"""Sequence: one step after the other, in so long a time, joined by what earlier events said.

Every first event begins a wait of its own, which each further step's events carry on. A wait stands under its rule's
key, its step and the values it asks for, so an event finds the waits it answers by one look-up, however many there are.

Order is that of the log; an event may have occurred before the one it follows by no more than the allowed lateness.
The whole has to occur within ``within`` of its first event, and be recorded no later than the lateness after that.
Firing ends every wait of the same key that asks for the same values: the sequence begins anew.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Any

from ...vocabulary import JsonObject, JsonValue
from ..matching.path import Path
from ..matching.where import Check
from ..model import Automation
from ..reference import captured
from .form import EventRef, Firing, Kind, Seen, Timeless, Used
from .keyed import Keyed

__all__ = ["Sequence"]

MAX_WAITS = 16
"""Waits that ask for the very same thing; a further one takes the place of the oldest."""
_ANY = ""
"""Where waits stand that no join key can find: they are looked at event by event."""

_Place = tuple[str, int, str]
_Ref = tuple[float, int, str]


class _Wait:
    """A sequence that has begun. ``step`` events of the current step are the last ``done`` of ``refs``."""

    __slots__ = ("check", "done", "known", "last", "named", "recorded", "refs", "time")

    def __init__(
        self,
        recorded: float,
        time: float,
        last: float,
        done: int,
        refs: list[_Ref],
        known: dict[str, Any],
        named: dict[str, Any],
    ) -> None:
        self.recorded, self.time, self.last, self.done = recorded, time, last, done
        self.refs, self.known, self.named = refs, known, named
        self.check: Check | None = None

    def dump(self) -> JsonValue:
        out: Any = [self.recorded, self.time, self.last, self.done, self.refs, self.known, self.named]
        dumped: JsonValue = out
        return dumped

    @classmethod
    def load(cls, state: Any) -> _Wait:
        recorded, time, last, done, refs, known, named = state
        return cls(recorded, time, last, done, [tuple(ref) for ref in refs], known, named)


def _full(refs: list[_Ref], ref: _Ref, *, count: int, within: float) -> list[_Ref] | None:
    """Return the latest ``count`` in a row, ``ref`` among them, that lie within a time; None if there are not."""
    at = refs.index(ref)
    for first in range(min(at, len(refs) - count), max(0, at - count + 1) - 1, -1):
        if refs[first + count - 1][0] - refs[first][0] <= within:
            return refs[first : first + count]
    return None


def _dumped(place: _Place, waits: list[_Wait]) -> JsonValue:
    return [*place, [w.dump() for w in waits]]


def _unwatched(place: _Place) -> None:
    """Nobody takes a snapshot."""


class Sequence(Timeless):
    """``sequence`` … ``within``."""

    def __init__(self, automation: Automation, *, lateness: float) -> None:
        assert automation.sequence is not None
        self._steps = automation.sequence
        self._within = automation.within or 0.0
        self._lateness = lateness
        reads: dict[str, set[Path]] = {}
        for step in self._steps:
            for alias, path in step.linked.reads:
                reads.setdefault(alias, set()).add(path)
        self._reads = {alias: frozenset(paths) for alias, paths in reads.items()}
        # Four times as many as is usual: to let a wait go takes longer than a few numbers.
        self._waits: Keyed[_Place, list[_Wait]] = Keyed(parts=256)
        self._used = Used()  # an event that fired begins nothing
        self._before: Callable[[_Place], object] = _unwatched

    def start(self, now: float) -> None:
        pass

    def event(self, role: int, key: str, seen: Seen) -> Firing | None:
        if self._used.by(key, seen.seq):
            return None
        i = len(self._steps) - 1 - role
        if i == 0:
            self._begin(key, seen)
            return None
        linked = self._steps[i].linked
        joins = linked.keys_in(seen.row)
        if linked.joins:
            joins.append(_ANY)
        found: list[tuple[_Place, list[_Wait]]] = []
        for join in joins:
            waits = self._waits.get(place := (key, i, join))
            if waits is not None:
                found.append((place, waits))
        if i < len(self._steps) - 1:
            for place, waits in found:
                self._pass_on(place, waits, seen)
            return None
        # Values in a list answer several waits, and what fires carries no other on.
        held = [(w, [*w.refs], w.done) for _, waits in found for w in waits] if len(found) > 1 else []
        complete = [w for place, waits in found for w in self._carry_on(place, waits, seen)]
        if not complete:
            return None
        oldest = min(complete, key=self._begun_at) if len(complete) > 1 else complete[0]
        for wait, refs, done in held:
            if wait is not oldest:
                wait.refs, wait.done = refs, done
        return self._fire(key, oldest, seen)

    def _begun_at(self, wait: _Wait) -> int:
        """Return the sequence of the event that completed the first step of a wait."""
        return max(seq for _, seq, _ in wait.refs[: self._steps[0].count])

    def _begin(self, key: str, seen: Seen) -> None:
        ref = (seen.time, seen.seq, seen.id)
        step, place = self._steps[0], (key, 0, "[]")
        self._before(place)
        wait = _Wait(seen.recorded, seen.time, seen.time, 1, [ref], {}, {})
        if step.count > 1:
            # One wait collects; it begins with the first of the last so many.
            (found,) = self._waits.get(place) or [wait]
            if found is not wait and not self._is_gone(found, seen):
                if seen.time < found.last - self._lateness:
                    return
                self._collect(found, ref, step.within or self._within)
                found.recorded, found.last = seen.recorded, max(found.last, seen.time)
                wait = found
            full = _full(wait.refs, ref, count=step.count, within=step.within or self._within)
            if full is None:
                self._waits.part(place)[place] = [wait]
                self._swept(place, seen)
                return
            self._waits.part(place).pop(place, None)
            wait.refs, wait.time = full, full[0][0]
        self._advance(key, 0, wait, seen)

    def _collect(self, wait: _Wait, ref: _Ref, within: float) -> None:
        """Put an event among those of the current step, by time, and forget what no window to come can hold."""
        begins = len(wait.refs) - wait.done
        own = wait.refs[begins:]
        insort(own, ref)
        oldest = own[-1][0] - self._lateness - within
        own = [r for r in own if r[0] >= oldest]
        wait.refs[begins:], wait.done = own, len(own)

    def _is_gone(self, wait: _Wait, seen: Seen) -> bool:
        return seen.recorded > wait.recorded + self._within + self._lateness

    def _carry_on(self, place: _Place, waits: list[_Wait], seen: Seen) -> list[_Wait]:
        """Let waits of one place have an event; return those of which it completes the step."""
        step = self._steps[place[1]]
        self._before(place)
        complete: list[_Wait] = []
        for wait in waits:
            if (
                self._is_gone(wait, seen)
                or seen.time - wait.time > self._within
                or seen.time < wait.last - self._lateness
                or (wait.check is not None and not wait.check(seen.row))
            ):
                continue
            ref = (seen.time, seen.seq, seen.id)
            if step.within is None:
                wait.refs.append(ref)
                wait.done += 1
                if wait.done >= step.count:
                    complete.append(wait)
                continue
            begins = len(wait.refs) - wait.done
            if wait.done and seen.time < wait.refs[-1][0] - self._lateness:
                continue
            self._collect(wait, ref, step.within)
            full = _full(wait.refs[begins:], ref, count=step.count, within=step.within)
            if full is not None:
                wait.refs[begins:] = full
                complete.append(wait)
        return complete

    def _pass_on(self, place: _Place, waits: list[_Wait], seen: Seen) -> None:
        """``_carry_on``, and let those that are complete wait for the next step."""
        complete = self._carry_on(place, waits, seen)
        if not complete:
            return
        left = [wait for wait in waits if wait not in complete]
        if left:
            self._waits.part(place)[place] = left
        else:
            del self._waits.part(place)[place]
        for wait in complete:
            self._advance(place[0], place[1], wait, seen)

    def _advance(self, key: str, i: int, wait: _Wait, seen: Seen) -> None:
        """Let a wait that has completed step ``i`` wait for the next."""
        self._remember(i, wait, seen)
        wait.last, wait.done = seen.time, 0
        where = self._steps[i + 1].linked.place(wait.known)
        if where is None:
            return  # what it would ask for is not there, so nothing can ever answer
        join, wait.check = where
        place = (key, i + 1, _ANY if join is None else join)
        self._before(place)
        waits = self._waits.part(place).setdefault(place, [])
        waits.append(wait)
        if len(waits) > MAX_WAITS:
            # First those that are gone: whether they have been swept depends on what else there is, and where it came to stand.
            waits[:] = [one for one in waits if not self._is_gone(one, seen)]
            del waits[:-MAX_WAITS]
        self._swept(place, seen)

    def _remember(self, i: int, wait: _Wait, seen: Seen) -> None:
        alias = self._steps[i].as_
        if alias is not None:
            wait.named[alias] = {"id": seen.id, "seq": seen.seq}
            if alias in self._reads:
                wait.known[alias] = captured(seen.row, self._reads[alias])

    def _fire(self, key: str, wait: _Wait, seen: Seen) -> Firing:
        self._remember(len(self._steps) - 1, wait, seen)
        places = [(key, 0, "[]")]
        for i, step in enumerate(self._steps[1:], 1):
            where = step.linked.place(wait.known)
            if where is not None:
                places.append((key, i, _ANY if where[0] is None else where[0]))
        for place in places:
            self._before(place)
            self._waits.part(place).pop(place, None)
        self._used.up(key, seen.seq)
        refs = tuple(EventRef(id_, seq, time) for time, seq, id_ in wait.refs)
        extra: JsonObject | None = {"steps": wait.named} if wait.named else None
        return Firing(seen.time, len(refs), refs, seen.row, seen.depth, extra=extra)

    def _swept(self, place: _Place, seen: Seen) -> None:
        if not self._waits.is_full(place):
            return

        def is_gone(waits: list[_Wait]) -> bool:
            if any(self._is_gone(wait, seen) for wait in waits):
                waits[:] = [wait for wait in waits if not self._is_gone(wait, seen)]
            return not waits

        self._waits.sweep(place, lambda part: [p for p, waits in part.items() if is_gone(waits)])

    def keys(self) -> int:
        return len(self._waits)

    def window(self, key: str) -> int:
        """Return how many events the wait that has come furthest rests on."""
        found = [
            (place[1], len(w.refs)) for place, waits in self._waits.items() if place[0] == key for w in waits
        ]
        return max(found)[1] if found else 0

    def look(self, key: str) -> JsonObject:
        waits: list[JsonValue] = []
        for (owner, step, _), found in self._waits.items():
            if owner == key:
                waits += [
                    {
                        "step": step,
                        "of": len(self._steps),
                        "has": w.done,
                        "needs": self._steps[step].count,
                        "events": len(w.refs),
                        **({"asks": asks} if (asks := self._steps[step].linked.asks(w.known)) else {}),
                    }
                    for w in found
                ]
        return {"waits": waits[-MAX_WAITS:]}

    def dump(self) -> JsonValue:
        return [_dumped(place, waits) for place, waits in self._waits.items()]

    def load(self, state: Any) -> None:
        taken: list[tuple[_Place, list[_Wait]]] = []
        for key, step, join, waits in state:
            loaded = [_Wait.load(wait) for wait in waits]
            if step:
                for wait in loaded:
                    where = self._steps[step].linked.place(wait.known)
                    wait.check = where[1] if where is not None else None
            taken.append(((key, step, join), loaded))
        self._waits.update(taken)

    def kinds(self) -> tuple[Kind, ...]:
        waits = self._waits
        return (Kind(waits, lambda cells: [_dumped(p, w) for p, w in waits.of(cells).items()]),)

    def watch(self, before: Callable[[Any], None]) -> bool:
        self._before = before
        return True
