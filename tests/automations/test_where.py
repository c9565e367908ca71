"""`where`: what every operator means, what is refused, and how it explains itself."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.matching.condition import parse_where
from hark.automations.matching.path import MISSING, follow, parse_path, show_path
from hark.automations.matching.where import compile_node, compile_where, explain
from hark.automations.problem import RuleInvalid
from hypothesis import given
from hypothesis import strategies as st

EVENT: dict[str, Any] = {
    "type": "flow-run.failed",
    "subject": "flow-run/1",
    "source": "/hark/engine",
    "time": "2026-05-01T12:00:00.000000Z",
    "data": {
        "name": "Nightly ETL", "n": 5, "zero": 0, "one": 1, "half": 0.5, "yes": True, "no": False, "none": None, "empty": [],
        "text": "5", "tags": ["prod", "eu"], "scores": [1, 10], "mixed": [1, "a", None, True], "nested": [[1, 2], [3, [4]]],
        "ip": "10.1.2.3", "ips": ["8.8.8.8", "192.168.1.7"], "v6": "2001:db8::1", "at": "2026-05-01T14:00:00+02:00",
        "run": {"attempt": 2, "id": "r1"}, "a.b": {"c d": 7},
        "items": [{"sku": "a", "qty": 1, "tags": ["x"]}, {"sku": "b", "qty": 5, "tags": ["y", "z"]}],
    },
}  # fmt: skip


def holds(condition: dict[str, Any]) -> bool:
    return compile_where(condition)(EVENT)


YES: list[dict[str, Any]] = [
    {"type": "flow-run.failed"},
    {"data.name": "Nightly ETL"},
    {"data.n": 5},
    {"data.n": 5.0},
    {"data.half": 0.5},
    {"data.yes": True},
    {"data.none": None},
    {"data.tags": "prod"},
    {"data.n": [1, 5]},
    {"data.tags": ["x", "eu"]},
    {"data.mixed": None},
    {"data.mixed": True},
    {"data.nested": 4},
    {"data.n": ">= 5"},
    {"data.n": ">4.5"},
    {"data.n": "< 6"},
    {"data.n": "<= 5"},
    {"data.n": "!= 4"},
    {"data.n": "== 5"},
    {"data.text": "== '5'"},
    {"data.n": [">= 100", 5]},
    {"data.n": {"gt": 4}},
    {"data.n": {"gte": 5, "lt": 6}},
    {"data.n": {"lte": 5}},
    {"data.n": {"between": [5, 7]}},
    {"data.n": {"lt": "10s"}},
    {"data.scores": {"gt": 9}},
    {"data.at": {"gte": "2026-05-01T12:00:00Z"}},
    {"data.at": "< 2026-05-01T12:00:01Z"},
    {"time": {"between": ["2026-05-01T00:00:00Z", "2026-05-02T00:00:00Z"]}},
    {"data.name": {"prefix": "Night"}},
    {"data.name": {"prefix": ["x", "Night"]}},
    {"data.name": {"suffix": "ETL"}},
    {"data.name": {"contains": "ly E"}},
    {"data.name": {"glob": "N*E?L"}},
    {"data.name": {"glob": "*[dE]T[!a]"}},
    {"data.name": {"regex": "^N.*L$"}},
    {"data.name": {"regex": ["^x", r"\bETL\b"]}},
    {"data.name": {"prefix": "night", "ignore_case": True}},
    {"data.name": {"regex": "^nightly", "ignore_case": True}},
    {"data.name": {"glob": "nightly*", "ignore_case": True}},
    {"data.name": {"ignore_case": "NIGHTLY etl"}},
    {"data.name": {"ignore_case": ["x", "NIGHTLY etl"]}},
    {"data.name": {"ignore_case": {"contains": "LY e"}}},
    {"data.name": [{"ignore_case": "NIGHTLY etl"}, "other"]},
    {"data.name": ["other", {"regex": "^x"}, {"ignore_case": "y"}, {"ignore_case": "NIGHTLY etl"}]},
    {"data.tags": {"any": ["PROD"], "ignore_case": True}},
    {"data.ip": {"cidr": "10.0.0.0/8"}},
    {"data.ip": {"cidr": ["1.0.0.0/8", "10.1.2.3/32"]}},
    {"data.ips": {"cidr": "192.168.0.0/16"}},
    {"data.v6": {"cidr": "2001:db8::/32"}},
    {"data.none": {"exists": True}},
    {"data.empty": {"exists": True}},
    {"data.gone": {"exists": False}},
    {"data.run.gone.deeper": {"exists": False}},
    {"data.n": {"not": 4}},
    {"data.n": {"not": [1, 2]}},
    {"data.none": {"not": {"prefix": "Expected"}}},
    {"data.tags": {"not": "dev"}},
    {"data.tags": {"not": {"any": ["dev", "test"]}}},
    {"data.tags": {"all": ["prod", "eu"]}},
    {"data.scores": {"all": {"gt": 0}}},
    {"data.items.sku": "b"},
    {"data.items.tags": "z"},
    {"data.items.0.sku": "a"},
    {"data.items[1].sku": "b"},
    {"data.items": {"any": {"sku": "b", "qty": ">= 5"}}},
    {"data.items": {"any": {"sku": "b", "tags": "y"}}},
    {"data.items": {"all": {"qty": {"gte": 1}}}},
    {"data.run": {"any": {"attempt": 2}}},
    {"data['a.b']['c d']": 7},
    {"any": [{"data.n": 4}, {"data.n": 5}]},
    {"all": [{"data.n": 5}, {"data.tags": "eu"}]},
    {"not": {"data.n": 4}},
    {"not": {"data.gone": 4}},
    {"data.n": 5, "data.tags": "prod"},
    {"data.name": "Nightly ETL", "any": [{"data.run.attempt": 2}]},
]
NO: list[dict[str, Any]] = [
    {"type": "flow-run.*"},
    {"data.name": "nightly etl"},
    {"data.text": 5},
    {"data.n": "5"},
    {"data.one": True},
    {"data.yes": 1},
    {"data.zero": False},
    {"data.no": 0},
    {"data.zero": None},
    {"data.none": False},
    {"data.yes": [0, 1]},
    {"data.one": [True, False]},
    {"data.yes": {"gt": 0}},
    {"data.gone": None},
    {"data.gone": {"not": 5}},
    {"data.gone": {"not": {"prefix": "x"}}},
    {"data.gone": "!= 5"},
    {"data.empty": {"not": {"exists": True}}},
    {"data.empty": "x"},
    {"data.empty": {"all": {"gt": 0}}},
    {"data.tags": {"not": "prod"}},
    {"data.tags": {"all": ["prod", "us"]}},
    {"data.scores": {"all": {"gt": 5}}},
    # Two operators in one mapping speak of the same element: neither 1 nor 10 is between.
    {"data.scores": {"gt": 3, "lt": 5}},
    {"data.items": {"any": {"sku": "a", "qty": ">= 5"}}},
    {"data.items": {"any": {"sku": "a", "tags": "y"}}},
    {"data.n": {"gt": 5}},
    {"data.n": {"between": [6, 7]}},
    {"data.text": {"gt": 1}},
    {"data.n": {"prefix": "5"}},
    {"data.none": {"prefix": ""}},
    {"data.run": {"contains": "attempt"}},
    {"data.name": {"gt": "2026-01-01T00:00:00Z"}},
    {"data.name": {"cidr": "10.0.0.0/8"}},
    {"data.n": {"cidr": "10.0.0.0/8"}},
    {"data.v6": {"cidr": "10.0.0.0/8"}},
    {"data.name": {"glob": "N*X"}},
    {"data.name": {"glob": "ightly*"}},
    {"data.name": {"regex": "^ightly"}},
    {"data.name": {"prefix": "night"}},
    {"data.none": {"exists": False}},
    {"data.gone": {"exists": True}},
    {"data.run.attempt.deeper": 2},
    {"data.n": 5, "data.tags": "dev"},
    {"any": [{"data.n": 4}, {"data.n": 6}]},
    {"not": {"data.n": 5}},
    {"data.items.2.sku": "a"},
]


@pytest.mark.parametrize("condition", YES, ids=str)
def test_a_condition_holds(condition: dict[str, Any]) -> None:
    """Each operator does what its line says."""
    assert holds(condition)


@pytest.mark.parametrize("condition", NO, ids=str)
def test_a_condition_does_not_hold(condition: dict[str, Any]) -> None:
    """Missing fields, other kinds and other values do not match."""
    assert not holds(condition)


@pytest.mark.parametrize("condition", YES + NO, ids=str)
def test_the_explanation_agrees_with_the_outcome(condition: dict[str, Any]) -> None:
    """All predicates are ok exactly when the whole is."""
    node, problems = parse_where(condition)
    assert node is not None, problems
    predicates = explain(node, EVENT)
    assert predicates
    assert all(p.ok for p in predicates) == compile_node(node)(EVENT)


REFUSED: list[tuple[dict[str, Any], tuple[str | int, ...], str]] = [
    ({}, (), "empty"),
    ({"flow.name": 1}, ("flow.name",), "did you mean 'data.flow.name'"),
    ({"subjct": "x", "data.x..y": 1}, ("data.x..y",), "is not a path"),
    ({"data.n": {"prefx": "a"}}, ("data.n", "prefx"), "did you mean 'prefix'"),
    ({"data.n": {"startswith": "a"}}, ("data.n", "startswith"), "did you mean 'prefix'"),
    ({"data.n": {"equals": 5}}, ("data.n", "equals"), "write the value itself"),
    ({"data.run": {"attempt": 2}}, ("data.run", "attempt"), "data.run.attempt"),
    ({"data.n": {}}, ("data.n",), "no operator"),
    ({"data.n": []}, ("data.n",), "can never match"),
    ({"data.n": ">= two"}, ("data.n",), "'two' is not a number"),
    ({"data.n": {"gt": "abc"}}, ("data.n", "gt"), "not a number"),
    ({"data.n": {"gt": True}}, ("data.n", "gt"), "not a number"),
    ({"data.n": {"between": [1]}}, ("data.n", "between"), "list of two"),
    ({"data.n": {"between": [5, 1]}}, ("data.n", "between"), "never true"),
    ({"data.n": {"between": [1, "2026-01-01T00:00:00Z"]}}, ("data.n", "between"), "two numbers or two times"),
    ({"data.n": {"prefix": 5}}, ("data.n", "prefix"), "needs text"),
    ({"data.n": {"regex": "("}}, ("data.n", "regex"), "missing )"),
    ({"data.n": {"regex": ["a", "(?=x)"]}}, ("data.n", "regex", 1), "look-around"),
    ({"data.n": {"regex": r"(a)\1"}}, ("data.n", "regex"), "back-references"),
    ({"data.n": {"regex": "a{1000}{1000}"}}, ("data.n", "regex"), "not a pattern"),
    ({"data.n": {"regex": "a" * 2000}}, ("data.n", "regex"), "too long"),
    ({"data.n": {"cidr": "10.0.0.0/99"}}, ("data.n", "cidr"), "not a network"),
    ({"data.n": {"exists": "yes"}}, ("data.n", "exists"), "true or false"),
    ({"data.n": {"ignore_case": True}}, ("data.n",), "needs another operator"),
    ({"data.n": {"any": {"sku": 1, "prefix": "x"}}}, ("data.n", "any", "sku"), "beside operators"),
    ({"any": [{"data.n": {"gtt": 1}}]}, ("any", 0, "data.n", "gtt"), "did you mean 'gt'"),
    ({"data.n": {"not": {"gtt": 1}}}, ("data.n", "not", "gtt"), "did you mean 'gt'"),
]


@pytest.mark.parametrize(("condition", "loc", "words"), REFUSED, ids=[str(r[0])[:60] for r in REFUSED])
def test_a_fault_is_named_at_its_place(
    condition: dict[str, Any], loc: tuple[str | int, ...], words: str
) -> None:
    """What cannot be meant is refused, where it stands, with what to write instead."""
    with pytest.raises(RuleInvalid) as caught:
        compile_where(condition)
    problem = next((p for p in caught.value.problems if p.loc == loc), None)
    assert problem is not None, caught.value.problems
    assert words in problem.message


def test_every_fault_is_reported_at_once() -> None:
    """Three mistakes give three problems."""
    _, problems = parse_where({"data.a": {"prefx": 1}, "data.b": {"gt": "x"}, "flow.x": 1})
    assert [p.loc for p in problems] == [("data.a", "prefx"), ("data.b", "gt"), ("flow.x",)]


def test_too_many_or_too_deep_conditions_are_refused() -> None:
    """Size and depth are bounded, so that no `where` can hang the engine."""
    _, many = parse_where({f"data.f{i}": i for i in range(600)})
    assert any("more than 500" in p.message for p in many)
    deep: Any = 1
    for _ in range(40):
        deep = {"not": deep}
    _, problems = parse_where({"data.x": deep})
    assert any("nest deeper" in p.message for p in problems)


def test_an_explanation_shows_the_value_and_the_fields_there_were() -> None:
    """A person sees what was looked at: the value, the wrong kind, or the neighbours of the missing field."""
    seen = [
        str(p)
        for p in explain(parse_where({"data.n": "> 7", "data.text": "> 1", "data.run.atempt": 2})[0], EVENT)
    ]
    assert seen == [
        "no  data.n > 7: saw 5",
        'no  data.text > 1: saw "5" (needs a number, this is text)',
        "no  data.run.atempt is 2 (missing; data.run has attempt, id)",
    ]


def test_a_hostile_pattern_takes_linear_time() -> None:
    """The classic catastrophe is decided at once."""
    assert not compile_where({"data.x": {"regex": "^(a+)+$"}})({"data": {"x": "a" * 50_000 + "b"}})
    assert not compile_where({"data.x": {"glob": "*a" * 200 + "b"}})({"data": {"x": "a" * 5_000}})


def test_arrays_nested_deeper_than_the_stack_are_looked_through() -> None:
    """An event cannot break the engine by its depth."""
    deep: Any = 7
    for _ in range(5_000):
        deep = [deep]
    assert compile_where({"data.x": 7})({"data": {"x": deep}})
    assert not compile_where({"data.x.y": 7})({"data": {"x": deep}})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-2, 2)
    | st.sampled_from(["", "a", "b", "prod", "10.0.0.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from([c for c in YES if any(k.startswith("data") for k in c)]))
def test_no_event_makes_a_condition_raise(value: Any, condition: dict[str, Any]) -> None:
    """Whatever JSON an event holds, every condition is decided and explained."""
    node, _ = parse_where(condition)
    assert node is not None
    for data in (
        value,
        {"n": value, "tags": value, "name": value, "items": value, "run": value, "ip": value},
    ):
        event = {"type": "x.y", "data": data}
        decided = compile_node(node)(event)
        assert all(p.ok for p in explain(node, event)) == decided


@given(json_values, json_values.filter(lambda v: not isinstance(v, dict | list) and v == v))
def test_equality_is_that_of_json(value: Any, wanted: Any) -> None:
    """A scalar equals itself and nothing of another kind: true is not 1, and 1 is 1.0."""
    if isinstance(value, dict | list):
        return
    same_kind = isinstance(value, bool) is isinstance(wanted, bool) and (value is None) is (wanted is None)
    want = wanted if not isinstance(wanted, str) else [wanted]
    assert compile_where({"data.x": want})({"data": {"x": value}}) == (same_kind and value == wanted)


@given(json_values)
def test_not_is_the_opposite_where_there_is_something(value: Any) -> None:
    """`not` turns the outcome over when the path leads to something."""
    for inner in ("a", {"prefix": "p"}, {"gt": 0}, ["a", 1]):
        plain = compile_where({"data.x": inner})
        turned = compile_where({"data.x": {"not": inner}})
        event = {"data": {"x": value}}
        assert turned(event) == (not plain(event))
        assert not turned({"data": {}})


@given(
    st.lists(
        st.text(min_size=1, max_size=6).filter(lambda s: "'" not in s or '"' not in s), min_size=1, max_size=4
    )
)
def test_a_path_that_is_shown_reads_back(steps: list[str]) -> None:
    """parse_path(show_path(p)) is p, and following it arrives."""
    path = ("data", *steps)
    shown = show_path(path)
    if "\\" in shown:
        return  # shown escaped, for people only
    value: Any = 7
    for step in reversed(path):
        value = {step: value}
    assert parse_path(shown) == path
    assert follow(value, path) == 7
    assert follow(value, (*path, "x")) is MISSING
