"""A run in a worker's hands."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...bus.work_queue import WorkItem
from ..code.lane import Lane
from ..dispatching.ticket import Ticket
from .execution import Outcome
from .places import HeldPlace
from .stop_request import StopRequest

__all__ = ["HeldRun"]


@dataclass(eq=False, slots=True)
class HeldRun:
    """A message in our hands, and the run it is about.

    Attributes:
        lane: it came by. place: that it has there.
        attempt: the one that began when we took the run; 0 until then. Flows that are tried again count on from it.
        newest: the highest that another is said to have begun by taking the run up.
    """

    item: WorkItem
    ticket: Ticket
    lane: Lane
    place: HeldPlace
    attempt: int = 0
    newest: int = 0
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def is_lost(self) -> bool:
        """Whether another has taken the run up since we have."""
        return 0 < self.attempt < self.newest

    def was_interrupted_by_others(self, outcome: Outcome) -> bool:
        """Whether a run was interrupted by something other than us: a signal to its process, or the flow itself."""
        return outcome.kind == "interrupted" and not self.stop.is_set()
