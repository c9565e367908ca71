"""A worker and a dispatcher on a real broker: runs from request to end."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from hark.bus.subject import RUN_TAKEN
from hark.config import EngineConfig, WorkerConfig
from hark.engine.dispatching.ticket import Ticket
from hark.engine.runs.run import FlowRun, run_id_for
from hark.engine.states import Pending
from hark.engine.workers.worker import Worker
from hark.vocabulary import StateType

if TYPE_CHECKING:
    from .conftest import Stage


async def let_go(worker: Worker, run: FlowRun) -> None:
    """Wait until a worker has a run no more in its hands."""
    with anyio.fail_after(60):
        while run.id in worker.held:  # noqa: ASYNC110  there is no event for it
            await anyio.sleep(0.01)


async def test_async_flows_run_in_the_worker_and_sync_ones_in_a_process(stage: Stage) -> None:
    """Both end COMPLETED with their events in order; only the sync one has left the worker's process."""
    stage.write(
        """
        @flow
        async def in_loop():
            return os.getpid()

        @flow
        def in_process():
            return os.getpid()
        """
    )
    await stage.deploy("in_loop", "in_process")
    async with stage.working():
        # Anybody may publish to the broker what looks like a word to the workers.
        await stage.bus.publisher.publish_raw(f"hark.ev.{RUN_TAKEN}", b'{"id"', "no-word")
        one = await stage.run("in_loop")
        other = await stage.run("in_process")
        for run in (one, other):
            assert run.state_type is StateType.COMPLETED, run.state_message
            assert await stage.states(run) == ["scheduled", "pending", "running", "completed"]
            assert run.attempt == 1
            assert run.flow_version == sha256((stage.root / "flows.py").read_bytes()).hexdigest()[:16]
        pids = [(await stage.control.runs.history(run.id))[-1].event.data for run in (one, other)]
        results = [data["result"]["inline"] for data in pids if isinstance(data, dict)]  # type: ignore[index,call-overload]
        assert results[0] == os.getpid()
        assert results[1] != os.getpid()


async def test_parameters_of_the_request_go_over_those_of_the_deployment(stage: Stage) -> None:
    """Name by name; tags are joined."""
    stage.write(
        """
        @flow
        async def greet(name: str, mark: str = "?"):
            await asay(f"{name}-{mark}")
        """
    )
    await stage.deploy("greet", parameters={"name": "ann", "mark": "x"}, tags=("a",))
    async with stage.working(processes=0):
        run = await stage.run("greet", parameters={"name": "bob"}, tags=["b"])
    assert run.tags == ("a", "b")
    assert await stage.said() == {"bob-x": 1}


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_parameters_that_do_not_fit_fail_the_run_before_it_runs(stage: Stage, kind: str) -> None:
    """Where the text of a flow does not tell what it takes, the flow itself does: FAILED, and no traceback."""
    stage.write(
        f"import functools\nours = functools.partial(flow, retries=2)\n\n@ours()\n{kind} f(day: int):\n    say('ran')\n"
    )
    await stage.deploy("f")
    async with stage.working():
        for parameters, says in (
            ({}, "flow 'f' needs the parameter 'day'"),
            ({"day": 1, "dya": 2}, "flow 'f' takes no parameter 'dya'"),
            ({"day": "monday"}, "day: Input should be a valid integer"),
        ):
            run = await stage.run("f", parameters=parameters)
            assert run.state_type is StateType.FAILED
            assert says in (run.state_message or "")
            assert "Traceback" not in (run.state_message or "")
            assert await stage.states(run) == ["scheduled", "pending", "failed"]
    assert not await stage.said()


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_flow_that_does_not_import_fails_its_run_with_the_traceback(stage: Stage, kind: str) -> None:
    """The run says why; the worker lives, and the flow runs once it is mended."""
    stage.write(f"import no_such_module\n\n@flow\n{kind} broken():\n    pass\n")
    await stage.deploy("broken")
    async with stage.working():
        run = await stage.run("broken")
        assert run.state_type is StateType.FAILED
        assert "ModuleNotFoundError: No module named 'no_such_module'" in (run.state_message or "")
        stage.write(f"@flow\n{kind} broken():\n    pass\n")
        assert (await stage.run("broken")).state_type is StateType.COMPLETED


