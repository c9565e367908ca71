"""Calling the hooks of an end whose writer could not: in a process that has loaded the run's code, and in the run's context.

What had been begun is undone first (``undoing.py``). The hooks find all that they would have found in the run's own process:
its context, its logger, and tasks, which run as tasks of the run. A hook that was cut off is called from its beginning, and
so are the tasks it calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..calls.call_key import CallCounter
from ..calls.parameters import recorded_parameters
from ..options.hooks import HOOK_OF_TYPE, Hook, hooks_scope
from ..runs.hook_log import TRIES, HookLog, is_from_outside
from .flow_driver import drive, drive_async
from .flow_engine import go_through, go_through_async, worker_engine
from .flow_steps import CallHooks, Drain, OnBus, Take
from .owed_rollbacks import OwedRollback, owed_rollbacks, roll_back
from .owed_task_hooks import OwedCall, owed_calls, tell_owed
from .undoing import alone_undoing, alone_undoing_async, engine_to_undo, engine_to_undo_async

if TYPE_CHECKING:
    from ...bus.session import Session
    from ...config import EngineConfig
    from ..flows import Flow
    from ..runs.run import FlowRun
    from .flow_life import FlowEngine
    from .flow_steps import Life

__all__ = ["call_owed_hooks", "call_owed_hooks_async", "call_owed_task_hooks", "call_owed_task_hooks_async"]

log = logging.getLogger("hark.engine")


def call_owed_hooks(
    flow: Flow[..., Any],
    run: FlowRun,
    session: Session,
    config: EngineConfig | None = None,
    find_module: Callable[[str], ModuleType] = import_module,
    *,
    is_script: bool = False,
) -> None:
    """Undo what the run had begun and call the hooks of its end, where its writer could not, and note it; in this thread.

    What has been done is not repeated.

    Args:
        is_script: it is a plain call, or part of one: its code is not gone through to undo it.
    """
    if flow.isasync:
        asyncio.run(call_owed_hooks_async(flow, run, session, config, find_module, is_script=is_script))
        return
    hooks = _hooks_of(flow, run)
    undoing = engine_to_undo(flow, run, session, config)
    rollbacks = session.call(owed_rollbacks, session.bus, run) if is_script else []
    begin = partial(HookLog(session.bus).begin, run, undoes=undoing is not None)
    calls = session.call(owed_calls, session.bus, run) if is_from_outside(run) and run.attempt else []
    if (hooks or calls or rollbacks or undoing is not None) and (attempt := session.call(begin)):
        if undoing is not None and _may_undo(attempt, run):
            with alone_undoing(undoing, session) as is_ours:
                if is_ours:
                    go_through(undoing, session)
        if rollbacks and not _may_undo(attempt, run):
            rollbacks = []
        engine = _engine(flow, run, session, config, find_module)
        drive(engine, session, _life(engine, hooks, calls, rollbacks))


async def call_owed_hooks_async(
    flow: Flow[..., Any],
    run: FlowRun,
    session: Session,
    config: EngineConfig | None = None,
    find_module: Callable[[str], ModuleType] = import_module,
    *,
    is_script: bool = False,
) -> None:
    """As ``call_owed_hooks``, awaiting async hooks in this loop."""
    hooks = _hooks_of(flow, run)
    undoing = await engine_to_undo_async(flow, run, session, config)
    rollbacks = await session.acall(owed_rollbacks, session.bus, run) if is_script else []
    begin = partial(HookLog(session.bus).begin, run, undoes=undoing is not None)
    calls = await session.acall(owed_calls, session.bus, run) if is_from_outside(run) and run.attempt else []
    if (hooks or calls or rollbacks or undoing is not None) and (attempt := await session.acall(begin)):
        if undoing is not None and _may_undo(attempt, run):
            async with alone_undoing_async(undoing, session) as is_ours:
                if is_ours:
                    await go_through_async(undoing, session)
        if rollbacks and not _may_undo(attempt, run):
            rollbacks = []
        engine = _engine(flow, run, session, config, find_module)
        await drive_async(engine, session, _no_body, _life(engine, hooks, calls, rollbacks))


def call_owed_task_hooks(
    run: FlowRun,
    session: Session,
    config: EngineConfig | None = None,
    find_module: Callable[[str], ModuleType] = import_module,
) -> None:
    """Call the hooks that tasks of a run are owed whose own code cannot be had; those of the run are left to be given up."""
    calls = session.call(_begun_calls, session, run)
    if calls:
        engine = _engine(_stand_in(run), run, session, config, find_module)
        drive(engine, session, _life_of_calls(engine, calls))


async def call_owed_task_hooks_async(
    run: FlowRun,
    session: Session,
    config: EngineConfig | None = None,
    find_module: Callable[[str], ModuleType] = import_module,
) -> None:
    """As ``call_owed_task_hooks``, awaiting async hooks in this loop."""
    calls = await session.acall(_begun_calls, session, run)
    if calls:
        engine = _engine(_stand_in(run), run, session, config, find_module)
        await drive_async(engine, session, _no_body, _life_of_calls(engine, calls))


async def _begun_calls(session: Session, run: FlowRun) -> list[OwedCall]:
    """Return what is owed to tasks of the run, once it is noted that this is begun; nothing where that was done too often."""
    if not (is_from_outside(run) and run.attempt):
        return []
    calls = await owed_calls(session.bus, run)
    return calls if calls and await HookLog(session.bus).begin(run) else []


def _stand_in(run: FlowRun) -> Flow[..., Any]:
    """Return what stands for a flow whose code is gone: its name, and nothing else."""
    from ..flows import Flow

    return Flow(_no_body, name=run.flow_name, validate_parameters=False)


def _life_of_calls(engine: FlowEngine, calls: list[OwedCall]) -> Life:
    assert engine.tracker is not None
    yield from tell_owed(engine.context, calls)
    yield Drain()
    yield OnBus(engine.tracker.barrier)
    return engine.run.state


def _hooks_of(flow: Flow[..., Any], run: FlowRun) -> list[Hook]:
    return list(flow.hooks.get(HOOK_OF_TYPE.get(run.state_type, ""), ()))


def _engine(
    flow: Flow[..., Any],
    run: FlowRun,
    session: Session,
    config: EngineConfig | None,
    find_module: Callable[[str], ModuleType],
) -> FlowEngine:
    engine = worker_engine(flow, run, session, interrupted="crash", config=config, find_module=find_module)
    engine.context.parameters = run.parameters if flow.fn is _no_body else recorded_parameters(flow, run)
    return engine


def _life(
    engine: FlowEngine, hooks: list[Hook], calls: list[OwedCall], rollbacks: list[OwedRollback]
) -> Life:
    tracker = engine.tracker
    assert tracker is not None
    if rollbacks:
        engine.context.calls = CallCounter(f"rollback before {hooks_scope(engine.run)}")
        yield Take(roll_back(engine.context, rollbacks))
        yield OnBus(tracker.barrier)
    yield from tell_owed(engine.context, calls)
    engine.context.calls = CallCounter(hooks_scope(engine.run))
    yield CallHooks(hooks, engine.run.state)
    yield Drain()
    yield OnBus(tracker.note_hooks)
    return engine.run.state


async def _no_body(**_: Any) -> Any:
    raise AssertionError("hooks are called of a run that has ended")


def _may_undo(attempt: int, run: FlowRun) -> bool:
    """Whether the run is gone through once more: code that ends its process on the way must not cost the run its hooks."""
    if attempt < TRIES:
        return True
    log.error(
        "rollback.abandoned", extra={"run_id": run.id, "why": "each process that undid the run has died"}
    )
    return False
