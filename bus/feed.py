"""Reading the log in order and without gaps, across lost connections, lost consumers and restarted brokers.

A feed is a push consumer of the broker with flow control (the broker stops at about 32 MB that we have not taken)
and idle heartbeats (silence means a lost consumer). It counts what the broker says it sent; anything missing, and
every reconnect, makes it begin anew behind the last record it handed out.

Live feeds of one process and one filter share a consumer once they stand at the same place: what arrives for one is
put into the buffers of the others too. Who falls behind is on its own again, so a slow reader holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio

from ..config import BusConfig
from ..errors import BusUnavailable, LogRewound
from ..vocabulary import JsonObject, new_id
from .arrival import Arrival, subscribe, unsubscribe
from .connection import ApiError, Connection
from .event import Recorded, delivered, format_time
from .patience import Patience
from .subject import distinct_filters
from .wire import Wire, frame

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

__all__ = ["Batch", "Feed", "record_of", "recorded_of"]

log = logging.getLogger(__name__)

HEARTBEAT_S = 8
SILENCE_S = 2.5 * HEARTBEAT_S  # two lost beats and a half: the consumer is gone
_LOOK_S = SILENCE_S / 2
_NEVER_NS = 10 * 365 * 86_400 * 10**9
_CREATE_S = 5.0
"""A cluster that has just lost a server may give the consumer to that one, and never answer; another name goes elsewhere."""
_RETRY_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
SHARED_RECORDS, SHARED_BYTES = 5_000, 16 << 20
"""Feeds that share a consumer part when one has this much waiting, or half of the records that it says may wait."""
_NEAR = 1_000  # sequences by which the other may be behind when feeds come together


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in log order, and how many more wait on the broker (0: caught up). ``records`` may be empty."""

    records: list[Recorded]
    pending: int


def record_of(
    seq: int, subject: str, recorded_at: datetime, payload: bytes, headers: Mapping[str, str]
) -> Recorded:
    """Return a message of the log as a record: a CloudEvent that came in binary mode as JSON."""
    from .cloudevents import stored_json

    return Recorded(seq, subject, recorded_at, stored_json(headers, payload, recorded_at), headers)


def recorded_of(msg: Arrival) -> tuple[Recorded, int, int, int]:
    """Return what a delivered message holds: the record, its deliveries, its consumer sequence, and how many wait.

    The reply subject carries them: ``$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<seq>.<consumer
    seq>.<time ns>.<pending>[.<token>]``.
    """
    words = msg.reply.split(".")
    if len(words) == 9:
        _, _, _, _, deliveries, seq, number, at_ns, pending = words
    else:
        deliveries, seq, number, at_ns, pending = words[6:11]
    return _record(msg, int(seq), int(at_ns)), int(deliveries), int(number), int(pending)


def _record(msg: Arrival, seq: int, at_ns: int) -> Recorded:
    if msg.parsed is None:
        block = msg.block
        if not block or b"\nce-" not in block.lower():
            return delivered(seq, msg.subject, at_ns, msg.data, block)
    record = delivered(seq, msg.subject, at_ns, msg.data, msg.headers)
    return record_of(seq, msg.subject, record.recorded_at, msg.data, msg.headers)


def _nanoseconds(text: str) -> int:
    """Return a moment as the broker writes it (UTC, with up to nine digits of a second) in nanoseconds since 1970."""
    whole, _, digits = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(f"{digits:0<9}")


