"""Retry delays of tasks that hold no worker; on a real broker, with a dispatcher and a worker."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hark.config import EngineConfig
from hark.engine.runs.run import FlowRun
from hark.vocabulary import StateType

from .conftest import hear_task, task_ends

if TYPE_CHECKING:
    from hark.engine.workers.worker import Worker

    from .conftest import Stage

QUICK = EngineConfig(suspend_after_s=0.2)
QUICKER = EngineConfig(suspend_after_s=0.02)
IN_PLACE = (
    "in place: {}. The run stays in memory. It has given its place in the worker to others until it goes on"
)
LEFT = ["scheduled", "pending", "running", "awaiting-retry", "pending", "running", "completed"]
STAYED = ["scheduled", "pending", "running", "completed"]


def is_away(run: FlowRun) -> bool:
    return run.state_name == "AwaitingRetry"


def has_left(states: list[str]) -> bool:
    """Whether a run was away; where several tasks wait, as often as it takes for the last of them to be due."""
    return states[:4] == LEFT[:4] and states[-1] == "completed"


async def let_go(worker: Worker) -> None:
    """Wait until the worker has nothing in its hands."""
    with anyio.fail_after(30):
        while worker.held:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.01)


def result_of(run: FlowRun) -> Any:
    assert run.state_type is StateType.COMPLETED, (run.state_name, run.state_message)
    return run.state.result()


FLOWS = """
@task
{kind} step(word):
    {wait}{say}(word)
    return word

@task(retries=2, retry_delay_seconds=0.6)
{kind} flaky(word):
    from hark import runtime
    count = runtime.task_run.run_count
    {wait}{say}(f"{{word}}-{{count}}")
    if count < 2:
        raise RuntimeError("not yet")
    return f"{{word}}{{count}}"

@flow
{kind} direct():
    a = {wait}step("before")
    b = {wait}flaky("try")
    return a + b

@flow
{kind} submitted():
    a = step.submit("one")
    futures = flaky.map(["x", "y"])
    after = step.submit(futures[0])
    return [{wait}{result}(future) for future in (a, *futures, after)]

@flow
{kind} unasked():
    futures = flaky.map(["x", "y"])
    return futures
"""


def flows(kind: str) -> str:
    is_async = kind == "async def"
    text = FLOWS.format(
        kind=kind, wait="await " if is_async else "", say="asay" if is_async else "say", result="result_of",
    )  # fmt: skip
    return f"""
{"async def result_of(future): return await future" if is_async else "def result_of(future): return future.result()"}
{text}
"""


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_retry_delay_of_a_call_holds_no_worker(stage: Stage, kind: str) -> None:
    """The run waits as SCHEDULED, named AwaitingRetry, and comes back for the next try; what finished is not repeated."""
    stage.write(flows(kind))
    await stage.deploy("direct")
    async with stage.working(engine=QUICK) as worker:
        run = await stage.until(await stage.ask("direct"), is_away)
        assert run.state_type is StateType.SCHEDULED
        await let_go(worker)
        assert result_of(await stage.end(run)) == "beforetry2"
    assert await stage.said() == {"before": 1, "try-1": 1, "try-2": 1}
    assert await stage.states(run) == LEFT


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("name", ["submitted", "unasked"])
async def test_submitted_tasks_leave_when_all_that_is_left_waits_for_retries(
    stage: Stage, kind: str, name: str
) -> None:
    """Whether the flow asks for their results or ends; what waits for one of them begins when it has completed."""
    stage.write(flows(kind))
    await stage.deploy(name)
    async with stage.working(engine=QUICK):
        run = await stage.run(name)
        if name == "submitted":
            await hear_task(stage.bus, run, "cancelled")
    if name == "submitted":
        assert result_of(run) == ["one", "x2", "y2", "x2"]
        # Those between two tries go on as what they were; the one that had not begun does not.
        again = ("CANCELLED", "It had not begun; attempt 2 of its flow run makes the call again")
        assert await task_ends(stage.bus, run) == {("COMPLETED", None): 4, again: 1}
    assert run.state_type is StateType.COMPLETED
    said = await stage.said()
    assert {word: count for word, count in said.items() if count != 1} == {}
    assert {"x-1", "x-2", "y-1", "y-2"} <= set(said)
    assert has_left(await stage.states(run))


async def test_calls_of_a_gather_leave_together(stage: Stage) -> None:
    """Once the last of them waits; none of them is tried twice at once."""
    stage.write(
        flows("async def")
        + """
