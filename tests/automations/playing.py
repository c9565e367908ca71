"""Playing events into one rule in virtual time, written short."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hark.automations.analysis.ruletest import START, play
from hark.automations.folding.decision import Decision
from hark.automations.model import parse_automation
from hark.bus.event import format_time

__all__ = ["fired", "given", "over", "played", "triggers"]


def given(
    at: float, type_: str, *, late: float = 0.0, id: str | None = None, **data: Any
) -> tuple[float, dict[str, Any]]:
    """Return one event recorded at ``at`` seconds, which occurred ``late`` seconds earlier."""
    return at, {
        "type": type_, "source": "/t", "id": id or f"{type_}@{at:g}", "subject": data.pop("subject", None),
        "time": format_time(datetime.fromtimestamp(START + at - late, UTC)), "data": data,
    }  # fmt: skip


def played(
    rule: dict[str, Any], *events: tuple[float, dict[str, Any]], until: float | None = None
) -> list[Decision]:
    """Return what the rule decides about the events."""
    automation = parse_automation(rule, name="r")
    last = max((at for at, _ in events), default=0.0)
    return play(automation, list(events), until=last + automation.settles_s if until is None else until)


def triggers(
    rule: dict[str, Any], *events: tuple[float, dict[str, Any]], until: float | None = None
) -> list[Decision]:
    return [d for d in played(rule, *events, until=until) if d.what == "triggered"]


def over(
    rule: dict[str, Any], *events: tuple[float, dict[str, Any]], until: float | None = None
) -> list[tuple[float, str, str]]:
    """Return (at, key, reason) of what is resolved."""
    return [
        (round(d.at - START, 3), d.key, d.reason)
        for d in played(rule, *events, until=until)
        if d.what == "resolved"
    ]


def fired(
    rule: dict[str, Any], *events: tuple[float, dict[str, Any]], until: float | None = None
) -> list[tuple[float, str, int]]:
    """Return (at, key, count) of each firing, in seconds of virtual time."""
    return [(round(d.at - START, 3), d.key, d.count) for d in triggers(rule, *events, until=until)]
