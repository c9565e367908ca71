"""A long wait of the code itself, ``sleep`` or ``wait_for_event``, where its run cannot leave for it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from ..context import FlowRunContext, TaskRunContext, current_run
from .background_place import suspend_after_s, wait_in_background
from .holding import IN_TASK, HeldWait, log_of_flow
from .resting import held_of
from .runs_above import runs_around

__all__ = ["held_here", "held_later"]


def held_here(does: str, for_s: float | None, why: str | None = None) -> AbstractContextManager[None]:
    """Return a block for waiting in a task, or in a subflow that a task called. One that does nothing where that holds no worker.

    Args:
        does: what the code does, with ``{}`` in the place of how long. for_s: that; None: nobody knows, and it has been long.
        why: why its run does not leave for it, where that is not because it is in a task.
    """
    here = current_run.get()
    flow = here.flow_context if here is not None else None
    if flow is None and isinstance(here, TaskRunContext):
        return wait_in_background(here, does, for_s) or nullcontext()
    if here is None or flow is None or flow.tracker is None:
        return nullcontext()
    around, is_in_task = runs_around(flow)
    is_in_task = is_in_task or isinstance(here, TaskRunContext)
    is_short = for_s is not None and for_s <= flow.tracker.suspend_after_s
    held = held_of(around) if (why or is_in_task) and not is_short else None
    if held is None:
        return nullcontext()
    what = f"task {here.task.name!r}" if isinstance(here, TaskRunContext) else f"flow {here.flow.name!r}"
    log = partial(log_of_flow, flow)
    return HeldWait(held, what, does=does, for_s=for_s, why=why or IN_TASK, log=log, code=here)


@contextmanager
def held_later(does: str, why: str | None = None) -> Generator[None]:
    """Do what ``held_here`` does, from when the wait has been long: it may be over at any time. In a running loop."""
    flow = FlowRunContext.get()
    after_s = (
        flow.tracker.suspend_after_s if flow is not None and flow.tracker is not None else suspend_after_s()
    )
    if after_s is None:
        yield
        return
    with ExitStack() as stack:
        timer = asyncio.get_running_loop().call_later(
            after_s, lambda: stack.enter_context(held_here(does, None, why))
        )
        try:
            yield
        finally:
            timer.cancel()
