"""Running one task call: upstream results in, tries and retries, the final state out.

``prepare`` is called where the call is made and takes no time; ``run_sync`` and ``run_async`` may be called later and
elsewhere (a thread, another loop) and return the final state. They are two because the hot path of an engine that runs
tens of thousands of tasks a second cannot afford to be one with a switch in it; what they share is in functions.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UpstreamFailed
from .annotations import Annotation, allow_failure, quote, unmapped
from .context import FlowRunContext, TaskRunContext, current_run, current_tags
from .final_state import state_of_crash, state_of_exception, state_of_value
from .futures import TaskFuture, resolve_futures_to_states
from .hooks import HOOK_OF_TYPE, call_blocking, run_hooks, run_hooks_async
from .logging import printing
from .naming import render_name
from .nested import ATOMS, is_plain, replace_leaves
from .results import NOT_KEPT, InlineResult, LargeResult, RecordedResult
from .retry import jittered_s, retry_delay_s
from .signals import Abort, Interrupted, Skip
from .states import AwaitingRetry, Cancelled, Completed, NotReady, Retrying, Running, State, StateType
from .task_run import IdSource, TaskRun
from .timeouts import within, within_async

if TYPE_CHECKING:
    from .tasks import Task
    from .tracking import TaskEvents

__all__ = [
    "TaskCall",
    "as_tuple",
    "cancel_unstarted",
    "prepare",
    "resolve_inputs",
    "run_async",
    "run_sync",
    "settle_futures",
]

_ids = IdSource()
_PENDING, _RUNNING, _SCHEDULED = StateType.PENDING, StateType.RUNNING, StateType.SCHEDULED


class TaskCall:
    """One call of a task, with everything known where it was made.

    Attributes:
        events: where its transitions go; None where nothing is tracked.
        upstream: the futures among its inputs and in ``wait_for``.
        recorded: the result an earlier attempt of the flow run recorded for this call; then it does not run.
        settled: the final state, where it was clear before the call could begin.
    """

    __slots__ = (
        "events",
        "flow",
        "is_plain",
        "log_prints",
        "recorded",
        "run",
        "settled",
        "task",
        "upstream",
        "wait_for",
    )

    def __init__(
        self, task: Task[..., Any], run: TaskRun, flow: FlowRunContext | None, log_prints: bool
    ) -> None:
        self.task = task
        self.run = run
        self.flow = flow
        self.log_prints = log_prints
        self.events: TaskEvents | None = None
        self.is_plain = True
        self.upstream: list[TaskFuture[Any]] = []
        self.wait_for: tuple[Any, ...] = ()
        self.recorded: RecordedResult | None = None
        self.settled: State | None = None

    @property
    def is_settled(self) -> bool:
        return self.settled is not None


def prepare(
    task: Task[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] | None = None
) -> TaskCall:
    """Make a call of ``task``: give it its id, name and key, say that it is pending, look for a recorded result."""
    parent = current_run.get()
    flow = parent.flow_context if parent is not None else None
    if flow is not None:
        tracker = flow.tracker
        ids, events = (tracker.events.ids, tracker.events) if tracker is not None else (_ids, None)
        flow_run_id: str | None = flow.flow_run.id
    else:
        tracker, ids, flow_run_id = None, _ids, None
        events = None
    tags = current_tags.get()
    if task.tags:
        tags = tags | task.tags if tags else task.tags
    id_ = ids.draw()
    run = TaskRun(
        id_,
        f"{task.name}-{id_[-6:]}",
        task,
        flow_run_id=flow_run_id,
        parameters=parameters,
        tags=tags,
        upstream=(),
    )
    log_prints = task.log_prints
    call = TaskCall(
        task, run, flow, log_prints if log_prints is not None else parent is not None and parent.log_prints
    )
    if wait_for is not None or not is_plain(parameters.values()):
        _look_for_upstream(call, parameters, wait_for)
    if tracker is not None:
        assert parent is not None
        run.call, run.index = parent.calls.key(task.name, parameters, salt=task.key_salt)
        call.events = events
        if tracker.finished and not task.isgenerator:
            call.recorded = tracker.take_finished(run.call)
            if call.recorded is not None:
                return call
        tracker.events.write(run, _PENDING, "Pending")
    elif flow is None:
        from ..bus.session import current_session

        session = current_session()
        if session is not None:
            from ..config import load_settings
            from .tracking import standalone_events

            # A task inside a task outside any flow: its own events all the same.
            call.events = standalone_events(
                session, id_, inline_bytes=load_settings().engine.inline_result_bytes
            )
            call.events.write(run, _PENDING, "Pending")
    elif flow.memo is not None and task.persist_result:
        assert parent is not None
        run.call, run.index = parent.calls.key(task.name, parameters, salt=task.key_salt)
        if run.call in flow.memo:
            call.settled = Completed(data=flow.memo[run.call], run_id=id_)
    return call


def as_tuple(wait_for: Any) -> tuple[Any, ...]:
    """Return what was given as ``wait_for``, one thing or several, as a tuple."""
    if wait_for is None:
        return ()
    return tuple(wait_for) if isinstance(wait_for, list | tuple | set | frozenset) else (wait_for,)


def _look_for_upstream(call: TaskCall, parameters: dict[str, Any], wait_for: Any) -> None:
    ids: list[str] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, TaskFuture):
            call.upstream.append(leaf)
            ids.append(leaf.task_run_id)
        elif isinstance(leaf, State):
            if leaf.run_id:
                ids.append(leaf.run_id)
        elif isinstance(leaf, Annotation):
            if isinstance(leaf, quote):
                call.is_plain = False
                return leaf
            replace_leaves(leaf.value, note)
        else:
            return leaf
        call.is_plain = False
        return leaf

    for value in parameters.values():
        replace_leaves(value, note)
    if wait_for is not None:
        call.wait_for = as_tuple(wait_for)
        call.is_plain = False
        for item in call.wait_for:
            replace_leaves(item, note)
    call.run.upstream = tuple(dict.fromkeys(ids))


# --- inputs -------------------------------------------------------------------------------------------


def resolve_inputs(parameters: dict[str, Any], wait_for: Iterable[Any], *, what: str) -> dict[str, Any]:
    """Return parameters with results in place of futures and states; all futures are done.

    Raises:
        UpstreamFailed: one did not complete, and was not marked ``allow_failure``.
    """

    def result_of(state: State, name: str, allowed: bool) -> Any:
        if not state.is_completed():
            if allowed and state.is_final():
                return state.result(raise_on_failure=False)
            raise UpstreamFailed(f"{what} did not run: upstream {name} is {state.name}, not completed")
        return state.result()

    def change(leaf: Any, allowed: bool = False) -> Any:
        if isinstance(leaf, TaskFuture):
            leaf.wait()
            return result_of(leaf.state, f"task run {leaf.name!r}", allowed)
        if isinstance(leaf, State):
            return result_of(leaf, "state", allowed)
        if isinstance(leaf, allow_failure):
            return replace_leaves(leaf.value, lambda inner: change(inner, True))
        if isinstance(leaf, quote):
            return leaf.value
        if isinstance(leaf, unmapped):
            return replace_leaves(leaf.value, change)
        return leaf

    resolved = {name: replace_leaves(value, change) for name, value in parameters.items()}
    for item in wait_for:
        replace_leaves(item, change)
    return resolved


def _not_ready(call: TaskCall, exc: UpstreamFailed) -> State:
    state = NotReady(message=str(exc), data=exc, run_id=call.run.id)
    call.run.state = state
    if call.events is not None:
        call.events.write(call.run, _PENDING, "NotReady", str(exc))
    return state


def cancel_unstarted(call: TaskCall) -> State:
    """End a call that never began because its flow is over; return its state."""
    state = Cancelled(message="The flow run ended before this task began", run_id=call.run.id)
    call.run.state = state
    if call.events is not None:
        call.events.write(call.run, StateType.CANCELLED, "Cancelled", state.message)
    return state


# --- what both ways share -----------------------------------------------------------------------------


def begin(call: TaskCall) -> TaskRunContext:
    """Resolve inputs and the name; return the context for the task's code."""
    run, task = call.run, call.task
    if not call.is_plain:
        run.parameters = resolve_inputs(run.parameters, call.wait_for, what=f"task {task.name!r}")
    return TaskRunContext(task, run, run.parameters, call.flow, call.log_prints)


