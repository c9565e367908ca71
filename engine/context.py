"""Which run the code is in. One context variable holds the innermost run; threads and tasks inherit it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context, ContextVar, Token, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from ..errors import MissingContextError
from .calls.call_key import CallCounter

if TYPE_CHECKING:
    import asyncio
    from datetime import datetime

    from ..config import Settings
    from ..tracing import Span
    from .executors.carried import Carried
    from .flows import Flow
    from .life.resting import Rests
    from .life.task_transaction import TaskTransaction
    from .life.tracking import FlowTracker
    from .options.keeping import Keeping
    from .persistence.result_store import ResultStore
    from .runs.run import FlowRun
    from .runs.task_run import TaskRun
    from .signals import Suspend
    from .task_runners import TaskRunner
    from .tasks import Task

__all__ = [
    "EngineContext", "FlowRunContext", "RunContext", "SettingsContext", "TagsContext", "TaskRunContext", "current_run",
    "current_tags", "get_run_context", "get_settings_context", "hydrated_context", "in_no_run", "refuse_if_leaving", "serialize_context", "tags",
    "with_context",
]  # fmt: skip


P = ParamSpec("P")
R = TypeVar("R")


class RunContext:
    """What the contexts of flow runs and task runs have in common."""

    __slots__ = ()

    keeping: Keeping | None

    @property
    def result_store(self) -> ResultStore:
        """Where results of the run are kept that are kept by a key."""
        from .persistence.result_store import store_of

        return store_of(self.keeping)

    @property
    def persist_result(self) -> bool:
        """Whether somebody said, of the run or around it, that results are to be kept."""
        return self.keeping is not None and bool(self.keeping.persist)


class FlowRunContext(RunContext):
    """The flow run the code is in.

    Attributes:
        flow_run: the run as of its last transition.
        parameters: validated, by name.
        tracker: writes the log; None where nothing is tracked.
        memo: results by call key, kept in memory for retries of a flow that is not tracked; None if it has none.
        parent: the run that made this one, if it is a subflow.
        keeping: what has been said of results, here or around; None: nothing.
        left: tracked runs of subflows that were stopped on their way, as they were then: not over, and not going on.
    """

    __slots__ = (
        "awaits_reader", "cached", "calls", "flow", "flow_run", "has_returned", "has_told", "keeping", "leaving", "left", "log_prints", "loop_task", "memo", "parameters", "parent",
        "rests", "runner", "span", "subflows", "tracker", "waiting", "waiting_tasks",
    )  # fmt: skip

    def __init__(
        self,
        flow: Flow[..., Any],
        flow_run: FlowRun,
        *,
        parameters: dict[str, Any],
        tracker: FlowTracker | None,
        runner: TaskRunner,
        log_prints: bool,
        parent: FlowRunContext | TaskRunContext | None,
        memo: dict[str, Any] | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        self.flow = flow
        self.flow_run = flow_run
        self.parameters = parameters
        self.tracker = tracker
        self.runner = runner
        self.log_prints = log_prints
        self.parent = parent
        self.memo = memo
        self.keeping = keeping
        self.left: list[FlowRun] = []
        self.subflows: set[FlowRunContext] = set()
        """Those of it that are going on in this process, called by tasks of it included."""
        self.has_told = False
        """Whether the outermost run knows that this subflow has parts of transactions."""
        self.waiting = 0
        """Places of its own code that wait for a task."""
        self.waiting_tasks: dict[object, TaskRunContext] = {}
        """The same of the code of tasks: one entry for each place."""
        self.rests: Rests | None = None
        """What of it waits for long, for a retry or by its own code; None: nothing has."""
        self.leaving: Suspend | None = None
        """Why the run leaves its worker, once that is decided: nothing new of it begins here any more."""
        self.span: Span | None = None
        """The run in traces; None where nothing is traced."""
        self.loop_task: asyncio.Task[Any] | None = None
        """The task of its event loop that it is in; None of a run that is in none."""
        self.awaits_reader = False
        """Whether it is a generator that has yielded, and its reader has not come back yet."""
        self.has_returned = False
        """Whether its code has come to its end, in the present try: what goes on of it, nobody waits for."""
        self.calls = CallCounter()
        self.cached: dict[str, Any] = {}
        """Results by cache key, of tasks that say persist_result=True and no policy."""

    transaction = None
    """A flow run is no transaction; as of task runs."""

    def renew(self) -> None:
        """Begin a new try: calls are counted anew, and submitted tasks run again."""
        self.calls = CallCounter()
        if self.rests is not None:
            self.rests.go_on()
        self.rests = self.leaving = None
        self.has_returned = self.awaits_reader = False
        self.runner.reopen()

    @property
    def start_time(self) -> datetime | None:
        """When the run began."""
        return self.flow_run.started_at

    @property
    def task_runner(self) -> TaskRunner:
        return self.runner

    @property
    def flow_context(self) -> FlowRunContext:
        return self

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """Return what of it travels to another process; see ``carried.py``."""
        from .executors.carried import flow_words

        del include_secrets
        return flow_words(self)

    @classmethod
    def get(cls) -> FlowRunContext | None:
        """Return the flow run the code is in, also from inside its tasks; None outside any."""
        run = current_run.get()
        return None if run is None else run.flow_context


class TaskRunContext(RunContext):
    """The task run the code is in.

    Attributes:
        flow_context: the flow run around it; None for a task called outside any flow.
        caller: the run whose code made the call.
        keeping: what has been said of results, here or around; None: nothing.
        transaction: that of the present try; None where nothing has asked for one yet.
        opening: the one of the runner that the call was submitted in; None for one that was not submitted.
    """

    __slots__ = (
        "_calls", "caller", "flow_context", "keeping", "log_prints", "opening", "parameters", "task", "task_run", "transaction",
    )  # fmt: skip

    def __init__(
        self,
        task: Task[..., Any],
        task_run: TaskRun,
        parameters: dict[str, Any],
        flow_context: FlowRunContext | None,
        log_prints: bool,
        caller: FlowRunContext | TaskRunContext | None = None,
        keeping: Keeping | None = None,
        opening: int | None = None,
    ) -> None:
        self.task = task
        self.task_run = task_run
        self.parameters = parameters
        self.flow_context = flow_context
        self.log_prints = log_prints
        self._calls: CallCounter | None = None
        self.caller = caller
        self.keeping = keeping
        self.transaction: TaskTransaction | None = None
        self.opening = opening

    @property
    def start_time(self) -> datetime | None:
        """When the present try began."""
        return self.task_run.tried_at

    @property
    def calls(self) -> CallCounter:
        """Counts the calls this task run makes; they are told apart from those of its siblings by its own key."""
        if self._calls is None:
            self._calls = CallCounter(self.task_run.call or self.task_run.id)
        return self._calls

    def count_apart(self) -> None:
        """Count the calls it makes from here on apart from those of the task run where it really runs."""
        self._calls = CallCounter(f"{self.task_run.id}/{os.getpid()}/{id(self)}")

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """Return what of it travels to another process; see ``carried.py``."""
        from .executors.carried import task_words

        del include_secrets
        return task_words(self)

    @classmethod
    def get(cls) -> TaskRunContext | None:
        """Return the task run the code is in; in a subflow, the one that called it. None outside any, and directly in a flow."""
        run = current_run.get()
        while isinstance(run, FlowRunContext):
            run = run.parent
        return run

    @classmethod
    def here(cls) -> TaskRunContext | None:
        """Return the innermost run the code is in if that is a task run: None in a subflow that a task called, too."""
        run = current_run.get()
        return run if isinstance(run, TaskRunContext) else None


EngineContext = FlowRunContext

current_run: ContextVar[FlowRunContext | TaskRunContext | None] = ContextVar("hark_run", default=None)


def in_no_run() -> Context:
    """Return a context like this one, in no run: for a task that serves others, too, and may outlive the run that needed it first."""
    context = copy_context()
    context.run(current_run.set, None)
    return context


_NO_TAGS: frozenset[str] = frozenset()
current_tags: ContextVar[frozenset[str]] = ContextVar("hark_tags", default=_NO_TAGS)


def get_run_context() -> FlowRunContext | TaskRunContext:
    """Return the innermost run the code is in.

    Raises:
        MissingContextError: it is in none.
    """
    run = current_run.get()
    if run is None:
        raise MissingContextError(
            "No run context available: this only works inside a flow or task run",
            hint="call it from a function marked with @flow or @task",
        )
    return run


def refuse_if_leaving(run: FlowRunContext | TaskRunContext | None) -> None:
    """Raise once more what takes the run off its worker, if that is decided: its code has caught it, and goes on.

    Hooks of its end are called all the same, and so is what the code of a task calls.
    """
    if isinstance(run, FlowRunContext) and run.leaving is not None and not run.flow_run.is_final:
        raise run.leaving.again()


def check_tags(tags: Iterable[str]) -> frozenset[str]:
    """Return the tags as a set.

    Raises:
        TypeError: one is no text.
    """
    found = frozenset(tags)
    for tag in found:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is a text, got {tag!r}; write {str(tag)!r}")
    return found


@contextmanager
def tags(*new_tags: str) -> Iterator[set[str]]:
    """Give every run that begins inside the block these tags, besides those of outer blocks.

    Raises:
        TypeError: a tag is no text.
    """
    token = current_tags.set(current_tags.get() | check_tags(new_tags))
    try:
        yield set(current_tags.get())
    finally:
        current_tags.reset(token)


class TagsContext:
    """The tags that runs beginning here get: ``TagsContext.get().current_tags``; or, entered, exactly these."""

    def __init__(self, current_tags: Iterable[str] = ()) -> None:
        self.current_tags = set(current_tags)
        self._tokens: list[Token[frozenset[str]]] = []

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """Return what of it travels to another process."""
        del include_secrets
        return {"current_tags": set(self.current_tags)}

    @classmethod
    def get(cls) -> TagsContext:
        """Return the tags of the code around; there are none outside ``tags(…)``."""
        return cls(current_tags.get())

    def __enter__(self) -> Self:
        self._tokens.append(current_tags.set(frozenset(self.current_tags)))
        return self

    def __exit__(self, *exc: object) -> None:
        current_tags.reset(self._tokens.pop())


@dataclass(frozen=True, slots=True)
class SettingsContext:
    """The settings in force: ``get_settings_context().settings``."""

    settings: Settings

    @classmethod
    def get(cls) -> SettingsContext:
        return get_settings_context()


def get_settings_context() -> SettingsContext:
    """Return the settings this process runs with: those of the environment and of ``HARK_CONFIG``."""
    from ..config import load_settings

    return SettingsContext(load_settings())


def with_context(fn: Callable[P, R]) -> Carried[P, R]:
    """Return ``fn`` as a function that, in whatever thread or process it is called, is in the run the code is in now.

    For another process (``multiprocessing.Pool``, ``ProcessPoolExecutor``) it has to be picklable, as ``fn`` by itself; see
    ``carried.py`` for what goes along.
    """
    from .executors.carried import Carried

    return Carried(fn)


def serialize_context() -> dict[str, Any]:
    """Return the run and the tags the code is in, as they travel to another process; see ``carried.py``."""
    from .executors.carried import serialize_context

    return serialize_context()


def hydrated_context(
    serialized_context: Mapping[str, Any] | None = None, client: object = None
) -> AbstractContextManager[None]:
    """Be in the run and the tags that ``serialize_context`` told of; see ``carried.py``."""
    from .executors.carried import hydrated_context

    return hydrated_context(serialized_context, client)


@contextmanager
def entered(context: FlowRunContext | TaskRunContext) -> Generator[None]:
    """Make ``context`` the run the code of the block is in."""
    token = current_run.set(context)
    try:
        yield
    finally:
        current_run.reset(token)
