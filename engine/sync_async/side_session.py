"""A second session, for sync code that holds the loop of the first."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from ...bus import Bus
    from ...bus.session import Session, SessionThread

__all__ = ["SideSession", "side_of"]


class SideSession:
    """A second session, on a thread of its own, for sync code that holds the loop the first one lives on.

    A sync flow called inside an async one, in the worker's own loop, keeps that loop from turning while it runs, so
    what it writes has to go out by another. Started when first needed; its owner closes it.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._thread: SessionThread | None = None
        self._session: Session | None = None
        self._lock = threading.Lock()

    def session(self) -> Session:
        """Return the session, connecting at the first call."""
        from ...bus.session import SessionThread, open_bus

        with self._lock:
            if self._session is None:
                bus = self._bus
                self._thread = SessionThread(lambda: open_bus(bus.address, bus.config))
                self._session = self._thread.start()
            return self._session

    def close(self) -> None:
        """Wait until what it published is stored, and end its thread."""
        with self._lock:
            thread, self._thread, self._session = self._thread, None, None
        if thread is not None:
            thread.stop()

    async def aclose(self) -> None:
        """Close without holding the loop."""
        if self._thread is not None:
            # Whoever closes may be being cancelled, and the thread would stay.
            closing = asyncio.get_running_loop().run_in_executor(None, self.close)
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await asyncio.wait([closing])
                raise


_of_bus: WeakKeyDictionary[Bus, SideSession] = WeakKeyDictionary()


def side_of(bus: Bus) -> SideSession:
    """Return the second session of a bus, for code outside of flows; the same one each time, closed with the bus."""
    found = _of_bus.get(bus)
    if found is None:
        found = _of_bus[bus] = SideSession(bus)
        bus.on_close(found.aclose)
    return found
