"""The place of a background task in the worker that serves it, given to others while the task waits for long.

A retry delay of the task itself ends its stay in the worker. A ``sleep`` or ``wait_for_event`` in it cannot, nor can the retry delay of a
task that it calls: its code would run again. It is as with flow runs (``holding.py``); what is known of it are the calls of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from ..context import TaskRunContext
from ..logging import logger_of_task_run
from ..runs.going import Going, going_in_background
from ..sync_async.thread_pool import waiting_for_another
from .holding import IN_TASK, Held, HeldWait, Place

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..calls.task_call import TaskCall
    from ..runs.task_run import TaskRun

__all__ = [
    "freeing_thread",
    "retry_in_background",
    "stand_in_background",
    "suspend_after_s",
    "wait_in_background",
]


class _Background:
    """What waits of a background task, and what of it goes on."""

    def __init__(
        self, run: TaskRun, going: Going, place: Place, session: Session, *, suspend_after_s: float
    ) -> None:
        self._run, self._going, self._session, self.suspend_after_s = run, going, session, suspend_after_s
        self._held = Held(
            place, session, suspend_after_s=suspend_after_s, is_waiting=self._is_waiting, told=set()
        )
        going.on_end = self._held.look

    def wait(
        self, what: str, does: str, for_s: float | None, *, call: TaskCall | None, code: TaskRunContext | None
    ) -> HeldWait | None:
        """Return a wait of the task; None of a short one."""
        if for_s is not None and for_s <= self.suspend_after_s:
            return None
        return HeldWait(
            self._held, what, does=does, for_s=for_s, why=IN_TASK, call=call, code=code,
            log=partial(logger_of_task_run, self._run, None, self._session),
        )  # fmt: skip

    def _is_waiting(self, waits: Collection[HeldWait], go_on: Callable[[], None]) -> bool:
        self._going.on_begin = go_on
        runs: set[int] = set()
        for wait in waits:
            if wait.call is not None and wait.call.run.is_going:
                runs.add(id(wait.call.run))
            is_direct = wait.call is None or wait.call.opening is None
            code = (wait.code if wait.call is None else wait.call.caller) if is_direct else None
            while isinstance(code, TaskRunContext):
                if code.task_run.is_going:
                    runs.add(id(code.task_run))
                # Who has submitted a call may do something else.
                code = code.caller if code.opening is None else None
        return self._going.count == len(runs)


_here: ContextVar[_Background | None] = ContextVar("hark_background_place", default=None)


def stand_in_background(call: TaskCall, place: Place, *, suspend_after_s: float) -> None:
    """Have the code that is begun in this context, which is that of a background task, give the place back while it waits."""
    assert call.events is not None
    going, session = call.events.going, call.events.session
    going_in_background.set(going)
    _here.set(_Background(call.run, going, place, session, suspend_after_s=suspend_after_s))


def freeing_thread() -> AbstractContextManager[None]:
    """Return a block in which the thread, if it is that of a sync background task, does not count as working."""
    return waiting_for_another() if _here.get() is not None else nullcontext()


def suspend_after_s() -> float | None:
    """Return from how many seconds on a wait is a long one; None outside background tasks."""
    background = _here.get()
    return background.suspend_after_s if background is not None else None


def wait_in_background(code: TaskRunContext, does: str, for_s: float | None) -> HeldWait | None:
    """Return a long wait of the code of a task that is, or is part of, a background task; None where it is a short one, or it is not.

    Args:
        does, for_s: as of ``HeldWait``.
    """
    background = _here.get()
    if background is None:
        return None
    return background.wait(f"task {code.task.name!r}", does, for_s, call=None, code=code)


def retry_in_background(call: TaskCall, delay_s: float) -> HeldWait | None:
    """Return the long wait for the next try of a call that is part of a background task; None as of ``wait_in_background``."""
    background = _here.get()
    if background is None:
        return None
    does = "waits {} for its next try"
    return background.wait(f"task {call.task.name!r}", does, delay_s, call=call, code=None)
