"""Asking a run to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

__all__ = ["StopRequest"]


class StopRequest:
    """Whether a run is to stop, for whatever reason. Who executes it waits to hear of it, or is called.

    All in one event loop.
    """

    __slots__ = ("_act", "_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: anyio.Event | None = None  # made for who waits; most runs are never asked
        self._act: Callable[[], object] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Ask the run to stop; again changes nothing."""
        if self._is_set:
            return
        self._is_set = True
        if self._event is not None:
            self._event.set()
        if self._act is not None:
            self._act()

    @property
    def is_calling(self) -> bool:
        """Whether somebody is inside ``calling``: what was asked to stop has not ended yet."""
        return self._act is not None

    async def wait(self) -> None:
        """Return once it is asked for."""
        if not self._is_set:
            self._event = self._event or anyio.Event()
            await self._event.wait()

    @contextmanager
    def calling(self, act: Callable[[], object]) -> Iterator[None]:
        """Have ``act`` called when it is asked for inside, or at once if it has been.

        A task that waits would do as well; to begin and end one took a tenth of what a short run in the loop costs.
        """
        self._act = act
        try:
            if self._is_set:
                act()
            yield
        finally:
            self._act = None
