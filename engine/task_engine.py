"""Running one task call: upstream results in, tries and retries, the final state out.

A call is prepared where it is made (``task_call.py``); ``run_sync`` and ``run_async`` may be called later and elsewhere (a
thread, another loop) and return the final state. They are two because the hot path of an engine that runs
tens of thousands of tasks a second cannot afford to be one with a switch in it; what they share is in functions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ..errors import Unpicklable, UpstreamFailed
from ..vocabulary import draw
from .caching import MISS, cache_of
from .context import TaskRunContext, current_run
from .final_state import state_of_crash, state_of_exception, state_of_value
from .futures import resolve_futures_to_states, settle_futures
from .hooks import HOOK_OF_TYPE, call_blocking, run_hooks, run_hooks_async
from .logging import RunLogger, logger_of_task_run, printing
from .naming import render_name
from .nested import ATOMS
from .resting import left_behind, rest, rest_async, rest_first, rest_first_async
from .results import InlineResult, LargeResult
from .retry import jittered_s, retry_delay_s
from .signals import Abort, Interrupted, ReturnedFailure, Skip
from .spans import task_span
from .states import AwaitingRetry, Cached, Cancelled, Completed, NotReady, Retrying, Running, State, StateType
from .steps import take_steps, take_steps_async
from .tag_limits import give_back, give_back_async, take, take_async
from .task_call import TaskCall, announce, resolve_inputs
from .task_run import TaskRun, stamp
from .task_transaction import (
    abandon,
    conclude,
    own_transaction,
    replayed,
    try_transaction,
    undo_try,
    values_of,
)
from .timeouts import within, within_async
from .user_frames import note_where, shown_exception

__all__ = ["call_async", "call_sync", "cancel_unstarted", "run_async", "run_sync", "settle_futures"]

_NO_SPAN = nullcontext()
_PENDING, _RUNNING, _SCHEDULED = StateType.PENDING, StateType.RUNNING, StateType.SCHEDULED


def _not_ready(call: TaskCall, exc: UpstreamFailed) -> State:
    state = call.run.state = _of_task(NotReady(message=str(exc), data=exc, run_id=call.run.id), call)
    if call.events is not None:
        call.events.write(call.run, _PENDING, "NotReady", str(exc))
    return state


def cancel_unstarted(call: TaskCall) -> State:
    """End a call that never began because its flow is over; return its state."""
    ended = "The flow run ended before this task began"
    state = call.run.state = _of_task(Cancelled(message=ended, run_id=call.run.id), call)
    if call.events is not None:
        call.events.write(call.run, StateType.CANCELLED, "Cancelled", state.message)
    return state


# --- what both ways share -----------------------------------------------------------------------------


def begin(call: TaskCall) -> TaskRunContext:
    """Resolve inputs and the name; return the context for the task's code."""
    run, task = call.run, call.task
    if not call.is_plain:
        run.parameters = resolve_inputs(
            run.parameters, call.wait_for, what=f"task {task.name!r}", run_id=run.id
        )
    return TaskRunContext(task, run, run.parameters, call.flow, call.log_prints, call.caller, call.keeping)


def give_name(call: TaskCall) -> None:
    """Give the run the name its author's template or function says; inside its context, which functions may ask."""
    run, task = call.run, call.task
    if task.task_run_name is not None:
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


def _of_task(state: State, call: TaskCall) -> State:
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
    if not call.is_announced:
        announce(call)
    if call.is_stored and call.cache is not None:
        return state, call.cache.reference()
    return state, call.events.record(value, call.keeping.serializer if call.keeping is not None else None)


def may_retry(call: TaskCall, exc: Exception) -> bool:
    return call.run.run_count <= call.task.retries and not isinstance(exc, Abort | Skip | Unpicklable)


def await_retry(call: TaskCall, failed: State) -> float:
    """Say that the call will be tried again; return in how many seconds."""
    run, task = call.run, call.task
    delay_s = jittered_s(
        retry_delay_s(task.retry_delays, retry=run.run_count),
        task.retry_jitter_factor,
        draw=draw(),
    )
    run.state = _of_task(AwaitingRetry(message=failed.message, run_id=run.id), call)
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
    state = call.run.state = _of_task(state, call)
    if call.events is not None:
        call.events.write(call.run, state.type, state.name, state.message)
    return state


# --- sync ---------------------------------------------------------------------------------------------


