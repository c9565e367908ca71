"""Where submitted tasks run: threads, the event loop, or on the spot."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from .context import FlowRunContext, TaskRunContext
from .futures import FutureList, TaskFuture, left_s
from .life.resting import left_behind
from .life.task_engine import run_async, run_sync
from .runs.final_state import state_of_crash
from .states import Cancelled
from .sync_async.thread_pool import ThreadPool, run_coroutine

if TYPE_CHECKING:
    from .calls.task_call import TaskCall
    from .executors.dask_runner import DaskTaskRunner
    from .executors.process_runner import ProcessPoolTaskRunner
    from .tasks import Task

__all__ = [
    "AsyncTaskRunner", "ConcurrentTaskRunner", "DaskTaskRunner", "ProcessPoolTaskRunner", "SequentialTaskRunner", "TaskRunner", "ThreadPoolTaskRunner",
    "default_runner",
]  # fmt: skip


_ELSEWHERE = {"DaskTaskRunner": "executors.dask_runner", "ProcessPoolTaskRunner": "executors.process_runner"}
"""Runners in files of their own, loaded when they are asked for."""


def __getattr__(name: str) -> object:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ELSEWHERE[name]}", __package__), name)


class TaskRunner(ABC):
    """Runs the submitted tasks of one flow run. Entered by the engine; ``duplicate`` gives each run its own.

    A task begins when all futures among its inputs are done; until then it takes no thread.
    """

    is_in_place = False
    """Whether whoever submits a call waits until it has ended."""

    def __init__(self) -> None:
        self._open: set[TaskFuture[Any]] = set()
        self._lock = threading.Lock()
        self._refusing = False
        self._opening = 0
        """How often calls were begun again after a stop. Each call keeps the one it was made in, and what reached it there."""
        self._interrupted = -1
        """The latest opening whose running calls were interrupted."""
        self.blocked = 0
        """Submitted calls that wait for others to end."""
        self.on_end: Callable[[], object] | None = None
        """Called when a submitted call has ended."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower().replace("taskrunner", "")

    @abstractmethod
    def duplicate(self) -> Self:
        """Return a runner with the same settings that has not run anything."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash((type(self), self._settings()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._settings()

    def _settings(self) -> tuple[Any, ...]:
        """Return the arguments that make one like it."""
        return ()

    def submit(
        self, task: Task[..., Any], parameters: Mapping[str, Any], wait_for: Iterable[Any] | None = None
    ) -> TaskFuture[Any]:
        """Run ``task`` with these parameters; return its future at once."""
        from .calls.task_call import prepare

        return self.launch(prepare(task, dict(parameters), wait_for))

    def map(
        self, task: Task[..., Any], parameters: Mapping[str, Any], wait_for: Iterable[Any] | None = None
    ) -> FutureList[Any]:
        """Run ``task`` once for each element of the iterable parameters."""
        from .calls.mapping import map_calls

        return FutureList(self.submit(task, one, wait_for) for one in map_calls(task, dict(parameters)))

    def launch(self, call: TaskCall) -> TaskFuture[Any]:
        """Begin a prepared call once its inputs are there."""
        call.opening = self._opening if call.flow is call.caller else self._opening_for(call.caller)
        if call.recorded is not None or call.is_settled:
            there: TaskFuture[Any] = TaskFuture(call.run)
            there.finish(run_sync(call))
            return there
        future: TaskFuture[Any] = TaskFuture(call.run, on_end=self._ended)
        with self._lock:
            self._open.add(future)
        context = contextvars.copy_context()
        waiting_for = [upstream for upstream in call.upstream if not upstream.done]
        if not waiting_for:
            self._begin(call, future, context)
            return future
        left = len(waiting_for)
        lock = threading.Lock()
        with self._lock:
            self.blocked += 1

        def one_done(_: TaskFuture[Any]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                with self._lock:
                    self.blocked -= 1
                self._begin(call, future, context)

        self._attach(future)
        for upstream in waiting_for:
            upstream.add_done_callback(one_done)
        return future

    def _opening_for(self, caller: FlowRunContext | TaskRunContext | None) -> int:
        """Return the opening for a call that a task makes: that of its own call, or of the one that it is a part of."""
        while isinstance(caller, TaskRunContext):
            above = caller.flow_context
            if above is None or above.runner is not self:
                break
            if caller.opening is not None:
                return caller.opening
            caller = caller.caller
        return self._opening

    def _attach(self, future: TaskFuture[Any]) -> None:  # noqa: B027  most runners have nothing to do
        """Note in the submitting thread where a call that begins later will run."""

    @abstractmethod
    def _begin(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        """Run a call whose inputs are there. Called from any thread."""

    def _ended(self, future: TaskFuture[Any]) -> None:
        with self._lock:
            self._open.discard(future)
        if self.on_end is not None:
            self.on_end()

    def refused(self, call: TaskCall, future: TaskFuture[Any]) -> bool:
        """End a call that has not begun, if its flow has failed in the meantime; return whether it did."""
        if not self._refusing and call.opening == self._opening:
            return False
        from .life.task_life import cancel_unstarted

        future.finish(cancel_unstarted(call))
        return True

    def stop(self, *, interrupt: bool = False) -> None:
        """Begin nothing more: calls that have no place yet end CANCELLED. Running ones go on, or are interrupted.

        Async tasks in the flow's loop are cancelled either way: they can be, cleanly.
        """
        self._refusing = True
        if interrupt:
            self._interrupted = self._opening

    def is_interrupted(self, call: TaskCall) -> bool:
        """Return whether a stop has interrupted this call, be it that calls have been begun again since."""
        return call.opening is not None and call.opening <= self._interrupted

    def unfinished(self) -> list[TaskFuture[Any]]:
        """Return the futures that are not done yet."""
        with self._lock:
            return list(self._open)

    @property
    def open_count(self) -> int:
        """How many futures are not done yet."""
        return len(self._open)

    def drain(self, limit_s: float | None = None) -> None:
        """Wait until every submitted task has ended, those included that tasks submit meanwhile; at most ``limit_s``."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while (futures := self.unfinished()) and not _is_past(deadline):
            for future in futures:
                future.wait_for_end(left_s(deadline))

    async def drain_async(self, limit_s: float | None = None) -> None:
        """Wait as ``drain`` does, without holding the loop."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while (futures := self.unfinished()) and not _is_past(deadline):
            for future in futures:
                await future.wait_for_end_async(left_s(deadline))

    def close(self) -> None:
        """Give back threads and loops. A thread whose task did not end in time is left to end with it."""
        self._refusing = True

    def reopen(self) -> None:
        """Begin calls again after ``stop``: those that come from now on. What the stop reached stays stopped."""
        if self._refusing:
            self._refusing = False
            self._opening += 1

    @contextmanager
    def opened(self) -> Generator[Self]:
        """Run tasks inside the block; who leaves it has drained (see ``drain`` and ``drain_async``)."""
        self.reopen()
        try:
            yield self
        finally:
            self.close()

    def __enter__(self) -> Self:
        self.reopen()
        return self

    def __exit__(self, *exc: object) -> None:
        self.drain()
        self.close()


class ThreadPoolTaskRunner(TaskRunner):
    """Runs tasks in threads, at most ``max_workers`` working at once; async tasks too, in the thread's own loop.

    A sync task whose time is up is stopped between two of its Python instructions. One that blocks in C meanwhile is left
    behind: its end is awaited only there. A ``ProcessPoolTaskRunner`` stops anything.

    Args:
        max_workers: default: the setting ``engine.thread_workers``.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        super().__init__()
        self.max_workers = max_workers
        self._pool: ThreadPool | None = None
        self._thread_name = "hark-task"

    def duplicate(self) -> Self:
        return type(self)(self.max_workers)

    def _settings(self) -> tuple[Any, ...]:
        return (self.max_workers,)

    def _begin(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        has_place, unbegun = False, [call]

        def work() -> None:
            if not _taken(unbegun):
                return
            # What had a place at once has begun, for all its flow can tell: which of the two threads is faster decides nothing.
            if not (has_place and not self.is_interrupted(call)) and self.refused(call, future):
                return
            try:
                future.finish(run_in_thread(call, context))
            finally:
                if not future.done:  # an interruption came between the two
                    future.finish(
                        call.run.state
                        or Cancelled(
                            message="interrupted", run_id=call.run.id, task_of=call.run.flow_run_id or ""
                        )
                    )

        may_begin = not self._refusing and call.opening == self._opening
        try:
            has_place = self._own_pool().submit(work) and may_begin
        except BaseException:
            # Interrupted: nobody may ever come to it, and who ends the run waits for its calls.
            if _taken(unbegun):
                from .life.task_life import cancel_unstarted

                future.finish(cancel_unstarted(call))
            raise

    def _own_pool(self) -> ThreadPool:
        pool = self._pool
        if pool is None:
            with self._lock:
                pool = self._pool
                if pool is None:
                    pool = ThreadPool(self.max_workers or _default_workers(), name=self._thread_name)
                    self._pool = pool
        return pool

    def stop(self, *, interrupt: bool = False) -> None:
        super().stop(interrupt=interrupt)
        pool = self._pool
        if interrupt and pool is not None:
            pool.interrupt()

    def close(self) -> None:
        self.close_threads(wait=not self.unfinished())

    def close_threads(self, *, wait: bool) -> None:
        """Do what ``close`` does. ``wait``: until the threads have ended, as they do where no task is left behind."""
        super().close()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(wait=wait)


ConcurrentTaskRunner = ThreadPoolTaskRunner


class SequentialTaskRunner(TaskRunner):
    """Runs each task when it is submitted, in the submitting thread, before ``submit`` returns."""

    is_in_place = True

    def duplicate(self) -> Self:
        return type(self)()

    def _begin(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        if self.refused(call, future):
            return
        if not call.task.isasync:
            future.finish(context.run(run_sync, call))
            return
        if not _in_loop():
            future.finish(run_in_thread(call, context))
            return
        # The loop of this thread is busy submitting, so an async task gets a thread while we wait.
        pool = ThreadPool(1)
        pool.submit(lambda: future.finish(run_in_thread(call, context)))
        future.wait()
        pool.close()


class AsyncTaskRunner(TaskRunner):
    """Runs async tasks in the event loop of the flow, any number at once, and sync ones in threads.

    The fastest for async flows. Results are had with ``await future``; ``future.result()`` would stop the loop that
    the task needs, and says so. In a sync flow the tasks run in a loop of their own, in another thread.

    Args:
        max_workers: threads for sync tasks; default: the setting ``engine.thread_workers``.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__()
        self.max_workers = max_workers
        self._threads = ThreadPoolTaskRunner(max_workers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own_thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def duplicate(self) -> Self:
        return type(self)(self.max_workers)

    def _settings(self) -> tuple[Any, ...]:
        return (self.max_workers,)

    def _home(self) -> asyncio.AbstractEventLoop:
        """Return the loop for async tasks: that of the first submitter, or else one of our own."""
        with self._lock:
            if self._loop is None:
                try:
                    self._loop = asyncio.get_running_loop()
                except RuntimeError:
                    self._loop = asyncio.new_event_loop()
                    self._own_thread = threading.Thread(
                        target=self._loop.run_forever, name="hark-tasks", daemon=True
                    )
                    self._own_thread.start()
            return self._loop

    def _attach(self, future: TaskFuture[Any]) -> None:
        future.home_loop = self._home()

    def _begin(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        if not call.task.isasync:
            future.home_loop = None
            self._threads._begin(call, future, context)
            return
        home = future.home_loop or self._home()
        future.home_loop = home
        if _in_loop(home):
            self._start(call, future, context)
        else:
            home.call_soon_threadsafe(self._start, call, future, context)

    def _start(self, call: TaskCall, future: TaskFuture[Any], context: contextvars.Context) -> None:
        if self.refused(call, future):
            return
        task = asyncio.get_running_loop().create_task(self._run(call, future), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: TaskCall, future: TaskFuture[Any]) -> None:
        from .life.resting import left_behind
        from .runs.final_state import state_of_crash

        try:
            future.finish(await run_async(call))
        except BaseException as exc:
            left = left_behind(call, exc)
            future.finish(left or call.run.state or state_of_crash(exc, run_id=call.run.id))
            if left is None and not isinstance(exc, asyncio.CancelledError):
                raise

    def stop(self, *, interrupt: bool = False) -> None:
        super().stop(interrupt=interrupt)
        self._threads.stop(interrupt=interrupt)
        # Tasks that run in the loop can be stopped at their next await; those in threads end by themselves.
        for task in list(self._tasks):
            if _in_loop(self._loop):
                task.cancel()
            elif self._loop is not None:
                self._loop.call_soon_threadsafe(task.cancel)

    def reopen(self) -> None:
        super().reopen()
        self._threads.reopen()

    def close(self) -> None:
        super().close()
        self._threads.close_threads(wait=not self.unfinished())  # the calls that they run are noted here
        loop, thread = self._loop, self._own_thread
        self._loop = self._own_thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def run_in_thread(call: TaskCall, context: contextvars.Context) -> Any:
    """Run a call, sync or async, in this thread; return its last state, whatever happens to it."""
    try:
        if call.task.isasync and call.elsewhere is None:
            return run_coroutine(run_async(call), context)
        return context.run(run_sync, call)
    except BaseException as exc:  # a task's SystemExit ends the task, not the thread that others need
        left = left_behind(call, exc)
        if left is not None:
            return left
        return (
            call.run.state
            if call.run.state and call.run.state.is_final()
            else state_of_crash(exc, run_id=call.run.id)
        )


_default: ThreadPoolTaskRunner | None = None
_default_pid = 0


def default_runner() -> TaskRunner:
    """Return the process's runner for tasks submitted outside any flow."""
    global _default, _default_pid
    if _default is None or _default_pid != os.getpid():
        _default, _default_pid = ThreadPoolTaskRunner(), os.getpid()
        # Its threads live as long as the process, unlike those of a flow, and are told apart by their name.
        _default._thread_name = "hark-shared-task"
    return _default


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _default_workers() -> int:
    from ..config import load_settings

    return load_settings().engine.thread_workers


def _taken(one: list[TaskCall]) -> bool:
    """Take what only one of two threads may have; whether it was there."""
    try:
        one.pop()
    except IndexError:
        return False
    return True


def _in_loop(loop: asyncio.AbstractEventLoop | None = None) -> bool:
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return loop is None or running is loop
