"""What the client of ``get_client()`` says of queues of pools, in the words of Prefect's; they stand in the pool (``pool.py``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import AlreadyExists, InvalidValueError, UnknownName
from ..dispatching.pool import BUCKET, DEFAULT_PRIORITY, Pool, QueueSpec
from .run_filters import FlowRunFilter

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..dispatching.control import Control
    from ..runs.run import FlowRun

__all__ = ["QueueCalls", "WorkQueue"]

T = TypeVar("T")
DEFAULT = "default"
"""Of pools and of queues: what is meant where none is named."""

_WORDS = {"is_paused": "paused", "concurrency_limit": "concurrency", "priority": "priority"}


class WorkQueue(BaseModel):
    """A queue of a pool as it is now; its id is ``pool/queue``. ``description`` is empty: nothing keeps it."""

    model_config = ConfigDict(extra="ignore")

    name: str
    work_pool_name: str = DEFAULT
    description: str = ""
    is_paused: bool = False
    concurrency_limit: int | None = None
    priority: int = Field(DEFAULT_PRIORITY)

    @property
    def id(self) -> str:
        return f"{self.work_pool_name}/{self.name}"

    @property
    def work_pool_id(self) -> str:
        return self.work_pool_name


class QueueCalls(ABC):
    """Calls about the queues of pools. A pool that nobody named is ``default``, and every pool has a queue ``default``.

    Raises (every method):
        UnknownName: nobody said anything of this queue.
    """

    @abstractmethod
    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        """Do something with the session of whoever has these calls."""

    @abstractmethod
    async def read_flow_runs(self, *, flow_run_filter: FlowRunFilter | None = None) -> list[FlowRun]:
        """Return the runs that fit; see ``RunClient``."""

    async def create_work_queue(
        self,
        name: str,
        description: str | None = None,
        is_paused: bool | None = None,
        concurrency_limit: int | None = None,
        priority: int | None = None,
        work_pool_name: str | None = None,
    ) -> WorkQueue:
        """Say of a queue how many of its runs go on at once, and before which others they start.

        Args:
            description: does nothing here.
        Raises:
            AlreadyExists: this was said of a queue of this name. InvalidValueError: it makes no sense.
        """
        del description
        pool = work_pool_name or DEFAULT
        said = {"is_paused": is_paused, "concurrency_limit": concurrency_limit, "priority": priority}
        made = _changed(QueueSpec(), {word: value for word, value in said.items() if value is not None})

        def add(before: QueueSpec | None) -> QueueSpec:
            if before is not None:
                raise AlreadyExists("work queue", f"{pool}/{name}")
            return made

        return await self._change(pool, name, add)

    async def read_work_queue(self, id: object) -> WorkQueue:
        """Return a queue by its id, ``pool/queue``."""
        pool, name = _parts(id)
        return await self.read_work_queue_by_name(name, work_pool_name=pool)

    async def read_work_queue_by_name(self, name: str, work_pool_name: str | None = None) -> WorkQueue:
        """Return a queue of a pool."""
        queues = {one.name: one for one in await self.read_work_queues(work_pool_name or DEFAULT)}
        if name not in queues:
            raise UnknownName("work queue", name, known=list(queues))
        return queues[name]

    async def read_work_queues(
        self,
        work_pool_name: str | None = None,
        work_queue_filter: None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[WorkQueue]:
        """Return the queues of a pool, or of all pools, that something was said of, and each one's ``default``.

        Raises:
            InvalidValueError: a filter was given: take what is wanted from the list.
        """
        if work_queue_filter is not None:
            raise InvalidValueError(
                "queues are not filtered here", hint="[one for one in await client.read_work_queues() if …]"
            )

        async def read(session: Session) -> list[WorkQueue]:
            entries = await session.bus.bucket(BUCKET).entries()
            pools = {one.name: one for one in (Pool.model_validate_json(entry.value) for entry in entries)}
            wanted = sorted({DEFAULT, *pools}) if work_pool_name is None else [work_pool_name]
            found = [pools.get(name) or Pool(name=name) for name in wanted]
            return [_queue(pool, name) for pool in found for name in sorted({DEFAULT, *pool.queues})]

        begin = offset or 0
        return (await self._ask(read))[begin : None if limit is None else begin + limit]

    async def match_work_queues(
        self, prefixes: Iterable[str], work_pool_name: str | None = None
    ) -> list[WorkQueue]:
        """Return the queues whose names begin with one of these."""
        wanted = tuple(prefixes)
        return [one for one in await self.read_work_queues(work_pool_name) if one.name.startswith(wanted)]

    async def update_work_queue(self, id: object, **changes: Any) -> None:
        """Change what is said of a queue: ``is_paused``, ``concurrency_limit``, ``priority``.

        Raises:
            ValueError: nothing is to be changed. InvalidValueError: it makes no sense, or cannot be changed.
        """
        if not changes:
            raise ValueError("No fields provided to update: say is_paused=, concurrency_limit= or priority=")
        changes.pop("description", None)
        queue = await self.read_work_queue(id)
        await self._change(
            queue.work_pool_name, queue.name, lambda before: _changed(before or QueueSpec(), changes)
        )

    async def delete_work_queue_by_id(self, id: object) -> None:
        """Say nothing of a queue any more; its name stays a queue without limits."""
        queue = await self.read_work_queue(id)
        await self._change(queue.work_pool_name, queue.name, lambda _: None)

    async def get_runs_in_work_queue(
        self, id: object, limit: int = 10, scheduled_before: datetime | None = None
    ) -> list[FlowRun]:
        """Return what waits in a queue, the first due first.

        Args:
            scheduled_before: leave out what is due later than this.
        """
        pool, name = _parts(id)
        runs = await self.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}})
        )
        waiting = [
            run
            for run in runs
            if (run.pool, run.queue) == (pool, name)
            and (scheduled_before is None or run.scheduled_at is None or run.scheduled_at <= scheduled_before)
        ]
        return sorted(waiting, key=lambda run: run.scheduled_at or datetime.min.replace(tzinfo=UTC))[:limit]

    async def _change(
        self, pool: str, name: str, change: Callable[[QueueSpec | None], QueueSpec | None]
    ) -> WorkQueue:
        return _queue(
            await self._ask(lambda session: _control(session).change_queue(pool, name, change)), name
        )


def _parts(id_: object) -> tuple[str, str]:
    pool, slash, name = str(id_).partition("/")
    return (pool, name) if slash else (DEFAULT, pool)


def _queue(pool: Pool, name: str) -> WorkQueue:
    said = pool.queue(name)
    return WorkQueue(
        name=name, work_pool_name=pool.name, is_paused=said.paused, concurrency_limit=said.concurrency, priority=said.priority
    )  # fmt: skip


def _changed(before: QueueSpec, changes: dict[str, Any]) -> QueueSpec:
    for word in changes:
        if word not in _WORDS:
            raise InvalidValueError(
                f"{word} of a queue cannot be said", hint=f"there are {', '.join(_WORDS)}"
            )
    values = {_WORDS[word]: value for word, value in changes.items()}
    try:
        return QueueSpec.model_validate({**before.model_dump(), **values})
    except ValidationError as exc:
        first = exc.errors()[0]
        raise InvalidValueError(f"queue ({first['loc'][0]}): {first['msg']}") from exc


def _control(session: Session) -> Control:
    from ..dispatching.control import Control

    return Control(session.bus)
