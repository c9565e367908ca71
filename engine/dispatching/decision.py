"""What the dispatcher decides: the orders that ``dispatch.py`` gives and ``leader.py`` carries out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ...vocabulary import FlowRunId, StateType
from ..code.lane import Lane

__all__ = ["Await", "Cancel", "Decision", "Drop", "Expire", "Finish", "Late", "Start"]


@dataclass(frozen=True, slots=True)
class Start:
    """Hand the run to a worker. ``limited``: the place counts against a limit somebody set."""

    run_id: FlowRunId
    attempt: int
    since: int
    pool: str
    queue: str
    lane: Lane
    limited: bool


@dataclass(frozen=True, slots=True)
class Await:
    """Say that the run waits for a place under a limit."""

    run_id: FlowRunId
    since: int
    why: str


@dataclass(frozen=True, slots=True)
class Late:
    """Say that the run should have started by now."""

    run_id: FlowRunId
    since: int


@dataclass(frozen=True, slots=True)
class Drop:
    """End a run that has not started, because of what its deployment says about conflicts."""

    run_id: FlowRunId
    since: int
    why: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask a run to stop."""

    run_id: FlowRunId
    why: str


@dataclass(frozen=True, slots=True)
class Expire:
    """Fail a run that paused and that nobody has resumed in time."""

    run_id: FlowRunId
    since: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Write the end of a run whose process can no longer write it: it lived inside a run that has ended."""

    run_id: FlowRunId
    state: StateType
    why: str


Decision: TypeAlias = "Start | Await | Late | Drop | Cancel | Expire | Finish"
