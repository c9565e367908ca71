"""Subjects and streams of others on the same broker: listening to them, consuming them, sending to them.

Core NATS promises nothing: who does not listen misses it. A stream of theirs is read through a durable consumer, so
what came while nobody listened is read later, and what was not settled is handed out again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from ..errors import BusUnavailable, DefinitionError, UnavailableError, UnknownName
from .connection import ApiError, Connection, translated
from .consumer import Consumer

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = ["Foreign", "ForeignMessage", "Listening", "check_foreign_subject", "durable_name"]

log = logging.getLogger(__name__)

_OURS = frozenset({"hark", "$JS", "$KV", "$O", "$SYS", "_INBOX", "*", ">"})
"""First words of what is Hark's own or the broker's, and wildcards that would take it in."""
_NO_STREAM = (10059, 10014)
_LEAVE_S = 2.0


def check_foreign_subject(subject: str, *, is_filter: bool) -> str:
    """Return a NATS subject that is not Hark's own or the broker's.

    Args:
        is_filter: ``*`` and a last ``>`` are allowed.
    Raises:
        DefinitionError: it is none, or it takes in what is Hark's.
    """
    words = subject.split(".")
    if len(subject) > 255 or not all(words) or any(c.isspace() or not c.isprintable() for c in subject):
        raise DefinitionError(
            f"{subject[:80]!r} is not a NATS subject", hint="words between dots, such as shop.orders.paid"
        )
    for i, word in enumerate(words):
        wild = word in ("*", ">")
        if ("*" in word or ">" in word) and (
            not wild or not is_filter or (word == ">" and i < len(words) - 1)
        ):
            raise DefinitionError(
                f"{subject[:80]!r} is not a NATS subject{' to listen to' if is_filter else ' to send to'}",
                hint="`*` is one word and a last `>` the rest, for listening only",
            )
    if words[0] in _OURS:
        raise DefinitionError(
            f"the subject {subject!r} takes in what is Hark's own or the broker's",
            hint="name the first word, such as shop.>; events of Hark are read with rules and sinks",
        )
    return subject


def durable_name(prefix: str, name: str) -> str:
    """Return a name for a durable consumer: dots are not allowed in one."""
    return f"{prefix}-{name.replace('.', '=')}"


@dataclass(frozen=True, slots=True)
class ForeignMessage:
    """A message of core NATS. ``reply`` is where its sender waits for an answer, or empty."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""


class Listening:
    """What comes on some subjects: ``async for message in listening``, or many at a time with ``take``."""

    def __init__(self, messages: MemoryObjectReceiveStream[ForeignMessage]) -> None:
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[ForeignMessage]:
        return self._messages

    async def take(self, count: int) -> list[ForeignMessage]:
        """Return up to ``count`` messages in their order, waiting for the first."""
        found = [await self._messages.receive()]
        with suppress(anyio.WouldBlock):
            while len(found) < count:
                found.append(self._messages.receive_nowait())
        return found


