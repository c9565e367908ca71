"""Deployments from code: asking for runs of them in flows and out, and describing them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hark import arun_deployment, cancel_flow_run, flow, run_deployment, wait_for_flow_run
from hark.bus.session import use_session
from hark.engine.deployments import entrypoint_of
from hark.errors import BusUnavailable, DefinitionError, ParameterError, UnknownName
from hark.server.description import RunnerDeployment
from hark.triggers.shorthand import Cron
from hark.vocabulary import StateType

if TYPE_CHECKING:
    from .conftest import Stage


@flow
async def findable(n: int = 1, *, word: str = "x") -> int:
    return n


CHILD = """
@flow
async def child(n: int = 0):
    await asay(f"child-{n}")
    return n + 1
"""


async def test_a_deployment_runs_from_outside_any_flow(stage: Stage) -> None:
    """The run comes back ended, with its result; asking in two forms; the flow may be named, too."""
    stage.write(CHILD)
    await stage.deploy("child", parameters={"n": 1})
    async with stage.working(processes=0):
        with use_session(stage.bus):
            run = await run_deployment("child")
            assert run.state.is_completed()
            assert await run.state.aresult() == 2
            run = await arun_deployment("child/child", parameters={"n": 5}, tags=["t"], flow_run_name="five")
            assert (run.state.result(), run.name, run.tags) == (6, "five", ("t",))
            with pytest.raises(UnknownName, match="did you mean"):
                await run_deployment("chil")
            with pytest.raises(UnknownName):
                await run_deployment("other/child")


async def test_a_run_is_returned_as_it_is_when_time_is_up(stage: Stage) -> None:
    """0 does not wait at all; the same idempotency key is the same run; it can be waited for and cancelled later."""
    stage.write("@flow\nasync def slow():\n    await asyncio.sleep(60)\n")
    await stage.deploy("slow")
    async with stage.working(processes=0):
        with use_session(stage.bus):
            later = datetime.now(UTC) + timedelta(hours=1)
            run = await run_deployment("slow", timeout=0, scheduled_time=later, job_variables={"env": {}})
            assert run.state.is_scheduled()
            run = await run_deployment("slow", timeout=0.05, idempotency_key="k")
            assert not run.is_final
            assert (await run_deployment("slow", timeout=0, idempotency_key="k")).id == run.id
            with pytest.raises(TimeoutError):
                await wait_for_flow_run(run.id, timeout=0.05)
            await stage.until(run, lambda run: run.state_type is StateType.RUNNING)
            await cancel_flow_run(run.id)
            assert (await wait_for_flow_run(run.id)).state.is_cancelled()


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_flow_that_runs_a_deployment_is_its_parent(stage: Stage, kind: str) -> None:
    """Linked as a child, with the parent as its cause; the result arrives, futures among the parameters too."""
    wait = "await " if kind.startswith("async") else ""
    stage.write(
        CHILD
        + f"""
from hark import run_deployment

@task
def two():
    return 2

@flow
{kind} parent():
    run = {wait}run_deployment("child", parameters={{"n": two.submit()}})
    other = {wait}run_deployment("child", parameters={{"n": 7}}, as_subflow=False)
    return [run.id, run.state.result(), other.id, other.state.result()]
