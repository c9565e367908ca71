"""Candidates: services of which one leads, by a lease, and the others stand by.

Whoever gets the lease serves a term: it takes up what its predecessor put down, catches up with the log, and decides until it
is stopped, deposed, or without a broker. Then it stands for election again.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Self, TypeVar

import anyio
from anyio import AsyncContextManagerMixin

from ..errors import BusUnavailable, GuardFailed, LogRewound, RefusedError
from ..vocabulary import new_id
from .bus import Bus
from .lease import Grant

__all__ = ["Candidate", "Deposed", "first_error"]

log = logging.getLogger(__name__)

_BACK_OFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_LOOK_S = 0.2
_READY_S = 30.0

T = TypeVar("T")


class Deposed(RefusedError):
    """Another has written what only the leader writes: it has the lease, and we are to stop."""


class Candidate(AsyncContextManagerMixin, Generic[T]):
    """A service that leads or stands by. Enter it to stand for election; leave it to hand the lease back.

    Args:
        lease: of the office. role: what it is called in the log, and at the beginning of ``name``.
        name: how it is called where people ask who leads.
        lease_ttl_s: how long after the leader's last sign of life another takes over.
        is_awaited: entered means that this one leads and has caught up, or that another one leads: for an office whose first
            holder has no checkpoint to begin behind, so that events must not come before it is there.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        lease: str,
        role: str,
        name: str | None,
        lease_ttl_s: float = 5.0,
        is_awaited: bool = False,
    ) -> None:
        self._bus, self._role, self._is_awaited = bus, role, is_awaited
        self._name = name or f"{role}-{new_id()[-12:]}"
        self._lease = bus.lease(lease, holder=self._name, ttl_s=lease_ttl_s)
        self._term: T | None = None
        self._led = anyio.Event()

    @abstractmethod
    async def _lead(self, grant: Grant, on_ready: Callable[[T], None]) -> None:
        """Serve a term: call ``on_ready`` with what it is led by, once caught up; go on until cancelled."""

    @property
    def is_leader(self) -> bool:
        """Whether this one decides now, having caught up with the log."""
        return self._term is not None

    async def leading(self) -> None:
        """Wait until this one leads and has caught up."""
        while self._term is None:
            await self._led.wait()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as tg:
            is_vacant = self._is_awaited and await self._lease.holder_now() is None
            tg.start_soon(self._stand)
            if is_vacant:
                with anyio.move_on_after(_READY_S):
                    while self._term is None and await self._is_vacant_or_ours():
                        with anyio.move_on_after(_LOOK_S):
                            await self.leading()
            try:
                yield self
            finally:
                tg.cancel_scope.cancel(f"{self._role} closing")

    async def _is_vacant_or_ours(self) -> bool:
        try:
            return await self._lease.holder_now() in (None, self._name)
        except BusUnavailable as exc:
            # To give up would end the term that has begun, and with it the catching up that keeps the broker busy.
            log.debug(f"{self._role}.no_answer", extra={"error": str(exc)})
            return True

    async def _stand(self) -> None:
        tries = 0
        while True:
            try:
                async with self._lease.held() as grant:
                    tries = 0
                    try:
                        await self._lead(grant, self._set_term)
                    finally:
                        self._term = None
                        if self._led.is_set():  # else somebody waits for it, and is to hear of the next term
                            self._led = anyio.Event()
            except* Deposed:
                log.warning(f"{self._role}.deposed", extra={"holder": self._name})
            except* (BusUnavailable, LogRewound, GuardFailed) as group:
                log.warning(f"{self._role}.waits_for_broker", extra={"error": str(first_error(group))})
            # The pause is the machine's time also where deadlines are a test's.
            await anyio.sleep(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
            tries += 1

    def _set_term(self, term: T) -> None:
        self._term = term
        self._led.set()
        log.info(f"{self._role}.leads", extra={"holder": self._name})


def first_error(exc: BaseException) -> BaseException:
    """Return the first error of a group, and of the groups in it."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
