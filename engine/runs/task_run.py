"""One task run, as hooks and the runtime see it and as its transitions tell it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ...vocabulary import TaskRunId
from ..states import Retrying, Running, State, StateType
from .run_facts import RunFacts

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..tasks import Task

__all__ = ["IdSource", "TaskRun", "TaskRunPolicy", "TaskRunResult", "stamp"]


@dataclass(frozen=True, slots=True)
class TaskRunResult:
    """What a task run was given, or waited for: the result of another, by its ``id``."""

    input_type: ClassVar[str] = "task_run"

    id: str


@dataclass(frozen=True, slots=True)
class TaskRunPolicy:
    """How a task run is tried again. ``retry_delay``: seconds, for all tries or for each."""

    retries: int
    retry_delay: float | list[float]
    retry_jitter_factor: float | None


class IdSource:
    """Cheap ids: a random prefix and a counter, as the text of a UUIDv8. Safe to draw from in any thread.

    Asking the system for random bytes costs more than everything else that happens to a task. Their last 12 digits put the ids of
    a run in order: 4 of the attempt, 8 of the counter. Listings go by that.
    """

    __slots__ = ("_next", "_prefix")

    def __init__(self, attempt: int = 0) -> None:
        self._prefix = _random_prefix()
        self._next = itertools.count((attempt & 0xFFFF) << 32 | 1).__next__

    def draw(self) -> str:
        return f"{self._prefix}{self._next():012x}"


def _random_prefix() -> str:
    digits = os.urandom(10).hex()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-{'89ab'[int(digits[15], 16) & 3]}{digits[16:19]}-"


class _StateOfRun:
    """The state of a run that was given none: RUNNING once a try has begun. One that was given is found before this.

    Tasks seldom look at their own state, and to make it for each try costs more than the rest of the try.
    """

    def __get__(self, run: TaskRun | None, owner: type) -> State | None:
        if run is None or not run.run_count:
            return None
        return (Running if run.run_count == 1 else Retrying)(run_id=run.id, task_of=run.flow_run_id or "")


class TaskRun(RunFacts):
    """One task run. Changed only by the engine that runs it.

    Attributes:
        call: its resume key; empty where nothing is recorded.
        index: how many equal calls were made before it in the same place.
        run_count: tries begun, 1 during the first.
        upstream: ids of the task runs whose results it was given or waited for.
        started_ns: wall time of the first try, in nanoseconds since 1970; 0 before. tried_ns: that of the last retry.
    """

    # Defaults of the class, not set in __init__: most runs never change them, and there are many runs.
    call = ""
    index = 0
    run_count = 0
    started_ns = 0
    tried_ns = 0
    started_text: str | None = None
    pieces: tuple[str, str, str] | None = None
    """Parts of its events that do not change; kept by the tracker."""
    previous: StateType | None = None
    state: State | None = _StateOfRun()  # type: ignore[assignment]
    is_going = False
    """Whether it has begun and not ended; kept by the tracker."""
    parent_id: str | None = None
    """The task run whose code made the call, if that is one."""
    upstream_by: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Ids among ``upstream`` by parameter, and under ``wait_for``; those that have some."""
    session: Session | None = None
    """Where its log lines go, of a run in no flow; under ``log_id``."""
    log_id: str | None = None

    def __init__(
        self,
        id: str,
        name: str,
        task: Task[..., Any],
        *,
        flow_run_id: str | None,
        parameters: dict[str, Any],
        tags: frozenset[str],
        upstream: tuple[str, ...],
    ) -> None:
        self.id = TaskRunId(id)
        self.name = name
        self.task = task
        self.flow_run_id = flow_run_id
        self.parameters = parameters
        self.tags = tags
        self.upstream = upstream

    @property
    def task_key(self) -> str:
        return self.task.task_key

    @property
    def task_name(self) -> str:
        return self.task.name

    @property
    def task_inputs(self) -> dict[str, list[TaskRunResult]]:
        """What it depends on, by name of the parameter: lists of ``TaskRunResult``, empty where a value was given.

        ``wait_for`` has what it waited for besides, and ``__parents__`` the task run that called it; without any they are not there.
        """
        ids = {**dict.fromkeys(self.parameters, ()), **self.upstream_by}
        if self.parent_id is not None:
            ids["__parents__"] = (self.parent_id,)
        return {name: [TaskRunResult(id_) for id_ in some] for name, some in ids.items()}

    @property
    def task_version(self) -> str | None:
        return self.task.version

    @property
    def dynamic_key(self) -> str:
        """What tells it apart from the other runs of its task."""
        return self.call or self.id

    @property
    def empirical_policy(self) -> TaskRunPolicy:
        return TaskRunPolicy(self.task.retries, self.task.retry_delay_seconds, self.task.retry_jitter_factor)

    @property
    def state_name(self) -> str | None:
        return self.state.name if self.state else None

    @property
    def state_type(self) -> StateType | None:
        return self.state.type if self.state else None

    @property
    def started_at(self) -> datetime | None:
        return datetime.fromtimestamp(self.started_ns / 1e9, UTC) if self.started_ns else None

    start_time = started_at

    @property
    def tried_at(self) -> datetime | None:
        """When the present try began; None before the first."""
        return datetime.fromtimestamp(self.tried_ns / 1e9, UTC) if self.tried_ns else self.started_at

    def __repr__(self) -> str:
        return f"TaskRun(name={self.name!r}, id={self.id!r}, state={self.state!r})"


_second = (-1, "")


def stamp(ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339; the part down to the second is worked out once per second."""
    global _second
    second, rest = divmod(ns, 1_000_000_000)
    # One name for both, so that two threads in different seconds never mix them.
    at, text = _second
    if second != at:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = (second, text)
    return f"{text}.{rest // 1000:06d}Z"
