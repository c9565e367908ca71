"""What code may ask of the run it is in, and what stands in for it in tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hark import flow, runtime, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.engine import RunLog, RunRequest, execute
from hark.engine.runs.run import FlowRun
from hark.errors import DefinitionError
from hark.vocabulary import FlowRunId


def test_outside_a_run_every_fact_is_empty() -> None:
    """Asking is never an error; what has no run is due now."""
    for facts in (runtime.flow_run, runtime.task_run, runtime.deployment):
        for name in dir(facts):
            assert not getattr(facts, name) or name == "scheduled_start_time", name


def test_without_a_broker_a_run_that_is_named_has_no_facts_but_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asking is no error here either."""
    monkeypatch.setenv("HARK__FLOW_RUN_ID", "r-1")
    run = runtime.flow_run
    assert (run.id, run.name, run.tags, run.parameters, run.root_flow_run_id) == ("r-1", None, [], {}, None)
    assert (runtime.deployment.id, runtime.deployment.parameters) == (None, {})


def test_an_environment_variable_stands_in_with_the_type_of_the_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a fact that is not there; one that does not fit is said with its name."""
    for name, text in {
        "FLOW_RUN__NAME": "brave-otter", "FLOW_RUN__RUN_COUNT": "3", "FLOW_RUN__TAGS": "a, b",
        "FLOW_RUN__PARAMETERS": '{"n": 1}', "FLOW_RUN__SCHEDULED_START_TIME": "2026-01-02 03:04:05",
        "TASK_RUN__TAGS": '["x"]', "DEPLOYMENT__COLOUR": "red", "DEPLOYMENT__PARAMETERS": "[1]",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"HARK__RUNTIME__{name}", text)
    run = runtime.flow_run
    assert (run.name, run.run_count, run.tags, run.parameters) == ("brave-otter", 3, ["a", "b"], {"n": 1})
    assert run.scheduled_start_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert runtime.task_run.tags == ["x"]
    assert runtime.deployment.colour == "red"
    with pytest.raises(
        DefinitionError, match="HARK__RUNTIME__DEPLOYMENT__PARAMETERS is no parameters"
    ) as said:
        _ = runtime.deployment.parameters
    assert isinstance(said.value, ValueError)


async def test_runs_above_are_known_across_processes(bus: Bus) -> None:
    """Of the run of a deployment that another run asked for, as of a subflow."""

    @task
    async def asks() -> str:
        assert runtime.task_run.api_url == f"http://127.0.0.1:4280/api/task-runs/{runtime.task_run.id}"
        return str(runtime.flow_run.root_flow_run_id)

    @flow
    async def inner() -> list[str | None]:
        run = runtime.flow_run
        assert (runtime.deployment.id, runtime.deployment.flow_run_id) == ("hourly", run.id)
        return [run.root_flow_run_id, run.parent_deployment_id, await asks()]

    @flow
    async def outer() -> list[str | None]:
        assert runtime.deployment.version == "v7"
        return [runtime.flow_run.root_flow_run_id, runtime.flow_run.parent_deployment_id, *await inner()]

    runs = RunLog(bus)
    top = await runs.request(RunRequest(flow_name="top", deployment="nightly"))
    child = await runs.request(
        RunRequest(flow_name="outer", parent=top.id, deployment="hourly", flow_version="v7")
    )
    with use_session(bus) as session:
        state = await execute(outer, child, session=session)
    assert state.result() == [top.id, "nightly", top.id, "hourly", top.id]


async def test_a_process_that_is_told_a_run_reads_its_facts_from_the_log(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is started beside a run; inside of a run that run counts."""

    def facts() -> list[object]:
        run = runtime.flow_run
        deployed = runtime.deployment
        return [
            run.id,
            run.name,
            run.flow_name,
            run.tags,
            run.parameters,
            deployed.id,
            deployed.parameters,
            deployed.flow_run_id,
        ]

    @flow
    def inside() -> tuple[object, ...]:
        return runtime.flow_run.id, runtime.deployment.id, runtime.deployment.parameters

    asked = await RunLog(bus).request(
        RunRequest(flow_name="sums", deployment="nightly", name="n-1", tags=("a",), parameters={"n": 2})
    )
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", asked.id)
    reads: list[str] = []
    read = RunLog.get

    async def counted(log: RunLog, run_id: FlowRunId) -> FlowRun | None:
        reads.append(run_id)
        return await read(log, run_id)

    monkeypatch.setattr(RunLog, "get", counted)
    monkeypatch.setattr(runtime, "_ASK_AGAIN_S", 600.0)
    with use_session(bus):
        found = await asyncio.to_thread(facts)
        assert reads == [asked.id]
        id_, deployment, parameters = await asyncio.to_thread(inside)
    assert found == [asked.id, "n-1", "sums", ["a"], {"n": 2}, "nightly", {"n": 2}, asked.id]
    assert (id_ != asked.id, deployment, parameters) == (True, None, {})
