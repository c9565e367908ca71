"""Waits that outlive the process they began in.

A wait is a call of the run's code like that of a task: it has a key, its end is recorded among the task events, and a run
that is taken up again passes it by. What it waits for is noted in the transition by which the run leaves its worker
(``details.wait``), so a wait that is met again goes on as it began: ``sleep("2h")`` ends two hours after it began, however
often the run has moved since. A short wait, and one that cannot leave (in a task; in a run no worker could take up), is
waited out in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ...bus.event import format_time, parse_time
from ...vocabulary import JsonObject
from ..calls.task_call import TaskCall, prepare
from ..context import FlowRunContext, current_run
from ..life.resting import Rests, suspend_here, wait_in, wait_in_async
from ..life.task_life import begin_try, recorded, succeeded
from ..signals import Suspend
from ..states import State, raise_state_exception
from ..tasks import Task

__all__ = ["Wait"]


class Wait:
    """One wait of a tracked run's code.

    Attributes:
        key: the same each time the code gets here.
        noted: what was noted when it began, by an earlier attempt; empty if it begins now.
    """

    def __init__(self, call: TaskCall, flow: FlowRunContext) -> None:
        self._call, self.flow = call, flow
        assert flow.tracker is not None
        self.tracker = flow.tracker
        self.key = call.run.call
        self.noted: Mapping[str, Any] = self.tracker.waits.get(self.key, {})

    @classmethod
    def here(cls, what: str, inputs: Mapping[str, Any]) -> Wait | None:
        """Return the wait the code has come to; None where nothing is recorded: outside flows, in tasks, untracked."""
        flow = current_run.get()
        if not isinstance(flow, FlowRunContext) or flow.tracker is None:
            return None
        call = prepare(_task(what), dict(inputs), is_direct=True)
        if call.settled is not None:
            raise_state_exception(call.settled)
        return cls(call, flow)

    @property
    def is_over(self) -> bool:
        """Whether an earlier attempt waited it out."""
        return self._call.recorded is not None

    def value(self) -> Any:
        """Return what it came to, where ``is_over``."""
        assert self._call.recorded is not None
        return self._call.recorded.read()

    async def avalue(self) -> Any:
        """Return what ``value`` returns, without holding the loop."""
        assert self._call.recorded is not None
        return await self._call.recorded.aread()

    def moment(self, name: str) -> datetime | None:
        """Return a time that was noted when it began."""
        text = self.noted.get(name)
        return parse_time(text) if isinstance(text, str) else None

    @property
    def can_leave(self) -> bool:
        """Whether the run may leave its worker here: some worker can take it up, and nothing outside replay is running."""
        context: Any = self.flow
        while context.parent is not None:
            context = context.parent
            if not isinstance(context, FlowRunContext):
                return False  # a flow in a task: the task would be replayed only as a whole
        return context.tracker is not None and context.flow_run.pool is not None

    @property
    def rests(self) -> Rests | None:
        """What of the run waits; None where it cannot leave its worker: there a wait is waited out in place."""
        return Rests.of_code(self.flow)

    def rest(self, delay_s: float, suspend: Suspend | None) -> None:
        """Wait, in sync code, so long: in place, or, as ``suspend`` says, without the worker once nothing else goes on.

        Raises:
            Suspend: the wait goes on without this worker.
        """
        wait_in(self.rests, delay_s, suspend=suspend, stays=suspend is None)

    async def rest_async(self, delay_s: float, suspend: Suspend | None) -> None:
        """Do what ``rest`` does, without holding the loop."""
        await wait_in_async(self.rests, delay_s, suspend=suspend, stays=suspend is None)

    def note(self, facts: Mapping[str, Any]) -> JsonObject:
        """Return the details of the state in which it is waited for."""
        wait: JsonObject = {"key": self.key, "run": self.flow.flow_run.id}
        for name, value in facts.items():
            wait[name] = format_time(value) if isinstance(value, datetime) else value
        return {"wait": wait}

    def leave(self, state: State, *, due_at: datetime | None) -> Suspend:
        """Have the run leave its worker in ``state``, once what it has begun has ended; return what to raise here."""
        return suspend_here(self.flow, Suspend(state, due_at=due_at))

    def finish(self, value: Any = None) -> Any:
        """Record that it is over, and what it came to; return that."""
        call = self._call
        begin_try(call)
        state = succeeded(call, value)
        if call.events is not None:
            call.events.write(call.run, state.type, state.name, None, recorded(call, state))
        return value


_tasks: dict[str, Task[..., Any]] = {}


def _task(what: str) -> Task[..., Any]:
    """Return what stands for waits of a kind in the log: they are listed among the tasks of their run."""
    found = _tasks.get(what)
    if found is None:

        def wait(**_: Any) -> None:
            raise AssertionError("a wait is recorded, not run")

        found = _tasks[what] = Task(wait, name=what)
    return found


def now() -> datetime:
    return datetime.now(UTC)
