"""Debounce: collected until it is quiet, and nothing dropped."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.automations.playing import fired, given, triggers

RULE = {"on": "doc.changed", "for_each": "data.doc", "debounce": {"quiet": "30s", "max_wait": "5m"}}


def changed(at: float, doc: str = "a") -> tuple[float, dict[str, Any]]:
    return given(at, "doc.changed", id=f"{doc}{at:g}", doc=doc)


def test_it_fires_once_it_is_quiet_with_all_that_came() -> None:
    """Thirty seconds after the last of them, each key by itself."""
    history = [changed(0), changed(10), changed(12, "b"), changed(35)]
    assert fired(RULE, *history) == [(42, "b", 1), (65, "a", 3)]
    (_, last) = triggers(RULE, *history)
    assert [r.id for r in last.refs] == ["a0", "a10", "a35"]


def test_it_does_not_wait_for_ever() -> None:
    """Without a pause it fires after `max_wait`, and collects anew."""
    history = [changed(t) for t in range(0, 400, 20)]
    assert fired(RULE, *history) == [(300, "a", 15), (410, "a", 5)]


def test_it_fires_when_so_many_have_come() -> None:
    """`max_events` bounds the window without dropping any."""
    rule = {**RULE, "debounce": {"quiet": "30s", "max_events": 3}}
    assert fired(rule, *[changed(t) for t in range(7)]) == [(2, "a", 3), (5, "a", 3), (36, "a", 1)]


@settings(max_examples=100)
@examples(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0, 3.5]), st.sampled_from("pq")), min_size=1, max_size=40)
)
def test_every_event_is_told_of_exactly_once(steps: list[tuple[float, str]]) -> None:
    """Whatever comes when: no event is lost, none is in two firings, and none waits beyond `max_wait`."""
    rule = {**RULE, "debounce": {"quiet": "3s", "max_wait": "7s", "max_events": 5}, "budget": "1000/s"}
    now, history = 0.0, []
    for i, (gap, key) in enumerate(steps):
        now += gap
        history.append(given(now, "doc.changed", id=str(i), doc=key))
    made = triggers(rule, *history)
    assert sorted(int(r.id) for d in made for r in d.refs) == list(range(len(steps)))
    for decision in made:
        assert decision.at - decision.refs[0].time <= 7.0 + 1e-6
        assert decision.count == len(decision.refs) <= 5


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"on": "a.b", "debounce": {"quiet": "30s", "max_wait": "10s"}}, "shorter than `quiet`"),
        ({"expect": "a.b", "within": "1m", "debounce": {"quiet": "30s"}}, "collects the events of `on`"),
        ({"on": "a.b", "within": "1m", "debounce": {"quiet": "30s"}}, "`max_wait` inside"),
        ({"on": "a.b", "count": 2, "debounce": {"quiet": "30s"}}, "`count`"),
        ({"on": "a.b", "debounce": {"quiet": "30s", "max_events": 5000}}, "at most 1000"),
        ({"on": "a.b", "debounce": "30s"}, "debounce"),
    ],
)
def test_a_debounce_that_does_not_stand_says_why(rule: dict[str, Any], words: str) -> None:
    """What cannot be meant is refused."""
    with pytest.raises(RuleInvalid) as caught:
        parse_automation(rule, name="r")
    assert words in str(caught.value)
