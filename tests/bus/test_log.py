"""The event log: appends are guarded and stored once, reading is in order and without gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.arrival import Arrival
from hark.bus.connection import Connection, NoAnswer
from hark.bus.event import Recorded
from hark.bus.feed import Batch, Feed
from hark.bus.log import Appended
from hark.bus.subject import ALL_EVENTS, covers, distinct_filters, flow_run_filter, matches
from hark.config import BusConfig
from hark.errors import BusUnavailable, EventInvalid, EventTooLarge, GuardFailed, LogRewound
from hypothesis import given
from hypothesis import strategies as st


def an_event(type_: str = "order.paid", **more: object) -> Event:
    return Event(type=type_, source="/test", **more)  # type: ignore[arg-type]


def a_move(run_id: str, state: str = "running") -> Event:
    return an_event(f"flow-run.{state}", subject=f"flow-run/{run_id}")


Everything = Callable[[], Awaitable[list[Recorded]]]
Kill = Callable[[], Awaitable[None]]
Frozen = Callable[[], AbstractContextManager[None]]


# --- appending ----------------------------------------------------------------------------------------


async def test_an_appended_event_can_be_read_back(bus: Bus) -> None:
    """What is appended has a sequence, a broker time, and comes back equal."""
    event = an_event(data={"id": 42}, subject="order/42", partitionkey="eu")
    appended = await bus.log.append(event)
    assert appended == Appended(1, duplicate=False)
    found = await bus.log.get(1)
    assert found is not None
    assert found.event == event
    assert found.subject == "hark.ev.order.paid"
    assert abs(found.recorded_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert await bus.log.last(ALL_EVENTS) == found
    assert await bus.log.head() == 1
    assert await bus.log.get(2) is None
    assert await bus.log.get(0) is None
    assert await bus.log.last("hark.ev.nothing") is None
    assert await bus.log.next(ALL_EVENTS) == found
    assert await bus.log.next(ALL_EVENTS, after=1) is None


async def test_the_same_event_is_stored_once(bus: Bus) -> None:
    """Source and id name an event for ever, whatever signs stand in them."""
    for id_ in ("plain", "with space", "ünï", "a\r\nNats-Rollup: all", "%", "x" * 2000):
        event = an_event(id=id_)
        first, second = await bus.log.append(event), await bus.log.append(event)
        assert second == Appended(first.seq, duplicate=True)
    assert await bus.log.head() == 6


async def test_of_many_writers_with_the_same_guard_one_wins(bus: Bus) -> None:
    """Whoever names the same last sequence races; exactly one append lands and the others are told."""

    async def attempt(after: int) -> Appended | GuardFailed:
        try:
            return await bus.log.append(a_move("r1"), after=after)
        except GuardFailed as exc:
            return exc

    seq = 0
    for _ in range(5):
        after = seq
        outcomes = await asyncio.gather(*(attempt(after) for _ in range(40)))
        won = [outcome for outcome in outcomes if isinstance(outcome, Appended)]
        assert len(won) == 1
        assert {one.expected for one in outcomes if isinstance(one, GuardFailed)} == {after}
        seq = won[0].seq
        assert not won[0].duplicate
        await bus.log.append(a_move("r2"))
    last = await bus.log.last(flow_run_filter("r1"))
    assert last is not None
    assert last.seq == seq


async def test_a_guarded_append_repeated_is_told_that_it_won(bus: Bus) -> None:
    """A repeat whose first try had landed is a success, also after others have written behind it."""
    first = a_move("r1", "scheduled")
    won = await bus.log.append(first, after=0)
    assert await bus.log.append(first, after=0) == Appended(won.seq, duplicate=True)
    second = await bus.log.append(a_move("r1"), after=won.seq)
    assert await bus.log.append(first, after=0) == Appended(won.seq, duplicate=True)
    with pytest.raises(GuardFailed):
        await bus.log.append(a_move("r1", "failed"), after=won.seq)
    assert second.seq == won.seq + 1


async def test_two_of_a_run_are_stored_one_behind_the_other(bus: Bus) -> None:
    """Both or, where the run has begun, neither; repeating them stores nothing, and says where they stand."""
    one, two = a_move("r1", "pending"), a_move("r1")
    for repeated in (False, True):
        first, second = await bus.log.append_two(one, two, after=0)
        assert (first, second) == (Appended(1, duplicate=repeated), Appended(2, duplicate=repeated))
    with pytest.raises(GuardFailed):
        await bus.log.append_two(a_move("r1", "pending"), a_move("r1"), after=0)
    assert await bus.log.head() == 2


async def test_what_others_write_between_two_of_a_run_decides_of_the_second(bus: Bus) -> None:
    """Of something else, the second is stored all the same; of the run, it is not, and the caller is told."""
    between: list[Event] = []

    async def written_between(
        questions: Sequence[tuple[str, str, bytes]], *, ask_many: Any = bus.log._replies.ask_many
    ) -> list[Any]:
        """What the broker answers where somebody else's event comes between the two."""
        answers = await ask_many(questions[:1])
        await bus.log.append(between.pop())
        return [*answers, *await ask_many(questions[1:])]

    bus.log._replies.ask_many = written_between  # type: ignore[method-assign]
    between.append(a_move("r2", "pending"))
    first, second = await bus.log.append_two(a_move("r1", "pending"), a_move("r1"), after=0)
    assert (first.seq, second) == (1, Appended(3, duplicate=False))
    between.append(a_move("r3", "cancelling"))
    first, second = await bus.log.append_two(a_move("r3", "pending"), a_move("r3"), after=0)
    assert (first.seq, second) == (4, None)
    last = await bus.log.last(flow_run_filter("r3"))
    assert last is not None
    assert last.event.type == "flow-run.cancelling"


