"""CloudEvents at the doors: HTTP and NATS messages in binary, structured and batch form, to and from ``Event``. Pure.

Source: CloudEvents 1.0.2, its HTTP protocol binding (§3: header values are percent-encoded UTF-8), JSON event
format (batch) and NATS protocol binding.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.message import Message
from urllib.parse import quote, unquote_to_bytes

import orjson

from ..errors import EventInvalid
from ..vocabulary import JsonObject, JsonValue, new_id
from .event import MAX_TYPE_CHARS, Event, clean_type
from .exact import loads

__all__ = [
    "BATCH", "ORIGINAL_TYPE", "STRUCTURED", "decode_http", "decode_nats", "decode_value", "encode_http_batch", "encode_http_binary",
    "encode_http_structured", "encode_nats_binary", "encode_nats_structured", "plain_type", "stored_json", "with_plain_type",
]  # fmt: skip

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
ORIGINAL_TYPE = "originaltype"
"""The extension that keeps a foreign event's type where it is not lower-case dotted words."""
MOST_IN_BATCH = 10_000

_PLAIN = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
_NOT_ATTRIBUTES = frozenset({"data", "data_base64", "datacontenttype"})


# --- reading ------------------------------------------------------------------------------------------


def decode_http(headers: Mapping[str, str], body: bytes, *, source: str = "/api") -> list[Event]:
    """Return the events an HTTP request carries, in any of CloudEvents' forms or as plain JSON ``{"type": …}``.

    A batch is a list of events of either kind, taken as a whole: one wrong event refuses all.

    Args:
        headers: names in any case. source: ``source`` of plain JSON that names none.
    Raises:
        EventInvalid: what is wrong, and with which event of a batch.
    """
    named = {name.lower(): value for name, value in headers.items()}
    media, charset = _media_type(named.get("content-type", ""))
    if media.startswith("application/cloudevents-batch"):
        _require_json(media)
        return _many(_parse(body, charset), source=source)
    if media.startswith("application/cloudevents"):
        _require_json(media)
        return [_one(_parse(body, charset), source=source)]
    if "ce-specversion" in named or "ce-type" in named:
        return [_binary(named, media, charset, body)]
    if media and not _is_json(media):
        raise EventInvalid(
            "datacontenttype",
            f"cannot be {media!r} without ce- headers: send JSON, or CloudEvents in binary mode",
        )
    value = _parse(body, charset)
    return _many(value, source=source) if isinstance(value, list) else [_one(value, source=source)]


def decode_nats(
    headers: Mapping[str, str] | None, payload: bytes, *, source: str = "/nats", untyped_json: bool = True
) -> Event:
    """Return the event a NATS message carries: binary mode if it has ``ce-`` headers, else structured or plain JSON.

    Args:
        untyped_json: data whose content type nobody names is JSON where it can be read as such, else bytes.
    Raises:
        EventInvalid: what is wrong.
    """
    named = {name.lower(): value for name, value in (headers or {}).items()}
    media, charset = _media_type(named.get("content-type") or named.get("ce-datacontenttype", ""))
    if not media.startswith("application/cloudevents") and "ce-specversion" in named:
        return _binary(named, media, charset, payload, untyped_json=untyped_json)
    return _one(_parse(payload, charset), source=source)


def stored_json(headers: Mapping[str, str], payload: bytes, recorded_at: datetime) -> bytes:
    """Return a message of the log in the form all of Hark reads: a CloudEvent in binary mode as JSON, all else as it is.

    Others publish under ``hark.ev.`` too. What cannot be read stays as it is, and is no event to anybody. The same
    message gives the same bytes whenever it is read.
    """
    named = {name.lower(): value for name, value in headers.items()}
    if "ce-specversion" not in named:
        return payload
    try:
        event = decode_nats(named, payload)
        return (event if "ce-time" in named else event.replace(time=recorded_at)).to_json()
    except EventInvalid:
        return payload


