"""The engine behind the scheduler's ``RunStarter``: runs for slots, and what happens when one is still active."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup

from ..bus.subject import FLOW_RUNS
from ..clock import SYSTEM_CLOCK, Clock
from ..engine.runs.run import Cause, FlowRun
from ..engine.runs.run_log import readable_run
from ..errors import BusUnavailable
from ..triggers.scheduler import NotStarted, Started
from ..vocabulary import FlowRunId, JsonObject, StateType

if TYPE_CHECKING:
    from ..bus import Bus, Recorded
    from ..bus.event import Event
    from ..engine.dispatching.control import Control
    from ..triggers.schedule import Overlap

__all__ = ["ActiveRuns", "EngineStarter"]

log = logging.getLogger("hark.scheduler")

_ENDED = frozenset({"completed", "cached", "failed", "timed-out", "cancelled", "crashed"})
"""Words of transitions after which a run is over, as they stand in the bus subject."""


class ActiveRuns(AsyncContextManagerMixin):
    """The runs that are not over, folded from the log; begun when first asked, so that nobody pays who never asks."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._active: dict[str, Recorded] = {}
        self._seq = 0
        self._moved = anyio.Event()
        self._tg: TaskGroup | None = None
        self._started = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            self._tg = tg
            try:
                yield self
            finally:
                self._tg = None
                tg.cancel_scope.cancel("active runs closing")

    async def of(self, deployment: str, *, now: datetime) -> list[FlowRun]:
        """Return the runs of a deployment that were due and are not over, as of this call, oldest first."""
        if not self._started and self._tg is not None:
            self._started = True
            self._tg.start_soon(self._follow)
        newest = await self._bus.log.last(FLOW_RUNS)
        while newest is not None and self._seq < newest.seq:
            await self._moved.wait()
        runs = [run for r in list(self._active.values()) if (run := readable_run(r)) is not None]
        return sorted(
            (r for r in runs if r.deployment == deployment and _was_due(r, now)), key=lambda r: r.id
        )

    async def _follow(self) -> None:
        async with self._bus.log.follow([FLOW_RUNS], after=0) as batches:
            async for batch in batches:
                for recorded in batch.records:
                    word, _, run_id = recorded.subject.removeprefix("hark.ev.flow-run.").partition(".")
                    if word in _ENDED:
                        self._active.pop(run_id, None)
                    else:
                        self._active[run_id] = recorded
                    self._seq = recorded.seq
                moved, self._moved = self._moved, anyio.Event()
                moved.set()


def _was_due(run: FlowRun, now: datetime) -> bool:
    return run.state_type is not StateType.SCHEDULED or run.scheduled_at is None or run.scheduled_at <= now


class EngineStarter(AsyncContextManagerMixin):
    """Starts the runs of slots; implements the ``RunStarter`` of the triggers."""

    def __init__(self, control: Control, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._control, self._clock = control, clock
        self._active = ActiveRuns(bus)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with self._active:
            yield self

    async def start(
        self,
        deployment: str,
        *,
        run_id: FlowRunId,
        scheduled_at: datetime,
        parameters: JsonObject,
        cause_name: str,
        overlap: Overlap,
        trigger_event: Event,
    ) -> Started | NotStarted:
        """See ``RunStarter.start``."""
        if await self._control.get(run_id) is not None:
            return Started(run_id)
        found = await self._control.deployment(deployment)
        if found.paused:
            return NotStarted("the deployment is paused")
        if overlap != "allow":
            refusal = await self._make_room(deployment, run_id, overlap)
            if refusal is not None:
                return refusal
        run = await self._control.run_deployment(
            deployment,
            parameters=parameters,
            scheduled_at=scheduled_at,
            cause=Cause(kind="schedule", name=cause_name, event=trigger_event.id),
            trigger_event=trigger_event,
            run_id=run_id,
        )
        return Started(run.id)

    async def _make_room(self, deployment: str, run_id: FlowRunId, overlap: Overlap) -> NotStarted | None:
        active = await self._others(deployment, run_id)
        if overlap == "skip":
            if active:
                return NotStarted(
                    f"the run {active[0].name} ({active[0].id}) is still {active[0].state_name}"
                )
        elif overlap == "cancel-running":
            for run in active:
                log.info("schedule.cancels", extra={"run_id": run.id, "deployment": deployment})
                await self._control.cancel(run.id, reason="the next slot of its schedule is due")
        else:  # queue: the slot's run begins when those before it are over
            while active:
                try:
                    await self._control.wait(active[0].id)
                except TimeoutError as exc:
                    raise BusUnavailable("waiting for the run before took too long") from exc
                active = await self._others(deployment, run_id)
        return None

    async def _others(self, deployment: str, run_id: FlowRunId) -> list[FlowRun]:
        return [r for r in await self._active.of(deployment, now=self._clock.now()) if r.id != run_id]
