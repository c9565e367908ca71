"""Hark: event-driven automation and workflows in Python. The event log is the database.

The names below are loaded on first use, so that ``import hark`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import dotted

if TYPE_CHECKING:
    from .automations.event_wait import await_for_event, wait_for_event
    from .bus.emit import emit
    from .bus.event import Event
    from .engine import runtime
    from .engine.annotations import allow_failure, quote, unmapped
    from .engine.blocks import Block
    from .engine.concurrency import concurrency, rate_limit
    from .engine.context import get_run_context, tags
    from .engine.deployments import arun_deployment, run_deployment
    from .engine.flow_runs import (
        acancel_flow_run,
        apause_flow_run,
        aresume_flow_run,
        asuspend_flow_run,
        await_for_flow_run,
        cancel_flow_run,
        pause_flow_run,
        resume_flow_run,
        suspend_flow_run,
        wait_for_flow_run,
    )
    from .engine.flows import Flow, flow
    from .engine.logging import get_run_logger
    from .engine.pausing.sleeping import sleep
    from .engine.run_input import RunInput
    from .engine.secret import Secret
    from .engine.signals import Abort, Skip
    from .engine.states import State
    from .engine.tasks import Task, exponential_backoff, task
    from .engine.transactions import Transaction, get_transaction, transaction
    from .engine.values import Variable
    from .server.client import Hark
    from .server.prefect_client import get_client
    from .server.serving import aserve, deploy, serve

_WHERE = {
    "Abort": ".engine.signals",
    "Block": ".engine.blocks",
    "Event": ".bus.event",
    "Flow": ".engine.flows",
    "Hark": ".server.client",
    "RunInput": ".engine.run_input",
    "Secret": ".engine.secret",
    "Skip": ".engine.signals",
    "State": ".engine.states",
    "Task": ".engine.tasks",
    "Transaction": ".engine.transactions",
    "Variable": ".engine.values",
    "acancel_flow_run": ".engine.flow_runs",
    "allow_failure": ".engine.annotations",
    "apause_flow_run": ".engine.flow_runs",
    "aresume_flow_run": ".engine.flow_runs",
    "aserve": ".server.serving",
    "arun_deployment": ".engine.deployments",
    "asuspend_flow_run": ".engine.flow_runs",
    "await_for_event": ".automations.event_wait",
    "await_for_flow_run": ".engine.flow_runs",
    "cancel_flow_run": ".engine.flow_runs",
    "concurrency": ".engine.concurrency",
    "deploy": ".server.serving",
    "emit": ".bus.emit",
    "exponential_backoff": ".engine.tasks",
    "flow": ".engine.flows",
    "get_client": ".server.prefect_client",
    "get_run_context": ".engine.context",
    "get_run_logger": ".engine.logging",
    "get_transaction": ".engine.transactions",
    "pause_flow_run": ".engine.flow_runs",
    "quote": ".engine.annotations",
    "rate_limit": ".engine.concurrency",
    "resume_flow_run": ".engine.flow_runs",
    "run_deployment": ".engine.deployments",
    "serve": ".server.serving",
    "sleep": ".engine.pausing.sleeping",
    "suspend_flow_run": ".engine.flow_runs",
    "tags": ".engine.context",
    "task": ".engine.tasks",
    "transaction": ".engine.transactions",
    "unmapped": ".engine.annotations",
    "wait_for_event": ".automations.event_wait",
    "wait_for_flow_run": ".engine.flow_runs",
}

__all__ = [
    "Abort", "Block", "Event", "Flow", "Hark", "RunInput", "Secret", "Skip", "State", "Task", "Transaction",
    "Variable",
    "acancel_flow_run", "allow_failure", "apause_flow_run", "aresume_flow_run", "arun_deployment", "aserve",
    "asuspend_flow_run", "await_for_event", "await_for_flow_run", "cancel_flow_run", "concurrency",
    "deploy", "emit", "exponential_backoff", "flow", "get_client", "get_run_context", "get_run_logger", "get_transaction",
    "pause_flow_run", "quote", "rate_limit", "resume_flow_run", "run_deployment", "runtime", "serve", "sleep",
    "suspend_flow_run", "tags", "task", "transaction", "unmapped", "wait_for_event", "wait_for_flow_run",
]  # fmt: skip

dotted.install(__name__)


def __getattr__(name: str) -> object:
    if name == "runtime":
        return import_module(".engine.runtime", __name__)
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    module = _WHERE.get(name)
    if module is None and name in dotted.NAMES:
        return import_module(f".{name}", __name__)  # hark.states and its kind, which nobody need import first
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
