"""Running one flow run to its end.

The life of a run is written once, as a generator that yields what has to be done (``Step``) and is sent what came of it;
four small drivers do it: sync, async, and both again for flows that are generators. So the order of things (pending,
parameters, running, tries, barrier, final state, hooks) is the same for every kind of flow, in every process.

Entry points: ``run_flow`` / ``run_flow_async`` (plain calls, subflows), ``execute`` / ``execute_sync`` (workers).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..bus.emit import CauseAttrs, current_cause
from ..errors import MoveRefused, ParameterError, RunLost, RunTimedOut, UpstreamFailed
from ..vocabulary import StateType
from .context import FlowRunContext, TaskRunContext, current_run, current_tags
from .final_state import describe, state_of_crash, state_of_exception, state_of_value
from .futures import TaskFuture, resolve_futures_to_states
from .hooks import HOOK_OF_TYPE, Hook, run_hooks, run_hooks_async
from .logging import flow_run_logger, printing
from .naming import default_run_name, render_name
from .nested import replace_leaves
from .parameters import parameters_json
from .results import RecordedResult
from .run import Cause, FlowRun, RunRequest, run_id_for
from .signals import Abort, Interrupted, Skip
from .states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Failed,
    NotReady,
    Pending,
    Retrying,
    Running,
    Scheduled,
    State,
)  # fmt: skip
from .task_engine import resolve_inputs, settle_futures
from .timeouts import raise_in_thread, within, within_async
from .tracking import FlowTracker, blocking_session

if TYPE_CHECKING:
    from ..bus.session import Session
    from ..config import EngineConfig
    from .flows import Flow
    from .run_log import RunLog

__all__ = [
    "execute",
    "execute_sync",
    "run_flow",
    "run_flow_async",
    "run_flow_generator",
    "run_flow_generator_async",
]

OnInterruption: TypeAlias = Literal["leave", "crash"]

CLOSING_S = 30.0
"""How long the end of an interrupted run may take: a look at the log, hooks, one append."""


# --- what a life asks its driver to do ----------------------------------------------------------------


@dataclass(slots=True)
class OnBus:
    """Run this async function where the bus lives; send back what it returns, or throw what it raises."""

    fn: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None


@dataclass(slots=True)
class WaitFor:
    """Wait until these futures are done."""

    futures: list[TaskFuture[Any]]


@dataclass(slots=True)
class Body:
    """Run the author's function; send back what it returns, or throw what it raises."""


@dataclass(slots=True)
class Drain:
    """Wait until the submitted tasks have ended."""


