"""Threads for tasks: at most ``max_workers`` of them *working*.

A thread that waits for another task's result is not working. While it waits, the pool may start one more, so tasks
that submit tasks and wait for them never exhaust it, however small it is and however deep they go. Each thread keeps
an event loop of its own for the async tasks it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from ..context import FlowRunContext, TaskRunContext, current_run
from ..signals import Interrupted
from .timeouts import raise_in_thread

__all__ = ["ThreadPool", "run_coroutine", "waiting_for_another"]

T = TypeVar("T")


class _Local(threading.local):
    pool: ThreadPool | None = None
    loop: asyncio.AbstractEventLoop | None = None


_local = _Local()
_numbers = itertools.count(1)


class ThreadPool:
    """Runs functions in threads, first come, first served. Threads start when needed and end with ``close``."""

    def __init__(self, max_workers: int, *, name: str = "hark-task") -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, got {max_workers}")
        self._max = max_workers
        self._name = name
        self._work: deque[Callable[[], object]] = deque()
        # Taken as a lock, never through the condition: an exception raised in the thread (``interrupt``) may come
        # between the condition's Python code taking the lock and its block beginning, and the lock would stay taken.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._is_waking = False
        """Whether an idle thread has been woken that has not looked for work yet."""
        self._waiting = 0
        self._closed = False
        self._working: set[int] = set()
        self._coroutines: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = {}
        """What the threads that run a coroutine wait for."""

    def submit(self, fn: Callable[[], object]) -> bool:
        """Run ``fn`` in a thread, soon; return whether a place was free for it. ``fn`` deals with its own errors."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this pool of threads is closed")
            is_free = len(self._working) - self._waiting + len(self._work) < self._max
            self._work.append(fn)
            self._wake_one()
            self._start_if_short()
        return is_free

    def close(self, *, wait: bool = True) -> None:
        """Let the threads end once all that was submitted is done, and wait for that unless told not to."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads) if wait else []
        for thread in threads:
            # One that is not alive may never have been started: who began to was interrupted.
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join()

    @property
    def threads(self) -> int:
        """How many threads there are now, waiting ones included."""
        return len(self._threads)

    def _wake_one(self) -> None:
        """Wake an idle thread if there is work, unless one is on its way: it wakes the next when it has taken its own.

        Threads take turns at running Python. Were each function to wake a thread, most would wake to wait for their turn.
        """
        if self._work and self._idle and not self._is_waking:
            # In this order: an interruption between the two has at worst two threads woken, and not none.
            self._changed.notify()
            self._is_waking = True

    def _start_if_short(self) -> None:
        if len(self._work) > self._idle and len(self._threads) - self._waiting < self._max:
            thread = threading.Thread(target=self._run, name=f"{self._name}-{next(_numbers)}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        _local.pool = self
        try:
            # In a frame of its own: between two instructions of a loop, not every place belongs to the block around it.
            self._work_on()
        except Interrupted:
            return  # it came after the work was done
        finally:
            with self._lock:
                self._working.discard(threading.get_ident())
                self._threads.discard(threading.current_thread())
                # It may have been woken, and interrupted before it took anything.
                self._is_waking = False
                self._wake_one()
            loop, _local.loop = _local.loop, None
            if loop is not None:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

    def _work_on(self) -> None:
        while (work := self._next()) is not None:
            work()
            # Holding the function would keep its task's arguments alive while this thread is idle.
            del work

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            self._working.discard(threading.get_ident())
            if len(self._threads) - self._waiting > self._max:
                # One too many, since somebody who waited works again.
                self._threads.discard(threading.current_thread())
                return None
            while not self._work:
                if self._closed:
                    return None
                self._idle += 1
                try:
                    self._changed.wait()
                finally:
                    self._idle -= 1
                    self._is_waking = False
            self._working.add(threading.get_ident())
            work = self._work.popleft()
            self._wake_one()
            return work

    def interrupt(self) -> None:
        """Raise ``Interrupted`` in every thread that works, between two of its instructions; once for each function.

        A thread that runs a coroutine makes none while that waits: the coroutine is cancelled.
        """
        with self._lock:
            for thread_id in self._working:
                if thread_id in self._coroutines:
                    loop, task = self._coroutines[thread_id]
                    loop.call_soon_threadsafe(task.cancel)
                else:
                    raise_in_thread(thread_id, Interrupted)
            self._working.clear()

    @contextlib.contextmanager
    def running(self, task: asyncio.Task[Any]) -> Generator[None]:
        """Say that this thread runs a coroutine inside the block."""
        with self._lock:
            self._coroutines[threading.get_ident()] = task.get_loop(), task
        try:
            yield
        finally:
            with self._lock:
                del self._coroutines[threading.get_ident()]

    def begin_waiting(self) -> None:
        with self._lock:
            self._waiting += 1
            self._start_if_short()

    def end_waiting(self) -> None:
        with self._lock:
            self._waiting -= 1


@contextlib.contextmanager
def waiting_for_another() -> Generator[None]:
    """Say that this thread, if it is one of a pool's, does no work inside the block."""
    pool, here, waiter = _local.pool, current_run.get(), object()
    flow = here.flow_context if here is not None else None
    if flow is not None:
        # Should nothing else go on but long waits, the run may leave its worker, or give its place in it to others.
        if isinstance(here, TaskRunContext):
            flow.waiting_tasks[waiter] = here
        else:
            flow.waiting += 1
        if flow.rests is not None:
            flow.rests.look()
    if pool is not None:
        pool.begin_waiting()
    try:
        yield
    finally:
        if flow is not None:
            if isinstance(here, FlowRunContext):
                flow.waiting -= 1
            else:
                flow.waiting_tasks.pop(waiter, None)
            if flow.rests is not None:
                flow.rests.go_on()
        if pool is not None:
            pool.end_waiting()


def run_coroutine(coroutine: Coroutine[Any, Any, T], context: contextvars.Context | None = None) -> T:
    """Run a coroutine to its end in this thread, which has no running loop; a pool's thread reuses its loop."""
    pool = _local.pool
    if pool is None:
        with asyncio.Runner() as runner:
            return runner.run(coroutine, context=context)
    loop = _local.loop
    if loop is None:
        loop = _local.loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine, context=context)
    try:
        with pool.running(task):
            return loop.run_until_complete(task)
    finally:
        leftover = asyncio.all_tasks(loop)
        if leftover:
            for other in leftover:
                other.cancel()
            loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
