"""One try of a task, packed for another process: the function, its arguments, and the run it belongs to.

What a task may ask about its run (``runtime``, loggers, tags, what its own tasks are recorded under) goes with it. The flow
itself does not: its code and what it closes over stay where it runs, and its name stands for it.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...bus.emit import CauseAttrs, current_cause
from ...bus.event import Event
from ...errors import TaskFailed, Unpicklable
from ..calls.task_call import TaskCall
from ..code.reference import module_file, reference_to
from ..context import FlowRunContext, current_tags
from ..logging import run_loggers
from ..runs.run import FlowRun
from ..runs.task_run import TaskRun
from ..tasks import Task
from ..writing import pickled, unpickled
from .far_wait import has_place

if TYPE_CHECKING:
    from ...bus.address import BrokerAddress
    from ...bus.session import Session

__all__ = [
    "FlowFacts", "Outcome", "RemoteTraceback", "Shipment", "TaskFacts", "about_arguments", "flow_facts", "pack",
    "packed_outcome", "packed_try", "task_facts", "that_travel", "travelling", "unpacked_outcome",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class FlowFacts:
    """What goes along of the flow run. ``leaves_interrupted``, ``inline_bytes`` and ``suspend_after_s`` are its tracker's.

    ``has_place``: while a task of it waits for long, its place in a worker may be given to others.
    """

    run: FlowRun
    description: str | None
    parameters: Mapping[str, Any]
    log_prints: bool
    is_tracked: bool
    leaves_interrupted: bool
    inline_bytes: int
    suspend_after_s: float
    has_place: bool


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What goes along of the task run."""

    id: str
    name: str
    call: str
    index: int
    run_count: int
    started_ns: int
    started_text: str | None
    tags: frozenset[str]
    upstream: tuple[str, ...]
    flow_run_id: str | None

    def run_of(self, task: Task[..., Any], parameters: dict[str, Any]) -> TaskRun:
        """Return the task run that they are the facts of."""
        run = TaskRun(
            self.id, self.name, task, flow_run_id=self.flow_run_id, parameters=parameters, tags=self.tags,
            upstream=self.upstream,
        )  # fmt: skip
        run.call, run.index, run.run_count = self.call, self.index, self.run_count
        run.started_ns, run.started_text = self.started_ns, self.started_text
        return run


@dataclass(slots=True)
class Shipment:
    """A try, as it travels. Bytes that are unpickled only once their modules can be imported.

    Attributes:
        modules: (name, file) of the modules the function may need loaded from their files.
        address: the broker, for a process that is not connected yet.
    """

    modules: list[tuple[str, str | None]]
    task: bytes
    arguments: bytes
    facts: TaskFacts
    flow: FlowFacts | None
    log_prints: bool
    tags: frozenset[str]
    cause: CauseAttrs | Event | None
    log_level: int
    address: BrokerAddress | None = None
    bus: dict[str, Any] = field(default_factory=dict)


