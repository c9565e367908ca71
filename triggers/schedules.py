"""Schedules from Python, under the names Prefect users know: ``Cron("0 6 * * *", timezone="Europe/Berlin")``.

Each returns a model of ``schedule.py``, the same that the YAML forms parse into. ``slug`` is Prefect's word for ``name``,
``active`` the opposite of ``paused``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from ..duration import format_duration
from .schedule import Schedule, parse_schedule

__all__ = ["At", "Cron", "Interval", "RRule"]


def Cron(
    cron: str,
    /,
    timezone: str | None = None,
    day_or: bool = True,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    **more: Any,
) -> Schedule:
    """Return a schedule by cron expression. ``more``: other fields of a schedule, such as ``catch_up``.

    Raises:
        DefinitionError: the expression or another field is wrong.
    """
    return _made({"cron": cron, "day_or": day_or}, timezone, active, parameters, slug, more)


def Interval(
    interval: timedelta | float | str,
    /,
    anchor_date: datetime | None = None,
    timezone: str | None = None,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    **more: Any,
) -> Schedule:
    """Return a schedule of every so much time: a ``timedelta``, seconds, or text such as ``"15m"``.

    Raises:
        DefinitionError: a field is wrong.
    """
    if isinstance(interval, timedelta):
        interval = interval.total_seconds()
    written = interval if isinstance(interval, str) else format_duration(interval)
    return _made({"interval": written, "anchor": anchor_date}, timezone, active, parameters, slug, more)


def RRule(
    rrule: str,
    /,
    timezone: str | None = None,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    **more: Any,
) -> Schedule:
    """Return a schedule by recurrence rule or set (RFC 5545).

    Raises:
        DefinitionError: the rule or another field is wrong.
    """
    return _made({"rrule": rrule}, timezone, active, parameters, slug, more)


def At(
    *moments: datetime | str,
    timezone: str | None = None,
    active: bool = True,
    parameters: Mapping[str, Any] | None = None,
    slug: str | None = None,
    **more: Any,
) -> Schedule:
    """Return a schedule of single moments.

    Raises:
        DefinitionError: a field is wrong.
    """
    at: Sequence[datetime | str] = list(moments)
    return _made({"at": at}, timezone, active, parameters, slug, more)


def _made(
    kind: dict[str, Any],
    timezone: str | None,
    active: bool,
    parameters: Mapping[str, Any] | None,
    slug: str | None,
    more: Mapping[str, Any],
) -> Schedule:
    value: dict[str, Any] = {
        **kind,
        "name": slug,
        "parameters": dict(parameters or {}),
        "paused": not active,
        **more,
    }
    if timezone is not None:
        value["timezone"] = timezone
    return parse_schedule(value)
