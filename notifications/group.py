"""Groups of alerts as the fold keeps them: plain data, to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from ..vocabulary import JsonObject, JsonValue
from .alert import Alert, Cause
from .message import Message, Severity
from .routing import Route
from .wording import Line

__all__ = [
    "Decision", "Group", "Member", "Said", "Send", "group_key", "kind_of_message", "shown_address",
]  # fmt: skip


_FEW = 100
_LOOK_SHARE_S = 0.0002
"""Per alert of a group, between two looks at all of it, which take a hundredth of that: a second for 5 000."""


def shown_address(to: str) -> str:
    """Return a channel's name, or of an address only its scheme: the rest of it may be a secret."""
    scheme, found, _ = to.partition("://")
    return scheme if found else to


@dataclass(frozen=True, slots=True)
class Said:
    """A decision that is only told in the log, as an event ``notification.<word>`` with an id of its own."""

    id: str
    word: str
    subject: str
    data: JsonObject
    cause: Cause
    at: float


@dataclass(frozen=True, slots=True)
class Send:
    """A message to be sent. ``key`` makes sending it twice sending it once.

    Attributes:
        to: a channel or an Apprise URL.
        group: the incident it is about.
        stamp: since when it is not acknowledged, which a link to acknowledge it names; None: nothing to acknowledge.
    """

    key: str
    to: str
    group: str
    kind: str
    message: Message
    cause: Cause
    at: float
    stamp: float | None = None

    def to_json(self) -> JsonObject:
        m = self.message
        return {
            "key": self.key, "to": self.to, "group": self.group, "kind": self.kind, "title": m.title, "body": m.body,
            "severity": m.severity.value, "attach": list(m.attach), "context": dict(m.context),
            "cause": self.cause.to_json(), "at": self.at, "stamp": self.stamp,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        message = Message(
            value["title"],
            value["body"],
            Severity(value["severity"]),
            tuple(value["attach"]),
            value["context"],
        )
        return cls(
            value["key"], value["to"], value["group"], value["kind"], message, Cause.from_json(value["cause"]),
            float(value["at"]), value["stamp"],
        )  # fmt: skip


Decision = Said | Send


@dataclass(slots=True)
class Member:
    """An alert in a group.

    Attributes:
        ready: from when on it may be told; infinite while something without a known end holds it back.
        told_at: when it was first told; None while it waits.
        is_news: it is only to be told once. What was a problem stays one, whatever is said of it later.
        acked: somebody has taken it on: it is not repeated.
        held: what holds it back: ``silence <id>``, ``inhibited``, or nothing.
        first: the fact that made it one, whatever has been said of it since.
    """

    alert: Alert
    since: float
    last: float
    ready: float
    count: int = 1
    told_at: float | None = None
    acked: bool = False
    resolved_at: float | None = None
    held: str = ""
    is_news: bool = False
    first: str = ""

    @property
    def waits(self) -> bool:
        return self.told_at is None and self.resolved_at is None

    @property
    def is_open_problem(self) -> bool:
        return self.resolved_at is None and not self.is_news

    @property
    def wants_repeat(self) -> bool:
        return self.told_at is not None and self.is_open_problem and not self.acked

    def due_by_itself(self, resolve_timeout_s: float) -> float:
        """Return when it has to be looked at, but for repeats and escalation, which are the group's."""
        due = self.ready if self.waits or self.resolved_at is not None else math.inf
        return min(due, self.last + resolve_timeout_s) if self.is_open_problem else due

    def line(self) -> Line:
        facts = self.alert.facts
        labels: JsonObject = {
            name: value
            for name, value in facts.items()
            if isinstance(value, str) and name not in ("id", "time", "title", "specversion")
        }
        return Line(self.alert.message, self.count, self.since, self.resolved_at, labels)

    def to_json(self) -> JsonObject:
        return {
            "alert": self.alert.to_json(), "since": self.since, "last": self.last, "ready": _finite(self.ready),
            "count": self.count, "told_at": self.told_at, "acked": self.acked, "resolved_at": self.resolved_at,
            "held": self.held, "news": self.is_news, "first": self.first,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            Alert.from_json(value["alert"]), float(value["since"]), float(value["last"]), _back(value["ready"]),
            int(value["count"]), value["told_at"], bool(value["acked"]), value["resolved_at"], str(value["held"]), bool(value["news"]),
            str(value.get("first", value["since"])),
        )  # fmt: skip


@dataclass(slots=True)
class Group:
    """Alerts that are told together: those of one route with equal ``group_by`` labels.

    Attributes:
        id: the incident: from the first alert of an empty group until the last has ended.
        flushed_at: when it was last told of something new or over; sent_at: when anything was last sent.
        told_to: everyone told in this incident, in order; sends: how many messages, over all incidents.
        unacked_since: when the first message went out that nobody has acknowledged; escalated: steps done since then.
        due: when it has to be looked at next; ``is_rough``: not before it, perhaps later.
        not_before: when what keeps quiet all of it ends, as of the last look; escalate_at: the same of what holds all back
            that would be escalated; looked_at: when that was. None of them is kept: without, it is looked at once more.
    """

    key: str
    route: str
    labels: JsonObject
    id: str
    opened_at: float
    members: dict[str, Member] = field(default_factory=dict)
    flushed_at: float | None = None
    sent_at: float | None = None
    told_to: list[str] = field(default_factory=list)
    sends: int = 0
    unacked_since: float | None = None
    escalated: int = 0
    acked_at: float | None = None
    acked_by: str = ""
    muted: str = ""
    due: float = math.inf
    is_rough: bool = False
    not_before: float = 0.0
    escalate_at: float = 0.0
    looked_at: float = 0.0

    @property
    def next_look(self) -> float:
        """When one more alert may have all of them looked at: of thousands that are held back each comes to that."""
        n = len(self.members)
        return self.looked_at + n * _LOOK_SHARE_S if n > _FEW else 0.0

    def repeat_due(self, route: Route, escalate_at: float = 0.0) -> float:
        """Return when what is open and not acknowledged is told again, or to others (not before ``escalate_at``)."""
        due = self.sent_at + route.repeat_interval if self.sent_at is not None else math.inf
        if self.unacked_since is not None and self.escalated < len(route.escalate):
            due = min(due, max(self.unacked_since + route.escalate[self.escalated].after, escalate_at))
        return due

    def set_back(self, by_s: float, *, to: float) -> None:
        """Have nothing lie in the future that has happened, after the clock was set back by ``by_s`` to ``to``."""
        self.opened_at = min(self.opened_at, to)
        self.flushed_at, self.sent_at = _by(self.flushed_at, to), _by(self.sent_at, to)
        self.unacked_since, self.acked_at = _by(self.unacked_since, to), _by(self.acked_at, to)
        self.looked_at = min(self.looked_at, to)
        for member in self.members.values():
            member.since, member.last = min(member.since, to), min(member.last, to)
            member.told_at, member.resolved_at = _by(member.told_at, to), _by(member.resolved_at, to)
            member.ready -= by_s

    def to_json(self) -> JsonObject:
        return {
            "key": self.key, "route": self.route, "labels": self.labels, "id": self.id, "opened_at": self.opened_at,
            "members": [m.to_json() for m in self.members.values()], "flushed_at": self.flushed_at,
            "sent_at": self.sent_at, "told_to": list(self.told_to), "sends": self.sends,
            "unacked_since": self.unacked_since, "escalated": self.escalated, "acked_at": self.acked_at,
            "acked_by": self.acked_by, "muted": self.muted, "due": _finite(self.due), "rough": self.is_rough,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        members = [Member.from_json(m) for m in value["members"]]
        return cls(
            key=value["key"], route=value["route"], labels=value["labels"], id=value["id"],
            opened_at=float(value["opened_at"]), members={m.alert.id: m for m in members},
            flushed_at=value["flushed_at"], sent_at=value["sent_at"], told_to=list(value["told_to"]),
            sends=int(value["sends"]), unacked_since=value["unacked_since"], escalated=int(value["escalated"]),
            acked_at=value["acked_at"], acked_by=value["acked_by"], muted=value["muted"], due=_back(value["due"]),
            is_rough=bool(value.get("rough", False)),
        )  # fmt: skip


def group_key(route: str, labels: JsonObject) -> str:
    """Return what an open group is known by: its route's key and the labels its alerts share."""
    return f"{route} {orjson.dumps(labels, option=orjson.OPT_SORT_KEYS).decode()}"


def kind_of_message(fresh: Sequence[Member], repeated: Sequence[Member], *, in_digests: bool) -> str:
    """Return what a message with these alerts is: ``firing, digest, repeat`` or ``recovered``."""
    if fresh:
        return "digest" if in_digests else "firing"
    return "repeat" if repeated else "recovered"


def _finite(at: float) -> JsonValue:
    return None if at == math.inf else at


def _by(at: float | None, latest: float) -> float | None:
    return None if at is None else min(at, latest)


def _back(value: Any) -> float:
    return math.inf if value is None else float(value)
