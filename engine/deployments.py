"""Running deployments from code (``run_deployment``), and where the code of a flow is, so that a worker finds it.

What describes a deployment in code, ``flow.to_deployment``, is higher up (``server/description.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DefinitionError, UnknownName
from ..vocabulary import FlowRunId, JsonObject, StateType
from .calls.parameters import parameters_json
from .context import FlowRunContext, current_run
from .futures import resolve_futures_to_results, settle_futures
from .runs.replay import begins_anew
from .runs.run import Cause, FlowRun, run_id_for
from .sync_async.either import Either

if TYPE_CHECKING:
    from ..bus.session import Session
    from .code_source import GitSource
    from .dispatching.control import Control
    from .dispatching.deployment import Deployment
    from .flows import Flow

__all__ = ["EntrypointType", "arun_deployment", "entrypoint_of", "run_deployment", "where_of"]

S = StateType


# --- running ------------------------------------------------------------------------------------------


@Either
async def run_deployment(
    session: Session,
    name: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    scheduled_time: datetime | None = None,
    flow_run_name: str | None = None,
    timeout: float | None = None,
    poll_interval: float | None = None,
    tags: Iterable[str] | None = None,
    idempotency_key: str | None = None,
    work_queue_name: str | None = None,
    as_subflow: bool = True,
    job_variables: Mapping[str, Any] | None = None,
    client: object = None,
) -> FlowRun:
    """Run a deployment and return its run once it has ended; ``run.state.result()`` is what it returned.

    As ``await run_deployment(…)`` in async code. A run that fails is returned like any other: look at ``run.state``.
    In a flow, the run is the child of the one the code is in. When a flow is resumed or retried, it gets the same run
    again; one that did not complete before a retry is retried with it.

    Args:
        name: of the deployment; ``flow/deployment`` names its flow, too.
        parameters: over those of the deployment; futures among them are waited for.
        scheduled_time: when it is to start; default now.
        timeout: in seconds; the run is returned as it is by then. 0: at once. None: when it has ended.
        poll_interval: does nothing here: the end is heard of from the log. For flows written for Prefect.
        idempotency_key: asking twice with the same one is asking once.
        as_subflow: False: a run of its own, which does not end with this one.
        job_variables, client: do nothing here: there are no jobs to configure. For flows written for Prefect.
    Raises:
        UnknownName: there is no such deployment.
        ParameterError: the parameters do not fit.
        ValueError: the time limit is negative.
    """
    from .dispatching.control import Control

    if timeout is not None and timeout < 0:
        raise ValueError(f"`timeout` cannot be negative, got {timeout}: leave it out to wait for the end")
    del poll_interval, job_variables, client
    control = Control(session.bus)
    deployment = await _deployment(control, name)
    given = dict(parameters or {})
    await settle_futures(given)
    values = parameters_json(resolve_futures_to_results(given))
    parent = FlowRunContext.get() if as_subflow else None
    run_id: FlowRunId | None = None
    if idempotency_key is not None:
        run_id = run_id_for("idempotency", deployment.name, idempotency_key)
    elif parent is not None and parent.tracker is not None:
        run_id = await _id_in_parent(control, parent, deployment.name, values)
    cause = (
        Cause("flow-run", parent.flow_run.name, event=parent.flow_run.event_id or parent.flow_run.causationid)
        if parent is not None
        else Cause("api", "run_deployment")
    )
    run = await control.run_deployment(
        deployment.name, parameters=values, tags=tuple(tags or ()), queue=work_queue_name,
        scheduled_at=scheduled_time, run_id=run_id, run_name=flow_run_name or "", cause=cause,
        parent=parent.flow_run.id if parent is not None and parent.tracker is not None else None,
    )  # fmt: skip
    if parent is not None and run.is_final and run.state_type is not S.COMPLETED:
        run = await _again_if_retried(control, parent, run)
    if timeout == 0:
        return run
    try:
        return await control.wait(run.id, timeout_s=timeout)
    except TimeoutError:
        return await control.get(run.id) or run


arun_deployment = run_deployment.aio


async def _deployment(control: Control, name: str) -> Deployment:
    flow_name, _, short = str(name).rpartition("/")
    deployment = await control.deployment(short)
    if flow_name and flow_name != deployment.shown_flow_name:
        raise UnknownName("deployment", name, known=[f"{deployment.shown_flow_name}/{deployment.name}"])
    return deployment


async def _id_in_parent(
    control: Control, parent: FlowRunContext, name: str, parameters: JsonObject
) -> FlowRunId:
    """Return the id of the run that this very call asks for, the same when the parent is taken up again."""
    context = current_run.get()
    assert context is not None
    key, _ = context.calls.key(f"run_deployment:{name}", parameters)
    run = parent.flow_run
    # A parent that is run again from its start asks for everything anew.
    anew = begins_anew(await control.runs.history(run.id)) if run.attempt > 1 else 0
    run_id = run_id_for("run-deployment", run.id, key, str(anew))
    undoing = parent.tracker.undoing if parent.tracker is not None else None
    if undoing is not None:
        child = await control.get(run_id)
        if child is None or not child.is_final:
            undoing.stop()
    return run_id


async def _again_if_retried(control: Control, parent: FlowRunContext, child: FlowRun) -> FlowRun:
    """Retry a child that had failed before its parent was tried again."""
    retried = 0
    for recorded in await control.runs.history(parent.flow_run.id):
        data: Any = recorded.event.data
        is_retry = data["state"]["type"] == S.SCHEDULED and data.get("previous") in (
            "FAILED",
            "CRASHED",
            "CANCELLED",
        )
        if is_retry or recorded.event.type == "flow-run.retrying":
            retried = recorded.seq
    if child.seq < retried:
        return await control.retry(child.id, reason=f"its parent {parent.flow_run.name} was retried")
    return child


# --- where its code is --------------------------------------------------------------------------------


class EntrypointType(StrEnum):
    """How the place of a flow is written down: as a file, or as a module that can be imported."""

    FILE_PATH = "file_path"
    MODULE_PATH = "module_path"


def where_of(flow: Flow[..., Any], *, as_module: bool = False) -> tuple[str, str | None, GitSource | None]:
    """Return how a worker finds a flow: its entrypoint, the folder that is relative to, and the repository to fetch first."""
    if flow._origin is None:
        return *entrypoint_of(flow, as_module=as_module), None
    from .code_source import GitRepository

    source, entrypoint = flow._origin
    if isinstance(source, GitRepository):
        return entrypoint, None, source.stored()
    return entrypoint, str(source.path), None


def entrypoint_of(flow: Flow[..., Any], *, as_module: bool = False) -> tuple[str, str]:
    """Return (entrypoint, folder it is relative to) by which a worker finds a flow.

    Args:
        as_module: name the module, also where it is at the top.
    Raises:
        DefinitionError: it is not at the top level of a file, so no other process can find it.
    """
    import inspect

    function: Callable[..., Any] = inspect.unwrap(flow.fn)
    module = sys.modules.get(getattr(function, "__module__", ""))
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    what = _name_in(module, flow) if module is not None else None
    if file is None or what is None or not Path(file).exists():
        raise DefinitionError(
            f"no other process can find flow {flow.name!r}: it has to stand at the top level of a file",
            hint="move it out of the function it is made in, and give it a name there",
        )
    source = Path(file).resolve()
    name = module.__name__ if module is not None else "__main__"
    if ("." in name or as_module) and name != "__main__":
        root = source.parent if source.name != "__init__.py" else source.parent.parent
        for _ in name.split(".")[:-1]:
            root = root.parent
        return f"{name}:{what}", str(root)
    return f"{source.name}:{what}", str(source.parent)


def _name_in(module: Any, flow: Flow[..., Any]) -> str | None:
    """Return the name under which a module has the flow, or the flow it is a variant of."""
    same: list[str] = [str(name) for name, value in vars(module).items() if value is flow]
    if same:
        return same[0]
    for name, value in vars(module).items():
        if getattr(value, "fn", None) is flow.fn and type(value) is type(flow):
            return str(name)
    return None
