"""Long waits of a task that runs in another process than its flow, told where the flow is.

There, what is known of the try begins and ends, so there it is seen that all of it waits. Where the flow is, the call counts as one
that waits from then on, as if it waited there itself: whether the run gives its place in the worker to others is decided of all of
the run, and said in its log, by the rules of ``life/holding.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from ..life.holding import HeldWait, log_of_flow
from ..life.resting import held_of
from ..life.runs_above import runs_around

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall
    from ..context import FlowRunContext

__all__ = ["FarPlace", "FarWait", "FarWaits", "Tell", "has_place"]


class FarWait(NamedTuple):
    """A wait, as it is told; see ``HeldWait``."""

    what: str
    does: str
    for_s: float | None
    why: str


Tell = Callable[[Collection[FarWait]], object]
"""Tells where the flow is what a try waits for, now that all of it waits; nothing, now that it goes on. From any thread."""


def has_place(flow: FlowRunContext) -> bool:
    """Return whether a flow run is, or is part of, one that has a place to give back."""
    outermost = runs_around(flow)[0][-1]
    return outermost.tracker is not None and outermost.tracker.place is not None and outermost.parent is None


class FarPlace:
    """The place of a run, as a try of one of its tasks has it in another process: giving it back is telling that the try waits."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._is_over = False

    def give(self, waits: Collection[HeldWait], answer: Callable[[bool], object]) -> None:
        # Nobody answers: what becomes of the place depends on the rest of the run, and is said where that is.
        del answer
        self._say([FarWait(one.what, one.how, one.for_s, one.why) for one in waits])

    def take(self) -> None:
        self._say(())

    def close(self) -> None:
        """Tell nothing from now on: what a thread that the try has left behind waits for would be taken for that of the next one."""
        with self._lock:
            self._is_over = True

    def _say(self, waits: Collection[FarWait]) -> None:
        with self._lock:
            if not self._is_over:
                self._tell(waits)


class FarWaits:
    """What a try of a call waits for in another process, where its flow is. Entered for as long as the try may be told of."""

    def __init__(self, call: TaskCall) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._waits: list[HeldWait] = []
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_over = True
            self._end()

    def hear(self, told: Iterable[FarWait]) -> None:
        """Note what all of the try waits for from now on; nothing: it goes on. From any thread."""
        flow = self._call.flow
        with self._lock:
            self._end()
            if self._is_over or flow is None:
                return
            for one in told:
                if (held := held_of(runs_around(flow)[0])) is None:
                    return
                wait = HeldWait(
                    held, one.what, does=one.does, for_s=one.for_s, why=one.why, call=self._call,
                    log=partial(log_of_flow, flow),
                )  # fmt: skip
                held.begin(wait)
                self._waits.append(wait)

    def _end(self) -> None:
        waits, self._waits = self._waits, []
        for wait in waits:
            wait.held.end(wait)
