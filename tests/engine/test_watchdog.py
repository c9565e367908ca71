"""A worker whose loop is held by code that does not await."""

from __future__ import annotations

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
