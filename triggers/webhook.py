"""A webhook: an address that turns requests into events. The model, as written in ``hark.yaml`` and stored.

::

    webhooks:
      github:                      # POST /hooks/github
        verify: {preset: github, secret: "{{ secrets.github }}"}
        event: {type: "github.{{ headers['x-github-event'] }}", subject: "repo/{{ body.repository.full_name }}"}
        dedupe: "{{ headers['x-github-delivery'] }}"
        rate: 50/s

``event`` may be left out: each preset knows its sender (``mapping.py``). Templates see ``headers`` (names in lower case,
without credentials), ``body``, ``form``, ``form_all``, ``query``, ``query_all``, ``method`` and ``webhook.name``; never secrets.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ..bus.event import OWN_WORDS, clean_type
from ..duration import Duration, RateSpec
from ..errors import TemplateError
from ..template import check_template, template_names
from ..vocabulary import JsonValue
from .preset import NoneVerify, Verify

__all__ = ["EventMapping", "Webhook", "check_event_template", "clean_type"]

Method = Literal["POST", "PUT", "PATCH", "GET"]


def check_event_template(text: str) -> str:
    """Return a template that is rendered into events; raise ``ValueError`` if it is broken or reads secrets."""
    try:
        check_template(text)
        roots = {name.partition(".")[0] for name in template_names(text)}
    except TemplateError as exc:
        raise ValueError(str(exc)) from exc
    if hidden := roots & {"secrets", "env"}:
        raise ValueError(
            f"template {text[:80]!r} reads {min(hidden)!r}, which would then stand in every event"
        )
    return text


class EventMapping(BaseModel):
    """How a request becomes an event; every field is a template.

    Attributes:
        type: made into lower-case dotted words by ``clean_type``; must not begin with a word that is Hark's own.
        subject, time, partitionkey: left out of the event when the template cannot be rendered, as when a payload
            has no such field; ``type``, ``id``, ``source`` and ``data`` then refuse the request (422).
        data: any JSON with templates in it; the body itself if not given.
        time: ISO 8601 or Unix seconds.
        id: makes the event's id; a repeated one is a repeated delivery.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    type: str = Field(min_length=1)
    subject: str | None = None
    data: JsonValue = None
    source: str | None = None
    time: str | None = None
    id: str | None = None
    partitionkey: str | None = None

    @field_validator("type", "subject", "source", "time", "id", "partitionkey")
    @classmethod
    def _templates_parse(cls, text: str | None) -> str | None:
        return None if text is None else check_event_template(text)

    @field_validator("data")
    @classmethod
    def _data_parses(cls, value: JsonValue) -> JsonValue:
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                check_event_template(item)
            elif isinstance(item, dict):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                stack += item
        return value

    @model_validator(mode="after")
    def _type_is_theirs(self) -> EventMapping:
        literal = re.split(r"\{[{%#]", self.type)[0]
        first = clean_type(literal).partition(".")[0]
        if first in OWN_WORDS and ("." in literal or literal == self.type):
            raise ValueError(
                f"event types beginning with {first!r} are Hark's own; put a word of yours before it"
            )
        if literal == self.type and not clean_type(self.type):
            raise ValueError(f"{self.type!r} makes no event type; write words such as 'order.paid'")
        return self

    @model_serializer(mode="wrap")
    def _without_unwritten_data(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave ``data`` out if it was not written: null would mean an event without data."""
        out: dict[str, Any] = handler(self)
        if not self.has_data:
            out.pop("data", None)
        return out

    @property
    def has_data(self) -> bool:
        """Whether ``data`` was written, be it null."""
        return "data" in self.model_fields_set


def _no_dedupe(value: object) -> object:
    return "" if value is False else value


class Webhook(BaseModel):
    """One webhook, as stored in the bucket ``webhooks`` under its name.

    Attributes:
        verify: how a request proves where it comes from; must be given, if only as ``none``.
        event: how it becomes an event; the preset's own way if not given.
        dedupe: template of the delivery's id, by which a repeat is recognised; the preset's own if not given, and none
            with ``dedupe: false``.
        rate: requests accepted per time, per server process; further ones get 429.
        max_bytes: largest body; the server's ``triggers.webhook_max_bytes`` if not given.
        methods: what is accepted besides OPTIONS; GET only if named here.
        wait_for_run: hold the answer back until the first run this event leads to has ended, at most this long: then 200
            with its result, 500 if it did not complete, 202 if it is not over. Only for senders that wait that long.
        paused: requests get 409, which senders that try again will do. ``retired``: 410, which tells them to stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    description: str = ""
    verify: Verify
    event: EventMapping | None = None
    dedupe: Annotated[str | None, BeforeValidator(_no_dedupe)] = None
    rate: RateSpec | None = None
    max_bytes: int | None = Field(None, ge=1, le=64 << 20)
    methods: tuple[Method, ...] = Field(("POST",), min_length=1)
    wait_for_run: Annotated[Duration, Field(gt=0, le=120)] | None = None
    paused: bool = False
    retired: bool = False

    @model_validator(mode="before")
    @classmethod
    def _verify_is_written(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("verify") is None:
            raise ValueError("`verify` is missing; name a preset with its secret, or write `verify: none`")
        return value

    @field_validator("dedupe")
    @classmethod
    def _dedupe_parses(cls, text: str | None) -> str | None:
        return check_event_template(text) if text else text

    @property
    def is_open(self) -> bool:
        """Whether anybody may send."""
        return isinstance(self.verify, NoneVerify)
