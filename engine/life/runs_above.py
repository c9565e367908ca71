"""What the life of a subflow's run has to do with the runs around it, in the same process."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ...vocabulary import StateType
from ..context import FlowRunContext, TaskRunContext
from .flow_steps import OnBus, Step

__all__ = ["is_cancelled_above", "runs_around", "stays_cancelled", "tell_above"]


def runs_around(flow: FlowRunContext) -> tuple[list[FlowRunContext], bool]:
    """Return a flow run and those around it, innermost first, and whether a task called any of them.

    The last may still have a parent: a task that was called outside of flows.
    """
    around, is_in_task = [flow], False
    while (parent := around[-1].parent) is not None:
        is_in_task = is_in_task or not isinstance(parent, FlowRunContext)
        if (above := parent.flow_context) is None:
            break
        around.append(above)
    return around, is_in_task


def tell_above(context: FlowRunContext) -> None:
    """Leave it to the run above to end this one, should it come to its own end without taking it up again."""
    above = context.parent.flow_context if context.parent is not None else None
    if above is None or above.tracker is None or context.tracker is None:
        return
    above.left.extend(context.left)
    if not context.flow_run.is_final:
        above.left.append(context.flow_run)


def stays_cancelled(context: FlowRunContext) -> bool:
    """Return whether the run above, taken up again, finds this one as it was: cancelled, and not to be run again.

    So it is if that was cancelled while the run above was on its way, be it suspended or lost. Where the run above, or the
    task that makes the call, is tried again, that is a new try of this one, too.
    """
    above, run = context.parent, context.flow_run
    if above is None or run.state_type is not StateType.CANCELLED:
        return False
    if isinstance(above, TaskRunContext) and above.task_run.run_count > 1:
        return False
    flow = above.flow_context
    return flow is not None and flow.tracker is not None and run.seq > flow.tracker.retried_at


def is_cancelled_above(context: FlowRunContext) -> Generator[Step, Any, bool]:
    """Return whether a run around this one has been, or is to be, cancelled."""
    above = context.parent
    while above is not None:
        flow = above.flow_context
        if flow is None:
            return False
        if flow.tracker is not None:
            now = yield OnBus(flow.tracker.look)
            if now.state_type in (StateType.CANCELLING, StateType.CANCELLED):
                return True
        above = flow.parent
    return False