def call_sync(call: TaskCall) -> Any:
    """Run a call that is made in this thread and return its result: ``run_sync`` for those who want no state.

    Most tasks have nothing but a function, and come through here without a state being made.
    """
    task, run, events = call.task, call.run, call.events
    if (
        task.needs_care
        or call.log_prints
        or not call.is_plain
        or call.is_careful
        or call.recorded is not None
        or call.is_settled
        or call.limited != ()
        or call.is_traced
        or run.run_count
    ):
        return (run_sync(call)).result()
    context = TaskRunContext(task, run, run.parameters, call.flow, False, call.caller)
    token = current_run.set(context)
    try:
        if events is not None and events.is_crowded:
            events.give_way()
        begin_try(call)
        try:
            value = task.body(**run.parameters)
            if type(value) not in ATOMS or context.transaction is not None:
                return (_conclude_sync(call, value)).result()
        except Exception as exc:
            return (_tries_sync(call, exc)).result()
        if events is not None:
            events.write(run, StateType.COMPLETED, "Completed", None, events.record(value))
        return value
    except BaseException as exc:
        if not isinstance(exc, Exception):
            if context.transaction is not None:
                take_steps(abandon(exc))
            crashed(call, exc)
        raise
    finally:
        current_run.reset(token)


def run_sync(call: TaskCall) -> State:
    """Run a call in this thread and return its final state (or NotReady).

    Raises:
        BaseException: what is no ``Exception`` (Ctrl-C, a cancelled loop) is recorded and goes on up.
    """
    if call.recorded is not None:
        value = call.recorded.read()
        take_steps(replayed(call, value))
        state = _recorded(call, value)
        if hooks := _owed_hooks(call):
            run_hooks(hooks, call.task, call.run, state)
            _hooked(call, state)
        return state
    if call.settled is not None:
        return call.settled
    try:
        context = begin(call)
    except UpstreamFailed as exc:
        return _not_ready(call, exc)
    token = current_run.set(context)
    try:
        with printing(call.log_prints), task_span(call) if call.is_traced else _NO_SPAN:
            try:
                give_name(call)
                kept = MISS
                if call.task.cache is not None or call.keeping is not None:
                    call.cache = cache_of(call)
                    kept = call.cache.read() if call.cache is not None else MISS
            except Exception as exc:
                state = state_of_exception(exc, what="Task run", run_id=call.run.id)
                return finish_sync(call, state)
            if kept is not MISS:
                return finish_sync(call, *cached(call, kept))
            return _tries_sync(call)
    except BaseException as exc:
        if not isinstance(exc, Exception):
            take_steps(abandon(exc))
            state = crashed(call, exc)
            hooks = _hooks_of(call, state)
            if hooks:
                run_hooks(hooks, call.task, call.run, state)
        raise
    finally:
        if call.held is not None:  # stopped between having them and calling the function
            give_back(call)
        current_run.reset(token)
        if call.cache is not None:
            call.cache.let_go()


def _tries_sync(call: TaskCall, failure: Exception | None = None) -> State:
    """Try until it works or no retries are left; the first try may have been made, and have come to ``failure``."""
    task, run, events = call.task, call.run, call.events
    if call.retry_at is not None:
        rest_first(call)
    while True:
        if failure is None and call.limited != ():
            failure = take(call)
        if failure is None:
            if events is not None and events.is_crowded:
                events.give_way()
            begin_try(call)
            if task.on_running_hooks:
                run.state = running_state(run)
                run_hooks(task.on_running_hooks, task, run, run.state)
            if call.is_careful or task.has_transaction_hooks:
                try_transaction(call)
            args, kwargs = task.shape.spread(run.parameters)
            try:
                if call.elsewhere is not None:
                    value = call.elsewhere(call, args, kwargs)
                else:
                    with within(task.timeout_seconds, f"task {task.name!r}"):
                        value = task.body(*args, **kwargs)
                return _conclude_sync(call, value)
            except Exception as exc:
                failure = exc
            finally:
                if call.held is not None:
                    give_back(call)
        state = state_of_exception(failure, what="Task run", run_id=run.id)
        if not may_retry(call, failure) or not wants_retry_sync(call, state):
            take_steps(undo_try(is_last=True))
            return finish_sync(call, state)
        take_steps(undo_try(is_last=False))
        rest(call, await_retry(call, state))
        failure = None


def _conclude_sync(call: TaskCall, value: Any) -> State:
    """End a call whose function returned; what making a result of its value raises counts as the function's."""
    if type(value) not in ATOMS:
        value = resolve_futures_to_states(value)
    state = succeeded(call, value)
    if call.is_careful or call.cache is not None or own_transaction() is not None:
        return take_steps(conclude(call, state, finish_sync, finish_async))
    return finish_sync(call, state, recorded(call, state))


