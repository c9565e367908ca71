"""An alert: something people should know, on its way through the routing tree.

A rule (or the API) raises it by appending ``notification.raised`` to the log; the router takes it from there, so that an
alert that was accepted is stored. Two alerts of one ``id`` are the same trouble, told once; a later one with
``resolved`` ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from ..bus.event import Event
from ..errors import DefinitionError
from ..vocabulary import JsonObject, JsonValue, derived_id
from .message import Message, Severity, clipped

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = [
    "ACKNOWLEDGED",
    "COMMON_FACTS",
    "RAISED",
    "ROUTES",
    "SOURCE",
    "Alert",
    "Cause",
    "check_labels",
    "raise_alert",
]

SOURCE = "/hark/notifications"
RAISED = "notification.raised"
ACKNOWLEDGED = "notification.acknowledged"
ROUTES = "routes"
"""What ``notify:`` names for the routing tree; no channel may have this name."""

_LABEL = re.compile(r"[a-z][a-z0-9_]{0,19}")
_EVENT_WORDS = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "data", "datacontenttype", "dataschema"}
)
_EXTENSIONS = frozenset(
    {
        "correlationid",
        "causationid",
        "causaldepth",
        "traceparent",
        "tracestate",
        "partitionkey",
        "replayof",
        "expirytime",
    }
)
_OWN_LABELS = frozenset({"automation", "key", "severity", "title"})
COMMON_FACTS = _EVENT_WORDS | _EXTENSIONS | _OWN_LABELS
"""What conditions may ask of any alert, beside the labels that rules and callers write."""
_MAX_TEXT, _MAX_ITEMS, _MAX_DEPTH = 512, 50, 6


@dataclass(frozen=True, slots=True)
class Cause:
    """The part of an event's envelope that what it leads to carries on."""

    id: str
    correlationid: str | None = None
    depth: int = 0
    traceparent: str | None = None

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls(event.id, event.correlationid, event.causaldepth, event.traceparent)

    def event(self) -> Event:
        """Return an event that stands for the cause where one is asked for."""
        return Event(
            type=RAISED, source=SOURCE, id=self.id, correlationid=self.correlationid, causaldepth=self.depth,
            traceparent=self.traceparent,
        )  # fmt: skip

    def to_json(self) -> JsonObject:
        return {"id": self.id, "corr": self.correlationid, "depth": self.depth, "trace": self.traceparent}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(str(value["id"]), value.get("corr"), int(value.get("depth", 0)), value.get("trace"))


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert as it was raised.

    Attributes:
        id: which trouble this is; derived from the words that name it.
        resolved: it says that the trouble is over.
        facts: what conditions see: labels and the event, long values shortened.
    """

    id: str
    message: Message
    facts: JsonObject = field(default_factory=dict)
    resolved: bool = False
    cause: Cause = field(default_factory=lambda: Cause(""))

    @property
    def is_news(self) -> bool:
        """Whether it is only to be told once: information and success are no trouble that lasts."""
        return self.message.severity.rank == 0

    @property
    def rule(self) -> tuple[JsonValue, JsonValue]:
        """The rule that raised it and the key it did so for, if one did."""
        return self.facts.get("automation"), self.facts.get("key")

    def to_json(self) -> JsonObject:
        message = self.message
        return {
            "id": self.id, "title": message.title, "body": message.body, "severity": message.severity.value,
            "attach": list(message.attach), "facts": self.facts, "resolved": self.resolved,
            "cause": self.cause.to_json(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        attach = tuple(str(a) for a in value.get("attach") or ())
        message = Message(
            str(value["title"]), str(value.get("body", "")), Severity(value["severity"]), attach
        )
        return cls(
            str(value["id"]), message, dict(value.get("facts") or {}), bool(value.get("resolved")),
            Cause.from_json(value["cause"]),
        )  # fmt: skip

    @classmethod
    def of(cls, event: Event) -> Self:
        """Read a ``notification.raised`` event. Raises ``ValueError`` when it is not one of ours."""
        data = event.data
        if not isinstance(data, dict):
            raise ValueError("the event has no data")
        return cls.from_json({**data, "cause": Cause.of(event).to_json()})


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise ``DefinitionError`` if a label has a name that conditions could not ask for."""
    for name in labels:
        if not _LABEL.fullmatch(name) or name in _EVENT_WORDS | _OWN_LABELS:
            why = (
                "is taken"
                if _LABEL.fullmatch(name)
                else "is not lower-case letters, digits and _, 20 at most"
            )
            raise DefinitionError(f"the label {name!r} {why}", hint="call it something like team or service")


def clip(value: JsonValue, depth: int = 0) -> JsonValue:
    """Return a value with long texts and lists shortened, and what lies very deep left out."""
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, list):
        return [clip(v, depth + 1) for v in value[:_MAX_ITEMS]] if depth < _MAX_DEPTH else None
    if isinstance(value, dict):
        if depth >= _MAX_DEPTH:
            return None
        return {k[:_MAX_TEXT]: clip(v, depth + 1) for k, v in list(value.items())[:_MAX_ITEMS]}
    return value


async def raise_alert(
    bus: Bus,
    message: Message,
    *,
    key: str,
    now: datetime,
    alert: str | None = None,
    labels: Mapping[str, str] | None = None,
    own: Mapping[str, JsonValue] | None = None,
    about: JsonObject | None = None,
    resolved: bool = False,
    cause: Event | None = None,
    tried_after: int | None = None,
) -> Alert:
    """Store an alert in the log and return it; the router tells who is to be told. Twice with one ``key`` is once.

    Args:
        alert: words that name the trouble; the same words are the same alert. None: ``automation`` and ``key``, else the
            title.
        labels: what the caller adds for routes to match.
        own: the labels Hark sets itself: ``automation`` and ``key``.
        about: the event this is about, in its JSON form.
        resolved: the trouble is over.
        cause: the event that led to this.
        tried_after: an earlier call with this ``key`` may have stored it behind this sequence, longer ago than the
            broker remembers ids.
    Raises:
        DefinitionError: a label's name cannot be used.
        BusUnavailable: it is not stored.
    """
    check_labels(labels or {})
    own = dict(own or {})
    named = alert or "/".join(str(own[n]) for n in ("automation", "key") if own.get(n)) or message.title
    message = clipped(message)
    facts: JsonObject = {
        **{name: clip(value) for name, value in (about or {}).items() if name != "specversion"},
        **{name: text[:_MAX_TEXT] for name, text in (labels or {}).items()},
        **own, "severity": message.severity.value, "title": message.title,
    }  # fmt: skip
    made = Alert(derived_id("alert", named), message, facts, resolved)
    data = made.to_json()
    del data["cause"]
    event = Event(
        type=RAISED, source=SOURCE, id=derived_id("raised", key), subject=f"alert/{made.id}",
        time=now.astimezone(UTC), data={**data, "name": named[:_MAX_TEXT]},
        **(cause.caused() if cause is not None else {}),
    )  # fmt: skip
    if tried_after is None:
        await bus.log.append(event)
    else:
        await bus.log.append_once(event, after=tried_after)
    return Alert(made.id, message, facts, resolved, Cause.of(event))
