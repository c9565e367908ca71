"""Lines of runs: gathered, bounded, readable by run, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import anyio
import pytest
from hark.bus import Bus, run_logs
from hark.bus.run_logs import MOST_LINES, LogLine, LogPlace, decode_lines, encode_lines
from hark.vocabulary import FlowRunId, TaskRunId
from hypothesis import given
from hypothesis import strategies as st

Frozen = Callable[[], AbstractContextManager[None]]
ONE, TWO = FlowRunId("run-1"), FlowRunId("run-2")


def a_line(message: str, run: FlowRunId = ONE) -> LogLine:
    return LogLine(flow_run_id=run, message=message)


async def test_lines_are_read_back_by_run(bus: Bus) -> None:
    """Every field comes back; runs do not mix; a barrier of the publisher covers the lines."""
    full = LogLine(
        flow_run_id=ONE, message="hällo\n", level=logging.ERROR, logger="my.flow", task_run_id=TaskRunId("t"),
        at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), extra={"n": 1, "deep": {"x": [None]}},
    )  # fmt: skip
    bus.run_logs.publish_nowait(ONE, full)
    bus.run_logs.publish_nowait(TWO, a_line("other", TWO))
    await bus.publisher.barrier()
    assert await bus.run_logs.read(ONE) == [full]
    assert [line.message for line in await bus.run_logs.read(TWO)] == ["other"]
    assert await bus.run_logs.read(FlowRunId("none")) == []
    assert await bus.log.head() == 0


async def test_many_lines_travel_in_few_messages(bus: Bus) -> None:
    """A burst of thousands of lines, from a thread, keeps its order and is a handful of messages."""

    def write() -> None:
        for n in range(5000):
            bus.run_logs.publish_nowait(ONE, a_line(str(n)))

    await anyio.to_thread.run_sync(write)
    await bus.publisher.barrier()
    assert [line.message for line in await bus.run_logs.read(ONE)] == [str(n) for n in range(5000)]
    info = await bus.connection.api("STREAM.INFO.HARK_LOGS")
    assert isinstance(info["state"], dict)
    assert int(str(info["state"]["messages"])) < 50


async def test_the_end_of_a_log_is_read_without_its_beginning(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of a long log grows with the lines asked for; lines of others between do not hide them."""
    for i in range(300):
        bus.run_logs.publish_nowait(ONE, a_line(str(i)))
        bus.run_logs.flush()
        bus.run_logs.publish_nowait(TWO, a_line("other", TWO))
        bus.run_logs.flush()
    await bus.publisher.barrier()
    read: list[str] = []

    def counted(run: str, raw: bytes) -> list[LogLine]:
        read.append(run)
        return decode_lines(run, raw)

    monkeypatch.setattr(run_logs, "decode_lines", counted)
    lines, is_whole = await bus.run_logs.tail(ONE, 10)
    assert ([line.message for line in lines], is_whole) == ([str(i) for i in range(290, 300)], False)
    assert len(read) < 50
    lines, is_whole = await bus.run_logs.tail(ONE, 300)
    assert ([line.message for line in lines], is_whole) == ([str(i) for i in range(300)], True)
    assert await bus.run_logs.tail(FlowRunId("none"), 10) == ([], True)


