"""What the API answers with, as ``/openapi.json`` says it: the shape of every answer, by route.

A test holds real answers against them. What is open (``additionalProperties``) holds a definition as it is written.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from ..storage.row import (
    ActionRow,
    ArtifactRow,
    FiringRow,
    FlowRunRow,
    TaskRunRow,
    WebhookDeliveryRow,
)

__all__ = ["ITEMS", "NOTHING", "ONE"]


class Brief(TypedDict):
    id: str
    type: str
    subject: str | None
    time: datetime


Json = dict[str, Any]


class Open(TypedDict):
    """A definition as it is written, with more beside it."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class Named(Open):
    name: str
    error: NotRequired[str]


class Stored(TypedDict):
    ids: list[str]
    types: list[str]
    stored: int
    duplicates: int
    seq: int


class EventItem(TypedDict):
    seq: int
    recorded_at: datetime
    event: Json


class EventShown(EventItem):
    caused_by: list[Json]
    led_to: list[Json]


class Run(TypedDict):
    id: str
    seq: int
    name: str
    flow_name: str
    flow_version: str | None
    deployment: str | None
    pool: str | None
    queue: str | None
    parent: str | None
    tags: list[str]
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
    parameters: Json
    entrypoint: str | None
    is_final: bool


class RunShown(Run):
    result: Any
    hooks: Any
    transitions: NotRequired[list[Json]]
    children: NotRequired[list[Json]]
    task_states: NotRequired[dict[str, int]]
    caused_by: NotRequired[list[Brief]]


class Deleted(TypedDict):
    id: NotRequired[str]
    name: str
    deleted: bool


class DeploymentItem(Named):
    schedules: int
    last_run: FlowRunRow | None
    next_run: FlowRunRow | None
    runs_7d: dict[str, int]


class DeploymentShown(Named):
    changed_at: datetime
    schedules: list[Json]
    triggers: list[str]


class Removed(TypedDict):
    name: str
    triggers: list[str]


class ScheduleItem(Open):
    key: str
    next: list[datetime]
    description: str


class Slot(TypedDict):
    at: datetime
    slot: datetime
    local: str
    timezone: str
    schedule: str
    excluded: str | None
    note: str | None


class BackfillItem(TypedDict):
    name: str
    deployment: str
    schedules: list[str]
    start: str
    end: str
    reprocess: str
    max_parallel: int
    asked_at: datetime
    status: str
    total: int
    over: int
    went_wrong: int
    asked: int
    active: list[int]
    ended: dict[str, int]
    error: str
    round: int
    ended_at: datetime | None


class BackfillMade(Open):
    """How far it has come, with `is_new`; of `dry_run` the plan."""


class BackfillShown(BackfillItem):
    slots: list[Json]


class AutomationItem(Named):
    problems: list[str]
    fired: int
    suppressed: int
    dead_letters: int
    last_fired_at: datetime | None


class AutomationShown(Named):
    changed_at: datetime
    problems: list[str]
    firings: list[Json]


class Definition(TypedDict):
    name: str
    definition: Json


class Saved(Definition):
    version: str
    revision: int


class FiringShown(TypedDict):
    firing: FiringRow
    actions: list[ActionRow]
    waiting: list[Json]
    runs: list[FlowRunRow]
    caused_by: list[Brief]


class Backtested(TypedDict):
    rules: list[Json]
    events: int
    took_s: float
    whole: bool
    begins_at: datetime | None
    ends_at: datetime | None


class Explained(TypedDict):
    event: Json
    rules: list[Json]
    rules_looked_at: int
    effects: Json
    decision: NotRequired[Json]
    led_by: NotRequired[Json]


class WebhookItem(Named):
    url: str


class WebhookShown(WebhookItem):
    deliveries: list[WebhookDeliveryRow]


class KeptRequest(TypedDict):
    id: str
    webhook: str
    received_at: datetime
    method: str
    status: int
    reason: str | None
    event_ids: list[str]
    size: int
    remote: str | None
    is_genuine: bool
    is_whole: bool
    content_type: str | None


class KeptRequestShown(KeptRequest):
    query: Json
    headers: dict[str, str]
    body: str
    body_encoding: str


class Redelivered(TypedDict):
    status: int
    answer: Any


class ChannelItem(TypedDict):
    name: str
    addresses: int
    services: list[str]
    rate: Any
    failing: list[Json]
    error: NotRequired[str]


