"""Sessions and ``emit``: the bus of a process that has no server around it."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hark import flow
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.emit import CauseAttrs, Emitted, current_cause, emit
from hark.bus.log import Message
from hark.bus.owner import Owner
from hark.bus.replies import Replies
from hark.bus.session import SessionThread, current_session, open_bus, use_session
from hark.config import BusConfig
from hark.errors import BufferFull, BusUnavailable, EventInvalid, EventRefused, EventTooLarge, RefusedError
from hark.testing import Harness, harness
from hark.vocabulary import new_id
from hypothesis import given, settings
from hypothesis import strategies as st

json_scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9)


def json_nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


@pytest.fixture(scope="module")
def rig() -> Iterator[Harness]:
    """One broker for the tests of this file that only add events."""
    with harness() as running:
        yield running


def stored(rig: Harness, event: Event) -> Event:
    """Return the last event in the log, which must be ``event``."""
    found = rig.session.call(rig.bus.log.last, f"hark.ev.{event.type}")
    assert found is not None
    assert found.event.id == event.id
    return found.event


# --- emit, what it takes ------------------------------------------------------------------------------


def test_an_emitted_event_is_stored_as_it_was_given(rig: Harness) -> None:
    """Every attribute arrives."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    event = emit(
        "order.paid",
        subject="order/42",
        data={"total": 9.5},
        source="/shop",
        time=at,
        id="x1",
        partitionkey="ann",
        wait=True,
    )
    found = stored(rig, event)
    assert (found.subject, found.data, found.source, found.time) == ("order/42", {"total": 9.5}, "/shop", at)
    assert (found.id, found.partitionkey, found.correlationid, found.causationid) == ("x1", "ann", None, None)


@given(
    attributes=st.fixed_dictionaries(
        {"data": st.none() | st.binary(max_size=9) | st.recursive(json_scalars, json_nested, max_leaves=6)},
        optional={
            "subject": st.just("order/42"),
            "partitionkey": st.just("ann"),
            "time": st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),
            "source": st.sampled_from(["/shop", "/a b", "/\u00e9", "/" + "x" * 300]),
            "follows": st.just(Event(type="a.b", source="/s")),
        },
    )
)
@settings(max_examples=40)
def test_what_is_sent_is_what_the_event_says(rig: Harness, attributes: dict[str, Any]) -> None:
    """The short way to the log writes what the event itself would: so does looking at it late change nothing."""
    event = emit("order.paid", **attributes, wait=True)
    assert stored(rig, event).to_dict() == event.to_dict() == orjson.loads(event.to_json())


def test_an_event_nobody_looked_at_can_be_copied_and_compared(rig: Harness) -> None:
    """Its attributes are filled in late, whoever asks first, and by however many threads at once."""
    assert copy.copy(event := emit("order.paid", data={"n": 1})) == event
    assert emit("order.paid", data={"n": 1}).replace(subject="x").data == {"n": 1}
    assert "order.paid" in repr(emit("order.paid"))
    with pytest.raises(AttributeError, match="no attribute 'total'"):
        emit("order.paid").total  # type: ignore[attr-defined]  # noqa: B018
    shared = emit("order.paid", subject="order/1")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: (shared.subject, shared.type), range(40))) == {
            ("order/1", "order.paid")
        }
    assert type(shared) is Emitted


def test_the_source_is_the_program_unless_given(rig: Harness) -> None:
    """Somebody must have said it."""
    assert emit("order.paid").source.startswith("/python/")


def test_an_event_that_follows_another_belongs_to_its_story(rig: Harness) -> None:
    """Correlation is that of the first, causation names the one before, and the depth grows."""
    first = emit("story.begun")
    second = emit("story.went-on", follows=first)
    third = emit("story.ended", follows=second, wait=True)
    found = stored(rig, third)
    assert (found.correlationid, found.causationid, found.causaldepth) == (first.id, second.id, 2)
    assert (second.correlationid, second.causationid, second.causaldepth) == (first.id, first.id, 1)


