"""What the fold says of its decisions: the events that record them and the messages that carry them out.

Each has an id made of what it is about and never of when it was worked out, so that folding the same facts again, after a
crash, says nothing new. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..vocabulary import JsonObject, derived_id
from .alert import Alert
from .group import Group, Member, Said, Send, shown_address
from .routing import Escalation, Route
from .wording import compose

__all__ = ["closed", "escalated", "grouped", "held_back", "muted", "sent", "unrouted", "was_not_open"]


def unrouted(alert: Alert, at: float) -> Said:
    """Nobody is told of an alert: no route matches it."""
    reason = "no route that matches says whom to tell; give the root of `notifications:` a `to:`"
    data: JsonObject = {"alert": alert.id, "title": alert.message.title, "reason": reason}
    return _said("unrouted", alert, data, alert.cause.id, at=at)


def grouped(alert: Alert, group: Group, route: Route, at: float) -> Said:
    """An alert has joined a group."""
    data: JsonObject = {
        "alert": alert.id, "title": alert.message.title, "severity": alert.message.severity.value,
        "group": group.id, "labels": group.labels, "route": route.shown, "to": [*map(shown_address, route.to)], "size": len(group.members),
    }  # fmt: skip
    return _said("grouped", alert, data, alert.cause.id, group.key, at=at)


def was_not_open(alert: Alert, at: float) -> Said:
    """The end of an alert was told that nobody knew of, or that had ended."""
    data: JsonObject = {"alert": alert.id, "reason": "it was not open", "told": False}
    return _said("closed", alert, data, alert.cause.id, at=at)


def closed(member: Member, group: Group, reason: str, *, told: bool, at: float) -> Said:
    """An alert has left a group; ``told``: somebody had been told of it."""
    alert = member.alert
    data: JsonObject = {
        "alert": alert.id, "title": alert.message.title, "group": group.id, "reason": reason, "told": told,
        "count": member.count,
    }  # fmt: skip
    return _said("closed", alert, data, group.id, member.first, at=at)


def muted(group: Group, mute: str, *, until: float, at: float) -> Said:
    """A mute time postpones what a group has to tell; it has a member."""
    data: JsonObject = {
        "group": group.id, "labels": group.labels, "mute": mute, "until": until if until < math.inf else None,
        "alerts": len(group.members),
    }  # fmt: skip
    first = next(iter(group.members.values()))
    return _said("muted", first.alert, data, group.id, group.muted, at=at)


def held_back(member: Member, group: Group, word: str, *, by: str, dropped: bool, at: float) -> Said:
    """A silence (``word`` is ``silenced``) or another alert (``inhibited``) holds an alert back, or drops it."""
    alert = member.alert
    data: JsonObject = {
        "alert": alert.id, "title": alert.message.title, "group": group.id,
        ("silence" if word == "silenced" else "by"): by, "dropped": dropped,
    }  # fmt: skip
    return _said(word, alert, data, group.id, by, member.first, str(dropped), at=at)


def escalated(group: Group, step: Escalation, shown: Sequence[Member], *, waited_s: float, at: float) -> Said:
    """A step of escalation has been done; ``group.escalated`` counts it already."""
    data: JsonObject = {
        "group": group.id, "labels": group.labels, "step": group.escalated, "to": [*map(shown_address, step.to)],
        "waited_s": waited_s, "alerts": len(shown),
    }  # fmt: skip
    parts = (group.id, str(group.sends), str(group.escalated))
    return _said("escalated", shown[0].alert, data, *parts, at=at)


def sent(
    group: Group,
    to: str,
    kind: str,
    *,
    firing: Sequence[Member],
    recovered: Sequence[Member],
    at: float,
    waited_s: float = 0.0,
    new: Iterable[str] = (),
) -> Send:
    """Make the message about these alerts for one receiver; ``new``: the ids of those told for the first time."""
    message = compose(
        kind, group.labels, firing=[m.line() for m in firing], recovered=[m.line() for m in recovered],
        at=at, waited_s=waited_s, group=group.id, new=tuple(new),
    )  # fmt: skip
    key = derived_id("notify", group.id, str(group.opened_at), str(group.sends), kind, to)
    cause = (*firing, *recovered)[0].alert.cause
    stamp = group.unacked_since if any(m.is_open_problem for m in firing) else None
    return Send(key, to, group.id, kind, message, cause, at, stamp)


def _said(word: str, alert: Alert, data: JsonObject, *parts: str, at: float) -> Said:
    """``parts``: what tells it from others of its kind, and no moment: decided again after a crash, later, it is the same."""
    id_ = derived_id("notification-decision", word, alert.id, *parts)
    return Said(id_, word, f"alert/{alert.id}", data, alert.cause, at)
