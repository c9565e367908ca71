"""A pool: where runs execute, how many at once, and in which order its queues are served. Bucket ``pools``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .deployment import Name

__all__ = ["BUCKET", "DEFAULT_PRIORITY", "Pool", "QueueSpec"]

BUCKET = "pools"
DEFAULT_PRIORITY = 100
"""Of queues nobody gave a priority: after all that have a small one."""


class QueueSpec(BaseModel):
    """One queue of a pool. ``priority`` 1 is served first; equal priorities are served by due time."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    priority: int = Field(DEFAULT_PRIORITY, ge=1, description="1 is served first")
    concurrency: int | None = Field(None, ge=0, description="runs of this queue in progress at once")
    paused: bool = False


class Pool(BaseModel):
    """A pool. One that nobody defined exists all the same, without limits."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: Name
    type: Literal["process"] = "process"
    description: str | None = None
    concurrency: int | None = Field(None, ge=0, description="runs of the pool in progress at once")
    queues: dict[Name, QueueSpec] = Field(default_factory=dict)
    paused: bool = False

    def queue(self, name: str) -> QueueSpec:
        """Return the queue's definition; a queue nobody defined has no limit and the last place."""
        return self.queues.get(name) or QueueSpec()