@pytest.mark.parametrize("head", ["sys.exit(3)", "raise KeyboardInterrupt"])
async def test_a_file_that_ends_the_process_when_imported_fails_its_run(stage: Stage, head: str) -> None:
    """Whatever importing does, it is the run's fault and the run's end."""
    stage.write(f"{head}\n\n@flow\ndef leaver():\n    pass\n")
    await stage.deploy("leaver")
    async with stage.working():
        run = await stage.run("leaver")
    assert run.state_type is StateType.FAILED
    assert "could not be loaded" in (run.state_message or "")


async def test_a_changed_file_is_run_as_it_is_now(stage: Stage) -> None:
    """No restart is needed, neither in the worker's loop nor in a warm process."""
    async with stage.working():
        for number in (1, 2):
            stage.write(
                f"""
                @flow
                async def a():
                    await asay("a{number}")

                @flow
                def s():
                    say("s{number}")
                """
            )
            await stage.deploy("a", "s")
            await stage.run("a")
            await stage.run("s")
    assert await stage.said() == {"a1": 1, "s1": 1, "a2": 1, "s2": 1}


async def test_what_a_flow_leaves_in_a_process_reaches_no_other_deployment(stage: Stage) -> None:
    """Runs of one deployment share a warm process; another deployment gets one of its own."""
    stage.write(
        """
        import json
        seen = getattr(json, "_left_behind", None)

        @flow
        def leave():
            json._left_behind = "here"
            say(f"leave-{os.getpid()}")

        @flow
        def look():
            say(f"look-{seen}-{getattr(json, '_left_behind', None)}".lower())
        """
    )
    await stage.deploy("leave", "look")
    async with stage.working():
        await stage.run("leave")
        await stage.run("leave")
        await stage.run("look")
    said = await stage.said()
    assert said["look-none-none"] == 1
    assert sorted(said.values()) == [1, 2], "two runs of one deployment use one process"


async def test_two_requests_with_one_id_are_one_run(stage: Stage) -> None:
    """Asking twice is asking once, also when both ask at once."""
    stage.write("@flow\nasync def once():\n    await asay('ran')\n")
    await stage.deploy("once")
    run_id = run_id_for("test", "once")
    async with stage.working(processes=0):
        first = await stage.run("once", run_id=run_id)
        again = await stage.ask("once", run_id=run_id)
    assert again.id == first.id
    assert again.state_type is StateType.COMPLETED
    assert await stage.said() == {"ran": 1}


