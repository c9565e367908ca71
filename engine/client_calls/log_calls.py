"""What the client of ``get_client()`` writes into the logs of runs, in the words of Prefect's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, field_validator

from ...bus.run_logs import LogLine
from ...vocabulary import FlowRunId, TaskRunId

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["LogCalls", "LogCreate"]

T = TypeVar("T")


class LogCreate(BaseModel):
    """A line to be put into the log of a run. ``level`` counts as in ``logging``."""

    name: str
    level: int
    message: str
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    flow_run_id: str | None = None
    task_run_id: str | None = None

    @field_validator("timestamp")
    @classmethod
    def _with_zone(cls, given: datetime) -> datetime:
        return given if given.tzinfo is not None else given.replace(tzinfo=UTC)

    @field_validator("flow_run_id", "task_run_id", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> str | None:
        return None if given is None else str(given)  # a UUID, in code written for Prefect


class LogCalls(ABC):
    """Calls that write logs."""

    @abstractmethod
    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        """Do something with the session of whoever has these calls."""

    async def create_logs(self, logs: Iterable[LogCreate | Mapping[str, Any]]) -> None:
        """Put lines into the logs of runs. A line that names no flow run is kept under its task run."""
        lines = [LogCreate.model_validate(one) for one in logs]

        async def write(session: Session) -> None:
            for line in lines:
                if (run_id := line.flow_run_id or line.task_run_id) is None:
                    continue  # it belongs to nobody whose log could be read
                about = None if line.task_run_id is None else TaskRunId(line.task_run_id)
                session.bus.run_logs.publish_nowait(
                    FlowRunId(run_id),
                    LogLine(
                        flow_run_id=FlowRunId(run_id),
                        message=line.message,
                        level=line.level,
                        logger=line.name,
                        at=line.timestamp,
                        task_run_id=about,
                    ),
                )
            session.bus.run_logs.flush()
            await session.bus.publisher.barrier()

        await self._ask(write)
