"""Waking runs that wait for an event without a worker (``event_wait.py``).

One leads, by a lease. Which runs wait is folded from their transitions, with a checkpoint; events are read from the log
from where each wait has looked already. Runs that wait for the same types share one reader. Waking is one guarded
append, and only of a run that still waits for just that, so two wakers do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import orjson
from anyio.abc import TaskGroup

from ..bus import Bus
from ..bus.candidate import Candidate
from ..bus.event import Recorded
from ..bus.lease import Grant
from ..bus.patience import Patience
from ..bus.subject import FLOW_RUNS
from ..clock import SYSTEM_CLOCK, Clock
from ..engine.runs.run import FlowRun
from ..engine.runs.run_log import RunLog
from ..engine.states import Resuming, State
from ..errors import HarkError, RefusedError, UnknownName
from ..vocabulary import FlowRunId, JsonObject, StateType
from .event_wait import EventPattern, patterns_in

__all__ = ["Waker"]

log = logging.getLogger(__name__)

LEASE = "event-waits"
CHECKPOINTS, CHECKPOINT = "checkpoints", "event-waits"
CHECKPOINT_S = 5.0
_GATHER_S = 0.02
_SCHEDULED = ".scheduled"


@dataclass(eq=False, slots=True)
class _Waiter:
    """A run that waits, as its last transition says."""

    run_id: FlowRunId
    key: str
    pattern: EventPattern
    after: int
    details: JsonObject
    is_woken: bool = False


class Waker(Candidate["_Term"]):
    """The service. See ``Candidate``."""

    def __init__(self, bus: Bus, clock: Clock = SYSTEM_CLOCK, *, name: str | None = None) -> None:
        super().__init__(bus, lease=LEASE, role="waker", name=name)
        self._clock = clock

    @property
    def waiting(self) -> int:
        """How many runs wait, as far as this one knows; 0 on a standby."""
        return len(self._term.waiters) if self._term else 0

    async def _lead(self, grant: Grant, on_ready: Callable[[_Term], None]) -> None:
        await _Term(self._bus, self._clock).lead(on_ready)


class _Term:
    """One term of office."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock
        self._runs = RunLog(bus, clock)
        self._bucket = bus.bucket(CHECKPOINTS)
        self.waiters: dict[FlowRunId, list[_Waiter]] = {}
        """By their runs: several branches of one may wait."""
        self._seq = 0
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._new: dict[_Waiter, None] = {}
        self._gone: list[_Waiter] = []
        """Of those that are read for, while ``_new`` are not yet: of many thousands that wait, few change at a time."""
        self._changed = anyio.Event()
        self._tg: TaskGroup

    async def lead(self, on_ready: Callable[[_Term], None]) -> None:
        await self._restore()
        async with anyio.create_task_group() as tg:
            self._tg = tg
            tg.start_soon(self._keep_checkpoint)
            caught_up = False
            try:
                # Runs come to wait by being scheduled; that others have moved on can be noted together.
                patience = Patience(_GATHER_S, unless=lambda record: _SCHEDULED in record.subject)
                reading = self._bus.log.follow([FLOW_RUNS], after=self._seq, patience=patience)
                async with reading as batches:
                    async for batch in batches:
                        for recorded in batch.records:
                            self._fold(recorded)
                        if batch.records:
                            self._seq = batch.records[-1].seq
                            self._changed.set()
                        if not caught_up and batch.pending == 0:
                            caught_up = True
                            on_ready(self)
                        if caught_up:
                            self._arrange()
            finally:
                with anyio.move_on_after(2, shield=True):
                    await self._save()

    def _fold(self, recorded: Recorded) -> None:
        # Only `scheduled` can be a wait; of the others the subject says all there is to know.
        rest, _, run_id = recorded.subject.rpartition(".")
        for waiter in self.waiters.pop(FlowRunId(run_id), ()):
            if waiter in self._new:
                del self._new[waiter]
            else:
                self._gone.append(waiter)
        if not rest.endswith(_SCHEDULED):
            return
        try:
            run = FlowRun.from_recorded(recorded)
        except (HarkError, KeyError, ValueError, TypeError) as exc:
            log.error("waker.unreadable_event", extra={"seq": recorded.seq, "error": repr(exc)})
            return
        self._add(run.id, run.state_details)

    def _add(self, run_id: FlowRunId, details: JsonObject) -> None:
        waits: JsonObject = {name: details[name] for name in ("wait", "waits") if name in details}
        found = patterns_in(waits)
        if found:
            waiters = self.waiters[run_id] = [_Waiter(run_id, *one, details=waits) for one in found]
            self._new.update(dict.fromkeys(waiters))

    def _arrange(self) -> None:
        """Have each waiter read for, and each reader be needed."""
        new, gone = self._new, self._gone
        self._new, self._gone = {}, []
        begun: dict[tuple[str, ...], _Group] = {}
        for waiter in new:
            filters = waiter.pattern.filters
            if (group := self._groups.get(filters)) is not None:
                # First among the members, then the catching up: between the two nothing can pass by.
                group.members[waiter] = None
                self._tg.start_soon(self._catch_up, waiter)
            else:
                begun.setdefault(filters, _Group()).members[waiter] = None
        for waiter in gone:
            filters = waiter.pattern.filters
            group = self._groups[filters]
            del group.members[waiter]
            if not group.members:
                self._groups.pop(filters).scope.cancel()
        for filters, group in begun.items():
            self._groups[filters] = group
            self._tg.start_soon(self._read_for, filters, group)

    async def _read_for(self, filters: tuple[str, ...], group: _Group) -> None:
        after = min(
            (waiter.after for waiter in group.members), default=self._seq
        )  # none: over before it began
        with group.scope:
            async with self._bus.log.follow(filters, after=after) as batches:
                async for batch in batches:
                    for recorded in batch.records:
                        for waiter in list(group.members):
                            if recorded.seq > waiter.after and waiter.pattern.fits(recorded):
                                self._begin_waking(waiter, recorded)

    async def _catch_up(self, waiter: _Waiter) -> None:
        async with self._bus.log.read(waiter.pattern.filters, after=waiter.after) as batches:
            async for batch in batches:
                found = waiter.pattern.first(batch.records)
                if found is not None:
                    self._begin_waking(waiter, found)
                    return

    def _begin_waking(self, waiter: _Waiter, recorded: Recorded) -> None:
        """Wake a run, apart: the reader that found its event may be cancelled when nobody needs it any more."""
        if not waiter.is_woken:
            waiter.is_woken = True
            self._tg.start_soon(self._wake, waiter, recorded)

    async def _wake(self, waiter: _Waiter, recorded: Recorded) -> None:
        def decide(run: FlowRun) -> State | None:
            keys = [key for key, _, _ in patterns_in(run.state_details)]
            if run.state_type is not StateType.SCHEDULED or waiter.key not in keys:
                return None
            event = recorded.event
            return Resuming(
                message=f"event {event.type} has come", details={"event": event.id, "seq": recorded.seq}
            )

        try:
            await self._runs.change(waiter.run_id, decide, scheduled_at=self._clock.now())
        except (RefusedError, UnknownName) as exc:
            # It has moved on, which is all that waking could have asked for.
            log.debug("waker.moot", extra={"run_id": waiter.run_id, "why": str(exc)})

    # --- checkpoint -----------------------------------------------------------------------------------

    async def _restore(self) -> None:
        entry = await self._bucket.get(CHECKPOINT)
        if entry is None:
            return
        try:
            value: Any = orjson.loads(entry.value)
            seq, waits = int(value["seq"]), dict(value["waits"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as exc:
            log.warning("waker.checkpoint_unreadable", extra={"error": repr(exc)})
            return
        if seq > await self._bus.log.head():
            return  # of another log: somebody removed or restored it
        self._seq = seq
        for run_id, details in waits.items():
            self._add(FlowRunId(run_id), details)

    async def _keep_checkpoint(self) -> None:
        while True:
            self._changed = anyio.Event()
            await self._changed.wait()
            await anyio.sleep(CHECKPOINT_S)
            await self._save()

    async def _save(self) -> None:
        """Put down what is known; what is not put down is folded again from the log."""
        value = {
            "seq": self._seq,
            "waits": {run_id: waiters[0].details for run_id, waiters in self.waiters.items()},
        }
        try:
            await self._bucket.put(CHECKPOINT, orjson.dumps(value))
        except HarkError as exc:
            log.warning("waker.no_checkpoint", extra={"error": str(exc)})


class _Group:
    """The waiters that one reader reads for."""

    def __init__(self) -> None:
        self.members: dict[_Waiter, None] = {}
        self.scope = anyio.CancelScope()
