"""The event: a fact, in the envelope of CloudEvents 1.0.

Source: CloudEvents 1.0.2 and its documented extensions (correlation, distributed tracing, partitioning,
recorded time, expiry time). ``causaldepth``, ``replayof`` and ``replayid`` are Hark's own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

import orjson

from ..errors import EventInvalid
from ..vocabulary import JsonObject, JsonValue, new_id

__all__ = ["OWN_WORDS", "Event", "Recorded", "check_type", "format_time", "parse_time", "is_own_type"]

OWN_WORDS = frozenset({
    "flow-run", "task-run", "deployment", "schedule", "webhook", "automation", "action", "notification",
    "worker", "work-pool", "artifact", "variable", "block", "limit", "hark",
})  # fmt: skip
"""First words of event types that only Hark itself may emit."""

_TYPE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
_EXTENSION = re.compile(r"[a-z0-9]{1,20}")
MAX_TYPE_CHARS = 200

_STRING_EXTENSIONS = (
    "correlationid", "causationid", "traceparent", "tracestate", "partitionkey", "replayof", "replayid",
)  # fmt: skip
_TIME_EXTENSIONS = ("recordedtime", "expirytime")
_KNOWN = {
    "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data", "data_base64",
    "causaldepth", *_STRING_EXTENSIONS, *_TIME_EXTENSIONS,
}  # fmt: skip


def check_type(type_: object) -> str:
    """Return ``type_`` if it is lower-case dotted words; raise ``EventInvalid`` saying what is wrong if not."""
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_) or len(type_) > MAX_TYPE_CHARS:
        raise EventInvalid("type", f"must be lower-case dotted words such as 'order.paid', got {type_!r}")
    return type_


def is_own_type(type_: str) -> bool:
    """Return whether ``type_`` begins with one of Hark's own words."""
    return type_.partition(".")[0] in OWN_WORDS