@dataclass(slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(slots=True)
class CallHooks:
    """Call these hooks with the state."""

    hooks: list[Hook]
    state: State


@dataclass(slots=True)
class ReadResult:
    """Send back the value of a result that was recorded earlier."""

    result: RecordedResult


Step: TypeAlias = "OnBus | WaitFor | Body | Drain | Sleep | CallHooks | ReadResult"
Life: TypeAlias = Generator[Step, Any, State]


class FlowEngine:
    """One flow run in this process: its context, and its life."""

    def __init__(
        self,
        flow: Flow[..., Any],
        run: FlowRun,
        *,
        parameters: dict[str, Any] | None,
        tracker: FlowTracker | None,
        parent: FlowRunContext | TaskRunContext | None = None,
        wait_for: Iterable[Any] = (),
        retries: int | None = None,
    ) -> None:
        self.flow = flow
        self.tracker = tracker
        self.given = parameters
        self.wait_for = tuple(wait_for)
        self.retries = flow.retries if retries is None else retries
        self.is_interrupted = False
        """Set once the run was stopped from outside: what is left to do is short, and shielded."""
        self._parameters: dict[str, Any] = {}
        log_prints = flow.log_prints
        self.context = FlowRunContext(
            flow,
            run,
            parameters={},
            tracker=tracker,
            runner=flow.task_runner.duplicate(),
            log_prints=log_prints if log_prints is not None else parent is not None and parent.log_prints,
            parent=parent,
            memo={} if tracker is None and self.retries else None,
        )

    @property
    def run(self) -> FlowRun:
        return self.context.flow_run

    # --- the life -------------------------------------------------------------------------------------

    def life(self) -> Life:
        """The whole run. Returns its final state, or NotReady, or AwaitingRetry of a run left to its dispatcher.

        Raises:
            RunLost: another worker has the run.
            BaseException: what interrupted the run, after its end was written.
        """
        try:
            state = yield from self._begin()
            if state is None:
                state = yield from self._tries()
        except RunLost:
            self.context.runner.stop()
            raise
        except Exception:
            raise
        except BaseException as exc:
            self.is_interrupted = True
            self.context.runner.stop()
            yield from self._interrupted(exc)
            raise
        return state

    def _begin(self) -> Generator[Step, Any, State | None]:
        """Go to RUNNING; return a state if the run is over before it could."""
        tracker = self.tracker
        if tracker is not None and self.run.state_type is StateType.SCHEDULED:
            if self.run.seq:
                yield from self._move(Pending(), attempt=self.run.attempt + 1)
            else:
                is_new = yield OnBus(tracker.begin, (Pending(),))
                self._follow()
                if not is_new:
                    state = yield from self._taken_up()
                    if state is not None:
                        return state
        elif tracker is None:
            self._set(Pending())
        if tracker is not None and self.run.attempt > 1:
            yield OnBus(tracker.resume)
        try:
            given = yield from self._inputs()
        except UpstreamFailed as exc:
            state = NotReady(message=str(exc), data=exc)
            yield from self._move(state)
            return state.replace(run_id=self.run.id)
        try:
            self._parameters = self.context.parameters = (
                self.flow.shape.validate(given) if self.flow.should_validate_parameters else given
            )
            name = self._name()
        except Exception as exc:
            # A parameter that does not fit, or a name that cannot be made: fails before it runs, without retries.
            what = (
                "Validation of flow parameters failed"
                if isinstance(exc, ParameterError)
                else "The run has no name"
            )
            state = Failed(message=f"{what}: {describe(exc)}", data=exc)
            return (yield from self._end(state))
        if self.run.state_type is not StateType.RUNNING:
            attempt = max(1, self.run.attempt)
            yield from self._move(Running(), attempt=attempt, name=name)
        yield CallHooks(self.flow.hooks["on_running"], Running(run_id=self.run.id))
        return None

    def _taken_up(self) -> Generator[Step, Any, State | None]:
        """A subflow's run exists: an earlier attempt of the parent began it. Reuse its end, or take it up."""
        tracker = self.tracker
        assert tracker is not None
        run = self.run
        if run.state_type is StateType.COMPLETED:
            recorded = yield OnBus(tracker.recorded_flow_result)
            if recorded is None:
                return Completed(run_id=run.id)
            stored = RecordedResult(tracker.session, recorded, run_id=run.id, key="flow result")
            value = yield ReadResult(stored)
            return Completed(data=value, name=run.state_name, message=run.state_message, run_id=run.id)
        if run.is_final:
            yield from self._move(Scheduled(message="taken up by its parent"), retry=True)
        if self.run.state_type is StateType.CANCELLING:
            state = Cancelled(message="cancelled before its parent took it up again")
            return (yield from self._end(state))
        if self.run.state_type in (StateType.SCHEDULED, StateType.PAUSED):
            if self.run.state_type is StateType.PAUSED:
                yield from self._move(Scheduled(message="taken up by its parent"))
            yield from self._move(Pending(), attempt=self.run.attempt + 1)
        else:
            yield from self._move(Running(message="taken up by its parent"), attempt=self.run.attempt + 1)
        return None

    def _inputs(self) -> Generator[Step, Any, dict[str, Any]]:
        given = self.given if self.given is not None else self.flow.shape.from_mapping(self.run.parameters)
        futures: list[TaskFuture[Any]] = []

        def note(leaf: Any) -> Any:
            if isinstance(leaf, TaskFuture):
                futures.append(leaf)
            elif hasattr(leaf, "unwrap"):
                replace_leaves(leaf.unwrap(), note)
            return leaf

        for value in (*given.values(), *self.wait_for):
            replace_leaves(value, note)
        if futures:
            yield WaitFor(futures)
        return resolve_inputs(given, self.wait_for, what=f"flow {self.flow.name!r}")

    def _name(self) -> str | None:
        if self.flow.flow_run_name is None or self.run.attempt > 1:
            return None
        token = current_run.set(self.context)
        try:
            return render_name("flow_run_name", self.flow.flow_run_name, self._parameters)
        finally:
            current_run.reset(token)

    def _tries(self) -> Generator[Step, Any, State]:
        retry = self.tracker.retries_made if self.tracker is not None else 0
        while True:
            state = yield from self._try()
            if state.type is not StateType.FAILED or retry >= self.retries or isinstance(state.data, Abort):
                return (yield from self._end(state))
            retry += 1
            yield from self._await_retry(state)

    def _try(self) -> Generator[Step, Any, State]:
        """Run the function once; return the state it comes to."""
        what, run_id = "Flow run", self.run.id
        try:
            value = yield Body()
        except (Skip, Abort, RunTimedOut) as exc:
            self._stop_tasks_unless(isinstance(exc, Skip))
            state = state_of_exception(exc, what=what, run_id=run_id)
        except RunLost:
            raise
        except Exception as exc:
            self._stop_tasks_unless(False)
            state = state_of_exception(exc, what=what, run_id=run_id)
        else:
            yield Drain()
            state = state_of_value(resolve_futures_to_states(value), run_id=run_id)
        yield Drain()
        return state

    def _stop_tasks_unless(self, fine: bool) -> None:
        if not fine:
            self.context.runner.stop()

    def _await_retry(self, failed: State) -> Generator[Step, Any, None]:
        delay_s = self.flow.retry_delay_seconds
        due = datetime.now(UTC) + timedelta(seconds=delay_s)
        waiting = AwaitingRetry(message=failed.message, details={"in_process": True})
        if self.tracker is not None:
            # What the failed try finished has to be in the log before it is read back.
            yield OnBus(self.tracker.barrier)
        yield from self._move(waiting, scheduled_at=due)
        flow_run_logger(self.run).info("failed, and will be tried again in %g s: %s", delay_s, failed.message)
        if delay_s > 0:
            yield Sleep(delay_s)
        yield from self._move(Retrying(), attempt=self.run.attempt + 1)
        if self.tracker is not None:
            yield OnBus(self.tracker.resume)
        self.context.renew()
        yield CallHooks(self.flow.hooks["on_running"], Retrying(run_id=self.run.id))

    def _end(self, state: State) -> Generator[Step, Any, State]:
        """Write the final state, and tell the hooks."""
        tracker = self.tracker
        if tracker is not None:
            result = None
            if state.type is StateType.COMPLETED and self.flow.persist_result is not False:
                result = yield OnBus(tracker.store_flow_result, (state.data,))
            try:
                yield OnBus(tracker.finish, (state,), {"result": result})
            except MoveRefused:
                # PAUSED was returned, say: what the log cannot take, a run cannot end in.
                if state.type.is_terminal:
                    raise
                yield OnBus(
                    tracker.finish, (Failed(message=f"the flow returned {state.name}, which is no end"),)
                )
            self._follow()
        else:
            self._set(state)
        state = state if state.run_id == self.run.id else state.replace(run_id=self.run.id)
        argument = HOOK_OF_TYPE.get(state.type)
        if argument is not None:
            yield CallHooks(self.flow.hooks[argument], state)
        if state.type is StateType.FAILED and isinstance(state.data, Exception):
            flow_run_logger(self.run).error("%s", state.message)
        return state

    def _interrupted(self, exc: BaseException) -> Generator[Step, Any, None]:
        """Write what the run became when it was stopped from outside, if that is ours to write."""
        yield Drain()
        tracker = self.tracker
        if tracker is not None:
            now = yield OnBus(tracker.look)
            if now.attempt != self.run.attempt or now.is_final:
                raise RunLost(self.run.id, reason=f"it is {now.state_name}, attempt {now.attempt}") from exc
            if now.state_type is StateType.CANCELLING:
                yield from self._end(Cancelled(message=now.state_message or "cancelled"))
                return
            cancelled_above = yield from self._is_cancelled_above()
            if cancelled_above:
                yield from self._end(Cancelled(message="its parent was cancelled"))
                return
            if tracker.leaves_interrupted:
                yield OnBus(tracker.barrier)
                return
        yield from self._end(state_of_crash(exc, run_id=self.run.id))

    def _is_cancelled_above(self) -> Generator[Step, Any, bool]:
        above = self.context.parent
        while above is not None:
            flow = above.flow_context
            if flow is None:
                return False
            if flow.tracker is not None:
                now = yield OnBus(flow.tracker.look)
                if now.state_type in (StateType.CANCELLING, StateType.CANCELLED):
                    return True
            above = flow.parent
        return False

    # --- moving ---------------------------------------------------------------------------------------

    def _move(self, state: State, **changes: Any) -> Generator[Step, Any, None]:
        if self.tracker is None:
            self._set(state, **changes)
            return
        if changes.get("name") is None:
            changes.pop("name", None)
        yield OnBus(self.tracker.move, (state,), changes)
        self._follow()

    def _follow(self) -> None:
        assert self.tracker is not None
        self.context.flow_run = self.tracker.flow_run

    def _set(self, state: State, *, attempt: int | None = None, name: str | None = None, **_: Any) -> None:
        self.context.flow_run = self.run.moved(state, attempt=attempt, name=name)

    # --- the author's function ------------------------------------------------------------------------

    def entering(self) -> ExitStack:
        """Return what surrounds the author's function: context, tags, cause of what it emits, prints."""
        stack = ExitStack()
        token = current_run.set(self.context)
        stack.callback(current_run.reset, token)
        tags = current_tags.set(current_tags.get() | frozenset(self.run.tags))
        stack.callback(current_tags.reset, tags)
        run = self.run
        if self.tracker is not None:
            cause = CauseAttrs(
                correlationid=run.correlationid or run.id,
                causationid=run.causationid,
                causaldepth=run.causaldepth + 1,
            )
            causes = current_cause.set(cause)
            stack.callback(current_cause.reset, causes)
        stack.enter_context(printing(self.context.log_prints))
        return stack

    @property
    def limit_text(self) -> str:
        return f"flow {self.flow.name!r}"

    def call_function(self) -> Any:
        args, kwargs = self.flow.shape.spread(self._parameters)
        return self.flow.fn(*args, **kwargs)

    @property
    def state(self) -> State:
        run = self.run
        return State(run.state_type, name=run.state_name, message=run.state_message, run_id=run.id)


# --- drivers ------------------------------------------------------------------------------------------


def _drive(engine: FlowEngine, session: Session | None) -> State:
    """Live a life in this thread, blocking."""
    life = engine.life()
    with engine.context.runner:
        return _steps(engine, life, session, lambda: _body(engine))


def _body(engine: FlowEngine) -> Any:
    with engine.entering(), within(engine.flow.timeout_seconds, engine.limit_text):
        value = engine.call_function()
        return list(value) if inspect.isgenerator(value) else value


def _steps(engine: FlowEngine, life: Life, session: Session | None, body: Callable[[], Any]) -> State:
    send: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = life.throw(error) if error is not None else life.send(send)
        except StopIteration as end:
            state: State = end.value
            return state
        send = error = None
        try:
            send = body() if isinstance(step, Body) else _do(engine, step, session)
        except BaseException as exc:
            error = exc


def _do(engine: FlowEngine, step: Step, session: Session | None) -> Any:
    match step:
        case OnBus():
            assert session is not None
            return session.call(step.fn, *step.args, **(step.kwargs or {}))
        case WaitFor():
            for future in step.futures:
                future.wait()
        case Drain():
            engine.context.runner.drain()
        case Sleep():
            time.sleep(step.seconds)
        case CallHooks():
            run_hooks(step.hooks, engine.flow, engine.run, step.state)
        case ReadResult():
            return step.result.read()
        case Body():
            raise AssertionError("the body is run by the driver")
    return None


async def _drive_async(
    engine: FlowEngine, session: Session | None, body: Callable[[], Awaitable[Any]]
) -> State:
    """Live a life in this event loop."""
    life = engine.life()
    runner = engine.context.runner
    send: Any = None
    error: BaseException | None = None
    with runner.opened():
        try:
            while True:
                try:
                    step = life.throw(error) if error is not None else life.send(send)
                except StopIteration as end:
                    state: State = end.value
                    return state
                send = error = None
                try:
                    if isinstance(step, Body):
                        send = await body()
                    elif engine.is_interrupted:
                        send = await _shielded(engine, step, session)
                    else:
                        send = await _do_async(engine, step, session)
                except BaseException as exc:
                    error = exc
        finally:
            if runner.unfinished():
                await _shielded(engine, Drain(), session)


async def _body_async(engine: FlowEngine) -> Any:
    with engine.entering():
        async with within_async(engine.flow.timeout_seconds, engine.limit_text):
            value = await engine.call_function()
            await settle_futures(value)
            return value


async def _body_in_thread(engine: FlowEngine) -> Any:
    """Run a sync function in a thread, so that it does not hold this loop; stop it when we are cancelled."""
    import contextvars
    import threading

    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, exc: BaseException | None) -> None:
        if not outcome.done():
            if exc is None:
                outcome.set_result(value)
            else:
                outcome.set_exception(exc if isinstance(exc, Exception) else RunTimedOut(describe(exc)))

    def work() -> None:
        try:
            value, exc = context.run(_body, engine), None
        except BaseException as caught:
            value, exc = None, caught
        loop.call_soon_threadsafe(settle, value, exc)

    thread = threading.Thread(target=work, name=f"hark-flow-{engine.run.name}", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        if thread.ident is not None and thread.is_alive():
            raise_in_thread(thread.ident, Interrupted)
        raise


async def _shielded(engine: FlowEngine, step: Step, session: Session | None) -> Any:
    import anyio

    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLOSING_S):
        return await _do_async(engine, step, session)


