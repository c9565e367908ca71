"""Named limits: who holds slots, who comes next, and what becomes of the slots of the dead."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hark import concurrency, flow, rate_limit
from hark.bus import Bus, EmbeddedBroker
from hark.bus.bucket import Entry
from hark.bus.session import Session
from hark.duration import parse_rate
from hark.engine.limits.limit import Limit, Ticket, Tickets, holders, key_of, reserve
from hark.engine.limits.slots import Slots, delete_limit, put_limit
from hark.errors import DefinitionError, SlotsLost, SlotsTimedOut, UnknownName
from hypothesis import given
from hypothesis import strategies as st

# --- deciding -----------------------------------------------------------------------------------------

TICKETS = st.lists(st.integers(1, 4), max_size=20).map(
    lambda sizes: [Ticket(str(i), i + 1, size, "p") for i, size in enumerate(sizes)]
)


@given(TICKETS, st.integers(0, 8))
def test_holders_never_take_more_than_there_is_and_nobody_overtakes(
    tickets: list[Ticket], slots: int
) -> None:
    """The first ones, as many as fit; the next one would not."""
    held = holders(reversed(tickets), slots)
    assert [ticket.id for ticket in tickets[: len(held)]] == sorted(held, key=int)
    assert sum(ticket.occupy for ticket in tickets[: len(held)]) <= slots
    if len(held) < len(tickets):
        assert sum(ticket.occupy for ticket in tickets[: len(held) + 1]) > slots


@given(TICKETS, st.integers(0, 8), st.data())
def test_what_is_granted_stays_granted_while_others_come_and_go(
    tickets: list[Ticket], slots: int, data: st.DataObject
) -> None:
    """Removing others, or adding later ones, takes nothing from who holds."""
    held = holders(tickets, slots)
    gone = data.draw(st.sets(st.sampled_from([t.id for t in tickets]))) if tickets else set()
    later = [Ticket("x", 99, 1, "p")]
    after = holders([t for t in tickets if t.id not in gone] + later, slots)
    assert held - gone <= after


@given(TICKETS, st.lists(st.tuples(st.integers(0, 19), st.booleans(), st.integers(0, 8)), max_size=40))
def test_holders_kept_step_by_step_are_those_of_one_look(
    tickets: list[Ticket], steps: list[tuple[int, bool, int]]
) -> None:
    """Whatever comes and goes, in any order, under limits that change: those told to hold, and not gone, hold."""
    kept, there, told = Tickets(), dict[str, Ticket](), set[str]()
    for place, comes, slots in steps:
        if place < len(tickets):
            ticket = tickets[place]
            if comes:
                kept.add(ticket)
                there[ticket.id] = ticket
            else:
                assert kept.remove(ticket.id) == (there.pop(ticket.id, None) is not None)
                told.discard(ticket.id)
        before = set(told)
        told.update(now := kept.next_holders(slots))
        held = holders(there.values(), slots)
        assert held <= told
        assert set(now) <= held
        assert now == sorted(now, key=int)
        assert told - before <= held
    assert {ticket.id for ticket in kept} == set(there)


def test_what_a_ticket_costs_does_not_grow_with_the_line_behind_it() -> None:
    """Ten times as many that wait are not a hundred times the work."""
    looks = 0

    class Order(int):
        def __lt__(self, other: int) -> bool:
            nonlocal looks
            looks += 1
            return int(self) < int(other)

        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return int(self) == other

        __hash__ = int.__hash__

    def cost(count: int) -> float:
        nonlocal looks
        looks, line = 0, Tickets()
        for i in range(count):
            line.add(Ticket(str(i), Order(i), 1, "p"))
            line.next_holders(2)
        for i in range(count):
            assert line.remove(str(i))
            assert line.next_holders(2) == [str(i + 2)] * (i + 2 < count)
        return looks / count

    assert cost(2000) < 2 * cost(200)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 3)), min_size=1, max_size=40), st.integers(3, 10))
def test_no_more_than_the_burst_and_the_rate_come_in_any_window(
    asked: list[tuple[float, int]], burst: int
) -> None:
    """In a window of any length, at most ``burst`` plus what the rate gives in it."""
    each_s, now, free_at = 0.5, 100.0, 0.0
    came: list[tuple[float, int]] = []
    for pause, occupy in asked:
        now += pause
        free_at, wait_s = reserve(free_at, now, occupy=occupy, each_s=each_s, burst=burst)
        came.append((now + wait_s, occupy))
    for i, (start, _) in enumerate(came):
        for end, _ in came[i:]:
            inside = sum(n for at, n in came if start <= at <= end)
            assert inside <= burst + (end - start) / each_s + 3 + 1e-6


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_names_become_keys_of_one_word(one: str, other: str) -> None:
    """Different names, different keys; whatever they are made of."""
    from hark.bus.bucket import check_key

    try:
        keys = key_of(one), key_of(other)
    except UnicodeEncodeError:
        return
    assert all("." not in check_key(key) for key in keys)
    assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.parametrize("wrong", [{}, {"slots": 1, "rate": "1/s"}, {"rate": "x"}, {"slots": -1}])
def test_a_limit_is_of_one_kind(wrong: dict[str, Any]) -> None:
    """Slots or a rate."""
    with pytest.raises(ValueError):
        Limit(**wrong)


# --- holding ------------------------------------------------------------------------------------------


class Crowd:
    """How many are inside, and how many were at most."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.order: list[int] = []

    def come(self, who: int, n: int = 1) -> None:
        self.inside += n
        self.most = max(self.most, self.inside)
        self.order.append(who)

    def leave(self, n: int = 1) -> None:
        self.inside -= n


