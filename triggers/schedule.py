"""Schedules: when a deployment runs by itself, and the arithmetic of it. Everything here is pure.

Four kinds, told apart by the key that is present::

    {cron: "0 6 * * mon-fri", timezone: Europe/Berlin}     cron.py; 5 fields, or 6 with seconds first
    {interval: 15m, anchor: 2026-01-01T00:00:00Z}          real time that passes; days are those of the timezone's clock
    {rrule: "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17"}           rrule.py; RFC 5545, sets with exceptions too
    {at: "2026-12-24T18:00:00", timezone: Europe/Berlin}   once, or a list of moments

A **slot** is a moment a schedule names; it identifies the run made for it, whatever the jitter. Slots are aware, in UTC,
and strictly rise. What clocks that are moved do to ``cron`` and ``rrule`` is stated in ``wall.py``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice, pairwise
from typing import Annotated, Any, Literal, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ..duration import Duration, format_duration, parse_duration
from ..errors import DefinitionError
from ..vocabulary import JsonObject, derived_id
from .calendar import Span, parse_ics, parse_span
from .cron import parse_cron
from .rrule import DEFAULT_DTSTART, RRuleSet, parse_rrule
from .wall import Walls, instants_after, to_instant, zone_named

__all__ = [
    "AtSchedule", "CatchUpWithin", "CronSchedule", "IntervalSchedule", "Overlap", "RRuleSchedule", "Schedule",
    "StoredSchedule", "due_at", "fires_after", "fires_between", "jitter_of", "next_fire", "parse_schedule",
    "resolve_calendars", "schedule_kind", "slot_run_id", "slots_after", "timing_version",
]  # fmt: skip

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
DEFAULT_ANCHOR = datetime(2020, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_KINDS = ("cron", "interval", "rrule", "at")
# A calendar that leaves out every slot must not be walked for ever.
_MAX_EXCLUDED = 10_000
# So many slots in one excluded time are passed over one by one; then its end is where the search goes on, so that
# a schedule of every second comes out of its holidays.
_MOST_WALKED = 32
_MOST_EXCLUSIONS = 20_000
# Years for which repeating events of a calendar are written out; applying again moves the horizon.
CALENDAR_YEARS = 10

Overlap: TypeAlias = Literal["skip", "queue", "allow", "cancel-running"]


class CatchUpWithin(BaseModel):
    """Catch up the missed slots that are not older than this."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    within: Duration


def _check_catch_up(value: object) -> object:
    words = ("none", "latest", "all")
    if isinstance(value, str) and value not in words:
        near = get_close_matches(value, words, n=1)
        tail = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"catch_up is none, latest, all or {{within: 1h}}, got {value!r}{tail}")
    if isinstance(value, dict) and set(value) == {"within"}:
        parse_duration(value["within"])  # its message, not that of the union of all forms
        return value
    if not isinstance(value, str | CatchUpWithin):
        raise ValueError(f"catch_up is none, latest, all or {{within: 1h}}, got {value!r}")
    return value


CatchUp: TypeAlias = Annotated[
    Literal["none", "latest", "all"] | CatchUpWithin, BeforeValidator(_check_catch_up)
]


def _read_moment(value: object) -> object:
    """Let a plain date mean its midnight, and refuse numbers, which pydantic would take for Unix times."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001 - read in the schedule's zone
    if isinstance(value, int | float) or (isinstance(value, str) and value.strip().isdigit()):
        raise ValueError(f"{value!r} is not a moment; write one such as 2026-01-31T09:00:00Z")
    return value


Moment: TypeAlias = Annotated[datetime, BeforeValidator(_read_moment)]
"""A moment as people write it: with an offset, or without, and then read in the schedule's time zone."""


