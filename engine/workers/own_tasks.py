"""The tasks of a worker's loop, as a run is told of them: its own.

Async flows share a loop with each other and with the worker itself. Code that was written for a program of its own takes all tasks
of the loop for its own, and cancels them when it cleans up: ``for task in asyncio.all_tasks(): task.cancel()``. That would stop all other
runs, and the worker. So ``asyncio.all_tasks()`` in the code of a run returns what that run has made, and the task that it is in.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from ..context import FlowRunContext, TaskRunContext, current_run

__all__ = ["own_tasks_only"]

Task = asyncio.Task[Any]
AnyRun: TypeAlias = FlowRunContext | TaskRunContext

_ROOT = __package__.partition(".")[0]
_SHARED = (f"{_ROOT}.bus.", "nats.")
"""Modules whose tasks serve all runs, whichever of them was the first to need one."""
_NOT_SHARED = f"{_ROOT}.bus.emit."
"""A function that users call."""

_lock = threading.Lock()
_loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
"""Those of workers."""
_all_tasks = asyncio.all_tasks


@contextmanager
def own_tasks_only() -> Generator[None]:
    """Have each run that is executed in this loop be told of its own tasks, while inside. For other loops nothing changes."""
    loop = asyncio.get_running_loop()
    with _lock:
        if not _loops:
            asyncio.all_tasks = asyncio.tasks.all_tasks = _tasks_seen
        _loops.add(loop)
    noting: Any = _noting
    if loop.get_task_factory() is None:
        loop.set_task_factory(noting)
    try:
        yield
    finally:
        if loop.get_task_factory() is noting:
            loop.set_task_factory(None)
        with _lock:
            _loops.discard(loop)
            if not _loops:
                asyncio.all_tasks = asyncio.tasks.all_tasks = _all_tasks


def _tasks_seen(loop: asyncio.AbstractEventLoop | None = None) -> set[Task]:
    """Stand for ``asyncio.all_tasks``."""
    loop = loop or asyncio.get_running_loop()
    found = _all_tasks(loop)
    run = current_run.get()
    if run is None or loop not in _loops:
        return found
    around = _around(run)
    # A run is begun by the worker, in a task of the worker's.
    here = {one.loop_task for one in around if isinstance(one, FlowRunContext)} | {_current_task()}
    return {task for task in found if task in here or _is_of(task, around[-1])}


def _around(run: AnyRun) -> list[AnyRun]:
    """Return a run and those around it, in flows or outside any, innermost first."""
    around = [run]
    while (
        above := run.parent if isinstance(run, FlowRunContext) else run.caller or run.flow_context
    ) is not None:
        around.append(above)
        run = above
    return around


def _current_task() -> Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread
        return None


def _is_of(task: Task, outermost: AnyRun) -> bool:
    made_in = _made_in(task)
    if made_in is None or _around(made_in)[-1] is not outermost:
        return False
    frame = getattr(task.get_coro(), "cr_frame", None)
    module = f"{frame.f_globals.get('__name__')}." if frame is not None else ""
    return not module.startswith(_SHARED) or module == _NOT_SHARED


if sys.version_info >= (3, 12):

    def _made_in(task: Task) -> AnyRun | None:
        return task.get_context().get(current_run)

    _noting = None
else:
    _noted: WeakKeyDictionary[Task, AnyRun] = WeakKeyDictionary()

    def _made_in(task: Task) -> AnyRun | None:
        return _noted.get(task)

    def _noting(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **how: Any) -> Task:
        """Make a task as a loop makes it, and note the run in which. Before Python 3.12 a task does not tell its context."""
        task = asyncio.Task(coroutine, loop=loop, **how)
        context = how.get("context")
        if (run := (context or {}).get(current_run) or current_run.get()) is not None:
            _noted[task] = run
        return task