class Foreign:
    """What is on the broker besides Hark. Make it of an entered bus's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.dropped = 0

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a message by core NATS; it has reached the broker when this returns, and those who listen now.

        Raises:
            BusUnavailable: the broker cannot be reached. EventTooLarge: more than it takes.
        """
        nc = self._connection.nc
        await self._connection.connected(self._connection.config.request_timeout_s)
        with translated(f"sending to {subject}"):
            await nc.publish(subject, payload, headers=dict(headers) if headers else None)
            await self._connection.flush()

    async def store(self, subject: str, payload: bytes, headers: Mapping[str, str], *, msg_id: str) -> None:
        """Send a message to a stream of theirs; it is stored when this returns, and once for its id.

        Raises:
            BusUnavailable: no stream takes the subject, or none has answered. EventTooLarge: more than it takes.
        """
        sent = {**headers, "Nats-Msg-Id": msg_id}
        try:
            answer = await self._connection.insist(subject, payload, headers=sent)
        except ApiError as exc:
            raise BusUnavailable(f"the stream of {subject} did not store it: {exc.description}") from exc
        if "stream" not in answer:
            raise BusUnavailable(f"what answered on {subject} is no stream")

    def listen(
        self, subjects: Sequence[str], *, queue: str, most_waiting: int = 10_000
    ) -> AbstractAsyncContextManager[Listening]:
        """Give what comes on subjects from now on; of several listeners of one ``queue`` each message goes to one.

        More than ``most_waiting`` messages that nobody has taken are dropped and counted in ``dropped``.
        """
        return self._listen(subjects, queue, most_waiting)

    @asynccontextmanager
    async def _listen(
        self, subjects: Sequence[str], queue: str, most_waiting: int
    ) -> AsyncGenerator[Listening, None]:
        give, take = anyio.create_memory_object_stream[ForeignMessage](most_waiting)

        async def arrived(msg: Msg) -> None:
            message = ForeignMessage(msg.subject, msg.data, dict(msg.headers or {}), msg.reply)
            try:
                give.send_nowait(message)
            except anyio.WouldBlock:
                self.dropped += 1
                if self.dropped & (self.dropped - 1) == 0:  # at 1, 2, 4, 8, …
                    log.warning("foreign.dropped", extra={"subject": msg.subject, "dropped": self.dropped})

        async with AsyncExitStack() as stack:
            stack.enter_context(give)
            stack.enter_context(take)
            nc = self._connection.nc
            subscriptions: list[Subscription] = []
            stack.push_async_callback(self._leave, subscriptions)
            for subject in subjects:
                with translated(f"listen to {subject}"):
                    subscription = await nc.subscribe(subject, queue=queue, cb=arrived)
                subscriptions.append(subscription)
            with translated(f"listen to {', '.join(subjects)}"):
                # Entered means listening: the broker has read the subscriptions once it answers this.
                await self._connection.flush()
            yield Listening(take)

    async def _leave(self, subscriptions: Sequence[Subscription]) -> None:
        """End subscriptions. Left means that the broker knows: who asks from then on hears that nobody is there."""
        with anyio.move_on_after(_LEAVE_S, shield=True):
            for subscription in subscriptions:
                await self._connection.unsubscribe(subscription)
            # Where the broker is away, nobody hears from it, either.
            with suppress(BusUnavailable), translated("stop listening"):
                await self._connection.flush()

    @asynccontextmanager
    async def consume(
        self,
        stream: str,
        durable: str,
        subjects: Sequence[str],
        *,
        from_start: bool,
        ack_wait_s: float = 30,
        max_ack_pending: int = 500,
    ) -> AsyncGenerator[Consumer]:
        """Read a stream of theirs through a durable consumer: each message again until it is settled.

        Raises:
            UnknownName: there is no such stream. DefinitionError: it cannot be read so; the message says why.
        """
        try:
            async with Consumer.open(
                self._connection, self._connection.config, stream=stream, durable=durable, filters=subjects,
                ack_wait_s=ack_wait_s, max_ack_pending=max_ack_pending, deliver_after=0 if from_start else None,
            ) as consumer:  # fmt: skip
                yield consumer
        except ApiError as exc:
            if exc.err_code in _NO_STREAM:
                raise UnknownName("stream", stream) from exc
            raise DefinitionError(f"the stream {stream!r} cannot be read: {exc.description}") from exc

    async def forget(self, stream: str, durable: str) -> None:
        """Remove a durable consumer; nothing happens if there is none, or no such stream.

        Raises:
            UnavailableError: the broker cannot be reached.
        """
        try:
            await self._connection.api(f"CONSUMER.DELETE.{stream}.{durable}")
        except ApiError as exc:
            if exc.code != 404 and exc.err_code not in _NO_STREAM:
                raise UnavailableError(
                    f"the consumer {durable} cannot be removed: {exc.description}"
                ) from exc
