"""How far a schedule has come: what stands in the bucket ``checkpoints``, and the events of its slots. Pure.

The entry of a schedule is written twice per decision: with the plan before anything is done (the *claim*), without
it when all is done. A scheduler that finds a claim carries it out again: the events carry ids derived from the
slot, the runs too, so that doing it again is doing it once. Writes are guarded by the entry's revision, so that of two
schedulers that both take themselves for the leader, one decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

import orjson

from ..bus.event import Event, format_time, parse_time
from ..vocabulary import EventId, JsonObject, derived_id
from .due import Plan, Skipped
from .schedule import StoredSchedule, due_at, schedule_kind, slot_run_id, timing_version

__all__ = [
    "CHECKPOINT_PREFIX",
    "SOURCE",
    "Progress",
    "base_of",
    "fired_event",
    "missed_event",
    "not_started_event",
]

CHECKPOINT_PREFIX = "schedule/"
SOURCE = "/hark/schedules"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one schedule is decided.

    Attributes:
        timing: ``timing_version`` of the schedule that ``through`` was counted with.
        through: every slot up to here has been decided.
        paused: the scheduler saw it paused; what came since is not made up for.
        plan: decided and perhaps not (fully) carried out.
    """

    timing: str
    through: datetime
    paused: bool = False
    plan: Plan | None = None

    def to_json(self) -> bytes:
        """Return the bytes stored in the bucket."""
        out: JsonObject = {"timing": self.timing, "through": format_time(self.through), "paused": self.paused}
        if self.plan is not None:
            skipped = self.plan.skipped
            out["plan"] = {
                "fire": [format_time(slot) for slot in self.plan.fire],
                "missed": self.plan.missed,
                "through": format_time(self.plan.through),
                "skipped": None if skipped is None else _span_of(skipped),
            }
        return orjson.dumps(out)

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError, KeyError, TypeError, EventInvalid: it did not.
        """
        value = orjson.loads(raw)
        plan = None
        if (found := value.get("plan")) is not None:
            skipped = found["skipped"]
            plan = Plan(
                fire=tuple(parse_time(slot) for slot in found["fire"]),
                missed=int(found["missed"]),
                skipped=None
                if skipped is None
                else Skipped(
                    parse_time(skipped["first"]),
                    parse_time(skipped["last"]),
                    int(skipped["count"]),
                    bool(skipped["is_exact"]),
                    str(skipped["reason"]),
                ),
                through=parse_time(found["through"]),
            )
        return cls(str(value["timing"]), parse_time(value["through"]), bool(value["paused"]), plan)

    def done(self) -> Progress:
        """Return the progress once its plan is carried out."""
        return self if self.plan is None else replace(self, through=self.plan.through, plan=None)


def base_of(
    stored: StoredSchedule, progress: Progress | None, *, stored_at: datetime, now: datetime
) -> datetime:
    """Return the moment after which slots are still to be decided.

    Where the last scheduler left off; but from the definition's own storing (never from the future) when it is new, when
    its times were changed, or when it was paused: nobody wants last year's slots of a rule written today.
    """
    fresh = stored.since or min(now, stored_at)
    if progress is None or progress.timing != timing_version(stored.schedule):
        return fresh
    return max(progress.through, fresh) if progress.paused else progress.through


def _span_of(skipped: Skipped) -> JsonObject:
    return {
        "first": format_time(skipped.first),
        "last": format_time(skipped.last),
        "count": skipped.count,
        "is_exact": skipped.is_exact,
        "reason": skipped.reason,
    }


def _about(stored: StoredSchedule) -> JsonObject:
    return {
        "deployment": {"name": stored.deployment},
        "schedule": {
            "name": stored.name,
            "kind": schedule_kind(stored.schedule),
            "timezone": stored.schedule.timezone,
        },
    }


def _event_id(type_: str, stored: StoredSchedule, *parts: str) -> EventId:
    return EventId(derived_id(type_, stored.deployment, stored.name, *parts))


def fired_event(stored: StoredSchedule, slot: datetime, *, is_missed: bool, now: datetime) -> Event:
    """Return ``schedule.fired``: the slot has come, and a run is asked for. One id per slot, for ever."""
    due = due_at(stored.schedule, slot, key=stored.key)
    return Event(
        type="schedule.fired",
        source=SOURCE,
        id=_event_id("schedule.fired", stored, format_time(slot)),
        subject=f"schedule/{stored.key}",
        time=now,
        data={
            **_about(stored),
            "slot": format_time(slot),
            "due": format_time(due),
            "late_s": round(max(0.0, (now - due).total_seconds()), 3),
            "catch_up": is_missed,
            "run": {"id": slot_run_id(stored.deployment, stored.name, slot)},
        },
    )


def missed_event(stored: StoredSchedule, skipped: Skipped, *, now: datetime) -> Event:
    """Return ``schedule.skipped`` for a stretch of slots that came while nobody was there."""
    return Event(
        type="schedule.skipped",
        source=SOURCE,
        id=_event_id("schedule.skipped", stored, format_time(skipped.first), format_time(skipped.last)),
        subject=f"schedule/{stored.key}",
        time=now,
        data={**_about(stored), "slot": format_time(skipped.last), "why": "missed", **_span_of(skipped)},
    )


def not_started_event(
    stored: StoredSchedule, fired: Event, slot: datetime, *, why: str, reason: str, now: datetime
) -> Event:
    """Return ``schedule.skipped`` for a slot that came and got no run. ``why`` is ``refused`` or ``failed``."""
    text = format_time(slot)
    return Event(
        type="schedule.skipped",
        source=SOURCE,
        id=_event_id("schedule.skipped", stored, text),
        subject=f"schedule/{stored.key}",
        time=now,
        data={
            **_about(stored),
            "slot": text,
            "why": why,
            "first": text,
            "last": text,
            "count": 1,
            "is_exact": True,
            "reason": reason,
        },
        **fired.caused(),
    )
