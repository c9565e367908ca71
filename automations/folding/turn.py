"""Long work in a loop that others are in, too."""

from __future__ import annotations

import time

import anyio.lowlevel

__all__ = ["SLICE_S", "Turn"]

SLICE_S = 0.001
"""Of folding, or of taking a checkpoint, before others have their turn again."""


class Turn:
    """What may be done in one go before others of the loop have theirs."""

    __slots__ = ("_ends_s",)

    def __init__(self) -> None:
        self._ends_s = time.perf_counter() + SLICE_S

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self._ends_s

    async def pass_on(self) -> None:
        """Let others have theirs, and begin another."""
        await anyio.lowlevel.checkpoint()
        self._ends_s = time.perf_counter() + SLICE_S
