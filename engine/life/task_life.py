"""What becomes of a task call, step by step: begun, tried, retried, ended, and what is written of it.

Nothing here waits for anything. The two ways of running a call (``task_engine.py``) and generators
(``task_generator.py``) share it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ...errors import Unpicklable, UpstreamFailed
from ...vocabulary import draw
from ..calls.nested import ATOMS
from ..calls.task_call import TaskCall, resolve_inputs
from ..code.named_code import mark_of
from ..context import TaskRunContext
from ..futures import resolve_futures_to_states
from ..logging import RunLogger, logger_of_task_run
from ..options.hooks import HOOK_OF_TYPE
from ..options.retry import jittered_s, retry_delay_s
from ..results import InlineResult, LargeResult
from ..runs.final_state import state_of_crash, state_of_value
from ..runs.naming import render_name
from ..runs.task_run import TaskRun, stamp
from ..signals import OF_THE_CODE, Abort, Interrupted, ReturnedFailure, Skip
from ..states import (
    AwaitingRetry,
    Cached,
    Cancelled,
    Completed,
    NotReady,
    Retrying,
    Running,
    State,
    StateType,
)
from .resting import left_behind
from .user_frames import note_where, shown_exception

__all__ = [
    "await_retry", "begin", "begin_try", "cached", "cancel_unstarted", "context_of", "crashed", "give_name", "hooks_of", "hooks_text", "may_retry",
    "not_ready", "note_hooked", "of_task", "owed_hooks", "recorded", "replayed_state", "report_condition",
    "report_failure", "running_state", "succeeded",
]  # fmt: skip

_RUNNING, _SCHEDULED, _PENDING = StateType.RUNNING, StateType.SCHEDULED, StateType.PENDING


def cancel_unstarted(call: TaskCall) -> State:
    """End a call that never began because its flow is over; return its state."""
    ended = "The flow run ended before this task began"
    state = call.run.state = of_task(Cancelled(message=ended, run_id=call.run.id), call)
    if call.events is not None:
        call.events.write(call.run, StateType.CANCELLED, "Cancelled", state.message)
    return state


def begin(call: TaskCall) -> TaskRunContext:
    """Resolve inputs and the name; return the context for the task's code."""
    run, task = call.run, call.task
    if not call.is_plain:
        run.parameters = resolve_inputs(
            run.parameters, call.wait_for, what=f"task {task.name!r}", run_id=run.id
        )
    return context_of(call)


def context_of(call: TaskCall) -> TaskRunContext:
    """Return the context for the code of a call's task and its hooks."""
    run = call.run
    return TaskRunContext(
        call.task, run, run.parameters, call.flow, call.log_prints, call.caller, call.keeping, call.opening
    )


def give_name(call: TaskCall) -> None:
    """Give the run the name its author's template or function says; inside its context, which functions may ask."""
    run, task = call.run, call.task
    if task.task_run_name:  # an empty one says nothing
        run.name = render_name("task_run_name", task.task_run_name, run.parameters)
        run.pieces = None


def begin_try(call: TaskCall) -> None:
    """Count a try, and write that it runs."""
    run, events = call.run, call.events
    run.run_count += 1
    if run.run_count == 1 and not call.is_announced and events is not None:
        events.write_begun(run)
        return
    if not run.started_ns:
        run.started_ns = time.time_ns()
        if events is not None:
            run.started_text = stamp(run.started_ns)
    if run.run_count > 1:
        run.tried_ns = time.time_ns()
    if events is not None:
        events.write(run, _RUNNING, "Running" if run.run_count == 1 else "Retrying")
    run.__dict__.pop("state", None)  # that of the try before; of this one it is made when somebody looks


def running_state(run: TaskRun) -> State:
    """Return the RUNNING state of a try that has begun."""
    return (Running if run.run_count <= 1 else Retrying)(run_id=run.id, task_of=run.flow_run_id or "")


def succeeded(call: TaskCall, value: Any) -> State:
    """Return the final state for what the function returned."""
    run = call.run
    if type(value) not in ATOMS:
        value = resolve_futures_to_states(value)
        state = state_of_value(value, run_id=run.id, task_of=run.flow_run_id or "")
    else:
        state = State(
            StateType.COMPLETED, "Completed", data=value, run_id=run.id, task_of=run.flow_run_id or ""
        )
    run.state = state
    if state.type is StateType.FAILED and run.run_count <= call.task.retries and not call.task.isgenerator:
        # To return a failure is to fail: it is tried again as if it had been raised.
        raise ReturnedFailure(state)
    if state.type is StateType.COMPLETED and call.keeps_memo and call.flow is not None:
        assert call.flow.memo is not None
        call.flow.memo[run.call] = state.data
    return state


def of_task(state: State, call: TaskCall) -> State:
    """Return the state as that of the call's task run."""
    return state if state.task_of is not None else state.replace(task_of=call.run.flow_run_id or "")


