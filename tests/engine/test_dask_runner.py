"""Tasks on a Dask cluster: a real scheduler with real worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from anyio import to_thread
from hark import flow, get_run_logger, runtime, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.bus.subject import TASK_RUNS
from hark.config import EngineConfig
from hark.engine.context import FlowRunContext
from hark.engine.executors.dask_runner import DaskTaskRunner
from hark.engine.executors.far_wait import FarWait, FarWaits
from hark.engine.states import State
from hark.engine.task_runners import DaskTaskRunner as ByItsName
from hark.errors import DefinitionError, ProcessDied, RunTimedOut, Unpicklable

from .conftest import Stage
from .far_tasks import Odd, knows_its_run, raises, square, square_async
from .test_places import waiting
from .test_resting import result_of

LocalCluster: Any = distributed.LocalCluster
Client: Any = distributed.Client


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes for all tests of this file: starting them takes seconds."""
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0") as made:
        with Client(made, set_as_default=False) as client:
            client.wait_for_workers(2)
        yield made


@pytest.fixture
def runner(cluster: Any) -> DaskTaskRunner:
    return DaskTaskRunner(address=cluster.scheduler_address)


@task
def first_of(pair: tuple[int, int], more: list[tuple[int, int]]) -> int:
    return pair[0] + sum(one[0] for one in more)


def test_tasks_run_on_the_workers(runner: DaskTaskRunner) -> None:
    """Sync and async ones, mapped, with futures of other tasks as inputs, alone and in lists; in sync and async flows."""

    @flow(task_runner=runner)
    def squares() -> Any:
        found = square.map([1, 2, 3, 4]).result()
        one = square.submit(3)
        chained = first_of.submit(one, [one, square.submit(2)], wait_for=[square_async.submit(1)])
        return [n for n, _ in found], {pid for _, pid in found}, chained.result()

    numbers, pids, chained = squares()
    assert numbers == [1, 4, 9, 16]
    assert chained == 9 + 9 + 4
    assert os.getpid() not in pids
    assert len(pids) <= 2

    @flow(task_runner=runner)
    async def in_async() -> Any:
        return await square_async.submit(5), [n for n, _ in await square.map([1, 2])]

    assert asyncio.run(in_async()) == (25, [1, 4])


def test_a_task_knows_its_run(runner: DaskTaskRunner, caplog: pytest.LogCaptureFixture) -> None:
    """Names, tags and parameters are there on the worker; prints and log lines come to the submitting process."""
    knows_its_run(runner, caplog)


def test_failures_come_back_and_are_retried_here(runner: DaskTaskRunner) -> None:
    """With their own class; hooks run in the submitting process; what waits for a failed task does not run."""
    hooks: list[str] = []

    @task(retries=2)
    def twice() -> int:
        if runtime.task_run.run_count < 3:
            raise ValueError("not yet")
        return int(runtime.task_run.run_count)

    def note(task: Any, task_run: Any, state: State) -> None:
        hooks.append(f"{state.name} in {os.getpid() == here}")

    here = os.getpid()
    failing = raises.with_options(on_failure=[note])

    @flow(task_runner=runner)
    def fails() -> Any:
        failed = failing.submit()
        after = first_of.submit(failed, [], return_state=True)
        try:
            failed.result()
        except Odd as exc:
            return twice.submit().result(), after.name, exc.code, type(exc.__cause__).__name__

    assert fails() == (3, "NotReady", 7, "RemoteTraceback")
    assert hooks == ["Failed in True"]


def test_large_inputs_and_results_travel(runner: DaskTaskRunner) -> None:
    """Without a warning of Dask's."""

    @task
    def doubled(data: bytes) -> bytes:
        return data + data

    @flow(task_runner=runner)
    def sends() -> int:
        return len(doubled.submit(doubled.submit(b"x" * 6_000_000)).result())

    assert sends() == 24_000_000


def test_what_cannot_travel_fails_its_task(runner: DaskTaskRunner) -> None:
    """And says which argument it was."""

    @flow(task_runner=runner)
    def sends() -> Any:
        return square.submit(threading.Lock(), return_state=True).replace(run_id=None)

    with pytest.raises(Unpicklable, match="argument 'x' of task 'square'"):
        sends()


def test_a_limit_stops_a_task_on_a_worker(runner: DaskTaskRunner) -> None:
    """Python code between two instructions, async code at its await; both get their next try."""

    @task(timeout_seconds=0.2, retries=1)
    def spins() -> None:
        while True:
            time.sleep(0.001)

    @task(timeout_seconds=0.2)
    async def hangs() -> None:
        await asyncio.sleep(600)

    @flow(task_runner=runner)
    def impatient() -> Any:
        states = [spins.submit(return_state=True), hangs.submit(return_state=True)]
        return [(state.name, type(state.result(raise_on_failure=False))) for state in states]

    assert impatient() == [("TimedOut", RunTimedOut), ("TimedOut", RunTimedOut)]