async def _do_async(engine: FlowEngine, step: Step, session: Session | None) -> Any:
    match step:
        case OnBus():
            assert session is not None
            return await session.acall(step.fn, *step.args, **(step.kwargs or {}))
        case WaitFor():
            for future in step.futures:
                await future.wait_async()
        case Drain():
            await engine.context.runner.drain_async()
        case Sleep():
            await asyncio.sleep(step.seconds)
        case CallHooks():
            await run_hooks_async(step.hooks, engine.flow, engine.run, step.state)
        case ReadResult():
            return await step.result.aread()
        case Body():
            raise AssertionError("the body is run by the driver")
    return None


# --- plain calls and subflows -------------------------------------------------------------------------


def run_flow(flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()) -> State:
    """Run a sync flow in this thread; return its final state."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=True)
    return _drive(engine, session)


async def run_flow_async(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()
) -> State:
    """Run an async flow in this event loop; return its final state."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=False)
    return await _drive_async(engine, session, lambda: _body_async(engine))


def run_flow_generator(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()
) -> Generator[Any, None, Any]:
    """Run a flow that is a generator, passing on what it yields. It is not retried once it has yielded."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=True)
    life = engine.life()
    send: Any = None
    error: BaseException | None = None
    yielded = False
    with engine.context.runner:
        while True:
            try:
                step = life.throw(error) if error is not None else life.send(send)
            except StopIteration as end:
                return end.value.result()
            send = error = None
            try:
                if not isinstance(step, Body):
                    send = _do(engine, step, session)
                    continue
                with engine.entering():
                    generator = engine.call_function()
                while True:
                    with engine.entering():
                        try:
                            item = next(generator)
                        except StopIteration as end:
                            send = end.value
                            break
                    yielded = True
                    yield item
            except GeneratorExit:
                # The reader has had enough: a good end.
                life_end = _finish_early(engine, life, session)
                raise life_end from None
            except BaseException as exc:
                error = exc
                if yielded:
                    engine.retries = 0


def _finish_early(engine: FlowEngine, life: Life, session: Session | None) -> GeneratorExit:
    send: Any = None
    while True:
        try:
            step = life.send(send)
        except StopIteration:
            return GeneratorExit()
        send = _do(engine, step, session)


async def run_flow_generator_async(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()
) -> AsyncGenerator[Any, None]:
    """Run a flow that is an async generator; see ``run_flow_generator``."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=False)
    life = engine.life()
    send: Any = None
    error: BaseException | None = None
    with engine.context.runner.opened():
        while True:
            try:
                step = life.throw(error) if error is not None else life.send(send)
            except StopIteration as end:
                end.value.result()
                return
            send = error = None
            try:
                if not isinstance(step, Body):
                    send = await _do_async(engine, step, session)
                    continue
                with engine.entering():
                    generator = engine.call_function()
                while True:
                    with engine.entering():
                        try:
                            item = await anext(generator)
                        except StopAsyncIteration:
                            break
                    engine.retries = 0
                    yield item
            except GeneratorExit:
                while True:
                    try:
                        step = life.send(send)
                    except StopIteration:
                        break
                    send = await _do_async(engine, step, session)
                raise
            except BaseException as exc:
                error = exc


