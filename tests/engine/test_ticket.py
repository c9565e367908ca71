"""What a worker does with a message, and how it counts losses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hark.bus.event import Recorded
from hark.engine.dispatching.ticket import MAX_LOOKS, Answer, Ticket, answer, attempt_taken, losses
from hark.engine.runs.run import FlowRun, RunRequest, transition_event
from hark.engine.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Late,
    Pending,
    Resuming,
    Retrying,
    Running,
    Scheduled,
    State,
    Suspended,
)
from hark.vocabulary import FlowRunId

NOW = datetime(2026, 5, 1, tzinfo=UTC)
TICKET = Ticket(FlowRunId("r"), attempt=0, since=7, token="mine")


def a_run(state: State, *, attempt: int = 0, seq: int = 7, due_in_s: float = 0) -> FlowRun:
    due = NOW + timedelta(seconds=due_in_s)
    asked = FlowRun.requested(RunRequest(flow_name="f", id=FlowRunId("r"), scheduled_at=due), now=NOW)
    return replace(asked.moved(state.replace(timestamp=NOW), attempt=attempt), seq=seq)


@pytest.mark.parametrize(
    ("run", "claim", "expected"),
    [
        (a_run(Scheduled()), None, Answer.TAKE),
        (a_run(Late(), seq=9), None, Answer.TAKE),
        (a_run(Scheduled(), seq=5), None, Answer.LATER),
        (a_run(Scheduled(), due_in_s=60), None, Answer.DISCARD),
        (a_run(Resuming(), attempt=1, seq=12), None, Answer.DISCARD),
        (a_run(Pending(), attempt=1, seq=8), "mine", Answer.TAKE_OVER),
        (a_run(Running(), attempt=1, seq=8), "mine", Answer.TAKE_OVER),
        (a_run(Running(), attempt=1, seq=8), "another", Answer.DISCARD),
        (a_run(AwaitingRetry(details={"in_process": True}), attempt=1, seq=8), "mine", Answer.TAKE_OVER),
        (a_run(AwaitingRetry(details={"in_process": True}), attempt=1, seq=8), "another", Answer.DISCARD),
        (a_run(Cancelling(), attempt=1, seq=8), "mine", Answer.STOP),
        (a_run(Cancelling(), attempt=1, seq=8), None, Answer.STOP),
        (a_run(Cancelling(), attempt=1, seq=8), "another", Answer.DISCARD),
        (a_run(Suspended(), attempt=1, seq=8), "mine", Answer.DISCARD),
        (a_run(Completed(), attempt=1, seq=8), "mine", Answer.DISCARD),
        (a_run(Cancelled(), seq=8), None, Answer.DISCARD),
    ],
)  # fmt: skip
def test_a_message_is_answered_by_what_the_run_is_now(
    run: FlowRun, claim: str | None, expected: Answer
) -> None:
    """Taken, taken over, stopped, or about the past: the log decides, and who holds the run keeps it."""
    assert answer(TICKET, run, deliveries=1, claim=claim, now=NOW) is expected


def test_a_run_that_is_not_there_yet_is_asked_for_again_but_not_for_ever() -> None:
    """A copy of the log that lags has it soon; one that has aged out never."""
    assert answer(TICKET, None, deliveries=1, claim=None, now=NOW) is Answer.LATER
    assert answer(TICKET, None, deliveries=MAX_LOOKS + 1, claim=None, now=NOW) is Answer.DISCARD


def test_a_ticket_survives_the_queue_and_names_its_stay() -> None:
    """The same stay in SCHEDULED gives the same message id, another one another."""
    assert Ticket.from_json(TICKET.to_json()) == TICKET
    same = Ticket.issue(TICKET.run_id, attempt=0, since=7)
    assert same.msg_id == TICKET.msg_id
    assert same.token != TICKET.token
    assert Ticket.issue(TICKET.run_id, attempt=0, since=8).msg_id != TICKET.msg_id


def history(*states: State) -> list[Recorded]:
    return [
        Recorded(seq, "s", NOW, transition_event(a_run(state, seq=seq), previous=None).to_json())
        for seq, state in enumerate(states, 1)
    ]


def test_losses_are_counted_since_the_run_was_last_handed_out_anew() -> None:
    """A retry by a person or a worker that hands back begins the count anew; a retry inside the process does not."""
    claim = Pending(details={"token": "t1"})
    lost = Running(details={"token": "t1", "lost": 1})
    assert losses(history(Scheduled(), claim, Running())) == ("t1", 0)
    assert losses(history(Scheduled(), claim, Running(), lost, lost)) == ("t1", 2)
    waits = AwaitingRetry(details={"in_process": True})
    assert losses(history(Scheduled(), claim, lost, waits, Retrying())) == ("t1", 1)
    assert losses(history(Scheduled(), claim, lost, Resuming())) == (None, 0)
    assert losses(history(Scheduled(), claim, lost, Resuming(), Pending(details={"token": "t2"}))) == (
        "t2",
        0,
    )


def test_the_attempt_a_message_was_last_taken_for_tells_two_workers_apart() -> None:
    """Both have the same token, for the message is the same. Further tries of the flow itself are no taking."""
    claim = a_run(Pending(details={"token": "t1"}), attempt=1, seq=2)
    tried_again = a_run(Retrying(), attempt=2, seq=3)
    taken_over = a_run(Running(details={"token": "t1", "lost": 1}), attempt=3, seq=4)
    log = [
        Recorded(r.seq, "s", NOW, transition_event(r, previous=None).to_json())
        for r in (claim, tried_again, taken_over)
    ]
    assert attempt_taken(log[:1], "t1") == 1
    assert attempt_taken(log[:2], "t1") == 1
    assert attempt_taken(log, "t1") == 3
    assert attempt_taken(log, "t2") is None
