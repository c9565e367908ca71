"""What a run that is taken up again already has: the results of its finished calls, read out of the log.

**Fencing.** A worker that lost its run may go on for a while without knowing it, and its task events still reach the log.
They do not count: a task event carries the attempt of the flow run it was made in, and one that was stored after a newer
attempt began to run, by an older attempt, is passed over. What such a zombie finished *before* the takeover counts, and is
not run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from ...bus.event import Recorded, parse_time
from ...bus.subject import STATE_HEADER
from ...vocabulary import JsonObject, StateType
from .open_tasks import WITH_RUN

__all__ = [
    "RETRY",
    "FinishedCall",
    "FinishedCalls",
    "RetryingCall",
    "attempt_starts",
    "begins_anew",
    "last_opened",
    "last_retry",
    "noted_waits",
    "retries_made",
]


RETRY = "retry"
"""In the details of an AwaitingRetry of a flow run that waits for the next try of the flow itself, here or away from its worker."""


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """A call that completed earlier.

    Attributes:
        task_run_id: the task run that did it.
        result: as recorded.
        transaction: what it had set, where it is part of a transaction; None where it is of none.
        within: the key of the task call whose code made it; "" for the flow's.
    """

    task_run_id: str
    result: JsonObject
    transaction: JsonObject | None = None
    within: str = ""


def attempt_starts(history: Iterable[Recorded]) -> list[tuple[int, int]]:
    """Return (attempt, sequence of its first RUNNING) of a flow run, in order of sequence."""
    starts: list[tuple[int, int]] = []
    known = 0
    for recorded in history:
        data = recorded.event.data
        if not isinstance(data, dict):
            continue
        attempt, is_running = _attempt_and_running(data)
        if is_running and attempt > known:
            known = attempt
            starts.append((attempt, recorded.seq))
    return starts


def retries_made(history: Iterable[Recorded]) -> int:
    """Return how many retries of the flow itself the log tells of, whoever made them or is to make them."""
    made, is_asked = 0, False
    for recorded in history:
        if _asks_for_retry(recorded):
            made, is_asked = made + 1, True
        elif recorded.event.type == "flow-run.retrying":
            # In the process that asked for it; older versions did not say that they did.
            made, is_asked = made + (not is_asked), False
        elif recorded.event.type == "flow-run.running":
            is_asked = False
    return made


def _asks_for_retry(recorded: Recorded) -> bool:
    data = recorded.event.data
    state = data.get("state") if isinstance(data, dict) else None
    details = state.get("details") if isinstance(state, dict) else None
    return isinstance(details, dict) and details.get(RETRY) is True


def begins_anew(history: Iterable[Recorded]) -> int:
    """Return the sequence before which nothing counts, because somebody asked for a retry from the start; 0 if none."""
    anew = 0
    for recorded in history:
        data = recorded.event.data
        state = data.get("state") if isinstance(data, dict) else None
        details = state.get("details") if isinstance(state, dict) else None
        if isinstance(details, dict) and details.get("from_start"):
            anew = recorded.seq
    return anew


def last_opened(history: Iterable[Recorded]) -> int:
    """Return the sequence at which a run that was over was last begun again by others; 0 if never."""
    return max((recorded.seq for recorded in history if _opens(recorded)), default=0)


def _opens(recorded: Recorded) -> bool:
    data = recorded.event.data
    previous = data.get("previous") if isinstance(data, dict) else None
    return isinstance(previous, str) and StateType(previous).is_terminal


def last_retry(history: Iterable[Recorded]) -> int:
    """Return the sequence at which a run was last begun again after a failure or an end, by itself or by others; 0 if never."""
    last = 0
    for recorded in history:
        if recorded.event.type == "flow-run.retrying" or _asks_for_retry(recorded) or _opens(recorded):
            last = recorded.seq
    return last


def noted_waits(run_id: str, history: Iterable[Recorded]) -> dict[str, JsonObject]:
    """Return what the log says of waits that the run's own code began, by their keys.

    A wait that was a pause and has been resumed says so: ``resumed`` is true and ``input`` what was given.
    """
    waits: dict[str, JsonObject] = {}
    pausing: JsonObject | None = None
    for recorded in history:
        data = recorded.event.data
        state = data.get("state") if isinstance(data, dict) else None
        if not isinstance(state, dict):
            continue
        details = state.get("details")
        details = details if isinstance(details, dict) else {}
        others = details.get("waits")
        for other in others if isinstance(others, list) else ():
            if isinstance(other, dict) and other.get("run") == run_id:
                waits.setdefault(str(other.get("key")), {}).update(other)
        wait = details.get("wait")
        if isinstance(wait, dict) and wait.get("run") == run_id:
            known = waits.setdefault(str(wait.get("key")), {})
            known.update(wait)
            if state.get("type") == "PAUSED":
                pausing = known
        elif pausing is not None and state.get("type") != "PAUSED":
            if state.get("name") == "Resuming":
                pausing.update(resumed=True, input=details.get("input"))
            pausing = None
    return waits


def _attempt_and_running(data: dict[str, Any]) -> tuple[int, bool]:
    run, state = data.get("run"), data.get("state")
    attempt = run.get("attempt") if isinstance(run, dict) else None
    type_ = state.get("type") if isinstance(state, dict) else None
    return (attempt if isinstance(attempt, int) else 0), type_ == "RUNNING"


@dataclass(frozen=True, slots=True)
class RetryingCall:
    """A call that was between two tries, or in one after the first.

    Attributes:
        task_run_id: the task run, which goes on.
        tries: how many were made. due: when the next is; None: at once.
    """

    task_run_id: str
    tries: int
    due: datetime | None


class FinishedCalls:
    """The finished calls of a flow run by their keys, folded from its task events in order.

    Of several events with one key, the first that counts is kept; one that tells of a rollback takes it away again.

    Args:
        starts: what ``attempt_starts`` says of the run.
    """

    def __init__(self, starts: list[tuple[int, int]]) -> None:
        self.by_key: dict[str, FinishedCall] = {}
        self._to_come = deque(starts)
        self._newest = 0
        """The newest attempt that had begun where the folding stands."""
        self.retrying: dict[str, RetryingCall] = {}

    def add(self, records: Iterable[Recorded]) -> None:
        """Fold task events, which follow those folded before."""
        for recorded in records:
            word = recorded.headers.get(STATE_HEADER)
            if word not in _COMPLETED:
                if word in _BETWEEN or (self.retrying and word not in _BEFORE):
                    self._add_retry(word, recorded)
                continue
            data = orjson.loads(recorded.raw)["data"]
            key = data.get("call")
            if not key:
                continue
            self.retrying.pop(key, None)
            is_undone = data.get("state", _NULL).get("name") == "RolledBack"
            if key in self.by_key and not is_undone:
                continue
            if self._is_of_zombie(data, recorded):
                continue
            if is_undone:
                self.by_key.pop(key, None)
                continue
            self.by_key[key] = FinishedCall(
                data["run"]["id"],
                data.get("result") or _NULL,
                data.get("transaction"),
                data.get("within") or "",
            )

    def _add_retry(self, word: str | None, recorded: Recorded) -> None:
        """Fold what says that a call is between two tries, or no longer."""
        data = orjson.loads(recorded.raw)["data"]
        key = data.get("call")
        if not key or self._is_of_zombie(data, recorded):
            return
        id_, tries = data["run"]["id"], data["run"].get("attempt") or 0
        retry_at = data.get("retry_at")
        if word == "awaiting-retry" and isinstance(retry_at, str):
            self.retrying[key] = RetryingCall(id_, tries, parse_time(retry_at))
        elif word == "retrying" and key in self.retrying:
            self.retrying[key] = RetryingCall(id_, tries - 1, None)  # begun, and not ended
        elif (
            WITH_RUN not in data
        ):  # that is how the run ended, and a retry of that goes on with the task's tries
            self.retrying.pop(key, None)

    def _is_of_zombie(self, data: dict[str, Any], recorded: Recorded) -> bool:
        """Whether an attempt wrote it that had been taken over by then. Asked of the records in their order."""
        while self._to_come and self._to_come[0][1] < recorded.seq:
            self._newest = self._to_come.popleft()[0]
        return self._newest > (data["flow_run"].get("attempt") or 0)


_BETWEEN = frozenset({"awaiting-retry", "retrying"})
_BEFORE = frozenset({"pending", "running", "scheduled", "awaiting-concurrency-slot"})
"""States on the way to the next try."""
_COMPLETED = frozenset({"completed", "cached"})
_NULL: JsonObject = {"inline": None, "format": "json"}
