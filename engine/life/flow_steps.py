"""What the life of a flow run asks its driver to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..context import TaskRunContext, entered
from ..futures import TaskFuture
from ..options.hooks import Hook
from ..results import RecordedResult
from ..states import State
from ..sync_async.steps import Steps

if TYPE_CHECKING:
    from ...bus.log import Message
    from ...bus.owner import Owner
    from .holding import HeldWait
    from .resting import Rests

__all__ = [
    "Body",
    "CallHooks",
    "Drain",
    "Life",
    "OnBus",
    "ReadResult",
    "Sleep",
    "Step",
    "Store",
    "Take",
    "WaitFor",
    "WaitUntilQuiet",
]


@dataclass(slots=True)
class OnBus:
    """Run this async function where the bus lives; send back what it returns, or throw what it raises."""

    fn: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None


@dataclass(slots=True)
class Store:
    """Store messages of the log; send back their sequences, or None where that takes the usual way: see ``Session.store``."""

    messages: Sequence[Message]
    behind: Owner | None = None


@dataclass(slots=True)
class WaitFor:
    """Wait until these futures are done."""

    futures: list[TaskFuture[Any]]


@dataclass(slots=True)
class Body:
    """Run the author's function; send back what it returns, or throw what it raises."""

    spent_s: float | None = None
    """Set by the driver where the function did not have all the time until the answer: a generator's reader takes some."""


@dataclass(slots=True)
class Drain:
    """Wait until the submitted tasks have ended, at most ``limit_s``; what blocks for longer is left behind."""

    limit_s: float | None = None


@dataclass(slots=True)
class Sleep:
    """Wait so many seconds, or until the run leaves its worker; then throw ``Suspend``."""

    seconds: float
    rests: Rests | HeldWait | None = None
    """Of a wait that the run leaves for where nothing else of it goes on; else it waits in place, for long or (None) not."""


@dataclass(slots=True)
class WaitUntilQuiet:
    """Wait until nothing of a run is going on any more that its code has begun, at most ``limit_s``."""

    rests: Rests
    limit_s: float | None = None


@dataclass(slots=True)
class CallHooks:
    """Call these hooks with the state: those of the flow, or of a task of it."""

    hooks: list[Hook]
    state: State
    task: TaskRunContext | None = None

    def told(self, flow: Any, run: Any) -> tuple[Any, Any]:
        """Return what the hooks are told of: the task and its run, or else these."""
        return (flow, run) if self.task is None else (self.task.task, self.task.task_run)

    def entering(self) -> AbstractContextManager[None]:
        """Return what makes the task run, if there is one, the run the code is in."""
        return nullcontext() if self.task is None else entered(self.task)


@dataclass(slots=True)
class Take:
    """Take these steps, in the run's context."""

    steps: Steps[Any]


@dataclass(slots=True)
class ReadResult:
    """Send back the value of a result that was recorded earlier."""

    result: RecordedResult


Step: TypeAlias = (
    "OnBus | Store | WaitFor | WaitUntilQuiet | Body | Drain | Sleep | CallHooks | Take | ReadResult"
)
Life: TypeAlias = Generator[Step, Any, State]
