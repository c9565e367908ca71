"""Tracked runs on a real broker: what stands in the log, and what a run that is taken up again does not do twice."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
from hark import Abort, emit, flow, get_run_logger, runtime, tags, task
from hark.bus import Bus, Event, Recorded
from hark.bus.session import Session, use_session
from hark.bus.subject import (
    STATE_HEADER,
    TASK_RUNS,
    completed_subject,
    flow_run_filter,
    subject_of,
    task_run_subject,
)
from hark.engine import AsyncTaskRunner, FlowRun, FlowRunContext, RunLog, RunRequest, execute, execute_sync
from hark.engine.states import Cancelling, Completed, Running, State
from hark.engine.task_run import TaskRun
from hark.engine.tracking import TURN
from hark.errors import EventRefused, EventTooLarge, ParameterError, ResultMissing, RunLost
from hark.vocabulary import FlowRunId, StateType

T = TypeVar("T")


@pytest.fixture
async def session(bus: Bus) -> AsyncIterator[Session]:
    """The test's own loop as the session of this process, as in a worker."""
    with use_session(bus) as found:
        yield found


async def events(bus: Bus, filter_: str = "hark.ev.>") -> list[Recorded]:
    """Everything in the log on a filter, once the publisher has nothing waiting."""
    await bus.publisher.barrier()
    found: list[Recorded] = []
    async with bus.log.read([filter_]) as batches:
        async for batch in batches:
            found.extend(batch.records)
    return found


async def words(bus: Bus, filter_: str = "hark.ev.>") -> list[str]:
    """The types of those events, in order."""
    return [record.event.type for record in await events(bus, filter_)]


async def in_thread(fn: Callable[[], T]) -> T:
    """Call from a thread that is not the session's, as a program of a user's does."""
    return await asyncio.to_thread(fn)


def run_id() -> FlowRunId:
    """The id of the flow run the code is in."""
    context = FlowRunContext.get()
    assert context is not None
    return context.flow_run.id


@task
async def add(a: int, b: int = 1) -> int:
    return a + b


@task
def add_sync(a: int, b: int = 1) -> int:
    return a + b


async def test_a_tracked_run_leaves_its_transitions(session: Session, bus: Bus) -> None:
    """Pending, running, completed, of the flow and of each task, in order, each a CloudEvent with its subject."""

    @flow(tags=["f"])
    async def adds(n: int) -> int:
        with tags("block"):
            return await add(n) + await add(n)

    assert await adds("4") == 10  # type: ignore[call-overload]
    found = await events(bus)
    assert [r.event.type for r in found] == [
        "flow-run.pending", "flow-run.running", *["task-run.pending", "task-run.running", "task-run.completed"] * 2,
        "flow-run.completed",
    ]  # fmt: skip
    for record in found:
        event = Event.from_json(record.raw)
        assert event.to_json() == Event.from_json(event.to_json()).to_json()
        assert subject_of(event) == record.subject
        assert event.source == "/hark/engine"
        assert isinstance(event.data, dict)
        if event.type.startswith("task-run."):
            assert record.headers[STATE_HEADER] == event.type.partition(".")[2]
    flow_event, last_task = found[-1].event, found[-2].event
    data: Any = flow_event.data
    assert data["result"] == {"inline": 10, "format": "json"}
    assert (data["flow"]["name"], data["run"]["attempt"], data["parameters"]) == ("adds", 1, {"n": "4"})
    task_data: Any = last_task.data
    run = FlowRun.from_recorded(found[-1])
    assert task_data["flow_run"] == {"id": run.id, "name": run.name, "attempt": 1}
    assert task_data["result"] == {"inline": 5, "format": "json"}
    assert task_data["state"] == {"type": "COMPLETED", "name": "Completed", "message": None}
    assert (task_data["previous"], task_data["tags"], task_data["run"]["index"]) == (
        "RUNNING",
        ["block", "f"],
        1,
    )
    assert task_data["run"]["duration_s"] >= 0
    assert task_data["call"].startswith("add-1-")
    assert last_task.correlationid == flow_event.correlationid
    assert len({r.event.id for r in found}) == len(found)


