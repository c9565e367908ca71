"""Processes that call flows themselves, without a worker, saying that they are there.

A run of a worker is taken up by another when its worker dies. A plain call has nobody else: its process shows a key
while such calls run, and when the key falls silent, the dispatcher ends what that process was running.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

import orjson

from ...errors import HarkError
from ...vocabulary import FlowRunId, new_id

if TYPE_CHECKING:
    from ...bus import Bus

__all__ = ["BEATS", "BUCKET", "DETAIL", "PREFIX", "Caller", "CallerInfo", "caller_of"]

log = logging.getLogger(__name__)

BUCKET = "leases"
PREFIX = "caller."
DETAIL = "caller"
"""Among the details of the run's first state: which process calls it."""
BEATS = 4
"""A process silent for this many beats has died."""


@dataclass(frozen=True, slots=True)
class CallerInfo:
    """What a process says of itself, and how often it does (s)."""

    id: str
    host: str
    pid: int
    beat_s: float

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.id}"

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Self | None:
        """Return what a process wrote; None for something else."""
        try:
            return cls(**orjson.loads(raw))
        except (orjson.JSONDecodeError, TypeError):
            return None


class Caller:
    """This process, as far as it calls flows over one bus. All methods on the loop of the bus."""

    def __init__(self, bus: Bus, beat_s: float) -> None:
        self._bus = bus
        self.info = CallerInfo(new_id(), socket.gethostname(), os.getpid(), beat_s)
        self._held: set[FlowRunId] = set()
        self._shown_at = float("-inf")
        self._beating: asyncio.Task[None] | None = None

    async def hold(self, run_id: FlowRunId) -> None:
        """Be seen from here on until ``release``. Many short calls one after the other write once per beat.

        Raises:
            BusUnavailable: nobody can see us.
        """
        loop = asyncio.get_running_loop()
        if loop.time() - self._shown_at >= self.info.beat_s:
            await self._show()
        self._held.add(run_id)
        if self._beating is None:
            self._beating = loop.create_task(self._beat(), name="hark caller")

    def release(self, run_id: FlowRunId) -> None:
        """The run is over, or somebody else's. The key is left to fall silent: there is nothing to end any more."""
        self._held.discard(run_id)
        if not self._held and self._beating is not None:
            self._beating.cancel()
            self._beating = None

    async def _show(self) -> None:
        # Without a life of its own: who leads later has to find it to see that nobody renews it.
        await self._bus.bucket(BUCKET).put(self.info.key, self.info.to_json())
        self._shown_at = asyncio.get_running_loop().time()

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._shown_at + self.info.beat_s - loop.time()))
            try:
                await self._show()
            except HarkError as exc:
                log.debug("caller.broker_away", extra={"error": str(exc)})
                await asyncio.sleep(min(1.0, self.info.beat_s))


_callers: WeakKeyDictionary[Bus, Caller] = WeakKeyDictionary()


def caller_of(bus: Bus, beat_s: float) -> Caller:
    """Return this process as seen over a bus; the same one each time."""
    found = _callers.get(bus)
    if found is None or found.info.pid != os.getpid():
        found = _callers[bus] = Caller(bus, beat_s)
    return found
