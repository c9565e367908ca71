"""One try of a task on a worker of a Dask cluster.

The function runs in a thread of its own, so that the worker's thread is free again once the time of the try is up, or its run is
cancelled: what stops then does, and what does not is left behind to end with its call.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import socket
import threading
from collections.abc import AsyncGenerator, Collection, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from distributed import get_worker  # type: ignore[import-not-found,import-untyped,unused-ignore]
from distributed.diagnostics.plugin import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    WorkerPlugin,
)

from ...bus import Bus
from ...bus.session import Session, SessionThread, current_session, use_session
from ...config import BusConfig
from ..logging import APILogHandler, run_loggers
from ..signals import Interrupted
from ..sync_async.timeouts import raise_in_thread, within, within_async
from ..tasks import Task
from ..writing import unpickled
from .far_wait import FarWait, Tell
from .remote_try import Guard, run_try
from .shipment import Shipment
from .task_child import packed_record

__all__ = ["WAITS", "Answer", "HarkPlugin", "interrupt", "run_on_worker"]

GRACE_S = 2.0
"""How long a try whose time is up has to stop before it is left behind."""
WAITS = "hark-waits"
"""Topic of the cluster's events: what a try waits for, by its ``ticket``, and on which ``worker``."""


@dataclass(slots=True)
class Answer:
    """What comes back. ``outcome``: packed; None: its time was up, or it was interrupted, and it was left behind.

    Attributes:
        log: the records of the try, for the handlers that are set up where the flow is.
        is_logged: whether they have been sent to the log of the run from here.
    """

    outcome: bytes | None
    log: list[bytes] = field(default_factory=list)
    is_logged: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """The process a try comes from."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


class HarkPlugin(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """What a worker keeps for the tries it runs: sessions with brokers. Closed with the worker."""

    name = "hark"

    def __init__(self) -> None:
        self.origin = Origin()

    def setup(self, worker: Any) -> None:
        # In a cluster of threads the handlers are those of the flow's own process, which hear everything already.
        if self.origin != Origin():
            _collect_logs()

    def teardown(self, worker: Any) -> None:
        _sessions.close()


class _Sessions:
    """This process's sessions, by the address of the broker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[str, tuple[SessionThread, Session]] = {}

    def for_(self, shipment: Shipment) -> Session | None:
        """Return the session for a try, connected; None if its run is not tracked."""
        address = shipment.address
        if address is None:
            return None
        with self._lock:
            known = self._threads.get(repr(address))
            if known is None:
                config = BusConfig.model_validate(shipment.bus)
                thread = SessionThread(
                    lambda: Bus(address, config, name=f"hark dask worker {os.getpid()}", manage=False)
                )
                known = self._threads[repr(address)] = thread, thread.start()
            return known[1]

    def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, {}
        for thread, _ in threads.values():
            thread.stop()


_sessions = _Sessions()


