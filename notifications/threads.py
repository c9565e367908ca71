"""Blocking sends in threads of their own: a bounded number, a deadline for each, and none that holds the process."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import anyio
from anyio import CapacityLimiter

__all__ = ["SendThreads", "TooManyHang"]

T = TypeVar("T")
_MOST_LEFT = 64


class TooManyHang(Exception):
    """So many earlier sends still hang past their deadline that no more are begun."""


class _Call(Generic[T]):
    def __init__(self, work: Callable[[], T], done: Callable[[_Call[T]], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self.is_left = False
        self._work, self._done = work, done
        # Daemon, unlike anyio's own worker threads: a receiver that dribbles for ever must not keep us from exiting.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="hark-notify", daemon=True).start()

    def _run(self) -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._work()
        except BaseException as exc:
            error = exc
        # Fails when the loop was closed while we hung; nobody asks any more.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._finish, result, error)

    def _finish(self, result: T | None, error: BaseException | None) -> None:
        self._done(self)
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]  # T, when there was no error


class SendThreads:
    """At most ``size`` sends at once. One past its deadline is left to its socket timeouts and no longer counts."""

    def __init__(self, size: int) -> None:
        self._limiter = CapacityLimiter(size)
        self._left = 0

    @property
    def left(self) -> int:
        """How many threads are past their deadline and still hang."""
        return self._left

    async def run(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """Run ``work`` in a thread and return what it returns. Waiting for a free place does not count.

        Raises:
            TimeoutError: it took longer than ``timeout_s``; it may still come to its end, unseen.
            TooManyHang: 64 such are still hanging.
        """
        async with self._limiter:
            if self._left >= _MOST_LEFT:
                raise TooManyHang(f"{self._left} earlier sends still hang")
            call = _Call(work, self._ended)
            try:
                with anyio.fail_after(timeout_s):
                    return await call.future
            finally:
                if not call.future.done() or call.future.cancelled():
                    call.is_left = True
                    self._left += 1

    def _ended(self, call: _Call[T]) -> None:
        if call.is_left:
            self._left -= 1
