"""Cron expressions: five fields, or six with seconds first, read into sets and walked without search by trial.

``minute hour day-of-month month day-of-week``, each ``*``, a number, a name, a range, a list, or any of these with
``/step``. Days of the month also take ``L`` (last), ``L-3`` (third before the last), ``15W`` (weekday nearest to the
15th, in the same month) and ``LW`` (last weekday); days of the week also take ``fri#2`` (second Friday) and ``friL``
(last Friday); 0 and 7 are both Sunday. ``?`` is ``*`` in the two day fields. ``@hourly`` and its kin are understood.

When both day fields are restricted, a day needs to match *either*, as in every cron; a day field that begins
with ``*`` restricts nothing by itself, so ``*/2`` there is combined with *and*. ``day_or=False`` asks for both always.
"""

# ruff: noqa: DTZ001, DTZ901 (readings of a wall clock have no offset: that is the point)
from __future__ import annotations

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache

__all__ = ["Cron", "parse_cron"]

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONG = {
    "january": "jan", "february": "feb", "march": "mar", "april": "apr", "june": "jun", "july": "jul",
    "august": "aug", "september": "sep", "sept": "sep", "october": "oct", "november": "nov", "december": "dec",
    "sunday": "sun", "monday": "mon", "tuesday": "tue", "tues": "tue", "wednesday": "wed", "thursday": "thu",
    "thur": "thu", "thurs": "thu", "friday": "fri", "saturday": "sat",
}  # fmt: skip

# The longest wait of any day pattern is 40 years (29 February on a given weekday, across 2100).
_HORIZON_YEARS = 44
_MAX_CHARS = 1000


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    names_from: int = 0

    @property
    def span(self) -> str:
        words = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        return f"{self.low}-{self.high}{words}"


_SECOND = _Field("second", 0, 59)
_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day-of-month", 1, 31)
_MONTH = _Field("month", 1, 12, _MONTHS, 1)
_WEEKDAY = _Field("day-of-week", 0, 7, _DAYS, 0)


