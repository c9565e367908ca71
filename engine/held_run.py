"""A run in a worker's hands."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..bus.work_queue import WorkItem
from .execution import Outcome
from .stop_request import StopRequest
from .ticket import Ticket

__all__ = ["HeldRun"]


@dataclass(eq=False, slots=True)
class HeldRun:
    """A message in our hands, and the run it is about."""

    item: WorkItem
    ticket: Ticket
    stop: StopRequest = field(default_factory=StopRequest)

    def was_interrupted_by_others(self, outcome: Outcome) -> bool:
        """Whether a run was interrupted by something other than us: a signal to its process, or the flow itself."""
        return outcome.kind == "interrupted" and not self.stop.is_set()
