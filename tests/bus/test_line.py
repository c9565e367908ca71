"""Lines: the connections of those who ask the broker and wait for it themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hark.bus import Event
from hark.bus.arrival import Arrival
from hark.bus.line import FIRST_EXCHANGES, MOST_BYTES, Line, Lines
from hark.bus.log import Message
from hark.bus.session import Session
from hark.testing import Harness, harness
from hark.vocabulary import new_id
from hypothesis import given, settings
from hypothesis import strategies as st

QUESTIONS = [("a", "", b"1"), ("b", "", b"2")]
COMING = (
    b'INFO {"ldm":false}\r\nMSG me.1 1 2\r\nok\r\nPING\r\n+OK\r\nMSG me.9 1 3\r\nold\r\n'
    b"HMSG me.2 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
)


@pytest.fixture
def rig() -> Iterator[Harness]:
    with harness() as running:
        yield running


def lines_of(session: Session) -> Lines:
    assert session._lines is not None
    return session._lines


async def opened(lines: Lines) -> None:
    """Wait for the line that is being opened."""
    if lines._opening is not None:
        await lines._opening


def with_line(rig: Harness) -> Line:
    """Store one thing after the other until there is a line, and return it; it stays where it was."""
    rig.session.call(rig.bus.log.last, "hark.ev.a")
    for _ in range(FIRST_EXCHANGES + 1):
        assert lines_of(rig.session)._idle == []
        assert rig.session.store([a_move(rig)]) is not None
    rig.session.call(opened, lines_of(rig.session))
    [line] = lines_of(rig.session)._idle
    return line


def a_move(rig: Harness, *, of: str | None = None, after: int = 0, size: int = 0) -> Message:
    event = Event(type="flow-run.running", source="/s", subject=f"flow-run/{of or new_id()}", data="x" * size)
    return rig.bus.log.message(event, after)


def test_a_program_that_stores_one_thing_after_the_other_gets_a_line(
    rig: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its session's thread has nothing to do any more, whatever kind of loop the program has; what is large goes by it."""
    line = with_line(rig)
    of, session = new_id(), rig.session
    by_session: list[object] = []
    store_nowait = rig.bus.log.store_nowait

    def counted(*given: Any) -> bool:
        by_session.append(given)
        return store_nowait(*given)

    monkeypatch.setattr(rig.bus.log, "store_nowait", counted)
    first = session.store([a_move(rig, of=of)])
    assert first is not None
    assert session.store([a_move(rig, of=of)]) is None, "the guard does not hold"
    seqs = [*first]
    runs: list[Callable[[Coroutine[Any, Any, list[int] | None]], list[int] | None]] = [
        asyncio.run,
        uvloop.run,
    ]
    for run in runs:
        more = run(session.astore([a_move(rig, of=of, after=seqs[-1])]))
        assert more == [seqs[-1] + 1]
        seqs += more
        again = session.store([a_move(rig, of=of, after=seqs[-1])])
        assert again == [seqs[-1] + 1], "whatever the loop has made of the socket"
        seqs += again
    assert lines_of(session)._idle == [line]
    assert by_session == []
    large = session.store([a_move(rig, of=of, after=seqs[-1], size=MOST_BYTES)])
    assert large == [seqs[-1] + 1]
    assert len(by_session) == 1


