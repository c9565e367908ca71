"""What a schedule is about to do, for people: slots on its own clock and in UTC, and why some of them do not fire. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from .calendar import Span
from .schedule import StoredSchedule, due_at, slots_after
from .wall import zone_named

__all__ = ["Upcoming", "upcoming"]

# So many slots in a row that do not fire are shown; a calendar that leaves out all of them must not be walked for ever.
_MOST_EXCLUDED = 200
# Of one excluded time so many are shown; more would push what fires out of sight.
_MOST_OF_SPAN = 3


@dataclass(frozen=True, slots=True)
class Upcoming:
    """One slot that is to come.

    Attributes:
        slot: the moment the schedule names, in UTC; ``local`` is the same on the schedule's clock.
        due: when it is run: itself, or later by its jitter.
        excluded: why it does not fire; empty if it does.
        note: what is unusual about its reading of the clock.
    """

    slot: datetime
    local: datetime
    due: datetime
    excluded: str
    note: str


def upcoming(stored: StoredSchedule, after: datetime, count: int) -> list[Upcoming]:
    """Return the slots after ``after`` until ``count`` of them fire, with those between them that do not.

    Of a paused schedule none fires; its slots are given with that as the reason. Of many slots in one excluded time
    the first few are given, the last of them with the moment until which it goes on so.
    """
    zone = zone_named(stored.schedule.timezone)
    found: list[Upcoming] = []
    fires = in_a_row = of_span = 0
    current: Span | None = None
    walk = slots_after(stored.schedule, after)
    while fires < count and in_a_row < _MOST_EXCLUDED and (following := next(walk, None)) is not None:
        slot, span = following
        if stored.is_paused:
            span = None
        of_span = of_span + 1 if span is current else 1
        current = span
        if span is not None and of_span > _MOST_OF_SPAN:
            end = span.instants(stored.schedule.timezone)[1]
            until = f"{end.astimezone(zone):%Y-%m-%d %H:%M}"
            found[-1] = replace(found[-1], excluded=f"{found[-1].excluded}; and so on until {until}")
            walk, current = slots_after(stored.schedule, end - timedelta(microseconds=1)), None
            continue
        excluded = "the schedule is paused" if stored.is_paused else _why(span)
        fires, in_a_row = (fires, in_a_row + 1) if span else (fires + 1, 0)
        local = slot.astimezone(zone)
        found.append(
            Upcoming(slot, local, due_at(stored.schedule, slot, key=stored.key), excluded, _note(local))
        )
    # What comes behind the last one that fires is for another time, unless nothing fires at all.
    while fires and found and found[-1].excluded and not stored.is_paused:
        found.pop()
    return found


def _why(span: Span | None) -> str:
    if span is None:
        return ""
    last = span.end - timedelta(seconds=1)
    whole_days = span.begin.tzinfo is None and span.begin.time() == span.end.time() == datetime.min.time()
    if not whole_days:
        when = f"{span.begin.isoformat()} to {span.end.isoformat()}"
    elif last.date() == span.begin.date():
        when = span.begin.date().isoformat()
    else:
        when = f"{span.begin.date().isoformat()} to {last.date().isoformat()}"
    return f"excluded: {span.summary} ({when})" if span.summary else f"excluded: {when}"


def _note(local: datetime) -> str:
    """Return what is unusual about a reading: clocks are moved at that moment, or it comes twice that night."""
    earlier = (local.astimezone(UTC) - timedelta(seconds=1)).astimezone(local.tzinfo).utcoffset()
    now = local.utcoffset()
    if earlier is not None and now is not None and now > earlier:
        return "the clocks are put forward at this moment"
    first, second = local.replace(fold=0).utcoffset(), local.replace(fold=1).utcoffset()
    if first is not None and second is not None and first > second:
        return "this time comes twice that night; " + ("the first" if local.fold == 0 else "the second")
    return ""
