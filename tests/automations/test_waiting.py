"""What waits by its delay can be told from the decision alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hark.automations.acting.waiting import WaitingAction, waiting_in

AT = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_is_not_due_yet_waits() -> None:
    """Not a run, which is asked for at once; nor what was begun, is due, cannot be read or belongs to a rule on trial."""
    actions: list[Any] = [
        {"notify": "oncall", "delay": "10m"}, {"emit": "a.b", "delay": 600}, {"run": "x", "delay": "10m"}, {"emit": "a.b"},
        {"emit": "a.b", "delay": "1m"}, {"emit": "a.b", "delay": "soon"}, {"approve": "oncall", "delay": "1h"}, "nonsense",
    ]  # fmt: skip
    data = {"actions": actions}
    waiting = waiting_in(data, decided_at=AT, begun={1}, now=AT + timedelta(minutes=5))
    assert waiting == (
        WaitingAction(0, "notify", AT + timedelta(minutes=10)),
        WaitingAction(6, "approve", AT + timedelta(hours=1)),
    )
    for other in ({**data, "shadow": True}, {"actions": 5}, None):
        assert waiting_in(other, decided_at=AT, begun=(), now=AT) == ()
