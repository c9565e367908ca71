"""Running one flow run to its end: the entry points.

``run_flow`` and its kin are plain calls and subflows; ``execute`` and ``execute_sync`` are for workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

from ...tracing import current_traceparent
from ..calls.parameters import parameters_json
from ..code.script_code import code_of_call, refuse_while_loading
from ..code.subflow_code import entrypoint_within
from ..context import FlowRunContext, TaskRunContext, current_run, current_tags, refuse_if_leaving
from ..runs.naming import default_run_name
from ..runs.run import Cause, FlowRun, RunRequest, run_id_for
from ..states import State
from ..sync_async.side_session import SideSession
from ..sync_async.timeouts import within_async
from .caller import BEATS
from .flow_driver import body_async, body_in_thread, drive, drive_async
from .flow_generator import drive_generator, drive_generator_async
from .flow_life import FlowEngine
from .tracking import FlowTracker
from .undoing import Undoing

if TYPE_CHECKING:
    from ...bus.session import Session
    from ...config import EngineConfig
    from ..flows import Flow
    from ..runs.run_log import RunLog
    from .holding import Place

__all__ = [
    "HowToExecute", "execute", "execute_run", "execute_sync", "go_through", "go_through_async", "run_flow", "run_flow_async",
    "run_flow_generator", "run_flow_generator_async", "worker_engine",
]  # fmt: skip

OnInterruption: TypeAlias = Literal["leave", "crash"]


# --- plain calls and subflows -------------------------------------------------------------------------


def run_flow(flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()) -> State:
    """Run a sync flow in this thread; return its final state."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=True)
    return drive(engine, session)


async def run_flow_async(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()
) -> State:
    """Run an async flow in this event loop; return its final state."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=False)
    return await drive_async(engine, session, lambda: body_async(engine))


def run_flow_generator(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()
) -> Generator[Any, Any, Any]:
    """Run a flow that is a generator, passing on what it yields."""
    return (yield from drive_generator(*_engine_for(flow, parameters, wait_for, blocking=True)))


async def run_flow_generator_async(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any] = ()
) -> AsyncGenerator[Any, Any]:
    """Run a flow that is an async generator, passing on what it yields."""
    engine, session = _engine_for(flow, parameters, wait_for, blocking=False)
    values = drive_generator_async(engine, session)
    sent = None
    try:
        while True:
            try:
                value = await values.asend(sent)
            except StopAsyncIteration:
                return
            sent = yield value
    finally:
        await values.aclose()


def _engine_for(
    flow: Flow[..., Any], parameters: dict[str, Any], wait_for: Iterable[Any], *, blocking: bool
) -> tuple[FlowEngine, Session | None]:
    """Make the engine of a plain call or a subflow, tracked if its parent is, or if a broker is known.

    Raises:
        Suspend: the run above leaves the worker.
    """
    parent = current_run.get()
    refuse_if_leaving(parent)
    above = parent.flow_context if parent is not None else None
    session: Session | None
    if above is not None:
        session = above.tracker.session if above.tracker is not None else None
    else:
        from ...bus.session import current_session

        session = current_session()
    tracker: FlowTracker | None = None
    if above is None:
        refuse_while_loading(flow.name)
    place = code_of_call(flow, above) if session is not None else None
    run = _run_of_call(flow, parameters, parent, is_tracked=session is not None)
    if session is not None:
        tracker = _tracker_of_call(session, run, above, blocking=blocking)
        session = tracker.session
    if tracker is not None and place is not None:
        entrypoint, tracker.code = place
        run = tracker.flow_run = run.changed(entrypoint=entrypoint)
    engine = FlowEngine(flow, run, parameters=parameters, tracker=tracker, parent=parent, wait_for=wait_for)
    return engine, session


def _run_of_call(
    flow: Flow[..., Any],
    parameters: dict[str, Any],
    parent: FlowRunContext | TaskRunContext | None,
    *,
    is_tracked: bool,
) -> FlowRun:
    """Return the run that a call of a flow makes; inside another run, one whose id and cause follow from that."""
    above = parent.flow_context if parent is not None else None
    request = RunRequest(
        flow_name=flow.name, flow_version=flow.version, name=default_run_name(),
        parameters=parameters_json(parameters) if is_tracked and parameters else dict(parameters),
        tags=tuple(sorted(current_tags.get() | flow.tags)),
        parent=above.flow_run.id if above is not None else None,
        cause=Cause("flow-run", above.flow_run.flow_name) if above is not None else None,
        traceparent=current_traceparent(),
    )  # fmt: skip
    if above is None or parent is None:
        return FlowRun.requested(request, now=datetime.now(UTC), attempt=1)
    # The child's id follows from its place in the parent, so that a resumed parent finds it again.
    key, _ = parent.calls.key(f"flow:{flow.name}", parameters)
    # A parent that is run again from its start begins its children anew, too.
    anew = above.tracker.anew if above.tracker is not None else 0
    id_ = run_id_for("subflow", above.flow_run.id, key, *([str(anew)] if anew else []))
    above_run = above.flow_run
    return FlowRun.requested(replace(request, id=id_), now=datetime.now(UTC)).changed(
        correlationid=above_run.correlationid or above_run.id,
        causationid=above_run.event_id or above_run.causationid, causaldepth=above_run.causaldepth, attempt=1,
        entrypoint=entrypoint_within(above, flow),
    )  # fmt: skip


def _tracker_of_call(
    session: Session, run: FlowRun, above: FlowRunContext | None, *, blocking: bool
) -> FlowTracker:
    """Return the tracker of a run that a call makes; it goes on as the run above does."""
    from ...config import load_settings
    from ..runs.run_log import RunLog

    outer = above.tracker if above is not None else None
    config = load_settings().engine
    if blocking and session.is_own_loop:
        # The flow above owns it, and closes it at its end; a flow with none above closes its own.
        side = outer.side if outer is not None else SideSession(session.bus)
        session = side.session()
    tracker = FlowTracker(
        session,
        RunLog(session.bus),
        run,
        inline_bytes=config.inline_result_bytes,
        suspend_after_s=outer.suspend_after_s if outer is not None else config.suspend_after_s,
        leaves_interrupted=outer is not None and outer.leaves_interrupted,
        beat_s=config.ack_wait_s / BEATS if above is None else None,
    )
    if outer is not None and outer.undoing is not None:
        tracker.undoing = Undoing()
    return tracker


# --- workers ------------------------------------------------------------------------------------------


class HowToExecute(TypedDict, total=False):
    """What ``execute`` and its kin may be told besides the flow and its run."""

    run_log: RunLog | None
    interrupted: OnInterruption
    """What becomes of the run when the call is cancelled and nobody asked for the run to be cancelled: ``leave`` it RUNNING
    for another worker (the default), or record a ``crash``."""
    retries: int | None
    """Instead of the flow's own."""
    config: EngineConfig | None
    find_module: Callable[[str], ModuleType]
    """Returns the module of a name as the flow's own code sees it; the default imports it."""
    place: Place | None
    """Of the run in the worker: given back while all of it waits."""


