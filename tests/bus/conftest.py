"""What the bus tests do to a broker, and how they look into the log."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

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
        with anyio.fail_after(10):
            while broker.pid in (pid, None):  # noqa: ASYNC110 - another process cannot set an event of ours
                await anyio.sleep(0.005)

    return kill_it


@pytest.fixture
def frozen(broker: EmbeddedBroker) -> Callable[[], AbstractContextManager[None]]:
    """Freezes the broker while inside: connections stay, nothing is answered."""

    @contextmanager
    def freeze() -> Iterator[None]:
        pid = broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            # Its threads stop one by one; until the last has, an answer may still come.
            while not all(_is_stopped(task) for task in Path(f"/proc/{pid}/task").iterdir()):
                time.sleep(0.001)
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    return freeze


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] in "TX"


@pytest.fixture
def everything(bus: Bus) -> Callable[[], Awaitable[list[Recorded]]]:
    """Reads the whole log."""

    async def read_all() -> list[Recorded]:
        async with bus.log.read() as batches:
            return [record async for batch in batches for record in batch.records]

    return read_all
