"""Asking until there is an answer, for loops that hold a lease."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..errors import GuardFailed, UnavailableError

__all__ = ["insist"]

T = TypeVar("T")
_LONGEST_S = 5.0


async def insist(ask: Callable[[], Awaitable[T]], *, log: logging.Logger, who: str) -> T:
    """Ask until there is an answer: the broker comes back, or our lease is lost and we are cancelled.

    Args:
        ask: may be called any number of times.
        log: is told ``<who>.waiting`` each time there is none.
    """
    wait_s = 0.1
    while True:
        try:
            return await ask()
        except (UnavailableError, GuardFailed) as exc:
            log.warning(f"{who}.waiting", extra={"error": str(exc), "wait_s": wait_s})
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_S)