def recorded(call: TaskCall, state: State) -> InlineResult | LargeResult | None:
    """Return how the result of a state is recorded, where nobody has said anything about that."""
    if call.events is None or state.type is not StateType.COMPLETED:
        return None
    return call.events.record(state.data)


def cached(call: TaskCall, value: Any) -> tuple[State, InlineResult | LargeResult | None]:
    """Return the final state of a call that did not run because its result was cached, and how that is recorded."""
    if call.keeps_memo and call.flow is not None and call.flow.memo is not None:
        call.flow.memo[call.run.call] = value
    state = Cached(data=value, run_id=call.run.id)
    if call.events is None:
        return state, None
    call.announce()
    if call.is_stored and call.cache is not None:
        return state, call.cache.reference()
    return state, call.events.record(value, call.keeping.serializer if call.keeping is not None else None)


def may_retry(call: TaskCall, exc: BaseException) -> bool:
    return call.run.run_count <= call.task.retries and not isinstance(exc, Abort | Skip | Unpicklable)


def await_retry(call: TaskCall, failed: State) -> float:
    """Say that the call will be tried again; return in how many seconds."""
    run, task = call.run, call.task
    delay_s = jittered_s(
        retry_delay_s(task.retry_delays, retry=run.run_count),
        task.retry_jitter_factor,
        draw=draw(),
    )
    run.state = of_task(AwaitingRetry(message=failed.message, run_id=run.id), call)
    _logger(call).warning(
        "try %d of %d failed, the next is in %g s: %s",
        run.run_count,
        task.retries + 1,
        delay_s,
        failed.message,
    )
    if call.events is not None:
        due = stamp(time.time_ns() + int(delay_s * 1e9))
        call.events.write(run, _SCHEDULED, "AwaitingRetry", failed.message, more=f'"retry_at":"{due}",')
    return delay_s


def crashed(call: TaskCall, exc: BaseException) -> State:
    """Record what something from outside did to the task; return the state."""
    left = left_behind(call, exc)
    if left is not None:  # it leaves its worker, and has said until when
        call.run.state = left
        return left
    flow = call.flow
    leaves = flow is not None and flow.tracker is not None and flow.tracker.leaves_interrupted
    if leaves and isinstance(exc, asyncio.CancelledError | Interrupted):
        why = "The run was stopped while this task was running"
        state = Cancelled(message=why, data=exc, run_id=call.run.id)
    else:
        state = state_of_crash(exc, run_id=call.run.id)
    state = call.run.state = of_task(state, call)
    if call.events is not None:
        call.events.write(call.run, state.type, state.name, state.message, more=hooks_text(call, state))
    return state


def not_ready(call: TaskCall, exc: UpstreamFailed) -> State:
    state = call.run.state = of_task(NotReady(message=str(exc), data=exc, run_id=call.run.id), call)
    if call.events is not None:
        call.events.write(call.run, _PENDING, "NotReady", str(exc))
    return state


def replayed_state(call: TaskCall, value: Any) -> State:
    state = call.run.state = of_task(Completed(data=value, run_id=call.run.id), call)
    return state


def hooks_of(call: TaskCall, state: State) -> list[Callable[..., Any]]:
    argument = HOOK_OF_TYPE.get(state.type)
    return call.task.hooks[argument] if argument is not None and argument in call.task.hooks else []


def owed_hooks(call: TaskCall) -> list[Callable[..., Any]]:
    """Return the hooks of a call that an earlier attempt finished, if it died before they had run."""
    hooks = call.task.hooks.get("on_completion")
    tracker = call.flow.tracker if call.flow is not None else None
    return hooks if hooks and tracker is not None and call.run.call not in tracker.hooked else []


def note_hooked(call: TaskCall, state: State) -> None:
    """Note that the hooks of a call have run for its end."""
    if call.events is not None and call.flow is not None and state.type.is_terminal:
        call.events.write_hooked(call.run)


def hooks_text(call: TaskCall, state: State) -> str:
    """Return the piece of the event of an end that tells where hooks are found that are told of it."""
    if call.flow is None or not hooks_of(call, state):
        return ""
    return mark_of(call.task)


def report_failure(call: TaskCall, state: State) -> None:
    """Say in the run's log that a task failed, with the author's lines; and in its exception where that was."""
    run, exc = call.run, state.data
    tries = f"try {run.run_count} of {call.task.retries + 1}"
    if isinstance(exc, OF_THE_CODE):
        above = f" of flow run {call.flow.flow_run.name!r}" if call.flow is not None else ""
        note_where(exc, f"{run.name!r}{above}, {tries}")
    _logger(call).error("%s: %s", tries, state.message, exc_info=shown_exception(exc))


def report_condition(call: TaskCall) -> None:
    _logger(call).exception("retry_condition_fn of task %r failed, so there is no retry", call.task.name)


def _logger(call: TaskCall) -> RunLogger:
    flow = call.flow
    session = call.events.session if call.events is not None else None
    return logger_of_task_run(call.run, flow.flow_run if flow is not None else None, session)
