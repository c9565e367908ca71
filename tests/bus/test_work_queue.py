"""Work is handed to one worker at a time, earlier queues first, and again when its worker is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.work_queue import WorkConsumer, WorkItem, work_subject
from hark.config import BusConfig
from hark.errors import BusUnavailable, EventTooLarge

Kill = Callable[[], Awaitable[None]]
Frozen = Callable[[], AbstractContextManager[None]]


async def push(bus: Bus, *names: str, queue: str = "default", pool: str = "pool") -> None:
    for name in names:
        await bus.work.push(pool, queue, name.encode(), msg_id=name)


async def take(consumer: WorkConsumer) -> WorkItem:
    with anyio.fail_after(60):
        return await anext(consumer)


async def test_work_pushed_twice_is_done_once(bus: Bus) -> None:
    """The message id is the key of the work; the item knows where it came from."""
    await push(bus, "one", pool="my.pool", queue="a b")
    assert not await bus.work.push("my.pool", "a b", b"one", msg_id="one")
    async with bus.work.consume("my.pool", ["a b"]) as consumer:
        item = await take(consumer)
        assert (item.payload, item.pool, item.queue, item.deliveries) == (b"one", "my.pool", "a b", 1)
        await item.ack()
        await item.ack()
        with anyio.move_on_after(0.05) as scope:
            await anext(consumer)
        assert scope.cancelled_caught


async def test_names_with_dots_do_not_meet(bus: Bus) -> None:
    """A dot in a name is no word boundary: pools and queues stay apart."""
    assert work_subject("a.b", "c") != work_subject("a", "b.c")
    await push(bus, "x", pool="a.b", queue="c")
    async with bus.work.consume("a", ["b.c"]) as wrong, bus.work.consume("a.b", ["c"]) as right:
        assert (await take(right)).payload == b"x"
        assert not wrong._ready


async def test_earlier_queues_go_first(bus: Bus) -> None:
    """With one place, everything of an earlier queue comes before anything of a later one."""
    await push(bus, "l1", "l2", queue="low")
    await push(bus, "h1", "h2", queue="high")
    await push(bus, "m1", queue="middle")
    got = []
    async with bus.work.consume("pool", ["high", "middle", "low"]) as consumer:
        for number in range(6):
            item = await take(consumer)
            got.append(item.payload.decode())
            if number == 3:
                await push(bus, "h3", queue="high")
            await item.ack()
    # m1 and one of low are before h3 only because they were in hand when it came
    assert got in (["h1", "h2", "m1", "l1", "h3", "l2"], ["h1", "h2", "m1", "l1", "l2", "h3"])
    assert got[4] == "h3"


async def test_a_waiting_worker_is_woken_by_any_queue(bus: Bus) -> None:
    """Nothing polls, and no queue is forgotten while waiting."""
    async with bus.work.consume("pool", ["high", "middle", "low"], max_pending=2) as consumer:
        for round_ in range(3):
            for queue in ("low", "high", "middle"):
                await anyio.wait_all_tasks_blocked()
                await push(bus, f"{queue}{round_}", queue=queue)
                item = await take(consumer)
                assert item.payload == f"{queue}{round_}".encode()
                assert item.deliveries == 1
                await item.ack()


async def test_no_more_in_hand_than_agreed(bus: Bus) -> None:
    """What a worker has no hands for stays for others; settling one makes room for one."""
    await push(bus, *(f"w{n}" for n in range(10)))
    async with bus.work.consume("pool", ["high", "default"], max_pending=3) as first:
        mine = [await take(first) for _ in range(3)]
        await push(bus, "urgent", queue="high")
        async with bus.work.consume("pool", ["high", "default"], max_pending=100) as second:
            others = [await take(second) for _ in range(8)]
            with anyio.move_on_after(0.05) as scope:
                await anext(first)
            assert scope.cancelled_caught
            for item in [*mine, *others]:
                await item.ack()
    names = [item.payload for item in [*mine, *others]]
    assert len(set(names)) == 11
    assert others[0].payload == b"urgent"


async def test_a_worker_that_dies_loses_its_work_to_another(bus: Bus, broker: EmbeddedBroker) -> None:
    """Unsettled and without a heartbeat for the ack wait, a piece goes to the next; heartbeats keep it."""
    await push(bus, "work")
    async with (
        Bus(broker.address, BusConfig(), name="dying") as other,
        bus.work.consume("pool", ["default"], ack_wait_s=2) as alive,
    ):
        dying = other.work.consume("pool", ["default"], ack_wait_s=2)
        # The dying one asks first only if the living one has its hands full.
        await push(bus, "occupying")
        first = await take(alive)
        async with dying as consumer:
            item = await take(consumer)
            for _ in range(5):
                await first.in_progress()
                await item.in_progress()
                await anyio.sleep(0.5)
            await other.connection.nc.close()
            await first.ack()
            again = await take(alive)
            assert again.payload == item.payload
            assert again.deliveries == 2
            await again.ack()


async def test_handed_back_work_comes_after_its_delay(bus: Bus) -> None:
    """``nak`` with a delay comes back then; ``term`` never does."""
    await push(bus, "later", "never")
    async with bus.work.consume("pool", ["default"], max_pending=2) as consumer:
        items = {(item := await take(consumer)).payload: item for _ in range(2)}
        began = anyio.current_time()
        await items[b"later"].nak(0.2)
        await items[b"never"].term("bad")
        again = await take(consumer)
        assert again.payload == b"later"
        assert again.deliveries == 2
        assert anyio.current_time() - began >= 0.19
        await again.ack()
        with anyio.move_on_after(0.1) as scope:
            await anext(consumer)
        assert scope.cancelled_caught


async def test_how_much_may_be_in_hand_changes_meanwhile(bus: Bus) -> None:
    """More is taken at once; where less may be than is, nothing is taken until enough has been settled."""
    await push(bus, "a", "b", "c")
    async with bus.work.consume("pool", ["default"], max_pending=1) as consumer:
        first = await take(consumer)
        consumer.resize(2)
        second = await take(consumer)
        consumer.resize(1)
        await first.ack()
        with anyio.move_on_after(0.1) as scope:
            await anext(consumer)
        assert scope.cancelled_caught
        assert consumer.free == 0
        await second.ack()
        third = await take(consumer)
        assert (third.payload, third.deliveries) == (b"c", 1)
        await third.ack()


async def test_leaving_hands_back_what_nobody_took(bus: Bus) -> None:
    """Items fetched ahead are free again at once, not after the ack wait."""
    await push(bus, "a", "b", "c")
    async with bus.work.consume("pool", ["default"], max_pending=3, ack_wait_s=30) as consumer:
        await (await take(consumer)).ack()
        await anyio.wait_all_tasks_blocked()
    async with bus.work.consume("pool", ["default"], max_pending=3, ack_wait_s=30) as consumer:
        assert {(await take(consumer)).payload for _ in range(2)} == {b"b", b"c"}


async def test_a_forgotten_item_does_not_block_the_worker(bus: Bus) -> None:
    """An item that is never settled lapses with the ack wait, and its place is free again."""
    await push(bus, "lost", "next")
    async with bus.work.consume("pool", ["default"], ack_wait_s=0.2) as consumer:
        await take(consumer)
        item = await take(consumer)
        await item.ack()


async def test_workers_go_on_after_the_broker_was_killed(bus: Bus, kill: Kill) -> None:
    """Every piece pushed is done, across two kills, by consumers that were there before."""
    done: set[bytes] = set()

    async def work(consumer: WorkConsumer) -> None:
        async for item in consumer:
            done.add(item.payload)
            await item.ack()
            if len(done) == 400:
                tg.cancel_scope.cancel()

    async def feed() -> None:
        for n in range(400):
            while True:
                try:
                    await bus.work.push("pool", ("high", "default")[n % 2], b"%d" % n, msg_id=str(n))
                    break
                except BusUnavailable:
                    continue
            if n in (100, 250):
                await kill()

    with anyio.fail_after(60):
        async with (
            bus.work.consume("pool", ["high", "default"], max_pending=5, ack_wait_s=1) as one,
            bus.work.consume("pool", ["high", "default"], max_pending=5, ack_wait_s=1) as two,
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(work, one)
            tg.start_soon(work, two)
            tg.start_soon(feed)
    assert len(done) == 400


async def test_a_removed_consumer_is_made_again(bus: Bus) -> None:
    """A durable removed behind our back does not silence the worker."""
    async with bus.work.consume("pool", ["default"]) as consumer:
        # A request that reaches the broker together with the end of its consumer is answered by nobody, and asked anew much later.
        while not (await bus.connection.api("CONSUMER.INFO.HARK_WORK.work=pool=default"))["num_waiting"]:
            await anyio.lowlevel.checkpoint()
        await bus.connection.api("CONSUMER.DELETE.HARK_WORK.work=pool=default")
        await push(bus, "work")
        await (await take(consumer)).ack()


async def test_errors_of_the_body_come_out_as_they_are(bus: Bus) -> None:
    """No exception group around what happens while consuming; and too much is refused with sizes."""
    with pytest.raises(EventTooLarge):
        async with bus.work.consume("pool", ["default"]):
            await bus.work.push("pool", "default", b"x" * bus.info.max_payload, msg_id="1")
    with pytest.raises(ValueError, match="at least one queue"):
        async with bus.work.consume("pool", []):
            pass