def _engine_for(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any], *, blocking: bool
) -> tuple[FlowEngine, Session | None]:
    """Make the engine of a plain call or a subflow, tracked if its parent is, or if a broker is known."""
    parent = current_run.get()
    above = parent.flow_context if parent is not None else None
    tags = tuple(sorted(current_tags.get() | flow.tags))
    session: Session | None
    if above is not None:
        session = above.tracker.session if above.tracker is not None else None
    else:
        from ..bus.session import current_session

        session = current_session()
    request = RunRequest(
        flow_name=flow.name, flow_version=flow.version, name=default_run_name(),
        parameters=parameters_json(parameters) if session is not None else {}, tags=tags,
        parent=above.flow_run.id if above is not None else None,
        cause=Cause("flow-run", above.flow_run.flow_name) if above is not None else None,
    )  # fmt: skip
    if above is not None and parent is not None:
        # The child's id follows from its place in the parent, so that a resumed parent finds it again.
        key, _ = parent.calls.key(f"flow:{flow.name}", parameters)
        request = replace(request, id=run_id_for("subflow", above.flow_run.id, key))
    run = FlowRun.requested(request, now=datetime.now(UTC))
    if above is not None:
        above_run = above.flow_run
        run = replace(
            run, correlationid=above_run.correlationid or above_run.id, causationid=above_run.causationid,
            causaldepth=above_run.causaldepth, attempt=1,
        )  # fmt: skip
    else:
        run = replace(run, attempt=1)
    if session is None:
        return FlowEngine(
            flow, run, parameters=parameters, tracker=None, parent=parent, wait_for=wait_for
        ), None
    if blocking:
        session = blocking_session(session)
    from ..config import load_settings
    from .run_log import RunLog

    tracker = FlowTracker(
        session,
        RunLog(session.bus),
        run,
        inline_bytes=load_settings().engine.inline_result_bytes,
        leaves_interrupted=above is not None
        and above.tracker is not None
        and above.tracker.leaves_interrupted,
    )
    return FlowEngine(
        flow, run, parameters=parameters, tracker=tracker, parent=parent, wait_for=wait_for
    ), session


