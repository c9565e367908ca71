"""What the log holds of task runs, flows and log lines, as ``get_client()`` gives it; read, never changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ...bus.event import Recorded, parse_time, readable
from ...bus.subject import (
    BACKGROUND_RUNS,
    FLOW_RUNS,
    TASK_RUNS,
    completed_subject,
    flow_run_filter,
    task_run_subject,
)
from ...vocabulary import StateType
from ..states import State

if TYPE_CHECKING:
    from ...bus.run_logs import LogLine
    from ...bus.session import Session

__all__ = [
    "FlowRecord",
    "LogRecord",
    "TaskRunRecord",
    "line_of",
    "records_of",
    "state_of",
    "task_runs_in",
    "where_flow_runs_are",
    "where_task_runs_are",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRunRecord:
    """A task run as the log tells it.

    Attributes:
        dynamic_key: the how-manieth call of its task with these inputs it is in its flow run, from 0.
        flow_run_run_count: the attempt of the flow run it belongs to.
    """

    id: str
    name: str
    flow_run_id: str | None
    flow_name: str | None
    task_key: str
    task_name: str
    dynamic_key: str
    tags: tuple[str, ...]
    run_count: int
    flow_run_run_count: int
    created: datetime
    updated: datetime
    start_time: datetime | None
    end_time: datetime | None
    state: State

    @property
    def state_id(self) -> str:
        return self.state.id

    @property
    def state_type(self) -> StateType:
        return self.state.type

    @property
    def state_name(self) -> str:
        return self.state.name

    @property
    def expected_start_time(self) -> datetime:
        return self.created

    @property
    def next_scheduled_start_time(self) -> datetime | None:
        return self.updated if self.state.is_scheduled() else None

    @property
    def total_run_time(self) -> timedelta:
        """From its first try to its end, or to now."""
        if self.start_time is None:
            return timedelta(0)
        return (self.end_time or datetime.now(UTC)) - self.start_time

    @property
    def estimated_run_time(self) -> timedelta:
        return self.total_run_time

    @property
    def estimated_start_time_delta(self) -> timedelta:
        return (self.start_time - self.created) if self.start_time is not None else timedelta(0)

    @property
    def cache_key(self) -> str | None:
        return self.state.state_details.cache_key

    @property
    def cache_expiration(self) -> None:
        """Not known of a run: how long what is cached holds, its task says."""
        return

    @property
    def labels(self) -> dict[str, str]:
        said = {"prefect.flow.id": self.flow_name, "prefect.flow-run.id": self.flow_run_id}
        return {label: value for label, value in said.items() if value is not None}


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A line of a run's log."""

    message: str
    level: int
    name: str
    timestamp: datetime
    flow_run_id: str
    task_run_id: str | None


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """A flow that has runs or deployments; its id is its name. ``tags`` and ``labels``: it has none of its own."""

    name: str
    created: datetime | None = None
    updated: datetime | None = None
    tags: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.name

    @property
    def flow_name(self) -> str:
        return self.name

    @property
    def labels(self) -> dict[str, str]:
        return {}


MOST_NAMED = 100
"""Of so many runs the log is asked by name; of more, for all there are."""


def where_flow_runs_are(ids: Collection[str] | None) -> list[str]:
    """Return the filters of the log that hold the transitions of these flow runs; None: of all."""
    if ids is None or len(ids) > MOST_NAMED:
        return [FLOW_RUNS]
    return [flow_run_filter(id_) for id_ in ids if _is_word(id_)]


def where_task_runs_are(flow_run_ids: Collection[str] | None) -> list[str]:
    """Return the filters of the log that hold the task runs of these flow runs, and more; None: of all.

    Those that a flow asked for by ``delay`` stand by their own ids.
    """
    if flow_run_ids is None or len(flow_run_ids) > MOST_NAMED:
        return [TASK_RUNS]
    ids = [id_ for id_ in flow_run_ids if _is_word(id_)]
    named = [subject(id_) for id_ in ids for subject in (task_run_subject, completed_subject)]
    return [*named, BACKGROUND_RUNS] if named else []


def _is_word(id_: str) -> bool:
    """Whether there can be a run of this id. Dots, stars and blanks would ask for something else."""
    return id_.replace("-", "").replace("_", "").isalnum()


async def records_of(session: Session, *filters: str) -> list[Recorded]:
    """Return what the log holds on filters, from its beginning, with all that this process has published; of no filters, nothing."""
    if not filters:
        return []
    await session.bus.publisher.barrier()
    records: list[Recorded] = []
    async with session.bus.log.read(filters) as batches:
        async for batch in batches:
            records.extend(readable(batch.records))
    return records


def task_runs_in(records: Iterable[Recorded]) -> dict[str, TaskRunRecord]:
    """Return the task runs that events speak of, by id, in the order in which they began."""
    found: dict[str, TaskRunRecord] = {}
    for recorded in records:
        if (run := _task_run(recorded)) is not None:
            before = found.get(run.id)
            found[run.id] = run if before is None else replace(run, created=before.created)
    return found


def state_of(recorded: Recorded) -> State | None:
    """Return the state that a transition of a run led to; None if it is none."""
    data: Any = recorded.event.data
    state = data.get("state") if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping) or "type" not in state:
        return None
    run, details, of_flow = data.get("run"), state.get("details"), data.get("flow_run")
    return State(
        StateType(str(state["type"])), str(state.get("name", "")), state.get("message"), timestamp=recorded.event.time,
        run_id=str(run["id"]) if isinstance(run, Mapping) and "id" in run else None,
        details=dict(details) if isinstance(details, Mapping) else {},
        task_of=str(of_flow.get("id") or "") if isinstance(of_flow, Mapping) else None,
    )  # fmt: skip


def _task_run(recorded: Recorded) -> TaskRunRecord | None:
    data: Any = recorded.event.data
    state = state_of(recorded)
    run = data.get("run") if state is not None else None
    if state is None or not isinstance(run, Mapping) or "id" not in run:
        return None
    task, flow_run, flow = data.get("task") or {}, data.get("flow_run") or {}, data.get("flow") or {}
    at, began = recorded.event.time, run.get("started_at")
    # A background task that no flow asked for has its log under its own id.
    flow_run_id = None if flow_run.get("id") == run["id"] else flow_run.get("id")
    return TaskRunRecord(
        id=str(run["id"]), name=str(run.get("name", "")), flow_run_id=flow_run_id, flow_name=flow.get("name"),
        task_key=str(task.get("key", "")), task_name=str(task.get("name", "")), dynamic_key=str(run.get("index", 0)),
        tags=tuple(data.get("tags") or ()), run_count=int(run.get("attempt") or 0),
        flow_run_run_count=int(flow_run.get("attempt") or 0), created=at, updated=at,
        start_time=parse_time(began) if isinstance(began, str) else None,
        end_time=at if state.type.is_terminal else None, state=state,
    )  # fmt: skip


def line_of(line: LogLine) -> LogRecord:
    """Return a line of a log by the names Prefect has."""
    return LogRecord(line.message, line.level, line.logger, line.at, line.flow_run_id, line.task_run_id)