async def test_sync_flows_are_tracked_alike(session: Session, bus: Bus) -> None:
    """From a thread: calls, submits, maps and subflows."""

    @flow
    def child(n: int) -> int:
        return add_sync(n)

    @flow
    def parent() -> int:
        return add_sync(1) + add_sync.submit(2).result() + sum(add_sync.map([1, 2]).result()) + child(1)

    assert await in_thread(parent) == 12
    found = Counter(await words(bus))
    assert found == {
        **{f"flow-run.{word}": 2 for word in ("pending", "running", "completed")},
        **{f"task-run.{word}": 5 for word in ("pending", "running", "completed")},
    }
    runs = {run.flow_name: run for run in map(FlowRun.from_recorded, await events(bus, "hark.ev.flow-run.>"))}
    assert runs["child"].parent == runs["parent"].id
    assert runs["child"].correlationid == runs["parent"].id


async def test_failures_and_retries_are_told(session: Session, bus: Bus) -> None:
    """Each try of a task and of a flow leaves its words."""
    tries: list[int] = []

    @task(retries=1)
    async def flaky() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")

    @flow(retries=1)
    async def fails() -> None:
        await flaky()
        raise KeyError("always")

    state = await fails(return_state=True)
    assert state.is_failed()
    assert await words(bus) == [
        "flow-run.pending", "flow-run.running", "task-run.pending", "task-run.running", "task-run.awaiting-retry",
        "task-run.retrying", "task-run.completed", "flow-run.awaiting-retry", "flow-run.retrying", "flow-run.failed",
    ]  # fmt: skip
    assert len(tries) == 2
    found = await events(bus, "hark.ev.flow-run.>")
    assert [FlowRun.from_recorded(r).attempt for r in found] == [1, 1, 1, 2, 2]
    awaiting: Any = found[2].event.data
    assert awaiting["state"]["details"] == {"in_process": True}


async def test_bad_parameters_never_run(session: Session, bus: Bus) -> None:
    """Pending, then failed."""

    @flow
    async def typed(n: int) -> None: ...

    with pytest.raises(ParameterError):
        await typed("x")  # type: ignore[call-overload]
    assert await words(bus) == ["flow-run.pending", "flow-run.failed"]


async def test_a_task_that_did_not_run_says_so(session: Session, bus: Bus) -> None:
    """Its last event is pending, named NotReady, with the reason and what it waited for."""

    @task
    async def broken() -> int:
        raise ValueError("x")

    @flow(task_runner=AsyncTaskRunner())
    async def waits() -> Any:
        return add.submit(broken.submit())

    assert (await waits(return_state=True)).is_failed()
    found: list[Any] = [r.event.data for r in await events(bus, "hark.ev.task-run.>")]
    last = next(data for data in reversed(found) if data["task"]["name"] == "add")
    assert last["state"]["name"] == "NotReady"
    assert "did not run" in last["state"]["message"]
    assert len(last["upstream"]) == 1


async def test_large_results_go_to_the_object_store(session: Session, bus: Bus) -> None:
    """From async, sync and submitted tasks; the event names object, size and hash, and the flow's own too."""

    @task
    async def large() -> str:
        return "x" * 100_000

    @task
    def large_sync(n: int) -> str:
        return "y" * 100_000

    @flow
    async def makes() -> str:
        large_sync(0)
        return await large()

    @flow
    def makes_sync() -> int:
        return len(large_sync(1)) + len(large_sync.submit(2).result())

    assert len(await makes()) == 100_000
    assert await in_thread(makes_sync) == 200_000
    results: list[Any] = [
        r.event.data["result"]  # type: ignore[index,call-overload]
        for r in await events(bus)
        if r.event.type.endswith("completed")
    ]
    stored = [result for result in results if "object" in result]
    assert len(stored) == 5
    for result in stored:
        assert len(await bus.objects.get(result["object"])) == result["size"] == 100_002


