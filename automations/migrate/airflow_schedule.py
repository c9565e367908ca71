"""What an Airflow DAG says of when it runs, as a schedule of a deployment. Pure: reads syntax trees, runs nothing."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

__all__ = ["literal", "schedule_of", "seconds_of"]

PRESETS = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@quarterly": "0 0 1 */3 *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_UNITS = {
    "weeks": 604800, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1, "milliseconds": 0.001,
}  # fmt: skip
Say = Callable[[ast.AST, str], None]


def literal(node: ast.AST | None, default: Any = None) -> Any:
    """Return the value of a literal, ``default`` if it is none."""
    if node is None:
        return default
    try:
        return ast.literal_eval(node)
    except ValueError:
        return default


def called(node: ast.AST | None) -> str:
    """Return the last word of what a call calls, empty if it is no call."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def seconds_of(node: ast.AST | None) -> float | None:
    """Return the seconds of a ``timedelta(...)`` or ``duration(...)`` of literals, or of a number; else None."""
    if called(node) in ("timedelta", "duration"):
        assert isinstance(node, ast.Call)
        total = 0.0
        places = ("days", "seconds", "microseconds", "milliseconds", "minutes", "hours", "weeks")
        given = [*zip(places, node.args, strict=False), *((k.arg or "", k.value) for k in node.keywords)]
        for unit, value in given:
            amount = literal(value)
            if unit not in _UNITS or not isinstance(amount, int | float):
                return None
            total += amount * _UNITS[unit]
        return total
    value = literal(node)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def schedule_of(
    schedule: ast.AST | None, start: ast.AST | None, *, catchup: bool, look: Say, lose: Say
) -> dict[str, Any] | None:
    """Return the schedule of a deployment, None if it has none (or none that could be converted, which is said)."""
    found = _times(schedule, look=look, lose=lose)
    if found is None:
        return None
    begin, zone = _start(start)
    if zone and "cron" in found:
        found.setdefault("timezone", zone)
    if begin:
        found["start"] = begin
        if "interval" in found:
            found["anchor"] = begin
    elif start is not None:
        look(
            start,
            "start_date is not a plain date; set `start:` of the schedule if slots before it must not run",
        )
    found["catch_up"] = "all" if catchup else "latest"
    return found


def _times(node: ast.AST | None, *, look: Say, lose: Say) -> dict[str, Any] | None:
    if node is None or (isinstance(node, ast.Constant) and node.value is None):
        return None
    value = literal(node)
    if isinstance(value, str):
        if value == "@once" or value == "@continuous":
            lose(node, f"the schedule {value} has no equivalent; run the deployment by hand or by a rule")
            return None
        if value.startswith("@") and value not in PRESETS:
            lose(node, f"the schedule {value} is not known")
            return None
        return {"cron": PRESETS.get(value, value)}
    name = called(node)
    if name in ("CronTriggerTimetable", "CronDataIntervalTimetable"):
        assert isinstance(node, ast.Call)
        words = {k.arg: k.value for k in node.keywords}
        cron = literal(node.args[0] if node.args else words.get("cron"))
        zone = words.get("timezone")
        named = literal(zone.args[0]) if isinstance(zone, ast.Call) and zone.args else literal(zone)
        if isinstance(cron, str):
            return {
                "cron": PRESETS.get(cron, cron),
                **({"timezone": named} if isinstance(named, str) else {}),
            }
    inner = (
        node.args[0]
        if isinstance(node, ast.Call) and name == "DeltaDataIntervalTimetable" and node.args
        else node
    )
    seconds = seconds_of(inner)
    if seconds is not None and seconds >= 1:
        look(node, "slots of the interval count from start_date, as there; without one from 2020-01-01")
        return {"interval": f"{seconds:g}s"}
    lose(
        node,
        f"the schedule `{ast.unparse(node)[:80]}` has no equivalent; for assets and datasets write a rule on their events",
    )
    return None


def _start(node: ast.AST | None) -> tuple[str | None, str | None]:
    """Return the beginning (RFC 3339, or local time) and the zone of a ``datetime(...)`` of literals."""
    if called(node) != "datetime":
        return None, None
    assert isinstance(node, ast.Call)
    numbers = [literal(arg) for arg in node.args]
    words = {k.arg: k.value for k in node.keywords}
    numbers += [literal(words[k]) for k in ("year", "month", "day")[len(numbers) :] if k in words]
    if not 3 <= len(numbers) <= 6 or not all(isinstance(n, int) for n in numbers):
        return None, None
    year, month, day, *rest = numbers
    hour, minute, second = (*rest, 0, 0, 0)[:3]
    zone = words.get("tz") or words.get("tzinfo")
    named = literal(zone.args[0]) if isinstance(zone, ast.Call) and zone.args else literal(zone)
    text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    zoned = named if isinstance(named, str) and named.upper() != "UTC" else None
    return (text if zoned else text + "Z"), zoned
