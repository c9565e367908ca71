"""Triggers of a deployment: rules of any form, without the action everybody would write."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations import (
    Automation,
    DeploymentCompoundTrigger,
    DeploymentEventTrigger,
    DeploymentMetricTrigger,
    DeploymentSequenceTrigger,
    DeploymentTrigger,
    RuleInvalid,
)
from hark.automations.deployment_trigger import trigger_rules
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("trigger", "kind"),
    [
        (DeploymentEventTrigger(on="order.paid", count=3, within="10m"), "count"),
        (
            DeploymentEventTrigger(after="a.begun", expect="a.done", within="1h", for_each="subject"),
            "absence",
        ),
        (DeploymentCompoundTrigger(all_of=["file.a", "file.b"], within="1d", for_each="data.day"), "all_of"),
        (DeploymentSequenceTrigger(sequence=["deploy.done", {"on": "app.error"}], within="15m"), "sequence"),
        (
            DeploymentMetricTrigger(metric={"measure": "count", "on": "a.b", "over": "1h"}, is_="> 5"),
            "metric",
        ),
        ("order.paid", "count"),
        ({"on": "order.paid", "debounce": {"quiet": "5s"}}, "debounce"),
    ],
)
def test_each_form_becomes_a_rule_that_runs_the_deployment(trigger: object, kind: str) -> None:
    """What is written of the run goes to the run, everything else is the rule's; both are read back the same."""
    (rule,) = trigger_rules("nightly", (trigger,))
    assert (rule.name, rule.owner, rule.kind) == ("nightly__automation_1", "deployment/nightly", kind)
    assert [action.word for action in rule.do] == ["run"]
    assert Automation.model_validate(rule.to_json()) == rule


def test_what_is_said_of_the_run_is_templated_from_the_event() -> None:
    """Parameters, tags, queue, delay and key are those of the run; further actions stand before it."""
    trigger = DeploymentTrigger(
        on="order.paid",
        name="on-paid",
        parameters={"order": "{{ event.data.id }}"},
        tags=["paid"],
        queue="high",
        delay="5m",
        key="{{ event.data.id }}",
        do=[{"notify": "oncall"}],
    )
    (rule,) = trigger_rules("handle-order", (trigger,))
    written: Any = rule.to_json()["do"]
    assert rule.name == "on-paid"
    assert written[0] == {"notify": ["oncall"]}
    assert written[1] == {
        "run": "handle-order", "parameters": {"order": "{{ event.data.id }}"}, "tags": ["paid"], "queue": "high",
        "delay": "5m", "key": "{{ event.data.id }}",
    }  # fmt: skip


def test_an_owner_is_no_part_of_what_a_rule_decides() -> None:
    """Taken over by a deployment, a rule keeps its version, and with it its windows and the ids of its firings."""
    (rule,) = trigger_rules("nightly", ("a.b",))
    alone = rule.model_copy(update={"owner": None})
    assert (rule.version, rule.matching_version) == (alone.version, alone.matching_version)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sequence": ["a.b", "c.d"], "within": "5m"}, "no `sequence`; DeploymentSequenceTrigger has"),
        ({"expect": ["a.b"]}, "`expect` needs `within`"),
        ({"on": "a.b", "match": {"x": 1}}, "did you mean 'where'"),
        ({"on": "a.b", "posture": "Reactive"}, "did you mean 'expect'"),
        ({"on": "a.b", "job_variables": {}}, "did you mean 'parameters'"),
        ({"on": "a.b", "owner": "deployment/x"}, "belongs to the deployment it is written at"),
        ({"on": "a.b", "parameters": {"x": "{{ secrets.y }}"}}, "reads 'secrets'"),
    ],
)
def test_what_does_not_stand_is_told(fields: dict[str, Any], words: str) -> None:
    """Words of other tools are answered with Hark's."""
    with pytest.raises(ValidationError, match=words):
        DeploymentEventTrigger(**fields)


def test_names_of_triggers_are_their_own() -> None:
    """Two of one name, a rule that is no trigger, and a name that grows too long are refused."""
    twice = DeploymentTrigger(on="a.b", name="x")
    with pytest.raises(RuleInvalid, match="two triggers"):
        trigger_rules("d", (twice, twice))
    with pytest.raises(RuleInvalid, match="DeploymentEventTrigger"):
        trigger_rules("d", (Automation(name="r", on="a.b"),))
    with pytest.raises(RuleInvalid, match="100 at most"):
        trigger_rules("d" * 95, ("a.b",))
