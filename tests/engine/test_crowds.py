"""More tasks at once than the publisher's buffer has places for events."""

from __future__ import annotations

import asyncio

import pytest
from hark import flow, task
from hark.bus import Bus
from hark.bus.session import Session
from hark.config import BusConfig
from hark.engine import AsyncTaskRunner
from hark.engine.runs.task_events import TaskEvents

from .conftest import words

TASKS = 1500


@pytest.fixture
def bus_config() -> BusConfig:
    return BusConfig(publish_buffer=1000)


async def test_a_crowd_waits_for_room_in_one_line(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of those who wait asks for room and lets the others through; each is woken when there is room for it."""
    asked = 0
    settle = TaskEvents.settle

    async def counted(events: TaskEvents) -> None:
        nonlocal asked
        asked += 1
        await settle(events)

    monkeypatch.setattr(TaskEvents, "settle", counted)

    @task
    async def add(a: int) -> int:
        return a + 1

    @flow(task_runner=AsyncTaskRunner())
    async def adds(n: int) -> int:
        return sum([await future for future in add.map(range(n))])

    assert await adds(TASKS) == sum(range(1, TASKS + 1))
    assert 0 < asked < TASKS / 5
    assert (await words(bus)).count("task-run.completed") == TASKS


async def test_who_leaves_the_line_leaves_the_others_in_order(session: Session) -> None:
    """Cancelled while it waits, be it the first, one that was just made the first, or another: the rest go on."""
    room = asyncio.Event()
    through: list[int] = []

    class Events(TaskEvents):
        async def _catch_up(self) -> None:
            await room.wait()

    events = Events(
        session, run_id="r", run_name=None, attempt=1, flow_name=None, deployment=None, correlationid=None,
        causationid=None, causaldepth=0, inline_bytes=1,
    )  # fmt: skip

    async def wait(n: int) -> None:
        await events.give_way_async()
        through.append(n)

    waiting = [asyncio.create_task(wait(n)) for n in range(6)]
    await asyncio.sleep(0)
    waiting[3].cancel()
    waiting[0].cancel()
    await asyncio.sleep(0)  # the first has left, and has made the second the first
    waiting[1].cancel()
    await asyncio.wait(waiting[:2])
    room.set()
    await asyncio.wait(waiting)
    assert sorted(through) == [2, 4, 5]
    await wait(6)
    assert through[-1] == 6
