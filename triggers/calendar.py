"""Days and spans on which a schedule does not fire: dates written out, and iCalendar files of holidays.

Only what matters here is read of an iCalendar file: ``VEVENT`` with ``DTSTART``, ``DTEND`` or ``DURATION``,
``RRULE``/``RDATE``/``EXDATE`` (a yearly holiday) and ``STATUS:CANCELLED``. Repeating events are written out up to a
stated year, so that what is stored is plain spans that need no file.

Source: RFC 5545, sections 3.1 (folding), 3.3.6 (durations) and 3.6.1 (events).
"""

# ruff: noqa: DTZ001 (days of a calendar have no offset until a schedule reads them)
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, model_validator

from .rrule import NeverFires, parse_rrule
from .wall import to_instant, zone_named

__all__ = ["Span", "parse_ics", "parse_span"]

_MAX_FILE_CHARS = 4 << 20
_MAX_SPANS = 5_000
_DATE = r"\d{4}-\d{2}-\d{2}"
_DAY = re.compile(r"(\d{4})(\d{2})(\d{2})")
_DURATION = re.compile(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")


class Span(BaseModel):
    """Readings of the schedule's clock, or instants, in which it does not fire: ``begin`` <= t < ``end``.

    Naive moments are read in the schedule's time zone, so that a holiday is a holiday where the schedule lives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    begin: datetime
    end: datetime
    summary: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> Span:
        if (self.begin.tzinfo is None) != (self.end.tzinfo is None):
            raise ValueError("begin and end of a span must both have an offset, or neither")
        if self.end <= self.begin:
            raise ValueError(f"a span ends after it begins, got {self.begin} to {self.end}")
        return self

    def instants(self, timezone: str) -> tuple[datetime, datetime]:
        """Return begin and end as instants in UTC."""
        if self.begin.tzinfo is not None:
            return self.begin.astimezone(UTC), self.end.astimezone(UTC)
        zone = zone_named(timezone)
        return to_instant(self.begin, zone), to_instant(self.end, zone)


def parse_span(text: str) -> Span | None:
    """Return the span of ``2026-12-25`` or ``2026-12-24/2027-01-01`` (both days included); None if it is no date.

    Raises:
        ValueError: it looks like dates, and is none.
    """
    match = re.fullmatch(rf"({_DATE})(?:\s*/\s*({_DATE}))?", text.strip())
    if match is None:
        return None
    first = date.fromisoformat(match[1])
    last = date.fromisoformat(match[2] or match[1])
    if last == date.max:
        raise ValueError(f"{text!r}: the last day there can be is {date.max - timedelta(days=1)}")
    if last < first:
        raise ValueError(f"{text!r} ends before it begins; write the earlier day first")
    return Span(begin=_midnight(first), end=_midnight(last + timedelta(days=1)))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


@dataclass(slots=True)
class _Line:
    name: str
    attributes: dict[str, str]
    value: str


def _lines(text: str) -> Iterator[_Line]:
    for raw in re.sub(r"\r?\n[ \t]", "", text).splitlines():
        head, colon, value = raw.partition(":")
        if not colon:
            continue
        name, *rest = head.split(";")
        pairs = (item.partition("=") for item in rest)
        yield _Line(name.strip().upper(), {k.upper(): v.strip('"') for k, _, v in pairs}, value.strip())


def parse_ics(text: str, *, until: datetime) -> list[Span]:
    """Return the spans of the events in an iCalendar file, in order, repeating ones written out up to ``until``.

    Args:
        until: aware; events that begin later are left out.
    Raises:
        ValueError: not an iCalendar file, or an event in it cannot be read; the message names the event.
    """
    if len(text) > _MAX_FILE_CHARS:
        raise ValueError(f"a calendar of {len(text)} characters is too long (at most {_MAX_FILE_CHARS})")
    spans: list[Span] = []
    event: list[_Line] | None = None
    seen_calendar = False
    for line in _lines(text.lstrip("\ufeff")):
        what = line.value.upper()
        if line.name == "BEGIN":
            seen_calendar = seen_calendar or what == "VCALENDAR"
            if what == "VEVENT":
                event = []
        elif line.name == "END" and what == "VEVENT" and event is not None:
            for span in _spans_of(event, until):
                spans.append(span)
                if len(spans) > _MAX_SPANS:
                    raise ValueError(f"the calendar has more than {_MAX_SPANS} days to exclude")
            event = None
        elif event is not None:
            event.append(line)
    if not seen_calendar:
        raise ValueError("this is not an iCalendar file: it has no BEGIN:VCALENDAR")
    return sorted(spans, key=lambda span: (span.begin.replace(tzinfo=None), span.end.replace(tzinfo=None)))


def _spans_of(event: list[_Line], until: datetime) -> Iterator[Span]:
    by_name = {line.name: line for line in event}
    summary = by_name["SUMMARY"].value.replace("\\,", ",")[:100] if "SUMMARY" in by_name else ""
    if "STATUS" in by_name and by_name["STATUS"].value.upper() == "CANCELLED":
        return
    try:
        start_line = by_name.get("DTSTART")
        if start_line is None:
            raise ValueError("it has no DTSTART")
        begin = _moment(start_line)
        if "DTEND" in by_name:
            end = _moment(by_name["DTEND"])
            if begin.tzinfo is not None and end.tzinfo is not None:
                # It may be written in another zone than the beginning, or in UTC.
                end = end.astimezone(begin.tzinfo)
            length = _plain(end) - _plain(begin)
        elif "DURATION" in by_name:
            length = _length(by_name["DURATION"].value)
        else:  # RFC 5545: an event of a date lasts that day, one of a time no time at all
            length = timedelta(days=1 if _DAY.fullmatch(start_line.value) else 0)
        if length <= timedelta(0):
            return  # a mark in the calendar, not a time that passes
        repeats = [line for line in event if line.name in ("RRULE", "RDATE", "EXDATE")]
        if not repeats:
            yield Span(begin=begin, end=begin + length, summary=summary)
            return
        text = [_written(line, is_zoned=begin.tzinfo is not None) for line in repeats]
        if "RRULE" not in by_name:
            text.append(f"RDATE:{_plain(begin):%Y%m%dT%H%M%S}")  # the event itself, unless it is an exception
        # Ends and exceptions are often written in UTC, whatever the zone of the event.
        zone = begin.tzinfo.key if isinstance(begin.tzinfo, ZoneInfo) else "UTC"
        try:
            rules = parse_rrule("\n".join(text), zone=zone, dtstart=_plain(begin))
        except NeverFires:
            return
        limit = _plain(until)
        for reading in rules.walls_after(_plain(begin) - timedelta(seconds=1)):
            if reading > limit:
                return
            at = reading.replace(tzinfo=begin.tzinfo)
            yield Span(begin=at, end=at + length, summary=summary)
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"calendar event {summary or '(no summary)'!r}: {exc}") from exc


def _written(line: _Line, *, is_zoned: bool) -> str:
    # Days and floating times have no zone, whatever is said with an exception to them.
    zone = f";TZID={line.attributes['TZID']}" if is_zoned and "TZID" in line.attributes else ""
    return f"{line.name}{zone}:{line.value}"


def _plain(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None, fold=0)


def _moment(line: _Line) -> datetime:
    """Return the moment of ``DTSTART`` or ``DTEND``: naive for dates and floating times, else with its zone."""
    text = line.value.upper()
    if match := _DAY.fullmatch(text):
        return _midnight(date(int(match[1]), int(match[2]), int(match[3])))
    match = re.fullmatch(r"(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})(Z?)", text)
    if match is None:
        raise ValueError(f"{line.value!r} is not a time")
    moment = datetime(*[int(match[i]) for i in range(1, 7)])  # type: ignore[arg-type]
    if match[7]:
        return moment.replace(tzinfo=UTC)
    if "TZID" in line.attributes:
        return moment.replace(tzinfo=zone_named(line.attributes["TZID"]))
    return moment


def _length(text: str) -> timedelta:
    match = _DURATION.fullmatch(text.strip().lstrip("+").upper())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as P1D or PT2H")
    weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
