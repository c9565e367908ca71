"""Waiting for the retry of a task: in place, or, where the delay is long, without holding the worker.

A flow run leaves its worker when nothing of it is going on but such waits: every call that has begun has ended or waits for a
retry, submitted calls that have not begun wait for one of those, the flow's own code waits for a task or a subflow, and the same
holds for each subflow. It comes back when the first of them is due. Then finished tasks are replayed, and a call that waited goes
on with its next try, whoever makes it: the log says how many were made, and when the next is due.

A call made in a task waits in place: the code of a task that has begun is not gone through again while its process lives.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from .context import FlowRunContext
from .signals import Suspend, suspension_in
from .states import AwaitingRetry, State
from .timeouts import pause, waking

if TYPE_CHECKING:
    from .task_call import TaskCall

__all__ = ["Rests", "left_behind", "rest", "rest_async", "rest_first", "rest_first_async"]


@dataclass(slots=True, eq=False)
class _Resting:
    due_at: datetime
    is_submitted: bool
    is_going: bool
    wake: Callable[[], object]


class Rests:
    """The calls of a flow run that wait for their retries. Made when the first of it or of a subflow does; used from any thread.

    Args:
        flow: a run. outermost: the one above it that a worker holds, perhaps itself.
    """

    def __init__(self, flow: FlowRunContext, outermost: FlowRunContext) -> None:
        assert flow.tracker is not None
        self._flow, self._outermost = flow, outermost
        self._resting: set[_Resting] = set()
        above = outermost.rests
        # One for all of them: whether they leave is decided for all at once.
        self._lock: threading.Lock = above._lock if above is not None else threading.Lock()
        self.leaving: Suspend | None = None
        """Why the run leaves its worker, once that is decided."""
        # What may have been the last thing that was going on.
        flow.tracker.events.on_end = flow.runner.on_end = self.look

    @classmethod
    def of(cls, call: TaskCall, delay_s: float) -> Rests | None:
        """Return those of the run a call belongs to; None if the call has to wait in place.

        That is: in a task, or in a subflow that a task called; in a run that no worker could take up; and for a short while.
        """
        flow = call.flow
        if flow is None or flow.tracker is None or call.caller is not flow:
            return None
        above: list[FlowRunContext] = [flow]
        while (parent := above[-1].parent) is not None:
            if not isinstance(parent, FlowRunContext):
                return None
            above.append(parent)
        outermost = above[-1]
        if outermost.flow_run.pool is None or delay_s <= flow.tracker.suspend_after_s:
            return None
        for one in reversed(above):
            # Those above too: what ends there may be the last thing that was going on.
            if one.rests is None:
                one.rests = cls(one, outermost)
        return flow.rests

    def begin(self, call: TaskCall, delay_s: float, wake: Callable[[], object]) -> _Resting:
        """Note that a call waits. ``wake`` is called when the run leaves."""
        due_at = datetime.now(UTC) + timedelta(seconds=delay_s)
        one = _Resting(due_at, not call.is_direct, call.run.is_going, wake)
        with self._lock:
            self._resting.add(one)
        self.look()
        return one

    def end(self, one: _Resting) -> None:
        """Note that it waits no longer.

        Raises:
            Suspend: because the run leaves its worker.
        """
        with self._lock:
            self._resting.discard(one)
            leaving = self.leaving
        if leaving is not None:
            raise Suspend(leaving.state, due_at=leaving.due_at)

    def look(self) -> None:
        """Have the run leave its worker if nothing of it is going on any more but waits for retries."""
        rests = self._outermost.rests
        if rests is None:
            return
        with self._lock:
            resting = _all_resting(self._outermost) if rests.leaving is None else None
            if not resting:
                return
            due_at = min(one.due_at for one in resting)
            message = f"{len(resting)} task{'s' if len(resting) > 1 else ''} will be tried again"
            rests.leave(Suspend(AwaitingRetry(message=message), due_at=due_at))

    def leave(self, suspend: Suspend) -> None:
        """End the waits here and in subflows, because the run leaves its worker."""
        self.leaving = suspend
        for one in tuple(self._resting):
            one.wake()
        for subflow in tuple(self._flow.subflows):
            if subflow.rests is not None:
                subflow.rests.leave(suspend)


def _all_resting(flow: FlowRunContext) -> list[_Resting] | None:
    """Return the calls of a flow run and its subflows that wait for retries; None if anything else of it is going on."""
    own = tuple(flow.rests._resting) if flow.rests is not None else ()
    found = list(own)
    subflows = tuple(flow.subflows)
    for subflow in subflows:
        inner = _all_resting(subflow)
        if inner is None:
            return None
        found += inner
    submitted = sum(one.is_submitted for one in own)
    waits = flow.waiting > 0 or submitted < len(own) or subflows
    if flow.tracker is None or not found or not waits:
        return None
    if flow.tracker.events.going.count != sum(one.is_going for one in own):
        return None
    return found if len(flow.runner.unfinished()) == submitted + flow.runner.blocked else None


def rest(call: TaskCall, delay_s: float) -> None:
    """Wait, in sync code, for the next try of a call.

    Raises:
        Suspend: the wait goes on without this worker.
    """
    rests = _rests_of(call, delay_s)
    if rests is None:
        pause(delay_s)
        return
    woken = threading.Event()
    one = rests.begin(call, delay_s, woken.set)
    try:
        with waking(woken.set):
            woken.wait(delay_s)
    finally:
        rests.end(one)


async def rest_async(call: TaskCall, delay_s: float) -> None:
    """Do what ``rest`` does, without holding the loop."""
    rests = _rests_of(call, delay_s)
    if rests is None:
        await asyncio.sleep(delay_s)
        return
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    one = rests.begin(call, delay_s, lambda: loop.call_soon_threadsafe(woken.set))
    try:
        await asyncio.wait_for(woken.wait(), delay_s)
    except TimeoutError:
        pass
    finally:
        rests.end(one)


def rest_first(call: TaskCall) -> None:
    """Wait, in sync code, for the try that an earlier attempt of the run did not live to make."""
    if (delay_s := _left_s(call)) > 0:
        rest(call, delay_s)


async def rest_first_async(call: TaskCall) -> None:
    """Do what ``rest_first`` does, without holding the loop."""
    if (delay_s := _left_s(call)) > 0:
        await rest_async(call, delay_s)


def _left_s(call: TaskCall) -> float:
    due, call.retry_at = call.retry_at, None
    return (due - datetime.now(UTC)).total_seconds() if due is not None else 0.0


def _rests_of(call: TaskCall, delay_s: float) -> Rests | None:
    if call.rests_after_s is not None and delay_s > call.rests_after_s:
        # A background task: its work item comes again then.
        raise Suspend(call.run.state or AwaitingRetry())
    return Rests.of(call, delay_s)


def left_behind(call: TaskCall, exc: BaseException) -> State | None:
    """Return the state of a call that ended because its run leaves the worker; None if it ended otherwise.

    Asking for its result raises the suspension, so that the flow's code leaves, too.
    """
    suspend = suspension_in(exc)
    if suspend is None:
        return None
    return (call.run.state or AwaitingRetry(run_id=call.run.id)).replace(data=suspend)
