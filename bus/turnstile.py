"""How many may ask the broker at once over one connection; the others wait in line, first come, first served.

The broker drops all that is asked of its API, without a word, once more than 10 000 questions wait there. And an answer
that takes longer than its time limit, because ten thousand others are before it, is asked for again: that makes it worse.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..errors import HarkError

__all__ = ["MOST_ASKED", "Turnstile"]

MOST_ASKED = 256
"""Enough to keep the broker busy; far enough from its 10 000 that many processes may do so. With a thousand, a broker that is slow
because its machine is busy had no answer ready within the second after which a question is asked again: it answered for ever what
nobody waited for any more."""


class Turnstile:
    """Lets so many in at once: ``async with turnstile``. Who is inside does not enter once more, or all may wait for all.

    Raises:
        HarkError: on entering, what ``turn_away`` was given meanwhile.
    """

    def __init__(self, most: int | None = None) -> None:
        self._free = MOST_ASKED if most is None else most
        self._line: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self.enter_nowait():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # let in and cancelled at the same moment
            raise

    async def __aexit__(self, *exc: object) -> None:
        self.leave()

    def enter_nowait(self) -> bool:
        """Go in if there is room and nobody waits in line; return whether that is so. Who is in has to ``leave``."""
        if self._free and not self._line:
            self._free -= 1
            return True
        return False

    def leave(self) -> None:
        """Let the next one in."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def turn_away(self, why: Callable[[], HarkError]) -> None:
        """Raise an error in all who wait in line: who is inside has seen that nobody answers.

        Args:
            why: makes one for each; an error that many raise would gather the places of all of them.
        """
        line, self._line = self._line, deque()
        for turn in line:
            if not turn.done():
                turn.set_exception(why())
