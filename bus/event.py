"""The event: a fact, in the envelope of CloudEvents 1.0.

Source: CloudEvents 1.0.2 and its documented extensions (correlation, distributed tracing, partitioning,
recorded time, expiry time). ``causaldepth``, ``replayof`` and ``replayid`` are Hark's own.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, ClassVar, Self

import orjson

from ..errors import EventInvalid
from ..vocabulary import JsonObject, JsonValue, new_id
from .exact import loads
from .headers import parse_headers
from .nesting import MOST_LEVELS, nests_too_deeply

__all__ = [
    "OWN_WORDS", "Event", "QuicklyMade", "Recorded", "become", "check_text", "check_type", "checked", "clean_type", "delivered", "format_time", "is_own_type", "is_too_deep", "lacking",
    "parse_time", "readable",
]  # fmt: skip

log = logging.getLogger(__name__)

OWN_WORDS = frozenset({
    "flow-run", "task-run", "deployment", "schedule", "webhook", "automation", "action", "notification",
    "worker", "work-pool", "artifact", "variable", "block", "limit", "hark",
})  # fmt: skip
"""First words of event types that only Hark itself may emit."""

_TYPE = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
_EXTENSION = re.compile(r"[a-z0-9]{1,20}")
MAX_TYPE_CHARS = 200

_STRINGS = frozenset({
    "subject", "datacontenttype", "dataschema", "correlationid", "causationid", "traceparent", "tracestate",
    "partitionkey", "replayof", "replayid",
})  # fmt: skip
_TIMES = frozenset({"time", "recordedtime", "expirytime"})
_NOT_IN_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
"""What a text of CloudEvents may not hold: control characters, surrogates, and what is no character at all."""
MOST_DEPTH = 2**31 - 1
_READ = frozenset({"specversion", "id", "source", "type", "data", "data_base64"})
"""What ``from_dict`` has read before it looks at the rest."""


def check_type(type_: object) -> str:
    """Return ``type_`` if it is lower-case dotted words; raise ``EventInvalid`` saying what is wrong if not."""
    if not isinstance(type_, str) or len(type_) > MAX_TYPE_CHARS:
        raise _not_a_type(type_)
    if type_ not in _checked_types:
        if not _TYPE.fullmatch(type_):
            raise _not_a_type(type_)
        if len(_checked_types) >= 4096:
            _checked_types.clear()
        _checked_types.add(type_)
    return type_


_checked_types: set[str] = set()  # a program emits few types, many times; a look costs a fifth of a match


def _not_a_type(type_: object) -> EventInvalid:
    return EventInvalid("type", f"must be lower-case dotted words such as 'order.paid', got {type_!r:.300}")


def clean_type(text: str) -> str:
    """Return an event type made of ``text``: lower-case words of ``a-z0-9-`` between dots; empty if nothing is left.

    ``_`` becomes ``-``; ``/`` and ``:`` become ``.``; every other character becomes ``-``; dots and dashes at the ends of
    words are dropped. So GitHub's ``workflow_run`` is ``workflow-run`` and Shopify's ``orders/create`` ``orders.create``.
    """
    words = re.split(r"[./:]+", text.strip().lower()[:400])
    cleaned = (re.sub(r"[^a-z0-9]+", "-", word).strip("-") for word in words)
    return ".".join(word for word in cleaned if word)[:MAX_TYPE_CHARS].rstrip(".-")


def check_text(field: str, text: str) -> str:
    """Return ``text`` if an attribute may hold it; raise ``EventInvalid`` naming the character if not."""
    if not text.isprintable() and (wrong := _NOT_IN_TEXT.search(text)):
        raise EventInvalid(
            field,
            f"may not hold the character U+{ord(wrong[0]):04X} (at {wrong.start()}): control characters and half "
            "characters belong in `data`, if anywhere",
        )
    return text


def cleaned_text(text: str) -> str:
    """Return ``text`` with every character that no attribute may hold replaced by U+FFFD."""
    return text if text.isprintable() else _NOT_IN_TEXT.sub("\ufffd", text)


def no_number(value: object) -> str | None:
    """Return the path of the first number that JSON has no word for (nan, infinity) in a value; None if there is none."""
    # Asked of nearly every event that is emitted, and nearly always answered by no: so without the path at first.
    rest = [value]
    for part in rest:
        kind = part.__class__
        if kind is str or kind is int:
            continue
        if isinstance(part, dict):
            rest += part.values()
        elif isinstance(part, list | tuple):
            rest += part
        elif isinstance(part, float) and not isfinite(part):
            return _where_no_number(value, "data")
    return None


def _where_no_number(value: object, path: str) -> str | None:
    if isinstance(value, float):
        return None if isfinite(value) else path
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    return next((found for key, part in parts if (found := _where_no_number(part, f"{path}.{key}"))), None)


def checked(event: Event) -> Event:
    """Return an event made of other people's texts, if its attributes may hold them; raise ``EventInvalid`` if not."""
    for name in ("id", "source", "subject", "partitionkey"):
        text = getattr(event, name)
        if text is not None:
            check_text(name, text)
    return event


