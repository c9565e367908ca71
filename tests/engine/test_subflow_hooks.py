"""Hooks of subflows, and of their finished tasks, are called by others too once the process of the run around them is gone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hark.bus import Event
from hark.config import WorkerConfig
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.dispatching.hook_duty import KEPT_PER_CALLER, OwedHooks
from hark.engine.life.owed_task_hooks import owed_calls
from hark.engine.runs.hook_log import ANYONE, HERE, owing
from hark.engine.runs.run import FlowRun, RunRequest, run_id_for
from hark.engine.runs.run_log import RunLog
from hark.engine.states import Cancelled, Completed, Crashed, Running, Scheduled, State
from hark.engine.workers.worker import Worker
from hark.vocabulary import FlowRunId, JsonObject, StateType

from .conftest import events
from .test_hook_log import DYING
from .test_lost_worker import ENGINE, program

if TYPE_CHECKING:
    from .conftest import Stage

COMMON = (
    DYING
    + """
from hark import get_run_context, get_run_logger, runtime, sleep

def die():
    os.kill(os.getpid(), signal.SIGKILL)

@task
def shout(word):
    say(word)
    return word

def told(flow, run, state):
    assert get_run_context().flow_run.id == run.id == runtime.flow_run.id
    get_run_logger().info("hook of %s", flow.name)
    shout(f"{flow.name}-{state.type.value.lower()}-{runtime.flow_run.parameters.get('n', 0)}")
"""
)


async def hear_line(stage: Stage, run: FlowRunId, text: str) -> None:
    """Wait until a line stands in the log of a run."""
    with anyio.fail_after(60):
        async with stage.bus.run_logs.follow(run) as feed:
            async for found in feed:
                if any(line.message == text for line in found):
                    return


async def ends_of_hooks(stage: Stage) -> list[tuple[str, str, str]]:
    """Return (word, flow, state) of what was noted last of the hooks of each run, in order of the flows' names."""
    found: dict[str, tuple[str, str, str]] = {}
    for recorded in await events(stage.bus, "hark.ev.hark.hooks.>"):
        data: Any = recorded.event.data
        if "seq" in data:
            word = recorded.event.type.rpartition(".")[2]
            found[data["run"]["id"]] = (word, data["flow"]["name"], data["state"]["type"].lower())
    return sorted(found.values(), key=lambda one: one[1])