@flow
async def gathered():
    return await asyncio.gather(flaky("a"), step("s"), flaky("b"))
"""
    )
    await stage.deploy("gathered")
    async with stage.working(engine=QUICK):
        run = await stage.run("gathered")
    assert result_of(run) == ["a2", "s", "b2"]
    assert await stage.said() == {"a-1": 1, "a-2": 1, "b-1": 1, "b-2": 1, "s": 1}
    assert has_left(await stage.states(run))


NESTED = """
@flow
{kind} innermost(word):
    return {wait}flaky(word)

@flow
{kind} inner(word):
    {wait}step("in-" + word)
    return {wait}innermost(word)

@flow
{kind} nested():
    {wait}step("before")
    return {both}
"""


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_retry_delay_in_subflows_holds_no_worker(stage: Stage, kind: str) -> None:
    """However deep; async subflows that run side by side leave together. Each goes on where it was."""
    is_async = kind == "async def"
    both = 'await asyncio.gather(inner("a"), inner("b"))' if is_async else '[inner("a"), inner("b")]'
    stage.write(flows(kind) + NESTED.format(kind=kind, wait="await " if is_async else "", both=both))
    await stage.deploy("nested")
    async with stage.working(engine=QUICK) as worker:
        run = await stage.until(await stage.ask("nested"), is_away)
        await let_go(worker)
        run = await stage.end(run)
    assert result_of(run) == ["a2", "b2"]
    words = ["before", "in-a", "in-b", "a-1", "a-2", "b-1", "b-2"]
    assert await stage.said() == dict.fromkeys(words, 1)
    assert has_left(await stage.states(run))


@pytest.mark.parametrize("how", ["submit", "gather", "subflow", "task"])
async def test_a_run_in_which_something_else_goes_on_stays(stage: Stage, how: str) -> None:
    """The retry is made in place while another task, a subflow or the task around it is running."""
    stage.write(
        flows("async def")
        + """
@task
async def outlasts(marker):
    while not os.path.exists(marker):
        await asyncio.sleep(0.01)
    return "end"

@task(retries=1, retry_delay_seconds=0.6)
async def marks(marker):
    from hark import runtime
    if runtime.task_run.run_count < 2:
        raise RuntimeError("not yet")
    open(marker, "w").close()
    return "marked"

@flow
async def inner(marker):
    return await outlasts(marker)

@task
async def around(marker):
    return await marks(marker)

@flow
async def stays(marker, how):
    if how == "submit":
        futures = [outlasts.submit(marker), marks.submit(marker)]
        return [await future for future in futures]
    if how == "gather":
        return await asyncio.gather(outlasts(marker), marks(marker))
    if how == "subflow":
        return await asyncio.gather(inner(marker), marks(marker))
    return ["end", await around(marker)]
"""
    )
    await stage.deploy("stays")
    async with stage.working(engine=QUICK):
        run = await stage.run("stays", parameters={"marker": str(stage.root / "marker"), "how": how})
    assert result_of(run) == ["end", "marked"]
    assert await stage.states(run) == STAYED


async def test_retries_that_are_used_up_fail_the_run(stage: Stage) -> None:
    """However often it was away in between, a task has as many tries as it was given."""
    stage.write(
        """
        @task(retries=2, retry_delay_seconds=0.3)
        def never():
            say("tried")
            raise ValueError("never")

        @flow
        def fails():
            never()
        """
    )
    await stage.deploy("fails")
    async with stage.working(engine=QUICK):
        run = await stage.run("fails")
    assert run.state_type is StateType.FAILED
    assert run.state_message is not None
    assert "never" in run.state_message
    assert await stage.said() == {"tried": 3}
    assert (await stage.states(run)).count("awaiting-retry") == 2


async def test_a_run_that_waits_for_a_retry_can_be_cancelled(stage: Stage) -> None:
    """Nobody holds it, so it is over at once."""
    stage.write(flows("def").replace("retry_delay_seconds=0.6", "retry_delay_seconds=600"))
    await stage.deploy("direct")
    async with stage.working(engine=QUICK) as worker:
        run = await stage.until(await stage.ask("direct"), is_away)
        await let_go(worker)
        assert (await stage.control.cancel(run.id)).state_type is StateType.CANCELLED


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_retry_delay_of_a_flow_holds_no_worker(stage: Stage, kind: str) -> None:
    """It is tried as often as it was said, by whoever takes the run; what has finished is not repeated."""
    wait, say = ("await ", "asay") if kind == "async def" else ("", "say")
    stage.write(
        flows(kind)
        + f"""
