"""Facts about the run the code is in: ``runtime.flow_run.name``, ``runtime.task_run.run_count``, ``runtime.deployment.name``.

Outside a run, or where there is no such fact, the value is empty (None, an empty list or mapping). For tests, an environment
variable stands in, with the type of the fact (mappings as JSON, lists as JSON or with commas), and for facts that are not
there too: ``HARK__RUNTIME__FLOW_RUN__NAME=…``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..config import runtime_override
from ..errors import DefinitionError
from .context import FlowRunContext, TaskRunContext

if TYPE_CHECKING:
    from .run import FlowRun

__all__ = ["deployment", "flow_run", "task_run"]


def _time(text: str) -> datetime:
    from ..bus.event import parse_time

    return parse_time(text)


def _json(text: str) -> dict[str, Any]:
    import orjson

    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _list(text: str) -> list[str]:
    import orjson

    if text.startswith("["):
        return [str(item) for item in orjson.loads(text)]
    return [item.strip() for item in text.split(",") if item.strip()]


_READ: Mapping[str, Callable[[str], Any]] = {
    "run_count": int, "scheduled_start_time": _time, "tags": _list, "parameters": _json, "job_variables": _json,
    "cause": _json,
}  # fmt: skip
"""How the text in an environment variable becomes a fact that is no text."""


class _Facts:
    """Attributes that are looked up when they are read."""

    _section = ""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            stand_in = runtime_override(self._section, name)
            if stand_in is not None:
                try:
                    return _READ.get(name, str)(stand_in)
                except ValueError as exc:
                    raise DefinitionError(
                        f"HARK__RUNTIME__{self._section}__{name.upper()} is no {name}: {stand_in!r} ({exc})"
                    ) from exc
        return super().__getattribute__(name)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]


class _FlowRunFacts(_Facts):
    """The flow run."""

    _section = "FLOW_RUN"

    @property
    def id(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.id if run else None

    @property
    def name(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.name if run else None

    @property
    def flow_name(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.flow_name if run else None

    @property
    def flow_version(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.flow_version if run else None

    @property
    def tags(self) -> list[str]:
        run = FlowRunContext.get()
        return list(run.flow_run.tags) if run else []

    @property
    def parameters(self) -> dict[str, Any]:
        """By name, as the function got them."""
        run = FlowRunContext.get()
        return dict(run.parameters) if run else {}

    @property
    def run_count(self) -> int:
        """Which attempt this is, from 1; 0 outside a run."""
        run = FlowRunContext.get()
        return run.flow_run.attempt if run else 0

    @property
    def scheduled_start_time(self) -> datetime | None:
        """When the run was to start; outside a run: now."""
        run = FlowRunContext.get()
        return run.flow_run.scheduled_at if run else datetime.now(UTC)

    @property
    def parent_flow_run_id(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.parent if run else None

    @property
    def parent_deployment_id(self) -> str | None:
        """The deployment that the run above is of; None too if it is of none."""
        run = FlowRunContext.get()
        above = run.parent.flow_context if run is not None and run.parent is not None else None
        if above is not None:
            return above.flow_run.deployment
        found = _looked_up(run.flow_run.parent) if run is not None and run.flow_run.parent else None
        return found.deployment if found is not None else None

    @property
    def root_flow_run_id(self) -> str | None:
        """The outermost run that the run is part of, in whatever process that is."""
        run = FlowRunContext.get()
        if run is None:
            return None
        while run.parent is not None and run.parent.flow_context is not None:
            run = run.parent.flow_context
        known: FlowRun = run.flow_run
        while known.parent is not None:
            above = _looked_up(known.parent)
            if above is None:
                return known.parent  # it has left the log, and so has what was above it
            known = above
        return known.id

    @property
    def job_variables(self) -> dict[str, Any] | None:
        """Always empty, outside of a run None: there are no jobs. For flows written for Prefect."""
        return {} if self.id else None

    @property
    def api_url(self) -> str | None:
        return _url("/api/flow-runs/", self.id)

    @property
    def ui_url(self) -> str | None:
        """The page of the service: runs have none of their own."""
        return _url("/", "") if self.id else None

    @property
    def cause(self) -> dict[str, Any] | None:
        """What the run was started by: ``{"kind": …, "name": …, "event": …}``."""
        run = FlowRunContext.get()
        return run.flow_run.cause.to_json() if run and run.flow_run.cause else None


class _TaskRunFacts(_Facts):
    """The task run."""

    _section = "TASK_RUN"

    @property
    def id(self) -> str | None:
        run = TaskRunContext.get()
        return run.task_run.id if run else None

    @property
    def name(self) -> str | None:
        run = TaskRunContext.get()
        return run.task_run.name if run else None

    @property
    def task_name(self) -> str | None:
        run = TaskRunContext.get()
        return run.task.name if run else None

    @property
    def tags(self) -> list[str]:
        run = TaskRunContext.get()
        return sorted(run.task_run.tags) if run else []

    @property
    def parameters(self) -> dict[str, Any]:
        run = TaskRunContext.get()
        return dict(run.parameters) if run else {}

    @property
    def run_count(self) -> int:
        """Which try this is, from 1; 0 outside a task."""
        run = TaskRunContext.get()
        return run.task_run.run_count if run else 0

    @property
    def api_url(self) -> str | None:
        return _url("/api/task-runs/", self.id)

    @property
    def ui_url(self) -> str | None:
        return _url("/", "") if self.id else None


class _DeploymentFacts(_Facts):
    """The deployment the flow run belongs to."""

    _section = "DEPLOYMENT"

    @property
    def name(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.deployment if run else None

    id = name

    @property
    def version(self) -> str | None:
        """Of the flow, as the deployment has it."""
        run = FlowRunContext.get()
        return run.flow_run.flow_version if run and run.flow_run.deployment else None

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as the run was asked for, before checking and coercion."""
        run = FlowRunContext.get()
        return dict(run.flow_run.parameters) if run and run.flow_run.deployment else {}

    @property
    def flow_run_id(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.id if run and run.flow_run.deployment else None


def _url(path: str, id_: str | None) -> str | None:
    if id_ is None:
        return None
    from ..config import load_settings

    return f"{load_settings().api_address.rstrip('/')}{path}{id_}"


_above: dict[str, FlowRun] = {}
_ABOVE_MOST = 1000


def _looked_up(run_id: str) -> FlowRun | None:
    """Return a run of another process, from the log; None if it is not there any more. What is asked of it never changes."""
    found = _above.get(run_id)
    if found is None:
        from ..vocabulary import FlowRunId
        from .either import blocking_session
        from .run_log import RunLog

        session = blocking_session("runtime.flow_run")
        found = session.call(RunLog(session.bus).get, FlowRunId(run_id))
        if found is not None:
            if len(_above) >= _ABOVE_MOST:
                _above.clear()
            _above[run_id] = found
    return found


flow_run = _FlowRunFacts()
task_run = _TaskRunFacts()
deployment = _DeploymentFacts()
