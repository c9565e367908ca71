"""The publisher: thread-safe, bounded, in order, and stored once whatever happens to the broker."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.arrival import Arrival, subscribe
from hark.bus.connection import Connection
from hark.bus.event import Recorded
from hark.bus.owner import Owner
from hark.bus.publisher import Publisher
from hark.bus.wire import message_id
from hark.config import BusConfig
from hark.errors import BufferFull, BusUnavailable, EventRefused, EventTooLarge
from hypothesis import given
from hypothesis import strategies as st

Everything = Callable[[], Awaitable[list[Recorded]]]
Kill = Callable[[], Awaitable[None]]
Frozen = Callable[[], AbstractContextManager[None]]

MODES = pytest.mark.parametrize("fast", [True, False], ids=["fast-ingest", "plain"])


@pytest.fixture
async def connection(bus: Bus, broker: EmbeddedBroker, bus_config: BusConfig) -> AsyncIterator[Connection]:
    async with Connection(broker.address, bus_config, name="publisher") as connected:
        yield connected


async def numbers_in(bus: Bus) -> list[int]:
    async with bus.log.read() as batches:
        return [int(record.raw) async for batch in batches for record in batch.records]


@MODES
async def test_a_burst_is_stored_in_order(bus: Bus, connection: Connection, fast: bool) -> None:
    """What was given before a barrier is stored behind it: all, once, in the order given."""
    async with Publisher(connection, BusConfig(), fast=fast) as publisher:
        for n in range(10_000):
            publisher.publish_raw_nowait("hark.ev.burst", b"%d" % n, str(n))
        assert publisher.waiting == 10_000
        await publisher.barrier()
        assert publisher.waiting == 0
        assert await bus.log.head() == 10_000
        await publisher.barrier()
    assert await numbers_in(bus) == list(range(10_000))


@MODES
async def test_a_trickle_of_bursts_keeps_its_order(bus: Bus, connection: Connection, fast: bool) -> None:
    """Few, many, few: going over from plain publishes to batches and back does not change the order."""
    sizes = [1, 3, 200, 1, 60, 0, 5, 2500, 1, 1, 48, 47, 49]
    async with Publisher(connection, BusConfig(), fast=fast) as publisher:
        n = 0
        for turn, size in enumerate(sizes * 3):
            for _ in range(size):
                publisher.publish_raw_nowait("hark.ev.trickle", b"%d" % n, str(n))
                n += 1
            if turn % 4 == 3:
                await publisher.barrier()
            else:
                await anyio.sleep(0.004 * (turn % 3))
    assert await numbers_in(bus) == list(range(n))


@MODES
async def test_events_are_stored_as_append_stores_them(
    bus: Bus, connection: Connection, fast: bool, everything: Everything
) -> None:
    """Same subject, same bytes, same id, same headers: the two ways into the log cannot be told apart."""
    event = Event(
        type="task-run.completed",
        source="/hark/engine",
        subject="task-run/t1",
        data={"flow_run": {"id": "r1"}},
    )
    async with Publisher(connection, BusConfig(), fast=fast) as publisher:
        for n in range(100):
            await publisher.publish(event.replace(id=str(n)))
        publisher.publish_nowait(event.replace(id="5"))
        await publisher.barrier()
    assert (await bus.log.append(event.replace(id="99"))).duplicate
    await bus.log.append(event.replace(id="new"))
    records = await everything()
    assert len(records) == 101
    assert {record.subject for record in records} == {"hark.ev.task-run.r1"}
    assert {record.headers["Hark-State"] for record in records} == {"completed"}
    assert [record.event.id for record in records] == [*map(str, range(100)), "new"]


async def test_it_uses_batches_only_where_they_pay(bus: Bus, connection: Connection) -> None:
    """A few events go out as plain publishes; a burst opens one batch, which is ended behind it."""
    async with Publisher(connection, BusConfig()) as publisher:
        lane = publisher._lanes[0]
        sent: list[bytes] = []
        assert lane._wire is not None
        write = lane._wire.send_parts
        lane._wire.send_parts = lambda parts: (sent.extend(parts), write(parts))[1]  # type: ignore
        for n in range(5):
            publisher.publish_raw_nowait("hark.ev.few", b"%d" % n, str(n))
        await publisher.barrier()
        assert not any(b".$FI" in part for part in sent)
        for n in range(3000):
            publisher.publish_raw_nowait("hark.ev.many", b"%d" % n, f"m{n}")
        await publisher.barrier()
        assert sum(b".$FI" in part for part in sent) == 3000
        with anyio.fail_after(60):
            while lane._batches:  # what was sent is stored; the answer to the end comes behind that
                await connection.flush()


async def test_four_threads_may_give_at_once(
    bus: Bus, connection: Connection, everything: Everything
) -> None:
    """``publish_nowait`` is safe from any thread: nothing is lost and each thread's order is kept."""
    config = BusConfig(publish_buffer=2000)
    async with Publisher(connection, config) as publisher:

        def give(thread: int) -> None:
            n = 0
            while n < 5000:
                try:
                    publisher.publish_raw_nowait(f"hark.ev.t{thread}", b"%d" % n, f"{thread}/{n}")
                    n += 1
                except BufferFull:
                    room.wait(0.001)

        room = threading.Event()
        async with anyio.create_task_group() as tg:
            for thread in range(4):
                tg.start_soon(anyio.to_thread.run_sync, give, thread)
        await publisher.barrier()
    records = await everything()
    assert len(records) == 20_000
    for thread in range(4):
        mine = [int(record.raw) for record in records if record.subject == f"hark.ev.t{thread}"]
        assert mine == list(range(5000))