def _read_exclusion(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()
    if isinstance(value, str):
        span = parse_span(value)
        if span is not None:
            return span
        if not value.endswith(".ics"):
            raise ValueError(
                f"{value!r} is neither a date (2026-12-25), nor a range (2026-12-24/2027-01-01),"
                " nor an iCalendar file (holidays.ics)"
            )
    return value


Exclusion: TypeAlias = Annotated[Span | str, BeforeValidator(_read_exclusion)]


class _Schedule(BaseModel):
    """What every kind of schedule has.

    Attributes:
        name: how it is called in its deployment; without one its place in the list, from 0.
        timezone: IANA name of the clock that ``cron``, ``rrule`` and moments without an offset are read on.
        catch_up: what becomes of slots that came while no scheduler ran: ``latest`` (the default) runs the newest of
            them, ``none`` drops them, ``all`` runs each, oldest first, ``{within: 1h}`` those of the last hour. What is
            left out is told in one ``schedule.skipped``.
        overlap: what happens when a run of the deployment is still active at the next slot: ``allow`` (the default, as
            cron and Prefect do), ``skip`` the slot, ``queue`` behind it, or ``cancel-running`` first.
        jitter: each slot is run up to this much later, by a share that belongs to the slot and never changes.
        start, end: no slot before ``start`` or after ``end``.
        exclude: days, ranges of days and iCalendar files on which there are no slots.
        parameters: laid over the deployment's own for runs of this schedule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str | None = Field(None, pattern=f"^{NAME_PATTERN}$")
    description: str = ""
    timezone: Annotated[str, AfterValidator(lambda name: zone_named(name).key)] = "UTC"
    catch_up: CatchUp = "latest"
    overlap: Overlap = "allow"
    jitter: Duration | None = None
    start: Moment | None = None
    end: Moment | None = None
    exclude: tuple[Exclusion, ...] = Field((), max_length=_MOST_EXCLUSIONS)
    parameters: JsonObject = Field(default_factory=dict)
    paused: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Any:
        try:
            return self._checked()
        except OverflowError as exc:
            raise ValueError("a moment of it lies beyond the years 1 to 9999") from exc

    def _checked(self) -> Any:
        start, end = _bound(self, "start"), _bound(self, "end")
        if start is not None and end is not None and end < start:
            raise ValueError(f"`end` ({self.end}) is before `start` ({self.start})")
        self._check()
        if self.jitter:
            # Slots run in their order, so a jitter longer than their distance would only delay them all.
            slots = list(islice(_slots(self, start or DEFAULT_ANCHOR), 50))
            gaps = [(b - a).total_seconds() for a, b in pairwise(slots)]
            if gaps and self.jitter > min(gaps):
                raise ValueError(
                    f"jitter of {format_duration(self.jitter)} is longer than the time between two slots"
                    f" ({format_duration(min(gaps))})"
                )
        return self

    def _check(self) -> None:
        """Raise ``ValueError`` if the kind's own field is wrong."""


class CronSchedule(_Schedule):
    """A cron expression; ``day_or=False`` wants day of month *and* day of week."""

    cron: str
    day_or: bool = True

    def _check(self) -> None:
        parse_cron(self.cron, day_or=self.day_or)


class IntervalSchedule(_Schedule):
    """Every so much time, counted from ``anchor`` (2020-01-01T00:00Z if not given) in both directions.

    Real time, but for the whole days of an interval of a day or more: those are days of the clock of ``timezone``, so that
    what runs at nine runs at nine when clocks have been moved.
    """

    interval: Duration
    anchor: Moment | None = None

    def _check(self) -> None:
        if self.interval < 1:
            raise ValueError(f"an interval is at least 1s, got {format_duration(self.interval)}")
        if self.anchor is not None:
            _moment(self.anchor, self.timezone)


class RRuleSchedule(_Schedule):
    """A recurrence rule or set of RFC 5545."""

    rrule: str

    def _check(self) -> None:
        _rrule_of(self)


class AtSchedule(_Schedule):
    """One moment, or several."""

    at: Annotated[
        tuple[Moment, ...],
        BeforeValidator(lambda v: v if isinstance(v, list | tuple) else [v]),
        Field(min_length=1, max_length=1000),
    ]

    def _check(self) -> None:
        for moment in self.at:
            _moment(moment, self.timezone)


def schedule_kind(value: object) -> str:
    """Return which of ``cron, interval, rrule, at`` a schedule (or what was written for one) is.

    Raises:
        ValueError: none of them, or more than one.
    """
    if isinstance(value, _Schedule):
        return next(kind for kind in _KINDS if kind in type(value).model_fields)
    if not isinstance(value, dict):
        raise ValueError(f"a schedule is a mapping such as {{cron: '0 6 * * *'}}, got {value!r}")
    present = [kind for kind in _KINDS if value.get(kind) is not None]
    if len(present) == 1:
        return present[0]
    if present:
        raise ValueError(f"a schedule has one of {', '.join(present)}; write two schedules instead")
    near = [kind for key in value for kind in get_close_matches(str(key), _KINDS, n=1, cutoff=0.7)]
    tail = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"a schedule has one of cron, interval, rrule, at; this has none{tail}")


