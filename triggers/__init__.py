"""Noticing facts: schedules and webhooks become events and requests for runs.

Read ``schedule.py`` and ``webhook.py`` first: what people write. ``wall.py``, ``cron.py``, ``rrule.py``, ``calendar.py`` and
``due.py`` decide when, ``scheduler.py`` does it; ``verify.py``, ``body.py`` and ``mapping.py`` decide what a request
is, ``receiver.py`` takes it in. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .due import Plan, Skipped, plan_slots
    from .preset import Verify
    from .receiver import Answer, WebhookReceiver
    from .schedule import (
        AtSchedule,
        CronSchedule,
        IntervalSchedule,
        Overlap,
        RRuleSchedule,
        Schedule,
        StoredSchedule,
        due_at,
        fires_after,
        fires_between,
        next_fire,
        parse_schedule,
        resolve_calendars,
        slot_run_id,
    )
    from .scheduler import NotStarted, RunStarter, Scheduler, Started
    from .signing import sign
    from .verify import Keys
    from .webhook import EventMapping, Webhook, clean_type

_WHERE = {
    "due": ("Plan", "Skipped", "plan_slots"),
    "receiver": ("Answer", "WebhookReceiver"),
    "schedule": (
        "AtSchedule", "CronSchedule", "IntervalSchedule", "Overlap", "RRuleSchedule", "Schedule", "StoredSchedule",
        "due_at", "fires_after", "fires_between", "next_fire", "parse_schedule", "resolve_calendars", "slot_run_id",
    ),
    "scheduler": ("NotStarted", "RunStarter", "Scheduler", "Started"),
    "preset": ("Verify",),
    "signing": ("sign",),
    "verify": ("Keys",),
    "webhook": ("EventMapping", "Webhook", "clean_type"),
}  # fmt: skip
_ROOM = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Answer", "AtSchedule", "CronSchedule", "EventMapping", "IntervalSchedule", "Keys", "NotStarted", "Overlap", "Plan",
    "RRuleSchedule", "RunStarter", "Schedule", "Scheduler", "Skipped", "Started", "StoredSchedule", "Verify", "Webhook",
    "WebhookReceiver", "clean_type", "due_at", "fires_after", "fires_between", "next_fire", "parse_schedule",
    "plan_slots", "resolve_calendars", "sign", "slot_run_id",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _ROOM.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{module}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
