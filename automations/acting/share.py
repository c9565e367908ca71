"""The places that the actions of one rule may take at once, so that a rule whose target hangs leaves some for the others."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio

__all__ = ["LONGEST_WAIT_S", "Share", "held"]

LONGEST_WAIT_S = 2.0
"""For how long an action may wait here for a place of its rule; beyond, it had better wait with the broker."""
_LONGEST_PUT_OFF_S = 120.0
"""A target that hung may be well again, and those that are put off do not hear of it."""
_RECENT = 0.1
"""How much the latest action counts in what one takes."""


class Share:
    """The places of one rule, for as long as any of its actions has or wants one.

    Attributes:
        users: actions that have a place or want one.
    """

    def __init__(self, places: int) -> None:
        self.limiter = anyio.CapacityLimiter(places)
        self.users = 0
        self._places = places
        self._took_s = 0.0  # of late, an action
        self._moved_at = anyio.current_time()  # when a place was given back, or one was free
        self._booked_at = 0.0  # when the last one that was put off is to come again

    @property
    def wait_s(self) -> float:
        """How long one that comes now would have to wait for a place, as far as can be told."""
        if self.users < self._places:
            return 0.0
        return (self.users - self._places + 1) * self._each_s

    @property
    def _each_s(self) -> float:
        """How long it takes until a place is free again."""
        # Of those that hang none has ended from which one could tell.
        return max(self._took_s, anyio.current_time() - self._moved_at) / self._places

    def put_off_s(self, draw: float) -> float:
        """Return when one that would have to wait is to come again: behind those put off before it, as fast as they are done.

        Args:
            draw: of [0, 1); keeps those from coming together of which nobody can say when their turn is.
        """
        now = anyio.current_time()
        at = max(now + max(self.wait_s, LONGEST_WAIT_S), self._booked_at)
        if at - now > _LONGEST_PUT_OFF_S:
            return _LONGEST_PUT_OFF_S * (0.5 + draw / 2)
        self._booked_at = at + self._each_s
        return at - now

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Note how long a place was taken."""
        began = anyio.current_time()
        if self.users <= self._places:
            self._moved_at = began
        try:
            yield
        finally:
            self._moved_at = anyio.current_time()
            self._took_s += (self._moved_at - began - self._took_s) * (_RECENT if self._took_s else 1.0)


@asynccontextmanager
async def held(limiter: anyio.CapacityLimiter, *, within_s: float = math.inf) -> AsyncGenerator[bool]:
    """Hold a place; whether there was one in time.

    While one is free, without the turn of the loop that anyio gives others: on a busy one it takes long.
    """
    borrower = object()
    try:
        limiter.acquire_on_behalf_of_nowait(borrower)
    except anyio.WouldBlock:
        with anyio.move_on_after(within_s) as waiting:
            await limiter.acquire_on_behalf_of(borrower)
        if waiting.cancelled_caught:
            yield False
            return
    try:
        yield True
    finally:
        limiter.release_on_behalf_of(borrower)
