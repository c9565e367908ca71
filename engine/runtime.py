"""Facts about the run the code is in: ``runtime.flow_run.name``, ``runtime.task_run.run_count``, ``runtime.deployment.name``.

Outside a run, or where there is no such fact, the value is empty (None, an empty list or mapping). For tests, an environment
variable stands in: ``HARK__RUNTIME__FLOW_RUN__NAME=…``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..config import runtime_override
from .context import FlowRunContext, TaskRunContext

__all__ = ["deployment", "flow_run", "task_run"]


class _Facts:
    """Attributes that are looked up when they are read."""

    _section = ""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            stand_in = runtime_override(self._section, name)
            if stand_in is not None:
                return stand_in
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
        run = FlowRunContext.get()
        return run.flow_run.scheduled_at if run else None

    @property
    def parent_flow_run_id(self) -> str | None:
        run = FlowRunContext.get()
        return run.flow_run.parent if run else None

    @property
    def root_flow_run_id(self) -> str | None:
        """The outermost run of this process that the run is part of."""
        run = FlowRunContext.get()
        while run is not None:
            above = run.parent.flow_context if run.parent is not None else None
            if above is None:
                return run.flow_run.id
            run = above
        return None

    @property
    def parent_deployment_id(self) -> str | None:
        """The deployment of the run this one is a subflow of."""
        run = FlowRunContext.get()
        above = run.parent.flow_context if run is not None and run.parent is not None else None
        return above.flow_run.deployment if above is not None else None

    @property
    def job_variables(self) -> dict[str, Any] | None:
        """Always None: what Hark's workers are given stands in the pool, not in the run."""
        return None

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
        """That of the deployment's flow."""
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


flow_run = _FlowRunFacts()
task_run = _TaskRunFacts()
deployment = _DeploymentFacts()