def plain_type(type_: str) -> str:
    """Return a foreign event type as lower-case dotted words, cleaned if it is not: see ``clean_type``.

    Raises:
        EventInvalid: nothing is left of it.
    """
    if len(type_) <= MAX_TYPE_CHARS and _PLAIN.fullmatch(type_):
        return type_
    plain = clean_type(type_)
    if not plain:
        raise EventInvalid("type", f"must be lower-case dotted words such as 'order.paid', got {type_!r}")
    return plain


def _many(value: object, *, source: str) -> list[Event]:
    if not isinstance(value, list):
        raise EventInvalid("data", f"a batch is a JSON list of events, got {type(value).__name__}")
    if len(value) > MOST_IN_BATCH:
        raise EventInvalid("data", f"a batch holds {MOST_IN_BATCH} events at most, got {len(value)}")
    events = []
    for number, item in enumerate(value):
        try:
            events.append(_one(item, source=source))
        except EventInvalid as exc:
            raise EventInvalid(exc.field, f"{exc.problem} (event {number} of the batch, from 0)") from exc
    return events


def _one(value: object, *, source: str) -> Event:
    """Build from JSON: a CloudEvent if it says so, else our own short form."""
    if not isinstance(value, dict):
        raise EventInvalid("data", f"an event is a JSON object, got {type(value).__name__}")
    if "specversion" in value:
        return Event.from_dict(with_plain_type(value))
    if "type" not in value:
        raise EventInvalid("type", 'is missing: an event is at least {"type": "order.paid"}')
    filled = {"id": new_id(), "source": source, **{k: v for k, v in value.items() if v is not None}}
    return Event.from_dict(filled)


