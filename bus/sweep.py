"""Removing what puts into the object store leave behind when their process is killed midway: pieces nothing names."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin

from ..errors import BusUnavailable, HarkError
from ..vocabulary import draw
from .objects import Objects

__all__ = ["ObjectSweep"]

log = logging.getLogger(__name__)

OLDER_S = 3600.0
"""No put takes as long: its broker would have been given up."""
EVERY_S = 6 * 3600.0
_AGAIN_S = 60.0


class ObjectSweep(AsyncContextManagerMixin):
    """The service: sweeps soon after it is entered and every six hours. Any number may run; each sweeps what is there."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._keep_swept)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel()

    async def _keep_swept(self) -> None:
        # Not while everything starts, and not all processes at one moment.
        await anyio.sleep(_AGAIN_S * (0.5 + draw()))
        while True:
            try:
                swept = await self._objects.sweep(older_s=OLDER_S)
            except BusUnavailable as exc:
                log.warning("objects.sweep_waits", extra={"error": str(exc)})
                await anyio.sleep(_AGAIN_S)
                continue
            except HarkError as exc:
                # Nothing is swept while a description cannot be read; that is no reason to end the process.
                log.error("objects.not_swept", extra={"error": str(exc)})
                swept = 0
            if swept:
                log.info("objects.swept", extra={"objects": swept})
            await anyio.sleep(EVERY_S)
