"""Kinds of schedules as Prefect's client has them: ``CronSchedule(cron="0 6 * * *")``, and a deployment's use of one.

What is written down and kept is ``schedule.py``'s; ``written()`` gives that, and ``kind_of`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..duration import format_duration
from ..errors import DefinitionError, InvalidValueError
from ..vocabulary import JsonObject
from .schedule import DEFAULT_ANCHOR, AtSchedule, parse_schedule, schedule_kind
from .schedule import CronSchedule as KeptCron
from .schedule import IntervalSchedule as KeptInterval
from .schedule import RRuleSchedule as KeptRRule

if TYPE_CHECKING:
    from dateutil import rrule as dateutil_rrule

__all__ = [
    "SCHEDULE_TYPES", "CronSchedule", "DeploymentSchedule", "DeploymentScheduleCreate", "DeploymentScheduleUpdate",
    "IntervalSchedule", "NoSchedule", "RRuleSchedule", "construct_schedule", "is_schedule_type", "kind_of",
]  # fmt: skip

MAX_RRULE_CHARS = 6500


class _Kind(BaseModel):
    """What the kinds have in common; ``timezone`` is an IANA name, None is UTC.

    Raises:
        ValueError (pydantic's): it would be no schedule.
    """

    model_config = ConfigDict(extra="forbid", ser_json_timedelta="float")

    timezone: str | None = Field(None, examples=["Europe/Berlin"])

    @model_validator(mode="after")
    def _stands(self) -> Self:
        try:
            parse_schedule(self.written())
        except DefinitionError as exc:
            raise ValueError(str(exc)) from None
        return self

    def written(self) -> JsonObject:
        """Return it as it would stand in ``hark.yaml``."""
        return {"timezone": self.timezone} if self.timezone else {}


class CronSchedule(_Kind):
    """A cron expression; ``day_or``: whether day of month *or* day of week is enough."""

    cron: str
    day_or: bool = True

    def written(self) -> JsonObject:
        return {"cron": self.cron, **super().written(), **({} if self.day_or else {"day_or": False})}


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class IntervalSchedule(_Kind):
    """Every so much time, counted from ``anchor_date``, whose clock is meant where no time zone is named."""

    interval: timedelta = Field(gt=timedelta(0))
    anchor_date: Annotated[datetime, AfterValidator(_aware)] = Field(
        default_factory=partial(datetime.now, UTC)
    )

    @model_validator(mode="after")
    def _on_a_clock(self) -> Self:
        if self.timezone is None:
            self.timezone = getattr(self.anchor_date.tzinfo, "key", None) or "UTC"
        return self

    def written(self) -> JsonObject:
        text: JsonObject = {"interval": format_duration(self.interval.total_seconds())}
        return {**text, "anchor": self.anchor_date.isoformat(), **super().written()}


class RRuleSchedule(_Kind):
    """A recurrence rule of RFC 5545, or a set of them."""

    rrule: str = Field(max_length=MAX_RRULE_CHARS)
    timezone: str | None = "UTC"

    def written(self) -> JsonObject:
        rule = self.rrule
        return {"rrule": rule.removeprefix("RRULE:") if "\n" not in rule else rule, **super().written()}

    @classmethod
    def from_rrule(cls, rrule: dateutil_rrule.rrule | dateutil_rrule.rruleset) -> Self:
        """Return the schedule of a rule, or a set of them, of ``dateutil``."""
        several: Any = rrule
        if not hasattr(several, "_rrule") or not isinstance(several._rrule, list):
            start = several._dtstart
            zone = getattr(start.tzinfo, "key", None) or getattr(start.tzinfo, "name", None) or "UTC"
            return cls(rrule=str(rrule), timezone=zone)
        lines = "\n".join(str(one) for one in several._rrule)
        lines += "".join(f"\nEXRULE:{str(one).rpartition('RRULE:')[2]}" for one in several._exrule)
        for word, moments in (("RDATE", several._rdate), ("EXDATE", several._exdate)):
            if moments:
                lines += f"\n{word}:" + ",".join(moment.strftime("%Y%m%dT%H%M%SZ") for moment in moments)
        return cls(rrule=lines)

    def to_rrule(self) -> dateutil_rrule.rrule | dateutil_rrule.rruleset:
        """Return the rule of ``dateutil``."""
        from dateutil.rrule import rrulestr

        found: dateutil_rrule.rrule | dateutil_rrule.rruleset = rrulestr(self.rrule, cache=True)
        return found


class NoSchedule(BaseModel):
    """None: what has it does not run by itself."""

    model_config = ConfigDict(extra="forbid")

    def written(self) -> JsonObject:
        """Raise ``InvalidValueError``: it cannot be written down."""
        raise InvalidValueError("no schedule is written by leaving it out")


SCHEDULE_TYPES = CronSchedule | IntervalSchedule | RRuleSchedule | NoSchedule


def is_schedule_type(obj: object) -> bool:
    """Return whether something is a schedule of one of these kinds."""
    return isinstance(obj, SCHEDULE_TYPES)


def construct_schedule(
    interval: int | float | timedelta | None = None,
    anchor_date: datetime | str | None = None,
    cron: str | None = None,
    rrule: str | None = None,
    timezone: str | None = None,
) -> CronSchedule | IntervalSchedule | RRuleSchedule:
    """Return the schedule of the one kind that is given.

    Raises:
        ValueError: none or several are given, an anchor without an interval, or it makes no sense.
    """
    given = {"interval": interval, "cron": cron, "rrule": rrule}
    said = [word for word, value in given.items() if value is not None]
    if len(said) != 1:
        raise InvalidValueError(
            f"one of {', '.join(given)} makes a schedule; given: {', '.join(said) or 'none'}"
        )
    if anchor_date is not None and interval is None:
        raise InvalidValueError("`anchor_date` is what intervals are counted from: give `interval`, too")
    values: dict[str, Any] = {said[0]: given[said[0]]}
    if anchor_date is not None:
        values["anchor_date"] = anchor_date
    if timezone is not None:
        values["timezone"] = timezone
    if interval is not None:
        return IntervalSchedule.model_validate(values)
    return (CronSchedule if cron is not None else RRuleSchedule).model_validate(values)


def kind_of(written: Mapping[str, Any]) -> CronSchedule | IntervalSchedule | RRuleSchedule | AtSchedule:
    """Return what a schedule as in ``hark.yaml`` is in Prefect's words; one of moments (``at``) as it is here."""
    kept = parse_schedule(dict(written))
    if isinstance(kept, KeptCron):
        return CronSchedule(cron=kept.cron, timezone=written.get("timezone"), day_or=kept.day_or)
    if isinstance(kept, KeptInterval):
        return IntervalSchedule(
            interval=timedelta(seconds=kept.interval), timezone=kept.timezone, anchor_date=kept.anchor or DEFAULT_ANCHOR
        )  # fmt: skip
    if isinstance(kept, KeptRRule):
        return RRuleSchedule(rrule=kept.rrule, timezone=kept.timezone)
    return kept


class DeploymentSchedule(dict[str, Any]):
    """A schedule of a deployment: a mapping as in ``hark.yaml``, read by Prefect's names, too.

    Args:
        schedule: such a mapping, or a schedule of any kind.
        active: False: it fires nothing until it is resumed.
        parameters: laid over the deployment's for its runs.
        slug: its name in the deployment.
        max_scheduled_runs, replaces: do nothing here: no runs are made ahead of time. For flows written for Prefect.
    Raises:
        InvalidValueError: it makes no sense.
    """

    id: str | None = None
    deployment_id: str | None = None

    def __init__(
        self,
        schedule: object,
        active: bool | None = None,
        parameters: Mapping[str, Any] | None = None,
        slug: str | None = None,
        max_scheduled_runs: int | None = None,
        replaces: str | None = None,
    ) -> None:
        del max_scheduled_runs, replaces
        text = _text(schedule)
        if active is not None:
            text = {key: value for key, value in text.items() if key != "paused"}
            text |= {} if active else {"paused": True}
        if parameters:
            text["parameters"] = dict(parameters)
        if slug is not None:
            text["name"] = slug
        try:
            parse_schedule(text)
        except DefinitionError as exc:
            raise InvalidValueError(str(exc)) from exc
        super().__init__(text)

    @property
    def schedule(self) -> CronSchedule | IntervalSchedule | RRuleSchedule | AtSchedule:
        """When it fires."""
        return kind_of(self)

    @property
    def active(self) -> bool:
        return not self.get("paused", False)

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.get("parameters") or {})

    @property
    def slug(self) -> str | None:
        return self.get("name")


