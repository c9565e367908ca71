"""Tasks in processes: real ones, killed, stuck and crashing."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import hark
import psutil
import pytest
from hark import flow, runtime, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.bus.subject import TASK_RUNS
from hark.engine import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from hark.engine.context import FlowRunContext
from hark.engine.executors.far_wait import FarWaits
from hark.engine.states import State
from hark.errors import ProcessDied, RunTimedOut, Unpicklable

from .conftest import Stage
from .far_tasks import Odd, knows_its_run, leaves_its_place, raises, square, square_async, uses_what_was_left


def pool(workers: int = 2, **options: Any) -> ProcessPoolTaskRunner:
    return ProcessPoolTaskRunner(max_workers=workers, **options)


def test_tasks_run_in_processes() -> None:
    """Sync and async ones, mapped, with futures as inputs; at most as many processes as workers, reused, none left."""

    @flow(task_runner=pool(2))
    def squares() -> Any:
        first = square_async.submit(3)
        found = square.map([1, 2, 3, 4, 5, 6]).result()
        chained = square.submit(first).result()
        return [n for n, _ in found], {pid for _, pid in found}, chained[0]

    numbers, pids, chained = squares()
    assert numbers == [1, 4, 9, 16, 25, 36]
    assert chained == 81
    assert os.getpid() not in pids
    assert len(pids) <= 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_processes_have_the_names_that_the_program_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that imports Prefect is imported there as it is here."""
    monkeypatch.setitem(sys.modules, "prefect", hark)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "older_tasks.py").write_text("from prefect import task\n@task\ndef double(n): return 2 * n\n")
    double = importlib.import_module("older_tasks").double
    del sys.modules["older_tasks"]

    @flow(task_runner=pool(1))
    def doubles() -> Any:
        return double.submit(2).result()

    assert doubles() == 4


def test_a_task_knows_its_run(caplog: pytest.LogCaptureFixture) -> None:
    """Names, tags and parameters are there in the process, prints and log lines come to the submitting one."""
    knows_its_run(pool(1), caplog)


def test_a_limit_stops_what_nothing_else_stops(tmp_path: Path) -> None:
    """A task that ignores signals and blocks loses its process; the next try gets another, the next task too."""

    @task(timeout_seconds=2, retries=1)
    def stuck() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with (tmp_path / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(600)

    @flow(task_runner=pool(1))
    def impatient() -> Any:
        state = stuck.submit(return_state=True)
        pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert not any(psutil.pid_exists(pid) for pid in pids)
        return state.replace(run_id=None, data=str(state.data)), len(set(pids)), square.submit(2).result()[0]

    state, tries, after = impatient()
    assert (state.name, tries, after) == ("TimedOut", 2, 4)
    assert "timed out after 2 second(s)" in state.data


def test_a_dead_process_costs_one_try(tmp_path: Path) -> None:
    """With retries the task goes on in another process; without, it crashes, and its siblings do not notice."""

    @task
    def dies() -> int:
        marker = tmp_path / str(os.getpid())
        first = not any(tmp_path.iterdir())
        marker.touch()
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return 5

    @task
    def exits() -> None:
        os._exit(3)

    seen: list[State] = []
    crashing = exits.with_options(on_crashed=[lambda _task, _run, state: seen.append(state)])

    @flow(task_runner=pool(3))
    def survives() -> Any:
        steady = square.map([1, 2, 3])
        again = dies.with_options(retries=1).submit()
        crashed = crashing.submit()
        crashed.wait()
        return again.result(), [n for n, _ in steady.result()], crashed.state.name

    assert survives() == (5, [1, 4, 9], "Crashed")
    assert [state.type.value for state in seen] == ["CRASHED"]
    assert isinstance(seen[0].data, ProcessDied)
    assert "exit code 3" in str(seen[0].message)


def test_an_exception_comes_back_with_its_traceback() -> None:
    """Also one that pickle cannot make again; `sys.exit` ends the task, not more."""

    @task
    def leaves() -> None:
        raise SystemExit(4)

    @flow(task_runner=pool(1))
    def fails() -> Any:
        assert leaves.submit(return_state=True).name == "Crashed"
        caught: Any = raises.submit().result(raise_on_failure=False)
        assert type(caught) is Odd
        return caught.code, "".join(traceback.format_exception(caught))

    code, text = fails()
    assert code == 7
    assert "in raises" in text
    assert "raise Odd(code=7)" in text


def test_what_cannot_travel_is_named() -> None:
    """An argument, a function, a result: the error says which, and is not retried."""
    lock = threading.Lock()

    @task(retries=5)
    def takes(plain: int, handle: Any) -> None:
        raise AssertionError

    @task(retries=5)
    def closes_over() -> None:
        lock.acquire()

    @task(retries=5)
    def gives() -> Any:
        return threading.Lock()

    @flow(task_runner=pool(1))
    def tries() -> list[Any]:
        futures = [takes.submit(1, threading.Lock()), closes_over.submit(), gives.submit()]
        return [(type(e := f.result(raise_on_failure=False)), str(e)) for f in futures]

    (one, about_argument), (two, about_task), (three, about_result) = tries()
    assert {one, two, three} == {Unpicklable}
    assert "argument 'handle' of task 'takes'" in about_argument
    assert "task 'closes_over' cannot go" in about_task
    assert "result of task 'gives' cannot come back" in about_result


def test_tasks_that_submit_tasks_never_block_a_pool_of_processes() -> None:
    """One process finishes a tree of tasks that wait for their children."""

    @task
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci.submit(n - 1).result() + fibonacci.submit(n - 2).result()

    @flow(task_runner=pool(1))
    def tree() -> list[int]:
        return [future.result() for future in fibonacci.map([7, 8])]

    assert tree() == [13, 21]


def test_a_flow_that_runs_out_of_time_stops_its_processes(tmp_path: Path) -> None:
    """Tasks that block in C included: no process and no thread outlives the flow."""

    @task
    def stuck() -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(600)

    @flow(task_runner=pool(2), timeout_seconds=3)
    def late() -> None:
        for future in [stuck.submit(), stuck.submit(), stuck.submit()]:
            future.wait()

    with pytest.raises(RunTimedOut):
        late()
    assert not any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir())


