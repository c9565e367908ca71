"""Recurrence rules of calendars (RFC 5545), sets with exceptions included, as readings of a wall clock.

``FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17`` alone, or lines: ``DTSTART``, one or more ``RRULE``, ``EXRULE``, ``RDATE``,
``EXDATE``. Without ``DTSTART`` a rule starts at midnight of 1 January 2020, so that hours and minutes which
are not named are 0 and the same for everybody, for ever.

The arithmetic of one rule is dateutil's. It walks from the rule's start each time it is asked, which takes seconds for
"every minute since 2020"; so rules without ``COUNT`` are first moved to a start near the moment asked about, by whole
steps, which changes nothing else (``_near``).

Times that clocks skip or repeat are treated as for cron (``wall.py``), which departs from the RFC in one point: a
time in the gap is run right after it and not left out, because a job that never runs is worse than one at 03:00.
"""

# ruff: noqa: DTZ001 (readings of a wall clock have no offset: that is the point)
from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo

from dateutil import rrule as _dateutil

from .wall import zone_named

__all__ = ["DEFAULT_DTSTART", "NeverFires", "RRuleSet", "parse_rrule"]

DEFAULT_DTSTART = datetime(2020, 1, 1)
_FREQUENCIES = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY")
_PARTS = {
    "FREQ", "UNTIL", "COUNT", "INTERVAL", "BYSECOND", "BYMINUTE", "BYHOUR", "BYDAY", "BYMONTHDAY", "BYYEARDAY",
    "BYWEEKNO", "BYMONTH", "BYSETPOS", "WKST", "BYEASTER", "BYWEEKDAY",
}  # fmt: skip
_DAY_PARTS = {"BYDAY", "BYWEEKDAY", "BYMONTHDAY", "BYYEARDAY", "BYMONTH", "BYWEEKNO", "BYEASTER"}
_SPARSE_PARTS = {"BYMONTHDAY", "BYYEARDAY", "BYMONTH", "BYWEEKNO", "BYEASTER"}
_STEP = {
    _dateutil.WEEKLY: timedelta(weeks=1),
    _dateutil.DAILY: timedelta(days=1),
    _dateutil.HOURLY: timedelta(hours=1),
    _dateutil.MINUTELY: timedelta(minutes=1),
    _dateutil.SECONDLY: timedelta(seconds=1),
}
_MAX_CHARS = 20_000
_MAX_COUNT = 10_000
_MAX_DATES = 2_000
# A rule that is silent for longer is taken to have ended; without a bound, an impossible one would be walked to 9999.
_HORIZON = timedelta(days=366 * 30)
_LATEST = datetime(9999, 12, 30)
# Days around Easter that lie in its year, whenever it is; dateutil takes others for days of another part of the year.
_EASTER = range(-80, 251)
# Excluded readings passed over in a row before the set is taken to be empty.
_MAX_EXCLUDED = 20_000


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule; ``days`` is what it asks of the day, as a rule of its own, where it steps by less than a day."""

    rule: _dateutil.rrule
    freq: int
    interval: int
    dtstart: datetime
    until: datetime | None
    count: int | None
    days: _dateutil.rrule | None

    def after(self, after: datetime) -> Iterator[datetime]:
        """Give the readings of this rule later than ``after``."""
        end = min(max(after, self.dtstart), _LATEST - _HORIZON) + _HORIZON
        if self.until is not None:
            end = min(end, self.until)
        if self.count is None:
            walk = self._walk(self._near(after), end)
        else:  # they are counted from the first
            walk = islice(self._walk(self.dtstart, end), self.count)
        return (reading for reading in walk if reading > after)

    def _walk(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Give the readings from ``start``, which is one of the rule's own steps, to ``end`` inclusive."""
        if self.days is None:
            yield from self.rule.replace(dtstart=start, until=end, count=None)
            return
        # dateutil needs a millisecond to pass over a day that such a rule leaves out: "every second in February"
        # would take a third of a second in March. The rule of days finds the next at once.
        for day in self.days.replace(dtstart=start.replace(hour=0, minute=0, second=0), until=end):
            first = max(start, self._near(day))
            for reading in self.rule.replace(
                dtstart=first, until=min(end, day + timedelta(days=1, seconds=-1)), count=None
            ):
                if reading >= day:
                    yield reading

    def _near(self, after: datetime) -> datetime:
        """Return a start of the same rule not later than ``after`` and not long before."""
        step = _STEP.get(self.freq)
        if step is None or after <= self.dtstart:
            return self.dtstart
        stride = step * self.interval
        # One stride of margin: BYSETPOS and week starts look at the whole period around a reading.
        strides = (after - self.dtstart) // stride - 1
        return self.dtstart + stride * strides if strides > 0 else self.dtstart


