"""A worker whose loop is held by code of a flow that does not await."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hark.bus import Bus
from hark.config import EngineConfig
from hark.engine.workers.watchdog import Watchdog
from hark.vocabulary import StateType

from .conftest import events

if TYPE_CHECKING:
    from .conftest import Stage

ENGINE = EngineConfig(ack_wait_s=2.0)


@pytest.mark.parametrize("where", ["flow", "task"])
async def test_runs_of_a_loop_that_is_held_stay_the_workers(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Their message is not given out again, however long it takes, and log and events say where the loop is held."""
    beats = 0
    beaten = tmp_path / "beaten"
    beat = Watchdog._beat

    async def counted(watchdog: Watchdog, bus: Bus) -> None:
        nonlocal beats
        await beat(watchdog, bus)
        beats += 1
        if beats > 4:  # longer than the ack wait
            beaten.touch()

    monkeypatch.setattr(Watchdog, "_beat", counted)
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
        consumers: Any = await stage.bus.connection.js.consumers_info("HARK_WORK")
    assert run.state_type is StateType.COMPLETED, run.state_message
    assert run.attempt == 1
    assert [found.delivered.consumer_seq for found in consumers if found.delivered.stream_seq] == [1]
    (held,) = [record.event for record in await events(stage.bus) if record.event.type == "worker.held"]
    data: Any = held.data
    assert data["run_id"] == run.id
    assert (data["flow"], data["at"].endswith(" in hold")) == ("rude", True), data
    lines = await stage.bus.run_logs.read(run.id)
    assert "in hold. Until it awaits" in "".join(line.message for line in lines)
