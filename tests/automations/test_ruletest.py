"""Inline tests run in virtual time, and say why when they fail."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.analysis.ruletest import TestOutcome, run_tests
from hark.automations.model import parse_automation

FAILING = {
    "on": "flow-run.failed",
    "where": {"data.tags": "prod", "data.run.attempt": ">= 2"},
    "for_each": "data.flow.name",
    "count": 3,
    "within": "10m",
    "cooldown": "30m",
}
EVENT = {
    "type": "flow-run.failed",
    "data": {"flow": {"name": "etl"}, "tags": ["prod"], "run": {"attempt": 2}},
}


def outcome(rule: dict[str, Any], given: list[dict[str, Any]], expect: Any, **more: Any) -> TestOutcome:
    made = parse_automation({**rule, "tests": [{"given": given, "expect": expect, **more}]}, name="r")
    (only,) = run_tests(made)
    return only


PASSING: list[tuple[dict[str, Any], list[dict[str, Any]], Any, dict[str, Any]]] = [
    (FAILING, [EVENT, {"at": "1m", "same": 0}, {"at": "2m", "same": 0}], {"fired": 1, "key": "etl"}, {}),
    (FAILING, [EVENT, {"at": "1m", "same": 0}, {"at": "2m", "same": 0}], {"fired": 1, "count": 3, "at": "2m"}, {}),
    (FAILING, [EVENT, {"at": "1m", "same": 0}], "not fired", {}),
    (FAILING, [EVENT, {"at": "1m", "same": 0}, {"at": "20m", "same": 0}], 0, {}),
    (FAILING, [EVENT, *({"at": f"{i}m", "same": 0} for i in range(1, 9))], {"fired": 1, "suppressed": 2}, {}),
    (FAILING, [EVENT, {"at": "1m", "same": 0}, {"at": "2m", "same": 0}], [{"fired": 1}, {"fired": 0, "key": "x"}], {}),
    ({"on": "a.b"}, [{"type": "a.b"}], True, {}),
    (
        {"after": "flow-run.running", "expect": "flow-run.completed", "for_each": "subject", "within": "2h"},
        [
            {"type": "flow-run.running", "subject": "a"}, {"at": "1m", "type": "flow-run.running", "subject": "b"},
            {"at": "1h", "type": "flow-run.completed", "subject": "a"},
        ],
        {"fired": 1, "key": "b", "at": "2h1m"}, {},
    ),
    ({"expect": "s.beat", "for_each": "data.d", "within": "5m"}, [{"type": "s.beat", "data": {"d": 1}}], {"fired": 1, "key": 1}, {}),
    ({"expect": "s.beat", "within": "5m"}, [], {"at": ["5m", "10m"]}, {"until": "12m"}),
    ({"on": "a.b", "for_each": ["data.x", "data.y"]}, [{"type": "a.b", "data": {"x": 1, "y": "z"}}], {"fired": 1, "key": [1, "z"]}, {}),
    ({"on": "a.b", "paused": True}, [{"type": "a.b"}], "fired", {}),
    ({"on": "a.b"}, [{"type": "a.b", "causaldepth": 8}], {"fired": 0, "suppressed": 1}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "given", "expect", "more"), PASSING)
def test_what_is_expected_happens(
    rule: dict[str, Any], given: list[dict[str, Any]], expect: Any, more: dict[str, Any]
) -> None:
    """Counts, keys, times and suppressions, for every form of rule."""
    made = (
        outcome(rule, given, [expect] if isinstance(expect, bool) else expect, **more)
        if expect is not True
        else outcome(rule, given, {"fired": True}, **more)
    )
    assert made.ok, str(made)
    assert made.passed
    assert made.message == ""


def test_a_failure_says_which_predicate_failed_with_the_value_seen() -> None:
    """A person sees, per event, why it did not count."""
    dev = {**EVENT, "data": {**EVENT["data"], "tags": ["dev"]}}  # type: ignore[dict-item]
    made = outcome(
        FAILING,
        [EVENT, {"at": "1m", **dev}, {"at": "2m", "same": 0, "type": "flow-run.crashed"}],
        {"fired": 1, "key": "etl"},
    )
    assert not made.ok
    assert made.message.splitlines() == [
        "expected to fire once for key 'etl', fired never",
        "  event 0 at 0s (flow-run.failed): matched `on`, key 'etl', 1 of 3 in the window",
        "  event 1 at 1m (flow-run.failed): no match for `on`: data.tags is 'prod': saw [\"dev\"]",
        '  event 2 at 2m (flow-run.crashed): no match for `on`: type is flow-run.failed: saw "flow-run.crashed"',
    ]


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"fired": 2}, "expected to fire 2 times, fired once"), ({"fired": 1, "key": "x"}, "it fired for 'etl'"),
        ({"fired": 1, "count": 4}, "expected count 4, it was 1"), ({"at": "5m"}, "expected to fire at 5m, fired at 0s"),
        ({"suppressed": 1}, "expected once suppressed"), ({"fired": 0}, "expected to fire never, fired once"),
    ],
)  # fmt: skip
def test_each_expectation_can_fail(expect: dict[str, Any], words: str) -> None:
    """What differs is said in numbers."""
    made = outcome({"on": "flow-run.failed", "for_each": "data.flow.name"}, [EVENT], expect)
    assert words in made.message


def test_a_missing_key_is_told() -> None:
    """`for_each` that leads nowhere is why the event does not count."""
    made = outcome({"on": "a.b", "for_each": "data.k"}, [{"type": "a.b", "data": {}}], {"fired": 1})
    assert "for_each: data.k leads to no value in this event" in made.message


def test_a_year_of_waiting_takes_no_time() -> None:
    """Virtual time is free."""
    made = outcome({"expect": "s.beat", "within": "1h"}, [], {"fired": 24 * 365}, until="365d")
    assert "fired" in (made.message or "fired")
