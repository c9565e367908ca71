"""``sleep``: waiting in a run without holding a worker."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from typing import Any

from ...duration import format_duration, seconds_of
from ..signals import Suspend
from ..states import Scheduled
from ..sync_async.either import is_async_here
from .durable import Wait, now

__all__ = ["sleep"]


def sleep(duration: float | str | timedelta) -> Any:
    """Wait, as ``await sleep("2h")`` in async code and ``sleep("2h")`` in sync code.

    In the run of a deployment, a wait longer than ``engine.suspend_after_s`` (30 s) holds no worker: tasks that were
    submitted are seen to their end, the run goes back to SCHEDULED (named ``Sleeping``), and when it is time its function
    is called again and passes by all that is recorded. What is not a task (or another wait) is done again then.

    Everywhere else (in a task, in a plain call, outside a run) it waits in place.

    Args:
        duration: seconds, a ``timedelta``, or a text such as ``"90s"``, ``"2h"``, ``"1d12h"``.
    """
    seconds = seconds_of(duration)
    return _sleep_async(seconds) if is_async_here() else _sleep(seconds)


async def _sleep_async(seconds: float) -> None:
    wait = Wait.here("sleep", {"seconds": seconds})
    if wait is None:
        await asyncio.sleep(seconds)
    elif not wait.is_over:
        await asyncio.sleep(_left_s(wait, seconds))
        wait.finish()


def _sleep(seconds: float) -> None:
    wait = Wait.here("sleep", {"seconds": seconds})
    if wait is None:
        time.sleep(seconds)
    elif not wait.is_over:
        time.sleep(_left_s(wait, seconds))
        wait.finish()


def _left_s(wait: Wait, seconds: float) -> float:
    """Return how long to wait in place, or leave the worker."""
    until: datetime = wait.moment("until") or now() + timedelta(seconds=seconds)
    left_s = max(0.0, (until - now()).total_seconds())
    if left_s > wait.tracker.suspend_after_s and wait.can_leave:
        raise sleeping(wait, until, seconds)
    return left_s


def sleeping(wait: Wait, until: datetime, seconds: float) -> Suspend:
    """Return what to raise so that the run sleeps away from its worker."""
    state = Scheduled(
        name="Sleeping", message=f"sleeps for {format_duration(seconds)}", details=wait.note({"until": until})
    )
    return wait.leave(state, due_at=until)
