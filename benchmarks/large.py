"""Very many tasks in one flow run finish, and all their events are stored: 100 000 of them, in four ways.

Each way has a process of its own, so that its largest resident size is its own. The rate is a share of the broker's raw rate
in the same process. Goals: everything finishes with three events for each task in the log, at 2 % of the raw rate; a way that
looks at all tasks for each of them would be far below.

Run: ``python -m benchmarks.large [tasks]``
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from hark import flow, task
from hark.bus import Bus, EmbeddedBroker
from hark.bus.session import use_session
from hark.config import BusConfig
from hark.engine import AsyncTaskRunner

from .bus import raw_fast_ingest
from .engine import trivial, trivial_sync

TASKS = 100_000
GOAL = 0.02
EVENTS_PER_TASK = 3


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@flow(task_runner=AsyncTaskRunner())
async def mapped(count: int) -> int:
    return sum(await trivial.map(range(count)))


@flow
async def gathered(count: int) -> int:
    return sum(await asyncio.gather(*[trivial(n) for n in range(count)]))


@flow(task_runner=AsyncTaskRunner())
async def reduced(count: int) -> int:
    return int(await total.submit(trivial.map(range(count))))


@flow
def on_threads(count: int) -> int:
    return sum(trivial_sync.map(range(count)).result())


WAYS: dict[str, Callable[[int], Awaitable[int]]] = {
    "async, mapped": mapped,
    "async, gathered": gathered,
    "async, mapped and reduced": reduced,
    "sync, mapped on threads": lambda count: asyncio.to_thread(on_threads, count),
}


async def measure(name: str, count: int) -> bool:
    """Print how one way went; return whether it reached its goals."""
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as room:
        config = BusConfig()
        async with EmbeddedBroker(Path(room), config) as broker, Bus(broker.address, config) as bus:
            raw = EVENTS_PER_TASK * count / await raw_fast_ingest(bus.connection, EVENTS_PER_TASK * count)
            before = await bus.log.head()
            with use_session(bus):
                began = time.perf_counter()
                found = await WAYS[name](count)
                rate = count / (time.perf_counter() - began)
            stored = await bus.log.head() - before
    whole = found == count * (count - 1) // 2 and stored >= EVENTS_PER_TASK * count
    reached = rate / raw >= GOAL
    size_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:28}{rate:9,.0f} tasks/s  {rate / raw:6.1%} of raw  {stored:9,} events  {size_mb:5,.0f} MB"
        f"  goal {GOAL:.0%} {'reached' if reached else 'MISSED'}{'' if whole else '  NOT ALL IS STORED'}",
        flush=True,
    )
    return whole and reached


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    if len(sys.argv) > 2:
        return 0 if uvloop.run(measure(sys.argv[2], count)) else 1
    print(f"{count:,} tasks in one flow run")
    codes = [
        subprocess.run([sys.executable, "-m", "benchmarks.large", str(count), name]).returncode
        for name in WAYS
    ]
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