DeploymentScheduleCreate = DeploymentSchedule


class DeploymentScheduleUpdate(BaseModel):
    """What of a deployment's schedule is to be changed; None: nothing of it."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    schedule: Any = None
    active: bool | None = None
    parameters: dict[str, Any] | None = None
    slug: str | None = None
    max_scheduled_runs: int | None = None


def _text(given: object) -> dict[str, Any]:
    """Return a schedule as in ``hark.yaml``, whatever it was written as."""
    written = getattr(given, "written", None)
    if written is not None:
        return dict(written())
    dump = getattr(given, "model_dump", None)
    if dump is not None:
        return dict(dump(mode="json", exclude_defaults=True))
    if not isinstance(given, Mapping):
        raise InvalidValueError(
            f"{given!r} is no schedule",
            hint='write a mapping such as {"cron": "0 6 * * *", "timezone": "UTC"}',
        )
    if "schedule" in given:  # {"schedule": CronSchedule(…), "active": False}, as in Prefect
        return dict(DeploymentSchedule(**given))
    try:
        schedule_kind(given)
    except ValueError as exc:
        raise InvalidValueError(str(exc)) from exc
    text = dict(given)
    if isinstance(text.get("interval"), int | float | timedelta):
        seconds = text["interval"]
        text["interval"] = format_duration(
            seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
        )
    if "anchor_date" in text:
        text["anchor"] = text.pop("anchor_date")
    return text
