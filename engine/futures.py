"""Futures: the results of tasks that were submitted, to be had later, from any thread or with ``await``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from ..errors import ResultMissing
from ..vocabulary import TaskRunId
from .calls.nested import replace_leaves
from .runs.task_run import TaskRun
from .signals import Suspend
from .states import Pending, State, StoredResult
from .sync_async.bell import Bell
from .sync_async.thread_pool import waiting_for_another
from .sync_async.timeouts import waking

__all__ = [
    "DoneAndNotDone", "DoneAndNotDoneFutures", "FutureList", "PrefectConcurrentFuture", "PrefectFuture", "PrefectFutureList",
    "PrefectTaskRunFuture", "PrefectWrappedFuture", "TaskFuture",
    "as_completed", "resolve_futures_to_results", "resolve_futures_to_states", "settle_futures", "wait",
]  # fmt: skip

R = TypeVar("R")
log = logging.getLogger("hark.engine")
_lock = threading.Lock()
"""One for all futures: it is held for a few instructions at a time, and a lock each would cost more than it saves."""


class TaskFuture(Generic[R]):
    """The result of one submitted task. Waiting works from any thread; ``await future`` gives its result."""

    __slots__ = ("__weakref__", "_callbacks", "_final", "_run", "call", "home_loop", "name", "task_run_id")

    def __init__(self, run: TaskRun, *, on_end: Callable[[TaskFuture[R]], None] | None = None) -> None:
        self.task_run_id: TaskRunId = run.id
        self.name = run.name
        self.call = run.call
        self.home_loop: asyncio.AbstractEventLoop | None = None
        """The event loop the task runs in, if it is one that the caller may be in too."""
        self._run: TaskRun | None = run
        self._final: State | None = None
        self._callbacks: list[Callable[[TaskFuture[R]], None]] = [] if on_end is None else [on_end]

    @property
    def __call_key__(self) -> str:
        return self.call or self.task_run_id

    @property
    def done(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._final is not None

    @property
    def state(self) -> State:
        """The state of the task run; final once ``done`` (``NotReady`` if it could not begin)."""
        if self._final is not None:
            return self._final
        run = self._run
        of = run.flow_run_id if run else None
        return (run.state if run else None) or Pending(run_id=self.task_run_id, task_of=of or "")

    def finish(self, state: State) -> None:
        """Set the last state. For runners; the second call and later ones do nothing."""
        with _lock:
            if self._final is not None:
                return
            self._final = state
            self._run = None
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                # Whoever waits is woken by one as well: what one of them raises must not keep the others from being called.
                log.exception("a callback of %r failed", self)

    def add_done_callback(self, fn: Callable[[TaskFuture[R]], None]) -> None:
        """Call ``fn(self)`` when done (at once if it is), in whichever thread finishes it, where what it raises is logged."""
        with _lock:
            if self._final is None:
                self._callbacks.append(fn)
                return
        fn(self)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until done, at most ``timeout`` seconds.

        Raises:
            RuntimeError: called in the event loop the task itself needs; ``await`` the future there.
        """
        if self._final is not None:
            _check_left(self._final)
            return
        if self.home_loop is not None and self.home_loop is _running_loop():
            raise RuntimeError(
                f"task {self.name!r} runs in this event loop, and waiting for it here would stop both; "
                "write `await future`"
            )
        self.wait_for_end(timeout)
        _check_left(self._final)

    def wait_for_end(self, timeout: float | None = None) -> None:
        """Wait as ``wait`` does, whatever the end is. For runners."""
        ready = Bell()
        self.add_done_callback(lambda _: ready.ring())
        with waiting_for_another(), waking(ready.ring):
            ready.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Return the task's result, waiting for it.

        Args:
            raise_on_failure: raise the exception of a task that failed, instead of returning it.
        Raises:
            TimeoutError: not done within ``timeout`` seconds.
        """
        self.wait(timeout)
        if self._final is None:
            raise TimeoutError(f"Task run {self.name!r} did not complete within {timeout} seconds")
        return cast(R, self._final.result(raise_on_failure))

    async def wait_async(self, timeout: float | None = None) -> None:
        """Wait until done without holding the loop, at most ``timeout`` seconds."""
        if self._final is None:
            await self.wait_for_end_async(timeout)
        _check_left(self._final)

    async def wait_for_value_async(self) -> None:
        """Wait as ``wait_async`` does, and until what was returned is here: who takes it then may be in the loop it comes by.

        Raises:
            BusUnavailable: it is stored, and the broker does not answer.
        """
        await self.wait_async()
        state = self._final
        if state is not None and state.is_completed() and isinstance(state.data, StoredResult):
            # One that cannot be read is for whoever asks for it to hear of.
            with contextlib.suppress(ResultMissing):
                self._final = state.replace(data=await state.data.aread())

    async def wait_for_end_async(self, timeout: float | None = None) -> None:
        """Wait as ``wait_async`` does, whatever the end is. For runners."""
        if self._final is not None:
            return
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()

        def wake(_: TaskFuture[R]) -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:
                return  # the loop has ended, and with it whoever waited

        self.add_done_callback(wake)
        with waiting_for_another(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await ready.wait()

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> R:
        """Return what ``result`` returns, without holding the loop."""
        await self.wait_async(timeout)
        if self._final is None:
            raise TimeoutError(f"Task run {self.name!r} did not complete within {timeout} seconds")
        return cast(R, await self._final.aresult(raise_on_failure))

    aresult = result_async

    def __await__(self) -> Generator[Any, None, R]:
        return self.result_async().__await__()

    def __repr__(self) -> str:
        return f"TaskFuture(name={self.name!r}, state={self.state.name!r})"


class FutureList(list[TaskFuture[R]]):
    """What ``.map`` returns: the futures, in order of the inputs."""

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all are done, at most ``timeout`` seconds in all."""
        wait(self, timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """Return all results, in order. A failure is raised as soon as it is there, whatever still runs.

        Raises:
            TimeoutError: not all are done within ``timeout`` seconds.
        """
        waited = wait(self, timeout, return_when="FIRST_EXCEPTION" if raise_on_failure else "ALL_COMPLETED")
        return self._results(waited, timeout, raise_on_failure)

    def _results(
        self, waited: DoneAndNotDoneFutures, timeout: float | None, raise_on_failure: bool
    ) -> list[R]:
        if raise_on_failure:
            for future in self:
                if future.done and not future.state.is_completed():
                    future.result()
        if waited.not_done:
            raise TimeoutError(f"Timed out waiting for all futures to complete within {timeout} seconds")
        return [future.result(None, raise_on_failure) for future in self]

    async def result_async(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[R]:
        """Return what ``result`` returns, without holding the loop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return [await future.result_async(left_s(deadline), raise_on_failure) for future in self]

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self.result_async().__await__()


class DoneAndNotDoneFutures(NamedTuple):
    """What ``wait`` returns."""

    done: set[TaskFuture[Any]]
    not_done: set[TaskFuture[Any]]


# Under these names they stand in the annotations of flows that were written for Prefect.
DoneAndNotDone = DoneAndNotDoneFutures
PrefectFuture = PrefectConcurrentFuture = PrefectTaskRunFuture = PrefectWrappedFuture = TaskFuture
PrefectFutureList = FutureList


def wait(
    futures: Iterable[TaskFuture[Any]],
    timeout: float | None = None,
    *,
    return_when: Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"] = "ALL_COMPLETED",
) -> DoneAndNotDoneFutures:
    """Wait until all are done, at most ``timeout`` seconds, and return which are and which are not.

    Args:
        return_when: wait only until the first is done, or until the first has not completed.
    Raises:
        ValueError: the timeout is negative.
    """
    every = set(futures)
    _check(timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    if return_when == "ALL_COMPLETED":
        for future in every:
            future.wait(left_s(deadline))
    elif return_when in ("FIRST_COMPLETED", "FIRST_EXCEPTION"):
        with contextlib.suppress(TimeoutError):
            for future in as_completed(every, left_s(deadline)):
                if return_when == "FIRST_COMPLETED" or not future.state.is_completed():
                    break
    else:
        raise ValueError(
            f"return_when must be ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION, got {return_when!r}"
        )
    done = {future for future in every if future.done}
    return DoneAndNotDoneFutures(done, every - done)


class as_completed(Generic[R]):  # noqa: N801  a function, for all its users see
    """Iterate over futures as they get done, with ``for`` or ``async for``.

    Raises:
        ValueError: the timeout is negative.
        TimeoutError: while iterating, if they are not all done within ``timeout`` seconds.
    """

    def __init__(self, futures: Iterable[TaskFuture[R]], timeout: float | None = None) -> None:
        _check(timeout)
        self._futures = list(dict.fromkeys(futures))
        self._timeout = timeout

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        import queue

        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        ready: queue.SimpleQueue[TaskFuture[R] | None] = queue.SimpleQueue()
        for future in self._futures:
            if future.home_loop is not None and future.home_loop is _running_loop():
                future.wait()  # raises, saying what to write instead
            future.add_done_callback(ready.put)
        for left in range(len(self._futures), 0, -1):
            try:
                with waiting_for_another(), waking(lambda: ready.put(None)):
                    done = ready.get(timeout=left_s(deadline))
            except queue.Empty:
                raise self._unfinished(left) from None
            if done is not None:  # None only wakes us, for a time limit to be raised
                yield done

    async def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[TaskFuture[R]] = asyncio.Queue()

        def hand_over(future: TaskFuture[R]) -> None:
            loop.call_soon_threadsafe(ready.put_nowait, future)

        for future in self._futures:
            if future.done:
                ready.put_nowait(future)  # before any time can be up
            else:
                future.add_done_callback(hand_over)
        deadline = None if self._timeout is None else loop.time() + self._timeout
        for left in range(len(self._futures), 0, -1):
            try:
                # Around the wait alone: what its user does meanwhile is not ours to stop.
                async with asyncio.timeout_at(deadline):
                    done = await ready.get()
            except TimeoutError:
                raise self._unfinished(left) from None
            yield done

    def _unfinished(self, left: int) -> TimeoutError:
        return TimeoutError(f"{left} (of {len(self._futures)}) futures unfinished")


def resolve_futures_to_states(value: Any) -> Any:
    """Return ``value`` with the final state of each future in it in its place, waiting for them."""

    def change(leaf: Any) -> Any:
        if isinstance(leaf, TaskFuture):
            leaf.wait()
            return leaf.state
        return leaf

    return replace_leaves(value, change)


def resolve_futures_to_results(value: Any) -> Any:
    """Return ``value`` with the result of each future in it in its place, waiting for them; raises what they raise."""
    return replace_leaves(value, lambda leaf: leaf.result() if isinstance(leaf, TaskFuture) else leaf)


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


def _check_left(state: State | None) -> None:
    """Raise the suspension of a call that ended here because its run leaves the worker: whoever waits for it leaves, too."""
    if state is not None and isinstance(state.data, Suspend):
        raise state.data


def _check(timeout: float | None) -> None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"'timeout' must be a non-negative number, got {timeout}")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def left_s(deadline: float | None) -> float | None:
    """Return the seconds until a deadline, at least 0; None if there is none."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
