"""Hark: event-driven automation and workflows in Python. The event log is the database.

The names below are loaded on first use, so that ``import hark`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bus.emit import emit
    from .bus.event import Event
    from .engine import runtime
    from .engine.annotations import allow_failure, quote, unmapped
    from .engine.context import get_run_context, tags
    from .engine.flows import Flow, flow
    from .engine.logging import get_run_logger
    from .engine.signals import Abort, Skip
    from .engine.states import State
    from .engine.tasks import Task, exponential_backoff, task
    from .server.client import Hark

_WHERE = {
    "Abort": ".engine.signals",
    "Event": ".bus.event",
    "Flow": ".engine.flows",
    "Hark": ".server.client",
    "Skip": ".engine.signals",
    "State": ".engine.states",
    "Task": ".engine.tasks",
    "allow_failure": ".engine.annotations",
    "emit": ".bus.emit",
    "exponential_backoff": ".engine.tasks",
    "flow": ".engine.flows",
    "get_run_context": ".engine.context",
    "get_run_logger": ".engine.logging",
    "quote": ".engine.annotations",
    "tags": ".engine.context",
    "task": ".engine.tasks",
    "unmapped": ".engine.annotations",
}

__all__ = [
    "Abort", "Event", "Flow", "Hark", "Skip", "State", "Task", "allow_failure", "emit", "exponential_backoff", "flow",
    "get_run_context", "get_run_logger", "quote", "runtime", "tags", "task", "unmapped",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "runtime":
        return import_module(".engine.runtime", __name__)
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
