"""Waits that hold no worker: sleeping, pausing, suspending; on a real broker, with a dispatcher and a worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hark import flow, pause_flow_run, resume_flow_run, sleep, suspend_flow_run, task
from hark.bus import Bus
from hark.bus.session import Session, use_session
from hark.config import EngineConfig
from hark.duration import seconds_of
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.pausing.durable import now
from hark.engine.runs.run import FlowRun
from hark.errors import MissingContextError, MoveRefused, ParameterError, PauseTimedOut, RefusedError
from hark.vocabulary import StateType
from hypothesis import given
from hypothesis import strategies as st

from .conftest import events

if TYPE_CHECKING:
    from hark.engine.workers.worker import Worker

    from .conftest import Stage

QUICK = EngineConfig(suspend_after_s=0.2)


def is_suspended(run: FlowRun) -> bool:
    return run.state_name == "Suspended"


def is_running(run: FlowRun) -> bool:
    return run.state_type in (StateType.PENDING, StateType.RUNNING)


async def let_go(worker: Worker) -> None:
    """Wait until the worker has nothing in its hands."""
    with anyio.fail_after(60):
        while worker.held:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.01)


def result_of(run: FlowRun) -> Any:
    assert run.state_type is StateType.COMPLETED, (run.state_name, run.state_message)
    return run.state.result()


@given(st.floats(0, 1e7), st.sampled_from(["s", "m", "h"]))
def test_durations_are_numbers_deltas_or_texts(amount: float, unit: str) -> None:
    """All three forms mean the same."""
    from datetime import timedelta

    size = {"s": 1, "m": 60, "h": 3600}[unit]
    whole = int(amount / size)
    assert (
        seconds_of(f"{whole}{unit}")
        == seconds_of(whole * size)
        == seconds_of(timedelta(seconds=whole * size))
    )


@pytest.mark.parametrize("wrong", [-1, "soon", True, float("nan"), None])
def test_what_is_no_duration_is_refused(wrong: Any) -> None:
    """Before anything waits."""
    with pytest.raises(ValueError):
        seconds_of(wrong)


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_sleep_holds_no_worker_and_no_finished_task_runs_again(stage: Stage, kind: str) -> None:
    """The run goes back to SCHEDULED, named Sleeping, and goes on by replay when it is time; it sleeps once."""
    wait = "await " if kind.startswith("async") else ""
    stage.write(
        f"""
        from hark import sleep

        @task
        {kind} step(word):
            {wait}{"asay" if wait else "say"}(word)
            return word

        @flow
        {kind} sleeper():
            a = {wait}step("before")
            {wait}sleep(1)
            b = {wait}step("after")
            {wait}sleep(0)
            return a + b
        """
    )
    await stage.deploy("sleeper")
    async with stage.working(engine=QUICK) as worker:
        began = now()
        run = await stage.ask("sleeper")
        asleep = await stage.until(run, lambda run: run.state_name == "Sleeping")
        await let_go(worker)
        done = await stage.end(asleep)
        assert result_of(done) == "beforeafter"
        assert (now() - began).total_seconds() >= 1.0
    assert await stage.said() == {"before": 1, "after": 1}
    assert await stage.states(run) == [
        "scheduled", "pending", "running", "scheduled", "pending", "running", "completed",
    ]  # fmt: skip


async def test_a_sleep_in_a_subflow_takes_its_parent_along(stage: Stage) -> None:
    """The parent leaves the worker and takes the child up again; nothing finished in either is repeated."""
    stage.write(
        """
        from hark import sleep

        @task
        async def step(word):
            await asay(word)

        @flow
        async def child():
            await step("child-before")
            await sleep(1)
            await step("child-after")
            return 1

        @flow
        async def parent():
            await step("parent-before")
            found = await child()
            await sleep(1)
            await step("parent-after")
            return found
        """
    )
    await stage.deploy("parent")
    async with stage.working(engine=QUICK, processes=0):
        done = await stage.run("parent")
    assert result_of(done) == 1
    assert set((await stage.said()).values()) == {1}
    assert done.attempt == 3


async def test_submitted_tasks_end_before_the_worker_is_left(stage: Stage) -> None:
    """Leaving interrupts nothing that was submitted."""
    stage.write(
        """
        from hark import sleep

        @task
        async def slow(word):
            await asyncio.sleep(0.3)
            await asay(word)
            return word

        @flow
        async def leaver():
            future = slow.submit("slow")
            await sleep(1)
            return await future
        """
    )
    await stage.deploy("leaver")
    async with stage.working(engine=QUICK, processes=0):
        assert result_of(await stage.run("leaver")) == "slow"
    assert await stage.said() == {"slow": 1}


async def test_a_sleep_inside_a_task_group_leaves_too(stage: Stage) -> None:
    """What a task group wraps is found again."""
    stage.write(
        """
        from hark import sleep

        @flow
        async def grouped():
            async with asyncio.TaskGroup() as group:
                group.create_task(sleep(1))
            return "done"
        """
    )
    await stage.deploy("grouped")
    async with stage.working(engine=QUICK, processes=0):
        assert result_of(await stage.run("grouped")) == "done"


async def test_a_run_that_sleeps_can_be_cancelled(stage: Stage) -> None:
    """At once: nothing executes it."""
    stage.write(
        """
        from hark import sleep

        @flow
        async def sleeper():
            await sleep("1h")
        """
    )
    await stage.deploy("sleeper")
    async with stage.working(engine=QUICK, processes=0):
        run = await stage.until(await stage.ask("sleeper"), lambda run: run.state_name == "Sleeping")
        assert (await stage.control.cancel(run.id)).state_type is StateType.CANCELLED


async def test_plain_calls_sleep_in_place(session: Session) -> None:
    """Nobody could take them up again; in tasks and outside runs too."""

    @task
    async def in_task() -> None:
        await sleep(0.01)

    @flow
    async def napper() -> int:
        await sleep("10ms")
        await in_task()
        return 3

    assert await napper() == 3
    await sleep(0.01)

    @flow
    def sync_napper() -> int:
        sleep(0.01)
        return 4

    assert await asyncio.to_thread(sync_napper) == 4


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_suspended_run_goes_on_with_typed_input(stage: Stage, kind: str) -> None:
    """It leaves its worker; input that does not fit is refused; the model arrives; nothing is repeated."""
    wait = "await " if kind.startswith("async") else ""
    stage.write(
        f"""
        from pydantic import BaseModel
        from hark import suspend_flow_run

        class Answer(BaseModel):
            name: str
            age: int = 30

        @task
        {kind} step(word):
            {wait}{"asay" if wait else "say"}(word)

        @flow
        {kind} asker():
            {wait}step("before")
            answer = {wait}suspend_flow_run(wait_for_input=Answer)
            assert type(answer) is Answer
            number = {wait}suspend_flow_run(wait_for_input=int)
            return [answer.name, answer.age, number]
        """
    )
    await stage.deploy("asker")
    async with stage.working() as worker:
        run = await stage.until(await stage.ask("asker"), is_suspended)
        await let_go(worker)
        with pytest.raises(ParameterError, match="missing: name"):
            await stage.control.resume(run.id)
        with pytest.raises(ParameterError, match="'nam'"):
            await stage.control.resume(run.id, run_input={"nam": "ann"})
        with use_session(stage.bus):
            await resume_flow_run(run.id, run_input={"name": "ann"})
            await stage.until(run, lambda now: is_suspended(now) and now.seq > run.seq)
            await resume_flow_run(run.id, run_input=7)
        assert result_of(await stage.end(run)) == ["ann", 30, 7]
    assert await stage.said() == {"before": 1}


async def test_a_suspended_run_fails_when_nobody_resumes_it_in_time(stage: Stage) -> None:
    """The dispatcher sees to it, whoever else is there."""
    stage.write(
        """
        from hark import suspend_flow_run

        @flow
        async def asker():
            await suspend_flow_run(timeout=0.5)
        """
    )
    await stage.deploy("asker")
    async with stage.working(processes=0):
        run = await stage.run("asker")
    assert (run.state_type, run.state_message) == (
        StateType.FAILED,
        "This flow was paused and never resumed.",
    )


async def test_a_new_dispatcher_knows_when_suspended_runs_expire(stage: Stage) -> None:
    """The time is part of what it folds, checkpoint included."""
    stage.write(
        """
        from hark import suspend_flow_run

        @flow
        async def asker():
            await suspend_flow_run(timeout=1)
        """
    )
    await stage.deploy("asker")
    async with stage.working(processes=0):
        run = await stage.until(await stage.ask("asker"), is_suspended)
    async with Dispatcher(stage.bus, EngineConfig()):
        assert (await stage.end(run)).state_type is StateType.FAILED


async def test_a_pause_waits_in_its_process_and_hears_of_its_resumption(session: Session, bus: Bus) -> None:
    """PAUSED, then running again in the same process, in the same attempt, with the input."""
    control, ids = Control(bus), asyncio.Queue[str]()

    @flow
    async def asker() -> list[object]:
        from hark import runtime

        await ids.put(str(runtime.flow_run.id))
        word = await pause_flow_run(wait_for_input=str, timeout=60)
        nothing = await pause_flow_run(key="again")
        return [word, nothing]

    async with asyncio.TaskGroup() as group:
        running = group.create_task(asker())
        run_id: Any = await ids.get()
        paused = await control.wait(run_id, lambda run: run.state_name == "Paused", timeout_s=60)
        with pytest.raises(ParameterError):
            await control.resume(run_id, run_input={"value": []})
        await resume_flow_run(run_id, run_input="hello")
        await control.wait(run_id, lambda r: r.state_name == "Paused" and r.seq > paused.seq, timeout_s=60)
        await resume_flow_run(run_id)
        assert await running == ["hello", None]
    run = await control.get(run_id)
    assert run is not None
    assert (run.attempt, run.state_type) == (1, StateType.COMPLETED)
    with pytest.raises(MoveRefused):
        await resume_flow_run(run_id)


async def test_a_pause_times_out(session: Session) -> None:
    """The run fails, saying so."""

    @flow
    async def asker() -> None:
        await pause_flow_run(timeout=0.05)

    with pytest.raises(PauseTimedOut, match="never resumed"):
        await asker()

    @flow
    def sync_asker() -> None:
        pause_flow_run(timeout=0.05)

    state = await asyncio.to_thread(lambda: sync_asker(return_state=True))
    assert state.is_failed()


async def test_a_paused_run_can_be_cancelled(session: Session, bus: Bus) -> None:
    """It is held by its process, which ends it."""
    ids = asyncio.Queue[str]()

    @flow
    async def asker() -> None:
        from hark import runtime

        await ids.put(str(runtime.flow_run.id))
        await pause_flow_run()

    control = Control(bus)
    running = asyncio.ensure_future(asker(return_state=True))
    run_id: Any = await ids.get()
    await control.wait(run_id, lambda run: run.state_name == "Paused", timeout_s=60)
    assert (await control.cancel(run_id)).state_type is StateType.CANCELLING
    await asyncio.wait([running])
    run = await control.get(run_id)
    assert run is not None
    assert run.state_type is StateType.CANCELLED
    assert running.exception() is not None


async def test_a_paused_run_whose_worker_stops_is_suspended(stage: Stage) -> None:
    """What waited in its process waits without one, and goes on elsewhere when resumed."""
    stage.write(
        """
        from hark import pause_flow_run

        @flow
        async def asker():
            await asay("here")
            return await pause_flow_run(wait_for_input=int)
        """
    )
    await stage.deploy("asker")
    async with stage.working(processes=0):
        run = await stage.until(await stage.ask("asker"), lambda run: run.state_name == "Paused")
    run = await stage.until(run, is_suspended)
    async with stage.working(processes=0):
        await stage.control.resume(run.id, run_input={"value": 5})
        assert result_of(await stage.end(run)) == 5


async def test_pausing_and_suspending_need_a_run_that_can(session: Session) -> None:
    """Not in a task, not outside, and suspending only where a worker can take the run up."""

    @task
    async def in_task() -> None:
        await pause_flow_run()

    @flow
    async def through_a_task() -> None:
        await in_task()

    with pytest.raises(MissingContextError, match="Cannot pause task runs"):
        await through_a_task()
    with pytest.raises(MissingContextError, match="only be suspended from within a flow run"):
        await suspend_flow_run()

    @flow
    async def plain() -> None:
        await suspend_flow_run()

    with pytest.raises(RefusedError, match="without a deployment"):
        await plain()


@pytest.mark.parametrize("lane", ["loop", "process"])
async def test_a_subflow_that_was_stopped_ends_with_its_parent(stage: Stage, lane: str) -> None:
    """Its parent goes on without it, and nobody would take it up: it must not stand there as running for ever."""
    stage.write(
        """
        begun = []

        @flow
        async def grandchild():
            await asay("begun")
            begun.append(True)
            await asyncio.sleep(600)

        @flow
        async def child():
            await grandchild()

        @flow
        async def failing():
            async with asyncio.TaskGroup() as group:
                begun.clear()
                group.create_task(child())
                while not begun:
                    await asyncio.sleep(0.01)
                raise ValueError("no")

        @flow
        async def patient():
            begun.clear()
            running = asyncio.ensure_future(child())
            while not begun:
                await asyncio.sleep(0.01)
            try:
                await asyncio.wait_for(running, 0.01)
            except TimeoutError:
                return "went on"

        @flow
        def sync_child():
            say("begun")
            time.sleep(600)

        @flow(timeout_seconds=4)
        def hasty():
            sync_child()
        """
    )
    await stage.deploy("failing", "patient", "hasty", executor="process" if lane == "process" else "auto")
    async with stage.working():
        ends = {name: (await stage.run(name)).state_name for name in ("failing", "patient", "hasty")}
    assert ends == {"failing": "Failed", "patient": "Completed", "hasty": "TimedOut"}
    last: dict[str, str] = {}
    async with stage.bus.log.read(["hark.ev.flow-run.>"]) as batches:
        async for batch in batches:
            last.update((recorded.event.subject or "", recorded.event.type) for recorded in batch.records)
    assert Counter(last.values()) == {
        "flow-run.failed": 1, "flow-run.completed": 1, "flow-run.timed-out": 1, "flow-run.crashed": 5,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_subflow_that_is_cancelled_while_its_parent_is_suspended_stays_so(
    stage: Stage, kind: str
) -> None:
    """The parent, resumed, sees what it would have seen while it ran; a retry of the parent is one of the subflow."""
    wait = "await " if kind.startswith("async") else ""
    stage.write(
        f"""
        from hark import sleep

        @flow
        {kind} child():
            {wait}{"asay" if wait else "say"}("child")
            {wait}sleep("2h")

        @flow
        {kind} parent():
            {wait}child()
        """
    )
    await stage.deploy("parent")
    async with stage.working() as worker:
        run = await stage.until(
            await stage.ask("parent"), lambda now: now.attempt > 0 and not is_running(now)
        )
        await let_go(worker)
        await stage.control.suspend(run.id)
        found = [FlowRun.from_recorded(one) for one in await events(stage.bus, "hark.ev.flow-run.>")]
        (child,) = {one.id for one in found if one.parent == run.id}
        await stage.control.cancel(child)
        await stage.control.resume(run.id)
        ended = await stage.end(run)
        assert (ended.state_type, (await stage.control.present(child)).state_type) == ("FAILED", "CANCELLED")
        assert "RunCancelled" in str(ended.state_message)
        assert await stage.said() == {"child": 1}
        await stage.control.retry(run.id)
        await stage.hear("said.child", times=2)