@dataclass(frozen=True, slots=True)
class RRuleSet:
    """Rules and dates, less the excluded ones. ``timezone`` is what ``DTSTART;TZID=`` named, or None."""

    rules: tuple[_Rule, ...]
    dates: tuple[datetime, ...]
    without_rules: tuple[_Rule, ...]
    without_dates: frozenset[datetime]
    timezone: str | None
    is_fixed: bool

    def walls_after(self, after: datetime) -> Iterator[datetime]:
        """Give the readings later than ``after`` (naive), in order, each once."""
        sources = [rule.after(after) for rule in self.rules]
        sources.append(iter([date for date in self.dates if date > after]))
        excluded = heapq.merge(*[rule.after(after) for rule in self.without_rules])
        out = next(excluded, None)
        last, passed_over = None, 0
        for reading in heapq.merge(*sources):
            if reading == last:
                continue
            last = reading
            while out is not None and out < reading:
                out = next(excluded, None)
            if reading == out or reading in self.without_dates:
                passed_over += 1
                if passed_over > _MAX_EXCLUDED:
                    return
                continue
            passed_over = 0
            yield reading


class NeverFires(ValueError):
    """A rule that stands, and has no time left once its exceptions are taken out."""


@lru_cache(maxsize=1024)
def parse_rrule(text: str, *, zone: str = "UTC", dtstart: datetime | None = None) -> RRuleSet:
    """Return the set ``text`` stands for, its times as readings of a clock in ``zone``.

    Args:
        zone: the schedule's time zone; a ``TZID`` on ``DTSTART`` comes before it.
        dtstart: naive start of rules that have no ``DTSTART`` of their own.
    Raises:
        ValueError: not a rule; the message says which part. ``NeverFires``: one that never fires.
    """
    if len(text) > _MAX_CHARS:
        raise ValueError(f"an rrule of {len(text)} characters is too long (at most {_MAX_CHARS})")
    # Lines may be folded (RFC 5545, 3.1), and people write the whole on one line with spaces between.
    flat = re.sub(r"\r?\n[ \t]", "", text.strip())
    lines = [line for line in re.split(r"[\r\n]+|\s+(?=(?:DTSTART|RRULE|RDATE|EXDATE|EXRULE)[:;])", flat, flags=re.I) if line.strip()]  # fmt: skip
    named = _start_line(lines)
    tzid = named[1] if named is not None else None
    home = zone_named(tzid or zone)
    start = _one_date(named[0], home, "DTSTART") if named is not None else (dtstart or DEFAULT_DTSTART)
    if start.year < 1970:
        raise ValueError(f"rrule: DTSTART {start:%Y-%m-%d} lies before 1970")
    rules: list[_Rule] = []
    without_rules: list[_Rule] = []
    dates: list[datetime] = []
    without: list[datetime] = []
    for line in lines:
        name, _, value = line.strip().partition(":") if ":" in line else ("RRULE", "", line.strip())
        key, *attributes = name.upper().split(";")
        line_zone = next((zone_named(name.split(";")[i + 1].partition("=")[2]) for i, a in enumerate(attributes) if a.startswith("TZID=")), home)  # fmt: skip
        if key == "RRULE":
            rules.append(_rule(value, start, home))
        elif key == "EXRULE":
            without_rules.append(_rule(value, start, home))
        elif key == "RDATE":
            dates += _dates(value, line_zone, home, key)
        elif key == "EXDATE":
            without += _dates(value, line_zone, home, key)
        elif key != "DTSTART":
            raise ValueError(f"rrule: {key!r} is not one of DTSTART, RRULE, EXRULE, RDATE, EXDATE")
    if not rules and not dates:
        raise ValueError("rrule: there is neither an RRULE nor an RDATE, so it would never fire")
    made = RRuleSet(
        rules=tuple(rules),
        dates=tuple(sorted(set(dates))),
        without_rules=tuple(without_rules),
        without_dates=frozenset(without),
        timezone=tzid,
        is_fixed=all(rule.freq <= _dateutil.DAILY for rule in rules),
    )
    first = min([start, *dates]) - timedelta(seconds=1)
    if next(made.walls_after(first), None) is None:
        raise NeverFires(f"rrule: {text!r} never fires")
    return made


def _start_line(lines: list[str]) -> tuple[str, str | None] | None:
    found = [line.strip() for line in lines if line.strip().upper().startswith("DTSTART")]
    if len(found) > 1:
        raise ValueError("rrule: there is more than one DTSTART")
    if not found:
        return None
    name, colon, value = found[0].partition(":")
    if not colon:
        raise ValueError(f"rrule: {found[0]!r} is not a DTSTART; write DTSTART:20260101T090000")
    match = re.search(r";TZID=([^;:]+)", name, flags=re.I)
    return value.strip(), match[1] if match else None


def _one_date(text: str, zone: ZoneInfo, what: str) -> datetime:
    """Return a naive reading in ``zone`` from ``20260101``, ``20260101T090000`` or ``…Z`` (also with dashes)."""
    match = re.fullmatch(
        r"(\d{4})-?(\d{2})-?(\d{2})(?:[T ](\d{2}):?(\d{2})(?::?(\d{2}))?(Z)?)?", text.strip(), flags=re.I
    )
    if match is None:
        raise ValueError(f"rrule: {what} {text!r} is not a time such as 20260101T090000")
    try:
        moment = datetime(*[int(match[i] or 0) for i in range(1, 7)])  # type: ignore[arg-type]
    except ValueError as exc:
        raise ValueError(f"rrule: {what} {text!r}: {exc}") from exc
    if match[7]:
        moment = moment.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None, fold=0)
    return moment


