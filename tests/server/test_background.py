"""Background tasks as people see them: over HTTP, by command, and as a program that serves them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hark import flow, get_client, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.config import EngineConfig
from hark.engine.background_tasks.background import BackgroundLog
from hark.engine.background_tasks.dead_task import give_up
from hark.engine.background_tasks.distributed_future import DistributedFuture
from hark.engine.task_worker import TaskWorker
from hark.errors import DefinitionError, MissingContextError
from hark.server import task_serving
from hark.server.serving import serve, serving_tasks

if TYPE_CHECKING:
    from .conftest import Start

JOBS = """
from hark import flow, get_client, task

@task
def double(n):
    return 2 * n

@flow
def other():
    pass

if __name__ == "__main__":
    double.serve()
"""


@task
async def shown(n: int) -> int:
    return n + 1


@flow
async def asks() -> str:
    future = shown.delay(1)
    await future
    return str(future.task_run_id)


async def test_runs_and_dead_letters_are_seen_over_http(start: Start) -> None:
    """Among the tasks of the flow run that asked; a dead letter is listed, tried again, and dropped as any other."""
    async with start() as (service, http):
        bus = service.bus
        with use_session(bus):
            async with TaskWorker(shown, bus=bus, engine=EngineConfig(), drain_s=0):
                run_id = await asks()
            await bus.publisher.barrier()
            await service.parts.running("projector").caught_up(await bus.log.head())
            seen = (await http.get(f"/api/task-runs/{run_id}")).json()
            assert (seen["task_name"], seen["state_name"]) == ("shown", "Completed")
            of_flow = (await http.get(f"/api/flow-runs/{seen['flow_run']}/task-runs")).json()
            assert run_id in [item["id"] for item in of_flow["items"]]

            alone, second = shown.delay(1), shown.delay(2)
            runs = BackgroundLog(bus)
            for future in (alone, second):
                run = await runs.get(future.task_run_id)
                assert run is not None
                await give_up(bus, run, why="its worker died", lost=4)
            await service.parts.running("projector").caught_up(await bus.log.head())
            listed = (await http.get("/api/task-runs")).json()["items"]
            assert [item["id"] for item in listed] == [second.task_run_id, alone.task_run_id]
            first = (await http.get("/api/task-runs", params={"limit": 1, "state": "crashed"})).json()
            more = {"cursor": first["next_cursor"], "task": "shown"}
            assert first["items"] == listed[:1]
            assert (await http.get("/api/task-runs", params=more)).json()["items"] == listed[1:]
            for none in ({"state": "completed"}, {"task": "hidden"}):
                assert (await http.get("/api/task-runs", params=none)).json()["items"] == []
            letters = (await http.get("/api/dlq")).json()["items"]
            assert {letter["id"] for letter in letters} == {
                f"task-run/{future.task_run_id}" for future in (alone, second)
            }
            assert {letter["kind"] for letter in letters} == {"task"}
            assert (await http.post(f"/api/dlq/task-run/{alone.task_run_id}/redrive")).status_code == 202
            assert (await http.post(f"/api/dlq/task-run/{second.task_run_id}/drop")).status_code == 200
            assert (await http.get("/api/dlq")).json()["items"] == []
            async with TaskWorker(shown, bus=bus, engine=EngineConfig(), drain_s=0):
                assert await DistributedFuture[int](alone.task_run_id) == 2


@pytest.mark.parametrize(
    "command",
    [["jobs.py"], ["-c", "from hark.cli.main import main; main()", "tasks", "serve", "jobs.py:double"]],
)
async def test_a_program_serves_its_tasks_until_it_is_stopped(
    bus: Bus, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """As a script and by the command: it says what it serves, and ends in order when told to."""
    (tmp_path / "jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    jobs: Any = importlib.import_module("jobs")
    del sys.modules["jobs"]  # other tests have a module of that name, too
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, *command], cwd=tmp_path, env={**os.environ, "HARK_HOME": str(home)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with use_session(bus), anyio.fail_after(90):
            future = jobs.double.delay(21)
            assert await future == 42
        process.send_signal(signal.SIGTERM)
        said, _ = await anyio.to_thread.run_sync(process.communicate)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "Serving task 'double'" in said


async def test_serving_tasks_takes_the_broker_that_is_known(
    bus: Bus, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else is started."""
    from hark.config import load_settings

    monkeypatch.setenv("HARK_HOME", str(home))
    load_settings.cache_clear()
    with use_session(bus):
        async with serving_tasks(shown, limit=2) as worker:
            assert worker.limit == 2
            assert await shown.delay(4) == 5


def test_what_cannot_be_served_together_is_refused() -> None:
    """Deployments live in a pool of their own, tasks are everybody's."""
    with pytest.raises(DefinitionError, match="cannot be served together"):
        serve(asks.to_deployment("x"), shown)


async def test_tasks_are_served_by_calls_instead_of_a_block(bus: Bus) -> None:
    """Until told to stop, for a time, or until one run is over, as in Prefect; mapped ones are deferred when asked."""
    with use_session(bus):
        worker = task_serving.TaskWorker(shown, limit=3)
        assert (worker.started, worker.limit, worker.available_tasks) == (False, 3, 3)
        with pytest.raises(MissingContextError, match="not yet started"):
            await worker.stop()
        futures = shown.map([1, 2], deferred=True)
        with anyio.fail_after(60):
            async with get_client() as client:
                record = await client.read_task_run(futures[0].task_run_id)
                assert (record.state.name, record.flow_run_id) == ("Scheduled", None)
                await worker.execute_task_run(record)
                record = await client.read_task_run(futures[0].task_run_id)
                assert (record.state.name, worker.started) == ("Completed", False)
            async with anyio.create_task_group() as tg:
                tg.start_soon(worker.start)
                assert await shown.delay(3) == 4
                assert (worker.started, worker.task_keys) == (True, {"shown-test_background.shown"})
                await worker.stop()
            assert await futures.result_async() == [2, 3]
            await task_serving.serve(shown, timeout=0.01)
            assert worker.stopping
            async with anyio.create_task_group() as tg:
                tg.start_soon(worker.start)
                assert await shown.delay(4) == 5
                assert (worker.started, worker.stopping) == (True, False)
                worker.stop()  # as sync code does, which awaits nothing
            async with anyio.create_task_group() as tg:
                tg.start_soon(worker.start)
                assert await shown.delay(5) == 6
                await anyio.to_thread.run_sync(worker.stop)


async def test_a_process_that_is_asked_to_end_stops_serving_tasks_in_order(bus: Bus) -> None:
    """By TERM, as a supervisor sends it, also where tasks are served for a time only."""

    @task
    async def ends() -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # or it would end the tests
        os.kill(os.getpid(), signal.SIGTERM)

    with use_session(bus):
        future = ends.delay()
        with anyio.fail_after(60):
            with pytest.raises(SystemExit):
                await task_serving.serve(ends, timeout=50)
            await future.wait_async()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert future.state.is_completed()
