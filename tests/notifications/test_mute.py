"""Mute times by the clocks of a place: summer time, midnight, the end of the month. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hark.notifications.mute import MuteTime, is_muted, mute_end
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = MuteTime(timezone="Europe/Berlin", times=("22:00-07:00",))


def berlin(text: str, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold)


@pytest.mark.parametrize(
    ("at", "muted", "end"),
    [
        ("2026-01-15T21:59", False, None),
        ("2026-01-15T22:00", True, "2026-01-16T07:00"),
        ("2026-01-16T06:59", True, "2026-01-16T07:00"),
        # The night in which an hour is left out ends an hour sooner, the one that has an hour twice an hour later.
        ("2026-03-28T22:00", True, "2026-03-29T07:00"),
        ("2026-10-24T22:00", True, "2026-10-25T07:00"),
    ],
)
def test_nights_pass_midnight_and_summer_time(at: str, muted: bool, end: str | None) -> None:
    """From ten to seven by the clock on the wall, whatever the clock was put to meanwhile."""
    moment = berlin(at)
    assert is_muted(NIGHTS, moment.astimezone(UTC)) is muted
    if end is not None:
        assert mute_end(NIGHTS, moment) == berlin(end)
    lasts = {"2026-03-28T22:00": 8, "2026-10-24T22:00": 10, "2026-01-15T22:00": 9}.get(at)
    if lasts is not None:
        found = mute_end(NIGHTS, moment)
        assert found is not None
        assert found.astimezone(UTC) - moment.astimezone(UTC) == timedelta(hours=lasts)


def test_an_hour_that_comes_twice_is_muted_twice() -> None:
    """02:30 to 02:45 on the day the clocks go back: both times, and the time between is not."""
    mute = MuteTime(timezone="Europe/Berlin", times=("02:30-02:45",))
    first, second = berlin("2026-10-25T02:35"), berlin("2026-10-25T02:35", fold=1)
    assert is_muted(mute, first)
    assert is_muted(mute, second)
    assert mute_end(mute, first) == berlin("2026-10-25T02:45").astimezone(UTC)
    assert not is_muted(mute, berlin("2026-10-25T02:50"))
    # One that the clocks jump out of ends when they do.
    late = MuteTime(timezone="Europe/Berlin", times=("02:30-03:00",))
    end = mute_end(late, berlin("2026-10-25T02:40"))
    assert end is not None
    assert end.astimezone(UTC) == datetime(2026, 10, 25, 1, 0, tzinfo=UTC)
    assert is_muted(late, berlin("2026-10-25T02:40", fold=1))


def test_an_hour_that_is_left_out_is_skipped() -> None:
    """A range that begins inside the gap begins when the clocks have jumped."""
    mute = MuteTime(timezone="Europe/Berlin", times=("02:30-03:30",))
    jump = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert not is_muted(mute, jump - timedelta(seconds=1))
    assert is_muted(mute, jump)
    assert mute_end(mute, jump) == jump + timedelta(minutes=30)


@pytest.mark.parametrize(
    ("written", "at", "muted"),
    [
        ({"weekdays": ["sat-sun"]}, "2026-01-17T00:00", True),
        ({"weekdays": ["sat-sun"]}, "2026-01-19T00:00", False),
        ({"weekdays": "fri-mon"}, "2026-01-19T12:00", True),
        # The night of Friday goes on into Saturday morning, and the morning of Friday belongs to Thursday.
        ({"weekdays": ["fri"], "times": ["22:00-07:00"]}, "2026-01-17T06:00", True),
        ({"weekdays": ["fri"], "times": ["22:00-07:00"]}, "2026-01-16T06:00", False),
        ({"days": [-1]}, "2026-02-28T12:00", True),
        ({"days": ["-3--1"]}, "2026-02-25T12:00", False),
        ({"days": ["1-3"], "months": ["jan", "jul-sep"]}, "2026-08-02T12:00", True),
        ({"days": ["1-3"], "months": ["jan", "jul-sep"]}, "2026-10-02T12:00", False),
        ({"times": ["00:00-24:00"]}, "2026-10-02T23:59", True),
    ],
)
def test_what_is_written_must_all_hold(written: dict[str, Any], at: str, muted: bool) -> None:
    """Times, days of the week and of the month, and months are ANDed; each is a list of alternatives."""
    mute = MuteTime.model_validate({"timezone": "Europe/Berlin", **written})
    assert is_muted(mute, berlin(at)) is muted
    assert MuteTime.model_validate_json(mute.model_dump_json(exclude_defaults=True)) == mute


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"times": ["22-7"]}, "22:00-07:00"),
        ({"times": ["25:00-26:00"]}, "07:00"),
        ({"times": ["07:00-07:00"]}, "whole day"),
        ({"weekdays": ["someday"]}, "mon, tue"),
        ({"weekdays": [1]}, "mon, tue"),
        ({"days": [32]}, "1 to 31"),
        ({"months": ["13"]}, "jan"),
        ({"timezone": "Berlin"}, "Europe/Berlin"),
        ({"time": ["22:00-07:00"]}, "not permitted"),
    ],
)
def test_what_does_not_stand_is_refused(written: dict[str, Any], said: str) -> None:
    """With what to write instead."""
    with pytest.raises(ValidationError, match=said):
        MuteTime.model_validate(written)


def test_what_has_no_end_has_none() -> None:
    """Muted always: the end is nothing, and is found in reasonable time."""
    assert mute_end(MuteTime(), datetime(2026, 1, 1, tzinfo=UTC)) is None


ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "UTC",
    "America/Sao_Paulo",
]


@st.composite
def mutes(draw: st.DrawFn) -> MuteTime:
    def clock() -> str:
        minute = draw(st.integers(0, 1439))
        return f"{minute // 60:02}:{minute % 60:02}"

    times = [f"{a}-{b}" for a, b in [(clock(), clock()) for _ in range(draw(st.integers(1, 3)))] if a != b]
    weekdays = draw(st.sampled_from([[], ["mon-fri"], ["sat", "sun"], ["wed"]]))
    return MuteTime.model_validate(
        {"timezone": draw(st.sampled_from(ZONES)), "times": times or ["01:00-02:00"], "weekdays": weekdays}
    )


@settings(max_examples=60, deadline=None)
@given(mutes(), st.integers(0, 366 * 1440))
def test_the_end_is_the_first_moment_that_is_not_muted(mute: MuteTime, minute: int) -> None:
    """Nothing before it is free, it is: checked minute by minute, in zones that put their clocks by half hours too."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    end = mute_end(mute, at)
    if not is_muted(mute, at):
        assert end is None or not is_muted(mute, end)
        return
    assert end is None or not is_muted(mute, end)
    end = end or at + timedelta(days=9)  # always muted
    probe = at
    while probe < min(end, at + timedelta(days=2)):
        assert is_muted(mute, probe)
        probe += timedelta(minutes=1)
