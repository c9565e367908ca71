"""Schedules: the four kinds as they are written, their slots, and what is due after an absence."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from hark.errors import DefinitionError
from hark.triggers.calendar import parse_ics
from hark.triggers.due import CATCH_UP_LIMIT, Plan, plan_slots
from hark.triggers.schedule import (
    Schedule,
    StoredSchedule,
    due_at,
    fires_after,
    fires_between,
    jitter_of,
    next_fire,
    parse_schedule,
    resolve_calendars,
    slot_run_id,
    timing_version,
)
from hark.triggers.schedules import At, Cron, Interval, RRule
from hypothesis import given, settings
from hypothesis import strategies as st

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC")


def slots(value: dict[str, Any], after: datetime = NEW_YEAR, count: int = 3) -> list[str]:
    found = islice(fires_after(parse_schedule(value), after), count)
    return [f"{slot:%Y-%m-%d %H:%M:%S}" for slot in found]


def hours(n: float) -> timedelta:
    return timedelta(hours=n)


# --- kinds ---------------------------------------------------------------------------------------------


def test_the_forms_of_the_manual_give_the_slots_it_promises() -> None:
    """The three lines of hark.yaml in the specification, and `at`."""
    assert slots({"cron": "0 6 * * mon-fri", "timezone": "Europe/Berlin", "catch_up": "latest", "overlap": "skip", "jitter": "30s"})[:2] == ["2026-01-01 05:00:00", "2026-01-02 05:00:00"]  # fmt: skip
    assert slots({"interval": "15m", "anchor": "2026-01-01T00:00:00Z"})[0] == "2026-01-01 00:15:00"
    assert slots({"rrule": "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17", "parameters": {"full": True}})[:2] == [
        "2026-01-30 17:00:00",
        "2026-02-27 17:00:00",
    ]
    assert slots({"at": "2026-12-24T18:00:00", "timezone": "Europe/Berlin"}) == ["2026-12-24 17:00:00"]
    assert slots({"at": ["2026-03-01T00:00:00Z", "2026-02-01T00:00:00+01:00", "2025-01-01T00:00:00Z"]}) == [
        "2026-01-31 23:00:00",
        "2026-03-01 00:00:00",
    ]


@pytest.mark.parametrize("interval", ["1h", "23h", "90m"])
def test_an_interval_is_real_time_whatever_the_clocks_do(interval: str) -> None:
    """23 hours stay 23 hours when summer time begins; the anchor reaches both ways."""
    schedule = parse_schedule(
        {"interval": interval, "anchor": "2026-03-30T06:00:00", "timezone": "Europe/Berlin"}
    )
    found = list(islice(fires_after(schedule, datetime(2026, 3, 28, 12, tzinfo=UTC)), 48))
    (step,) = {b - a for a, b in pairwise(found)}
    assert (datetime(2026, 3, 30, 4, tzinfo=UTC) - found[0]) % step == hours(0)


@pytest.mark.parametrize(
    ("value", "after", "expected"),
    [
        ({"interval": "1d", "anchor": "2026-01-01T09:00:00"}, (3, 27, 12), ["03-28 08:00", "03-29 07:00", "03-30 07:00"]),
        ({"interval": "1d", "anchor": "2026-07-01T09:00:00"}, (10, 23, 12), ["10-24 07:00", "10-25 08:00", "10-26 08:00"]),
        ({"interval": "2d", "anchor": "2026-12-30T02:30:00"}, (3, 26, 12), ["03-27 01:30", "03-29 01:00", "03-31 00:30"]),
        ({"interval": "25h", "anchor": "2026-03-28T00:00:00"}, (3, 27, 12), ["03-27 23:00", "03-29 00:00", "03-29 24:00"]),
        ({"interval": "1d", "anchor": "2026-01-01T09:00:00", "timezone": "UTC"}, (3, 28, 12), ["03-29 09:00", "03-30 09:00"]),
    ],
)  # fmt: skip
def test_the_days_of_an_interval_are_those_of_its_clock(
    value: dict[str, str], after: tuple[int, int, int], expected: list[str]
) -> None:
    """What runs at nine runs at nine all year; a time that is skipped runs when clocks have been moved."""
    schedule = parse_schedule({"timezone": "Europe/Berlin", **value})
    found = list(islice(fires_after(schedule, datetime(2026, *after, tzinfo=UTC)), len(expected)))
    wanted = [text.replace("03-29 24:00", "03-30 00:00") for text in expected]
    assert [f"{one.astimezone(UTC):%m-%d %H:%M}" for one in found] == wanted


def test_start_end_and_excluded_days_bound_the_slots() -> None:
    """Bounds without an offset are read in the schedule's zone; a range of days includes both ends."""
    value = {
        "cron": "0 12 * * *", "timezone": "Europe/Berlin", "start": "2026-01-02", "end": "2026-01-07",
        "exclude": ["2026-01-03", "2026-01-05/2026-01-06"],
    }  # fmt: skip
    assert slots(value, count=10) == ["2026-01-02 11:00:00", "2026-01-04 11:00:00"]
    # A calendar that leaves everything out ends the search.
    assert slots({"cron": "0 12 * * *", "end": "2399-01-01", "exclude": ["2020-01-01/2400-01-01"]}) == []


