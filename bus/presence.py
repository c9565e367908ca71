"""Who is still there: a process answers under a name of its own for as long as it lives.

Asking costs one question over core NATS; nobody writes anything, and who is not asked does nothing. No answer means that
the other has died, hangs, or is cut off from the broker. Right after the broker itself was away it means nothing yet, for
the other may not be connected again; ``connected_s`` of the connection says how long that has been so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from ..errors import BusUnavailable
from .connection import Connection, ConnectionLost, translated

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["Presence"]

_SUBJECT = "hark.alive."
_ANSWER_S = 1.0
_YES, _NO = b"+", b"-"


class Presence:
    """Answers questions of others, and asks them. Make it of an entered bus's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def answering(self, name: str, holds: Callable[[str], bool]) -> AbstractAsyncContextManager[None]:
        """Answer under ``name`` while inside.

        Args:
            name: one word, used by nobody else.
            holds: says whether we have in hand what is asked for.
        """
        return self._answering(name, holds)

    @asynccontextmanager
    async def _answering(self, name: str, holds: Callable[[str], bool]) -> AsyncGenerator[None]:
        async def answer(msg: Msg) -> None:
            with translated("saying that we are here"):
                await msg.respond(_YES if holds(msg.data.decode(errors="replace")) else _NO)

        subscription = await self._connection.subscribe(_SUBJECT + name, answer, most_waiting=10_000)
        try:
            yield
        finally:
            await self._connection.unsubscribe(subscription)

    async def holds(self, name: str, what: str) -> bool | None:
        """Return whether ``name`` says that it has ``what`` in hand; None if it does not answer.

        Raises:
            BusUnavailable: we cannot ask: we are not connected ourselves.
        """
        await self._connection.connected()
        try:
            msg = await self._connection.request(_SUBJECT + name, what.encode(), timeout_s=_ANSWER_S)
        except ConnectionLost:
            raise
        except BusUnavailable:
            return None
        return msg.data == _YES
