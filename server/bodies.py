"""What requests of the API bring in their bodies: one model each, which reads it and is what `/openapi.json` says of it.

Every model has an example of its own; a test sends them all, with every field in turn, and with each one wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictFloat,
    StrictInt,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema

from ..notifications.message import Severity
from ..vocabulary import StateType

__all__ = [
    "AckBody", "AlertBody", "AnswerBody", "ApplyBody", "BackfillBody", "BacktestBody", "CancelBackfillBody",
    "ExplainBody", "KeyBody", "LimitBody", "ManifestBody", "PlanBody", "ReasonBody", "RecordBody", "ResumeBody", "RetryBody",
    "RunBody", "SecretBody", "SetStateBody", "SilenceBody", "TestBody", "ValueBody",
]  # fmt: skip

Text = str | int | float | bool
"""What is kept as text, however it is written."""
Since = Annotated[str, WithJsonSchema({"type": "string", "examples": ["7d", "2026-01-01T00:00:00Z"]})]
Moment = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Rate = Annotated[str, WithJsonSchema({"type": "string", "pattern": r"^[0-9]+/[0-9.]*[a-z]+$"})]
Attachment = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^(https?://|object:|log:)"})]


def _shown(*examples: dict[str, Any], **more: Any) -> ConfigDict:
    return ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [*examples], **more}, defer_build=True
    )


# --- runs -----------------------------------------------------------------------------------------------------


class RunBody(BaseModel):
    """What a run is asked for with; all of it optional."""

    model_config = _shown(
        {"parameters": {"n": 3}, "tags": ["by-hand"], "key": "order-42"},
        {"scheduled_at": "2026-01-31T09:00:00Z"},
        {"delay_s": 3600},
        **{"not": {"required": ["scheduled_at", "delay_s"]}},
    )

    parameters: dict[str, Any] | None = Field(None, description="over those of the deployment")
    tags: list[Text] | None = Field(None, description="besides those of the deployment")
    queue: str | None = Field(None, description="of its pool, in place of the deployment's")
    scheduled_at: Moment | None = Field(
        None, description="when it is due; now if neither this nor `delay_s` is given"
    )
    delay_s: StrictFloat | None = Field(None, ge=0, le=366 * 86400, description="seconds until it is due")
    key: Text | None = Field(None, description="asking twice with one key is asking once")
    kind: str | None = Field(None, description="what asks: `api` or `cli`")


class ReasonBody(BaseModel):
    """Why."""

    model_config = _shown({"reason": "wrong date"})

    reason: str | None = Field(None, description="stands in the run's state")


class ResumeBody(BaseModel):
    """What a paused run goes on with."""

    model_config = _shown({"input": {"approved": True}})

    input: dict[str, Any] | None = Field(None, description="what `pause_flow_run(wait_for_input=…)` returns")


class RetryBody(ReasonBody):
    """How a run is done again."""

    model_config = _shown({"from_start": False})

    from_start: bool = Field(False, description="run all of it again, also the tasks that are done")


def _in_capitals(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class SetStateBody(BaseModel):
    """The state a run is to be in."""

    model_config = _shown({"type": "CANCELLED", "message": "nobody needs it"})

    type: Annotated[StateType, BeforeValidator(_in_capitals)] = Field(description="in capitals or not")
    name: str | None = Field(None, description="of the state, if not its type's own")
    message: str | None = None


class BackfillBody(BaseModel):
    """Which slots of the past to run."""

    model_config = _shown({"from": "2026-01-01", "to": "2026-01-03", "max_parallel": 2, "dry_run": True})

    from_: str = Field(
        alias="from", description="the first moment: a date or a time", examples=["2026-01-01"]
    )
    to: str = Field(description="the moment to stop before", examples=["2026-02-01"])
    max_parallel: StrictInt = Field(1, ge=1, le=1000, description="runs at once, 1 to 1000")
    schedules: list[Text] | None = Field(None, description="of the deployment; all without it")
    reprocess: Literal["none", "failed", "all"] | None = Field(
        None, description="which slots that had a run to run again"
    )
    newest_first: bool = False
    queue: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="over those of deployment and schedule")
    name: Text | None = Field(None, description="of the backfill; asking twice for one name is asking once")
    dry_run: bool = Field(False, description="only the plan")


class CancelBackfillBody(BaseModel):
    """What becomes of the runs under way."""

    model_config = _shown({"runs": True})

    runs: bool = Field(False, description="cancel those under way as well")


# --- rules and configuration ----------------------------------------------------------------------------------


class BacktestBody(BaseModel):
    """Which rules to try on what is in the log: those named, or those brought along."""

    model_config = _shown(
        {"rules": {"pair": {"on": "order.paid", "count": 2, "within": "1h"}}, "since": "1d"},
        anyOf=[{"required": ["rules"]}, {"required": ["automation"]}],
    )

    automation: str | SkipJsonSchema[None] = Field(None, description="the name of a live rule")
    rules: dict[str, Any] | SkipJsonSchema[None] = Field(
        None, description="rules as they are written, by name"
    )
    since: Since | None = Field(None, description="a time, or how long ago (7d, the default)")
    until: Since | None = Field(None, description="a time, or how long ago; now without it")
    limit: StrictInt | None = Field(
        None, ge=0, le=10_000, description="how many decisions of each rule are listed"
    )


class ExplainBody(BaseModel):
    """Which event, and by which rules: all live ones without any."""

    model_config = _shown({"event": 1, "rules": {"pair": {"on": "order.paid", "count": 2, "within": "1h"}}})

    event: str | int = Field(description="its id, or its sequence in the log")
    automation: str | None = Field(None, description="the name of a live rule")
    rules: dict[str, Any] | None = Field(None, description="rules as they are written, by name")


class RecordBody(BaseModel):
    """One thing of a configuration, as its bucket holds it."""

    model_config = _shown({"bucket": "variables", "key": "region", "value": "eu"})

    bucket: str = Field(description="deployments, schedules, webhooks, automations, channels, …")
    key: str
    value: JsonValue = None
    written: list[str] | None = Field(
        None, description="the keys that stood in the file; what is not written may be kept from live"
    )


class ManifestBody(BaseModel):
    """A configuration, compiled: what ``hark apply`` makes of the files."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    records: list[RecordBody]