async def test_subflows_of_a_run_that_is_given_up_have_their_hooks_called(stage: Stage) -> None:
    """Three deep, in a process that is killed: each is told of its end, in its own run; one that had ended, of that."""
    stage.write(
        COMMON
        + """
def late(flow, run, state):
    die_once("late")
    told(flow, run, state)

@flow(on_completion=[late])
def done(n: int):
    return n

@flow(on_crashed=[told])
def inner(n: int):
    done(n)

@flow
def silent(n: int):
    inner(n + 1)

@flow(on_crashed=[told])
def middle(n: int):
    silent(n)

@flow(on_crashed=[told], crash_retries=0)
def outer(n: int = 1):
    middle(n + 1)
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        run = await stage.run("outer")
        await stage.hear("hark.hooks.ran.*", times=4)
    assert run.state_type is StateType.CRASHED
    assert await stage.said() == {
        "outer-crashed-1": 1, "middle-crashed-2": 1, "inner-crashed-3": 1, "done-completed-3": 1
    }  # fmt: skip
    assert await ends_of_hooks(stage) == [
        ("ran", "done", "completed"), ("ran", "inner", "crashed"), ("ran", "middle", "crashed"), ("ran", "outer", "crashed")
    ]  # fmt: skip
    await hear_line(stage, run.id, "hook of outer")


async def test_a_worker_that_is_killed_leaves_the_hooks_of_its_subflows_to_another(
    stage: Stage, home: Path
) -> None:
    """kill -9 of the whole worker; the next one gives the run up, and calls the hooks of all that was part of it."""
    stage.write(
        COMMON
        + """
async def atold(flow, run, state):
    assert get_run_context().flow_run.id == run.id
    await asay(f"{flow.name}-{state.type.value.lower()}")

@flow(on_crashed=[atold])
async def inner():
    await asay("up")
    await asyncio.sleep(1000)

@flow(crash_retries=0, on_crashed=[atold])
async def outer():
    await inner()
"""
    )
    await stage.deploy("outer")
    async with Dispatcher(stage.bus, ENGINE) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(processes=0), engine)") as victim:
            run = await stage.ask("outer")
            await stage.hear("said.up")
            victim.kill()
            await anyio.to_thread.run_sync(victim.wait)
        async with Worker(stage.bus, WorkerConfig(drain_s=0, processes=0), ENGINE):
            run = await stage.end(run)
            await stage.hear("hark.hooks.ran.*", times=2)
    assert run.state_type is StateType.CRASHED
    assert await stage.said() == {"up": 1, "inner-crashed": 1, "outer-crashed": 1}


async def test_a_subflow_that_sleeps_as_its_parent_is_cancelled_has_its_hooks_called(stage: Stage) -> None:
    """Nobody executes either of them; each has on_cancellation called."""
    stage.write(
        COMMON
        + """
@flow(on_cancellation=[told])
def inner():
    sleep("2h")

@flow(on_cancellation=[told])
def outer():
    inner()
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        run = await stage.ask("outer")
        await stage.until(run, lambda now: now.attempt == 1 and now.state_type is StateType.SCHEDULED)
        await stage.control.cancel(run.id)
        await stage.hear("hark.hooks.ran.*", times=2)
    assert await stage.said() == {"inner-cancelled-0": 1, "outer-cancelled-0": 1}


async def test_a_subflow_that_has_no_name_of_its_own_has_its_hooks_given_up_with_a_reason(
    stage: Stage,
) -> None:
    """Made in a function, or with hooks given by with_options in the call: the log says so, and what to do."""
    stage.write(
        COMMON
        + """
@flow
def plain():
    pass

def dies(flow, run, state):
    die()

@flow(crash_retries=0)
def outer(kind: str):
    @flow(on_crashed=[told])
    def local():
        die()

    if kind == "local":
        local()
    plain.with_options(name="renamed", on_running=[dies], on_crashed=[told])()
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        for kind in ("local", "renamed"):
            await stage.run("outer", parameters={"kind": kind})
        await stage.hear("hark.hooks.abandoned.*", times=2)
    found = [recorded.event.data for recorded in await events(stage.bus, "hark.ev.hark.hooks.abandoned.>")]
    whys = sorted(str(data["why"]) for data in found if isinstance(data, dict))
    assert whys[0].startswith("flow 'local' (outer.<locals>.local in flows.py) was made while its parent ran")
    assert whys[1].startswith("flow 'renamed' (plain in flows.py) was made while its parent ran")
    assert not await stage.said()


PARTS = (
    COMMON
    + """
import threading

def task_told(task, run, state):
    assert get_run_context().task_run.id == run.id
    say(f"{task.name}-{state.type.value.lower()}")

begun = threading.Event()

@task(on_crashed=[task_told])
def waits(n):
    if not n:
        begun.set()
        time.sleep(1000)

@task(on_crashed=[task_told])
def dies():
    begun.wait()
    Path(__file__).with_name("flows.py").write_text("import no_such_module")
    say("so-far")  # is stored, and what was given to the broker before it
    die()

@flow(on_failure=[told])
def inner(n: int):
    if n:
        sleep("2h")
    else:
        dies()
"""
)


@pytest.mark.parametrize("is_suspended", [False, True])
async def test_what_was_part_of_a_run_whose_code_is_gone_comes_to_an_end(
    stage: Stage, is_suspended: bool
) -> None:
    """Its process dies and the file cannot be imported any more; or it is gone when the run is taken up. It ends, and all of it.

    Tasks that are found without it have their hooks called.
    """
    stage.write(PARTS, file="parts.py")
    stage.write(
        """
from parts import inner, told, waits

@flow(on_failure=[told])
def outer(n: int):
    waits.submit(n)
    inner(n)
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        run = await stage.ask("outer", parameters={"n": int(is_suspended)})
        if is_suspended:
            await stage.until(run, lambda now: now.attempt == 1 and now.state_type is StateType.SCHEDULED)
            await stage.control.suspend(run.id)
            (stage.root / "flows.py").unlink()
            await stage.control.resume(run.id)
        run = await stage.end(run)
        assert run.state_type is StateType.FAILED
        await stage.hear("hark.hooks.ran.*")
        await stage.hear("hark.hooks.abandoned.*")
    ended = f"inner-failed-{int(is_suspended)}"
    others = {} if is_suspended else {"so-far": 1, "dies-crashed": 1, "waits-crashed": 1}
    assert await stage.said() == {ended: 1, **others}
    assert await ends_of_hooks(stage) == [("ran", "inner", "failed"), ("abandoned", "outer", "failed")]
    lasts: dict[str, Any] = {}
    for recorded in await events(stage.bus, "hark.ev.task-run.>"):
        data: Any = recorded.event.data
        if "task" in data and data["task"]["name"] in ("waits", "dies"):
            lasts[data["run"]["id"]] = data
    assert {data["state"]["type"] for data in lasts.values()} == {"COMPLETED" if is_suspended else "CRASHED"}
    assert all(data["run"]["duration_s"] >= 0 for data in lasts.values())


async def test_a_finished_task_of_a_run_that_is_given_up_has_its_hooks_called(stage: Stage) -> None:
    """The process dies in the hook, and no attempt follows: it is called again, in its task's run, and no other is."""
    stage.write(
        COMMON
        + """
def step_told(task, run, state):
    assert get_run_context().task_run.id == run.id
    word = f"{run.name}-{state.type.value.lower()}-{state.result() if state.is_completed() else 0}"
    if run.name == "last":
        say("so-far")  # is stored, and what was given to the broker before it
        die_once(word)
    say(word)

@task(on_completion=[step_told], on_failure=[step_told], task_run_name="{name}")
def step(name, n):
    if n == 0:
        raise ValueError("no")
    return n

@flow(crash_retries=0)
def outer(n: int):
    step("first", 1)
    step("last", n)
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        for n in (0, 2):
            assert (await stage.run("outer", parameters={"n": n})).state_type is StateType.CRASHED
        await stage.hear("said.last-completed-2")
        await stage.hear("said.last-failed-0")
        await until_settled(stage, 2)
    assert await stage.said() == {
        "first-completed-1": 2,
        "so-far": 4,
        "last-completed-2": 1,
        "last-failed-0": 1,
    }


async def test_a_finished_task_of_a_run_that_is_retried_is_left_to_the_next_attempt(stage: Stage) -> None:
    """That tells of it, as it tells of those that it finishes. It runs the failed ones again: they are owed as before."""
    runs = RunLog(stage.bus)

    async def ended(run: FlowRun, name: str, state: StateType) -> None:
        data: JsonObject = {
            "flow_run": {"id": run.id, "attempt": run.attempt}, "run": {"id": name, "name": name, "attempt": 1},
            "state": {"type": state, "name": state.title()}, "call": name, "hooks": "flows:step",
        }  # fmt: skip
        await stage.bus.log.append(
            Event(type=f"task-run.{state.lower()}", source="/t", subject=f"task-run/{name}", data=data)
        )

    async def owed(end: FlowRun) -> list[str]:
        return sorted(one.id for one in await owed_calls(stage.bus, end))

    run = await runs.begin(a_run("outer", pool="default"), Running())
    await ended(run, "done", StateType.COMPLETED)
    await ended(run, "broken", StateType.FAILED)
    end = await runs.move(run, Crashed())
    await ended(end, "late", StateType.COMPLETED)
    assert await owed(end) == ["broken", "done"]
    again = await runs.move(end, Scheduled(), retry=True)
    await ended(again, "next", StateType.COMPLETED)
    assert await owed(end) == ["broken"]


async def test_a_retry_from_the_start_does_not_drop_hooks_of_finished_tasks(stage: Stage) -> None:
    """No attempt comes to that call again: the next one tells of it, and of its own, each once."""
    stage.write(
        COMMON
        + """
def step_told(task, run, state):
    if first_time("first"):
        say("so-far")  # is stored, and what was given to the broker before it
        die()
    say(f"{run.name}-{state.result()}")

@task(on_completion=[step_told], task_run_name="step")
def step(n):
    return n

@flow
def broken():
    if first_time("began"):
        step(1)
    elif first_time("fails"):
        raise ValueError("no")
    step(2)
"""
    )
    await stage.deploy("broken")
    async with stage.working():
        run = await stage.run("broken")
        assert (run.state_type, await stage.said()) == (StateType.FAILED, {"so-far": 1})
        await stage.control.retry(run.id, from_start=True)
        await stage.hear("said.step-2")
        assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await stage.said() == {"so-far": 1, "step-1": 1, "step-2": 1}


async def until_settled(stage: Stage, times: int) -> None:
    """Wait until so many flow runs have had their hooks called."""
    with anyio.fail_after(60):
        async with stage.bus.log.follow(["hark.ev.hark.hooks.ran.*"], after=0) as batches:
            async for batch in batches:
                times -= sum(
                    "seq" in data for data in (r.event.data for r in batch.records) if isinstance(data, dict)
                )
                if times <= 0:
                    return


async def test_a_hook_that_exits_or_sleeps_keeps_no_other_from_being_called(stage: Stage) -> None:
    """What has ended cannot leave its worker, and sys.exit() in a hook ends nothing but the hook."""
    stage.write(
        COMMON
        + """
def exits(flow, run, state):
    sys.exit(3)

def naps(flow, run, state):
    sleep("2h")

@flow(on_completion=[exits, naps, told])
def outer():
    pass
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        run = await stage.run("outer")
        await stage.hear("hark.hooks.ran.*")
    assert await stage.said() == {"outer-completed-0": 1}
    assert await stage.states(run) == ["scheduled", "pending", "running", "completed"]


async def test_a_task_that_a_hook_calls_runs_for_each_end_of_the_run(stage: Stage) -> None:
    """The run fails, is retried and fails again: what the first hook's task came to is not taken for the second's."""
    stage.write(
        COMMON
        + """
@flow(on_failure=[told])
def outer():
    raise ValueError("no")
"""
    )
    await stage.deploy("outer")
    async with stage.working():
        run = await stage.run("outer")
        await stage.hear("hark.hooks.ran.*")
        await stage.control.retry(run.id)
        await stage.hear("hark.hooks.ran.*", times=2)
    assert await stage.said() == {"outer-failed-0": 2}


def a_run(name: str, above: FlowRun | None = None, *, pool: str | None = None) -> FlowRun:
    """Return a run as it begins, in a log where its transitions are counted by hand."""
    request = RunRequest(
        id=run_id_for(name),
        flow_name=name,
        entrypoint=f"flows.py:{name}",
        pool=pool,
        parent=above.id if above else None,
    )
    return FlowRun.requested(request, now=datetime.now(UTC)).changed(attempt=1)


class Fold:
    """A fold, and the runs that it has been told of."""

    def __init__(self) -> None:
        self.fold, self.seq, self.going = OwedHooks(), 0, set[FlowRunId]()

    def tell(self, run: FlowRun, state: State, **changes: Any) -> FlowRun:
        """Make a transition; return the run after it."""
        self.seq += 1
        run = run.moved(state).changed(seq=self.seq, **changes)
        (self.going.discard if run.is_final else self.going.add)(run.id)
        self.fold.observe(run, is_going=self.going.__contains__)
        return run

    def kept(self) -> Fold:
        """Return another that begins with what this one has written down."""
        other = Fold()
        other.fold.load(self.fold.dump())
        other.seq, other.going = self.seq, set(self.going)
        return other

    @property
    def due(self) -> list[str]:
        """Of which runs hooks are due."""
        return [str(one.run_id) for one in self.fold.due.values()]


def test_an_ended_subflow_is_owed_to_anyone_when_the_run_above_is_ended_from_outside() -> None:
    """Its own process was to call its hooks; the end of the run above says that there is none. A leader may change between."""
    told = Fold()
    outer = told.tell(a_run("outer", pool="default"), Running())
    inner = told.tell(a_run("inner", outer), Running())
    told.tell(inner, owing(Completed(), HERE))
    assert told.due == []
    told = told.kept()
    told.tell(outer, owing(Crashed(), HERE, is_unwound=False))
    assert told.due == [inner.id]
    assert told.kept().due == [inner.id]


def test_an_ended_subflow_is_owed_to_nobody_when_its_process_has_lived() -> None:
    """The run above came to its own end in its first attempt. After another attempt, the log is asked."""
    for attempt, due in ((1, 0), (2, 1)):
        told = Fold()
        outer = told.tell(a_run("outer", pool="default"), Running(), attempt=attempt)
        told.tell(told.tell(a_run("inner", outer), Running()), owing(Completed(), HERE))
        told.tell(outer, owing(Completed(), HERE))
        assert len(told.due) == due


def test_a_run_in_between_that_nobody_can_find_keeps_none_within_it_from_its_hooks() -> None:
    """A flow made inside another calls one that has a name. Its end says nothing of hooks, so the log is asked of those within."""
    told = Fold()
    outer = told.tell(a_run("outer", pool="default"), Running())
    between = told.tell(a_run("between", outer).changed(entrypoint=None), Running())
    inner = told.tell(told.tell(a_run("inner", between), Running()), owing(Completed(), HERE))
    told.tell(between, Crashed())
    assert told.due == [inner.id]
    assert told.fold.dump()["inside"] == []


def test_hooks_of_a_plain_call_are_owed_to_anyone_once_its_process_is_silent() -> None:
    """It was to call them itself; only the newest of each process are remembered, as it can be calling no others."""
    told = Fold()
    for n in range(KEPT_PER_CALLER + 1):
        run = told.tell(a_run(f"script-{n}"), Running())
        told.tell(run, owing(Completed(details={"caller": "p-1"}), HERE))
    assert told.due == []
    told = told.kept()
    assert not told.fold.lose("p-2")
    assert told.fold.lose("p-1")
    assert told.due == [run_id_for(f"script-{n}") for n in range(1, KEPT_PER_CALLER + 1)]
    assert not told.fold.lose("p-1")


def test_each_end_of_a_run_that_was_retried_is_due() -> None:
    """Cancelled, retried and cancelled again before anything was handed out: that is two ends. A repeat is none."""
    told = Fold()
    run = a_run("outer", pool="default")
    for _ in range(2):
        run = told.tell(told.tell(run, Running()), owing(Cancelled(), ANYONE))
    told.fold.observe(run, is_going=told.going.__contains__)
    assert told.due == [run.id, run.id]


def test_what_an_older_version_has_written_down_is_read() -> None:
    """By run: sequence, attempt, pool."""
    fold = OwedHooks()
    fold.load({"some-run": [7, 1, "default"]})
    assert [(one.run_id, one.seq, one.pool) for one in fold.due.values()] == [("some-run", 7, "default")]