@pytest.mark.parametrize("slots", [1, 3])
async def test_no_more_hold_slots_than_there_are_and_they_come_in_order(
    session: Session, bus: Bus, slots: int
) -> None:
    """Waiters are woken at once, one after the other, as they came."""
    await put_limit(bus, "few", Limit(slots=slots))
    crowd = Crowd()

    async def visit(who: int) -> None:
        async with concurrency("few"):
            crowd.come(who)
            await asyncio.sleep(0.01)
            crowd.leave()

    visits = []
    for who in range(20):
        visits.append(asyncio.ensure_future(visit(who)))
        await asyncio.sleep(0.005)
    await asyncio.gather(*visits)
    assert crowd.most == slots
    # Those whose turn comes at the same moment may pass each other.
    assert all(abs(place - who) < slots for place, who in enumerate(crowd.order))
    assert await bus.bucket("leases").keys() == []


async def test_who_asked_before_elsewhere_is_known_before_a_slot_is_taken(
    broker: EmbeddedBroker, bus: Bus
) -> None:
    """The answer to who asks may come before the news of who asked earlier in another process: both took the slot."""
    await put_limit(bus, "two", Limit(slots=2))
    async with Bus(broker.address, bus.config, name="other") as other:
        here, there = Slots(bus), Slots(other)
        news, watch, create = asyncio.Event(), here._bucket.watch, here._bucket.create

        @asynccontextmanager
        async def late(prefix: str = "") -> AsyncGenerator[AsyncGenerator[Entry]]:
            async def told() -> AsyncGenerator[Entry]:
                async for entry in entries:
                    await news.wait()
                    yield entry

            async with watch(prefix) as entries:
                yield told()

        async def answered(key: str, value: bytes) -> int:
            revision = await create(key, value)
            news.set()
            return revision

        news.set()
        here._bucket.watch = late  # type: ignore[method-assign]
        first = await here.acquire("two", 1, timeout_s=None)
        news.clear()
        here._bucket.create = answered  # type: ignore[method-assign, assignment]
        theirs = await there.acquire("two", 1, timeout_s=None)
        waits = asyncio.Event()
        third = asyncio.ensure_future(here.acquire("two", 1, timeout_s=None, on_wait=waits.set))
        waiting = asyncio.ensure_future(waits.wait())
        await asyncio.wait([third, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert not third.done()
        for held in (theirs, first):
            assert held is not None
            await held.release()
        held = await third
        assert held is not None
        await held.release()


async def test_several_limits_and_several_slots(session: Session, bus: Bus) -> None:
    """All of them are held inside; who cannot ever get so many is told."""
    await put_limit(bus, "a", Limit(slots=2))
    await put_limit(bus, "b", Limit(slots=3))
    async with concurrency(["b", "a"], occupy=2):
        with pytest.raises(SlotsTimedOut, match="'a'"):
            async with concurrency("a", timeout_seconds=0.05):
                pass
        async with concurrency("b", timeout_seconds=60):
            pass
        with pytest.raises(DefinitionError, match="never free"):
            async with concurrency("a", occupy=3):
                pass
    async with concurrency("a", 2, timeout_seconds=60):
        pass
    async with concurrency([]), concurrency(None):
        pass


async def test_slots_are_given_back_however_the_block_ends(session: Session, bus: Bus) -> None:
    """By an exception, by being cancelled inside, by being cancelled while waiting."""
    await put_limit(bus, "one", Limit(slots=1))
    with pytest.raises(ZeroDivisionError):
        async with concurrency("one"):
            raise ZeroDivisionError
    inside = asyncio.Event()

    async def hold() -> None:
        async with concurrency("one"):
            inside.set()
            await asyncio.sleep(60)

    holder = asyncio.ensure_future(hold())
    await inside.wait()
    waiter = asyncio.ensure_future(hold())
    await asyncio.sleep(0.05)
    waiter.cancel()
    await asyncio.wait([waiter])
    holder.cancel()
    await asyncio.wait([holder])
    async with concurrency("one", timeout_seconds=60):
        pass
    assert await bus.bucket("leases").keys() == []


async def test_sync_code_holds_slots_too(session: Session, bus: Bus) -> None:
    """In threads and sync flows, against the same limit."""
    await put_limit(bus, "one", Limit(slots=1))
    crowd = Crowd()

    @flow
    def visit(who: int) -> None:
        with concurrency("one"):
            crowd.come(who)
            time.sleep(0.02)
            crowd.leave()

    async with concurrency("one"):
        visits = [asyncio.ensure_future(asyncio.to_thread(visit, who)) for who in range(4)]
        await asyncio.sleep(0.1)
        assert crowd.order == []
    await asyncio.gather(*visits)
    assert (crowd.most, sorted(crowd.order)) == (1, [0, 1, 2, 3])


async def test_a_limit_that_is_not_there_holds_nobody_back_unless_strict(
    session: Session, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the log; inactive ones count as not there."""
    async with concurrency("nothing"):
        pass
    assert "there is no limit 'nothing'" in caplog.text
    await put_limit(bus, "off", Limit(slots=1, active=False))
    async with concurrency("off"), concurrency("off", timeout_seconds=60):
        pass
    with pytest.raises(UnknownName, match="nothing"):
        async with concurrency("nothing", strict=True):
            pass
    with pytest.raises(UnknownName):
        await rate_limit("nothing", strict=True)
    await rate_limit("nothing")


async def test_raising_or_removing_a_limit_wakes_those_who_wait(session: Session, bus: Bus) -> None:
    """At once."""
    await put_limit(bus, "closed", Limit(slots=0))

    async def visit() -> None:
        async with concurrency("closed", timeout_seconds=60):
            pass

    for open_it in (put_limit(bus, "closed", Limit(slots=1)), delete_limit(bus, "closed")):
        waiting = asyncio.ensure_future(visit())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await open_it
        await waiting
        await put_limit(bus, "closed", Limit(slots=0))


async def test_the_slots_of_a_process_that_dies_are_freed(
    session: Session, bus: Bus, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to notice but who waits; until then they are held."""
    await put_limit(bus, "one", Limit(slots=1))
    program = (
        "import sys, time, hark.engine.limits.slots as slots\n"
        "slots.TTL_S = 2.0\n"
        "from hark import concurrency\n"
        "with concurrency('one'):\n"
        "    print('inside', flush=True)\n"
        "    time.sleep(60)\n"
    )
    monkeypatch.setattr("hark.engine.limits.slots.TTL_S", 2.0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=_environment(broker)
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"inside\n"
        with pytest.raises(SlotsTimedOut):
            async with concurrency("one", timeout_seconds=3.5):
                pass
    finally:
        process.kill()
        await process.wait()
    async with concurrency("one", timeout_seconds=60):
        pass


async def test_losing_slots_while_inside_is_an_error_if_strict(session: Session, bus: Bus) -> None:
    """The body is cancelled, and the error says which; otherwise the code runs on."""
    await put_limit(bus, "one", Limit(slots=1))

    async def take_away() -> None:
        (key,) = await bus.bucket("leases").keys("slot.")
        await bus.bucket("leases").delete(key)

    async def lose() -> None:
        async with concurrency("one", strict=True):
            await take_away()
            await asyncio.sleep(600)

    with pytest.raises(SlotsLost, match="'one'"):
        await lose()
    async with concurrency("one"):
        await take_away()


async def test_rates_hold_back_after_the_burst(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones at once, the others at the rate; who would wait too long fails at once and counts for nothing."""
    await put_limit(bus, "api", Limit(rate=parse_rate("5/s")))
    began = time.monotonic()
    await asyncio.gather(*(rate_limit("api") for _ in range(7)))
    took = time.monotonic() - began
    assert took >= 0.38
    with pytest.raises(SlotsTimedOut):
        await rate_limit("api", occupy=50, timeout_seconds=1)
    await asyncio.to_thread(lambda: rate_limit("api", timeout_seconds=60))
    with pytest.raises(DefinitionError, match="one per time"):
        async with concurrency("api"):
            pass
    await put_limit(bus, "slots", Limit(slots=1))
    with pytest.raises(DefinitionError, match="one of slots"):
        await rate_limit("slots")
    # One after the other: were each to try again whenever another was faster, the last would not come through.
    monkeypatch.setattr("hark.engine.limits.slots._TRIES", 2)
    await put_limit(bus, "fast", Limit(rate=parse_rate("1000/s")))
    await asyncio.gather(*(rate_limit("fast") for _ in range(50)))
    await put_limit(bus, "decaying", Limit(slots=2, slot_decay_per_second=100))
    await rate_limit("decaying", occupy=2)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_occupy_is_a_whole_number(wrong: Any) -> None:
    """From 1 on."""
    with pytest.raises(ValueError, match="occupy"):
        concurrency("x", wrong)


def _environment(broker: EmbeddedBroker) -> dict[str, str]:
    import os

    address = broker.address
    return {
        **os.environ, "HARK_NATS_URL": address.url, "HARK_BUS__USER": address.user or "",
        "HARK_BUS__PASSWORD": address.password or "",
    }  # fmt: skip
