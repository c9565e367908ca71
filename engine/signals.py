"""What code inside a run raises to end it in a way of its own, and what the machinery raises into it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .states import State

__all__ = [
    "OF_THE_CODE",
    "Abort",
    "Interrupted",
    "ReturnedFailure",
    "Skip",
    "Suspend",
    "Undone",
    "suspension_in",
]


class Abort(BaseException):
    """``raise Abort("…")`` in a flow or task: it ends FAILED at once, whatever retries are left.

    Not an ``Exception``, as in Prefect, so that ``except Exception`` on the way does not swallow it.
    """


OF_THE_CODE = (Exception, Abort)
"""What a run's own code raises that it ends of. Whatever else is raised in it ends it from outside."""


class Skip(Exception):
    """``raise Skip("…")`` in a flow or task: it ends COMPLETED, named ``Skipped``, with no result."""


class ReturnedFailure(Exception):
    """A task returned a FAILED state and has tries left. Never leaves the engine."""

    def __init__(self, state: State) -> None:
        super().__init__(str(state))
        self.state = state


class Interrupted(BaseException):
    """Raised into running code from outside: its process is asked to stop.

    Not an ``Exception``, so that ``except Exception`` in user code does not swallow it. What the run becomes is
    decided by what the log says of it: cancelled, lost to another worker, or left for one.
    """


class Undone(BaseException):
    """Raised into the code of a run that has ended, where it is gone through once more to undo what it had begun."""


class Suspend(BaseException):
    """Raised through a run's code to take the run off its worker; on its return the code is replayed up to here.

    Attributes:
        state: what the run becomes, with the wait noted in its details.
        due_at: when it goes on by itself; None: when somebody says so.
    """

    def __init__(self, state: State, *, due_at: datetime | None = None) -> None:
        super().__init__(f"the run leaves its worker: {state.message or state.name}")
        self.state, self.due_at = state, due_at

    def again(self) -> Suspend:
        """Return one that says the same, to be raised here; of a task of the loop that nobody asks, nothing is said in its log then."""
        with suppress(RuntimeError):
            if (task := asyncio.current_task()) is not None:
                task.add_done_callback(_look_at_outcome)
        return Suspend(self.state, due_at=self.due_at)


def _look_at_outcome(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def suspension_in(exc: BaseException) -> Suspend | None:
    """Return the suspension that ``exc`` is, or that is in it where task groups have wrapped it."""
    if isinstance(exc, Suspend):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            found = suspension_in(inner)
            if found is not None:
                return found
    return None
