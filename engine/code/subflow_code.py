"""Finding the code of a subflow without the run it is part of: for whoever calls its hooks once that run's process is gone.

A subflow's run says where its flow is, as the run of a deployment does. The folder or the repository that this is relative to,
and the pool whose workers have it, are those of the outermost run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .entrypoint import split_entrypoint
from .named_code import NO_NAME, name_of

if TYPE_CHECKING:
    from ..context import FlowRunContext
    from ..flows import Flow
    from ..runs.run import FlowRun
    from ..runs.run_log import RunLog

__all__ = ["entrypoint_within", "outermost_run", "unfindable"]

_DEEPEST = 1000
"""Runs above one another that are looked at: beyond what Python can call."""


def entrypoint_within(above: FlowRunContext, flow: Flow[..., Any]) -> str | None:
    """Return where the flow of a subflow run is found; None where no worker runs what is above, or nothing is owed to it.

    A flow that has hooks and that nobody else can find is named all the same: ``unfindable`` says why it cannot be.
    """
    top = above
    while top.parent is not None and top.parent.flow_context is not None:
        top = top.parent.flow_context
    if top.flow_run.pool is None or top.flow_run.entrypoint is None:
        return None
    named = name_of(flow)
    if named is None or (NO_NAME in named[1] and not any(flow.hooks.values())):
        return None
    module, what = named
    where, _ = split_entrypoint(top.flow_run.entrypoint)
    # A file that is run by its path may have been imported under a name that nothing else finds it by.
    same = getattr(getattr(top.flow.fn, "__func__", top.flow.fn), "__module__", None) == module
    return f"{where if same else module}:{what}"


def unfindable(run: FlowRun) -> str | None:
    """Return why the code of a run cannot be found by its entrypoint; None if nothing is known against that."""
    entrypoint = run.entrypoint or ""
    if "<" not in entrypoint:
        return None
    where, _, what = entrypoint.rpartition(":")
    what = what.removesuffix(f".{NO_NAME}")
    return (
        f"flow {run.flow_name!r} ({what} in {where}) was made while its parent ran, so no other process can find it; "
        "give it a name at the top of a module, with_options included"
    )


async def outermost_run(runs: RunLog, run: FlowRun) -> FlowRun | None:
    """Return the run that ``run`` is part of in the end, itself if it is no subflow; None if that has left the log."""
    for _ in range(_DEEPEST):
        if run.pool is not None or run.parent is None:
            return run
        above = await runs.get(run.parent)
        if above is None:
            return None
        run = above
    return None
