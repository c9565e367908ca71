"""``get_client``: reading and steering runs in the words of Prefect's client."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import to_thread
from hark import flow, get_client, get_run_logger, task
from hark.bus.session import use_session
from hark.engine.client import SetStateStatus
from hark.engine.client_calls.log_calls import LogCreate
from hark.engine.client_calls.run_filters import (
    DeploymentFilter,
    FilterCondition,
    FlowFilter,
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    TaskRunFilter,
)
from hark.engine.client_calls.run_sorts import FlowRunSort, LogSort
from hark.engine.states import Cancelling, Completed, Running, Scheduled, Suspended
from hark.errors import BusUnavailable, DefinitionError, UnknownName
from hark.testing.rig import temporary_home

LATER = datetime(2100, 1, 1, tzinfo=UTC)


@task(tags=["heavy"])
def step(fail: bool) -> int:
    get_run_logger().warning("step by step")
    if fail:
        raise ValueError("no")
    return 1


@flow(name="work-flow", flow_run_name="work-{fail}", tags=["prod"])
def works(fail: bool) -> int:
    get_run_logger().info("begun")
    return step.submit(fail).result()


async def test_runs_that_were_made_are_read_and_listed(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they were given and came to; filters, orders and pages as asked."""
    with use_session(stage.bus):
        await to_thread.run_sync(works, False)
        with pytest.raises(ValueError, match="no"):
            await to_thread.run_sync(works, True)
        async with get_client() as client:
            failed, done = await client.read_flow_runs()
            assert (failed.name, done.name) == ("work-True", "work-False")
            read = await client.read_flow_run(done.id)
            assert (read.flow_name, read.parameters, read.tags) == ("work-flow", {"fail": False}, ("prod",))
            assert await read.state.aresult() == 1
            runs: Any = client.read_flow_runs

            async def names(**asked: Any) -> list[str]:
                return [run.name for run in await runs(**asked)]

            by_type = FlowRunFilter.model_validate({"state": {"type": {"any_": ["FAILED"]}}})
            assert await names(flow_run_filter=by_type) == ["work-True"]
            by_name = FlowRunFilter(name=FlowRunFilterName(like_="FALSE"))
            assert await names(flow_run_filter=by_name) == ["work-False"]
            none = FlowRunFilter(tags=FilterCondition(all_=["prod", "x"]))
            assert await names(flow_run_filter=none) == []
            assert len(await names(flow_filter=FlowFilter(name=FilterCondition(any_=["work-flow"])))) == 2
            assert await names(sort=FlowRunSort.NAME_ASC, limit=1, offset=1) == ["work-True"]
            with pytest.raises(ValueError, match="no order 'X'"):
                await names(sort="X")
            with pytest.raises(UnknownName):
                await client.read_flow_run("0190a1b2-0000-7000-8000-000000000000")

            (tasks,) = await client.read_task_runs(flow_run_filter=by_type)
            assert (tasks.task_name, tasks.state_name, tasks.flow_run_id) == ("step", "Failed", failed.id)
            assert tasks.tags == ("heavy", "prod")
            good = TaskRunFilter.model_validate({"state": {"name": {"any_": ["Completed"]}}})
            assert [one.flow_run_id for one in await client.read_task_runs(task_run_filter=good)] == [done.id]

            # Of few runs, the log is asked by name: not for all that there ever were.
            asked: list[str] = []
            read_all = stage.bus.log.read

            def read_and_note(filters: Sequence[str]) -> Any:
                asked.extend(filters)
                return read_all(filters)

            monkeypatch.setattr(stage.bus.log, "read", read_and_note)
            of_done = TaskRunFilter(flow_run_id=FilterCondition(any_=[done.id, "a.b", "*"]))
            assert [one.flow_run_id for one in await client.read_task_runs(task_run_filter=of_done)] == [
                done.id
            ]
            by_id = FlowRunFilter(id=FilterCondition(any_=[failed.id]))
            assert await client.read_task_runs(flow_run_filter=by_id) == [tasks]
            assert await client.read_task_runs(flow_run_filter=by_id, task_run_filter=of_done) == []
            assert {word for word in asked if ">" in word} == set()
            monkeypatch.undo()

            stage.bus.run_logs.flush()
            await stage.bus.publisher.barrier()
            of_run = LogFilter(flow_run_id=FilterCondition(any_=[done.id]))
            lines = await client.read_logs(of_run)
            assert [line.message for line in lines] == ["begun", "step by step"]
            assert lines[1].task_run_id is not None
            loud = LogFilter(
                flow_run_id=FilterCondition(any_=[done.id]), level=FilterCondition(ge_=logging.WARNING)
            )
            assert [line.message for line in await client.read_logs(loud, sort=LogSort.TIMESTAMP_DESC)] == [
                "step by step"
            ]
            with pytest.raises(DefinitionError, match="by run"):
                await client.read_logs()
            said = {"name": "mine", "level": 30, "message": "from outside", "flow_run_id": done.id}
            await client.create_logs([LogCreate(**said), {**said, "flow_run_id": None}])
            written = (await client.read_logs(of_run))[-1]
            assert (written.message, written.level, written.name) == ("from outside", 30, "mine")

            await client.delete_flow_run(done.id)
            assert await names() == ["work-True"]
            with pytest.raises(UnknownName):
                await client.read_flow_run(done.id)


