"""Lines that runs write: gathered for a moment, published together, short-lived, in a stream of their own.

A line is worth less than the run: when lines are made faster than the broker takes them the oldest are dropped,
and the run's log says how many.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson

from ..config import BusConfig
from ..errors import BufferFull, BusUnavailable
from ..vocabulary import FlowRunId, JsonValue, TaskRunId, new_id
from .connection import ApiError, Connection
from .event import Recorded
from .feed import Feed
from .owner import Owner
from .publisher import Publisher
from .pull import pulling
from .subject import LOGS_STREAM

__all__ = ["LogLine", "LogPage", "LogPlace", "RunLogs"]

log = logging.getLogger(__name__)

GATHER_S = 0.02  # long enough to put a burst into one message, too short for a reader to notice
MOST_LINES = 20_000
MOST_CHARS = 32_768  # of one message; the rest is cut, and the cut is said
MESSAGE_BYTES = 128 << 10
_FIRST_STEP, _LONGER = 8, 8  # messages of the stream, whosever they are; each holds up to some thousand lines
_FIRST_PULL, _MOST_PULL = (
    8,
    500,
)  # messages asked for at once, before and after we know how many lines one holds
_NO_MESSAGE = 10037
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a run's log. ``level`` counts as in ``logging``; ``extra`` holds further JSON fields."""

    flow_run_id: FlowRunId
    message: str
    level: int = logging.INFO
    logger: str = "hark"
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    task_run_id: TaskRunId | None = None
    extra: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogPlace:
    """A place in a run's log: behind the first ``taken`` lines of the message at ``seq`` of the stream."""

    seq: int = 0
    taken: int = 0


@dataclass(frozen=True, slots=True)
class LogPage:
    """Lines of a run in order, the place behind the last of them, and whether more are stored behind it."""

    lines: list[LogLine]
    end: LogPlace
    more: bool


def log_subject(flow_run_id: str) -> str:
    return f"hark.log.{flow_run_id}"


def encode_lines(lines: list[LogLine]) -> bytes:
    """Return lines of one run as they are stored: a JSON list of short lists, times in microseconds."""
    rows = []
    for line in lines:
        message = line.message
        if len(message) > MOST_CHARS:
            message = f"{message[:MOST_CHARS]}… ({len(message) - MOST_CHARS} more characters)"
        # A lone surrogate cannot be UTF-8, and a run must not fail over a strange character in its log.
        message = message.encode("utf-8", "replace").decode()
        at_us = (line.at - _EPOCH) // timedelta(microseconds=1)
        row: list[object] = [at_us, line.level, line.logger, message, line.task_run_id]
        if line.extra:
            row.append(dict(line.extra))
        rows.append(row)
    return orjson.dumps(rows, default=repr, option=orjson.OPT_NON_STR_KEYS)


def decode_lines(flow_run_id: str, raw: bytes) -> list[LogLine]:
    """Return the lines of one stored message."""
    return [
        LogLine(
            flow_run_id=FlowRunId(flow_run_id), at=_EPOCH + timedelta(microseconds=row[0]), level=row[1],
            logger=row[2], message=row[3], task_run_id=row[4], extra=row[5] if len(row) > 5 else {},
        )
        for row in orjson.loads(raw)
    ]  # fmt: skip


