"""Hooks are called by whoever is left to call them: of processes that died, and of ends that no process wrote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hark.config import EngineConfig, WorkerConfig
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.runs.hook_log import TRIES, HookLog
from hark.engine.states import Suspended
from hark.engine.workers.worker import Worker
from hark.vocabulary import StateType

from .test_lost_worker import program

if TYPE_CHECKING:
    from .conftest import Stage

KINDS = pytest.mark.parametrize("kind", ["async def", "def"])

SAY = {"async def": "await asay", "def": "say"}
DYING = """
from pathlib import Path

def first_time(name):
    try:
        Path(__file__).with_name(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def die_once(name):
    if first_time(name):
        os.kill(os.getpid(), signal.SIGKILL)
"""


async def notes(stage: Stage) -> list[str]:
    """Return the last words of all notes about hooks, in order."""
    found: list[str] = []
    async with stage.bus.log.read(["hark.ev.hark.hooks.>"]) as batches:
        async for batch in batches:
            found.extend(recorded.event.type.rpartition(".")[2] for recorded in batch.records)
    return found


@KINDS
async def test_a_run_that_is_cancelled_before_it_began_has_its_hooks_called(stage: Stage, kind: str) -> None:
    """Nobody executes it; some worker of its pool loads the code and calls on_cancellation, once."""
    stage.write(
        f"""
        {kind} told(flow, run, state):
            {SAY[kind]}(f"{{flow.name}}-{{state.name.lower()}}")

        @flow(on_cancellation=[told], on_completion=[told])
        {kind} calm():
            pass
        """
    )
    await stage.deploy("calm")
    async with stage.working():
        run = await stage.ask("calm", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
        await stage.control.cancel(run.id)
        await stage.hear("hark.hooks.ran.*")
        assert await stage.said() == {"calm-cancelled": 1}
        assert await HookLog(stage.bus).is_settled(await stage.end(run))


async def test_the_hooks_wait_for_a_worker(stage: Stage) -> None:
    """A run is cancelled while no dispatcher and no worker live: its hooks are called once they do."""
    stage.write(
        """
        async def told(flow, run, state):
            await asay("told")

        @flow(on_cancellation=[told])
        async def calm():
            pass
        """
    )
    await stage.deploy("calm")
    run = await stage.ask("calm")
    await stage.control.cancel(run.id)
    async with stage.working(processes=0):
        await stage.hear("hark.hooks.ran.*")
    async with stage.working(processes=0):
        # A new leader folds the end again, and finds that there is nothing left to do.
        await stage.run("calm")
    assert await stage.said() == {"told": 1}
    assert await notes(stage) == ["began", "ran"]


@KINDS
async def test_a_suspended_run_that_is_cancelled_or_forgotten_has_its_hooks_called(
    stage: Stage, kind: str
) -> None:
    """on_cancellation if somebody cancels it, on_failure if nobody resumes it in time."""
    stage.write(
        f"""
        from hark.engine.flow_runs import suspend_flow_run

        {kind} told(flow, run, state):
            {SAY[kind]}(state.name.lower())

        @flow(on_cancellation=[told], on_failure=[told])
        {kind} patient(timeout: float):
            {"await " if kind == "async def" else ""}suspend_flow_run(timeout=timeout)
        """
    )
    await stage.deploy("patient")
    async with stage.working():
        run = await stage.ask("patient", parameters={"timeout": 600})
        await stage.until(run, lambda now: now.state_name == Suspended().name)
        await stage.control.cancel(run.id)
        await stage.hear("hark.hooks.ran.*")
        await stage.run("patient", parameters={"timeout": 0.1})
        await stage.hear("hark.hooks.ran.*", times=2)
    assert await stage.said() == {"cancelled": 1, "failed": 1}


@pytest.mark.parametrize(
    ("ends", "argument", "word"),
    [("return 1", "on_completion", "completed"), ("raise ValueError('no')", "on_failure", "failed")],
)
async def test_a_process_that_dies_in_a_hook_has_it_called_by_another(
    stage: Stage, ends: str, argument: str, word: str
) -> None:
    """The end of the run stands; the hooks that had not run to their end are called again, with the same state."""
    stage.write(
        f"""
        {DYING.replace(chr(10), chr(10) + "        ")}
        def told(flow, run, state):
            die_once("hook")
            say(f"{{run.id}}-{{state.name}}".lower() + ("-1" if state.is_completed() and state.result() == 1 else ""))

        @flow({argument}=[told])
        def ending():
            say("body")
            {ends}
        """
    )
    await stage.deploy("ending")
    async with stage.working():
        run = await stage.run("ending")
        await stage.hear("hark.hooks.ran.*")
    told = f"{run.id}-{word}" + ("-1" if word == "completed" else "")
    assert await stage.said() == {"body": 1, told: 1}
    assert await stage.states(run) == ["scheduled", "pending", "running", word]


async def test_a_hook_that_ends_its_process_every_time_is_given_up(stage: Stage) -> None:
    """The run keeps its end, the worker its life; the log says that the hooks were abandoned, and why."""
    stage.write(
        """
        def poison(flow, run, state):
            os._exit(3)

        @flow(on_completion=[poison])
        def fine():
            pass

        @flow
        def other():
            pass
        """
    )
    await stage.deploy("fine", "other")
    async with stage.working():
        run = await stage.run("fine")
        await stage.hear("hark.hooks.abandoned.*")
        assert (await stage.run("other")).state_type is StateType.COMPLETED
        assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await notes(stage) == ["began"] * TRIES + ["abandoned"]


async def test_a_run_that_is_given_up_as_crashed_has_its_hooks_called(stage: Stage) -> None:
    """Its process dies more often than crash_retries allow; on_crashed is called in a process that lives."""
    stage.write(
        """
        def told(flow, run, state):
            say(f"{state.type.value.lower()}-{run.attempt}")

        @flow(crash_retries=1, on_crashed=[told])
        def deadly():
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    await stage.deploy("deadly")
    async with stage.working():
        run = await stage.run("deadly")
        await stage.hear("hark.hooks.ran.*")
    assert run.state_type is StateType.CRASHED
    assert await stage.said() == {"crashed-2": 1}


async def test_a_cancelled_run_whose_process_is_killed_has_its_hooks_called(stage: Stage) -> None:
    """It does not stop within the grace, is killed, and on_cancellation is called all the same."""
    stage.write(
        """
        def told(flow, run, state):
            say("told")

        @flow(on_cancellation=[told])
        def stubborn():
            while True:
                try:
                    say("up")
                    time.sleep(60)
                except BaseException:
                    pass
        """
    )
    await stage.deploy("stubborn")
    async with stage.working(engine=EngineConfig(cancel_grace_s=0.2)):
        run = await stage.ask("stubborn")
        await stage.hear("said.up")
        await stage.control.cancel(run.id)
        assert (await stage.end(run)).state_type is StateType.CANCELLED
        await stage.hear("hark.hooks.ran.*")
    assert (await stage.said())["told"] == 1


async def test_hooks_that_ran_are_noted_once_and_runs_without_any_note_nothing(stage: Stage) -> None:
    """One note for a run with hooks, whoever executed it; none for one without."""
    stage.write(
        """
        def told(flow, run, state):
            say("in-process")

        @flow(on_completion=[told])
        def in_process():
            pass

        async def atold(flow, run, state):
            await asay("in-loop")

        @flow(on_completion=[atold])
        async def in_loop():
            pass

        @flow
        async def plain():
            pass
        """
    )
    await stage.deploy("in_process", "in_loop", "plain")
    async with stage.working():
        for name in ("in_process", "in_loop", "plain"):
            assert (await stage.run(name)).state_type is StateType.COMPLETED
        await stage.hear("hark.hooks.ran.*", times=2)
    assert await stage.said() == {"in-process": 1, "in-loop": 1}
    assert await notes(stage) == ["ran", "ran"]


@KINDS
async def test_a_finished_task_whose_process_dies_in_its_hook_has_it_called_when_the_run_goes_on(
    stage: Stage, kind: str
) -> None:
    """The task is not run again; its on_completion is called again, with the recorded result, and only once more."""
    wait = "await " if kind == "async def" else ""
    stage.write(
        f"""
        {DYING.replace(chr(10), chr(10) + "        ")}
        {kind} told(task, run, state):
            if state.result() == 2:
                {SAY[kind]}("so-far")  # is stored, and what was given to the broker before it
                die_once("hook")
            {SAY[kind]}(f"hook-{{state.result()}}")

        @task(on_completion=[told])
        {kind} step(n):
            {SAY[kind]}(f"step-{{n}}")
            return n

        @flow
        {kind} three():
            for n in (1, 2, 3):
                {wait}step(n)
            if first_time("flow"):
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    await stage.deploy("three", executor="process")
    async with stage.working():
        run = await stage.run("three")
    assert run.state_type is StateType.COMPLETED, run.state_message
    assert run.attempt == 3
    said = await stage.said()
    assert {word: count for word, count in said.items() if word.startswith("step")} == {
        "step-1": 1, "step-2": 1, "step-3": 1
    }  # fmt: skip
    # The third was called last before the flow itself died: its note may not have been stored by then.
    assert said["hook-1"] == said["hook-2"] == 1
    assert said["hook-3"] in (1, 2)


async def test_a_finished_subflow_whose_process_dies_in_its_hook_has_it_called_when_the_run_goes_on(
    stage: Stage,
) -> None:
    """The subflow is not run again; its on_completion is called by the next attempt of the run above."""
    stage.write(
        f"""
        {DYING.replace(chr(10), chr(10) + "        ")}
        def told(flow, run, state):
            die_once("hook")
            say(f"hook-{{state.result()}}")

        @flow(on_completion=[told])
        def inner():
            say("inner")
            return 7

        @flow
        def outer():
            return inner()
        """
    )
    await stage.deploy("outer")
    async with stage.working():
        run = await stage.run("outer")
    assert run.state_type is StateType.COMPLETED, run.state_message
    assert await stage.said() == {"inner": 1, "hook-7": 1}
    assert Path(stage.root / "hook").exists()


@KINDS
async def test_a_retry_does_not_drop_the_hooks_of_the_end_before_it(stage: Stage, kind: str) -> None:
    """Cancelled, and retried before any worker could call on_cancellation: it is called all the same, once."""
    stage.write(
        f"""
        {kind} told(flow, run, state):
            {SAY[kind]}(state.name.lower())

        @flow(on_cancellation=[told], on_completion=[told])
        {kind} calm():
            pass
        """
    )
    await stage.deploy("calm")
    async with Dispatcher(stage.bus, EngineConfig()) as dispatcher:
        await dispatcher.leading()
        run = await stage.ask("calm")
        await stage.control.cancel(run.id)
        await stage.control.retry(run.id)
        async with Worker(stage.bus, WorkerConfig(drain_s=0), EngineConfig()):
            await stage.hear("said.completed")
            await stage.hear("said.cancelled")
            await stage.hear("hark.hooks.ran.*", times=2)
    assert await stage.said() == {"cancelled": 1, "completed": 1}


async def test_a_retry_does_not_drop_hooks_whose_worker_was_killed(stage: Stage, home: Path) -> None:
    """The message of the dead worker comes again, and with it the duty, though the run has gone on since."""
    stage.write(
        DYING
        + """
async def told(flow, run, state):
    is_first = first_time("hooked")
    await asay("hook")
    if is_first:
        await asyncio.sleep(1000)

@flow(on_failure=[told])
async def fails_once():
    if first_time("failed"):
        raise ValueError("no")
"""
    )
    await stage.deploy("fails_once")
    engine = EngineConfig(ack_wait_s=2.0)
    async with Dispatcher(stage.bus, engine) as dispatcher:
        await dispatcher.leading()
        with program(home, "Worker(bus, WorkerConfig(processes=0), engine)") as victim:
            run = await stage.ask("fails_once")
            await stage.hear("said.hook")
            victim.kill()
        await stage.control.retry(run.id)
        async with Worker(stage.bus, WorkerConfig(drain_s=0, processes=0), engine):
            assert (await stage.end(run)).state_type is StateType.COMPLETED
            await stage.hear("said.hook", times=2)
            await stage.hear("hark.hooks.ran.*")
    assert await stage.said() == {"hook": 2}
