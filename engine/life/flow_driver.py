"""Living a life (``flow_life.py``), sync or async; of flows that are generators, see ``flow_generator.py``."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ...errors import BusUnavailable, RunCrashed
from ..futures import settle_futures
from ..options.hooks import run_hooks, run_hooks_async
from ..runs.final_state import describe
from ..signals import OF_THE_CODE, Interrupted, Suspend
from ..states import State
from ..sync_async.bell import Bell
from ..sync_async.steps import Turns, take_steps, take_steps_async
from ..sync_async.timeouts import raise_in_thread, within, within_async
from .flow_life import Body, CallHooks, Drain, FlowEngine, Life, OnBus, ReadResult, Sleep, Step, WaitFor
from .flow_steps import Store, Take, WaitUntilQuiet
from .resting import wait_in, wait_in_async

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["body_async", "body_in_thread", "do_step", "do_step_async", "drive", "drive_async"]

CLOSING_S = 30.0
"""How long each step of the end of an interrupted run may take: a look at the log, a hook, one append."""
STOPPING_S = 10.0
"""How long a thread that was asked to stop may take before its run goes on without it."""


def drive(engine: FlowEngine, session: Session | None, life: Life | None = None) -> State:
    """Live a life in this thread, blocking; by default the run's whole life."""
    turns = Turns(life or engine.life())
    try:
        with engine.context.runner.opened():
            while not turns.is_over:
                try:
                    for step in turns:
                        try:
                            is_body = isinstance(step, Body)
                            turns.answer = _body(engine) if is_body else do_step(engine, step, session)
                        except BaseException as exc:
                            turns.error = exc
                except BaseException as exc:
                    if turns.is_over:
                        raise
                    turns.error = exc  # interrupted between two steps
            return turns.result
    finally:
        engine.close_side()


def _body(engine: FlowEngine) -> Any:
    limit_s = engine.flow.timeout_seconds
    with engine.entering(), within(limit_s, engine.limit_text) if limit_s is not None else nullcontext():
        value = engine.call_function()
        return list(value) if inspect.isgenerator(value) else value


def do_step(engine: FlowEngine, step: Step, session: Session | None) -> Any:
    """Do what a life asks for, but for its body, blocking; return what is to be sent to it."""
    match step:
        case OnBus():
            assert session is not None
            return session.call(step.fn, *step.args, **(step.kwargs or {}))
        case Store():
            assert session is not None
            return session.store(step.messages, behind=step.behind)
        case WaitFor():
            for future in step.futures:
                future.wait()
        case WaitUntilQuiet():
            quiet = Bell()
            step.rests.when_quiet(quiet.ring)
            quiet.wait(step.limit_s)
        case Drain():
            engine.context.runner.drain(step.limit_s)
        case Sleep():
            wait_in(step.rests, step.seconds)
        case CallHooks():
            with engine.entering(), step.entering():
                run_hooks(step.hooks, *step.told(engine.flow, engine.run), step.state)
        case Take():
            with engine.entering():
                take_steps(step.steps)
        case ReadResult():
            return step.result.read()
        case Body():
            raise AssertionError("the body is run by the driver")
    return None


async def drive_async(
    engine: FlowEngine,
    session: Session | None,
    body: Callable[[], Awaitable[Any]],
    life: Life | None = None,
) -> State:
    """Live a life in this event loop; by default the run's whole life."""
    turns = Turns(life or engine.life())
    engine.context.loop_task = asyncio.current_task()
    with engine.context.runner.opened():
        try:
            for step in turns:
                try:
                    if isinstance(step, Body):
                        turns.answer = await body()
                    elif engine.is_interrupted:
                        turns.answer = await _shielded(engine, step, session)
                    else:
                        turns.answer = await do_step_async(engine, step, session)
                except BaseException as exc:
                    turns.error = exc
            return turns.result
        finally:
            if engine.tracker is not None and engine.owns_side:
                engine.tracker.let_go()
                await engine.tracker.side.aclose()


async def body_async(engine: FlowEngine) -> Any:
    task = asyncio.current_task()
    asked = task.cancelling() if task is not None else 0
    try:
        with engine.entering():
            limit_s = engine.flow.timeout_seconds
            limit = within_async(limit_s, engine.limit_text) if limit_s is not None else nullcontext()
            async with limit:
                value = await engine.call_function()
                await settle_futures(value)
                return value
    except asyncio.CancelledError:
        raise
    except BaseException:
        # Before Python 3.13 a task group whose child failed leaves its own request to cancel standing, and the next
        # scope around us would take it for one from outside.
        while task is not None and task.cancelling() > asked:
            task.uncancel()
        raise


async def body_in_thread(engine: FlowEngine) -> Any:
    """Run a sync function in a thread, so that it does not hold this loop; stop it when we are cancelled."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, exc: BaseException | None) -> None:
        if not outcome.done():
            if exc is None:
                outcome.set_result(value)
            else:
                # What is no Exception (sys.exit, say) may not leave a future: the loop would end with it.
                outcome.set_exception(
                    exc if isinstance(exc, (*OF_THE_CODE, Suspend)) else RunCrashed(describe(exc))
                )

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
            # Its tasks first: it may be waiting for one, and a thread that waits cannot be stopped.
            engine.context.runner.stop(interrupt=True)
            raise_in_thread(thread.ident, Interrupted)
            await asyncio.wait([outcome], timeout=STOPPING_S)
        if outcome.done():
            outcome.exception()  # seen, so that the loop does not complain of it
        raise


async def _shielded(engine: FlowEngine, step: Step, session: Session | None) -> Any:
    import anyio

    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLOSING_S) as scope:
        return await do_step_async(engine, step, session)
    if scope.cancelled_caught and not isinstance(step, Drain):
        raise BusUnavailable(f"the end of run {engine.run.name!r} took longer than {CLOSING_S:g} s")
    return None


async def _until_quiet(engine: FlowEngine, step: WaitUntilQuiet) -> None:
    loop, is_quiet = asyncio.get_running_loop(), asyncio.Event()
    step.rests.when_quiet(lambda: loop.call_soon_threadsafe(is_quiet.set))
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(step.limit_s):
                await is_quiet.wait()
    except asyncio.CancelledError:
        # The code that has begun them has ended: nobody else would stop them with the run.
        for subflow in tuple(engine.context.subflows):
            if subflow.loop_task is not None and subflow.loop_task is not asyncio.current_task():
                subflow.loop_task.get_loop().call_soon_threadsafe(subflow.loop_task.cancel)
        raise


async def do_step_async(engine: FlowEngine, step: Step, session: Session | None) -> Any:
    """Do what ``do_step`` does, without holding the loop."""
    match step:
        case OnBus():
            assert session is not None
            return await session.acall(step.fn, *step.args, **(step.kwargs or {}))
        case Store():
            assert session is not None
            return await session.astore(step.messages, behind=step.behind)
        case WaitFor():
            for future in step.futures:
                await future.wait_async()
        case WaitUntilQuiet():
            await _until_quiet(engine, step)
        case Drain():
            await engine.context.runner.drain_async(step.limit_s)
        case Sleep():
            await wait_in_async(step.rests, step.seconds)
        case CallHooks():
            with engine.entering(), step.entering():
                await run_hooks_async(step.hooks, *step.told(engine.flow, engine.run), step.state)
        case Take():
            with engine.entering():
                await take_steps_async(step.steps)
        case ReadResult():
            return await step.result.aread()
        case Body():
            raise AssertionError("the body is run by the driver")
    return None
