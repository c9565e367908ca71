"""The places that the actions of one rule may take at once, so that a rule whose target hangs leaves some for the others."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from ...vocabulary import draw

__all__ = ["Places"]

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
        self.free = anyio.Semaphore(places)
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

    def begin(self) -> float:
        """Note that a place is taken; return when, for ``end``."""
        began = anyio.current_time()
        if self.users <= self._places:
            self._moved_at = began
        return began

    def end(self, began: float) -> None:
        """Note that a place is given back."""
        self._moved_at = anyio.current_time()
        self._took_s += (self._moved_at - began - self._took_s) * (_RECENT if self._took_s else 1.0)


class Places:
    """The places of an outbox.

    Args:
        most: in all; half of them at the most are one rule's.
    """

    def __init__(self, most: int) -> None:
        self._free = anyio.Semaphore(most)
        # One rule whose target hangs must leave places for the others.
        self._each = max(1, most // 2)
        self._shares: dict[str, Share] = {}

    @asynccontextmanager
    async def one_of(self, rule: str) -> AsyncGenerator[float | None]:
        """Hold a place of the rule's and of all, for which it waits; or say when to come back (s).

        Where the target of a rule is slow or hangs, what waits here for its turn would keep the decisions of other rules out.
        """
        share = self._shares.get(rule)
        if share is None:
            share = self._shares[rule] = Share(self._each)
        elif share.wait_s > LONGEST_WAIT_S:
            yield share.put_off_s(draw())
            return
        share.users += 1
        try:
            if not await _taken(share.free, within_s=LONGEST_WAIT_S):
                yield share.put_off_s(draw())
                return
            try:
                await _taken(self._free)
                began = share.begin()
                try:
                    yield None
                finally:
                    share.end(began)
                    self._free.release()
            finally:
                share.free.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[rule]


async def _taken(free: anyio.Semaphore, *, within_s: float = math.inf) -> bool:
    """Take a place; whether there was one in time.

    While one is free, without the turn of the loop that anyio gives others: on a busy one it takes long.
    """
    try:
        free.acquire_nowait()
    except anyio.WouldBlock:
        with anyio.move_on_after(within_s) as waiting:
            await free.acquire()
        return not waiting.cancelled_caught
    return True
