"""Very many who ask the broker at once are let in by and by, so that it drops none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.replies import Replies
from hark.bus.turnstile import Turnstile
from hark.config import BusConfig
from hark.errors import BusUnavailable
from nats.aio.msg import Msg

Ask = Callable[[Bus, Replies, str], Awaitable[object]]


async def by_connection(bus: Bus, _: Replies, what: str) -> object:
    return await bus.connection.insist("ask.me", what.encode())


async def by_replies(_: Bus, replies: Replies, what: str) -> object:
    return await replies.insist("ask.me", what.encode())


@pytest.fixture
async def own(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    """A bus of which three may ask at once."""
    monkeypatch.setattr("hark.bus.turnstile.MOST_ASKED", 3)
    async with Bus(broker.address, BusConfig(request_timeout_s=0.5)) as bus:
        yield bus


@asynccontextmanager
async def answering(bus: Bus, on_message: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[None]:
    subscription = await bus.connection.subscribe("ask.me", on_message)
    await bus.connection.flush()
    try:
        yield
    finally:
        await bus.connection.unsubscribe(subscription)


async def test_those_in_line_are_let_in_as_they_came() -> None:
    """Who is cancelled in line is passed over, also at the moment of being let in."""
    turnstile, came = Turnstile(1), list[int]()
    leave = asyncio.Event()

    async def enter(who: int) -> None:
        async with turnstile:
            came.append(who)
            await leave.wait()

    tasks = [asyncio.ensure_future(enter(who)) for who in range(5)]
    await anyio.wait_all_tasks_blocked()
    assert came == [0]
    tasks[1].cancel()
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[2].cancel()  # let in, and not run yet
    await anyio.wait_all_tasks_blocked()
    assert came == [0, 3]
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert came == [0, 3, 4]
    async with turnstile:
        pass


@pytest.mark.parametrize("ask", [by_connection, by_replies])
async def test_only_so_many_questions_are_on_their_way(own: Bus, ask: Ask) -> None:
    """The others are asked once an answer has come; none is lost, and each has all of its time from then on."""
    open_: list[Msg] = []
    most = 0

    async def gather(msg: Msg) -> None:
        nonlocal most
        open_.append(msg)
        most = max(most, len(open_))
        if len(open_) == 3 or msg.data == b"9":
            for one in (*open_,):
                open_.remove(one)
                await one.respond(b"{}")

    replies = Replies(own.connection, own.config)
    async with answering(own, gather):
        await asyncio.gather(*(ask(own, replies, str(i)) for i in range(10)))
    assert most == 3


@pytest.mark.parametrize("ask", [by_connection, by_replies])
async def test_where_nobody_answers_nobody_else_tries(own: Bus, ask: Ask) -> None:
    """A thousand times a time limit would be no limit."""
    asked: set[bytes] = set()

    async def hear(msg: Msg) -> None:
        asked.add(msg.data)

    replies = Replies(own.connection, own.config)
    async with answering(own, hear):
        outcomes = await asyncio.gather(
            *(ask(own, replies, str(i)) for i in range(10)), return_exceptions=True
        )
    assert all(isinstance(outcome, BusUnavailable) for outcome in outcomes)
    assert asked == {b"0", b"1", b"2"}


@pytest.mark.parametrize("ask", [by_connection, by_replies])
async def test_a_loop_that_stood_still_has_not_been_left_without_answers(own: Bus, ask: Ask) -> None:
    """What was answered meanwhile lies in the socket: it is read before anybody is told that no answer came."""
    replies = Replies(own.connection, own.config)
    await replies.open()
    asked = list[str]()

    async def stop_the_loop_and_answer(msg: Msg) -> None:
        asked.append(msg.reply)
        if len(asked) == 1:
            until = time.monotonic() + 2 * own.config.request_timeout_s
            while time.monotonic() < until:
                pass
        await msg.respond(b"{}")

    async with answering(own, stop_the_loop_and_answer):
        await ask(own, replies, "x")
    assert len(asked) == 1


async def test_the_time_the_loop_stood_still_counts_for_nobody(
    own: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has found no answer after a standstill longer than the time limit asks once more."""
    monkeypatch.setattr("hark.bus.connection._TRY_S", 0.1)
    asked = 0

    async def stop_the_loop_and_answer_later(msg: Msg) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await msg.respond(b"{}")
            return
        until = time.monotonic() + 2 * own.config.request_timeout_s
        while time.monotonic() < until:
            pass

    async with answering(own, stop_the_loop_and_answer_later):
        await own.connection.insist("ask.me", b"x")
    assert asked > 1
