"""A plan as lines for people, from its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ..duration import format_duration
from ..engine.limits.limit import name_of
from ..vocabulary import JsonObject, JsonValue
from .plan import Change

__all__ = ["impact_text", "plan_text"]

_SIGN = {
    Change.CREATE: "+",
    Change.UPDATE: "~",
    Change.DELETE: "-",
    Change.UNCHANGED: " ",
    Change.ORPHANED: "!",
}


def plan_text(plan: JsonObject) -> str:
    """Return the JSON form of a plan as lines for people."""
    lines: list[str] = []
    steps = plan.get("steps")
    for step in steps if isinstance(steps, list) else []:
        assert isinstance(step, dict)
        change = Change(str(step["change"]))
        if change is Change.UNCHANGED:
            continue
        bucket = str(step["bucket"])
        note = f"  ({step['note']})" if step.get("note") else ""
        name = name_of(str(step["key"])) if bucket == "limits" else step["key"]
        lines.append(f"{_SIGN[change]} {bucket.removesuffix('s')} {name}{note}")
        fields = step.get("fields")
        if change is Change.UPDATE and isinstance(fields, list):
            for f in fields:
                assert isinstance(f, dict)
                lines.append(f"    {f['path']}: {_shown(f['before'])} → {_shown(f['after'])}")
        impact = step.get("impact")
        if isinstance(impact, dict):
            lines.append(f"    {impact_text(impact)}")
            lost = impact.get("keys")
            if lost and "reset" in str(step.get("note")):
                lines.append(f"    the state of {lost} {'key' if lost == 1 else 'keys'} is lost")
    warnings = plan.get("warnings")
    lines += [f"! {w}" for w in (warnings if isinstance(warnings, list) else [])]
    return "\n".join([*lines, str(plan.get("summary", ""))])


def _shown(value: JsonValue) -> str:
    if value is None:
        return "(not set)"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 100 else text[:97] + "…"


def impact_text(impact: Mapping[str, Any]) -> str:
    """Return an impact on one line."""
    before, after = impact.get("before"), impact.get("after")
    days = impact.get("days") or 0
    seconds = round(days * 86_400)
    covered = seconds if seconds < 600 else round(seconds / 60) * 60
    span = f"over the last {format_duration(covered)}" if covered else "there is no history yet"
    part = "" if impact.get("whole", True) else ", as far as could be read in time"
    if not covered:
        return f"impact: {span}"

    def said(one: Mapping[str, Any] | None) -> str:
        if one is None:
            return "nothing"
        held = f", {one['suppressed']} held back" if one["suppressed"] else ""
        fired, actions = one["fired"], one["actions"]
        return f"{fired} firing{'s' * (fired != 1)} ({actions} action{'s' * (actions != 1)}{held})"

    if before is None:
        return f"impact: {said(after)} {span}{part}"
    return f"impact: {said(before)} before, {said(after)} after, {span}{part}"
