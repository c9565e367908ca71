"""The worker in a thread of its own, beside the rest of a service."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark.bus import EmbeddedBroker
from hark.bus.address import BrokerAddress
from hark.config import Settings
from hark.engine.workers.attendance import Attendance
from hark.errors import BusUnavailable
from hark.server import apart_worker
from hark.server.apart_worker import ApartWorker
from hark.server.client import Hark
from hark.server.supervisor import Part, Supervisor

from tests.server.conftest import Start

FLOWS = """
import asyncio, subprocess, sys, threading
import anyio
from hark import emit, flow, task

@task
def double(n):
    return 2 * n

@task
async def treble(n):
    emit("number.tripled", data={"n": n})
    return 3 * n

@flow(log_prints=True)
async def busy():
    print("in", threading.current_thread().name)
    child = await asyncio.create_subprocess_exec("sh", "-c", "echo a; exit 3", stdout=subprocess.PIPE)
    said, _ = await child.communicate()
    run = await anyio.run_process(["sh", "-c", "echo b"])
    submitted = double.submit(3)
    return [
        said.decode() + run.stdout.decode(), child.returncode, double(1), await submitted, await treble(3),
        await asyncio.to_thread(lambda: asyncio.run(asyncio.sleep(0, "slept"))),
        threading.current_thread().name,
    ]

@flow
async def leaves():
    async def out():
        sys.exit(3)
    task = asyncio.create_task(out())
    await asyncio.wait([task])
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return type(task.exception()).__name__
"""
CONFIG = """
deployments:
  busy: {flow: "flows.py:busy"}
  leaves: {flow: "flows.py:leaves"}
"""


async def test_flows_run_there_as_anywhere(start: Start, project: Path) -> None:
    """Tasks, threads, processes, prints and events. What would end a process, or stop the loop, ends nobody else's run."""
    (project / "flows.py").write_text(FLOWS)
    async with start(config=CONFIG, worker_apart=True) as (service, _), Hark(service.url, "") as hark:
        assert [t.name for t in threading.enumerate()].count("hark-worker") == 1
        run = await hark.run_deployment("busy", wait=True, timeout_s=60)
        assert run["state_type"] == "COMPLETED", run["state_message"]
        left = await hark.run_deployment("leaves", wait=True, timeout_s=60)
        assert left["state_type"] == "COMPLETED", left["state_message"]
        await service.parts.running("projector").caught_up(await service.bus.log.head(), timeout_s=60)
        shown: Any = await hark.flow_run(str(run["id"]))
        assert shown["result"]["inline"] == ["a\nb\n", 3, 2, 6, 9, "slept", "hark-worker"]
        lines = await hark.flow_run_logs(str(run["id"]))
        assert "in hark-worker" in [line["message"] for line in lines]
        told: Any = (await hark.events(type="number.tripled")).items
        assert [one["event"]["data"] for one in told] == [{"n": 3}]
        shown = await hark.flow_run(str(left["id"]))
        assert shown["result"]["inline"] == "SystemExit"
        assert service.parts.report()["worker"] == {"state": "running", "restarts": 0}


def is_ready(supervisor: Supervisor) -> bool:
    return supervisor.is_ready


@pytest.fixture
def settings(home: Path) -> Settings:
    """Of a worker without processes, which does not wait."""
    base = Settings(home=home)
    return base.model_copy(
        update={
            "worker": base.worker.model_copy(update={"processes": 0, "warm": 0, "drain_s": 0.0}),
        }
    )


async def test_what_ends_it_there_is_raised_here(
    broker: EmbeddedBroker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the supervisor starts it again, in a new thread, and nothing else."""
    living: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []

    async def keeps(attendance: Attendance) -> None:
        crash = asyncio.Event()
        living.append((asyncio.get_running_loop(), crash, threading.get_ident()))
        await crash.wait()
        raise ValueError("boom")

    monkeypatch.setattr(Attendance, "stay", keeps)
    part = Part("worker", lambda: ApartWorker(broker.address, settings))
    with anyio.fail_after(60):
        async with Supervisor([part]) as supervisor:
            loop, crash, ident = living[0]
            assert ident != threading.get_ident()
            loop.call_soon_threadsafe(crash.set)
            while is_ready(supervisor):
                await supervisor.changed()
            report: Any = supervisor.report()
            assert report["worker"]["error"] == "ValueError: boom"
            while not is_ready(supervisor):
                await supervisor.changed()
            assert len(living) == 2
            loop, _, _ = living[1]
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
            while is_ready(supervisor):
                await supervisor.changed()
            report = supervisor.report()
            assert "has cancelled all tasks" in report["worker"]["error"]


async def test_what_keeps_it_from_starting_is_raised_here(settings: Settings) -> None:
    """As from a worker in this loop."""
    hasty = settings.model_copy(update={"bus": settings.bus.model_copy(update={"connect_timeout_s": 0.5})})
    with pytest.raises(BusUnavailable, match="no broker answers"):
        async with ApartWorker(BrokerAddress(urls=("nats://127.0.0.1:1",)), hasty):
            pytest.fail("it has started")


async def test_it_can_be_stopped_before_it_has_started(settings: Settings) -> None:
    """Its thread ends at once, also where nobody answers it."""
    patient = settings.model_copy(update={"bus": settings.bus.model_copy(update={"connect_timeout_s": 60.0})})
    with anyio.fail_after(10), anyio.move_on_after(0.05):
        async with ApartWorker(BrokerAddress(urls=("nats://127.0.0.1:1",)), patient):
            pytest.fail("it has started")


async def test_one_that_is_held_is_left_behind(
    broker: EmbeddedBroker,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who no longer waits for it goes on; the thread ends once its code lets go."""
    monkeypatch.setattr(apart_worker, "_LEAVING_S", 0.05)
    living: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    holding, let_go = threading.Event(), threading.Event()

    async def keeps(attendance: Attendance) -> None:
        hold = asyncio.Event()
        living.append((asyncio.get_running_loop(), hold))
        await hold.wait()
        holding.set()
        let_go.wait()

    monkeypatch.setattr(Attendance, "stay", keeps)
    try:
        with anyio.CancelScope() as scope:
            async with ApartWorker(broker.address, settings):
                loop, hold = living[0]
                loop.call_soon_threadsafe(hold.set)
                await anyio.to_thread.run_sync(holding.wait)
                scope.cancel()
        assert [r.message for r in caplog.records if r.name == "hark.service"] == ["worker.left_behind"]
    finally:
        let_go.set()
        for thread in threading.enumerate():
            if thread.name == "hark-worker":
                await anyio.to_thread.run_sync(thread.join)
