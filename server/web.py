"""The HTTP server: uvicorn inside our own loop, listening before it is entered and gone when left."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import anyio
import uvicorn
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskStatus

from .door import listen
from .gate import Gate
from .open_files import for_callers
from .protocol import protocol_within

if TYPE_CHECKING:
    from ..config import ServerConfig
    from .context import ServerContext

__all__ = ["HttpServer"]

log = logging.getLogger("hark.server")


class _Server(uvicorn.Server):
    """Without signals, which belong to the service, and without a tick: it sleeps until it is told to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = anyio.Event()

    def stop(self) -> None:
        """Take no new connections, finish what is open, end."""
        self.should_exit = True
        self._told.set()

    async def run_on(self, sock: socket.socket, ready: TaskStatus[None]) -> None:
        """Serve until told to stop."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=[sock])
        ready.started()
        await self._told.wait()
        await self.shutdown(sockets=[sock])


class HttpServer(AsyncContextManagerMixin):
    """Serves ``context``. Entered means it answers at ``context.url``; left means every connection is closed.

    Args:
        sock: bound and not listening; see ``door.bound``.
    Raises:
        DefinitionError: on entering, when the address cannot be listened on.
    """

    def __init__(self, context: ServerContext, config: ServerConfig, sock: socket.socket) -> None:
        self._context, self._config, self._sock = context, config, sock
        self._gate: Gate | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        sock = self._sock
        listen(sock)
        port = sock.getsockname()[1]
        host = self._config.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host  # noqa: S104
        self._context.url = f"http://{shown}:{port}"
        gate = self._gate = Gate(self._context)
        server = _Server(
            uvicorn.Config(
                gate, http=protocol_within(self._config.read_timeout_s, at_most=for_callers()),
                log_config=None, access_log=False, lifespan="off", ws="none",
                server_header=False, date_header=False, timeout_graceful_shutdown=max(1, int(self._config.drain_s)),
                timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
            )
        )  # fmt: skip
        async with anyio.create_task_group() as tg:
            try:
                # Inside: when we are cancelled while it starts, it must be told to stop all the same.
                await tg.start(self._run, server, sock)
                yield self
            finally:
                self._context.closing.set()
                server.stop()

    async def load(self) -> None:
        """Load what is loaded late anyway, so that nobody's request waits for it. Only while entered."""
        if self._gate is not None:
            await self._gate.load()

    @staticmethod
    async def _run(server: _Server, sock: socket.socket, *, task_status: TaskStatus[None]) -> None:
        # Stopping is asked for by `stop`; a cancelled scope must not cut answers short.
        with anyio.CancelScope(shield=True):
            await server.run_on(sock, task_status)