@pytest.mark.parametrize("timing", [{"cron": "* * * * * *"}, {"interval": "1s"}, {"rrule": "FREQ=SECONDLY"}])
def test_a_schedule_comes_out_of_an_exclusion_however_many_slots_it_holds(timing: dict[str, Any]) -> None:
    """Nine days of every second are 777 600 slots: what fires next is found behind them, and not given up for."""
    made = parse_schedule({"timezone": "Europe/Berlin", "exclude": ["2026-12-24/2027-01-01"], **timing})
    found = list(islice(fires_after(made, datetime(2026, 12, 23, 22, 59, 58, tzinfo=UTC)), 3))
    assert [f"{slot:%m-%d %H:%M:%S}" for slot in found] == [
        "12-23 22:59:59", "01-01 23:00:00", "01-01 23:00:01",
    ]  # fmt: skip


def test_a_rule_without_a_start_names_the_same_slots_whenever_it_is_read() -> None:
    """Minutes and seconds that are not named are 0, not those of the moment of reading."""
    assert slots({"rrule": "FREQ=DAILY;BYHOUR=9"})[0] == "2026-01-01 09:00:00"
    assert slots({"rrule": "FREQ=WEEKLY;INTERVAL=2"}, count=2) == [
        "2026-01-07 00:00:00",
        "2026-01-21 00:00:00",
    ]


def test_rule_sets_leave_out_and_add_dates() -> None:
    """EXDATE, RDATE and EXRULE; DTSTART may name its zone; lines may stand on one."""
    value = (
        "DTSTART;TZID=Europe/Berlin:20260101T090000 RRULE:FREQ=DAILY;COUNT=5 "
        "EXDATE:20260102T090000,20260103T090000 RDATE:20260110T120000Z"
    )
    assert slots({"rrule": value}, count=9) == [
        "2026-01-01 08:00:00",
        "2026-01-04 08:00:00",
        "2026-01-05 08:00:00",
        "2026-01-10 12:00:00",
    ]
    weekdays = "DTSTART:20260102T090000\nRRULE:FREQ=DAILY;UNTIL=20260106\nEXRULE:FREQ=WEEKLY;BYDAY=SA,SU"
    assert slots({"rrule": weekdays}, count=9) == [
        "2026-01-02 09:00:00",
        "2026-01-05 09:00:00",
        "2026-01-06 09:00:00",
    ]


