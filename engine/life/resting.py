"""Waiting in a run: in place, or, where that takes long, without holding the worker.

Waits are for the retry of a task or a subflow, and those of a flow's own code (``sleep``, ``wait_for_event``). A flow run leaves its
worker when nothing of it has been going on for a moment but long ones: every call that has begun has ended or waits for a retry,
submitted calls that have not begun wait for one of those, the flow's own code waits, and the same holds for each subflow that is not
between two tries itself. So one branch of a ``gather`` may sleep while others work. The run comes back when the first of them is
due. Then finished tasks are replayed, and what waited goes on, wherever that is: the log says since when and until when, and of
retries how many were made.

Leaving is an exception (``Suspend``) that is raised where the run's code waits. Code can catch it: ``gather(return_exceptions=True)``,
``except BaseException``, a task group that nobody asks. So it is also noted in the run and in its subflows (``leaving``). From then on
nothing new of them begins here: each further call raises it again. And whatever the code comes to then is not the run's end: it
rests, and its code is gone through again from the last thing that was recorded.

A call made in a task waits in place: the code of a task that has begun is not gone through again while its process lives. So does a
generator that has yielded: its reader would not get again what it has got. The run keeps its process then, but not its place in the
worker (``holding.py``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING

from ..context import FlowRunContext, TaskRunContext
from ..logging import logger_of_flow_run
from ..signals import OF_THE_CODE, Suspend, suspension_in
from ..states import AwaitingRetry, State
from ..sync_async.timeouts import pause, waking
from .background_place import freeing_thread, retry_in_background
from .holding import (
    HAS_YIELDED,
    IN_HOOK,
    IN_TASK,
    MOMENT_BETWEEN_S,
    MOMENT_S,
    Held,
    HeldWait,
    held_of_flow,
    log_of_flow,
)
from .rest_notes import Resting, suspension, with_notes
from .runs_above import runs_around

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall

__all__ = [
    "Rests", "end_waits", "held_of", "is_over_above", "left_behind", "rest", "rest_async", "rest_first", "rest_first_async", "staying", "suspend_here", "suspension_of",
    "wait_in", "wait_in_async",
]  # fmt: skip

_CODE_HAS_ENDED = Suspend(AwaitingRetry(message="the code that waited for it has ended"))


class Rests:
    """What of a flow run waits. Made when the first of it or of a subflow does; used from any thread.

    Args:
        flow: a run. outermost: the one above it that a worker holds, perhaps itself.
    """

    def __init__(self, flow: FlowRunContext, outermost: FlowRunContext) -> None:
        assert flow.tracker is not None
        self._flow, self._outermost = flow, outermost
        self._resting: set[Resting] = set()
        self.counts = (0, 0, 0, 0)
        """How many they are, and of them calls that have begun, those that keep the run, and submitted calls."""
        above = outermost.rests
        # One for all of them: whether they leave is decided for all at once.
        self._lock: threading.Lock = above._lock if above is not None else threading.Lock()
        self._looks = 0
        """How often everything has been seen to rest; of the outermost run."""
        self._stirred_at = 0.0
        """When something ended last that may not have been the last thing (monotonic); of the outermost run."""
        self._left = 0
        """Calls that have begun and not ended, and go on with the run elsewhere."""
        self._on_quiet: Callable[[], object] | None = None
        self.held: Held | None = None
        """What waits for long and keeps the run in memory; of the outermost run. None: nothing has."""
        # What may have been the last thing that was going on.
        flow.tracker.events.on_end = flow.runner.on_end = self._stir

    @classmethod
    def of_call(cls, call: TaskCall, delay_s: float) -> Rests | HeldWait | None:
        """Return those of the run a call belongs to; a ``HeldWait``, or None, if the call has to wait in place.

        That is: in a task, or in a subflow that a task called; in a hook of an end; and as a generator that has yielded. None: in a
        run that no worker could take up, and for a short while.
        """
        flow = call.flow
        if flow is None or call.caller is None:
            return None
        return cls._of(
            flow, call.caller, delay_s, f"task {call.task.name!r}", has_yielded=call.has_yielded, call=call
        )

    @classmethod
    def of_flow(cls, flow: FlowRunContext, delay_s: float, *, has_yielded: bool) -> Rests | HeldWait | None:
        """Return those of a subflow that is between two tries; if it has to wait in place, what ``of_call`` returns then."""
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
        call: TaskCall | None = None,
    ) -> Rests | HeldWait | None:
        if flow.tracker is None or delay_s <= flow.tracker.suspend_after_s:
            return None
        above, is_in_task = runs_around(flow)
        if above[-1].parent is not None or (held := held_of(above)) is None:
            return None
        why = IN_TASK if is_in_task or caller is not flow else HAS_YIELDED if has_yielded else None
        if any(one.flow_run.is_final for one in above):
            why = IN_HOOK
        if why is not None:
            does = "waits {} for its next try"
            log = partial(log_of_flow, flow)
            return HeldWait(held, what, does=does, for_s=delay_s, why=why, log=log, call=call, code=flow)
        return cls._in(above)

    @classmethod
    def of_code(cls, flow: FlowRunContext) -> Rests | None:
        """Return those of a run whose own code waits; None where it cannot leave: part of a task, ended, or nobody's to take up."""
        above, is_in_task = runs_around(flow)
        outermost = above[-1]
        if is_in_task or outermost.tracker is None or outermost.flow_run.pool is None:
            return None
        return None if any(one.flow_run.is_final for one in above) else cls._in(above)

    @classmethod
    def _in(cls, above: list[FlowRunContext]) -> Rests:
        for one in reversed(above):
            # Those above too: what ends there may be the last thing that was going on.
            if one.rests is None:
                one.rests = cls(one, above[-1])
        assert above[0].rests is not None
        return above[0].rests

    @property
    def resting(self) -> tuple[Resting, ...]:
        """What of the run waits. To be asked for by who holds the lock, or where it does not matter."""
        return tuple(self._resting)

    def begin(
        self,
        call: TaskCall | None,
        delay_s: float | None,
        wake: Callable[[], object],
        *,
        suspend: Suspend | None = None,
        stays: bool = False,
    ) -> Resting:
        """Note that a call waits, or, without one, the flow itself or its code. ``wake`` is called when the run leaves."""
        due_at = suspend.due_at if suspend is not None else None
        if suspend is None and delay_s is not None:
            due_at = datetime.now(UTC) + timedelta(seconds=delay_s)
        one = Resting(due_at, call, wake, suspend, stays, call is not None and call.run.is_going)
        with self._lock:
            self._resting.add(one)
            self._count(one, 1)
            if not one.is_submitted:
                self._leave_what_is_over(one)
            is_leaving = one.is_left or self._flow.leaving is not None
        if is_leaving:
            wake()  # decided while the flow's code was at something that nobody knows of: whoever waits from now on leaves, too
        else:
            self.look()
        return one

    def _leave_what_is_over(self, one: Resting) -> None:
        """End a wait that nobody waits for: the code that began it, or called its subflow, has ended."""
        below: FlowRunContext | None = None
        for flow in runs_around(self._flow)[0]:
            if flow.has_returned and not (flow is self._flow and one.is_between_tries):
                if below is None:
                    one.is_left = True
                else:
                    _leave(below, _CODE_HAS_ENDED)
                return
            below = flow

    def withdraw(self, one: Resting) -> None:
        """Note that it waits no longer, whatever becomes of the run."""
        with self._lock:
            self._discard(one)
            self._left += one.is_going and self._flow.leaving is not None
        self._stir()

    def end(self, one: Resting) -> None:
        """Note that it waits no longer.

        Raises:
            Suspend: because the run leaves its worker.
        """
        self.withdraw(one)
        if one.is_left:
            raise _CODE_HAS_ENDED.again()
        if (leaving := self._flow.leaving) is not None:
            raise leaving.again()

    def release(self, one: Resting) -> None:
        """Have a wait that kept the run where it is do so no longer."""
        with self._lock:
            if one in self._resting:
                self._count(one, -1)
                one.stays = False
                self._count(one, 1)
        self.look()

    def _count(self, one: Resting, by: int) -> None:
        own, going, staying, submitted = self.counts
        self.counts = (
            own + by, going + by * one.is_going, staying + by * one.stays, submitted + by * one.is_submitted,
        )  # fmt: skip

    def _discard(self, one: Resting) -> None:
        if one in self._resting:
            self._resting.discard(one)
            self._count(one, -1)

    def _stir(self) -> None:
        """Look, now that something has ended: what waited for that may go on."""
        if (rests := self._outermost.rests) is not None:
            rests._stirred_at = time.monotonic()
        self.go_on()
        self.look()

    def go_on(self) -> None:
        """Note that something goes on."""
        if (rests := self._outermost.rests) is not None and rests.held is not None:
            rests.held.go_on()

    def look(self) -> None:
        """Have the run leave its worker if nothing of it is going on any more but waits, and goes on so for a moment."""
        rests, tracker = self._outermost.rests, self._outermost.tracker
        if rests is None or tracker is None:
            return
        if rests.held is not None:
            rests.held.look()
        if (on_quiet := self._on_quiet) is not None and self._is_quiet():
            self._on_quiet = None
            on_quiet()
        if self._outermost.leaving is not None:
            return
        with self._lock:
            if not _resting_in(self._outermost):
                return
            rests._looks += 1
            looks = rests._looks
        moment_s = min(MOMENT_BETWEEN_S, tracker.suspend_after_s)
        if time.monotonic() - rests._stirred_at > moment_s:
            moment_s = min(MOMENT_S, moment_s)
        loop = tracker.session.loop
        with suppress(RuntimeError):  # it has been closed, and the run has ended with it
            loop.call_soon_threadsafe(loop.call_later, moment_s, rests._decide, looks)

    def _decide(self, looks: int) -> None:
        with self._lock:
            if self._flow.leaving is not None or looks != self._looks:
                return  # in the second case, this is asked once more later on
            if _resting_in(self._flow):
                _leave(self._flow, suspension(_waiting_in(self._flow)))

    # --- leaving --------------------------------------------------------------------------------------

    def close(self) -> bool:
        """End what still waits here of code that has ended without it; return whether that is true of subflows, too."""
        assert self._flow.tracker is not None
        with self._lock:
            for one in tuple(self._resting):
                if not one.is_submitted:
                    one.is_left = True
                    self._discard(one)
                    if one.call is not None:
                        self._flow.tracker.events.going.end(one.call.run)
                    one.wake()
            left = [one for one in self._flow.subflows if isinstance(one.parent, FlowRunContext)]
            left = [one for one in left if _waiting_in(one)]
            for subflow in left:
                _leave(subflow, _CODE_HAS_ENDED)
        return bool(left)

    def when_quiet(self, do: Callable[[], object]) -> None:
        """Do something once nothing is going on any more that the flow's code has begun: at once, or in whichever thread ends it."""
        self._on_quiet = do
        self.look()

    def _is_quiet(self) -> bool:
        assert self._flow.tracker is not None
        with self._lock:
            left = self._left + self.counts[1]
            # A generator that waits for its reader is closed when nobody can come back to it, which may be later.
            subflows = [one for one in self._flow.subflows if not one.awaits_reader]
            return not subflows and self._flow.tracker.events.going.count <= left