async def test_a_refused_event_fails_the_run_it_belongs_to_and_no_other(session: Session, bus: Bus) -> None:
    """Two runs at once in one worker: the one whose task event was refused does not complete; the other one does."""
    info = await bus.connection.api("STREAM.INFO.HARK")
    assert isinstance(info["config"], dict)
    await bus.connection.api("STREAM.UPDATE.HARK", {**info["config"], "max_msg_size": 20_000})
    bad_is_made, good_is_over = asyncio.Event(), asyncio.Event()

    @task
    async def large() -> str:
        return "x" * 30_000

    @flow
    async def bad() -> None:
        await large()
        bad_is_made.set()
        await good_is_over.wait()

    @flow
    async def good() -> int:
        await bad_is_made.wait()
        return await add(1)

    failing = asyncio.create_task(bad(return_state=True))
    assert (await good(return_state=True)).is_completed()
    good_is_over.set()
    with pytest.raises((EventTooLarge, EventRefused)):
        await failing
    ended = [FlowRun.from_recorded(r) for r in await events(bus, "hark.ev.flow-run.>")]
    assert {run.flow_name for run in ended if run.state_type is StateType.COMPLETED} == {"good"}


async def test_what_breaks_a_late_event_is_raised_and_holds_nobody_up(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that is no error of Hark's ends the run, rather than the loop waiting for it for ever."""

    async def broken(name: str, data: bytes) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(bus.objects, "put", broken)

    @task
    async def large() -> str:
        return "x" * 100_000

    @flow
    async def makes() -> None:
        await large()

    async with asyncio.timeout(60):
        with pytest.raises(ZeroDivisionError):
            await makes()


async def test_tasks_outside_flows_are_tracked_under_their_own_id(session: Session, bus: Bus) -> None:
    """Three events each, under the task run's own id."""
    assert await add(1) == 2
    found = await events(bus, "hark.ev.task-run.>")
    assert [r.event.type for r in found] == ["task-run.pending", "task-run.running", "task-run.completed"]
    data: Any = found[0].event.data
    run_id = data["run"]["id"]
    assert [r.subject for r in found] == [task_run_subject(run_id)] * 2 + [completed_subject(run_id)]
    assert [r.subject for r in found] == [subject_of(r.event) for r in found]


async def test_logs_go_to_the_log_stream(session: Session, bus: Bus) -> None:
    """Of flows and tasks, with level, logger, extra fields; prints too; and they stay in standard logging."""

    @task
    async def talks() -> None:
        get_run_logger().warning("careful", extra={"size": 3})

    @flow(log_prints=True)
    async def speaks() -> str:
        print("hello")
        await talks()
        return run_id()

    id_ = FlowRunId(await speaks())
    await bus.publisher.barrier()
    lines = await bus.run_logs.read(id_)
    assert [(line.message, line.level, line.logger) for line in lines] == [
        ("hello", logging.INFO, "hark.flow_runs"),
        ("careful", logging.WARNING, "hark.task_runs"),
    ]
    assert lines[0].task_run_id is None
    assert lines[1].task_run_id is not None
    assert lines[1].extra == {"size": 3}


async def test_what_a_flow_emits_belongs_to_its_story(session: Session, bus: Bus) -> None:
    """Correlation is the run's, its RUNNING event the cause; depth grows by one from what led to the run."""
    trigger = Event(type="order.paid", source="/shop", causaldepth=2, correlationid="story")

    @flow
    async def emits() -> None:
        await emit("order.shipped", data={"n": 1})

    run = await RunLog(bus).request(RunRequest(flow_name="emits", trigger_event=trigger))
    await execute(emits, run, session=session)
    [shipped] = await events(bus, "hark.ev.order.shipped")
    assert shipped.event.correlationid == "story"
    assert shipped.event.causaldepth > 3 - 1
    running = [r for r in await events(bus, flow_run_filter(run.id)) if r.event.type == "flow-run.running"]
    assert shipped.event.causationid == running[0].event.id
    assert running[0].event.causationid == trigger.id


# --- executing for a worker, and resuming -------------------------------------------------------------


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
    assert (await in_thread(lambda: execute_sync(triple, run, session=session))).result() == 15


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
        return run_id()

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
        return run_id()

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
    from hark.engine.standalone import standalone_events
    from hark.engine.tracking import TaskEvents

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


async def test_a_plain_call_that_is_cancelled_crashes(session: Session, bus: Bus) -> None:
    """Nobody else will take it up, so that is its end; its task too."""
    reached = asyncio.Event()

    @task
    async def waits() -> None:
        reached.set()
        await asyncio.sleep(30)

    @flow
    async def plain() -> None:
        await waits()

    running = asyncio.create_task(plain())
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await words(bus))[-2:] == ["task-run.crashed", "flow-run.crashed"]


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


