"""The dispatcher: hands runs to workers when they are due and there is a place for them.

One leads at a time, by a lease; the others stand by (``leader.py`` is what the one does). All it knows is folded from the
log and the buckets, so a successor knows the same.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin

from ..bus import Bus
from ..clock import SYSTEM_CLOCK, Clock
from ..config import EngineConfig
from ..errors import BusUnavailable, LogRewound
from ..vocabulary import new_id
from .leader import Deposed, Leader

__all__ = ["Dispatcher"]

log = logging.getLogger(__name__)

LEASE = "dispatcher"
_BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)


class Dispatcher(AsyncContextManagerMixin):
    """The service. Enter it to stand for election; leave it to hand the lease back.

    Args:
        lease_ttl_s: how long after the leader's last sign of life another takes over.
    """

    def __init__(
        self,
        bus: Bus,
        config: EngineConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        name: str | None = None,
        lease_ttl_s: float = 5.0,
    ) -> None:
        self._bus, self._config, self._clock = bus, config, clock
        self._name = name or f"dispatcher-{new_id()[-12:]}"
        self._ttl_s = lease_ttl_s
        self._leader: Leader | None = None
        self._led = anyio.Event()

    @property
    def is_leader(self) -> bool:
        """Whether this one makes the decisions now, having caught up with the log."""
        return self._leader is not None

    @property
    def waiting(self) -> int:
        """How many due runs wait for a place, as far as this one knows; 0 on a standby."""
        return self._leader.dispatch.waiting if self._leader else 0

    @property
    def active(self) -> int:
        """How many runs hold a place; 0 on a standby."""
        return self._leader.dispatch.active if self._leader else 0

    async def leading(self) -> None:
        """Wait until this one leads and has caught up."""
        while self._leader is None:
            await self._led.wait()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._stand)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel()

    async def _stand(self) -> None:
        tries = 0
        while True:
            try:
                async with self._bus.lease(LEASE, holder=self._name, ttl_s=self._ttl_s).held():
                    tries = 0
                    try:
                        await Leader(self._bus, self._config, self._clock).lead(self._set_leader)
                    finally:
                        self._leader, self._led = None, anyio.Event()
            except* Deposed:
                log.warning("dispatcher.deposed", extra={"holder": self._name})
            except* (BusUnavailable, LogRewound) as group:
                log.warning("dispatcher.waits_for_broker", extra={"error": str(group.exceptions[0])})
            # The pause is the machine's time also where due times are a test's.
            await anyio.sleep(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
            tries += 1

    def _set_leader(self, leader: Leader) -> None:
        self._leader = leader
        self._led.set()
        log.info("dispatcher.leads", extra={"holder": self._name})
