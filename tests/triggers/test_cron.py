"""Cron: what expressions mean, on ordinary days and in the nights when clocks are moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile

import pytest
from croniter import croniter  # type: ignore[import-untyped]
from cronsim import CronSim
from hark.triggers.cron import parse_cron
from hark.triggers.wall import instants_after, to_instant, zone_named
from hypothesis import given, settings
from hypothesis import strategies as st

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "UTC",
    "Africa/Cairo",
)


def readings(text: str, after: datetime, count: int, zone: str = "UTC") -> list[str]:
    tz = zone_named(zone)
    slots = islice(instants_after(parse_cron(text), tz, after), count)
    return [slot.astimezone(tz).strftime("%m-%d %H:%M:%S%z") for slot in slots]


def days(text: str, year: int = 2026, count: int = 4) -> list[str]:
    slots = islice(parse_cron(text).walls_after(datetime(year, 1, 1)), count)
    return [slot.strftime("%m-%d") for slot in slots]


def test_a_fixed_time_that_is_skipped_fires_once_right_after_the_gap() -> None:
    """02:30 does not come on 29 March 2026 in Berlin: the run is made at 03:00, and only one."""
    assert readings("30 2 * * *", datetime(2026, 3, 28, 12, tzinfo=UTC), 3, "Europe/Berlin") == [
        "03-29 03:00:00+0200",
        "03-30 02:30:00+0200",
        "03-31 02:30:00+0200",
    ]


def test_several_times_in_one_gap_fire_there_together_once() -> None:
    """Three skipped readings and the one right after the gap are one slot."""
    got = readings("0,20,40 2-3 * * *", datetime(2026, 3, 29, 0, tzinfo=UTC), 3, "Europe/Berlin")
    assert got == ["03-29 03:00:00+0200", "03-29 03:20:00+0200", "03-29 03:40:00+0200"]


def test_a_fixed_time_that_comes_twice_fires_the_first_time() -> None:
    """02:30 comes twice on 25 October 2026 in Berlin: it fires in summer time and not again."""
    assert readings("30 2 * * *", datetime(2026, 10, 24, 12, tzinfo=UTC), 2, "Europe/Berlin") == [
        "10-25 02:30:00+0200",
        "10-26 02:30:00+0100",
    ]
    # Asked between the two, the next is tomorrow's.
    assert readings("30 2 * * *", datetime(2026, 10, 25, 0, 45, tzinfo=UTC), 1, "Europe/Berlin") == [
        "10-26 02:30:00+0100"
    ]


@pytest.mark.parametrize("text", ["*/30 * * * *", "0,30 * * * *", "*/30 0-23 * * *"])
def test_running_times_keep_their_real_distance_through_both_nights(text: str) -> None:
    """Every half hour is every half hour of real time, whatever the clocks show."""
    for start in (datetime(2026, 3, 28, 20, tzinfo=UTC), datetime(2026, 10, 24, 20, tzinfo=UTC)):
        slots = list(islice(instants_after(parse_cron(text), zone_named("Europe/Berlin"), start), 30))
        assert {b - a for a, b in pairwise(slots)} == {timedelta(minutes=30)}


def test_a_clock_moved_by_half_an_hour_is_read_rightly() -> None:
    """Lord Howe moves its clocks by 30 minutes: 02:15 is skipped and runs at 02:30; 01:45 comes twice."""
    assert readings("15 2 * * *", datetime(2026, 10, 3, 0, tzinfo=UTC), 2, "Australia/Lord_Howe") == [
        "10-04 02:30:00+1100",
        "10-05 02:15:00+1100",
    ]
    assert readings("45 1 * * *", datetime(2026, 4, 3, 20, tzinfo=UTC), 2, "Australia/Lord_Howe") == [
        "04-05 01:45:00+1100",
        "04-06 01:45:00+1030",
    ]


def test_a_gap_at_midnight_moves_the_daily_run_to_one_oclock() -> None:
    """In Cairo the gap begins at midnight; the day's run is not lost and not made twice."""
    got = readings("0 0 * * *", datetime(2026, 4, 23, 0, tzinfo=UTC), 3, "Africa/Cairo")
    assert got == ["04-24 01:00:00+0300", "04-25 00:00:00+0300", "04-26 00:00:00+0300"]


def test_day_words_mean_what_quartz_says() -> None:
    """L, L-n, nW, LW, # and a weekday with L."""
    assert days("0 0 L * *") == ["01-31", "02-28", "03-31", "04-30"]
    assert days("0 0 L-2 * *") == ["01-29", "02-26", "03-29", "04-28"]
    assert days("0 0 LW * *") == ["01-30", "02-27", "03-31", "04-30"]
    # 15 February 2026 is a Sunday, 15 August a Saturday; 1 August a Saturday, and W never leaves its month.
    assert days("0 0 15W * *", count=8) == [
        "01-15",
        "02-16",
        "03-16",
        "04-15",
        "05-15",
        "06-15",
        "07-15",
        "08-14",
    ]
    assert "08-03" in days("0 0 1W * *", count=9)
    assert days("0 0 * * fri#2") == ["01-09", "02-13", "03-13", "04-10"]
    assert (
        days("0 0 * * friL")
        == days("0 0 * * 5L")
        == days("0 0 * * L5")
        == ["01-30", "02-27", "03-27", "04-24"]
    )
    assert days("0 0 * * mon#5", count=2) == ["03-30", "06-29"]