def test_in_a_run_the_story_is_that_of_the_run(rig: Harness) -> None:
    """The engine sets it once around a run; ``follows`` says otherwise."""
    token = current_cause.set(CauseAttrs(correlationid="c", causationid="r", causaldepth=3, traceparent="t"))
    try:
        event = emit("order.paid")
        assert (event.correlationid, event.causationid, event.causaldepth, event.traceparent) == (
            "c",
            "r",
            3,
            "t",
        )
        first = Event(type="a.b", source="/x")
        assert emit("order.paid", follows=first).causationid == first.id
        current_cause.set(first)
        assert emit("order.paid").causationid == first.id
    finally:
        current_cause.reset(token)


@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        ({"type": "Order Paid"}, "type"),
        ({"type": ""}, "type"),
        ({"type": "flow-run.completed"}, "type"),
        ({"type": "hark"}, "type"),
        ({"type": "a.b", "id": ""}, "id"),
        ({"type": "a.b", "source": 3}, "source"),
        ({"type": "a.b", "time": datetime(2026, 1, 1)}, "time"),
        ({"type": "a.b", "time": "now"}, "time"),
        ({"type": "a.b", "data": {"x": object()}}, "data"),
        ({"type": "a.b", "data": {"x": float("nan")}}, "data.x"),
        ({"type": "a.b", "data": [{"y": [1, float("-inf")]}]}, "data.0.y.1"),
        ({"type": "a.b", "data": float("inf")}, "data"),
        ({"type": "a.b", "follows": "x"}, "follows"),
    ],
)
def test_what_breaks_the_envelope_is_refused(rig: Harness, attributes: dict[str, object], field: str) -> None:
    """At the call, naming the attribute; Hark's own words are Hark's."""
    with pytest.raises(EventInvalid) as caught:
        emit(**attributes)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_an_event_over_the_brokers_limit_is_refused_at_the_call(rig: Harness) -> None:
    """Naming both sizes."""
    with pytest.raises(EventTooLarge) as caught:
        emit("order.paid", data="x" * (1 << 20))
    assert caught.value.limit_bytes == 1 << 20


def test_the_same_source_and_id_is_stored_once(rig: Harness) -> None:
    """Emitting again after a doubt is safe."""
    before = rig.session.call(rig.bus.log.head)
    for _ in range(3):
        emit("order.paid", source="/shop", id="same", wait=True)
    assert rig.session.call(rig.bus.log.head) == before + 1


# --- emit, from everywhere ----------------------------------------------------------------------------


