"""When, if, then: the rule model, the matcher, the fold, actions.

Rules from Python are the models that YAML parses into::

    from hark.automations import Automation, Notify, Step

    rule = Automation(
        name="deploy-then-errors",
        sequence=[Step(as_="deploy", on="deploy.finished"),
                  Step(on="app.error", where={"data.service": "{{ deploy.data.service }}"}, count=5)],
        within="15m", do=[Notify(notify="oncall")],
    )
    async with Hark() as hark:
        await hark.save_automation(rule)

Names are loaded on first use, so that who needs an ``Automation`` does not pay for an HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .acting.approval import Approval, ApprovalLinks, Approvals
    from .acting.dead_letter import DeadLetter, DeadLetters
    from .acting.outbox import Outbox
    from .acting.perform import ActionFailed, Performers
    from .action import Approve, Call, Cancel, Emit, Notify, Pause, Resume, Retry, Run, SetState, Suspend
    from .analysis.backtest import Backtest, backtest_lines, backtest_log
    from .analysis.explain import Look, explain_event
    from .analysis.hindsight import Judgement, explain_moment
    from .analysis.lint import Warned, lint_automation
    from .analysis.ruletest import TestOutcome, run_tests
    from .composite import AnyOf, Branch, Debounce, Metric, Resolve, Step
    from .deployment_trigger import (
        DeploymentCompoundTrigger,
        DeploymentEventTrigger,
        DeploymentMetricTrigger,
        DeploymentSequenceTrigger,
        DeploymentTrigger,
    )
    from .folding.engine import RuleEngine
    from .folding.fold import Fold, FoldConfig
    from .given import RuleTest
    from .matching.matcher import Matcher
    from .matching.where import Predicate, compile_where
    from .model import Automation, parse_automation
    from .pattern import EventPattern
    from .problem import Problem, RuleInvalid, problems_of

_NAMES = {
    "action": (
        "Approve", "Call", "Cancel", "Emit", "Notify", "Pause", "Resume", "Retry", "Run", "SetState", "Suspend",
    ),
    "acting.approval": ("Approval", "ApprovalLinks", "Approvals"),
    "analysis.backtest": ("Backtest", "backtest_lines", "backtest_log"),
    "composite": ("AnyOf", "Branch", "Debounce", "Metric", "Resolve", "Step"),
    "acting.dead_letter": ("DeadLetter", "DeadLetters"),
    "deployment_trigger": (
        "DeploymentCompoundTrigger", "DeploymentEventTrigger", "DeploymentMetricTrigger", "DeploymentSequenceTrigger",
        "DeploymentTrigger",
    ),
    "folding.engine": ("RuleEngine",),
    "analysis.explain": ("Look", "explain_event"),
    "folding.fold": ("Fold", "FoldConfig"),
    "given": ("RuleTest",),
    "analysis.hindsight": ("Judgement", "explain_moment"),
    "analysis.lint": ("Warned", "lint_automation"),
    "matching.matcher": ("Matcher",),
    "model": ("Automation", "parse_automation"),
    "acting.outbox": ("Outbox",),
    "pattern": ("EventPattern",),
    "acting.perform": ("ActionFailed", "Performers"),
    "prefect_action": (
        "CallWebhook", "CancelFlowRun", "ChangeFlowRunState", "DeclareIncident", "DeleteFlowRun", "DoNothing",
        "PauseAutomation", "PauseDeployment", "PauseWorkPool", "PauseWorkQueue", "ResumeAutomation", "ResumeDeployment",
        "ResumeFlowRun", "ResumeWorkPool", "ResumeWorkQueue", "RunDeployment", "SendNotification", "SuspendFlowRun",
    ),
    "prefect_automation": ("AutomationCore",),
    "prefect_trigger": (
        "CompositeTrigger", "CompoundTrigger", "EventTrigger", "MetricTrigger", "MetricTriggerOperator",
        "MetricTriggerQuery", "Posture", "PrefectMetric", "ResourceSpecification", "ResourceTrigger", "SequenceTrigger", "Trigger",
    ),
    "problem": ("Problem", "RuleInvalid", "problems_of"),
    "analysis.ruletest": ("TestOutcome", "run_tests"),
    "matching.where": ("Predicate", "compile_where"),
}  # fmt: skip
_WHERE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "ActionFailed", "AnyOf", "Approval", "ApprovalLinks", "Approvals", "Approve", "Automation", "Backtest", "Branch",
    "Call", "Cancel", "DeadLetter", "DeadLetters", "Debounce", "DeploymentCompoundTrigger", "DeploymentEventTrigger",
    "DeploymentMetricTrigger", "DeploymentSequenceTrigger", "DeploymentTrigger", "Emit", "EventPattern", "Fold", "FoldConfig",
    "Judgement", "Look", "Matcher", "Metric", "Notify", "Outbox", "Pause", "Performers", "Predicate", "Problem",
    "Resolve", "Resume", "Retry", "RuleEngine", "RuleInvalid", "RuleTest", "Run", "SetState", "Step", "Suspend",
    "TestOutcome", "Warned", "backtest_lines", "backtest_log", "compile_where", "explain_event", "explain_moment",
    "lint_automation", "parse_automation", "problems_of", "run_tests",
]  # fmt: skip


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
