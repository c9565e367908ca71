"""A worker whose runs are cancelled, or ended by force: how each kind of flow stops, and what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hark.config import EngineConfig
from hark.vocabulary import StateType

if TYPE_CHECKING:
    from .conftest import Stage


async def test_cancelling_an_async_flow_cancels_its_scope(stage: Stage) -> None:
    """The flow may clean up; then the run is CANCELLED, and its place is free."""
    stage.write(
        """
        @flow
        async def forever():
            await asay("began")
            try:
                await asyncio.sleep(1000)
            finally:
                await asay("cleaned-up")
        """
    )
    await stage.deploy("forever")
    async with stage.working(processes=0) as worker:
        run = await stage.ask("forever")
        await stage.hear("said.began")
        cancelling = await stage.control.cancel(run.id, reason="enough")
        assert cancelling.state_type is StateType.CANCELLING
        run = await stage.end(run)
        assert run.state_type is StateType.CANCELLED
        assert run.state_message == "enough"
    assert worker.held == []
    assert await stage.states(run) == ["scheduled", "pending", "running", "cancelling", "cancelled"]


async def test_cancelling_a_sync_flow_raises_in_its_main_thread(stage: Stage) -> None:
    """Also out of a blocking call; `except Exception` does not swallow it, `finally` runs."""
    stage.write(
        """
        @flow
        def forever():
            try:
                say("began")  # heard before it returns, so already here it may be interrupted
                while True:
                    try:
                        time.sleep(1000)
                    except Exception:
                        pass
            finally:
                say("cleaned-up")
        """
    )
    await stage.deploy("forever")
    async with stage.working():
        run = await stage.ask("forever")
        await stage.hear("said.began")
        await stage.control.cancel(run.id)
        run = await stage.end(run)
    assert run.state_type is StateType.CANCELLED
    assert await stage.said() == {"began": 1, "cleaned-up": 1}


async def test_a_sync_flow_that_does_not_stop_is_killed_after_the_grace(stage: Stage) -> None:
    """The process dies, the worker does not, and the run is CANCELLED and says how."""
    stage.write(
        """
        @flow
        def stubborn():
            began = False
            while True:
                try:
                    if not began:
                        began = True
                        say("began")
                    time.sleep(1000)
                except BaseException:
                    pass
        """
    )
    await stage.deploy("stubborn")
    async with stage.working(engine=EngineConfig(cancel_grace_s=0.3)):
        run = await stage.ask("stubborn")
        await stage.hear("said.began")
        await stage.control.cancel(run.id)
        run = await stage.end(run)
        assert run.state_type is StateType.CANCELLED
        assert "SIGKILL" in (run.state_message or "")
        await stage.deploy("after")
        stage.write("@flow\ndef after():\n    pass\n")
        assert (await stage.run("after")).state_type is StateType.COMPLETED


async def test_an_async_flow_that_does_not_stop_is_told_of_with_the_reason(stage: Stage) -> None:
    """Nothing can end it, so the run is CANCELLED after the grace; why it was to stop is still said."""
    stage.write(
        """
        import anyio

        @flow
        async def stubborn():
            await asay("began")
            with anyio.CancelScope(shield=True):
                while not os.path.exists(__file__ + "-end"):
                    await anyio.sleep(0.01)
        """
    )
    await stage.deploy("stubborn")
    async with stage.working(engine=EngineConfig(cancel_grace_s=0.2)):
        run = await stage.ask("stubborn")
        await stage.hear("said.began")
        await stage.control.cancel(run.id, reason="no longer wanted")
        run = await stage.end(run)
        (stage.root / "flows.py-end").touch()
        assert run.state_type is StateType.CANCELLED
        assert run.state_message == "no longer wanted; it has not stopped when asked to"


async def test_hooks_of_a_run_that_ends_itself_as_cancelled_are_not_cut_off(stage: Stage) -> None:
    """The worker hears its own event; that must not stop what follows it."""
    stage.write(
        """
        from hark.engine.states import Cancelled

        async def hook(flow, run, state):
            await asyncio.sleep(0.3)
            await asay("hook-done")

        @flow(on_cancellation=[hook])
        async def gives_up():
            return Cancelled(message="not today")
        """
    )
    await stage.deploy("gives_up")
    async with stage.working(processes=0, drain_s=10):
        run = await stage.run("gives_up")
        assert run.state_type is StateType.CANCELLED
    assert await stage.said() == {"hook-done": 1}


async def test_a_run_whose_end_was_forced_is_stopped_after_the_grace(stage: Stage) -> None:
    """`set_state` by hand does not leave the code running for ever."""
    stage.write(
        """
        @flow
        async def forever():
            await asay("began")
            try:
                await asyncio.sleep(1000)
            finally:
                await asay("stopped")
        """
    )
    await stage.deploy("forever")
    async with stage.working(processes=0, engine=EngineConfig(cancel_grace_s=0.1)):
        run = await stage.ask("forever")
        await stage.hear("said.began")
        await stage.control.set_state(run.id, StateType.CRASHED, message="by hand")
        await stage.hear("said.stopped")
    assert await stage.states(run) == ["scheduled", "pending", "running", "crashed"]


async def test_a_run_that_has_not_started_is_cancelled_at_once(stage: Stage) -> None:
    """No worker is needed to cancel what no worker has."""
    stage.write("@flow\nasync def f():\n    pass\n")
    await stage.deploy("f")
    run = await stage.ask("f")
    assert (await stage.control.cancel(run.id)).state_type is StateType.CANCELLED
    assert (await stage.control.cancel(run.id)).state_type is StateType.CANCELLED, "asking again is no error"
    async with stage.working(processes=0):
        other = await stage.run("f")
    assert other.state_type is StateType.COMPLETED
    assert await stage.states(run) == ["scheduled", "cancelled"]


async def test_a_run_that_cancels_its_own_task_is_crashed(stage: Stage) -> None:
    """Nobody has cancelled it: it is not CANCELLED, and its end says what happened."""
    stage.write(
        """
        @flow
        async def itself():
            asyncio.current_task().cancel()
            await asyncio.sleep(1000)
        """
    )
    await stage.deploy("itself", crash_retries=0)
    async with stage.working(processes=0):
        ended = await stage.run("itself")
    assert ended.state_type is StateType.CRASHED
    assert "cancelled the task that it was in" in str(ended.state_message)
