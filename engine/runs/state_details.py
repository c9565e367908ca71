"""What is known of a state besides its type, name and message: a view of the JSON kept with it, and groups of states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import orjson

from ...vocabulary import JsonObject, StateType

if TYPE_CHECKING:
    from ..states import State

__all__ = ["StateDetails", "StateGroup", "details_with", "dumped", "loaded", "said_in"]


@dataclass(frozen=True, slots=True)
class StateDetails:
    """Facts kept with a state; None for those it does not have.

    Attributes:
        flow_run_id: the flow run whose state it is, or which the task run is part of.
        task_run_id: the task run whose state it is.
        child_flow_run_id: the subflow a task run stands for; there are no such task runs here.
        scheduled_time: when a SCHEDULED run is due.
        pause_timeout: when a PAUSED run stops waiting to be resumed.
        pause_reschedule: whether a PAUSED run holds no worker.
        pause_key: tells one pause of a run from another.
        cache_key: the key under which a result was found or kept.
    """

    flow_run_id: str | None = None
    task_run_id: str | None = None
    child_flow_run_id: str | None = None
    scheduled_time: datetime | None = None
    cache_key: str | None = None
    cache_expiration: datetime | None = None
    deferred: bool | None = None
    untrackable_result: bool = False
    pause_timeout: datetime | None = None
    pause_reschedule: bool = False
    pause_key: str | None = None
    refresh_cache: bool | None = None
    retriable: bool | None = None
    traceparent: str | None = None

    @classmethod
    def of(
        cls,
        details: Mapping[str, object],
        *,
        flow_run_id: str | None = None,
        task_run_id: str | None = None,
        due: datetime | None = None,
    ) -> StateDetails:
        """Read them out of a state's ``details``; ``due`` is when a run is, of which they do not say so."""
        return cls(
            flow_run_id=flow_run_id,
            task_run_id=task_run_id,
            scheduled_time=_time(details.get("scheduled_time")) or due,
            pause_timeout=_time(details.get("pause_timeout")),
            pause_reschedule=bool(details.get("pause_reschedule")),
            pause_key=_text(details.get("pause_key")),
            cache_key=_text(details.get("cache_key")),
            cache_expiration=_time(details.get("cache_expiration")),
            untrackable_result=bool(details.get("untrackable_result")),
            deferred=_truth(details.get("deferred")),
            refresh_cache=_truth(details.get("refresh_cache")),
            retriable=_truth(details.get("retriable")),
            traceparent=_text(details.get("traceparent")),
        )


def details_with(details: Mapping[str, object] | None, **facts: object) -> JsonObject:
    """Return the details of a state with these facts among them, as JSON; those that are None are left out."""
    written: JsonObject = dict(details or {})  # type: ignore[arg-type]
    for name, fact in facts.items():
        if isinstance(fact, datetime):
            written[name] = fact.isoformat()
        elif isinstance(fact, str | bool):
            written[name] = fact
        elif fact is not None:
            raise TypeError(f"{name} must be a moment, a text or a truth value, got {fact!r}")
    return written


_FACTS = (
    "scheduled_time", "pause_timeout", "pause_reschedule", "pause_key", "cache_key", "cache_expiration", "untrackable_result",
    "deferred", "refresh_cache", "retriable", "traceparent",
)  # fmt: skip
"""What of them is kept as JSON; whose state it is, the state knows itself."""


def dumped(state: State, *, is_json: bool, exclude: frozenset[str]) -> dict[str, Any]:
    """Return a state as a mapping."""
    shown: dict[str, Any] = {
        "id": state.id, "type": state.type, "name": state.name, "timestamp": state.timestamp, "message": state.message,
        "data": None if is_json else state.data, "state_details": asdict(state.state_details), "run_id": state.run_id,
    }  # fmt: skip
    shown = {name: value for name, value in shown.items() if name not in exclude}
    return cast("dict[str, Any]", orjson.loads(orjson.dumps(shown))) if is_json else shown


def loaded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``State`` for what ``dumped`` made of one."""
    fields = {name: given[name] for name in ("type", "name", "message", "data", "timestamp") if name in given}
    if isinstance(at := fields.get("timestamp"), str):
        fields["timestamp"] = datetime.fromisoformat(at)
    return {**fields, **said_in(given.get("state_details"))}


def said_in(details: StateDetails | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of ``State`` for its ``state_details``.

    Raises:
        TypeError: one of them is not what it should be.
    """
    known: Mapping[str, Any] = asdict(details) if isinstance(details, StateDetails) else details or {}
    is_task = known.get("task_run_id") is not None
    plain = asdict(StateDetails())
    facts = {name: known[name] for name in _FACTS if known.get(name) not in (None, "", plain[name])}
    return {
        "run_id": known.get("task_run_id") or known.get("flow_run_id"),
        "task_of": (known.get("flow_run_id") or "") if is_task else None,
        "details": details_with(None, **facts),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _truth(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _time(value: object) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None


class StateGroup:
    """Several states, counted by type."""

    def __init__(self, states: Iterable[State]) -> None:
        self.states = list(states)
        self.type_counts = Counter(state.type for state in self.states)
        self.total_count = len(self.states)
        self.cancelled_count = self.type_counts[StateType.CANCELLED]
        self.final_count = sum(state.is_final() for state in self.states)
        self.not_final_count = self.total_count - self.final_count
        self.paused_count = self.type_counts[StateType.PAUSED]

    @property
    def fail_count(self) -> int:
        return self.type_counts[StateType.FAILED] + self.type_counts[StateType.CRASHED]

    def all_completed(self) -> bool:
        return self.type_counts[StateType.COMPLETED] == self.total_count

    def any_cancelled(self) -> bool:
        return self.cancelled_count > 0

    def any_failed(self) -> bool:
        return self.fail_count > 0

    def all_final(self) -> bool:
        return self.not_final_count == 0

    def any_paused(self) -> bool:
        return self.paused_count > 0

    def counts_message(self) -> str:
        """Return how many are in which state, such as ``total=3, not_final=1, 'COMPLETED'=2, 'RUNNING'=1``."""
        said = [f"total={self.total_count}"]
        if self.not_final_count:
            said.append(f"not_final={self.not_final_count}")
        return ", ".join((*said, *(f"{type_.value!r}={n}" for type_, n in self.type_counts.items())))

    def __repr__(self) -> str:
        return f"StateGroup<{self.counts_message()}>"
