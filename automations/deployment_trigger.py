"""Triggers of a deployment: rules that run it, written where it is, and gone when it is gone.

A trigger is a rule of any form without the action everybody would write: running the deployment. ``parameters, tags,
queue, delay`` and ``key`` are those of that run, with templates over the event. It becomes an automation of its own,
``<deployment>__automation_<n>`` unless it is named, whose ``owner`` is the deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from pydantic import ValidationError, model_validator

from ..vocabulary import JsonValue
from .action import RunOptions
from .model import Automation, Kind, parse_automation
from .problem import Problem, RuleInvalid, problems_of, refuse

__all__ = [
    "DeploymentCompoundTrigger",
    "DeploymentEventTrigger",
    "DeploymentMetricTrigger",
    "DeploymentSequenceTrigger",
    "DeploymentTrigger",
    "trigger_rules",
]


class DeploymentTrigger(RunOptions, Automation):
    """A rule of any form that runs the deployment it is written at. ``do`` adds further actions."""

    kinds: ClassVar[frozenset[Kind] | None] = None
    """The forms it can have; None: any."""
    foreign_words: ClassVar[Mapping[str, str]] = {
        **Automation.foreign_words, "match_related": "where", "posture": "expect", "require": "any_of",
        "params": "parameters", "job_variables": "parameters", "work_queue": "queue", "schedule_after": "delay",
        "idempotency_key": "key",
    }  # fmt: skip

    name: str = ""

    @model_validator(mode="after")
    def _its_own_form(self) -> Self:
        if self.owner is not None:
            refuse("trigger", [Problem(("owner",), "a trigger belongs to the deployment it is written at")])
        if self.kinds is not None and self.kind not in self.kinds:
            word, cls = self.form_word, type(self).__name__
            refuse(
                "trigger",
                [
                    Problem(
                        (word,),
                        f"a {cls} has no `{word}`; {_CLASS_OF[self.kind]} has, and DeploymentTrigger all",
                    )
                ],
            )
        return self

    def automation(self, deployment: str, number: int) -> Automation:
        """Return the rule it stands for.

        Args:
            number: its place among the triggers of the deployment, from 1.
        Raises:
            RuleInvalid: the name that is made of the deployment's is too long.
        """
        fields: dict[str, Any] = self.to_json()
        run = {"run": deployment, **{key: fields.pop(key) for key in _RUN if key in fields}}
        # Last, so that the places of the written actions stay what they are in the file.
        fields["do"] = [*fields.get("do", []), run]
        fields["owner"] = f"deployment/{deployment}"
        fields["name"] = self.name or f"{deployment}__automation_{number}"
        return parse_automation(fields)


_RUN = tuple(RunOptions.model_fields)


class DeploymentEventTrigger(DeploymentTrigger):
    """Runs the deployment when events come, come too often, or do not come."""

    kinds = frozenset({"count", "absence", "heartbeat", "debounce"})


class DeploymentCompoundTrigger(DeploymentTrigger):
    """Runs the deployment when so many, or all, of several patterns have come."""

    kinds = frozenset({"any_of", "all_of"})


class DeploymentSequenceTrigger(DeploymentTrigger):
    """Runs the deployment when one thing has come after another."""

    kinds = frozenset({"sequence"})


class DeploymentMetricTrigger(DeploymentTrigger):
    """Runs the deployment when a figure is too high or too low."""

    kinds = frozenset({"metric"})


_CLASS_OF: dict[Kind, str] = {
    kind: cls.__name__
    for cls in (
        DeploymentEventTrigger,
        DeploymentCompoundTrigger,
        DeploymentSequenceTrigger,
        DeploymentMetricTrigger,
    )
    for kind in cls.kinds or ()
}


def trigger_rules(deployment: str, triggers: tuple[object, ...]) -> list[Automation]:
    """Return the rules that the triggers of a deployment stand for.

    Args:
        triggers: models, or mappings as in ``hark.yaml``; a text is an event type. Those in Prefect's words, too
            (``prefect_trigger.py``): a mapping is in them if it has a ``type`` or a ``posture``.
    Raises:
        RuleInvalid: one of them does not stand, or two have one name.
    """
    rules: list[Automation] = []
    for number, written in enumerate(triggers, 1):
        known: Any = written
        trigger: MakesRule = (
            known if hasattr(written, "automation") else _read(written, f"trigger {number} of {deployment}")
        )
        rule = trigger.automation(deployment, number)
        if any(rule.name == other.name for other in rules):
            raise RuleInvalid(
                [Problem(("name",), "two triggers of the deployment have this name")], name=rule.name
            )
        rules.append(rule)
    return rules


class MakesRule(Protocol):
    """A trigger: of this file, or in Prefect's words."""

    def automation(self, deployment: str, number: int) -> Automation: ...


def _read(written: object, shown: str) -> MakesRule:
    value: JsonValue | object = {"on": written} if isinstance(written, str) else written
    if isinstance(value, Automation):
        hint = "give triggers=[…] a DeploymentEventTrigger (or another Deployment…Trigger), and the rule to save_automation"
        raise RuleInvalid([Problem((), f"an Automation is a rule of its own; {hint}")], name=shown)
    try:
        if isinstance(value, Mapping) and ("type" in value or "posture" in value):
            from .prefect_trigger import written_trigger

            return written_trigger(value)
        return DeploymentTrigger.model_validate(value)
    except ValidationError as exc:
        raise RuleInvalid(problems_of(exc), name=shown) from exc
