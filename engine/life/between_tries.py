"""The time between two tries of a flow: where the run is then, and when it goes on.

The run of a deployment leaves its worker where the delay is long. A subflow waits in its parent's process, as a task does, and
leaves with it (``resting.py``). Either way the log says that another try is to be made and when it is due, so whoever takes the
run up goes on with that try, and not before its time.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..runs.replay import RETRY
from ..states import AwaitingRetry, Retrying, State, StateType, Suspended
from .flow_steps import CallHooks, OnBus, Sleep, Step
from .resting import Rests

if TYPE_CHECKING:
    from .flow_life import FlowEngine

__all__ = ["await_next_try", "go_on_awaiting", "leaves_for_next_try", "suspended_with_parent"]

_BETWEEN = "between_tries"
"""In the details of a subflow that has left with its parent: its next try is due when ``scheduled_at`` says."""


def leaves_for_next_try(engine: FlowEngine, failed: State) -> Generator[Step, Any, bool]:
    """Where the next try is long in coming, leave it to whichever worker takes the run then; return whether that is so."""
    tracker, delay_s = engine.tracker, engine.flow.retry_delay_seconds
    if tracker is None or engine.run.pool is None or delay_s <= tracker.suspend_after_s:
        return False
    due = datetime.now(UTC) + timedelta(seconds=delay_s)
    yield OnBus(tracker.barrier)
    engine.log.info("failed, and will be tried again in %g s: %s", delay_s, failed.message)
    state = AwaitingRetry(message=failed.message, details={RETRY: True})
    yield from engine.move(state, scheduled_at=due)
    return True


def await_next_try(engine: FlowEngine, failed: State) -> Generator[Step, Any, None]:
    """Wait for the next try in this process, and begin it.

    Raises:
        Suspend: the run is a subflow, and its parent leaves the worker meanwhile.
    """
    delay_s, tracker = engine.flow.retry_delay_seconds, engine.tracker
    due = datetime.now(UTC) + timedelta(seconds=delay_s)
    if tracker is not None:
        # What the failed try finished has to be in the log before it is read back.
        yield OnBus(tracker.barrier)
    waiting = AwaitingRetry(message=failed.message, details={"in_process": True, RETRY: True})
    yield from engine.move(waiting, scheduled_at=due)
    engine.log.info("failed, and will be tried again in %g s: %s", delay_s, failed.message)
    yield from _rest(engine, delay_s)
    yield from engine.move(Retrying(), attempt=engine.run.attempt + 1)
    if tracker is not None:
        yield OnBus(tracker.resume)
    engine.context.renew()
    yield CallHooks(engine.flow.hooks["on_running"], Retrying(run_id=engine.run.id))


def go_on_awaiting(engine: FlowEngine) -> Generator[Step, Any, None]:
    """Wait, in a subflow that its parent has taken up again, for the try that was to be made when its process ended.

    Raises:
        Suspend: the parent leaves the worker meanwhile.
    """
    run = engine.run
    if run.state_type is StateType.PAUSED and run.state_details.get(_BETWEEN):
        # The failure is what it waits for, and is counted: it is not said once more that another try is to be made.
        yield from engine.move(AwaitingRetry(message=run.state_message, details={"in_process": True}))
    elif run.state_name != "AwaitingRetry":
        return
    assert run.scheduled_at is not None
    yield from _rest(engine, (run.scheduled_at - datetime.now(UTC)).total_seconds())
    engine.context.rests = None  # another attempt begins, whose ends are told to another


def suspended_with_parent(engine: FlowEngine, wait: State) -> State:
    """Return the state of a subflow whose parent leaves the worker because of ``wait``."""
    if engine.run.state_name == "AwaitingRetry":
        return Suspended(message=engine.run.state_message, details={_BETWEEN: True})
    return Suspended(message=wait.message, details=wait.details)


def _rest(engine: FlowEngine, delay_s: float) -> Generator[Step, Any, None]:
    if delay_s > 0:
        yield Sleep(delay_s, Rests.of_flow(engine.context, delay_s, has_yielded=engine.has_yielded))
