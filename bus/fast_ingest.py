"""The broker's fast-ingest protocol: many messages, one acknowledgement per few hundred. Pure: bytes in, bytes out.

Each message carries its place in a reply subject, ``<inbox>.<batch>.<flow>.fail.<number>.<operation>.$FI``. The
broker answers the first (so that an older broker, or a stream that does not allow it, is noticed before more is
sent), then every ``flow`` messages, and ends the batch at the first gap: what it acknowledged is stored without
holes. The tail behind the last such answer is acknowledged when the batch is ended.

Seen on nats-server 2.15.1: a batch idle for 10 s is dropped; a stream takes 1 000 open ones; a ping repeats the
last answer and does not acknowledge the tail; ``Nats-Msg-Id`` works as ever; two publishers that use one batch name
are told of each other's messages as stored, so names are random.
Source: NATS architecture decision record 50, fast-ingest batch publishing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import orjson

from .replies import Refusal, refusal_in

__all__ = ["Answer", "Ended", "FastBatch", "Gap", "Plain", "Progress", "Refused", "read_answer"]

MOST_FLOW = 500  # what 2.15.1 grants at most; asking for more is the same
OUTSTANDING = 3  # answers the broker may owe us before we pause; the protocol's upper end
START, APPEND, END = 0, 1, 3

TOO_MANY_BATCHES = 10211


class Sendable(Protocol):
    """A message as the batch needs it. ``lines`` are its header lines, never empty."""

    subject: str
    lines: str
    payload: bytes
    size: int


MessageT = TypeVar("MessageT", bound=Sendable)


@dataclass(frozen=True, slots=True)
class Progress:
    """All messages up to ``number`` are stored; the next such answer comes ``flow`` messages later."""

    number: int
    flow: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The batch is over; ``count`` messages were stored, the first ones."""

    count: int


@dataclass(frozen=True, slots=True)
class Gap:
    """The broker missed a message and will end the batch."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One message, or the batch, is refused; nothing more of it is stored."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Plain:
    """The ordinary answer of a broker that knows nothing of batches: that one message is stored."""


Answer: TypeAlias = Progress | Ended | Gap | Refused | Plain


def read_answer(data: bytes) -> Answer:
    """Return what the broker says about a batch."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return Refused(Refusal(500, 0, f"an answer that is not JSON: {data[:80]!r}"))
    kind = body.get("type")
    if kind == "ack":
        return Progress(int(body.get("seq", 0)), max(1, int(body.get("msgs", 1))))
    if kind == "gap":
        return Gap()
    refusal = refusal_in(body)
    if refusal is not None:
        return Refused(refusal)
    if "batch" in body:
        return Ended(int(body.get("count", 0)))
    return Plain()


@dataclass(slots=True)
class FastBatch:
    """One batch: what was sent and is not acknowledged, and how much more may be sent.

    ``name`` must be nobody else's: the broker tells batches of a stream apart by it alone, whatever the inbox, and
    would count another publisher's messages as ours. ``most_flow`` is how many messages there may be between two answers of the broker; it may choose fewer.
    """

    inbox: str
    name: str
    most_flow: int = MOST_FLOW
    unacked: deque[MessageT] = field(default_factory=deque)  # type: ignore[valid-type]
    sent: int = 0
    acked: int = 0
    flow: int = 0  # 0: not opened yet
    is_ending: bool = False

    @property
    def is_open(self) -> bool:
        return self.flow > 0 and not self.is_ending

    @property
    def room(self) -> int:
        """How many messages may be sent now."""
        if self.is_ending:
            return 0
        if not self.flow:
            return 0 if self.sent else 1
        return max(0, self.flow * OUTSTANDING - (self.sent - self.acked))

    def frames(self, messages: Iterable[MessageT]) -> list[bytes]:
        """Return the pieces of the frames that send ``messages``, which are from now on unacked."""
        before = f" {self.inbox}.{self.name}.{self.most_flow}.fail."
        number, parts, unacked = self.sent, list[bytes](), self.unacked
        operation = START if number == 0 else APPEND
        for message in messages:
            number += 1
            lines, payload = message.lines, message.payload
            head = len(lines) + 12
            parts += (
                f"HPUB {message.subject}{before}{number}.{operation}.$FI {head} {head + len(payload)}\r\n"
                f"NATS/1.0\r\n{lines}\r\n".encode(),
                payload,
                b"\r\n",
            )
            unacked.append(message)
            operation = APPEND
        self.sent = number
        return parts

    def end_frame(self, subject: str) -> bytes:
        """Return the frame that ends the batch; ``subject`` is any the stream stores, and nothing is stored."""
        self.is_ending = True
        return f"PUB {subject} {self.inbox}.{self.name}.{self.most_flow}.fail.{self.sent + 1}.{END}.$FI 0\r\n\r\n".encode()

    def stored(self, number: int) -> list[MessageT]:
        """Take note that all messages up to ``number`` are stored; return those that were not known to be."""
        count = min(number, self.sent) - self.acked
        if count <= 0:
            return []
        self.acked += count
        popleft = self.unacked.popleft
        return [popleft() for _ in range(count)]
