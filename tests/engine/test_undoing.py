"""Runs that end while nobody executes them: what they had begun is undone, by a worker that has their code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from hark.config import WorkerConfig
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.life.undoing import until_undone
from hark.engine.workers.worker import Worker
from hark.errors import MoveRefused
from hark.vocabulary import StateType

from .test_hook_log import notes
from .test_lost_worker import ENGINE, program

if TYPE_CHECKING:
    from .conftest import Stage

COMMON = """
from hark import get_transaction, sleep, suspend_flow_run, transaction

def first_time(name):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    if os.path.exists(path):
        return False
    open(path, "w").close()
    return True

def die():
    say("dies")  # which is stored after what was said before it
    os.kill(os.getpid(), signal.SIGKILL)

@task
def reserve(n):
    say(f"reserve-{n}")
    get_transaction().set("place", f"seat-{n}")
    return n

@reserve.on_rollback
def give_back(txn):
    say("back-" + txn.get("place"))
    if first_time("back") and os.path.exists(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mortal")):
        die()

@reserve.on_commit
def keep(txn):
    say("keep-" + txn.get("place"))

@task
async def areserve(n):
    await asay(f"reserve-{n}")
    get_transaction().set("place", f"seat-{n}")
    return n

@areserve.on_rollback
async def agive_back(txn):
    await asay("back-" + txn.get("place"))

@areserve.on_commit
async def akeep(txn):
    await asay("keep-" + txn.get("place"))

@task
def charge():
    say("charge")

def told(flow, run, state):
    say("told-" + state.type.value.lower())

async def atold(flow, run, state):
    await asay("told-" + state.type.value.lower())
"""

DEADLY = """
@flow(crash_retries=1, on_crashed=[told])
def order():
    with transaction():
        reserve(0)
    reserve(9)  # in no block: it counts alone
    with transaction():
        reserve(1)
        with transaction():
            reserve(2)
        die()
        charge()
"""


async def order_of(stage: Stage, prefix: str) -> list[str]:
    """Return the words that begin so, as they were said."""
    words: list[str] = []
    async with stage.bus.log.read(["hark.ev.said.>"]) as batches:
        async for batch in batches:
            words += [recorded.event.type.removeprefix("said.") for recorded in batch.records]
    return [word for word in words if word.startswith(prefix)]


async def test_a_run_given_up_as_crashed_has_what_it_began_undone(stage: Stage) -> None:
    """kill -9 until crash_retries are used up: what stands in open blocks is undone in reverse, what was committed is not."""
    stage.write(COMMON + DEADLY)
    await stage.deploy("order")
    async with stage.working():
        run = await stage.run("order")
        await stage.hear("hark.hooks.ran.*")
    assert run.state_type is StateType.CRASHED
    assert await order_of(stage, "back") == ["back-seat-2", "back-seat-1"]
    assert await stage.said() == {
        "reserve-0": 1, "keep-seat-0": 1, "reserve-9": 1, "keep-seat-9": 1, "reserve-1": 1, "reserve-2": 1,
        "dies": 2, "back-seat-2": 1, "back-seat-1": 1, "told-crashed": 1,
    }  # fmt: skip
    assert await order_of(stage, "told") == ["told-crashed"]
    async with stage.working():  # a new leader finds that all is done
        await stage.deploy("order")
    assert await notes(stage) == ["began", "ran"]


async def test_a_process_that_dies_undoing_is_followed_by_one_that_undoes_the_rest(stage: Stage) -> None:
    """kill -9 in a rollback hook: it is called again, and those that had run to their end are not."""
    stage.write(COMMON + DEADLY)
    (stage.root / "mortal").touch()
    await stage.deploy("order")
    async with stage.working():
        await stage.run("order")
        await stage.hear("hark.hooks.ran.*")
    assert await order_of(stage, "back") == ["back-seat-2", "back-seat-2", "back-seat-1"]
    assert (await stage.said())["told-crashed"] == 1
    assert await notes(stage) == ["began", "began", "ran"]


async def test_code_that_ends_every_process_that_undoes_it_does_not_cost_the_run_its_hooks(
    stage: Stage,
) -> None:
    """After two such deaths nothing more is undone, and the hooks of the run are called."""
    stage.write(
        COMMON
        + """
@flow(crash_retries=0, on_crashed=[told])
def order():
    with transaction():
        reserve(1)
        if not first_time("here"):
            die()
        reserve(2)
        die()
"""
    )
    await stage.deploy("order")
    async with stage.working():
        await stage.run("order")
        await stage.hear("hark.hooks.ran.*")
    assert await stage.said() == {"reserve-1": 1, "reserve-2": 1, "dies": 3, "told-crashed": 1}
    assert await notes(stage) == ["began", "began", "began", "ran"]


WAITING = {
    "def": """
        @flow(on_cancellation=[told], on_failure=[told])
        def order(how, timeout=None):
            with transaction():
                [future.result() for future in [reserve.submit(1), reserve.submit(2)]]
                say("waits")
                sleep("2h") if how == "sleep" else suspend_flow_run(timeout=timeout)
                charge()
    """,
    "async": """
        @flow(on_cancellation=[atold], on_failure=[atold])
        async def order(how, timeout=None):
            async with transaction():
                await asyncio.gather(areserve(1), areserve(2))
                await asay("waits")
                await (sleep("2h") if how == "sleep" else suspend_flow_run(timeout=timeout))
                charge()
    """,
}


@pytest.mark.parametrize("kind", ["def", "async"])
@pytest.mark.parametrize(("how", "word"), [("sleep", "scheduled"), ("suspend", "suspended")])
async def test_a_run_that_is_cancelled_while_it_waits_has_what_it_began_undone(
    stage: Stage, kind: str, how: str, word: str
) -> None:
    """It holds no worker then; a worker takes it up to undo it, and runs nothing of what would have followed."""
    stage.write(COMMON + WAITING[kind].replace("\n        ", "\n"))
    await stage.deploy("order")
    async with stage.working(processes=2):
        run = await stage.ask("order", parameters={"how": how})
        await stage.until(
            run, lambda now: now.attempt == 1 and now.state_type.value in ("SCHEDULED", "PAUSED")
        )
        run = await stage.control.cancel(run.id)
        await stage.hear("hark.hooks.ran.*")
    assert run.state_type is StateType.CANCELLED
    said = await stage.said()
    assert said.pop("waits") in (1, 2)  # the code is gone through once more
    assert said == {"reserve-1": 1, "reserve-2": 1, "back-seat-1": 1, "back-seat-2": 1, "told-cancelled": 1}


async def test_a_run_that_nobody_resumes_in_time_has_what_it_began_undone(stage: Stage) -> None:
    """The dispatcher fails it; the hooks follow."""
    stage.write(COMMON + WAITING["def"].replace("\n        ", "\n"))
    await stage.deploy("order")
    async with stage.working():
        run = await stage.run("order", parameters={"how": "suspend", "timeout": 1})
        await stage.hear("hark.hooks.ran.*")
    assert run.state_type is StateType.FAILED
    assert sorted(await order_of(stage, "back")) == ["back-seat-1", "back-seat-2"]
    assert (await stage.said())["told-failed"] == 1


async def test_a_run_whose_worker_was_dead_when_it_was_cancelled_has_what_it_began_undone(
    stage: Stage, home: Path
) -> None:
    """kill -9 of the whole worker, and nobody takes the run up: whoever ends it undoes it."""
    stage.write(
        COMMON
        + """
@flow
async def order():
    async with transaction():
        await areserve(1)
        await asay("waits")
        await asyncio.sleep(1000)
"""
    )
    await stage.deploy("order")
    async with Dispatcher(stage.bus, ENGINE) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(), engine)") as victim:
            run = await stage.ask("order")
            await stage.hear("said.waits")
            victim.kill()
            await anyio.to_thread.run_sync(victim.wait)
            await stage.control.cancel(run.id, reason="enough")
            async with Worker(stage.bus, WorkerConfig(drain_s=0), ENGINE):
                run = await stage.end(run)
                await stage.hear("hark.hooks.ran.*")
    assert (run.state_type, run.state_message) == (StateType.CANCELLED, "enough")
    assert await stage.said() == {"reserve-1": 1, "waits": 1, "back-seat-1": 1}


async def test_what_subflows_had_begun_is_undone_too(stage: Stage) -> None:
    """Those that had not ended, in blocks of their own; after them, the block around them."""
    stage.write(
        COMMON
        + """
@flow
def inner(n):
    with transaction():
        reserve(n)
        reserve(n + 1)
        if n == 20:
            die()

@flow(crash_retries=0)
def order():
    with transaction():
        reserve(1)
        inner(10)
        inner(20)
        charge()
"""
    )
    await stage.deploy("order")
    async with stage.working():
        run = await stage.run("order")
        await stage.hear("hark.hooks.ran.*")
    assert run.state_type is StateType.CRASHED
    assert await order_of(stage, "back") == ["back-seat-21", "back-seat-20", "back-seat-1"]


async def test_nothing_is_undone_of_a_run_that_goes_on_or_has_nothing_open(stage: Stage) -> None:
    """A run that is retried goes through its blocks itself; code without transactions is not gone through again."""
    stage.write(
        COMMON
        + """
@flow
def plain():
    say("plain")
    charge()
    suspend_flow_run()

@flow
def order():
    with transaction():
        reserve(1)
        suspend_flow_run(key="a")
        charge()
"""
    )
    await stage.deploy("plain", "order")
    runs = []
    async with stage.working():
        for name in ("plain", "order"):
            run = await stage.ask(name)
            runs.append(await stage.until(run, lambda now: now.state_type is StateType.PAUSED))
    for run in runs:
        await stage.control.cancel(run.id)
    again = await stage.control.retry(runs[1].id)
    async with stage.working():
        await stage.until(again, lambda now: now.state_type is StateType.PAUSED)
        await stage.control.resume(again.id)
        assert (await stage.end(again)).state_type is StateType.COMPLETED
    assert await stage.said() == {"plain": 1, "charge": 2, "reserve-1": 1, "keep-seat-1": 1}
    assert await notes(stage) == []


SLOW_BACK = """
@reserve.on_rollback
def wait_here(txn):  # called before give_back: hooks of a rollback run in reverse
    say("undoing")
    wait_for("go-on")

def wait_for(name):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    while not os.path.exists(path):
        time.sleep(0.02)

@flow(crash_retries=0)
def order():
    with transaction():
        reserve(1)
        if first_time("died"):
            die()
        say("done")
"""


async def test_a_retry_in_the_middle_of_an_undo_is_refused_until_that_has_ended(stage: Stage) -> None:
    """What is being rolled back is not at the same time taken for finished; afterwards the retry does it anew."""
    stage.write("import time\n" + COMMON + SLOW_BACK)
    await stage.deploy("order")
    async with stage.working(processes=2):
        run = await stage.run("order")
        await stage.hear("said.undoing")
        with pytest.raises(MoveRefused, match="its transactions are being rolled back; ask again"):
            await stage.control.retry(run.id)
        # One that was asked for a moment before that was noted begins, and waits where it would read what is finished.
        attempt = SimpleNamespace(undoing=None, session=SimpleNamespace(bus=stage.bus), flow_run=run)
        history = await stage.control.runs.history(run.id)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_undone, cast(Any, attempt), history)
            (stage.root / "go-on").touch()
        assert await order_of(stage, "back") == ["back-seat-1"]
        await stage.hear("hark.hooks.ran.*")
        await stage.control.retry(run.id)
        run = await stage.end(run)
    assert run.state_type is StateType.COMPLETED
    assert await order_of(stage, "back") == ["back-seat-1"]
    said = await stage.said()
    assert (said["reserve-1"], said["keep-seat-1"], said["done"]) == (2, 1, 1)
