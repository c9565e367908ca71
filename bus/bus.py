"""The bus: one object that holds a process's connection to the broker and everything carried over it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from anyio import AsyncContextManagerMixin

from ..clock import SYSTEM_CLOCK, Clock
from ..config import BusConfig
from ..errors import BusUnavailable, UnknownName
from .address import BrokerAddress
from .bucket import Bucket
from .captures import Captures
from .connection import Connection
from .lease import Lease
from .log import EventLog
from .objects import Objects
from .publisher import Publisher
from .run_logs import RunLogs
from .streams import BUCKETS, BrokerInfo, features_of, losses_of, reconcile
from .timers import Timers
from .work_queue import WorkQueue

__all__ = ["Bus"]

log = logging.getLogger(__name__)


class Bus(AsyncContextManagerMixin):
    """Everything carried over one connection, or two. Entered means connected, streams and buckets as configured.

    Leaving waits (at most ``drain_s``) until what was given to the publisher is stored, then closes.

    Args:
        name: how the broker lists this connection.
        manage: bring existing streams to ``config``. A process that only uses the bus (user code, a worker)
            passes False: it creates what is missing and changes nothing, so that its own defaults do not undo the
            settings of the server.
        reads_apart: read and follow the log over a second connection, so that the broker's answers do not wait behind
            events that have not been taken yet: for a process that reads much and has to act at once.
        lull_s: with ``reads_apart``, seconds that may lie between two readings of few events that nobody is in a hurry for
            (see ``Patience``). What comes meanwhile waits as long, whatever it is.

    Raises:
        BusUnavailable, AccessDenied: on entering, see ``Connection``.
        DefinitionError: on entering, if a stream cannot be as configured.
    """

    log: EventLog
    publisher: Publisher
    work: WorkQueue
    run_logs: RunLogs
    captures: Captures
    objects: Objects
    timers: Timers

    def __init__(
        self,
        address: BrokerAddress,
        config: BusConfig,
        *,
        name: str = "hark",
        clock: Clock = SYSTEM_CLOCK,
        manage: bool = True,
        drain_s: float = 10.0,
        reads_apart: bool = False,
        lull_s: float = 0.0,
    ) -> None:
        self.address = address
        self.config = config
        self.clock = clock
        self.connection = Connection(address, config, name=name)
        self._reading = (
            Connection(address, config, name=f"{name}, reading", lull_s=lull_s) if reads_apart else None
        )
        self._manage = manage
        self._drain_s = drain_s
        self._info: BrokerInfo | None = None
        self._buckets: dict[str, Bucket] = {}
        self._stack: AsyncExitStack | None = None

    @property
    def info(self) -> BrokerInfo:
        """What kind of broker this is. Only once entered."""
        if self._info is None:
            raise BusUnavailable("the bus has not been entered")
        return self._info

    @property
    def is_connected(self) -> bool:
        """Whether the broker is reachable, as far as we know."""
        if self._info is None or not self.connection.is_connected:
            return False
        return self._reading is None or self._reading.is_connected

    @property
    def is_quiet(self) -> bool:
        """Whether, as far as another thread can see, all is stored that was given to be published. Only once entered."""
        # In this order: what is gathered is given to the publisher meanwhile, and nothing goes the other way.
        return not self.run_logs.has_gathered and self.publisher.waiting == 0

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call ``close`` before the connection is: for what watches the broker for as long as there is one. Once entered."""
        if self._stack is None:
            raise BusUnavailable("the bus has not been entered")
        self._stack.push_async_callback(close)

    def bucket(self, name: str) -> Bucket:
        """Return the bucket ``name``, one of ``BUCKETS``.

        Raises:
            UnknownName: there is no such bucket.
        """
        bucket = self._buckets.get(name)
        if bucket is None:
            if name not in BUCKETS:
                raise UnknownName("bucket", name, known=BUCKETS)
            bucket = Bucket(self.connection, name, message_ttl=self.info.message_ttl)
            self._buckets[name] = bucket
        return bucket

    def lease(self, name: str, *, holder: str, ttl_s: float = 5.0) -> Lease:
        """Return the lease ``name``, to be held by at most one process at a time.

        Args:
            holder: who we are, for people who ask who holds it.
            ttl_s: how long after the holder's last sign of life another may take over, at least 1.
        """
        return Lease(self.bucket("leases"), name, holder=holder, ttl_s=ttl_s)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self.connection)
            features = features_of(connection.server_version, self.config)
            await reconcile(connection, self.config, features, manage=self._manage)
            self._info = BrokerInfo(
                url=connection.url,
                version=connection.server_version_text,
                max_payload=connection.max_payload,
                fast_ingest=features.fast_ingest,
                schedules=features.schedules,
                message_ttl=features.message_ttl,
                losses=losses_of(features),
            )
            for loss in self._info.losses:
                log.warning("bus.older_broker", extra={"version": self._info.version, "loss": loss})
            if self._reading is not None:
                await stack.enter_async_context(self._reading)
            self.log = EventLog(connection, self.config, reading=self._reading)
            self.publisher = await stack.enter_async_context(
                Publisher(connection, self.config, fast=features.fast_ingest, drain_s=self._drain_s)
            )
            self.work = WorkQueue(connection, self.config)
            self.run_logs = RunLogs(connection, self.publisher, self.config)
            self.captures = Captures(connection, self.publisher, self.config)
            self.objects = Objects(connection, self.config, message_ttl=features.message_ttl)
            self.timers = Timers(connection, self.config, clock=self.clock)
            try:
                async with AsyncExitStack() as self._stack:
                    yield self
            finally:
                self._stack = self._info = None
                self._buckets.clear()