class Tested(TypedDict):
    channel: str
    ok: bool
    sent: int
    deliveries: list[Json]


class ExchangeItem(Named):
    paused: bool
    status: Json | None


class Incident(TypedDict):
    id: str
    state: str
    labels: Json
    alerts: int
    title: str
    severity: str
    opened_at: datetime | None
    told_at: datetime | None
    told_to: list[str]
    escalated: int
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    next_at: datetime | None


class IncidentShown(Incident):
    members: list[Json]


class Raised(TypedDict):
    alert: str
    resolved: bool


class Acked(Open):
    id: str
    state: str


class Question(TypedDict):
    id: str
    automation: str
    title: str
    body: str
    state: str
    asked_at: datetime
    expires_at: datetime
    answered_at: datetime | None
    by: str | None


class SilenceItem(Open):
    id: str
    match: Json
    starts_at: datetime
    ends_at: datetime
    state: str


class Variable(TypedDict):
    name: str
    value: Any
    changed_at: datetime


class SecretItem(TypedDict):
    name: str


class Key(TypedDict):
    id: str
    name: str
    created_at: datetime


class NewKey(Key):
    token: str


class LimitItem(Open):
    name: str
    changed_at: datetime


class BlockItem(TypedDict):
    type: str
    name: str
    changed_at: datetime


class BlockShown(BlockItem):
    fields: Json


class ArtifactShown(Open):
    id: str
    artifact: str
    type: str
    data: Any
    versions: list[Json]


class Letter(TypedDict):
    id: str
    state: str
    kind: str | None
    automation: str | None
    firing: str | None
    attempt: int | None
    error: str | None
    at: datetime


class LetterShown(Letter):
    event: Json


class IdState(TypedDict):
    id: str
    state: str


class LetterLeft(TypedDict):
    id: str
    error: str


class LettersSeenTo(TypedDict):
    ids: list[str]
    left: list[LetterLeft]
    next_cursor: str | None


class Planned(TypedDict):
    steps: list[Json]
    summary: str
    warnings: list[str]
    changes: int


AuditLine = TypedDict("AuditLine", {
    "seq": int, "time": datetime, "by": str | None, "what": str, "on": str | None, "from": str | None, "id": str,
})  # fmt: skip


class Status(Open):
    version: str
    ready: bool
    url: str
    home: str
    access: str
    broker: Json
    parts: Json
    log: Json
    last_24h: Json
    dead_letters: int
    workers: dict[str, int]
    failing_channels: Json
    rules_behind: NotRequired[str]


class Ready(TypedDict):
    status: str


class Held(TypedDict):
    """How many runs go on at once, how many do, and how many wait beside them without a place."""

    places: int
    taken: int
    waiting: int


class HeldByAll(Held):
    count: int


class PoolItem(Named):
    workers: HeldByAll


WorkerItem = TypedDict(
    "WorkerItem",
    {
        "id": str, "name": str, "pool": str, "host": str, "pid": int, "version": str | None, "started_at": datetime | None,
        "heard_at": datetime, "async": Held, "sync": Held,
    },
)  # fmt: skip


NamesByBucket = dict[str, list[str]]


class ResetDone(TypedDict):
    name: str
    removed: int


class Rebuilt(TypedDict):
    events: int
    took_s: float


LogLine = dict[str, Any]

ITEMS: dict[str, Any] = {
    "/api/alerts": Incident, "/api/approvals": Question, "/api/artifacts": ArtifactRow, "/api/audit": AuditLine,
    "/api/automations": AutomationItem, "/api/backfills": BackfillItem, "/api/blocks": BlockItem,
    "/api/channels": ChannelItem, "/api/deployments": DeploymentItem, "/api/dlq": Letter, "/api/events": EventItem,
    "/api/flow-runs": FlowRunRow, "/api/flow-runs/{run_id}/logs": LogLine,
    "/api/flow-runs/{run_id}/task-runs": TaskRunRow, "/api/keys": Key, "/api/limits": LimitItem, "/api/pools": PoolItem,
    "/api/schedules": ScheduleItem, "/api/schedules/next": Slot, "/api/secrets": SecretItem,
    "/api/silences": SilenceItem, "/api/sinks": ExchangeItem, "/api/sources": ExchangeItem, "/api/task-runs": TaskRunRow,
    "/api/variables": Variable, "/api/webhooks": WebhookItem, "/api/webhooks/{name}/requests": KeptRequest,
    "/api/workers": WorkerItem,
}  # fmt: skip
"""What a page of a listing holds, by path."""

