"""Tracked runs on a real broker: what stands in the log, and what a run that is taken up again does not do twice."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import anyio
import pytest
from hark import Abort, emit, flow, get_run_logger, runtime, tags, task
from hark.bus import Bus, Event
from hark.bus.log import Message
from hark.bus.session import Session
from hark.bus.subject import (
    STATE_HEADER,
    TASK_RUNS,
    completed_subject,
    flow_run_filter,
    subject_of,
    task_run_subject,
)
from hark.engine import AsyncTaskRunner, FlowRun, RunLog, RunRequest, execute
from hark.engine.runs.task_events import TURN
from hark.engine.states import Completed
from hark.errors import EventRefused, EventTooLarge, ParameterError
from hark.vocabulary import FlowRunId, StateType

from .conftest import events, words


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

    assert await asyncio.to_thread(parent) == 12
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
    assert awaiting["state"]["details"] == {"in_process": True, "retry": True}


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


async def test_of_very_many_upstream_runs_the_first_are_named(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that takes what a hundred thousand returned has events that the broker takes; they tell how many."""
    monkeypatch.setattr("hark.engine.runs.task_event_text.MOST_UPSTREAM", 22)

    @task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    @flow(task_runner=AsyncTaskRunner())
    async def reduces() -> int:
        return await total.submit([add.submit(n) for n in range(23)]) + await total.submit([add.submit(1)])

    assert await reduces() == sum(range(1, 24)) + 2
    found: list[Any] = [r.event.data for r in await events(bus, "hark.ev.task-run.>")]
    totals = [data for data in found if data["task"]["name"] == "total"]
    told = [(len(data["upstream"]), data.get("upstream_count")) for data in totals]
    assert set(told) == {(22, 23), (1, None)}
    assert all(data["tags"] == [] for data in totals)


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
    assert await asyncio.to_thread(makes_sync) == 200_000
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
        return str(runtime.flow_run.id)

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


async def test_a_plain_call_that_is_cancelled_while_it_begins_crashes(
    session: Session, bus: Bus, frozen: Callable[[], AbstractContextManager[None]]
) -> None:
    """It knows then only from the log how far it came; who cancelled it hears that it was."""

    @flow
    async def plain() -> None: ...

    await plain()
    with frozen():
        running = asyncio.create_task(plain())
        await anyio.wait_all_tasks_blocked()
        running.cancel()
        await anyio.wait_all_tasks_blocked()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await words(bus))[3:] == ["flow-run.pending", "flow-run.running", "flow-run.crashed"]


async def test_a_plain_call_that_is_cancelled_while_it_ends_has_ended(
    session: Session, bus: Bus, frozen: Callable[[], AbstractContextManager[None]]
) -> None:
    """Its end is in the log, and its hooks are told of it; who cancelled it hears that it was, not that the run is another's."""
    told: list[str] = []

    @flow(on_completion=[lambda flow, run, state: told.append(state.name)])
    async def plain() -> int:
        begun.set()
        await go_on.wait()
        return 7

    begun, go_on = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(plain())
    await begun.wait()
    with frozen():
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        running.cancel()
        await anyio.wait_all_tasks_blocked()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await words(bus))[2:] == ["flow-run.completed", "hark.hooks.ran"]
    assert told == ["Completed"]


async def test_a_transition_whose_answer_is_lost_is_written_once(
    session: Session, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored is found again, and the flow goes on as it would have."""
    store_nowait = bus.log.store_nowait

    def losing(messages: Sequence[Message], on_answers: Callable[[list[Any]], None]) -> bool:
        return store_nowait(messages, lambda answers: on_answers([None] * len(answers)))

    @flow
    async def plain() -> int:
        return 7

    monkeypatch.setattr(bus.log, "store_nowait", losing)
    assert await plain() == 7
    assert await words(bus) == ["flow-run.pending", "flow-run.running", "flow-run.completed"]
    monkeypatch.setattr(bus.log, "store_nowait", lambda messages, on_answers: 1 / 0)
    assert await plain() == 7
    assert (await words(bus))[3:] == ["flow-run.pending", "flow-run.running", "flow-run.completed"]


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

    await asyncio.to_thread(submits)
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
