"""A run that somebody else takes up on a real broker: what was finished is not done twice, and a zombie does not count."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hark import flow, runtime, task, transaction
from hark.bus import Bus
from hark.bus.session import Session
from hark.bus.subject import (
    flow_run_filter,
)
from hark.engine import AsyncTaskRunner, FlowRun, RunLog, RunRequest, execute, execute_sync
from hark.engine.runs.task_run import TaskRun
from hark.engine.states import Cancelling, Running, State
from hark.errors import ResultMissing, RunLost
from hark.vocabulary import FlowRunId, StateType

from ..conftest import PATIENCE_S
from .conftest import events, words


async def requested(bus: Bus, name: str = "f", **parameters: Any) -> FlowRun:
    """A run as the dispatcher finds it: scheduled."""
    return await RunLog(bus).request(RunRequest(flow_name=name, parameters=parameters, pool="default"))


async def taken_over(bus: Bus, run: FlowRun) -> FlowRun:
    """The run as the next worker claims it, its first one lost."""
    now = await RunLog(bus).get(run.id)
    assert now is not None
    return await RunLog(bus).move_exactly(now, Running(message="worker lost"), attempt=now.attempt + 1)


async def test_a_worker_executes_a_scheduled_run(session: Session, bus: Bus) -> None:
    """Async flows in the loop, sync ones in a thread of their own; parameters from the log; attempt 1."""

    @flow
    async def double(n: int) -> int:
        return n * 2

    @flow
    def triple(n: int) -> int:
        return n * 3 * runtime.flow_run.run_count

    for fn, result in ((double, 8), (triple, 12)):
        run = await requested(bus, fn.name, n="4")
        state = await execute(fn, run, session=session)
        assert state.result() == result
        assert await words(bus, flow_run_filter(run.id)) == [
            f"flow-run.{word}" for word in ("scheduled", "pending", "running", "completed")
        ]
    run = await requested(bus, "triple", n=5)
    assert (await asyncio.to_thread(lambda: execute_sync(triple, run, session=session))).result() == 15


async def test_calls_that_are_not_made_again_are_said(session: Session, bus: Bus) -> None:
    """Changed code is found out: the end names the recorded calls nobody asked for, and so does the run's log."""
    hang, reached = asyncio.Event(), asyncio.Event()
    is_new_code = False

    @task
    async def inner(n: int) -> int:
        return n

    @task
    async def step(n: int) -> int:
        return await inner(n)

    @task
    async def rest() -> str:
        if not is_new_code:
            reached.set()
            await hang.wait()
        return "done"

    @flow
    async def changes() -> str:
        for n in (2, 3) if is_new_code else (1, 2):
            await step(n)
        if not is_new_code:
            await inner(7)
        return await rest()

    run = await requested(bus, "changes")
    with anyio.fail_after(PATIENCE_S):
        first = asyncio.create_task(execute(changes, run, session=session))
        await reached.wait()
        is_new_code = True
        state = await execute(changes, await taken_over(bus, run), session=session)
        hang.set()
        with pytest.raises(RunLost):
            await first
    assert (state.result(), state.details["unasked"]) == ("done", {"inner": 1, "step": 1})
    ended = (await RunLog(bus).history(run.id))[-1].event.data
    assert ended["state"]["details"]["unasked"] == {"inner": 1, "step": 1}  # type: ignore[call-overload,index]
    said = [line.message for line in await bus.run_logs.read(run.id)]
    assert any("did not make: inner, step." in line for line in said)


async def test_a_run_taken_up_by_the_same_code_says_nothing_of_it(session: Session, bus: Bus) -> None:
    """Neither calls within calls nor generators nor transactions are missed: what is asked for once counts as asked."""
    hang, reached = asyncio.Event(), asyncio.Event()

    @task
    async def inner(n: int) -> int:
        return n

    @task
    async def outer(n: int) -> int:
        return await inner(n)

    @task
    def counts() -> Iterator[int]:
        yield from range(3)

    @task
    async def rest() -> str:
        if not reached.is_set():
            reached.set()
            await hang.wait()
        return "done"

    @flow
    async def below() -> int:
        return await inner(5)

    @flow
    async def same() -> str:
        await outer(1)
        list(counts())
        await below()
        with transaction(key="t"):
            await inner(2)
        await asyncio.gather(*(outer(n) for n in range(3)))
        return await rest()

    run = await requested(bus, "same")
    with anyio.fail_after(PATIENCE_S):
        first = asyncio.create_task(execute(same, run, session=session))
        await reached.wait()
        state = await execute(same, await taken_over(bus, run), session=session)
        hang.set()
        with pytest.raises(RunLost):
            await first
    assert (state.result(), "unasked" in state.details) == ("done", False)