"""
    )
    await stage.deploy("parent", "child")
    async with stage.working():
        done = await stage.run("parent")
    assert done.state_type is StateType.COMPLETED, done.state_message
    with use_session(stage.bus):
        child_id, result, other_id, other = await done.state.aresult()
    assert (result, other) == (3, 8)
    child, apart = await stage.control.get(child_id), await stage.control.get(other_id)
    assert child is not None
    assert apart is not None
    assert (child.parent, apart.parent) == (done.id, None)
    assert child.cause is not None
    assert (child.cause.kind, child.cause.name) == ("flow-run", done.name)


async def test_a_retried_parent_keeps_the_children_that_completed_and_retries_the_others(
    stage: Stage,
) -> None:
    """No child that completed runs again, and none is asked for twice."""
    (stage.root / "broken").touch()
    stage.write(
        """
        from hark import run_deployment

        @flow
        async def good():
            await asay("good")

        @flow
        async def bad():
            await asay("bad")
            if os.path.exists("broken"):
                raise ValueError("broken")
            return 5

        @flow
        async def parent():
            await run_deployment("good")
            run = await run_deployment("bad")
            return run.state.result()
        """
    )
    await stage.deploy("parent", "good", "bad", executor="process")
    async with stage.working():
        failed = await stage.run("parent")
        assert failed.state_type is StateType.FAILED
        (stage.root / "broken").unlink()
        await stage.control.retry(failed.id)
        done = await stage.end(await stage.until(failed, lambda run: run.seq > failed.seq))
    assert done.state_type is StateType.COMPLETED, done.state_message
    assert done.state.result() == 5
    assert await stage.said() == {"good": 1, "bad": 2}


def test_what_a_description_says() -> None:
    """Name, schedules of every kind, limit, tags, and the parameters' schema."""
    made = findable.to_deployment(
        "nightly.py", interval=timedelta(minutes=15), tags=["a"], concurrency_limit=2
    )
    assert (made.name, made.schedules) == ("nightly", [{"interval": "15m"}])
    definition = made.definition(pool="p")
    assert definition.concurrency is not None
    assert (definition.pool, definition.tags, definition.concurrency.limit) == ("p", ("a",), 2)
    assert definition.flow == "test_deployments.py:findable" or definition.flow.endswith(
        "test_deployments:findable"
    )
    assert definition.parameter_schema is not None
    assert set(definition.parameter_schema["properties"]) == {"n", "word"}
    several = findable.to_deployment("x", schedules=[{"cron": "0 6 * * *"}, {"rrule": "FREQ=DAILY"}])
    assert [*several.schedules] == [{"cron": "0 6 * * *"}, {"rrule": "FREQ=DAILY"}]
    skipping = findable.to_deployment("x", concurrency_limit={"limit": 1, "collision_strategy": "CANCEL_NEW"})
    assert skipping.definition(pool="p").concurrency is not None
    assert skipping.definition(pool="p").concurrency.on_conflict == "skip"


def test_what_makes_no_sense_is_refused() -> None:
    """Two kinds of schedule at once, a name that is none, a flow that no other process can find."""
    with pytest.raises(DefinitionError, match="interval and cron"):
        findable.to_deployment("x", cron="* * * * *", interval=5)
    with pytest.raises(DefinitionError, match="not a name"):
        findable.to_deployment("a b").definition(pool="p")

    @flow
    def hidden() -> None:
        pass

    with pytest.raises(DefinitionError, match="top level"):
        entrypoint_of(hidden)


async def test_a_description_of_code_in_a_folder_is_applied(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its entrypoint from the working directory, or from a source; its schedules keep their names."""
    stage.write("@flow(name='a flow')\ndef there(n: int = 1): return n")
    monkeypatch.chdir(stage.root)
    described = RunnerDeployment.from_entrypoint("flows.py:there", "one", cron="0 6 * * *")
    assert (described.full_name, described.entrypoint) == ("a flow/one", "flows.py:there")
    stored = await RunnerDeployment.afrom_storage(str(stage.root), "flows.py:there", "two")
    with use_session(stage.bus):
        assert await described.apply(schedules=[Cron("0 7 * * *", slug="early")]) == "one"
        assert await stored.aapply(work_pool_name="p") == "two"
    assert (await stage.control.deployment("two")).pool == "p"
    assert await stage.bus.bucket("schedules").keys() == ["one/early"]
    with pytest.raises(FileNotFoundError):
        RunnerDeployment.from_entrypoint("none.py:there", "x")


async def test_parameters_are_checked_when_the_run_is_asked_for(stage: Stage) -> None:
    """Against the schema the description carries."""
    with use_session(stage.bus):
        assert await findable.deploy("checked") == "checked"
        with pytest.raises(ParameterError, match="did you mean 'word'"):
            await run_deployment("checked", parameters={"wort": "y"}, timeout=0)


def test_without_a_broker_it_says_what_to_do() -> None:
    """Neither form hangs."""
    with pytest.raises(BusUnavailable, match="needs a broker"):
        run_deployment("x")

    async def inside() -> Any:
        return await run_deployment("x")

    with pytest.raises(BusUnavailable, match="needs a broker"):
        asyncio.run(inside())