def finish_sync(call: TaskCall, state: State, result: InlineResult | LargeResult | None = None) -> State:
    """Write the final state, and tell the hooks."""
    run, events = call.run, call.events
    state = run.state = _of_task(state, call)
    if state.type is StateType.FAILED:
        report_failure(call, state)
    if events is not None:
        events.write(run, state.type, state.name, state.message, result, values_of(call))
        if events.is_guarded or isinstance(result, LargeResult):
            events.give_way()
    hooks = _hooks_of(call, state)
    if hooks:
        run_hooks(hooks, call.task, run, state)
        _hooked(call, state)
    return state


def wants_retry_sync(call: TaskCall, failed: State) -> bool:
    condition = call.task.retry_condition_fn
    if condition is None:
        return True
    try:
        call.run.state = failed
        return bool(call_blocking(condition, call.task, call.run, failed))
    except Exception:
        _report_condition(call)
        return False


# --- async --------------------------------------------------------------------------------------------


async def call_async(call: TaskCall) -> Any:
    """Run a call that is made in this event loop and return its result: ``run_async`` for those who want no state.

    Most tasks have nothing but a function, and come through here without a state being made.
    """
    task, run, events = call.task, call.run, call.events
    if (
        task.needs_care
        or call.log_prints
        or not call.is_plain
        or call.is_careful
        or call.recorded is not None
        or call.is_settled
        or call.limited != ()
        or call.is_traced
        or run.run_count
    ):
        return await (await run_async(call)).aresult()
    context = TaskRunContext(task, run, run.parameters, call.flow, False, call.caller)
    token = current_run.set(context)
    try:
        if events is not None and events.is_crowded:
            await events.give_way_async()
        begin_try(call)
        try:
            value = await task.body(**run.parameters)
            if type(value) not in ATOMS or context.transaction is not None:
                return (await _conclude_async(call, value)).result()
        except Exception as exc:
            return (await _tries_async(call, exc)).result()
        if events is not None:
            events.write(run, StateType.COMPLETED, "Completed", None, events.record(value))
        return value
    except BaseException as exc:
        if not isinstance(exc, Exception):
            if context.transaction is not None:
                await take_steps_async(abandon(exc))
            crashed(call, exc)
        raise
    finally:
        current_run.reset(token)


async def run_async(call: TaskCall) -> State:
    """Run a call in this event loop and return its final state (or NotReady).

    Raises:
        BaseException: what is no ``Exception`` (Ctrl-C, a cancelled loop) is recorded and goes on up.
    """
    if call.recorded is not None:
        value = await call.recorded.aread()
        await take_steps_async(replayed(call, value))
        state = _recorded(call, value)
        if hooks := _owed_hooks(call):
            await run_hooks_async(hooks, call.task, call.run, state)
            _hooked(call, state)
        return state
    if call.settled is not None:
        return call.settled
    for future in call.upstream:
        await future.wait_for_value_async()
    try:
        context = begin(call)
    except UpstreamFailed as exc:
        return _not_ready(call, exc)
    token = current_run.set(context)
    try:
        with printing(call.log_prints), task_span(call) if call.is_traced else _NO_SPAN:
            try:
                give_name(call)
                kept = MISS
                if call.task.cache is not None or call.keeping is not None:
                    call.cache = cache_of(call)
                    kept = await call.cache.aread() if call.cache is not None else MISS
            except Exception as exc:
                state = state_of_exception(exc, what="Task run", run_id=call.run.id)
                return await finish_async(call, state)
            if kept is not MISS:
                return await finish_async(call, *cached(call, kept))
            return await _tries_async(call)
    except BaseException as exc:
        if not isinstance(exc, Exception):
            await take_steps_async(abandon(exc))
            state = crashed(call, exc)
            hooks = _hooks_of(call, state)
            if hooks:
                await run_hooks_async(hooks, call.task, call.run, state)
        raise
    finally:
        current_run.reset(token)
        if call.held is not None:  # stopped between having them and calling the function
            await give_back_async(call)
        if call.cache is not None:
            call.cache.let_go()


