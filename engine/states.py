"""States of runs, their names, and the one table of moves allowed between their types.

A state has a *type* (nine of them, ``StateType``), which decides what may happen, and a *name*, which people read.
The word an event carries (``flow-run.timed-out``) comes from the name when the name is one of the known ones and from
the type otherwise, so a custom name such as ``Skipped`` never escapes a rule that waits for ``flow-run.completed``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, Self, cast

import orjson

from ..bus.event import QuicklyMade, become
from ..errors import FlowFailed, RunCancelled, RunCrashed, RunPaused, RunUnfinished, UpstreamFailed
from ..vocabulary import TERMINAL, JsonObject, StateType, derived_id
from .runs.state_details import StateDetails, StateGroup, details_with, dumped, loaded, said_in

__all__ = [
    "MOVES", "State", "StateDetails", "StateGroup", "StateType", "StoredResult", "TERMINAL", "event_word", "get_state_exception", "move_allowed",
    "raise_state_exception",
    "AwaitingConcurrencySlot", "AwaitingRetry", "Cached", "Cancelled", "Cancelling", "Completed", "Crashed", "Failed",
    "InfrastructurePending", "Late", "NotReady", "Paused", "Pending", "Resuming", "Retrying", "RolledBack", "Running", "Scheduled", "Skipped",
    "Submitting", "Suspended", "TimedOut",
]  # fmt: skip

_ELSEWHERE = frozenset(
    {
        "aget_state_exception", "araise_state_exception", "exception_to_crashed_state", "exception_to_failed_state",
        "format_exception", "get_state_result", "is_state_iterable", "return_value_to_state",
    }
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".runs.state_conversion", __package__), name)


S = StateType

MOVES: Mapping[StateType | None, frozenset[StateType]] = {
    # None: the run does not exist yet. A plain call begins RUNNING or PENDING; anything asked for begins SCHEDULED.
    None: frozenset({S.SCHEDULED, S.PENDING, S.RUNNING, S.FAILED, S.COMPLETED}),
    # SCHEDULED -> SCHEDULED: late, a slot awaited, a new time.
    S.SCHEDULED: frozenset(
        {
            S.SCHEDULED,
            S.PENDING,
            S.RUNNING,
            S.PAUSED,
            S.CANCELLING,
            S.CANCELLED,
            S.CRASHED,
            S.FAILED,
            S.COMPLETED,
        }
    ),
    S.PENDING: frozenset(
        {
            S.PENDING,
            S.SCHEDULED,
            S.RUNNING,
            S.PAUSED,
            S.CANCELLING,
            S.CANCELLED,
            S.CRASHED,
            S.FAILED,
            S.COMPLETED,
        }
    ),
    # RUNNING -> RUNNING: a retry in place, or the next worker taking over a lost run.
    S.RUNNING: frozenset(
        {S.RUNNING, S.SCHEDULED, S.PAUSED, S.COMPLETED, S.FAILED, S.CANCELLING, S.CANCELLED, S.CRASHED}
    ),
    S.PAUSED: frozenset({S.PAUSED, S.SCHEDULED, S.RUNNING, S.CANCELLING, S.CANCELLED, S.FAILED, S.CRASHED}),
    S.CANCELLING: frozenset({S.CANCELLED, S.CRASHED, S.COMPLETED, S.FAILED}),
    # Terminal states are final. `retry` is a *new attempt*, written as SCHEDULED under guard by whoever asks for it,
    # and allowed only through `move_allowed(..., retry=True)`.
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
    S.CRASHED: frozenset(),
}
"""From a state type (None: no run yet) to the types it may become."""

_WORDS: Mapping[str, str] = {
    "Scheduled": "scheduled", "Late": "late", "AwaitingRetry": "awaiting-retry",
    "AwaitingConcurrencySlot": "awaiting-concurrency-slot", "Resuming": "resuming",
    "Pending": "pending", "Running": "running", "Retrying": "retrying", "Paused": "paused", "Suspended": "suspended",
    "Cancelling": "cancelling", "Cancelled": "cancelled", "Completed": "completed", "Cached": "cached",
    "Failed": "failed", "TimedOut": "timed-out", "Crashed": "crashed",
}  # fmt: skip

_TYPE_OF_NAME: Mapping[str, StateType] = {
    "Scheduled": S.SCHEDULED, "Late": S.SCHEDULED, "AwaitingRetry": S.SCHEDULED, "AwaitingConcurrencySlot": S.SCHEDULED,
    "Resuming": S.SCHEDULED, "Pending": S.PENDING, "Submitting": S.PENDING, "InfrastructurePending": S.PENDING, "NotReady": S.PENDING, "Running": S.RUNNING, "Retrying": S.RUNNING,
    "Paused": S.PAUSED, "Suspended": S.PAUSED, "Cancelling": S.CANCELLING, "Cancelled": S.CANCELLED,
    "Completed": S.COMPLETED, "Cached": S.COMPLETED, "RolledBack": S.COMPLETED, "Skipped": S.COMPLETED,
    "Failed": S.FAILED, "TimedOut": S.FAILED, "Crashed": S.CRASHED,
}  # fmt: skip

_DEFAULT_WORD: Mapping[StateType, str] = {t: t.value.lower() for t in StateType}
_DEFAULT_NAME: Mapping[StateType, str] = {t: t.value.capitalize() for t in StateType}


def event_word(type_: StateType, name: str) -> str:
    """Return the last word of the event type for a state: by its name if known *and of this type*, else by its type."""
    if _TYPE_OF_NAME.get(name) is type_ and name in _WORDS:
        return _WORDS[name]
    return _DEFAULT_WORD[type_]


def move_allowed(from_type: StateType | None, to_type: StateType, *, retry: bool = False) -> bool:
    """Return whether a run may go from one type to another.

    Args:
        retry: a person or rule asks for a new attempt of a finished run: FAILED, CRASHED or CANCELLED -> SCHEDULED.
    """
    if retry and from_type in (S.FAILED, S.CRASHED, S.CANCELLED):
        return to_type is S.SCHEDULED
    return to_type in MOVES[from_type]


class StoredResult(ABC):
    """A result that is kept elsewhere and read when asked for."""

    __slots__ = ()

    @abstractmethod
    def read(self) -> Any:
        """Return the value, blocking."""

    @abstractmethod
    async def aread(self) -> Any:
        """Return the value without holding the loop."""


@dataclass(frozen=True, slots=True, init=False)
class State(QuicklyMade):
    """The state of a run at one moment.

    Attributes:
        data: the result (or the exception) in this process; never serialised from here.
        details: facts kept with the state as JSON, such as ``scheduled_at`` or ``cache_key``.
        run_id: the run whose state this is; None for a state somebody made by hand, which a flow may return
            to choose how it ends.
        task_of: of the state of a task run: the flow run it is part of, or ``""``; None: not the state of a task run.
    """

    type: StateType
    name: str = ""
    message: str | None = None
    data: Any = field(default=None, repr=False, compare=False)
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)
    details: JsonObject = field(default_factory=dict, hash=False)
    run_id: str | None = field(default=None, repr=False, compare=False)
    task_of: str | None = field(default=None, repr=False, compare=False)

    def __init__(
        self,
        type: StateType,
        name: str = "",
        message: str | None = None,
        data: Any = None,
        timestamp: datetime | None = None,
        details: JsonObject | None = None,
        run_id: str | None = None,
        task_of: str | None = None,
    ) -> None:
        type = StateType(type)
        cls = self.__class__
        become(self, cls._open)
        new: Any = self
        new.type, new.name, new.message, new.data = type, name or _DEFAULT_NAME[type], message, data
        new.timestamp = datetime.now(UTC) if timestamp is None else timestamp
        new.details = {} if details is None else details
        new.run_id, new.task_of = run_id, task_of
        become(self, cls)

    def is_scheduled(self) -> bool:
        return self.type is S.SCHEDULED

    def is_pending(self) -> bool:
        return self.type is S.PENDING

    def is_running(self) -> bool:
        return self.type is S.RUNNING

    def is_completed(self) -> bool:
        return self.type is S.COMPLETED

    def is_failed(self) -> bool:
        return self.type is S.FAILED

    def is_crashed(self) -> bool:
        return self.type is S.CRASHED

    def is_cancelled(self) -> bool:
        return self.type is S.CANCELLED

    def is_cancelling(self) -> bool:
        return self.type is S.CANCELLING

    def is_paused(self) -> bool:
        return self.type is S.PAUSED

    def is_final(self) -> bool:
        """Whether the run is over."""
        return self.type in TERMINAL

    @property
    def event_word(self) -> str:
        return event_word(self.type, self.name)

    @property
    def state_details(self) -> StateDetails:
        of_flow, of_task = (
            (self.run_id, None) if self.task_of is None else (self.task_of or None, self.run_id)
        )
        # What somebody made by hand and said no time for is due when it was made.
        due = self.timestamp if self.run_id is None and self.type is S.SCHEDULED else None
        return StateDetails.of(self.details, flow_run_id=of_flow, task_run_id=of_task, due=due)

    @property
    def id(self) -> str:
        """A text that is that of this state alone; a copy has it too, until it is of another time."""
        return derived_id("state", self.run_id or "", self.type.value, self.name, self.timestamp.isoformat())

    def replace(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def with_details(self, more: JsonObject) -> Self:
        """Return a copy with more facts kept with it."""
        return self.__class__(
            self.type, self.name, self.message, self.data, self.timestamp, {**self.details, **more}, self.run_id,
            self.task_of,
        )  # fmt: skip

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """Return the state with some fields changed, as pydantic models do it."""
        return replace(self, **(update or {}))

    def copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """Return the state with some fields changed, as one that has just come about."""
        return self.fresh_copy(**(update or {}))

    def fresh_copy(self, **changes: Any) -> Self:
        """Return the state as it would be had it just come about."""
        return replace(self, **{"timestamp": datetime.now(UTC), **changes})

    def model_dump(self, *, mode: str = "python", exclude: Iterable[str] = ()) -> dict[str, Any]:
        """Return the state as a mapping: its fields, ``id`` and ``state_details``; with ``mode="json"`` as JSON, without data."""
        return dumped(self, is_json=mode == "json", exclude=frozenset(exclude))

    def model_dump_json(self, *, exclude: Iterable[str] = ()) -> str:
        """Return the state as JSON text, without its data."""
        return orjson.dumps(self.model_dump(mode="json", exclude=exclude)).decode()

    @classmethod
    def model_validate(cls, given: Self | Mapping[str, Any]) -> Self:
        """Return the state that ``model_dump`` made a mapping of."""
        return given if isinstance(given, cls) else cls(**loaded(cast("Mapping[str, Any]", given)))

    def __str__(self) -> str:
        """``Completed()``, ``Failed('why')``, ``Mine('why', type=FAILED)``."""
        said = [repr(self.message)] if self.message else []
        if self.name != _DEFAULT_NAME[self.type]:
            said.append(f"type={self.type.value}")
        return f"{self.name}({', '.join(said)})"

    def __repr__(self) -> str:
        return f"{self.name}(message={self.message!r}, type={self.type.value}, result={self.data!r})"

    def result(self, raise_on_failure: bool = True, retry_result_failure: bool = True) -> Any:
        """Return what the run came to: its value, or for a run that did not complete, its exception.

        Args:
            raise_on_failure: raise the exception of a run that failed, crashed or was cancelled, instead of returning it.
            retry_result_failure: does nothing here: what is recorded can be read at once. For flows written for Prefect.
        Raises:
            UpstreamFailed: the run never began, because what it waited for did not complete.
            RunUnfinished: the run has not ended, so there is no result, whatever was said of failures.
            ResultMissing: the recorded result cannot be read back.
        """
        if self.type is S.COMPLETED:
            return self.data.read() if isinstance(self.data, StoredResult) else self.data
        if raise_on_failure or not self.is_final():
            raise _exception_of(self)
        # What a failed run returned on purpose (states, say) is its result; a bare failure has its exception.
        return self.data if self.data is not None else _exception_of(self)

    async def aresult(self, raise_on_failure: bool = True, retry_result_failure: bool = True) -> Any:
        """Return what ``result`` returns, reading a stored result without holding the loop."""
        if self.type is S.COMPLETED and isinstance(self.data, StoredResult):
            return await self.data.aread()
        return self.result(raise_on_failure)


_FAILURES = {
    S.FAILED: (FlowFailed, "Run failed."),
    S.CRASHED: (RunCrashed, "Run crashed."),
    S.CANCELLED: (RunCancelled, "Run cancelled."),
}


def get_state_exception(state: State) -> BaseException:
    """Return the exception that stands for a FAILED, CRASHED or CANCELLED state.

    The run's own exception if it has one; of a state that stands for several, that of the first which failed, crashed or
    was cancelled; otherwise one made from what the state has instead, or from its message.

    Raises:
        ValueError: the state, or each of those it stands for, is of another type, so there is nothing to raise.
        TypeError: the state has something that is no exception.
    """
    if state.type not in _FAILURES:
        raise ValueError(f"Expected failed or crashed state got {state!r}: there is no exception in it")
    data, (wrapper, otherwise) = state.data, _FAILURES[state.type]
    if data is None or isinstance(data, str):
        return wrapper(data if data is not None else state.message or otherwise)
    if isinstance(data, BaseException):
        return data
    if isinstance(data, State):
        return get_state_exception(data)
    if isinstance(data, list | tuple | set) and data and all(isinstance(item, State) for item in data):
        for item in data:
            if item.type in _FAILURES:
                return get_state_exception(item)
        raise ValueError(
            "Failed state result was an iterable of states but none were failed; return one that is, or a message"
        )
    raise TypeError(
        f"Unexpected result for failed state: {data!r} —— {type(data).__name__} cannot be resolved into an exception"
    )


def raise_state_exception(state: State) -> None:
    """Raise what a FAILED, CRASHED or CANCELLED state stands for; do nothing for any other."""
    if state.type in _FAILURES:
        raise get_state_exception(state)


def _exception_of(state: State) -> BaseException:
    """Return what ``result()`` raises of a state that is not COMPLETED."""
    if state.type in _FAILURES:
        try:
            return get_state_exception(state)
        except ValueError:
            # Summed up from states of which none has failed: one has not ended.
            for one in [state.data] if isinstance(state.data, State) else state.data:
                if not one.is_completed():
                    return _exception_of(one)
            raise
    if isinstance(state.data, BaseException) and not isinstance(state.data, Exception):
        return state.data  # the run leaves its worker here, and the code that asks leaves with it
    if state.name == "NotReady" and state.type is S.PENDING:
        return state.data if isinstance(state.data, UpstreamFailed) else UpstreamFailed(state.message or "")
    if state.type is S.PAUSED:
        return RunPaused("Run is paused, its result is not available.")
    return RunUnfinished(f"Run is in {state.type.value} state, its result is not available.")


def _of(type_: StateType, name: str, kwargs: Mapping[str, Any]) -> State:
    return State(type_, **{"name": name, **_opened(kwargs)}) if kwargs else State(type_, name)


def _opened(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a state with what they say as ``state_details`` where it belongs."""
    if "state_details" not in kwargs:
        return kwargs
    said = said_in(kwargs["state_details"])
    rest = {name: value for name, value in kwargs.items() if name != "state_details"}
    return {**said, **rest, "details": {**said["details"], **(rest.get("details") or {})}}


