"""Far timers fire once, can be replaced and taken back, and outlive every process of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from hark.bus import Bus, Event
from hark.bus.event import Recorded
from hark.bus.timers import Timers
from hark.config import BusConfig
from hark.errors import EventTooLarge

Kill = Callable[[], Awaitable[None]]
MODES = pytest.mark.parametrize("in_broker", [True, False], ids=["in-broker", "kept-by-us"])


def soon(seconds: float = 0.3) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def an_event(id_: str) -> Event:
    return Event(type="timer.fired", source="/test", id=id_, data={"n": 1})


@asynccontextmanager
async def timers_of(bus: Bus, in_broker: bool) -> AsyncIterator[Timers]:
    """Timers of a broker that has them, or of one that has not, with somebody keeping them."""
    timers = Timers(bus.connection, BusConfig(schedules=in_broker))
    assert timers.in_broker is in_broker
    keeper = asyncio.create_task(timers.keep())
    try:
        yield timers
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])


async def fired(bus: Bus, count: int) -> list[Recorded]:
    out: list[Recorded] = []
    with anyio.fail_after(60):
        async with bus.log.follow(["hark.ev.timer.fired"], after=0) as batches:
            async for batch in batches:
                out += batch.records
                if len(out) >= count:
                    break
    return out


@MODES
async def test_a_timer_becomes_an_event_when_due(bus: Bus, in_broker: bool) -> None:
    """Not before its time, and as it was given; a past one does not wait for it."""
    async with timers_of(bus, in_broker) as timers:
        at = soon(1)
        await timers.set("run.1/sleep", an_event("due"), at=at)
        await timers.set("past", an_event("past"), at=datetime(2020, 1, 1, tzinfo=UTC))
        records = await fired(bus, 2)
    assert [record.event for record in records] == [
        an_event("past").replace(time=records[0].event.time),
        an_event("due").replace(time=records[1].event.time),
    ]
    assert records[1].recorded_at >= at


@MODES
async def test_a_cancelled_timer_does_not_fire(bus: Bus, in_broker: bool) -> None:
    """Taking back says whether there was one; setting again under the same id replaces."""
    async with timers_of(bus, in_broker) as timers:
        await timers.set("a", an_event("cancelled"), at=soon(60))
        assert await timers.cancel("a")
        assert not await timers.cancel("a")
        await timers.set("b", an_event("old"), at=soon(60))
        await timers.set("b", an_event("new"), at=soon(0.2))
        await timers.set("a", an_event("again"), at=soon(0.3))
        records = await fired(bus, 2)
        assert {record.event.id for record in records} == {"new", "again"}
        assert not await timers.cancel("b")


@MODES
async def test_a_timer_outlives_the_broker(bus: Bus, kill: Kill, in_broker: bool) -> None:
    """A broker killed before the time fires afterwards."""
    async with timers_of(bus, in_broker) as timers:
        await timers.set("x", an_event("x"), at=soon(0.5))
        await kill()
        records = await fired(bus, 1)
    assert [record.event.id for record in records] == ["x"]


async def test_too_large_a_timer_is_refused(bus: Bus) -> None:
    """Sizes are known before anything is sent."""
    timers = Timers(bus.connection, BusConfig())
    with pytest.raises(EventTooLarge):
        await timers.set("x", an_event("x").replace(data="x" * bus.info.max_payload), at=soon())
    await timers.keep()
