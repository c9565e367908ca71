"""Futures of task runs that any worker serves: what ``task.delay`` returns. They travel: pickled, they are their run's id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from ...bus.event import readable
from ...bus.subject import BACKGROUND_RUNS
from ...errors import HarkError
from ...vocabulary import StateType, TaskRunId
from ..futures import TaskFuture
from ..results import RecordedResult
from ..states import NotReady, State
from ..sync_async.bell import Bell
from ..sync_async.either import session_here
from ..sync_async.thread_pool import waiting_for_another
from ..sync_async.timeouts import waking
from .background import NOT_READY, BackgroundLog, BackgroundRun, is_end

if TYPE_CHECKING:
    from ...bus import Bus
    from ...bus.session import Session

__all__ = ["DistributedFuture", "PrefectDistributedFuture", "state_of_background"]

log = logging.getLogger(__name__)

R = TypeVar("R")


class DistributedFuture(TaskFuture[R]):
    """The result of a task run that any worker serves. Waiting works from any thread and process.

    ``state`` is looked up; ``done`` says whether the end has been heard of here.
    """

    __slots__ = ()

    def __init__(self, task_run_id: str, name: str = "") -> None:
        self.task_run_id = TaskRunId(task_run_id)
        self.name = name or task_run_id
        self.call = ""
        self.home_loop = None
        self._run = None
        self._final: State | None = None
        self._callbacks: list[Callable[[TaskFuture[R]], None]] = []

    def __reduce__(self) -> Any:
        return DistributedFuture, (str(self.task_run_id), self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DistributedFuture) and other.task_run_id == self.task_run_id

    def __hash__(self) -> int:
        return hash(self.task_run_id)

    @property
    def state(self) -> State:
        """The state of the run; while this thread's own loop carries the bus, as far as it is known here."""
        if self._final is not None:
            return self._final
        session = session_here("a future")
        if session.is_own_loop:
            return super().state
        return session.call(self._look, session)

    async def _look(self, session: Session) -> State:
        run = await BackgroundLog(session.bus).get(self.task_run_id)
        if run is None:
            return super().state  # accepted, and not in the log yet
        state = state_of_background(run, session)
        if run.is_over:
            self.finish(state)
        return state

    def wait(self, timeout: float | None = None) -> None:
        """Wait until done, at most ``timeout`` seconds.

        Raises:
            RuntimeError: called in the event loop that carries the bus; ``await`` the future there.
        """
        if self._final is not None:
            return
        session = session_here("a future")
        if session.is_own_loop:
            raise RuntimeError(
                f"waiting for task run {self.name!r} here would stop the event loop that hears of its end; "
                "write `await future`"
            )
        ready = Bell()
        heard = asyncio.run_coroutine_threadsafe(self._until_over(session), session.loop)
        heard.add_done_callback(lambda _: ready.ring())
        try:
            with waiting_for_another(), waking(ready.ring):
                ready.wait(timeout)
        finally:
            heard.cancel()
        if heard.done() and not heard.cancelled():
            heard.result()

    async def wait_async(self, timeout: float | None = None) -> None:
        """Wait until done without holding the loop, at most ``timeout`` seconds."""
        if self._final is None:
            session = session_here("a future")
            with waiting_for_another():
                try:
                    async with asyncio.timeout(timeout) as limit:
                        await session.acall(self._until_over, session)
                except TimeoutError:
                    if not limit.expired():  # not ours, but what the waiting itself ran into
                        raise

    def add_done_callback(self, fn: Callable[[TaskFuture[R]], None]) -> None:
        """Call ``fn(self)`` when done (at once if it is), in whichever thread hears of it."""
        super().add_done_callback(fn)
        if self._final is None:
            session = session_here("a future")
            session.loop.call_soon_threadsafe(_listen, self, session)

    async def _until_over(self, session: Session) -> None:
        """Wait for the end of the run, on the session's loop."""
        runs = BackgroundLog(session.bus)
        async with session.bus.log.hear(BACKGROUND_RUNS, self.task_run_id) as records:
            run = await runs.get(self.task_run_id)
            while run is None or not run.is_over:
                for heard in readable([await anext(aiter(records))]):
                    # Only an end is looked at closely: whether it counts, the history says.
                    if is_end(heard.event.data):
                        run = await runs.get(self.task_run_id)
        self.finish(state_of_background(run, session))

    def __repr__(self) -> str:
        known = self._final.name if self._final is not None else "not heard of"
        return f"DistributedFuture(name={self.name!r}, task_run_id={self.task_run_id!r}, state={known})"


# Under this name it stands in flows that were written for Prefect.
PrefectDistributedFuture = DistributedFuture


def state_of_background(run: BackgroundRun, session: Session) -> State:
    """Return the state of a run; its ``result()`` reads what it returned, or raises what it raised."""
    last = run.last
    data: Any = None
    if run.state_name == NOT_READY:
        from ...errors import UpstreamFailed

        return NotReady(
            message=run.message,
            data=UpstreamFailed(run.message or "upstream failed"),
            run_id=run.id,
            task_of="",
        )
    if run.type is StateType.COMPLETED:
        result = last.get("result") or {"inline": None, "format": "json"}
        data = RecordedResult(session, result, run_id=run.id, key=run.task_name)
    elif run.is_over:
        data = _exception(last.get("error"))
    return State(run.type, run.state_name, run.message, data=data, run_id=run.id, task_of="")


def _exception(recorded: object) -> BaseException | None:
    """Return the exception a run ended with, if it can be had here: its class may be known only where it was raised."""
    if not isinstance(recorded, Mapping):
        return None
    import base64

    from ..executors.shipment import RemoteTraceback, unpacked_outcome

    try:
        unpacked_outcome(base64.b64decode(str(recorded["inline"])))
    except BaseException as exc:
        # What the run raised has its traceback as its cause, `sys.exit()` included.
        if isinstance(exc.__cause__, RemoteTraceback):
            return exc
        if not isinstance(exc, Exception):
            raise
        # Why it cannot be read here. The state's own message has said in words what it was.
        log.debug("future.exception_unreadable", extra={"error": repr(exc)})
    return None


# --- callbacks ----------------------------------------------------------------------------------------


class _Listener:
    """Waits for the futures of a bus that somebody asked to be called back about; ends with the bus."""

    def __init__(self, bus: Bus) -> None:
        self._tasks: dict[DistributedFuture[Any], asyncio.Task[None]] = {}
        bus.on_close(self._close)

    def listen(self, future: DistributedFuture[Any], session: Session) -> None:
        if future.done or future in self._tasks:
            return
        self._tasks[future] = asyncio.get_running_loop().create_task(self._hear(future, session))

    async def _hear(self, future: DistributedFuture[Any], session: Session) -> None:
        try:
            await future._until_over(session)
        except Exception as exc:  # whatever it is, nobody may wait for this future for ever
            if not isinstance(exc, HarkError):
                log.exception("future.fault", extra={"task_run_id": future.task_run_id})
            future.finish(State(StateType.CRASHED, message=f"its end cannot be heard of: {exc}", data=exc))
        finally:
            self._tasks.pop(future, None)

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


_listeners: WeakKeyDictionary[Bus, _Listener] = WeakKeyDictionary()


def _listen(future: DistributedFuture[Any], session: Session) -> None:
    found = _listeners.get(session.bus)
    if found is None:
        found = _listeners[session.bus] = _Listener(session.bus)
    found.listen(future, session)
