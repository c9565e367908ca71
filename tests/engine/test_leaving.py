"""A run that is about to leave its worker, and what its code makes of that; on a real broker, with a dispatcher and a worker."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hark.config import EngineConfig
from hark.engine.runs.run import FlowRun
from hark.vocabulary import StateType

from .test_resting import subflows_of

if TYPE_CHECKING:
    from .conftest import Stage

QUICK = EngineConfig(suspend_after_s=0.2)


def result_of(run: FlowRun) -> Any:
    assert run.state_type is StateType.COMPLETED, (run.state_name, run.state_message)
    return run.state.result()


async def results(stage: Stage, text: str, **worker: Any) -> dict[str, Any]:
    """Run each flow of a text whose name begins with ``is_``, all at once; return what they returned, by name."""
    stage.write("from contextlib import suppress\nfrom hark import sleep, wait_for_event\n" + text)
    names = [
        line.partition("def ")[2].partition("(")[0] for line in text.splitlines() if "def is_" in line[:20]
    ]
    await stage.deploy(*names)
    async with stage.working(engine=QUICK, **worker):
        runs = {name: await stage.ask(name) for name in names}
        ended = {name: await stage.end(run) for name, run in runs.items()}
        return {name: result_of(run) if run.attempt > 1 else "has not left" for name, run in ended.items()}


STEPS = """
@task(log_prints=False)
{kind} step(word):
    {wait}{say}(word)
    return word

@task(retries=1, retry_delay_seconds=0.6)
{kind} flaky(word):
    from hark import runtime
    if runtime.task_run.run_count < 2:
        raise RuntimeError("not yet")
    return word

@flow
{kind} sleeps(word):
    {wait}sleep(0.6)
    return word

@flow(retries=1, retry_delay_seconds=0.6)
{kind} tries(word):
    from hark import runtime
    if runtime.flow_run.run_count < 2:
        raise RuntimeError("not yet")
    return word
"""
ASYNC = STEPS.format(kind="async def", wait="await ", say="asay")
SYNC = STEPS.format(kind="def", wait="", say="say")


async def test_a_run_rests_whatever_its_code_does_with_the_signal(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Caught or handed about, it is not the run's end, nothing new begins, and the code goes on later as if it had waited.

    The loop does not complain of tasks that nobody asks for it.
    """
    found = await results(
        stage,
        ASYNC
        + """
@flow
async def is_gather():
    return await asyncio.gather(sleep(0.6), step("gather"), return_exceptions=True)

@flow
async def is_gather_of_retry():
    return await asyncio.gather(flaky("a"), flaky("b"), return_exceptions=True)

@flow
async def is_gather_of_subflows():
    return await asyncio.gather(sleeps("a"), tries("b"), return_exceptions=True)

@flow
async def is_excepted():
    try:
        await sleep(0.6)
    except BaseException as exc:
        await step("never")
        return repr(exc)
    return "slept"

@flow
async def is_raised_as_another():
    try:
        await sleep(0.6)
    except BaseException as exc:
        raise ValueError("made of it") from exc
    return "slept"

@flow
async def is_suppressed():
    with suppress(BaseException):
        await sleep(0.6)
        return "slept"
    return "suppressed"

@flow
async def is_finally():
    try:
        await sleep(0.6)
        await step("body")
    finally:
        await step("finally")
    return "slept"

@flow
async def is_never_asked():
    done, _ = await asyncio.wait([asyncio.ensure_future(sleep(0.6))])
    return len(done)

@flow
async def is_group():
    with suppress(BaseException):
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep(0.6))
            first = group.create_task(step("group"))
        return first.result()
    return "suppressed"

@flow
async def is_anyio():
    import anyio
    with suppress(BaseException):
        async with anyio.create_task_group() as group:
            group.start_soon(sleep, 0.6)
            group.start_soon(step, "anyio")
        return "slept"
    return "suppressed"

@flow
async def inner():
    with suppress(BaseException):
        await sleep(0.6)
        return "slept"
    return "suppressed"

@flow
async def is_subflow():
    with suppress(BaseException):
        return await inner()
    return "suppressed"
""",
    )
    assert found == {
        "is_gather": [None, "gather"],
        "is_gather_of_retry": ["a", "b"],
        "is_gather_of_subflows": ["a", "b"],
        "is_excepted": "slept",
        "is_raised_as_another": "slept",
        "is_suppressed": "slept",
        "is_finally": "slept",
        "is_never_asked": 1,
        "is_group": "group",
        "is_anyio": "slept",
        "is_subflow": "slept",
    }
    assert await stage.said() == dict.fromkeys(["gather", "body", "finally", "group", "anyio"], 1)
    assert [line.getMessage() for line in caplog.records if line.name == "asyncio"] == []


