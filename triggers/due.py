"""Which slots are to be run now: the decision after a wait, a delay, a restart or a long absence. Pure.

A slot handled within ``grace_s`` of its due time is on time and always run. An older one was *missed*, and the
schedule's ``catch_up`` decides. What is left out is one contiguous stretch, always the oldest, told in one event.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ..duration import format_duration
from .schedule import Schedule, due_at, fires_between, next_fire

__all__ = ["CATCH_UP_LIMIT", "Plan", "Skipped", "plan_slots"]

CATCH_UP_LIMIT = 1000
"""Most slots made up for after one absence, whatever the policy; the newest are kept."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A stretch of slots that are not run, ends included. ``count`` is exact, or the least it can be."""

    first: datetime
    last: datetime
    count: int
    is_exact: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Attributes:
        fire: slots to run, oldest first.
        missed: how many of them, from the first, come later than they should.
        skipped: the slots that are left out, or None.
        through: every slot up to this one is decided (run or left out); the next plan starts after it.
    """

    fire: tuple[datetime, ...]
    missed: int
    skipped: Skipped | None
    through: datetime

    @property
    def is_empty(self) -> bool:
        return not self.fire and self.skipped is None


def plan_slots(
    schedule: Schedule,
    *,
    key: str,
    through: datetime,
    now: datetime,
    grace_s: float,
    limit: int = CATCH_UP_LIMIT,
) -> Plan:
    """Return what is to be done at ``now`` about the slots after ``through``.

    Args:
        key: the schedule's key, which its jitter depends on.
        through: the last slot that was decided (or the moment from which the schedule counts).
        grace_s: how late a slot may be handled and still be on time.
        limit: most slots to run at once.
    """
    slots, has_older = _newest(schedule, through, now, limit + 1)
    # With jitter the last slots may have come and not be due yet.
    while slots and due_at(schedule, slots[-1], key=key) > now:
        slots.pop()
    if not slots:
        return Plan((), 0, None, through)
    fresh_from = now - timedelta(seconds=grace_s)
    missed = [slot for slot in slots if due_at(schedule, slot, key=key) < fresh_from]
    on_time = slots[len(missed) :]
    kept, reason = _policy(schedule, missed, on_time, now)
    if len(kept) + len(on_time) > limit:
        kept, reason = kept[len(kept) + len(on_time) - limit :], f"more than {limit} slots were missed"
    left_out = missed[: len(missed) - len(kept)]
    skipped = None
    if left_out:
        first = (next_fire(schedule, through) if has_older else None) or left_out[0]
        skipped = Skipped(first, left_out[-1], len(left_out), not has_older, reason)
    return Plan((*kept, *on_time), len(kept), skipped, slots[-1])


def _policy(
    schedule: Schedule, missed: list[datetime], on_time: list[datetime], now: datetime
) -> tuple[list[datetime], str]:
    """Return the missed slots that are made up for (the newest of them), and why the others are not."""
    policy = schedule.catch_up
    if policy == "all":
        return missed, ""
    if policy == "none":
        return [], "missed; catch_up is none"
    if policy == "latest":
        return ([] if on_time else missed[-1:]), "missed; catch_up is latest, and a newer slot is run"
    oldest = now - timedelta(seconds=policy.within)
    return (
        [slot for slot in missed if slot >= oldest],
        f"missed; catch_up is within {format_duration(policy.within)}, and this was earlier",
    )


def _newest(schedule: Schedule, after: datetime, until: datetime, count: int) -> tuple[list[datetime], bool]:
    """Return the newest ``count`` slots with ``after`` < slot <= ``until``, and whether there are older ones.

    An absence of a year must not list each second of it: the stretch looked at grows backwards from ``until`` by
    doubling, and is halved where it turns out to hold far too many.
    """
    if until <= after:
        return [], False
    found = fires_between(schedule, after, until, count + 1)
    if len(found) <= count:
        return found, False
    bound = 8 * count
    few, many = timedelta(seconds=count), None  # slots are a second apart at least, so `few` holds no more
    found = fires_between(schedule, max(after, until - few), until, bound)
    while len(found) < count:
        if many is not None and many - few < timedelta(seconds=1):
            break  # moments of `at` may be closer together than that
        trial = few * 2 if many is None else few + (many - few) / 2
        more = fires_between(schedule, max(after, until - trial), until, bound)
        if len(more) >= bound:
            many = trial
        else:
            found, few = more, trial
    return found[-count:], True
