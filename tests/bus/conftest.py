"""What the bus tests do to a broker, and how they look into the log."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.event import Recorded


@pytest.fixture
def kill(broker: EmbeddedBroker) -> Callable[[], Awaitable[None]]:
    """Kills the broker with -9 and waits until its keeper has started it again."""

    async def kill_it() -> None:
        pid = broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(60):
            while broker.pid in (pid, None):  # noqa: ASYNC110 - another process cannot set an event of ours
                await anyio.sleep(0.005)

    return kill_it


@pytest.fixture
def everything(bus: Bus) -> Callable[[], Awaitable[list[Recorded]]]:
    """Reads the whole log."""

    async def read_all() -> list[Recorded]:
        async with bus.log.read() as batches:
            return [record async for batch in batches for record in batch.records]

    return read_all
