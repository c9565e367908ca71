"""Facts about the run the code is in: ``runtime.flow_run.name``, ``runtime.task_run.run_count``, ``runtime.deployment.name``.

Outside a run, or where there is no such fact, the value is empty (None, an empty list or mapping). For tests, an environment
variable stands in, with the type of the fact (mappings as JSON, lists as JSON or with commas), and for facts that are not
there too: ``HARK__RUNTIME__FLOW_RUN__NAME=…``. ``HARK__FLOW_RUN_ID=…`` says which run a process without one is about: its
facts are read from the log, at most once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..config import flow_run_override, runtime_override
from ..errors import DefinitionError
from .context import FlowRunContext, TaskRunContext

if TYPE_CHECKING:
    from .runs.run import FlowRun

__all__ = ["deployment", "flow_run", "task_run"]


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


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


class NoSuchFact(DefinitionError, ValueError):
    """What an environment variable says of the run is not what the fact is. A ``ValueError`` too, as in Prefect."""


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
                    raise NoSuchFact(
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
        run = _flow_run()
        return run.id if run else flow_run_override()

    @property
    def name(self) -> str | None:
        run = _flow_run()
        return run.name if run else None

    @property
    def flow_name(self) -> str | None:
        run = _flow_run()
        return run.flow_name if run else None

    @property
    def flow_version(self) -> str | None:
        run = _flow_run()
        return run.flow_version if run else None

    @property
    def tags(self) -> list[str]:
        run = _flow_run()
        return list(run.tags) if run else []

    @property
    def parameters(self) -> dict[str, Any]:
        """By name, as the function got them."""
        here = FlowRunContext.get()
        if here is not None:
            return dict(here.parameters)
        run = _flow_run()
        return dict(run.parameters) if run else {}

    @property
    def run_count(self) -> int:
        """Which attempt this is, from 1; 0 outside a run."""
        run = _flow_run()
        return run.attempt if run else 0

    @property
    def scheduled_start_time(self) -> datetime | None:
        """When the run was to start; outside a run: now."""
        run = _flow_run()
        return run.scheduled_at if run else datetime.now(UTC)

    @property
    def parent_flow_run_id(self) -> str | None:
        run = _flow_run()
        return run.parent if run else None

    @property
    def parent_deployment_id(self) -> str | None:
        """The deployment that the run above is of; None too if it is of none."""
        here = FlowRunContext.get()
        above = here.parent.flow_context if here is not None and here.parent is not None else None
        if above is not None:
            return above.flow_run.deployment
        run = _flow_run()
        found = _looked_up(run.parent) if run is not None and run.parent else None
        return found.deployment if found is not None else None

    @property
    def root_flow_run_id(self) -> str | None:
        """The outermost run that the run is part of, in whatever process that is."""
        here = FlowRunContext.get()
        while here is not None and here.parent is not None and here.parent.flow_context is not None:
            here = here.parent.flow_context
        known = here.flow_run if here is not None else _flow_run()
        if known is None:
            return None
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
        run = _flow_run()
        return run.cause.to_json() if run and run.cause else None


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
    """The deployment the flow run belongs to; in a subflow, that of the run around it."""

    _section = "DEPLOYMENT"

    @property
    def name(self) -> str | None:
        run = _deployed_run()
        return run.deployment if run else None

    id = name

    @property
    def version(self) -> str | None:
        """Of the flow, as the deployment has it."""
        run = _deployed_run()
        return run.flow_version if run else None

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as the run was asked for, before checking and coercion; of a run of no deployment those it has."""
        run = _deployed_run()
        return dict(run.parameters) if run is not None else flow_run.parameters

    @property
    def flow_run_id(self) -> str | None:
        """The flow run the code is in, of a deployment or not."""
        return flow_run.id


def _url(path: str, id_: str | None) -> str | None:
    if id_ is None:
        return None
    from ..config import load_settings

    return f"{load_settings().api_address.rstrip('/')}{path}{id_}"


def _flow_run() -> FlowRun | None:
    """Return the run the code is in, or the one the environment names; None if there is neither."""
    here = FlowRunContext.get()
    if here is not None:
        return here.flow_run
    named = flow_run_override()
    return _named(named) if named is not None else None


_asked: dict[str, tuple[float, FlowRun]] = {}  # the one that was asked for last, and when
_ASK_AGAIN_S = 1.0


def _named(run_id: str) -> FlowRun | None:
    """Return the run the environment names, as it was at most a second ago: each of its facts asks for it."""
    asked_at, run = _asked.get(run_id, (0.0, None))
    now = time.monotonic()
    if run is None or now - asked_at >= _ASK_AGAIN_S:
        run = _read(run_id)
        _asked.clear()
        if run is not None:
            _asked[run_id] = (now, run)
    return run


def _deployed_run() -> FlowRun | None:
    """Return the run of a deployment that the code is in: the flow run, or the nearest around it; None if it is in none."""
    here = FlowRunContext.get()
    while here is not None:
        if here.flow_run.deployment is not None:
            return here.flow_run
        here = here.parent.flow_context if here.parent is not None else None
    run = _flow_run() if FlowRunContext.get() is None else None
    return run if run is not None and run.deployment is not None else None


_above: dict[str, FlowRun] = {}
_ABOVE_MOST = 1000


def _looked_up(run_id: str) -> FlowRun | None:
    """Return a run of another process, from the log; None if it is not there any more. What is asked of it never changes."""
    found = _above.get(run_id)
    if found is None:
        found = _read(run_id)
        if found is not None:
            if len(_above) >= _ABOVE_MOST:
                _above.clear()
            _above[run_id] = found
    return found


def _read(run_id: str) -> FlowRun | None:
    """Return a run from the log; None if it is not there, or no broker is known."""
    from ..bus.session import current_session
    from ..vocabulary import FlowRunId
    from .runs.run_log import RunLog
    from .sync_async.either import blocking_session

    here = FlowRunContext.get()
    if (here is None or here.tracker is None) and current_session(tracking=False) is None:
        return None
    session = blocking_session("runtime.flow_run")
    return session.call(RunLog(session.bus).get, FlowRunId(run_id))


flow_run = _FlowRunFacts()
task_run = _TaskRunFacts()
deployment = _DeploymentFacts()