def test_two_restricted_day_fields_need_either_unless_asked_for_both() -> None:
    """Cron's oldest surprise, kept; `day_or=False` asks for Friday the 13th."""
    assert days("0 0 13 * fri") == ["01-02", "01-09", "01-13", "01-16"]
    both = parse_cron("0 0 13 * fri", day_or=False)
    assert [f"{d:%m-%d}" for d in islice(both.walls_after(datetime(2026, 1, 1)), 3)] == [
        "02-13",
        "03-13",
        "11-13",
    ]


def test_names_ranges_over_the_end_steps_and_shorthands_are_read() -> None:
    """Weekend ranges and hours over midnight run on from the start; 0 and 7 are Sunday."""
    assert parse_cron("0 0 * * fri-mon").day_rule.weekdays == {5, 6, 0, 1}
    assert parse_cron("0 0 * * 5-7").day_rule.weekdays == {5, 6, 0}
    assert parse_cron("0 22-2 * * *").hours == (0, 1, 2, 22, 23)
    assert parse_cron("0 0 * nov-feb *").months == (1, 2, 11, 12)
    assert parse_cron("5/20 0 * * *").minutes == (5, 25, 45)
    assert parse_cron("10-30/10 0 * * Monday").minutes == (10, 20, 30)
    assert parse_cron("@weekly").day_rule == parse_cron("0 0 * * 0").day_rule
    assert readings("*/20 30 9 * * ?", datetime(2026, 1, 1, tzinfo=UTC), 2) == [
        "01-01 09:30:00+0000",
        "01-01 09:30:20+0000",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("*/5 * * *", r"has 4 fields; .* did you mean '\*/5 \* \* \* \*'"),
        ("0 0 1 1 * * 2026", "no field for the year: use `start` and `end`"),
        ("61 * * * *", "minute 61 is outside 0-59"),
        ("0 24 * * *", "midnight is hour 0"),
        ("0 0 * * mno", "did you mean 'mon'"),
        ("0 0 30 2 *", "never fires"),
        ("*/90 * * * *", "use `interval`"),
        ("0 0 20-10 * *", "write '20-31,1-10'"),
        ("H 0 * * *", "`jitter`"),
        ("@dayly", "did you mean '@daily'"),
        ("@reboot", "worker.started"),
        ("0 0 * * 5#6", "1 to 5 of a weekday"),
        ("0 0 2#1 * *", "belongs in day-of-week"),
        ("0 0 * * L", "unclear"),
        ("*/0 * * * *", "not a number from 1"),
        ("1,,2 * * * *", "empty"),
        ("", "has 0 fields"),
        ("0 0 L-31 * *", "count back from the last day"),
        ("0 ٣ * * *", "is not a hour|is not an? hour"),
    ],
)
def test_a_wrong_expression_says_what_is_wrong_and_what_to_write(text: str, says: str) -> None:
    """Every message names the field or the count and offers the way out."""
    with pytest.raises(ValueError, match=says):
        parse_cron(text)


@given(st.text(max_size=30) | st.from_regex(r"[\d*/,\-LW#?a-z@ ]{1,25}", fullmatch=True))
@settings(max_examples=150, deadline=None)
def test_no_text_does_anything_worse_than_a_value_error(text: str) -> None:
    """Whatever is written is an expression or a ValueError, at once."""
    try:
        cron = parse_cron(text)
    except ValueError:
        return
    assert next(cron.walls_after(datetime(2026, 1, 1)), None) is not None


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    ranges = st.tuples(number, number).map(lambda p: f"{min(p)}-{max(p)}")
    steps = st.integers(1, high - low).map(lambda n: f"*/{n}")
    lists = st.lists(number, min_size=1, max_size=3).map(lambda ns: ",".join(map(str, ns)))
    return st.one_of(st.just("*"), number.map(str), ranges, steps, lists)


expressions = st.builds(
    lambda *parts: " ".join(parts), field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)
)
moments = st.datetimes(datetime(2024, 1, 1), datetime(2032, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))


@given(expressions, moments)
@settings(max_examples=100, deadline=None)
def test_in_utc_it_agrees_with_another_implementation(text: str, after: datetime) -> None:
    """cronsim, which mimics Debian's cron, names the same slots."""
    ours = list(islice(instants_after(parse_cron(text), zone_named("UTC"), after), 5))
    theirs = list(islice(CronSim(text, after), 5))
    assert ours == theirs


def proper(low: int, high: int) -> st.SearchStrategy[str]:
    """A field without ranges of one number, of which croniter makes all there are."""
    return field(low, high).filter(lambda text: "-" not in text or len(set(text.split("-"))) == 2)


