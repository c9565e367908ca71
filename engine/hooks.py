"""State hooks: functions of the author's that are told of a run's states.

What a hook raises is logged and goes no further: it can change nothing about the run.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from .states import State, StateType

if TYPE_CHECKING:
    from ..bus.session import Session
    from ..config import EngineConfig
    from .run import FlowRun

__all__ = [
    "HOOK_OF_TYPE", "Hook", "call_blocking", "call_owed_hooks", "call_owed_hooks_async", "check_hooks", "hooks_of_end", "run_hooks",
    "run_hooks_async",
]  # fmt: skip

log = logging.getLogger("hark.engine")

Hook: TypeAlias = Callable[..., Any]
"""``hook(flow, flow_run, state)`` or ``hook(task, task_run, state)``; sync or async."""

HOOK_OF_TYPE = {
    StateType.RUNNING: "on_running",
    StateType.COMPLETED: "on_completion",
    StateType.FAILED: "on_failure",
    StateType.CANCELLED: "on_cancellation",
    StateType.CRASHED: "on_crashed",
}


def hooks_of_end(flow: Any, state: State) -> list[Hook]:
    """Return the hooks of a flow that are told of its end. To return ``Cancelling()`` is to be cancelled."""
    if state.type is StateType.CANCELLING:
        return list(flow.hooks["on_cancellation"])
    return list(flow.hooks.get(HOOK_OF_TYPE.get(state.type, ""), ()))


def check_hooks(argument: str, hooks: object) -> list[Hook]:
    """Return hooks as a list.

    Raises:
        TypeError: not an iterable of callables.
    """
    if hooks is None:
        return []
    if callable(hooks) or not isinstance(hooks, Iterable):
        raise _no_hooks("iterable for", argument, hooks)
    found = list(hooks)
    for hook in found:
        if not callable(hook):
            raise _no_hooks("callables in", argument, hook)
    return found


def _no_hooks(wanted: str, argument: str, got: object) -> TypeError:
    return TypeError(
        f"Expected {wanted} {argument!r}; got {type(got).__name__} instead. Please provide a list of hooks to "
        f"{argument!r}: {argument}=[hook1, hook2]"
    )


def run_hooks(hooks: Sequence[Hook], subject: Any, run: Any, state: State) -> None:
    """Call each hook, in order, in this thread."""
    for hook in hooks:
        try:
            call_blocking(hook, subject, run, state)
        except Exception:
            _report(hook, run)


async def run_hooks_async(hooks: Sequence[Hook], subject: Any, run: Any, state: State) -> None:
    """Call each hook, in order, awaiting async ones."""
    for hook in hooks:
        try:
            outcome = hook(subject, run, state)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception:
            _report(hook, run)


def call_owed_hooks(flow: Any, run: FlowRun, session: Session, config: EngineConfig | None = None) -> None:
    """Undo what the run had begun and call the hooks of its end, where its writer could not, and note it; in this thread.

    What has been done is not repeated.
    """
    from .flow_engine import go_through
    from .hook_log import HookLog
    from .undoing import alone_undoing, engine_to_undo

    hooks = flow.hooks.get(HOOK_OF_TYPE.get(run.state_type)) or ()
    log_of_hooks = HookLog(session.bus)
    undoing = engine_to_undo(flow, run, session, config)
    begin = partial(log_of_hooks.begin, run, undoes=undoing is not None)
    if (hooks or undoing is not None) and (attempt := session.call(begin)):
        if undoing is not None and _may_undo(attempt, run):
            with alone_undoing(undoing, session) as is_ours:
                if is_ours:
                    go_through(undoing, session)
        run_hooks(hooks, flow, run, run.state)
        session.call(log_of_hooks.note, run, "ran")


async def call_owed_hooks_async(
    flow: Any, run: FlowRun, session: Session, config: EngineConfig | None = None
) -> None:
    """As ``call_owed_hooks``, awaiting async hooks in this loop."""
    from .flow_engine import go_through_async
    from .hook_log import HookLog
    from .undoing import alone_undoing_async, engine_to_undo_async

    hooks = flow.hooks.get(HOOK_OF_TYPE.get(run.state_type)) or ()
    log_of_hooks = HookLog(session.bus)
    undoing = await engine_to_undo_async(flow, run, session, config)
    begin = partial(log_of_hooks.begin, run, undoes=undoing is not None)
    if (hooks or undoing is not None) and (attempt := await session.acall(begin)):
        if undoing is not None and _may_undo(attempt, run):
            async with alone_undoing_async(undoing, session) as is_ours:
                if is_ours:
                    await go_through_async(undoing, session)
        await run_hooks_async(hooks, flow, run, run.state)
        await session.acall(log_of_hooks.note, run, "ran")


def _may_undo(attempt: int, run: FlowRun) -> bool:
    """Whether the run is gone through once more: code that ends its process on the way must not cost the run its hooks."""
    from .hook_log import TRIES

    if attempt < TRIES:
        return True
    log.error(
        "rollback.abandoned", extra={"run_id": run.id, "why": "each process that undid the run has died"}
    )
    return False


def call_blocking(fn: Callable[..., Any], *args: Any) -> Any:
    """Return what ``fn`` returns, waiting for it if it is async, also inside a running event loop."""
    outcome = fn(*args)
    if not inspect.isawaitable(outcome):
        return outcome

    async def finish() -> Any:
        return await outcome

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(finish())
    # This thread's loop is busy running us, so the coroutine gets a thread and a loop of its own.
    import contextvars
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, finish()).result()


def _report(hook: Hook, run: Any) -> None:
    name = getattr(hook, "__name__", None) or getattr(getattr(hook, "func", None), "__name__", repr(hook))
    log.exception("hook %r of run %r failed", name, run.name, extra={"run_id": run.id})
