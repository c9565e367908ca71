"""How long many flow runs take side by side: async flows that sleep a second each, all of them in one worker.

They are asked for at once; the dispatcher gives them out and the worker executes them, in one process as in ``hark up``.
The time is from the first request to the last end in the log, of the best of a few rounds.

Run: ``python -m benchmarks.runs [runs]``
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from hark.bus import Bus, EmbeddedBroker
from hark.bus.subject import PREFIX
from hark.config import BusConfig, EngineConfig, WorkerConfig
from hark.engine import RunLog, RunRequest
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.workers.worker import Worker

from .goal import Goals

RUNS = 1_000
ROUNDS = 3
GOAL_S = 3.0
GOAL_MB = 300
NAP = """\
import asyncio
from hark import flow

@flow
async def nap(n: int = 0):
    await asyncio.sleep(1)
"""


async def one_round(bus: Bus, count: int) -> tuple[float, float]:
    """Return the seconds from the first request to the last end, by the clock and of this process's time."""
    runs = RunLog(bus)
    async with bus.log.follow([f"{PREFIX}flow-run.completed.*"]) as batches:
        began, cpu = time.perf_counter(), time.process_time()
        requests = [
            RunRequest(flow_name="nap", entrypoint="nap.py:nap", parameters={"n": n}, pool="default")
            for n in range(count)
        ]
        await asyncio.gather(*[runs.request(request) for request in requests])
        left = count
        async for batch in batches:
            left -= len(batch.records)
            if left <= 0:
                break
    return time.perf_counter() - began, time.process_time() - cpu


async def side_by_side(count: int, goals: Goals) -> None:
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as room:
        Path(room, "nap.py").write_text(NAP)
        os.chdir(room)
        config, engine = BusConfig(), EngineConfig()
        async with EmbeddedBroker(Path(room, "home"), config) as broker, Bus(broker.address, config) as bus:
            worker = Worker(bus, WorkerConfig(concurrency=count, processes=0), engine)
            async with Dispatcher(bus, engine) as dispatcher, worker:
                await dispatcher.leading()
                took, cpu = min([await one_round(bus, count) for _ in range(ROUNDS)])
    size_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count:,} async runs that sleep a second, in one worker: {took:.2f} s, {cpu / count * 1e3:.2f} ms of CPU each"
        f"   {goals.below('runs side by side', took, GOAL_S, ' s')}"
    )
    print(f"largest resident size: {size_mb:,.0f} MB   {goals.below('memory', size_mb, GOAL_MB, ' MB')}")


def main() -> int:
    goals = Goals()
    uvloop.run(side_by_side(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS, goals))
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