def give_name(call: TaskCall) -> None:
    """Give the run the name its author's template or function says; inside its context, which functions may ask."""
    run, task = call.run, call.task
    if task.task_run_name is not None:
        run.name = render_name("task_run_name", task.task_run_name, run.parameters)
        run.pieces = None


def begin_try(call: TaskCall) -> None:
    run = call.run
    run.run_count += 1
    name = "Running" if run.run_count == 1 else "Retrying"
    if not run.started_ns:
        run.started_ns = time.time_ns()
    if call.events is not None:
        call.events.write(run, _RUNNING, name)
    # Made only when somebody can see it: a state costs more than the rest of a try.
    run.state = None


def running_state(run: TaskRun) -> State:
    """Return the RUNNING state of a try that has begun."""
    return Running(run_id=run.id) if run.run_count <= 1 else Retrying(run_id=run.id)


def succeeded(call: TaskCall, value: Any) -> tuple[State, InlineResult | LargeResult | None]:
    """Return the final state for what the function returned, and how its result is recorded."""
    run, events = call.run, call.events
    if type(value) not in ATOMS:
        value = resolve_futures_to_states(value)
        state = state_of_value(value, run_id=run.id)
    else:
        state = Completed(data=value, run_id=run.id)
    run.state = state
    if state.type is not StateType.COMPLETED:
        return state, None
    if call.flow is not None and call.flow.memo is not None and call.task.persist_result:
        call.flow.memo[run.call] = state.data
    if events is None:
        return state, None
    return state, NOT_KEPT if call.task.persist_result is False else events.record(state.data)