def test_a_line_belongs_to_one_caller_at_a_time(rig: Harness) -> None:
    """While one waits, others go by the session; one that is cancelled takes the line with it, whose answer is still to come."""
    line, lines = with_line(rig), lines_of(rig.session)

    async def main() -> None:
        found = await asyncio.gather(*[rig.session.astore([a_move(rig)]) for _ in range(20)])
        assert len({place for places in found for place in places or ()}) == 20
        assert line in lines._idle
        cancelled = asyncio.create_task(rig.session.astore([a_move(rig)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(main())
    rig.session.call(opened, lines)
    assert lines._count == len(lines._idle)


def test_a_loop_hears_no_more_of_a_line_that_is_closed() -> None:
    """Though the socket lives on in a forked child, and what comes there would keep the loop awake."""

    async def cancelled(line: Line, broker: socket.socket) -> None:
        asking = asyncio.create_task(line.aask(QUESTIONS))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        assert line.is_closed
        broker.sendall(COMING)
        selector: Any = asyncio.get_running_loop()
        assert selector._selector._selector.poll(0) == []

    def use(line: Line, broker: socket.socket) -> None:
        with socket.socket(fileno=os.dup(line._socket.fileno())):
            asyncio.run(cancelled(line, broker))

    between(use)


def test_a_line_whose_broker_is_gone_leaves_it_to_the_session(rig: Harness) -> None:
    """Which waits for the broker to come back."""
    line, pid = with_line(rig), rig.broker.pid
    assert pid is not None
    event = Event(type="flow-run.running", source="/s", subject=f"flow-run/{new_id()}")
    os.kill(pid, signal.SIGKILL)
    assert rig.session.store([rig.bus.log.message(event, 0)]) is None
    appended = rig.session.call(rig.bus.log.append, event, after=0)
    assert appended.seq > FIRST_EXCHANGES
    assert line.is_closed or lines_of(rig.session)._idle == [line], "if the session has noticed first"


def test_a_line_that_cannot_be_opened_now_is_tried_again_later(rig: Harness) -> None:
    """That the broker is away for a moment says nothing of what it asks for."""
    lines, pid = lines_of(rig.session), rig.broker.pid
    assert pid is not None

    async def open_while_it_is_gone() -> None:
        gone = asyncio.Event()
        rig.bus.connection.on_disconnect(gone.set)
        os.kill(pid, signal.SIGKILL)
        await gone.wait()
        await lines._open()

    rig.session.call(open_while_it_is_gone)
    assert lines._may_open


def test_only_a_plain_broker_gets_a_line(rig: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it asks for more than a password, or refuses it, there are none."""
    address, loop = rig.bus.address, rig.session.loop

    async def greeted(lines: Lines) -> Line:
        return await lines._opened()

    for other in (replace(address, tls_ca=Path("ca.pem")), replace(address, credentials=Path("me.creds"))):
        monkeypatch.setattr(rig.bus, "address", other)
        assert not Lines(rig.bus, loop)._may_open
    monkeypatch.setattr(rig.bus, "address", replace(address, password="wrong"))
    with pytest.raises((ValueError, OSError)):
        rig.session.call(greeted, Lines(rig.bus, loop))


# --- what comes by a line -----------------------------------------------------------------------------


def between(use: Callable[[Line, socket.socket], object]) -> None:
    """Hand over a line and the broker's end of it."""
    ours, theirs = socket.socketpair()
    line = Line(ours, "me", try_s=0.05)
    try:
        use(line, theirs)
    finally:
        line.close()
        theirs.close()


@given(cuts=st.lists(st.integers(1, len(COMING) - 1), unique=True, max_size=6).map(sorted))
@settings(max_examples=60, deadline=None)
def test_answers_are_found_in_whatever_pieces_they_come(cuts: list[int]) -> None:
    """And PINGs are answered; what answers nothing of now is passed over."""

    def use(line: Line, broker: socket.socket) -> None:
        line._frames(QUESTIONS)
        for begin, end in zip([0, *cuts], [*cuts, len(COMING)], strict=True):
            assert line._open
            line._hear(COMING[begin:end])
        assert not line._open
        first, second = line._answers
        assert isinstance(first, Arrival)
        assert isinstance(second, Arrival)
        assert (first.data, first.status, second.data, second.status) == (b"ok", 0, b"", 503)
        assert broker.recv(100) == b"PONG\r\n"

    between(use)


@pytest.mark.parametrize(
    "coming", [b"-ERR 'Stale Connection'\r\n", b"MSG\r\n", b"MSG me.1 1 x\r\n", b"", None]
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_line_that_is_broken_says_that_nothing_is_known(coming: bytes | None, is_async: bool) -> None:
    """An error, nonsense, an end, no answer in time: it is closed, and not used again."""

    def use(line: Line, broker: socket.socket) -> None:
        if coming == b"":
            broker.shutdown(socket.SHUT_WR)
        elif coming is not None:
            broker.sendall(coming)
        elif not is_async:
            line._socket.settimeout(0.01)  # as the options do that a real one is given
        answers = asyncio.run(line.aask(QUESTIONS)) if is_async else line.ask(QUESTIONS)
        assert answers is None
        assert line.is_closed

    between(use)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_write_on_a_line_that_the_broker_has_closed_sends_no_signal(is_async: bool) -> None:
    """It would end a program that has set SIGPIPE to its default."""

    def use(line: Line, broker: socket.socket) -> None:
        broker.close()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        try:
            assert (asyncio.run(line.aask(QUESTIONS)) if is_async else line.ask(QUESTIONS)) is None
            assert signal.SIGPIPE not in signal.sigpending()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPIPE})

    between(use)