def _due(name: str, scheduled_time: datetime | None, kwargs: Mapping[str, Any]) -> State:
    kwargs = _opened(kwargs)
    if scheduled_time is None:
        return _of(S.SCHEDULED, name, kwargs)
    if (kwargs.get("details") or {}).get("scheduled_time") is not None:
        raise ValueError("An extra scheduled_time was provided in state_details; give it once")
    details = details_with(kwargs.get("details"), scheduled_time=scheduled_time)
    return _of(S.SCHEDULED, name, {**kwargs, "details": details})


def _waiting(
    name: str,
    kwargs: Mapping[str, Any],
    *,
    timeout_seconds: float | None,
    pause_expiration_time: datetime | None,
    reschedule: bool,
    pause_key: str | None,
) -> State:
    """Return a PAUSED state.

    Raises:
        ValueError: a time limit and its end are given both, or one of them twice.
    """
    kwargs = _opened(kwargs)
    if timeout_seconds is not None:
        if pause_expiration_time is not None:
            raise ValueError(
                "Cannot supply both a pause_expiration_time and timeout_seconds of a pause; give one"
            )
        pause_expiration_time = datetime.now(UTC) + timedelta(seconds=timeout_seconds)
    if pause_expiration_time is not None and (kwargs.get("details") or {}).get("pause_timeout") is not None:
        raise ValueError("An extra pause timeout was provided in state_details; give it once")
    if pause_expiration_time is None and not reschedule and pause_key is None:
        return _of(S.PAUSED, name, kwargs)
    details = details_with(
        kwargs.get("details"),
        pause_timeout=pause_expiration_time,
        pause_reschedule=reschedule or None,
        pause_key=pause_key,
    )
    return _of(S.PAUSED, name, {**kwargs, "details": details})