def held_of(around: list[FlowRunContext]) -> Held | None:
    """Return the long waits in place of a run, given with those around it, innermost first; None of one that no worker holds."""
    outermost = around[-1]
    if outermost.tracker is None or (outermost.flow_run.pool is None and outermost.tracker.place is None):
        return None
    Rests._in(around)  # what ends in any of them may be the last thing that was going on
    rests = outermost.rests
    assert rests is not None
    with rests._lock:
        if rests.held is None:
            rests.held = held_of_flow(outermost, rests._lock)
    return rests.held


def end_waits(flow: FlowRunContext) -> Rests | None:
    """End the waits in branches of a run's code that has ended without them, and those that begin there from now on.

    In a plain program they would go on until its loop ends. Here they would in a run that is over, or is tried again.

    Returns:
        What is to be waited for until subflows that waited have ended; None: nothing.
    """
    flow.has_returned = True
    return flow.rests if flow.rests is not None and flow.rests.close() else None


def is_over_above(flow: FlowRunContext) -> bool:
    """Return whether the code of a run above has come to its end: what it does not wait for now, nobody takes up again."""
    return any(one.has_returned for one in runs_around(flow)[0][1:])


def suspend_here(flow: FlowRunContext, suspend: Suspend) -> Suspend:
    """Have the run leave its worker, once what it has begun has ended; return what is to be raised where its code is.

    Nothing new of it begins here from now on. Where it leaves already, that stands.
    """
    outermost = runs_around(flow)[0][-1]
    rests = Rests.of_code(flow)
    if rests is None:
        return suspend  # in a hook: there it fails
    with rests._lock:
        if outermost.leaving is None:
            _leave(outermost, with_notes(suspend, _waiting_in(outermost)))
        leaving = outermost.leaving
    assert leaving is not None
    return leaving.again()


