"""What the life of a subflow's run has to do with the runs around it, in the same process."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..vocabulary import StateType
from .context import FlowRunContext
from .flow_steps import OnBus, Step

__all__ = ["is_cancelled_above", "tell_above"]


def tell_above(context: FlowRunContext) -> None:
    """Leave it to the run above to end this one, should it come to its own end without taking it up again."""
    above = context.parent.flow_context if context.parent is not None else None
    if above is None or above.tracker is None or context.tracker is None:
        return
    above.left.extend(context.left)
    if not context.flow_run.is_final:
        above.left.append(context.flow_run)


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
