"""Processes that call flows themselves, without a worker, saying that they are there.

A run of a worker is taken up by another when its worker dies. A plain call has nobody else: its process shows a key
while such calls run, and when the key falls silent, the dispatcher ends what that process was running.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress
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
        """Return what a process wrote; None for something else. What only later versions say is passed over."""
        try:
            said = orjson.loads(raw)
            is_readable = isinstance(said["beat_s"], int | float)
            return cls(said["id"], said["host"], said["pid"], said["beat_s"]) if is_readable else None
        except (orjson.JSONDecodeError, TypeError, KeyError):
            return None


class Caller:
    """This process, as far as it calls flows over one bus."""

    def __init__(self, bus: Bus, beat_s: float) -> None:
        self._bus = bus
        self.info = CallerInfo(new_id(), socket.gethostname(), os.getpid(), beat_s)
        self._held: set[FlowRunId] = set()
        self._shown_at = float("-inf")  # monotonic
        self._beat: asyncio.TimerHandle | None = None
        """When it has to be seen again, if a run is held then. It outlives the runs: between short ones it need not be set."""
        self._showing: asyncio.Task[None] | None = None

    def hold_nowait(self, run_id: FlowRunId) -> bool:
        """Do what ``hold`` does if there is nothing to write; return whether it is done. From any thread."""
        # Noted before it is asked for the beat, which is taken away before it is asked for runs: so one sees the other.
        self._held.add(run_id)
        if self._beat is not None and not self._is_due:
            return True
        self._held.discard(run_id)
        return False

    async def hold(self, run_id: FlowRunId) -> None:
        """Be seen from here on until ``release``. Many short calls one after the other write once per beat.

        On the loop of the bus.

        Raises:
            BusUnavailable: nobody can see us.
        """
        if self._is_due:
            await self._show()
        self._held.add(run_id)
        if self._beat is None and self._showing is None:
            self._beat_in(self._shown_at + self.info.beat_s - time.monotonic())

    def release(self, run_id: FlowRunId) -> None:
        """The run is over, or somebody else's. From any thread.

        The key is left to fall silent: there is nothing to end any more.
        """
        self._held.discard(run_id)
        showing = self._showing
        if showing is not None and not self._held:
            with suppress(RuntimeError):  # its loop is closed
                showing.get_loop().call_soon_threadsafe(self._rest)

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self._shown_at >= self.info.beat_s

    async def _show(self) -> None:
        # Without a life of its own: who leads later has to find it to see that nobody renews it.
        await self._bus.bucket(BUCKET).put(self.info.key, self.info.to_json())
        self._shown_at = time.monotonic()

    def _beat_in(self, after_s: float) -> None:
        self._beat = asyncio.get_running_loop().call_later(max(0.0, after_s), self._show_again)

    def _show_again(self) -> None:
        self._beat = None
        if self._held and self._showing is None:
            self._showing = asyncio.get_running_loop().create_task(self._insist(), name="hark caller")

    async def _insist(self) -> None:
        try:
            await self._show()
        except HarkError as exc:
            log.debug("caller.broker_away", extra={"error": str(exc)})
            again_s = min(1.0, self.info.beat_s)
        else:
            again_s = self.info.beat_s
        self._showing = None
        self._beat_in(again_s)

    def _rest(self) -> None:
        if self._showing is not None and not self._held:
            self._showing.cancel()
            self._showing = None


_callers: WeakKeyDictionary[Bus, Caller] = WeakKeyDictionary()


def caller_of(bus: Bus, beat_s: float) -> Caller:
    """Return this process as seen over a bus; the same one each time. From any thread."""
    # Two threads that ask at once for the first time may get two: each is seen, and each is held by whom it was made for.
    found = _callers.get(bus)
    if found is None or found.info.pid != os.getpid():
        found = _callers[bus] = Caller(bus, beat_s)
    return found
