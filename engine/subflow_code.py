"""Finding the code of a subflow without the run it is part of: for whoever calls its hooks once that run's process is gone.

A subflow's run says where its flow is, as the run of a deployment does. The folder or the repository that this is relative to,
and the pool whose workers have it, are those of the outermost run.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .entrypoint import split_entrypoint

if TYPE_CHECKING:
    from .context import FlowRunContext
    from .flows import Flow
    from .run import FlowRun
    from .run_log import RunLog

__all__ = ["entrypoint_within", "outermost_run", "unfindable"]

_NO_NAME = "<without a name>"
"""The last word of an entrypoint that says which flow it was and leads nowhere."""
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
    fn = getattr(flow.fn, "__func__", flow.fn)
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not module or not qualname or module == "__main__":
        return None
    what = _name_of(flow, fn, qualname)
    if what is None:
        if not any(flow.hooks.values()):
            return None
        what = f"{qualname}.{_NO_NAME}"
    where, _ = split_entrypoint(top.flow_run.entrypoint)
    # A file that is run by its path may have been imported under a name that nothing else finds it by.
    same = getattr(getattr(top.flow.fn, "__func__", top.flow.fn), "__module__", None) == module
    return f"{where if same else module}:{what}"


def _name_of(flow: Flow[..., Any], fn: Any, qualname: str) -> str | None:
    """Return the name under which the flow, or one of the same function and hooks, stands in its module; None: none."""
    # Not ``sys.modules``: a worker that serves several folders has modules of the same name in turn.
    names = getattr(inspect.unwrap(fn), "__globals__", {})
    if "<" not in qualname:
        first, *rest = qualname.split(".")
        thing: Any = names.get(first)
        for name in rest:
            thing = vars(thing).get(name) if isinstance(thing, type) else None
        if (
            getattr(getattr(thing, "fn", None), "__func__", getattr(thing, "fn", None)) is fn
            and thing.hooks == flow.hooks
        ):
            return qualname
    # As ``other = it.with_options(on_failure=[…])``.
    return next((name for name, value in list(names.items()) if value is flow), None)


def unfindable(run: FlowRun) -> str | None:
    """Return why the code of a run cannot be found by its entrypoint; None if nothing is known against that."""
    entrypoint = run.entrypoint or ""
    if "<" not in entrypoint:
        return None
    where, _, what = entrypoint.rpartition(":")
    what = what.removesuffix(f".{_NO_NAME}")
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
