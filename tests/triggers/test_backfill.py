"""Backfill plans: which slots of the past, under which run ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hark.errors import DefinitionError
from hark.triggers.backfill import plan_backfill
from hark.triggers.schedule import StoredSchedule, parse_schedule, slot_run_id

NOW = datetime(2026, 2, 1, tzinfo=UTC)
DAILY = StoredSchedule.of("etl", 0, parse_schedule({"cron": "0 0 * * *", "paused": True}))


def test_a_plan_names_each_slot_of_the_stretch_with_its_run() -> None:
    """From inclusive, to exclusive; the ids are those of the scheduled runs, so nothing is run twice."""
    plan = plan_backfill(DAILY, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 4, tzinfo=UTC), now=NOW)
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
