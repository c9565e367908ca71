"""What the client of ``get_client()`` does with limits, variables and artifacts, and ``concurrency`` as Prefect's flows say it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from hark import concurrency, flow, get_client, rate_limit, task
from hark.bus.session import Session
from hark.engine.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from hark.engine.client_calls.kept_calls import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
)
from hark.engine.client_calls.run_filters import (
    ArtifactCollectionFilter,
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    TaskRunFilter,
)
from hark.engine.client_calls.run_sorts import ArtifactSort
from hark.engine.concurrency import AcquireConcurrencySlotTimeoutError, ConcurrencySlotAcquisitionError
from hark.engine.exceptions import ObjectAlreadyExists, ObjectNotFound
from hark.engine.limits.tag_concurrency import concurrency as of_tags
from pydantic import ValidationError


async def test_limits_are_made_changed_and_removed(session: Session) -> None:
    """By their names; how many slots are held follows from who holds them."""
    client = get_client()
    assert (
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="db", limit=2)) == "db"
    )
    with pytest.raises(ObjectAlreadyExists):
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="db", limit=2))
    async with concurrency("db", 2, 10):
        found = await client.read_global_concurrency_limit_by_name("db")
    assert (found.id, found.limit, found.active, found.active_slots) == ("db", 2, True, 2)
    await client.update_global_concurrency_limit(
        "db", GlobalConcurrencyLimitUpdate(slot_decay_per_second=4.0)
    )
    await client.upsert_global_concurrency_limit_by_name("db", 3)
    await client.upsert_global_concurrency_limit_by_name("other", 1, slot_decay_per_second=0.5)
    await client.update_global_concurrency_limit(
        "db", GlobalConcurrencyLimitUpdate(name="disk", active=False)
    )
    limits = await client.read_global_concurrency_limits()
    assert [(one.name, one.limit, one.active, one.slot_decay_per_second) for one in limits] == [
        ("disk", 3, False, 4.0), ("other", 1, True, 0.5),
    ]  # fmt: skip
    assert await client.read_global_concurrency_limits(limit=1, offset=1) == limits[1:]
    await client.delete_global_concurrency_limit_by_name("disk")
    for gone in (
        client.read_global_concurrency_limit_by_name("disk"),
        client.update_global_concurrency_limit("disk", GlobalConcurrencyLimitUpdate(limit=1)),
        client.delete_global_concurrency_limit_by_name("disk"),
    ):
        with pytest.raises(ObjectNotFound):
            await gone
    for wrong in ({"name": "a/b", "limit": 1}, {"name": "a", "limit": -1}):
        with pytest.raises(ValidationError):
            GlobalConcurrencyLimitCreate.model_validate(wrong)


async def test_the_limit_of_a_tag_says_who_holds_its_slots(session: Session) -> None:
    """Taken by tasks that carry it, or by name; tags without a limit hold nothing back."""
    client = get_client()
    assert await client.create_concurrency_limit("db", 1) == "db"
    run = uuid4()
    async with of_tags(["db", "nothing"], run):
        found = await client.read_concurrency_limit_by_tag("db")
        assert (found.tag, found.concurrency_limit, found.active_slots) == ("db", 1, [str(run)])
        with pytest.raises(TimeoutError):
            async with of_tags("db", timeout_seconds=0.01):
                pass
        await client.reset_concurrency_limit_by_tag("db")
        assert [one.active_slots for one in await client.read_concurrency_limits(limit=5, offset=0)] == [[]]
    await client.delete_concurrency_limit_by_tag("db")
    with pytest.raises(ObjectNotFound):
        await client.read_concurrency_limit_by_tag("db")


async def test_what_a_limit_cannot_give_is_refused_by_one_kind_of_error(session: Session) -> None:
    """Except for time that is over; what is no name of a limit is left out."""
    client = get_client()
    await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="one", limit=1))
    for asked in (
        concurrency("one", occupy=2),
        concurrency("nothing", strict=True, lease_duration=60, raise_on_lease_renewal_failure=False),
    ):
        with pytest.raises(ConcurrencySlotAcquisitionError):
            async with asked:
                pass
    for doing in (rate_limit("one"), rate_limit("nothing", strict=True)):
        with pytest.raises(ConcurrencySlotAcquisitionError):
            await doing
    with pytest.raises(ConcurrencySlotAcquisitionError):
        concurrency("one", occupy=0)
    async with concurrency("one", holder="somebody"), concurrency([""]):
        with pytest.raises(AcquireConcurrencySlotTimeoutError):
            async with concurrency("one", timeout_seconds=0.01):
                pass


async def test_variables_and_artifacts_are_read_by_the_client(session: Session) -> None:
    """From sync code as well."""
    client = get_client()
    made = await client.create_variable(VariableCreate(name="region", value="eu", tags=["a"]))
    assert (made.value, made.tags) == ("eu", ["a"])
    await client.update_variable(VariableUpdate(name="region", value={"n": 1}))

    def in_sync() -> object:
        with get_client(sync_client=True) as sync:
            return [one.value for one in sync.read_variables()]

    assert await asyncio.to_thread(in_sync) == [{"n": 1}]
    await client.delete_variable_by_name("region")
    assert await client.read_variable_by_name("region") is None
    for gone in (
        client.delete_variable_by_name("region"),
        client.update_variable(VariableUpdate(name="region")),
    ):
        with pytest.raises(ObjectNotFound):
            await gone
    for text, key in (("1", "a"), ("2", "a"), ("3", "b"), ("4", None)):
        await create_markdown_artifact(text, key=key)
    assert [one.data for one in await client.read_artifacts()] == ["4", "3", "2", "1"]
    assert [one.data for one in await client.read_artifacts(limit=1, offset=1)] == ["3"]
    assert [one.data for one in await client.read_latest_artifacts()] == ["3", "2"]
    keyed = ArtifactFilter(key=ArtifactFilterKey(exists_=True), type={"any_": ["markdown"]})
    found = await client.read_artifacts(artifact_filter=keyed, sort=ArtifactSort.KEY_ASC)
    assert [one.data for one in found] == ["2", "1", "3"]
    found = await client.read_latest_artifacts(artifact_filter=ArtifactFilter(key={"like_": "%B"}))
    assert [one.data for one in found] == ["3"]
    with pytest.raises(ValueError, match="there is no order"):
        await client.read_artifacts(sort="BEST_FIRST")

    @task(task_run_name="moves")
    async def moving() -> None:
        await update_progress_artifact(await create_progress_artifact(10, key="moved"), 50)

    @flow(flow_run_name="shows")
    async def showing() -> None:
        await create_markdown_artifact("5", key="a")
        await moving()

    await showing()
    of_flow, of_task = FlowRunFilter(name={"any_": ["shows"]}), TaskRunFilter(name={"any_": ["moves"]})
    by_key: Any = {"sort": ArtifactSort.KEY_ASC}
    assert [one.data for one in await client.read_artifacts(flow_run_filter=of_flow, **by_key)] == ["5", 50]
    assert [one.data for one in await client.read_artifacts(task_run_filter=of_task)] == [50]
    now = ArtifactCollectionFilter(latest_id={"any_": [found[0].id]})
    assert [one.data for one in await client.read_latest_artifacts(artifact_filter=now)] == ["3"]
    assert await client.read_latest_artifacts(artifact_filter=now, flow_run_filter=of_flow) == []
    top = FlowRunFilter(parent_task_run_id={"is_null_": True}, work_queue_name={"is_null_": True})
    assert [run.name for run in await client.read_flow_runs(flow_run_filter=top)] == ["shows"]
    subflows = TaskRunFilter(subflow_runs={"exists_": True})
    assert await client.read_task_runs(task_run_filter=subflows) == []


def test_a_deployment_says_its_limit_and_refuses_names_and_schedules_that_are_none() -> None:
    """When it is written down, as a ValueError."""
    deployment = flow(print).to_deployment("etl", concurrency_limit=3)
    assert (deployment.concurrency_limit, flow(print).to_deployment("etl").concurrency_limit) == (3, None)
    with pytest.raises(ValueError, match="no name for a deployment"):
        flow(print).to_deployment("a/b")
    with pytest.raises(ValueError, match="interval and cron"):
        flow(print).to_deployment("etl", cron="0 6 * * *", interval=60)
