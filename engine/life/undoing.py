"""Undoing what a run had done that ended while nobody was executing it: its open transactions are rolled back.

The code of the run is gone through once more with recorded results, so that it comes to its blocks again, and is stopped at the
last finished task that is part of one, or at the first step that is not recorded: no task runs. From there it leaves its
blocks as a cancelled run does, and what stands in them is rolled back, in reverse. Each task that was undone is recorded as such,
so whoever has to begin again, because a process died on the way, goes on with what is left.

A retry and this keep apart. ``Control.retry`` refuses a run that is being undone. One that is asked for between our last look
and our note of having begun is met by a lock: we hold it while we go through the code, and look at the run once more when we
have it; an attempt that follows such an end waits for the lock before it reads what is recorded. So either we see the retry
and undo nothing, or the attempt sees all that we have undone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from ...errors import BusUnavailable
from ...vocabulary import StateType, new_id
from ..signals import OF_THE_CODE, Undone
from ..states import Cancelled, State

if TYPE_CHECKING:
    from ...bus.event import Recorded
    from ...bus.session import Session
    from ...config import EngineConfig
    from ..flows import Flow
    from ..runs.replay import FinishedCall
    from ..runs.run import FlowRun
    from .flow_life import FlowEngine
    from .tracking import FlowTracker

__all__ = [
    "IN_SUBFLOWS", "Undoing", "alone_undoing", "alone_undoing_async", "engine_to_undo", "engine_to_undo_async", "undone_in",
    "until_undone",
]  # fmt: skip

IN_SUBFLOWS = "transactions in subflows"
"""Among the finished calls of a run: parts of transactions have finished in subflows of it, whose events are theirs."""
_UNDOES = (StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)


class Undoing:
    """How far it has come in one flow run.

    Attributes:
        is_reached: the code has come to where it is stopped.
    """

    def __init__(self) -> None:
        self._left: set[str] = set()
        self._goes_on = False
        self.is_reached = False

    def expect(self, finished: dict[str, FinishedCall]) -> None:
        """Say what the code is to come to: the finished calls of its run."""
        self._left = {
            key for key, call in finished.items() if call.transaction is not None and not call.within
        }
        self._goes_on = IN_SUBFLOWS in finished

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to undo."""
        return bool(self._left) or self._goes_on

    def meet(self, key: str) -> None:
        """Note that a finished call stands in its transaction again. Raises ``Undone`` if it was the last."""
        self._left.discard(key)
        if not self.is_needed:
            self.stop()

    def stop(self) -> None:
        """Stop the code here. Raises ``Undone``, always."""
        raise self.stopped()

    def stopped(self) -> Undone:
        """Return what to raise to stop the code here."""
        self.is_reached = True
        return Undone("the run has ended, and what it had begun is undone")

    def instead(self, run_id: str) -> State:
        """Return the state of a call that is not run; asking for its result stops the code."""
        return Cancelled(
            message="The run has ended before this task began", data=self.stopped(), run_id=run_id
        )


@contextmanager
def alone_undoing(engine: FlowEngine, session: Session) -> Iterator[bool]:
    """Keep attempts of the run from beginning; give whether it is still ours to undo. Blocks."""
    from ..locking import broker_locks

    key, holder = _lock_of(engine.run.id), new_id()
    session.call(broker_locks.acquire_on, session, key, holder)
    try:
        yield session.call(_is_unchanged, engine)
    finally:
        broker_locks.release_lock(key, holder)


@asynccontextmanager
async def alone_undoing_async(engine: FlowEngine, session: Session) -> AsyncIterator[bool]:
    """Do what ``alone_undoing`` does, on a loop."""
    from ..locking import broker_locks

    key, holder = _lock_of(engine.run.id), new_id()
    await session.acall(broker_locks.acquire_on, session, key, holder)
    try:
        yield await session.acall(_is_unchanged, engine)
    finally:
        broker_locks.release_lock(key, holder)


async def until_undone(tracker: FlowTracker, history: Iterable[Recorded]) -> None:
    """Before a run that is tried again reads what it finished: wait for who undoes it. On the session's loop."""
    from ..locking import broker_locks
    from ..runs.run_log import readable_run

    if tracker.undoing is not None:
        return
    runs = (readable_run(recorded) for recorded in history)
    if any(run is not None and owes_undoing(run) for run in runs):
        await broker_locks.wait_on(tracker.session, _lock_of(tracker.flow_run.id))


def _lock_of(run_id: str) -> str:
    return f"undoing/{run_id}"


async def _is_unchanged(engine: FlowEngine) -> bool:
    """Whether nobody has written of the run since its end: retried, whoever executes it sees to its blocks."""
    tracker = engine.tracker
    assert tracker is not None
    now = await tracker.run_log.get(tracker.flow_run.id)
    return now is not None and now.seq == tracker.flow_run.seq


def owes_undoing(run: FlowRun) -> bool:
    """Whether the run's end was written by one who was not executing it, after others had."""
    from ..runs.hook_log import ANYONE, ROLLBACK, is_owed

    if run.state_type not in _UNDOES or run.attempt < 1 or run.pool is None:
        return False  # what a subflow had begun is undone with the run it is part of
    return is_owed(run, ANYONE) or run.state_details.get(ROLLBACK) == "owed"


def engine_to_undo(
    flow: Flow[..., object], run: FlowRun, session: Session, config: EngineConfig | None
) -> FlowEngine | None:
    """Return what goes through the run once more; None where there is nothing to undo. Blocks."""
    if not owes_undoing(run):
        return None
    engine = _engine(flow, run, session, config)
    return engine if session.call(_prepared, engine) else None


async def engine_to_undo_async(
    flow: Flow[..., object], run: FlowRun, session: Session, config: EngineConfig | None
) -> FlowEngine | None:
    """Do what ``engine_to_undo`` does, on a loop."""
    if not owes_undoing(run):
        return None
    engine = _engine(flow, run, session, config)
    return engine if await session.acall(_prepared, engine) else None


def _engine(
    flow: Flow[..., object], run: FlowRun, session: Session, config: EngineConfig | None
) -> FlowEngine:
    from .flow_engine import worker_engine

    engine = worker_engine(flow, run, session, interrupted="crash", config=config)
    tracker = engine.tracker
    assert tracker is not None
    tracker.undoing = Undoing()
    return engine


async def _prepared(engine: FlowEngine) -> bool:
    """Read what is recorded; return whether there is anything to undo that nobody has taken up since."""
    tracker = engine.tracker
    assert tracker is not None
    assert tracker.undoing is not None
    if not await _is_unchanged(engine):
        return False
    await resume_undoing(tracker)
    return tracker.undoing.is_needed


async def resume_undoing(tracker: FlowTracker) -> None:
    """Read what the run has finished, for going through it. On the session's loop."""
    await tracker.resume()
    if tracker.undoing is not None:
        tracker.undoing.expect(tracker.finished)


def undone_in(exc: BaseException) -> bool:
    """Whether an exception that left a run's code is the stop, or in a group with it."""
    if isinstance(exc, BaseExceptionGroup):
        return any(undone_in(inner) for inner in exc.exceptions)
    return isinstance(exc, Undone)


def is_passing(exc: BaseException) -> bool:
    """Whether going through the code failed of something that passes, so that it is to be done again."""
    return isinstance(exc, BusUnavailable) or not (isinstance(exc, OF_THE_CODE) or undone_in(exc))
