"""Running the calls of tasks that are generators: a try for the whole of it, the values passed on as they come.

What has been yielded cannot be taken back: a generator that is tried again yields from its beginning, to the same
reader. So one that has yielded waits for its next try where it is; one that has not waits as any task does (``resting.py``).
No recorded result stands in for it in a run that is taken up again. A time limit counts the time spent in the
generator, not that of its reader.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

from ..calls.task_call import TaskCall
from ..context import TaskRunContext, current_run, entered
from ..limits.tag_limits import give_back, give_back_async, take, take_async
from ..options.hooks import run_hooks, run_hooks_async
from ..runs.final_state import state_of_exception
from ..signals import OF_THE_CODE
from ..sync_async.steps import Steps, take_steps, take_steps_async
from ..sync_async.timeouts import left_of, within, within_async
from .resting import rest, rest_async, rest_first, rest_first_async
from .task_engine import finish_async, finish_sync, wants_retry_async, wants_retry_sync
from .task_life import await_retry, begin, begin_try, crashed, give_name, may_retry, running_state, succeeded
from .task_transaction import abandon, conclude, try_transaction, undo_try

__all__ = ["run_generator", "run_generator_async"]


def run_generator(call: TaskCall) -> Generator[Any, Any, Any]:
    """Run a generator task: a try for the whole of it, its values passed on as they come."""
    context = begin(call)
    fn, task, run = call.task.fn, call.task, call.run
    rest_first(call)
    while True:
        left_s, sent = task.timeout_seconds, None
        token = current_run.set(context)
        try:
            give_name(call)
            refused = take(call) if call.limited != () else None
            if refused is not None:
                finish_sync(call, state_of_exception(refused, what="Task run", run_id=run.id))
                raise refused
            begin_try(call)
            if task.on_running_hooks:
                run.state = running_state(run)
                run_hooks(task.on_running_hooks, task, run, run.state)
            try_transaction(call)
            args, kwargs = task.shape.spread(run.parameters)
            generator = fn(*args, **kwargs)
        finally:
            current_run.reset(token)
        try:
            while True:
                token = current_run.set(context)
                try:
                    began = time.monotonic()
                    with within(left_s, f"task {task.name!r}", of_s=task.timeout_seconds):
                        item = generator.send(sent)
                    left_s = left_of(left_s, began)
                finally:
                    current_run.reset(token)
                call.has_yielded = True
                if call.events is not None:
                    call.events.going.end(run)  # between two values it does nothing
                sent = yield item
                if call.events is not None:
                    call.events.going.begin(run)
        except StopIteration as exc:
            _end(context, conclude(call, succeeded(call, exc.value), finish_sync, finish_async))
            return exc.value
        except GeneratorExit:
            generator.close()
            _end(context, conclude(call, succeeded(call, None), finish_sync, finish_async))
            raise
        except OF_THE_CODE as exc:
            state = state_of_exception(exc, what="Task run", run_id=run.id)
            if may_retry(call, exc) and wants_retry_sync(call, state):
                _end(context, undo_try(is_last=False))
                if call.held is not None:
                    give_back(call)
                rest(call, await_retry(call, state))
                continue
            _end(context, undo_try(is_last=True))
            finish_sync(call, state)
            raise
        except BaseException as exc:
            _end(context, abandon(exc))
            crashed(call, exc)
            raise
        finally:
            if call.held is not None:
                give_back(call)


async def run_generator_async(call: TaskCall) -> AsyncGenerator[Any, Any]:
    """Run an async generator task; see ``run_generator``."""
    for future in call.upstream:
        await future.wait_async()
    context = begin(call)
    fn, task, run = call.task.fn, call.task, call.run
    await rest_first_async(call)
    while True:
        left_s, sent = task.timeout_seconds, None
        token = current_run.set(context)
        try:
            give_name(call)
            refused = await take_async(call) if call.limited != () else None
            if refused is not None:
                await finish_async(call, state_of_exception(refused, what="Task run", run_id=run.id))
                raise refused
            begin_try(call)
            if task.on_running_hooks:
                run.state = running_state(run)
                await run_hooks_async(task.on_running_hooks, task, run, run.state)
            try_transaction(call)
            args, kwargs = task.shape.spread(run.parameters)
            generator = fn(*args, **kwargs)
        finally:
            current_run.reset(token)
        try:
            while True:
                token = current_run.set(context)
                try:
                    began = time.monotonic()
                    async with within_async(left_s, f"task {task.name!r}", of_s=task.timeout_seconds):
                        item = await generator.asend(sent)
                    left_s = left_of(left_s, began)
                finally:
                    current_run.reset(token)
                call.has_yielded = True
                if call.events is not None:
                    call.events.going.end(run)  # between two values it does nothing
                sent = yield item
                if call.events is not None:
                    call.events.going.begin(run)
        except StopAsyncIteration:
            await _end_async(context, conclude(call, succeeded(call, None), finish_sync, finish_async))
            return
        except GeneratorExit:
            await generator.aclose()
            await _end_async(context, conclude(call, succeeded(call, None), finish_sync, finish_async))
            raise
        except OF_THE_CODE as exc:
            state = state_of_exception(exc, what="Task run", run_id=run.id)
            if may_retry(call, exc) and await wants_retry_async(call, state):
                await _end_async(context, undo_try(is_last=False))
                if call.held is not None:
                    await give_back_async(call)
                await rest_async(call, await_retry(call, state))
                continue
            await _end_async(context, undo_try(is_last=True))
            await finish_async(call, state)
            raise
        except BaseException as exc:
            await _end_async(context, abandon(exc))
            crashed(call, exc)
            raise
        finally:
            if call.held is not None:
                await give_back_async(call)


def _end(context: TaskRunContext, steps: Steps[Any]) -> None:
    """Take the steps inside the context of the run, which between two values is not entered."""
    with entered(context):
        take_steps(steps)


async def _end_async(context: TaskRunContext, steps: Steps[Any]) -> None:
    with entered(context):
        await take_steps_async(steps)