ONE: dict[str, Any] = {
    "DELETE /api/automations/{name}": Deleted, "DELETE /api/deployments/{name}": Removed,
    "DELETE /api/flow-runs/{run_id}": Deleted, "DELETE /api/keys/{id_or_name}": Key,
    "GET /api/alerts/{incident}": IncidentShown, "GET /api/artifacts/{key_or_id}": ArtifactShown,
    "GET /api/automations/{name}": AutomationShown, "GET /api/automations/{name}/definition": Definition,
    "GET /api/automations/{name}/firings/{firing_id}": FiringShown, "GET /api/backfills/{name}": BackfillShown,
    "GET /api/blocks/{kind}/{name}": BlockShown, "GET /api/config/names": NamesByBucket,
    "GET /api/deployments/{name}": DeploymentShown, "GET /api/dlq/{letter_id}": LetterShown,
    "GET /api/events/{event_id}": EventShown, "GET /api/flow-runs/{run_id}": RunShown,
    "GET /api/flow-runs/{run_id}/wait": Run, "GET /api/limits/{name}": LimitItem,
    "GET /api/silences/{silence_id}": SilenceItem, "GET /api/sinks/{name}": ExchangeItem,
    "GET /api/sources/{name}": ExchangeItem, "GET /api/status": Status, "GET /api/task-runs/{run_id}": TaskRunRow,
    "GET /api/variables/{name}": Variable, "GET /api/webhook-requests/{id}": KeptRequestShown,
    "GET /api/webhooks/{name}": WebhookShown, "GET /health/live": Ready, "GET /health/ready": Ready,
    "POST /api/alerts": Raised, "POST /api/alerts/{incident}/ack": Acked, "POST /api/approvals/{id}": Question,
    "POST /api/automations/backtest": Backtested, "POST /api/automations/explain": Explained,
    "POST /api/automations/{name}/pause": Named, "POST /api/automations/{name}/resume": Named,
    "POST /api/backfills/{name}/cancel": BackfillItem, "POST /api/channels/{name}/test": Tested,
    "POST /api/config/apply": Planned, "POST /api/config/plan": Planned,
    "POST /api/deployments/{name}/backfill": BackfillMade, "POST /api/deployments/{name}/pause": Named,
    "POST /api/deployments/{name}/resume": Named, "POST /api/deployments/{name}/run": Run,
    "POST /api/dlq/drop": LettersSeenTo, "POST /api/dlq/redrive": LettersSeenTo,
    "POST /api/dlq/{letter_id}/drop": IdState, "POST /api/dlq/{letter_id}/redrive": IdState,
    "POST /api/events": Stored, "POST /api/flow-runs/{run_id}/cancel": Run,
    "POST /api/flow-runs/{run_id}/resume": Run, "POST /api/flow-runs/{run_id}/retry": Run,
    "POST /api/flow-runs/{run_id}/set-state": Run, "POST /api/flow-runs/{run_id}/suspend": Run,
    "POST /api/keys": NewKey, "POST /api/limits/{name}": LimitItem, "POST /api/limits/{name}/reset": ResetDone,
    "POST /api/pools/{name}/pause": Open, "POST /api/pools/{name}/resume": Open, "POST /api/rebuild": Rebuilt,
    "POST /api/schedules/{key}/pause": ScheduleItem, "POST /api/schedules/{key}/resume": ScheduleItem,
    "POST /api/silences": SilenceItem, "POST /api/silences/{silence_id}/expire": SilenceItem,
    "POST /api/sinks/{name}/pause": Open, "POST /api/sinks/{name}/resume": Open,
    "POST /api/sources/{name}/pause": Open, "POST /api/sources/{name}/resume": Open,
    "POST /api/webhook-requests/{id}/redeliver": Redelivered, "POST /api/webhooks/{name}/pause": Open,
    "POST /api/webhooks/{name}/resume": Open, "PUT /api/automations/{name}": Saved, "PUT /api/limits/{name}": LimitItem,
}  # fmt: skip
"""What one thing looks like, by route."""

NOTHING = frozenset({
    "DELETE /api/blocks/{kind}/{name}", "DELETE /api/limits/{name}", "DELETE /api/secrets/{name}",
    "DELETE /api/variables/{name}", "PUT /api/secrets/{name}", "PUT /api/variables/{name}",
})  # fmt: skip
"""Routes that answer 204 and no body."""
