"""Running one task call: upstream results in, tries and retries, the final state out.

A call is prepared where it is made (``task_call.py``); ``run_sync`` and ``run_async`` may be called later and elsewhere (a
thread, another loop) and return the final state. They are two because the hot path of an engine that runs
tens of thousands of tasks a second cannot afford to be one with a switch in it; what they share is in functions.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from ...errors import UpstreamFailed
from ..calls.nested import ATOMS
from ..calls.task_call import TaskCall
from ..context import TaskRunContext, current_run, entered
from ..futures import resolve_futures_to_states, settle_futures
from ..limits.tag_limits import give_back, give_back_async, take, take_async
from ..logging import printing
from ..options.hooks import call_blocking, run_hooks, run_hooks_async
from ..persistence.caching import MISS, cache_of
from ..results import InlineResult, LargeResult
from ..runs.final_state import state_of_exception
from ..signals import OF_THE_CODE
from ..states import State, StateType
from ..sync_async.steps import take_steps, take_steps_async
from ..sync_async.timeouts import within, within_async
from .resting import rest, rest_async, rest_first, rest_first_async
from .spans import task_span
from .task_life import (
    await_retry,
    begin,
    begin_try,
    cached,
    context_of,
    crashed,
    give_name,
    hooks_of,
    hooks_text,
    may_retry,
    not_ready,
    note_hooked,
    of_task,
    owed_hooks,
    recorded,
    replayed_state,
    report_condition,
    report_failure,
    running_state,
    succeeded,
)
from .task_transaction import (
    abandon,
    conclude,
    own_transaction,
    replayed,
    try_transaction,
    undo_try,
    values_of,
)

__all__ = [
    "call_async", "call_sync", "finish_async", "finish_sync", "run_async", "run_sync", "wants_retry_async",
    "wants_retry_sync",
]  # fmt: skip

_NO_SPAN = nullcontext()


# --- sync ---------------------------------------------------------------------------------------------


def call_sync(call: TaskCall) -> Any:
    """Run a call that is made in this thread and return its result: ``run_sync`` for those who want no state.

    Most tasks have nothing but a function, and come through here without a state being made.
    """
    task, run, events = call.task, call.run, call.events
    if not call.is_bare:
        return run_sync(call).result()
    context = TaskRunContext(task, run, run.parameters, call.flow, False, call.caller, None, call.opening)
    token = current_run.set(context)
    try:
        if events is not None and events.is_crowded:
            events.give_way()
        begin_try(call)
        try:
            value = task.body(**run.parameters)
            if type(value) not in ATOMS or context.transaction is not None:
                return _conclude_sync(call, value).result()
        except OF_THE_CODE as exc:
            return _tries_sync(call, exc).result()
        if events is not None:
            events.write(run, StateType.COMPLETED, "Completed", None, events.record(value))
        return value
    except BaseException as exc:
        if not isinstance(exc, OF_THE_CODE):
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
        state = replayed_state(call, value)
        if hooks := owed_hooks(call):
            with entered(context_of(call)):
                run_hooks(hooks, call.task, call.run, state)
            note_hooked(call, state)
        return state
    if call.settled is not None:
        return call.settled
    try:
        context = begin(call)
    except UpstreamFailed as exc:
        return not_ready(call, exc)
    token = current_run.set(context)
    try:
        with printing(call.log_prints), task_span(call) if call.is_traced else _NO_SPAN:
            try:
                give_name(call)
                kept = MISS
                if call.task.cache is not None or call.keeping is not None:
                    call.cache = cache_of(call)
                    kept = call.cache.read() if call.cache is not None else MISS
            except OF_THE_CODE as exc:
                state = state_of_exception(exc, what="Task run", run_id=call.run.id)
                return finish_sync(call, state)
            if kept is not MISS:
                if call.task.on_running_hooks:
                    call.run.state = running_state(call.run)
                    run_hooks(call.task.on_running_hooks, call.task, call.run, call.run.state)
                return finish_sync(call, *cached(call, kept))
            return _tries_sync(call)
    except BaseException as exc:
        if not isinstance(exc, OF_THE_CODE):
            take_steps(abandon(exc))
            state = crashed(call, exc)
            hooks = hooks_of(call, state)
            if hooks:
                run_hooks(hooks, call.task, call.run, state)
                note_hooked(call, state)
        raise
    finally:
        if call.held is not None:  # stopped between having them and calling the function
            give_back(call)
        current_run.reset(token)
        if call.cache is not None:
            call.cache.let_go()


def _tries_sync(call: TaskCall, failure: BaseException | None = None) -> State:
    """Try until it works or no retries are left; the first try may have been made, and have come to ``failure``."""
    task, run, events = call.task, call.run, call.events
    if call.retry_at is not None:
        rest_first(call)
    while True:
        if failure is None and call.limited != ():
            if events is not None:
                events.going.begin(run)  # its run does not leave while it waits for its slots
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
            except OF_THE_CODE as exc:
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
    state = run.state = of_task(state, call)
    if state.type is StateType.FAILED:
        report_failure(call, state)
    if events is not None:
        more = values_of(call) + hooks_text(call, state)
        events.write(run, state.type, state.name, state.message, result, more)
        if events.is_guarded or isinstance(result, LargeResult):
            events.give_way()
    hooks = hooks_of(call, state)
    if hooks:
        run_hooks(hooks, call.task, run, state)
        note_hooked(call, state)
    return state


def wants_retry_sync(call: TaskCall, failed: State) -> bool:
    condition = call.task.retry_condition_fn
    if condition is None:
        return True
    try:
        call.run.state = failed
        return bool(call_blocking(condition, call.task, call.run, failed))
    except Exception:
        report_condition(call)
        return False


# --- async --------------------------------------------------------------------------------------------


async def call_async(call: TaskCall) -> Any:
    """Run a call that is made in this event loop and return its result: ``run_async`` for those who want no state.

    Most tasks have nothing but a function, and come through here without a state being made.
    """
    task, run, events = call.task, call.run, call.events
    if not call.is_bare:
        return await (await run_async(call)).aresult()
    context = TaskRunContext(task, run, run.parameters, call.flow, False, call.caller, None, call.opening)
    token = current_run.set(context)
    try:
        if events is not None and events.is_crowded:
            await events.give_way_async()
        begin_try(call)
        try:
            value = await task.body(**run.parameters)
            if type(value) not in ATOMS or context.transaction is not None:
                return (await _conclude_async(call, value)).result()
        except OF_THE_CODE as exc:
            return (await _tries_async(call, exc)).result()
        if events is not None:
            events.write(run, StateType.COMPLETED, "Completed", None, events.record(value))
        return value
    except BaseException as exc:
        if not isinstance(exc, OF_THE_CODE):
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
        state = replayed_state(call, value)
        if hooks := owed_hooks(call):
            with entered(context_of(call)):
                await run_hooks_async(hooks, call.task, call.run, state)
            note_hooked(call, state)
        return state
    if call.settled is not None:
        return call.settled
    for future in call.upstream:
        await future.wait_for_value_async()
    try:
        context = begin(call)
    except UpstreamFailed as exc:
        return not_ready(call, exc)
    token = current_run.set(context)
    try:
        with printing(call.log_prints), task_span(call) if call.is_traced else _NO_SPAN:
            try:
                give_name(call)
                kept = MISS
                if call.task.cache is not None or call.keeping is not None:
                    call.cache = cache_of(call)
                    kept = await call.cache.aread() if call.cache is not None else MISS
            except OF_THE_CODE as exc:
                state = state_of_exception(exc, what="Task run", run_id=call.run.id)
                return await finish_async(call, state)
            if kept is not MISS:
                if call.task.on_running_hooks:
                    call.run.state = running_state(call.run)
                    await run_hooks_async(call.task.on_running_hooks, call.task, call.run, call.run.state)
                return await finish_async(call, *cached(call, kept))
            return await _tries_async(call)
    except BaseException as exc:
        if not isinstance(exc, OF_THE_CODE):
            await take_steps_async(abandon(exc))
            state = crashed(call, exc)
            hooks = hooks_of(call, state)
            if hooks:
                await run_hooks_async(hooks, call.task, call.run, state)
                note_hooked(call, state)
        raise
    finally:
        current_run.reset(token)
        if call.held is not None:  # stopped between having them and calling the function
            await give_back_async(call)
        if call.cache is not None:
            call.cache.let_go()


async def _tries_async(call: TaskCall, failure: BaseException | None = None) -> State:
    """Try until it works or no retries are left; the first try may have been made, and have come to ``failure``."""
    task, run, events = call.task, call.run, call.events
    if call.retry_at is not None:
        await rest_first_async(call)
    while True:
        if failure is None and call.limited != ():
            if events is not None:
                events.going.begin(run)  # its run does not leave while it waits for its slots
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
            except OF_THE_CODE as exc:
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
    state = run.state = of_task(state, call)
    if state.type is StateType.FAILED:
        report_failure(call, state)
    if events is not None:
        more = values_of(call) + hooks_text(call, state)
        events.write(run, state.type, state.name, state.message, result, more)
        if events.is_guarded or isinstance(result, LargeResult):
            await events.give_way_async()
    hooks = hooks_of(call, state)
    if hooks:
        await run_hooks_async(hooks, call.task, run, state)
        note_hooked(call, state)
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
        report_condition(call)
        return False
