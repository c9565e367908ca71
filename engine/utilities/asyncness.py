"""Async code from sync code and back, under the names that code written for Prefect uses."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

import anyio
from anyio import from_thread, to_thread

from ...bus.session import current_session
from ...errors import RefusedError
from ..sync_async.either import takes_async

__all__ = [
    "is_async_fn", "is_async_gen_fn", "run_async_from_worker_thread", "run_async_in_new_loop", "run_coro_as_sync",
    "run_sync_in_worker_thread", "sync", "sync_compatible",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


def is_async_fn(func: Callable[..., Any]) -> bool:
    """Return whether a call of the function is to be awaited; of a decorated one, of the function itself."""
    return inspect.iscoroutinefunction(inspect.unwrap(func))


def is_async_gen_fn(func: Callable[..., Any]) -> bool:
    """Return whether the function is an async generator; of a decorated one, the function itself."""
    return inspect.isasyncgenfunction(inspect.unwrap(func))


def run_coro_as_sync(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine to its end from sync code, in the run the code is in, and return its result.

    Where an event loop runs in this thread, that stands still meanwhile, and the coroutine runs in a loop of its own.

    Raises:
        RefusedError: this is the loop that a worker lives in: what the coroutine asks of it would never be answered.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    session = current_session(tracking=False)
    if session is not None and session.is_own_loop:
        coroutine.close()
        raise RefusedError(
            "run_coro_as_sync would hold up the loop that this worker lives in",
            hint="await the coroutine: this is async code",
        )
    with ThreadPoolExecutor(1, thread_name_prefix="hark-coro") as thread:
        return thread.submit(copy_context().run, asyncio.run, coroutine).result()


async def run_sync_in_worker_thread(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a sync function in a thread, in the run the code is in, without holding the loop."""
    return await to_thread.run_sync(partial(fn, *args, **kwargs))


def run_async_from_worker_thread(fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call an async function in the loop that this thread was started from by ``run_sync_in_worker_thread``, and wait.

    Raises:
        RuntimeError: it was not.
    """

    async def call() -> R:
        return await fn(*args, **kwargs)

    return from_thread.run(call)


def run_async_in_new_loop(fn: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call an async function in a loop of its own. Raises RuntimeError: one runs in this thread."""
    return anyio.run(partial(fn, *args, **kwargs))


def sync(fn: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call an async function from sync code, and wait for it; see ``run_coro_as_sync``."""
    return run_coro_as_sync(fn(*args, **kwargs))


def sync_compatible(async_fn: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Any]:
    """Have an async function called from sync code, too: there it is waited for, in async code awaited.

    Which it is follows from the run the code is in, and outside of runs from whether an event loop runs in this thread;
    ``_sync=True`` and ``_sync=False`` in a call say it. ``.aio`` is the function itself.

    Raises:
        TypeError: it is not async. ValueError: it is a generator.
    """
    if is_async_gen_fn(async_fn):
        raise ValueError(f"async generators cannot be called from sync code: {async_fn!r}")
    if not is_async_fn(async_fn):
        raise TypeError(f"the decorated function must be async: {async_fn!r} is not")

    @functools.wraps(async_fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        awaited = takes_async(kwargs)
        coroutine = async_fn(*args, **kwargs)
        return coroutine if awaited else run_coro_as_sync(coroutine)

    call.aio = async_fn  # type: ignore[attr-defined]
    return call