def may_retry(call: TaskCall, exc: Exception) -> bool:
    return call.run.run_count <= call.task.retries and not isinstance(exc, Abort | Skip)


def await_retry(call: TaskCall, failed: State) -> float:
    """Say that the call will be tried again; return in how many seconds."""
    run, task = call.run, call.task
    delay_s = jittered_s(
        retry_delay_s(task.retry_delays, retry=run.run_count),
        task.retry_jitter_factor,
        draw=random.random(),  # noqa: S311  jitter is no secret
    )
    run.state = AwaitingRetry(message=failed.message, run_id=run.id)
    if call.events is not None:
        call.events.write(run, _SCHEDULED, "AwaitingRetry", failed.message)
    return delay_s


def _end(call: TaskCall, state: State, result: InlineResult | LargeResult | None = None) -> None:
    call.run.state = state
    if call.events is not None:
        call.events.write(call.run, state.type, state.name, state.message, result)


def crashed(call: TaskCall, exc: BaseException) -> State:
    """Record what something from outside did to the task; return the state."""
    flow = call.flow
    leaves = flow is not None and flow.tracker is not None and flow.tracker.leaves_interrupted
    if leaves and isinstance(exc, asyncio.CancelledError | Interrupted):
        state = Cancelled(
            message="The run was stopped while this task was running", data=exc, run_id=call.run.id
        )
    else:
        state = state_of_crash(exc, run_id=call.run.id)
    _end(call, state)
    return state


def _limit_text(call: TaskCall) -> str:
    return f"task {call.task.name!r}"


# --- sync ---------------------------------------------------------------------------------------------


def run_sync(call: TaskCall) -> State:
    """Run a call in this thread and return its final state (or NotReady).

    Raises:
        BaseException: what is no ``Exception`` (Ctrl-C, a cancelled loop) is recorded and goes on up.
    """
    if call.recorded is not None:
        return _recorded(call, call.recorded.read())
    if call.settled is not None:
        return call.settled
    try:
        context = begin(call)
    except UpstreamFailed as exc:
        return _not_ready(call, exc)
    token = current_run.set(context)
    try:
        with printing(True) if call.log_prints else _NOTHING:
            return _tries_sync(call)
    except BaseException as exc:
        if not isinstance(exc, Exception):
            state = crashed(call, exc)
            run_hooks(_hooks_of(call, state), call.task, call.run, state)
        raise
    finally:
        current_run.reset(token)


def _tries_sync(call: TaskCall) -> State:
    task, run, events = call.task, call.run, call.events
    try:
        give_name(call)
    except Exception as exc:
        return finish_sync(call, state_of_exception(exc, what="Task run", run_id=run.id))
    fn, parameters, shape = task.body, run.parameters, task.shape
    while True:
        if events is not None and events.is_crowded:
            events.give_way()
        begin_try(call)
        if task.on_running_hooks:
            run.state = running_state(run)
            run_hooks(task.on_running_hooks, task, run, run.state)
        try:
            if task.timeout_seconds is None:
                if shape.is_simple:
                    value = fn(**parameters)
                else:
                    args, kwargs = shape.spread(parameters)
                    value = fn(*args, **kwargs)
            else:
                args, kwargs = shape.spread(parameters)
                with within(task.timeout_seconds, _limit_text(call)):
                    value = fn(*args, **kwargs)
            state, result = succeeded(call, value)
        except Exception as exc:
            state = state_of_exception(exc, what="Task run", run_id=run.id)
            result = None
            if may_retry(call, exc) and wants_retry_sync(call, state):
                delay_s = await_retry(call, state)
                if delay_s > 0:
                    time.sleep(delay_s)
                continue
        if isinstance(result, LargeResult) and events is not None:
            _end(call, state, result)
            events.give_way()
            return finish_sync(call, state, ended=True)
        return finish_sync(call, state, result)


