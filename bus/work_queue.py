"""Work for workers: handed to one of them, kept alive by heartbeats, handed out again when its worker dies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast
from urllib.parse import quote, unquote

import orjson

from ..config import BusConfig
from ..errors import BusUnavailable, EventRefused, EventTooLarge, StreamFull
from .arrival import Arrival
from .connection import ApiError, Connection
from .intake import Held, Intake, Source
from .replies import Replies, refusal_in
from .subject import WORK_STREAM
from .wire import header_lines, message_id

__all__ = ["WorkConsumer", "WorkItem", "WorkQueue"]


def work_subject(pool: str, queue: str) -> str:
    """``hark.work.<pool>.<queue>``; a dot within a name would be two words, so it is written ``%2E``."""
    return f"hark.work.{_word(pool)}.{_word(queue)}"


def _word(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")


class WorkItem(Held):
    """A piece of work in our hands.

    Attributes:
        deliveries: how often it was handed out, this time included; more than 1 when a worker died with it, or
            handed it back.
        seq: its place in the stream. Handed out again it has the same, pushed again it would have another.
    """

    __slots__ = ("payload", "pool", "queue", "seq")

    def __init__(self, intake: Intake[Held], msg: Arrival) -> None:
        words = msg.reply.split(".")
        first = 4 if len(words) == 9 else 6  # the domain and the account may stand in between
        super().__init__(intake, msg, int(words[first]))
        self.seq = int(words[first + 1])
        self.payload = msg.data
        _, _, pool, queue = msg.subject.split(".")
        self.pool, self.queue = unquote(pool), unquote(queue)

    async def ack(self) -> None:
        """Say that it is done, and wait until the broker knows.

        Raises:
            BusUnavailable: the broker did not answer; the work may be handed out again.
        """
        await self._intake.settle_surely(self._msg.reply, b"+ACK")

    async def term(self, reason: str = "") -> None:
        """Say that it will never succeed, and wait until the broker knows: it is not handed out again.

        Raises:
            BusUnavailable: the broker did not answer; the work may be handed out again.
        """
        await self._intake.settle_surely(self._msg.reply, f"+TERM {reason}".strip().encode())


class WorkConsumer(Intake[WorkItem]):
    """Takes work of some queues of a pool, earlier queues first: ``async for item in consumer``."""


class WorkQueue:
    """The stream ``HARK_WORK``. Needs no closing."""

    def __init__(self, connection: Connection, config: BusConfig) -> None:
        self._connection, self._config = connection, config
        self._replies = Replies(connection, config)

    async def push(self, pool: str, queue: str, payload: bytes, *, msg_id: str) -> bool:
        """Store a piece of work; returns False if ``msg_id`` was pushed before (within the dedup window).

        A broker slow to answer is asked again, and may then take the first asking for one before.

        Raises:
            EventTooLarge: nothing was sent. EventRefused: the broker will not store it.
            StreamFull: ``config.work_max_bytes`` of work are waiting; push it again later.
            BusUnavailable: no answer in ``config.request_timeout_s``; pushing it again is safe.
        """
        subject = work_subject(pool, queue)
        lines = header_lines({"Nats-Msg-Id": message_id(msg_id)})
        size, limit = len(lines) + 12 + len(payload), self._connection.max_payload
        if size > limit:
            raise EventTooLarge(subject, size_bytes=size, limit_bytes=limit)
        await self._replies.open()
        msg = await self._replies.insist(
            subject, payload, headers=lines, again=_is_passing, what=f"work for {pool}"
        )
        body = orjson.loads(msg.data)
        refusal = refusal_in(body)
        if refusal is not None:
            if refusal.is_full:
                raise StreamFull(subject, why=refusal.description)
            raise EventRefused(subject, msg_id=msg_id, why=str(refusal))
        return not body.get("duplicate")

    async def has(self, seq: int) -> bool:
        """Return whether the piece of work at a place of the stream is waiting, or in somebody's hands: not settled yet.

        Raises:
            BusUnavailable: the broker does not say.
        """
        try:
            # Of the leader: a copy that lags may still show what has been settled.
            await self._connection.api(f"STREAM.MSG.GET.{WORK_STREAM}", {"seq": seq})
        except ApiError as exc:
            if exc.code == 404:
                return False
            raise BusUnavailable(f"cannot look into the queue of work: {exc}") from exc
        return True

    async def extend(self, item: WorkItem) -> None:
        """Say by this connection, whichever the item came by, that it is still being worked on: the ack wait starts anew."""
        await self._connection.nc.publish(item.handle, b"+WPI")

    def consume(
        self, pool: str, queues: Sequence[str], *, ack_wait_s: float = 30, max_pending: int = 1
    ) -> AbstractAsyncContextManager[WorkConsumer]:
        """Take work of a pool while inside.

        Args:
            queues: in order of preference: a later one is looked at when the earlier ones are empty.
            ack_wait_s: work not settled and not reported ``in_progress`` for this long goes to another worker.
            max_pending: pieces in hand at once.
        Raises:
            BusUnavailable: on entering. Later outages are waited out.
        """
        return self._open(pool, list(dict.fromkeys(queues)), ack_wait_s=ack_wait_s, capacity=max_pending)

    @asynccontextmanager
    async def _open(
        self, pool: str, queues: Sequence[str], *, ack_wait_s: float, capacity: int
    ) -> AsyncGenerator[WorkConsumer]:
        if not queues:
            raise ValueError("a worker needs at least one queue")
        consumer = WorkConsumer(
            self._connection, self._config, ack_wait_s=ack_wait_s, capacity=capacity,
            sources=[self._source(pool, queue, ack_wait_s) for queue in queues],
            make=lambda msg, _: WorkItem(cast("Intake[Held]", consumer), msg),
        )  # fmt: skip
        async with consumer.running():
            yield consumer

    def _source(self, pool: str, queue: str, ack_wait_s: float) -> Source:
        return Source(
            WORK_STREAM,
            # '=' is written '%3D' inside a word, so two pairs of names never share a consumer.
            f"work={_word(pool)}={_word(queue)}",
            {
                "filter_subject": work_subject(pool, queue),
                "ack_policy": "explicit",
                "ack_wait": int(ack_wait_s * 1e9),
                "max_ack_pending": -1,
                "num_replicas": self._config.replicas,
            },
        )


def _is_passing(msg: Arrival) -> bool:
    refusal = refusal_in(orjson.loads(msg.data)) if msg.data else None
    return refusal is not None and refusal.is_passing
