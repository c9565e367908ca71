"""A call of a task, made ready where it is made: its run, key, inputs, and whether it has run before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ...errors import DependsOnItself, ResultMissing, UpstreamFailed
from ...vocabulary import TaskRunId
from ..annotations import Annotation, allow_failure, opaque, quote, unmapped
from ..context import FlowRunContext, TaskRunContext, current_run, current_tags, refuse_if_leaving
from ..futures import TaskFuture
from ..options.keeping import keeping_of
from ..options.task_options import prints_to_log
from ..results import RecordedResult
from ..runs.going import going_in_background
from ..runs.task_run import IdSource, TaskRun
from ..states import AwaitingRetry, Completed, State, StateType
from ..transactions import current_block
from .nested import is_plain, replace_leaves

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..options.keeping import Keeping
    from ..persistence.caching import CallCache
    from ..runs.task_events import TaskEvents
    from ..tasks import Task

__all__ = ["TaskCall", "as_tuple", "look_for_upstream", "prepare", "resolve_inputs"]

_ids = IdSource()
_PENDING = StateType.PENDING


class TaskCall:
    """One call of a task, with everything known where it was made.

    Attributes:
        events: where its transitions go; None where nothing is tracked.
        upstream: the futures among its inputs and in ``wait_for``.
        recorded: the result an earlier attempt of the flow run recorded for this call; then it does not run.
        settled: the final state, where it was clear before the call could begin.
        elsewhere: runs one try of the function in another process, and keeps its time limit; None: it runs here.
    """

    # Defaults of the class, not set in __init__: most calls never change them.
    events: TaskEvents | None = None
    is_plain = True
    is_announced = False
    """Whether PENDING has been written."""
    upstream: Sequence[TaskFuture[Any]] = ()
    wait_for: tuple[Any, ...] = ()
    recorded: RecordedResult | None = None
    settled: State | None = None
    limited: tuple[str, ...] | None = ()
    """Which of its tags are limited; None where that is not known yet."""
    held: tuple[Session, list[Any]] | None = None
    """The slots of limits it has."""
    is_traced = False
    """Whether its flow run is a span, and it is to be one in that."""
    cache: CallCache | None = None
    """Where its result is kept for other calls; set once it is clear that the call runs."""
    keeping: Keeping | None = None
    """What has been said of its result; None: nothing, by nobody."""
    caller: FlowRunContext | TaskRunContext | None = None
    """The run whose code made the call."""
    is_careful = False
    """Whether it is part of a transaction, or something has been said of its result."""
    is_direct = False
    """Whether it was made where it runs, and not submitted."""
    retry_at: datetime | None = None
    """When the try is due that an earlier attempt of its flow run did not live to make."""
    has_yielded = False
    """Whether it is a generator whose reader has got something of it."""
    rests_after_s: float | None = None
    """A retry delay longer than this ends the call here (``Suspend``): somebody goes on with it then. None: it waits here."""
    opening: int | None = None
    """Which opening of its runner it was submitted in (see ``TaskRunner.reopen``)."""
    elsewhere: Callable[[TaskCall, tuple[Any, ...], dict[str, Any]], Any] | None = None

    def __init__(
        self, task: Task[..., Any], run: TaskRun, flow: FlowRunContext | None, log_prints: bool
    ) -> None:
        self.task = task
        self.run = run
        self.flow = flow
        self.log_prints = log_prints

    @property
    def is_bare(self) -> bool:
        """Whether nothing but its function is to be called: no hooks, limits, transaction, upstream or earlier try."""
        return not (
            self.task.needs_care
            or self.log_prints
            or not self.is_plain
            or self.is_careful
            or self.recorded is not None
            or self.settled is not None
            or self.limited != ()
            or self.is_traced
            or self.run.run_count
        )

    @property
    def is_settled(self) -> bool:
        return self.settled is not None

    def announce(self) -> None:
        """Write that it is pending, where that has not been written: its next state is not RUNNING."""
        if self.is_announced:
            return
        if self.events is not None:
            self.events.write(self.run, _PENDING, "Pending")
        self.is_announced = True

    @property
    def keeps_memo(self) -> bool:
        """Whether its result is kept in memory for a retry of its flow."""
        if self.flow is None or self.flow.memo is None:
            return False
        return self.keeping is not None and bool(self.keeping.persist)

    @property
    def is_unkept(self) -> bool:
        """Whether somebody said that the result is not even recorded."""
        return self.keeping is not None and self.keeping.persist is False

    @property
    def is_stored(self) -> bool:
        """Whether the result goes to a storage that somebody chose."""
        keeping = self.keeping
        return keeping is not None and bool(keeping.persist) and keeping.storage is not None


def prepare(
    task: Task[..., Any],
    parameters: dict[str, Any],
    wait_for: Any = None,
    *,
    is_direct: bool = False,
    id_: str | None = None,
) -> TaskCall:
    """Make a call of ``task``: give it its id, name and key, say that it is pending, look for a recorded result.

    Args:
        is_direct: it is run at once, where it is made.
        id_: of the run; default: one of its own.
    Raises:
        Suspend: its run leaves the worker.
    """
    parent = current_run.get()
    flow = parent.flow_context if parent is not None else None
    if flow is not None:
        if flow.leaving is not None:
            refuse_if_leaving(parent)
        tracker = flow.tracker
        ids, events = (tracker.events.ids, tracker.events) if tracker is not None else (_ids, None)
        flow_run_id: str | None = flow.flow_run.id
    else:
        tracker, ids, flow_run_id = None, _ids, None
        events = None
    tags = current_tags.get()
    if task.tags:
        tags = tags | task.tags if tags else task.tags
    is_own_id = id_ is None
    if id_ is None:
        id_ = ids.draw()
    run = TaskRun(
        id_,
        f"{task.name}-{id_[-6:]}",
        task,
        flow_run_id=flow_run_id,
        parameters=parameters,
        tags=tags,
        upstream=(),
    )
    keeping = task.keeping
    if keeping is not None or (parent is not None and parent.keeping is not None):
        keeping = keeping_of(keeping, parent)
    call = TaskCall(
        task, run, flow, prints_to_log(task.log_prints, None if parent is None else parent.log_prints)
    )
    if is_direct:
        call.is_direct = True
    if flow is not None and flow.span is not None:
        call.is_traced = True
    if parent is not None:
        call.caller = parent
        if isinstance(parent, TaskRunContext):
            run.parent_id = parent.task_run.id
    else:
        keeping = keeping_of(task.keeping, None)
    if keeping is not None:
        call.keeping, call.is_careful = keeping, True
    if current_block.get() is not None or (parent is not None and parent.transaction is not None):
        call.is_careful = True
    if wait_for is not None or not is_plain(parameters.values()):
        look_for_upstream(call, parameters, wait_for)
    if tracker is not None:
        assert parent is not None
        run.call, run.index = parent.calls.key(task.name, parameters, salt=task.key_salt)
        call.events = events
        if tracker.finished:
            recorded = tracker.take_finished(run.call)
            if recorded is not None and not task.isgenerator:
                call.recorded = recorded
                return call
        if tracker.undoing is not None:
            call.settled = run.state = tracker.undoing.instead(id_).replace(task_of=flow_run_id)
            return call
        if tracker.retrying and (retrying := tracker.retrying.pop(run.call, None)) is not None:
            run.run_count, call.retry_at = retrying.tries, retrying.due
            if is_own_id:
                # The same task run goes on: it would else stand there, waiting for a retry, for good.
                id_ = retrying.task_run_id
                run.id, run.name = TaskRunId(id_), f"{task.name}-{id_[-6:]}"
                run.previous, call.is_announced = StateType.SCHEDULED, True
            run.state = AwaitingRetry(run_id=id_, task_of=run.flow_run_id or "")
            call.announce()
        elif not is_direct or not call.is_plain:
            call.announce()
    elif flow is None:
        from ...bus.session import current_session

        session = current_session()
        if session is not None:
            from ...config import load_settings
            from .standalone import standalone_events

            # A task inside a task outside any flow: its own events all the same.
            call.events = standalone_events(
                session, id_, inline_bytes=load_settings().engine.inline_result_bytes
            )
            if parent is not None and (going := going_in_background.get()) is not None:
                call.events.going = going
            call.announce()
    elif call.keeps_memo:
        assert parent is not None
        run.call, run.index = parent.calls.key(task.name, parameters, salt=task.key_salt)
        assert flow.memo is not None
        if run.call in flow.memo:
            call.settled = Completed(data=flow.memo[run.call], run_id=id_, task_of=run.flow_run_id or "")
    if tags and call.events is not None:
        call.limited = call.events.limited(tags)
    return call


def as_tuple(wait_for: Any) -> tuple[Any, ...]:
    """Return what was given as ``wait_for``, one thing or several, as a tuple."""
    if wait_for is None:
        return ()
    return tuple(wait_for) if isinstance(wait_for, list | tuple | set | frozenset) else (wait_for,)


def look_for_upstream(call: TaskCall, parameters: dict[str, Any], wait_for: Any) -> None:
    """Note of a call which futures it has to wait for, and of which runs they are."""
    ids: list[str] = []
    futures: list[TaskFuture[Any]] = []
    call.upstream = futures

    def note(leaf: Any) -> Any:
        if isinstance(leaf, TaskFuture):
            futures.append(leaf)
            ids.append(leaf.task_run_id)
        elif isinstance(leaf, State):
            if leaf.run_id:
                ids.append(leaf.run_id)
        elif isinstance(leaf, Annotation):
            if isinstance(leaf, quote):
                call.is_plain = False
                return leaf
            replace_leaves(leaf.value, note)
        else:
            return leaf
        call.is_plain = False
        return leaf

    by: dict[str, tuple[str, ...]] = {}
    for name, value in parameters.items():
        before = len(ids)
        replace_leaves(value, note)
        if len(ids) > before:
            by[name] = tuple(dict.fromkeys(ids[before:]))
    if wait_for is not None:
        call.wait_for = as_tuple(wait_for)
        call.is_plain = False
        before = len(ids)
        for item in call.wait_for:
            replace_leaves(item, note)
        by["wait_for"] = tuple(dict.fromkeys(ids[before:]))
    call.run.upstream, call.run.upstream_by = tuple(dict.fromkeys(ids)), by


# --- inputs -------------------------------------------------------------------------------------------


def resolve_inputs(
    parameters: dict[str, Any], wait_for: Iterable[Any], *, what: str, run_id: str = ""
) -> dict[str, Any]:
    """Return parameters with results in place of futures and states; all futures are done.

    Raises:
        UpstreamFailed: one did not complete, and was not marked ``allow_failure``; or what it returned cannot be read.
        DependsOnItself: one is that of the run ``run_id``, whose parameters these are.
    """

    def result_of(state: State, name: str, allowed: bool) -> Any:
        if not state.is_completed():
            if allowed and state.is_final():
                return state.result(raise_on_failure=False)
            raise UpstreamFailed(
                f"Upstream {name} did not reach a 'COMPLETED' state: it is {state.name}, so {what} did not run"
            )
        try:
            return state.result()
        except ResultMissing as exc:
            raise UpstreamFailed(
                f"{what} did not run: it needs what upstream {name} returned: {exc}"
            ) from exc

    def change(leaf: Any, allowed: bool = False) -> Any:
        if isinstance(leaf, TaskFuture):
            if leaf.task_run_id == run_id:
                raise DependsOnItself(
                    f"Discovered a task depending on itself: the future of {what} is in its own arguments. Raising to "
                    "avoid a deadlock"
                )
            leaf.wait()
            return result_of(leaf.state, f"task run {leaf.name!r}", allowed)
        if isinstance(leaf, State):
            return result_of(leaf, "state", allowed)
        if isinstance(leaf, allow_failure):
            return replace_leaves(leaf.value, lambda inner: change(inner, True))
        if isinstance(leaf, quote):
            return leaf.value
        if isinstance(leaf, opaque):
            # Only what stands there itself: results may be large, and are not walked through either way.
            return change(leaf.value, allowed) if isinstance(leaf.value, TaskFuture | State) else leaf.value
        if isinstance(leaf, unmapped):
            return replace_leaves(leaf.value, change)
        return leaf

    resolved = {name: replace_leaves(value, change) for name, value in parameters.items()}
    for item in wait_for:
        replace_leaves(item, change)
    return resolved
