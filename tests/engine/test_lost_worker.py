"""Workers that die, and dispatchers that do: what they held goes on elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from hark.config import EngineConfig, WorkerConfig
from hark.engine.dispatching import presence
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.runs.run import FlowRun
from hark.engine.workers.worker import Worker
from hark.vocabulary import StateType

from .conftest import hear_task, task_ends

if TYPE_CHECKING:
    from .conftest import Stage

ACK_WAIT = 4.0
ENGINE = EngineConfig(ack_wait_s=ACK_WAIT)

PROGRAM = f"""
import asyncio
from hark.bus import Bus, locate_broker
from hark.config import EngineConfig, WorkerConfig, load_settings
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.workers.worker import Worker

async def main():
    settings = load_settings()
    engine = EngineConfig(ack_wait_s={ACK_WAIT})
    async with Bus(locate_broker(settings), settings.bus, name="victim") as bus:
        async with SERVICE:
            await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def program(home: Path, service: str, first: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that runs a service until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", first + PROGRAM.replace("SERVICE", service)],
        env={**os.environ, "HARK_HOME": str(home)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


TWO_FLOWS = """
@task
def step(n):
    say(f"step-{n}")
    return n

@task
def hangs_once(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        say("waits")
        time.sleep(1000)

@flow
def sync_one(marker: str):
    total = sum(step(n) for n in range(1, 4))
    hangs_once(marker)
    return total + step(4) + step(5)

@task
async def astep(n):
    await asay(f"step-{n}")
    return n

@task
async def ahangs_once(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        await asay("waits")
        await asyncio.sleep(1000)

@flow
async def async_one(marker: str):
    total = 0
    for n in range(1, 4):
        total += await astep(n)
    await ahangs_once(marker)
    return total + await astep(4) + await astep(5)
"""


@pytest.mark.parametrize("name", ["sync_one", "async_one"])
async def test_a_worker_killed_in_the_middle_of_five_tasks_loses_none_of_the_finished_ones(
    stage: Stage, home: Path, name: str
) -> None:
    """kill -9; another worker goes on within the ack wait, under the next attempt, and no task that finished runs again.

    What was in flight is run again, as another task run; the one that died with the process comes to an end.
    """
    stage.write(TWO_FLOWS)
    await stage.deploy(name)
    async with Dispatcher(stage.bus, ENGINE) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(), engine)") as victim:
            run = await stage.ask(name, parameters={"marker": str(stage.root / "marker")})
            await stage.hear("said.waits")
            family = descendants(victim)
            victim.kill()
            async with Worker(stage.bus, WorkerConfig(drain_s=0), ENGINE):
                run = await stage.end(run)
            await hear_task(stage.bus, run, "crashed")
    assert run.state_type is StateType.COMPLETED, run.state_message
    assert run.attempt == 2
    ends = await task_ends(stage.bus, run)
    lost = (
        "CRASHED",
        "No process was at work on it any more; attempt 2 of its flow run makes the call again",
    )
    assert ends == {("COMPLETED", None): 6, lost: 1}
    assert await stage.said() == {"waits": 1, **{f"step-{n}": 1 for n in range(1, 6)}}
    history = [FlowRun.from_recorded(recorded) for recorded in await stage.control.runs.history(run.id)]
    assert "worker lost" in [then.state_message for then in history]
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 60)
    assert alive == [], "a dead worker's processes end with it"


async def test_a_run_that_was_to_be_cancelled_when_its_worker_died_is_cancelled(
    stage: Stage, home: Path
) -> None:
    """CANCELLING is not for ever: whoever gets the message next writes the end, without running anything."""
    stage.write(TWO_FLOWS)
    await stage.deploy("async_one")
    async with Dispatcher(stage.bus, ENGINE) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(), engine)") as victim:
            run = await stage.ask("async_one", parameters={"marker": str(stage.root / "marker")})
            await stage.hear("said.waits")
            victim.send_signal(signal.SIGSTOP)  # it hears nothing any more
            await stage.control.cancel(run.id, reason="enough")
            victim.kill()
            async with Worker(stage.bus, WorkerConfig(drain_s=0), ENGINE):
                run = await stage.end(run)
    assert (run.state_type, run.state_message) == (StateType.CANCELLED, "enough")


