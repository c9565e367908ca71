"""Rulebooks of Event-Driven Ansible as webhooks and rules."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.matching.where import compile_where
from hark.automations.migrate.migrate_eda import condition_to_where, convert_rulebook
from hark.automations.migrate.migration import NotConverted


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ('event.payload.status == "down"', [{"status": "down"}], [{"status": "up"}, {}]),
        ("event.payload.n > 3 and event.payload.n <= 5", [{"n": 4}, {"n": 5}], [{"n": 3}, {"n": 6}]),
        ('event.payload.a == 1 or event.payload.b != "x"', [{"a": 1}, {"b": "y"}], [{"a": 2, "b": "x"}]),
        ("event.payload.x is defined and not (event.payload.y == 1)", [{"x": 0, "y": 2}], [{"y": 2}, {"x": 1, "y": 1}]),
        ("event.payload.x is not defined", [{}], [{"x": None}]),
        ('event.payload.s in ["a", "b"]', [{"s": "b"}], [{"s": "c"}]),
        ('event.payload.s not in ["a", "b"]', [{"s": "c"}], [{"s": "a"}]),
        ('event.payload.tags contains "prod"', [{"tags": ["x", "prod"]}], [{"tags": []}]),
        ('"prod" in event.payload.tags', [{"tags": ["prod"]}], [{"tags": ["dev"]}]),
        ('event.payload.url is match("https?://", ignorecase=true)', [{"url": "HTTP://x"}], [{"url": "ftp http://"}]),
        ('event.payload.url is search("err")', [{"url": "an error"}], [{"url": "fine"}]),
        ('event.payload.url is not regex("^a.c$")', [{"url": "abd"}], [{"url": "abc"}]),
        ("event.payload.flag", [{"flag": True}], [{"flag": False}]),
        ("event.payload.a.b[0].c == 1.5", [{"a": {"b": [{"c": 1.5}]}}], [{"a": {"b": [{"c": 2}]}}]),
        ('event.payload.alert == "down"', [{"alert": "down"}], [{"alerts": "down"}]),
        ('event.alert.status == "firing"', [{"alerts": [{"status": "firing"}]}], [{"alert": {"status": "firing"}}]),
        ("event.payload['a-b'] == true", [{"a-b": True}], [{"a-b": 1}]),
        ("event.payload.a == 1 and (event.payload.b == 1 or event.payload.b == 2)", [{"a": 1, "b": 2}], [{"a": 1, "b": 3}]),
    ],
)  # fmt: skip
def test_conditions_mean_what_they_mean_there(text: str, yes: list[Any], no: list[Any]) -> None:
    """Each operator of the condition language, with events on both sides of it."""
    check = compile_where(condition_to_where(text))
    assert [check({"type": "x", "data": one}) for one in yes] == [True] * len(yes)
    assert [check({"type": "x", "data": one}) for one in no] == [False] * len(no)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("facts.x == 1", "facts"),
        ("event.meta.endpoint == 'x'", "source adds"),
        ("event.payload.x == vars.y", "written out"),
        ("event.payload.x ==", "ends too early"),
        ("(event.payload.x == 1", "is missing"),
        ("event.payload.x is selectattr('a')", "no equivalent"),
        ("event.payload.x == 1 ~ 2", "cannot be read"),
        ("(" * 100 + "event.x" + ")" * 100, "too deeply"),
    ],
)
def test_what_cannot_be_said_in_where_is_refused(text: str, says: str) -> None:
    """Facts, variables, other tests, and what is no condition: with the reason, and never for long."""
    with pytest.raises(NotConverted, match=says):
        condition_to_where(text)


def test_a_rulebook_becomes_webhooks_and_rules() -> None:
    """Sources, throttles, several conditions and actions; each thing that is lost or wants a person is noted."""
    made = convert_rulebook([
        {
            "name": "Web", "hosts": "all",
            "sources": [
                {"name": "hook", "ansible.eda.webhook": {"port": 5000, "token": "t"}},
                {"ansible.eda.kafka": {"topic": "x"}},
            ],
            "rules": [
                {"name": "Restart it", "condition": 'event.payload.status == "down"',
                 "throttle": {"once_within": "5 minutes", "group_by_attributes": ["event.payload.host"]},
                 "action": {"run_playbook": {"name": "ansible.eda/restart.yml", "extra_vars": {"host": "{{ event.payload.host }}"}}}},
                {"name": "Both", "condition": {"all": ["event.payload.a == 1", "event.payload.b == 1"], "timeout": "10 seconds"},
                 "actions": [{"post_event": {"event": {"x": 1}}}, {"set_fact": {"fact": {}}}, {"debug": {}}]},
                {"name": "Collect", "condition": "event.payload.c is defined", "throttle": {"once_after": "30 seconds"},
                 "enabled": False, "action": {"none": {}}},
                {"name": "Fact", "condition": "fact.x == 1", "action": {"none": {}}},
            ],
        }
    ])  # fmt: skip
    assert made.sections["webhooks"] == {
        "hook": {
            "verify": {"preset": "bearer", "secret": "{{ secrets.hook }}"},
            "event": {"type": "hook.received"},
        }
    }
    rules: Any = made.sections["automations"]
    assert list(rules) == ["restart-it", "both", "collect"]
    assert rules["restart-it"] == {
        "on": "hook.received", "where": {"data.status": "down"}, "for_each": "data.host", "cooldown": "5m",
        "do": [{"run": "restart", "parameters": {"host": "{{ event.data.host }}", "event": "{{ event }}"}}],
    }  # fmt: skip
    assert rules["both"]["all_of"][1] == {"on": "hook.received", "where": {"data.b": 1}}
    assert (rules["both"]["within"], rules["both"]["do"]) == (
        "10s",
        [{"emit": "eda.posted", "data": {"x": 1}}],
    )
    assert (rules["collect"]["debounce"], rules["collect"]["paused"]) == (
        {"quiet": "30s", "max_wait": "30s"},
        True,
    )
    lost = [(note.loc, note.message) for note in made.notes if note.is_lost]
    assert [loc for loc, _ in lost] == [
        (0, "sources", 1), (0, "rules", 1, "actions", 1, "set_fact"), (0, "rules", 3, "condition"),
    ]  # fmt: skip
    assert "'ansible.eda.kafka' has no equivalent" in lost[0][1]


def test_sources_without_a_name_become_webhooks_of_their_own() -> None:
    """Each ruleset has its own webhook, whose events have a type that is not one of Hark's own."""
    rules = [{"name": "any", "condition": "true", "action": {"none": {}}}]
    one = {"sources": [{"ansible.eda.webhook": {"token": "t"}}], "rules": rules}
    made = convert_rulebook([one, one]).sections
    assert made["webhooks"] == {
        "webhook": {
            "verify": {"preset": "bearer", "secret": "{{ secrets.webhook }}"},
            "event": {"type": "eda-webhook.received"},
        },
        "webhook-2": {
            "verify": {"preset": "bearer", "secret": "{{ secrets.webhook_2 }}"},
            "event": {"type": "webhook-2.received"},
        },
    }
    ons = [rule["on"] for rule in made["automations"].values() if isinstance(rule, dict)]
    assert ons == ["eda-webhook.received", "webhook-2.received"]