async def test_any_filter_can_be_the_guard(bus: Bus) -> None:
    """Without a run, the guard is the event's own subject, or the filter that is named."""
    one = await bus.log.append(an_event("limit.taken", data=1), after=0)
    with pytest.raises(GuardFailed):
        await bus.log.append(an_event("limit.taken", data=2), after=0)
    two = await bus.log.append(an_event("limit.freed"), after=one.seq, guard="hark.ev.limit.*")
    assert two.seq == one.seq + 1


async def test_too_large_an_event_is_refused_with_sizes(bus: Bus) -> None:
    """Nothing is sent, the connection lives, and the message names both sizes."""
    limit = bus.info.max_payload
    with pytest.raises(EventTooLarge) as caught:
        await bus.log.append(an_event(data="x" * limit))
    assert caught.value.limit_bytes == limit
    assert caught.value.size_bytes > limit
    # Headers count: a payload just below the limit is over it with them.
    room = limit - len(an_event(id="1", data="").to_json())
    with pytest.raises(EventTooLarge):
        await bus.log.append(an_event(id="1", data="x" * room))
    await bus.log.append(an_event(id="1", data="x" * (room - 200)))
    with pytest.raises(EventTooLarge, match=r"event \[1\] on") as caught:
        await bus.log.append_many([an_event(), an_event(data="x" * limit)])
    assert caught.value.index == 1
    assert await bus.log.head() == 1


async def test_a_type_that_is_no_subject_is_refused(bus: Bus) -> None:
    """Wildcards and white space never reach the broker, which would close the connection."""
    for bad in ("a b", "a.>", "a.*", "a..b", "a\r\nPUB x 0", "x" * 5000):
        with pytest.raises(EventInvalid):
            await bus.log.append(an_event(bad))
    assert bus.is_connected


async def test_many_are_appended_in_order(bus: Bus, everything: Everything) -> None:
    """``append_many`` keeps the order and reports each."""
    events = [an_event(id=str(n), data=n) for n in range(2500)]
    done = await bus.log.append_many([*events, events[7]])
    assert [one.seq for one in done] == [*range(1, 2501), 8]
    assert done[-1].duplicate
    assert [record.event.data for record in await everything()] == list(range(2500))
    assert await bus.log.append_many([]) == []


async def test_many_are_appended_across_a_killed_broker(
    bus: Bus, everything: Everything, kill: Kill, frozen: Frozen
) -> None:
    """Events whose answers were lost are sent again: each is stored once, and its place is told."""
    events = [an_event(id=str(n), data=n) for n in range(300)]
    with frozen():
        waiting = asyncio.ensure_future(bus.log.append_many(events))
        await anyio.sleep(0.01)
        assert not waiting.done()
        killing = asyncio.ensure_future(kill())
    done = await waiting
    await killing
    records = await everything()
    assert sorted(record.event.id for record in records) == sorted(event.id for event in events)
    stands = {record.event.id: record.seq for record in records}
    assert [one.seq for one in done] == [stands[event.id] for event in events]


