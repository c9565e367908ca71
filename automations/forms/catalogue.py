"""Which form a rule has, and a fresh one of it."""

from __future__ import annotations

from ..model import Automation
from .absence import Absence, Heartbeat
from .counting import Counting
from .debounce import Debouncing
from .form import Arm, Form
from .group import Group
from .metric import Measuring
from .queue_depth import QueueDepth
from .sequence import Sequence

__all__ = ["form_of"]


def form_of(automation: Automation, *, lateness_s: float, arm: Arm) -> Form:
    """Return a fresh form for a rule.

    Args:
        lateness_s: how late events may be, where the rule does not say.
        arm: what the form asks to be woken with.
    """
    lateness = automation.late_by(lateness_s)
    match automation.kind:
        case "count":
            return Counting(automation, lateness=lateness)
        case "absence":
            return Absence(automation, lateness=lateness, arm=arm)
        case "heartbeat":
            return Heartbeat(automation, lateness=lateness, arm=arm)
        case "sequence":
            return Sequence(automation, lateness=lateness)
        case "any_of" | "all_of":
            return Group(automation, lateness=lateness)
        case "debounce":
            return Debouncing(automation, arm=arm)
        case "metric" if automation.metric is not None and automation.metric.measure == "queue_depth":
            return QueueDepth(automation, arm=arm)
        case "metric":
            return Measuring(automation, arm=arm)