async def test_a_worker_that_was_cut_off_cannot_write_over_its_successor(stage: Stage, home: Path) -> None:
    """A stopped process that comes back finds that the run is another's: it writes nothing, and lives."""
    stage.write(
        """
        @task
        async def step(n):
            await asay(f"step-{n}")

        @flow
        async def slow(marker: str):
            await step(1)
            if not os.path.exists(marker):
                open(marker, "w").close()
                await asay("waits")
                while not os.path.exists(marker + "-go"):
                    await asyncio.sleep(0.05)
                return "zombie"
            await step(2)
            return "successor"
        """
    )
    await stage.deploy("slow")
    marker = stage.root / "marker"
    async with Dispatcher(stage.bus, ENGINE) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(processes=0), engine)") as victim:
            run = await stage.ask("slow", parameters={"marker": str(marker)})
            await stage.hear("said.waits")
            victim.send_signal(signal.SIGSTOP)
            async with Worker(stage.bus, WorkerConfig(processes=0, drain_s=0), ENGINE):
                run = await stage.end(run)
                victim.send_signal(signal.SIGCONT)
                (stage.root / "marker-go").touch()
                # It is alive and takes the next run, which only it can: the other has left.
            again = await stage.run("slow", parameters={"marker": str(marker)})
    assert again.state_type is StateType.COMPLETED
    assert run.state_type is StateType.COMPLETED
    assert (await stage.states(run)).count("completed") == 1
    result = (await stage.control.runs.history(run.id))[-1].event.data
    assert isinstance(result, dict)
    assert result["result"] == {"inline": "successor", "format": "json"}


TWO_ZOMBIES = """
def first(marker):
    try:
        open(marker, "x").close()
    except FileExistsError:
        return False
    return True

@task
def step(n):
    say(f"step-{n}")

@task
async def astep(n):
    await asay(f"step-{n}")

@flow
def sync_one(marker: str):
    step(1)
    if first(marker):
        try:
            say("waits")
            while not os.path.exists(marker + "-go"):
                time.sleep(0.05)
            return "zombie"
        finally:
            open(marker + "-left", "w").close()
    say("again")
    while not os.path.exists(marker + "-end"):
        time.sleep(0.05)
    step(2)
    return "successor"

@flow
async def async_one(marker: str):
    await astep(1)
    if first(marker):
        try:
            await asay("waits")
            while not os.path.exists(marker + "-go"):
                await asyncio.sleep(0.05)
            return "zombie"
        finally:
            open(marker + "-left", "w").close()
    await asay("again")
    while not os.path.exists(marker + "-end"):
        await asyncio.sleep(0.05)
    await astep(2)
    return "successor"
"""


TELLS = """
import logging, os
class Ear(logging.Handler):
    def emit(self, record):
        if record.msg == "worker.run_lost":
            open(os.path.join(os.environ["HARK_HOME"], "lost-" + record.run_id), "w").close()
logging.getLogger("hark.engine.workers.worker").addHandler(Ear())
logging.getLogger("hark.engine.workers.worker").setLevel("INFO")
"""


async def test_a_worker_that_comes_back_disturbs_no_successor_that_is_still_at_it(
    stage: Stage, home: Path
) -> None:
    """Cut off for longer than its lease, it stops what others have taken up, and writes nothing of it: no end, no return.

    One of the two flows comes to its end just then, the other would go on for ever.
    """
    stage.write(TWO_ZOMBIES)
    names = ("sync_one", "async_one")
    for name in names:
        await stage.deploy(name)
    async with Dispatcher(stage.bus, ENGINE) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(), engine)", first=TELLS) as victim:
            runs = [await stage.ask(name, parameters={"marker": str(stage.root / name)}) for name in names]
            await stage.hear("said.waits", times=2)
            stopped = [victim.pid, *(process.pid for process in descendants(victim))]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            async with Worker(stage.bus, WorkerConfig(drain_s=0), ENGINE):
                await stage.hear("said.again", times=2)
                (stage.root / "async_one-go").touch()
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
                with anyio.fail_after(60):
                    while not all((home / f"lost-{run.id}").exists() for run in runs):  # noqa: ASYNC110 - another process
                        await anyio.sleep(0.05)
                assert all((stage.root / f"{name}-left").exists() for name in names)
                for name in names:
                    (stage.root / f"{name}-end").touch()
                ended = [await stage.end(run) for run in runs]
    for run in ended:
        assert (run.state_type, run.attempt) == (StateType.COMPLETED, 2)
        assert (await stage.states(run))[-3:] == ["running", "running", "completed"]
        result = (await stage.control.runs.history(run.id))[-1].event.data
        assert isinstance(result, dict)
        assert result["result"] == {"inline": "successor", "format": "json"}


