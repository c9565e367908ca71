"""The message by which the dispatcher hands a run to a worker, and what a worker makes of it. Pure.

A message says which stay in SCHEDULED it is for (``since``) and carries a token that is its own. A worker notes the token
in the log when it takes the run, so a message that comes again because its worker died can be told from a second message
for a run that somebody executes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

import orjson

from ...bus.event import Recorded
from ...vocabulary import FlowRunId, JsonObject, StateType, new_id
from ..runs.hook_log import ANYONE, HERE, is_owed
from ..runs.run import FlowRun

__all__ = ["Answer", "Ticket", "answer", "attempt_taken", "lane_of", "losses", "message_taken"]

S = StateType

EARLY_S = 1.0
"""A message for a run that is due later than this is for an earlier due time; clocks may differ by as much."""


@dataclass(frozen=True, slots=True)
class Ticket:
    run_id: FlowRunId
    attempt: int
    since: int
    token: str
    hooks: bool = False
    """For the hooks of the end at ``since``, and for nothing else."""

    @classmethod
    def issue(cls, run_id: FlowRunId, *, attempt: int, since: int, hooks: bool = False) -> Self:
        return cls(run_id, attempt, since, new_id(), hooks)

    @property
    def msg_id(self) -> str:
        """One for each stay in SCHEDULED: whoever pushes it again pushes nothing new.

        The attempt alone would not do: a run that is cancelled before it starts and then retried has the same one.
        """
        return f"{self.run_id}/{self.attempt}/{self.since}"

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        value: Any = orjson.loads(raw)
        return cls(
            FlowRunId(value["run_id"]),
            value["attempt"],
            value["since"],
            value["token"],
            bool(value.get("hooks")),
        )


class Answer(StrEnum):
    """What to do with a message."""

    TAKE = "take"
    """Begin the run."""
    TAKE_OVER = "take over"
    """Go on with a run whose worker died."""
    STOP = "stop"
    """Write the end of a run that was to be cancelled when its worker died."""
    HOOKS = "hooks"
    """Call the hooks of an end whose writer has not."""
    DISCARD = "discard"
    """The run has moved on; the message is about the past."""
    LATER = "later"
    """What we read is older than the message: ask again in a moment."""


def answer(
    ticket: Ticket, run: FlowRun | None, *, deliveries: int, claim: str | None, now: datetime
) -> Answer:
    """Return what a worker does with a message, given the run as the log has it.

    Args:
        deliveries: how often the message was handed out, this time included.
        claim: token of the message under which the run was last taken.
    """
    if run is None:
        # A copy of the log that lags behind may not have it yet; after that, it has aged out of the log.
        return Answer.LATER if deliveries <= MAX_LOOKS else Answer.DISCARD
    if run.seq < ticket.since:
        return Answer.LATER
    if ticket.hooks and not run.is_final:
        return Answer.DISCARD
    match run.state_type:
        case S.SCHEDULED if run.waits_in_process:
            return Answer.TAKE_OVER if claim == ticket.token else Answer.DISCARD
        case S.SCHEDULED:
            if run.attempt != ticket.attempt or run.seq < ticket.since:
                return Answer.DISCARD
            due = run.scheduled_at
            if due is not None and not run.is_due_at_once and due > now + timedelta(seconds=EARLY_S):
                return Answer.DISCARD
            return Answer.TAKE
        case S.PENDING | S.RUNNING:
            return Answer.TAKE_OVER if claim == ticket.token else Answer.DISCARD
        case S.CANCELLING:
            # Nobody but us can have had this message, so nobody executes the run any more.
            return Answer.STOP if claim == ticket.token or claim is None else Answer.DISCARD
        case S.PAUSED if run.state_details.get("in_process"):
            # It paused without leaving its worker, which has died: whoever takes it up pauses it again.
            return Answer.TAKE_OVER if claim == ticket.token else Answer.DISCARD
        case S.PAUSED:
            return Answer.DISCARD
        case _ if is_owed(run, ANYONE) and ticket.since == run.seq:
            return Answer.HOOKS
        case _ if is_owed(run, HERE) and claim in (ticket.token, None):
            return Answer.HOOKS
        case _:
            return Answer.DISCARD


MAX_LOOKS = 20


def losses(history: Iterable[Recorded]) -> tuple[str | None, int]:
    """Return (token of the last message the run was taken under, how often in a row its worker or process died).

    A return to SCHEDULED, by a person who retries or a worker that hands back, begins the count anew.
    """
    token: str | None = None
    count = 0
    for recorded in history:
        data = recorded.event.data
        state = data.get("state") if isinstance(data, dict) else None
        if not isinstance(state, dict):
            continue
        details = state.get("details")
        waits = isinstance(details, dict) and details.get("in_process")
        if state.get("type") == S.SCHEDULED and not waits:
            token, count = None, 0
        if isinstance(details, dict):
            if isinstance(given := details.get("token"), str):
                token = given
            if details.get("lost"):
                count += 1
    return token, count


def lane_of(history: Iterable[Recorded], token: str) -> str | None:
    """Return the lane in which the message with ``token`` was last taken."""
    lane: str | None = None
    for _, details in _taken(history, token):
        lane = str(details.get("lane"))
    return lane


def attempt_taken(history: Iterable[Recorded], token: str) -> int | None:
    """Return the attempt that began when the message with ``token`` was last taken.

    A message that is given out again keeps its token; each who takes it begins another attempt.
    """
    attempt: int | None = None
    for data, _ in _taken(history, token):
        run = data.get("run")
        found = run.get("attempt") if isinstance(run, dict) else None
        attempt = found if isinstance(found, int) else None
    return attempt


def message_taken(history: Iterable[Recorded], token: str) -> int | None:
    """Return the place in the queue of the message by which the run was last taken under ``token``; None: it is not known.

    A message that was passed on may stand in the queue twice, when whoever passed it on died before it was settled and
    the broker had forgotten the first by the time of the second.
    """
    place: int | None = None
    for _, details in _taken(history, token):
        found = details.get("message")
        place = found if isinstance(found, int) else None
    return place


def _taken(history: Iterable[Recorded], token: str) -> Iterator[tuple[JsonObject, JsonObject]]:
    """Give the data, and the details of the state, of each transition by which the message with ``token`` was taken."""
    for recorded in history:
        data = recorded.event.data
        state = data.get("state") if isinstance(data, dict) else None
        details = state.get("details") if isinstance(state, dict) else None
        if isinstance(data, dict) and isinstance(details, dict) and details.get("token") == token:
            yield data, details
