"""Holding back while the broker has no room for what has to be noted before an action may begin."""

from __future__ import annotations

import logging

import anyio

from ...errors import StreamFull

__all__ = ["Room"]

log = logging.getLogger(__name__)

_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_ANSWER_S = 10.0
"""How long the one that looks may take before another does."""


class Room:
    """Whether there is room, as far as this process knows. While there is none, one at a time finds out whether there is again.

    Without it everything that waits would ask again every second: thousands of refusals, which keep the broker from all else.
    """

    def __init__(self) -> None:
        self._closed_until_s = 0.0
        self._tries = 0
        self._moved = anyio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether there was none when somebody looked last."""
        return self._tries > 0

    async def wait(self) -> bool:
        """Return once there is room, False; or once it is the caller's turn to look, True."""
        while self._tries:
            left_s = self._closed_until_s - anyio.current_time()
            if left_s <= 0:
                self._closed_until_s = anyio.current_time() + _ANSWER_S
                return True
            with anyio.move_on_after(left_s):
                await self._moved.wait()
        return False

    def close(self, why: StreamFull, *, looked: bool) -> None:
        """Note that there is none. ``looked``: what ``wait`` returned; who was under way already says nothing new."""
        if self._tries and not looked:
            return
        pause_s = _PAUSES_S[min(self._tries, len(_PAUSES_S) - 1)]
        self._tries += 1
        self._closed_until_s = anyio.current_time() + pause_s
        log.warning("outbox.full", extra={"error": str(why), "hint": why.hint, "again_in_s": pause_s})

    def open(self) -> None:
        """Note that something could be stored."""
        if self._tries:
            log.info("outbox.has_room")
            self._tries = 0
            moved, self._moved = self._moved, anyio.Event()
            moved.set()
