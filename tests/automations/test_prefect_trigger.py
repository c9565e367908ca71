"""Triggers in Prefect's words become rules of Hark."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hark.automations import RuleInvalid
from hark.automations.deployment_trigger import trigger_rules
from hark.automations.prefect_trigger import (
    CompoundTrigger,
    DeploymentCompoundTrigger,
    DeploymentEventTrigger,
    DeploymentMetricTrigger,
    DeploymentSequenceTrigger,
    EventTrigger,
    Posture,
)
from pydantic import ValidationError

DONE = ["prefect.flow-run.Completed"]


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (EventTrigger(expect={"order.paid"}), {"on": ["order.paid"]}),
        (
            DeploymentEventTrigger(expect=DONE, match_related={"prefect.resource.id": "prefect.deployment.etl"}),
            {"on": ["flow-run.completed"], "where": {"data.deployment.name": "etl"}},
        ),
        (
            DeploymentEventTrigger(
                expect=DONE,
                match_related={"prefect.resource.name": ["etl", "elt"], "prefect.resource.role": "flow"},
                for_each={"prefect.resource.id"},
                threshold=3,
                within=60,
            ),
            {
                "on": ["flow-run.completed"], "where": {"data.flow.name": ["etl", "elt"]}, "for_each": ["subject"],
                "count": 3, "within": "1m",
            },
        ),
        (
            DeploymentEventTrigger(expect={"order.*"}, match={"prefect.resource.id": "order.7*", "kind": "web"}),
            {"on": ["order.>"], "where": {"subject": {"prefix": "order.7"}, 'data.resource["kind"]': "web"}},
        ),
        (
            DeploymentEventTrigger(
                after=["prefect.flow-run.Running"], expect=DONE, posture=Posture.Proactive, within=timedelta(hours=1)
            ),
            {"after": {"on": ["flow-run.running"]}, "expect": {"on": ["flow-run.completed"]}, "within": "1h"},
        ),
        (
            DeploymentCompoundTrigger(
                require="all", triggers=[EventTrigger(expect={"a.b"}), {"expect": ["c.d"]}], within=timedelta(days=1)
            ),
            {"all_of": [{"on": ["a.b"]}, {"on": ["c.d"]}], "within": "1d"},
        ),
        (
            DeploymentSequenceTrigger(
                triggers=[EventTrigger(expect={"a.b"}), EventTrigger(expect={"c.d"})], within=3600
            ),
            {"sequence": [{"on": ["a.b"]}, {"on": ["c.d"]}], "within": "1h"},
        ),
        (
            DeploymentMetricTrigger(metric={"name": "duration", "operator": ">", "threshold": 100}),
            {"metric": {"measure": "avg_duration", "over": "5m"}, "is": "> 1m40s", "for": "5m"},
        ),
        ({"type": "event", "expect": ["a.b"], "threshold": 2, "within": 10}, {"on": ["a.b"], "count": 2, "within": "10s"}),
        ({"posture": "Proactive", "expect": ["a.b"]}, {"expect": {"on": ["a.b"]}, "within": "10s"}),
    ],
)  # fmt: skip
def test_each_kind_becomes_a_rule_that_runs_the_deployment(trigger: object, expected: dict[str, Any]) -> None:
    """With the meaning an exported automation has."""
    (rule,) = trigger_rules("nightly", (trigger,))
    written: Any = rule.to_json()
    assert written.pop("do") == [{"run": "nightly"}]
    assert written == {"name": "nightly__automation_1", "owner": "deployment/nightly", **expected}


def test_what_is_said_of_the_automation_and_the_run_is_kept() -> None:
    """Templates read Hark's event."""
    trigger = DeploymentEventTrigger(
        name="on-paid",
        description="when it is paid",
        enabled=False,
        expect={"order.paid"},
        parameters={
            "order": "{{ event.resource.id }}",
            "sum": {"__prefect_kind": "jinja", "template": "{{ event.payload.sum }}"},
            "full": True,
        },
        schedule_after=timedelta(minutes=2),
        job_variables={"cpu": 1},
    )
    (rule,) = trigger_rules("handle", (trigger,))
    written: Any = rule.to_json()
    assert (written["name"], written["description"], written["paused"]) == (
        "on-paid",
        "when it is paid",
        True,
    )
    assert written["do"] == [
        {
            "run": "handle",
            "parameters": {"order": "{{ event.subject }}", "sum": "{{ event.data.sum }}", "full": True},
            "delay": "2m",
        }
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DeploymentEventTrigger.model_validate({"on": "a.b"}), "import DeploymentEventTrigger from there"),
        (lambda: EventTrigger.model_validate({"expcet": ["a.b"]}), "did you mean 'expect'"),
        (lambda: EventTrigger(expect={"prefect.worker.left"}), "Hark has no event like"),
        (lambda: EventTrigger(expect={"a.b"}, posture=Posture.Proactive, within=5), "10 seconds or more"),
        (lambda: CompoundTrigger(require=2, triggers=[EventTrigger(expect={"a.b"})]), "from 1 to the number"),
    ],
)  # fmt: skip
def test_what_makes_no_trigger_is_refused_when_it_is_written(make: Callable[[], object], words: str) -> None:
    """As Prefect does, with a ``ValueError``."""
    with pytest.raises(ValidationError, match=words):
        make()


def test_what_has_no_equivalent_is_refused_when_it_is_deployed(caplog: pytest.LogCaptureFixture) -> None:
    """A flow known by an id is; what was put in is said."""
    by_id = {"prefect.resource.id": "prefect.flow.0190a1b2-0000-7000-8000-000000000000"}
    with pytest.raises(RuleInvalid, match="put its name in"):
        trigger_rules("nightly", (DeploymentEventTrigger(expect=DONE, match_related=by_id),))
    with caplog.at_level(logging.WARNING, "hark.automations"):
        trigger_rules("nightly", (DeploymentSequenceTrigger(triggers=[EventTrigger(expect={"a.b"})] * 2),))
    assert "no `within`" in caplog.text