def worker_engine(
    flow: Flow[..., Any], run: FlowRun, session: Session, **how: Unpack[HowToExecute]
) -> FlowEngine:
    """Return the engine of a run that a worker has in hands."""
    from ...config import EngineConfig as Defaults
    from ..runs.run_log import RunLog

    config = how.get("config") or Defaults()
    tracker = FlowTracker(
        session,
        how.get("run_log") or RunLog(session.bus),
        run,
        inline_bytes=config.inline_result_bytes,
        suspend_after_s=config.suspend_after_s,
        leaves_interrupted=how.get("interrupted", "leave") == "leave",
    )
    tracker.find_module = how.get("find_module", import_module)
    tracker.place = how.get("place")
    return FlowEngine(flow, run, parameters=None, tracker=tracker, retries=how.get("retries"))


async def execute(
    flow: Flow[..., Any], run: FlowRun, *, session: Session | None = None, **how: Unpack[HowToExecute]
) -> State:
    """Run one flow run to its end in this event loop and return its final state; a sync flow runs in a thread.

    The run may be SCHEDULED (``pending`` and ``running`` are appended), PENDING (``running`` is appended) or RUNNING
    (the caller has claimed it). From attempt 2 on, calls that an earlier attempt finished are not run again.

    Args:
        session: default: this process's own.
    Raises:
        RunLost: another worker has the run; nothing more was written.
        CancelledError: this call was cancelled; the run's end is written, if it was ours to write.
    """
    state, _ = await execute_run(flow, run, session=session, **how)
    return state


async def execute_run(
    flow: Flow[..., Any], run: FlowRun, *, session: Session | None = None, **how: Unpack[HowToExecute]
) -> tuple[State, FlowRun]:
    """Do what ``execute`` does; return the run after its last transition here, too."""
    session = session or _session_here()
    engine = worker_engine(flow, run, session, **how)
    state = await drive_async(engine, session, _body_of(engine))
    return state, engine.run


def _body_of(engine: FlowEngine) -> Callable[[], Awaitable[Any]]:
    flow = engine.flow

    async def body() -> Any:
        if not flow.isasync:
            return await body_in_thread(engine)
        if not flow.isgenerator:
            return await body_async(engine)
        with engine.entering():
            async with within_async(flow.timeout_seconds, engine.limit_text):
                return [item async for item in engine.call_function()]

    return body


def execute_sync(
    flow: Flow[..., Any], run: FlowRun, *, session: Session | None = None, **how: Unpack[HowToExecute]
) -> State:
    """Run one flow run to its end in this thread, whose session lives on another; see ``execute``.

    For the main thread of a process of its own, where time limits can interrupt anything. An interruption is a
    ``BaseException`` raised in this thread, such as ``Interrupted`` by a signal handler.
    """
    if flow.isasync:
        return asyncio.run(execute(flow, run, session=session, **how))
    session = session or _session_here()
    return drive(worker_engine(flow, run, session, **how), session)


def go_through(engine: FlowEngine, session: Session) -> None:
    """Go through a run that has ended, in this thread, to undo what it had begun; see ``undoing.py``."""
    if engine.flow.isasync:
        asyncio.run(go_through_async(engine, session))
    else:
        drive(engine, session)


async def go_through_async(engine: FlowEngine, session: Session) -> None:
    """Do what ``go_through`` does, in this event loop."""
    await drive_async(engine, session, _body_of(engine))


def _session_here() -> Session:
    from ...bus.session import current_session
    from ...errors import BusUnavailable

    session = current_session(tracking=False)
    if session is None:
        raise BusUnavailable("executing a run needs a broker, and none is known")
    return session
