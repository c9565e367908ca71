"""Automations in Prefect's words are rules of Hark's, and are read back as they were written."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any
from uuid import uuid4

import hark
import pytest
from hark.automations import compile_where, parse_automation
from hark.automations.prefect_action import (
    ActionTypes,
    CallWebhook,
    CancelFlowRun,
    ChangeFlowRunState,
    DeclareIncident,
    DeleteFlowRun,
    DoNothing,
    PauseAutomation,
    PauseDeployment,
    PauseWorkPool,
    PauseWorkQueue,
    ResumeFlowRun,
    RunDeployment,
    SendNotification,
    SuspendFlowRun,
)
from hark.automations.prefect_automation import Automation
from hark.automations.prefect_trigger import CompoundTrigger, EventTrigger, Posture, ResourceSpecification
from hark.automations.problem import RuleInvalid
from hark.bus import Bus
from hark.bus.session import Session
from hark.engine.block_kinds import Webhook
from hark.engine.event_view import Event
from hark.engine.events import emit_event
from pydantic import SecretStr, ValidationError

WALKED = EventTrigger(
    expect={"animal.walked"}, match={"genus": "Marmota"}, threshold=3, within=timedelta(seconds=10)
)


def written(name: str = "wood chuck", **more: Any) -> Automation:
    return Automation(**{"name": name, "trigger": WALKED, "actions": [CancelFlowRun()], **more})


async def rule(bus: Bus, id: object) -> dict[str, Any]:
    entry = await bus.bucket("automations").get(str(id))
    assert entry is not None
    found = dict(parse_automation(entry.value).to_json())
    found.pop("written")
    return found


async def test_an_automation_is_made_read_changed_and_removed(session: Session, bus: Bus) -> None:
    """By its id or its name; what is in the broker is a rule, paused when it is not enabled."""
    made = await written().create()
    assert await rule(bus, made.id) == {
        "name": "wood-chuck", "on": ["animal.walked"], "where": {'data.resource["genus"]': "Marmota"}, "count": 3,
        "within": "10s", "do": [{"cancel": {}}],
    }  # fmt: skip
    assert await Automation.read(id=made.id) == await Automation.aread(name="wood chuck") == made
    made.trigger.threshold = 5
    made.name = "renamed"
    await made.update()
    found = await Automation.aread(name="renamed")
    assert (found.id, found.trigger) == (made.id, made.trigger)
    assert await found.disable()
    assert ((await Automation.aread(id=found.id)).enabled, (await rule(bus, found.id))["paused"]) == (
        False,
        True,
    )
    assert await found.aenable()
    assert (await Automation.aread(id=found.id)).enabled
    twin = await written("renamed").acreate()
    assert twin.id != made.id
    assert [await made.delete(), await made.adelete(), await made.disable(), await made.enable()] == [
        True
    ] + [False] * 3
    for wrong in (
        {"id": made.id},
        {"id": uuid4()},
        {"id": "no such/id"},
        {"name": "nobody"},
        {},
        {"id": "a", "name": "a"},
    ):
        with pytest.raises(ValueError, match=r"there is no automation|say one of"):
            await Automation.read(**wrong)
    with pytest.raises(ValueError, match="there is no automation"):
        await made.update()


async def test_related_resources_of_ones_own_are_found_where_they_are_emitted(
    session: Session, bus: Bus
) -> None:
    """By their id, role and labels; all of one match hold for the same resource."""
    trigger = EventTrigger(
        expect={"order.paid"},
        match_related=ResourceSpecification(
            {"prefect.resource.role": "customer", "prefect.resource.id": ["c/*", "!d"]}
        ),
        for_each={"kind"},
    )
    made = await written(trigger=trigger).acreate()
    found = await rule(bus, made.id)
    assert found["for_each"] == ['data.resource["kind"]']
    holds = compile_where(found["where"])

    def event(role: str, id: str) -> dict[str, Any]:
        return {"data": {"related": [{"prefect.resource.role": role, "prefect.resource.id": id}]}}

    assert [holds(event(*one)) for one in (("customer", "c/7"), ("seller", "c/7"), ("customer", "d"))] == [
        True, False, False,
    ]  # fmt: skip


async def test_what_was_never_made_cannot_be_changed(session: Session, bus: Bus) -> None:
    """And what is written in Hark's own words cannot be read in Prefect's."""
    for ask in (written().update, written().delete, written().enable, written().disable):
        with pytest.raises(ValueError, match="without an id"):
            await ask()
    await bus.bucket("automations").put(
        "own", parse_automation({"name": "own", "on": "a.b", "do": []}).dumps()
    )
    with pytest.raises(ValueError, match="Hark's words"):
        await Automation.read(name="own")


@pytest.mark.parametrize(
    ("action", "done"),
    [
        (RunDeployment(deployment_id="nightly", parameters={"n": 1}, schedule_after=timedelta(minutes=2)),
         {"run": "nightly", "parameters": {"n": 1}, "delay": "2m"}),
        (RunDeployment(source="inferred"), {"run": "{{ event.data.deployment.name }}"}),
        (PauseDeployment(deployment_id="etl/nightly"), {"pause": {"deployment": "nightly"}}),
        (PauseWorkPool(work_pool_id="gpu"), {"pause": {"pool": "gpu"}}),
        (PauseWorkQueue(work_queue_id="gpu/high"), {"pause": {"queue": "gpu/high"}}),
        (PauseAutomation(automation_id="noisy"), {"pause": {"automation": "noisy"}}),
        (SuspendFlowRun(), {"suspend": {}}),
        (ResumeFlowRun(), {"resume": {"flow_run": "{{ run.id }}"}}),
        (ChangeFlowRunState(state="FAILED", message="m"), {"set_state": "FAILED", "message": "m"}),
        (SendNotification(block_document_id="slack-webhook/team", subject="s", body="b"),
         {"notify": ["team"], "title": "s", "body": "b"}),
        (DoNothing(), None),
    ],
)  # fmt: skip
async def test_each_action_has_its_equivalent(
    session: Session, bus: Bus, action: ActionTypes, done: Any
) -> None:
    """Ids of deployments, pools, queues and automations are their names."""
    made = await written(actions=[action]).acreate()
    assert (await rule(bus, made.id)).get("do", []) == ([done] if done else [])
    assert (await Automation.aread(id=made.id)).actions == [action]


@pytest.mark.usefixtures("keys_at_home")
async def test_a_block_is_found_by_its_id(session: Session, bus: Bus) -> None:
    """The name it was saved under says which secret holds the address."""
    block = Webhook(url=SecretStr("https://example.org/x"))
    await block.save("ci-hook")
    made = await written(actions=[CallWebhook(block_document_id=block._block_document_id or "")]).acreate()
    assert (await rule(bus, made.id))["do"][0]["call"] == "{{ secrets.webhook_ci_hook }}"


async def test_what_has_no_equivalent_makes_no_automation(session: Session, bus: Bus) -> None:
    """It is refused with the reason, and nothing is kept."""
    for actions in ([DeleteFlowRun()], [CancelFlowRun(), DeclareIncident()]):
        with pytest.raises(RuleInvalid, match="has no equivalent"):
            await written(actions=actions).create()
    assert await bus.bucket("automations").keys() == []


def test_actions_that_select_name_what_they_select() -> None:
    """And those that take it from the event do not."""
    for wrong in (
        {"type": "run-deployment"},
        {"type": "run-deployment", "source": "inferred", "deployment_id": "a"},
        {"type": "pause-work-pool"},
        {"type": "run-deployment", "source": "inferred", "schedule_after": -1},
        {"type": "change-flow-run-state", "state": "NOPE"},
    ):
        with pytest.raises(ValidationError):
            written(actions=[wrong])
    assert CancelFlowRun().describe_for_cli() == "Cancel flow run"


def test_triggers_are_what_their_words_say() -> None:
    """As mappings too, of each type; a proactive one waits ten seconds at least."""
    nested = {
        "type": "compound",
        "require": "any",
        "triggers": [{"expect": ["a.b"]}, {"type": "sequence", "triggers": []}],
    }
    made = written(trigger=nested).trigger
    assert isinstance(made, CompoundTrigger)
    assert [one.type for one in made.triggers] == ["event", "sequence"]
    assert EventTrigger(expect={"a.b"}, posture=Posture.Proactive).within == timedelta(seconds=10)
    with pytest.raises(ValidationError, match="10 seconds"):
        EventTrigger(expect={"a.b"}, posture=Posture.Proactive, within=timedelta(seconds=5))
    with pytest.raises(ValidationError):
        EventTrigger(expect={"a.b"}, within=timedelta(seconds=-5))
    assert WALKED.model_dump(mode="json")["within"] == 10.0


@pytest.mark.parametrize(
    ("labels", "fits"),
    [
        ({}, True), ({"id": "a.b"}, True), ({"id": "a.*"}, True), ({"id": "*"}, True), ({"id": "b.*"}, False),
        ({"id": ["q", "a.b"]}, True), ({"id": "!a.b"}, False), ({"id": "!a.*"}, False), ({"id": "!z"}, True),
        ({"id": ["!a.b", "a.*"]}, True), ({"id": "a.b", "x": "2"}, False), ({"y": "!1"}, False), ({"y": "*"}, False),
    ],
)  # fmt: skip
def test_labels_fit_by_wildcard_and_negation(labels: dict[str, Any], fits: bool) -> None:
    """One of several has to; what is not there fits nothing, not even what is negated."""
    asked = ResourceSpecification(labels)
    assert asked.matches({"id": "a.b", "x": "1"}) is fits
    assert asked.includes([{"id": "a.b", "x": "1"}]) is fits
    assert asked.matches_every_resource() is (not labels)


def test_a_specification_knows_a_kind() -> None:
    """Asked for by `kind.*` alone, or not at all."""
    kind = "prefect.flow-run"
    assert ResourceSpecification({"prefect.resource.id": f"{kind}.*"}).matches_every_resource_of_kind(kind)
    assert ResourceSpecification({}).matches_every_resource_of_kind(kind)
    assert not ResourceSpecification({"prefect.resource.id": "x"}).matches_every_resource_of_kind(kind)


async def test_an_emitted_event_is_read_by_prefects_names(session: Session) -> None:
    """It is the event of Hark's, seen another way; made by itself it is not emitted."""
    labels = {"prefect.resource.id": "order/1", "kind": "web"}
    related = [{"prefect.resource.id": "c/7", "prefect.resource.role": "customer", "tier": "gold"}]
    sent = emit_event("order.paid", resource=labels, related=related, payload={"amount": 3})
    alone = Event(
        event="order.paid", resource=labels, related=related, payload={"amount": 3}, follows=sent.id
    )
    for event in (sent, alone):
        assert isinstance(event, Event)
        assert (event.event, event.resource, event.payload) == ("order.paid", labels, {"amount": 3})
        assert event.find_resource_label("kind") == "web"
        assert event.find_resource_label("related:customer:tier") == "gold"
        assert event.resource_in_role["customer"].id == "c/7"
        assert len(event.involved_resources) == 2
        assert event.occurred == event.time
    assert alone.follows == sent.id


def test_below_another_name_automations_are_prefects(monkeypatch: pytest.MonkeyPatch) -> None:
    """While below its own name the room stays what it is."""
    monkeypatch.setattr(hark, "automations", sys.modules["hark.automations"], raising=False)
    monkeypatch.setitem(sys.modules, "prefect", hark)
    try:
        found: Any = __import__("prefect.automations", fromlist=["Automation"])
        assert found.Automation is Automation
        assert found.EventTrigger is EventTrigger
        assert found.Notify is hark.automations.Notify
    finally:
        for name in [name for name in sys.modules if name.startswith("prefect.")]:
            del sys.modules[name]
    assert sys.modules["hark.automations"].Automation is not Automation
