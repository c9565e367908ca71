"""Doing something with the broker until it has answered, however long it is away."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import anyio

from ...errors import BusUnavailable

__all__ = ["insist", "settle"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_BACK_OFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


async def insist(act: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something until the broker has answered; every other error, and being cancelled, ends it."""
    tries = 0
    while True:
        try:
            return await act(*args, **kwargs)
        except BusUnavailable as exc:
            log.debug("engine.broker_away", extra={"error": str(exc)})
        await anyio.sleep(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
        tries += 1


async def settle(how: Callable[[], Awaitable[None]]) -> None:
    """Settle a message; one that stays unsettled comes again and is found to be about the past."""
    try:
        await how()
    except BusUnavailable as exc:
        log.debug("engine.broker_away", extra={"error": str(exc)})