def with_plain_type(value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Return a CloudEvent's JSON with a type that is lower-case dotted words, and the sender's own in ``originaltype``.

    Raises:
        EventInvalid: nothing is left of the type.
    """
    type_ = value.get("type")
    if not isinstance(type_, str):
        return value
    plain = plain_type(type_)
    if plain == type_:
        return value
    return {**value, "type": plain, ORIGINAL_TYPE: value.get(ORIGINAL_TYPE, type_)}


def _binary(
    headers: Mapping[str, str], media: str, charset: str, body: bytes, *, untyped_json: bool = True
) -> Event:
    value: JsonObject = {}
    for name, raw in headers.items():
        if name.startswith("ce-") and len(name) > 3:
            value[name[3:]] = decode_value(raw, name[3:])
    if "specversion" not in value:
        raise EventInvalid("specversion", "is missing: binary mode needs the header ce-specversion: 1.0")
    if "causaldepth" in value:
        depth = str(value["causaldepth"])
        if not depth.isascii() or not depth.isdigit():
            raise EventInvalid("causaldepth", f"must be a whole number from 0, got {depth!r}")
        value["causaldepth"] = int(depth)
    for name in _NOT_ATTRIBUTES:
        value.pop(name, None)
    event = Event.from_dict(with_plain_type(value))
    if not body:
        # JSON is what no content type means, so it is not worth keeping.
        return (
            event.replace(datacontenttype=media or None) if media and media != "application/json" else event
        )
    if not media:
        # Some leave it out where the data is JSON; what else it may be, nobody has said.
        if untyped_json:
            with contextlib.suppress(EventInvalid):
                return event.replace(data=_parse(body, charset))
        return event.replace(data=body)
    kept = None if media == "application/json" else media
    if _is_json(media):
        return event.replace(data=_parse(body, charset), datacontenttype=kept)
    if media.startswith("text/"):
        return event.replace(data=_text(body, charset), datacontenttype=media)
    return event.replace(data=body, datacontenttype=media)


def decode_value(raw: str, field: str) -> str:
    """Return the text of a header value: quotes taken off, percent-decoded, UTF-8.

    HTTP servers hand header bytes over as Latin-1; bytes that some sender did not encode are read as UTF-8.
    """
    text = raw.strip()
    if "%" not in text and '"' not in text and text.isascii():
        return text
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    try:
        octets = unquote_to_bytes(text.encode("latin-1"))
    except UnicodeEncodeError:
        octets = unquote_to_bytes(text)  # str beyond Latin-1: it is UTF-8 already
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise EventInvalid(field, "must be percent-encoded UTF-8") from exc


def _media_type(content_type: str) -> tuple[str, str]:
    """Return the media type in lower case without parameters, and the charset (``utf-8`` when none is named)."""
    if not content_type:
        return "", "utf-8"
    parsed = Message()
    parsed["content-type"] = content_type.replace("\r", " ").replace("\n", " ")
    charset = parsed.get_param("charset", "utf-8")
    return content_type.partition(";")[0].strip().lower(), charset if isinstance(charset, str) else "utf-8"


def _is_json(media: str) -> bool:
    return media.endswith(("/json", "+json"))


def _require_json(media: str) -> None:
    if media not in (STRUCTURED, BATCH):
        raise EventInvalid(
            "datacontenttype", f"of the envelope must be {STRUCTURED} or {BATCH}, got {media!r}"
        )


def _text(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset)
    except (LookupError, UnicodeDecodeError) as exc:
        raise EventInvalid("data", f"is not text in {charset}: {exc}") from exc


def _parse(body: bytes, charset: str) -> JsonValue:
    raw: bytes | str = body if charset.lower() in ("utf-8", "utf8", "us-ascii") else _text(body, charset)
    try:
        value: JsonValue = loads(raw)
    except ValueError as exc:
        raise EventInvalid("data", f"is not JSON: {exc}") from exc
    return value


# --- writing ------------------------------------------------------------------------------------------


def encode_http_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """Return headers and body of one event in structured mode."""
    return {"Content-Type": STRUCTURED}, event.to_json()


def encode_http_batch(events: Iterable[Event]) -> tuple[dict[str, str], bytes]:
    """Return headers and body of many events."""
    return {"Content-Type": BATCH}, b"[" + b",".join(event.to_json() for event in events) + b"]"


def encode_http_binary(event: Event) -> tuple[dict[str, str], bytes]:
    """Return headers and body of one event in binary mode. Extension numbers and booleans become text."""
    headers, body, media = _binary_parts(event)
    if media is not None:
        headers["Content-Type"] = media
    return headers, body


def encode_nats_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """Return headers and payload of a NATS message in structured mode."""
    return {"content-type": STRUCTURED}, event.to_json()


def encode_nats_binary(event: Event) -> tuple[dict[str, str], bytes]:
    """Return headers and payload of a NATS message in binary mode."""
    headers, body, media = _binary_parts(event)
    if media is not None:
        headers["ce-datacontenttype"] = media
    return headers, body


def _binary_parts(event: Event) -> tuple[dict[str, str], bytes, str | None]:
    attributes = event.replace(data=None).to_dict()
    media = event.datacontenttype
    if event.data is None:
        body = b""
    elif isinstance(event.data, bytes):
        body = event.data
        media = media or "application/octet-stream"  # without, it might be read as JSON
    elif isinstance(event.data, str) and media is not None and media.startswith("text/"):
        body = event.data.encode()
    else:
        media = media or "application/json"
        if not _is_json(media.partition(";")[0].strip().lower()):
            raise EventInvalid("data", f"is JSON and cannot be sent as {media!r} in binary mode")
        try:
            body = orjson.dumps(event.data)
        except TypeError as exc:
            raise EventInvalid("data", f"must be JSON: {exc}") from exc
    headers = {
        f"ce-{name}": _encode_value(value)
        for name, value in attributes.items()
        if name not in _NOT_ATTRIBUTES
    }
    return headers, body, media


def _encode_value(value: JsonValue) -> str:
    """Return a header value: everything but printable ASCII, and space, quote and percent too, percent-encoded."""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else str(value)
    return quote(str(text), safe="!#$&'()*+,/:;<=>?@[\\]^`{|}~")
