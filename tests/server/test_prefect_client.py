"""``get_client()``: what it reads of runs and flows, and what it does with deployments, automations and pools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import to_thread
from hark import flow, get_client, task
from hark.automations.prefect_action import PauseDeployment
from hark.automations.prefect_automation import AutomationCore
from hark.automations.prefect_trigger import EventTrigger
from hark.bus import Bucket, Entry
from hark.bus.session import Session
from hark.engine.client_calls.run_filters import (
    FilterCondition,
    FlowFilter,
    FlowRunFilter,
    Operator,
    TaskRunFilter,
)
from hark.engine.client_calls.run_sorts import DeploymentSort, FlowSort, TaskRunSort
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.pool import QueueSpec
from hark.engine.runs.run import RunRequest
from hark.engine.states import Completed, Running, Scheduled
from hark.errors import AlreadyExists, InvalidNameError, InvalidValueError, UnknownName
from hark.server.prefect_client import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from hark.triggers.schedule_kinds import CronSchedule, IntervalSchedule

WHERE: dict[str, Any] = {"entrypoint": "flows.py:f", "path": "/srv"}


@task
def double(n: int) -> int:
    return 2 * n


@flow(version="7", tags=["prod"])
def doubles(n: int) -> int:
    return double(n)


async def test_flows_states_and_task_runs_are_read(session: Session) -> None:
    """By name, by id, by what ran in them; each state a run has been in, in order."""
    assert await to_thread.run_sync(doubles, 2) == 4
    async with get_client() as client:
        (run,) = await client.read_flow_runs()
        found = await client.read_flow_by_name("doubles")
        assert (found.id, (await client.read_flow(found.id)).name) == ("doubles", "doubles")
        assert [one.name for one in await client.read_flows(sort=FlowSort.CREATED_DESC)] == ["doubles"]
        assert await client.read_flows(flow_filter=FlowFilter(name=FilterCondition(any_=["x"]))) == []
        with pytest.raises(UnknownName):
            await client.read_flow_by_name("double")
        states = await client.read_flow_run_states(run.id)
        assert [state.name for state in states][-2:] == ["Running", "Completed"]
        (of_task,) = await client.read_task_runs(
            flow_filter=FlowFilter(name=FilterCondition(any_=["doubles"]))
        )
        assert await client.read_task_run(of_task.id) == of_task
        assert [state.type for state in await client.read_task_run_states(of_task.id)][
            -1
        ] == of_task.state_type
        assert of_task.state.state_details.flow_run_id == run.id
        for call in (client.read_task_run, client.read_task_run_states, client.read_flow_run_states):
            with pytest.raises(UnknownName):
                await call("0190a1b2-0000-7000-8000-000000000000")

        assert run.start_time is not None
        assert run.end_time is not None
        assert run.created <= run.start_time <= run.end_time
        assert (run.state_id, run.deployment_version, run.auto_scheduled) == (run.state.id, None, False)
        assert (run.labels, run.context, run.next_scheduled_start_time) == (
            {"prefect.flow.id": "doubles"},
            {},
            None,
        )
        assert run.estimated_start_time_delta >= timedelta(0)
        assert (of_task.dynamic_key, of_task.flow_run_run_count, of_task.labels["prefect.flow.id"]) == (
            "0",
            1,
            "doubles",
        )
        assert of_task.created <= of_task.updated
        assert of_task.total_run_time <= run.total_run_time

        name = TaskRunFilter(name=FilterCondition(like_="double"))
        assert await client.count_flow_runs(task_run_filter=name) == 1
        none = {"name": FilterCondition(any_=["x"]), "tags": FilterCondition(all_=["prod"])}
        assert await client.count_flow_runs(flow_run_filter=FlowRunFilter(**none)) == 0
        assert await client.count_flow_runs(flow_run_filter=FlowRunFilter(**none, operator=Operator.or_)) == 1
        assert await client.read_task_runs(sort=TaskRunSort.END_TIME_DESC) == [of_task]
        with pytest.raises(ValueError, match="no order 'X'"):
            await client.read_task_runs(sort="X")

        assert await client.hello() == await client.api_version()
        assert client.api_url.startswith("nats://")
        assert await client.api_healthcheck() is None

    def sync() -> tuple[str, int]:
        with get_client(sync_client=True) as blocking:
            return blocking.client_version(), blocking.count_flow_runs()

    assert (await to_thread.run_sync(sync))[1] == 1


async def test_a_run_is_written_down_and_moved_by_hand(session: Session) -> None:
    """It begins Pending, or as is said, with what it is given."""
    client = get_client()
    run = await client.create_flow_run(doubles, name="mine", parameters={"n": 3}, tags=["x"])
    assert (run.state_name, run.name, run.tags, run.flow_version) == ("Pending", "mine", ("prod", "x"), "7")
    await client.set_flow_run_state(run.id, Running())
    await client.set_flow_run_state(run.id, Completed())
    assert [one.name for one in await client.read_flow_run_states(run.id)] == [
        "Pending",
        "Running",
        "Completed",
    ]
    assert (await client.create_flow_run(doubles, state=Scheduled())).state.is_scheduled()


async def test_deployments_and_their_schedules_are_made_changed_and_removed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedules come with the deployment they belong to, by Prefect's names."""
    client = get_client()
    made = await client.create_deployment(
        "f", "nightly", schedules=[CronSchedule(cron="0 6 * * *")], parameters={"n": 1}, tags=["t"],
        concurrency_limit=2, work_pool_name="p", version="1", **WHERE,
    )  # fmt: skip
    found = await client.read_deployment_by_name("f/nightly")
    assert (made, found.id, found.flow_id, found.entrypoint, found.path) == (
        "nightly",
        "nightly",
        "f",
        "flows.py:f",
        "/srv",
    )
    assert (found.work_pool_name, found.work_queue_name, found.concurrency_limit, found.version) == (
        "p",
        "default",
        2,
        "1",
    )
    (six,) = found.schedules
    assert (six.schedule, six.active, six.id) == (CronSchedule(cron="0 6 * * *"), True, "nightly/0")
    run = await client.create_flow_run_from_deployment(made, idempotency_key="k")
    key = FlowRunFilter(idempotency_key=FilterCondition(any_=["k"]))
    assert [one.id for one in await client.read_flow_runs(flow_run_filter=key)] == [run.id]
    assert (run.idempotency_key, run.deployment_version, run.next_scheduled_start_time) == (
        "k",
        "1",
        run.scheduled_at,
    )

    (hourly,) = await client.create_deployment_schedules(
        made, [(IntervalSchedule(interval=timedelta(hours=1)), False)]
    )
    assert (hourly.active, hourly.id) == (False, "nightly/1")
    with pytest.raises(AlreadyExists):
        await client.create_deployment_schedules(made, [{"cron": "0 1 * * *", "name": "0"}])
    assert hourly.id is not None
    await client.update_deployment_schedule(made, hourly.id, active=True, parameters={"n": 5})
    now = (await client.read_deployment_schedules(made))[1]
    assert (now.active, now.parameters, now.schedule) == (True, {"n": 5}, hourly.schedule)
    await client.delete_deployment_schedule(made, hourly.id)
    for call in (
        client.delete_deployment_schedule(made, "x"),
        client.update_deployment_schedule(made, "x", active=True),
    ):
        with pytest.raises(UnknownName):
            await call

    await client.update_deployment(
        made, DeploymentUpdate(description="d", tags=["u"], concurrency_limit=None)
    )
    await client.set_deployment_paused_state(made, True)
    changed = await client.read_deployment(made)
    assert (changed.description, changed.tags, changed.concurrency_limit, changed.paused) == (
        "d",
        ("u",),
        None,
        True,
    )
    assert [one.id for one in changed.schedules] == ["nightly/0"]
    anchored = IntervalSchedule(interval=timedelta(hours=1))
    await client.update_deployment(made, DeploymentUpdate(schedules=[anchored]))
    assert [one.schedule for one in (await client.read_deployment(made)).schedules] == [anchored]
    with pytest.raises(InvalidValueError, match="two schedules of one name"):
        await client.update_deployment(
            made, DeploymentUpdate(schedules=2 * [{"cron": "0 1 * * *", "name": "a"}])
        )
    with pytest.raises(InvalidValueError, match="entrypoint"):
        await client.update_deployment(made, DeploymentUpdate(entrypoint="nothing"))
    with pytest.raises(InvalidValueError, match="where its flow is"):
        await client.create_deployment("f", "x")

    await client.create_deployment("g", "second", **WHERE)
    asked: list[str] = []
    entries = Bucket.entries

    async def counted(bucket: Bucket, prefix: str = "") -> list[Entry]:
        asked.append(prefix)
        return await entries(bucket, prefix)

    with monkeypatch.context() as counting:
        counting.setattr(Bucket, "entries", counted)
        listed = await client.read_deployments(sort=DeploymentSort.NAME_DESC)
    assert [one.name for one in listed] == ["second", "nightly"]
    assert len(asked) == 2, "one listing of deployments and one of schedules, however many there are"
    of_g = await client.read_deployments(flow_filter=FlowFilter(name=FilterCondition(any_=["g"])))
    assert [one.name for one in of_g] == ["second"]
    await client.delete_deployment(made)
    with pytest.raises(UnknownName):
        await client.delete_deployment(made)
    assert await session.bus.bucket("schedules").keys() == []


