"""``serve`` and ``deploy``: from a flow in a file to runs of it, with a broker or without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.session import use_session
from hark.config import Settings, load_settings
from hark.engine.deployments import run_deployment
from hark.engine.dispatching.control import Control
from hark.engine.runs.run import Cause, FlowRun, RunRequest
from hark.engine.states import Pending
from hark.errors import DefinitionError, InvalidNameError, MissingContextError, RefusedError
from hark.server.definition import set_paused
from hark.server.runner import Runner
from hark.server.serving import deploy, serve, serving
from hark.triggers.schedule import StoredSchedule
from hark.vocabulary import StateType

if TYPE_CHECKING:
    from hark import Flow

FILE = """
from hark import flow

@flow
def double(n: int = 1):
    return 2 * n

@flow
async def triple(n: int = 1):
    return 3 * n

if __name__ == "__main__":
    double.serve("doubling", interval=3600)
"""


@pytest.fixture
def flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Flow[..., object]]:
    """Flows of a file, as a script's author has them."""
    import importlib

    (tmp_path / "served_flows.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("served_flows")
    monkeypatch.delitem(sys.modules, "served_flows")
    sys.modules["served_flows"] = module
    return {"double": module.double, "triple": module.triple}


async def schedules(bus: Bus) -> dict[str, StoredSchedule]:
    found = await bus.bucket("schedules").entries()
    return {entry.key: StoredSchedule.model_validate_json(entry.value) for entry in found}


async def test_deployed_schedules_are_those_that_are_written(
    bus: Bus, flows: dict[str, Flow[..., object]]
) -> None:
    """What is gone from the code is gone from the store; what stays is not written again."""
    double = flows["double"]
    with use_session(bus):
        assert await deploy(
            double.to_deployment("d", cron=["0 6 * * *", "0 7 * * *"]), work_pool_name="p"
        ) == ["d"]
        assert set(await schedules(bus)) == {"d/0", "d/1"}
        first = await bus.bucket("schedules").get("d/0")
        await deploy(double.to_deployment("d", cron="0 6 * * *"))
        assert set(await schedules(bus)) == {"d/0"}
        again = await bus.bucket("schedules").get("d/0")
        assert first is not None
        assert again is not None
        assert first.revision == again.revision
        assert (await Control(bus).deployment("d")).pool == "default"
        with pytest.raises(DefinitionError, match="schedule"):
            await deploy(double.to_deployment("d", cron="not one"))
        with pytest.raises(DefinitionError, match="nothing to deploy"):
            await deploy()


async def test_serving_runs_what_is_asked_of_it_on_a_known_broker(
    home: Path, broker: EmbeddedBroker, bus: Bus, flows: dict[str, Flow[..., object]]
) -> None:
    """Sync and async flows, in a pool of their own; on leaving, the schedules pause."""
    settings = Settings(home=home)
    served = [flows["double"].to_deployment("double", interval=3600), flows["triple"].to_deployment("triple")]
    async with serving(*served, limit=2, settings=settings):
        with use_session(bus):
            assert (await run_deployment("double", parameters={"n": 4})).state.result() == 8
            assert (await run_deployment("triple", parameters={"n": 4})).state.result() == 12
        pool = (await Control(bus).deployment("double")).pool
        assert pool == (await Control(bus).deployment("triple")).pool != "default"
        assert not (await schedules(bus))["double/0"].is_paused
    assert (await schedules(bus))["double/0"].is_paused


async def test_a_runner_runs_what_was_added_to_it(
    home: Path,
    broker: EmbeddedBroker,
    bus: Bus,
    flows: dict[str, Flow[..., object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stored as it is added, run until nothing is due, or until it is told to stop; then it may be started again."""
    with pytest.raises(InvalidNameError, match="runner"):
        Runner("a/b")
    monkeypatch.setenv("HARK_HOME", str(home))
    load_settings.cache_clear()
    runner = Runner("mine", limit=2, query_seconds=3)
    with use_session(bus):
        with pytest.raises(MissingContextError, match="not yet started"):
            runner.stop()
        assert await runner.add_flow(flows["double"], interval=3600) == "mine"
        assert await runner.add_flow(flows["triple"], name="three", tags=["x"]) == "three"
        assert (await Control(bus).deployment("three")).tags == ("x",)
        run = await Control(bus).run_deployment("three", parameters={"n": 2}, cause=Cause("api"))
        await runner.start(run_once=True)
        ended = await Control(bus).runs.get(run.id)
        assert ended is not None
        assert (ended.state_type, runner.started) == (StateType.COMPLETED, False)
        async with anyio.create_task_group() as tg:
            tg.start_soon(runner.start)
            assert (await run_deployment("mine", parameters={"n": 4})).state.result() == 8
            await runner.stop()
        assert runner.stopping
        asked = RunRequest(flow_name="triple", deployment="three")  # by hand, so nobody takes it
        held = await Control(bus).runs.begin(FlowRun.requested(asked, now=datetime.now(UTC)), Pending())
        async with anyio.create_task_group() as tg:
            tg.start_soon(partial(runner.start, run_once=True))
            while not runner.started:
                await anyio.lowlevel.checkpoint()
            await runner.stop()  # though a run does not end
        assert not (await Control(bus).present(held.id)).is_final
        for nameless in (Runner(), Runner()):
            assert await nameless.add_flow(flows["triple"], name="three") == "three"
            assert (await Control(bus).deployment("three")).pool == "serve-three"
        await set_paused(bus, "schedules", "mine/0", False)
        async with anyio.create_task_group() as tg:
            tg.start_soon(_end_this_process)
            with pytest.raises(SystemExit):
                await runner.start()
        assert (await schedules(bus))["mine/0"].is_paused


async def _end_this_process() -> None:
    """Send TERM to this process once the runner has started again."""
    assert (await run_deployment("mine", parameters={"n": 5})).state.result() == 10
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # or it would end the tests
    os.kill(os.getpid(), signal.SIGTERM)


async def test_serving_belongs_into_sync_code() -> None:
    """It would hold the loop for good, and says so."""
    with pytest.raises(RefusedError, match="hold this event loop"):
        serve()


def test_a_script_serves_its_flow_all_by_itself(tmp_path: Path, home: Path) -> None:
    """Without any broker it starts everything; at Ctrl-C it ends in order."""
    script = tmp_path / "script.py"
    script.write_text(FILE)
    environment = {**os.environ, "HARK_HOME": str(home), "HARK_SERVER__PORT": "0", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        watchdog = threading.Timer(200, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert "Serving 'doubling'" in process.stdout.readline()
            asking = "from hark import run_deployment; print(run_deployment('doubling', parameters={'n': 21}).state.result())"
            done = subprocess.run(
                [sys.executable, "-c", asking],
                env=environment,
                capture_output=True,
                text=True,
                timeout=150,
                check=False,
            )
            assert done.stdout.strip() == "42", done.stderr
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does, to its children as well
            assert process.wait(120) == 0
        finally:
            watchdog.cancel()
            process.kill()


async def test_triggers_come_and_go_with_their_deployment(
    bus: Bus, flows: dict[str, Flow[..., object]]
) -> None:
    """They are rules of its own: written once, held while paused, gone from the code gone from the store."""
    from hark.automations import DeploymentEventTrigger
    from hark.server.ownership import delete_deployment, rules_of

    double, rules = flows["double"], bus.bucket("automations")
    paid = DeploymentEventTrigger(on="order.paid", parameters={"n": "{{ event.data.n }}"})
    with use_session(bus):
        await deploy(double.to_deployment("d", triggers=[paid, {"on": "order.late", "name": "late"}]))
        first = await rules_of(bus, "d")
        assert set(first) == {"d__automation_1", "late"}
        await deploy(double.to_deployment("d", triggers=[paid]))
        again = await rules_of(bus, "d")
        assert {k: e.revision for k, e in again.items()} == {
            "d__automation_1": first["d__automation_1"].revision
        }
        await set_paused(bus, "automations", "d__automation_1", True)
        held = await rules.get("d__automation_1")
        await deploy(double.to_deployment("d", triggers=[paid]))
        assert await rules.get("d__automation_1") == held
        await rules.put("mine", b'{"name":"mine","on":["a.b"]}')
        with pytest.raises(DefinitionError, match="not its own"):
            await deploy(double.to_deployment("d", triggers=[{"on": "a.b", "name": "mine"}]))
        found = await bus.bucket("deployments").get("d")
        assert found is not None
        assert await delete_deployment(bus, "d", revision=found.revision) == ["d__automation_1"]
        assert await rules.keys() == ["mine"]