async def test_a_page_of_a_log_is_read_from_its_place_on(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the place, a page reads about as many lines as it shows; all pages are the log, each line once."""
    for i in range(3000):  # messages of ten lines, others between
        bus.run_logs.publish_nowait(ONE, a_line(str(i)))
        if i % 10 == 9:
            bus.run_logs.publish_nowait(TWO, a_line("other", TWO))
            bus.run_logs.flush()
    await bus.publisher.barrier()
    read: list[int] = []

    def counted(run: str, raw: bytes) -> list[LogLine]:
        lines = decode_lines(run, raw)
        read.append(len(lines))
        return lines

    monkeypatch.setattr(run_logs, "decode_lines", counted)
    shown: list[str] = []
    place, more, pages = LogPlace(), True, 0
    while more:
        read.clear()
        received = bus.connection.nc.stats["in_bytes"]
        page = await bus.run_logs.page(ONE, begin=place, limit=333)
        assert sum(read) <= 333 + 20
        # A message of ten lines is about 500 bytes; the whole log would be ten times as much.
        assert bus.connection.nc.stats["in_bytes"] - received < 40_000
        shown += [line.message for line in page.lines]
        place, more, pages = page.end, page.more, pages + 1
    assert shown == [str(i) for i in range(3000)]
    assert pages == 10
    nothing = await bus.run_logs.page(ONE, begin=place, limit=5)
    assert (nothing.lines, nothing.end, nothing.more) == ([], place, False)
    whole = await bus.run_logs.page(ONE, limit=20_000)
    assert ([line.message for line in whole.lines], whole.more) == (shown, False)
    exact = await bus.run_logs.page(ONE, limit=3000)
    assert (len(exact.lines), exact.more) == (3000, False)
    assert (await bus.run_logs.page(FlowRunId("none"), limit=5)).lines == []
    gone = await bus.run_logs.page(ONE, begin=LogPlace(10**9, 3), limit=5)
    assert (gone.lines, gone.more) == ([], False), "a place behind the end is the end"


async def test_lines_come_by_themselves(bus: Bus) -> None:
    """Without any barrier a line is there in a moment; following shows history first, then what comes."""
    bus.run_logs.publish_nowait(ONE, a_line("first"))
    await bus.publisher.barrier()
    with anyio.fail_after(60):
        async with bus.run_logs.follow(ONE) as lines:
            assert [line.message for line in await anext(lines)] == ["first"]
            bus.run_logs.publish_nowait(ONE, a_line("second"))
            assert [line.message for line in await anext(lines)] == ["second"]


async def test_too_many_lines_lose_the_oldest_and_say_so(bus: Bus) -> None:
    """The bound holds, the newest lines are kept, and the log itself tells how many are missing."""
    for n in range(MOST_LINES + 500):
        bus.run_logs.publish_nowait(ONE, a_line(str(n)))
    await bus.publisher.barrier()
    lines = await bus.run_logs.read(ONE)
    assert len(lines) == MOST_LINES + 1
    assert lines[0].message.startswith("500 lines of this log were dropped")
    assert lines[-1].message == str(MOST_LINES + 499)


async def test_huge_and_strange_lines_are_cut_and_kept(bus: Bus) -> None:
    """Whatever a run logs, its log can be written: too long is cut, what is not JSON is described."""
    bus.run_logs.publish_nowait(ONE, a_line("x" * 1_000_000))
    bus.run_logs.publish_nowait(ONE, a_line("\ud800 lone"))
    extra = {"object": object(), "big": "y" * 2_000_000}
    bus.run_logs.publish_nowait(ONE, LogLine(flow_run_id=ONE, message="big extra", extra=extra))  # type: ignore[arg-type]
    await bus.publisher.barrier()
    long, strange, big = await bus.run_logs.read(ONE)
    assert long.message.endswith("more characters)")
    assert len(long.message) < 40_000
    assert strange.message == "? lone"
    assert big.message.startswith("big extra")
    with pytest.raises(ValueError, match="was given for run"):
        bus.run_logs.publish_nowait(TWO, a_line("mine"))


LINES = st.builds(
    LogLine,
    flow_run_id=st.just(ONE),
    message=st.text(st.characters(codec="utf-8"), max_size=200),
    level=st.integers(0, 50),
    logger=st.text(st.characters(codec="utf-8"), max_size=30),
    at=st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    task_run_id=st.none() | st.just(TaskRunId("t1")),
    extra=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5), st.integers(-5, 5) | st.booleans(), max_size=3
    ),
)


@given(st.lists(LINES, max_size=5))
def test_lines_survive_encoding(lines: list[LogLine]) -> None:
    """decode(encode(x)) == x."""
    assert decode_lines(ONE, encode_lines(lines)) == lines
