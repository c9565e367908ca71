"""The rule as written: what YAML and JSON parse into, and what the ``automations`` bucket holds.

``Automation.version`` names the whole definition; ``matching_version`` only the part that window state depends on, so
that editing texts and actions keeps the windows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import orjson
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from ..bus.event import OWN_WORDS
from ..duration import Duration, RateSpec
from ..vocabulary import JsonObject, JsonValue
from .action import Action, AnyAction
from .condition import Node, parse_where
from .expression import compile_expression
from .path import Path, parse_path
from .problem import Problem, RuleInvalid, Strict, did_you_mean, problems_of, refuse

__all__ = [
    "Automation",
    "EventPattern",
    "Expected",
    "GivenEvent",
    "RuleTest",
    "check_pattern",
    "parse_automation",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORD = re.compile(r"[a-z0-9-]+|\*|>")
_COMMON_TYPES = (
    *(
        f"{kind}.{word}"
        for kind in ("flow-run", "task-run")
        for word in (
            "scheduled", "pending", "running", "completed", "failed", "cancelled", "crashed", "paused", "late", "retrying",
        )
    ),
    "automation.triggered", "deployment.created", "action.failed", "webhook.received", "schedule.fired", "worker.lost",
)  # fmt: skip
MAX_COUNT = 100_000
MAX_PATTERNS = 50


def check_pattern(pattern: object) -> str:
    """Return an event type or a pattern of types; ``*`` is one word and a last ``>`` all that follow.

    Raises:
        ValueError: it is not one; the message says what one looks like.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"{pattern!r} is not an event type; write one such as order.paid or flow-run.*")
    words = pattern.split(".")
    for i, word in enumerate(words):
        if not _WORD.fullmatch(word):
            lower = re.sub(r"[^a-z0-9*>.-]+", "-", pattern.lower())
            hint = (
                f"; did you mean {lower!r}?"
                if lower != pattern and all(_WORD.fullmatch(w) for w in lower.split("."))
                else ""
            )
            raise ValueError(
                f"{pattern!r} is not an event type: types are lower-case dotted words such as order.paid{hint}"
            )
        if word == ">" and i < len(words) - 1:
            raise ValueError(
                f"{pattern!r}: `>` stands for all the words that follow, so it can only come last"
            )
    if len(words) > 1 and words[0] in OWN_WORDS and "*" not in words and ">" not in words:
        hint = did_you_mean(pattern, _COMMON_TYPES)
        if (
            words[0] in ("flow-run", "task-run")
            and pattern not in _COMMON_TYPES
            and words[1] in ("started", "finished", "succeeded", "success", "error", "errored", "failure")
        ):
            meant = {
                "started": "running",
                "finished": "completed",
                "succeeded": "completed",
                "success": "completed",
            }.get(words[1], "failed")
            hint = f"; did you mean '{words[0]}.{meant}'?"
            raise ValueError(f"Hark never emits {pattern!r}{hint}")
    return pattern


def _patterns(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"`on` is an event type or a list of them, got {value!r:.60}")
    if not items:
        raise ValueError("`on` needs at least one event type")
    if len(items) > MAX_PATTERNS:
        raise ValueError(f"more than {MAX_PATTERNS} event types in one `on`")
    problems = []
    for i, item in enumerate(items):
        try:
            check_pattern(item)
        except ValueError as exc:
            problems.append(Problem(() if isinstance(value, str) else (i,), str(exc)))
    if problems:
        refuse("on", problems, value)
    return tuple(dict.fromkeys(items))


def _where(value: Any) -> Any:
    _, problems = parse_where(value)
    if problems:
        refuse("where", problems, value)
    return value


def _paths(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(f"`for_each` is a path such as data.flow.name, or a list of them; got {value!r:.60}")
    if len(items) > 8:
        raise ValueError("more than 8 paths in one `for_each`")
    problems = []
    for i, item in enumerate(items):
        try:
            parse_path(item)
        except ValueError as exc:
            problems.append(Problem(() if isinstance(value, str) else (i,), str(exc)))
    if problems:
        refuse("for_each", problems, value)
    return tuple(items)


def _expression(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("`if` is an expression in CEL, such as data.run.attempt > 2")
    if isinstance(value, str):
        compile_expression(value)
    return value


Types: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
Where: TypeAlias = Annotated[dict[str, Any], BeforeValidator(_where)]
Paths: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_paths)]
Cel: TypeAlias = Annotated[str, BeforeValidator(_expression)]