def test_a_rule_in_a_zone_treats_moved_clocks_as_cron_does() -> None:
    """A skipped time runs right after the gap, a repeated one once; hourly rules follow real hours."""
    daily = {"rrule": "FREQ=DAILY;BYHOUR=2;BYMINUTE=30", "timezone": "Europe/Berlin"}
    assert slots(daily, datetime(2026, 3, 28, 12, tzinfo=UTC), 2) == [
        "2026-03-29 01:00:00",
        "2026-03-30 00:30:00",
    ]
    assert slots(daily, datetime(2026, 10, 24, 12, tzinfo=UTC), 2) == [
        "2026-10-25 00:30:00",
        "2026-10-26 01:30:00",
    ]
    hourly = parse_schedule({"rrule": "FREQ=HOURLY", "timezone": "Europe/Berlin"})
    found = list(islice(fires_after(hourly, datetime(2026, 10, 24, 20, tzinfo=UTC)), 8))
    assert {b - a for a, b in pairwise(found)} == {hours(1)}


def test_a_fine_rule_from_long_ago_is_answered_at_once() -> None:
    """Every second since 2020, and every second of a month that is far away: no walk through the years."""
    for rule, want in [
        ("FREQ=SECONDLY", "2026-06-01 00:00:01"),
        ("FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=29", "2028-02-29 00:00:00"),
        ("FREQ=MINUTELY;INTERVAL=7;BYDAY=SU", "2026-06-07 00:01:00"),
    ]:
        schedule = parse_schedule({"rrule": rule})
        began = time.process_time()
        assert slots({"rrule": rule}, datetime(2026, 6, 1, tzinfo=UTC), 1) == [want]
        assert next_fire(schedule, datetime(2026, 6, 1, tzinfo=UTC)) is not None
        # The walk would be of two hundred million steps.
        assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"crom": "0 6 * * *"}, "did you mean 'cron'"),
        ({"cron": "0 6 * * *", "interval": "1h"}, "write two schedules"),
        (
            {"cron": "0 6 * * *", "catchup": "all"},
            r"\(catchup\): there is no such key; did you mean 'catch_up'",
        ),
        ({"cron": "0 6 * * *", "catch_up": "lastest"}, "did you mean 'latest'"),
        ({"cron": "0 6 * * *", "catch_up": {"within": "1 hours"}}, "did you mean '1h'"),
        ({"cron": "0 6 * * *", "overlap": "skp"}, "'skip', 'queue', 'allow' or 'cancel-running'"),
        ({"cron": "0 6 * * *", "timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
        ({"cron": "* * * * *", "jitter": "2m"}, "jitter of 2m is longer than the time between two slots"),
        ({"cron": "0 6 * * *", "start": "2027-01-01", "end": "2026-01-01"}, "`end` .* is before `start`"),
        ({"cron": "0 6 * * *", "exclude": ["holidays.txt"]}, "neither a date"),
        ({"interval": 15}, "such as '15s'"),
        ({"interval": "15 mins"}, "did you mean '15m'"),
        ({"interval": "200ms"}, "at least 1s"),
        ({"at": 1767225600}, "is not a moment"),
        ({"at": []}, "at least 1 item"),
        ({"rrule": "FREQ=DALY"}, "did you mean DAILY"),
        ({"rrule": "FREQ=DAILY;BYDYA=MO"}, "did you mean BYDAY"),
        ({"rrule": "FREQ=WEEKLY;BYDAY=2MO"}, "counts weekdays"),
        ({"rrule": "FREQ=DAILY;COUNT=3;UNTIL=20260101"}, "exclude each other"),
        ({"rrule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "never fires"),
        ({"rrule": "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30;COUNT=2"}, "never fires"),
        ({"rrule": "DTSTART:20260101"}, "neither an RRULE nor an RDATE"),
        ({"rrule": "RRULE:FREQ=HOURLY;INTERVAL=2;BYHOUR=3"}, "is wrong|never fires"),
        ("0 6 * * *", "is a mapping"),
    ],
)
def test_a_wrong_schedule_says_what_is_wrong_and_what_to_write(value: object, says: str) -> None:
    """One clear sentence for each mistake."""
    with pytest.raises(DefinitionError, match=says):
        parse_schedule(value)


def test_what_is_stored_reads_back_the_same() -> None:
    """JSON and back gives the same schedule, the same timing version and the same run ids."""
    for value in (
        {
            "cron": "0 6 * * mon-fri",
            "jitter": "1m30s",
            "catch_up": {"within": "2h"},
            "exclude": ["2026-12-25"],
        },
        {"interval": "90s", "anchor": "2026-01-01T00:00:00Z", "name": "beat"},
        {"rrule": "FREQ=DAILY", "start": "2026-01-01T00:00:00"},
        {"at": ["2026-12-24T18:00:00"], "paused": True},
    ):
        stored = StoredSchedule.of("etl", 2, parse_schedule(value))
        again = StoredSchedule.model_validate_json(stored.model_dump_json())
        assert again == stored
        assert timing_version(again.schedule) == timing_version(stored.schedule)
    assert stored.key == "etl/2"
    assert stored.is_paused
    assert slot_run_id("etl", "2", NEW_YEAR) == slot_run_id("etl", "2", NEW_YEAR.astimezone())
    assert slot_run_id("etl", "2", NEW_YEAR) != slot_run_id("etl", "2", NEW_YEAR + hours(1))


def test_only_what_decides_slots_changes_the_timing_version() -> None:
    """New parameters or policies keep progress; a new expression starts anew."""
    one = timing_version(parse_schedule({"cron": "0 6 * * *"}))
    assert one == timing_version(
        parse_schedule({"cron": "0 6 * * *", "parameters": {"x": 1}, "catch_up": "all", "jitter": "1s"})
    )
    assert one != timing_version(parse_schedule({"cron": "0 7 * * *"}))
    assert one != timing_version(parse_schedule({"cron": "0 6 * * *", "timezone": "Europe/Berlin"}))


# --- calendars -------------------------------------------------------------------------------------------

HOLIDAYS = """BEGIN:VCALENDAR\r
VERSION:2.0\r
BEGIN:VEVENT\r
SUMMARY:New Year\\, the\r
  first\r
DTSTART;VALUE=DATE:20200101\r
RRULE:FREQ=YEARLY\r
END:VEVENT\r
BEGIN:VEVENT\r
SUMMARY:Company days\r
DTSTART;VALUE=DATE:20260105\r
DTEND;VALUE=DATE:20260107\r
END:VEVENT\r
BEGIN:VEVENT\r
SUMMARY:Release freeze\r
DTSTART;TZID=Europe/Berlin:20260109T120000\r
DURATION:PT4H\r
END:VEVENT\r
BEGIN:VEVENT\r
SUMMARY:Called off\r
STATUS:CANCELLED\r
DTSTART;VALUE=DATE:20260108\r
END:VEVENT\r
END:VCALENDAR\r
"""


def test_an_icalendar_file_of_holidays_leaves_out_its_days() -> None:
    """Yearly holidays, spans of days, spans of hours in another zone; cancelled events do not count."""
    raw = parse_schedule({"cron": "30 12 * * *", "exclude": ["holidays.ics", "2026-01-04"]})
    with pytest.raises(ValueError, match="was not read"):
        StoredSchedule.of("etl", 0, raw)
    schedule = resolve_calendars(raw, lambda name: HOLIDAYS, now=NEW_YEAR)
    StoredSchedule.of("etl", 0, schedule)
    found = fires_between(schedule, NEW_YEAR - hours(24), NEW_YEAR + hours(24 * 11))
    assert [slot.day for slot in found] == [31, 2, 3, 7, 8, 10, 11]
    assert (
        fires_between(schedule, datetime(2031, 12, 31, 13, tzinfo=UTC), datetime(2032, 1, 2, tzinfo=UTC))
        == []
    )


@pytest.mark.parametrize(
    ("lines", "days"),
    [
        (
            ["DTSTART;VALUE=DATE:20260504", "RDATE;VALUE=DATE:20260603", "EXDATE;VALUE=DATE:20260504"],
            ["06-03"],
        ),
        (["DTSTART;VALUE=DATE:20260504", "EXDATE;VALUE=DATE:20260504"], []),
        (["DTSTART:20260504T170000"], []),
        (["DTSTART;VALUE=DATE:20260504"], ["05-04"]),
        (
            ["{berlin}", "DURATION:PT1H", "RRULE:FREQ=DAILY;UNTIL=20260505T220000Z"],
            ["05-04", "05-05", "05-06"],
        ),
        (
            ["{berlin}", "DURATION:PT1H", "RRULE:FREQ=DAILY;COUNT=3", "EXDATE:20260504T220000Z"],
            ["05-04", "05-06"],
        ),
        (["{berlin}", "DURATION:PT1H", "RDATE:20260504T220000Z"], ["05-04", "05-05"]),
        (
            [
                "DTSTART;VALUE=DATE:20260504",
                "RRULE:FREQ=DAILY;COUNT=2",
                "EXDATE;TZID=Europe/Berlin:20260505T000000",
            ],
            ["05-04"],
        ),
    ],
)
def test_an_event_of_a_calendar_happens_when_icalendar_says(lines: list[str], days: list[str]) -> None:
    """An exception may be the first day, a time without an end is no time, and what is in UTC is read in UTC."""
    told = [line.format(berlin="DTSTART;TZID=Europe/Berlin:20260504T000000") for line in lines]
    text = "\n".join(["BEGIN:VCALENDAR", "BEGIN:VEVENT", *told, "END:VEVENT", "END:VCALENDAR"])
    spans = parse_ics(text, until=datetime(2027, 1, 1, tzinfo=UTC))
    assert [f"{span.begin:%m-%d}" for span in spans] == days


@pytest.mark.parametrize("end", ["DTEND:20260504T090000Z", "DTEND;TZID=America/New_York:20260504T050000"])
def test_an_event_of_a_calendar_may_end_in_another_zone_than_it_began(end: str) -> None:
    """From ten to eleven in Berlin, whatever clock the end is read from."""
    told = ["DTSTART;TZID=Europe/Berlin:20260504T100000", end]
    text = "\n".join(["BEGIN:VCALENDAR", "BEGIN:VEVENT", *told, "END:VEVENT", "END:VCALENDAR"])
    [span] = parse_ics(text, until=datetime(2027, 1, 1, tzinfo=UTC))
    assert span.instants("UTC") == (
        datetime(2026, 5, 4, 8, tzinfo=UTC),
        datetime(2026, 5, 4, 9, tzinfo=UTC),
    )


def test_a_calendar_that_cannot_be_read_is_named() -> None:
    """No such file, no calendar, a broken event: the message says which file."""
    schedule = parse_schedule({"cron": "0 0 * * *", "exclude": ["x.ics"]})

    def missing(name: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", name)

    for read, says in [
        (missing, "cannot be read: No such file or directory; its path"),
        (lambda _: "hello", "not an iCalendar file"),
        (
            lambda _: "BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:Bad\nDTSTART:soon\nEND:VEVENT",
            "event 'Bad'.*not a time",
        ),
        (lambda _: "BEGIN:VCALENDAR\nBEGIN:VEVENT\nEND:VEVENT", "no DTSTART"),
    ]:
        with pytest.raises(DefinitionError, match=f"(?s)x.ics.*{says}"):
            resolve_calendars(schedule, read, now=NEW_YEAR)


# --- laws --------------------------------------------------------------------------------------------------

schedules = st.one_of(
    st.builds(
        lambda m, h, d, zone: {"cron": f"{m} {h} * * {d}", "timezone": zone},
        st.sampled_from(["0", "*/10", "15,45", "30"]),
        st.sampled_from(["*", "2", "*/6", "1-3", "0"]),
        st.sampled_from(["*", "mon-fri", "sun#1"]),
        st.sampled_from(ZONES),
    ),
    st.builds(lambda s: {"interval": f"{s}s"}, st.integers(600, 200_000)),
    st.builds(
        lambda f, n, zone: {"rrule": f"FREQ={f};INTERVAL={n}", "timezone": zone},
        st.sampled_from(["HOURLY", "DAILY", "WEEKLY", "MONTHLY"]),
        st.integers(1, 5),
        st.sampled_from(ZONES),
    ),
).map(parse_schedule)
moments = st.datetimes(datetime(2025, 1, 1), datetime(2030, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))


@given(schedules, moments)
@settings(max_examples=100, deadline=None)
def test_slots_strictly_rise_and_the_next_is_the_first_of_many(schedule: Schedule, after: datetime) -> None:
    """`next_fire` walked step by step, `fires_after` and `fires_between` name the same slots."""
    many = list(islice(fires_after(schedule, after), 12))
    assert all(a < b for a, b in pairwise([after, *many]))
    walked, at = [], after
    for _ in many:
        slot = next_fire(schedule, at)
        assert slot is not None
        walked.append(slot)
        at = slot
    assert walked == many
    assert fires_between(schedule, after, many[7], 100) == many[:8]
    assert fires_between(schedule, after, many[7], 3) == many[:3]
    assert fires_between(schedule, many[2], many[7]) == many[3:8]


@given(st.text(max_size=20), moments, st.floats(0.01, 86_400))
def test_jitter_is_bounded_and_always_the_same(key: str, slot: datetime, jitter_s: float) -> None:
    """It depends on the schedule and the slot and nothing else."""
    delay = jitter_of(key, slot, jitter_s)
    assert timedelta(0) <= delay < timedelta(seconds=jitter_s)
    assert delay == jitter_of(key, slot.astimezone(), jitter_s)


def test_jitter_spreads_schedules_over_its_width() -> None:
    """A thousand schedules of one slot do not come at once."""
    delays = sorted(jitter_of(f"d{n}/0", NEW_YEAR, 100).total_seconds() for n in range(1000))
    assert delays[100] == pytest.approx(10, abs=4)
    assert delays[900] == pytest.approx(90, abs=4)


# --- what is due -------------------------------------------------------------------------------------------


def plan(value: dict[str, Any], through: datetime, now: datetime, **kwargs: Any) -> Plan:
    return plan_slots(parse_schedule(value), key="d/0", through=through, now=now, grace_s=30, **kwargs)


HOURLY = {"cron": "0 * * * *"}
NOW = NEW_YEAR + hours(10.5)


def fired(p: Plan) -> list[int]:
    return [slot.hour for slot in p.fire]


def test_after_an_absence_the_policy_decides() -> None:
    """Ten hourly slots were missed: none, the latest, all, or those of the last three hours are run."""
    none = plan({**HOURLY, "catch_up": "none"}, NEW_YEAR, NOW)
    assert fired(none) == []
    assert none.skipped is not None
    assert (none.skipped.count, none.skipped.is_exact, none.through.hour) == (10, True, 10)
    latest = plan({**HOURLY, "catch_up": "latest"}, NEW_YEAR, NOW)
    assert fired(latest) == [10]
    assert latest.missed == 1
    assert latest.skipped is not None
    assert (latest.skipped.first.hour, latest.skipped.last.hour, latest.skipped.count) == (1, 9, 9)
    every = plan({**HOURLY, "catch_up": "all"}, NEW_YEAR, NOW)
    assert fired(every) == list(range(1, 11))
    assert every.skipped is None
    within = plan({**HOURLY, "catch_up": {"within": "3h"}}, NEW_YEAR, NOW)
    assert fired(within) == [8, 9, 10]
    assert within.skipped is not None
    assert "3h" in within.skipped.reason


def test_a_slot_that_is_a_little_late_is_on_time_under_every_policy() -> None:
    """A restart of ten seconds misses nothing; with a fresh slot there, `latest` wants no older one."""
    now = NEW_YEAR + hours(10) + timedelta(seconds=10)
    for policy in ("none", "latest", "all"):
        p = plan({**HOURLY, "catch_up": policy}, NEW_YEAR + hours(9), now)
        assert fired(p) == [10]
        assert (p.missed, p.skipped) == (0, None)
    assert fired(plan({**HOURLY, "catch_up": "latest"}, NEW_YEAR, now)) == [10]


def test_nothing_due_is_an_empty_plan_that_moves_nothing() -> None:
    """Before the next slot, and when the clock went back."""
    for now in (NEW_YEAR + hours(9.5), NEW_YEAR - hours(48)):
        p = plan(HOURLY, NEW_YEAR + hours(9), now)
        assert p.is_empty
        assert p.through == NEW_YEAR + hours(9)


def test_a_jittered_slot_is_not_run_before_it_is_due() -> None:
    """The slot has come, its share of the jitter has not passed."""
    value = {**HOURLY, "jitter": "30m"}
    due = due_at(parse_schedule(value), NEW_YEAR + hours(1), key="d/0")
    assert due > NEW_YEAR + hours(1)
    assert plan(value, NEW_YEAR, due - timedelta(seconds=1)).is_empty
    assert fired(plan(value, NEW_YEAR, due)) == [1]


@pytest.mark.parametrize("value", [{"cron": "* * * * * *"}, {"interval": "1s"}, {"cron": "* * 3 1 * *"}])
def test_a_year_of_missed_seconds_is_bounded_and_quick(value: dict[str, Any]) -> None:
    """Millions of missed slots: the newest thousand are made up for, the rest is one stretch, at once."""
    now = NEW_YEAR + hours(24 * 300)
    began = time.process_time()
    p = plan({**value, "catch_up": "all"}, NEW_YEAR, now)
    assert time.process_time() - began < 20
    assert len(p.fire) == CATCH_UP_LIMIT
    assert p.skipped is not None
    assert not p.skipped.is_exact
    assert p.skipped.first < p.skipped.last < p.fire[0]
    assert next_fire(parse_schedule(value), p.fire[-1] - timedelta(seconds=1)) == p.fire[-1]
    assert p.through == p.fire[-1]
    newer = next_fire(parse_schedule(value), p.through)
    assert newer is None or newer > now


@given(
    schedules,
    moments,
    st.floats(0, 30 * 86_400),
    st.sampled_from(["none", "latest", "all", {"within": "6h"}]),
    st.integers(1, 50),
)
@settings(max_examples=150, deadline=None)
def test_every_slot_is_decided_exactly_once(
    schedule: Schedule, through: datetime, absent_s: float, policy: Any, limit: int
) -> None:
    """Run or left out, none forgotten, none twice, whatever the policy and the length of the absence."""
    schedule = parse_schedule({**schedule.model_dump(mode="json", exclude_defaults=True), "catch_up": policy})
    now = through + timedelta(seconds=absent_s)
    p = plan_slots(schedule, key="d/0", through=through, now=now, grace_s=30, limit=limit)
    want = fires_between(schedule, through, now, 100_000)
    assert len(p.fire) <= limit
    if p.skipped is None:
        assert list(p.fire) == want
    else:
        left_out = want[: len(want) - len(p.fire)]
        assert list(p.fire) == want[len(left_out) :]
        assert (p.skipped.first, p.skipped.last) == (left_out[0], left_out[-1])
        assert p.skipped.count == len(left_out) if p.skipped.is_exact else p.skipped.count <= len(left_out)
    if want:
        assert p.through == want[-1]
        assert plan_slots(schedule, key="d/0", through=p.through, now=now, grace_s=30).is_empty
    if policy == "all" and len(want) <= limit:
        assert list(p.fire) == want


def test_schedules_from_python_are_those_of_yaml() -> None:
    """The constructors Prefect users know give the same models."""
    assert Cron("0 6 * * *", "Europe/Berlin", slug="early", catch_up="all") == parse_schedule(
        {"cron": "0 6 * * *", "timezone": "Europe/Berlin", "name": "early", "catch_up": "all"}
    )
    assert Interval(900, active=False) == parse_schedule({"interval": "15m", "paused": True})
    assert Interval(timedelta(hours=1), NEW_YEAR) == parse_schedule({"interval": "1h", "anchor": NEW_YEAR})
    assert RRule("FREQ=DAILY", parameters={"x": 1}) == parse_schedule(
        {"rrule": "FREQ=DAILY", "parameters": {"x": 1}}
    )
    assert At(NEW_YEAR, "2026-02-01") == parse_schedule({"at": [NEW_YEAR, "2026-02-01"]})
    with pytest.raises(DefinitionError, match="4 fields"):
        Cron("* * * *")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"rrule": "FREQ=DAILY;BYMONTH=2,4;BYMONTHDAY=31"}, "never fires"),
        ({"rrule": "DTSTART:99991231T235959\nRRULE:FREQ=SECONDLY"}, "never fires"),
        ({"rrule": "FREQ=YEARLY;BYEASTER=-1000000"}, "BYEASTER"),
        ({"interval": "1s", "exclude": ["0001-01-01/9999-12-31"]}, "the last day there can be"),
        (
            {"interval": "1s", "exclude": ["2026-12-31/2026-12-01"]},
            "'2026-12-31/2026-12-01' ends before it begins",
        ),
        ({"cron": "0 0 * * *", "exclude": ["2026-01-01"] * 100_000}, "20000"),
        ({"at": "9999-12-31T23:59:59-14:00"}, "beyond the years"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "beyond the years"),
        ({"interval": "1s", "anchor": "0001-01-01T00:00:00+14:00"}, "beyond the years"),
    ],
)
def test_what_has_no_end_or_lies_beyond_all_years_is_refused(value: dict[str, Any], says: str) -> None:
    """At once and with a sentence: days that never come are not looked for one by one."""
    began = time.process_time()
    with pytest.raises(DefinitionError, match=says):
        parse_schedule(value)
    assert time.process_time() - began < 10