@flow(retries=2, retry_delay_seconds=0.6)
{kind} fails():
    {wait}step("once")
    {wait}{say}("tried")
    raise ValueError("no")
"""
    )
    await stage.deploy("fails")
    async with stage.working(engine=QUICK) as worker:
        run = await stage.until(await stage.ask("fails"), is_away)
        await let_go(worker)
        run = await stage.end(run)
    assert (run.state_type, run.attempt) == (StateType.FAILED, 3)
    assert await stage.said() == {"once": 1, "tried": 3}
    away = ["awaiting-retry", "pending", "running"]
    assert await stage.states(run) == ["scheduled", "pending", "running", *away, *away, "failed"]


RETRIED = """
@flow(retries=2, retry_delay_seconds={delay})
{kind} retried(word):
    from hark import runtime
    {wait}step("in-" + word)
    count = runtime.flow_run.run_count
    {wait}{say}(f"{{word}}-{{count}}")
    if count < 3:
        raise RuntimeError("not yet")
    return f"{{word}}{{count}}"

@flow
{kind} middle(word):
    return {wait}retried(word)

@flow
{kind} outer():
    {wait}step("before")
    return {both}
"""


def retried(kind: str, *, delay: float = 0.6) -> str:
    is_async = kind == "async def"
    both = 'await asyncio.gather(middle("a"), retried("b"))' if is_async else '[middle("a"), retried("b")]'
    words = {"kind": kind, "wait": "await " if is_async else "", "say": "asay" if is_async else "say"}
    return flows(kind) + RETRIED.format(**words, both=both, delay=delay)


async def subflows_of(stage: Stage, run: FlowRun) -> list[FlowRun]:
    """Return the subflows of a run, however deep, as they are now."""
    runs: dict[str | None, FlowRun] = {run.id: run}
    async with stage.bus.log.read(["hark.ev.flow-run.>"]) as batches:
        async for batch in batches:
            for one in map(FlowRun.from_recorded, batch.records):
                if one.parent in runs:
                    runs[one.id] = one
    return list(runs.values())[1:]


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_retry_delay_of_a_subflow_holds_no_worker(stage: Stage, kind: str) -> None:
    """It has as many tries as it was given, none of them before its time, and what it has finished is not repeated."""
    stage.write(retried(kind))
    await stage.deploy("outer")
    async with stage.working(engine=QUICK) as worker:
        run = await stage.until(await stage.ask("outer"), is_away)
        assert run.state_message in ("1 subflow will be tried again", "2 subflows will be tried again")
        await let_go(worker)
        run = await stage.end(run)
    assert result_of(run) == ["a3", "b3"]
    tries = [f"{word}-{count}" for word in "ab" for count in (1, 2, 3)]
    assert await stage.said() == dict.fromkeys(["before", "in-a", "in-b", *tries], 1)
    assert has_left(await stage.states(run))
    for one in await subflows_of(stage, run):
        assert one.state_type is StateType.COMPLETED
        history = [FlowRun.from_recorded(recorded) for recorded in await stage.control.runs.history(one.id)]
        for before, after in pairwise(history):
            if after.state_type is StateType.RUNNING and one.flow_name == "retried" and before.attempt > 1:
                assert before.scheduled_at is not None
                assert after.updated_at >= before.scheduled_at


ONE_BY_ONE = """
@flow
async def one_by_one():
    first = asyncio.create_task(middle("a"))
    await asyncio.wait([first])
    return await asyncio.gather(first, retried("b"))