class RunLogs:
    """The stream ``HARK_LOGS``. Make it in the loop of its publisher; the publisher's barrier covers its lines."""

    def __init__(self, connection: Connection, publisher: Publisher, config: BusConfig) -> None:
        self._connection, self._publisher, self._config = connection, publisher, config
        self._lock = threading.Lock()
        self._lines: deque[LogLine] = deque()
        self._dropped: dict[FlowRunId, int] = {}
        self._loop = asyncio.get_running_loop()
        self._is_gathering = self._is_flushing = False
        self._id = new_id()
        self._owner = (
            Owner()
        )  # no run fails because of a line that the broker refused: it stands in this process's log
        self._numbers = itertools.count(1)
        publisher.on_barrier(self.flush)

    def publish_nowait(self, flow_run_id: FlowRunId, line: LogLine) -> None:
        """Take a line of a run, from any thread. Never fails and never waits; see above for the bound."""
        with self._lock:
            if len(self._lines) >= MOST_LINES:
                lost = self._lines.popleft().flow_run_id
                self._dropped[lost] = self._dropped.get(lost, 0) + 1
            if line.flow_run_id != flow_run_id:
                raise ValueError(f"a line of run {line.flow_run_id} was given for run {flow_run_id}")
            self._lines.append(line)
            if self._is_gathering:
                return
            self._is_gathering = True
        try:
            self._loop.call_soon_threadsafe(self._gather)
        except RuntimeError as exc:  # the loop is closed: the process is ending
            raise BusUnavailable("the bus was closed; this line is lost") from exc

    def _gather(self) -> None:
        self._loop.call_later(GATHER_S, self.flush)

    @property
    def has_gathered(self) -> bool:
        """Whether lines wait to be given to the publisher. From any thread."""
        return bool(self._lines) or self._is_flushing

    def flush(self) -> None:
        """Give what was gathered to the publisher (in its loop)."""
        with self._lock:
            self._is_gathering, self._is_flushing = False, True
            lines, self._lines = self._lines, deque()
            dropped, self._dropped = self._dropped, {}
        try:
            self._publish_all(lines, dropped)
        finally:
            self._is_flushing = False

    def _publish_all(self, lines: Iterable[LogLine], dropped: Mapping[FlowRunId, int]) -> None:
        by_run: dict[FlowRunId, list[LogLine]] = {}
        for run_id, count in dropped.items():
            by_run[run_id] = [_loss(run_id, count)]
        for line in lines:
            by_run.setdefault(line.flow_run_id, []).append(line)
        runs = deque(by_run.items())
        while runs:
            run_id, mine = runs.popleft()
            try:
                self._publish(run_id, mine)
            except BufferFull:
                self._keep([line for _, rest in [(run_id, mine), *runs] for line in rest])
                return

    def _publish(self, run_id: FlowRunId, lines: list[LogLine]) -> None:
        """Publish lines of one run, in as many messages as it takes. Published lines leave ``lines``."""
        while lines:
            count = len(lines)
            raw = encode_lines(lines)
            while len(raw) > MESSAGE_BYTES and count > 1:
                count = max(1, count // 2)
                raw = encode_lines(lines[:count])
            if len(raw) > self._connection.max_payload - 1024:
                lines[0] = _without_extra(lines[0])
                raw = encode_lines(lines[:1])
            self._publisher.publish_raw_nowait(
                log_subject(run_id), raw, f"{self._id}/{next(self._numbers)}", None, self._owner
            )
            del lines[:count]

    def _keep(self, lines: list[LogLine]) -> None:
        """Put lines back: the publisher is full. They are tried again in a moment."""
        with self._lock:
            room = max(0, MOST_LINES - len(self._lines))
            for line in lines[: max(0, len(lines) - room)]:
                self._dropped[line.flow_run_id] = self._dropped.get(line.flow_run_id, 0) + 1
            self._lines.extendleft(reversed(lines[max(0, len(lines) - room) :]))
            if self._is_gathering:
                return
            self._is_gathering = True
        self._loop.call_later(GATHER_S, self.flush)

    # --- reading --------------------------------------------------------------------------------------

    async def read(self, flow_run_id: FlowRunId) -> list[LogLine]:
        """Return the lines of a run that are stored, in order. Empty also when they have left by age.

        Raises:
            BusUnavailable: the broker cannot be reached.
        """
        out: list[LogLine] = []
        async with self._feed(flow_run_id, live=False) as feed:
            async for lines in feed:
                out += lines
        return out

    async def page(self, flow_run_id: FlowRunId, *, begin: LogPlace = LogPlace(), limit: int) -> LogPage:
        """Return up to ``limit`` lines (1 or more) of a run from the place ``begin`` on.

        What it reads grows with what is asked for, wherever in the log it begins. Lines that have left by age are
        passed over.

        Raises:
            BusUnavailable: the broker cannot be reached, or did not answer in time.
        """
        found: list[LogLine] = []
        end, messages, step = begin, 0, _FIRST_PULL
        async with pulling(
            self._connection, stream=LOGS_STREAM, filter=log_subject(flow_run_id), first=begin.seq
        ) as pull:
            while len(found) < limit:
                records = await pull.take(step)
                for at, record in enumerate(records):
                    lines = _decoded(flow_run_id, record)
                    first = begin.taken if record.seq == begin.seq else 0
                    some = lines[first : first + limit - len(found)]
                    found += some
                    end = LogPlace(record.seq, first + len(some))
                    if len(found) == limit:
                        more = end.taken < len(lines) or at + 1 < len(records) or pull.pending > 0
                        return LogPage(found, end, more)
                if pull.pending == 0:
                    break
                messages += len(records)
                # As many as the lines still wanted need, if the next messages are as those before.
                step = max(1, min(_MOST_PULL, -(-(limit - len(found)) * messages // max(1, len(found)))))
        return LogPage(found, end, False)

    async def tail(self, flow_run_id: FlowRunId, lines: int) -> tuple[list[LogLine], bool]:
        """Return the last ``lines`` of a run that are stored, in order, and whether that is all of them.

        What it reads grows with what is asked for, not with the log: it goes back from the end in longer and longer
        steps, until there are enough.

        Raises:
            BusUnavailable: the broker cannot be reached.
        """
        last = await self._last_seq(flow_run_id)
        found: list[LogLine] = []
        step = _FIRST_STEP
        while last > 0:
            after = max(0, last - step)
            found = []
            async with self._feed(flow_run_id, live=False, after=after) as feed:
                async for some in feed:
                    found += some
            if len(found) > lines or after == 0:
                break
            step *= _LONGER
        return found[max(0, len(found) - lines) :], len(found) <= lines

    async def _last_seq(self, flow_run_id: FlowRunId) -> int:
        """Return the sequence of a run's last message, 0 if it has none."""
        try:
            got = await self._connection.api(
                f"STREAM.MSG.GET.{LOGS_STREAM}", {"last_by_subj": log_subject(flow_run_id)}
            )
        except ApiError as exc:
            if exc.err_code == _NO_MESSAGE:
                return 0
            raise
        message = got["message"]
        assert isinstance(message, dict)
        return int(str(message["seq"]))

    async def delete(self, flow_run_id: FlowRunId) -> None:
        """Remove the lines of a run.

        Raises:
            BusUnavailable: the broker cannot be reached.
        """
        await self._connection.api(f"STREAM.PURGE.{LOGS_STREAM}", {"filter": log_subject(flow_run_id)})

    async def wait(self, flow_run_id: FlowRunId, *, begin: LogPlace) -> None:
        """Return once lines of the run are stored in a message behind that of ``begin``.

        Raises:
            BusUnavailable: the broker cannot be reached at the call. Later outages are waited out.
        """
        async with self._feed(flow_run_id, live=True, after=begin.seq) as feed:
            async for lines in feed:
                if lines:
                    return

    def follow(self, flow_run_id: FlowRunId) -> AbstractAsyncContextManager[AsyncIterator[list[LogLine]]]:
        """Read the lines of a run from its first on, and go on as they come. A first empty list says "no more yet".

        Raises:
            BusUnavailable: on entering. Later outages are waited out.
        """
        return self._feed(flow_run_id, live=True)

    @asynccontextmanager
    async def _feed(
        self, flow_run_id: FlowRunId, *, live: bool, after: int = 0
    ) -> AsyncGenerator[AsyncIterator[list[LogLine]]]:
        feed = Feed(
            self._connection, self._config, stream=LOGS_STREAM, filters=[log_subject(flow_run_id)], after=after, since=None,
            batch=500, live=live,
        )  # fmt: skip
        try:
            await feed.start()
            yield _lines_of(feed, flow_run_id)
        finally:
            await feed.close()


async def _lines_of(feed: Feed, flow_run_id: str) -> AsyncGenerator[list[LogLine]]:
    async for batch in feed:
        yield [line for record in batch.records for line in _decoded(flow_run_id, record)]


def _decoded(flow_run_id: str, record: Recorded) -> list[LogLine]:
    try:
        return decode_lines(flow_run_id, record.raw)
    except (ValueError, TypeError, IndexError) as exc:
        log.warning("bus.log-unreadable", extra={"seq": record.seq, "error": str(exc)})
        return [
            LogLine(
                flow_run_id=FlowRunId(flow_run_id), level=logging.WARNING, at=record.recorded_at,
                message=f"a stored message of this log (sequence {record.seq}) cannot be read: {exc}",
            )
        ]  # fmt: skip


def _loss(run_id: FlowRunId, count: int) -> LogLine:
    return LogLine(
        flow_run_id=run_id,
        level=logging.WARNING,
        message=f"{count} lines of this log were dropped: they were written faster than the broker took them",
    )


def _without_extra(line: LogLine) -> LogLine:
    return LogLine(
        flow_run_id=line.flow_run_id, level=line.level, logger=line.logger[:200], at=line.at,
        task_run_id=line.task_run_id, message=f"{line.message[:MOST_CHARS]} (its extra fields were too large)",
    )  # fmt: skip