def test_rare_days_are_found_without_walking_to_them() -> None:
    """The 29th of February on a Monday, of daily rules and of those that step by seconds; Easter; a long list of days off."""
    began = time.process_time()
    after = datetime(2026, 1, 1, tzinfo=UTC)
    for rule in (
        "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO",
        "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO;BYHOUR=3",
    ):
        found = next_fire(parse_schedule({"rrule": rule}), after)
        assert found is not None
        assert f"{found:%Y-%m-%d}" == "2044-02-29"
    easter = parse_schedule({"rrule": "FREQ=DAILY;INTERVAL=2;BYEASTER=0,1"})
    assert [f"{slot:%m-%d}" for slot in fires_between(easter, after, datetime(2028, 1, 1, tzinfo=UTC))] == [
        "04-05",
        "03-29",
    ]
    off = [f"2026-{month:02}-{day:02}" for month in range(1, 13) for day in range(2, 29)] * 20
    minutes = parse_schedule({"cron": "*/10 * * * *", "exclude": off})
    assert f"{fires_between(minutes, after, datetime(2027, 1, 1, tzinfo=UTC), 10_000)[200]:%m-%d}" == "01-29"
    with pytest.raises(ValueError, match="more than 5000 days"):
        parse_ics(
            "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20200101\nRRULE:FREQ=SECONDLY\nEND:VEVENT\nEND:VCALENDAR",
            until=datetime(2036, 1, 1, tzinfo=UTC),
        )
    assert time.process_time() - began < 20
