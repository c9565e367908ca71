"""When, if, then: the rule model, the matcher, the fold, actions.

Names are loaded on first use, so that who needs an ``Automation`` does not pay for an HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dead_letter import DeadLetter, DeadLetters
    from .engine import RuleEngine
    from .explain import Look, explain_event
    from .fold import Fold, FoldConfig
    from .lint import Warned, lint_automation
    from .matcher import Matcher
    from .model import Automation, EventPattern, RuleTest, parse_automation
    from .outbox import Outbox
    from .perform import ActionFailed, Performers
    from .problem import Problem, RuleInvalid, problems_of
    from .ruletest import TestOutcome, run_tests
    from .where import Predicate, compile_where

_WHERE = {
    "DeadLetter": "dead_letter", "DeadLetters": "dead_letter", "RuleEngine": "engine", "Look": "explain",
    "explain_event": "explain", "Fold": "fold", "FoldConfig": "fold", "Warned": "lint", "lint_automation": "lint",
    "Matcher": "matcher", "Automation": "model", "EventPattern": "model", "RuleTest": "model",
    "parse_automation": "model", "Outbox": "outbox", "ActionFailed": "perform", "Performers": "perform",
    "Problem": "problem", "RuleInvalid": "problem", "problems_of": "problem", "TestOutcome": "ruletest",
    "run_tests": "ruletest", "Predicate": "where", "compile_where": "where",
}  # fmt: skip

__all__ = [
    "ActionFailed", "Automation", "DeadLetter", "DeadLetters", "EventPattern", "Fold", "FoldConfig", "Look", "Matcher",
    "Outbox", "Performers", "Predicate", "Problem", "RuleEngine", "RuleInvalid", "RuleTest", "TestOutcome", "Warned",
    "compile_where", "explain_event", "lint_automation", "parse_automation", "problems_of", "run_tests",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