async def test_the_buffer_is_bounded(bus: Bus, connection: Connection, frozen: Frozen) -> None:
    """At the bound ``publish_nowait`` refuses and ``publish`` waits; room wakes the waiter."""
    async with Publisher(connection, BusConfig(publish_buffer=100)) as publisher:
        with frozen():
            for n in range(100):
                publisher.publish_raw_nowait("hark.ev.full", b"%d" % n, str(n))
            with pytest.raises(BufferFull) as caught:
                publisher.publish_raw_nowait("hark.ev.full", b"100", "100")
            assert caught.value.size == 100
            waiting = asyncio.ensure_future(publisher.publish_raw("hark.ev.full", b"100", "100"))
            dropped = asyncio.ensure_future(publisher.publish_raw("hark.ev.full", b"101", "101"))
            await anyio.wait_all_tasks_blocked()
            assert not waiting.done()
            dropped.cancel()
        await waiting
        await publisher.barrier()
    assert await numbers_in(bus) == list(range(101))


async def test_large_events_are_bounded_by_bytes(bus: Bus, connection: Connection, frozen: Frozen) -> None:
    """Ten thousand megabyte events do not fit into a memory; the bound is in bytes too."""
    payload = b"x" * 1_000_000
    async with Publisher(connection, BusConfig()) as publisher:
        with frozen():

            def give(first: int, end: int) -> None:
                for n in range(first, end):
                    publisher.publish_raw_nowait("hark.ev.large", payload, str(n))

            give(0, 50)
            with pytest.raises(BufferFull):
                give(50, 100)
        given = publisher.waiting
        assert 50 < given < 70
        await publisher.barrier()
    assert await bus.log.head() == given


@MODES
async def test_a_poison_message_does_not_block_the_others(
    bus: Bus, connection: Connection, fast: bool
) -> None:
    """What the broker refuses for good is named at the barrier, once; everything else is stored."""
    info = await bus.connection.api("STREAM.INFO.HARK")
    assert isinstance(info["config"], dict)
    await bus.connection.api("STREAM.UPDATE.HARK", {**info["config"], "max_msg_size": 1000})
    async with Publisher(connection, BusConfig(), fast=fast) as publisher:
        for n in range(2000):
            publisher.publish_raw_nowait("hark.ev.fine", b"%d" % n, str(n))
            if n in (0, 700, 1999):
                publisher.publish_raw_nowait("hark.ev.poison", b"9" * 2000, f"poison{n}")
        with pytest.raises(EventTooLarge) as caught:
            await publisher.barrier()
        assert "2 more" in "".join(caught.value.__notes__)
        await publisher.barrier()
        assert publisher.waiting == 0
    assert sorted(await numbers_in(bus)) == list(range(2000))


async def test_a_subject_nobody_stores_is_refused_to_the_barrier_that_waits(connection: Connection) -> None:
    """A stray subject is tried again (a stream may be coming up) and does not hold the events up."""
    async with Publisher(connection, BusConfig(), drain_s=0.2) as publisher:
        publisher.publish_raw_nowait("elsewhere.x", b"", "1")
        publisher.publish_raw_nowait("hark.ev.fine", b"1", "2")
        with pytest.raises(BusUnavailable):
            await publisher.barrier(timeout_s=0.3)
        with anyio.fail_after(60):
            await publisher.room(1)
        assert publisher.waiting == 1


async def test_too_large_is_told_to_the_caller_at_once(connection: Connection) -> None:
    """The sizes are known before anything is sent, so the caller hears of it and not the barrier."""
    async with Publisher(connection, BusConfig()) as publisher:
        with pytest.raises(EventTooLarge):
            publisher.publish_raw_nowait("hark.ev.big", b"x" * connection.max_payload, "1")
        await publisher.barrier()