def _check_kind(value: object) -> object:
    schedule_kind(value)
    return value


Schedule: TypeAlias = Annotated[
    Annotated[CronSchedule, Tag("cron")]
    | Annotated[IntervalSchedule, Tag("interval")]
    | Annotated[RRuleSchedule, Tag("rrule")]
    | Annotated[AtSchedule, Tag("at")],
    Discriminator(schedule_kind),
    BeforeValidator(_check_kind),
]
"""Any schedule, as a pydantic field; ``parse_schedule`` reads one."""

_MODELS = (CronSchedule, IntervalSchedule, RRuleSchedule, AtSchedule)
_ADAPTER: TypeAdapter[CronSchedule | IntervalSchedule | RRuleSchedule | AtSchedule] = TypeAdapter(Schedule)


def parse_schedule(value: object) -> Schedule:
    """Return the schedule written in ``value``, a mapping as in ``hark.yaml``.

    Raises:
        DefinitionError: it is wrong; the message says what and how it is written.
    """
    try:
        return _ADAPTER.validate_python(value)
    except ValidationError as exc:
        first = exc.errors()[0]
        path = first["loc"][1:] if first["loc"] and first["loc"][0] in _KINDS else first["loc"]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = {name for model in _MODELS for name in model.model_fields}
            near = get_close_matches(str(path[-1]), sorted(known), n=1)
            message = "there is no such key" + (f"; did you mean {near[0]!r}?" if near else "")
        where = ".".join(str(part) for part in path)
        raise DefinitionError(f"schedule{f' ({where})' if where else ''}: {message}") from exc


class StoredSchedule(BaseModel):
    """A schedule of a deployment as it stands in the bucket ``schedules`` under ``key``.

    ``since``: slots up to this moment are none of ours; without it, the moment the definition was stored counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    deployment: str = Field(pattern=f"^{NAME_PATTERN}$")
    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    schedule: Schedule
    paused: bool = False
    since: datetime | None = None

    @model_validator(mode="after")
    def _calendars_are_read(self) -> StoredSchedule:
        files = [item for item in self.schedule.exclude if isinstance(item, str)]
        if files:
            raise ValueError(f"calendar {files[0]!r} was not read; call resolve_calendars before storing")
        return self

    @property
    def key(self) -> str:
        return f"{self.deployment}/{self.name}"

    @property
    def is_paused(self) -> bool:
        return self.paused or self.schedule.paused

    @classmethod
    def of(cls, deployment: str, index: int, schedule: Schedule) -> StoredSchedule:
        """Return the entry of a deployment's ``index``-th schedule (from 0), under its name or its index."""
        return cls(
            deployment=deployment, name=schedule.name or str(index), schedule=schedule, paused=schedule.paused
        )


# --- the arithmetic -------------------------------------------------------------------------------------