@dataclass(frozen=True, slots=True)
class _Days:
    """What the two day fields ask for; weekdays count from 0, Sunday."""

    days: frozenset[int] = frozenset()
    before_last: frozenset[int] = frozenset()
    nearest: frozenset[int] = frozenset()
    last_workday: bool = False
    weekdays: frozenset[int] = frozenset()
    nth: frozenset[tuple[int, int]] = frozenset()
    last: frozenset[int] = frozenset()
    need_both: bool = True


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. Sorted tuples of what each field allows; ``is_fixed``: see ``wall.py``."""

    text: str
    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    day_rule: _Days
    is_fixed: bool

    def walls_after(self, after: datetime) -> Iterator[datetime]:
        """Give the matching readings later than ``after`` (naive), in order."""
        start = after.replace(microsecond=0)
        if start >= datetime.max.replace(microsecond=0):
            return
        start += timedelta(seconds=1)
        year, month, first_day = start.year, start.month, start.day
        clock = (start.hour, start.minute, start.second)
        idle_months = 0
        while year <= 9999 and idle_months < 12 * _HORIZON_YEARS:
            idle_months += 1
            if month in self.months:
                for day in _matching_days(self.day_rule, year, month):
                    if day < first_day:
                        continue
                    for hour, minute, second in self._times(clock if day == first_day else (0, 0, 0)):
                        yield datetime(year, month, day, hour, minute, second)
                        idle_months = 0
            first_day, clock = 1, (0, 0, 0)
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)

    def _times(self, start: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
        hour0, minute0, second0 = start
        for hour in self.hours[bisect_left(self.hours, hour0) :]:
            if hour > hour0:
                minute0 = second0 = 0
            for minute in self.minutes[bisect_left(self.minutes, minute0) :]:
                if hour > hour0 or minute > minute0:
                    second0 = 0
                for second in self.seconds[bisect_left(self.seconds, second0) :]:
                    yield hour, minute, second


@lru_cache(maxsize=8192)
def _matching_days(rule: _Days, year: int, month: int) -> tuple[int, ...]:
    first_weekday, length = monthrange(year, month)  # Monday is 0
    by_date = {day for day in rule.days if day <= length}
    by_date |= {length - n for n in rule.before_last if n < length}
    by_date |= {_nearest_workday(day, first_weekday, length) for day in rule.nearest if day <= length}
    if rule.last_workday:
        by_date.add(_nearest_workday(length, first_weekday, length))
    by_weekday = set()
    for day in range(1, length + 1):
        weekday = (first_weekday + day) % 7  # Sunday is 0
        if (
            weekday in rule.weekdays
            or (weekday, (day + 6) // 7) in rule.nth
            or (weekday in rule.last and day + 7 > length)
        ):
            by_weekday.add(day)
    return tuple(sorted(by_date & by_weekday if rule.need_both else by_date | by_weekday))


def _nearest_workday(day: int, first_weekday: int, length: int) -> int:
    """Return the Monday-to-Friday nearest to ``day``, never leaving the month (Quartz's ``W``)."""
    weekday = (first_weekday + day - 1) % 7  # Monday is 0
    if weekday == 5:
        return day - 1 if day > 1 else day + 2
    if weekday == 6:
        return day + 1 if day < length else day - 2
    return day


@lru_cache(maxsize=4096)
def parse_cron(text: str, *, day_or: bool = True) -> Cron:
    """Return the expression ``text`` stands for.

    Raises:
        ValueError: it is none, or can never fire; the message names the field and says what it takes.
    """
    if len(text) > _MAX_CHARS:
        raise ValueError(f"a cron expression of {len(text)} characters is too long (at most {_MAX_CHARS})")
    source = text.strip().lower()
    if source.startswith("@"):
        if source == "@reboot":
            raise ValueError("'@reboot' is not a time; let a rule start the run on 'worker.started' instead")
        if source not in _MACROS:
            near = get_close_matches(source, _MACROS, n=1)
            raise ValueError(
                f"{text!r} is no cron shorthand"
                + (f"; did you mean {near[0]!r}?" if near else f" ({', '.join(_MACROS)})")
            )
        source = _MACROS[source]
    fields = source.split()
    if len(fields) not in (5, 6):
        raise ValueError(_wrong_count(text, fields))
    if len(fields) == 5:
        fields = ["0", *fields]
    second, minute, hour, day, month, weekday = fields
    days = _month_days(day)
    weekdays, nth, last = _week_days(weekday)
    minutes, hours = _numbers(_MINUTE, minute), _numbers(_HOUR, hour)
    runs = minute.startswith("*") or hour.startswith("*") or len(minutes) == 60 or len(hours) == 24
    cron = Cron(
        text=text.strip(),
        seconds=_numbers(_SECOND, second),
        minutes=minutes,
        hours=hours,
        months=_numbers(_MONTH, month),
        day_rule=_Days(
            days=days.days,
            before_last=days.before_last,
            nearest=days.nearest,
            last_workday=days.last_workday,
            weekdays=weekdays,
            nth=nth,
            last=last,
            need_both=not day_or or day[0] in "*?" or weekday[0] in "*?",
        ),
        is_fixed=not runs,
    )
    if next(cron.walls_after(datetime(2000, 1, 1)), None) is None:
        raise ValueError(f"{text!r} never fires: no month it names has such a day")
    return cron


def _wrong_count(text: str, fields: list[str]) -> str:
    takes = "cron takes 5 (minute hour day-of-month month day-of-week), or 6 with seconds first"
    count = len(fields)
    shown = f"{text!r} has {count} field{'s' if count != 1 else ''}; {takes}"
    if count == 4:
        return f"{shown}; did you mean {' '.join([*fields, '*'])!r}?"
    if count == 7:
        return f"{shown}; there is no field for the year: use `start` and `end`"
    return shown


def _number(field: _Field, word: str) -> int:
    """Return one number or name of a field."""
    if word in field.names or word in _LONG:
        short = _LONG.get(word, word)
        if short in field.names:
            return field.names.index(short) + field.names_from
    if word.isascii() and word.isdigit() and len(word) <= 4:
        value = int(word)
        if field.low <= value <= field.high:
            return value
        extra = "; midnight is hour 0" if field is _HOUR and value == 24 else ""
        extra = "; minute 0 of the next hour" if field is _MINUTE and value == 60 else extra
        raise ValueError(f"cron: {field.name} {value} is outside {field.low}-{field.high}{extra}")
    if word.startswith("h") and field not in (_MONTH, _WEEKDAY):
        raise ValueError(f"cron: {word!r} in {field.name}: spreading by hash is what `jitter` is for")
    near = get_close_matches(word, field.names, n=1, cutoff=0.5)
    tail = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"cron: {word!r} is not a {field.name} ({field.span}){tail}")