def test_a_signed_source_becomes_a_webhook_that_asks_for_the_signature() -> None:
    """What its sender signs is checked here, too; nobody is let in who was not there."""
    sources = [
        {"name": "a", "ansible.eda.webhook": {"port": 1, "hmac_secret": "s", "token": "t"}},
        {"name": "b", "ansible.eda.webhook": {"port": 2, "hmac_secret": "s", "hmac_algo": "sha512", "hmac_header": "x-sig", "hmac_format": "base64"}},
    ]  # fmt: skip
    made = convert_rulebook([{"sources": sources, "rules": []}, {"sources": 3, "rules": []}])
    hooks: Any = made.sections["webhooks"]
    assert hooks["a"]["verify"] == {
        "preset": "hmac", "secret": "{{ secrets.a }}", "header": "x-hub-signature-256", "algorithm": "sha256",
        "encoding": "hex", "prefix": "sha256=",
    }  # fmt: skip
    assert hooks["b"]["verify"] == {
        "preset": "hmac", "secret": "{{ secrets.b }}", "header": "x-sig", "algorithm": "sha512", "encoding": "base64",
    }  # fmt: skip
    assert [(n.loc, n.is_lost) for n in made.notes] == [
        ((0, "sources", 0, "ansible.eda.webhook"), False), ((0, "sources", 1, "ansible.eda.webhook"), False),
        ((1, "sources"), True),
    ]  # fmt: skip


def test_no_two_webhooks_make_events_of_one_type() -> None:
    """Of whatever names, in one rulebook or in several that become one configuration."""
    rules = [{"name": "any", "condition": "true", "action": {"none": {}}}]
    sections: Any = {}
    for names in (["a.b", "a-b"], ["a_b", "webhook", "eda-webhook"]):
        sources = [{"name": name, "ansible.eda.webhook": {}} for name in names]
        convert_rulebook([{"sources": sources, "rules": rules}], sections)
    types = [hook["event"]["type"] for hook in sections["webhooks"].values()]
    assert len(set(types)) == len(types) == 5
    assert [rule["on"] for rule in sections["automations"].values()] == [types[:2], types[2:]]
