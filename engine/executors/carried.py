"""The run the code is in, taken along: into threads as it is, into other processes as what they need of it.

What travels is what travels with a task that runs in a process (``shipment.py``). In the other process there is a run of the
same id: loggers, ``runtime`` and tags are the run's, and tasks that are called there are tasks of it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from ..calls.call_key import CallCounter
from ..context import FlowRunContext, TaskRunContext, current_run, current_tags, entered, tags
from ..flows import Flow
from ..life.tracking import FlowTracker
from ..runs.run_log import RunLog
from ..task_runners import TaskRunner, ThreadPoolTaskRunner
from ..writing import pickled, unpickled
from .shipment import FlowFacts, TaskFacts, flow_facts, task_facts, that_travel, travelling

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["Carried", "flow_context_of", "hydrated_context", "serialize_context"]

P = ParamSpec("P")
R = TypeVar("R")


def serialize_context() -> dict[str, Any]:
    """Return the run and the tags the code is in, to be pickled (by cloudpickle) and given to ``hydrated_context``.

    Of parameters goes along what can be pickled and is small. Settings do not: processes have those of their environment.
    """
    run = current_run.get()
    flow = run.flow_context if run is not None else None
    task = run if isinstance(run, TaskRunContext) else None
    return {
        "flow_run_context": {} if flow is None else flow.serialize(),
        "task_run_context": {} if task is None else task.serialize(),
        "tags_context": {"current_tags": set(current_tags.get())} if current_tags.get() else {},
    }


def flow_words(context: FlowRunContext) -> dict[str, Any]:
    """Return what travels of a flow run."""
    return {**_words(flow_facts(context)), "start_time": context.start_time}


def task_words(context: TaskRunContext) -> dict[str, Any]:
    """Return what travels of a task run."""
    return {
        **_words(task_facts(context.task_run)), "task": travelling(context.task),
        "parameters": that_travel(context.parameters), "log_prints": context.log_prints, "start_time": context.start_time,
    }  # fmt: skip


@contextmanager
def hydrated_context(
    serialized_context: Mapping[str, Any] | None = None, client: object = None
) -> Generator[None]:
    """Be in the run and the tags that ``serialize_context`` told of, here or in another process; of nothing, in what there is.

    Tasks that were submitted inside have ended when the block has, and what was written is stored. Not so in an async flow or
    task in a worker, whose loop stores it: there wait for them inside the block; what was written is stored a moment later.

    Args:
        client: taken, and not needed. For code written for Prefect.
    Raises:
        BusUnavailable: the run is tracked, and the broker that is known here does not answer.
    """
    del client
    told = serialized_context or {}
    facts = told.get("flow_run_context")
    about = told.get("task_run_context")
    runner = ThreadPoolTaskRunner()
    flow = flow_context_of(_facts(FlowFacts, facts), _session(facts), runner) if facts else None
    run: FlowRunContext | TaskRunContext | None = flow
    if flow is not None:
        # Keys of its own: a call made here is none of those the run makes where it really is.
        flow.calls = CallCounter(f"{flow.flow_run.id}/{os.getpid()}/{id(flow)}")
    if about:
        run = _task_context(about, flow)
    with runner.opened(), tags(*(told.get("tags_context") or {}).get("current_tags", ())):
        if run is None:
            yield
            return
        tracker = flow.tracker if flow is not None else None
        with entered(run):
            try:
                yield
            finally:
                # On the session's own loop, waiting would hold up what is waited for.
                if tracker is None or not tracker.session.is_own_loop:
                    runner.drain()
                    if tracker is not None:
                        tracker.session.call(tracker.barrier)


class Carried(Generic[P, R]):
    """A function that is called in the run in which it was made: in threads, and in other processes."""

    def __init__(self, fn: Callable[P, R]) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self._here: Context | None = copy_context()
        self._pid = os.getpid()
        self._packed = b""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._here is not None and self._pid == os.getpid():
            # A copy for each call: one context cannot be entered by two threads at once.
            return self._here.copy().run(self.fn, *args, **kwargs)
        with hydrated_context(unpickled(self._what_travels())):
            return self.fn(*args, **kwargs)

    def _what_travels(self) -> bytes:
        if not self._packed and self._here is not None:
            self._packed = pickled(self._here.copy().run(serialize_context))
        return self._packed

    def __reduce__(self) -> Any:
        return _arrived, (self.fn, self._what_travels())


def _arrived(fn: Callable[..., Any], packed: bytes) -> Carried[..., Any]:
    made: Carried[..., Any] = Carried.__new__(Carried)
    functools.update_wrapper(made, fn)
    made.__dict__.update(fn=fn, _here=None, _pid=0, _packed=packed)
    return made


def flow_context_of(facts: FlowFacts, session: Session | None, runner: TaskRunner) -> FlowRunContext:
    """Return the context of a flow run that runs elsewhere; tracked if it is and there is a session."""
    tracker: FlowTracker | None = None
    if facts.is_tracked and session is not None:
        tracker = FlowTracker(
            session, RunLog(session.bus), facts.run, inline_bytes=facts.inline_bytes,
            leaves_interrupted=facts.leaves_interrupted, suspend_after_s=facts.suspend_after_s,
        )  # fmt: skip
    return FlowRunContext(
        _stand_in(facts), facts.run, parameters=dict(facts.parameters), tracker=tracker, runner=runner,
        log_prints=facts.log_prints, parent=None,
    )  # fmt: skip


def _task_context(about: Mapping[str, Any], flow: FlowRunContext | None) -> TaskRunContext:
    facts = _facts(TaskFacts, about)
    parameters = dict(about["parameters"])
    run = facts.run_of(about["task"], parameters)
    context = TaskRunContext(about["task"], run, parameters, flow, about["log_prints"])
    context.count_apart()
    return context


def _session(facts: Mapping[str, Any] | None) -> Session | None:
    if not facts or not facts["is_tracked"]:
        return None
    from ...bus.session import current_session

    # Not that of the run the code is in: a forked process has that of its parent there.
    return current_session(tracking=False)


def _words(facts: FlowFacts | TaskFacts) -> dict[str, Any]:
    # Not asdict, which would copy the run and the parameters field by field.
    return {field.name: getattr(facts, field.name) for field in fields(facts)}


F = TypeVar("F", FlowFacts, TaskFacts)


def _facts(kind: type[F], words: Mapping[str, Any]) -> F:
    return kind(**{field.name: words[field.name] for field in fields(kind)})


def _stand_in(facts: FlowFacts) -> Flow[..., Any]:
    def elsewhere() -> None:
        raise AssertionError("the flow itself runs in another process")

    run = facts.run
    return Flow(
        elsewhere, name=run.flow_name, version=run.flow_version, description=facts.description, log_prints=facts.log_prints
    )  # fmt: skip
