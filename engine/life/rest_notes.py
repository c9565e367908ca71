"""What waits of a run that may leave its worker, and what the run leaves with: since when all of it waits, and what wakes it first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..signals import Suspend
from ..states import AwaitingRetry

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall

__all__ = ["Resting", "suspension", "with_notes"]


@dataclass(slots=True, eq=False)
class Resting:
    """One of the waits of a run: of a call, of the flow itself, or of its code."""

    due_at: datetime | None
    """When it is over by itself; None: it is not."""
    call: TaskCall | None
    """None: the flow itself is between two tries, or its code waits."""
    wake: Callable[[], object]
    suspend: Suspend | None = None
    """What a wait of the flow's own code would leave with; None of retries."""
    stays: bool = False
    """Whether it keeps the run where it is, as something that goes on does."""
    is_going: bool = False
    is_left: bool = False
    """Whether the code that waited for it has ended without it."""

    @property
    def is_between_tries(self) -> bool:
        """Whether it is the flow itself that is to be tried again."""
        return self.call is None and self.suspend is None and not self.stays

    @property
    def is_submitted(self) -> bool:
        return self.call is not None and self.call.opening is not None


def suspension(resting: list[Resting]) -> Suspend:
    """Return what a run leaves with of which all this waits: it says what wakes it first, and since when all wait."""
    due_at = min((one.due_at for one in resting if one.due_at is not None), default=None)
    retries = [one for one in resting if one.suspend is None]
    waits = sorted(
        (one for one in resting if one.suspend is not None),
        key=lambda one: (not _is_called(one), one.due_at or _NEVER),
    )
    first = waits[0] if waits else None
    is_first = first is not None and (_is_called(first) or not retries or first.due_at == due_at)
    if first is not None and first.suspend is not None and is_first:
        return with_notes(Suspend(first.suspend.state, due_at=due_at), waits)
    return with_notes(Suspend(AwaitingRetry(message=_will_be_tried(retries)), due_at=due_at), waits)


def _is_called(one: Resting) -> bool:
    """Whether a wait may be over before its time: somebody reads in the state what it is for."""
    wait = one.suspend.state.details.get("wait") if one.suspend is not None else None
    return isinstance(wait, dict) and "event" in wait


def with_notes(suspend: Suspend, resting: list[Resting]) -> Suspend:
    """Return it with what is noted of all other waits, so that they go on as they began."""
    state = suspend.state
    notes = [one.suspend.state.details.get("wait") for one in resting if one.suspend is not None]
    others = [note for note in notes if note is not None and note != state.details.get("wait")]
    if not others:
        return suspend
    return Suspend(state.replace(details={**state.details, "waits": others}), due_at=suspend.due_at)


_NEVER = datetime.max.replace(tzinfo=UTC)


def _will_be_tried(resting: list[Resting]) -> str:
    flows = sum(one.is_between_tries for one in resting)
    counted = [(len(resting) - flows, "task"), (flows, "subflow")]
    said = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in counted if count]
    return f"{' and '.join(said)} will be tried again"
