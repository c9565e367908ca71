"""State hooks: functions of the author's that are told of a run's states.

What a hook raises is logged and goes no further: it can change nothing about the run.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from ..signals import OF_THE_CODE, suspension_in
from ..states import State, StateType

__all__ = [
    "HOOK_OF_TYPE", "Hook", "call_blocking", "check_hooks", "hooks_of_end", "hooks_scope", "note_task_hooks", "run_hooks",
    "run_hooks_async", "tasks_have_hooks",
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


_noted: list[bool] = []


def note_task_hooks() -> None:
    """Note that a task of this process has hooks."""
    if not _noted:
        _noted.append(True)


def tasks_have_hooks() -> bool:
    """Whether any task of this process has hooks: then a run may come to owe some, whatever its flow has."""
    return bool(_noted)


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
        except BaseException as exc:
            if not _is_its_own(exc, state):
                raise
            _report(hook, run)


async def run_hooks_async(hooks: Sequence[Hook], subject: Any, run: Any, state: State) -> None:
    """Call each hook, in order, awaiting async ones."""
    for hook in hooks:
        try:
            outcome = hook(subject, run, state)
            if inspect.isawaitable(outcome):
                await outcome
        except BaseException as exc:
            if not _is_its_own(exc, state):
                raise
            _report(hook, run)


def _is_its_own(exc: BaseException, state: State) -> bool:
    """Whether what left a hook is a matter of this hook alone. What has ended cannot leave its worker, nor can a hook end that."""
    if isinstance(exc, (*OF_THE_CODE, SystemExit)):
        return True
    return state.type.is_terminal and suspension_in(exc) is not None


def hooks_scope(run: Any) -> str:
    """Return what tells the calls that the hooks of a run's end make from its own, and from those of another end's hooks."""
    return f"hooks of {run.seq}"


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
