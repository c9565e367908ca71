"""Limits by tag: tasks with a limited tag wait for each other, in any run and any process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import pytest
from hark import flow, tags, task
from hark.bus import Bus
from hark.bus.session import Session
from hark.engine.futures import wait
from hark.engine.limits import slots
from hark.engine.limits.limit import Limit
from hark.engine.limits.slots import delete_limit, put_limit
from hark.engine.task_runners import ThreadPoolTaskRunner


class Crowd:
    """How many are inside, and how many were at most."""

    def __init__(self) -> None:
        self.inside = self.most = self.came = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.came += 1
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1


async def words_of_tasks(bus: Bus) -> list[str]:
    """Return the last words of all events of task runs, in order."""
    found = []
    async with bus.log.read(["hark.ev.task-run.>"]) as batches:
        async for batch in batches:
            found += [recorded.event.type.partition(".")[2] for recorded in batch.records]
    return found


async def test_async_tasks_with_a_limited_tag_take_turns(session: Session, bus: Bus) -> None:
    """No more at once than the tag has slots; who waits says so; everything is given back."""
    await put_limit(bus, "tag:db", Limit(slots=2))
    crowd = Crowd()
    all_wait = asyncio.Event()

    @task(tags=["db", "other"])
    async def query(n: int) -> int:
        with crowd:
            await all_wait.wait()
            await asyncio.sleep(0)
        return n

    @flow
    async def many() -> list[int]:
        return await asyncio.gather(*(query(n) for n in range(8)))

    running = asyncio.ensure_future(many())
    left = 6
    async with bus.log.follow(["hark.ev.task-run.>"], after=0) as batches:
        async for batch in batches:
            left -= sum(r.event.type == "task-run.awaiting-concurrency-slot" for r in batch.records)
            if not left:
                break
    all_wait.set()
    assert await running == list(range(8))
    assert (crowd.most, crowd.came) == (2, 8)
    words = await words_of_tasks(bus)
    assert words.count("awaiting-concurrency-slot") == 6
    assert words.count("running") == words.count("pending") == words.count("completed") == 8
    assert await bus.bucket("leases").keys("slot.") == []


async def test_tasks_without_a_limited_tag_wait_for_nobody(session: Session, bus: Bus) -> None:
    """Neither a tag without a limit, nor one whose limit is inactive or has been removed, holds anybody back."""
    await put_limit(bus, "tag:db", Limit(slots=1, active=False))
    await put_limit(bus, "tag:old", Limit(slots=1))
    await delete_limit(bus, "tag:old")
    crowd, together = Crowd(), asyncio.Barrier(4)

    @task(tags=["db", "old", "free"])
    async def query() -> None:
        with crowd:
            await together.wait()

    @flow
    async def many() -> None:
        await asyncio.gather(*(query() for _ in range(4)))

    await many()
    assert crowd.most == 4
    assert "awaiting-concurrency-slot" not in await words_of_tasks(bus)


async def test_sync_tasks_on_threads_take_turns(session: Session, bus: Bus) -> None:
    """Submitted to threads, with the tag given by the block around them."""
    await put_limit(bus, "tag:db", Limit(slots=1))
    crowd = Crowd()

    @task
    def query(n: int) -> int:
        with crowd:
            time.sleep(0.01)
        return n

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4))
    def many() -> int:
        with tags("db"):
            futures = query.map(list(range(5)))
        wait(futures)
        return sum(f.result() for f in futures) + query(5)

    assert await asyncio.to_thread(many) == 10 + 5
    assert (crowd.most, crowd.came) == (1, 6)
    assert await bus.bucket("leases").keys("slot.") == []


async def test_a_sync_flow_in_the_workers_own_loop_waits_by_a_session_of_its_own(
    session: Session, bus: Bus
) -> None:
    """Code that holds the loop of its session neither deadlocks nor leaves slots behind."""
    await put_limit(bus, "tag:db", Limit(slots=1))

    @task(tags=["db"])
    def query() -> int:
        return 1

    @flow
    def inner() -> int:
        return query() + query()

    @flow
    async def outer() -> int:
        return inner()

    assert await outer() == 2
    assert await bus.bucket("leases").keys("slot.") == []


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_limit_of_zero_fails_the_task_at_once(session: Session, bus: Bus, retries: int) -> None:
    """It is not waited for, and not tried again; the function never runs."""
    await put_limit(bus, "tag:db", Limit(slots=0))

    @task(tags=["db"], retries=retries)
    async def query() -> None:
        raise AssertionError("it ran")

    @flow
    async def one() -> None:
        await query()

    state = await one(return_state=True)
    assert state.is_failed()
    assert "the limit of tag 'db' is 0" in str(state.message)
    words = await words_of_tasks(bus)
    assert words == ["pending", "failed"]


async def test_slots_are_held_for_a_try_not_for_the_wait_between_tries(session: Session, bus: Bus) -> None:
    """A failing task lets others in while it waits for its next try."""
    await put_limit(bus, "tag:db", Limit(slots=1))
    order: list[str] = []

    @task(tags=["db"], retries=1, retry_delay_seconds=0.3)
    async def shaky() -> None:
        order.append("shaky")
        if order.count("shaky") == 1:
            raise OSError("once")

    @task(tags=["db"])
    async def steady() -> None:
        order.append("steady")

    @flow
    async def both() -> None:
        await asyncio.gather(shaky(), steady())

    await both()
    assert order == ["shaky", "steady", "shaky"]


async def test_generator_tasks_hold_a_slot_from_the_first_value_to_the_last(
    session: Session, bus: Bus
) -> None:
    """Also when nobody reads them to their end."""
    await put_limit(bus, "tag:db", Limit(slots=1))

    @task(tags=["db"])
    async def numbers() -> AsyncIterator[int]:
        for n in range(3):
            assert len(await bus.bucket("leases").keys("slot.")) == 1
            yield n

    @task(tags=["db"])
    def letters() -> Iterator[str]:
        yield from "abc"

    @flow
    async def reads() -> list[int]:
        first = [n async for n in numbers()]
        async for _ in numbers():
            break
        return first

    assert await reads() == [0, 1, 2]

    @flow
    async def wraps() -> list[str]:
        return await asyncio.to_thread(lambda: list(letters()))

    assert await wraps() == ["a", "b", "c"]


async def test_a_rate_of_a_tag_spreads_its_tasks(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the burst, one each time the rate allows."""
    await put_limit(bus, "tag:api", Limit.model_validate({"rate": "2/s"}))
    # All ask at one moment, however long asking takes.
    asked_at = time.time()
    monkeypatch.setattr(slots, "time", SimpleNamespace(time=lambda: asked_at, monotonic=time.monotonic))

    @task(tags=["api"])
    async def ask() -> float:
        return time.monotonic()

    @flow
    async def three() -> list[float]:
        return await asyncio.gather(*(ask() for _ in range(3)))

    began = time.monotonic()
    assert max(await three()) - began > 0.4
    assert (await words_of_tasks(bus)).count("awaiting-concurrency-slot") == 1


async def test_a_limit_that_is_made_later_holds_from_then_on(session: Session, bus: Bus) -> None:
    """It is heard of, not asked for: no call of a task with a tag costs a question."""
    crowd, together = Crowd(), asyncio.Barrier(4)

    @task(tags=["db"])
    async def query() -> None:
        with crowd:
            if not limited:
                await together.wait()
            await asyncio.sleep(0.005)

    @flow
    async def many() -> None:
        await asyncio.gather(*(query() for _ in range(4)))

    limited = False
    await many()
    assert crowd.most == 4
    limited = True
    await put_limit(bus, "tag:db", Limit(slots=1))
    for _ in range(500):
        crowd.most = 0
        await many()
        if crowd.most == 1:
            return
    pytest.fail("the limit was never heard of")
