"""HTTP requests read as events: CloudEvents binary, structured and batch, and plain ``{type, …}`` JSON. Pure.

Source: HTTP Protocol Binding for CloudEvents 1.0.2, sections 3.1 to 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ..bus.cloudevents import decode_value, with_plain_type
from ..bus.event import OWN_WORDS, Event, is_own_type
from ..bus.exact import loads
from ..errors import EventInvalid
from ..vocabulary import JsonObject, JsonValue, new_id
from .problem import BatchTooLarge, MalformedBody, UnsupportedBody

__all__ = ["events_in"]

DEFAULT_SOURCE = "/api"
_NOT_ATTRIBUTES = frozenset({"ce-data", "ce-data_base64", "ce-datacontenttype"})
"""Headers that would say what the body and its content type say."""


def events_in(headers: Mapping[str, str], body: bytes, *, max_events: int) -> list[Event]:
    """Return the events a request carries, in order.

    Args:
        headers: by lower-case name.
    Raises:
        MalformedBody: the body is not the JSON its type promises; UnsupportedBody: the type is none of ours.
        EventInvalid: an event breaks a rule, or uses one of Hark's own types; the message says which event.
        BatchTooLarge: more than ``max_events``.
    """
    content_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type == "application/cloudevents-batch+json":
        value = _json(body)
        if not isinstance(value, list):
            raise MalformedBody("a batch is a JSON array of events")
        return _many(value, max_events)
    if content_type == "application/cloudevents+json":
        return [_one(_json(body), strict=True)]
    if "ce-type" in headers or "ce-specversion" in headers:
        return [_binary(headers, content_type, body)]
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedBody(
            f"events come as JSON, not as {content_type!r}",
            hint="send application/json, application/cloudevents+json, or ce-* headers with any body",
        )
    value = _json(body)
    if isinstance(value, list):
        return _many(value, max_events)
    return [_one(value, strict=False)]


def _json(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError as exc:
        raise MalformedBody(f"the body is not JSON: {exc}") from exc


def _many(values: list[Any], max_events: int) -> list[Event]:
    if len(values) > max_events:
        raise BatchTooLarge(count=len(values), limit=max_events)
    events = []
    for i, value in enumerate(values):
        try:
            events.append(_one(value, strict=False))
        except EventInvalid as exc:
            raise EventInvalid(f"[{i}].{exc.field}", exc.problem) from exc
    return events


def _one(value: Any, *, strict: bool) -> Event:
    """``strict``: it says of itself that it is a CloudEvent, so what that requires must be there."""
    if isinstance(value, dict):
        if strict or "specversion" in value:
            if "specversion" not in value:
                raise EventInvalid("specversion", "is missing; a CloudEvent says '1.0'")
            event = _cloud_event(value)
            _refuse_own(event.type)
            return event
        value = {"id": new_id(), "source": DEFAULT_SOURCE, **value}
    event = Event.from_dict(value)
    _refuse_own(event.type)
    return event


def _cloud_event(value: JsonObject) -> Event:
    """Read a CloudEvent. The type of another implementation is cleaned, as at every door; ``originaltype`` keeps it."""
    try:
        return Event.from_dict(value)
    except EventInvalid as exc:
        if exc.field != "type":
            raise
    # Only now: whose types are words already pay nothing for those whose are not.
    return Event.from_dict(with_plain_type(value))


def _refuse_own(type_: str) -> None:
    if is_own_type(type_):
        raise EventInvalid(
            "type",
            f"begins with {type_.partition('.')[0]!r}, one of Hark's own words ({', '.join(sorted(OWN_WORDS))}); "
            "choose another first word",
        )


def _binary(headers: Mapping[str, str], content_type: str, body: bytes) -> Event:
    attributes: JsonObject = {}
    for name, text in headers.items():
        if name.startswith("ce-") and name not in _NOT_ATTRIBUTES:
            attributes[name[3:]] = decode_value(text, name[3:])
    if "specversion" not in attributes:
        raise EventInvalid("specversion", "is missing; send `ce-specversion: 1.0`")
    if "causaldepth" in attributes:
        depth = attributes.pop("causaldepth")
        attributes["causaldepth"] = int(str(depth)) if str(depth).isdigit() else depth
    attributes.setdefault("time", datetime.now(UTC).isoformat())
    event = _cloud_event(attributes)
    _refuse_own(event.type)
    if not body:
        return event
    data: JsonValue | bytes
    declared = headers["content-type"].strip() if content_type and "content-type" in headers else None
    if declared is None:
        # Some leave it out where the data is JSON; what else it may be, nobody has said.
        try:
            data = _json(body)
        except MalformedBody:
            data = body
    elif content_type == "application/json" or content_type.endswith("+json"):
        data = _json(body)
    elif content_type.startswith("text/"):
        try:
            data = body.decode()
        except UnicodeDecodeError:
            data = body
    else:
        data = body
    return event.replace(data=data, datacontenttype=declared)