class EventPattern(Strict):
    """Which events: types, and conditions on one event."""

    foreign_words: ClassVar[Mapping[str, str]] = {
        "type": "on",
        "match": "where",
        "filter": "where",
        "condition": "if",
    }

    on: Types
    where: Where | None = None
    if_: Cel | None = Field(None, alias="if")

    @cached_property
    def node(self) -> Node | None:
        """The parsed ``where``."""
        return parse_where(self.where)[0] if self.where else None


def _pattern(value: Any) -> Any:
    return {"on": value} if isinstance(value, str | list | tuple) else value


Pattern: TypeAlias = Annotated[EventPattern, BeforeValidator(_pattern)]


class GivenEvent(Strict):
    """An event of a test: ``at`` an offset in virtual time; ``same`` repeats an earlier one by its index."""

    at: Duration = 0.0
    type: str | None = None
    same: int | None = Field(None, ge=0)
    id: str | None = None
    source: str | None = None
    subject: str | None = None
    time: Duration | None = Field(None, description="when it occurred, if not when it arrived")
    causaldepth: int = Field(0, ge=0)
    data: JsonValue = None

    @model_validator(mode="after")
    def _type_or_same(self) -> Self:
        if self.type is None and self.same is None:
            raise ValueError("give a `type`, or `same` with the index of an earlier event")
        return self


