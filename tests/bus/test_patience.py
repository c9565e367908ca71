"""Readers that let records come together: in order, none left out, at once when somebody wants to know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.arrival import DirectClient
from hark.bus.event import Recorded
from hark.bus.feed import Batch
from hark.bus.patience import Patience
from hark.config import BusConfig

FOR_EVER_S = 3600.0


async def store(bus: Bus, *types: str) -> None:
    await bus.log.append_many([Event(type=type_, source="/test") for type_ in types])


async def following(batches: AsyncIterator[Batch], seen: list[list[str]], until: int) -> None:
    """Note the types of each batch until ``until`` records have come."""
    async for batch in batches:
        if batch.records:
            seen.append([record.event.type for record in batch.records])
        if sum(map(len, seen)) >= until:
            return


async def heard(bus: Bus, *, nothing_of: asyncio.Task[None]) -> None:
    """Return when another reader has had all there is, and turns of the loop since: the one in question had the chance."""
    async with bus.log.read() as batches:
        async for _ in batches:
            pass
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    assert not nothing_of.done()


async def test_what_comes_after_a_silence_comes_at_once_and_the_next_together(bus: Bus) -> None:
    seen: list[list[str]] = []
    patience = Patience(FOR_EVER_S)
    async with bus.log.follow(patience=patience) as batches:
        reading = asyncio.create_task(following(batches, seen, 5))
        await store(bus, "a")
        with anyio.fail_after(60):
            while not seen:
                await heard(bus, nothing_of=reading)
        await store(bus, "b")
        await store(bus, "c", "d")
        await heard(bus, nothing_of=reading)
        assert seen == [["a"]]
        await store(bus, "e")
        with anyio.fail_after(60):
            while not reading.done():
                patience.hurry()
                await anyio.lowlevel.checkpoint()
    assert [type_ for batch in seen for type_ in batch] == ["a", "b", "c", "d", "e"]


async def test_what_presses_comes_at_once_with_all_before_it(bus: Bus) -> None:
    seen: list[list[str]] = []

    def presses(record: Recorded) -> bool:
        return record.subject.endswith(".urgent")

    async with bus.log.follow(patience=Patience(FOR_EVER_S, unless=presses)) as batches:
        reading = asyncio.create_task(following(batches, seen, 4))
        await store(bus, "a")
        with anyio.fail_after(60):
            while not seen:
                await heard(bus, nothing_of=reading)
        await store(bus, "b", "c")
        await heard(bus, nothing_of=reading)
        await store(bus, "urgent")
        with anyio.fail_after(60):
            await reading
    assert seen == [["a"], ["b", "c", "urgent"]]


async def test_much_does_not_wait_and_what_was_there_before_neither(bus: Bus) -> None:
    """A reader that has to catch up is handed all of it, and a full batch is not kept."""
    await store(bus, *["old"] * 25)
    seen: list[list[str]] = []
    async with bus.log.follow(after=0, batch=10, patience=Patience(FOR_EVER_S)) as batches:
        with anyio.fail_after(60):
            await following(batches, seen, 25)
            reading = asyncio.create_task(following(batches, seen, 45))
            await store(bus, *["new"] * 25)
            await reading
    assert sum(map(len, seen)) >= 45
    assert max(map(len, seen)) <= 10


async def test_the_time_that_records_wait_ends_by_itself(bus: Bus) -> None:
    seen: list[list[str]] = []
    async with bus.log.follow(patience=Patience(0.005)) as batches:
        reading = asyncio.create_task(following(batches, seen, 3))
        with anyio.fail_after(60):
            for type_ in ("a", "b", "c"):
                await store(bus, type_)
            await reading
    assert [type_ for batch in seen for type_ in batch] == ["a", "b", "c"]


async def test_one_that_shares_with_others_waits_for_itself(bus: Bus) -> None:
    """Whoever's consumer feeds them: the patient one gathers, the other is told at once."""
    patient: list[list[str]] = []
    quick: list[list[str]] = []
    patience = Patience(FOR_EVER_S)
    async with bus.log.follow() as one, bus.log.follow(patience=patience) as other:
        reading = asyncio.create_task(following(other, patient, 31))
        with anyio.fail_after(60):
            for n in range(30):
                await store(bus, f"e{n}")
                await following(one, quick, n + 1)
                if n < 10:
                    patience.hurry()
            await heard(bus, nothing_of=reading)
            assert sum(map(len, patient)) < 30
            await store(bus, "last")
            patience.hurry()
            while not reading.done():
                patience.hurry()
                await anyio.lowlevel.checkpoint()
    assert [type_ for batch in patient for type_ in batch] == [*(f"e{n}" for n in range(30)), "last"]


async def test_a_connection_that_reads_now_and_then_reads_all(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, whether little comes or much; and the broker's answers on it are heard."""
    reading_apart = Bus(broker.address, BusConfig(), reads_apart=True, lull_s=0.005)
    patience = Patience(0.01)
    async with reading_apart as bus, bus.log.follow(patience=patience) as batches:
        seqs: list[int] = []
        with anyio.fail_after(60):
            for count in (1, 3, 2000, 1):
                await store(bus, *["x"] * count)
                patience.hurry()
            while len(seqs) < 2005:
                seqs += [record.seq for record in (await anext(batches)).records]
        async with bus.log.read() as again:
            whole = [record.seq async for batch in again for record in batch.records]
        assert seqs == whole
        client, lulls = bus.log._reading.nc, list[int]()
        assert isinstance(client, DirectClient)
        lull = client.lull

        async def counted() -> None:
            lulls.append(len(seqs))
            await lull()

        monkeypatch.setattr(client, "lull", counted)
        few = bus.log.follow(after=0, batch=3, most_waiting=16, patience=Patience(0.01))
        with anyio.fail_after(60):
            async with few as batches:
                while len(seqs) < 2 * len(whole):
                    seqs += [record.seq for record in (await anext(batches)).records]
    assert seqs == 2 * whole
    assert len(lulls) < len(whole) / 100, "few are under way at once, and the rest waits on the broker"
