"""The index finds exactly what looking at every pattern would find."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest
from hark.automations.listening import filters_to_follow
from hark.automations.matching.condition import parse_where
from hark.automations.matching.matcher import Matcher, indexed_by, pattern_covers
from hark.automations.matching.where import compile_node
from hark.bus import Event
from hark.bus.subject import ALL_EVENTS, covers, subject_of
from hark.vocabulary import JsonValue
from hypothesis import given, settings
from hypothesis import strategies as st

TYPES = [
    "flow-run.failed",
    "flow-run.completed",
    "order.paid",
    "order.item.added",
    "automation.triggered",
    "ping",
]
PATTERNS = [
    *TYPES,
    "flow-run.*",
    "order.>",
    "*.paid",
    "*",
    ">",
    "order.*.added",
    "automation.*",
    "*.*",
    "flow-run.>",
]

scalars = st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from([0.5, 1.0, "a", "ab", "B", "prod"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=6,
)
events = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={
        "subject": st.sampled_from(["a", "ab", "b"]),
        "data": values | st.fixed_dictionaries({}, optional=dict.fromkeys("xyz", values)),
    },
)
limits = st.integers(-1, 3) | st.sampled_from([0.5, 1.5])
conditions = st.one_of(
    scalars.filter(lambda s: not isinstance(s, str)),
    st.sampled_from(["a", "ab", "B", "prod", ">= 1", "< 2", "!= a"]),
    st.lists(scalars, min_size=1, max_size=3),
    st.fixed_dictionaries({"gt": limits}),
    st.fixed_dictionaries({"lte": limits}),
    st.fixed_dictionaries({"gte": limits, "lt": limits}),
    st.fixed_dictionaries({"prefix": st.sampled_from(["a", "ab", "p"])}),
    st.fixed_dictionaries({"suffix": st.sampled_from(["b", "ab"])}),
    st.fixed_dictionaries({"ignore_case": st.sampled_from(["A", "b", "PROD"])}),
    st.fixed_dictionaries({"not": st.sampled_from(["a", 1, None])}),
    st.fixed_dictionaries({"exists": st.booleans()}),
    st.fixed_dictionaries({"any": st.fixed_dictionaries({"x": st.sampled_from(["a", 1])})}),
)
wheres = st.none() | st.dictionaries(
    st.sampled_from(["data.x", "data.y", "data.x.y", "data.z", "subject", "type", "data.x.x"]),
    conditions,
    min_size=1,
    max_size=3,
)
rules = st.lists(
    st.tuples(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3), wheres), min_size=1, max_size=12
)


def naive(types: list[str], where: Any, event: dict[str, Any]) -> bool:
    """Look at one pattern the plain way."""
    if not any(pattern_covers(t, event["type"]) for t in types):
        return False
    return where is None or compile_node(parse_where(where)[0])(event)  # type: ignore[arg-type]


def index_of(found: list[tuple[list[str], Any]]) -> Matcher[tuple[int, int]]:
    """Return an index whose handles look like what the tables hold of a limit: a number and something."""
    matcher: Matcher[tuple[int, int]] = Matcher()
    for i, (types, where) in enumerate(found):
        matcher.add((i, -i), types, parse_where(where)[0] if where is not None else None)
    return matcher


@settings(max_examples=150)
@given(rules, st.lists(events, min_size=1, max_size=8))
def test_the_index_finds_what_looking_at_each_would(
    found: list[tuple[list[str], Any]], seen: list[dict[str, Any]]
) -> None:
    """For random patterns and events, match gives exactly the patterns that hold, each once."""
    matcher = index_of(found)
    for event in seen:
        event = orjson.loads(orjson.dumps(event))
        expected = [(i, -i) for i, (types, where) in enumerate(found) if naive(types, where, event)]
        assert sorted(matcher.match(event)) == expected
        assert matcher.wants(event["type"]) or not expected


@settings(max_examples=50)
@given(rules, st.lists(events, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_patterns_come_and_go(
    found: list[tuple[list[str], Any]], seen: list[dict[str, Any]], rng: random.Random
) -> None:
    """Adding and removing in any order, between matches, leaves exactly those that are in."""
    matcher: Matcher[tuple[int, int]] = Matcher()
    inside: set[int] = set()
    steps = [*range(len(found)), *range(len(found)), *range(len(found))]
    rng.shuffle(steps)
    for i in steps:
        types, where = found[i]
        if i in inside:
            matcher.remove((i, -i))
            inside.discard(i)
        else:
            matcher.add((i, -i), types, parse_where(where)[0] if where is not None else None)
            inside.add(i)
        event = rng.choice(seen)
        expected = [(j, -j) for j in sorted(inside) if naive(*found[j], event)]
        assert sorted(matcher.match(event)) == expected
    for i in list(inside):
        matcher.remove((i, -i))
    assert len(matcher) == 0
    assert all(matcher.match(event) == [] for event in seen)


def test_a_limit_that_comes_later_leaves_what_was_found_before() -> None:
    """A handle that is a pair is not taken for a limit and a handle, whatever else comes into its table."""
    matcher: Matcher[tuple[int, int]] = Matcher()
    matcher.add((1, 1), ["x"], parse_where({"data.a": "k"})[0])
    event = {"type": "x", "data": {"a": "k", "n": 9}}
    assert matcher.match(event) == [(1, 1)]
    matcher.add((2, 2), ["x"], parse_where({"data.a": "other", "data.n": "> 5"})[0])
    assert matcher.match(event) == [(1, 1)]
    matcher.add((3, 3), ["x"], parse_where({"data.a": "k", "data.n": "> 5"})[0])
    matcher.add((4, 4), ["x"], parse_where({"data.a": "k", "data.n": "> 50"})[0])
    assert sorted(matcher.match(event)) == [(1, 1), (3, 3)]
    matcher.remove((1, 1))
    assert matcher.match(event) == [(3, 3)]
    assert matcher.match({"type": "x", "data": {"a": ["other", "k"], "n": [51, 2**60]}}) == [
        (2, 2),
        (3, 3),
        (4, 4),
    ]
    matcher.remove((3, 3))
    matcher.add((5, 5), ["x"], parse_where({"data.a": "k", "data.n": f"> {2**60}"})[0])
    matcher.remove((4, 4))
    assert matcher.match({"type": "x", "data": {"a": "k", "n": 2**60}}) == []
    assert matcher.match({"type": "x", "data": {"a": "k", "n": 2**60 + 1}}) == [(5, 5)]


def test_many_limits_are_found_by_bisection() -> None:
    """Hundreds of patterns that differ in a limit only: exactly those passed are found, in arrays too."""
    matcher: Matcher[tuple[str, int]] = Matcher()
    for n in range(200):
        for op in ("gt", "gte", "lt", "lte"):
            matcher.add((op, n), [">"], parse_where({"data.n": {op: n}})[0])
    hits = set(matcher.match({"type": "x", "data": {"n": 100}}))
    assert {n for op, n in hits if op == "gt"} == set(range(100))
    assert {n for op, n in hits if op == "gte"} == set(range(101))
    assert {n for op, n in hits if op == "lt"} == set(range(101, 200))
    assert {n for op, n in hits if op == "lte"} == set(range(100, 200))
    many = set(matcher.match({"type": "x", "data": {"n": [True, "x", 3, 198]}}))
    assert {n for op, n in many if op == "gt"} == set(range(198))
    assert {n for op, n in many if op == "lt"} == set(range(4, 200))
    assert matcher.match({"type": "x", "data": {"n": True}}) == []


def test_an_event_with_huge_arrays_is_matched_in_bounded_time() -> None:
    """Two arrays of thousands under two paths of one signature do not multiply."""
    matcher: Matcher[int] = Matcher()
    for i in range(50):
        matcher.add(i, ["x"], parse_where({"data.a": i, "data.b": i})[0])
    event = {"type": "x", "data": {"a": list(range(5_000)), "b": list(range(25, 5_000))}}
    assert sorted(matcher.match(event)) == list(range(25, 50))


@pytest.mark.parametrize(
    ("pattern", "type_", "covers"),
    [
        ("a.b", "a.b", True), ("a.*", "a.b", True), ("a.*", "a.b.c", False), ("a.>", "a.b.c", True), ("a.>", "a", False),
        (">", "a.b", True), ("*", "a", True), ("*", "a.b", False), (">", "automation.triggered", False),
        ("*.*", "action.failed", False), ("action.*", "action.failed", True), ("automation.>", "automation.triggered", True),
        (">", "hark.x", False), ("*.sent", "notification.sent", False), (">", "webhook.received", True),
    ],
)  # fmt: skip
def test_wildcards_leave_bookkeeping_out_unless_it_is_named(pattern: str, type_: str, covers: bool) -> None:
    """`>` does not mean the events that rules themselves make; `action.*` does."""
    assert pattern_covers(pattern, type_) is covers
    matcher: Matcher[str] = Matcher()
    matcher.add("p", [pattern])
    assert (matcher.match({"type": type_}) == ["p"]) is covers


def test_values_that_share_a_hash_are_told_apart() -> None:
    """true and 1 lie under one key of the table and are different values; both can be taken out again."""
    matcher: Matcher[str] = Matcher()
    matcher.add("both", ["x"], parse_where({"data.x": [True, 1]})[0])
    matcher.add("one", ["x"], parse_where({"data.x": 1})[0])
    matcher.add("true", ["x"], parse_where({"data.x": True})[0])
    assert set(matcher.match({"type": "x", "data": {"x": True}})) == {"both", "true"}
    assert set(matcher.match({"type": "x", "data": {"x": 1.0}})) == {"both", "one"}
    for handle in ("both", "one", "true"):
        matcher.remove(handle)
    assert matcher.match({"type": "x", "data": {"x": 1}}) == []


def test_a_handle_is_in_once() -> None:
    """Adding a handle twice is a mistake; removing an unknown one is not."""
    matcher: Matcher[str] = Matcher()
    matcher.add("a", ["x"])
    with pytest.raises(ValueError, match="in already"):
        matcher.add("a", ["y"])
    matcher.remove("b")
    assert matcher.match({"type": "x"}) == ["a"]


def test_more_types_than_there_is_room_for_plans() -> None:
    """Somebody who invents a type per event does not fill the memory."""
    matcher: Matcher[str] = Matcher()
    matcher.add("all", ["made.>"])
    for n in range(10_010):
        assert matcher.match({"type": f"made.{n}"}) == ["all"]
    assert len(matcher._plans) <= 10_000


@pytest.mark.parametrize(
    ("types", "where", "how"),
    [
        (["a.b"], None, "type"), ([">"], {"data.x": 1}, "data.x"), ([">"], {"data.x": {"prefix": "a"}}, "data.x"),
        ([">"], {"data.x": {"gt": 1}}, "data.x"), ([">"], None, ""), (["*.x"], {"data.x": {"regex": "a"}}, ""),
        ([">"], {"data.a": 1, "data.b": ["x", "y"]}, "data.a and data.b"), ([">"], {"data.x": {"not": 1}}, ""),
    ],
)  # fmt: skip
def test_it_says_how_a_pattern_is_found(types: list[str], where: Any, how: str) -> None:
    """Lint can tell which rules are looked at for every event."""
    assert indexed_by(types, parse_where(where)[0] if where else None, has_if=False) == how


def test_the_work_does_not_grow_with_the_number_of_patterns() -> None:
    """Of ten thousand patterns, the conditions of a handful are looked at."""
    looked = 0

    def count(event: Any) -> bool:
        nonlocal looked
        looked += 1
        return True

    matcher: Matcher[int] = Matcher()
    for i in range(10_000):
        matcher.add(i, ["flow-run.failed"], parse_where({"data.flow": f"flow-{i // 2}"})[0], extra=count)
    assert matcher.match({"type": "flow-run.failed", "data": {"flow": "flow-77"}}) == [154, 155]
    assert looked == 2


@settings(max_examples=60, deadline=None)
@given(rules)
def test_what_a_matcher_wants_stands_under_its_filters(wanted: list[tuple[list[str], Any]]) -> None:
    """Who reads the log through the filters of the types asked for misses nothing, and asks for none once all have gone."""
    matcher: Matcher[int] = Matcher()
    for handle, (types, _) in enumerate(wanted):
        matcher.add(handle, types)
    filters = filters_to_follow(matcher.types)
    about: JsonValue = {"flow_run": {"id": "f"}, "run": {"id": "t"}, "state": {"type": "COMPLETED"}}
    for type_ in (*TYPES, "task-run.completed"):
        subject = f"{type_.partition('.')[0]}/1"
        event = Event(type=type_, source="/test", subject=subject, data=about)
        if matcher.wants(type_):
            assert any(covers(one, subject_of(event)) for one in filters)
    for handle in range(len(wanted)):
        matcher.remove(handle)
    assert not matcher.types


def test_many_types_are_read_without_filters() -> None:
    """The broker would take longer to choose among many filters than it takes to hand over everything."""
    assert filters_to_follow([f"order.of-{n}" for n in range(100)]) == (ALL_EVENTS,)
    assert len(filters_to_follow(["order.paid"])) == 3
