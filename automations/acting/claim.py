"""Whose an action is: one key in the bucket ``outbox`` for each, every change of it guarded by the one before.

A decision may name an outbox that had promised to carry it out before it was stored (``handover.py``): then its actions
are claimed by that one from the start, and the key is written for the first time when an action is over, or waits.

An action belongs to the outbox that claimed it, until it notes how it went. Another takes it over when that one says
that it no longer has it, or does not answer: it has died, or is cut off. After an outage of the broker nobody answers
at first, so who finds a claim then comes back once there was time enough to connect again. So an action is done twice
only if the process that did it was killed, or could not reach the broker for longer than its claim holds.

A process that dies costs the action no try. From its first death on it is noted before the action is begun, so that
those who died *while it was being done* can be counted: an action that takes every process with it ends as a dead
letter, and one that never got its turn does not.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import anyio

from ...bus import Bus, Recorded
from ...bus.event import readable
from ...bus.presence import Presence
from ...bus.subject import PREFIX, RESTORED
from ...clock import Clock
from ...errors import AlreadyHeld, BusUnavailable, GuardFailed
from .action_state import ActionState
from .waiting import delay_of

__all__ = ["BUCKET", "KEEP_S", "Claim", "Claims", "Over", "kept_s"]

BUCKET = "outbox"
KEEP_S = 2 * 86400
"""How long a finished action is remembered: longer than any repeat of its decision can come, which none of its actions puts off."""
_SOONEST_S = 0.05
_FIRST_LOOK_S = 1.0
"""After which a decision that was delivered to another than the one it names is looked at again."""
_FORGET_SILENCE = 5
"""After so many times of a claim in which nobody asked, silence begins anew."""
_ANSWER_S = 1.0
_MOST_SILENT = 1000


def kept_s(decision: Mapping[str, Any]) -> float:
    """Return for how long a finished action of a decision (its data) is remembered: the decision comes again for those with a delay."""
    actions = decision.get("actions")
    return KEEP_S + max(map(delay_of, actions if isinstance(actions, list) else ()), default=0.0)


@dataclass(frozen=True, slots=True)
class Claim:
    """An action that is ours. ``fresh``: nobody has tried it before. ``revision`` 0: only the decision says that it is."""

    state: ActionState
    revision: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Over:
    """An action that has come to its end, noted as ``state``; None: long ago, and forgotten."""

    state: ActionState | None


class Claims:
    """The claims of one outbox.

    Args:
        name: of the outbox; one word, used by no other.
        holds_s: for how long a claim holds while nobody hears from its owner.
        gone: names of outboxes that are known to have ended. dead: of those whose process is known to have died.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        name: str,
        holds_s: float,
        gone: Container[str] = (),
        dead: Container[str] = (),
    ) -> None:
        self._gone, self._dead = gone, dead
        self._bus, self._clock, self._name, self._holds_s = bus, clock, name, holds_s
        self._bucket = bus.bucket(BUCKET)
        self._presence = Presence(bus.connection)
        self._restored_seq: int | None = None
        self._silent: dict[str, tuple[float, float]] = {}
        """Outboxes that did not answer: since when, and when they were asked last, in seconds of the loop."""

    def promised(self, key: str, seq: int) -> Claim:
        """Return the claim of an action whose decision names us, and which nobody has had before."""
        return Claim(ActionState("claimed", 1, 0, self._name, self._clock.now(), seq), 0, True)

    async def take(
        self,
        key: str,
        seq: int,
        *,
        round: int,
        named: str | None,
        again: bool = False,
        keep_s: float = KEEP_S,
    ) -> Claim | Over | float:
        """Claim an action that nobody here is at; or return when to come back (s), or that it is over.

        Args:
            seq: of its decision in the log.
            round: how often it has been redriven, as far as the caller knows.
            named: the outbox that its decision names.
            again: its decision was delivered before, so that something is noted of it, as a rule.
            keep_s: how long it is remembered if it turns out to be over.
        """
        now = self._clock.now()
        if seq <= await self._restored() and await self._was_done(key, seq, round=round, keep_s=keep_s):
            return Over(None)
        state = ActionState("claimed", 1, round, self._name, now, seq)
        if not round and (named == self._name or (named is None and not again)):
            # Who is named may have begun and lost the broker before anything was noted.
            try:
                return Claim(state, await self._bucket.create(key, state.to_json()), named is None)
            except AlreadyHeld:
                pass
        while True:
            entry = await self._bucket.get(key)
            if entry is None:
                if round:
                    return Over(None)  # it was done or dropped long ago
                try:
                    return await self._first(key, state, named, keep_s)
                except AlreadyHeld:
                    continue
            found = ActionState.from_json(entry.value)
            if found.is_over and not (found.state == "dead" and found.round < round):
                return Over(found)
            if found.state == "waiting" and found.next_at is not None and found.next_at > now:
                return (found.next_at - now).total_seconds()
            if found.state == "claimed":
                met = await self._met(key, found, named=named)
                if isinstance(met, float):
                    return met
                if met.is_over:
                    try:
                        await self._bucket.update(key, met.to_json(), revision=entry.revision, ttl_s=keep_s)
                    except GuardFailed:
                        continue
                    return Over(None)  # the log says so already
                taken = replace(met, by=self._name, at=now)
            elif found.state == "dead":
                # Redriven. Whoever it killed before may die of it again.
                taken = replace(state, suspect=found.suspect)
            elif found.state == "stopped":
                taken = replace(found, state="claimed", by=self._name, at=now)
            else:
                taken = replace(
                    found, state="claimed", attempt=found.attempt + 1, by=self._name, at=now, next_at=None, begun=False
                )  # fmt: skip
            try:
                return Claim(
                    taken, await self._bucket.update(key, taken.to_json(), revision=entry.revision), False
                )
            except GuardFailed:
                continue

    async def _first(
        self, key: str, state: ActionState, named: str | None, keep_s: float
    ) -> Claim | Over | float:
        """Claim an action of which nothing is noted; it is somebody's nevertheless, if its decision names one.

        Raises:
            AlreadyHeld: something has been noted meanwhile.
        """
        if named is None:
            return Claim(state, await self._bucket.create(key, state.to_json()), True)
        decision = await self._bus.log.get(state.seq)
        since = decision.recorded_at if decision is not None else state.at
        met = await self._met(key, replace(state, by=named, at=since), named=named)
        if isinstance(met, float):
            # Soon at first: most are done at once, and all that wait with the broker count towards what it hands out.
            return min(met, max(_FIRST_LOOK_S, (state.at - since).total_seconds()))
        if met.is_over:
            await self._bucket.create(key, met.to_json(), ttl_s=keep_s)
            return Over(None)  # the log says so already
        taken = replace(met, by=self._name, at=state.at)
        return Claim(taken, await self._bucket.create(key, taken.to_json()), False)

    async def _restored(self) -> int:
        """Return where the log says that it was restored from a backup, 0 if it never was."""
        if self._restored_seq is None:
            found = await self._bus.log.last(PREFIX + RESTORED)
            self._restored_seq = found.seq if found is not None else 0
        return self._restored_seq

    async def _was_done(self, key: str, seq: int, *, round: int, keep_s: float) -> bool:
        """Return whether an action of before a backup was done, and note so: the bucket's copy is older than the log's."""
        entry = await self._bucket.get(key)
        found = ActionState.from_json(entry.value) if entry is not None else None
        if found is not None and found.is_over:
            return False  # it is known what became of it
        decision = await self._bus.log.get(seq)
        since = (
            decision.recorded_at if decision is not None else self._clock.now() - timedelta(seconds=keep_s)
        )
        state = found or ActionState("claimed", 1, round, self._name, since, seq)
        if not await self._was_executed(key, replace(state, at=since, round=round)):
            return False
        await self._bucket.put(
            key, replace(state, state="done", at=self._clock.now()).to_json(), ttl_s=keep_s
        )
        return True

    async def _met(self, key: str, found: ActionState, *, named: str | None) -> ActionState | float:
        """Return what a claim somebody has is when it becomes ours, or that it is done; or when to come back (s)."""
        if found.by == self._name:
            return found  # the broker went away in the middle
        is_dead, has = found.by in self._dead, None
        if not is_dead:
            has = False if found.by in self._gone else await self._presence.holds(found.by, key)
        if has is not None:
            self._silent.pop(found.by, None)
        if has:
            return self._holds_s
        if has is None and not is_dead:
            silent_s = self._bus.connection.connected_s
            if found.by == named:
                silent_s = min(silent_s, self._silence_s(named))
            left_s = self._holds_s - silent_s
            if left_s > 0:
                return max(left_s, _SOONEST_S)
        if await self._was_executed(key, found):
            return replace(found, state="done", at=self._clock.now())
        if has is None:
            return replace(found, suspect=True, begun=False, deaths=found.deaths + found.begun)
        return found

    def _silence_s(self, name: str) -> float:
        """Return for how long one that has not answered now is known not to.

        What the broker delivered to us again nobody had kept alive for as long as a claim holds. A decision that names its
        outbox may have been delivered to us alone: one question that a busy process answers too late says nothing then.
        """
        now = anyio.current_time()
        since, last = self._silent.pop(name, (now, now))
        if now - last > _FORGET_SILENCE * self._holds_s + _ANSWER_S:
            since = now  # it may have been there in between
        self._silent[name] = (since, now)
        if len(self._silent) > _MOST_SILENT:
            del self._silent[next(iter(self._silent))]
        return now - since

    async def begin(self, key: str, claim: Claim) -> Claim | None:
        """Note that an action is begun now, if a process has died that had it; None if it is no longer ours."""
        if not claim.state.suspect:
            return claim
        state = replace(claim.state, begun=True, at=self._clock.now())
        try:
            return replace(
                claim,
                state=state,
                revision=await self._bucket.update(key, state.to_json(), revision=claim.revision),
            )
        except GuardFailed:
            return None

    async def stop(self, key: str, claim: Claim) -> None:
        """Hand an action back in the middle: the process is asked to end, and that is no death."""
        state = replace(claim.state, state="stopped", begun=False, at=self._clock.now())
        try:
            await self._bucket.update(key, state.to_json(), revision=claim.revision)
        except (GuardFailed, BusUnavailable):
            return  # somebody has it already, or will find that we are gone

    async def _was_executed(self, key: str, found: ActionState) -> bool:
        """Return whether the log says that a claimed action was done, by one that died before it could note so."""
        return (
            await self._bus.log.find(
                f"{PREFIX}action.executed",
                _done_as(key, found.round),
                found.at - timedelta(seconds=1),
                mark=_what_was_done,
            )
            is not None
        )


def _done_as(key: str, round: int) -> str:
    return f"{round} {key}"


def _what_was_done(record: Recorded) -> str | None:
    """Return which action a record of the log says was done, at whichever try."""
    for one in readable([record]):
        data: Any = one.event.data
        if isinstance(data, dict):
            return _done_as(str(data.get("key")), data.get("round", 0))
    return None
