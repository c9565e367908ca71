"""Far timers: an event that the broker itself puts into the log when its time has come.

Near ones (minutes) belong into the memory of whoever waits. A far one must outlive every process of ours, so it
is a scheduled message of the broker. On brokers before 2.12 it is an ordinary message, and one process (``keep``)
reads all of them and publishes those that fall due.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from datetime import UTC, datetime
from urllib.parse import quote

import orjson

from ..clock import SYSTEM_CLOCK, Clock
from ..config import BusConfig
from ..errors import BusUnavailable, EventRefused, EventTooLarge
from ..vocabulary import new_id
from .connection import ApiError, Connection
from .event import Event, Recorded, format_time, parse_time
from .feed import Feed
from .log import headers_of
from .replies import Replies, refusal_in
from .subject import STREAM, subject_of
from .wire import check_subject, header_lines

__all__ = ["Timers"]

log = logging.getLogger(__name__)

TIMERS = "hark.timer.>"
AT, TARGET = "Hark-Timer-At", "Hark-Timer-Target"
SCHEDULES_SINCE = (2, 12, 0)
LONGEST_SLEEP_S = 3600.0  # a wall clock that is set while we sleep is noticed after this long


def timer_subject(timer_id: str) -> str:
    """``hark.timer.<id>``; a dot within the id is written ``%2E``."""
    return f"hark.timer.{quote(timer_id, safe='').replace('.', '%2E')}"


class Timers:
    """Sets and cancels far timers. Needs no closing."""

    def __init__(
        self, connection: Connection, config: BusConfig, *, clock: Clock = SYSTEM_CLOCK, stream: str = STREAM
    ) -> None:
        self._connection, self._config, self._clock, self._stream = connection, config, clock, stream
        self._replies = Replies(connection, config)

    @property
    def in_broker(self) -> bool:
        """Whether the broker fires the timers; if not, one process has to run ``keep``."""
        return self._config.schedules and self._connection.server_version >= SCHEDULES_SINCE

    async def set(self, timer_id: str, event: Event, *, at: datetime) -> None:
        """Have ``event`` appended at ``at`` (at once if that has passed). Replaces a timer of the same id.

        It is appended up to 0.3 s late, and not under its ``msg_id``: a timer that fires is always stored.

        Raises:
            EventTooLarge, EventRefused, BusUnavailable: it was not set; setting it again is safe.
        """
        target = check_subject(subject_of(event))
        headers = {"Nats-Msg-Id": new_id(), **headers_of(event)}
        if self.in_broker:
            when = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            headers |= {"Nats-Schedule": f"@at {when}", "Nats-Schedule-Target": target}
        else:
            headers |= {AT: format_time(at), TARGET: target}
            await self.cancel(timer_id)
        subject, lines, payload = timer_subject(timer_id), header_lines(headers), event.to_json()
        size, limit = len(lines) + 12 + len(payload), self._connection.max_payload
        if size > limit:
            raise EventTooLarge(target, size_bytes=size, limit_bytes=limit)
        msg = await self._replies.insist(subject, payload, headers=lines, what="a timer")
        refusal = refusal_in(orjson.loads(msg.data))
        if refusal is not None:
            if refusal.is_passing:
                raise BusUnavailable(f"the broker cannot set a timer now: {refusal}")
            raise EventRefused(target, msg_id=event.msg_id, why=str(refusal))

    async def cancel(self, timer_id: str) -> bool:
        """Take a timer back; returns False if there is none (any more).

        Raises:
            BusUnavailable: the broker cannot be reached.
        """
        return await self._forget(timer_subject(timer_id))

    async def _forget(self, subject: str) -> bool:
        try:
            answer = await self._connection.api(f"STREAM.PURGE.{self._stream}", {"filter": subject})
        except ApiError as exc:
            raise BusUnavailable(f"cannot cancel a timer: {exc}") from exc
        return bool(answer.get("purged"))

    # --- for brokers that cannot ----------------------------------------------------------------------

    async def keep(self) -> None:
        """Fire timers that the broker does not, for ever. To be run by one process; returns at once if not needed.

        A timer is published under its event's id and then forgotten, so a crash in between publishes it twice
        under one id, which the log stores once.
        """
        if self.in_broker:
            return
        due: list[tuple[datetime, int, Recorded]] = []
        feed = Feed(
            self._connection, self._config, stream=self._stream, filters=[TIMERS], after=0, since=None, batch=500,
            live=True,
        )  # fmt: skip
        await feed.start()
        reading: asyncio.Task[object] | None = None
        sleeping: asyncio.Task[None] | None = None
        try:
            while True:
                reading = reading or asyncio.ensure_future(anext(feed))
                delay_s = LONGEST_SLEEP_S
                if due:
                    delay_s = min(delay_s, (due[0][0] - self._clock.now()).total_seconds())
                sleeping = asyncio.ensure_future(self._clock.sleep(delay_s))
                await asyncio.wait({reading, sleeping}, return_when=asyncio.FIRST_COMPLETED)
                sleeping.cancel()
                if reading.done():
                    batch = reading.result()
                    reading = None
                    for record in batch.records:  # type: ignore[attr-defined]
                        if AT in record.headers:
                            heapq.heappush(due, (parse_time(record.headers[AT]), record.seq, record))
                while due and due[0][0] <= self._clock.now():
                    await self._fire(heapq.heappop(due)[2])
        finally:
            for task in (reading, sleeping):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
            await feed.close()

    async def _fire(self, timer: Recorded) -> None:
        """Publish a timer's event, unless it was cancelled or replaced meanwhile."""
        try:
            found = await self._connection.api(
                f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": timer.subject}
            )
        except ApiError as exc:
            if exc.code == 404:
                return
            raise BusUnavailable(f"cannot look up a timer: {exc}") from exc
        message = found["message"]
        if not isinstance(message, dict) or message.get("seq") != timer.seq:
            return
        event = timer.event
        lines = header_lines({"Nats-Msg-Id": f"timer/{timer.seq}", **headers_of(event)})
        await self._replies.insist(timer.headers[TARGET], timer.raw, headers=lines, what="a timer")
        await self._forget(timer.subject)