async def test_so_does_a_sync_run(stage: Stage) -> None:
    """In its process, and in threads of its own, which all have to wait at the same time: so long that a busy machine gets there."""
    found = await results(
        stage,
        SYNC.replace("0.6", "1.5")
        + """
@flow
def is_excepted():
    try:
        sleep(0.6)
    except BaseException as exc:
        step("never")
        return repr(exc)
    return "slept"

@flow
def is_suppressed():
    with suppress(BaseException):
        return tries("subflow")
    return "suppressed"

@flow
def is_finally():
    try:
        flaky("a")
        step("body")
    finally:
        step("finally")
    return "tried"

@flow
def is_in_threads():
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(copy_context().run, one, "t") for one in (sleeps, step, tries, flaky)]
        return [future.exception() or future.result() for future in futures]
""",
    )
    assert found == {
        "is_excepted": "slept",
        "is_suppressed": "subflow",
        "is_finally": "tried",
        "is_in_threads": ["t", "t", "t", "t"],
    }
    assert await stage.said() == {"body": 1, "finally": 1, "t": 1}


async def test_one_branch_rests_while_others_work(stage: Stage) -> None:
    """A task beside a sleep goes on, and with it the branch it is in; the run leaves when nothing else is left to do."""
    found = await results(
        stage,
        ASYNC
        + """
@task
async def slow(word):
    await asyncio.sleep(0.5)
    await asay(word)
    return word

async def steps(how):
    return [await how(f"{how.name}-{n}") for n in (1, 2)]

@flow
async def works():
    return await steps(slow.with_options(name="inner"))

@flow
async def is_beside_tasks():
    return await asyncio.gather(sleep(3), steps(slow))

@flow
async def is_beside_subflow():
    return await asyncio.gather(sleep(3), works(), flaky("f"))

@flow
async def is_first():
    return await asyncio.gather(sleep(1), sleep(2), sleep(0.1))

@flow
async def is_often():
    for n in range(5):
        await sleep(0.3)
        await step(f"often-{n}")
    return "often"
""",
    )
    assert found == {
        "is_beside_tasks": [None, ["slow-1", "slow-2"]],
        "is_beside_subflow": [None, ["inner-1", "inner-2"], "f"],
        "is_first": [None, None, None],
        "is_often": "often",
    }
    words = ["slow-1", "slow-2", "inner-1", "inner-2", *(f"often-{n}" for n in range(5))]
    assert await stage.said() == dict.fromkeys(words, 1)


async def test_a_failure_beside_a_sleep_is_the_runs_end_at_once(stage: Stage) -> None:
    """As it would be without Hark; what slept beside it is over, in subflows too."""
    stage.write(
        ASYNC
        + """
from hark import sleep

@task
async def bad():
    raise ValueError("bad")

@flow
async def sleeps_long():
    await sleep("1h")

@flow
async def fails():
    await asyncio.gather(sleep("1h"), bad())

@flow
async def fails_beside_subflow():
    await asyncio.gather(sleeps_long(), flaky("a"), bad())
"""
    )
    names = ["fails", "fails_beside_subflow"]
    await stage.deploy(*names)
    async with stage.working(engine=QUICK, processes=0):
        for run in [await stage.ask(name) for name in names]:
            ended = await stage.end(run)
            assert (ended.state_type, ended.attempt) == (StateType.FAILED, 1)
            assert "ValueError: bad" in (ended.state_message or "")
            below = await subflows_of(stage, run)
            assert [(await stage.end(one)).state_type for one in below] == [StateType.CRASHED] * len(below)
    assert await stage.said() == {}