def lacking(row: object) -> str | None:
    """Return why what was read from the log is no event; None if it is one.

    An event has a type, a source and an id. This is the one place that decides it: what is no event here is one to
    nobody, neither to rules nor to the read model. Whatever else is wrong with it is left out when it is read.
    """
    if not isinstance(row, dict):
        return f"it is not a JSON object but a {type(row).__name__}"
    get = row.get
    type_, id_, source = get("type"), get("id"), get("source")
    if not (id_.__class__ is str and source.__class__ is str and id_ and source):
        return "it needs the attributes id and source, both texts"
    if not (id_.isprintable() and source.isprintable()) and (
        _NOT_IN_TEXT.search(id_) or _NOT_IN_TEXT.search(source)
    ):
        return "its id or source holds control characters"
    if type_.__class__ is not str or type_ not in _checked_types:
        try:
            check_type(type_)
        except EventInvalid as exc:
            return str(exc)
    if get("specversion", "1.0") != "1.0":
        return f"its specversion is {row['specversion']!r}, not '1.0'"
    return None


def is_own_type(type_: str) -> bool:
    """Return whether ``type_`` begins with one of Hark's own words."""
    return type_.partition(".")[0] in OWN_WORDS


def format_time(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 in UTC with microseconds: ``2026-01-01T00:00:00.000000Z``."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # orjson takes a third of the time, but leaves out a fraction of zero and knows no subclasses.
    if moment.microsecond and type(moment) is datetime:
        return orjson.dumps(moment, option=orjson.OPT_UTC_Z)[1:-1].decode()
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def parse_time(text: str, *, field: str = "time") -> datetime:
    """Return the aware UTC moment written in ``text`` (RFC 3339, any offset; no offset is refused)."""
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError) as exc:
        if str(text).endswith("z"):  # allowed there, and unknown to Python
            return parse_time(f"{text[:-1]}Z", field=field)
        raise EventInvalid(field, f"must be an RFC 3339 time, got {text!r}") from exc
    if moment.tzinfo is None:
        raise EventInvalid(field, f"must carry a time zone offset, got {text!r}")
    try:
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError as exc:
        raise EventInvalid(field, f"is a time before the year 1 or after 9999 in UTC, got {text!r}") from exc


become: Callable[[Any, type[Any]], None] = object.__dict__["__class__"].__set__
"""Makes an instance one of another class of the same layout: see ``QuicklyMade``."""