async def test_finished_calls_do_not_run_again(session: Session, bus: Bus) -> None:
    """A run whose worker was lost goes on after its last finished task: calls, submits, maps, gathers, subflows."""
    ran: Counter[str] = Counter()
    hang = asyncio.Event()
    reached = asyncio.Event()

    @task
    async def step(name: str) -> str:
        ran[name] += 1
        return f"{name}{ran[name]}"

    @task
    def step_sync(name: str) -> str:
        ran[name] += 1
        return f"{name}{ran[name]}"

    @task
    async def hangs() -> str:
        ran["hangs"] += 1
        if ran["hangs"] == 1:
            reached.set()
            await hang.wait()
        return "hung"

    @flow
    async def child(name: str) -> str:
        ran["child " + name] += 1
        return await step("in child " + name)

    @flow(task_runner=AsyncTaskRunner())
    async def long() -> list[Any]:
        found: list[Any] = [await step("a"), await step("a"), step_sync("b")]
        found += await asyncio.gather(step("c"), step("d"), step("c"))
        found += [await step.submit("e"), await step_sync.submit("f")]
        found += await step.map(["g", "h"])
        found.append(await step(step.submit("i")))  # type: ignore[call-overload]
        found.append(await child("x"))
        found.append(await hangs())
        found.append(await step("z"))
        return found

    run = await requested(bus)
    first = asyncio.create_task(execute(long, run, session=session))
    await reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await words(bus, flow_run_filter(run.id)))[-1] == "flow-run.running"
    before = dict(ran)
    run = await taken_over(bus, run)
    state = await execute(long, run, session=session)
    found = state.result()
    assert found == [
        "a1", "a2", "b1", "c1", "d1", "c2", "e1", "f1", "g1", "h1", "i11", "in child x1", "hung", "z1",
    ]  # fmt: skip
    assert ran == {**before, "hangs": 2, "z": 1}
    assert (await words(bus, flow_run_filter(run.id)))[-2:] == ["flow-run.running", "flow-run.completed"]


async def test_a_child_that_was_lost_with_its_parent_is_taken_up(session: Session, bus: Bus) -> None:
    """The subflow's run is the same one, one attempt on, and its finished tasks stay finished."""
    ran: Counter[str] = Counter()
    reached = asyncio.Event()

    @task
    async def step(name: str) -> str:
        ran[name] += 1
        return name

    @flow
    async def child() -> str:
        await step("in child")
        if ran["again"] == 0:
            reached.set()
            await asyncio.sleep(30)
        return str(runtime.flow_run.id)

    @flow
    async def parent() -> str:
        await step("in parent")
        return await child()

    run = await requested(bus)
    first = asyncio.create_task(execute(parent, run, session=session))
    await reached.wait()
    first.cancel()
    await asyncio.wait([first])
    ran["again"] = 1
    run = await taken_over(bus, run)
    child_id = FlowRunId((await execute(parent, run, session=session)).result())
    assert ran == {"in child": 1, "in parent": 1, "again": 1}
    found = [FlowRun.from_recorded(r) for r in await events(bus, flow_run_filter(child_id))]
    assert [(r.state_type, r.attempt) for r in found] == [
        ("PENDING", 1), ("RUNNING", 1), ("RUNNING", 2), ("COMPLETED", 2),
    ]  # fmt: skip


async def test_a_retried_parent_keeps_what_its_children_came_to(session: Session, bus: Bus) -> None:
    """A child that completed is not run again; one that failed is, in the same run, one attempt on."""
    ran: Counter[str] = Counter()

    @flow
    async def good() -> list[int]:
        ran["good"] += 1
        return [ran["good"]]

    @flow(persist_result=False)
    async def unkept() -> int:
        ran["unkept"] += 1
        return 1

    @flow
    async def bad() -> str:
        ran["bad"] += 1
        if ran["bad"] == 1:
            raise ValueError("once")
        return str(runtime.flow_run.id)

    @flow(retries=1)
    async def parent() -> Any:
        found = await good()
        return found, await bad()

    @flow(retries=1)
    async def careless() -> None:
        await unkept()
        raise ValueError("again")

    found, child_id = await parent()
    assert found == [1]
    assert ran == {"good": 1, "bad": 2}
    child = [FlowRun.from_recorded(r) for r in await events(bus, flow_run_filter(FlowRunId(child_id)))]
    assert [(r.state_type, r.attempt) for r in child] == [
        ("PENDING", 1), ("RUNNING", 1), ("FAILED", 1), ("SCHEDULED", 1), ("PENDING", 2), ("RUNNING", 2), ("COMPLETED", 2),
    ]  # fmt: skip
    with pytest.raises(ResultMissing, match="persist_result=False"):
        await careless()
    assert ran["unkept"] == 1


