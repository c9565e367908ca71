"""What a schedule is about to do, as it is shown to people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hark.triggers.schedule import StoredSchedule, fires_after, parse_schedule, resolve_calendars
from hark.triggers.upcoming import upcoming
from hypothesis import given, settings
from hypothesis import strategies as st

HOLIDAYS = """BEGIN:VCALENDAR
BEGIN:VEVENT
DTSTART;VALUE=DATE:20261225
DTEND;VALUE=DATE:20261227
SUMMARY:Christmas
END:VEVENT
END:VCALENDAR
"""


def stored(value: dict[str, Any]) -> StoredSchedule:
    schedule = parse_schedule({"timezone": "Europe/Berlin", **value})
    read = resolve_calendars(schedule, lambda _: HOLIDAYS, now=datetime(2026, 1, 1, tzinfo=UTC))
    return StoredSchedule.of("etl", 0, read)


def test_a_slot_that_does_not_fire_says_why() -> None:
    """The holiday by its name and days, a plain date by itself; only slots that fire are counted."""
    made = stored({"cron": "0 6 * * *", "exclude": ["holidays.ics", "2026-12-28"]})
    found = upcoming(made, datetime(2026, 12, 24, 12, tzinfo=UTC), 2)
    assert [(u.local.day, u.slot.hour, u.excluded) for u in found] == [
        (25, 5, "excluded: Christmas (2026-12-25 to 2026-12-26)"),
        (26, 5, "excluded: Christmas (2026-12-25 to 2026-12-26)"),
        (27, 5, ""),
        (28, 5, "excluded: 2026-12-28"),
        (29, 5, ""),
    ]


def test_a_paused_schedule_is_shown_as_paused() -> None:
    """Its slots are there, none of them fires."""
    made = stored({"cron": "0 6 * * *", "paused": True})
    assert {u.excluded for u in upcoming(made, datetime(2026, 1, 1, tzinfo=UTC), 3)} == {
        "the schedule is paused"
    }


def test_nights_in_which_clocks_are_moved_are_noted() -> None:
    """02:30 is skipped in March and comes twice in October."""
    made = stored({"cron": "30 2 * * *"})
    [spring] = upcoming(made, datetime(2026, 3, 29, 0, tzinfo=UTC), 1)
    assert (spring.local.isoformat(), spring.note) == (
        "2026-03-29T03:00:00+02:00", "the clocks are put forward at this moment",
    )  # fmt: skip
    [autumn] = upcoming(made, datetime(2026, 10, 24, 12, tzinfo=UTC), 1)
    assert autumn.note == "this time comes twice that night; the first"
    assert upcoming(made, datetime(2026, 6, 1, tzinfo=UTC), 1)[0].note == ""


def test_a_long_exclusion_is_said_in_a_few_lines() -> None:
    """Three of its slots, the last with its end, and then those that fire: a crowd of what does not fire hides nothing."""
    made = stored({"cron": "* * * * * *", "exclude": ["2026-12-24/2027-01-01"]})
    found = upcoming(made, datetime(2026, 12, 24, 12, tzinfo=UTC), 2)
    assert [(f"{u.local:%m-%d %H:%M:%S}", u.excluded) for u in found] == [
        ("12-24 13:00:01", "excluded: 2026-12-24 to 2027-01-01"),
        ("12-24 13:00:02", "excluded: 2026-12-24 to 2027-01-01"),
        ("12-24 13:00:03", "excluded: 2026-12-24 to 2027-01-01; and so on until 2027-01-02 00:00"),
        ("01-02 00:00:00", ""),
        ("01-02 00:00:01", ""),
    ]


def test_a_calendar_that_leaves_out_everything_ends() -> None:
    """Nothing fires, and so many of the slots say why."""
    days = [f"2026-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 28, 2)]
    made = stored({"cron": "0 6 1-28/2 * *", "day_or": False, "exclude": days, "end": "2026-12-28T00:00:00Z"})
    found = upcoming(made, datetime(2026, 1, 1, tzinfo=UTC), 3)
    assert (len(found), all(u.excluded for u in found)) == (168, True)


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_what_is_shown_to_fire_is_what_fires(after: datetime, count: int) -> None:
    """Law: the slots without a reason are the next of ``fires_after``."""
    from itertools import islice

    made = stored({"cron": "0 6,18 * * *", "exclude": ["holidays.ics", "2026-06-01/2026-07-01"]})
    shown = [u.slot for u in upcoming(made, after, count) if not u.excluded]
    assert shown == list(islice(fires_after(made.schedule, after), count))
