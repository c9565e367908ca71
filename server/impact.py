"""What a changed rule would have done lately: the part of a plan that no difference of texts can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..vocabulary import JsonObject, JsonValue
from .plan import Change, Plan, Step

if TYPE_CHECKING:
    from ..automations.folding.fold import Fold, FoldConfig
    from ..automations.model import Automation
    from ..bus import Bus

__all__ = ["with_impact"]

SINCE_S = 7 * 86_400.0
LONGEST_S = 20.0
MAX_RULES = 500
_BEFORE = "before:"
_DECIDING = ("cooldown", "budget", "paused", "mode", "do", "on_resolve")
"""What changes what is done, beyond what matching depends on."""


def _rule(value: JsonValue, name: str) -> Automation | None:
    from ..automations.model import Automation

    try:
        made = Automation.model_validate(value)
    except ValidationError:
        return None
    return made.model_copy(update={"name": name})


def _differs(old: Automation | None, new: Automation | None) -> bool:
    if old is None or new is None:
        return True
    return old.matching_version != new.matching_version or any(
        getattr(old, word) != getattr(new, word) for word in _DECIDING
    )


async def with_impact(
    bus: Bus,
    plan: Plan,
    live: Mapping[tuple[str, str], JsonValue],
    *,
    now: datetime,
    config: FoldConfig,
    fold: Fold | None = None,
    longest_s: float = LONGEST_S,
) -> Plan:
    """Return the plan with what each created, changed or removed rule would have done over the last 7 days.

    All of them are folded over the log in one pass.

    Args:
        fold: what the rule engine holds now, if it runs here: says how many keys lose their state.
    """
    from ..automations.analysis.backtest import backtest_log

    rules: list[Automation] = []
    asked: list[Step] = []
    for step in plan.changes:
        if step.bucket != "automations" or len(asked) >= MAX_RULES:
            continue
        new = _rule(step.value, step.key) if step.change is not Change.DELETE else None
        old = (
            _rule(live.get((step.bucket, step.key)), _BEFORE + step.key)
            if step.change is not Change.CREATE
            else None
        )
        if _differs(old, new):
            asked.append(step)
            # A paused rule does nothing, whatever it would match.
            rules += [rule for rule in (new, old) if rule is not None and not rule.paused]
    if not asked:
        return plan
    since = now - timedelta(seconds=SINCE_S)
    made = (
        await backtest_log(bus, rules, since=since, now=now, config=config, longest_s=longest_s, keep=0)
        if rules
        else None
    )
    covered = now.timestamp() - made.begins_at if made is not None and made.begins_at is not None else 0.0
    impacts: dict[str, JsonObject] = {}
    for step in asked:
        impact: JsonObject = {"days": round(min(covered, SINCE_S) / 86_400, 5)}
        if made is not None and not made.whole:
            impact["whole"] = False
        for word, name in (("before", _BEFORE + step.key), ("after", step.key)):
            found = made.rules.get(name) if made is not None else None
            impact[word] = (
                {"fired": found.fired, "suppressed": found.suppressed, "actions": found.actions}
                if found is not None
                else None
            )
        if fold is not None and step.key in fold.automations:
            impact["keys"] = fold.keys(step.key)
        impacts[step.key] = impact
    steps = tuple(
        replace(s, impact=impacts[s.key]) if s.bucket == "automations" and s.key in impacts else s
        for s in plan.steps
    )
    return replace(plan, steps=steps)
