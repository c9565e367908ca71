"""What is written, or sent, to take long: refused or bounded, and never a hang.

Times are of this process's own work, so that they hold on a loaded machine; a hang would be minutes.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import pytest
from hark.automations.eventbridge import with_pattern
from hark.automations.matching.expression import compile_expression
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid
from hark.errors import TemplateError
from hark.template import render_value

from tests.automations.playing import given, played

MOST_S = 5.0


@pytest.fixture(autouse=True)
def bounded() -> Generator[None]:
    """Whatever a test does, it is done soon."""
    began = time.process_time()
    yield
    assert time.process_time() - began < MOST_S


def nested(depth: int, leaf: Any = "x") -> Any:
    for _ in range(depth):
        leaf = {"a": leaf}
    return leaf


def asking(depth: int) -> Any:
    action: Any = {"notify": "x"}
    for _ in range(depth):
        action = {"approve": "x", "yes": [action]}
    return action


def emits(data: Any) -> dict[str, Any]:
    return {"do": [{"emit": "x.y", "data": data}]}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (emits("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"), "template"),
        (emits("{% for a in b %}" * 500 + "{% endfor %}" * 500), "template"),
        (emits("{{ " + "1+" * 30_000 + "1 }}"), "template"),
        (emits("{{ x" + "|upper" * 5000 + " }}"), "template"),
        (emits("x" * 10_000_000), "too long"),
        (emits(nested(5000)), "nested deeper than 32"),
        (emits(nested(40)), "nested deeper than 32"),
        ({"where": nested(5000)}, "unknown operator"),
        ({"where": {"any": [{"data.x": i} for i in range(100_000)]}}, "more than 500 conditions"),
        ({"where": {"data.x": list(range(1_000_000))}}, "more than 10000 alternatives"),
        ({"where": {"data.x": {"contains": ["a"] * 501}}}, "more than 500 alternatives"),
        ({"where": {"data.x": {"regex": "((a{100}){100}){100}"}}}, "not a pattern"),
        ({"where": {"data.x": {"regex": "(\\pL{500}|\\pN{500}){2}"}}}, "too large"),
        ({"where": {"data.x": ">= " + "9" * 100_000}}, "too large a number"),
        ({"where": {"data.x": ">= 1e999"}}, "not a number"),
        ({"count": 10**12, "within": "1m"}, "100000"),
        ({"count": 2, "within": "9" * 5000 + "s"}, "longer than ten years"),
        ({"if": "(" * 900 + "true" + ")" * 900}, "nests deeper"),
        ({"if": "! " * 900 + "true"}, "nests deeper"),
        ({"if": "a" * 3000}, "too long"),
        ({"if": "data.x.map(a, data.x.map(b, data.x.map(c, 1))).size() > 1"}, "cannot be bounded"),
        ({"tests": [{"given": [{"type": "a.b", "data": nested(3000)}], "expect": "fired"}]}, ""),
        ({"do": [asking(500)]}, "nests too deep"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "rule",
)
def test_what_cannot_be_bounded_is_refused(rule: dict[str, Any], words: str) -> None:
    """Large, deep and exploding definitions end with a sentence, at once."""
    with pytest.raises(RuleInvalid) as caught:
        parse_automation({"on": "a.b", **rule}, name="r")
    assert words in str(caught.value)


def test_groups_and_patterns_of_others_are_bounded() -> None:
    """Nested groups, and EventBridge patterns whose alternatives multiply."""
    group: Any = ["a.b"]
    for _ in range(80):
        group = [{"any_of": group}]
    with pytest.raises(RuleInvalid, match="nest deeper"):
        parse_automation({"all_of": group, "within": "1m"}, name="r")
    wide = {"$or": [{"x": [i], "$or": [{"y": [j]} for j in range(50)]} for i in range(50)]}
    for detail in (nested(3000, ["x"]), wide):
        with pytest.raises(RuleInvalid, match=r"levels deep|more than 500"):
            parse_automation({"pattern": {"detail": detail}}, name="r")
    assert with_pattern({"on": "a.b"}) == {"on": "a.b"}


@pytest.mark.parametrize(
    ("rule", "data"),
    [
        ({"where": {"data.x": {"glob": "*a" * 300 + "b"}}}, {"x": "a" * 200_000}),
        ({"where": {"data.x": {"regex": "^(a+)+$"}}}, {"x": "a" * 900_000 + "b"}),
        ({"where": {"data.x": {"regex": [f"(a|aa)+${i}" for i in range(100)]}}}, {"x": "a" * 200_000}),
        ({"where": {"data.a.a": 2}}, nested(2000)),
        ({"where": {"data.a.a.a.a.a": 1}}, {"a": [{"a": [{"a": [{"a": [{"a": 0}] * 20}] * 20}] * 20}] * 20}),
        ({"where": {"data.a": {"any": {"b": {"any": {"c": 1}}}}}}, {"a": [{"b": [{"c": 0}] * 300}] * 300}),
        ({"for_each": ["data.a", "data.b", "data.c"], "count": 2, "within": "1m"},
         {key: list(range(1000)) for key in "abc"}),
        ({"for_each": "data.a", "count": 2, "within": "1m"}, {"a": "x" * 900_000}),
        ({"if": "data.x.matches('^(a+)+$')"}, {"x": "a" * 100_000 + "b"}),
        ({"if": "data.x.matches(data.p)"}, {"x": "a" * 100_000, "p": "((a{100}){100}){100}"}),
        ({"if": "data.x.map(a, data.x.map(b, data.s + data.s)).size() > 1"},
         {"x": list(range(300)), "s": "a" * 100_000}),
        ({"if": "size(data.x.map(a, data.x)) > 1"}, {"x": list(range(100_000))}),
        ({"if": "data.x.exists(a, a in data.y)"}, {"x": list(range(50_000)), "y": list(range(50_000, 100_000))}),
        ({"if": "data.x.exists(a, data.x[0] < -1)"}, {"x": list(range(20_000))}),
        ({"if": "data.x.exists(a, data.s.matches('(b+)+$'))"}, {"x": list(range(2000)), "s": "b" * 500_000 + "a"}),
        ({"if": "+".join(["data.s"] * 200) + " == 'a'"}, {"s": "a" * 900_000}),
    ],
    ids=map(str, range(16)),
)  # fmt: skip
def test_no_event_makes_a_rule_take_long(rule: dict[str, Any], data: dict[str, Any]) -> None:
    """Patterns that explode, arrays in arrays, and expressions whose work grows with the event: no match, and soon."""
    _, row = given(0, "a.b", id="1")
    assert played({"on": "a.b", **rule}, (0.0, {**row, "data": data}), until=1.0) == []


def test_an_expression_that_is_given_up_says_why() -> None:
    """Ordinary arrays are looked through; those beyond the bound are told, in the explanation, as too large."""
    some = compile_expression("data.items.exists(i, i.n > 3 && i.name in ['a', 'b'])")
    items = [{"n": n, "name": "b"} for n in range(100)]
    assert some.decide({"data": {"items": items}}).ok
    assert "too large for a comprehension" in some.decide({"data": {"items": items * 1000}}).note
    joined = compile_expression("data.a + data.b == 'xy'")
    assert joined.decide({"data": {"a": "x", "b": "y"}}).ok
    assert "too large to put together" in joined.decide({"data": {"a": "x" * (9 << 20), "b": "y"}}).note


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10**9) | list }}",
        "{{ 9**9**9**9 }}",
        "{{ 'a' * 10**10 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
        "{{ 'a' | center(10**9) }}",
    ],
)
def test_a_template_that_makes_too_much_is_stopped(source: str) -> None:
    """Giant ranges, powers and loops in loops end with an error."""
    with pytest.raises(TemplateError):
        render_value(source, {})
