"""Flow runs in the log: the only writer of their transitions, each under guard of the one before.

A caller holds a ``FlowRun`` (what it knew when it decided) and asks for a move. If somebody wrote in between,
the move is decided again on what the log says now: it lands, or the caller learns that the run is no longer
its own (``RunLost``) or that the move no longer exists (``MoveRefused``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import anyio

from ...bus import Bus
from ...bus.event import Event, Recorded, readable
from ...bus.subject import flow_run_filter
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import EventInvalid, GuardFailed, MoveRefused, RunLost, UnknownName
from ...vocabulary import FlowRunId, JsonValue, StateType
from ..states import State, move_allowed
from .hook_log import ANYONE, owing
from .run import FlowRun, RunRequest, transition_event

__all__ = ["Draft", "RunLog", "readable_run", "still_holds"]

log = logging.getLogger(__name__)

MAX_TRIES = 20
"""Guards lost in a row before giving up: each loss means somebody else's append landed, so this many
means a run that many parties fight over, which is a fault somewhere."""


def still_holds(mine: FlowRun, now: FlowRun) -> bool:
    """Return whether who acted on ``mine`` may still write, now that the log says ``now``.

    A cancel request does not take a run from its holder; a new attempt, an end, or a return to the
    queue does.
    """
    if now.attempt != mine.attempt or now.is_final:
        return False
    if mine.state_type in _BEGINNING and now.state_type in _BEGUN:
        # Nobody but its holder brings an attempt there: a move of its own, whose answer it was interrupted in waiting for.
        return True
    return now.state_type in (mine.state_type, StateType.CANCELLING)


_BEGINNING = frozenset({StateType.SCHEDULED, StateType.PENDING})
_BEGUN = frozenset({StateType.PENDING, StateType.RUNNING})


class Draft(NamedTuple):
    """A transition that has not been appended, or of which we do not know whether it has.

    Attributes:
        run: as it will be. event: to be appended. after: the sequence of the run's last transition before it.
    """

    run: FlowRun
    event: Event
    after: int

    def landed(self, seq: int) -> FlowRun:
        """Return the run after the transition, which stands in the log at ``seq``."""
        return self.run.landed(seq=seq, event_id=self.event.id)


class RunLog:
    """Reads and moves flow runs. Stateless: any number may be used side by side."""

    def __init__(self, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus = bus
        self._clock = clock

    async def request(self, request: RunRequest) -> FlowRun:
        """Append ``scheduled`` and return the run; a run that exists already is returned as it is now.

        Asking again with the same id (derived from the cause) therefore asks nothing new.
        """
        run = FlowRun.requested(request, now=self._clock.now())
        # Derived, so that two who ask at once for the same run write the same event: one lands, and the
        # broker tells the other of a repeat.
        event = transition_event(run, previous=None, id=f"{run.id}-requested")
        try:
            appended = await self._bus.log.append(event, after=0)
        except GuardFailed:
            existing = await self.get(run.id)
            if existing is None:
                raise
            return existing
        if appended.duplicate:
            return await self.get(run.id) or run.changed(seq=appended.seq)
        return run.changed(seq=appended.seq)

    async def begin(self, run: FlowRun, state: State) -> FlowRun:
        """Append the first transition of a run that nobody asked for before it began (a plain call).

        Raises:
            GuardFailed: a run of this id exists.
            MoveRefused: a run cannot begin in this state.
        """
        if not move_allowed(None, state.type):
            raise MoveRefused(run.id, from_state="new", to_state=state.type)
        moved = run.moved(state)
        event = transition_event(moved, previous=None)
        appended = await self._bus.log.append(event, after=0)
        return moved.landed(seq=appended.seq, event_id=event.id)

    def two_drafts(
        self, run: FlowRun, state: State, then: State, *, attempt: int, name: str | None = None
    ) -> tuple[Draft, Draft]:
        """Return the first two transitions of a run, to be appended by ``begin_and_move`` or in some quicker way.

        Args:
            attempt, name: of the second, see ``move``.
        Raises:
            MoveRefused: as ``begin``.
        """
        for before, after in ((None, state), (state.type, then)):
            if not move_allowed(before, after.type):
                raise MoveRefused(run.id, from_state=before or "new", to_state=after.type)
        one = run.moved(state)
        two = one.moved(then, attempt=attempt, name=name)
        return (
            Draft(one, transition_event(one, previous=None), 0),
            Draft(two, transition_event(two, previous=one.state_type), 0),
        )

    async def begin_and_move(
        self, one: Draft, two: Draft, *, spent_s: float = 0.0
    ) -> tuple[FlowRun, FlowRun | None]:
        """Append the first two transitions in one exchange with the broker; return the run after each.

        Asked again with the same drafts, it asks nothing new. ``spent_s``: as ``EventLog.append``.

        None: somebody wrote between them, so the second is to be asked for by ``move``.

        Raises:
            GuardFailed: a run of this id exists; neither was written.
        """
        began, moved = await self._bus.log.append_two(one.event, two.event, after=0, spent_s=spent_s)
        return one.landed(began.seq), two.landed(moved.seq) if moved is not None else None

    def draft(
        self,
        run: FlowRun,
        state: State,
        *,
        attempt: int | None = None,
        result: JsonValue = None,
        scheduled_at: datetime | None = None,
        name: str | None = None,
        retry: bool = False,
    ) -> Draft:
        """Return one transition of ``run``, to be appended by ``move`` or in some quicker way.

        Raises:
            MoveRefused: no such move from the state the run is in.
        """
        if not move_allowed(run.state_type, state.type, retry=retry):
            raise MoveRefused(run.id, from_state=run.state_type, to_state=state.type)
        moved = run.moved(state, attempt=attempt, name=name, scheduled_at=scheduled_at)
        return Draft(moved, transition_event(moved, previous=run.state_type, result=result), run.seq)

    async def move(
        self,
        run: FlowRun,
        state: State,
        *,
        attempt: int | None = None,
        result: JsonValue = None,
        scheduled_at: datetime | None = None,
        name: str | None = None,
        retry: bool = False,
        draft: Draft | None = None,
        own: str | None = None,
        spent_s: float = 0.0,
    ) -> FlowRun:
        """Append one transition of ``run`` and return the run after it.

        Args:
            attempt: a new attempt number, for who takes the run up.
            result: recorded result of a COMPLETED run.
            scheduled_at: a new due time.
            retry: this is a new attempt of a finished run (FAILED, CRASHED, CANCELLED -> SCHEDULED).
            draft: the same transition of the same run, as ``draft`` has made it: it may have been appended already.
            own: the event of another transition that was asked for, and may have been stored: it takes the run from nobody.
            spent_s: so long an answer to it was waited for: see ``EventLog.append``.
        Raises:
            MoveRefused: no such move from the state the run is in.
            RunLost: somebody else has taken the run, or it has ended.
        """
        for _ in range(MAX_TRIES):
            # A fresh event id for each try: a shared one would make the broker call the second a repeat.
            draft = draft or self.draft(
                run, state, attempt=attempt, name=name, scheduled_at=scheduled_at, retry=retry, result=result
            )
            try:
                appended = await self._bus.log.append(draft.event, after=draft.after, spent_s=spent_s)
            except GuardFailed:
                now = await self.get(run.id)
                if now is None:
                    raise RunLost(run.id, reason="it has left the log") from None
                if now.seq == run.seq:
                    raise
                if not still_holds(run, now) and now.event_id != own:
                    raise RunLost(
                        run.id,
                        reason=f"it is {now.state_name} (attempt {now.attempt}) since sequence {now.seq}",
                    ) from None
                run, draft, spent_s = now, None, 0.0
                continue
            return draft.landed(appended.seq)
        raise RunLost(run.id, reason=f"{MAX_TRIES} others wrote first, one after the other")

    async def change(
        self,
        run_id: FlowRunId,
        decide: Callable[[FlowRun], State | None],
        *,
        retry: bool = False,
        scheduled_at: datetime | None = None,
    ) -> FlowRun:
        """Move a run one does not hold: read, decide, append, and decide again if somebody wrote first.

        ``decide`` is called with the run as it stands and returns the state to move to, or None to leave
        it; it may raise, which ends the matter.

        Raises:
            UnknownName: there is no such run.
            MoveRefused: the decision is not allowed from the state the run is in.
        """
        for _ in range(MAX_TRIES):
            run = await self.get(run_id)
            if run is None:
                raise UnknownName("flow run", run_id)
            state = decide(run)
            if state is None:
                return run
            try:
                return await self._move_exactly(run, state, retry=retry, scheduled_at=scheduled_at)
            except GuardFailed:
                continue
        raise RunLost(run_id, reason=f"{MAX_TRIES} others wrote first, one after the other")

    async def _move_exactly(
        self,
        run: FlowRun,
        state: State,
        *,
        retry: bool = False,
        scheduled_at: datetime | None = None,
        attempt: int | None = None,
    ) -> FlowRun:
        if not move_allowed(run.state_type, state.type, retry=retry):
            raise MoveRefused(run.id, from_state=run.state_type, to_state=state.type)
        if run.entrypoint is not None:
            # Written by one who does not execute the run: somebody who has its code is to call the hooks.
            state = owing(state, ANYONE)
        moved = run.moved(state, scheduled_at=scheduled_at, attempt=attempt)
        event = transition_event(moved, previous=run.state_type)
        appended = await self._bus.log.append(event, after=run.seq)
        return moved.landed(seq=appended.seq, event_id=event.id)

    async def move_exactly(self, run: FlowRun, state: State, *, attempt: int | None = None) -> FlowRun:
        """Append one transition if ``run`` is still as it was read, for decisions that hold only then.

        Raises:
            GuardFailed: somebody wrote since; read again and decide again.
            MoveRefused: no such move.
        """
        return await self._move_exactly(run, state, attempt=attempt)

    async def get(self, run_id: FlowRunId) -> FlowRun | None:
        """Return the run as its last transition tells it; None if there is none in the log."""
        last = await self._bus.log.last(flow_run_filter(run_id))
        if last is None:
            return None
        run = readable_run(last)
        if run is None:
            # Somebody's message on the run's subject: it says nothing of the run, but appends are guarded by it.
            for recorded in reversed(await self.history(run_id)):
                if (before := readable_run(recorded)) is not None:
                    return before.changed(seq=last.seq)
        return run

    async def history(self, run_id: FlowRunId) -> list[Recorded]:
        """Return every transition of the run, oldest first."""
        return await self._read(flow_run_filter(run_id))

    async def _read(self, filter_: str) -> list[Recorded]:
        records: list[Recorded] = []
        async with self._bus.log.read([filter_]) as batches:
            async for batch in batches:
                records.extend(readable(batch.records))
        return records

    async def wait(
        self,
        run_id: FlowRunId,
        until: Callable[[FlowRun], bool] = lambda run: run.is_final,
        *,
        timeout_s: float | None = None,
    ) -> FlowRun:
        """Return the run once ``until`` holds of it, hearing each transition from the log as it lands.

        Raises:
            UnknownName: there is no such run.
            TimeoutError: ``until`` did not come to hold within ``timeout_s``.
        """
        run = await self.get(run_id)
        if run is None:
            raise UnknownName("flow run", run_id)
        if until(run):
            return run
        with anyio.fail_after(timeout_s):
            async with self._bus.log.hear(flow_run_filter("*"), run_id) as records:
                seen = run.seq
                # What was stored before anybody listened.
                for run in await self._since(run_id, seen):
                    seen = run.seq
                    if until(run):
                        return run
                async for recorded in records:
                    heard = readable_run(recorded) if recorded.seq > seen else None
                    if heard is not None and until(heard):
                        return heard
        raise TimeoutError(f"the log ended before run {run_id} did")

    async def _since(self, run_id: FlowRunId, seq: int) -> list[FlowRun]:
        """Return the run as each transition behind ``seq`` made it."""
        last = await self._bus.log.last(flow_run_filter(run_id))
        if last is None or last.seq <= seq:
            return []
        found: list[FlowRun] = []
        async with self._bus.log.read([flow_run_filter(run_id)], after=seq) as batches:
            async for batch in batches:
                found.extend(run for recorded in batch.records if (run := readable_run(recorded)) is not None)
        return found


def readable_run(recorded: Recorded) -> FlowRun | None:
    """Return the run a transition tells of; None if the record is no transition of ours."""
    try:
        return FlowRun.from_recorded(recorded)
    except (EventInvalid, KeyError, ValueError, TypeError) as exc:
        log.warning(
            "run.unreadable_event",
            extra={"seq": recorded.seq, "subject": recorded.subject, "error": repr(exc)},
        )
        return None