async def test_automations_are_made_changed_and_removed(session: Session) -> None:
    """As what ``Automation`` itself keeps."""
    client = get_client()
    core = AutomationCore(
        name="Hold it",
        trigger=EventTrigger(expect={"order.paid"}),
        actions=[PauseDeployment(deployment_id="nightly")],
    )
    id_ = await client.create_automation(core)
    read = await client.read_automation(id_)
    assert read is not None
    assert (read.name, read.enabled) == ("Hold it", True)
    await client.pause_automation(id_)
    (paused,) = await client.read_automations_by_name("Hold it")
    assert not paused.enabled
    await client.resume_automation(id_)
    await client.update_automation(id_, core.model_copy(update={"description": "why"}))
    found = await client.find_automation("hold IT")
    assert found is not None
    assert (found.id, found.description, found.enabled) == (id_, "why", True)
    await client.delete_automation(id_)
    await client.delete_automation(id_)
    assert (await client.read_automation(id_), await client.read_automations()) == (None, [])


async def test_pools_are_made_changed_and_removed(session: Session) -> None:
    """A name that nobody made is not read; it is a pool all the same."""
    client = get_client()
    made = await client.create_work_pool(WorkPoolCreate(name="p", concurrency_limit=3))
    assert (made.id, made.type, made.concurrency_limit) == ("p", "process", 3)
    with pytest.raises(AlreadyExists):
        await client.create_work_pool(WorkPoolCreate(name="p"))
    await client.create_work_pool(WorkPoolCreate(name="p", concurrency_limit=4), overwrite=True)
    await client.update_work_pool("p", WorkPoolUpdate(is_paused=True))
    assert [(one.is_paused, one.concurrency_limit) for one in await client.read_work_pools()] == [(True, 4)]
    with pytest.raises(InvalidValueError, match="paused"):
        await client.update_work_pool("p", WorkPoolUpdate(is_paused=None))
    await client.delete_work_pool("p")
    for call in (
        client.read_work_pool("p"),
        client.delete_work_pool("p"),
        client.update_work_pool("p", WorkPoolUpdate()),
    ):
        with pytest.raises(UnknownName):
            await call