def Scheduled(*, scheduled_time: datetime | None = None, **kw: Any) -> State:
    return _due("Scheduled", scheduled_time, kw)


def Late(*, scheduled_time: datetime | None = None, **kw: Any) -> State:
    return _due("Late", scheduled_time, kw)


def AwaitingRetry(*, scheduled_time: datetime | None = None, **kw: Any) -> State:
    return _due("AwaitingRetry", scheduled_time, kw)


def AwaitingConcurrencySlot(*, scheduled_time: datetime | None = None, **kw: Any) -> State:
    return _due("AwaitingConcurrencySlot", scheduled_time, kw)


def Resuming(*, scheduled_time: datetime | None = None, **kw: Any) -> State:
    return _due("Resuming", scheduled_time, kw)


def Pending(**kw: Any) -> State:
    return _of(S.PENDING, "Pending", kw)


def Submitting(**kw: Any) -> State:
    return _of(S.PENDING, "Submitting", kw)


def InfrastructurePending(**kw: Any) -> State:
    return _of(S.PENDING, "InfrastructurePending", kw)


def NotReady(**kw: Any) -> State:
    return _of(S.PENDING, "NotReady", kw)


def Running(**kw: Any) -> State:
    return _of(S.RUNNING, "Running", kw)


def Retrying(**kw: Any) -> State:
    return _of(S.RUNNING, "Retrying", kw)


