"""What becomes of a flow run that was stopped from outside: its call was cancelled, or its process was told to end."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ...errors import MoveRefused, RunLost
from ...vocabulary import StateType
from ..runs.final_state import state_of_crash
from ..states import Cancelled, State
from .flow_steps import OnBus, Step
from .runs_above import is_cancelled_above

if TYPE_CHECKING:
    from .flow_life import FlowEngine

__all__ = ["end_interrupted"]


def end_interrupted(engine: FlowEngine, exc: BaseException) -> Generator[Step, Any, None]:
    """Write what the run became, if that is ours to write.

    It may have been stopped in waiting for the answer to its end, or behind it: that end is the one it has, then. Its hooks are
    told of it, unless that had begun.

    Raises:
        RunLost: another has the run, or has ended it.
    """
    ending = engine.ending
    if ending is not None and engine.tracker is None:
        if not engine.has_told_end:
            yield from engine.call_hooks_of(ending)
        return
    try:
        yield from _end(engine, exc)
    except (RunLost, MoveRefused):
        # Refused: its end was still on its way when we looked.
        if ending is None or not (yield from _has_ended_as(engine, ending)):
            raise
        if not engine.has_told_end:
            yield from engine.call_hooks_of(ending)


def _end(engine: FlowEngine, exc: BaseException) -> Generator[Step, Any, None]:
    tracker = engine.tracker
    if tracker is not None:
        now = yield OnBus(tracker.look)
        engine.follow()
        if now.attempt != engine.run.attempt or now.is_final:
            raise RunLost(engine.run.id, reason=f"it is {now.state_name}, attempt {now.attempt}") from exc
        if now.state_type is StateType.CANCELLING:
            yield from engine.end(Cancelled(message=now.state_message or "cancelled"))
            return
        cancelled_above = yield from is_cancelled_above(engine.context)
        if cancelled_above:
            yield from engine.end(Cancelled(message="its parent was cancelled"))
            return
        if tracker.leaves_interrupted:
            yield OnBus(tracker.barrier)
            return
    yield from engine.end(state_of_crash(exc, run_id=engine.run.id))


def _has_ended_as(engine: FlowEngine, ending: State) -> Generator[Step, Any, bool]:
    tracker = engine.tracker
    assert tracker is not None, "only a tracked run can be lost"
    now = yield OnBus(tracker.look)
    if (now.attempt, now.state_type, now.state_name) != (engine.run.attempt, ending.type, ending.name):
        return False
    tracker.flow_run = engine.context.flow_run = now
    return True
