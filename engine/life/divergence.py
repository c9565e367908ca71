"""What earlier attempts of a run finished and this one never asked for: its code, or what it decides by, has changed.

Recorded results are found by the call they belong to, in whatever order calls are made. A call that is not made any more
would otherwise pass in silence: what it did is done, and the run ends as if it had never been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...vocabulary import StateType
from ..calls.call_key import INNER
from ..runs.replay import FinishedCall
from ..states import State

if TYPE_CHECKING:
    from ..logging import RunLogger
    from .tracking import FlowTracker

__all__ = ["DETAIL", "compared", "unasked"]

DETAIL = "unasked"
"""In the details of a run's end: how many recorded calls of each task its last attempt did not make."""


def unasked(finished: Mapping[str, FinishedCall]) -> dict[str, int]:
    """Return how many calls of each task are left, of those that the flow itself had made.

    Args:
        finished: what earlier attempts finished by the keys of the calls, without what this one has asked for.
    """
    # What a task called is not made again where the task's own result is there; notes stand under their own name.
    left = (key for key, call in finished.items() if not key.endswith(INNER) and call.task_run_id != key)
    return dict(sorted(Counter(key.rsplit("-", 2)[0] for key in left).items()))


def compared(state: State, tracker: FlowTracker, log: RunLogger) -> State:
    """Return the end of a run that says which recorded calls it did not make, and say so in its log."""
    if state.type is not StateType.COMPLETED:
        return state  # what failed did not come to all of its calls
    if not (calls := unasked(tracker.finished)):
        return state
    names = ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in calls.items())
    log.warning(
        "earlier attempts of this run finished calls that this one did not make: %s. Its code, or what it decides by, has "
        "changed since. What those calls did stays done; `hark runs retry --from-start` runs all of it anew.",
        names,
    )
    return state.replace(details={**state.details, DETAIL: calls})