def _leave(flow: FlowRunContext, suspend: Suspend) -> None:
    """Note in a run and its subflows that it leaves, and end their waits."""
    flow.leaving = suspend
    if flow.rests is not None:
        for one in tuple(flow.rests._resting):
            one.wake()
    for subflow in tuple(flow.subflows):
        if isinstance(subflow.parent, FlowRunContext):  # those of a task are seen to their end with it
            _leave(subflow, suspend)


def _waiting_in(flow: FlowRunContext) -> list[Resting]:
    """Return what of a flow run and its subflows waits."""
    found = list(flow.rests._resting) if flow.rests is not None else []
    for subflow in tuple(flow.subflows):
        found += _waiting_in(subflow)
    return found


def _resting_in(flow: FlowRunContext) -> int | None:
    """Return how much of a flow run and its subflows waits; None if anything else of it is going on, or keeps it.

    From what is counted, not from what waits: ten thousand calls that fail together would each go through all.
    """
    rests = flow.rests
    own, going, staying, submitted = rests.counts if rests is not None else (0, 0, 0, 0)
    if flow.tracker is None or staying:
        return None
    found, subflows = own, tuple(flow.subflows)
    for subflow in subflows:
        inner = _resting_in(subflow)
        if inner is None:
            return None
        found += inner
    waits = flow.waiting > 0 or submitted < own or subflows
    # A generator that has yielded waits for its reader, which is for that to wait.
    if not flow.awaits_reader and (not found or not waits):
        return None
    if flow.tracker.events.going.count != going:
        return None
    return found if flow.runner.open_count == submitted + flow.runner.blocked else None


