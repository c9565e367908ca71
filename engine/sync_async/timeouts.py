"""Stopping code that takes too long.

Async code is cancelled at its next ``await``. Sync code in the main thread is interrupted by SIGALRM, at once, blocking
system calls included. Sync code in another thread gets an exception between two of its Python instructions, so a call
that blocks in C (``time.sleep``, a socket without a timeout) ends first: run such code in a process or make it async.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

from ...errors import RunTimedOut
from .bell import Bell

__all__ = ["Overrun", "left_of", "pause", "raise_in_thread", "timed_out", "waking", "within", "within_async"]


_AGAIN_S = 0.1
"""An alarm rings again after this long until it is heard. The system gives a signal to any thread of the process when the
main thread cannot take it, as after a stop (Ctrl-Z, a paused container), and then the main thread's call blocks on."""


class Overrun(BaseException):
    """Raised into code whose time is up; turned into ``RunTimedOut`` by the block that set the limit.

    Not an ``Exception``: the ``except Exception`` of inner code, and the retries of an inner task, do not stop it.
    """


@asynccontextmanager
async def within_async(
    seconds: float | None, what: str, *, of_s: float | None = None
) -> AsyncGenerator[None]:
    """Cancel the block after ``seconds`` and raise ``RunTimedOut`` naming ``what``; None sets no limit.

    Args:
        of_s: the limit that the seconds are the rest of; it is what the error names.
    """
    if seconds is None:
        yield
        return
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError as exc:
        # The code's own TimeoutError is its own failure.
        if scope.expired():
            raise timed_out(what, of_s or seconds) from exc
        raise


@contextmanager
def within(seconds: float | None, what: str, *, of_s: float | None = None) -> Generator[None]:
    """Interrupt the block after ``seconds`` and raise ``RunTimedOut`` naming ``what``; None sets no limit.

    Args:
        of_s: as of ``within_async``.
    """
    if seconds is None:
        yield
    elif threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _by_alarm(seconds, timed_out(what, of_s or seconds)):
            yield
    else:
        with _by_exception(seconds, timed_out(what, of_s or seconds)):
            yield


def left_of(limit_s: float | None, began: float) -> float | None:
    """Return what is left of a limit, in seconds, after a step that began then (monotonic); None: there is no limit.

    Never nothing, so that it is the next step that raises.
    """
    return None if limit_s is None else max(1e-6, limit_s - (time.monotonic() - began))


def timed_out(what: str, seconds: float) -> RunTimedOut:
    """Return what is raised in ``what`` when its limit is over."""
    return RunTimedOut(f"{what} timed out after {seconds:g} second(s)", seconds=seconds)


@contextmanager
def _by_alarm(seconds: float, error: RunTimedOut) -> Generator[None]:
    """Limit by SIGALRM. An outer limit that is due sooner keeps the timer: it ends the inner block too."""
    begun = time.monotonic()
    outer_s, outer_again_s = signal.getitimer(signal.ITIMER_REAL)
    if 0 < outer_s <= seconds:
        yield
        return
    mine = Overrun()

    def ring(signum: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise mine

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), _AGAIN_S)
    try:
        yield
    except Overrun as exc:
        if exc is mine:
            raise error from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer_s > 0:
            left_s = max(outer_s - (time.monotonic() - begun), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left_s, outer_again_s)


def raise_in_thread(thread_id: int, exception: type[BaseException]) -> None:
    """Have ``exception`` raised in another thread, between two of its Python instructions."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))


class _Local(threading.local):
    limits: tuple[_Limit, ...] = ()


_local = _Local()


class _Limit:
    __slots__ = ("done", "exception", "fired", "lock", "thread_id", "wakers")

    def __init__(self, thread_id: int) -> None:
        self.thread_id = thread_id
        # A class of its own for each limit, because only a class can be raised in another thread, and a nested limit
        # must tell its own from the outer one's.
        self.exception: type[Overrun] = type("Overrun", (Overrun,), {})
        self.lock = threading.Lock()
        self.wakers: list[Callable[[], object]] = []
        self.done = False
        self.fired = False

    def fire(self) -> None:
        with self.lock:
            if not self.done:
                self.fired = True
                raise_in_thread(self.thread_id, self.exception)
                for wake in self.wakers:
                    wake()


@contextmanager
def waking(wake: Callable[[], object]) -> Generator[None]:
    """Call ``wake`` if a limit of this thread fires inside the block.

    For waits of our own: an exception for another thread is raised between two instructions, and a thread that waits
    for a lock makes none.
    """
    limits = _local.limits
    if not limits:
        yield
        return
    for limit in limits:
        with limit.lock:
            limit.wakers.append(wake)
    try:
        yield
    finally:
        for limit in limits:
            with limit.lock:
                limit.wakers.remove(wake)


def pause(seconds: float) -> None:
    """Sleep, but no longer than a limit of this thread allows."""
    if not _local.limits:
        time.sleep(seconds)
        return
    woken = Bell()
    with waking(woken.ring):
        woken.wait(seconds)


class _Watch:
    """One thread that fires the limits of all others, in order of their deadlines."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, _Limit]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, deadline: float, limit: _Limit) -> None:
        with self._changed:
            heapq.heappush(self._due, (deadline, next(self._order), limit))
            if (
                self._thread is None or not self._thread.is_alive()
            ):  # a forked child has no threads but its first
                self._thread = threading.Thread(target=self._run, name="hark-timeouts", daemon=True)
                self._thread.start()
            if self._due[0][2] is limit:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    while self._due and self._due[0][2].done:
                        heapq.heappop(self._due)
                    wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else 10.0
                    if not self._changed.wait(wait_s) and not self._due:
                        self._thread = None
                        return
                limit = heapq.heappop(self._due)[2]
            limit.fire()


_watch = _Watch()


@contextmanager
def _by_exception(seconds: float, error: RunTimedOut) -> Generator[None]:
    limit = _Limit(threading.get_ident())
    _local.limits = (*_local.limits, limit)
    _watch.add(time.monotonic() + seconds, limit)
    try:
        try:
            yield
        finally:
            _local.limits = tuple(other for other in _local.limits if other is not limit)
            with limit.lock:
                limit.done = True
            if limit.fired:
                # Set but perhaps not raised yet: let it come now, inside this block, not in somebody else's code.
                for _ in range(1000):
                    time.sleep(0)
    except limit.exception:
        raise error from None
