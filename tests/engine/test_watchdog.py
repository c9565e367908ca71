"""A worker whose loop is held by code that does not await."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hark import task
from hark.bus import Bus
from hark.bus.session import Session
from hark.config import EngineConfig
from hark.engine.dispatching.control import Control
from hark.engine.runs.run_log import RunLog
from hark.engine.task_worker import TaskWorker
from hark.engine.workers.watchdog import Watchdog
from hark.vocabulary import FlowRunId, StateType

from .conftest import events

if TYPE_CHECKING:
    from .conftest import Stage

ENGINE = EngineConfig(ack_wait_s=2.0)


@pytest.fixture
def beaten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once what is held has been kept alive for longer than the ack wait."""
    beats = 0
    beat, path = Watchdog._beat, tmp_path / "beaten"

    async def counted(watchdog: Watchdog, bus: Bus) -> None:
        nonlocal beats
        await beat(watchdog, bus)
        beats += 1
        if beats > 4:
            path.touch()

    monkeypatch.setattr(Watchdog, "_beat", counted)
    return path


async def deliveries(bus: Bus) -> int:
    """How often a piece of work was given out."""
    consumers: Any = await bus.connection.js.consumers_info("HARK_WORK")
    return sum(found.delivered.consumer_seq for found in consumers)


@pytest.mark.parametrize("where", ["flow", "task"])
async def test_runs_of_a_loop_that_is_held_stay_the_workers(stage: Stage, beaten: Path, where: str) -> None:
    """Their message is not given out again, however long it takes, and log and events say where the loop is held."""
    stage.write(
        f"""
        import asyncio, time
        from pathlib import Path
        from hark import task

        def hold():
            while not Path({str(beaten)!r}).exists():
                time.sleep(0.01)

        @task
        async def holding():
            hold()

        @flow
        async def rude():
            await asyncio.gather(holding()) if {where!r} == "task" else hold()
        """
    )
    await stage.deploy("rude")
    async with stage.working(engine=ENGINE, processes=0):
        run = await stage.run("rude")
        assert await deliveries(stage.bus) == 1
    assert run.state_type is StateType.COMPLETED, run.state_message
    assert run.attempt == 1
    (held,) = [record.event for record in await events(stage.bus) if record.event.type == "worker.held"]
    data: Any = held.data
    assert (data["run_id"], data["flow"], data["at"].endswith(" in hold")) == (run.id, "rude", True), data
    assert data["task"] == ("holding" if where == "task" else None)
    assert await advised(stage.bus, run.id)


async def test_a_run_that_holds_the_loop_can_be_cancelled(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not hear of it, and nobody else can take its message: after the grace it is said to be."""
    beat, ended, states = Watchdog._beat, tmp_path / "ended", list[StateType]()

    async def cancelling(watchdog: Watchdog, bus: Bus) -> None:
        if not states:
            await Control(bus).cancel(run.id, reason="enough")
        await beat(watchdog, bus)
        now = await RunLog(bus).get(run.id)
        assert now is not None
        states.append(now.state_type)
        if now.is_final or len(states) > 20:
            ended.touch()

    monkeypatch.setattr(Watchdog, "_beat", cancelling)
    stage.write(
        f"""
        from pathlib import Path

        @flow
        async def rude():
            while not Path({str(ended)!r}).exists():
                time.sleep(0.01)
            await asyncio.sleep(1000)
        """
    )
    await stage.deploy("rude")
    engine = EngineConfig(ack_wait_s=2.0, cancel_grace_s=0.3)
    async with stage.working(engine=engine, processes=0) as worker:
        run = await stage.ask("rude")
        run = await stage.end(run)
        with anyio.fail_after(60):
            while worker.held:
                await anyio.lowlevel.checkpoint()
    assert states[-1] is run.state_type is StateType.CANCELLED
    assert run.state_message == "enough; it has not stopped when asked to"


async def test_closing_leaves_nothing_behind_when_cancelled(bus: Bus) -> None:
    """Neither the thread nor the second connection."""
    watchdog = Watchdog(bus, list, ack_wait_s=1.0)
    await anyio.to_thread.run_sync(watchdog._side.session)
    with anyio.CancelScope() as scope, watchdog.watching():
        scope.cancel()
        await watchdog.aclose()
    assert {"hark-watchdog", "hark-session"}.isdisjoint(thread.name for thread in threading.enumerate())


async def test_a_worker_of_tasks_keeps_what_it_has_too(bus: Bus, session: Session, beaten: Path) -> None:
    """A task that was asked for by ``delay`` is served once."""
    exists: Callable[[], bool] = beaten.exists

    @task
    async def rude() -> None:
        while not exists():
            time.sleep(0.01)  # noqa: ASYNC251  what this is about

    future = rude.delay()
    with anyio.fail_after(60):
        async with TaskWorker(rude, bus=bus, engine=ENGINE, drain_s=0.0):
            await future
            assert await deliveries(bus) == 1
    assert await advised(bus, FlowRunId(future.task_run_id))


async def advised(bus: Bus, run_id: FlowRunId) -> bool:
    """Whether a run's log says what held the loop."""
    return "Until it awaits" in "".join(line.message for line in await bus.run_logs.read(run_id))