async def _tries_async(call: TaskCall, failure: Exception | None = None) -> State:
    """Try until it works or no retries are left; the first try may have been made, and have come to ``failure``."""
    task, run, events = call.task, call.run, call.events
    if call.retry_at is not None:
        await rest_first_async(call)
    while True:
        if failure is None and call.limited != ():
            failure = await take_async(call)
        if failure is None:
            if events is not None and events.is_crowded:
                await events.give_way_async()
            begin_try(call)
            if task.on_running_hooks:
                run.state = running_state(run)
                await run_hooks_async(task.on_running_hooks, task, run, run.state)
            if call.is_careful or task.has_transaction_hooks:
                try_transaction(call)
            args, kwargs = task.shape.spread(run.parameters)
            try:
                async with within_async(task.timeout_seconds, f"task {task.name!r}"):
                    value = await task.body(*args, **kwargs)
                return await _conclude_async(call, value)
            except Exception as exc:
                failure = exc
            finally:
                if call.held is not None:
                    await give_back_async(call)
        state = state_of_exception(failure, what="Task run", run_id=run.id)
        if not may_retry(call, failure) or not await wants_retry_async(call, state):
            await take_steps_async(undo_try(is_last=True))
            return await finish_async(call, state)
        await take_steps_async(undo_try(is_last=False))
        await rest_async(call, await_retry(call, state))
        failure = None


async def _conclude_async(call: TaskCall, value: Any) -> State:
    """End a call whose function returned; what making a result of its value raises counts as the function's."""
    if type(value) not in ATOMS:
        await settle_futures(value)
    state = succeeded(call, value)
    if call.is_careful or call.cache is not None or own_transaction() is not None:
        return await take_steps_async(conclude(call, state, finish_sync, finish_async))
    return await finish_async(call, state, recorded(call, state))


async def finish_async(
    call: TaskCall, state: State, result: InlineResult | LargeResult | None = None
) -> State:
    """Write the final state, and tell the hooks."""
    run, events = call.run, call.events
    state = run.state = _of_task(state, call)
    if state.type is StateType.FAILED:
        report_failure(call, state)
    if events is not None:
        events.write(run, state.type, state.name, state.message, result, values_of(call))
        if events.is_guarded or isinstance(result, LargeResult):
            await events.give_way_async()
    hooks = _hooks_of(call, state)
    if hooks:
        await run_hooks_async(hooks, call.task, run, state)
        _hooked(call, state)
    return state


async def wants_retry_async(call: TaskCall, failed: State) -> bool:
    condition = call.task.retry_condition_fn
    if condition is None:
        return True
    try:
        call.run.state = failed
        wanted = condition(call.task, call.run, failed)
        return bool(await wanted if hasattr(wanted, "__await__") else wanted)
    except Exception:
        _report_condition(call)
        return False


# --- small things -------------------------------------------------------------------------------------


def _recorded(call: TaskCall, value: Any) -> State:
    state = call.run.state = _of_task(Completed(data=value, run_id=call.run.id), call)
    return state


def _hooks_of(call: TaskCall, state: State) -> list[Callable[..., Any]]:
    argument = HOOK_OF_TYPE.get(state.type)
    return call.task.hooks[argument] if argument is not None and argument in call.task.hooks else []


def _owed_hooks(call: TaskCall) -> list[Callable[..., Any]]:
    """Return the hooks of a call that an earlier attempt finished, if it died before they had run."""
    hooks = call.task.hooks.get("on_completion")
    tracker = call.flow.tracker if call.flow is not None else None
    return hooks if hooks and tracker is not None and call.run.call not in tracker.hooked else []


def _hooked(call: TaskCall, state: State) -> None:
    """Note that the hooks of a completed call have run: a failed one runs again if the run is taken up, hooks and all."""
    if call.events is not None and call.flow is not None and state.type is StateType.COMPLETED:
        call.events.write_hooked(call.run)


def report_failure(call: TaskCall, state: State) -> None:
    """Say in the run's log that a task failed, with the author's lines; and in its exception where that was."""
    run, exc = call.run, state.data
    tries = f"try {run.run_count} of {call.task.retries + 1}"
    if isinstance(exc, Exception):
        above = f" of flow run {call.flow.flow_run.name!r}" if call.flow is not None else ""
        note_where(exc, f"{run.name!r}{above}, {tries}")
    _logger(call).error("%s: %s", tries, state.message, exc_info=shown_exception(exc))


def _report_condition(call: TaskCall) -> None:
    _logger(call).exception("retry_condition_fn of task %r failed, so there is no retry", call.task.name)


def _logger(call: TaskCall) -> RunLogger:
    flow = call.flow
    session = call.events.session if call.events is not None else None
    return logger_of_task_run(call.run, flow.flow_run if flow is not None else None, session)