async def test_queues_of_pools_are_made_changed_and_removed(session: Session) -> None:
    """They stand in their pool; what waits in them is told in the order in which it is due."""
    client = get_client()
    made = await client.create_work_queue("fast", priority=1, concurrency_limit=2, work_pool_name="p")
    assert (made.id, made.work_pool_id, made.priority, made.is_paused) == ("p/fast", "p", 1, False)
    with pytest.raises(AlreadyExists):
        await client.create_work_queue("fast", work_pool_name="p")
    await client.update_work_queue(made.id, is_paused=True, concurrency_limit=None, description="none")
    read = await client.read_work_queue(made.id)
    assert (read.is_paused, read.concurrency_limit, read.priority) == (True, None, 1)
    assert (await Control(session.bus).pool("p")).queues == {"fast": QueueSpec(priority=1, paused=True)}
    assert [one.id for one in await client.read_work_queues()] == ["default/default", "p/default", "p/fast"]
    assert [one.name for one in await client.match_work_queues(["fa"], "p")] == ["fast"]
    for at, name in ((2, "later"), (1, "sooner")):
        due = datetime(2030, 1, at, tzinfo=UTC)
        await Control(session.bus).runs.request(
            RunRequest(flow_name="f", name=name, pool="p", queue="fast", scheduled_at=due)
        )
    assert [run.name for run in await client.get_runs_in_work_queue("p/fast")] == ["sooner", "later"]
    before = datetime(2030, 1, 1, tzinfo=UTC)
    assert [run.name for run in await client.get_runs_in_work_queue("p/fast", 5, before)] == ["sooner"]
    await client.delete_work_queue_by_id("p/fast")
    with pytest.raises(UnknownName, match="fast"):
        await client.read_work_queue_by_name("fast", work_pool_name="p")
    with pytest.raises(ValueError, match="No fields"):
        await client.update_work_queue("p/default")
    for refused in ({"name": "x"}, {"priority": 0}):
        with pytest.raises(InvalidValueError, match=r"name|priority"):
            await client.update_work_queue("p/default", **refused)
    with pytest.raises(InvalidNameError, match="a b"):
        await client.create_work_queue("a b")


def test_a_call_that_is_not_there_says_what_to_do_instead() -> None:
    """To ask whether it is there is no error."""
    client = get_client(sync_client=True)
    for call, instead in (
        ("update_flow_run", "flow_run_name="),
        ("read_block_document_by_name", "Block.load"),
    ):
        with pytest.raises(AttributeError, match=instead):
            getattr(client, call)
        assert not hasattr(client, call)