def fires_after(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """Give the slots later than ``after`` in order, perhaps without end. Paused or not makes no difference."""
    after = _from_start(schedule, after)
    begins_of, ends_of = _closed(schedule.exclude, schedule.timezone) if schedule.exclude else ((), ())
    passed_over = 0
    behind: datetime | None = after
    while behind is not None:
        after, behind, of_span = behind, None, 0
        for slot in _slots(schedule, after):
            place = bisect_right(begins_of, slot) - 1
            if place < 0 or slot >= ends_of[place]:
                passed_over = of_span = 0
                yield slot
                continue
            passed_over, of_span = passed_over + 1, of_span + 1
            if passed_over > _MAX_EXCLUDED:
                return
            if of_span > _MOST_WALKED:
                behind = ends_of[place] - timedelta(microseconds=1)
                break


def slots_after(schedule: Schedule, after: datetime) -> Iterator[tuple[datetime, Span | None]]:
    """Give every slot later than ``after`` in order, each with the span that excludes it, or None: it fires."""
    after = _from_start(schedule, after)
    spans = [span for span in schedule.exclude if isinstance(span, Span)]
    bounds = list(zip(_excluded(schedule), spans, strict=True)) if spans else []
    for slot in _slots(schedule, after):
        yield slot, next((span for (begin, end), span in bounds if begin <= slot < end), None)


def next_fire(schedule: Schedule, after: datetime) -> datetime | None:
    """Return the first slot later than ``after`` (aware), or None when there is none any more."""
    return next(fires_after(schedule, after), None)


def fires_between(schedule: Schedule, start: datetime, end: datetime, limit: int = 1000) -> list[datetime]:
    """Return the slots with ``start`` < slot <= ``end``, oldest first, at most ``limit``."""
    found: list[datetime] = []
    for slot in fires_after(schedule, start):
        if slot > end or len(found) >= limit:
            break
        found.append(slot)
    return found


def jitter_of(key: str, slot: datetime, jitter_s: float) -> timedelta:
    """Return by how much ``slot`` of the schedule ``key`` is delayed: 0 <= delay < ``jitter_s``, always the same."""
    digest = hashlib.blake2b(f"{key}@{slot.astimezone(UTC).isoformat()}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest) / 2**64
    return timedelta(milliseconds=int(jitter_s * 1000 * share))


def due_at(schedule: Schedule, slot: datetime, *, key: str) -> datetime:
    """Return when ``slot`` is to be run: itself, or later by its jitter."""
    return slot + jitter_of(key, slot, schedule.jitter) if schedule.jitter else slot


def slot_run_id(deployment: str, name: str, slot: datetime) -> str:
    """Return the id of the run a slot asks for: the same for ever, so that asking twice is asking once."""
    return derived_id("flow-run", "schedule", deployment, name, slot.astimezone(UTC).isoformat())


def timing_version(schedule: Schedule) -> str:
    """Return a hash of what decides the slots; parameters, policies and names may change without changing it."""
    fields = {"cron", "day_or", "interval", "anchor", "rrule", "at", "timezone", "start", "end", "exclude"}
    text = schedule.model_dump_json(include=fields, exclude_defaults=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def resolve_calendars(schedule: Schedule, read: Callable[[str], str], *, now: datetime) -> Schedule:
    """Return the schedule with its calendar files read, so that it needs no files any more.

    Args:
        read: gives the text of a file named in ``exclude``.
        now: repeating events are written out up to ten years after this.
    Raises:
        DefinitionError: a file cannot be read or is no calendar; the message names it.
    """
    if not any(isinstance(item, str) for item in schedule.exclude):
        return schedule
    spans: list[Span] = []
    for item in schedule.exclude:
        if isinstance(item, Span):
            spans.append(item)
            continue
        try:
            found = parse_ics(read(item), until=now + timedelta(days=366 * CALENDAR_YEARS))
        except OSError as exc:
            raise DefinitionError(
                f"calendar {item!r} cannot be read: {exc.strerror or exc}; its path counts from the configuration's folder"
            ) from exc
        except ValueError as exc:
            raise DefinitionError(f"calendar {item!r}: {exc}") from exc
        # What is long past needs no room in the bucket.
        spans += [
            s for s in found if s.end.replace(tzinfo=None) > now.replace(tzinfo=None) - timedelta(days=400)
        ]
    return schedule.model_copy(update={"exclude": tuple(spans)})


def _moment(moment: datetime, timezone: str) -> datetime:
    if moment.tzinfo is not None:
        return moment.astimezone(UTC)
    return to_instant(moment.replace(fold=0), zone_named(timezone))


def _from_start(schedule: _Schedule, after: datetime) -> datetime:
    begins = _bound(schedule, "start")
    return after if begins is None or begins <= after else begins - timedelta(microseconds=1)


def _bound(schedule: _Schedule, which: Literal["start", "end"]) -> datetime | None:
    moment = schedule.start if which == "start" else schedule.end
    return None if moment is None else _moment(moment, schedule.timezone)


@lru_cache(maxsize=4096)
def _spans(spans: tuple[Exclusion, ...], timezone: str) -> tuple[tuple[datetime, datetime], ...]:
    return tuple(span.instants(timezone) for span in spans if isinstance(span, Span))


@lru_cache(maxsize=4096)
def _closed(spans: tuple[Exclusion, ...], timezone: str) -> tuple[tuple[datetime, ...], tuple[datetime, ...]]:
    """Return where the excluded time begins and where it ends, in order, what overlaps made one."""
    joined: list[list[datetime]] = []
    for begin, end in sorted(_spans(spans, timezone)):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return tuple(begin for begin, _ in joined), tuple(end for _, end in joined)


def _excluded(schedule: _Schedule) -> tuple[tuple[datetime, datetime], ...]:
    return _spans(schedule.exclude, schedule.timezone) if schedule.exclude else ()


def _rrule_of(schedule: RRuleSchedule) -> RRuleSet:
    start = _bound(schedule, "start")
    local = (
        start.astimezone(zone_named(schedule.timezone)).replace(tzinfo=None, fold=0)
        if start
        else DEFAULT_DTSTART
    )
    return parse_rrule(schedule.rrule, zone=schedule.timezone, dtstart=local.replace(microsecond=0))


def _slots(schedule: _Schedule, after: datetime) -> Iterator[datetime]:
    """Give the slots of the kind itself, up to ``end``."""
    end = _bound(schedule, "end")
    after = after.astimezone(UTC)
    for slot in _unbounded(schedule, after):
        if end is not None and slot > end:
            return
        yield slot


def _unbounded(schedule: _Schedule, after: datetime) -> Iterator[datetime]:
    if isinstance(schedule, IntervalSchedule):
        anchor = _moment(schedule.anchor, schedule.timezone) if schedule.anchor else DEFAULT_ANCHOR
        step = timedelta(milliseconds=round(schedule.interval * 1000))
        clock = zone_named(schedule.timezone)
        return _every(anchor, step, after) if step < _DAY else _every_days(anchor, step, after, clock)
    if isinstance(schedule, AtSchedule):
        moments = sorted({_moment(moment, schedule.timezone) for moment in schedule.at})
        return (moment for moment in moments if moment > after)
    walls: Walls
    zone: ZoneInfo
    if isinstance(schedule, CronSchedule):
        walls, zone = parse_cron(schedule.cron, day_or=schedule.day_or), zone_named(schedule.timezone)
    elif isinstance(schedule, RRuleSchedule):
        rules = _rrule_of(schedule)
        walls, zone = rules, zone_named(rules.timezone or schedule.timezone)
    else:
        raise TypeError(f"{type(schedule).__name__} is not a kind of schedule")
    return instants_after(walls, zone, after)


def _every_days(anchor: datetime, step: timedelta, after: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """Give slots whose distance is whole days of the clock on the wall, and what is left of the step in real time."""
    local = anchor.astimezone(zone).replace(tzinfo=None, fold=0)
    days, rest = timedelta(step.days), step - timedelta(step.days)
    # What clocks are moved by is far less than two days, so that the first slot is among those that are looked at.
    count = (after - anchor) // step - 2
    while True:
        try:
            slot = to_instant(local + days * count, zone) + rest * count
        except OverflowError:
            return
        if slot > after:
            yield slot
        count += 1


def _every(anchor: datetime, step: timedelta, after: datetime) -> Iterator[datetime]:
    count = (after - anchor) // step + 1
    while True:
        try:
            slot = anchor + step * count
        except OverflowError:
            return
        yield slot
        count += 1
