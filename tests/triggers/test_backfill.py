"""Backfill plans: which slots of the past, under which run ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hark.errors import DefinitionError
from hark.triggers.backfill import (
    Backfill,
    BackfillProgress,
    backfill_name,
    backfill_run_id,
    choose,
    moment_in,
    parameters_of,
    plan_backfill,
)
from hark.triggers.schedule import StoredSchedule, parse_schedule, slot_run_id
from pydantic import ValidationError

NOW = datetime(2026, 2, 1, tzinfo=UTC)
DAILY = StoredSchedule.of("etl", 0, parse_schedule({"cron": "0 0 * * *", "paused": True}))
JAN = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 5)]


def a_backfill(**changes: object) -> Backfill:
    fields: dict[str, object] = {
        "name": "b", "deployment": "etl", "schedules": ("0",), "start": "2026-01-01", "end": "2026-01-04",
        "slots": tuple(("0", slot) for slot in JAN[:3]), "asked_at": NOW,
    }  # fmt: skip
    return Backfill.model_validate({**fields, **changes})


def test_a_plan_names_each_slot_of_the_stretch_with_its_run() -> None:
    """From inclusive, to exclusive; the ids are those of the scheduled runs, so nothing is run twice."""
    plan = plan_backfill(DAILY, JAN[0], JAN[3], now=NOW)
    assert [one.slot.day for one in plan] == [1, 2, 3]
    assert plan[0].run_id == slot_run_id("etl", "0", plan[0].slot)


@pytest.mark.parametrize(
    ("days", "limit", "says"),
    [
        ((0, 0), 10, "ends after it begins"),
        ((0, 60), 100, "ends in the past"),
        ((0, 20), 10, "more than 10 slots"),
    ],
)
def test_a_stretch_that_cannot_be_meant_is_refused(days: tuple[int, int], limit: int, says: str) -> None:
    """Empty, in the future, or longer than was agreed."""
    start, end = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in days)
    with pytest.raises(DefinitionError, match=says):
        plan_backfill(DAILY, start, end, now=NOW, limit=limit)


@pytest.mark.parametrize(("reprocess", "to_run"), [("none", [4]), ("failed", [2, 4]), ("all", [1, 2, 4])])
def test_slots_that_have_had_a_run_are_run_again_only_when_asked(reprocess: str, to_run: list[int]) -> None:
    """none leaves all of them out, failed takes those that went wrong, all those that are over; what runs, runs on."""
    slots = plan_backfill(DAILY, JAN[0], JAN[3] + timedelta(days=1), now=NOW)
    known = {slots[0].run_id: "completed", slots[1].run_id: "crashed", slots[2].run_id: "running"}
    chosen = choose(slots, known, name="b", deployment="etl", reprocess=reprocess)  # type: ignore[arg-type]
    assert [one.slot.day for one in chosen if not one.left_out] == to_run
    again = [one for one in chosen if not one.left_out and one.was]
    assert all(one.run_id == backfill_run_id("b", "etl", "0", one.slot) for one in again)
    assert chosen[3].run_id == slot_run_id("etl", "0", JAN[3])


def test_days_are_read_on_the_schedules_clock() -> None:
    """A day begins where the schedule lives; an offset that was written counts."""
    assert moment_in("2026-07-01", "Europe/Berlin") == datetime(2026, 6, 30, 22, tzinfo=UTC)
    assert moment_in("2026-07-01T00:00:00Z", "Europe/Berlin") == datetime(2026, 7, 1, tzinfo=UTC)
    with pytest.raises(DefinitionError, match="neither a date nor a moment"):
        moment_in("7d", "UTC")


def test_the_same_wish_has_the_same_name() -> None:
    """Asking twice without a name is asking for the same backfill, in whatever order parameters are written."""
    assert backfill_name("etl", [{"a": 1, "b": 2}]) == backfill_name("etl", [{"b": 2, "a": 1}])
    assert backfill_name("etl", ["2026-01-01"]) != backfill_name("etl", ["2026-01-02"])


def test_parameters_may_read_the_slot() -> None:
    """The schedule's parameters, over them the backfill's with slot and next_slot rendered; nothing else is readable."""
    backfill = a_backfill(laid={"0": {"full": False, "n": 1}}, parameters={"day": "{{ slot[:10] }}", "n": 2})
    assert parameters_of(backfill, 1, JAN[2]) == {"full": False, "n": 2, "day": "2026-01-02"}
    with pytest.raises(ValidationError, match="'secrets' is not known"):
        a_backfill(parameters={"x": "{{ secrets.x }}"})


def test_progress_survives_being_stored() -> None:
    """decode(encode(x)) == x, and an end takes a run off the active ones."""
    import orjson

    progress = BackfillProgress().begun("r1").begun("r2").over("r1", "failed")
    assert (progress.asked, progress.active, progress.went_wrong) == (2, ("r2",), 1)
    assert BackfillProgress.from_json(orjson.dumps(progress.to_dict())) == progress
