"""What a rule does when it fires: the actions of spec §4, as they are written and stored.

Every action is a mapping with the action's word as one of its keys: ``{run: nightly-etl, parameters: {…}}``. The long
form ``{run: {deployment: nightly-etl, parameters: {…}}}`` means the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import orjson
from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from ..duration import Duration
from ..errors import TemplateError
from ..template import check_template, names_in, template_names
from ..vocabulary import JsonValue
from .matching.expression import compile_expression
from .problem import Problem, Strict, did_you_mean, refuse

__all__ = [
    "ACTIONS",
    "Action",
    "AnyAction",
    "Approve",
    "Call",
    "Cancel",
    "Emit",
    "Notify",
    "Pause",
    "Resume",
    "Retry",
    "Run",
    "RunOptions",
    "SetState",
    "Suspend",
    "TARGETS",
]

TARGETS = ("flow_run", "deployment", "schedule", "pool", "queue", "automation", "webhook")
"""What `pause` and `resume` can be about."""


MAX_DELAY_S = 7 * 86_400.0
"""The decision has to be in the log still when its time has come."""
MAX_NESTING = 32
"""How deep JSON in an action may nest: what reads it goes down one call for each level."""


def _checked(value: Any) -> Any:
    """Check every template inside a JSON value, and how deep it nests."""
    _check_texts(value, 0)
    return value


def _check_texts(value: Any, depth: int) -> None:
    if depth > MAX_NESTING:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels")
    if isinstance(value, str):
        try:
            check_template(value)
        except TemplateError as exc:
            raise ValueError(str(exc)) from exc
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts(key, depth + 1)
            _check_texts(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_texts(item, depth + 1)


def _text(value: Any) -> Any:
    # YAML reads `subject: 42` as a number where a text is meant.
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Template: TypeAlias = Annotated[str, BeforeValidator(lambda v: _checked(_text(v)))]
"""A text that may hold ``{{ … }}``."""
Json: TypeAlias = Annotated[JsonValue, BeforeValidator(_checked)]
"""A JSON value whose texts may hold ``{{ … }}``."""


def _public(value: Any) -> Any:
    """Refuse templates that read secrets where what they make is stored in the log, for everybody to read."""
    if isinstance(value, str):
        roots = {name.partition(".")[0] for name in template_names(value)}
        if hidden := roots & {"secrets", "env"}:
            raise ValueError(
                f"template {value[:80]!r} reads {min(hidden)!r}, which would then stand in the log for everybody to read; "
                "let the flow read it itself"
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _public(key)
            _public(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _public(item)
    return value


class Action(Strict):
    """What all actions share: a condition, and how failures are met."""

    word: ClassVar[str]
    main: ClassVar[str | None] = None
    """The name the word's own value has in the long form."""

    if_: str | None = Field(None, alias="if", description="CEL condition over event, key, count")
    retries: int | None = Field(None, ge=0, le=20, description="further tries after a failure")
    backoff: Duration | None = Field(None, description="wait before the first retry; doubles with each")
    timeout: Duration | None = Field(None, description="longest time one try may take")
    delay: Duration | None = Field(None, description="how long after the firing it is done")

    @cached_property
    def names(self) -> frozenset[str]:
        """What its templates read."""
        return names_in(self.model_dump(mode="json", by_alias=True))

    @field_validator("if_")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            compile_expression(value)
        return value

    @field_validator("timeout")
    @classmethod
    def _some_time(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= 3600:
            raise ValueError("a timeout is more than 0 and at most 1h")
        return value

    @field_validator("delay")
    @classmethod
    def _soon_enough(cls, value: float | None) -> float | None:
        if value is not None and cls.word != "run" and value > MAX_DELAY_S:
            raise ValueError("an action is delayed by 7d at most; for more, have a deployment run then")
        return value


class RunOptions(Strict):
    """How a run is asked for: of the ``run`` action, and of the triggers of a deployment."""

    parameters: Json = Field(default_factory=dict)
    tags: tuple[Template, ...] = ()
    queue: Template | None = None
    delay: Duration | None = None
    key: Template | None = Field(None, description="runs asked for with the same key are one run")

    @field_validator("parameters", "tags", "key")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        return _public(value)

    @field_validator("parameters")
    @classmethod
    def _mapping(cls, value: JsonValue) -> JsonValue:
        if not isinstance(value, dict | str):
            raise ValueError(f"parameters are a mapping, got {value!r:.60}")
        return value


class Run(RunOptions, Action):
    """Start a run of a deployment."""

    word = "run"
    main = "deployment"
    run: Template


class _OnFlowRun(Action):
    """An action about one flow run; without an id, the run the event is about."""

    flow_run: Template | None = None


class Cancel(_OnFlowRun):
    """Cancel a flow run."""

    word = "cancel"
    main = "flow_run"
    cancel: Literal[True] = True
    reason: Template = ""


class Suspend(_OnFlowRun):
    """Suspend a flow run: it frees its worker and waits to be resumed."""

    word = "suspend"
    main = "flow_run"
    suspend: Literal[True] = True


class Retry(_OnFlowRun):
    """Run a finished flow run again, from the task that failed."""

    word = "retry"
    main = "flow_run"
    retry: Literal[True] = True
    from_start: bool = False


class SetState(_OnFlowRun):
    """Move a flow run to a state."""

    word = "set_state"
    main = "type"
    set_state: Literal["COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "SCHEDULED"]
    name: Template | None = None
    message: Template | None = None

    @field_validator("set_state", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class _Target(Action):
    """An action about one named thing of the kinds in ``TARGETS``."""

    kind: Literal["flow_run", "deployment", "schedule", "pool", "queue", "automation", "webhook"]
    target: Template = Field(min_length=1)


class Pause(_Target):
    """Pause a deployment, schedule, pool, queue, automation, webhook or flow run."""

    word = "pause"
    pause: Literal[True] = True


class Resume(_Target):
    """Resume what was paused."""

    word = "resume"
    resume: Literal[True] = True


SEVERITIES = ("info", "success", "warning", "error", "critical")


def _severity(value: Any) -> Any:
    if value in ("failure", "failed"):
        return "error"
    if value in SEVERITIES or (isinstance(value, str) and ("{{" in value or "{%" in value)):
        return _checked(value)
    named = ", ".join(map(repr, SEVERITIES[:-1]))
    near = did_you_mean(str(value), SEVERITIES)
    raise ValueError(f"{value!r:.80} is not one of {named} or {SEVERITIES[-1]!r}, and no template{near}")


SeverityText: TypeAlias = Annotated[
    Literal["info", "success", "warning", "error", "critical"] | Template, BeforeValidator(_severity)
]
"""How bad it is: a word, or a template that gives one."""


class Notify(Action):
    """Tell people: a channel by name, or an Apprise URL, at once; or ``routes``, whom the routing tree says.

    ``notify: routes``, and ``notify: {…}`` without ``to``, raise an alert in the tree of ``notifications:``, where it is
    grouped, silenced, repeated, escalated. Rules that name a channel go past all that. ``labels, alert`` and ``resolved``
    mean something to the tree only.
    """

    word = "notify"
    main = "to"
    notify: Annotated[tuple[Template, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = (
        Field(min_length=1)
    )
    title: Template = "{{ automation.name }}{% if key %}: {{ key }}{% endif %}"
    body: Template | None = None
    severity: SeverityText = "warning"
    attach: tuple[Template, ...] = Field(
        (), description="paths, URLs, object:<name>, or run-log: the log of the run the event is about"
    )
    labels: dict[str, Template] = Field(
        default_factory=dict, description="what routes can match besides the event"
    )
    alert: Template | None = Field(
        None, description="names the trouble; equal names are one alert. Default: the rule and its key"
    )
    resolved: bool | None = Field(
        None, description="the trouble is over; by default when the rule has resolved"
    )

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        from ..errors import DefinitionError
        from ..notifications.alert import check_labels

        try:
            check_labels(value)
        except DefinitionError as exc:
            raise ValueError(f"{exc}; {exc.hint}") from exc
        return value


class Call(Action):
    """Send an HTTP request; the firing itself is the body unless one is written."""

    word = "call"
    main = "url"
    call: Template
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"] = "POST"
    headers: dict[str, Template] = Field(default_factory=dict)
    body: Json = None
    secret: Template | None = Field(None, description="sign as Standard Webhooks with this secret")

    @field_validator("method", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("call")
    @classmethod
    def _url(cls, value: str) -> str:
        if "{{" not in value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not a URL; it begins with https:// or http://")
        return value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name or not all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in name) or not name.isascii():
                raise ValueError(f"{name!r} is not a header name")
            if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
                raise ValueError(f"the header {name!r} is set by the client and cannot be written")
            if "\n" in text or "\r" in text:
                raise ValueError(f"the header {name!r} has a line break in its value")
        return value


class Emit(Action):
    """Emit an event caused by the firing."""

    word = "emit"
    main = "type"
    emit: Template
    subject: Template | None = None
    source: Template | None = None
    partitionkey: Template | None = None
    data: Json = None

    @field_validator("emit", "subject", "source", "partitionkey", "data")
    @classmethod
    def _no_secrets(cls, value: Any) -> Any:
        return _public(value)

    @field_validator("emit")
    @classmethod
    def _type(cls, value: str) -> str:
        from ..bus.event import check_type, is_own_type
        from ..errors import EventInvalid

        if "{{" in value:
            return value
        try:
            check_type(value)
        except EventInvalid as exc:
            raise ValueError(exc.problem) from exc
        if is_own_type(value):
            raise ValueError(
                f"events whose type begins with {value.partition('.')[0]!r} are Hark's own; choose another first word"
            )
        return value


def _branch(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


Branch: TypeAlias = "Annotated[tuple[AnyAction, ...], BeforeValidator(_branch), Field(max_length=50)]"


class Approve(Action):
    """Ask people, with one-time links, and go on as they answer: ``yes``, ``no``, or nobody in time."""

    word = "approve"
    main = "to"
    approve: Annotated[tuple[Template, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = (
        Field(min_length=1)
    )
    title: Template = "{{ automation.name }}{% if key %}: {{ key }}{% endif %}?"
    body: Template | None = None
    severity: SeverityText = "warning"
    wait: Duration = Field(86_400.0, gt=0, le=30 * 86_400, description="how long an answer can be given")
    yes: Branch = ()
    no: Branch = ()
    otherwise: Literal["yes", "no"] | Branch = Field("no", description="what nobody answering means")

    @field_validator("otherwise", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        # YAML 1.1 habits: `otherwise: no` unquoted is text in 1.2, a bool where somebody sends JSON.
        return ("yes" if value else "no") if isinstance(value, bool) else value

    @property
    def branches(self) -> dict[str, Any]:
        """The actions as written, by how it may end."""
        written = self.model_dump(mode="json", by_alias=True)
        lapsed = written["otherwise"]
        return {
            "yes": written["yes"],
            "no": written["no"],
            "expired": written[lapsed] if isinstance(lapsed, str) else lapsed,
        }


ACTIONS: dict[str, type[Action]] = {
    c.word: c for c in (Run, Cancel, Suspend, Retry, SetState, Pause, Resume, Notify, Call, Emit, Approve)
}
_FOREIGN = {
    "run_deployment": "run", "run-deployment": "run", "start": "run", "trigger": "run", "send_notification": "notify",
    "send-notification": "notify", "alert": "notify", "message": "notify", "webhook": "call", "http": "call",
    "post": "call", "request": "call", "event": "emit", "publish": "emit", "cancel_flow_run": "cancel",
    "pause_deployment": "pause", "resume_deployment": "resume", "stop": "cancel", "disable": "pause", "enable": "resume",
    "ask": "approve", "approval": "approve", "confirm": "approve",
}  # fmt: skip


def _long_form(cls: type[Action], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an action from either of its written forms."""
    fields = dict(value)
    given = fields.get(cls.word)
    if issubclass(cls, _Target):
        if isinstance(given, str):
            refuse(
                cls.word,
                [
                    Problem(
                        (cls.word,),
                        f"say what kind of thing {given!r} is: {cls.word}: {{deployment: {given}}}",
                    )
                ],
                value,
            )
        if not isinstance(given, Mapping) or len(given) != 1:
            refuse(
                cls.word,
                [
                    Problem(
                        (cls.word,),
                        f"`{cls.word}` names one thing: {{deployment: …}}, or another of {', '.join(TARGETS)}",
                    )
                ],
                value,
            )
        kind, target = next(iter(given.items()))
        if kind not in TARGETS:
            refuse(
                cls.word,
                [Problem((cls.word, str(kind)), f"unknown kind {kind!r}{did_you_mean(str(kind), TARGETS)}")],
                value,
            )
        fields[cls.word] = True
        return {**fields, "kind": kind, "target": target}
    if issubclass(cls, _OnFlowRun) and not issubclass(cls, SetState):
        fields[cls.word] = True
        if isinstance(given, Mapping):
            return {**fields, **given}
        if isinstance(given, str):
            return {**fields, "flow_run": given}
        return fields
    if cls is Notify and (given is None or (isinstance(given, Mapping) and "to" not in given)):
        given = {**(given or {}), "to": "routes"}
    if isinstance(given, Mapping) and cls.main is not None:
        inner = dict(given)
        if cls.main in inner:
            fields[cls.word] = inner.pop(cls.main)
            clash = sorted(set(inner) & set(fields))
            if clash:
                refuse(
                    cls.word,
                    [Problem((clash[0],), f"{clash[0]!r} is written twice, inside and beside `{cls.word}`")],
                    value,
                )
            return {**fields, **inner}
        refuse(cls.word, [Problem((cls.word, cls.main), f"`{cls.word}` needs {cls.main!r}")], value)
    return fields


_MAX_KEPT_BYTES = 16 * 1024


def parse_stored_action(value: Any) -> Any:
    """Do as ``parse_action`` with what has been read from the log, where most have been seen before."""
    raw = orjson.dumps(value)
    return _parsed(raw) if len(raw) <= _MAX_KEPT_BYTES else parse_action(value)


@lru_cache(maxsize=512)
def _parsed(raw: bytes) -> Any:
    return parse_action(orjson.loads(raw))


def parse_action(value: Any) -> Any:
    """Return the action written as a mapping; the pydantic error says what is wrong with it."""
    if isinstance(value, Action):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"an action is a mapping such as {{notify: oncall}} or {{run: nightly-etl}}, got {value!r:.60}"
        )
    # `retry` and `key` are also fields elsewhere, so the word is the first key that names an action.
    words = [str(key) for key in value if key in ACTIONS]
    if not words:
        first = str(next(iter(value), ""))
        hint = did_you_mean(first, ACTIONS, also=_FOREIGN) or f"; there are {', '.join(ACTIONS)}"
        refuse("action", [Problem((first,) if first else (), f"unknown action {first!r}{hint}")], dict(value))
    if len(words) > 1:
        refuse(
            "action",
            [
                Problem(
                    (words[1],),
                    f"one action each: write `{words[0]}` and `{words[1]}` as two entries of the list",
                )
            ],
            dict(value),
        )
    cls = ACTIONS[words[0]]
    return cls.model_validate(_long_form(cls, value))


def _written(action: Action) -> dict[str, Any]:
    """Return the form an action is written in, defaults left out; ``parse_action`` reads it back."""
    out: dict[str, Any] = action.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(action, _Target):
        out[action.word] = {out.pop("kind"): out.pop("target")}
    elif isinstance(action, _OnFlowRun) and not isinstance(action, SetState):
        flow_run = out.pop("flow_run", None)
        out[action.word] = {"flow_run": flow_run} if flow_run is not None else {}
    return out


AnyAction: TypeAlias = Annotated[Action, BeforeValidator(parse_action), PlainSerializer(_written)]
"""Any one of the actions, told apart by its word."""
Approve.model_rebuild()


def wait_before_retry_s(retry: int, *, base_s: float, cap_s: float, jitter: float) -> float:
    """Return how long to wait before retry number ``retry`` (from 1), in seconds.

    The ceiling doubles with each retry until ``cap_s``. Half of it is kept and the other half is drawn: a retry
    never comes at once, and a thousand that failed together do not come back together.

    Args:
        jitter: a draw from [0, 1), made by the caller.
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(retry - 1, 40))
    return ceiling * (0.5 + 0.5 * jitter)
