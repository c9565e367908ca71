"""Backfill: the slots of a stretch of the past, to be run now. Pure; the plan is shown before anything is started.

The run of a slot has the id it would have had on time, so what has run is not run again, and a backfill that is
interrupted and asked for again goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..errors import DefinitionError
from ..vocabulary import FlowRunId
from .schedule import StoredSchedule, fires_between, slot_run_id

__all__ = ["BackfillSlot", "plan_backfill"]

_MAX_SLOTS = 10_000


@dataclass(frozen=True, slots=True)
class BackfillSlot:
    """A slot to be run, and the id its run has."""

    slot: datetime
    run_id: FlowRunId


def plan_backfill(
    stored: StoredSchedule, start: datetime, end: datetime, *, now: datetime, limit: int = 1000
) -> tuple[BackfillSlot, ...]:
    """Return the slots with ``start`` <= slot < ``end``, oldest first. Paused or not makes no difference.

    Args:
        limit: most slots, at most 10 000.
    Raises:
        DefinitionError: the stretch is empty, reaches into the future, or has more slots than ``limit``.
    """
    if end <= start:
        raise DefinitionError(
            f"a backfill ends after it begins, got {start.isoformat()} to {end.isoformat()}"
        )
    if end > now:
        raise DefinitionError(
            f"a backfill ends in the past, got {end.isoformat()}",
            hint="the scheduler runs what is still to come",
        )
    limit = min(limit, _MAX_SLOTS)
    # `fires_between` leaves out its beginning and takes its end; a stretch of days is meant the other way round.
    tick = timedelta(microseconds=1)
    slots = fires_between(stored.schedule, start - tick, end - tick, limit + 1)
    if len(slots) > limit:
        raise DefinitionError(
            f"there are more than {limit} slots of {stored.key} from {start.isoformat()} to {end.isoformat()}",
            hint="take a shorter stretch, or raise the limit",
        )
    return tuple(
        BackfillSlot(slot, FlowRunId(slot_run_id(stored.deployment, stored.name, slot))) for slot in slots
    )
