"""The places of a worker: so many runs of a lane go on in it at once, and some more wait in its memory without one.

A run whose long waits keep it in memory gives its place back while all of it waits (``life/holding.py``), and takes one again when it
goes on. It does not wait for one: the lane is over its number then, and takes nothing new until it is below. So what a lane may have
in hand at once is its number of places and the runs that wait without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from ..life.holding import HeldWait, first_end

__all__ = ["HeldPlace", "LoopPlace", "Places"]


class Places:
    """Those of one lane, or of a worker of tasks. In one event loop.

    Args:
        size: runs that go on at once, >= 0.
        most_waiting: runs that may wait without a place at once; further ones keep theirs.
    """

    def __init__(self, size: int, most_waiting: int) -> None:
        self.size, self.most_waiting = size, most_waiting
        self._waiting: set[str] = set()
        self._ends: dict[str, float | None] = {}
        """When the first wait of each run that waits is over (monotonic); None: nobody knows."""
        self._refused: dict[str, Callable[[], object]] = {}
        """Runs that wait and had to keep their place, longest first, and what to tell them once they need not."""
        self._on_change: list[Callable[[], object]] = []
        self._on_wait: Callable[[str], object] = lambda _: None
        self._wait_until = 0.0

    @property
    def waiting(self) -> int:
        """How many runs wait without a place."""
        return len(self._waiting)

    @property
    def capacity(self) -> int:
        """How many runs may be in hand at once, waiting ones included."""
        return self.size + len(self._waiting)

    def on_change(self, call: Callable[[], object]) -> None:
        """Have ``call`` called whenever ``capacity`` has changed."""
        self._on_change.append(call)

    def is_waiting(self, run_id: str, until: float) -> bool:
        """Whether a run has said that it only waits, be it with its place or without, and not that it goes on before ``until``."""
        return run_id in self._ends and ((ends_at := self._ends[run_id]) is None or ends_at >= until)

    def on_wait(self, until: float, call: Callable[[str], object]) -> None:
        """Have ``call`` called with the id of each run that only waits until then: of those that do so now, and of each that begins to."""
        self._on_wait, self._wait_until = call, until
        for run_id in list(self._ends):
            if self.is_waiting(run_id, until):
                call(run_id)

    def give(self, run_id: str, later: Callable[[], object], ends_at: float | None = None) -> bool:
        """Take back the place of a run that waits; False: as many wait without one as may, and it keeps its own.

        Then ``later`` is called as soon as its place has been taken back all the same, unless it takes one again first.
        ``ends_at``: when it goes on (monotonic); None: nobody knows.
        """
        self._ends[run_id] = ends_at
        if run_id in self._waiting:
            return True
        has_room = len(self._waiting) < self.most_waiting
        if has_room:
            self._waiting.add(run_id)
            self._tell()
        else:
            self._refused[run_id] = later
        if self.is_waiting(run_id, self._wait_until):
            self._on_wait(run_id)
        return has_room

    def take(self, run_id: str) -> None:
        """Let a run have a place again, whether or not one is free; one that has its own keeps that."""
        self._refused.pop(run_id, None)
        self._ends.pop(run_id, None)
        if run_id in self._waiting:
            self._waiting.discard(run_id)
            if (tell := self._let_next()) is not None:
                tell()
            else:
                self._tell()

    def _let_next(self) -> Callable[[], object] | None:
        """Have the next run that was refused wait without a place; return what is called for that, None: there is none."""
        if not self._refused:
            return None
        run_id = next(iter(self._refused))
        self._waiting.add(run_id)
        return self._refused.pop(run_id)

    def _tell(self) -> None:
        for call in self._on_change:
            call()


class HeldPlace:
    """That of one run in the hands of the worker. In its loop."""

    __slots__ = ("_places", "_run_id")

    def __init__(self, places: Places, run_id: str) -> None:
        self._places, self._run_id = places, run_id

    def give(self, later: Callable[[], object], ends_at: float | None) -> bool:
        """Give it back while the run waits; see ``Places.give``."""
        return self._places.give(self._run_id, later, ends_at)

    def take(self) -> None:
        """Take one again."""
        self._places.take(self._run_id)


class LoopPlace:
    """The place of a run in the worker's loop, as the run has it: from any thread."""

    def __init__(self, place: HeldPlace) -> None:
        self._place, self._loop = place, asyncio.get_running_loop()
        self._is_over = False

    def give(self, waits: Collection[HeldWait], answer: Callable[[bool], object]) -> None:
        self._soon(lambda: self._give(first_end(waits), answer))

    def take(self) -> None:
        self._soon(self._place.take)

    def _give(self, ends_at: float | None, answer: Callable[[bool], object]) -> None:
        if not self._is_over:
            answer(self._place.give(lambda: answer(True), ends_at))

    def close(self) -> None:
        """Take a place again, and give none from now on: the run is not executed any more."""
        self._is_over = True
        self._place.take()

    def _soon(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and the worker gone
            self._loop.call_soon_threadsafe(call)