def test_emit_works_from_any_thread_and_loop(rig: Harness) -> None:
    """Sync, async on another loop, and threads without any context."""
    before = rig.session.call(rig.bus.log.head)

    async def from_a_loop() -> None:
        event = await emit("order.paid")
        assert isinstance(event, Event)
        emit("order.paid", wait=True)

    asyncio.run(from_a_loop())
    threads = [threading.Thread(target=lambda: [emit("order.paid") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    emit("order.paid", wait=True)
    assert rig.session.call(rig.bus.log.head) == before + 203


async def test_on_the_bus_own_loop_nothing_blocks_itself(bus: Bus) -> None:
    """In a worker, user code runs on the loop of the bus: awaiting works, blocking is refused."""
    with use_session(bus) as session:
        assert current_session() is session
        event = await emit("order.paid", data=1)
        assert (await bus.log.last("hark.ev.order.paid")) is not None
        with pytest.raises(RefusedError, match="would wait for itself"):
            emit("order.paid", wait=True)
        with pytest.raises(RefusedError, match="would wait for itself"):
            session.call(bus.log.head)
        assert await session.acall(bus.log.head) == 1
        # A sync flow in a thread of that worker, with and without its context.
        assert (await asyncio.to_thread(lambda: emit("order.paid", wait=True))).id != event.id
        ids: list[str] = []
        thread = threading.Thread(target=lambda: ids.append(emit("order.paid", wait=True).id))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(ids) == 1
        assert await bus.log.head() == 3


async def test_a_full_buffer_makes_threads_wait_and_the_own_loop_hear_of_it(
    broker: EmbeddedBroker, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back-pressure where waiting is possible, an error where it is not."""
    monkeypatch.setattr(bus.publisher, "_most", 100)
    with use_session(bus):
        with pytest.raises(BufferFull):
            assert [emit("order.paid") for _ in range(200)]
        await bus.publisher.barrier()
        before = await bus.log.head()
        await asyncio.to_thread(lambda: [emit("order.paid") for _ in range(1000)])
        await bus.publisher.barrier()
        assert await bus.log.head() == before + 1000


# --- storing in one exchange --------------------------------------------------------------------------


def a_note(rig: Harness, of: str, *, after: int) -> Message:
    event = Event(type="flow-run.running", source="/s", subject=f"flow-run/{of}", data={})
    return rig.bus.log.message(event, after)


def test_messages_are_stored_in_one_exchange_from_any_thread(rig: Harness) -> None:
    """They are in the log when it is over; what the broker refuses, and what has to wait, is left to the usual way."""
    session, of = rig.session, new_id()
    session.call(rig.bus.log.last, "hark.ev.a")  # from the first question on, answers are heard
    first = session.store([a_note(rig, of, after=0)])
    assert first == [session.call(rig.bus.log.head)]
    assert session.store([a_note(rig, of, after=0)]) is None, "the guard does not hold"
    second = asyncio.run(session.astore([a_note(rig, of, after=first[0])]))
    assert second == [first[0] + 1] == [session.call(rig.bus.log.head)]

    owner = Owner()
    emit("order.paid", wait=True)
    third = session.store([a_note(rig, of, after=second[0])], behind=owner)
    assert third == [second[0] + 2]
    owner.note(EventRefused("a", msg_id="b", why="c"))
    assert session.store([a_note(rig, of, after=third[0])], behind=owner) is None, "it has to be raised first"
    assert session.call(rig.bus.log.head) == third[0]


async def test_an_exchange_knows_the_loop_it_is_on(bus: Bus) -> None:
    """On the session's own it is awaited, and not waited for; on one that is closed nothing is sent. Cancelled, it leaves no place taken."""
    message = bus.log.message(Event(type="order.paid", source="/s"), None)
    with use_session(bus) as session:
        with pytest.raises(RefusedError, match="would wait for itself"):
            session.store([message])
        assert await session.astore([message]) is None, "nobody has asked yet, so answers are not heard"
        assert await bus.log.last("hark.ev.a") is None
        assert await session.astore([message]) == [1]
        free = bus.log._replies.turnstile._free
        cancelled = asyncio.create_task(session.astore([message]))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        # Answered behind what was sent before.
        other = await bus.log.append(Event(type="order.paid", source="/s"))
        assert other.seq == 2, "the same message is stored once"
        assert bus.log._replies.turnstile._free == free
        closed = asyncio.new_event_loop()
        closed.close()
        session.loop = closed
        assert await asyncio.to_thread(session.store, [message]) is None
        assert await asyncio.to_thread(asyncio.run, session.astore([message])) is None


# --- the session --------------------------------------------------------------------------------------


def test_the_broker_under_the_home_is_found(rig: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process of the same home gets its own session, by the discovery file."""
    said = run_program(
        "from hark.bus.emit import emit\nprint(emit('order.paid', subject='child').id)", rig.home
    )
    found = rig.session.call(rig.bus.log.last, "hark.ev.order.paid")
    assert found is not None
    assert found.event.id == said.strip(), "acknowledged before the process ended"


def run_program(text: str, home: Path, **environment: str) -> str:
    """Run a Python program with this home; return what it printed."""
    env = {**os.environ, "HARK_HOME": str(home), **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_all_that_was_emitted_is_stored_when_a_process_ends(rig: Harness) -> None:
    """From the main program and from threads that outlive it."""
    before = rig.session.call(rig.bus.log.head)
    run_program(
        "import threading\nfrom hark.bus.emit import emit\n"
        "def more():\n    for i in range(500): emit('order.paid', data=i)\n"
        "more()\nthreading.Timer(0.2, more).start()\n",
        rig.home,
    )
    assert rig.session.call(rig.bus.log.head) == before + 1000


def test_a_forked_child_has_a_session_of_its_own(rig: Harness) -> None:
    """The parent's connection is not shared: both can emit, and both are heard. Who asks the parent's session there is told."""
    before = rig.session.call(rig.bus.log.head)
    run_program(
        "import asyncio, os\nfrom hark.bus.emit import emit\nfrom hark.errors import RefusedError\n"
        "from hark.bus.session import close_session, current_session\n"
        "emit('order.paid', wait=True)\n"
        "session = current_session()\n"
        "pid = os.fork()\n"
        "try:\n    session.call(asyncio.sleep, 0)\n    assert pid\n"
        "except RefusedError as exc:\n    assert pid == 0 and session.store([]) is None, exc\n"
        "emit('order.paid', data=pid, wait=True)\n"
        "if pid == 0:\n    close_session()\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n",
        rig.home,
    )
    assert rig.session.call(rig.bus.log.head) == before + 3


@pytest.mark.parametrize(
    ("track", "with_broker", "expected"),
    [
        ("never", True, "None"),
        ("never", False, "None"),
        ("auto", False, "None"),
        ("auto", True, "Session"),
        ("always", True, "Session"),
        ("always", False, "BusUnavailable"),
    ],
)
def test_tracking_follows_the_setting(
    rig: Harness, home: Path, track: str, with_broker: bool, expected: str
) -> None:
    """When a broker is known, always (or fail), or never."""
    said = run_program(
        "from hark.bus.session import current_session\n"
        "try: print(type(current_session()).__name__)\nexcept Exception as exc: print(type(exc).__name__)",
        rig.home if with_broker else home,
        HARK_ENGINE__TRACK=track,
    )
    assert said.strip().replace("NoneType", "None") == expected


def test_a_known_broker_that_does_not_answer_is_an_error(home: Path) -> None:
    """``HARK_NATS_URL`` was set for a reason: runs are not silently untracked."""
    said = run_program(
        "from hark.bus.session import current_session\n"
        "try: current_session()\nexcept Exception as exc: print(type(exc).__name__, exc)",
        home,
        HARK_NATS_URL="nats://127.0.0.1:1",
        HARK_BUS__CONNECT_TIMEOUT_S="0.3",
    )
    assert said.startswith("BusUnavailable no broker answers at nats://127.0.0.1:1 within 0.3 s")


def test_who_waits_for_a_session_that_closes_is_told(rig: Harness) -> None:
    """A thread and a loop whose question is on its way, one that asked for more, and one that comes too late."""
    thread = SessionThread(lambda: open_bus(rig.broker.address, BusConfig(request_timeout_s=60)))
    session = thread.start()
    messages = [session.bus.log.message(Event(type="a", source="/s"), None)]
    session.call(session.bus.log.last, "hark.ev.a")
    pid = rig.broker.pid
    assert pid is not None
    with ThreadPoolExecutor() as pool:
        os.kill(pid, signal.SIGSTOP)
        try:
            stored = pool.submit(session.store, messages)
            astored = pool.submit(asyncio.run, session.astore(messages))
            called = pool.submit(session.call, asyncio.Event().wait)
            while len(session._exchanges) < 2:
                assert not stored.done()
                assert not astored.done()
                session.call(asyncio.sleep, 0)
            thread.stop()
            assert stored.result(5) is None
            assert astored.result(5) is None
            with pytest.raises(BusUnavailable, match="has been closed"):
                called.result(5)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert session.store(messages) is None
    with pytest.raises(BusUnavailable, match="has been closed"):
        session.call(asyncio.sleep, 0)


def test_the_thread_of_a_session_is_not_ended_by_a_connection_that_was_closed(rig: Harness) -> None:
    """Where the program has set SIGPIPE to its default, a write there would end all of it."""

    async def blocked() -> set[signal.Signals | int]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    assert signal.SIGPIPE in rig.session.call(blocked)
    assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_call_against_a_silent_broker_fails_within_one_deadline(
    rig: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick try of its first transitions counts for the time that its error names; what was longer than a try does not."""
    thread = SessionThread(lambda: open_bus(rig.broker.address, BusConfig(request_timeout_s=0.9)))
    session, spent = thread.start(), list[float]()
    deadline = Replies.deadline

    def noted(self: Replies, spent_s: float = 0.0) -> float:
        spent.append(spent_s)
        until = deadline(self, spent_s)
        assert until - asyncio.get_running_loop().time() == pytest.approx(0.9 - min(spent_s, 0.3), abs=0.05)
        return until

    monkeypatch.setattr(Replies, "deadline", noted)
    pid = rig.broker.pid
    assert pid is not None
    silent = flow(lambda: 1)
    try:
        with use_session(session):
            silent()
            spent.clear()
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(BusUnavailable, match=r"did not store .* within 0\.9 s"):
                silent()
    finally:
        os.kill(pid, signal.SIGCONT)
        thread.stop()
    assert spent[0] >= 0.3
