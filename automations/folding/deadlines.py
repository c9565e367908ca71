"""The moments that rules wait for, the earliest first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

__all__ = ["Deadline", "Deadlines"]

Deadline: TypeAlias = tuple[float, str, str, bool]
"""When, of which rule and key, and whether it is the end of a quiet time (see ``Resolving``). A plain tuple, of which the
collector of garbage knows nothing: there may be a million."""

_LEAST = 1024
_MOVED = 4
"""Of those not looked at yet, so many are with each that is added."""


class Deadlines:
    """Deadlines in the order of their moments, then of rule and key. What is outdated stays until its moment comes.

    Whenever they have doubled, those that are outdated are left behind: not all at once, which takes a fifth of a second
    with 300 000, but some with each that is added. The leaves of a heap are at its end: without the last it still is one.

    Args:
        is_open: whether a deadline is still waited for.
        all_open: all that are waited for.
        most_open: how many they are at most; quick to say.

    Attributes:
        first: the earliest moment, outdated or not; infinite if there is none.
    """

    __slots__ = ("_all_open", "_full", "_heap", "_is_open", "_most_open", "_old", "first")

    def __init__(
        self,
        is_open: Callable[[Deadline], bool],
        all_open: Callable[[], Iterable[Deadline]],
        most_open: Callable[[], int],
    ) -> None:
        self._is_open, self._all_open, self._most_open = is_open, all_open, most_open
        self._heap: list[Deadline] = []
        self._old: list[Deadline] = []  # those that have not been looked at yet; a heap, too
        self._full = _LEAST
        self.first = math.inf

    def __len__(self) -> int:
        return len(self._heap) + len(self._old)

    def add(self, deadline: Deadline) -> None:
        """Add one; it may be there already."""
        heapq.heappush(self._heap, deadline)
        if deadline[0] < self.first:
            self.first = deadline[0]
        if self._old:
            self._look_through()
        elif len(self._heap) > self._full:
            self._heap, self._old = [], self._heap

    def _look_through(self) -> None:
        """Keep those of the last few that are waited for."""
        old = self._old
        for deadline in old[-_MOVED:]:
            if self._is_open(deadline):
                heapq.heappush(self._heap, deadline)
        del old[-_MOVED:]
        if old:
            self._find_first()  # the first may have been among them
            return
        if len(self._heap) > 2 * self._most_open() + _LEAST:
            self.rebuild()  # the same ones were added again and again
        self._full = max(_LEAST, 2 * len(self._heap))
        self._find_first()

    def pop(self) -> Deadline:
        """Take the first."""
        heap, old = self._heap, self._old
        popped = heapq.heappop(old if old and (not heap or old[0] < heap[0]) else heap)
        self._find_first()
        return popped

    def _find_first(self) -> None:
        heap, old = self._heap, self._old
        self.first = min(heap[0][0] if heap else math.inf, old[0][0] if old else math.inf)

    def next_open(self) -> float | None:
        """Return the earliest moment that is still waited for."""
        while self:
            deadline = self.pop()
            if self._is_open(deadline):
                heapq.heappush(self._heap, deadline)
                self._find_first()
                return deadline[0]
        return None

    def rebuild(self) -> None:
        """Take all that are waited for, and no others."""
        self._heap, self._old = list(self._all_open()), []
        heapq.heapify(self._heap)
        self._full = max(_LEAST, 2 * len(self._heap))
        self._find_first()
