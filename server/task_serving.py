"""Serving background tasks in Prefect's words: ``TaskWorker(task).start(timeout=…)``, ``serve(task, timeout=…)``.

As ``engine/task_worker.py``, with a beginning and an end that are calls instead of a block.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import anyio

from ..engine import task_worker
from ..errors import MissingContextError
from .stopping import StopAsked, term_heard

if TYPE_CHECKING:
    from ..engine.client_calls.run_records import TaskRunRecord
    from ..engine.runs.task_run import TaskRun
    from ..engine.tasks import Task

__all__ = ["TaskWorker", "aserve", "serve"]


class TaskWorker(task_worker.TaskWorker):
    """Serves tasks from ``start`` on until ``stop``, or while it is entered.

    Attributes:
        stopping: somebody has asked it to stop.
        started_at: since when it takes work; None: it does not.
    """

    def __init__(self, *tasks: Task[..., Any], limit: int | None = 10, **options: Any) -> None:
        super().__init__(*tasks, limit=limit, **options)
        self.stopping = False
        self.started_at: datetime | None = None
        self._stop_asked = StopAsked()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with AsyncExitStack() as stack:
            if self._bus is None:
                await self._find_broker(stack)
            await stack.enter_async_context(super().__asynccontextmanager__())
            self._stop_asked.begin()
            self.stopping = False
            self.started_at = datetime.now(UTC)
            try:
                yield self
            finally:
                self.started_at = None

    async def _find_broker(self, stack: AsyncExitStack) -> None:
        """Take the broker of this program, else start everything, as ``serve`` of tasks does."""
        from ..bus.session import current_session
        from .serving import known_bus

        session = current_session(tracking=False)
        self._bus = session.bus if session is not None and session.is_own_loop else await known_bus(stack)

    @property
    def started(self) -> bool:
        return self.started_at is not None

    @property
    def client_id(self) -> str:
        """Who it is: its host and its process."""
        return self.name.replace(":", "-")

    @property
    def task_keys(self) -> set[str]:
        """What its tasks are known by."""
        return set(self.tasks)

    @property
    def current_tasks(self) -> int:
        """How many runs it has in hand."""
        return len(self.held)

    @property
    def available_tasks(self) -> int | None:
        """How many more it would take now; None: as many as there are."""
        return None if self.limit is None else max(0, self.places.capacity - len(self.held))

    async def astart(self, timeout: float | None = None) -> None:
        """Serve until ``stop`` is called, for at most ``timeout`` seconds.

        Raises:
            SystemExit: the process was asked to end (TERM), and what could not be finished is handed back.
        """
        if await self._until_stopped(timeout):
            raise SystemExit(0)

    async def _until_stopped(self, timeout: float | None) -> bool:
        """Serve; return whether TERM was what ended it."""
        with term_heard() as term:
            async with AsyncExitStack() as stack:
                if not self.started:
                    await stack.enter_async_context(self)
                with term, anyio.move_on_after(timeout):
                    await self._stop_asked.wait()
        return term.cancel_called

    def start(self, timeout: float | None = None) -> Any:
        """Do what ``astart`` does, holding the thread until it ends, by TERM too; awaited in async code."""
        from ..engine.sync_async.either import is_async_here

        if is_async_here():
            return self.astart(timeout)
        anyio.run(self._until_stopped, timeout)
        return None

    def stop(self) -> Any:
        """Have it take no more work, and end once what runs has ended. From any thread; async code may await it.

        Raises:
            MissingContextError: it has not been started.
        """
        if not self.started:
            raise MissingContextError("this task worker has not yet started", hint="call its start() first")
        self.stopping = True
        return self._stop_asked.ask()

    async def astop(self) -> None:
        """Do what ``stop`` does."""
        await self.stop()

    async def execute_task_run(self, task_run: TaskRun | TaskRunRecord) -> None:
        """Serve until one run is over, that of a task served here; others that wait are taken meanwhile."""
        from ..engine.background_tasks.distributed_future import DistributedFuture

        async with AsyncExitStack() as stack:
            if not self.started:
                await stack.enter_async_context(self)
            await DistributedFuture[Any](str(task_run.id)).wait_async()


async def aserve(*tasks: Task[..., Any], limit: int | None = 10, timeout: float | None = None) -> None:
    """Run what ``delay`` asks of tasks, in async code: until it is cancelled, or for ``timeout`` seconds."""
    await TaskWorker(*tasks, limit=limit).astart(timeout)


def serve(*tasks: Task[..., Any], limit: int | None = 10, timeout: float | None = None) -> Any:
    """Run what ``delay`` asks of tasks until the process is stopped (Ctrl-C, TERM), or for ``timeout`` seconds.

    Awaited in async code.

    Args:
        limit: runs at once; None: as many as there are.
    """
    from ..engine.sync_async.either import is_async_here

    if is_async_here():
        return aserve(*tasks, limit=limit, timeout=timeout)
    if timeout is None:
        from . import serving

        return serving.serve(*tasks, limit=limit if limit is not None else task_worker.UNLIMITED)
    return TaskWorker(*tasks, limit=limit).start(timeout)
