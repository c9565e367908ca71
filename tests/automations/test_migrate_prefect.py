"""Prefect automations as rules: what they mean there they mean here, and what has no equivalent is said."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.analysis.ruletest import run_tests
from hark.automations.migrate.migrate_prefect import convert_prefect
from hark.automations.model import Automation

from tests.automations.conftest import House, at


def automation(trigger: dict[str, Any], *actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "My rule", "trigger": {"type": "event", **trigger}, "actions": list(actions), **more}


def rule(trigger: dict[str, Any], *actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = convert_prefect(automation(trigger, *actions, **more))
    assert [n.message for n in made.notes if n.is_lost] == []
    found = made.sections["automations"]["my-rule"]
    assert isinstance(found, dict)
    return found


def test_failed_runs_of_a_tag_tell_people() -> None:
    """The commonest automation: a state, a tag, a notification; it loads, and fires on such an event and no other."""
    found = rule(
        {
            "expect": ["prefect.flow-run.Failed", "prefect.flow-run.TimedOut"],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.id": "prefect.tag.prod", "prefect.resource.role": "tag"},
            "posture": "Reactive", "threshold": 2, "within": 600, "for_each": ["related:flow:prefect.resource.id"],
        },
        {"type": "send-notification", "block_document_id": "0a1b2c3d-0000", "subject": "{{ flow.name }} failed", "body": "{{ flow_run.state.message }}"},
    )  # fmt: skip
    assert found["on"] == ["flow-run.failed", "flow-run.timed-out"]
    assert (found["where"], found["for_each"]) == ({"data.tags": "prod"}, "data.flow.name")
    assert (found["count"], found["within"]) == (2, "10m")
    assert found["do"] == [
        {"notify": "prefect-block-0a1b2c3d", "title": "{{ event.data.flow.name }} failed", "body": "{{ event.data.state.message }}"}
    ]  # fmt: skip
    failed = {
        "type": "flow-run.failed",
        "data": {"flow": {"name": "etl"}, "tags": ["prod"], "state": {"message": "x"}},
    }
    other = {**failed, "data": {"flow": {"name": "etl"}, "tags": ["dev"]}}
    tests = [
        {
            "given": [{**failed, "at": "0s"}, {**other, "at": "1m"}, {**failed, "at": "2m"}],
            "expect": {"fired": 1, "key": "etl"},
        }
    ]
    [outcome] = run_tests(Automation.model_validate({"name": "r", **found, "tests": tests}))
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("trigger", "wanted"),
    [
        ({"expect": ["prefect.flow-run.Completed"], "after": ["prefect.flow-run.Running"], "posture": "Proactive", "within": 7200,
          "for_each": ["prefect.resource.id"]},
         {"after": "flow-run.running", "expect": "flow-run.completed", "within": "2h", "for_each": "subject"}),
        ({"expect": ["beat"], "posture": "Proactive", "within": "PT5M"}, {"expect": "beat", "within": "5m"}),
        ({"expect": ["b"], "after": ["a"], "within": 60}, {"sequence": [{"on": "a"}, {"on": "b"}], "within": "1m"}),
        ({"expect": ["a"], "within": 30}, {"on": "a", "cooldown": "30s"}),
        ({"expect": ["prefect.flow-run.*"], "match": {"prefect.resource.id": ["prefect.flow-run.1", "prefect.flow-run.2"]}},
         {"on": "flow-run.*", "where": {"subject": ["flow-run/1", "flow-run/2"]}}),
        ({"expect": ["a"], "match_related": [{"prefect.resource.role": "flow", "prefect.resource.name": ["etl*", "!etl-test"]}]},
         {"on": "a", "where": {"data.flow.name": [{"prefect": None}]}}),
        ({"type": "compound", "require": 2, "within": 60, "triggers": [{"expect": ["a"]}, {"expect": ["b"]}, {"expect": ["c"]}]},
         {"any_of": {"need": 2, "of": [{"on": "a"}, {"on": "b"}, {"on": "c"}]}, "within": "1m"}),
        ({"type": "sequence", "within": 60, "triggers": [{"expect": ["a"]}, {"expect": ["b"]}]},
         {"sequence": [{"on": "a"}, {"on": "b"}], "within": "1m"}),
        ({"type": "sequence", "within": 60, "triggers": [{"expect": ["a"]}, {"expect": ["b"], "threshold": 2, "within": 30}]},
         {"sequence": [{"on": "a"}, {"on": "b", "count": 2, "within": "30s"}], "within": "1m"}),
        ({"type": "metric", "metric": {"name": "successes", "operator": "<", "threshold": 0.9, "range": 1800, "firing_for": 300}},
         {"metric": {"measure": "success_rate", "over": "30m"}, "is": "< 90%", "for": "5m"}),
        ({"type": "metric", "metric": {"name": "successes", "operator": "<", "threshold": 95, "range": 1800, "firing_for": 300}},
         {"metric": {"measure": "success_rate", "over": "30m"}, "is": "< 95%", "for": "5m"}),
        ({"type": "metric", "metric": {"name": "duration", "operator": ">", "threshold": 600, "range": 3600, "firing_for": 900}},
         {"metric": {"measure": "avg_duration", "over": "1h"}, "is": "> 10m", "for": "15m"}),
    ],
)  # fmt: skip
def test_each_kind_of_trigger_has_its_form(trigger: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Absence, heartbeat, sequence, debounce, resources, compound, metric."""
    found = rule(trigger, {"type": "cancel-flow-run"})
    found.pop("do")
    if "etl*" in str(trigger):
        wanted = {"on": "a", "where": {"data.flow.name": [{"prefix": "etl"}, {"not": "etl-test"}]}}
    assert found == wanted


