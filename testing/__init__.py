"""What people test their flows and rules with. Names are loaded on first use.

- ``harness()``: a real broker and a temporary home, in a fraction of a second; flows called inside are tracked there.
- ``service(config)``: everything ``hark up`` runs, in this process, on such a home.
- ``rule_test(rule, given=…, expect=…)``: one rule over events of yours, in virtual time.
- ``replay(events, *rules)``: what rules decide over a history.
- ``capture_notifications()``: what would have been sent to people.
- ``ManualClock``: time that moves when it is told to.

With pytest, the fixtures of ``hark.testing.plugin`` are there without asking, and the ``tests:`` inside ``hark.yaml`` and
``*.rules.yaml`` are collected as tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..automations import Backtest, TestOutcome
    from ..clock import ManualClock
    from .capture import CapturedNotifications, SentNotification, capture_notifications
    from .rig import Harness, hark_test_harness, harness
    from .rules import replay, rule_test
    from .running import service

_WHERE = {
    "Backtest": "..automations.backtest",
    "CapturedNotifications": ".capture",
    "Harness": ".rig",
    "ManualClock": "..clock",
    "SentNotification": ".capture",
    "TestOutcome": "..automations.ruletest",
    "capture_notifications": ".capture",
    "hark_test_harness": ".rig",
    "harness": ".rig",
    "replay": ".rules",
    "rule_test": ".rules",
    "service": ".running",
}

__all__ = [
    "Backtest", "CapturedNotifications", "Harness", "ManualClock", "SentNotification", "TestOutcome",
    "capture_notifications", "hark_test_harness", "harness", "replay", "rule_test", "service",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module, __name__), name)
    globals()[name] = value
    return value