def finish_sync(
    call: TaskCall, state: State, result: InlineResult | LargeResult | None = None, *, ended: bool = False
) -> State:
    if not ended:
        _end(call, state, result)
    hooks = _hooks_of(call, state)
    if hooks:
        run_hooks(hooks, call.task, call.run, state)
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


async def run_async(call: TaskCall) -> State:
    """Run a call in this event loop and return its final state (or NotReady)."""
    if call.recorded is not None:
        return _recorded(call, await call.recorded.aread())
    if call.settled is not None:
        return call.settled
    if call.upstream:
        for future in call.upstream:
            await future.wait_async()
    try:
        context = begin(call)
    except UpstreamFailed as exc:
        return _not_ready(call, exc)
    token = current_run.set(context)
    try:
        with printing(True) if call.log_prints else _NOTHING:
            return await _tries_async(call)
    except BaseException as exc:
        if not isinstance(exc, Exception):
            state = crashed(call, exc)
            hooks = _hooks_of(call, state)
            if hooks:
                await run_hooks_async(hooks, call.task, call.run, state)
        raise
    finally:
        current_run.reset(token)


async def _tries_async(call: TaskCall) -> State:
    task, run, events = call.task, call.run, call.events
    try:
        give_name(call)
    except Exception as exc:
        return await finish_async(call, state_of_exception(exc, what="Task run", run_id=run.id))
    fn, parameters, shape = task.body, run.parameters, task.shape
    while True:
        if events is not None and events.is_crowded:
            await events.give_way_async()
        begin_try(call)
        if task.on_running_hooks:
            run.state = running_state(run)
            await run_hooks_async(task.on_running_hooks, task, run, run.state)
        try:
            if task.timeout_seconds is None:
                if shape.is_simple:
                    value = await fn(**parameters)
                else:
                    args, kwargs = shape.spread(parameters)
                    value = await fn(*args, **kwargs)
            else:
                args, kwargs = shape.spread(parameters)
                async with within_async(task.timeout_seconds, _limit_text(call)):
                    value = await fn(*args, **kwargs)
            if type(value) not in ATOMS:
                await settle_futures(value)
            state, result = succeeded(call, value)
        except Exception as exc:
            state = state_of_exception(exc, what="Task run", run_id=run.id)
            result = None
            if may_retry(call, exc) and await wants_retry_async(call, state):
                await asyncio.sleep(await_retry(call, state))
                continue
        if isinstance(result, LargeResult) and events is not None:
            _end(call, state, result)
            await events.give_way_async()
            return await finish_async(call, state, ended=True)
        return await finish_async(call, state, result)


async def finish_async(
    call: TaskCall, state: State, result: InlineResult | LargeResult | None = None, *, ended: bool = False
) -> State:
    if not ended:
        _end(call, state, result)
    hooks = _hooks_of(call, state)
    if hooks:
        await run_hooks_async(hooks, call.task, call.run, state)
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


async def settle_futures(value: Any) -> None:
    """Wait for the futures in a returned value without holding the loop."""
    found: list[TaskFuture[Any]] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, TaskFuture):
            found.append(leaf)
        return leaf

    replace_leaves(value, note)
    for future in found:
        await future.wait_async()


# --- small things -------------------------------------------------------------------------------------


def _recorded(call: TaskCall, value: Any) -> State:
    state = Completed(data=value, run_id=call.run.id)
    call.run.state = state
    return state


def _hooks_of(call: TaskCall, state: State) -> list[Callable[..., Any]]:
    argument = HOOK_OF_TYPE.get(state.type)
    return call.task.hooks[argument] if argument is not None and argument in call.task.hooks else []


def _report_condition(call: TaskCall) -> None:
    from .logging import task_run_logger

    task_run_logger(call.run).exception(
        "retry_condition_fn of task %r failed, so there is no retry", call.task.name
    )


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None


_NOTHING = _Nothing()