@given(
    st.builds(
        lambda *parts: " ".join(parts),
        proper(0, 59).filter(lambda text: text != "*"), proper(0, 5), st.just("*") | proper(1, 28), st.just("*"),
        st.just("*") | proper(0, 6),
    ),
    st.sampled_from(
        [
            ("Europe/Berlin", datetime(2026, 3, 28, 20, tzinfo=UTC)), ("Europe/Berlin", datetime(2026, 10, 24, 20, tzinfo=UTC)),
            ("America/New_York", datetime(2026, 3, 8, 2, tzinfo=UTC)), ("America/New_York", datetime(2026, 11, 1, tzinfo=UTC)),
            ("Africa/Cairo", datetime(2026, 4, 23, 18, tzinfo=UTC)), ("Asia/Kolkata", datetime(2026, 12, 30, tzinfo=UTC)),
        ]
    ),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_in_the_nights_when_clocks_are_moved_it_agrees_with_croniter(
    text: str, night: tuple[str, datetime]
) -> None:
    """Airflow's and Prefect's reading, but for two things that cron(8) says otherwise, and so do we.

    A fixed time that comes twice fires the first time; croniter fires both times. Of times that run (minute or hour begins
    with ``*``) one that is skipped does not happen; croniter makes up for it at the end of the gap. What croniter calls
    cron's bug, that ``*/2`` in a day field is combined with *and*, is asked of it.
    """
    zone, after = night
    tz, cron, end = zone_named(night[0]), parse_cron(text), after + timedelta(hours=40)
    ours = set(takewhile(lambda slot: slot <= end, instants_after(cron, tz, after)))
    them = croniter(text, after.astimezone(tz), ret_type=datetime, implement_cron_bug=True)
    theirs = {slot.astimezone(UTC) for slot in takewhile(lambda slot: slot <= end, them)}
    assert ours <= theirs
    for slot in theirs - ours:
        if cron.is_fixed:
            assert slot.astimezone(tz).fold == 1
            assert slot - timedelta(hours=1) in ours
        else:
            before = (slot - timedelta(seconds=1)).astimezone(tz)
            assert slot.astimezone(tz).utcoffset() != before.utcoffset(), f"{zone}: no end of a gap"


@given(expressions, st.sampled_from(ZONES), moments)
@settings(max_examples=150, deadline=None)
def test_slots_strictly_rise_and_do_not_depend_on_where_one_starts(
    text: str, zone: str, after: datetime
) -> None:
    """In any zone, starting again at a slot gives the slots that follow it."""
    tz, cron = zone_named(zone), parse_cron(text)
    slots = list(islice(instants_after(cron, tz, after), 40))
    assert all(a < b for a, b in pairwise([after, *slots]))
    for i in (0, len(slots) // 2):
        assert list(islice(instants_after(cron, tz, slots[i]), 5)) == slots[i + 1 : i + 6] or i + 6 > len(
            slots
        )


@given(
    st.sampled_from(ZONES[:4]),
    st.integers(2025, 2030),
    st.integers(0, 23),
    st.integers(0, 59),
)
@settings(max_examples=100, deadline=None)
def test_a_daily_time_fires_once_for_every_day_of_the_year(
    zone: str, year: int, hour: int, minute: int
) -> None:
    """Whatever clocks are moved: as many fires as days, each on its day, never none and never two."""
    tz = zone_named(zone)
    start = to_instant(datetime(year, 1, 1), tz) - timedelta(microseconds=1)
    end = to_instant(datetime(year + 1, 1, 1), tz)
    slots = []
    for slot in instants_after(parse_cron(f"{minute} {hour} * * *"), tz, start):
        if slot >= end:
            break
        slots.append(slot)
    local = [slot.astimezone(tz).date() for slot in slots]
    assert len(local) == len(set(local)) == (366 if year % 4 == 0 else 365)


@given(st.sampled_from(ZONES), moments, st.sampled_from([1, 5, 15, 30]))
@settings(max_examples=100, deadline=None)
def test_every_so_many_minutes_matches_each_real_reading(zone: str, after: datetime, step: int) -> None:
    """Brute force: walk two days minute by minute and read the clock."""
    tz = zone_named(zone)
    minute = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    walked = [minute + timedelta(minutes=i) for i in range(600)]
    want = [m for m in walked if m.astimezone(tz).minute % step == 0]
    got = list(islice(instants_after(parse_cron(f"*/{step} * * * *"), tz, after), len(want)))
    assert got == want


def test_an_unknown_time_zone_is_refused_with_a_suggestion() -> None:
    """A wrong letter, a bare city and a wrong case are recognised; a path reaches no file."""
    for name, near in [
        ("Europe/Berln", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
    ]:
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            zone_named(name)
    for name in ("../../etc/passwd", "/etc/localtime", "", "localtime", "a" * 5000, "\x00"):
        with pytest.raises(ValueError, match="no time zone"):
            zone_named(name)
