"""Which state a run ends in, by what its function returned or raised. The rules are Prefect's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import GeneratorType
from typing import Any, TypeGuard

from ...errors import ParameterError, PauseTimedOut, ProcessDied, RunTimedOut
from ..signals import Abort, ReturnedFailure, Skip
from ..states import Crashed, Failed, Skipped, State, StateType, TimedOut

__all__ = [
    "aggregate",
    "is_state_iterable",
    "state_of_crash",
    "state_of_exception",
    "state_of_unfit",
    "state_of_value",
    "sums_up",
]


def state_of_value(value: Any, *, run_id: str, task_of: str | None = None) -> State:
    """Return the final state of a run whose function returned ``value`` (futures already replaced by their states).

    A state made by hand is the run's state. A state of another run, or a list, tuple or set of nothing but states, is
    summed up by ``aggregate``. Anything else completes the run with it as the result; a generator is run into a list.
    """
    if isinstance(value, State):
        if value.run_id is None:
            return value.replace(run_id=run_id, task_of=task_of)
        return aggregate([value], value, run_id=run_id, task_of=task_of)
    if is_state_iterable(value):
        return aggregate(list(value), value, run_id=run_id, task_of=task_of)
    if isinstance(value, GeneratorType):
        value = list(value)
    return State(StateType.COMPLETED, "Completed", data=value, run_id=run_id, task_of=task_of)


def sums_up(state: State) -> bool:
    """Whether a flow returned several states or futures, which ``state`` was made from.

    One made by hand around several says something of its own: ``Failed(data=[…])`` is a failure.
    """
    if not is_state_iterable(state.data):
        return False
    summary = aggregate(list(state.data), state.data, run_id=state.run_id or "")
    return (summary.type, summary.message) == (state.type, state.message)


def is_state_iterable(obj: Any) -> TypeGuard[Iterable[State]]:
    """Return whether something is a list, tuple or set of states and of nothing else; an empty one is not."""
    return isinstance(obj, list | tuple | set) and bool(obj) and all(isinstance(one, State) for one in obj)


def aggregate(states: list[State], data: Any, *, run_id: str, task_of: str | None = None) -> State:
    """Return the state that sums up several: COMPLETED if all are; else CANCELLED or PAUSED if any is; else FAILED."""
    total = len(states)
    counts = Counter(state.type for state in states)
    if counts[StateType.COMPLETED] == total:
        type_, message = StateType.COMPLETED, "All states completed."
    elif n := counts[StateType.CANCELLED]:
        type_, message = StateType.CANCELLED, f"{n}/{total} states cancelled."
    elif n := counts[StateType.PAUSED]:
        type_, message = StateType.PAUSED, f"{n}/{total} states paused."
    else:
        type_ = StateType.FAILED
        failed = counts[StateType.FAILED] + counts[StateType.CRASHED]
        if failed:
            message = f"{failed}/{total} states failed."
        else:
            message = f"{sum(not state.is_final() for state in states)}/{total} states are not final."
    return State(type_, message=message, data=data, run_id=run_id, task_of=task_of)


def state_of_exception(exc: BaseException, *, what: str, run_id: str) -> State:
    """Return the final state of a run whose function raised; ``what`` is ``Flow run`` or ``Task run``.

    Any ``TimeoutError`` but that of a pause makes ``TimedOut``; one of the run's own limit is marked as this run's.
    """
    if isinstance(exc, ReturnedFailure):
        return exc.state
    if isinstance(exc, Skip):
        return Skipped(message=str(exc) or None, run_id=run_id)
    if isinstance(exc, ProcessDied) and exc.run_id == run_id:
        return Crashed(message=f"The run crashed: {exc}", data=exc, run_id=run_id)
    if isinstance(exc, RunTimedOut) and exc.seconds is not None and exc.run_id in (None, run_id):
        exc.run_id = run_id
        return TimedOut(
            message=f"{what} exceeded timeout of {exc.seconds} second(s)", data=exc, run_id=run_id
        )
    # A pause that nobody ended is no limit of the run: it fails, and by that name.
    if isinstance(exc, TimeoutError) and not isinstance(exc, PauseTimedOut):
        return TimedOut(message=f"{what} failed due to timeout: {exc!r}", data=exc, run_id=run_id)
    if isinstance(exc, Abort):
        return Failed(message=f"{what} was aborted: {exc}", data=exc, run_id=run_id)
    # The field's words to the letter, with and without the colon: people match them.
    colon = ":" if what == "Flow run" else ""
    return Failed(message=f"{what} encountered an exception{colon} {describe(exc)}", data=exc, run_id=run_id)


def state_of_unfit(exc: BaseException) -> State:
    """Return the state of a run that could not begin: a parameter does not fit, or a name cannot be made. Not retried."""
    what = (
        "Validation of flow parameters failed with error"
        if isinstance(exc, ParameterError)
        else "The run has no name"
    )
    return Failed(message=f"{what}: {describe(exc)}", data=exc)


def state_of_crash(exc: BaseException, *, run_id: str) -> State:
    """Return the state of a run that something from outside ended: a cancelled loop, Ctrl-C, ``sys.exit``."""
    match type(exc).__name__:
        case "CancelledError":
            message = "Execution was cancelled by the runtime environment."
        case "KeyboardInterrupt":
            message = "Execution was aborted by an interrupt signal."
        case "SystemExit":
            message = f"Execution was aborted by Python system exit call.{_code_of(exc)}"
        case "Overrun":
            message = "Execution was stopped: the time of the run it belongs to was up."
        case "Interrupted":
            message = "Execution was stopped from outside."
        case _:
            message = f"Execution was interrupted by an unexpected exception: {describe(exc)}"
    return Crashed(message=message, data=exc, run_id=run_id)


def _code_of(exc: BaseException) -> str:
    return f" Exit code {exc.args[0]!r}." if exc.args and exc.args[0] else ""


def describe(exc: BaseException) -> str:
    """Return ``ValueError: what it said``, cut to a length that fits an event."""
    try:
        text = str(exc)
    except Exception:  # a broken __str__ must not hide the failure it is shown in
        text = ""
    name = type(exc).__name__
    shown = f"{name}: {text}" if text else name
    return shown if len(shown) <= 2000 else shown[:1997] + "..."