async def test_a_sync_flow_inside_an_async_one_is_tracked(session: Session, bus: Bus) -> None:
    """Although it holds the loop that the session lives on."""

    @flow
    def inner(n: int) -> int:
        return add_sync(n)

    @flow
    async def outer() -> int:
        return inner(1) + inner(1)

    assert await outer() == 4
    found = Counter(await words(bus))
    assert (found["flow-run.completed"], found["task-run.completed"]) == (3, 2)


async def test_many_tasks_in_a_row_do_not_fill_the_buffer(session: Session, bus: Bus) -> None:
    """Tasks that never wait for anything still let the loop send their events."""

    @flow
    async def many(n: int) -> int:
        for i in range(n):
            await add(i)
        return n

    waiting: list[int] = []
    sampler = asyncio.create_task(sample(bus, waiting))
    await many(3000)
    sampler.cancel()
    assert max(waiting, default=0) < 6000
    assert Counter(await words(bus))["task-run.completed"] == 3000


async def sample(bus: Bus, into: list[int]) -> None:
    while True:
        into.append(bus.publisher.waiting)
        await asyncio.sleep(0)


async def test_tasks_that_never_wait_let_the_loop_turn(session: Session, bus: Bus) -> None:
    """Their events go out while they run, and whatever else the loop has to do is done meanwhile."""
    longest = 0

    @flow
    async def many(n: int) -> None:
        nonlocal longest
        for i in range(n):
            await add(i)
            longest = max(longest, bus.publisher.untaken)

    await many(1000)
    assert 0 < longest <= TURN + 3
    assert len(await events(bus, TASK_RUNS)) == 3000


async def test_the_end_is_stored_after_everything_else(session: Session, bus: Bus) -> None:
    """A run that is over has all its task events in the log before its last transition."""

    @flow
    def submits() -> Any:
        return add_sync.map(list(range(50)))

    await in_thread(submits)
    found = await words(bus)
    assert found[-1] == "flow-run.completed"
    assert len(found) == 3 + 150


async def test_the_choice_of_an_end_is_recorded(session: Session, bus: Bus) -> None:
    """A custom name keeps its type's word; Abort is not retried."""

    @flow
    async def skipped() -> Any:
        return Completed(name="Enough")

    @flow(retries=3)
    async def aborted() -> None:
        raise Abort("no")

    await skipped()
    await aborted(return_state=True)
    found: list[Any] = [
        r.event for r in await events(bus) if r.event.type in ("flow-run.completed", "flow-run.failed")
    ]
    assert [(e.type, e.data["state"]["name"]) for e in found] == [
        ("flow-run.completed", "Enough"),
        ("flow-run.failed", "Failed"),
    ]
