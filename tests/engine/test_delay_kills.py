"""Processes that serve tasks and are killed: what they held is served elsewhere, what they finished is not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark import task
from hark.bus import Bus
from hark.bus.session import Session
from hark.config import EngineConfig
from hark.engine.background_tasks.background import BackgroundLog, BackgroundRun, Ticket
from hark.engine.background_tasks.dead_task import DeadTasks
from hark.engine.background_tasks.distributed_future import DistributedFuture
from hark.engine.task_worker import TaskWorker
from hark.errors import RefusedError, RunCrashed, UnknownName
from hark.vocabulary import StateType

from .conftest import hear, said

ACK_WAIT_S = 2.0
ENGINE = EngineConfig(ack_wait_s=ACK_WAIT_S, crash_retries=1)

JOBS = """
import os, signal, sys, time
from hark import task
from hark.bus.emit import emit

def say(word):
    emit("said." + word, wait=True)

@task
def quick(n):
    say(f"quick-{n}")
    return n * 10

@task
def slow(marker):
    say("began")
    if not os.path.exists(marker):
        open(marker, "w").close()
        say("waits")
        time.sleep(1000)
    return "done"

@task
def deadly(marker):
    say("dies")
    if not os.path.exists(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"

def called(task, run, state):
    marker = os.environ["MARKER"]
    say("hook")
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

@task(on_completion=[called])
def hooked():
    say("body")
    return "kept"
"""

PROGRAM = f"""
import asyncio, sys
sys.path.insert(0, ".")
import jobs
from hark.bus import Bus, locate_broker
from hark.config import EngineConfig, load_settings
from hark.engine.task_worker import TaskWorker

async def main():
    settings = load_settings()
    engine = EngineConfig(ack_wait_s={ACK_WAIT_S}, crash_retries=1)
    async with Bus(locate_broker(settings), settings.bus, name="victim", manage=False) as bus:
        async with TaskWorker(*[getattr(jobs, name) for name in sys.argv[1:]], bus=bus, engine=engine):
            await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def victim(root: Path, home: Path, *tasks: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that serves tasks until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *tasks],
        cwd=root,
        env={**os.environ, "HARK_HOME": str(home), "MARKER": str(root / "marker")},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@task
def doubled(n: int) -> int:
    return 2 * n


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    (path / "jobs.py").write_text(JOBS)
    return path


@pytest.fixture
def jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the tasks, loaded here too."""
    import importlib

    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("MARKER", str(root / "marker"))
    yield importlib.import_module("jobs")
    del sys.modules["jobs"]


async def result_of(future: DistributedFuture[Any]) -> Any:
    with anyio.fail_after(60):
        return await future


async def test_a_run_whose_process_is_killed_is_served_by_another(
    bus: Bus, session: Session, home: Path, root: Path, jobs: Any
) -> None:
    """kill -9 in the middle: it is delivered again; what had finished before stays finished."""
    done = [jobs.quick.delay(n) for n in range(3)]
    future = jobs.slow.delay(str(root / "marker"))
    with victim(root, home, "quick", "slow") as process:
        assert [await result_of(one) for one in done] == [0, 10, 20]
        await hear(bus, "said.waits")
        process.kill()
    async with TaskWorker(jobs.quick, jobs.slow, bus=bus, engine=ENGINE, drain_s=0):
        assert await result_of(future) == "done"
    assert await said(bus) == {"quick-0": 1, "quick-1": 1, "quick-2": 1, "began": 2, "waits": 1}
    run = await BackgroundLog(bus).get(future.task_run_id)
    assert run is not None
    assert (run.claim, run.lost) == (2, 1)


async def test_a_worker_that_lost_its_run_writes_no_end(
    bus: Bus, session: Session, home: Path, root: Path, jobs: Any
) -> None:
    """Stopped for longer than the broker waits, it goes on when another has finished: that end stands alone."""
    future = jobs.slow.delay(str(root / "marker"))
    with victim(root, home, "slow") as process:
        await hear(bus, "said.waits")
        process.send_signal(signal.SIGSTOP)
        async with TaskWorker(jobs.slow, bus=bus, engine=ENGINE, drain_s=0):
            assert await result_of(future) == "done"
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(60):
            await anyio.to_thread.run_sync(process.wait)
    history = await BackgroundLog(bus).history(future.task_run_id)
    words = [recorded.event.type.partition(".")[2] for recorded in history]
    assert words == ["scheduled", "pending", "running", "pending", "running", "completed"]


async def test_a_run_that_kills_its_workers_becomes_a_dead_letter_that_can_be_redriven(
    bus: Bus, session: Session, home: Path, root: Path, jobs: Any
) -> None:
    """After as many losses as are allowed it is CRASHED, and laid before a person; tried again, it begins anew."""
    future = jobs.deadly.delay(str(root / "alive"))
    letters = DeadTasks(bus)
    key = f"task-run/{future.task_run_id}"
    with pytest.raises(RefusedError, match="not a dead letter"):
        await letters.redrive(key)
    for times in (1, 2):
        with victim(root, home, "deadly") as process:
            await hear(bus, "said.dies", times=times)
            with anyio.fail_after(60):
                await anyio.to_thread.run_sync(process.wait)
    async with TaskWorker(jobs.deadly, bus=bus, engine=ENGINE, drain_s=0):
        with pytest.raises(RunCrashed, match="its worker died 2 times in a row"):
            await result_of(future)
        record = await bus.log.last("hark.ev.action.dead-lettered")
        assert record is not None
        data: Any = record.event.data
        assert (data["key"], data["kind"], data["attempt"]) == (key, "task", 2)
        assert "deadly" in data["error"]
        (root / "alive").touch()
        await letters.redrive(key)
        assert await result_of(DistributedFuture(future.task_run_id)) == "lives"
    with pytest.raises(RefusedError):
        await letters.redrive(key)
    with pytest.raises(UnknownName):
        await letters.drop("task-run/nobody")
    assert (await said(bus))["dies"] == 3


async def test_hooks_of_an_end_are_called_by_a_successor(
    bus: Bus, session: Session, home: Path, root: Path, jobs: Any
) -> None:
    """Killed in the hook of a run that has completed: the hook is called again, the task is not."""
    future = jobs.hooked.delay()
    with victim(root, home, "hooked") as process:
        await hear(bus, "said.hook")
        with anyio.fail_after(60):
            await anyio.to_thread.run_sync(process.wait)
    assert await result_of(future) == "kept"
    async with TaskWorker(jobs.hooked, bus=bus, engine=ENGINE, drain_s=0):
        await hear(bus, "said.hook", times=2)
    assert await said(bus) == {"body": 1, "hook": 2}


async def test_a_run_whose_first_event_is_missing_is_served_all_the_same(
    bus: Bus, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that asked died between the work item and the event: who takes the item stores the event."""

    @task
    def lonely() -> str:
        return "served"

    async def ask(self: BackgroundLog, first: Any) -> None:
        await self.push(Ticket("only", first), msg_id="only")

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundLog, "ask", ask)
        future = lonely.delay()
    assert await BackgroundLog(bus).get(future.task_run_id) is None
    async with TaskWorker(lonely, bus=bus, engine=ENGINE, drain_s=0):
        assert await result_of(future) == "served"
    run = await BackgroundLog(bus).get(future.task_run_id)
    assert run is not None
    assert run.type is StateType.COMPLETED


async def test_a_fault_of_the_worker_is_no_death_of_the_task(
    bus: Bus, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: the run goes on once it can, as one that nobody's process has died with."""
    monkeypatch.setattr("hark.engine.task_worker.FAULT_S", 0.01)
    prepare = TaskWorker._call
    faults: list[str] = []

    def faulty(self: TaskWorker, run: BackgroundRun, *args: Any, **kwargs: Any) -> Any:
        if len(faults) < 4:
            faults.append(run.id)
            raise RuntimeError("a fault of ours")
        return prepare(self, run, *args, **kwargs)

    monkeypatch.setattr(TaskWorker, "_call", faulty)
    runs = BackgroundLog(bus)
    with anyio.fail_after(60):
        async with TaskWorker(doubled, bus=bus, engine=ENGINE, drain_s=0.0):
            future = doubled.delay(21)
            assert await anyio.to_thread.run_sync(future.result) == 42
    run = await runs.get(future.task_run_id)
    assert run is not None
    assert (run.lost, run.claim, run.tries) == (0, 5, 1)
    words = [recorded.event.type for recorded in await runs.history(future.task_run_id)]
    assert words.count("task-run.resuming") == len(faults) == 4
    assert not any(word.endswith("crashed") for word in words)