# --- workers ------------------------------------------------------------------------------------------


def _worker_engine(
    flow: Flow[..., Any],
    run: FlowRun,
    session: Session,
    run_log: RunLog,
    interrupted: OnInterruption,
    retries: int | None,
    config: EngineConfig | None,
) -> FlowEngine:
    from ..config import EngineConfig as Defaults

    tracker = FlowTracker(
        session,
        run_log,
        run,
        inline_bytes=(config or Defaults()).inline_result_bytes,
        leaves_interrupted=interrupted == "leave",
    )
    return FlowEngine(flow, run, parameters=None, tracker=tracker, retries=retries)


async def execute(
    flow: Flow[..., Any],
    run: FlowRun,
    *,
    session: Session,
    run_log: RunLog,
    interrupted: OnInterruption = "leave",
    retries: int | None = None,
    config: EngineConfig | None = None,
) -> State:
    """Run one flow run to its end in this event loop and return its final state; a sync flow runs in a thread.

    The run may be SCHEDULED (``pending`` and ``running`` are appended), PENDING (``running`` is appended) or RUNNING
    (the caller has claimed it). From attempt 2 on, calls that an earlier attempt finished are not run again.

    Args:
        interrupted: what becomes of the run when this call is cancelled and nobody asked for the run to be cancelled:
            ``leave`` it RUNNING for another worker, or record a ``crash``.
        retries: instead of the flow's own.
    Raises:
        RunLost: another worker has the run; nothing more was written.
        CancelledError: this call was cancelled; the run's end is written, if it was ours to write.
    """
    engine = _worker_engine(flow, run, session, run_log, interrupted, retries, config)

    async def body() -> Any:
        if not flow.isasync:
            return await _body_in_thread(engine)
        if not flow.isgenerator:
            return await _body_async(engine)
        with engine.entering():
            async with within_async(flow.timeout_seconds, engine.limit_text):
                return [item async for item in engine.call_function()]

    return await _drive_async(engine, session, body)


def execute_sync(
    flow: Flow[..., Any],
    run: FlowRun,
    *,
    session: Session,
    run_log: RunLog,
    interrupted: OnInterruption = "leave",
    retries: int | None = None,
    config: EngineConfig | None = None,
) -> State:
    """Run one flow run to its end in this thread, whose session lives on another; see ``execute``.

    For the main thread of a process of its own, where time limits can interrupt anything. An interruption is a
    ``BaseException`` raised in this thread, such as ``Interrupted`` by a signal handler.
    """
    if flow.isasync:
        return asyncio.run(
            execute(
                flow,
                run,
                session=session,
                run_log=run_log,
                interrupted=interrupted,
                retries=retries,
                config=config,
            )
        )
    return _drive(_worker_engine(flow, run, session, run_log, interrupted, retries, config), session)
