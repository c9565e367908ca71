"""A sink: events forwarded to NATS subjects of others, or over HTTP, as CloudEvents. The model, and what is sent. Pure.

::

    sinks:
      to-shop:   {on: order.>, where: {data.region: eu}, nats: {subject: "shop.events.{{ event.type }}", mode: binary}}
      to-stream: {on: order.paid, nats: {subject: "orders.paid", stream: true}}
      to-crm:    {on: customer.*, http: {url: "https://crm.example/events", secret: "{{ secrets.crm }}"}}

Every event is sent at least once, and always under its own ``source`` and ``id``, by which a receiver knows a repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Field, field_validator, model_validator

from ...bus.cloudevents import (
    encode_http_binary,
    encode_http_structured,
    encode_nats_binary,
    encode_nats_structured,
)
from ...bus.event import Event
from ...bus.foreign import check_foreign_subject
from ...bus.subject import filters_for, matches
from ...duration import Duration
from ...errors import DefinitionError, EventInvalid, TemplateError
from ...template import check_template, render, render_value
from ...vocabulary import JsonValue
from ..matching.condition import parse_where
from ..matching.where import Check, compile_where
from ..model import check_pattern
from ..problem import Strict
from .http import sign_standard_webhook

__all__ = ["HttpTarget", "NatsTarget", "Outgoing", "Sink", "outgoing"]

_ALWAYS: Check = lambda event: True  # noqa: E731


def _template(value: Any) -> Any:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            try:
                check_template(item)
            except TemplateError as exc:
                raise ValueError(str(exc)) from exc
        elif isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            stack += item
    return value


Template = Annotated[str, BeforeValidator(_template)]


class NatsTarget(Strict):
    """A NATS subject. ``stream``: a JetStream stream of theirs takes it, and must say that it has stored it."""

    subject: Template
    mode: Literal["binary", "structured"] = "binary"
    stream: bool = False
    headers: dict[str, Template] = Field(default_factory=dict)
    secret: Template | None = Field(None, description="sign as Standard Webhooks with this secret")

    @field_validator("subject")
    @classmethod
    def _theirs(cls, value: str) -> str:
        if "{" not in value:
            try:
                check_foreign_subject(value, is_filter=False)
            except DefinitionError as exc:
                raise ValueError(f"{exc}; {exc.hint}") from exc
        return value


class HttpTarget(Strict):
    """An address that takes CloudEvents."""

    url: Template
    mode: Literal["binary", "structured"] = "structured"
    method: Literal["POST", "PUT"] = "POST"
    headers: dict[str, Template] = Field(default_factory=dict)
    secret: Template | None = Field(None, description="sign as Standard Webhooks with this secret")

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if "{{" not in value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not a URL; it begins with https:// or http://")
        return value


def _types(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Sink(Strict):
    """One sink, as stored in the bucket ``sinks`` under its name.

    Attributes:
        on: types of events, as in rules. where: conditions, as in rules.
        data: sent in place of the event's own data; any JSON with templates of ``event``.
        retries: further tries of an event after a failure, before it is a dead letter.
        backoff: ceiling of the wait before the first of them; doubles with each.
        at_once: so many events under way at once; 1 keeps their order, as long as none has to be tried again.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    description: str = ""
    on: Annotated[tuple[str, ...], BeforeValidator(_types)] = Field(min_length=1, max_length=50)
    where: JsonValue = None
    data: JsonValue = None
    nats: NatsTarget | None = None
    http: HttpTarget | None = None
    retries: int = Field(8, ge=0, le=50)
    backoff: Duration = 2.0
    timeout: Annotated[Duration, Field(gt=0, le=300)] = 15.0
    at_once: int = Field(16, ge=1, le=256)
    paused: bool = False

    @field_validator("on")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(one) for one in value)

    @field_validator("data")
    @classmethod
    def _templates(cls, value: JsonValue) -> JsonValue:
        checked: JsonValue = _template(value)
        return checked

    @field_validator("where")
    @classmethod
    def _conditions(cls, value: JsonValue) -> JsonValue:
        if value is not None:
            _, problems = parse_where(value)
            if problems:
                first = problems[0]
                raise ValueError(f"{'.'.join(str(p) for p in first.loc)}: {first.message}")
        return value

    @model_validator(mode="after")
    def _one_target(self) -> Sink:
        if (self.nats is None) == (self.http is None):
            raise ValueError("a sink has one target: `nats: {subject: …}` or `http: {url: …}`")
        return self

    @property
    def filters(self) -> list[str]:
        """The bus filters of what it may forward."""
        return [one for pattern in self.on for one in filters_for(pattern)]

    def check(self) -> Check:
        """Return the function that says whether an event (as JSON) is forwarded, its type included."""
        where = compile_where(self.where) if self.where is not None else _ALWAYS
        patterns = self.on

        def wanted(event: Any) -> bool:
            return (
                any(matches(p, event["type"]) for p in patterns) and not _is_of_sinks(event) and where(event)
            )

        return wanted

    def templates(self) -> list[JsonValue]:
        """Return every template in it, for the secrets and variables they read."""
        target = self.nats or self.http
        assert target is not None
        return [target.model_dump(mode="json"), self.data]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent: ``to`` is a URL or a subject."""

    to: str
    headers: dict[str, str]
    body: bytes


def outgoing(sink: Sink, event: Event, context: Mapping[str, Any], *, now: datetime) -> Outgoing:
    """Return what a sink sends for an event.

    Args:
        context: what templates see besides ``event``: secrets, variables, env.
    Raises:
        DefinitionError: a template cannot be rendered, or what comes out cannot be sent.
    """
    seen = {**context, "event": event.to_dict()}
    if sink.data is not None:
        event = event.replace(data=render_value(sink.data, seen), datacontenttype=None)
    if sink.nats is not None:
        target: NatsTarget | HttpTarget = sink.nats
        to = check_foreign_subject(render(sink.nats.subject, seen), is_filter=False)
        headers, body = (encode_nats_binary if target.mode == "binary" else encode_nats_structured)(event)
    else:
        assert sink.http is not None
        target = sink.http
        to = render(target.url, seen)
        if not to.startswith(("http://", "https://")):
            raise DefinitionError(
                f"the URL of the sink {sink.name!r} does not begin with https:// or http://"
            )
        try:
            headers, body = (encode_http_binary if target.mode == "binary" else encode_http_structured)(event)
        except EventInvalid:
            headers, body = encode_http_structured(event)  # what binary mode cannot say, structured mode can
        headers["Idempotency-Key"] = (
            event.id if event.id.isascii() and event.id.isprintable() else _quoted(event.id)
        )
    for name, template in target.headers.items():
        value = render(template, seen)
        if "\n" in value or "\r" in value:
            raise DefinitionError(
                f"the header {name!r} of the sink {sink.name!r} has a line break in its value"
            )
        headers[name] = value
    if target.secret is not None:
        headers |= sign_standard_webhook(render(target.secret, seen), id=_quoted(event.id), at=now, body=body)
    return Outgoing(to, headers, body)


def _is_of_sinks(event: Any) -> bool:
    """Whether an event tells of a forwarding: a sink that fails must not be asked to forward that it has failed."""
    data = event.get("data")
    return event["type"].startswith("action.") and isinstance(data, dict) and data.get("kind") == "forward"


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode().strip('"').encode("ascii", "backslashreplace").decode()
