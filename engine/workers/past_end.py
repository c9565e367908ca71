"""Ends of a run that has gone on since: somebody retried it before their hooks had been called. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ...bus.event import Recorded
from ..dispatching.ticket import Ticket
from ..runs.hook_log import ANYONE, HERE, is_owed
from ..runs.run import FlowRun
from ..runs.run_log import readable_run
from ..states import StateType

__all__ = ["past_end"]


def past_end(history: Iterable[Recorded], ticket: Ticket) -> FlowRun | None:
    """Return the end, before the run's present state, whose hooks whoever has this work message is to call.

    That is the end the message was pushed for, or the one that its former holder wrote and perhaps did not outlive.

    Args:
        history: the run's transitions, oldest first.
    """
    found: FlowRun | None = None
    token: str | None = None
    last = 0
    for run in filter(None, map(readable_run, history)):
        last = run.seq
        if run.state_type is StateType.SCHEDULED and not run.waits_in_process:
            token = None
        if isinstance(given := run.state_details.get("token"), str):
            token = given
        pushed = is_owed(run, ANYONE) and run.seq == ticket.since
        if pushed or (is_owed(run, HERE) and token == ticket.token):
            found = run
    return found if found is not None and found.seq < last else None
