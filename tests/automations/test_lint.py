"""Lint: what stands and is likely a mistake."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.acting.recipient import host_of
from hark.automations.analysis.lint import lint_automation
from hark.automations.model import parse_automation

DO = [{"notify": "oncall"}]


@pytest.mark.parametrize(
    ("rule", "loc", "words"),
    [
        ({"on": "a.b"}, ("do",), "does nothing"),
        ({"on": "a.b", "if": "data.x > 1", "do": DO}, ("if",), "not indexed"),
        ({"on": ">", "do": DO}, ("on",), "every event of every type"),
        ({"on": "*.b", "where": {"data.x": {"regex": "a"}}, "do": DO}, ("on",), "every event of every type"),
        (
            {"on": "a.b", "where": {"data.x": 1, "all": [{"data.x": {"exists": False}}]}, "do": DO},
            ("where",),
            "not to be there",
        ),
        (
            {"on": "a.b", "where": {"data.x": "a", "all": [{"data.x": {"not": "a"}}]}, "do": DO},
            ("where",),
            "must not be",
        ),
        ({"on": "a.b", "where": {"regoin": "eu"}, "do": DO}, ("where", "regoin"), "data.regoin"),
        ({"on": "a.b", "for_each": "region", "do": DO}, ("for_each",), "data.region"),
        ({"on": "a.b", "do": [{"notify": "oncal"}]}, ("do", 0, "notify"), "did you mean 'oncall'"),
        (
            {"on": "a.b", "do": [{"notify": "{{ event.data.to }}"}]},
            ("do", 0, "notify"),
            "chooses who is told",
        ),
        ({"on": "a.b", "do": [{"approve": ["a", "{{ key }}"]}]}, ("do", 0, "approve"), "chooses who is told"),
        ({"on": "a.b", "do": [{"call": "{{ event.data.url }}"}]}, ("do", 0, "call"), "chooses who is called"),
        (
            {
                "on": "a.b",
                "do": DO,
                "resolve": {"on": "a.c"},
                "on_resolve": [{"call": "https://{{ key }}.x/y"}],
            },
            ("on_resolve", 0, "call"),
            "chooses who is called",
        ),
        (
            {"on": "a.b", "do": [{"notify": "oncall", "attach": ["{{ event.data.file }}"]}]},
            ("do", 0, "attach"),
            "which file",
        ),
        ({"on": "a.b", "do": [{"run": "nightly"}]}, ("do", 0, "run"), "no deployment named 'nightly'"),
        ({"on": "a.*", "do": [{"emit": "a.c"}]}, ("do", 0, "emit"), "reacts to itself"),
        (
            {"after": "a.b", "expect": "c.d", "within": "1m", "do": DO},
            ("for_each",),
            "answers any opening one",
        ),
        ({"on": ["a.*"], "cooldown": "1m", "do": DO}, ("cooldown",), "one cooldown for all"),
    ],
    ids=str,
)
def test_a_likely_mistake_is_told(rule: dict[str, Any], loc: tuple[Any, ...], words: str) -> None:
    """Each warning has a place and says what to do."""
    found = lint_automation(
        parse_automation(rule, name="r"), known={"channels": ["oncall"], "deployments": ["etl"]}
    )
    texts = [str(w) for w in found if w.loc == loc]
    assert texts, found
    assert any(words in t for t in texts)


@pytest.mark.parametrize(
    "rule",
    [
        {"on": "flow-run.failed", "where": {"data.tags": "prod"}, "do": DO},
        {"on": ">", "where": {"data.host": "h1"}, "do": DO},
        {"on": ">", "where": {"data.n": "> 5"}, "do": [{"notify": "mailto://x@y.z"}]},
        {
            "after": "a.b",
            "expect": "c.d",
            "for_each": "subject",
            "within": "1m",
            "do": [{"run": "{{ event.data.x }}"}],
        },
        {"on": "a.b", "where": {"data.tags": "a", "data.n": {"gt": 1, "lt": 5}}, "do": [{"run": "etl"}]},
    ],
)
def test_a_good_rule_is_left_alone(rule: dict[str, Any]) -> None:
    """No warnings where there is nothing to warn of."""
    assert (
        lint_automation(
            parse_automation(rule, name="r"), known={"channels": ["oncall"], "deployments": ["etl"]}
        )
        == []
    )


@pytest.mark.parametrize(
    ("template", "host"),
    [
        ("https://a.b/{{ event.id }}", "https://a.b"),
        ("https://a.b?x={{ event.id }}", "https://a.b"),
        ("{{ secrets.url }}/x/{{ event.id }}", "{{ secrets.url }}"),
        ("https://{{ variables['a/b'] }}#{{ event.id }}", "https://{{ variables['a/b'] }}"),
        ("https://a.b{{ event.id }}/c", "https://a.b{{ event.id }}"),
        ("https://a.b@{{ event.data.host }}", "https://a.b@{{ event.data.host }}"),
        ("{% if 1 %}https://a.b/{% endif %}", "{% if 1 %}https://a.b/{% endif %}"),
    ],
)
def test_what_stands_behind_the_host_of_a_call_may_be_the_events(template: str, host: str) -> None:
    """Who is called is said before the path; with blocks in it, by all of it."""
    assert host_of(template) == host
