"""Looking back in the log: many at once cost one reading, and each is told right."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import pytest
from hark.bus import Bus, Event
from hark.bus.event import Recorded
from hark.bus.feed import Batch
from hark.bus.look_back import LookBack
from hark.errors import BusUnavailable

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Log:
    """A log of ids, whose readings wait until they are let go, and are counted."""

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)
        self.begins: list[int | datetime] = []
        self.going = anyio.Event()
        self.away = False

    @asynccontextmanager
    async def read(
        self, filters: Sequence[str], *, after: int = 0, since: datetime | None = None
    ) -> AsyncGenerator[AsyncIterator[Batch]]:
        self.begins.append(since or after)
        there = list(enumerate(self.ids, 1))[after:]
        await self.going.wait()
        if self.away:
            raise BusUnavailable("the broker is away")

        async def batches() -> AsyncIterator[Batch]:
            for seq, id_ in there:
                yield Batch([Recorded(seq, filters[0], NOW, b"{}", {"Nats-Msg-Id": id_})], len(there) - seq)

        yield batches()


async def test_many_who_look_at_once_share_a_reading() -> None:
    """One begins; all who come meanwhile are served by the next, from the earliest place any of them asks for."""
    log = Log("a", "b", "c")
    look, found = LookBack(log.read), dict[str, int | None]()

    async def find(id_: str, begin: int) -> None:
        found[id_] = await look.find("hark.ev.x", id_, begin)

    async with anyio.create_task_group() as tg:
        tg.start_soon(find, "a", 0)
        await anyio.wait_all_tasks_blocked()
        log.ids.append("d")  # stored while the first reading goes on: who asks from here on has to see it
        for id_, begin in (("d", 3), ("b", 1), ("none", 2)):
            tg.start_soon(find, id_, begin)
        await anyio.wait_all_tasks_blocked()
        log.going.set()
    assert found == {"a": 1, "b": 2, "d": 4, "none": None}
    assert log.begins == [0, 1]


async def test_who_is_cancelled_leaves_the_others_their_answer() -> None:
    """The one that reads is cancelled: the next reads for all that wait."""
    log = Log("a", "b")
    look, found = LookBack(log.read), dict[str, int | None]()

    async def find(id_: str) -> None:
        found[id_] = await look.find("hark.ev.x", id_, NOW)

    async with anyio.create_task_group() as tg:
        async with anyio.create_task_group() as first:
            first.start_soon(find, "a")
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(find, "b")
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        log.going.set()
    assert found == {"b": 2}
    assert log.begins == [NOW, NOW]


async def test_when_the_log_is_away_all_hear_of_it_at_once() -> None:
    """Nobody waits for the outage behind everybody else; who asks again later is served."""
    log = Log("a")
    log.away = True
    look, errors = LookBack(log.read), list[str]()

    async def find(id_: str) -> None:
        with pytest.raises(BusUnavailable, match="away"):
            await look.find("hark.ev.x", id_, 0)
        errors.append(id_)

    async with anyio.create_task_group() as tg:
        for n in range(5):
            tg.start_soon(find, f"x{n}")
        await anyio.wait_all_tasks_blocked()
        log.going.set()
    assert len(errors) == 5
    assert len(log.begins) <= 2
    log.away = False
    assert await look.find("hark.ev.x", "a", 0) == 1


async def test_a_storm_of_looks_ends_and_stores_nothing_twice(bus: Bus) -> None:
    """Hundreds ask at once whether their event was stored, as after an outage: none is, again."""
    events = [Event(type="order.paid", source="/t", id=f"{n}", data="x" * 300) for n in range(300)]
    await bus.log.append_many(events)
    places = list[tuple[int, bool]]()

    async def once(event: Event) -> None:
        appended = await bus.log.append_once(event, after=0)
        places.append((appended.seq, appended.duplicate))

    async with anyio.create_task_group() as tg:
        for event in events:
            tg.start_soon(once, event)
    assert sorted(places) == [(n, True) for n in range(1, 301)]
    assert await bus.log.head() == 300