def format_time(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 in UTC with microseconds: ``2026-01-01T00:00:00.000000Z``."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # A tenth of what strftime costs, for every event.
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def parse_time(text: str, *, field: str = "time") -> datetime:
    """Return the aware UTC moment written in ``text`` (RFC 3339, any offset; no offset is refused)."""
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError) as exc:
        raise EventInvalid(field, f"must be an RFC 3339 time, got {text!r}") from exc
    if moment.tzinfo is None:
        raise EventInvalid(field, f"must carry a time zone offset, got {text!r}")
    return moment.astimezone(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One fact. ``source`` + ``id`` name it for ever; ``data`` is JSON (or bytes, carried as base64).

    Attributes:
        type: lower-case dotted words; what kind of fact.
        source: URI reference of who says so, such as ``/webhooks/github``.
        subject: what it is about, such as ``flow-run/0192…``; may be empty.
        time: when it occurred (aware, UTC); may be long before it was recorded.
        correlationid: shared by all that belongs to one story; causationid: the event that led to this one.
        causaldepth: how many events stand between this one and the first of its chain, 0 for the first.
        extensions: other CloudEvents extension attributes, scalar values, kept as they came.
    """

    type: str
    source: str
    id: str = field(default_factory=new_id)
    subject: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    data: JsonValue | bytes = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    causaldepth: int = 0
    traceparent: str | None = None
    tracestate: str | None = None
    partitionkey: str | None = None
    recordedtime: datetime | None = None
    expirytime: datetime | None = None
    replayof: str | None = None
    replayid: str | None = None
    extensions: Mapping[str, str | int | bool] = field(default_factory=dict)

    @property
    def msg_id(self) -> str:
        """The key by which the broker recognises a repeat: ``source#id``."""
        return f"{self.source}#{self.id}"

    def caused(self, **changes: Any) -> dict[str, Any]:
        """Return the envelope attributes an event caused by this one carries, for ``Event(**…)``."""
        return {
            "correlationid": self.correlationid or self.id,
            "causationid": self.id,
            "causaldepth": self.causaldepth + 1,
            "traceparent": self.traceparent,
            **changes,
        }

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some attributes changed."""
        return replace(self, **changes)

    def to_dict(self) -> JsonObject:
        """Return the structured JSON form, absent attributes left out."""
        out: JsonObject = {"specversion": "1.0", "id": self.id, "source": self.source, "type": self.type}
        if self.subject is not None:
            out["subject"] = self.subject
        out["time"] = format_time(self.time)
        if self.datacontenttype is not None:
            out["datacontenttype"] = self.datacontenttype
        if self.dataschema is not None:
            out["dataschema"] = self.dataschema
        for name in _STRING_EXTENSIONS:
            value = getattr(self, name)
            if value is not None:
                out[name] = value
        for name in _TIME_EXTENSIONS:
            moment = getattr(self, name)
            if moment is not None:
                out[name] = format_time(moment)
        if self.causaldepth:
            out["causaldepth"] = self.causaldepth
        out.update(self.extensions)
        if isinstance(self.data, bytes):
            out["data_base64"] = base64.b64encode(self.data).decode()
        elif self.data is not None:
            out["data"] = self.data
        return out

    def to_json(self) -> bytes:
        """Return the structured JSON form as bytes, as it stands in the log.

        Raises:
            EventInvalid: ``data`` is not JSON.
        """
        try:
            return orjson.dumps(self.to_dict())
        except TypeError as exc:
            raise EventInvalid("data", f"must be JSON: {exc}") from exc

    @classmethod
    def from_json(cls, raw: bytes | str) -> Self:
        """Parse the structured JSON form.

        Raises:
            EventInvalid: not JSON, not an object, or an attribute breaks the specification.
        """
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise EventInvalid("data", f"the event is not JSON: {exc}") from exc
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """Build from the structured JSON form; unknown attributes are kept as extensions."""
        if not isinstance(value, dict):
            raise EventInvalid("data", f"a CloudEvent is a JSON object, got {type(value).__name__}")
        if value.get("specversion", "1.0") != "1.0":
            raise EventInvalid("specversion", f"must be '1.0', got {value.get('specversion')!r}")
        kwargs: dict[str, Any] = {"type": check_type(value.get("type", ""))}
        for name in ("id", "source"):
            text = value.get(name)
            if not isinstance(text, str) or not text:
                raise EventInvalid(name, "must be a non-empty string")
            kwargs[name] = text
        for name in ("subject", "datacontenttype", "dataschema", *_STRING_EXTENSIONS):
            text = value.get(name)
            if text is not None:
                if not isinstance(text, str):
                    raise EventInvalid(name, f"must be a string, got {text!r}")
                kwargs[name] = text
        kwargs["time"] = parse_time(value["time"]) if value.get("time") is not None else datetime.now(UTC)
        for name in _TIME_EXTENSIONS:
            if value.get(name) is not None:
                kwargs[name] = parse_time(value[name], field=name)
        depth = value.get("causaldepth", 0)
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise EventInvalid("causaldepth", f"must be a whole number from 0, got {depth!r}")
        kwargs["causaldepth"] = depth
        if "data_base64" in value:
            try:
                kwargs["data"] = base64.b64decode(value["data_base64"], validate=True)
            except (ValueError, TypeError) as exc:
                raise EventInvalid("data_base64", "must be base64") from exc
        else:
            kwargs["data"] = value.get("data")
        extra: dict[str, str | int | bool] = {}
        for name in value.keys() - _KNOWN:
            item = value[name]
            if not _EXTENSION.fullmatch(name):
                raise EventInvalid(
                    name, "is not a CloudEvents attribute name (lower-case letters and digits, 20 at most)"
                )
            if item is None:
                continue
            if not isinstance(item, str | int | bool):
                raise EventInvalid(
                    name,
                    "is an extension attribute and must be a string, integer or boolean; put the rest in `data`",
                )
            extra[name] = item
        kwargs["extensions"] = extra
        return cls(**kwargs)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as it stands in the log.

    Attributes:
        seq: its place in the one total order, from 1.
        subject: the bus subject it was stored under (not the event's own ``subject``).
        recorded_at: when the broker stored it (aware, UTC).
        raw: the stored bytes; ``event`` parses them on first use, so that who only forwards never pays.
    """

    seq: int
    subject: str
    recorded_at: datetime
    raw: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    _event: list[Event] = field(default_factory=list, repr=False, compare=False)

    @property
    def event(self) -> Event:
        if not self._event:
            self._event.append(Event.from_json(self.raw))
        return self._event[0]
