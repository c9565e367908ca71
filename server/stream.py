"""Events as server-sent events, straight from the log: ordered, resumable, and bounded for each client.

Source: HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import Response

from ..bus.event import Recorded, format_time, readable
from ..bus.subject import matches
from ..errors import LimitError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .context import ServerContext

__all__ = ["MAX_STREAMS", "EventStream", "Wanted"]

MAX_STREAMS = 200
"""Clients that may follow at once: each holds a consumer on the broker."""
_BATCH = 100
_WAITING = 4
"""Batches that may wait for a slow client; then the broker waits with the rest."""
_SILENCE_S = 15.0
"""A comment is sent after this long, so that proxies and clients see that the connection lives."""


class TooManyStreams(LimitError):
    """As many clients follow as may."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events a client follows; nothing said is all of them."""

    types: tuple[str, ...] = ()
    subject: str | None = None
    source: str | None = None

    def takes(self, recorded: Recorded) -> bool:
        """Return whether this event is wanted."""
        if not self.types and self.subject is None and self.source is None:
            return True
        event = recorded.event
        if self.types and not any(matches(p, event.type) for p in self.types):
            return False
        if self.source is not None and event.source != self.source:
            return False
        if self.subject is None:
            return True
        if self.subject.endswith("*"):
            return (event.subject or "").startswith(self.subject[:-1])
        return event.subject == self.subject


def frame(recorded: Recorded) -> bytes:
    """Return one event of the stream; the stored JSON goes through as it is."""
    at = format_time(recorded.recorded_at)
    raw = recorded.raw
    if b"\n" in raw or b"\r" in raw:
        # Ours has no line breaks outside of strings, and inside they are escaped; somebody else's may.
        raw = recorded.event.to_json()
    return b'id: %d\ndata: {"seq":%d,"recorded_at":"%s","event":%s}\n\n' % (
        recorded.seq, recorded.seq, at.encode(), raw,
    )  # fmt: skip


class EventStream(Response):
    """A response that never ends by itself: it follows the log until the client goes or the server stops."""

    media_type = "text/event-stream"

    def __init__(
        self, context: ServerContext, wanted: Wanted, filters: Sequence[str], *, after: int | None
    ) -> None:
        if context.streams >= MAX_STREAMS:
            raise TooManyStreams(f"{MAX_STREAMS} clients follow events already", hint="try again later")
        headers: Mapping[str, str] = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers=dict(headers))
        self._context, self._wanted, self._filters, self._after = context, wanted, filters, after
        if "content-length" in self.headers:
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._context
        context.streams += 1
        try:
            after = self._after
            if after is None:
                async with context.opening_streams:
                    after = await context.bus.log.head()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # The place is said at once, so that a client that loses the connection before the first event resumes here.
            await _send(send, b"retry: 1000\nid: %d\n\n" % after)
            async with anyio.create_task_group() as tg:

                async def end_when(waiting: Any) -> None:
                    await waiting()
                    tg.cancel_scope.cancel("stream over")

                tg.start_soon(end_when, lambda: _gone(receive))
                tg.start_soon(end_when, context.closing.wait)
                give, take = anyio.create_memory_object_stream[bytes](_WAITING)
                tg.start_soon(self._read, after, give)
                async with take:
                    while True:
                        chunk = b": alive\n\n"
                        with anyio.move_on_after(_SILENCE_S):
                            chunk = await take.receive()
                        await _send(send, chunk)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            context.streams -= 1

    async def _read(self, after: int, give: anyio.abc.ObjectSendStream[bytes]) -> None:
        context = self._context
        async with AsyncExitStack() as life:
            await life.enter_async_context(give)
            async with context.opening_streams:
                following = context.bus.log.follow(self._filters, after=after, batch=_BATCH)
                batches = await life.enter_async_context(following)
            async for batch in batches:
                chunk = b"".join(frame(r) for r in readable(batch.records) if self._wanted.takes(r))
                if chunk:
                    await give.send(chunk)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _gone(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