async def test_what_a_zombie_finishes_does_not_count(session: Session, bus: Bus) -> None:
    """A worker that lost its run writes no end, and what it finished after the loss is run again."""
    ran: Counter[str] = Counter()
    reached, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def step(name: str) -> str:
        ran[name] += 1
        return f"{name}{ran[name]}"

    @flow
    async def long() -> list[str]:
        found = [await step("before")]
        if not go_on.is_set():
            reached.set()
            await go_on.wait()
        return [*found, await step("after")]

    run = await requested(bus)
    zombie = asyncio.create_task(execute(long, run, session=session))
    await reached.wait()
    run = await taken_over(bus, run)
    go_on.set()
    with pytest.raises(RunLost):
        await zombie
    assert ran == {"before": 1, "after": 1}
    state = await execute(long, run, session=session)
    assert state.result() == ["before1", "after2"]
    final = [word for word in await words(bus, flow_run_filter(run.id)) if word.endswith("completed")]
    assert len(final) == 1


async def test_a_cancelled_zombie_stays_silent(session: Session, bus: Bus) -> None:
    """Stopped after the loss, it writes nothing at all."""
    reached = asyncio.Event()

    @flow
    async def waits() -> None:
        reached.set()
        await asyncio.sleep(30)

    run = await requested(bus)
    zombie = asyncio.create_task(execute(waits, run, session=session))
    await reached.wait()
    await taken_over(bus, run)
    before = await bus.log.head()
    zombie.cancel()
    with pytest.raises(RunLost):
        await zombie
    assert await bus.log.head() == before


async def test_what_a_lost_run_had_still_to_send_is_dropped(session: Session, bus: Bus) -> None:
    """A result that is being stored is given up, and nobody waits for it."""
    from hark.engine.calls.standalone import standalone_events
    from hark.engine.runs.task_events import TaskEvents

    stuck, begun = asyncio.Event(), asyncio.Event()

    class Stuck(type(bus.objects)):  # type: ignore[misc]
        async def put(self, *_: object, **__: object) -> None:
            begun.set()
            await stuck.wait()

    @task
    def big() -> None: ...

    taken: list[TaskEvents] = [standalone_events(session, "r1", inline_bytes=10)]
    before, bus.objects = bus.objects, Stuck.__new__(Stuck)
    try:
        run = TaskRun("t1", "big", big, flow_run_id=None, parameters={}, tags=frozenset(), upstream=())
        taken[0].write(run, StateType.COMPLETED, "Completed", None, taken[0].record("x" * 100_000))
        await begun.wait()
        waits = asyncio.ensure_future(taken[0].settle())
        taken[0].silence()
        await asyncio.wait_for(waits, 60)
    finally:
        bus.objects = before
    taken[0].write(run, StateType.COMPLETED, "Completed")
    assert await events(bus, "hark.ev.task-run.>") == []


async def test_a_cancelled_run_ends_cancelled_with_its_children(session: Session, bus: Bus) -> None:
    """Hooks are told, children first; the interruption goes on up to the worker."""
    reached = asyncio.Event()
    told: list[str] = []

    def hook(_flow: Any, run: FlowRun, state: State) -> None:
        told.append(run.flow_name)

    @flow(on_cancellation=[hook])
    async def child() -> None:
        reached.set()
        await asyncio.sleep(30)

    @flow(on_cancellation=[hook])
    async def parent() -> None:
        await child()

    run = await requested(bus, "parent")
    running = asyncio.create_task(execute(parent, run, session=session))
    await reached.wait()
    now = await RunLog(bus).get(run.id)
    assert now is not None
    await RunLog(bus).move_exactly(now, Cancelling(message="not wanted"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert told == ["child", "parent"]
    last = {r.flow_name: r for r in map(FlowRun.from_recorded, await events(bus, "hark.ev.flow-run.>"))}
    assert {name: (r.state_type, r.state_message) for name, r in last.items()} == {
        "child": (StateType.CANCELLED, "its parent was cancelled"),
        "parent": (StateType.CANCELLED, "not wanted"),
    }


async def test_a_result_that_was_not_recorded_is_missed_when_needed(session: Session, bus: Bus) -> None:
    """The run goes on with a lock as its value; resuming says what is missing. `persist_result=False` runs again."""
    ran: Counter[str] = Counter()
    reached = asyncio.Event()

    @task
    async def lock() -> Any:
        ran["lock"] += 1
        return threading.Lock()

    @task(persist_result=False)
    async def unkept() -> int:
        ran["unkept"] += 1
        return 1

    @flow
    async def uses() -> int:
        assert await unkept() == 1
        held = await lock()
        with held:
            if ran["unkept"] == 1:
                reached.set()
                await asyncio.sleep(30)
            return 1

    run = await requested(bus)
    first = asyncio.create_task(execute(uses, run, session=session))
    await reached.wait()
    first.cancel()
    await asyncio.wait([first])
    state = await execute(uses, await taken_over(bus, run), session=session)
    assert ran == {"lock": 1, "unkept": 2}
    with pytest.raises(ResultMissing, match="cannot be pickled"):
        state.result()