class _Running(Guard):
    """A try that runs here, and can be stopped."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.outcome: bytes | None = None
        self._lock = threading.Lock()
        self._thread_id: int | None = None
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False
        self.begun = threading.Event()

    def stop(self) -> None:
        """Raise ``Interrupted`` in its function, or cancel it; and answer, whether that helps or not."""
        with self._lock:
            self._is_stopped = True
            if self._task is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
            elif self._thread_id is not None:
                raise_in_thread(self._thread_id, Interrupted)
        self.answered.set()

    @contextmanager
    def sync(self, task: Task[..., Any]) -> Generator[None]:
        self.begun.set()
        with within(task.timeout_seconds, f"task {task.name!r}"):
            with self._lock:
                if self._is_stopped:
                    raise Interrupted
                self._thread_id = threading.get_ident()
            yield
            # Without the lock, which an exception raised from outside might leave taken. One that comes too late ends this
            # thread, which has nothing else to do.
            self._thread_id = None

    @asynccontextmanager
    async def async_(self, task: Task[..., Any]) -> AsyncGenerator[None]:
        self.begun.set()
        async with within_async(task.timeout_seconds, f"task {task.name!r}"):
            with self._lock:
                if self._is_stopped:
                    raise Interrupted
                self._task, self._loop = asyncio.current_task(), asyncio.get_running_loop()
            yield


_lock = threading.Lock()
_running: dict[str, _Running] = {}
_never: dict[str, None] = {}
"""Tickets of tries that must not begin any more: those that wait for a place here, in the order of their being stopped."""
_NEVER_MOST = 100_000


def run_on_worker(data: bytes, limit_s: float | None, ticket: str) -> Answer:
    """Run a try; called by Dask in one of the worker's threads. It can be stopped by its ``ticket``."""
    shipment: Shipment = unpickled(data)
    running = _Running()
    with _lock:
        if ticket in _never:
            return Answer(None)
        _running[ticket] = running
    lines: list[bytes] = []
    here = contextvars.copy_context()
    thread = threading.Thread(
        target=here.run,
        args=(_work, shipment, running, lines, _telling(ticket)),
        name="hark-dask-try",
        daemon=True,
    )
    try:
        thread.start()
        if limit_s is not None:
            # Importing the task's module is not its time; nor is what a limit takes to take hold.
            while not running.answered.is_set() and not running.begun.wait(0.05):
                pass
            if not running.answered.wait(limit_s + GRACE_S):
                running.stop()
        running.answered.wait()
    finally:
        with _lock:
            _running.pop(ticket, None)
    return Answer(running.outcome, list(lines), is_logged=shipment.address is not None)


def _telling(ticket: str) -> Tell:
    """Return what tells the process of the flow, over the cluster's events, what a try waits for. In a thread of Dask's."""
    worker = get_worker()

    def tell(waits: Collection[FarWait]) -> None:
        told = {"ticket": ticket, "worker": worker.address, "waits": [list(one) for one in waits]}
        with suppress(RuntimeError):  # its loop is closed, and the try about to be another worker's
            worker.log_event(WAITS, told)

    return tell


def _work(shipment: Shipment, running: _Running, lines: list[bytes], tell: Tell) -> None:
    _lines.set(lines)
    try:
        if shipment.address is None:
            running.outcome = run_try(shipment, None, guard=running)
            return
        session = (current_session(tracking=False) if _is_at_home(shipment) else None) or _sessions.for_(
            shipment
        )
        assert session is not None
        with use_session(session):
            running.outcome = run_try(shipment, session, guard=running, tell=tell)
    except Interrupted:
        return  # it came after the function had ended
    finally:
        running.answered.set()


def _is_at_home(shipment: Shipment) -> bool:
    """Whether this process has a session with the broker of a try already."""
    session = current_session(tracking=False)
    return session is not None and session.bus.address == shipment.address


def interrupt(tickets: list[str]) -> None:
    """Stop those of these tries that run on this worker, and have the others never begin on it."""
    with _lock:
        found = [_running[ticket] for ticket in tickets if ticket in _running]
        _never.update(dict.fromkeys(tickets))
        while len(_never) > _NEVER_MOST:
            del _never[next(iter(_never))]
    for running in found:
        running.stop()


# --- logs ---------------------------------------------------------------------------------------------

_lines: contextvars.ContextVar[list[bytes] | None] = contextvars.ContextVar("hark_dask_lines", default=None)
"""Where the log records of the try the code is in are gathered."""


class _Gather(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines = _lines.get()
        if lines is not None:
            try:
                lines.append(packed_record(record))
            except Exception:
                self.handleError(record)


def _collect_logs() -> None:
    """Have the records of runs sent to the broker from here, and gathered for the flow's own process."""
    for logger in run_loggers():
        if not any(isinstance(handler, _Gather) for handler in logger.handlers):
            logger.handlers[:] = [APILogHandler(), _Gather()]
            logger.propagate = False
