"""Long waits that keep their run in memory, and the place in the worker that the run gives back meanwhile.

Where leaving the worker would run the code of a task again, or take from a reader what it has got, a wait is waited out in place. The
run stays where it is. But while all that is known of it waits, it needs no place: the worker takes other runs. When something of
it goes on, it takes a place again, without waiting for one: the worker is over its number then until another of its runs has ended.

What is known: every call that has begun has a long wait, or its code waits for calls that have one; and so does the code of each flow.
What code does between its calls, in another branch of a ``gather``, is not known. It may go on without a place.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from ..context import FlowRunContext, TaskRunContext
from ..logging import RunLogger, logger_of_flow_run

if TYPE_CHECKING:
    from types import TracebackType

    from ...bus.session import Session
    from ..calls.task_call import TaskCall

__all__ = [
    "HAS_YIELDED",
    "IN_HOOK",
    "IN_PAUSE",
    "IN_TASK",
    "MOMENT_BETWEEN_S",
    "MOMENT_S",
    "Held",
    "HeldWait",
    "Place",
    "first_end",
    "is_all_waiting",
]

MOMENT_S = 0.05
"""How long nothing may have been going on: a branch of a gather has begun its first call by then."""
MOMENT_BETWEEN_S = 1.0
"""The same where a call has just ended: code that goes on behind it may do something of its own before its next call."""

IN_HOOK = "its run has ended, and a hook of that has called it"
IN_TASK = "it is part of a task, whose code would have to run again"
HAS_YIELDED = "it has yielded values, which its reader would not get again"
IN_PAUSE = "`pause_flow_run` waits in its process, and `suspend_flow_run` without one"


class Place(Protocol):
    """The place of a run in the worker that holds it. From any thread; what is asked first is done first."""

    def give(self, waits: Collection[HeldWait], answer: Callable[[bool], object]) -> None:
        """Give it back, since the run has but ``waits``. ``answer`` is called later, never from within: False where too many runs wait without one. It is kept then
        until fewer do, and ``answer`` called once more."""

    def take(self) -> None:
        """Take one again, at once, whether or not one is free."""


class HeldWait:
    """A long wait of a run that cannot leave for it. It lasts as long as the block.

    Args:
        what: the task or flow it is of. does: what that does, with ``{}`` in the place of how long. for_s: that; None: nobody knows.
        why: why the run cannot leave. log: returns where that is said.
        call: waits for its next try; None: ``code`` waits.
    """

    __slots__ = ("call", "code", "ends_at", "for_s", "held", "how", "log", "what", "why")

    def __init__(
        self,
        held: Held,
        what: str,
        *,
        does: str,
        for_s: float | None,
        why: str,
        log: Callable[[], RunLogger],
        call: TaskCall | None = None,
        code: FlowRunContext | TaskRunContext | None = None,
    ) -> None:
        self.held, self.what, self.why, self.log, self.call, self.code = held, what, why, log, call, code
        self.how, self.for_s = does, for_s
        self.ends_at = None if for_s is None else time.monotonic() + for_s
        """When it is over (monotonic); None: nobody knows."""

    @property
    def kind(self) -> str:
        """What is said once in the log of a run, however long it is and however often it comes."""
        return f"{self.what} {self.how}"

    @property
    def does(self) -> str:
        return self.how if self.for_s is None else self.how.format(f"{self.for_s:g} s")

    def __enter__(self) -> None:
        self.held.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.end(self)


def first_end(waits: Iterable[HeldWait]) -> float | None:
    """Return when the first of them is over (monotonic); None: of none that is known."""
    return min((one.ends_at for one in waits if one.ends_at is not None), default=None)


class Held:
    """The long waits of a run that keep it in memory. Used from any thread.

    Args:
        place: of the run; None: nobody wants to have it back.
        suspend_after_s: a wait that lasts longer is a long one.
        is_waiting: returns whether all that is known of the run waits, given its long waits; and from when it is asked has the
            second called whenever something of the run goes on. Called in the session's loop.
        told: what has been said in the log.
    """

    def __init__(
        self,
        place: Place | None,
        session: Session,
        *,
        suspend_after_s: float,
        is_waiting: Callable[[Collection[HeldWait], Callable[[], None]], bool],
        told: set[str],
    ) -> None:
        self._place, self._session, self._suspend_after_s = place, session, suspend_after_s
        self._is_waiting, self._told = is_waiting, told
        self._lock = threading.Lock()
        self._waits: set[HeldWait] = set()
        self._changes = 0
        """How often something has begun or ended."""
        self._is_timed = False
        self._gone_on_at = 0.0
        """When something went on last (monotonic)."""
        self._given = 0
        """Which giving of the place is in force or asked for, from 1; 0: the run has it, and needs it."""
        self._givings = 0

    def begin(self, wait: HeldWait) -> None:
        """Note a wait."""
        with self._lock:
            self._waits.add(wait)
        if self._place is None:
            self._say([wait], _HOLDS)
        self.look()

    def end(self, wait: HeldWait) -> None:
        """Note that it is over, and what waited goes on."""
        with self._lock:
            self._waits.discard(wait)
        self.go_on()
        self.look()

    def go_on(self) -> None:
        """Take a place again, if the run has given its own: something of it goes on."""
        self._gone_on_at = time.monotonic()
        if not self._given:
            return
        with self._lock:
            given, self._given = self._given, 0
            if given and self._place is not None:
                self._place.take()

    def look(self) -> None:
        """Give the place back if all that is known of the run waits, and goes on so for a moment."""
        if not self._waits or self._place is None:
            return
        with self._lock:
            self._changes += 1
            if self._is_timed or self._given:
                return
            self._is_timed = True
        self._set_timer()

    def _set_timer(self) -> None:
        moment_s = min(MOMENT_BETWEEN_S, self._suspend_after_s)
        if time.monotonic() - self._gone_on_at > moment_s:
            moment_s = min(MOMENT_S, moment_s)
        loop = self._session.loop
        with suppress(RuntimeError):  # it has been closed, and the run has ended with it
            loop.call_soon_threadsafe(loop.call_later, moment_s, self._decide, self._changes)

    def _decide(self, changes: int) -> None:
        with self._lock:
            self._is_timed = changes != self._changes
            if not self._is_timed and self._waits and not self._given and self._place is not None:
                self._givings += 1
                # Before it is looked, so that what begins meanwhile takes it again.
                giving = self._given = self._givings
                if self._is_waiting(self._waits, self.go_on):
                    self._place.give(tuple(self._waits), lambda has_been: self._answered(giving, has_been))
                else:
                    self._given = 0
        if self._is_timed:
            self._set_timer()

    def _answered(self, giving: int, has_been: bool) -> None:
        with self._lock:
            if giving != self._given:
                return  # it has gone on meanwhile
            waits = list(self._waits)
        self._say(waits, _HAS_GIVEN if has_been else _TOO_MANY)

    def _say(self, waits: Iterable[HeldWait], how: str) -> None:
        """Say in the run's log, once for each task or flow and each thing that it does, what a long wait of it comes to."""
        for wait in waits:
            told = f"{wait.kind} {how}"
            if told not in self._told:
                self._told.add(told)
                log = wait.log()
                (log.info if how is _HAS_GIVEN else log.warning)(how, wait.what, wait.does, wait.why)


