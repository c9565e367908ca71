"""Overlapping slots on the real engine: what the scheduler's starter does when a run is still active."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from hark.bus import Bus
from hark.clock import ManualClock
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.deployment import Deployment
from hark.engine.runs.run import FlowRun
from hark.engine.states import Completed, Pending, Running
from hark.server.starter import EngineStarter
from hark.triggers.schedule import StoredSchedule, parse_schedule, slot_run_id
from hark.triggers.scheduler import Scheduler
from hark.vocabulary import FlowRunId

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class World:
    """A scheduler on a clock that is moved by hand, with the engine behind it."""

    bus: Bus
    clock: ManualClock
    control: Control
    scheduler: Scheduler

    def run_id(self, hour: int) -> FlowRunId:
        return FlowRunId(slot_run_id("etl", "0", NEW_YEAR.replace(hour=hour)))

    async def run(self, hour: int) -> FlowRun | None:
        return await self.control.get(self.run_id(hour))

    async def until_hour(self, hour: int) -> None:
        """Move the clock to a full hour once the scheduler waits for it."""
        with anyio.fail_after(60):
            while dict(self.scheduler.upcoming()).get("etl/0") != NEW_YEAR.replace(hour=hour):  # noqa: ASYNC110 - it has no event to wait for
                await anyio.sleep(0.001)
        await self.clock.advance((NEW_YEAR.replace(hour=hour) - self.clock.now()).total_seconds())

    async def told(self, type_: str, count: int) -> list[Any]:
        """Return the data of so many events of a type, once they are there."""
        found: list[Any] = []
        with anyio.fail_after(60):
            async with self.bus.log.follow([f"hark.ev.{type_}"], after=0) as batches:
                async for batch in batches:
                    found += [record.event.data for record in batch.records]
                    if len(found) >= count:
                        break
        return found

    async def running(self, hour: int) -> FlowRun:
        """Have the run of the first slot taken by a worker that we play, once it is there: the slot is told of before."""
        await self.told("flow-run.scheduled.*", 1)
        run = await self.run(hour)
        assert run is not None
        run = await self.control.runs.move(run, Pending(), attempt=1)
        return await self.control.runs.move(run, Running())


Enter = Callable[[str], Any]


@pytest.fixture
def world(bus: Bus) -> Enter:
    @asynccontextmanager
    async def entered(overlap: str) -> AsyncIterator[World]:
        clock = ManualClock(NEW_YEAR)
        control = Control(bus, clock)
        await control.put_deployment(Deployment(name="etl", flow="flows.py:etl", path="/nowhere"))
        schedule = parse_schedule({"cron": "0 * * * *", "overlap": overlap})
        stored = StoredSchedule.of("etl", 0, schedule).model_copy(update={"since": NEW_YEAR})
        await bus.bucket("schedules").put(stored.key, stored.model_dump_json().encode())
        async with (
            EngineStarter(control, bus, clock) as starter,
            Scheduler(bus, starter, clock=clock, look_up_s=1e9) as scheduler,
        ):
            with anyio.fail_after(60):
                await scheduler.wait_leading()
            yield World(bus, clock, control, scheduler)

    return entered


async def test_overlap_skip_makes_no_run_while_one_is_active(world: Enter) -> None:
    """The slot is told as skipped, with the run that stood in its way; the next one after its end runs."""
    async with world("skip") as w:
        await w.until_hour(1)
        await w.told("schedule.fired", 1)
        run = await w.running(1)
        await w.until_hour(2)
        [skipped] = await w.told("schedule.skipped", 1)
        assert (skipped["why"], run.id in skipped["reason"]) == ("refused", True)
        assert await w.run(2) is None
        await w.control.runs.move(run, Completed())
        await w.until_hour(3)
        await w.told("flow-run.scheduled.*", 2)
        assert await w.run(3) is not None


async def test_overlap_queue_waits_until_the_run_before_is_over(world: Enter) -> None:
    """No run while one is active, and one as soon as it is over; a slot meanwhile is a missed one."""
    async with world("queue") as w:
        await w.until_hour(1)
        await w.told("schedule.fired", 1)
        run = await w.running(1)
        await w.until_hour(2)
        await w.told("schedule.fired", 2)
        assert await w.run(2) is None
        await w.clock.advance(2 * 3600)  # 03:00 and 04:00 pass while 02:00 waits
        assert await w.run(2) is None
        await w.control.runs.move(run, Completed())
        scheduled = await w.told("flow-run.scheduled.*", 2)
        assert scheduled[1]["run"]["id"] == w.run_id(2)
        await w.control.cancel(w.run_id(2))
        [skipped] = await w.told("schedule.skipped", 1)
        assert (skipped["why"], skipped["count"]) == ("missed", 1)
        scheduled = await w.told("flow-run.scheduled.*", 3)
        assert scheduled[2]["run"]["id"] == w.run_id(4)


async def test_overlap_cancel_running_asks_the_run_before_to_stop(world: Enter) -> None:
    """The active run is cancelling with the reason, and the new slot has its run."""
    async with world("cancel-running") as w:
        await w.until_hour(1)
        await w.told("schedule.fired", 1)
        await w.running(1)
        await w.until_hour(2)
        await w.told("flow-run.scheduled.*", 2)
        before = await w.run(1)
        assert before is not None
        assert (before.state_name, before.state_message) == (
            "Cancelling",
            "the next slot of its schedule is due",
        )
        assert await w.run(2) is not None


async def test_overlap_allow_runs_them_side_by_side(world: Enter) -> None:
    """Each slot has its run, whatever the others do; a paused deployment has none, and it is told why."""
    async with world("allow") as w:
        await w.until_hour(1)
        await w.told("schedule.fired", 1)
        await w.running(1)
        await w.until_hour(2)
        await w.told("flow-run.scheduled.*", 2)
        assert {(await w.run(h)).state_name for h in (1, 2)} == {"Running", "Scheduled"}
        await w.control.pause_deployment("etl")
        await w.until_hour(3)
        [skipped] = await w.told("schedule.skipped", 1)
        assert (skipped["why"], skipped["reason"]) == ("refused", "the deployment is paused")
