"""Actions whose time has not come, by their ``delay``: nothing says so but the decision they stand in. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..action import parse_stored_action
from .action_state import kind_of

__all__ = ["WaitingAction", "delay_of", "waiting_in"]


@dataclass(frozen=True, slots=True)
class WaitingAction:
    """An action that is begun at ``due_at``; ``index`` is its place in the decision, from 0."""

    index: int
    kind: str
    due_at: datetime


def delay_of(written: Any) -> float:
    """Return for how long after its firing an action waits, in seconds.

    0 also for a run, which waits as one that is scheduled, and for one that cannot be read, which is told as its outcome.
    """
    if not isinstance(written, dict) or "delay" not in written or "run" in written:
        return 0.0
    try:
        return float(parse_stored_action(written).delay or 0.0)
    except ValueError:
        return 0.0


def waiting_in(
    data: Any, *, decided_at: datetime, begun: Collection[int], now: datetime
) -> tuple[WaitingAction, ...]:
    """Return the actions of a decision that are not due yet, in its order.

    Args:
        data: of the event that stores the decision.
        begun: the places of those something is known of already.
    """
    actions = data.get("actions") if isinstance(data, dict) else None
    if not isinstance(actions, list) or data.get("shadow"):
        return ()
    waiting = [
        WaitingAction(i, kind_of(written), decided_at + timedelta(seconds=delay_of(written)))
        for i, written in enumerate(actions)
        if i not in begun
    ]
    return tuple(one for one in waiting if one.due_at > now)
