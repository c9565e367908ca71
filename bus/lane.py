"""One stream's way out of this process: messages in order, each sent until the broker says that it is stored.

A handful goes out as plain acknowledged publishes; when more is waiting, a fast-ingest batch is opened. A lane has
no task: it moves when something is given to it, when an answer comes, and when the connection comes and goes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Callable
from itertools import islice

import orjson

from ..errors import EventRefused, EventTooLarge, HarkError
from .arrival import Arrival
from .connection import Connection
from .fast_ingest import (
    MOST_FLOW,
    OUTSTANDING,
    TOO_MANY_BATCHES,
    Ended,
    FastBatch,
    Gap,
    Plain,
    Progress,
    Refused,
    read_answer,
)
from .outgoing import Outgoing
from .replies import Refusal, refusal_in
from .wire import Wire

__all__ = ["Lane", "Outgoing"]

log = logging.getLogger(__name__)

FAST_FROM = 48  # below this, opening and ending a batch (two round trips) costs more than plain acks
PLAIN_WINDOW = 2000  # the broker drops publishes of a stream beyond 10 000 waiting
WINDOW_BYTES = 8 << 20
LINGER_S = 0.005  # how long an open batch waits for more before it is ended and its tail acknowledged
SILENCE_S = 2.0  # no answer for this long: what is not acknowledged is sent again
LATE_S = 0.1  # a look for silence that comes so much too late says that we did not listen
FAST_PAUSE_S = 5.0  # after "too many batches"
RETRY_S = 0.05


class Lane:
    """Sends messages of one stream.

    Args:
        end_subject: a subject of the stream on which the empty message that ends a batch travels; it is not stored.
        on_stored: told of messages that are stored. on_refused: of one that never will be, and why.
        hurry: says whether somebody waits for all that was sent.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        end_subject: str,
        fast: bool,
        on_stored: Callable[[list[Outgoing]], None],
        on_refused: Callable[[Outgoing, HarkError], None],
        hurry: Callable[[], bool],
    ) -> None:
        self._connection, self._end_subject = connection, end_subject
        self._may_fast = self._fast = fast
        self._on_stored, self._on_refused, self._hurry = on_stored, on_refused, hurry
        self._wire: Wire | None = None
        self._inbox = ""
        self.queue: deque[Outgoing] = deque()
        self._plain: dict[str, Outgoing] = {}
        self._batches: dict[str, FastBatch] = {}
        self._name = f"b{uuid.uuid4().hex[:20]}-"  # see FastBatch: batch names are shared by all publishers
        self._open: FastBatch | None = None
        self._count = 0
        self._bytes = 0  # sent and not acknowledged
        self._plain_left = 0  # the next so many go out plain: a batch failed on one of them
        self._probing = False  # one at a time, until the broker takes it
        self._last_sent = self._last_heard = self._watch_at = 0.0
        self._fast_from = 0.0
        self._linger: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._was_late = False
        self._retry: asyncio.TimerHandle | None = None

    # --- life -----------------------------------------------------------------------------------------

    def start(self, inbox: str, wire: Wire) -> None:
        """Begin sending; answers come to ``inbox.<something>``, see ``on_answer``."""
        self._inbox, self._wire = inbox, wire

    def stop(self) -> None:
        for timer in (self._linger, self._watch, self._retry):
            if timer is not None:
                timer.cancel()
        self._linger = self._watch = self._retry = None
        self._wire = None

    @property
    def unacked(self) -> int:
        return len(self._plain) + sum(len(batch.unacked) for batch in self._batches.values())

    def reset(self) -> None:
        """Put all that is not acknowledged back, in order: the connection is gone."""
        waiting = [*self._plain.values()]
        for batch in self._batches.values():
            waiting.extend(batch.unacked)
        self._plain.clear()
        self._batches.clear()
        self._open = None
        self._bytes = 0
        self._fast = self._may_fast  # the next connection may be to another, newer broker
        self._probing = True
        self._put_back(waiting)

    def _put_back(self, messages: list[Outgoing]) -> None:
        if not messages:
            return
        messages.sort(key=_ordinal)
        queue = self.queue
        if queue and queue[0].ordinal < messages[-1].ordinal:
            self.queue = deque(sorted([*messages, *queue], key=_ordinal))
        else:
            queue.extendleft(reversed(messages))

    # --- sending --------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what may be sent now."""
        wire = self._wire
        if wire is None or not self._connection.is_connected:
            return
        loop = asyncio.get_running_loop()
        queue = self.queue
        if queue and not (self._plain or self._batches):
            self._last_heard = loop.time()  # silence counts from the first message that wants an answer
        while self.queue:
            if not self._send_some(wire, loop):
                break
        if self._open is not None and self._open.is_open and not self.queue:
            if self._hurry():
                self._end()
            elif self._linger is None:
                self._linger = loop.call_later(LINGER_S, self._linger_over)
        if self._watch is None and (self._plain or self._batches):
            self._look_in(SILENCE_S)

    def _send_some(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> bool:
        """Send some of the queue by the way that fits; whether to go on."""
        batch = self._open
        if batch is None and self._wants_batch(loop):
            self._count += 1
            name = f"{self._name}{self._count}"
            batch = self._open = self._batches[name] = FastBatch(self._inbox, name, self._flow())
        if batch is not None:
            some = self._take(batch.room)
            if not some:
                if batch.is_open and batch.room:
                    self._end()  # bounded by bytes before the broker owes an answer: ask for one
                return False
            wire.send_parts(batch.frames(some))
            self._last_sent = loop.time()
            return batch.is_open
        window = 1 if self._probing else PLAIN_WINDOW
        some = self._take(window - len(self._plain))
        if not some:
            return False
        self._plain_left = max(0, self._plain_left - len(some))
        parts: list[bytes] = []
        for message in some:
            self._count += 1
            number = f"p{self._count}"
            self._plain[number] = message
            head = len(message.lines) + 12
            parts += (
                f"HPUB {message.subject} {self._inbox}.{number} {head} {head + len(message.payload)}\r\n"
                f"NATS/1.0\r\n{message.lines}\r\n".encode(),
                message.payload,
                b"\r\n",
            )
        wire.send_parts(parts)
        return True

    def _wants_batch(self, loop: asyncio.AbstractEventLoop) -> bool:
        return (
            self._fast
            and not self._probing
            and not self._plain_left
            and len(self.queue) + len(self._plain) >= FAST_FROM
            and loop.time() >= self._fast_from
        )

    def _flow(self) -> int:
        """Return how many messages may lie between two answers, so that what is unanswered stays within bounds."""
        some = list(islice(self.queue, 100))
        mean = sum(message.size for message in some) / len(some)
        return max(1, min(MOST_FLOW, int(WINDOW_BYTES / (OUTSTANDING + 1) / mean)))

    def _take(self, count: int) -> list[Outgoing]:
        """Take up to ``count`` from the queue, as long as the bytes under way stay within bounds."""
        queue = self.queue
        count = min(count, len(queue))
        if count <= 0 or (self._bytes >= WINDOW_BYTES):
            return []
        size = 0
        for index, message in enumerate(islice(queue, count)):
            size += message.size
            if self._bytes + size > WINDOW_BYTES:
                count = index + 1  # this one goes over; it goes nevertheless, or a large one would never go
                break
        self._bytes += size
        popleft = queue.popleft
        return [popleft() for _ in range(count)]

    def _end(self) -> None:
        """End the open batch, so that its tail is acknowledged."""
        batch, self._open = self._open, None
        if batch is not None and self._wire is not None:
            self._wire.send(batch.end_frame(self._end_subject))

    def _linger_over(self) -> None:
        self._linger = None
        if self._open is None or not self._open.is_open:
            return
        loop = asyncio.get_running_loop()
        idle_s = loop.time() - self._last_sent
        if not self.queue and idle_s >= LINGER_S:
            self._end()
        else:
            self._linger = loop.call_later(LINGER_S, self._linger_over)

    def hurry(self) -> None:
        """Somebody waits now: do not linger."""
        if self._open is not None and self._open.is_open and not self.queue:
            self._end()

    def _look(self) -> None:
        """Send again when the broker has been silent for too long."""
        self._watch = None
        if not (self._plain or self._batches):
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        late, self._was_late = not self._was_late and now - self._watch_at > LATE_S, False
        if late:
            # The loop stood still: answers may lie in the socket, which is read before the next timer is looked at.
            self._was_late = True
            self._look_in(LATE_S)
            return
        silent_s = now - self._last_heard
        if silent_s >= SILENCE_S and self._connection.is_connected:
            log.warning("bus.publish-silent", extra={"waiting": self.unacked, "silent_s": round(silent_s, 1)})
            self.reset()
            self.pump()
        if self._watch is None:
            self._look_in(max(0.1, SILENCE_S - silent_s))

    def _look_in(self, seconds: float) -> None:
        """Look for silence so much later."""
        loop = asyncio.get_running_loop()
        self._watch_at = loop.time() + seconds
        self._watch = loop.call_at(self._watch_at, self._look)

    # --- answers --------------------------------------------------------------------------------------

    def on_answer(self, where: str, msg: Arrival) -> None:
        """Take an answer that came to ``<inbox>.<where>``."""
        self._last_heard = asyncio.get_running_loop().time()
        if where[0] == "p":
            message = self._plain.pop(where, None)
            if message is not None:
                self._bytes -= message.size
                self._on_plain(message, msg)
        else:
            batch = self._batches.get(where.partition(".")[0])
            if batch is not None:
                self._on_batch(batch, msg)
        self.pump()

    def _on_plain(self, message: Outgoing, msg: Arrival) -> None:
        if msg.data[:10] == b'{"stream":':  # the usual answer; parsing it would only confirm that
            self._probing = False
            self._on_stored([message])
            return
        refusal = self._refusal(msg)
        if refusal is None:
            self._on_stored([message])
        elif refusal.is_passing:
            self._later([message])
        else:
            self._probing = False
            self._on_refused(message, _error(message, refusal, self._connection.max_payload))

    def _refusal(self, msg: Arrival) -> Refusal | None:
        status = msg.status
        if status:
            return Refusal(status, 0, "nobody stores that subject (yet)")
        try:
            return refusal_in(orjson.loads(msg.data))
        except orjson.JSONDecodeError:
            return Refusal(500, 0, f"an answer that is not JSON: {msg.data[:80]!r}")

    def _later(self, messages: list[Outgoing]) -> None:
        """The broker cannot take them now: put them back and try one of them in a moment."""
        self._put_back(messages)
        self._probing = True
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._again)

    def _again(self) -> None:
        self._retry = None
        self.pump()

    def _on_batch(self, batch: FastBatch, msg: Arrival) -> None:
        status = msg.status
        answer = (
            Refused(Refusal(status, 0, "nobody stores that subject (yet)"))
            if status
            else read_answer(msg.data)
        )
        match answer:
            case Progress(number, flow):
                batch.flow = flow
                self._stored(batch.stored(number))
            case Ended(count):
                self._stored(batch.stored(count))
                self._over(batch)
            case Plain():
                # An older broker: it took the first message as any other.
                self._fast = False
                self._stored(batch.stored(1))
                self._over(batch)
            case Gap():
                self._over(batch)
            case Refused(refusal):
                if refusal.err_code == TOO_MANY_BATCHES:
                    self._fast_from = asyncio.get_running_loop().time() + FAST_PAUSE_S
                elif batch.flow == 0 and refusal.code == 400 and 10203 <= refusal.err_code <= 10206:
                    self._fast = False  # this stream does not allow it
                self._over(batch)

    def _stored(self, messages: list[Outgoing]) -> None:
        if messages:
            self._bytes -= sum(message.size for message in messages)
            self._on_stored(messages)

    def _over(self, batch: FastBatch) -> None:
        """Forget a batch. What of it is not acknowledged goes out plain, so that each gets an answer of its own."""
        self._batches.pop(batch.name, None)
        if self._open is batch:
            self._open = None
            if self._wire is not None and batch.flow:
                self._wire.send(batch.end_frame(self._end_subject))  # frees its place on the broker
        left: list[Outgoing] = list(batch.unacked)
        if left:
            self._bytes -= sum(message.size for message in left)
            self._put_back(left)
            self._plain_left = max(self._plain_left, len(left))


def _ordinal(message: Outgoing) -> int:
    return message.ordinal


def _error(message: Outgoing, refusal: Refusal, limit: int) -> HarkError:
    if refusal.err_code == 10054:
        return EventTooLarge(message.subject, size_bytes=message.size, limit_bytes=limit)
    return EventRefused(message.subject, msg_id=message.msg_id, why=str(refusal))