async def test_a_guard_that_fails_is_a_refusal(connection: Connection) -> None:
    """Headers travel; a refusal by them does not stop the batch for good."""
    async with Publisher(connection, BusConfig()) as publisher:
        for n in range(200):
            headers = {"Nats-Expected-Last-Subject-Sequence": "77"} if n == 100 else None
            publisher.publish_raw_nowait("hark.ev.guarded", b"%d" % n, str(n), headers)
        with pytest.raises(EventRefused, match="wrong last sequence"):
            await publisher.barrier()
        assert publisher.waiting == 0


@MODES
async def test_acknowledged_events_survive_kills_of_the_broker(
    bus: Bus, connection: Connection, fast: bool, kill: Kill
) -> None:
    """Killed with -9 three times under load: every event is there exactly once, and a reader sees no gap."""
    total, seen = 30_000, list[int]()

    async def give(publisher: Publisher) -> None:
        for n in range(total):
            await publisher.publish_raw("hark.ev.load", b"%d" % n, str(n))
            if n % 50 == 0:
                await anyio.lowlevel.checkpoint()
        await publisher.barrier()

    with anyio.fail_after(60):
        async with (
            Publisher(connection, BusConfig(publish_buffer=1000), fast=fast) as publisher,
            bus.log.follow(after=0) as batches,
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(give, publisher)
            kills = 0
            async for batch in batches:
                assert [r.seq for r in batch.records] == [
                    len(seen) + 1 + i for i in range(len(batch.records))
                ]
                seen += [int(record.raw) for record in batch.records]
                if len(seen) > (kills + 1) * 7000 and kills < 3:
                    kills += 1
                    await kill()
                if len(seen) >= total:
                    break
    assert len(seen) == total
    assert seen == list(range(total))


async def test_what_was_given_before_entering_is_stored(bus: Bus, connection: Connection) -> None:
    """Constructing touches nothing; giving before entering is taken up on entering, and leaving waits for it."""
    publisher = Publisher(connection, BusConfig())
    publisher.publish_raw_nowait("hark.ev.early", b"1", "1")
    async with publisher:
        pass
    assert await numbers_in(bus) == [1]
    with pytest.raises(BusUnavailable, match="closed"):
        publisher.publish_raw_nowait("hark.ev.late", b"2", "2")


async def test_leaving_is_bounded_and_says_what_was_lost(
    broker: EmbeddedBroker, connection: Connection, caplog: pytest.LogCaptureFixture, frozen: Frozen
) -> None:
    """A broker that does not come back does not hold up the end of the process for ever."""
    with anyio.fail_after(60), frozen():
        async with Publisher(connection, BusConfig(), drain_s=0.1) as publisher:
            publisher.publish_raw_nowait("hark.ev.lost", b"1", "1")
            waiting = asyncio.ensure_future(publisher.barrier())
            await anyio.wait_all_tasks_blocked()
    assert "bus.events-lost" in caplog.text
    with pytest.raises(BusUnavailable):
        await waiting


async def test_an_idle_publisher_has_no_timers(bus: Bus, connection: Connection) -> None:
    """Idle costs nothing: no task, no timer."""
    async with Publisher(connection, BusConfig()) as publisher:
        for n in range(500):
            publisher.publish_raw_nowait("hark.ev.idle", b"%d" % n, str(n))
        await publisher.barrier()
        for lane in publisher._lanes:
            assert lane._linger is None or not lane._open
            assert lane._retry is None
            assert lane.unacked == 0


@given(a=st.text(max_size=300), b=st.text(max_size=300))
def test_message_ids_can_stand_in_headers_and_stay_apart(a: str, b: str) -> None:
    """Whatever the id holds, its header is printable ASCII, and different ids stay different."""
    assert message_id(a).isascii()
    assert message_id(a).isprintable() or not a
    assert " " not in message_id(a)
    assert len(message_id(a)) <= 256
    assert (message_id(a) == message_id(b)) == (a == b)


async def test_a_stream_without_fast_ingest_is_served_plainly(bus: Bus, connection: Connection) -> None:
    """An older broker, or a stream set up by hand: noticed at the first batch, and nothing is lost or turned round."""
    info = await bus.connection.api("STREAM.INFO.HARK")
    assert isinstance(info["config"], dict)
    await bus.connection.api("STREAM.UPDATE.HARK", {**info["config"], "allow_batched": False})
    async with Publisher(connection, BusConfig(), fast=True) as publisher:
        for n in range(3000):
            publisher.publish_raw_nowait("hark.ev.plain", b"%d" % n, str(n))
        await publisher.barrier()
        assert not publisher._lanes[0]._fast
    assert await numbers_in(bus) == list(range(3000))


async def test_where_no_more_batches_are_taken_events_go_out_plainly(
    bus: Bus, connection: Connection
) -> None:
    """A stream takes 1 000 open batches; the publisher of the next process does without."""
    inbox, answers = connection.nc.new_inbox(), set[str]()
    opened = asyncio.Event()

    def on_answer(answer: Arrival) -> None:
        answers.add(answer.subject)
        if len(answers) == 1001:
            opened.set()

    await subscribe(connection.nc, f"{inbox}.>", on_answer)
    for n in range(1001):
        await connection.nc.publish("hark.ev.other", b"-1", reply=f"{inbox}.{n}.1.fail.1.0.$FI")
    with anyio.fail_after(60):
        await opened.wait()
    async with Publisher(connection, BusConfig()) as publisher:
        for n in range(3000):
            publisher.publish_raw_nowait("hark.ev.plain", b"%d" % n, str(n))
        await publisher.barrier()
        lane = publisher._lanes[0]
        assert lane._fast
        assert lane._fast_from > 0
    assert [n for n in await numbers_in(bus) if n >= 0] == list(range(3000))


async def test_publishers_of_several_processes_do_not_mix(bus: Bus, broker: EmbeddedBroker) -> None:
    """The broker tells batches apart by name alone; no two publishers may ever use the same one."""
    total = 4000
    names = set[str]()

    async def give(who: int) -> None:
        async with (
            Connection(broker.address, BusConfig(), name=f"p{who}") as connection,
            Publisher(connection, BusConfig()) as publisher,
        ):
            for n in range(total):
                await publisher.publish_raw(f"hark.ev.p{who}", b"%d" % n, f"{who}/{n}")
                if n % 500 == 0:
                    await publisher.barrier()
            assert publisher._lanes[0]._fast
            assert not publisher._lanes[0]._plain_left
            names.update(lane._name for lane in publisher._lanes)

    async with anyio.create_task_group() as tg:
        for who in range(4):
            tg.start_soon(give, who)
    assert len(names) == 12
    async with bus.log.read() as batches:
        records = [record async for batch in batches for record in batch.records]
    for who in range(4):
        mine = [int(record.raw) for record in records if record.subject == f"hark.ev.p{who}"]
        assert mine == list(range(total))


@MODES
async def test_a_refusal_is_told_to_the_owner_of_what_was_refused(
    bus: Bus, connection: Connection, fast: bool
) -> None:
    """Whose barrier comes first does not matter; however many were refused, the first and their number are kept."""
    info = await bus.connection.api("STREAM.INFO.HARK")
    assert isinstance(info["config"], dict)
    await bus.connection.api("STREAM.UPDATE.HARK", {**info["config"], "max_msg_size": 1000})
    guilty, innocent = Owner(), Owner()
    async with Publisher(connection, BusConfig(), fast=fast) as publisher:
        for n in range(150):
            publisher.publish_raw_nowait("hark.ev.poison", b"9" * 2000, f"poison{n}", None, guilty)
            publisher.publish_raw_nowait("hark.ev.fine", b"%d" % n, str(n), None, innocent)
        await publisher.barrier(owner=innocent)
        await publisher.barrier()
        with pytest.raises(EventTooLarge) as caught:
            await publisher.barrier(owner=guilty)
        assert "149 more" in "".join(caught.value.__notes__)
        await publisher.barrier(owner=guilty)
    assert sorted(await numbers_in(bus)) == list(range(150))


async def test_room_is_made_down_to_what_is_asked_for(connection: Connection) -> None:
    """Who waits for room is woken when few enough are waiting, without looking again and again."""
    async with Publisher(connection, BusConfig()) as publisher:
        for n in range(500):
            publisher.publish_raw_nowait("hark.ev.many", b"%d" % n, str(n))
        assert publisher.waiting == 500
        with anyio.fail_after(60):
            await publisher.room(50)
        assert publisher.waiting <= 50


async def test_a_loop_that_stood_still_has_not_been_left_without_answers(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the broker said meanwhile lies in the socket: it is read before anything is sent again."""
    monkeypatch.setattr("hark.bus.lane.SILENCE_S", 0.05)
    monkeypatch.setattr("hark.bus.lane.LATE_S", 0.02)
    async with Publisher(connection, BusConfig()) as publisher:
        publisher.publish_raw_nowait("hark.ev.late", b"1", "1")
        while not any(lane.unacked for lane in publisher._lanes):
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()  # written
        transport: Any = connection.nc._transport
        socket = transport._io_writer.get_extra_info("socket")
        until = time.monotonic() + 0.2
        while not select.select([socket], [], [], 10)[0] or time.monotonic() < until:
            pass
        await publisher.barrier()
    assert "bus.publish-silent" not in caplog.text