def pack(call: TaskCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Shipment:
    """Return a try of ``call`` as it travels.

    Raises:
        Unpicklable: the function or an argument cannot go to another process; the message names it.
    """
    task, run = call.task, call.run
    try:
        function = pickled(travelling(task))
    except Exception as exc:  # anything at all may be raised while pickling what cannot be pickled
        raise Unpicklable(
            f"task {task.name!r} cannot go to another process: {type(exc).__name__}: {exc}",
            hint="define it at the top of a module, or keep what cannot be pickled out of what it closes over",
        ) from exc
    try:
        arguments = pickled((args, dict(kwargs)))
    except Exception as exc:
        raise about_arguments(task, run.parameters) from exc
    cause = current_cause.get()
    module = getattr(task.fn, "__module__", None) or "__main__"
    return Shipment(
        modules=[(module, module_file(module))] if module != "__main__" else [],
        task=function, arguments=arguments,
        facts=task_facts(run), flow=flow_facts(call.flow) if call.flow is not None else None, log_prints=call.log_prints, tags=current_tags.get(),
        cause=replace(cause, owner=None) if isinstance(cause, CauseAttrs) else cause,
        log_level=run_loggers()[1].getEffectiveLevel(),
    )  # fmt: skip


def packed_try(
    call: TaskCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[bytes, Session | None]:
    """Return a try of ``call`` as bytes, with the way to the broker, and the session its log lines go by here.

    Raises:
        Unpicklable: see ``pack``.
    """
    shipment = pack(call, args, kwargs)
    session = call.events.session if call.events is not None else None
    if session is not None:
        shipment.address = session.bus.address
        shipment.bus = session.bus.config.model_dump(mode="json", exclude={"password", "token"})
    return pickled(shipment), session


def travelling(task: Task[..., Any]) -> Task[..., Any]:
    """Return the task, without the hooks and conditions that are called where it was submitted."""
    if reference_to(task) is not None:
        return task
    return Task(
        task.fn, name=task.name, description=task.description, version=task.version, tags=task.tags
    )  # fmt: skip


def about_arguments(task: Task[..., Any], parameters: Mapping[str, Any]) -> Unpicklable:
    for name, value in parameters.items():
        try:
            pickled(value)
        except Exception as exc:
            return Unpicklable(
                f"argument {name!r} of task {task.name!r} cannot go to another process: a "
                f"{type(value).__qualname__} cannot be pickled ({type(exc).__name__}: {exc})",
                hint="give it what it can open for itself (a path, an address), or use a ThreadPoolTaskRunner",
            )
    return Unpicklable(f"the arguments of task {task.name!r} cannot go to another process")


def task_facts(run: TaskRun) -> TaskFacts:
    return TaskFacts(
        run.id, run.name, run.call, run.index, run.run_count, run.started_ns, run.started_text, run.tags, run.upstream,
        run.flow_run_id,
    )  # fmt: skip


def flow_facts(flow: FlowRunContext) -> FlowFacts:
    tracker = flow.tracker
    return FlowFacts(
        run=replace(flow.flow_run, result=None, parameters=that_travel(flow.flow_run.parameters)), description=flow.flow.description,
        parameters=that_travel(flow.parameters), log_prints=flow.log_prints, is_tracked=tracker is not None,
        leaves_interrupted=tracker is not None and tracker.leaves_interrupted,
        inline_bytes=tracker.events.inline_bytes if tracker is not None else 0,
        suspend_after_s=tracker.suspend_after_s if tracker is not None else 0.0, has_place=has_place(flow),
    )  # fmt: skip


_SMALL = 65_536


def that_travel(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flow's parameters that are small and can be pickled: they go along with every task."""
    travelling = {}
    for name, value in parameters.items():
        try:
            if len(pickled(value)) <= _SMALL:
                travelling[name] = value
        except Exception:  # noqa: S112  a parameter that stays is not a failure of this task
            continue
    return travelling


# --- the way back -------------------------------------------------------------------------------------


class RemoteTraceback(Exception):
    """Where in the other process an exception came from; the cause of the exception that is raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in another process:\n{self.text}"


@dataclass(slots=True)
class Outcome:
    """How a try ended: with a value, or with an exception."""

    value: Any = None
    error: BaseException | None = None
    text: str = ""


def packed_outcome(value: Any, error: BaseException | None, *, what: str) -> bytes:
    """Return the outcome of a try as it travels back; what cannot be pickled is told of instead."""
    if error is None:
        try:
            return pickled(Outcome(value))
        except Exception as exc:
            error = Unpicklable(
                f"the result of {what} cannot come back from its process: a {type(value).__qualname__} cannot be "
                f"pickled ({type(exc).__name__}: {exc})",
                hint="return what can be pickled, or use a ThreadPoolTaskRunner",
            )
    text = "".join(traceback.format_exception(error))
    error.__traceback__ = None
    try:
        data = pickled(Outcome(error=error, text=text))
        unpickled(data)
    except Exception:
        return pickled(Outcome(error=_rebuilt(error), text=text))
    return data


def _rebuilt(error: BaseException) -> BaseException:
    """Return something to raise for an exception that cannot be pickled, or not back."""
    made: BaseException = _Raised(type(error), error.args, dict(vars(error)))
    try:
        unpickled(pickled(made))
    except Exception:
        made = TaskFailed(f"{type(error).__name__}: {error}")
        made.add_note("(a stand-in: the exception itself could not be pickled)")
    return made


class _Raised(BaseException):
    """Travels for an exception whose class does not make it from its ``args``."""

    def __init__(self, kind: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> None:
        super().__init__(kind, args, facts)

    def __reduce__(self) -> Any:
        return _remade, self.args


def _remade(kind: type[BaseException], args: tuple[Any, ...], facts: dict[str, Any]) -> BaseException:
    made = kind.__new__(kind, *args)
    made.args = args
    made.__dict__.update(facts)
    return made


def unpacked_outcome(data: bytes) -> Any:
    """Return the value of a try that has come back.

    Raises:
        BaseException: what the try raised, caused by a ``RemoteTraceback``.
    """
    outcome: Outcome = unpickled(data)
    if outcome.error is None:
        return outcome.value
    raise outcome.error from RemoteTraceback(outcome.text)