"""


async def test_a_run_whose_subflow_waits_for_a_retry_can_be_cancelled(stage: Stage) -> None:
    """Nobody holds it, so all are over at once. What would begin when the run is about to leave does not."""
    stage.write(retried("async def", delay=600) + ONE_BY_ONE)
    await stage.deploy("one_by_one")
    async with stage.working(engine=QUICK) as worker:
        run = await stage.until(await stage.ask("one_by_one"), is_away)
        await let_go(worker)
        assert (await stage.control.cancel(run.id)).state_type is StateType.CANCELLED
        below = await subflows_of(stage, run)
        assert sorted(one.flow_name for one in below) == ["middle", "retried"]
        for one in below:
            assert (await stage.end(one)).state_type is StateType.CANCELLED


GENERATORS = """
@task(retries=1, retry_delay_seconds=0.6)
def numbers(word, first):
    from hark import runtime
    count = runtime.task_run.run_count
    say(f"{word}-{count}")
    if first:
        yield 1
    if count < 2:
        raise RuntimeError("not yet")
    yield 2

@flow(retries=1, retry_delay_seconds=0.6)
def letters(word, first):
    from hark import runtime
    count = runtime.flow_run.run_count
    say(f"{word}-{count}")
    if first:
        yield 1
    if count < 2:
        raise RuntimeError("not yet")
    yield 2

@flow
def reads(what, first):
    return list(globals()[what]("g", first))

@task
def around():
    sleep(0.5)
    return flaky("x")

def told(flow, run, state):
    say(flaky("hook"))

@flow(on_completion=[told])
def calls():
    return around() + around()
"""


@pytest.mark.parametrize("what", ["numbers", "letters"])
async def test_a_generator_waits_away_from_its_worker_until_it_has_yielded(stage: Stage, what: str) -> None:
    """What its reader has got would not come again; that the run stays in memory then is said in its log."""
    stage.write(flows("def") + GENERATORS)
    await stage.deploy("reads")
    async with stage.working(engine=QUICKER):
        left = await stage.run("reads", parameters={"what": what, "first": False})
        assert result_of(left) == [2]
        assert await stage.states(left) == LEFT
        stayed = await stage.run("reads", parameters={"what": what, "first": True})
        assert result_of(stayed) == [1, 1, 2]
        assert await stage.states(stayed) == STAYED
    assert await stage.said() == {"g-1": 2, "g-2": 2}
    kind = "task" if what == "numbers" else "flow"
    why = "it has yielded values, which its reader would not get again"
    held = f"{kind} {what!r} waits 0.6 s for its next try {IN_PLACE.format(why)}"
    assert await said_in_log(stage, stayed, held) == 1
    assert await said_in_log(stage, left, held) == 0


async def test_a_long_wait_that_keeps_the_run_in_memory_is_said_once(stage: Stage) -> None:
    """That of a task called by a task, by name and length, however often it comes, and a sleep in a task.

    One in a hook of an end is waited for, too.
    """
    stage.write("from hark import sleep\n" + flows("def") + GENERATORS)
    await stage.deploy("calls")
    async with stage.working(engine=QUICKER):
        run = await stage.run("calls")
        await stage.hear("said.hook2")
    assert result_of(run) == "x2x2"
    why = "it is part of a task, whose code would have to run again"
    for held in ("task 'flaky' waits 0.6 s for its next try", "task 'around' sleeps 0.5 s"):
        assert await said_in_log(stage, run, f"{held} {IN_PLACE.format(why)}") == 1


async def said_in_log(stage: Stage, run: FlowRun, text: str) -> int:
    """Return how often a run and its subflows have said it in their logs."""
    ids = [run.id, *(one.id for one in await subflows_of(stage, run))]
    return sum([line.message == text for id_ in ids for line in await stage.bus.run_logs.read(id_)])
