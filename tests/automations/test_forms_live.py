"""The forms on a real broker: decided from the log, acted on by the outbox, and none lost by a restart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hark.automations.model import parse_automation
from ruamel.yaml import YAML

from tests.automations.conftest import House, at

SPEC = """
  prod-flow-failing:
    on: flow-run.failed                      # one or a list; `flow-run.*` one word, `flow-run.>` the rest
    where:                                   # looks like the event: keys AND, lists OR
      data.tags: prod                        # value in array
      data.run.attempt: ">= 2"
      data.state.message: {not: {prefix: "Expected"}}
    for_each: data.flow.name                 # one independent window per value; may be a list
    count: 3
    within: 10m
    cooldown: 30m
    do:
      - notify: oncall
        title: "{{ key }} failed {{ count }}x in 10 minutes"
        body: "{{ event.data.state.message }}"
      - pause: {deployment: "{{ event.data.deployment.name }}"}
    tests:
      - given:
          - {at: 0s, type: flow-run.failed, data: {flow: {name: etl}, tags: [prod], run: {attempt: 2}, state: {message: x}}}
          - {at: 1m, same: 0}
          - {at: 2m, same: 0}
        expect: {fired: 1, key: etl}

  nightly-did-not-finish: {after: flow-run.running, expect: flow-run.completed, for_each: subject, within: 2h, do: […]}
  no-heartbeat:           {expect: sensor.beat, for_each: data.device, within: 5m, do: […]}        # absence, repeating
  deploy-then-errors:
    sequence:
      - {as: deploy, on: deploy.finished}
      - {on: app.error, where: {data.service: "{{ deploy.data.service }}"}, count: 5}
    within: 15m
    do: […]
  two-of-three-regions:   {any_of: {need: 2, of: [{on: probe.failed, where: {data.region: eu}}, …]}, within: 1m, do: […]}
  all-arrived:            {all_of: [{on: file.orders}, {on: file.customers}], for_each: data.day, within: 1d, do: [{run: nightly-etl}]}
  slow-flow:              {metric: {measure: p95_duration, flow: etl, over: 1h}, is: "> 10m", for: 15m, do: […]}
  reindex:
    on: doc.changed
    for_each: data.doc_id
    debounce: {quiet: 30s, max_wait: 5m}     # the action gets every event of the window as `events`
    do: [{run: reindex, parameters: {docs: "{{ events | map(attribute='data.doc_id') | list }}"}}]
"""
"""The example of the specification, as it stands there; `…` is what it leaves out."""


def test_the_example_of_the_specification_is_read_as_it_stands() -> None:
    """Every form of it; what the page leaves out is filled in."""
    text = SPEC.replace("do: […]", "do: [{notify: oncall}]").replace(
        ", …]", ", {on: probe.failed, where: {data.region: us}}]"
    )
    assert "…" not in re.sub(r"#.*", "", text)
    written: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    rules = {name: parse_automation(rule, name=name) for name, rule in written.items()}
    assert {name: rule.kind for name, rule in rules.items()} == {
        "prod-flow-failing": "count", "nightly-did-not-finish": "absence", "no-heartbeat": "heartbeat",
        "deploy-then-errors": "sequence", "two-of-three-regions": "any_of", "all-arrived": "all_of",
        "slow-flow": "metric", "reindex": "debounce",
    }  # fmt: skip
    for rule in rules.values():
        assert parse_automation(rule.dumps(), name=rule.name) == rule


async def test_a_debounced_action_gets_every_event(house: House) -> None:
    """The documents of the window, in order, once it is quiet; nobody else says anything meanwhile."""
    async with house.all():
        await house.define(
            "reindex", on="doc.changed", for_each="data.project", debounce={"quiet": "300ms", "max_wait": "5s"},
            do=[{"emit": "index.wanted", "data": {"docs": "{{ events | map(attribute='data.doc') | list }}"}}],
        )  # fmt: skip
        for doc in ("a", "b", "c"):
            await house.emit("doc.changed", {"project": "p", "doc": doc})
        (made,) = await house.of_type("index.wanted")
    assert at(made, "docs") == ["a", "b", "c"]


async def test_actions_of_a_sequence_read_its_steps(house: House) -> None:
    """And a restart in the middle of the sequence changes nothing."""
    rule = {
        "sequence": [
            {"as": "deploy", "on": "deploy.finished"},
            {"on": "app.error", "where": {"data.service": "{{ deploy.data.service }}"}, "count": 2},
        ],
        "within": "15m",
        "do": [
            {"emit": "blame.found", "data": {"who": "{{ deploy.data.by }}", "n": "{{ events | length }}"}}
        ],
    }
    async with house.outbox():
        async with house.engine():
            await house.define("blame", **rule)
            await house.emit("deploy.finished", {"service": "web", "by": "ann"})
            await house.emit("deploy.finished", {"service": "db", "by": "bob"})
            await house.emit("app.error", {"service": "db"})
        async with house.engine():
            await house.emit("app.error", {"service": "web"})
            await house.emit("app.error", {"service": "db"})
            (made,) = await house.of_type("blame.found")
    assert (at(made, "who"), at(made, "n")) == ("bob", 3)


async def test_what_is_over_is_said_and_acted_on(house: House) -> None:
    """`automation.resolved` names the firing, and `on_resolve` is done once."""
    async with house.all():
        await house.define(
            "down", on="host.down", for_each="data.host", resolve={"on": "host.up"},
            on_resolve=[{"emit": "all.clear", "data": {"host": "{{ key }}", "s": "{{ resolved.duration_s }}"}}],
        )  # fmt: skip
        await house.emit("host.down", {"host": "a"})
        await house.emit("host.up", {"host": "b"})
        await house.emit("host.up", {"host": "a"})
        (made,) = await house.of_type("all.clear")
        (resolved,) = await house.of_type("automation.resolved")
        (fired,) = await house.of_type("automation.triggered")
    assert at(made, "host") == "a"
    assert at(made, "s") >= 0
    assert at(resolved, "firing") == fired.id


async def test_a_shadow_rule_decides_and_does_nothing(house: House) -> None:
    """Its firings are in the log, marked, with no actions."""
    async with house.all():
        await house.define("watch", on="a.b", mode="shadow", do=[{"emit": "never.seen"}])
        await house.define("act", on="a.b", do=[{"emit": "was.seen"}])
        await house.emit("a.b")
        await house.of_type("was.seen")
        decisions = await house.of_type("automation.triggered", count=2)
        assert {at(d, "automation.name"): at(d, "shadow") for d in decisions} == {"act": None, "watch": True}
        assert not await house.events("never.seen")


def test_no_file_of_the_room_is_too_long() -> None:
    """Past six hundred lines there are two ideas in a coat."""
    room = Path(__file__).parents[2] / "automations"
    assert [p.name for p in room.glob("*.py") if len(p.read_text().splitlines()) > 620] == []
