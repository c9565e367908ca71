"""Waiting for the retry of a task or a subflow: in place, or, where the delay is long, without holding the worker.

A flow run leaves its worker when nothing of it is going on but such waits: every call that has begun has ended or waits for a
retry, submitted calls that have not begun wait for one of those, the flow's own code waits for a task or a subflow, and the same
holds for each subflow that is not between two tries itself. It comes back when the first of them is due. Then finished tasks are
replayed, and what waited goes on with its next try, whoever makes it: the log says how many were made, and when the next is due.

A call made in a task waits in place: the code of a task that has begun is not gone through again while its process lives. So does a
generator that has yielded: its reader would not get again what it has got. That a long wait holds its worker is said in the run's log.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ..context import FlowRunContext, TaskRunContext
from ..logging import logger_of_flow_run
from ..signals import Suspend, suspension_in
from ..states import AwaitingRetry, State
from ..sync_async.timeouts import pause, waking

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall
    from .tracking import FlowTracker

__all__ = [
    "Rests", "left_behind", "rest", "rest_async", "rest_first", "rest_first_async", "wait_in", "wait_in_async",
]  # fmt: skip

_IN_HOOK = "its run has ended, and a hook of that has called it"
_IN_TASK = "it is part of a task, whose code would have to run again"
_HAS_YIELDED = "it has yielded values, which its reader would not get again"


@dataclass(slots=True, eq=False)
class _Resting:
    due_at: datetime
    call: TaskCall | None
    """None: the flow itself is between two tries."""
    is_going: bool
    wake: Callable[[], object]

    @property
    def is_submitted(self) -> bool:
        return self.call is not None and self.call.opening is not None


class Rests:
    """What of a flow run waits for a retry. Made when the first of it or of a subflow does; used from any thread.

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
        self.leaving: Suspend | None = above.leaving if above is not None else None
        """Why the run leaves its worker, once that is decided."""
        # What may have been the last thing that was going on.
        flow.tracker.events.on_end = flow.runner.on_end = self.look

    @classmethod
    def of_call(cls, call: TaskCall, delay_s: float) -> Rests | None:
        """Return those of the run a call belongs to; None if the call has to wait in place.

        That is: in a task, or in a subflow that a task called; in a hook of an end; in a run that no worker could take up; for a short
        while; and as a generator that has yielded.
        """
        flow = call.flow
        if flow is None or call.caller is None:
            return None
        return cls._of(flow, call.caller, delay_s, f"task {call.task.name!r}", has_yielded=call.has_yielded)

    @classmethod
    def of_flow(cls, flow: FlowRunContext, delay_s: float, *, has_yielded: bool) -> Rests | None:
        """Return those of a subflow that is between two tries; None if it has to wait in place, as of ``of_call``."""
        return cls._of(flow, flow, delay_s, f"flow {flow.flow.name!r}", has_yielded=has_yielded)

    @classmethod
    def _of(
        cls,
        flow: FlowRunContext,
        caller: FlowRunContext | TaskRunContext,
        delay_s: float,
        what: str,
        *,
        has_yielded: bool,
    ) -> Rests | None:
        if flow.tracker is None or delay_s <= flow.tracker.suspend_after_s:
            return None
        above: list[FlowRunContext] = [flow]
        is_in_task = caller is not flow
        while (parent := above[-1].parent) is not None:
            is_in_task = is_in_task or not isinstance(parent, FlowRunContext)
            if (around := parent.flow_context) is None:
                return None
            above.append(around)
        outermost = above[-1]
        if outermost.tracker is None or outermost.flow_run.pool is None:
            return None
        why = _IN_TASK if is_in_task else _HAS_YIELDED if has_yielded else None
        if any(one.flow_run.is_final for one in above):
            why = _IN_HOOK
        if why is not None:
            _say_held(flow, outermost.tracker, what, delay_s, why)
            return None
        for one in reversed(above):
            # Those above too: what ends there may be the last thing that was going on.
            if one.rests is None:
                one.rests = cls(one, outermost)
        return flow.rests

    def begin(self, call: TaskCall | None, delay_s: float, wake: Callable[[], object]) -> _Resting:
        """Note that a call waits, or, without one, the flow itself. ``wake`` is called when the run leaves."""
        due_at = datetime.now(UTC) + timedelta(seconds=delay_s)
        one = _Resting(due_at, call, call is not None and call.run.is_going, wake)
        with self._lock:
            self._resting.add(one)
            is_leaving = self.leaving is not None
        if is_leaving:
            wake()  # decided while the flow's code was at something that nobody knows of: whoever waits from now on leaves, too
        else:
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
            rests.leave(Suspend(AwaitingRetry(message=_will_be_tried(resting)), due_at=due_at))

    def leave(self, suspend: Suspend) -> None:
        """End the waits here and in subflows, because the run leaves its worker."""
        self.leaving = suspend
        for one in tuple(self._resting):
            one.wake()
        for subflow in tuple(self._flow.subflows):
            if subflow.rests is not None:
                subflow.rests.leave(suspend)


def _all_resting(flow: FlowRunContext) -> list[_Resting] | None:
    """Return what of a flow run and its subflows waits for retries; None if anything else of it is going on."""
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


def _will_be_tried(resting: list[_Resting]) -> str:
    flows = sum(one.call is None for one in resting)
    counted = [(len(resting) - flows, "task"), (flows, "subflow")]
    said = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in counted if count]
    return f"{' and '.join(said)} will be tried again"


def _say_held(flow: FlowRunContext, outermost: FlowTracker, what: str, delay_s: float, why: str) -> None:
    """Say in the run's log, once for each task or flow, that a long wait of it holds a worker."""
    if what in outermost.told_to_hold or flow.tracker is None:
        return
    outermost.told_to_hold.add(what)
    logger_of_flow_run(flow.flow_run, flow.tracker.session).warning(
        "%s waits %g s for its next try in place and holds its worker: %s", what, delay_s, why
    )


def rest(call: TaskCall, delay_s: float) -> None:
    """Wait, in sync code, for the next try of a call.

    Raises:
        Suspend: the wait goes on without this worker.
    """
    wait_in(_rests_of(call, delay_s), delay_s, call)


async def rest_async(call: TaskCall, delay_s: float) -> None:
    """Do what ``rest`` does, without holding the loop."""
    await wait_in_async(_rests_of(call, delay_s), delay_s, call)


def wait_in(rests: Rests | None, delay_s: float, call: TaskCall | None = None) -> None:
    """Wait, in sync code, for the next try of a call, or of the flow itself; None: in place.

    Raises:
        Suspend: the wait goes on without this worker.
    """
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


async def wait_in_async(rests: Rests | None, delay_s: float, call: TaskCall | None = None) -> None:
    """Do what ``wait_in`` does, without holding the loop."""
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
    return Rests.of_call(call, delay_s)


def left_behind(call: TaskCall, exc: BaseException) -> State | None:
    """Return the state of a call that ended because its run leaves the worker; None if it ended otherwise.

    Asking for its result raises the suspension, so that the flow's code leaves, too.
    """
    suspend = suspension_in(exc)
    if suspend is None:
        return None
    return (call.run.state or AwaitingRetry(run_id=call.run.id)).replace(data=suspend)