_HOLDS = "%s %s in place and holds its worker: %s"
_HAS_GIVEN = "%s %s in place: %s. The run stays in memory. It has given its place in the worker to others until it goes on"
_TOO_MANY = (
    "%s %s in place and holds its worker: %s. It keeps its place, since as many runs as may do so wait in that worker without one "
    "(HARK_WORKER__PARKED, HARK_WORKER__PARKED_PROCESSES)"
)


def held_of_flow(outermost: FlowRunContext, lock: threading.Lock) -> Held:
    """Return where the long waits of a flow run are noted; ``lock`` guards what is noted of those that it may leave for."""
    tracker = outermost.tracker
    assert tracker is not None

    def is_waiting(waits: Collection[HeldWait], go_on: Callable[[], None]) -> bool:
        for flow in _flows_in(outermost):
            if flow.tracker is not None:
                flow.tracker.events.going.on_begin = go_on
        with lock:
            return is_all_waiting(outermost, waits)

    return Held(
        tracker.place, tracker.session, suspend_after_s=tracker.suspend_after_s, is_waiting=is_waiting,
        told=tracker.told_to_hold,
    )  # fmt: skip


def log_of_flow(flow: FlowRunContext) -> RunLogger:
    """Return where it is said of a flow run and its tasks how they wait."""
    return logger_of_flow_run(flow.flow_run, flow.tracker.session if flow.tracker is not None else None)


def is_all_waiting(outermost: FlowRunContext, waits: Iterable[HeldWait]) -> bool:
    """Return whether all that is known of a run waits: for one of ``waits``, for a wait that it may leave for, or for calls that do.

    Goes through all of it: to be asked when nothing has begun or ended for a moment.
    """
    waiting: set[FlowRunContext | TaskRunContext] = set()
    runs: defaultdict[FlowRunContext, set[int]] = defaultdict(set)

    def call_waits(call: TaskCall) -> None:
        if call.flow is None:
            return
        if call.run.is_going:
            runs[call.flow].add(id(call.run))
        if call.opening is None or call.flow.runner.is_in_place:
            code_waits(call.caller)

    def code_waits(code: FlowRunContext | TaskRunContext | None) -> None:
        while code is not None and code not in waiting:
            waiting.add(code)
            if isinstance(code, FlowRunContext):
                code = code.parent if code is not outermost else None
            elif code.flow_context is None:
                return
            else:
                if code.task_run.is_going:
                    runs[code.flow_context].add(id(code.task_run))
                # Who has submitted a call may do something else, and is asked for by itself.
                is_waited_for = code.opening is None or code.flow_context.runner.is_in_place
                code = code.caller if is_waited_for else None

    for wait in waits:
        if wait.call is not None:
            call_waits(wait.call)
        else:
            code_waits(wait.code)
    flows = list(_flows_in(outermost))
    for flow in flows:
        for resting in flow.rests.resting if flow.rests is not None else ():
            if resting.stays and (resting.suspend is not None or resting.due_at is not None):
                return False  # a short one
            if resting.call is not None:
                call_waits(resting.call)
            else:
                code_waits(flow)
        for task in tuple(flow.waiting_tasks.values()):
            code_waits(task)
        if flow.waiting or flow.has_returned or flow.leaving is not None:
            code_waits(flow)
        elif flow.awaits_reader:
            waiting.add(flow)  # its reader need not wait for it now
    return all(
        flow in waiting and flow.tracker is not None and flow.tracker.events.going.count == len(runs[flow])
        for flow in flows
    )


def _flows_in(flow: FlowRunContext) -> Iterator[FlowRunContext]:
    """Return a flow run and those in it that go on."""
    yield flow
    for subflow in tuple(flow.subflows):
        yield from _flows_in(subflow)