async def test_runs_of_deployments_are_asked_for_and_steered(stage: Any) -> None:
    """A wish that cannot be met is answered, not raised."""
    stage.write("@flow(name='a flow')\ndef never(day: str = 'mon'): pass")
    await stage.deploy("never", tags=("t",), flow_name="a flow")
    with use_session(stage.bus):
        async with get_client() as client:
            deployment = await client.read_deployment_by_name("a flow/never")
            assert deployment.id == "never"
            with pytest.raises(UnknownName):
                await client.read_deployment_by_name("other/never")
            run = await client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"day": "tue"},
                name="mine",
                tags=["u"],
                state=Scheduled(scheduled_time=LATER),
                idempotency_key="k",
            )
            again = await client.create_flow_run_from_deployment("never", idempotency_key="k")
            assert (again.id, run.name, run.tags) == (run.id, "mine", ("t", "u"))
            assert (run.parameters, run.expected_start_time) == ({"day": "tue"}, LATER)
            with pytest.raises(DefinitionError, match="begins Scheduled"):
                await client.create_flow_run_from_deployment("never", state=Running())

            of = DeploymentFilter(name=FilterCondition(any_=["never"]))
            assert [one.name for one in await client.read_flow_runs(deployment_filter=of)] == ["mine"]
            assert [one.name for one in await client.read_deployments(deployment_filter=of)] == ["never"]
            await client.pause_deployment("never")
            assert (await client.read_deployment("never")).paused
            await client.resume_deployment("never")

            refused = await client.resume_flow_run(run.id)
            assert (refused.status, refused.state) == (SetStateStatus.ABORT, None)
            suspended = await client.set_flow_run_state(run.id, Suspended(message="wait"))
            assert suspended.state is not None
            assert (suspended.status, suspended.state.name) == (SetStateStatus.ACCEPT, "Suspended")
            assert (await client.resume_flow_run(run.id)).status is SetStateStatus.ACCEPT
            stopped = await client.set_flow_run_state(run.id, Cancelling())
            assert stopped.state is not None
            assert stopped.state.is_cancelled()
            late = await client.set_flow_run_state(run.id, Completed())
            assert late.status is SetStateStatus.ABORT
            assert "cannot become" in late.details
            retried = await client.set_flow_run_state(run.id, Scheduled())
            assert retried.state is not None
            assert retried.state.is_scheduled()


async def test_sync_code_has_the_same_calls(stage: Any) -> None:
    """Holding its thread; what is not there says what is."""

    def use() -> list[str]:
        with get_client(sync_client=True) as client:
            run = client.read_flow_runs()[0]
            with pytest.raises(AttributeError, match=r"read_flow_runs.*hark\.Hark"):
                client.read_worker_metadata()
            return [client.read_flow_run(run.id).name]

    with use_session(stage.bus):
        await to_thread.run_sync(works, False)
        assert await to_thread.run_sync(use) == ["work-False"]


async def test_without_a_broker_the_client_says_so() -> None:
    """When it is entered."""
    with temporary_home(), pytest.raises(BusUnavailable, match="get_client"):
        async with get_client():
            pass


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        ({"any_": ["a"]}, None, False),
        ({"not_any_": ["a"]}, None, True),
        ({"not_any_": ["a"]}, ("a", "b"), False),
        ({"all_": ["a"]}, ("a", "b"), True),
        ({"is_null_": True}, None, True),
        ({"is_null_": True}, (), True),
        ({"is_null_": False}, None, False),
        ({"like_": "B"}, "abc", True),
        ({"eq_": False}, True, False),
        ({"ge_": 2, "le_": 3}, 3, True),
        ({"ge_": 2, "le_": 3}, 4, False),
        ({"before_": LATER}, LATER - timedelta(1), True),
        ({"before_": LATER}, None, False),
        ({"after_": LATER}, LATER - timedelta(1), False),
        ({}, None, True),
    ],
)
def test_a_condition_holds_of_what_it_says(condition: dict[str, Any], value: object, expected: bool) -> None:
    """Nothing fits what asks for something, unless it asks for nothing."""
    assert FilterCondition.model_validate(condition).holds(value) is expected
