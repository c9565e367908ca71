"""Filters of flow runs, task runs, flows, deployments, log lines and artifacts, in Prefect's words; pure.

``FlowRunFilter(state={"type": {"any_": ["FAILED"]}}, tags={"all_": ["prod"]})``: all that is said must hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

__all__ = [
    "ArtifactCollectionFilter", "ArtifactCollectionFilterFlowRunId", "ArtifactCollectionFilterKey",
    "ArtifactCollectionFilterLatestId", "ArtifactCollectionFilterTaskRunId", "ArtifactCollectionFilterType",
    "FlowRunFilterParentTaskRunId", "TaskRunFilterSubFlowRuns",
    "ArtifactFilter", "ArtifactFilterFlowRunId", "ArtifactFilterId", "ArtifactFilterKey", "ArtifactFilterTaskRunId",
    "ArtifactFilterType",
    "DeploymentFilter", "DeploymentFilterConcurrencyLimit", "DeploymentFilterId", "DeploymentFilterWorkQueueName",
    "FlowRunFilterFlowVersion", "FlowRunFilterIdempotencyKey", "FlowRunFilterNextScheduledStartTime", "Operator",
    "TaskRunFilterEndTime", "TaskRunFilterExpectedStartTime", "TaskRunFilterStartTime",
    "DeploymentFilterName", "DeploymentFilterPaused", "DeploymentFilterTags",
    "FilterCondition", "FlowFilter", "FlowFilterId", "FlowFilterName", "FlowRunFilter", "FlowRunFilterDeploymentId",
    "FlowRunFilterEndTime", "FlowRunFilterExpectedStartTime", "FlowRunFilterId", "FlowRunFilterName",
    "FlowRunFilterParentFlowRunId", "FlowRunFilterStartTime", "FlowRunFilterState", "FlowRunFilterStateName",
    "FlowRunFilterStateType", "FlowRunFilterTags", "FlowRunFilterWorkQueueName", "LogFilter", "LogFilterFlowRunId",
    "LogFilterLevel", "LogFilterTaskRunId", "LogFilterTimestamp", "StateFilter", "TaskRunFilter", "TaskRunFilterFlowRunId",
    "TaskRunFilterId", "TaskRunFilterName", "TaskRunFilterState", "TaskRunFilterStateName", "TaskRunFilterStateType",
    "TaskRunFilterTags", "ids_in",
]  # fmt: skip


class Operator(StrEnum):
    """Whether all conditions must hold, or one is enough."""

    and_ = "and_"
    or_ = "or_"


class _Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FilterCondition(_Filter):
    """What must hold of one value, or of a list of them (tags). What is not said holds.

    ``like_`` is found anywhere in a text, in upper or lower case; ``%`` in it stands for anything.
    """

    any_: list[Any] | None = None
    not_any_: list[Any] | None = None
    all_: list[Any] | None = None
    like_: str | None = None
    eq_: Any = None
    ge_: int | None = None
    le_: int | None = None
    before_: datetime | None = None
    after_: datetime | None = None
    is_null_: bool | None = None
    exists_: bool | None = None

    @field_validator("any_", "not_any_", "all_")
    @classmethod
    def _texts(cls, given: list[Any] | None) -> list[Any] | None:
        # Ids may be given as UUID objects, and states as members of an enum: here both are texts.
        return None if given is None else [str(getattr(one, "value", one)) for one in given]

    def holds(self, value: Any) -> bool:
        """Return whether it holds of a value, None being that there is none."""
        several = [str(one) for one in value] if isinstance(value, list | tuple | set | frozenset) else None
        if self.is_null_ is not None and self.is_null_ is not (value is None or several == []):
            return False
        if self.exists_ is not None and self.exists_ is (value is None):
            return False
        texts = several if several is not None else ([] if value is None else [str(value)])
        if self.any_ is not None and not set(self.any_) & set(texts):
            return False
        if self.not_any_ is not None and set(self.not_any_) & set(texts):
            return False
        if self.all_ is not None and not set(self.all_) <= set(texts):
            return False
        if self.like_ is not None and not any(_is_like(self.like_, one) for one in texts):
            return False
        if self.eq_ is not None and value != self.eq_:
            return False
        if self.ge_ is not None and (value is None or value < self.ge_):
            return False
        if self.le_ is not None and (value is None or value > self.le_):
            return False
        if self.before_ is not None and (value is None or value > self.before_):
            return False
        return self.after_ is None or (value is not None and value >= self.after_)


def _is_like(wanted: str, text: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in wanted.split("%"))
    return re.search(pattern, text, re.IGNORECASE | re.DOTALL) is not None


class StateFilter(_Filter):
    """What must hold of a state: its type, its name."""

    type: FilterCondition | None = None
    name: FilterCondition | None = None

    def holds(self, value: Any) -> bool:
        return all(
            condition is None or condition.holds(getattr(value, word))
            for word, condition in (("type", self.type), ("name", self.name))
        )


class _OfFields(_Filter):
    """Conditions by field. ``operator``: whether all that are said must hold (``and_``), or one of them is enough."""

    operator: Operator = Operator.and_

    def matches(self, value: Any, *, names: Mapping[str, str]) -> bool:
        """Return whether what is said holds; ``names``: where a fact is called otherwise than its condition."""
        said = {word: getattr(self, word) for word in type(self).model_fields}
        held = [
            condition.holds(getattr(value, names.get(word, word), None))
            for word, condition in said.items()
            if isinstance(condition, FilterCondition | StateFilter)
        ]
        return not held or (all(held) if self.operator is Operator.and_ else any(held))


def ids_in(filter_: _OfFields | None, word: str) -> set[str] | None:
    """Return the only values that a fact may have for a filter to hold; None if it does not say so."""
    condition = getattr(filter_, word) if filter_ is not None else None
    if filter_ is None or not isinstance(condition, FilterCondition) or condition.any_ is None:
        return None
    said = [
        name
        for name in type(filter_).model_fields
        if isinstance(getattr(filter_, name), FilterCondition | StateFilter)
    ]
    return set(condition.any_) if filter_.operator is Operator.and_ or said == [word] else None


class FlowRunFilter(_OfFields):
    """Which flow runs."""

    id: FilterCondition | None = None
    name: FilterCondition | None = None
    tags: FilterCondition | None = None
    deployment_id: FilterCondition | None = None
    work_queue_name: FilterCondition | None = None
    state: StateFilter | None = None
    flow_version: FilterCondition | None = None
    start_time: FilterCondition | None = None
    end_time: FilterCondition | None = None
    expected_start_time: FilterCondition | None = None
    next_scheduled_start_time: FilterCondition | None = None
    idempotency_key: FilterCondition | None = None
    parent_flow_run_id: FilterCondition | None = None
    parent_task_run_id: FilterCondition | None = None

    def holds(self, run: Any) -> bool:
        # No task run stands for a subflow here; who asks for one mostly wants runs that have no parent at all.
        return self.matches(run, names={"parent_task_run_id": "parent_flow_run_id"})


class TaskRunFilter(_OfFields):
    """Which task runs."""

    id: FilterCondition | None = None
    name: FilterCondition | None = None
    tags: FilterCondition | None = None
    state: StateFilter | None = None
    start_time: FilterCondition | None = None
    end_time: FilterCondition | None = None
    expected_start_time: FilterCondition | None = None
    flow_run_id: FilterCondition | None = None
    subflow_runs: FilterCondition | None = None
    """``exists_``: whether it stands for a subflow, which none does here."""

    def holds(self, run: Any) -> bool:
        return self.matches(run, names={})


class FlowFilter(_OfFields):
    """Runs of which flows. A flow's id is its name."""

    id: FilterCondition | None = None
    name: FilterCondition | None = None

    def holds(self, run: Any) -> bool:
        return self.matches(run, names={"id": "flow_name", "name": "flow_name"})