async def test_when_the_leading_dispatcher_dies_another_leads_and_no_run_is_lost_or_doubled(
    stage: Stage, home: Path
) -> None:
    """Requests made while nobody leads are served; limits hold across the change."""
    stage.write(
        """
        @flow
        async def counted(n: int):
            await asay("ran")
        """
    )
    await stage.deploy("counted", concurrency={"limit": 2})
    async with Worker(stage.bus, WorkerConfig(processes=0, drain_s=0), ENGINE):
        with program(home, "Dispatcher(bus, engine, lease_ttl_s=3)") as first:
            runs = [await stage.ask("counted", parameters={"n": n}) for n in range(5)]
            await stage.hear("said.ran")
            async with Dispatcher(stage.bus, ENGINE, lease_ttl_s=3) as second:
                assert not second.is_leader
                first.kill()
                runs += [await stage.ask("counted", parameters={"n": n}) for n in range(5, 10)]
                with anyio.fail_after(60):
                    await second.leading()
                for run in runs:
                    assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await stage.said() == {"ran": 10}
    assert await most_at_once(stage) <= 2


async def most_at_once(stage: Stage) -> int:
    """Return how many runs were in progress together at most, by the log."""
    active: set[str] = set()
    most = 0
    async with stage.bus.log.read(["hark.ev.flow-run.>"]) as batches:
        async for batch in batches:
            for recorded in batch.records:
                run = FlowRun.from_recorded(recorded)
                if run.state_type in (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING):
                    active.add(run.id)
                else:
                    active.discard(run.id)
                most = max(most, len(active))
    return most


PATIENT = """
from hark.engine.dispatching import presence
presence.TTL_S = 3.0
"""


async def test_a_leader_that_was_stopped_hears_first_what_workers_said_meanwhile(
    stage: Stage, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP of the dispatcher for longer than workers may be silent: those that live are not called lost."""
    monkeypatch.setattr("hark.engine.dispatching.presence.BEAT_S", 0.2)
    monkeypatch.setattr("hark.engine.dispatching.presence.TTL_S", 60.0)
    stage.write(
        """
        @flow
        async def quick() -> int:
            return 1
        """
    )
    await stage.deploy("quick")
    async with Worker(stage.bus, WorkerConfig(drain_s=0), ENGINE) as worker:
        with program(home, "Dispatcher(bus, engine, lease_ttl_s=600)", first=PATIENT) as leader:
            assert (
                await stage.run("quick")
            ).state_type is StateType.COMPLETED  # it leads, and knows the worker
            leader.send_signal(signal.SIGSTOP)
            await beats(stage, worker, 28)
            leader.send_signal(signal.SIGCONT)
            assert (await stage.run("quick")).state_type is StateType.COMPLETED
            await beats(stage, worker, 2)
        async with stage.bus.log.read(["hark.ev.worker.>"]) as batches:
            words = [recorded.event.type async for batch in batches for recorded in batch.records]
    assert words == ["worker.started"]


async def beats(stage: Stage, worker: Worker, count: int) -> None:
    """Wait until a worker has said so many times that it is there."""
    with anyio.fail_after(60):
        async with stage.bus.bucket(presence.BUCKET).watch(worker.info.key) as entries:
            async for entry in entries:
                count -= entry.key == worker.info.key
                if count < 0:
                    return
