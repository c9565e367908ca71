"""What the fold decides, and the events that say so.

A decision's id is derived from the rule's version, the key and the events it rests on: deciding the same thing twice
is saying it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from ...bus.event import Event, format_time
from ...vocabulary import JsonObject, JsonValue, derived_id
from ..forms.form import EventRef
from .handover import CLAIMED_BY

__all__ = [
    "ADOPTED", "DISABLED", "DUE", "SOURCE", "RESOLVED", "SUPPRESSED", "TRIGGERED", "Decision", "decision_event",
    "disabled_event", "is_stop", "within",
]  # fmt: skip

log = logging.getLogger(__name__)

SOURCE = "/hark/automations"
TRIGGERED = "automation.triggered"
RESOLVED = "automation.resolved"
SUPPRESSED = "automation.suppressed"
DISABLED = "automation.disabled"
"""A rule has spent its budget and stops until the time is over; the firings held back meanwhile are suppressed ones."""
ADOPTED = "automation.adopted"
"""Places a change of a rule in the order of the log: the rule holds for what comes after."""
DUE = "automation.due"
"""Says in the log that it is later now, when a deadline has passed and nothing else has happened since."""

MAX_REFS = 1000
_HEADERS_BYTES = 2048
"""What comes with an event towards the broker's limit."""
_LONG_TEXT = 1000
_CUT_TEXT = 200


@dataclass(frozen=True, slots=True)
class Decision:
    """A rule fires, or is held back.

    Attributes:
        key: the key in words, as templates see it; ``keys`` its values.
        at: when the condition came true, in seconds of event time.
        recorded: when the log said so: the recorded time of the event that made us decide.
        row: the last event, None when it has to be found by the sequence of the last of ``refs``.
        suppressed: firings held back before this one and not yet told (triggered), or so far (suppressed).
        reason: of a suppression: cooldown, budget or depth; ``until`` when that ends, in seconds. Of what is
            resolved: condition, quiet or figure.
        extra: more to say, such as the figure of a metric.
        firing: of what is resolved: the decision that fired, ``fired_at`` when.
    """

    id: str
    what: Literal["triggered", "suppressed", "resolved"]
    automation: str
    version: str
    key: str
    keys: tuple[JsonValue, ...]
    count: int
    at: float
    recorded: float
    refs: tuple[EventRef, ...]
    row: dict[str, Any] | None
    depth: int
    actions: tuple[JsonObject, ...] = ()
    suppressed: int = 0
    reason: str = ""
    until: float | None = None
    shadow: bool = False
    kind: str = "count"
    extra: JsonObject | None = None
    firing: str = ""
    fired_at: float | None = None


def _stamp(at: float) -> str:
    return format_time(datetime.fromtimestamp(at, UTC))


def earlier(decision: Decision, by: float) -> Decision:
    """Return a decision with all its moments ``by`` seconds earlier."""
    until, fired_at, extra = decision.until, decision.fired_at, decision.extra
    metric = extra.get("metric") if extra is not None else None
    if (
        extra is not None
        and isinstance(metric, dict)
        and isinstance(since := metric.get("since"), int | float)
    ):
        extra = {**extra, "metric": {**metric, "since": since - by}}
    return replace(
        decision, at=decision.at - by, recorded=decision.recorded - by,
        refs=tuple([ref._replace(time=ref.time - by) for ref in decision.refs]),
        until=until - by if until is not None else None,
        fired_at=fired_at - by if fired_at is not None else None, extra=extra,
    )  # fmt: skip