def _expected(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower().replace("_", " ")
        if word in ("fired", "not fired"):
            return {"fired": 1 if word == "fired" else 0}
        raise ValueError(
            f"{value!r} is not an expectation; write `fired`, `not fired` or {{fired: 2, key: etl}}"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return {"fired": value}
    if isinstance(value, Mapping) and isinstance(value.get("fired"), bool):
        return {**value, "fired": int(value["fired"])}
    return value


class Expected(Strict):
    """What a test expects: how often the rule fires (at all, or for one key), and with what."""

    fired: int | None = Field(None, ge=0)
    key: str | int | float | bool | tuple[str | int | float | bool, ...] | None = None
    count: int | None = None
    at: (
        Annotated[tuple[Duration, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] | None
    ) = None
    suppressed: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.fired is None and self.at is None and self.suppressed is None and self.count is None:
            raise ValueError("say what is expected: {fired: 1}, {fired: 0}, {at: 10m}, {suppressed: 2}")
        return self


class RuleTest(Strict):
    """An inline test of a rule, run in virtual time."""

    name: str | None = None
    given: tuple[GivenEvent, ...]
    until: Duration | None = Field(None, description="how long to go on after the first moment")
    expect: Annotated[
        tuple[Annotated[Expected, BeforeValidator(_expected)], ...],
        BeforeValidator(lambda v: v if isinstance(v, list | tuple) else [v]),
    ]

    @model_validator(mode="after")
    def _same_is_earlier(self) -> Self:
        for i, given in enumerate(self.given):
            if given.same is not None and given.same >= i:
                refuse(
                    "test",
                    [
                        Problem(
                            ("given", i, "same"),
                            f"`same: {given.same}` has to name an earlier event, from 0 to {i - 1}",
                        )
                    ],
                )
        return self


class Automation(Strict):
    """When this pattern of events, do these actions."""

    foreign_words: ClassVar[Mapping[str, str]] = {
        "trigger": "on", "triggers": "on", "when": "on", "event": "on", "match": "where", "filter": "where",
        "filters": "where", "condition": "if", "conditions": "where", "actions": "do", "action": "do", "then": "do",
        "threshold": "count", "window": "within", "group_by": "for_each", "foreach": "for_each", "key": "for_each",
        "throttle": "cooldown", "enabled": "paused", "disabled": "paused", "expects": "expect", "test": "tests",
    }  # fmt: skip

    name: str
    description: str = ""
    paused: bool = False
    mode: Literal["live", "shadow"] = "live"

    on: Types | None = None
    where: Where | None = None
    if_: Cel | None = Field(None, alias="if")
    for_each: Paths | None = None
    count: int | None = Field(None, ge=1, le=MAX_COUNT)
    within: Duration | None = None
    after: Pattern | None = None
    expect: Pattern | None = None
    cooldown: Duration | None = None
    allowed_lateness: Duration | None = None
    budget: RateSpec | None = None

    do: tuple[AnyAction, ...] = Field((), max_length=50)
    tests: tuple[RuleTest, ...] = ()

    @field_validator("name")
    @classmethod
    def _good_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a name: letters, digits, dots, dashes and underscores, beginning with a letter or digit, 100 at most"
            )
        return value

    @field_validator("count", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value):
            raise ValueError(f"`count` is a whole number from 1, got {value!r}")
        return value

    @field_validator("do", mode="before")
    @classmethod
    def _one_or_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("within", "cooldown")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("a duration of 0 can never pass; leave it out or make it longer")
        return value

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        wrong: list[Problem] = []
        if self.on is None and self.expect is None:
            key = "after" if self.after else ()
            wrong.append(
                Problem(("after",), "`after` opens a wait and needs `expect`: the event that has to follow")
                if key
                else Problem((), "a rule needs `on` (events to react to) or `expect` (events to miss)")
            )
        if self.on is not None and self.expect is not None:
            wrong.append(
                Problem(
                    ("on",),
                    "`on` reacts to events, `expect` to their absence; write two rules, or `after` for what opens the wait",
                )
            )
        if self.on is not None and self.after is not None:
            wrong.append(Problem(("after",), "`after` belongs to `expect`; a rule with `on` fires by itself"))
        if self.expect is not None:
            if self.within is None:
                wrong.append(
                    Problem(
                        ("expect",), "`expect` needs `within`: how long to wait for it, such as within: 2h"
                    )
                )
            if self.count is not None:
                wrong.append(
                    Problem(("count",), "`count` belongs to `on`; an absence is one event that does not come")
                )
        elif self.on is not None:
            if (self.count or 1) > 1 and self.within is None:
                wrong.append(
                    Problem(
                        ("count",),
                        "`count` needs `within`: the time in which they have to come, such as within: 10m",
                    )
                )
            if self.within is not None and self.count is None:
                wrong.append(
                    Problem(("within",), "`within` needs `count`: how many have to come in that time")
                )
        if wrong:
            refuse(self.name, wrong)
        return self

    @property
    def kind(self) -> Literal["count", "absence", "heartbeat"]:
        """Which form of rule it is."""
        if self.on is not None:
            return "count"
        return "absence" if self.after is not None else "heartbeat"

    @property
    def actions(self) -> tuple[Action, ...]:
        """What it does when it fires."""
        return self.do

    @cached_property
    def node(self) -> Node | None:
        """The parsed ``where``."""
        return parse_where(self.where)[0] if self.where else None

    @cached_property
    def key_paths(self) -> tuple[Path, ...]:
        """The parsed ``for_each``."""
        return tuple(parse_path(p) for p in self.for_each or ())

    @cached_property
    def version(self) -> str:
        """Short hash of all that the rule decides and does; tests and the description do not count."""
        return _hash({k: v for k, v in self.to_json().items() if k not in ("tests", "description", "paused")})

    @cached_property
    def matching_version(self) -> str:
        """Short hash of what window state depends on; a rule keeps its windows while this stays."""
        form = self.to_json()
        return _hash({k: form[k] for k in _MATCHING if k in form})

    def to_json(self) -> JsonObject:
        """Return the definition as JSON that ``parse_automation`` reads back, defaults left out."""
        out: JsonObject = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return out

    def dumps(self) -> bytes:
        """Return the stored form."""
        return orjson.dumps(self.to_json(), option=orjson.OPT_SORT_KEYS)


_MATCHING = ("on", "where", "if", "for_each", "count", "within", "after", "expect", "allowed_lateness")


def _hash(value: JsonValue) -> str:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def parse_automation(value: object, *, name: str | None = None) -> Automation:
    """Return the rule written as a mapping (or its JSON bytes).

    Args:
        name: the rule's name, when it is the key the mapping stands under and not in the mapping.
    Raises:
        RuleInvalid: it does not stand; ``problems`` says each fault and its place.
    """
    if isinstance(value, bytes | str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as exc:
            raise RuleInvalid([Problem((), f"not JSON: {exc}")], name=name or "") from exc
    if not isinstance(value, Mapping):
        raise RuleInvalid([Problem((), f"a rule is a mapping, got {value!r:.60}")], name=name or "")
    fields = dict(value)
    if name is not None:
        fields["name"] = name
    try:
        return Automation.model_validate(fields)
    except ValidationError as exc:
        raise RuleInvalid(problems_of(exc), name=str(fields.get("name", ""))) from exc