def test_actions_have_their_words() -> None:
    """Runs with parameters in Prefect's own forms, pauses, states; what is known by id alone is to be named."""
    made = convert_prefect(
        automation(
            {"expect": ["prefect.flow-run.Failed"]},
            {"type": "run-deployment", "source": "selected", "deployment_id": "11111111-2222", "schedule_after": 30,
             "parameters": {"n": 1, "who": {"__prefect_kind": "jinja", "template": "{{ event.resource.id }}"},
                            "all": {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": "{{ event.payload | tojson }}"}},
                            "region": {"__prefect_kind": "workspace_variable", "variable_name": "region"}}},
            {"type": "pause-deployment", "source": "inferred"},
            {"type": "change-flow-run-state", "state": "CANCELLED", "message": "{{ flow_run.name }}"},
            {"type": "call-webhook", "block_document_id": "99999999-1", "payload": "{{ deployment.name }}"},
            {"type": "declare-incident"},
            enabled=False,
        )
    )  # fmt: skip
    found: Any = made.sections["automations"]["my-rule"]
    assert found["paused"] is True
    assert found["do"][0] == {
        "run": "deployment-11111111", "delay": "30s",
        "parameters": {"n": 1, "who": "{{ event.subject }}", "all": "{{ event.data }}", "region": "{{ variables.region }}"},
    }  # fmt: skip
    assert found["do"][1] == {"pause": {"deployment": "{{ event.data.deployment.name }}"}}
    assert found["do"][2] == {"set_state": "CANCELLED", "message": "{{ event.data.run.name }}"}
    assert found["do"][3]["call"] == "{{ secrets.webhook_99999999 }}"
    lost = [(n.loc, n.message) for n in made.notes if n.is_lost]
    assert lost == [(("actions", 4), "the action 'declare-incident' has no equivalent")]
    looks = [n.message for n in made.notes if not n.is_lost]
    assert any("name of the deployment 11111111-2222" in message for message in looks)


async def test_what_is_done_when_a_figure_comes_back_reads_what_there_is(house: House) -> None:
    """There is no event and no run then: the figure and the firing are read, and what needs a run is left out."""
    channel = {"type": "send-notification", "block_document_id": "0a1b", "block_name": "oncall"}
    made = convert_prefect(
        automation(
            {"type": "metric", "metric": {"name": "duration", "operator": ">", "threshold": 60, "range": 3600, "firing_for": 0.1}},
            {**channel, "subject": "{{ flow.name }} is slow", "body": "{{ automation.name }}"},
            actions_on_resolve=[
                {"type": "cancel-flow-run"},
                {"type": "change-flow-run-state", "state": "FAILED"},
                {"type": "pause-deployment", "source": "inferred"},
                {**channel, "subject": "{{ automation.name }}, {{ flow.name|upper }}: {{ event.payload.x }}{% if flow_run.id == 'r' %}!{% endif %}",
                 "body": "{{ event.id }} {{ event.event }} {{ event.occurred }} {{ event.resource.id }} {{ event.payload }}"},
            ],
        )
    )  # fmt: skip
    lost = [(n.loc[1], n.message.partition(" about ")[2]) for n in made.notes if n.is_lost]
    assert lost == [
        (0, "no flow run of its own; name one"), (1, "no flow run of its own; name one"), (2, "no deployment of its own; name one"),
    ]  # fmt: skip
    reads = [n.message.split("'")[1] for n in made.notes if "does not have: it will read" in n.message]
    assert reads == ["flow.name", "event.payload.x", "flow_run.id"]
    found: Any = made.sections["automations"]["my-rule"]
    async with house.all():
        await house.define("slow", **found)
        for seconds in (100, 1):
            run = {"flow": {"name": "etl"}, "run": {"id": "r", "duration_s": seconds}}
            await house.emit("flow-run.completed", run, subject=f"flow-run/{seconds}")
            await house.of_type("automation.triggered")
        ends = await house.of_type("action.executed", "action.dead-lettered", count=2)
        assert [(e.type, at(e, "error")) for e in ends] == [("action.executed", None)] * 2
    (_, first, _), (_, back, _) = house.people.told
    assert (first.title, back.title) == ("etl is slow", "slow, -: -")
    assert "automation.resolved" in str(back.body)
    assert "50.5" in str(back.body)


@pytest.mark.parametrize(
    ("trigger", "says"),
    [
        ({"expect": ["prefect.work-pool.not-ready"]}, "no event like"),
        (
            {
                "expect": ["a"],
                "match_related": {
                    "prefect.resource.id": "prefect.flow.1234",
                    "prefect.resource.role": "flow",
                },
            },
            "by id",
        ),
        ({"expect": ["a"], "for_each": ["related:x:y"]}, "no equivalent"),
        ({"type": "moon"}, "no trigger of type"),
        ({"type": "metric", "metric": {"name": "moon", "operator": ">"}}, "no metric"),
        ({"expect": ["a"], "posture": "Proactive", "threshold": 3, "within": 60}, "absence of several"),
        ({"expect": ["a"], "within": -3}, "a number from 0 on"),
        ({"expect": ["a"], "threshold": "many"}, "got 'many'"),
        ({"expect": "order.paid"}, "a list is expected"),
        ({"type": "compound", "triggers": {"a": 1}, "within": 5}, "a list is expected"),
    ],
)
def test_what_has_no_equivalent_is_left_out_and_said(trigger: dict[str, Any], says: str) -> None:
    """The rule is not there, and the note names the place."""
    made = convert_prefect([automation(trigger)])
    assert made.sections == {}
    [note] = made.notes
    assert (note.is_lost, says in note.message, note.loc[0]) == (True, True, 0)
    assert convert_prefect({"x": 1}).notes[0].message == "this is no automation: it has no `trigger`"
