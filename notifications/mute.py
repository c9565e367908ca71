"""Mute times: when a route keeps quiet. By the wall clock of a place, summer time and all. Pure.

Source: the time intervals of Alertmanager, with ranges that may pass midnight (they belong to the day they begin on).
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["MuteTime", "Zone", "clock_minutes", "is_muted", "mute_end"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONTHS = tuple(m.lower() for m in calendar.month_abbr[1:])
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_RANGE = re.compile(r"\s*(\d{1,2}:\d{2})\s*-\s*(\d{1,2}:\d{2})\s*")
_FOR_EVER_DAYS = 366
_DAY_MINUTES = 24 * 60


def clock_minutes(text: str) -> int:
    """Return the minutes since midnight of ``HH:MM``, up to 24:00; raises ``ValueError`` for anything else."""
    found = _CLOCK.fullmatch(text.strip())
    if not found or int(found[2]) > 59 or int(found[1]) * 60 + int(found[2]) > _DAY_MINUTES:
        raise ValueError(f"{text!r} is no time of day; write it as 07:00 or 22:30, in quotes")
    return int(found[1]) * 60 + int(found[2])


def _time_range(value: Any) -> str:
    if not isinstance(value, str) or not (found := _RANGE.fullmatch(value)):
        raise ValueError(f"{value!r} is no range of times; write it as '22:00-07:00'")
    begin, end = clock_minutes(found[1]), clock_minutes(found[2])
    if begin in (end, _DAY_MINUTES):
        raise ValueError(f"{value!r} is empty; a whole day is '00:00-24:00'")
    return f"{found[1]}-{found[2]}"


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{value!r} is no time zone; write one such as Europe/Berlin or UTC") from None
    return value


Zone = Annotated[str, AfterValidator(_zone)]
"""The name of a time zone of the IANA database."""


def _number(word: str, names: tuple[str, ...], low: int, high: int, what: str) -> int:
    word = word.strip().lower()
    for i, name in enumerate(names):
        if len(word) >= 3 and (word == name or (word.isalpha() and word.startswith(name))):
            return i + low
    try:
        value = int(word)
    except ValueError:
        value = high + 1
    if not (low <= value <= high or (what == "day of the month" and -31 <= value <= -1)) or (
        names is _DAYS and word.lstrip("-").isdigit()
    ):
        known = ", ".join(names) if names else f"{low} to {high}, or -1 for the last"
        raise ValueError(f"{word!r} is no {what}; there are {known}")
    return value


def _span(text: str, names: tuple[str, ...], low: int, high: int, what: str) -> tuple[int, int]:
    text = str(text).strip()
    # A minus belongs to a number at the beginning; between two words it is a range.
    found = re.fullmatch(r"(-?\w+)\s*(?:-\s*(-?\w+))?", text)
    if not found:
        raise ValueError(f"{text!r} is no {what} or range of them")
    first = _number(found[1], names, low, high, what)
    last = _number(found[2], names, low, high, what) if found[2] else first
    return first, last


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


def _texts(value: Any) -> Any:
    listed = _listed(value)
    return [str(v) if isinstance(v, int) else v for v in listed] if isinstance(listed, list) else listed


def _spans(names: tuple[str, ...], low: int, high: int, what: str) -> AfterValidator:
    def check(value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            _span(one, names, low, high, what)
        return value

    return AfterValidator(check)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Weekdays = Annotated[Texts, _spans(_DAYS, 0, 6, "day of the week")]


class MuteTime(BaseModel):
    """When it is quiet: what is written must all hold; a list holds when one of it does. Nothing written is always."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    timezone: Zone = "UTC"
    times: Annotated[tuple[Annotated[str, BeforeValidator(_time_range)], ...], BeforeValidator(_listed)] = (
        Field(
            (),
            description="ranges of the day such as 22:00-07:00; one that passes midnight belongs to the day it begins",
        )
    )
    weekdays: Weekdays = ()
    days: Annotated[Texts, _spans((), 1, 31, "day of the month")] = ()
    months: Annotated[Texts, _spans(_MONTHS, 1, 12, "month")] = ()


def _is_day(mute: MuteTime, day: date) -> bool:
    return (
        _in(mute.weekdays, day.weekday(), _DAYS, 0, 6, "day of the week")
        and _in(mute.months, day.month, _MONTHS, 1, 12, "month")
        and _in_month(mute.days, day)
    )


def _in(spans: tuple[str, ...], value: int, names: tuple[str, ...], low: int, high: int, what: str) -> bool:
    if not spans:
        return True
    for text in spans:
        first, last = _span(text, names, low, high, what)
        # fri-mon goes round the end of the week.
        if first <= value <= last if first <= last else (value >= first or value <= last):
            return True
    return False


def _in_month(spans: tuple[str, ...], day: date) -> bool:
    if not spans:
        return True
    length = calendar.monthrange(day.year, day.month)[1]
    for text in spans:
        first, last = _span(text, (), 1, 31, "day of the month")
        first = first if first > 0 else length + 1 + first
        last = last if last > 0 else length + 1 + last
        if first <= day.day <= last:
            return True
    return False


def _ranges(mute: MuteTime) -> tuple[tuple[int, int], ...]:
    if not mute.times:
        return ((0, _DAY_MINUTES),)
    return tuple((clock_minutes(t.split("-")[0]), clock_minutes(t.split("-")[1])) for t in mute.times)


def is_muted(mute: MuteTime, at: datetime) -> bool:
    """Return whether ``at`` (aware) is inside, by what the clocks at ``mute.timezone`` show then."""
    local = at.astimezone(ZoneInfo(mute.timezone))
    minute, today = local.hour * 60 + local.minute, local.date()
    yesterday = today - timedelta(days=1)
    for begin, end in _ranges(mute):
        if begin < end:
            if begin <= minute < end and _is_day(mute, today):
                return True
        elif (minute >= begin and _is_day(mute, today)) or (minute < end and _is_day(mute, yesterday)):
            return True
    return False


def mute_end(mute: MuteTime, at: datetime) -> datetime | None:
    """Return the first moment after ``at`` that is not muted; None if there is none within a year."""
    for moment in _boundaries(mute, at):
        if moment > at and not is_muted(mute, moment):
            return moment
    return None


def _boundaries(mute: MuteTime, at: datetime) -> Iterator[datetime]:
    """Yield, in order, the moments around and after ``at`` at which being muted can change."""
    zone = ZoneInfo(mute.timezone)
    minutes = sorted({0, *(m % _DAY_MINUTES for pair in _ranges(mute) for m in pair)})
    first = at.astimezone(zone).date() - timedelta(days=1)
    for i in range(_FOR_EVER_DAYS + 2):
        day = first + timedelta(days=i)
        moments = set()
        for minute in minutes:
            wall = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone)
            # An hour that comes twice has two such moments; one that is left out has none, but its end is one.
            moments |= {wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)}
        moments |= set(_clock_changes(zone, day))
        yield from sorted(moments)


def _clock_changes(zone: ZoneInfo, day: date) -> Iterator[datetime]:
    """Yield the moment of a day at which the clocks are put forward or back, to the second."""
    begin = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
    end = begin + timedelta(hours=25)
    if begin.astimezone(zone).utcoffset() == end.astimezone(zone).utcoffset():
        return
    before = begin.astimezone(zone).utcoffset()
    while end - begin > timedelta(seconds=1):
        middle = begin + (end - begin) / 2
        middle = middle.replace(microsecond=0)
        if middle <= begin:
            break
        if middle.astimezone(zone).utcoffset() == before:
            begin = middle
        else:
            end = middle
    yield end