def test_each_process_is_prepared_once() -> None:
    """`initializer` runs before the first task of a process; runners of the same settings are equal."""

    @task
    def word() -> str | None:
        return os.environ.get("PREPARED")

    def prepare(value: str) -> None:
        os.environ["PREPARED"] = value

    @flow(task_runner=pool(1, initializer=prepare, initargs=("yes",)))
    def prepared() -> list[str | None]:
        return [word.submit().result(), word.submit().result()]

    assert prepared() == ["yes", "yes"]
    assert "PREPARED" not in os.environ
    assert pool(2) == pool(2)
    assert pool(2) != pool(3)
    assert pool(2) != ThreadPoolTaskRunner(2)


async def test_events_of_tasks_in_processes(bus: Bus) -> None:
    """Every try and the tasks a task makes are in the log, whole, by the time the flow has ended."""

    @task
    def inner(x: int) -> int:
        return x + 1

    @task(retries=1)
    def outer(x: int) -> int:
        if runtime.task_run.run_count == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(x) + inner.submit(x).result()

    @flow(task_runner=pool(2))
    def tracked() -> int:
        return outer.submit(1).result()

    with use_session(bus):
        assert await asyncio.to_thread(tracked) == 4
    await bus.publisher.barrier()
    told: dict[str, list[str]] = {}
    async with bus.log.read([TASK_RUNS]) as batches:
        async for batch in batches:
            for recorded in batch.records:
                data: Any = recorded.event.data
                told.setdefault(data["run"]["name"], []).append(recorded.event.type.partition(".")[2])
    by_task = {name.partition("-")[0]: words for name, words in told.items()}
    assert by_task["outer"] == ["pending", "running", "awaiting-retry", "retrying", "completed"]
    assert by_task["inner"] == ["pending", "running", "completed"]
    assert len(told) == 3


async def test_what_a_try_has_left_behind_tells_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a thread of it waits would be taken for a wait of the next try, whose run would give its place away and work."""
    heard: list[object] = []
    monkeypatch.setattr(FarWaits, "hear", lambda _, told: heard.append(told))

    class Kept:
        def give(self, waits: object, answer: object) -> None: ...

        def take(self) -> None: ...

    @flow(task_runner=pool(1))
    def leaves() -> tuple[int, int]:
        run = FlowRunContext.get()
        assert run is not None
        assert run.tracker is not None
        run.tracker.place = Kept()
        return leaves_its_place.submit().result(), uses_what_was_left.submit().result()

    with use_session(bus):
        one, other = await asyncio.to_thread(leaves)
    assert one == other != os.getpid()
    assert heard == [()]


async def test_a_resumed_run_reuses_what_its_processes_finished(stage: Stage) -> None:
    """Also what a task in a process had finished by tasks of its own when its worker was lost."""
    stage.write("""
    from pathlib import Path
    from hark.engine.task_runners import ProcessPoolTaskRunner

    HERE = Path(__file__).parent

    @task
    def step(n):
        say(f"step-{n}")
        return n

    @task
    def first():
        say("first")
        return 1

    @task
    def parent():
        found = step(1) + step.submit(2).result()
        if not (HERE / "lost").exists():
            (HERE / "lost").touch()
            os.kill(int((HERE / "holder").read_text()), signal.SIGKILL)
            time.sleep(600)
        return found

    @flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
    def resumed():
        (HERE / "holder").write_text(str(os.getpid()))
        return first.submit().result() + parent.submit().result()
    """)
    await stage.deploy("resumed")
    async with stage.working():
        run = await stage.run("resumed")
    assert run.state_name == "Completed"
    assert run.result == {"inline": 4, "format": "json"}
    assert run.attempt == 2
    assert await stage.said() == {"first": 1, "step-1": 1, "step-2": 1}
