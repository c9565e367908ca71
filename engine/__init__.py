"""Running work: flows, tasks, states, futures, results, resume, deployments, workers.

Names are loaded on first use, so that who needs a state does not pay for a worker.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .annotations import allow_failure, quote, unmapped
    from .context import FlowRunContext, TaskRunContext, get_run_context, tags
    from .dispatching.control import Control
    from .dispatching.deployment import ConcurrencySpec, Deployment
    from .dispatching.dispatcher import Dispatcher
    from .dispatching.pool import Pool, QueueSpec
    from .flows import Flow, flow
    from .futures import TaskFuture, as_completed, wait
    from .life.flow_engine import execute, execute_sync
    from .logging import get_run_logger
    from .runs.run import Cause, FlowRun, RunRequest, run_id_for
    from .runs.run_log import RunLog
    from .signals import Abort, Skip
    from .states import State
    from .task_runners import (
        AsyncTaskRunner,
        ConcurrentTaskRunner,
        DaskTaskRunner,
        ProcessPoolTaskRunner,
        SequentialTaskRunner,
        TaskRunner,
        ThreadPoolTaskRunner,
    )
    from .tasks import Task, exponential_backoff, task
    from .workers.worker import Worker

_WHERE = {
    "Abort": "signals",
    "AsyncTaskRunner": "task_runners",
    "Cause": "runs.run",
    "ConcurrentTaskRunner": "task_runners",
    "ConcurrencySpec": "dispatching.deployment",
    "DaskTaskRunner": "task_runners",
    "Control": "dispatching.control",
    "Deployment": "dispatching.deployment",
    "Dispatcher": "dispatching.dispatcher",
    "Flow": "flows",
    "FlowRun": "runs.run",
    "FlowRunContext": "context",
    "Pool": "dispatching.pool",
    "ProcessPoolTaskRunner": "task_runners",
    "QueueSpec": "dispatching.pool",
    "RunLog": "runs.run_log",
    "RunRequest": "runs.run",
    "SequentialTaskRunner": "task_runners",
    "Skip": "signals",
    "State": "states",
    "Task": "tasks",
    "TaskFuture": "futures",
    "TaskRunContext": "context",
    "TaskRunner": "task_runners",
    "ThreadPoolTaskRunner": "task_runners",
    "Worker": "workers.worker",
    "allow_failure": "annotations",
    "as_completed": "futures",
    "execute": "life.flow_engine",
    "execute_sync": "life.flow_engine",
    "exponential_backoff": "tasks",
    "flow": "flows",
    "get_run_context": "context",
    "get_run_logger": "logging",
    "quote": "annotations",
    "run_id_for": "runs.run",
    "tags": "context",
    "task": "tasks",
    "unmapped": "annotations",
    "wait": "futures",
}

__all__ = [
    "Abort", "AsyncTaskRunner", "Cause", "ConcurrencySpec", "ConcurrentTaskRunner", "Control", "DaskTaskRunner", "Deployment", "Dispatcher", "Flow", "FlowRun", "FlowRunContext", "Pool", "ProcessPoolTaskRunner", "QueueSpec", "RunLog",
    "RunRequest", "SequentialTaskRunner", "Skip", "State", "Task", "TaskFuture", "TaskRunContext", "TaskRunner",
    "ThreadPoolTaskRunner", "Worker", "allow_failure", "as_completed", "execute", "execute_sync", "exponential_backoff", "flow",
    "get_run_context", "get_run_logger", "quote", "run_id_for", "tags", "task", "unmapped", "wait",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
