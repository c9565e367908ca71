"""The time limit of a flow: it holds for the whole of a try, the waiting for its submitted tasks included."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hark import flow, suspend_flow_run, task
from hark.bus import Bus
from hark.bus.session import Session
from hark.bus.subject import flow_run_filter
from hark.engine import RunLog, RunRequest, execute
from hark.engine.context import FlowRunContext
from hark.engine.futures import TaskFuture, wait
from hark.engine.states import State
from hark.engine.task_runners import (
    AsyncTaskRunner,
    ProcessPoolTaskRunner,
    TaskRunner,
    ThreadPoolTaskRunner,
)
from hark.errors import RunTimedOut

from ..conftest import PATIENCE_S
from .conftest import words

MESSAGE = "Flow run exceeded timeout of {} second(s)"


@task
def spins() -> None:
    while True:
        time.sleep(0.001)


@task
def doubled(n: int) -> int:
    return 2 * n


@task
async def hangs() -> None:
    await asyncio.sleep(600)


@pytest.mark.parametrize("runner", [ThreadPoolTaskRunner(), AsyncTaskRunner(), ProcessPoolTaskRunner(2)])
def test_it_holds_for_tasks_that_outlive_the_code(runner: TaskRunner) -> None:
    """They are interrupted when the time is up, sync and async ones, and the run is TimedOut."""
    submitted: list[TaskFuture[None]] = []

    @flow(task_runner=runner, timeout_seconds=0.4)
    def ends_early() -> None:
        submitted.extend(one.submit() for one in (spins, hangs))

    state = ends_early(return_state=True)
    assert (state.type, state.name, state.message) == ("FAILED", "TimedOut", MESSAGE.format(0.4))
    assert isinstance(state.result(raise_on_failure=False), RunTimedOut)
    assert all(one.done and not one.state.is_completed() for one in submitted)


async def test_it_holds_for_tasks_that_outlive_a_failure() -> None:
    """Of a flow whose code raised; a retry runs tasks although those before were stopped."""
    begun, tries = threading.Event(), 0

    def lift(flow: Any, run: Any, state: State) -> None:
        if state.name == "Retrying":
            flow.timeout_seconds = None  # which a machine that is slow would else reach once more

    @task
    def begins() -> None:
        begun.set()
        spins()

    @flow(task_runner=AsyncTaskRunner(), timeout_seconds=0.5, retries=1, on_running=[lift])
    async def fails_early() -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            begins.submit()
            await asyncio.to_thread(begun.wait)
            raise ValueError("no")
        return await doubled.submit(21)

    assert await fails_early() == 42
    assert tries == 2


async def test_it_holds_for_tasks_that_a_run_waits_for_before_it_leaves(session: Session, bus: Bus) -> None:
    """The run is not suspended: its time was up first."""

    @flow(timeout_seconds=0.4)
    async def leaves() -> None:
        spins.submit()
        await suspend_flow_run()

    run = await RunLog(bus).request(RunRequest(flow_name="leaves", pool="default"))
    with anyio.fail_after(PATIENCE_S):
        state = await execute(leaves, run, session=session)
    assert (state.name, state.message) == ("TimedOut", MESSAGE.format(0.4))
    assert await words(bus, flow_run_filter(run.id)) == [
        f"flow-run.{word}" for word in ("scheduled", "pending", "running", "timed-out")
    ]


def test_it_holds_for_tasks_of_a_generator() -> None:
    """They have what its code left of it; without one that is over they are waited for."""
    held = threading.Event()

    @task
    def waits() -> str:
        while not held.wait(0.001):
            pass
        return "ended"

    @flow(timeout_seconds=60)
    def yields() -> Iterator[Any]:
        yield waits.submit()

    with pytest.raises(RunTimedOut):
        list(yields.with_options(timeout_seconds=0.2)())
    values = yields()
    future = next(values)
    held.set()
    assert list(values) == []
    assert future.result() == "ended"


def test_what_a_stop_reached_stays_stopped() -> None:
    """Calls are begun again after it (hooks may submit tasks): not those from before, nor what their tasks submit."""
    begun, go_on = threading.Event(), threading.Event()
    late: list[State] = []

    @task
    def slow() -> None:
        begun.set()
        go_on.wait()
        late.append(doubled.submit(1, return_state=True))

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def submits() -> list[State]:
        runner = FlowRunContext.get().task_runner  # type: ignore[union-attr]
        first, second = slow.submit(), doubled.submit(2)
        begun.wait()
        runner.stop()
        runner.reopen()
        go_on.set()
        futures: list[TaskFuture[Any]] = [first, second, doubled.submit(3)]
        wait(futures)
        return [future.state for future in futures]

    states = submits(return_state=True).result(raise_on_failure=False)
    assert [state.type for state in (*states, *late)] == ["COMPLETED", "CANCELLED", "COMPLETED", "CANCELLED"]
