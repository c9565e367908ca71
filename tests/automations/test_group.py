"""Groups: so many of several patterns, in any order, nested."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.automations.playing import fired, given, triggers

REGIONS = {
    "any_of": {
        "need": 2,
        "of": [{"on": "probe.failed", "where": {"data.region": r}} for r in ("eu", "us", "ap")],
    },
    "within": "1m",
}


def probe(at: float, region: str, *, late: float = 0.0) -> tuple[float, dict[str, Any]]:
    return given(at, "probe.failed", late=late, id=f"{region}{at:g}", region=region)


def test_two_of_three_regions() -> None:
    """Two different ones within the minute; the same one twice is one."""
    assert fired(REGIONS, probe(0, "eu"), probe(5, "eu")) == []
    assert fired(REGIONS, probe(0, "eu"), probe(60, "us")) == [(60, "", 2)]
    assert fired(REGIONS, probe(0, "eu"), probe(60.5, "us")) == []
    assert fired(REGIONS, probe(0, "eu"), probe(30, "eu"), probe(70, "us")) == [(70, "", 2)]


def test_firing_begins_anew() -> None:
    """What has fired is used up."""
    history = [probe(0, "eu"), probe(1, "us"), probe(2, "ap"), probe(3, "eu")]
    assert fired(REGIONS, *history) == [(1, "", 2), (3, "", 2)]


def test_all_arrived_in_any_order_by_key() -> None:
    """`all_of` waits for each of them, once per day."""
    rule = {
        "all_of": [{"on": "file.orders"}, {"on": "file.customers"}],
        "for_each": "data.day",
        "within": "1d",
    }
    history = [
        given(0, "file.customers", day="mon"), given(1, "file.orders", day="tue"), given(2, "file.orders", day="mon"),
        given(3, "file.customers", day="tue"),
    ]  # fmt: skip
    assert fired(rule, *history) == [(2, "mon", 2), (3, "tue", 2)]


def test_groups_nest_and_count() -> None:
    """Three errors, and either a deploy or both of two alarms."""
    rule = {
        "all_of": [
            {"on": "app.error", "count": 3},
            {"any_of": ["deploy.finished", {"all_of": ["alarm.cpu", "alarm.disk"]}]},
        ],
        "within": "1m",
    }
    errors = [given(t, "app.error", id=f"e{t}") for t in (1, 2, 3)]
    assert fired(rule, *errors, given(4, "alarm.cpu")) == []
    made = triggers(rule, *errors, given(4, "alarm.cpu"), given(5, "alarm.disk"))
    assert [[r.id for r in d.refs] for d in made] == [["e1", "e2", "e3", "alarm.cpu@4", "alarm.disk@5"]]
    assert fired(rule, *errors[:2], given(4, "deploy.finished"), given(5, "app.error")) == [(5, "", 4)]


def test_one_event_may_be_two_of_them() -> None:
    """It fires once, and is used up by that."""
    rule = {"all_of": ["a.>", {"on": "a.b"}], "within": "10s"}
    assert fired(rule, given(0, "a.b")) == [(0, "", 1)]
    assert fired(rule, given(0, "a.c"), given(1, "a.b"), given(2, "a.c")) == [(1, "", 1)]


def test_late_events_complete_the_window_they_belong_to() -> None:
    """Within the allowed lateness the order of arrival does not matter; beyond, the event does not count."""
    rule = {**REGIONS, "within": "5s", "allowed_lateness": "20s"}
    history = [probe(0, "eu"), probe(15, "eu"), probe(16, "us", late=14)]
    assert [[r.id for r in d.refs] for d in triggers(rule, *history)] == [["eu0", "us16"]]
    assert fired({**rule, "allowed_lateness": "2s"}, *history) == []


def test_one_of_several_needs_no_window() -> None:
    """`any_of` without `need` is one event."""
    rule = {"any_of": ["a.b", {"on": "c.d", "where": {"data.n": 1}}]}
    assert fired(rule, given(0, "a.b"), given(1, "c.d", n=2), given(2, "c.d", n=1)) == [
        (0, "", 1),
        (2, "", 1),
    ]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"any_of": {"need": 3, "of": ["a.b", "a.c"]}, "within": "1m"}, "which never comes"),
        ({"all_of": ["a.b", "a.c"]}, "needs `within`"),
        ({"any_of": {"need": 2, "of": ["a.b", "a.c"]}}, "needs `within`"),
        ({"all_of": [{"on": "a.b", "any_of": ["a.c"]}], "within": "1m"}, "one of them"),
        ({"all_of": [{"any_of": ["a.c"], "where": {"data.x": 1}}], "within": "1m"}, "belongs to `on`"),
        ({"all_of": ["a.b"], "on": "a.c", "within": "1m"}, "two forms of rule"),
        ({"all_of": ["a.b", "a.c"], "within": "1m", "count": 2}, "beside `on`"),
        ({"any_of": {"min": 1, "of": ["a.b"]}}, "did you mean 'need'"),
        ({"all_of": [], "within": "1m"}, "at least 1"),
    ],
)
def test_a_group_that_does_not_stand_says_why(rule: dict[str, Any], words: str) -> None:
    """Impossible needs, missing windows and mixed words are refused."""
    with pytest.raises(RuleInvalid) as caught:
        parse_automation(rule, name="r")
    assert words in str(caught.value)


def _by_hand(events: list[tuple[float, float, int]], within: float, lateness: float, need: int) -> list[int]:
    """Fire when some window of the length holds `need` kinds, kind 0 twice; keep everything."""
    kept: list[tuple[float, int]] = []
    out: list[int] = []
    touched = newest = None
    for i, (recorded, time, kind) in enumerate(events):
        if touched is not None and newest is not None and recorded - touched > within + lateness:
            kept, newest = [], None
        if newest is not None and time < newest - lateness:
            continue
        touched, newest = recorded, time if newest is None else max(newest, time)
        kept.append((time, kind))
        for end in sorted({t for t, _ in kept if t >= time}):
            if end - within > time:
                break
            held = [k for t, k in kept if end - within <= t <= end]
            if sum(held.count(k) >= (2 if k == 0 else 1) for k in (0, 1, 2)) >= need:
                out.append(i)
                kept, touched, newest = [], None, None
                break
    return out


@settings(max_examples=200)
@examples(st.integers(0, 100_000), st.sampled_from([2, 3]))
def test_groups_agree_with_looking_at_every_window_by_hand(seed: int, need: int) -> None:
    """Against a slow oracle that keeps every event, in and out of order."""
    rng = random.Random(seed)
    now, events = 0.0, []
    for _ in range(rng.randrange(3, 30)):
        now += rng.choice([0.0, 0.5, 1.0, 4.0])
        events.append((now, max(0.0, now - rng.choice([0, 0, 0, 1.5, 3.0])), rng.randrange(3)))
    rule = {
        "any_of": {"need": need, "of": [{"on": "x.k0", "count": 2}, "x.k1", "x.k2"]}, "within": "5s",
        "allowed_lateness": "2s", "budget": "1000/s",
    }  # fmt: skip
    history = [given(at, f"x.k{k}", late=at - time, id=str(i)) for i, (at, time, k) in enumerate(events)]
    decided = [d.row["id"] if d.row else "" for d in triggers(rule, *history)]
    assert decided == [str(i) for i in _by_hand(events, 5.0, 2.0, need)]


def test_the_order_of_events_in_time_does_not_matter() -> None:
    """Every permutation of three different regions fires once, at the second."""
    for order in itertools.permutations(("eu", "us", "ap")):
        assert fired(REGIONS, *[probe(i, region) for i, region in enumerate(order)]) == [(1, "", 2)]


SUSPECT = {
    "all_of": [
        {
            "sequence": [
                {"as": "deploy", "on": "deploy.done"},
                {"on": "app.error", "count": 2, "within": "20s"},
            ]
        },
        {"on": "load.high"},
    ],
    "within": "1m",
    "for_each": "data.service",
}


def test_a_sequence_may_be_one_branch_of_a_group() -> None:
    """It counts when its steps have come in order within the window of the group; the other branch whenever."""

    def event(at: float, type_: str, service: str = "web") -> tuple[float, dict[str, Any]]:
        return given(at, type_, service=service)

    deploy, high = event(10, "deploy.done"), event(5, "load.high")
    (made,) = triggers(SUSPECT, high, deploy, event(12, "app.error"), event(20, "app.error"))
    assert [ref.id for ref in made.refs] == ["load.high@5", "deploy.done@10", "app.error@12", "app.error@20"]
    assert made.extra is not None
    assert made.extra["steps"] == {"deploy": {"id": "deploy.done@10", "seq": made.refs[1].seq}}
    wrong_order = [event(2, "app.error"), event(3, "app.error"), high, deploy]
    assert fired(SUSPECT, *wrong_order) == []
    too_far = [high, deploy, event(12, "app.error"), event(40, "app.error")]
    assert fired(SUSPECT, *too_far) == []
    others = [high, deploy, event(12, "app.error", "db"), event(13, "app.error", "db")]
    assert fired(SUSPECT, *others) == []
    again = [
        event(0, "deploy.done"),
        deploy,
        event(12, "app.error"),
        event(13, "app.error"),
        event(65, "load.high"),
    ]
    assert fired(SUSPECT, *again) == [(65, "web", 4)]


def test_an_event_of_several_patterns_and_keys_fires_once_for_each_key() -> None:
    """What has fired for one key is used up there, although it fires for another before it is looked at again."""
    rule = {"any_of": ["probe.*", "probe.failed"], "for_each": "data.regions", "within": "1m"}
    failed = given(0, "probe.failed", regions=["eu", "us"])
    assert fired(rule, failed) == [(0, "eu", 1), (0, "us", 1)]


def test_either_of_two_sequences() -> None:
    """A late event takes its place in the order in which things occurred."""
    rule = {
        "any_of": [{"sequence": ["a.begun", "a.stuck"]}, {"sequence": ["b.begun", "b.stuck"]}],
        "within": "30s",
    }
    assert fired(rule, given(0, "a.begun"), given(1, "b.stuck"), given(2, "a.stuck")) == [(2, "", 2)]
    assert fired(rule, given(3, "b.stuck"), given(5, "b.begun", late=4)) == [(3, "", 2)]
    assert fired(rule, given(0, "a.begun"), given(31, "a.stuck")) == []


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"on": "b.c", "where": {"data.x": "{{ one.data.x }}"}}, "cannot look back"),
        ({"on": "b.c", "as": "one"}, "names an earlier step already"),
        ({"on": "b.c", "as": "two"}, "names another step already"),
    ],
)
def test_a_sequence_in_a_group_that_does_not_stand_says_why(step: dict[str, Any], words: str) -> None:
    """Steps of a group have names of their own and know nothing of one another."""
    inner = [{"on": "a.b", "as": "one"}, step]
    other = [{"on": "x.y", "as": "two"}, "x.z"]
    with pytest.raises(RuleInvalid, match=words):
        parse_automation({"all_of": [{"sequence": inner}, {"sequence": other}], "within": "1m"}, name="r")


@settings(max_examples=200)
@examples(st.integers(0, 100_000))
def test_sequences_in_groups_agree_with_trying_every_pair_by_hand(seed: int) -> None:
    """Against a slow oracle that keeps every event and tries every pair, in and out of order."""
    rng = random.Random(seed)
    now, events = 0.0, []
    for _ in range(rng.randrange(3, 30)):
        now += rng.choice([0.5, 1.0, 4.0])
        events.append((now, max(0.0, now - rng.choice([0, 0, 0, 1.25, 3.0])), rng.randrange(3)))
    kept: list[tuple[float, int, int]] = []
    expected: list[str] = []
    touched = newest = None
    for i, (recorded, time, kind) in enumerate(events):
        if touched is not None and newest is not None and recorded - touched > 7.0:
            kept, newest = [], None
        if newest is not None and time < newest - 2.0:
            continue
        touched, newest = recorded, time if newest is None else max(newest, time)
        kept.append((time, i, kind))
        for end in sorted({t for t, _, _ in kept if time <= t <= time + 5.0}):
            held = [k for k in kept if end - 5.0 <= k[0] <= end]
            pairs = any(a[2] == 0 and b[2] == 1 and a < b for a in held for b in held)
            if pairs and any(k[2] == 2 for k in held):
                expected.append(str(i))
                kept, touched, newest = [], None, None
                break
    rule = {
        "all_of": [{"sequence": ["x.k0", "x.k1"]}, "x.k2"], "within": "5s", "allowed_lateness": "2s",
        "budget": "1000/s",
    }  # fmt: skip
    history = [given(at, f"x.k{k}", late=at - time, id=str(i)) for i, (at, time, k) in enumerate(events)]
    assert [d.row["id"] if d.row else "" for d in triggers(rule, *history)] == expected
