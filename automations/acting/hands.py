"""Tasks that stay for the next piece of work: to begin one takes longer than half of what an outbox does until a call is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

__all__ = ["Hands"]

_MOST_IDLE = 8

T = TypeVar("T")


class _Hand(Generic[T]):
    """A task that waits for work."""

    def __init__(self) -> None:
        self.called = anyio.Event()
        self.work: T | None = None


class Hands(Generic[T]):
    """Does pieces of work side by side, each by a task of its own while it lasts.

    Args:
        do: does a piece. It raises nothing but cancellation.
    """

    def __init__(self, do: Callable[[T], Awaitable[None]]) -> None:
        self._do = do
        self._idle: list[_Hand[T]] = []

    def begin(self, tg: TaskGroup, work: T) -> None:
        """Have a piece of work done soon, by a task of ``tg``."""
        if self._idle:
            hand = self._idle.pop()
            hand.work = work
            hand.called.set()
        else:
            tg.start_soon(self._stay, work)

    async def _stay(self, work: T | None) -> None:
        while work is not None:
            await self._do(work)
            if len(self._idle) >= _MOST_IDLE:
                return
            hand = _Hand[T]()
            self._idle.append(hand)
            try:
                await hand.called.wait()
            except anyio.get_cancelled_exc_class():
                if hand in self._idle:
                    self._idle.remove(hand)
                elif hand.work is not None:
                    await self._do(hand.work)  # which is cancelled, too, and leaves behind what that has to
                raise
            work = hand.work