def rest(call: TaskCall, delay_s: float) -> None:
    """Wait, in sync code, for the next try of a call.

    Raises:
        Suspend: the wait goes on without this worker.
    """
    wait_in(_rests_of(call, delay_s), delay_s, call)


async def rest_async(call: TaskCall, delay_s: float) -> None:
    """Do what ``rest`` does, without holding the loop."""
    await wait_in_async(_rests_of(call, delay_s), delay_s, call)


def suspension_of(flow: FlowRunContext, exc: BaseException | None) -> Suspend | None:
    """Return what takes a run off its worker whose code has ended, with an exception or (None) a value; None if nothing does.

    Once that is decided, what the code came to does not count: it has been told to leave, and may have made of that what it liked.
    """
    found = suspension_in(exc) if exc is not None else None
    if flow.leaving is None:
        return None if found is None else suspend_here(flow, found)
    if found is None and not isinstance(exc, (*OF_THE_CODE, NoneType)):
        return None
    if found is None and flow.tracker is not None:
        became = "has gone on" if exc is None else f"has come to {type(exc).__name__}: {exc}"
        logger_of_flow_run(flow.flow_run, flow.tracker.session).info(
            "the run leaves its worker (%s). Its code has caught the exception that says so, and %s; that does not count, and is done "
            "again when the run goes on",
            flow.leaving.state.message,
            became,
        )
    return flow.leaving.again()


def wait_in(
    rests: Rests | HeldWait | None,
    delay_s: float,
    call: TaskCall | None = None,
    *,
    suspend: Suspend | None = None,
    stays: bool = False,
) -> None:
    """Wait, in sync code, for the next try of a call, or of the flow itself, or as its code says; a ``HeldWait``, or None: in place.

    Args:
        suspend: what a wait of the flow's own code leaves with. stays: it is short, and the run does not leave for it.
    Raises:
        Suspend: the wait goes on without this worker.
    """
    if not isinstance(rests, Rests):
        with freeing_thread(), rests or nullcontext():
            pause(delay_s)
        return
    woken = threading.Event()
    one = rests.begin(call, delay_s, woken.set, suspend=suspend, stays=stays)
    try:
        with waking(woken.set):
            woken.wait(delay_s)
    finally:
        rests.end(one)


async def wait_in_async(
    rests: Rests | HeldWait | None,
    delay_s: float,
    call: TaskCall | None = None,
    *,
    suspend: Suspend | None = None,
    stays: bool = False,
) -> None:
    """Do what ``wait_in`` does, without holding the loop."""
    if not isinstance(rests, Rests):
        with rests or nullcontext():
            await asyncio.sleep(delay_s)
        return
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    one = rests.begin(
        call, delay_s, lambda: loop.call_soon_threadsafe(woken.set), suspend=suspend, stays=stays
    )
    try:
        await asyncio.wait_for(woken.wait(), delay_s)
    except TimeoutError:
        pass
    finally:
        rests.end(one)


@contextmanager
def staying(flow: FlowRunContext) -> Generator[None]:
    """Keep a run where it is while its code waits in place for something that it cannot leave for."""
    rests = Rests.of_code(flow)
    one = None if rests is None else rests.begin(None, None, lambda: None, stays=True)
    try:
        yield
    finally:
        if rests is not None and one is not None:
            rests.withdraw(one)


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


def _rests_of(call: TaskCall, delay_s: float) -> Rests | HeldWait | None:
    if call.rests_after_s is not None and delay_s > call.rests_after_s:
        # A background task: its work item comes again then.
        raise Suspend(call.run.state or AwaitingRetry())
    return Rests.of_call(call, delay_s) if call.flow is not None else retry_in_background(call, delay_s)


def left_behind(call: TaskCall, exc: BaseException) -> State | None:
    """Return the state of a call that ended because its run leaves the worker; None if it ended otherwise.

    Asking for its result raises the suspension, so that the flow's code leaves, too.
    """
    suspend = suspension_in(exc)
    if suspend is None:
        return None
    return (call.run.state or AwaitingRetry(run_id=call.run.id)).replace(data=suspend)
