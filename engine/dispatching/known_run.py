"""What the dispatcher's fold remembers of one run that has not ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from ...vocabulary import FlowRunId, JsonValue, StateType
from ..code.lane import Lane

__all__ = ["KnownRun"]


@dataclass(slots=True)
class KnownRun:
    """What the fold remembers of one run that has not ended."""

    id: FlowRunId
    pool: str | None
    queue: str
    deployment: str
    key: str
    code: str
    parent: FlowRunId | None
    type: StateType
    name: str
    attempt: int
    due_us: int
    born: int
    since: int
    seq: int
    lane: Lane
    late: bool = False
    """The log says that it is late. ``late_said``: so have we, and the log has not confirmed it yet."""
    late_said: bool = False
    granted: bool = False
    leaving: bool = False
    at_once: bool = False
    """It asked for no later time: it is due whatever our clock says."""
    in_process: bool = False
    """Its process is waiting to try again by itself: it keeps its place, and nobody else may start it."""
    expires_us: int = 0
    """When it fails if it is still suspended; 0: never."""
    holds: tuple[tuple[str, ...], ...] = ()

    def to_row(self) -> list[JsonValue]:
        """Return what a checkpoint keeps of it; what follows from that, or from this process, is made anew."""
        return [
            self.id, self.pool, self.queue, self.deployment, self.key, self.code, self.parent, self.type.value, self.name,
            self.attempt, self.due_us, self.born, self.since, self.seq, self.lane, self.late, self.at_once,
            self.in_process, self.expires_us,
        ]  # fmt: skip

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """Return what ``to_row`` made a row of."""
        id_, pool, queue, deployment, key, code, parent, type_, name, *numbers = row
        attempt, due_us, born, since, seq, lane, late, at_once, in_process, expires_us = numbers
        return cls(
            id=id_, pool=pool, queue=queue, deployment=deployment, key=key, code=code, parent=parent,
            type=StateType(type_), name=name, attempt=attempt, due_us=due_us, born=born, since=since, seq=seq, lane=lane,
            late=late, at_once=at_once, in_process=in_process, expires_us=expires_us,
        )  # fmt: skip
