"""How fast tasks run: tracked against the broker's raw rate of the same run, untracked against the bare function.

A tracked task is three durable events (pending, running, completed) in the log behind a barrier. Goals: trivial async
tasks in one process 10 % of the raw fast-ingest rate, which is 10 000/s where that is 100 000/s; sync tasks 4 000/s
there. Untracked, a call costs less than 15 µs (async) and 30 µs (sync) over the function itself. A run of 10 000 finished
tasks is taken up again within a second.

Run: ``python -m benchmarks.engine [tasks]``
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop
from hark import flow, task
from hark.bus import Bus, EmbeddedBroker
from hark.bus.session import Session, use_session
from hark.config import BusConfig
from hark.engine import AsyncTaskRunner, RunLog, RunRequest, execute
from hark.engine.states import Running

from .bus import raw_fast_ingest

TASKS = 10_000
ROUNDS = 3
GOAL_ASYNC = 0.10
GOAL_SYNC = 0.04
GOAL_UNTRACKED_ASYNC_US = 15.0
GOAL_UNTRACKED_SYNC_US = 30.0
GOAL_RESUME_S = 1.0


@task
async def trivial(n: int) -> int:
    return n


@task
def trivial_sync(n: int) -> int:
    return n


@flow
async def one_after_the_other(n: int) -> None:
    for i in range(n):
        await trivial(i)


@flow
async def gathered(n: int) -> None:
    await asyncio.gather(*[trivial(i) for i in range(n)])


@flow(task_runner=AsyncTaskRunner())
async def submitted(n: int) -> None:
    for future in [trivial.submit(i) for i in range(n)]:
        await future


@flow
def sync_calls(n: int) -> None:
    for i in range(n):
        trivial_sync(i)


@flow
def sync_submits(n: int) -> None:
    trivial_sync.map(range(n)).wait()


@flow
async def empty() -> None: ...


@flow
def empty_sync() -> None: ...


async def best_of(measure: Callable[[], Awaitable[float]]) -> float:
    """Return the shortest of a few rounds, in seconds."""
    return min([await measure() for _ in range(ROUNDS)])


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def tracked(count: int) -> bool:
    """Print the rates of tracked tasks; return whether the goals are reached."""
    good = True
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as room:
        config = BusConfig()
        async with EmbeddedBroker(Path(room), config) as broker, Bus(broker.address, config) as bus:
            raw = 3 * count / await best_of(lambda: raw_fast_ingest(bus.connection, 3 * count))
            print(f"raw fast ingest               {raw:10,.0f} events/s")
            with use_session(bus) as session:
                await one_after_the_other(100)
                ways: list[tuple[str, Callable[[], Awaitable[object]], float]] = [
                    ("async, one after the other", lambda: one_after_the_other(count), GOAL_ASYNC),
                    ("async, gathered", lambda: gathered(count), GOAL_ASYNC),
                    ("async, submitted", lambda: submitted(count), 0.0),
                    ("sync, called", lambda: asyncio.to_thread(sync_calls, count), GOAL_SYNC),
                    ("sync, mapped on threads", lambda: asyncio.to_thread(sync_submits, count // 2), 0.0),
                ]
                for name, work, goal in ways:
                    done = count // 2 if "mapped" in name else count
                    rate = done / await best_of(lambda work=work: timed(work))  # type: ignore[misc]
                    reached = rate / raw >= goal
                    good &= reached
                    print(
                        f"{name:30}{rate:10,.0f} tasks/s  {rate / raw:6.1%} of raw"
                        + (f"  goal {goal:.0%} {'reached' if reached else 'MISSED'}" if goal else "")
                    )
                for name, call in (("empty async flow", empty), ("empty sync flow", None)):
                    rounds = 100
                    began = time.perf_counter()
                    for _ in range(rounds):
                        await (call() if call is not None else asyncio.to_thread(empty_sync))
                    print(f"{name:30}{(time.perf_counter() - began) / rounds * 1e3:10.2f} ms")
                resumed = await resume(session, bus, count)
                good &= resumed <= GOAL_RESUME_S * count / 10_000
                print(
                    f"taking up {count:,} finished tasks {resumed:8.2f} s  goal {GOAL_RESUME_S:g} s per 10 000"
                )
    print(
        f"largest resident size         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:10,.0f} MB"
    )
    return good


async def resume(session: Session, bus: Bus, count: int) -> float:
    """Return the seconds from a take-over of a run with ``count`` finished tasks to its end."""
    reached = asyncio.Event()

    @flow
    async def long(n: int) -> None:
        for i in range(n):
            await trivial(i)
        if not reached.is_set():
            reached.set()
            await asyncio.sleep(3600)

    run_log = RunLog(bus)
    run = await run_log.request(RunRequest(flow_name="long", parameters={"n": count}, pool="bench"))
    first = asyncio.create_task(execute(long, run, session=session))
    await reached.wait()
    first.cancel()
    await asyncio.wait([first])
    now = await run_log.get(run.id)
    assert now is not None
    began = time.perf_counter()
    run = await run_log.move_exactly(now, Running(message="worker lost"), attempt=2)
    state = await execute(long, run, session=session)
    assert state.is_completed(), state
    return time.perf_counter() - began


async def bare(n: int) -> int:
    return n


def bare_sync(n: int) -> int:
    return n


async def untracked(count: int) -> bool:
    """Print what an untracked call costs over the function, in processor time; return whether the goals are reached."""

    async def loop_async(fn: Callable[[int], Awaitable[int]]) -> float:
        began = time.thread_time()
        for i in range(count):
            await fn(i)
        return time.thread_time() - began

    async def loop_sync(fn: Callable[[int], int]) -> float:
        began = time.thread_time()
        for i in range(count):
            fn(i)
        return time.thread_time() - began

    @flow
    async def costs() -> tuple[float, float]:
        plain = await best_of(lambda: loop_async(bare))
        as_task = await best_of(lambda: loop_async(trivial))
        plain_sync = await best_of(lambda: loop_sync(bare_sync))
        as_sync_task = await best_of(lambda: loop_sync(trivial_sync))
        return (as_task - plain) / count * 1e6, (as_sync_task - plain_sync) / count * 1e6

    async_us, sync_us = await costs()
    for name, cost, goal in (
        ("untracked async call", async_us, GOAL_UNTRACKED_ASYNC_US),
        ("untracked sync call", sync_us, GOAL_UNTRACKED_SYNC_US),
    ):
        print(f"{name:30}{cost:10.1f} µs over the function  goal {goal:g} µs")
    return async_us < GOAL_UNTRACKED_ASYNC_US and sync_us < GOAL_UNTRACKED_SYNC_US


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else TASKS
    good = uvloop.run(tracked(count))
    good &= uvloop.run(untracked(count))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
