"""Tasks for runners whose tasks run in other processes, and what holds for each of those runners."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

import pytest
from hark import flow, get_run_logger, runtime, tags, task
from hark.engine.context import current_run
from hark.engine.life.holding import Place
from hark.engine.task_runners import TaskRunner


@task
def square(x: int) -> tuple[int, int]:
    """Return the square and the process that made it."""
    return x * x, os.getpid()


@task
async def square_async(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


_LEFT: list[Place] = []
"""What a try has left behind in its process."""


@task
def leaves_its_place() -> int:
    """Say that all of this goes on, and leave what that is said by to the next try."""
    run = current_run.get()
    assert run is not None
    assert run.flow_context is not None
    assert run.flow_context.tracker is not None
    assert run.flow_context.tracker.place is not None
    _LEFT.append(run.flow_context.tracker.place)
    _LEFT[0].take()
    return os.getpid()


@task
def uses_what_was_left() -> int:
    _LEFT[0].take()
    return os.getpid()


class Odd(Exception):
    """An exception that does not come back from its `args`."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"odd {code}")
        self.code = code


@task
def raises() -> None:
    raise Odd(code=7)


def knows_its_run(runner: TaskRunner, caplog: pytest.LogCaptureFixture) -> None:
    """Check: names, tags and parameters are there where a task runs, prints and log lines come to the submitting one."""

    @task(task_run_name="look-{x}", log_prints=True)
    def look(x: int) -> dict[str, Any]:
        get_run_logger().info("looking at %d", x, extra={"depth": 3})
        print("printed")
        return {
            "flow": runtime.flow_run.name, "flow_name": runtime.flow_run.flow_name, "given": runtime.flow_run.parameters,
            "task": runtime.task_run.name, "tags": set(runtime.task_run.tags), "parameters": runtime.task_run.parameters,
        }  # fmt: skip

    @flow(name="observed", task_runner=runner)
    def observed(n: int, lock: Any) -> Any:
        with tags("here"):
            return runtime.flow_run.name, look.submit(n).result()

    with caplog.at_level(logging.INFO, logger="hark.task_runs"):
        name, facts = observed(4, threading.Lock())
    assert facts == {
        "flow": name, "flow_name": "observed", "given": {"n": 4}, "task": "look-4", "tags": {"here"},
        "parameters": {"x": 4},
    }  # fmt: skip
    records = {record.getMessage(): record for record in caplog.records}
    assert {"looking at 4", "printed"} <= set(records)
    line: Any = records["looking at 4"]
    assert (line.task_run_name, line.flow_name, line.depth) == ("look-4", "observed", 3)
    assert line.process != os.getpid()


def where_am_i(x: int) -> tuple[int, str | None, str | None]:
    """Tell in which run this is."""
    get_run_logger().info("at %d", x)
    return x, runtime.flow_run.id, runtime.task_run.id