@pytest.mark.parametrize(
    ("how", "says"),
    [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"), ("os.abort()", "SIGABRT")],
)  # fmt: skip
async def test_a_process_that_dies_takes_only_its_run_with_it_and_the_run_goes_on(
    stage: Stage, how: str, says: str
) -> None:
    """Noticed at once, taken up by the same worker, finished tasks not run again."""
    stage.write(
        f"""
        @task
        def step(n):
            say(f"step-{{n}}")
            return n

        @flow
        def fragile(marker: str):
            total = step(1) + step(2)
            if not os.path.exists(marker):
                open(marker, "w").close()
                say("dies")
                {how}
            return total + step(3)
        """
    )
    await stage.deploy("fragile")
    async with stage.working():
        run = await stage.run("fragile", parameters={"marker": str(stage.root / "marker")})
    assert run.state_type is StateType.COMPLETED, run.state_message
    assert run.attempt == 2
    assert await stage.said() == {"step-1": 1, "step-2": 1, "step-3": 1, "dies": 1}
    history = [FlowRun.from_recorded(recorded) for recorded in await stage.control.runs.history(run.id)]
    assert any(says in (then.state_message or "") for then in history)


async def test_a_run_whose_process_dies_again_and_again_is_crashed(stage: Stage) -> None:
    """Taken up `crash_retries` times, then CRASHED with the reason."""
    stage.write(
        """
        @flow(crash_retries=1)
        def doomed():
            say("began")
            os._exit(9)
        """
    )
    await stage.deploy("doomed")
    async with stage.working():
        run = await stage.run("doomed")
    assert run.state_type is StateType.CRASHED
    assert "2 times" in (run.state_message or "")
    assert await stage.said() == {"began": 2}


async def test_a_worker_that_stops_hands_its_runs_back(stage: Stage) -> None:
    """Another goes on with them at once, after the last finished task, and no crash is counted."""
    stage.write(
        """
        @task
        def step(n):
            say(f"step-{n}")

        @flow
        def sync_one(marker: str):
            step(1)
            if not os.path.exists(marker):
                open(marker, "w").close()
                say("sync-waits")
                time.sleep(1000)
            step(2)

        @task
        async def astep(n):
            await asay(f"astep-{n}")

        @flow
        async def async_one(marker: str):
            await astep(1)
            if not os.path.exists(marker):
                open(marker, "w").close()
                await asay("async-waits")
                await asyncio.sleep(1000)
            await astep(2)
        """
    )
    await stage.deploy("sync_one", "async_one")
    async with stage.working():
        runs = [
            await stage.ask(name, parameters={"marker": str(stage.root / name)})
            for name in ("sync_one", "async_one")
        ]
        await stage.hear("said.sync-waits")
        await stage.hear("said.async-waits")
    for run in runs:
        now = await stage.control.get(run.id)
        assert now is not None
        assert (now.state_type, now.state_message) == (StateType.SCHEDULED, "its worker stopped")
    async with stage.working():
        for run in runs:
            ended = await stage.end(run)
            assert ended.state_type is StateType.COMPLETED, ended.state_message
            assert ended.attempt == 2
    said = await stage.said()
    assert {said[word] for word in ("step-1", "step-2", "astep-1", "astep-2")} == {1}


async def test_a_failed_run_is_retried_from_what_it_finished(stage: Stage) -> None:
    """`retry` goes on after the last finished task; `from_start` begins anew."""
    stage.write(
        """
        @task
        def step(n):
            say(f"step-{n}")

        @flow
        def flaky(marker: str):
            step(1)
            if not os.path.exists(marker):
                raise ValueError("not yet")
            step(2)
        """
    )
    await stage.deploy("flaky")
    marker = stage.root / "marker"
    async with stage.working():
        run = await stage.run("flaky", parameters={"marker": str(marker)})
        assert run.state_type is StateType.FAILED
        marker.touch()
        await stage.control.retry(run.id)
        assert (await stage.end(run)).state_type is StateType.COMPLETED
        assert await stage.said() == {"step-1": 1, "step-2": 1}

        marker.unlink()
        run = await stage.run("flaky", parameters={"marker": str(marker)})
        marker.touch()
        await stage.control.retry(run.id, from_start=True)
        assert (await stage.end(run)).state_type is StateType.COMPLETED
        assert await stage.said() == {"step-1": 3, "step-2": 2}


async def test_a_retry_from_the_start_runs_subflows_again(stage: Stage) -> None:
    """Also those that completed, and those in them; a plain retry gives their results."""
    stage.write(
        """
        @flow
        def innermost():
            say("innermost")

        @flow
        def inner():
            say("inner")
            innermost()

        @flow
        def outer(marker: str):
            inner()
            if not os.path.exists(marker):
                raise ValueError("not yet")
        """
    )
    await stage.deploy("outer")
    marker = stage.root / "marker"
    async with stage.working():
        run = await stage.run("outer", parameters={"marker": str(marker)})
        await stage.control.retry(run.id)
        assert (await stage.end(run)).state_type is StateType.FAILED
        assert await stage.said() == {"inner": 1, "innermost": 1}
        await stage.control.retry(run.id, from_start=True)
        assert (await stage.end(run)).state_type is StateType.FAILED
        marker.touch()
        await stage.control.retry(run.id)
        assert (await stage.end(run)).state_type is StateType.COMPLETED
        assert await stage.said() == {"inner": 2, "innermost": 2}


async def test_a_suspended_run_frees_its_worker_and_goes_on_when_resumed(stage: Stage) -> None:
    """What it finished is not run again."""
    stage.write(
        """
        @task
        async def step(n):
            await asay(f"step-{n}")

        @flow
        async def long(marker: str):
            await step(1)
            if not os.path.exists(marker):
                await asay("waits")
                await asyncio.sleep(1000)
            await step(2)
        """
    )
    await stage.deploy("long")
    marker = stage.root / "marker"
    async with stage.working(processes=0) as worker:
        run = await stage.ask("long", parameters={"marker": str(marker)})
        await stage.hear("said.waits")
        suspended = await stage.control.suspend(run.id, reason="later")
        assert (suspended.state_type, suspended.state_name) == (StateType.PAUSED, "Suspended")
        other = await stage.ask("long", parameters={"marker": str(stage.root)})
        await stage.end(other)
        await let_go(worker, run)
        marker.touch()
        await stage.control.resume(run.id)
        assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await stage.said() == {"step-1": 2, "step-2": 2, "waits": 1}


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_run_that_is_resumed_while_it_still_stops_goes_on_once(stage: Stage, kind: str) -> None:
    """It waits until its old process has let go; being asked to stop then is not held against it later."""
    stage.write(
        f"""
        @flow
        {kind} slow_to_stop(marker: str):
            if not os.path.exists(marker):
                try:
                    emit("said.waits")  # in here: it may be asked to stop as soon as that is heard
                    {"await asyncio.sleep(1000)" if kind == "async def" else "time.sleep(1000)"}
                finally:
                    open(marker, "w").close()
                    time.sleep(0.3)
            emit("said.done")
        """
    )
    await stage.deploy("slow_to_stop")
    async with stage.working():
        run = await stage.ask("slow_to_stop", parameters={"marker": str(stage.root / "marker")})
        await stage.hear("said.waits")
        await stage.control.suspend(run.id)
        await stage.control.resume(run.id)
        ended = await stage.end(run)
        assert (ended.state_type, ended.attempt) == (StateType.COMPLETED, 2)
        assert await stage.states(run) == [
            "scheduled", "pending", "running", "suspended", "resuming", "pending", "running", "completed",
        ]  # fmt: skip
    assert await stage.said() == {"waits": 1, "done": 1}


async def test_a_run_that_interrupts_itself_again_and_again_is_crashed(stage: Stage) -> None:
    """What looks like a request to stop and is none counts as a loss, so it has an end."""
    stage.write("@flow\ndef stops():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(10)\n")
    await stage.deploy("stops", crash_retries=2)
    async with stage.working():
        run = await stage.run("stops")
    assert (run.state_type, run.attempt) == (StateType.CRASHED, 3)
    assert "interrupted" in (run.state_message or "")


async def test_a_worker_that_winds_down_leaves_the_run_to_the_one_that_has_it(stage: Stage) -> None:
    """Resumed meanwhile, it runs in another worker; the old one writes nothing of it."""
    stage.write(
        """
        @flow
        def lingers(marker: str):
            if not os.path.exists(marker):
                open(marker, "w").close()
                say("waits")
                try:
                    time.sleep(1000)
                finally:
                    while not os.path.exists(marker + "2"):
                        time.sleep(0.01)
            else:
                say("again")
                time.sleep(0.5)
                say("done")
        """
    )
    await stage.deploy("lingers")
    marker = stage.root / "marker"
    async with stage.working() as old:
        run = await stage.ask("lingers", parameters={"marker": str(marker)})
        await stage.hear("said.waits")
        await stage.control.suspend(run.id)
        async with Worker(stage.bus, WorkerConfig(drain_s=0.0), EngineConfig()):
            await stage.control.resume(run.id)
            await stage.hear("said.again")
            (stage.root / "marker2").touch()
            ended = await stage.end(run)
        await let_go(old, run)
    assert (ended.state_type, ended.attempt) == (StateType.COMPLETED, 2)
    assert await stage.said() == {"waits": 1, "again": 1, "done": 1}


async def test_an_async_flow_can_be_made_to_run_in_a_process(stage: Stage) -> None:
    """`executor: process` keeps a flow that blocks out of the worker's loop; it can be cancelled there, too."""
    stage.write(
        """
        @flow
        async def blocks():
            await asay("in-worker" if os.getpid() == int(open("pid").read()) else "in-process")
            await asyncio.sleep(1000)
        """
    )
    (stage.root / "pid").write_text(str(os.getpid()))
    await stage.deploy("blocks", executor="process")
    async with stage.working():
        run = await stage.ask("blocks")
        await stage.hear("said.>")
        await stage.control.cancel(run.id)
        assert (await stage.end(run)).state_type is StateType.CANCELLED
    assert await stage.said() == {"in-process": 1}


async def test_leaving_a_worker_leaves_no_process(stage: Stage) -> None:
    """Neither children nor the fork server outlive it, and it says that it came and went."""
    stage.write("@flow\ndef f():\n    pass\n")
    await stage.deploy("f")
    async with stage.working() as worker:
        await stage.run("f")
        assert worker.processes is not None
        pids = [worker.processes.server_pid, *worker.processes.pids]
        assert len(pids) >= 2
    assert not [pid for pid in pids if pid is not None and psutil.pid_exists(pid)]
    await stage.hear("worker.started")
    await stage.hear("worker.stopped")


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_a_message_that_was_passed_on_and_not_settled_costs_nothing(
    stage: Stage, is_claimed: bool
) -> None:
    """A worker that died between the two leaves it in both lanes: neither is taken for the other, and the run runs once."""
    stage.write("@flow\ndef steady(): say('ran')")
    await stage.deploy("steady")
    run = await stage.ask("steady")
    ticket = Ticket.issue(run.id, attempt=run.attempt, since=run.seq)
    if is_claimed:
        gone = Pending(details={"lane": "process", "worker": "gone", "token": ticket.token})
        await stage.control.runs.move_exactly(run, gone, attempt=run.attempt + 1)
    work = stage.bus.work
    await work.push("default", "loop", ticket.to_json(), msg_id=ticket.msg_id)
    await work.push("default", "process", ticket.to_json(), msg_id=f"{ticket.msg_id}/process")
    async with Worker(stage.bus, WorkerConfig(drain_s=0), EngineConfig(ack_wait_s=2)):
        assert (await stage.end(run)).state_type is StateType.COMPLETED
        with anyio.fail_after(60):
            while (await stage.bus.connection.api("STREAM.INFO.HARK_WORK"))["state"]["messages"]:  # type: ignore[index,call-overload]
                await anyio.lowlevel.checkpoint()
    assert (await stage.said())["ran"] == 1


async def test_a_second_copy_of_a_message_takes_no_run_from_who_is_at_it(stage: Stage) -> None:
    """Copied more than a deduplication window apart, both are handed out, to two workers: one executes, and is not disturbed."""
    stage.write(
        "@flow\ndef steady(go: str):\n    say('ran')\n    while not os.path.exists(go):\n        time.sleep(0.02)\n"
    )
    await stage.deploy("steady")
    go = stage.root / "go"
    run = await stage.ask("steady", parameters={"go": str(go)})
    ticket = Ticket.issue(run.id, attempt=run.attempt, since=run.seq)
    work, config = stage.bus.work, EngineConfig(ack_wait_s=60)

    async def left() -> int:
        info = await stage.bus.connection.api("STREAM.INFO.HARK_WORK")
        return int(info["state"]["messages"])  # type: ignore[index,call-overload,arg-type]

    async with Worker(stage.bus, WorkerConfig(drain_s=0), config):
        await work.push("default", "process", ticket.to_json(), msg_id=f"{ticket.msg_id}/process")
        await stage.hear("said.ran")
        async with Worker(stage.bus, WorkerConfig(drain_s=0), config):
            # One of them comes to the second worker: the first hands back what it holds already.
            await work.push(
                "default", "process", ticket.to_json(), msg_id=f"{ticket.msg_id}/process/much-later"
            )
            with anyio.fail_after(60):
                while await left() > 1:
                    await anyio.lowlevel.checkpoint()
            go.touch()
            run = await stage.end(run)
            with anyio.fail_after(60):
                while await left():
                    await anyio.lowlevel.checkpoint()
    assert (run.state_type, run.attempt) == (StateType.COMPLETED, 1)
    assert (await stage.said())["ran"] == 1


async def test_a_second_copy_takes_the_run_up_when_the_first_is_settled(stage: Stage) -> None:
    """Nobody else would: what is gone from the queue is not handed out again."""
    stage.write("@flow\ndef steady(): say('ran')")
    await stage.deploy("steady")
    run = await stage.ask("steady")
    ticket = Ticket.issue(run.id, attempt=run.attempt, since=run.seq)
    gone = Pending(details={"lane": "process", "worker": "gone", "token": ticket.token, "message": 999})
    await stage.control.runs.move_exactly(run, gone, attempt=run.attempt + 1)
    await stage.bus.work.push("default", "process", ticket.to_json(), msg_id=f"{ticket.msg_id}/process")
    async with Worker(stage.bus, WorkerConfig(drain_s=0), EngineConfig(ack_wait_s=2)):
        run = await stage.end(run)
    assert (run.state_type, run.attempt) == (StateType.COMPLETED, 2)
