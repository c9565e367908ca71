"""One connection of the HTTP server: uvicorn's, with limits on how many there are and how long a request may take to be asked.

uvicorn closes a connection that is idle between two requests, but waits for ever for the first one, and for the rest
of a head of which something has come. Bodies have their own limits, held where they are read (``body.py``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Base
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as _Base

__all__ = ["protocol_within"]

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
)
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _Protocol(_Base):
    within_s: ClassVar[float]
    at_most: ClassVar[int]
    _waiting: asyncio.TimerHandle | None = None
    _has_said: bool = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self.at_most:
            # At once and unread: who has got in is still served, and files are left for the rest of the service.
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._wait_no_more()
        else:
            # From its first byte on: more of it does not give it more time.
            self._has_said = True
            self._wait()

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.within_s, self._give_up)

    def _wait_no_more(self) -> None:
        self._has_said = False
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.transport.is_closing() or self._is_answering():
            return
        if self._has_said:
            self.transport.write(_TIMED_OUT)
        self.transport.close()


def protocol_within(seconds: float, *, at_most: int) -> type[asyncio.Protocol]:
    """Return the class of connections on which a request's head has to come within so many seconds.

    Args:
        at_most: how many there may be at once; further ones are turned away with 503.
    """
    return type("Protocol", (_Protocol,), {"within_s": seconds, "at_most": at_most})