def test_a_task_that_nothing_stops_is_left_behind(
    runner: DaskTaskRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It blocks where no exception reaches it: the flow goes on without it, and so does the worker's thread."""
    (tmp_path / "fifo").touch()
    os.unlink(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo")

    @task(timeout_seconds=0.1)
    def stuck(path: str) -> None:
        open(path).close()  # until somebody opens the other end

    @flow(task_runner=runner)
    def goes_on() -> Any:
        state = stuck.submit(str(tmp_path / "fifo"), return_state=True)
        return state.name, square.map([1, 2, 3, 4, 5]).result()[4][0]

    assert goes_on() == ("TimedOut", 25)
    (tmp_path / "fifo").open("w").close()


def test_a_run_out_of_time_stops_its_tasks(runner: DaskTaskRunner, tmp_path: Path) -> None:
    """Those that run on workers are interrupted, those that wait for a place never begin: its code had failed before."""

    @task
    def marks(n: int) -> None:
        (tmp_path / f"begun-{n}").touch()
        try:
            while True:
                time.sleep(0.001)
        finally:
            (tmp_path / f"stopped-{n}").touch()

    @flow(task_runner=runner, timeout_seconds=3)
    def late() -> None:
        marks.map(list(range(8)))
        while not any(tmp_path.glob("begun-*")):
            time.sleep(0.001)
        raise ValueError("no")

    state = late(return_state=True)
    assert state.name == "TimedOut"
    deadline = time.monotonic() + 60

    def names(word: str) -> set[str]:
        return {file.name.partition("-")[2] for file in tmp_path.glob(f"{word}-*")}

    while names("begun") != names("stopped") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert names("begun") == names("stopped")
    assert len(names("begun")) <= 4


def test_a_worker_that_dies_crashes_what_kills_it() -> None:
    """Once Dask has moved it as often as it does (here never): its try crashes, and the flow goes on."""

    @task
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as mortal,
    ):

        @flow(task_runner=DaskTaskRunner(cluster=mortal))
        def survives() -> Any:
            crashed = dies.submit(return_state=True)
            return crashed.name, isinstance(crashed.data, ProcessDied), square.submit(4).result()[0]

        assert survives() == ("Crashed", True, 16)


def test_tasks_submit_tasks_on_their_worker(runner: DaskTaskRunner) -> None:
    """They run in threads beside it."""

    @task
    def outer(n: int) -> tuple[int, set[int], int]:
        found = square.map(list(range(n))).result()
        return sum(value for value, _ in found), {pid for _, pid in found}, os.getpid()

    @flow(task_runner=runner)
    def nested() -> Any:
        return outer.submit(4).result()

    total, pids, pid = nested()
    assert (total, pids) == (14, {pid})


def test_a_cluster_of_its_own_is_there_for_one_run() -> None:
    """Made when the first task is submitted, and gone with the flow, also when a task fails; in threads, to be quick."""
    seen: list[Any] = []

    @flow(
        task_runner=DaskTaskRunner(
            cluster_class="distributed.LocalCluster",
            cluster_kwargs={"n_workers": 1, "threads_per_worker": 2, "processes": False},
        )
    )
    def own() -> Any:
        context = FlowRunContext.get()
        assert context is not None
        seen.append(context.runner)
        raises.submit().wait()
        return square.submit(6).result()

    assert own() == (36, os.getpid())
    assert seen[0]._client is None
    assert seen[0]._own_cluster is None


async def test_tasks_of_a_tracked_run_are_told_and_logged(runner: DaskTaskRunner, bus: Bus) -> None:
    """Their events and results are in the log, those of tasks they submit too; their lines in the run's log, once."""

    @task
    def inner() -> int:
        get_run_logger().info("a line from inside")
        return 2

    @task(retries=1)
    def outer() -> int:
        if runtime.task_run.run_count == 1:
            raise ValueError("once")
        return inner.submit().result()

    @flow(task_runner=runner)
    async def tracked() -> int:
        found: int = await outer.submit()
        return found

    with use_session(bus):
        state = await tracked(return_state=True)
    assert state.result() == 2
    told: dict[str, list[str]] = {}
    results: dict[str, Any] = {}
    async with bus.log.read([TASK_RUNS]) as batches:
        async for batch in batches:
            for recorded in batch.records:
                data: Any = recorded.event.data
                name = data["run"]["name"].partition("-")[0]
                told.setdefault(name, []).append(recorded.event.type.partition(".")[2])
                results[name] = data.get("result")
    assert told["outer"] == ["pending", "running", "awaiting-retry", "retrying", "completed"]
    assert told["inner"] == ["pending", "running", "completed"]
    assert results["outer"] == results["inner"] == {"inline": 2, "format": "json"}
    lines = [line.message for line in await bus.run_logs.read(state.run_id)]
    assert lines.count("a line from inside") == 1


async def test_a_cancelled_run_stops_its_tasks(stage: Stage, cluster: Any) -> None:
    """On the workers of the cluster, before the run is told to be cancelled."""
    stage.write(f"""
    from hark.engine.task_runners import DaskTaskRunner

    @task
    def works():
        try:
            say("begun")
            while True:
                time.sleep(0.001)
        finally:
            say("stopped")

    @flow(task_runner=DaskTaskRunner(address="{cluster.scheduler_address}"))
    def crunch():
        [works.submit() for _ in range(2)][0].result()
    """)
    await stage.deploy("crunch")
    async with stage.working():
        run = await stage.ask("crunch")
        await stage.hear("said.begun", times=2)
        await stage.control.cancel(run.id)
        ended = await stage.end(run)
        assert ended.state_name == "Cancelled"
        await stage.hear("said.stopped", times=2)


@pytest.fixture
def mortal() -> Iterator[Any]:
    """A cluster one of whose workers may be killed."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as made:
        yield made


async def test_a_task_that_waits_on_the_cluster_holds_no_place(stage: Stage, mortal: Any) -> None:
    """Its run gives its place back meanwhile; and takes it again where the task is begun anew, since its worker has died."""
    stage.write(f"""
    from hark import sleep
    from hark.engine.task_runners import DaskTaskRunner

    @task
    def rests(folder):
        (marker := open(folder + "/pids", "a")).write(f"{{os.getpid()}}\\n")
        marker.close()
        say("begun")
        if len(open(folder + "/pids").readlines()) == 1:
            sleep("1h")
        while not os.path.exists(folder + "/end"):
            time.sleep(0.01)
        return "ended"

    @flow(task_runner=DaskTaskRunner(address="{mortal.scheduler_address}"))
    def far(folder):
        return rests.submit(folder).result()

    @flow
    def quick():
        return "quick"
    """)
    await stage.deploy("far", "quick")
    async with stage.working(engine=EngineConfig(suspend_after_s=0.2), concurrency=1, processes=1) as worker:
        far = await stage.ask("far", parameters={"folder": str(stage.root)})
        await stage.hear("said.begun")
        assert result_of(await stage.run("quick")) == "quick"
        await waiting(worker, 1)
        os.kill(int((stage.root / "pids").read_text()), signal.SIGKILL)
        await stage.hear("said.begun", times=2)
        await waiting(worker, 0)
        (stage.root / "end").touch()
        assert result_of(await stage.end(far)) == "ended"
    await to_thread.run_sync(hears_of_the_dead, mortal)


class Heard(FarWaits):
    """What is told of a try, without a try."""

    def __init__(self) -> None:
        self.waits: list[FarWait] = []
        self.goes_on = threading.Event()

    def hear(self, told: Iterable[FarWait]) -> None:
        self.waits = [*told]
        if not self.waits:
            self.goes_on.set()


def hears_of_the_dead(cluster: Any) -> None:
    """A worker that has died between telling of a wait and being listened to is not listened to for ever."""
    runner = DaskTaskRunner(address=cluster.scheduler_address)
    try:
        client = runner.client
        [dead] = [
            event["worker"] for _, event in client.get_events("all") if event["action"] == "remove-worker"
        ]
        [alive, *_] = client.run(os.getpid)
        heard = runner._waits["dead"] = Heard()
        working = runner._waits["alive"] = Heard()
        for ticket, worker in (("alive", alive), ("dead", dead)):
            told = {"ticket": ticket, "worker": worker, "waits": [["task 'rests'", "sleeps", 3600.0, ""]]}
            client.loop.add_callback(runner._on_waits, (0.0, told))
        assert heard.goes_on.wait(20)
        while runner._listening:
            time.sleep(0.01)  # until the other is sure to be heard, too
        assert len(working.waits) == 1
        assert runner._waiting_on == {alive: {"alive"}}
    finally:
        runner.close()


def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    assert ByItsName is DaskTaskRunner
    with pytest.raises(ValueError, match="leave out cluster"):
        DaskTaskRunner(address="tcp://x:1", cluster_class="a.B")
    with pytest.raises(ValueError, match="already"):
        DaskTaskRunner(cluster=object(), cluster_kwargs={"n_workers": 1})
    one, other = DaskTaskRunner(address="tcp://x:1"), DaskTaskRunner(address="tcp://y:1")
    assert one == one.duplicate()
    assert one != other

    @flow(task_runner=DaskTaskRunner(cluster_class="nowhere.Cluster"))
    def nowhere() -> None:
        square.submit(1).result()

    with pytest.raises(DefinitionError, match="no class of clusters"):
        nowhere()
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(DefinitionError, match="which is not installed"):
        _ = one.client