def _dates(text: str, zone: ZoneInfo, home: ZoneInfo, what: str) -> list[datetime]:
    parts = text.split(",")
    if len(parts) > _MAX_DATES:
        raise ValueError(f"rrule: {len(parts)} dates in one {what} are too many (at most {_MAX_DATES})")
    found = []
    for part in parts:
        moment = _one_date(part, zone, what)
        if zone.key != home.key:
            moment = moment.replace(tzinfo=zone).astimezone(home).replace(tzinfo=None, fold=0)
        found.append(moment)
    return found


def _joined(parts: dict[str, str], *, without: Iterable[str] = ()) -> str:
    return ";".join(f"{k}={v}" for k, v in parts.items() if k != "UNTIL" and k not in without)


def _rule(text: str, start: datetime, zone: ZoneInfo) -> _Rule:
    from difflib import get_close_matches

    parts: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        key, equals, value = part.partition("=")
        key = key.strip().upper()
        if not equals or key not in _PARTS:
            near = get_close_matches(key, sorted(_PARTS), n=1)
            tail = f"; did you mean {near[0]}?" if near and near[0] != key else ""
            raise ValueError(f"rrule: {part!r} is not a part of a rule such as FREQ=DAILY{tail}")
        if key in parts:
            raise ValueError(f"rrule: {key} is given twice")
        parts[key] = value.strip().upper()
    freq = parts.get("FREQ")
    if freq not in _FREQUENCIES:
        near = get_close_matches(freq or "", _FREQUENCIES, n=1)
        tail = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"rrule: FREQ must be one of {', '.join(_FREQUENCIES)}, got {freq!r}{tail}")
    for key in ("INTERVAL", "COUNT"):
        if key in parts and not (re.fullmatch(r"[0-9]{1,9}", parts[key]) and int(parts[key]) > 0):
            raise ValueError(f"rrule: {key} must be a whole number from 1, got {parts[key]!r}")
    for offset in filter(None, parts.get("BYEASTER", "").split(",")):
        if not re.fullmatch(r"[+-]?[0-9]{1,3}", offset) or int(offset) not in _EASTER:
            raise ValueError(
                f"rrule: BYEASTER={offset} is not a day from {_EASTER[0]} to {_EASTER[-1]} around Easter"
            )
    count = int(parts["COUNT"]) if "COUNT" in parts else None
    if count is not None and count > _MAX_COUNT:
        raise ValueError(f"rrule: COUNT={count} is more than {_MAX_COUNT}; use UNTIL")
    if count is not None and "UNTIL" in parts:
        raise ValueError("rrule: COUNT and UNTIL exclude each other")
    by_days = parts.get("BYDAY", "") or parts.get("BYWEEKDAY", "")
    if freq not in ("YEARLY", "MONTHLY") and re.search(r"\d", by_days):
        raise ValueError(f"rrule: BYDAY={by_days} counts weekdays, which only FREQ=MONTHLY and YEARLY can")
    until = _one_date(parts["UNTIL"], zone, "UNTIL") if "UNTIL" in parts else None
    if until is not None and re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", parts["UNTIL"]):
        until = until.replace(hour=23, minute=59, second=59)  # a date as the end includes that day
    by_day = [f"{k}={v}" for k, v in parts.items() if k in _DAY_PARTS]
    days = None
    try:
        made = _dateutil.rrulestr(_joined(parts), dtstart=start)
        steps = _FREQUENCIES.index(freq)
        # Of a daily rule weekdays are near; a day of some month may be years away.
        if by_day and (
            steps > _dateutil.DAILY or (steps == _dateutil.DAILY and parts.keys() & _SPARSE_PARTS)
        ):
            if by_day == [f"BYMONTH={parts.get('BYMONTH')}"]:  # else the day of the start would be meant
                by_day.append("BYMONTHDAY=" + ",".join(map(str, range(1, 32))))
            # Yearly, because dateutil passes over the days of a daily rule one by one, half a millisecond each.
            days = _dateutil.rrulestr(";".join(["FREQ=YEARLY", *by_day]), dtstart=start)
            # And the rule itself need not ask of the day again: on days that it leaves out it would pass over its end.
            made = _dateutil.rrulestr(_joined(parts, without=_DAY_PARTS), dtstart=start)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
        raise ValueError(f"rrule: {text!r} is wrong: {exc}") from exc
    if not isinstance(made, _dateutil.rrule):  # pragma: no cover - one RRULE gives one rule
        raise ValueError(f"rrule: {text!r} is not one rule")
    return _Rule(
        rule=made,
        freq=_FREQUENCIES.index(freq),
        interval=int(parts.get("INTERVAL", "1")),
        dtstart=start,
        until=until,
        count=count,
        days=days if isinstance(days, _dateutil.rrule) else None,
    )