def Paused(
    *,
    timeout_seconds: float | None = None,
    pause_expiration_time: datetime | None = None,
    reschedule: bool = False,
    pause_key: str | None = None,
    **kw: Any,
) -> State:
    return _waiting(
        "Paused", kw, timeout_seconds=timeout_seconds, pause_expiration_time=pause_expiration_time,
        reschedule=reschedule, pause_key=pause_key,
    )  # fmt: skip


def Suspended(
    *,
    timeout_seconds: float | None = None,
    pause_expiration_time: datetime | None = None,
    pause_key: str | None = None,
    **kw: Any,
) -> State:
    return _waiting(
        "Suspended", kw, timeout_seconds=timeout_seconds, pause_expiration_time=pause_expiration_time,
        reschedule=True, pause_key=pause_key,
    )  # fmt: skip


def Cancelling(**kw: Any) -> State:
    return _of(S.CANCELLING, "Cancelling", kw)


def Cancelled(**kw: Any) -> State:
    return _of(S.CANCELLED, "Cancelled", kw)


def Completed(**kw: Any) -> State:
    return _of(S.COMPLETED, "Completed", kw)


def Skipped(**kw: Any) -> State:
    return _of(S.COMPLETED, "Skipped", kw)


def Cached(**kw: Any) -> State:
    return _of(S.COMPLETED, "Cached", kw)


def RolledBack(**kw: Any) -> State:
    return _of(S.COMPLETED, "RolledBack", kw)


def Failed(**kw: Any) -> State:
    return _of(S.FAILED, "Failed", kw)


def TimedOut(**kw: Any) -> State:
    return _of(S.FAILED, "TimedOut", kw)


def Crashed(**kw: Any) -> State:
    return _of(S.CRASHED, "Crashed", kw)
