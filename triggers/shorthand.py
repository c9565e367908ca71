"""``Cron``, ``Interval``, ``RRule``: schedules of deployments as Prefect's flows write them, to be given as ``schedule=``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ..duration import format_duration
from ..vocabulary import JsonObject
from .schedule import parse_schedule

__all__ = ["Cron", "Interval", "RRule", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A schedule: exactly one of ``interval``, ``cron`` and ``rrule``.

    Attributes:
        anchor_date: what intervals are counted from; default: the moment it is made.
        day_or: of cron: whether day of month *or* day of week is enough.
        active: False: it fires nothing until it is resumed.
        slug: its name in the deployment.
    Raises:
        ValueError: several kinds at once, or one that makes no sense.
    """

    interval: timedelta | None = None
    cron: str | None = None
    rrule: str | None = None
    timezone: str | None = None
    anchor_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    day_or: bool = True
    active: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)
    slug: str | None = None

    def __post_init__(self) -> None:
        said = [name for name in ("interval", "cron", "rrule") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"a schedule is of one kind, and this is given {' and '.join(said)}")
        if said:
            try:
                parse_schedule(self.written())
            except Exception as exc:
                raise ValueError(str(exc)) from exc

    def written(self) -> JsonObject:
        """Return it as it would stand in ``hark.yaml``."""
        text: JsonObject = {}
        if self.interval is not None:
            text |= {"interval": format_duration(self.interval.total_seconds()), "anchor": self._anchor()}
        elif self.cron is not None:
            text |= {"cron": self.cron} | ({} if self.day_or else {"day_or": False})
        elif self.rrule is not None:
            text["rrule"] = self.rrule.removeprefix("RRULE:")
        timezone = self.timezone
        if timezone is None and self.interval is not None:
            timezone = getattr(self.anchor_date.tzinfo, "key", None)  # of the clock the anchor was read on
        if timezone is not None:
            text["timezone"] = timezone
        if not self.active:
            text["paused"] = True
        if self.parameters:
            text["parameters"] = dict(self.parameters)
        if self.slug is not None:
            text["name"] = self.slug
        return text

    def _anchor(self) -> str:
        return self.anchor_date.isoformat()

    def model_dump(self, **_: Any) -> JsonObject:
        """Return ``written()``: how schedules of whatever kind are read by ``flow.to_deployment``."""
        return self.written()


def Cron(
    cron: str,
    /,
    timezone: str | None = None,
    day_or: bool = True,
    active: bool = True,
    parameters: dict[str, Any] | None = None,
    slug: str | None = None,
) -> Schedule:
    """Return a schedule of a cron expression. Raises ``ValueError`` if it is none."""
    return Schedule(
        cron=cron, timezone=timezone, day_or=day_or, active=active, parameters=parameters or {}, slug=slug
    )


def Interval(
    interval: timedelta | float | int,
    /,
    anchor_date: datetime | None = None,
    timezone: str | None = None,
    active: bool = True,
    parameters: dict[str, Any] | None = None,
    slug: str | None = None,
) -> Schedule:
    """Return a schedule of so many seconds, or of a ``timedelta``, counted from ``anchor_date``."""
    step = interval if isinstance(interval, timedelta) else timedelta(seconds=interval)
    return Schedule(
        interval=step, anchor_date=anchor_date or datetime.now(UTC), timezone=timezone, active=active,
        parameters=parameters or {}, slug=slug,
    )  # fmt: skip


def RRule(
    rrule: str,
    /,
    timezone: str | None = None,
    active: bool = True,
    parameters: dict[str, Any] | None = None,
    slug: str | None = None,
) -> Schedule:
    """Return a schedule of a recurrence rule of RFC 5545. Raises ``ValueError`` if it is none."""
    return Schedule(rrule=rrule, timezone=timezone, active=active, parameters=parameters or {}, slug=slug)
