"""``sleep``: waiting in a run without holding a worker."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Any

from ...duration import format_duration, seconds_of
from ..life.background_place import freeing_thread
from ..life.held_here import held_here
from ..signals import Suspend
from ..states import Scheduled
from ..sync_async.either import is_async_here
from .durable import Wait, now

__all__ = ["sleep"]


def sleep(duration: float | str | timedelta) -> Any:
    """Wait, as ``await sleep("2h")`` in async code and ``sleep("2h")`` in sync code.

    In the run of a deployment, a wait longer than ``engine.suspend_after_s`` (30 s) holds no worker: once nothing of the run
    goes on any more but such waits, it goes back to SCHEDULED (named ``Sleeping``), and when it is time its function is
    called again and passes by all that is recorded. What is not a task (or another wait) is done again then.

    Everywhere else (in a task, in a plain call, outside a run) it waits in place. A run with a long one in a task stays in memory,
    and gives its place in the worker to others once all of it waits; the run's log says so.

    Args:
        duration: seconds, a ``timedelta``, or a text such as ``"90s"``, ``"2h"``, ``"1d12h"``.
    """
    seconds = seconds_of(duration)
    return _sleep_async(seconds) if is_async_here() else _sleep(seconds)


async def _sleep_async(seconds: float) -> None:
    wait = Wait.here("sleep", {"seconds": seconds})
    if wait is None:
        with held_here("sleeps {}", seconds):
            await asyncio.sleep(seconds)
    elif not wait.is_over:
        left_s, suspend = _left(wait, seconds)
        with _held(left_s, suspend):
            await wait.rest_async(left_s, suspend)
        wait.finish()


def _sleep(seconds: float) -> None:
    wait = Wait.here("sleep", {"seconds": seconds})
    if wait is None:
        with freeing_thread(), held_here("sleeps {}", seconds):
            time.sleep(seconds)
    elif not wait.is_over:
        left_s, suspend = _left(wait, seconds)
        with _held(left_s, suspend):
            wait.rest(left_s, suspend)
        wait.finish()


def _held(left_s: float, suspend: Suspend | None) -> AbstractContextManager[None]:
    return held_here("sleeps {}", left_s) if suspend is None else nullcontext()


def _left(wait: Wait, seconds: float) -> tuple[float, Suspend | None]:
    """Return how long to wait, and what the run leaves its worker with meanwhile; None: it stays.

    Raises:
        Suspend: in a hook of an end, which fails by it.
    """
    until: datetime = wait.moment("until") or now() + timedelta(seconds=seconds)
    left_s = max(0.0, (until - now()).total_seconds())
    if left_s <= wait.tracker.suspend_after_s or not wait.can_leave:
        return left_s, None
    state = Scheduled(
        name="Sleeping", message=f"sleeps for {format_duration(seconds)}", details=wait.note({"until": until})
    )
    suspend = Suspend(state, due_at=until)
    if wait.rests is None:
        raise suspend
    return left_s, suspend
