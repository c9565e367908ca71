"""``emit``: saying that something happened, from any code, sync or async, in or out of a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import BufferFull, EventInvalid, RefusedError
from ..tracing import begin_span, current_traceparent, is_tracing
from ..vocabulary import JsonValue, new_id
from .event import Event, check_text, check_type, is_own_type, no_number
from .outgoing import Outgoing
from .owner import Owner
from .session import Session, current_session, no_broker
from .subject import PREFIX
from .wire import check_subject, message_id

__all__ = ["CauseAttrs", "Emitted", "current_cause", "emit"]


@dataclass(frozen=True, slots=True)
class CauseAttrs:
    """What an event takes over from the run it is emitted in. ``causaldepth`` is that of the new event.

    ``owner`` is the run as a publisher: it does not complete if the broker refuses what was emitted in it.
    """

    correlationid: str | None = None
    causationid: str | None = None
    causaldepth: int = 0
    traceparent: str | None = None
    owner: Owner | None = field(default=None, repr=False, compare=False)


current_cause: ContextVar[Event | CauseAttrs | None] = ContextVar("hark_cause", default=None)
"""What events emitted in this context follow from. Set by the engine around a run."""


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Emitted(Event):
    """An event on its way. ``await`` it to be sure that it is stored; it is sent either way.

    What ``emit`` returns is hardly ever looked at, and making an event of it would cost as much as encoding it: its
    attributes are filled in when the first of them is asked for.
    """

    session: Session | None = field(default=None, repr=False, compare=False)
    owner: Owner | None = field(default=None, repr=False, compare=False)
    _late: dict[str, Any] | None = field(default=None, repr=False, compare=False, init=False)

    def __init__(
        self, *, session: Session | None = None, owner: Owner | None = None, **attributes: Any
    ) -> None:
        # Not super(): the class that ``slots=True`` makes is another than the one this was written in.
        Event.__init__(self, **attributes)
        _set_session(self, session)
        _set_owner(self, owner)
        _set_late(self, None)

    if not TYPE_CHECKING:  # a checker would take it for a promise to have every attribute there is

        def __getattr__(self, name: str) -> object:
            if name not in _ATTRIBUTES:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            with _filling:  # two threads may look at once
                if (late := self._late) is not None:
                    Event.__init__(self, **late)
                    _set_late(self, None)
            return object.__getattribute__(self, name)

    def to_json(self) -> bytes:
        """As of any event; numbers that JSON has no word for are refused, which would become ``null`` unsaid."""
        return _without_nan(Event.to_json(self), self.data)

    def __await__(self) -> Generator[Any, None, Event]:
        return self._stored().__await__()

    async def _stored(self) -> Event:
        if self.session is not None:
            await self.session.acall(self.session.bus.publisher.barrier, owner=self.owner)
        return self


@lru_cache(maxsize=1)
def default_source() -> str:
    """Return who says what this program emits: ``/python/<name of the program>``."""
    program = os.path.basename(sys.argv[0] or "") if getattr(sys, "argv", None) else ""
    name = program.removesuffix(".py") or "interactive"
    # ASCII and short, so that it can stand in a header line: see ``emit``.
    return "/python/" + "".join(
        c if (c.isascii() and c.isalnum()) or c in "._~-" else "-" for c in name[:100]
    )


def emit(
    type: str,
    *,
    subject: str | None = None,
    data: JsonValue | bytes = None,
    source: str | None = None,
    time: datetime | None = None,
    id: str | None = None,
    partitionkey: str | None = None,
    follows: Event | None = None,
    wait: bool = False,
) -> Emitted:
    """Say that something happened; return the event. It is acknowledged by the broker before the process exits.

    ``await emit(...)`` (async) or ``emit(..., wait=True)`` (sync) return once it is stored. Two events with the same
    ``source`` and ``id`` are one.

    Args:
        type: lower-case dotted words, such as ``order.paid``; Hark's own first words are refused.
        subject: what it is about, such as ``order/42``.
        source: who says so; default ``/python/<program>``.
        time: when it happened (aware); default now.
        follows: the event this one follows from; it then shares its story. In a run that is set by itself.

    Raises:
        EventInvalid: an attribute breaks the envelope's rules, or ``data`` is not JSON.
        EventTooLarge: larger than the broker takes.
        BusUnavailable: no broker is known, or it does not answer.
        BufferFull: emitted on the bus's own loop faster than the broker takes; elsewhere the caller waits instead.
    """
    kept_under = _allowed.get(type) if type.__class__ is str else None
    if kept_under is None:
        kept_under = _allow(type)
    is_named = id is not None or source is not None
    is_plain = subject is None or (subject.__class__ is str and subject and subject.isprintable())
    if is_named or partitionkey is not None or time is not None or not is_plain:
        _check_attributes(id, source, subject, partitionkey, time)
    session = current_session(tracking=False)
    if session is None:
        raise no_broker(f"there is no broker to emit {type!r} to")
    around = current_cause.get()
    cause = _cause(around if follows is None else follows)
    attributes: dict[str, Any] = {
        "id": id or new_id(),
        "source": source or default_source(),
        "type": type,
    }
    if subject is not None:
        attributes["subject"] = subject
    attributes["time"] = datetime.now(UTC) if time is None else time.astimezone(UTC)
    attributes["data"] = data
    if partitionkey is not None:
        attributes["partitionkey"] = partitionkey
    if cause is not _NO_CAUSE:
        attributes["correlationid"], attributes["causationid"] = cause.correlationid, cause.causationid
        attributes["causaldepth"], attributes["traceparent"] = cause.causaldepth, cause.traceparent
    if is_tracing() and (traceparent := _traced(type, subject, cause, follows)) is not None:
        attributes["traceparent"] = traceparent
    owner = around.owner if isinstance(around, CauseAttrs) else None
    if owner is None:
        owner = Owner()  # outside of a run each event is its own matter
    event = _new(Emitted)
    _set_session(event, session)
    _set_owner(event, owner)
    _set_late(event, attributes)
    publisher = session.bus.publisher
    if wait and session.is_own_loop:
        raise RefusedError(
            "emit(..., wait=True) on the bus's own event loop would wait for itself",
            hint="in async code, write `await emit(...)`",
        )
    msg_id = f"{attributes['source']}#{attributes['id']}"
    # What we name ourselves can stand in a header line as it is.
    line = f"Nats-Msg-Id: {message_id(msg_id) if is_named else msg_id}\r\n"
    message = Outgoing(kept_under, line, _encoded(event, attributes), msg_id, owner)
    while True:
        try:
            publisher.give_one(message)
            break
        except BufferFull:
            if session.is_own_loop:
                raise
            session.call(publisher.room)
    if wait:
        session.call(publisher.barrier, owner=owner)
    return event


_allowed: dict[str, str] = {}
"""Types that were found right, with the subject their events are stored under; a program has few."""


def _allow(type_: str) -> str:
    """Return the subject of this type's events and remember it; raise ``EventInvalid`` if user code may not emit it."""
    check_type(type_)
    if is_own_type(type_):
        raise EventInvalid(
            "type",
            f"begins with {type_.partition('.')[0]!r}, a word only Hark itself emits: choose another, got {type_!r}",
        )
    if len(_allowed) >= 4096:
        _allowed.clear()
    _allowed[type_] = subject = check_subject(PREFIX + type_)
    return subject


