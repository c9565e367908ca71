"""Running one try of a task in the process it was sent to."""

from __future__ import annotations

import contextvars
import random
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from ...bus.emit import CauseAttrs, current_cause
from ..code.reference import imported
from ..context import FlowRunContext, TaskRunContext, current_run, current_tags
from ..futures import resolve_futures_to_states, settle_futures
from ..life.tracking import FlowTracker
from ..logging import printing
from ..runs.replay import FinishedCall
from ..sync_async.thread_pool import run_coroutine
from ..task_runners import ThreadPoolTaskRunner
from ..tasks import Task
from ..writing import unpickled
from .carried import flow_context_of
from .far_wait import FarPlace, Tell
from .shipment import FlowFacts, Shipment, packed_outcome

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["Guard", "run_try"]


class Guard:
    """What stands around the function of a try: here nothing, where whoever sent it kills the process."""

    @contextmanager
    def sync(self, task: Task[..., Any]) -> Generator[None]:
        yield

    @asynccontextmanager
    async def async_(self, task: Task[..., Any]) -> AsyncGenerator[None]:
        yield


def run_try(
    shipment: Shipment,
    session: Session | None,
    begun: Callable[[], object] = lambda: None,
    *,
    guard: Guard | None = None,
    tell: Tell | None = None,
) -> bytes:
    """Run it and return its packed outcome; all that it wrote to the log is stored by then.

    ``begun`` is called when all is imported and its time begins; ``tell`` when all of it waits for long, and when it goes on.

    The tasks it submits run in threads of this process, and have ended when it has.
    """
    value: Any = None
    error: BaseException | None = None
    what = f"task run {shipment.facts.name!r}"
    place = FarPlace(tell) if tell is not None else None
    try:
        for module, file in shipment.modules:
            imported(module, file)
        task: Task[..., Any] = unpickled(shipment.task)
        args, kwargs = unpickled(shipment.arguments)
        # Two processes forked from one server would otherwise draw the same numbers.
        random.seed()
        what = f"task {task.name!r}"
        begun()
        run = contextvars.copy_context().run
        value = run(_run, shipment, session, task, args, kwargs, guard or Guard(), place)
    except BaseException as exc:  # sys.exit() in a task ends the task
        error = exc
    if place is not None:
        place.close()
    return packed_outcome(value, error, what=what)


def _run(
    shipment: Shipment,
    session: Session | None,
    task: Task[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    guard: Guard,
    place: FarPlace | None,
) -> Any:
    facts = shipment.facts
    runner = ThreadPoolTaskRunner()
    flow = _flow_context(shipment.flow, session, runner, place) if shipment.flow is not None else None
    parameters = task.shape.bind(args, kwargs)
    run = facts.run_of(task, parameters)
    with runner:
        current_run.set(TaskRunContext(task, run, parameters, flow, shipment.log_prints, flow))
        current_tags.set(shipment.tags)
        cause = shipment.cause
        if isinstance(cause, CauseAttrs) and flow is not None and flow.tracker is not None:
            cause = CauseAttrs(
                cause.correlationid,
                cause.causationid,
                cause.causaldepth,
                cause.traceparent,
                flow.tracker.owner,
            )
        current_cause.set(cause)
        try:
            with printing(shipment.log_prints):
                if task.isasync:
                    value = run_coroutine(_awaited(task, args, kwargs, guard), contextvars.copy_context())
                else:
                    with guard.sync(task):
                        value = task.body(*args, **kwargs)
                    if isinstance(value, GeneratorType):
                        value = list(value)
                return resolve_futures_to_states(value)
        finally:
            runner.drain()
            if flow is not None and flow.tracker is not None and session is not None:
                session.call(flow.tracker.barrier)


async def _awaited(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], guard: Guard) -> Any:
    async with guard.async_(task):
        value = await task.body(*args, **kwargs)
    await settle_futures(value)
    return value


def _flow_context(
    facts: FlowFacts, session: Session | None, runner: ThreadPoolTaskRunner, place: FarPlace | None
) -> FlowRunContext:
    context = flow_context_of(facts, session, runner)
    if context.tracker is not None and facts.has_place:
        context.tracker.place = place
    if context.tracker is not None and facts.run.attempt > 1:
        context.tracker.finished = _Unread(context.tracker)
    return context


class _Unread(dict[str, FinishedCall]):
    """Stands for the finished calls of a run until a call of a task asks for them: most tasks here make none."""

    def __init__(self, tracker: FlowTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __bool__(self) -> bool:
        global _read
        tracker = self._tracker
        run = tracker.flow_run
        read = _read
        if read[:2] != (run.id, run.attempt):
            tracker.session.call(tracker.resume)
            _read = read = (run.id, run.attempt, tracker.finished)
        # Not what stands there now: another thread may serve another run meanwhile.
        tracker.finished = read[2]
        return bool(tracker.finished)


_read: tuple[str, int, dict[str, FinishedCall]] = ("", 0, {})
"""What was read last in this process, which mostly serves one run at a time: its id, attempt, and finished calls."""