async def test_waits_in_several_branches_keep_their_times(stage: Stage) -> None:
    """The first that is over wakes the run; each of the others goes on as it began, one that is suspended too."""
    stage.write(
        ASYNC
        + """
from datetime import datetime, UTC
from hark import sleep, suspend_flow_run

@task
async def now(about):
    return datetime.now(UTC).isoformat()

async def slept(seconds):
    began = await now(f"from {seconds}")
    await sleep(seconds)
    return began, await now(f"to {seconds}")

async def suspended():
    await step("asked")
    return await suspend_flow_run(wait_for_input=int)

@flow
async def branches():
    return await asyncio.gather(slept(1), slept(2.5), flaky("f"))

@flow
async def asks():
    return await asyncio.gather(slept(1), suspended(), flaky("f"))
"""
    )
    await stage.deploy("branches", "asks")
    async with stage.working(engine=QUICK, processes=0):
        branches, asks = await stage.ask("branches"), await stage.ask("asks")
        asks = await stage.until(asks, lambda run: run.state_name == "Suspended")
        await stage.control.resume(asks.id, run_input={"value": 7})
        asks, branches = await stage.end(asks), await stage.end(branches)
    (first, second, word), (third, answer, other) = result_of(branches), result_of(asks)
    assert (word, other, answer) == ("f", "f", 7)
    for (began, ended), seconds in ((first, 1), (second, 2.5), (third, 1)):
        took = (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()
        assert took >= seconds
    # Woken by the first, it leaves again, unless it comes back when the second is nearly over.
    assert branches.attempt >= 2


GENERATORS = """
@task
{kind} numbers():
    for n in (1, 2):
        yield n

@flow
{kind} letters():
    for letter in "ab":
        {wait}step("in-" + letter)
        yield letter

@flow
{kind} is_reading_a_task():
    found = []
    {wait_}for n in numbers():
        {wait}sleep(0.5)
        {wait}step(f"read-{{n}}")
        found.append(n)
    return found

@flow
{kind} is_reading_a_subflow():
    found = []
    {wait_}for letter in letters():
        {wait}sleep(0.5)
        {wait}step("read-" + letter)
        found.append(letter)
    return found
"""


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_whoever_reads_a_generator_may_rest_between_two_values(stage: Stage, kind: str) -> None:
    """It begins anew then, for its reader does; what either has finished is not repeated."""
    is_async = kind == "async def"
    waits = {"wait": "await ", "wait_": "async "} if is_async else {"wait": "", "wait_": ""}
    found = await results(stage, (ASYNC if is_async else SYNC) + GENERATORS.format(kind=kind, **waits))
    assert found == {"is_reading_a_task": [1, 2], "is_reading_a_subflow": ["a", "b"]}
    words = [*(f"read-{one}" for one in (1, 2, "a", "b")), "in-a", "in-b"]
    assert await stage.said() == dict.fromkeys(words, 1)


async def test_a_suspension_waits_for_what_has_begun_and_lets_nothing_begin(stage: Stage) -> None:
    """Of a task in another branch, the end counts; what would have followed it follows when the run is resumed.

    A run that is suspending itself, and still waits so, can be cancelled.
    """
    stage.write(
        ASYNC
        + """
from hark import suspend_flow_run

@task
async def until(file):
    await asay("began")
    while not os.path.exists(file):
        await asyncio.sleep(0.01)
    return await asay("ended")

@flow
async def both(file, word):
    await until(file)
    return await step(word)

async def ask(file):
    while not os.path.exists(file + "-ask"):
        await asyncio.sleep(0.01)
    return await suspend_flow_run(wait_for_input=int)

@flow
async def asks(file):
    return await asyncio.gather(ask(file), both(file, "later"), both(file, "then"))
"""
    )
    await stage.deploy("asks")
    async with stage.working(engine=QUICK, processes=0):
        run = await stage.ask("asks", parameters={"file": str(stage.root / "go")})
        cancelled = await stage.ask("asks", parameters={"file": str(stage.root / "never")})
        await stage.hear("said.began", times=4)
        for name in ("go-ask", "never-ask"):
            (stage.root / name).touch()
        await stage.control.cancel(cancelled.id)
        assert (await stage.end(cancelled)).state_type is StateType.CANCELLED
        for one in await subflows_of(stage, cancelled):
            ended = await stage.end(one)
            assert ended.state_type is StateType.CANCELLED, ended.state_message
        assert (await stage.until(run, lambda now: now.attempt > 0)).state_name == "Running"
        (stage.root / "go").touch()
        await stage.until(run, lambda now: now.state_name == "Suspended")
        assert {one.state_name for one in await subflows_of(stage, run)} == {"Suspended"}
        assert await stage.said() == {"began": 4, "ended": 2}
        await stage.control.resume(run.id, run_input={"value": 7})
        assert result_of(await stage.end(run)) == [7, "later", "then"]
    assert await stage.said() == {"began": 4, "ended": 2, "later": 1, "then": 1}