async def test_many_are_given_up_after_the_deadline(broker: EmbeddedBroker, frozen: Frozen) -> None:
    """A broker that does not answer is unavailable once, not once for each; and nothing is left waiting."""
    async with Bus(broker.address, BusConfig(request_timeout_s=1.5), name="impatient") as bus:
        with frozen(), anyio.fail_after(60), pytest.raises(BusUnavailable):
            await bus.log.append_many([an_event() for _ in range(50)])
        assert await bus.log.append_many([an_event(id="after")])


async def test_an_append_waits_out_a_short_outage(
    bus: Bus, broker: EmbeddedBroker, kill: Kill, frozen: Frozen
) -> None:
    """Each append under way when the broker is killed is stored once."""
    event = a_move("r1", "scheduled")
    with frozen():
        waiting = asyncio.gather(
            bus.log.append(event, after=0), *(bus.log.append(an_event(id=str(n))) for n in range(20))
        )
        await anyio.sleep(0.01)
        assert not waiting.done()
    await waiting
    await kill()
    assert (await bus.log.append(an_event(id="3"))).duplicate
    assert (await bus.log.append(event, after=0)).duplicate
    assert await bus.log.head() == 21


async def test_an_append_gives_up_after_its_deadline(broker: EmbeddedBroker, frozen: Frozen) -> None:
    """A broker that does not answer is said to be unavailable, in time."""
    async with Bus(broker.address, BusConfig(request_timeout_s=1.5), name="impatient") as bus:
        with frozen(), anyio.fail_after(60):
            with pytest.raises(BusUnavailable):
                await bus.log.append(an_event())
            with pytest.raises(BusUnavailable):
                await bus.log.last(ALL_EVENTS)


async def test_a_cancelled_append_leaves_nothing_waiting(bus: Bus, frozen: Frozen) -> None:
    """Cancelling forgets the question; a late answer finds nobody and does no harm."""
    with frozen():
        waiting = asyncio.ensure_future(bus.log.append(an_event()))
        await anyio.wait_all_tasks_blocked()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (await bus.log.append(an_event())).seq == 2


# --- reading ------------------------------------------------------------------------------------------


async def test_reading_ends_at_the_head_of_the_call(bus: Bus) -> None:
    """History up to now, in order, in batches of the size asked for, then the end."""
    await bus.log.append_many([an_event(id=str(n), data=n) for n in range(1200)])
    sizes, seen, pending = [], [], []
    async with bus.log.read(batch=250) as batches:
        await bus.log.append(an_event(id="late"))
        async for batch in batches:
            sizes.append(len(batch.records))
            pending.append(batch.pending)
            seen += [record.seq for record in batch.records]
    assert seen == list(range(1, 1201))
    assert max(sizes) <= 250
    assert pending == sorted(pending, reverse=True)
    assert pending[-1] == 0
    async with bus.log.read(after=1150) as batches:
        assert [r.seq async for batch in batches for r in batch.records] == list(range(1151, 1202))
    async with bus.log.read(["hark.ev.nothing"]) as batches:
        assert [batch async for batch in batches] == []


