"""Saying in a run's log that a long wait holds its worker, where it cannot be waited out without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..context import FlowRunContext, TaskRunContext, current_run
from ..logging import logger_of_flow_run
from .runs_above import runs_around

if TYPE_CHECKING:
    from .tracking import FlowTracker

__all__ = ["HAS_YIELDED", "IN_HOOK", "IN_TASK", "say_held", "say_held_here"]

IN_HOOK = "its run has ended, and a hook of that has called it"
IN_TASK = "it is part of a task, whose code would have to run again"
HAS_YIELDED = "it has yielded values, which its reader would not get again"


def say_held(
    flow: FlowRunContext, outermost: FlowTracker, what: str, why: str, *, does: str, for_s: float | None
) -> None:
    """Say in a run's log, once for each task or flow and each thing that it does, that a long wait of it holds a worker.

    Args:
        outermost: of the run that the worker has. does: with ``{}`` in the place of how long. for_s: that; None: nobody knows.
    """
    told = f"{what} {does}"
    if told in outermost.told_to_hold or flow.tracker is None:
        return
    outermost.told_to_hold.add(told)
    logger_of_flow_run(flow.flow_run, flow.tracker.session).warning(
        "%s %s in place and holds its worker: %s",
        what,
        does if for_s is None else does.format(f"{for_s:g} s"),
        why,
    )


def say_held_here(does: str, for_s: float | None) -> None:
    """Say the same of code that waits by itself in a task, or in a subflow that a task called; nothing where it holds no worker.

    Args:
        does, for_s: as of ``say_held``.
    """
    here = current_run.get()
    flow = here.flow_context if here is not None else None
    if here is None or flow is None or flow.tracker is None:
        return
    around, is_in_task = runs_around(flow)
    outermost = around[-1]
    is_in_task = is_in_task or isinstance(here, TaskRunContext)
    if not is_in_task or outermost.tracker is None or outermost.flow_run.pool is None:
        return
    if for_s is None or for_s > flow.tracker.suspend_after_s:
        what = f"task {here.task.name!r}" if isinstance(here, TaskRunContext) else f"flow {here.flow.name!r}"
        say_held(flow, outermost.tracker, what, IN_TASK, does=does, for_s=for_s)
