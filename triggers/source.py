"""A source: NATS subjects of others that are turned into events. The model, and from a message to an event. Pure.

::

    sources:
      shop:
        subject: "shop.orders.>"           # or a list; core NATS
        stream: ORDERS                     # read through a durable consumer on their stream instead
        event: {type: "shop.{{ words[2] }}", subject: "order/{{ body.id }}", data: "{{ body }}"}
        dedupe: "{{ headers['x-request-id'] }}"

Without ``event:`` a CloudEvent (binary or structured) is the event it is, and other JSON becomes an event whose type are
the words of the subject. Templates see ``subject``, ``words``, ``headers`` (lower-case names), ``body`` and ``source.name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ..bus.cloudevents import decode_nats
from ..bus.event import Event, checked, is_own_type
from ..bus.exact import NotExact, loads
from ..bus.foreign import check_foreign_subject
from ..errors import DefinitionError, EventInvalid, TemplateError
from ..template import render, render_value
from ..vocabulary import JsonValue, derived_id, new_id
from .mapping import moment_of
from .webhook import EventMapping, check_event_template, clean_type

__all__ = ["Message", "NotAnEvent", "Source", "SourceEvent", "event_of"]

MAX_DEPTH = 100
_MAX_DELIVERY_CHARS = 1000


class Source(BaseModel):
    """One source, as stored in the bucket ``sources`` under its name.

    Attributes:
        subject: what is listened to; ``*`` is one word and a last ``>`` the rest.
        stream: their JetStream stream to read; without it core NATS, which nobody keeps for us.
        start: of a stream: ``new`` messages only, or ``all`` that are in it.
        format: how a message without CloudEvents headers is read: ``auto`` is JSON (a CloudEvent if it says so), ``text``,
            or ``bytes`` (data as base64).
        event: how it becomes an event; see above for without.
        dedupe: template of what a repeat has in common; recognised for as long as deliveries of webhooks are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    description: str = ""
    subject: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: (v,) if isinstance(v, str) else v),
        Field(min_length=1, max_length=50),
    ]
    stream: str | None = Field(None, pattern=r"^[^\s.*>/\\]{1,200}$")
    start: Literal["new", "all"] = "new"
    format: Literal["auto", "text", "bytes"] = "auto"
    event: EventMapping | None = None
    dedupe: str | None = None
    paused: bool = False

    @field_validator("subject")
    @classmethod
    def _theirs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for subject in value:
            try:
                check_foreign_subject(subject, is_filter=True)
            except DefinitionError as exc:
                raise ValueError(f"{exc}; {exc.hint}") from exc
        return value

    @field_validator("dedupe")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        return check_event_template(value) if value else value

    @model_validator(mode="after")
    def _sound(self) -> Source:
        if self.stream is not None and self.stream.startswith(("HARK", "KV_hark", "OBJ_hark")):
            raise ValueError(
                f"the stream {self.stream!r} is Hark's own; its events are read with rules and sinks"
            )
        if self.start == "all" and self.stream is None:
            raise ValueError("`start: all` needs a `stream`: core NATS keeps nothing")
        return self


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came.

    Attributes:
        place: its stream and sequence, ``ORDERS/17``, if it came from a stream; names it for ever.
        stored_at: when that stream stored it.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    place: str | None = None
    stored_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """The event a message becomes; ``delivery`` is what a repeat of it has in common, where that was written."""

    event: Event
    delivery: str | None


