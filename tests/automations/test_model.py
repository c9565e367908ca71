"""The rule as written: what is read, what is refused and where, and what counts as a change."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.action import parse_action, parse_stored_action
from hark.automations.model import Automation, parse_automation
from hark.automations.problem import RuleInvalid

RULE: dict[str, Any] = {
    "on": "flow-run.failed",
    "where": {"data.tags": "prod", "data.run.attempt": ">= 2"},
    "for_each": "data.flow.name",
    "count": 3,
    "within": "10m",
    "cooldown": "30m",
    "do": [{"notify": "oncall", "title": "{{ key }} failed {{ count }}x"}],
}


def rule(**changes: Any) -> Automation:
    return parse_automation({k: v for k, v in {**RULE, **changes}.items() if v is not None}, name="r")


def test_the_rule_of_the_specification_reads_back_as_it_was_stored() -> None:
    """parse(dumps(rule)) is the rule, with the same versions."""
    made = rule(
        do=[
            {"notify": ["oncall", "mailto://{{ secrets.smtp }}"], "severity": "failure"},
            {"pause": {"deployment": "{{ event.data.deployment.name }}"}},
            {"run": {"deployment": "fix", "parameters": {"n": "{{ count }}"}}, "retries": 2, "backoff": "5s"},
            {"cancel": {}}, {"retry": "{{ event.data.run.id }}", "from_start": True}, {"suspend": {"flow_run": "x"}},
            {"set_state": "failed", "message": "by rule"}, {"resume": {"queue": "default/high"}},
            {"call": {"url": "https://example.org/x", "method": "put", "headers": {"X-A": "b"}}, "timeout": "3s"},
            {"emit": "order.seen", "data": {"k": ["{{ key }}"]}, "if": "count > 3"},
        ],
        tests=[{"given": [{"at": "0s", "type": "flow-run.failed"}, {"at": "1m", "same": 0}], "expect": {"fired": 0}}],
        budget="5/m", allowed_lateness="1s", mode="shadow", description="d",
    )  # fmt: skip
    again = parse_automation(made.dumps())
    assert again == made
    assert (again.version, again.matching_version) == (made.version, made.matching_version)
    assert again.to_json() == made.to_json()
    assert Automation.model_validate(made.to_json()) == made


def test_long_and_short_forms_of_an_action_are_one() -> None:
    """`{run: x, parameters: …}` is `{run: {deployment: x, parameters: …}}`."""
    short = rule(
        do=[{"run": "x", "parameters": {"a": 1}}, {"call": "https://a.b", "method": "GET"}, {"emit": "a.b"}]
    )
    long = rule(
        do=[
            {"run": {"deployment": "x", "parameters": {"a": 1}}},
            {"call": {"url": "https://a.b", "method": "get"}},
            {"emit": {"type": "a.b"}},
        ]
    )
    assert short.version == long.version


def test_editing_texts_keeps_the_windows_and_editing_matching_does_not() -> None:
    """matching_version changes with what windows depend on, version with everything that acts."""
    base = rule()
    changes: dict[str, Any]
    for changes in ({"do": []}, {"cooldown": "1h"}, {"budget": "1/m"}, {"mode": "shadow"}):
        assert rule(**changes).matching_version == base.matching_version, changes
        assert rule(**changes).version != base.version, changes
    matching: list[dict[str, Any]] = [
        {"on": "flow-run.crashed"}, {"where": {"data.tags": "dev"}}, {"for_each": "subject"}, {"count": 4},
        {"within": "11m"}, {"if": "data.x > 1"}, {"allowed_lateness": "1m"},
    ]  # fmt: skip
    for changes in matching:
        assert rule(**changes).matching_version != base.matching_version, changes
    for changes in (
        {"description": "other"},
        {"tests": [{"given": [], "expect": "not fired"}]},
        {"paused": True},
    ):
        assert rule(**changes).version == base.version, changes
    assert rule(within="600s").version == base.version


@pytest.mark.parametrize(
    "form",
    [
        {"on": "a.b"},
        {"on": ["a.b", "c.*", "d.>"], "where": {"data.x": 1}},
        {"after": "flow-run.running", "expect": "flow-run.completed", "for_each": "subject", "within": "2h"},
        {
            "after": {"on": "a.b", "where": {"data.x": "> 1"}},
            "expect": {"on": ["c.d"], "if": "data.y == 1"},
            "within": "1m",
        },
        {"expect": "sensor.beat", "for_each": "data.device", "within": "5m"},
        {"on": "a.b", "count": 2, "within": "1s", "for_each": ["data.a", "data['b.c']"]},
        {"on": "a.b", "do": {"notify": "x"}},
    ],
)
def test_every_form_reads(form: dict[str, Any]) -> None:
    """Reactive, counting, absent and repeating rules stand."""
    assert parse_automation(form, name="x.Y-1_z").kind in ("count", "absence", "heartbeat")


BAD: list[tuple[dict[str, Any], tuple[str | int, ...], str]] = [
    ({"wher": {}}, ("wher",), "did you mean 'where'"),
    ({"trigger": "a.b"}, ("trigger",), "did you mean 'on'"),
    ({"threshold": 3}, ("threshold",), "did you mean 'count'"),
    ({"count": 0}, ("count",), "at least 1"),
    ({"debounce": "30s"}, ("debounce",), "this is a mapping, with quiet, max_wait, max_events; got '30s'"),
    ({"late": "drop"}, ("late",), "did you mean 'allowed_lateness'"),
    ({"count": "three"}, ("count",), "whole number"),
    ({"count": True}, ("count",), "whole number"),
    ({"within": None}, ("count",), "needs `within`"),
    ({"count": None}, ("within",), "needs `count`"),
    ({"within": 600}, ("within",), "'600s'"),
    ({"within": "10 minutes"}, ("within",), "'10m'"),
    ({"within": "0s"}, ("within",), "can never pass"),
    ({"cooldown": "soon"}, ("cooldown",), "is not a duration"),
    ({"on": None}, (), "needs `on`"),
    ({"on": "Flow Run Failed"}, ("on",), "did you mean 'flow-run-failed'"),
    ({"on": "flow-run.succeeded"}, ("on",), "did you mean 'flow-run.completed'"),
    ({"on": ["a.b", "a.>.b"]}, ("on", 1), "can only come last"),
    ({"on": []}, ("on",), "at least one"),
    ({"expect": "x.y"}, ("on",), "two rules"),
    ({"after": "x.y"}, ("after",), "belongs to `expect`"),
    ({"on": None, "after": "a.b", "count": None, "within": None}, ("after",), "needs `expect`"),
    ({"on": None, "expect": "a.b", "count": None, "within": None}, ("expect",), "needs `within`"),
    ({"on": None, "expect": "a.b"}, ("count",), "belongs to `on`"),
    ({"where": {"data.x": {"prefx": 1}}}, ("where", "data.x", "prefx"), "did you mean 'prefix'"),
    ({"where": []}, ("where",), "mapping"),
    ({"for_each": "flow.name"}, ("for_each",), "did you mean 'data.flow.name'"),
    ({"for_each": ["data.x", "data..y"]}, ("for_each", 1), "is not a path"),
    ({"if": "data.x >"}, ("if",), "does not parse"),
    ({"if": "dta.x > 1"}, ("if",), "did you mean 'data'"),
    ({"budget": "many"}, ("budget",), "not a rate"),
    ({"mode": "dark"}, ("mode",), "'live' or 'shadow'"),
    ({"do": [{"notfy": "x"}]}, ("do", 0, "notfy"), "did you mean 'notify'"),
    ({"do": [{"run_deployment": "x"}]}, ("do", 0, "run_deployment"), "did you mean 'run'"),
    ({"do": ["notify"]}, ("do", 0), "an action is a mapping"),
    ({"do": [{"notify": "x", "titel": "y"}]}, ("do", 0, "titel"), "did you mean 'title'"),
    ({"do": [{"notify": "x", "run": "y"}]}, ("do", 0, "run"), "one action each"),
    ({"do": [{"notify": []}]}, ("do", 0, "notify"), "at least 1"),
    ({"do": [{"notify": "x", "severity": "bad"}]}, ("do", 0, "severity"), "'info'"),
    ({"do": [{"notify": "x", "delay": "8d"}]}, ("do", 0, "delay"), "delayed by 7d at most"),
    ({"do": [{"notify": "x", "severity": "eror"}]}, ("do", 0, "severity"), "did you mean 'error'?"),
    ({"do": [{"notify": "x", "severity": "{{ event."}]}, ("do", 0, "severity"), "does not parse"),
    ({"do": [{"run": "x", "parameters": {"a": "{{ x"}}]}, ("do", 0, "parameters"), "does not parse"),
    ({"do": [{"run": {"deploymnt": "x"}}]}, ("do", 0, "run", "deployment"), "needs 'deployment'"),
    ({"do": [{"pause": "etl"}]}, ("do", 0, "pause"), "{deployment: etl}"),
    ({"do": [{"pause": {"deploymnt": "x"}}]}, ("do", 0, "pause", "deploymnt"), "did you mean 'deployment'"),
    ({"do": [{"call": "ftp://x"}]}, ("do", 0, "call"), "begins with https://"),
    ({"do": [{"call": "https://x", "headers": {"a b": "c"}}]}, ("do", 0, "headers"), "not a header name"),
    ({"do": [{"call": "https://x", "headers": {"Host": "c"}}]}, ("do", 0, "headers"), "cannot be written"),
    ({"do": [{"emit": "flow-run.done"}]}, ("do", 0, "emit"), "Hark's own"),
    ({"do": [{"emit": "Not A Type"}]}, ("do", 0, "emit"), "lower-case dotted words"),
    ({"do": [{"notify": "x", "timeout": "2h"}]}, ("do", 0, "timeout"), "at most 1h"),
    ({"do": [{"notify": "x", "retries": 99}]}, ("do", 0, "retries"), "at most 20"),
    (
        {"tests": [{"given": [{"at": "0s", "same": 0}], "expect": 1}]},
        ("tests", 0, "given", 0, "same"),
        "earlier event",
    ),
    ({"tests": [{"given": [{"at": "0s"}], "expect": 1}]}, ("tests", 0, "given", 0), "give a `type`"),
    (
        {"tests": [{"given": [], "expect": {"fird": 1}}]},
        ("tests", 0, "expect", 0, "fird"),
        "did you mean 'fired'",
    ),
    ({"tests": [{"given": []}]}, ("tests", 0, "expect"), "missing"),
    ({"name": "no spaces"}, ("name",), "is not a name"),
]


@pytest.mark.parametrize(("changes", "loc", "words"), BAD, ids=[str(b[0])[:70] for b in BAD])
def test_a_fault_is_named_at_its_place(
    changes: dict[str, Any], loc: tuple[str | int, ...], words: str
) -> None:
    """Every fault says where it stands and what to write instead."""
    fields = {k: v for k, v in {"name": "r", **RULE, **changes}.items() if v is not None}
    with pytest.raises(RuleInvalid) as caught:
        parse_automation(fields)
    found = [p for p in caught.value.problems if p.loc == loc]
    assert found, caught.value.problems
    assert words in " ".join(p.message for p in found)


def test_several_faults_are_told_together() -> None:
    """A person corrects the file once, not three times."""
    with pytest.raises(RuleInvalid) as caught:
        rule(within="soon", where={"data.x": {"gtt": 1}}, do=[{"notify": "x", "titel": 1}])
    assert {p.loc for p in caught.value.problems} == {
        ("within",),
        ("where", "data.x", "gtt"),
        ("do", 0, "titel"),
    }


@pytest.mark.parametrize("raw", [b"not json", b"[]", b'"text"', b"{}"])
def test_what_is_no_rule_at_all_is_refused(raw: bytes) -> None:
    """Whatever stands in the bucket, reading it gives a rule or a clear error."""
    with pytest.raises(RuleInvalid):
        parse_automation(raw, name="x")


@pytest.mark.parametrize(
    "action",
    [
        {"emit": "a.b", "subject": "{{ secrets.token }}"},
        {"emit": "a.b", "data": {"deep": ["{{ env.HOME }}"]}},
        {"run": "nightly", "parameters": {"token": "{{ secrets.token }}"}},
    ],
)
def test_a_secret_does_not_get_into_the_log(action: dict[str, Any]) -> None:
    """Events and parameters are stored and shown to everybody; a template that would put a secret there is refused."""
    with pytest.raises(RuleInvalid, match="stand in the log"):
        parse_automation({"on": "x.y", "do": [action]}, name="leak")


def test_a_stored_action_is_read_once() -> None:
    """The same again is the same, another is another, and what is long is not kept."""
    call = {"call": "{{ secrets.url }}", "body": {"{{ event.id }}": ["{{ variables['a'] }}"]}}
    again = parse_stored_action({**call})
    assert parse_action(call) == again is parse_stored_action(call)
    assert again.names == {"secrets", "secrets.url", "event", "event.id", "variables", "variables.a"}
    assert parse_stored_action(call | {"method": "PUT"}).method == "PUT"
    long = call | {"body": "x" * 20_000}
    assert parse_stored_action(long) == parse_stored_action(long) is not parse_stored_action(long)
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown action"):
            parse_stored_action({"cal": "x"})
