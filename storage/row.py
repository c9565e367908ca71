"""What the read model answers with: one frozen dataclass per kind of row, and pages of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import lru_cache
from typing import Any, Generic, TypeVar

import orjson

from ..errors import DefinitionError
from ..vocabulary import JsonObject, JsonValue

__all__ = [
    "ActionRow", "ArtifactRow", "AutomationActivity", "Counts", "DeploymentActivity", "EventFilter", "EventRow", "FiringDetail",
    "FailingAddressRow", "FiringRow", "FlowRunDetail", "FlowRunRow", "NotificationRow", "Page", "RunFilter", "ScheduleFireRow",
    "TaskRunRow", "WebhookDeliveryRow", "WorkerRow", "decode_cursor", "encode_cursor", "read_row",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of the rows that were asked for; ``next_cursor`` asks for the following ones, None: there are none."""

    items: tuple[T, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which flow runs; None asks for nothing in particular.

    Attributes:
        states: types (``FAILED``), names (``TimedOut``) or event words (``timed-out``); any of them.
        tags: all of them.
        since, until: bounds on when the run was due (``scheduled_at``), from and before.
        text: part of the run's, flow's or deployment's name or of the state's message, whatever the case.
        top_level: only runs that are no subflow.
        cause: name of the automation, schedule, webhook, … that asked for it; cause_event: id of the event.
        id_prefix: with which its id begins.
    """

    states: tuple[str, ...] = ()
    id_prefix: str | None = None
    name: str | None = None
    flow: str | None = None
    deployment: str | None = None
    pool: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    top_level: bool = False
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    cause: str | None = None
    cause_event: str | None = None
    correlation: str | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; None asks for nothing in particular.

    Attributes:
        types: patterns, any of them: ``order.paid``, ``flow-run.*``, ``github.>``.
        subject: whole, or its beginning followed by ``*``.
        since, until: bounds on when the log recorded it, from and before.
        after_seq, before_seq: bounds on its place in the log, both exclusive.
        id_prefix: with which its id begins.
    """

    types: tuple[str, ...] = ()
    id_prefix: str | None = None
    subject: str | None = None
    source: str | None = None
    correlation: str | None = None
    causation: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after_seq: int | None = None
    before_seq: int | None = None


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event; ``body`` is its stored JSON, whole."""

    seq: int
    id: str
    type: str
    source: str
    subject: str | None
    time: datetime
    recorded_at: datetime
    correlationid: str | None
    causationid: str | None
    causaldepth: int
    body: bytes = field(repr=False)

    @property
    def data(self) -> JsonValue:
        """The event's ``data``, None if it has none or carries bytes."""
        value: JsonValue = orjson.loads(self.body).get("data")
        return value

    def to_dict(self) -> JsonObject:
        """Return the structured JSON form, with ``sequence`` and ``recordedtime`` as the log gave them."""
        out: JsonObject = orjson.loads(self.body)
        out["sequence"] = self.seq
        out["recordedtime"] = self.recorded_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return out


@dataclass(frozen=True, slots=True)
class FlowRunRow:
    """A flow run as its last transition tells it; ``seq`` is that transition's."""

    id: str
    seq: int
    name: str
    flow_name: str
    flow_version: str | None
    deployment: str | None
    pool: str | None
    queue: str | None
    parent: str | None
    tags: tuple[str, ...]
    cause_kind: str | None
    cause_name: str | None
    cause_event: str | None
    state_type: str
    state_name: str
    state_message: str | None
    attempt: int
    scheduled_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    updated_at: datetime
    correlationid: str | None
    causationid: str | None


@dataclass(frozen=True, slots=True)
class TaskRunRow:
    """A task run as its last transition tells it; ``position`` is which of the equal calls of its flow run it is, from 0."""

    id: str
    seq: int
    flow_run: str
    name: str
    task_name: str
    attempt: int
    position: int
    tags: tuple[str, ...]
    state_type: str
    state_name: str
    state_message: str | None
    started_at: datetime | None
    duration_s: float | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class FlowRunDetail:
    """All there is to say about one flow run.

    Attributes:
        data: the ``data`` of its last transition: parameters, state details, result, entrypoint, ….
        transitions: its states, oldest first.
        children: its subflow runs, in order of being due.
        task_states: how many task runs are in which state type.
        causes: what led here, nearest first: the event that asked for it, the one that led to that, ….
    """

    run: FlowRunRow
    data: JsonObject
    transitions: tuple[EventRow, ...]
    children: tuple[FlowRunRow, ...]
    task_states: Mapping[str, int]
    causes: tuple[EventRow, ...]


@dataclass(frozen=True, slots=True)
class FiringRow:
    """A decision of a rule: triggered, resolved or suppressed; ``shadow``: of a rule on trial, so nothing was done."""

    id: str
    seq: int
    automation: str
    decision: str
    key: str | None
    count: int | None
    version: str | None
    shadow: bool
    reason: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class ActionRow:
    """The latest outcome of an action: executed, failed (will be tried again), dead-lettered, redriven, …."""

    key: str
    seq: int
    state: str
    kind: str | None
    automation: str | None
    firing: str | None
    attempt: int | None
    error: str | None
    duration_s: float | None
    time: datetime


@dataclass(frozen=True, slots=True)
class FiringDetail:
    """A decision with the event that records it, what led to it, its actions and the runs it asked for."""

    firing: FiringRow
    event: EventRow
    causes: tuple[EventRow, ...]
    actions: tuple[ActionRow, ...]
    runs: tuple[FlowRunRow, ...]


@dataclass(frozen=True, slots=True)
class NotificationRow:
    """What became of a message at one address; the address itself is a secret, ``kind`` is its scheme."""

    seq: int
    outcome: str
    channel: str | None
    kind: str | None
    severity: str | None
    title: str | None
    attempt: int | None
    duration_s: float | None
    error: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class FailingAddressRow:
    """An address of a channel whose latest messages, ``failures`` of them, all failed; ``error`` is the last one's."""

    seq: int
    channel: str
    kind: str | None
    address: int
    failures: int
    error: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class WebhookDeliveryRow:
    """A request at a webhook; ``type`` is that of the event an accepted one became, found at ``seq``."""

    seq: int
    webhook: str
    outcome: str
    type: str | None
    status: int | None
    reason: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class ScheduleFireRow:
    """A schedule that came due: it fired, or was skipped for ``reason``."""

    seq: int
    deployment: str | None
    schedule: str | None
    outcome: str
    scheduled_at: datetime | None
    flow_run: str | None
    reason: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """An artifact as it is now; ``artifact`` is the id of what is shown, ``id`` its key, or that id where it has none."""

    id: str
    seq: int
    artifact: str
    key: str | None
    type: str
    description: str | None
    flow_run: str | None
    task_run: str | None
    flow: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """The latest word of a worker: started, stopped or lost."""

    id: str
    seq: int
    state: str
    name: str
    pool: str | None
    details: JsonObject
    time: datetime


@dataclass(frozen=True, slots=True)
class DeploymentActivity:
    """What a deployment has been doing; ``last`` is its latest run that began, ``next`` the earliest that waits."""

    deployment: str
    last: FlowRunRow | None
    next: FlowRunRow | None
    states: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AutomationActivity:
    """What a rule has been doing since the moment asked about; ``last_triggered_at`` looks further back.

    ``dead_letters`` are its actions that wait for a person, however old; ``last_error`` is why the latest was given up.
    """

    automation: str
    triggered: int
    suppressed: int
    resolved: int
    last_triggered_at: datetime | None
    dead_letters: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """The status page in numbers; all but ``flow_runs``' unfinished states and ``dead_letters`` count since a moment.

    Attributes:
        flow_runs: state type -> how many; finished ones only since that moment, unfinished ones all.
        workers: state (started, stopped, lost) -> how many.
        seq: up to where the log is folded.
    """

    flow_runs: Mapping[str, int]
    task_runs: int
    events: int
    triggered: int
    suppressed: int
    actions: Mapping[str, int]
    dead_letters: int
    notifications: Mapping[str, int]
    webhooks: Mapping[str, int]
    workers: Mapping[str, int]
    unreadable: int
    seq: int


@lru_cache(maxsize=32)
def _readers(cls: type) -> tuple[tuple[str, int], ...]:
    """Return (field, how to read it): 0 as it is, 1 a moment, 2 a list of texts, 3 an object, 4 yes or no."""
    how = []
    for f in fields(cls):
        kind = (
            1
            if f.name == "time" or f.name.endswith("_at")
            else {"tags": 2, "details": 3, "shadow": 4}.get(f.name, 0)
        )
        how.append((f.name, kind))
    return tuple(how)


def read_row(cls: type[T], row: Mapping[str, Any]) -> T:
    """Return the dataclass ``cls`` filled from a row whose columns bear the names of its fields."""
    values: dict[str, Any] = {}
    for name, how in _readers(cls):  # type: ignore[arg-type]  # a class is hashable
        value = row[name]
        if value is not None and how:
            if how == 1:
                value = datetime.fromisoformat(value)
            elif how == 4:
                value = bool(value)
            else:
                value = orjson.loads(value)
                if how == 2:
                    value = tuple(value)
        values[name] = value
    return cls(**values)


def encode_cursor(*position: str | int) -> str:
    """Return an opaque text for a position in a listing."""
    return base64.urlsafe_b64encode(orjson.dumps(position)).decode().rstrip("=")


def decode_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """Return the position ``encode_cursor`` made a cursor of.

    Raises:
        DefinitionError: the text is not a cursor of this listing.
    """
    try:
        position = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError) as exc:
        raise _not_a_cursor(cursor) from exc
    if (
        not isinstance(position, list)
        or len(position) != len(types)
        or not all(type(p) is t for p, t in zip(position, types, strict=True))
    ):
        raise _not_a_cursor(cursor)
    return tuple(position)


def _not_a_cursor(cursor: str) -> DefinitionError:
    return DefinitionError(
        f"{cursor[:80]!r} is not a cursor of this listing",
        hint="take it from `next_cursor` of the page before, unchanged, or leave it out to begin anew",
    )