class Feed:
    """An async iterator of batches. ``start`` it before, ``close`` it after; ``EventLog`` wraps it so.

    Args:
        after: begin behind this sequence (0: at the beginning).
        since: begin at this time instead.
        live: go on for ever; else end at what is there at the start.
        others: the live feeds of the same stream in this process, by filters, for sharing.
        most_waiting: records that may have been sent and not taken, for who is slower than the broker and has much else to
            remember; by default as many as there are in 32 MB.
        patience: how long few records may wait for more; by default not at all.
    """

    def __init__(
        self,
        connection: Connection,
        config: BusConfig,
        *,
        stream: str,
        filters: Sequence[str],
        after: int | None,
        since: datetime | None,
        batch: int,
        live: bool,
        others: dict[tuple[str, ...], list[Feed]] | None = None,
        most_waiting: int | None = None,
        patience: Patience | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch counts from 1, got {batch}")
        self._connection, self._config, self._stream = connection, config, stream
        self._filters = distinct_filters(filters)
        self._after, self._since = after, since
        self._size, self._live = batch, live
        self._most_waiting = most_waiting
        self._acked_each = max(1, most_waiting // 8) if most_waiting else 0
        # Half, so that the broker is not waiting for us yet when those who share with us leave.
        self._most_shared = min(SHARED_RECORDS, most_waiting // 2) if most_waiting else SHARED_RECORDS
        self._wire = Wire(connection.nc)
        self._buffer: deque[Recorded | str] = deque()  # a str is a flow-control answer owed once we are there
        self._owed = 0  # how many of those there are
        self._waiter: asyncio.Future[None] | None = None
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._expected = 1
        self._pending = 0
        self._received = 0  # sequence of the last record put into the buffer
        self._received_ns = 0  # and when the broker recorded it
        self._left: int | None = None  # records still to hand out, when not live
        self._broken = False
        self._told = False  # whether who reads knows that nothing waits
        self._heard = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._unhook: Callable[[], object] | None = None
        self._peers = others.setdefault(tuple(self._filters), []) if others is not None and live else []
        self._source: Feed | None = None  # whose consumer feeds us
        self._taps: list[Feed] = []  # whom our consumer feeds
        self._weight = 0  # bytes waiting that came from another's consumer
        self._patience = patience
        self._caught_up = False  # whether there was a moment at which nothing waited
        self._hurried = False  # whether what waits is not to wait any longer
        self._handed_s = -math.inf  # when records were handed out last
        self._gathering: asyncio.TimerHandle | None = None

    # --- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the consumer.

        Raises:
            BusUnavailable: no answer in ``config.request_timeout_s``. LogRewound: see ``_open``.
        """
        self._unhook = self._connection.on_disconnect(self._on_lost)
        deadline = asyncio.get_running_loop().time() + self._config.request_timeout_s
        await self._reopen(deadline=deadline)
        self._peers.append(self)
        if self._patience is not None:
            self._patience.set_reader(self._hurry)

    async def close(self) -> None:
        """Stop, and tell the broker; it forgets the consumer by itself should that not reach it."""
        if self._unhook is not None:
            self._unhook()
            self._unhook = None
        if self._watch is not None:
            self._watch.cancel()
        if self._patience is not None:
            self._patience.set_reader(None)
            self._stop_gathering()
        if self in self._peers:
            self._peers.remove(self)
        self._part()
        consumer = self._consumer
        self._consumer = ""
        with anyio.CancelScope(shield=True):
            await self._drop()
            if consumer and self._connection.is_connected:
                try:
                    await self._connection.api(f"CONSUMER.DELETE.{self._stream}.{consumer}", timeout_s=1)
                except (ApiError, BusUnavailable) as exc:
                    log.debug("bus.consumer-left", extra={"consumer": consumer, "error": str(exc)})

    async def _drop(self) -> None:
        sub, self._subscription = self._subscription, None
        if sub is not None:
            await unsubscribe(sub)
        if self._consumer and self._connection.is_connected:
            subject = f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"
            self._wire.send(frame(subject, "", "", b""))
        self._consumer = ""

    async def _reopen(self, *, deadline: float | None) -> None:
        """Open a consumer behind the last record we have, trying again until ``deadline`` (for ever if None)."""
        loop = asyncio.get_running_loop()
        await self._drop()
        tries = 0
        while True:
            try:
                await self._connection.connected()
                self._broken = False
                await self._open()
            except (BusUnavailable, ApiError) as exc:
                await self._drop()
                if isinstance(exc, ApiError) and exc.code != 404 and exc.code < 500:
                    raise BusUnavailable(f"cannot read the log: {exc}") from exc
                if self._connection.nc.is_closed or (deadline is not None and loop.time() >= deadline):
                    raise BusUnavailable(f"cannot read the log: {exc}") from exc
                if tries == len(_RETRY_S):
                    log.warning("bus.feed-waits", extra={"stream": self._stream, "error": str(exc)})
                await asyncio.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
                tries += 1
            except BaseException:
                self._broken = True  # cancelled half-way: whoever asks next opens it
                raise
            else:
                return

    async def _open(self) -> None:
        info = await self._connection.api(f"STREAM.INFO.{self._stream}")
        state = info["state"]
        assert isinstance(state, dict)
        head = int(str(state["last_seq"]))
        if self._after is None and self._since is None:
            self._after = head
        begin = max(self._received, self._after or 0)
        if begin > head:
            raise LogRewound(self._stream, after=begin, head=head)
        await self._recognise(head)
        name = f"feed-{new_id()[-12:]}{self._expected}"
        inbox = self._connection.new_inbox()
        self._buffer_reset()
        held = len(self._buffer)  # of an earlier consumer, whose answer may never have come
        self._subscription = await subscribe(
            self._connection.nc,
            inbox,
            partial(self._on_message, name),
        )
        self._consumer = name
        created = await self._connection.api(
            f"CONSUMER.CREATE.{self._stream}.{name}",
            {"stream_name": self._stream, "action": "create", "config": self._settings(name, inbox)},
            timeout_s=min(_CREATE_S, self._config.request_timeout_s),
        )
        # All it has to give. A broker slow to answer was asked twice, perhaps, and some of it may have come meanwhile.
        delivered = created.get("delivered")
        given = int(str(delivered.get("consumer_seq", 0))) if isinstance(delivered, dict) else 0
        waiting = given + int(str(created.get("num_pending", 0)))
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        if self._watch is None:
            self._look_later(loop)
        if self._expected == 1:  # nothing has arrived before this answer
            self._pending = waiting
        if not self._live:
            self._left = held + waiting if self._left is None else min(self._left, held + waiting)

    async def _recognise(self, head: int) -> None:
        """Make sure, before going on, that the last record we have is still the one in its place.

        An older copy of the broker's files that was put back, or a log that lost its tail, may have grown past us since. A
        record that has left the log says nothing.
        """
        if not self._received:
            return
        try:
            found = await self._connection.api(
                f"STREAM.MSG.GET.{self._stream}", {"seq": self._received, "no_hdr": True}
            )
        except ApiError as exc:
            if exc.code == 404:
                return
            raise
        message = found["message"]
        assert isinstance(message, dict)
        if _nanoseconds(str(message["time"])) != self._received_ns:
            raise LogRewound(self._stream, after=self._received, head=head)

    def _buffer_reset(self) -> None:
        """Forget flow-control answers owed to the consumer that is gone; records stay, they are in order."""
        self._buffer = deque(item for item in self._buffer if not isinstance(item, str))
        self._owed = 0
        self._expected = 1

    def _settings(self, name: str, inbox: str) -> JsonObject:
        settings: JsonObject = {
            "name": name,
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": True,
            "idle_heartbeat": HEARTBEAT_S * 10**9,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30 * 10**9,
        }
        if self._most_waiting:
            # The flow control of a push consumer lets 32 MB come, a hundred thousand small records: in our memory four
            # times as much. What waits for an acknowledgement can be bounded by number; nothing is ever sent again.
            settings |= {
                "ack_policy": "all", "max_ack_pending": self._most_waiting, "ack_wait": _NEVER_NS,
            }  # fmt: skip
        if len(self._filters) == 1:
            settings["filter_subject"] = self._filters[0]
        elif self._filters:
            settings["filter_subjects"] = list(self._filters)
        begin = max(self._received, self._after or 0)
        if begin or self._since is None:
            settings |= {"deliver_policy": "by_start_sequence", "opt_start_seq": begin + 1}
        else:
            settings |= {"deliver_policy": "by_start_time", "opt_start_time": format_time(self._since)}
        return settings

    # --- what arrives ---------------------------------------------------------------------------------

    def _on_message(self, consumer: str, msg: Arrival) -> bool:
        """Take a message; return whether nobody is in a hurry for what came, so that the next may be read a little later."""
        if consumer != self._consumer:
            return True
        if (msg.block[8:9] == b" " or msg.parsed is not None) and msg.status:
            self._on_status(msg)
            return True
        words = msg.reply.split(".")
        if len(words) != 9:
            words = [*words[:2], *words[4:11]]  # the domain and the account stand in between
        number = int(words[6])
        if number != self._expected:
            self._lost(f"expected delivery {self._expected}, got {number}")
            return False
        self._expected = number + 1
        seq = int(words[5])
        self._received = seq
        self._pending = int(words[8])
        self._received_ns = at_ns = int(words[7])
        record = _record(msg, seq, at_ns)
        self._buffer.append(record)
        if self._acked_each and number % self._acked_each == 0:
            self._buffer.append(msg.reply)  # owed once we are there, as the answers of the flow control are
            self._owed += 1
        is_calm = False
        if self._patience is not None:
            is_calm = self._came(record, self._patience)
        else:
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._taps:
            is_calm = self._share(record) and is_calm
        return is_calm

    def _on_status(self, msg: Arrival) -> None:
        headers = msg.headers
        self._heard = asyncio.get_running_loop().time()
        if headers.get("Status") != "100":
            self._lost(f"status {headers.get('Status')}")
            return
        owed = msg.reply or headers.get("Nats-Consumer-Stalled", "")
        if not msg.reply:
            last = headers.get("Nats-Last-Consumer", "")
            if last.isdigit() and int(last) >= self._expected:
                self._lost(f"heartbeat speaks of delivery {last}, expected {self._expected}")
                return
        if owed:
            if self._buffer:
                self._buffer.append(owed)
                self._owed += 1
                self._hurry()  # the broker may be waiting for it
            else:
                self._wire.send(frame(owed, "", "", b""))
        if not owed and not self._buffer and (self._pending or not self._live):
            # What was counted has been deleted meanwhile, or the broker is very slow: it counts anew.
            self._lost(f"{self._pending if self._live else self._left} are still to come")

    def _on_lost(self) -> None:
        self._lost("the connection broke")

    def _lost(self, why: str) -> None:
        if not self._broken:
            log.debug("bus.feed-reopens", extra={"why": why, "seq": self._received})
        self._broken = True
        self._part()
        self._wake()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        silent = loop.time() - self._heard
        alone = self._source is None
        if alone and silent >= SILENCE_S and self._connection.is_connected and not self._buffer:
            self._lost(f"silent for {silent:.0f} s")
        self._look_later(loop)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        # All feeds of a process at one moment: an idle one has two dozen, and each would wake it by itself.
        self._watch = loop.call_at((math.floor(loop.time() / _LOOK_S + 0.25) + 1) * _LOOK_S, self._look)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- patience -------------------------------------------------------------------------------------

    def _came(self, record: Recorded, patience: Patience) -> bool:
        """Wake who reads for a record, or let it wait for others; return whether it was not pressing."""
        if not self._hurried and patience.unless is not None and patience.unless(record):
            self._hurried = True
        is_gathering = self._gathering is not None and not self._hurried and self._is_short()
        if self._waiter is not None and not is_gathering and not self._may_wait():
            self._wake()
        # While much comes it is not let come together: where few may be under way, the broker would be what waits.
        return not self._hurried and self._pending < self._size

    def _hurry(self) -> None:
        self._hurried = True
        self._wake()

    def _may_wait(self) -> bool:
        """Return whether what is here may wait for more; if so, who reads is woken in time."""
        patience = self._patience
        if patience is None or self._hurried or not self._caught_up:
            return False
        if self._pending >= self._size or not self._is_short():
            return False  # much comes
        if self._gathering is not None:
            return True
        loop = asyncio.get_running_loop()
        due = self._handed_s + patience.gather_s
        if loop.time() >= due:
            return False
        self._gathering = loop.call_at(due, self._gathered)
        return True

    def _is_short(self) -> bool:
        return len(self._buffer) < self._size

    def _gathered(self) -> None:
        self._gathering = None
        self._hurry()

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    # --- sharing --------------------------------------------------------------------------------------

    def _share(self, record: Recorded) -> bool:
        is_calm = True
        for tap in tuple(self._taps):
            if record.seq > tap._received:
                tap._received, tap._pending = record.seq, self._pending
                tap._received_ns = self._received_ns
                tap._buffer.append(record)
                tap._weight += len(record.raw)
                if tap._patience is not None:
                    is_calm = tap._came(record, tap._patience) and is_calm
                else:
                    is_calm = False
                    tap._wake()
                if len(tap._buffer) > tap._most_shared or tap._weight > SHARED_BYTES:
                    tap._lost("behind those it shared with")
        if len(self._buffer) > self._most_shared:
            # The broker is about to wait for us; the others must not.
            for tap in tuple(self._taps):
                tap._lost("who it shared with is behind")
        return is_calm

    def _part(self) -> None:
        """Be on our own, and leave those who share with us on theirs."""
        if self._source is not None:
            self._source._taps.remove(self)
            self._source = None
        taps, self._taps = self._taps, []
        for tap in taps:
            tap._source = None
            tap._lost("who it shared with has gone")

    def _partner(self) -> Feed | None:
        """Return a feed that stands where we stand and has a consumer of its own."""
        if self._source is not None or self._taps or self._broken:
            return None
        for other in self._peers:
            if other is self or other._source is not None or other._broken or not other._consumer:
                continue
            if len(other._buffer) > other._most_shared:
                continue  # it is behind, and the broker may be waiting for it
            # All that came for it has come for us; what comes next comes for both.
            if max(1, self._received - _NEAR) <= other._received <= self._received:
                return other
        return None

    async def _join(self, other: Feed) -> None:
        """Give up our own consumer for that of ``other``."""
        other._taps.append(self)
        self._source = other
        self._buffer_reset()
        # Without its name, what still comes from our own consumer is left aside.
        consumer, self._consumer = self._consumer, ""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await unsubscribe(subscription)
        if self._connection.is_connected:
            self._wire.send(frame(f"$JS.API.CONSUMER.DELETE.{self._stream}.{consumer}", "", "", b""))

    # --- what is handed out ---------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        while True:
            if self._buffer and not self._may_wait():
                if len(self._peers) > 1 and (other := self._partner()) is not None:
                    await self._join(
                        other
                    )  # before taking: who is cancelled here must not lose what was taken
                taken = self._take()
                if taken.records:
                    self._told = taken.pending == 0
                    self._caught_up = self._caught_up or self._told
                    if self._patience is not None:
                        self._stop_gathering()
                        self._hurried, self._handed_s = bool(self._buffer), asyncio.get_running_loop().time()
                    return taken
            if self._left == 0:
                raise StopAsyncIteration
            if self._broken:
                await self._reopen(deadline=None)
                continue
            if not self._told and self._live and not self._pending and not self._buffer:
                self._told = self._caught_up = True
                return Batch([], 0)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _answer(self, owed: str) -> None:
        self._owed -= 1
        self._wire.send(frame(owed, "", "", b""))

    def _take(self) -> Batch:
        buffer, records = self._buffer, list[Recorded]()
        room = self._size if self._left is None else min(self._size, self._left)
        if not self._owed:  # as it is nearly always
            popleft: Callable[[], Any] = buffer.popleft
            records = [popleft() for _ in range(min(room, len(buffer)))]
        while len(records) < room and buffer:
            item = buffer.popleft()
            if isinstance(item, str):
                self._answer(item)
            else:
                records.append(item)
        while buffer and isinstance(buffer[0], str):
            self._answer(str(buffer.popleft()))
        if self._weight:
            self._weight = max(0, self._weight - sum(len(record.raw) for record in records)) if buffer else 0
        pending = self._pending + len(buffer)
        if self._left is not None:
            self._left -= len(records)
            pending = self._left
            if not self._left or (not self._pending and not buffer):
                self._left = pending = 0
        return Batch(records, pending)