def _encoded(event: Emitted, attributes: dict[str, Any]) -> bytes:
    """Return the event as it stands in the log, from its attributes where that needs no event to be made."""
    time, data = attributes["time"], attributes["data"]
    is_usual_time = time.__class__ is datetime and time.microsecond
    if not is_usual_time or "causaldepth" in attributes or data is None or isinstance(data, bytes):
        return event.to_json()
    try:
        raw = orjson.dumps({"specversion": "1.0", **attributes}, option=orjson.OPT_UTC_Z)
    except TypeError:
        return event.to_json()  # which says what is wrong
    return _without_nan(raw, data)


def _without_nan(raw: bytes, data: object) -> bytes:
    # Looked for only where there is a null at all: walking through data costs more than writing it.
    if b"null" in raw and (path := no_number(data)) is not None:
        raise EventInvalid(
            path, "is not a number (nan or infinity), which JSON cannot say: leave it out or send None"
        )
    return raw


# Without the detour over ``Emitted.__init__``, which hands its arguments on as a dict: emitting is done a lot.
_new = object.__new__
_set_session = vars(Emitted)["session"].__set__
_set_owner = vars(Emitted)["owner"].__set__
_set_late = vars(Emitted)["_late"].__set__
_filling = threading.Lock()
_ATTRIBUTES = frozenset(attribute.name for attribute in fields(Event))


def _check_attributes(
    id: object, source: object, subject: object, partitionkey: object, time: object
) -> None:
    """Raise ``EventInvalid`` for what a type checker would have refused, and for texts that are empty or hold control characters."""
    for text in (id, source, subject, partitionkey):
        if text is None or (isinstance(text, str) and text and text.isprintable()):
            continue
        given = {"id": id, "source": source, "subject": subject, "partitionkey": partitionkey}
        name = next(name for name, value in given.items() if value is text)
        if not isinstance(text, str) or not text:
            raise EventInvalid(name, f"must be a non-empty string, got {text!r}")
        check_text(name, text)
    if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
        raise EventInvalid("time", f"must be a datetime with a time zone, got {time!r}")


def _traced(type: str, subject: str | None, cause: CauseAttrs, follows: Event | None) -> str | None:
    """Return the ``traceparent`` of a span of the event's own, from which all that follows from it descends."""
    begun = begin_span(
        f"emit {type}",
        kind="producer",
        # In a run the span the code is in is the closer one; what an event follows from was said by somebody.
        parent=cause.traceparent if follows is not None or current_traceparent() is None else None,
        attributes={"cloudevents.event_type": type, "cloudevents.event_subject": subject},
    )
    if begun is None:
        return cause.traceparent
    begun.end()
    return begun.traceparent


_NO_CAUSE = CauseAttrs()


def _cause(cause: object) -> CauseAttrs:
    """Return what an event takes over from what it follows: an event, a run, or nothing."""
    if cause is None:
        return _NO_CAUSE
    if isinstance(cause, CauseAttrs):
        return cause
    if not isinstance(cause, Event):
        raise EventInvalid("follows", f"must be an Event, got {type(cause).__name__}")
    attrs = cause.caused()
    return CauseAttrs(
        correlationid=attrs["correlationid"],
        causationid=attrs["causationid"],
        causaldepth=attrs["causaldepth"],
        traceparent=attrs["traceparent"],
    )
