"""Live feeds that stand at the same place share one consumer, and nobody notices."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from hark.bus import Bus, Event, feed
from hark.bus.feed import Batch

Kill = Callable[[], Awaitable[None]]


async def store(bus: Bus, count: int, *, size: int = 10) -> None:
    await bus.log.append_many(
        [Event(type="order.paid", source="/test", data="x" * size) for _ in range(count)]
    )


async def take(batches: AsyncIterator[Batch], count: int) -> list[int]:
    """Return the sequences of the next ``count`` records."""
    seen: list[int] = []
    with anyio.fail_after(60):
        while len(seen) < count:
            seen += [record.seq for record in (await anext(batches)).records]
    return seen


async def consumers(bus: Bus) -> int:
    return int(str((await bus.connection.api("CONSUMER.NAMES.HARK"))["total"]))


async def joined(bus: Bus, one: AsyncIterator[Batch], other: AsyncIterator[Batch], *, others: int = 0) -> int:
    """Go on with two readers, event by event, until one consumer serves both; return the last event's sequence.

    ``others``: consumers there are beside it.
    """
    with anyio.fail_after(60):
        while True:
            await store(bus, 1)
            last = (await take(one, 1))[0]
            assert await take(other, 1) == [last]
            if await consumers(bus) == 1 + others:
                return last


async def test_readers_at_the_same_place_cost_the_broker_one_consumer(bus: Bus) -> None:
    """However many parts of a process follow the log, each event is sent and read once; one that stays goes on."""
    async with bus.log.follow() as first:
        async with bus.log.follow() as second, bus.log.follow(["hark.ev.other.>"]):
            assert await consumers(bus) == 3
            last = await joined(bus, first, second, others=1)
            await store(bus, 100)
            assert await take(second, 100) == list(range(last + 1, last + 101))
            assert await take(first, 100) == list(range(last + 1, last + 101))
        await store(bus, 10)
        assert await take(first, 10) == list(range(last + 101, last + 111))


async def test_who_is_behind_holds_up_nobody(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two has the consumer: the quick one has everything at once, the slow one later.

    Also where the broker sends no more than a few that wait.
    """
    monkeypatch.setattr(feed, "SHARED_RECORDS", 50)
    for slow_first, most in ((True, None), (False, None), (True, 16), (False, 16)):
        async with bus.log.follow(most_waiting=most) as one, bus.log.follow(most_waiting=most) as other:
            await store(bus, 1)
            last = (await take(one, 1))[0]
            assert await take(other, 1) == [last]
            quick, slow = (other, one) if slow_first else (one, other)
            for begin in range(last + 1, last + 501, 100):
                await store(bus, 100)
                assert await take(quick, 100) == list(range(begin, begin + 100))
            assert await take(slow, 500) == list(range(last + 1, last + 501))
            await store(bus, 1)
            assert await take(slow, 1) == await take(quick, 1) == [last + 501]


async def test_what_waits_for_a_slow_one_is_bounded_in_bytes(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few large events count as much as many small ones."""
    monkeypatch.setattr(feed, "SHARED_BYTES", 100_000)
    async with bus.log.follow() as quick, bus.log.follow() as slow:
        last = await joined(bus, quick, slow)
        await store(bus, 20, size=20_000)
        assert await take(quick, 20) == list(range(last + 1, last + 21))
        assert await take(slow, 20) == list(range(last + 1, last + 21))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_readers_do_each_sees_everything_once_and_in_order(
    bus: Bus, kill: Kill, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Readers come at any place, dawdle, are cancelled while they wait, and leave; the broker is killed meanwhile."""
    chance = random.Random(seed)
    monkeypatch.setattr(feed, "SHARED_RECORDS", 30)
    monkeypatch.setattr(feed, "SILENCE_S", 600)  # nothing here may need it
    total = 600

    async def read(after: int) -> None:
        wanted = after + chance.randint(1, total - after)
        seen: list[int] = []
        async with bus.log.follow(after=after, batch=chance.randint(1, 40)) as batches:
            while not seen or seen[-1] < wanted:
                with anyio.move_on_after(chance.choice([0, 0.001, 20])):
                    seen += [record.seq for record in (await anext(batches)).records]
                if chance.random() < 0.1:
                    await anyio.sleep(0.02)
        assert seen == list(range(after + 1, seen[-1] + 1))

    async def write() -> None:
        for part in range(30):
            await store(bus, total // 30)
            if part == 15:
                await kill()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            tg.start_soon(write)
            for _ in range(12):
                head = await bus.log.head()
                tg.start_soon(read, chance.choice([0, head // 2, head]) if head < total else 0)
                await anyio.sleep(chance.random() * 0.05)
