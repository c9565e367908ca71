"""Async code from sync code and back, under the names that code written for Prefect uses."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from anyio import to_thread

from ..bus.session import current_session
from ..errors import RefusedError

__all__ = ["is_async_fn", "is_async_gen_fn", "run_coro_as_sync", "run_sync_in_worker_thread"]

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