def _numbers(field: _Field, text: str) -> tuple[int, ...]:
    """Return what a field without day words allows, sorted."""
    found: set[int] = set()
    for term in text.split(","):
        found |= _term(field, term)
    return tuple(sorted(found))


def _term(field: _Field, term: str) -> set[int]:
    base, slash, step_text = term.partition("/")
    if not base:
        raise ValueError(
            f"cron: {field.name} has an empty part in {term!r}" if term else f"cron: {field.name} is empty"
        )
    step = 1
    if slash:
        if not (step_text.isascii() and step_text.isdigit()) or int(step_text[:6]) == 0:
            raise ValueError(f"cron: the step {step_text!r} in {field.name} {term!r} is not a number from 1")
        step = int(step_text[:6])
        if step > field.high - field.low:
            raise ValueError(
                f"cron: a step of {step} in {field.name} ({field.low}-{field.high}) fires only once per round;"
                f" for 'every so long' use `interval`"
            )
    top = 6 if field is _WEEKDAY else field.high
    if base == "*":
        values = list(range(field.low, top + 1))
    elif "-" in base:
        first_text, _, last_text = base.partition("-")
        first, last = _number(field, first_text), _number(field, last_text)
        if first <= last:
            values = list(range(first, last + 1))
        elif field is _DAY:
            raise ValueError(
                f"cron: {field.name} {base!r} runs backwards; write '{first}-31,1-{last}' if that is meant"
            )
        else:  # fri-mon, 22-5: over the end and on from the start
            values = [*range(first, top + 1), *range(field.low, last + 1)]
    else:
        first = _number(field, base)
        values = list(range(first, top + 1)) if slash else [first]
    chosen = values[::step]
    return {value % 7 for value in chosen} if field is _WEEKDAY else set(chosen)


def _month_days(text: str) -> _Days:
    days: set[int] = set()
    before_last: set[int] = set()
    nearest: set[int] = set()
    last_workday = False
    for term in text.split(","):
        if term == "?":
            days |= set(range(1, 32))
        elif term in ("lw", "wl"):
            last_workday = True
        elif term == "l":
            before_last.add(0)
        elif m := re.fullmatch(r"l-(\d{1,2})", term):
            if not 1 <= int(m[1]) <= 30:
                raise ValueError(
                    f"cron: day-of-month {term.upper()!r}: L-1 to L-30 count back from the last day"
                )
            before_last.add(int(m[1]))
        elif m := re.fullmatch(r"(\d{1,2})w|w(\d{1,2})", term):
            nearest.add(_number(_DAY, m[1] or m[2]))
        elif "w" in term or "l" in term or "#" in term:
            raise ValueError(
                f"cron: {term.upper()!r} is not a day-of-month (1-31, L, L-3, 15W, LW; '#' belongs in day-of-week)"
            )
        else:
            days |= _term(_DAY, term)
    return _Days(frozenset(days), frozenset(before_last), frozenset(nearest), last_workday)


def _week_days(text: str) -> tuple[frozenset[int], frozenset[tuple[int, int]], frozenset[int]]:
    weekdays: set[int] = set()
    nth: set[tuple[int, int]] = set()
    last: set[int] = set()
    for written in text.split(","):
        # Some write the last Friday `L5`.
        term = f"{written[1:]}l" if re.fullmatch(r"l(?:[0-7]|[a-z]{3})", written) else written
        name, hash_, count = term.partition("#")
        if term == "?":
            weekdays |= set(range(7))
        elif hash_:
            if count == "l":
                last.add(_number(_WEEKDAY, name) % 7)
            elif count.isascii() and count.isdigit() and 1 <= int(count[:4]) <= 5:
                nth.add((_number(_WEEKDAY, name) % 7, int(count)))
            else:
                raise ValueError(
                    f"cron: {term!r} in day-of-week: a month has 1 to 5 of a weekday, as in 'fri#2'"
                )
        elif term == "l":
            raise ValueError(
                "cron: 'L' alone in day-of-week is unclear; write 'sat', or 'satL' for the last Saturday"
            )
        elif term.endswith("l") and (term[:-1].isdigit() or term[:-1] in _DAYS):
            last.add(_number(_WEEKDAY, term[:-1]) % 7)
        else:
            weekdays |= _term(_WEEKDAY, term)
    return frozenset(weekdays), frozenset(nth), frozenset(last)
