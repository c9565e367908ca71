"""Counting the calls that are going on, from any thread and without a lock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextvars import ContextVar

from .task_run import TaskRun

__all__ = ["Going", "going_in_background"]


class Going:
    """How many calls have begun and not ended. One that waits for a retry is going on."""

    __slots__ = ("_begun", "_ended", "on_begin", "on_end")

    def __init__(self) -> None:
        # Adding one to an attribute may lose a step where two threads do it at once.
        self._begun, self._ended = itertools.count(), itertools.count()
        self.on_begin: Callable[[], object] | None = None
        """Called when one has begun, or goes on."""
        self.on_end: Callable[[], object] | None = None
        """Called when one has ended."""

    def begin(self, run: TaskRun) -> None:
        """Count a call, once, however often it is tried."""
        if not run.is_going:
            run.is_going = True
            next(self._begun)
        if self.on_begin is not None:
            self.on_begin()

    def end(self, run: TaskRun) -> None:
        """Count a call no longer."""
        if run.is_going:
            run.is_going = False
            next(self._ended)
            if self.on_end is not None:
                self.on_end()

    @property
    def count(self) -> int:
        # The text of a counter is the one way to look at it that moves nothing, in every version of Python.
        begun, ended = repr(self._begun), repr(self._ended)
        return int(begun[6:-1]) - int(ended[6:-1])


going_in_background: ContextVar[Going | None] = ContextVar("hark_going_in_background", default=None)
"""Where the calls are counted that the code of a background task makes; its own among them."""