@pytest.mark.parametrize("verb", ["api", "_request"])
async def test_reading_is_whole_though_the_answer_that_began_it_was_lost(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """What has come before the consumer is asked for again is part of it: what is there is never taken for missing.

    It is asked for again as another one where there was no answer at all, and as the same where it only came late.
    """
    await bus.log.append_many([an_event(id=str(n), data=n) for n in range(20)])
    arrived, asked = asyncio.Event(), list[str]()
    ask, hear = getattr(Connection, verb), Feed._on_message

    async def ask_and_lose(self: Connection, what: str, *args: Any, **more: Any) -> Any:
        answer = await ask(self, what, *args, **more)
        if "CONSUMER.CREATE." in what:
            asked.append(what)
            if len(asked) == 1:
                await arrived.wait()
                raise (BusUnavailable if verb == "api" else NoAnswer)("the answer got lost")
        return answer

    def hear_and_say(self: Feed, consumer: str, msg: Arrival) -> None:
        hear(self, consumer, msg)
        if self._received == 20:
            arrived.set()

    monkeypatch.setattr(Connection, verb, ask_and_lose)
    monkeypatch.setattr(Feed, "_on_message", hear_and_say)
    async with bus.log.read(["hark.ev.order.paid"]) as batches:
        assert [r.seq async for batch in batches for r in batch.records] == list(range(1, 21))
    assert (len(asked), len(set(asked))) == (2, 2 if verb == "api" else 1)


async def test_reading_takes_filters_and_times(bus: Bus) -> None:
    """Several filters give one order; ``since`` begins at a broker time."""
    await bus.log.append_many([an_event(t) for t in ("a.x", "b.x", "c.x", "a.y")])
    middle = await bus.log.get(3)
    assert middle is not None
    async with bus.log.read(["hark.ev.a.>", "hark.ev.c.x", "hark.ev.a.x"]) as batches:
        assert [r.seq async for batch in batches for r in batch.records] == [1, 3, 4]
    async with bus.log.read(since=middle.recorded_at) as batches:
        assert [r.seq async for batch in batches for r in batch.records][-2:] == [3, 4]
    async with bus.log.read(since=datetime.now(UTC) + timedelta(hours=1)) as batches:
        assert [batch async for batch in batches] == []


async def test_following_says_when_it_is_caught_up(bus: Bus) -> None:
    """The first batch of an empty wait is empty; what comes after entering comes."""
    await bus.log.append(an_event())
    with anyio.fail_after(60):
        async with bus.log.follow() as batches:
            assert await anext(batches) == Batch([], 0)
            await bus.log.append(an_event(data=2))
            batch = await anext(batches)
            assert [record.seq for record in batch.records] == [2]
            assert batch.pending == 0
        async with bus.log.follow(after=0) as batches:
            assert [record.seq for record in (await anext(batches)).records][:1] == [1]
        async with bus.log.follow(after=2) as batches:
            assert await anext(batches) == Batch([], 0)


async def test_pending_counts_down_to_zero(bus: Bus) -> None:
    """``pending`` is what waits behind the batch: a reader knows when it has caught up."""
    await bus.log.append_many([an_event(id=str(n)) for n in range(1000)])
    left = 1000
    async with bus.log.follow(after=0, batch=100) as batches:
        async for batch in batches:
            left -= len(batch.records)
            assert len(batch.records) <= 100
            assert batch.pending == left
            if not left:
                break


async def test_following_goes_on_after_the_broker_was_killed(bus: Bus, kill: Kill) -> None:
    """Two kills under load: what was acknowledged comes once each and in order, without the reader's doing."""
    acknowledged: list[int] = []
    enough = asyncio.Event()

    async def write() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            try:
                acknowledged.append((await bus.log.append(an_event(id=str(number)))).seq)
            except BusUnavailable:
                continue
        await bus.log.append(an_event("the.end"))

    seen: list[int] = []
    with anyio.fail_after(60):
        async with bus.log.follow(after=0) as batches, anyio.create_task_group() as tg:
            tg.start_soon(write)
            kills, target = 0, 300
            async for batch in batches:
                seen += [record.seq for record in batch.records]
                if len(seen) >= target:
                    target = len(seen) + 300
                    kills += 1
                    if kills <= 2:
                        await kill()
                    else:
                        enough.set()
                if batch.records and batch.records[-1].subject == "hark.ev.the.end":
                    break
    assert kills >= 3
    assert seen == list(range(1, len(seen) + 1))
    assert set(acknowledged) <= set(seen)
    assert len(acknowledged) == len(set(acknowledged))


async def test_following_survives_the_loss_of_its_consumer(bus: Bus) -> None:
    """A consumer removed behind our back is made again behind the last record."""
    await bus.log.append(an_event())
    with anyio.fail_after(60):
        async with bus.log.follow(after=0) as batches:
            assert [record.seq for record in (await anext(batches)).records] == [1]
            listed = await bus.connection.api("CONSUMER.NAMES.HARK")
            names = listed["consumers"]
            assert isinstance(names, list)
            for name in names:
                await bus.connection.api(f"CONSUMER.DELETE.HARK.{name}")
            await bus.log.append(an_event())
            batches._look()  # type: ignore[attr-defined]
            batches._heard -= 60  # type: ignore[attr-defined]
            batches._look()  # type: ignore[attr-defined]
            assert [record.seq for record in (await anext(batches)).records] == [2]


async def test_a_position_beyond_the_log_is_an_error(bus: Bus) -> None:
    """A log that ends before our position is another log: what was folded from it must not be added to."""
    with pytest.raises(LogRewound) as caught:
        async with bus.log.follow(after=10):
            pass
    assert (caught.value.after, caught.value.head) == (10, 0)


async def test_a_reader_hears_that_nothing_waits_when_what_waited_has_left_the_log(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Purged, or grown too old, between the counting and the delivery: who waits for the last event waits no more."""
    await bus.log.append(an_event())
    with anyio.fail_after(60):
        async with bus.log.follow(after=0) as batches:
            first = await anext(batches)
            assert (len(first.records), first.pending) == (1, 0)
            batches._pending, batches._told = 3, False  # type: ignore[attr-defined]
            beat = Arrival("x", "", b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n", b"")
            batches._on_status(beat)  # type: ignore[attr-defined]
            assert await anext(batches) == Batch([], 0)


async def test_another_log_behind_the_same_address_is_noticed_though_it_is_longer(bus: Bus) -> None:
    """An older copy of the broker's files was put back, and has grown past us before we were connected again."""
    for _ in range(3):
        await bus.log.append(an_event())
    with anyio.fail_after(60):
        async with bus.log.follow(after=0) as batches:
            records = (await anext(batches)).records
            while len(records) < 3:
                records += (await anext(batches)).records
            batches._lost("a test")  # type: ignore[attr-defined]
            await bus.log.append(an_event())  # the same log: it goes on
            assert [record.seq for record in (await anext(batches)).records] == [4]
            batches._received_ns -= 1  # type: ignore[attr-defined]
            batches._lost("a test")  # type: ignore[attr-defined]
            with pytest.raises(LogRewound, match="has lost what was read up to sequence 4"):
                await anext(batches)
            await bus.connection.api("STREAM.PURGE.HARK", {})  # nothing can be said of a record that is gone
            await bus.log.append(an_event())
            assert [record.seq for record in (await anext(batches)).records] == [5]


async def test_a_reader_leaves_no_consumer_behind(bus: Bus) -> None:
    """Left means gone, on the broker too."""
    async with bus.log.follow(), bus.log.read(), bus.log.read():
        listed = await bus.connection.api("CONSUMER.NAMES.HARK")
        assert listed["total"] == 3
    listed = await bus.connection.api("CONSUMER.NAMES.HARK")
    assert listed["total"] == 0


async def test_a_slow_reader_holds_the_broker_back(bus: Bus) -> None:
    """Flow control bounds what waits in our memory; the rest stays on the broker, and nothing is lost."""
    payload = b"x" * 100_000
    for number in range(1000):
        await bus.publisher.publish_raw("hark.ev.big", payload, str(number))
    await bus.publisher.barrier()
    async with bus.log.follow(after=0, batch=10) as batches:
        first = await anext(batches)
        await anyio.sleep(0.3)
        assert len(batches._buffer) * len(payload) < 64 << 20  # type: ignore[attr-defined]
        seen = [record.seq for record in first.records]
        async for batch in batches:
            seen += [record.seq for record in batch.records]
            if not batch.pending:
                break
    assert seen == list(range(1, 1001))


# --- sharing ------------------------------------------------------------------------------------------


async def test_consumers_that_are_made_at_the_same_moment_share_the_log(bus: Bus) -> None:
    """Each finds none and begins at a time of its own; the place of the first holds for both."""
    await bus.log.append(an_event())
    now = datetime.now(UTC)
    opened: list[int] = []
    both = anyio.Event()

    async def take(days: int) -> None:
        async with bus.log.consume("new", deliver_since=now - timedelta(days=days)):
            opened.append(days)
            if len(opened) == 2:
                both.set()
            await both.wait()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            tg.start_soon(take, 1)
            tg.start_soon(take, 2)
    assert sorted(opened) == [1, 2]


async def test_consumers_of_one_name_share_the_log(bus: Bus) -> None:
    """Each event goes to one of them; a refused one comes again, a settled one does not."""
    await bus.log.append_many([an_event(id=str(n), data=n) for n in range(100)])
    seen: list[object] = []
    with anyio.fail_after(60):
        async with (
            bus.log.consume("shared", deliver_after=0, max_ack_pending=20) as one,
            bus.log.consume("shared", deliver_after=0, max_ack_pending=20) as two,
        ):
            again = 0
            while len(seen) < 100:
                for consumer in (one, two):
                    items = []
                    with anyio.move_on_after(0.05):
                        items = await consumer.fetch(7)
                    for item in items:
                        if item.recorded.event.data == 50 and item.deliveries == 1:
                            again += 1
                            await item.nak()
                            continue
                        seen.append(item.recorded.event.data)
                        await item.ack()
                        await item.ack()
            assert again == 1
    assert sorted(seen) == list(range(100))  # type: ignore[type-var]


async def test_a_durable_keeps_its_place(bus: Bus, kill: Kill) -> None:
    """What was acknowledged does not come again after leaving; a killed broker may repeat, and loses nothing."""
    await bus.log.append_many([an_event(id=str(n), data=n) for n in range(10)])
    with anyio.fail_after(60):
        async with bus.log.consume("place", deliver_after=3, ack_wait_s=1) as consumer:
            for expected in (4, 5):
                item = await anext(consumer)
                assert item.recorded.seq == expected
                await item.in_progress()
                await item.ack()
            # Acks are not confirmed; the answer to a later question means that they have arrived.
            await bus.log.head()
        got = set[int]()
        async with bus.log.consume("place", deliver_after=0, ack_wait_s=1) as consumer:
            item = await anext(consumer)
            assert item.recorded.seq in range(6, 11)
            got.add(item.recorded.seq)
            await item.term("never")
            await kill()
            await bus.log.append(an_event(id="more"))
            async for item in consumer:
                got.add(item.recorded.seq)
                await item.ack()
                if got >= {6, 7, 8, 9, 10, 11}:
                    break


# --- pure ---------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4)
PATTERNS = st.builds(
    lambda words, tail: ".".join(words + tail),
    st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)


@given(wide=PATTERNS, narrow=PATTERNS, words=WORDS)
def test_a_filter_that_covers_another_matches_all_it_matches(
    wide: str, narrow: str, words: list[str]
) -> None:
    """``covers`` is what it says, for every subject."""
    if covers(wide, narrow) and matches(narrow, ".".join(words)):
        assert matches(wide, ".".join(words))


@given(filters=st.lists(PATTERNS, min_size=1, max_size=5), words=WORDS)
def test_distinct_filters_match_the_same_and_do_not_overlap(filters: list[str], words: list[str]) -> None:
    """Dropping covered filters changes nothing about what comes."""
    kept = distinct_filters(filters)
    subject = ".".join(words)
    assert any(matches(f, subject) for f in filters) == any(matches(f, subject) for f in kept)
    assert not any(covers(a, b) for a in kept for b in kept if a is not b)


@pytest.mark.parametrize("is_alive", [True, False])
async def test_what_is_in_hand_is_taken_back_from_the_dead_alone(bus: Bus, is_alive: bool) -> None:
    """A reader that lives, and asks for more, keeps what it has, whoever else is known to be dead."""
    await bus.log.append(Event(type="order.paid", source="/shop"))
    async with AsyncExitStack() as living:
        theirs = await living.enter_async_context(bus.log.consume("readers", deliver_after=0, ack_wait_s=600))
        (item,) = await theirs.fetch(1)
        await bus.log.append(Event(type="order.paid", source="/shop"))
        await theirs.fetch(1)  # what it asked for next has reached the broker
        if not is_alive:
            await living.aclose()
        async with bus.log.consume("readers", ack_wait_s=600, take_back=True) as ours:
            if is_alive:
                found = await bus.connection.js.consumer_info("HARK", "readers")
                assert (found.num_redelivered, found.config.ack_wait) == (0, 600)
                await item.ack()
            else:
                with anyio.fail_after(60):
                    assert [(await anext(ours)).deliveries for _ in range(2)] == [2, 2]
