"""A look, from a thread of its own, at whether the worker's loop still turns while it executes async flows.

Code in an async flow that does not await (``time.sleep``, a request without ``await``, a long computation) holds the loop, and
with it all the worker's runs. It is slow, not dead: their messages are kept alive by a second connection meanwhile, or another
worker would begin them anew, and hold its loop in the same place. A process that is stopped has no such thread either, and its
runs go to others, as they should.
"""

from __future__ import annotations

import asyncio
import logging
import site
import sys
import sysconfig
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import anyio

from ...errors import HarkError
from ...vocabulary import new_id
from ..calls.task_call import TaskCall
from ..dispatching import presence
from ..dispatching.presence import WorkerInfo
from ..life.user_frames import is_ours
from ..logging import logger_of_flow_run, logger_of_task_run
from ..runs.run import FlowRun
from ..runs.task_run import TaskRun
from ..sync_async.side_session import SideSession
from .execution import Job

if TYPE_CHECKING:
    from ...bus import Bus
    from ...bus.work_queue import WorkItem

__all__ = ["HeldAt", "Watchdog", "where_held"]

log = logging.getLogger(__name__)

BLOCKED_S = 2.0
"""A turn of the loop that takes longer is told."""
_AGAIN_S = 0.2
"""For whoever stood still himself: the loop may be about to turn."""


@dataclass(frozen=True, slots=True)
class HeldAt:
    """Where a loop is held.

    Attributes:
        at: ``file:line in function``, of the flow's author where there is such a frame.
        run: the flow run whose code that is; None where it cannot be told.
        task_run: the task run of that call, where there is one.
    """

    at: str
    run: FlowRun | None = None
    task_run: TaskRun | None = None


class Watchdog:
    """Looks whether the loop it was made in turns, while somebody wants that. Costs nothing while nobody does.

    Args:
        bus: a connection is made like its own when the loop is held for the first time.
        held: returns what is kept alive by that connection meanwhile.
        worker: returns what is said of the worker by it, too; None: a worker of tasks, which says nothing of itself.
        ack_wait_s: after so long without a word, the broker gives work to another.
        on_beat: what else is to be done by that connection now and then, while the loop is held.
    """

    def __init__(
        self,
        bus: Bus,
        held: Callable[[], list[WorkItem]],
        *,
        worker: Callable[[], WorkerInfo] | None = None,
        ack_wait_s: float,
        on_beat: Callable[[Bus], Awaitable[None]] | None = None,
    ) -> None:
        self._worker, self._held, self._every_s = worker, held, min(presence.BEAT_S, ack_wait_s / 3)
        self._blocked_s = min(BLOCKED_S, ack_wait_s / 3)
        self._on_beat = on_beat
        self._side = SideSession(bus)
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._wanting = 0
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while inside. In the loop that is looked at."""
        self._wanting += 1
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hark-watchdog", daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._wanting -= 1
            if not self._wanting:
                self._wanted.clear()

    async def aclose(self) -> None:
        """End the thread, and the second connection."""
        self._closing.set()
        self._wanted.set()
        # Whoever closes may be being cancelled, and thread and connection would stay.
        with anyio.CancelScope(shield=True):
            if self._thread is not None:
                await asyncio.to_thread(self._thread.join)
            await self._side.aclose()

    # --- in the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wanted.wait() and not self._closing.wait(self._blocked_s / 2):
            turned = threading.Event()
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # closed: its program is ending
                return
            if not turned.wait(self._blocked_s) and not turned.wait(_AGAIN_S):
                self._while_held(turned, time.monotonic() - self._blocked_s - _AGAIN_S)

    def _while_held(self, turned: threading.Event, since: float) -> None:
        found = where_held(self._ident)
        run, task_run = found.run, found.task_run
        facts = {
            "at": found.at, "flow": run and run.flow_name, "run_id": run and run.id, "task": task_run and task_run.task_name,
            "task_run_id": task_run and task_run.id,
        }  # fmt: skip
        log.warning("worker.loop_held", extra=facts)
        told = False
        while True:
            try:
                session = self._side.session()
                session.call(self._beat, session.bus)
                if not told:
                    told = True
                    if task_run is not None:
                        logger_of_task_run(task_run, run, session).warning(ADVICE, self._blocked_s, found.at)
                    elif run is not None:
                        logger_of_flow_run(run, session).warning(ADVICE, self._blocked_s, found.at)
                    if self._worker is not None:
                        session.call(
                            session.bus.log.append, self._worker().event("held", id=new_id(), **facts)
                        )
            except HarkError as exc:  # the broker is away, for one
                log.debug("worker.broker_away", extra={"error": str(exc)})
            if turned.wait(self._every_s) or self._closing.is_set():
                break
        log.info("worker.loop_turns", extra={**facts, "held_s": round(time.monotonic() - since, 1)})

    async def _beat(self, bus: Bus) -> None:
        if self._worker is not None:
            await presence.show(bus, self._worker())
        for item in self._held():
            await bus.work.extend(item)
        if self._on_beat is not None:
            await self._on_beat(bus)


ADVICE = (
    "This run has held its worker's event loop for %.1f s and more, at %s. Until it awaits, nothing else goes on in that loop. "
    "Await `asyncio.to_thread(…)` there, or make the flow (in a worker of tasks, the task) sync: what is `def` runs apart."
)


def where_held(ident: int) -> HeldAt:
    """Return where the thread with that ``threading.get_ident()`` is. It must be alive."""
    frame = sys._current_frames()[ident]
    place: FrameType | None = None
    authors: FrameType | None = None
    run: FlowRun | None = None
    task_run: TaskRun | None = None
    step: FrameType | None = frame
    while step is not None and run is None:
        if is_ours(step):
            # Of a task's own call the innermost is the one; what it is part of may be found further out.
            run, inner = _runs_of(step)
            task_run = task_run or inner
        elif authors is None:
            place = place or step
            if not step.f_code.co_filename.startswith(_LIBRARIES):
                authors = step
        step = step.f_back
    at = authors or place or frame
    return HeldAt(f"{at.f_code.co_filename}:{at.f_lineno} in {at.f_code.co_qualname}", run, task_run)


def _runs_of(frame: FrameType) -> tuple[FlowRun | None, TaskRun | None]:
    """Return the runs that a frame of ours executes, if it does."""
    for value in list(frame.f_locals.values()):  # those of a module that is being imported grow meanwhile
        if isinstance(value, Job):
            return value.run, None
        if isinstance(value, TaskCall):
            return value.flow.flow_run if value.flow is not None else None, value.run
    return None, None


_LIBRARIES = tuple(
    {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *site.getsitepackages(), "<frozen"}
)
"""Files of Python and of what is installed. A flow may be installed, too: then the innermost frame has to do."""
