"""A worker saying that it is there, what it may hold and holds, and how many of its runs wait without a place."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import anyio

from ...bus import Bus
from ...errors import BusUnavailable
from ..code.lane import LOOP, PROCESS, Lane
from ..dispatching import presence
from ..dispatching.insisting import insist
from ..dispatching.presence import WorkerInfo
from .held_run import HeldRun
from .places import Places

__all__ = ["Attendance"]

log = logging.getLogger(__name__)


class Attendance:
    """What dispatchers know of a worker. Needs no closing.

    Args:
        places: of the lanes it has; a change of them is told at once.
        held: returns the runs in its hands, as a list of them can be made in any thread.
    """

    def __init__(
        self,
        bus: Bus,
        info: WorkerInfo,
        places: Mapping[Lane, Places],
        *,
        held: Callable[[], Iterable[HeldRun]],
    ) -> None:
        self._bus, self._info, self._places, self._held = bus, info, places, held
        self._changed = anyio.Event()
        for one in places.values():
            one.on_change(self._on_change)

    def _on_change(self) -> None:
        self._changed.set()

    @property
    def now(self) -> WorkerInfo:
        """What is to be told now. From any thread."""
        waiting = {lane: one.waiting for lane, one in self._places.items()}
        held = Counter(one.lane for one in list(self._held()))
        taken = {lane: max(0, held[lane] - waiting.get(lane, 0)) for lane in held}
        return replace(
            self._info, waiting_loop=waiting.get(LOOP, 0), waiting_processes=waiting.get(PROCESS, 0),
            taken_loop=taken.get(LOOP, 0), taken_processes=taken.get(PROCESS, 0),
        )  # fmt: skip

    async def begin(self) -> None:
        """Say that it is there, and that it has started, however long the broker takes to answer."""
        await insist(presence.show, self._bus, self.now)
        await insist(self._bus.log.append, self._info.event("started"))

    async def stay(self) -> None:
        """Say so again and again, and whenever something has changed."""
        while True:
            # Places are given back in bursts: however many are at once, the last word counts.
            with anyio.move_on_after(presence.BEAT_S):
                await self._changed.wait()
            self._changed = anyio.Event()
            await self._show(self.now)

    async def end(self) -> None:
        """Say that it takes nothing any more."""
        await self._show(replace(self._info, stopped=True))

    async def _show(self, info: WorkerInfo) -> None:
        try:
            await presence.show(self._bus, info)
        except BusUnavailable as exc:
            log.debug("worker.broker_away", extra={"error": str(exc)})