def decision_event(
    decision: Decision,
    row: Mapping[str, Any] | None,
    *,
    with_row: bool = True,
    claimed_by: str | None = None,
) -> Event:
    """Return the event that stores a decision.

    Args:
        row: the last event it rests on, as parsed; None if there never was one or the log no longer has it.
        with_row: put that event into the decision; without, who needs it finds it by its sequence.
        claimed_by: the outbox that will carry it out, if one has promised to.
    """
    data: JsonObject = {
        "automation": {"name": decision.automation, "version": decision.version},
        "kind": decision.kind,
        "key": decision.key,
        "keys": list(decision.keys),
        "count": decision.count,
        "suppressed": decision.suppressed,
        "at": _stamp(decision.at),
        "events": [{"id": r.id, "seq": r.seq, "time": _stamp(r.time)} for r in decision.refs[-MAX_REFS:]],
    }
    if decision.extra is not None:
        data |= decision.extra
    if decision.shadow:
        data["shadow"] = True
    if decision.what == "resolved":
        data["reason"] = decision.reason
        data["firing"] = decision.firing
        if decision.fired_at is not None:
            data["fired_at"] = _stamp(decision.fired_at)
            data["duration_s"] = round(max(0.0, decision.at - decision.fired_at), 6)
    if decision.what != "suppressed":
        data["actions"] = list(decision.actions)
        if claimed_by is not None:
            data[CLAIMED_BY] = claimed_by
        if row is not None and with_row:
            data["event"] = dict(row)
    else:
        data["reason"] = decision.reason
        if decision.until is not None:
            data["until"] = _stamp(decision.until)
    attributes: dict[str, Any] = {"causaldepth": decision.depth + 1}
    if row is not None:
        attributes["correlationid"] = row.get("correlationid") or row.get("id")
        attributes["causationid"] = row.get("id")
        attributes["traceparent"] = row.get("traceparent")
    elif decision.refs:
        attributes["causationid"] = decision.refs[-1].id
    return Event(
        type=f"automation.{decision.what}",
        source=SOURCE,
        id=decision.id,
        subject=f"automation/{decision.automation}",
        time=datetime.fromtimestamp(decision.recorded, UTC),
        data=data,
        **attributes,
    )


def is_stop(decision: Decision) -> bool:
    """Whether a rule stops with this decision: it is the first that its budget holds back."""
    return decision.what == "suppressed" and decision.reason == "budget" and decision.suppressed == 1


def disabled_event(decision: Decision) -> Event | None:
    """Return the event that says a rule has stopped; None unless it does with ``decision``."""
    if not is_stop(decision):
        return None
    data: JsonObject = {
        "automation": {"name": decision.automation, "version": decision.version},
        "reason": decision.reason,
        "at": _stamp(decision.recorded),
        "until": _stamp(decision.until) if decision.until is not None else None,
        "key": decision.key,
    }
    if decision.shadow:
        data["shadow"] = True
    row = decision.row or {}
    return Event(
        type=DISABLED, source=SOURCE, id=derived_id(DISABLED, decision.id), subject=f"automation/{decision.automation}",
        time=datetime.fromtimestamp(decision.recorded, UTC), data=data, causaldepth=decision.depth + 1,
        causationid=decision.id, correlationid=row.get("correlationid") or row.get("id"),
    )  # fmt: skip


def within(event: Event, limit_bytes: int) -> Event:
    """Return a decision that the broker takes: as it is, or without what matters least, as much as need be.

    First goes the event it carries, which stands in the log; then all but the last of those it rests on, the ends of long
    texts (of a key, mostly) and the steps. What is left are the actions of the rule: too large, they become one that nobody can
    read, which the outbox says as it does of any other.
    """
    for name, shorten in _SHORTER:
        if len(event.to_json()) < limit_bytes - _HEADERS_BYTES or not isinstance(event.data, dict):
            return event
        shorter = shorten(event.data)
        if shorter != event.data:
            event = event.replace(data=shorter)
            if name != "event":
                log.warning("automations.decision_cut", extra={"decision": event.id, "what": name})
    return event


def _cut(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return value if len(value) <= _LONG_TEXT else value[:_CUT_TEXT] + "…"
    if isinstance(value, list):
        return [_cut(v) for v in value]
    if isinstance(value, dict):
        return {k: _cut(v) for k, v in value.items()}
    return value


def _without(name: str) -> Callable[[JsonObject], JsonObject]:
    return lambda data: {k: v for k, v in data.items() if k != name}


def _last_of_events(data: JsonObject) -> JsonObject:
    events = data.get("events")
    return {**data, "events": events[-1:]} if isinstance(events, list) else data


def _texts_cut(data: JsonObject) -> JsonObject:
    return {k: v if k == "actions" else _cut(v) for k, v in data.items()}


def _no_actions(data: JsonObject) -> JsonObject:
    size = len(orjson.dumps(data.get("actions")))
    return {**data, "actions": [{"omitted_bytes": size}]} if size > _LONG_TEXT else data


_SHORTER: tuple[tuple[str, Callable[[JsonObject], JsonObject]], ...] = (
    ("event", _without("event")),
    ("events", _last_of_events),
    ("texts", _texts_cut),
    ("steps", _without("steps")),
    ("actions", _no_actions),
)