class ApplyBody(BaseModel):
    """A configuration to make live."""

    model_config = _shown(
        {"manifest": {"records": [{"bucket": "variables", "key": "region", "value": "eu"}]}, "prune": False}
    )

    manifest: ManifestBody
    prune: bool = Field(False, description="take away what came from a configuration and is not in this one")


class PlanBody(ApplyBody):
    """A configuration to compare with what is live."""

    impact: bool = Field(
        False, description="also what each changed rule would have done over the last 7 days"
    )


# --- people ---------------------------------------------------------------------------------------------------


class AlertBody(BaseModel):
    """An alert for the routing tree, or its end."""

    model_config = _shown(
        {"title": "disk is full", "severity": "error", "labels": {"host": "db1"}, "key": "disk-db1"},
        anyOf=[{"required": ["title"]}, {"required": ["body"]}],
    )

    title: Text | SkipJsonSchema[None] = None
    body: Text | SkipJsonSchema[None] = None
    severity: Severity | None = Field(None, description="`warning` without it")
    labels: dict[str, Text] | None = Field(None, description="what routes, groups and silences match")
    alert: Text | None = Field(None, description="which alert this is; of the labels without it")
    resolved: bool = Field(False, description="it is over")
    key: Text | None = Field(
        None, description="asking twice with one key (or one `Idempotency-Key`) is asking once"
    )
    attach: list[Attachment] | None = Field(None, description="URLs, `object:<name>` and `log:<flow run id>`")


class AckBody(BaseModel):
    """Who takes it on."""

    model_config = _shown({"by": "ann", "note": "looking"})

    by: str | None = Field(None, description="`someone` without it")
    note: str | None = None


class AnswerBody(BaseModel):
    """The answer to a question."""

    model_config = _shown({"answer": "yes", "by": "ann"})

    answer: Literal["yes", "no"]
    by: str | None = Field(None, description="`api` without it")


_ONE_OF_EACH = {
    "allOf": [
        {"oneOf": [{"required": ["match"]}, {"required": ["matchers"]}]},
        {"oneOf": [{"required": ["for"]}, {"required": ["ends_at"]}]},
    ]
}


class SilenceBody(BaseModel):
    """What to silence (`match` or `matchers`), and how long (`for` or `ends_at`)."""

    model_config = _shown(
        {"matchers": ["automation=etl"], "for": "2h", "comment": "moving house"},
        {"match": {"automation": "etl"}, "for": "1h"},
        **_ONE_OF_EACH,
    )  # fmt: skip

    match: dict[str, Any] | SkipJsonSchema[None] = Field(None, description="a condition, as in `where:`")
    matchers: list[str] | SkipJsonSchema[None] = Field(None, description="such as `automation=etl`")
    for_: str | SkipJsonSchema[None] = Field(None, alias="for", description="such as 2h")
    starts_at: Moment | None = Field(None, description="now without it")
    ends_at: Moment | SkipJsonSchema[None] = Field(None, description="when it is over")
    created_by: Text | None = None
    comment: Text | None = None


class TestBody(BaseModel):
    """What is sent to try a channel; a text that says so without it."""

    __test__ = False
    model_config = _shown({"title": "Hello", "body": "Can you read this?"})

    title: Text | None = None
    body: Text | None = None


class LimitBody(BaseModel):
    """So many at once (`slots`), or so many per time (`rate`)."""

    model_config = _shown(
        {"slots": 4}, {"rate": "100/m"}, oneOf=[{"required": ["slots"]}, {"required": ["rate"]}]
    )

    slots: StrictInt | SkipJsonSchema[None] = Field(None, ge=0, description="0: none until it is raised")
    rate: Rate | SkipJsonSchema[None] = Field(None, description="such as 100/m")
    slot_decay_per_second: float = Field(
        0.0, ge=0, description="with `slots`: how fast they become free by themselves"
    )
    active: bool = Field(True, description="false: as if it were not there")


# --- values ---------------------------------------------------------------------------------------------------


class ValueBody(BaseModel):
    """Any JSON, to be kept under a name."""

    model_config = _shown({"value": {"retries": 3}})

    value: JsonValue


class SecretBody(BaseModel):
    """A text, to be kept sealed."""

    model_config = _shown({"value": "hunter2-hunter2"})

    value: str = Field(min_length=1)


class KeyBody(BaseModel):
    """Whose key it is."""

    model_config = _shown({"name": "ci"})

    name: str = Field(
        description="letters, digits, spaces, `.`, `_` and `-`",
        json_schema_extra={"pattern": "^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$"},
    )