class DeploymentFilter(_OfFields):
    """Which deployments. A deployment's id is its name."""

    id: FilterCondition | None = None
    name: FilterCondition | None = None
    tags: FilterCondition | None = None
    paused: FilterCondition | None = None
    concurrency_limit: FilterCondition | None = None
    work_queue_name: FilterCondition | None = None

    def holds(self, deployment: Any) -> bool:
        return self.matches(deployment, names={"id": "name", "work_queue_name": "queue"})


class LogFilter(_OfFields):
    """Which lines of which runs' logs; one of the two ids has to be said, with ``any_``."""

    level: FilterCondition | None = None
    timestamp: FilterCondition | None = None
    flow_run_id: FilterCondition | None = None
    task_run_id: FilterCondition | None = None

    def holds(self, line: Any) -> bool:
        return self.matches(line, names={})


class ArtifactFilter(_OfFields):
    """Which artifacts."""

    id: FilterCondition | None = None
    key: FilterCondition | None = None
    type: FilterCondition | None = None
    flow_run_id: FilterCondition | None = None
    task_run_id: FilterCondition | None = None

    def holds(self, artifact: Any) -> bool:
        return self.matches(artifact, names={})


class ArtifactCollectionFilter(ArtifactFilter):
    """Which artifacts, of those that are the last of their key."""

    latest_id: FilterCondition | None = None

    def holds(self, artifact: Any) -> bool:
        return self.matches(artifact, names={"latest_id": "id"})


ArtifactCollectionFilterFlowRunId = ArtifactCollectionFilterTaskRunId = FilterCondition
ArtifactCollectionFilterKey = ArtifactCollectionFilterType = ArtifactCollectionFilterLatestId = (
    FilterCondition
)
FlowRunFilterParentTaskRunId = TaskRunFilterSubFlowRuns = FilterCondition
ArtifactFilterId = ArtifactFilterKey = ArtifactFilterType = FilterCondition
ArtifactFilterFlowRunId = ArtifactFilterTaskRunId = FilterCondition
FlowRunFilterId = FlowRunFilterName = FlowRunFilterTags = FlowRunFilterDeploymentId = FilterCondition
FlowRunFilterWorkQueueName = FlowRunFilterStateType = FlowRunFilterStateName = FilterCondition
FlowRunFilterStartTime = FlowRunFilterEndTime = FlowRunFilterExpectedStartTime = FilterCondition
FlowRunFilterParentFlowRunId = FlowRunFilterFlowVersion = FlowRunFilterIdempotencyKey = FilterCondition
FlowRunFilterNextScheduledStartTime = TaskRunFilterStartTime = TaskRunFilterEndTime = FilterCondition
TaskRunFilterExpectedStartTime = DeploymentFilterWorkQueueName = DeploymentFilterConcurrencyLimit = (
    FilterCondition
)
FlowRunFilterState = TaskRunFilterState = StateFilter
TaskRunFilterId = TaskRunFilterName = TaskRunFilterTags = TaskRunFilterFlowRunId = FilterCondition
TaskRunFilterStateType = TaskRunFilterStateName = FilterCondition
FlowFilterId = FlowFilterName = FilterCondition
DeploymentFilterId = DeploymentFilterName = DeploymentFilterTags = DeploymentFilterPaused = FilterCondition
LogFilterLevel = LogFilterTimestamp = LogFilterFlowRunId = LogFilterTaskRunId = FilterCondition