class NotAnEvent(Exception):
    """No event can be made of a message, now or later. ``reason`` is a word for machines."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def event_of(source: Source, message: Message, *, now: datetime) -> SourceEvent:
    """Return the event of a message.

    Raises:
        NotAnEvent: it is not what the source says it is, or a template cannot be rendered.
    """
    headers = {name.lower(): value for name, value in message.headers.items()}
    is_ce = "ce-specversion" in headers or headers.get("content-type", "").startswith(
        "application/cloudevents"
    )
    try:
        read = _read(source, message, headers, is_ce=is_ce)
        if source.event is not None:
            event = _mapped(source, source.event, message, headers, read, now)
        elif isinstance(read, Event):
            event = read
        else:
            event = _plain(source, message, read, now)
        delivery = None
        if source.dedupe:
            delivery = _needed("dedupe", source.dedupe, _context(source, message, headers, read))
            if len(delivery) > _MAX_DELIVERY_CHARS:
                raise NotAnEvent("dedupe", f"a delivery id of {len(delivery)} characters is too long")
            if delivery and (source.event is None or source.event.id is None) and not isinstance(read, Event):
                event = event.replace(id=derived_id("source", source.name, delivery))
        checked(event)
    except EventInvalid as exc:
        raise NotAnEvent("not-an-event", str(exc)) from exc
    if is_own_type(event.type):
        raise NotAnEvent(
            "type", f"event types beginning with {event.type.partition('.')[0]!r} are Hark's own"
        )
    if event.source == "/hark" or event.source.startswith("/hark/"):
        raise NotAnEvent("source", f"{event.source[:80]!r} cannot be the source of an event from outside")
    if event.causaldepth >= MAX_DEPTH:
        raise NotAnEvent("loop", f"it has gone round {event.causaldepth} times")
    return SourceEvent(event, delivery or None)


def _read(source: Source, message: Message, headers: Mapping[str, str], *, is_ce: bool) -> Event | JsonValue:
    """Return the CloudEvent a message is, or what its payload says."""
    if is_ce:
        untyped_json = source.format == "auto"
        event = decode_nats(headers, message.data, source=f"/nats/{source.name}", untyped_json=untyped_json)
        # One round of sources and sinks is one step: so a loop through others' hands comes to an end.
        return event.replace(causaldepth=event.causaldepth + 1)
    if source.format == "bytes":
        import base64

        return base64.b64encode(message.data).decode()
    if source.format == "text":
        try:
            return message.data.decode()
        except UnicodeDecodeError as exc:
            raise NotAnEvent("broken-text", "the payload is not UTF-8 text") from exc
    if not message.data:
        return None
    try:
        value: JsonValue = loads(message.data)
    except ValueError as exc:
        raise NotAnEvent("broken-json", f"the payload is not JSON: {exc}") from exc
    if isinstance(value, dict) and "specversion" in value and "type" in value and "source" in value:
        event = decode_nats({"content-type": "application/cloudevents+json"}, message.data)
        return event.replace(causaldepth=event.causaldepth + 1)
    return value


def _exact(raw: bytes) -> JsonValue:
    try:
        return loads(raw)
    except NotExact as exc:
        raise NotAnEvent("broken-json", str(exc)) from exc


def _context(
    source: Source, message: Message, headers: Mapping[str, str], read: Event | JsonValue
) -> dict[str, Any]:
    body: Any = read.data if isinstance(read, Event) else read
    return {
        "subject": message.subject, "words": message.subject.split("."), "headers": dict(headers), "body": body,
        "cloudevent": {k: v for k, v in read.to_dict().items() if k != "data"} if isinstance(read, Event) else {},
        "source": {"name": source.name},
    }  # fmt: skip


def _needed(what: str, template: str, context: Mapping[str, Any]) -> str:
    try:
        return render(template, context).strip()
    except TemplateError as exc:
        raise NotAnEvent("template", f"`{what}`: {exc}") from exc


def _id_of(source: Source, message: Message) -> str:
    return derived_id("source", source.name, message.place) if message.place else new_id()


def _plain(source: Source, message: Message, read: JsonValue, now: datetime) -> Event:
    type_ = clean_type(message.subject)
    if not type_:
        raise NotAnEvent(
            "type", f"the subject {message.subject[:80]!r} makes no event type; write `event: {{type: …}}`"
        )
    return Event(
        type=type_,
        source=f"/nats/{source.name}",
        id=_id_of(source, message),
        time=message.stored_at or now,
        data=read,
    )


def _mapped(
    source: Source,
    mapping: EventMapping,
    message: Message,
    headers: Mapping[str, str],
    read: Event | JsonValue,
    now: datetime,
) -> Event:
    context = _context(source, message, headers, read)
    base = read if isinstance(read, Event) else None

    def optional(template: str | None) -> str | None:
        if template is None:
            return None
        try:
            return render(template, context).strip() or None
        except TemplateError:
            return None  # as with webhooks: a payload without such a field is an event without it

    type_ = clean_type(_needed("event.type", mapping.type, context))
    if not type_:
        raise NotAnEvent("type", f"`event.type` makes no event type of a message on {message.subject[:80]!r}")
    id_ = _needed("event.id", mapping.id, context) if mapping.id is not None else ""
    data = context["body"]
    if mapping.has_data:
        try:
            data = render_value(mapping.data, context)
        except TemplateError as exc:
            raise NotAnEvent("template", f"`event.data`: {exc}") from exc
    made = Event(
        type=type_,
        source=(optional(mapping.source) or (base.source if base else None)) or f"/nats/{source.name}",
        id=id_ or (base.id if base else _id_of(source, message)),
        subject=optional(mapping.subject)
        if mapping.subject is not None
        else (base.subject if base else None),
        time=moment_of(optional(mapping.time)) or (base.time if base else message.stored_at or now),
        partitionkey=optional(mapping.partitionkey),
        data=data,
    )
    if base is None:
        return made
    return base.replace(
        type=made.type, source=made.source, id=made.id, subject=made.subject, time=made.time,
        partitionkey=made.partitionkey or base.partitionkey, data=made.data,
    )  # fmt: skip