class QuicklyMade:
    """A frozen dataclass with an ``__init__`` of its own that sets attributes at full speed.

    A frozen dataclass sets each attribute through a call; twenty of them took longer than all the rest of making an
    event. Here an instance is of a twin class, which is not frozen, while its ``__init__`` runs, and of its own from
    then on. A hot path may make one in the same way: ``object.__new__(cls._open)``, every attribute, ``become``.
    """

    __slots__ = ()

    _open: ClassVar[Any]  # the twin of this very class

    def __init_subclass__(cls, *, is_twin: bool = False) -> None:
        if is_twin:
            return
        # Both, or the interpreter still looks for a __setattr__ written in Python: it keeps one place for the two.
        own = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
        cls._open = type(cls.__name__, (cls,), own, is_twin=True)


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Event(QuicklyMade):
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

    def __init__(
        self,
        *,
        type: str,
        source: str,
        id: str | None = None,
        subject: str | None = None,
        time: datetime | None = None,
        data: JsonValue | bytes = None,
        datacontenttype: str | None = None,
        dataschema: str | None = None,
        correlationid: str | None = None,
        causationid: str | None = None,
        causaldepth: int = 0,
        traceparent: str | None = None,
        tracestate: str | None = None,
        partitionkey: str | None = None,
        recordedtime: datetime | None = None,
        expirytime: datetime | None = None,
        replayof: str | None = None,
        replayid: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        cls = self.__class__
        become(self, cls._open)
        new: Any = self
        new.type, new.source = type, source
        new.id = new_id() if id is None else id
        new.subject = subject
        new.time = datetime.now(UTC) if time is None else time
        new.data, new.datacontenttype, new.dataschema = data, datacontenttype, dataschema
        new.correlationid, new.causationid, new.causaldepth = correlationid, causationid, causaldepth
        new.traceparent, new.tracestate, new.partitionkey = traceparent, tracestate, partitionkey
        new.recordedtime, new.expirytime = recordedtime, expirytime
        new.replayof, new.replayid = replayof, replayid
        new.extensions = {} if extensions is None else extensions
        become(self, cls)

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
        return self._with_time(format_time(self.time))

    def _with_time(self, time: Any) -> JsonObject:
        out: JsonObject = {"specversion": "1.0", "id": self.id, "source": self.source, "type": self.type}
        if self.subject is not None:
            out["subject"] = self.subject
        out["time"] = time
        # Attribute by attribute: a loop over their names costs more than the rest of the encoding.
        if self.datacontenttype is not None:
            out["datacontenttype"] = self.datacontenttype
        if self.dataschema is not None:
            out["dataschema"] = self.dataschema
        if self.correlationid is not None:
            out["correlationid"] = self.correlationid
        if self.causationid is not None:
            out["causationid"] = self.causationid
        if self.traceparent is not None:
            out["traceparent"] = self.traceparent
        if self.tracestate is not None:
            out["tracestate"] = self.tracestate
        if self.partitionkey is not None:
            out["partitionkey"] = self.partitionkey
        if self.replayof is not None:
            out["replayof"] = self.replayof
        if self.replayid is not None:
            out["replayid"] = self.replayid
        if self.recordedtime is not None:
            out["recordedtime"] = format_time(self.recordedtime)
        if self.expirytime is not None:
            out["expirytime"] = format_time(self.expirytime)
        if self.causaldepth:
            out["causaldepth"] = self.causaldepth
        if self.extensions:
            out.update(self.extensions)
        data = self.data
        if isinstance(data, bytes):
            out["data_base64"] = base64.b64encode(data).decode()
        elif data is not None:
            out["data"] = data
        return out

    def to_json(self) -> bytes:
        """Return the structured JSON form as bytes, as it stands in the log.

        Raises:
            EventInvalid: ``data`` is not JSON.
        """
        time: Any = self.time
        # orjson writes the time as ``format_time`` does, and at no cost, unless it is one of these.
        if not time.microsecond or time.tzinfo is not UTC or time.__class__ is not datetime:
            time = format_time(time)
        written = self._with_time(time)
        try:
            raw = orjson.dumps(written, option=orjson.OPT_UTC_Z)
            if nests_too_deeply(raw, written, is_own=is_own_type(self.type)):
                raise _too_deep()
            return raw
        except TypeError as exc:
            checked(self)
            if "Recursion limit" in str(exc):  # the writer's own, which is further down
                raise _too_deep() from exc
            raise EventInvalid("data", f"must be JSON: {exc}") from exc

    @classmethod
    def from_json(cls, raw: bytes | str) -> Self:
        """Parse the structured JSON form.

        Raises:
            EventInvalid: not JSON, not an object, or an attribute breaks the specification.
        """
        try:
            value = loads(raw)
        except ValueError as exc:
            raise EventInvalid("data", f"the event is not JSON: {exc}") from exc
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """Build from the structured JSON form; unknown attributes are kept as extensions."""
        if not isinstance(value, dict):
            raise EventInvalid("data", f"a CloudEvent is a JSON object, got {type(value).__name__}")
        if value.get("specversion", "1.0") != "1.0":
            raise EventInvalid("specversion", f"must be '1.0', got {value.get('specversion')!r}")
        if "type" not in value:
            raise EventInvalid("type", "is missing; it says what happened, such as 'order.paid'")
        kwargs: dict[str, Any] = {"type": check_type(value["type"])}
        for name in ("id", "source"):
            text = value.get(name)
            if not isinstance(text, str) or not text:
                raise EventInvalid(name, "must be a non-empty string" if name in value else "is missing")
            kwargs[name] = text if text.isprintable() else check_text(name, text)
        extra: dict[str, str | int | bool] = {}
        for (
            name,
            item,
        ) in value.items():  # what is there, not what could be: most events have seven attributes
            if name in _READ:
                continue
            if name in _STRINGS:
                if isinstance(item, str):
                    if item:  # what is empty is not there: the specification has no empty attributes
                        kwargs[name] = item if item.isprintable() else check_text(name, item)
                elif item is not None:
                    raise EventInvalid(name, f"must be a string, got {item!r}")
            elif name in _TIMES:
                if item is not None:
                    kwargs[name] = parse_time(item, field=name)
            elif name == "causaldepth":
                if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MOST_DEPTH:
                    raise EventInvalid(name, f"must be a whole number from 0 to {MOST_DEPTH}, got {item!r}")
                kwargs[name] = item
            elif not _EXTENSION.fullmatch(name):
                raise EventInvalid(
                    name, "is not a CloudEvents attribute name (lower-case letters and digits, 20 at most)"
                )
            elif isinstance(item, str | int | bool):
                extra[name] = check_text(name, item) if isinstance(item, str) else item
            elif item is not None:
                raise EventInvalid(
                    name,
                    "is an extension attribute and must be a string, integer or boolean; put the rest in `data`",
                )
        if value.get("data_base64") is not None:
            if value.get("data") is not None:
                raise EventInvalid("data_base64", "cannot stand beside `data`: an event has one or the other")
            try:
                kwargs["data"] = base64.b64decode(value["data_base64"], validate=True)
            except (ValueError, TypeError) as exc:
                raise EventInvalid("data_base64", "must be base64") from exc
        else:
            kwargs["data"] = value.get("data")
        if extra:
            kwargs["extensions"] = extra
        return cls(**kwargs)


@dataclass(frozen=True, slots=True, init=False)
class Recorded(QuicklyMade):
    """An event as it stands in the log.

    Attributes:
        seq: its place in the one total order, from 1.
        subject: the bus subject it was stored under (not the event's own ``subject``).
        at_ns: when the broker stored it, in nanoseconds since 1970.
        raw: the event as JSON; ``event`` parses it on first use, so that who only forwards never pays.

    Anybody may publish under ``hark.ev.``, so what was stored need not be an event: who reads events asks
    ``readable`` for them.
    """

    seq: int
    subject: str
    at_ns: int
    raw: bytes
    _headers: Mapping[str, str] | bytes = field(default=b"", repr=False, compare=False)
    _event: Event | None = field(default=None, repr=False, compare=False)

    def __init__(
        self,
        seq: int,
        subject: str,
        recorded_at: datetime,
        raw: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        cls = self.__class__
        become(self, cls._open)
        new: Any = self
        new.seq, new.subject, new.raw = seq, subject, raw
        new.at_ns = (recorded_at - _EPOCH) // _MICROSECOND * 1000
        new._headers, new._event = headers or b"", None
        become(self, cls)

    @property
    def recorded_at(self) -> datetime:
        """When the broker stored it (aware, UTC), in whole microseconds."""
        # Whole microseconds first, or the float would round where a look-up of the same event truncates.
        return datetime.fromtimestamp(self.at_ns // 1000 / 1e6, UTC)

    @property
    def recorded_s(self) -> float:
        """``recorded_at`` in seconds since 1970."""
        return self.at_ns // 1000 / 1e6

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers it was stored with, parsed on first use."""
        headers = self._headers
        if isinstance(headers, bytes):
            headers = parse_headers(headers) if headers else {}
            object.__setattr__(self, "_headers", headers)
        return headers

    @property
    def is_parsed(self) -> bool:
        """Whether somebody has asked for ``event``."""
        return self._event is not None

    @property
    def event(self) -> Event:
        """The event that ``raw`` holds; always the same object. Raises ``EventInvalid`` if it is none (see ``lacking``)."""
        if self._event is None:
            object.__setattr__(self, "_event", _event_in_log(self.raw, self.recorded_at))
        assert self._event is not None
        return self._event


_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_new_record: Callable[[type[Any]], Any] = object.__new__


def delivered(seq: int, subject: str, at_ns: int, raw: bytes, headers: Mapping[str, str] | bytes) -> Recorded:
    """Return a record that the broker has sent; its headers may still be the block they came as. For hot paths."""
    new = _new_record(Recorded._open)
    new.seq, new.subject, new.at_ns, new.raw = seq, subject, at_ns, raw
    new._headers, new._event = headers, None
    become(new, Recorded)
    record: Recorded = new
    return record


def readable(records: Iterable[Recorded]) -> Iterator[Recorded]:
    """Yield the records that are events. Of the others each is told once in this process's own log."""
    for recorded in records:
        try:
            recorded.event  # noqa: B018 - parsed here, so that nobody after this has to expect an error
        except EventInvalid as exc:
            _tell_unreadable(recorded, exc)
        else:
            yield recorded


def _event_in_log(raw: bytes, recorded_at: datetime) -> Event:
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise EventInvalid("data", f"the event is not JSON: {exc}") from exc
    if is_too_deep(raw, row):
        raise _too_deep()
    try:
        event = Event.from_dict(row)
    except EventInvalid:
        if lacking(row) is not None:
            raise
        row = _sound_part(row)
        event = Event.from_dict(row)
    # Without a time of its own it occurred when it was stored, whenever it is read.
    return event if row.get("time") is not None else event.replace(time=recorded_at)


def is_too_deep(raw: bytes, row: object) -> bool:
    """Return whether what was read from the log nests more deeply than an event may: it is none, then."""
    type_ = row.get("type") if isinstance(row, dict) else None
    return nests_too_deeply(raw, row, is_own=isinstance(type_, str) and is_own_type(type_))


def _too_deep() -> EventInvalid:
    return EventInvalid("data", f"nests more than {MOST_LEVELS} levels deep, the event's own included")


def _sound_part(row: JsonObject) -> JsonObject:
    """Return an event without the attributes that break the specification."""
    sound = {name: row[name] for name in ("type", "source", "id")}
    kept = dict(sound)
    for name, item in row.items():
        try:
            Event.from_dict({**sound, name: item})
        except EventInvalid:
            continue
        kept[name] = item
    return kept


def _tell_unreadable(recorded: Recorded, why: EventInvalid) -> None:
    if recorded.seq in _told:
        return
    if len(_told) >= 10_000:
        _told.clear()
    _told.add(recorded.seq)
    log.warning("log.not_an_event", extra={"seq": recorded.seq, "subject": recorded.subject, "why": str(why)})


_told: set[int] = set()
