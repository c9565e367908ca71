"""Metrics: figures over a window, held for a time."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hark.automations.folding.decision import decision_event
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.automations.playing import fired, given, over, triggers


def run(
    at: float, duration_s: float = 1.0, word: str = "completed", flow: str = "etl"
) -> tuple[float, dict[str, Any]]:
    return given(at, f"flow-run.{word}", flow={"name": flow}, run={"duration_s": duration_s})


SLOW = {"metric": {"measure": "p95_duration", "flow": "etl", "over": "1h"}, "is": "> 10m", "for": "15m"}


def test_a_slow_flow_fires_after_it_has_been_slow_for_so_long() -> None:
    """The figure has to hold without a break."""
    assert fired(SLOW, run(0, 700), run(600, 800)) == [(900, "", 2)]
    assert fired(SLOW, run(0, 700, flow="other"), until=4000) == []
    # Twenty quick ones bring the 95th percentile down before the time is over.
    assert fired(SLOW, run(0, 700), *[run(60 + t, 5) for t in range(20)], until=7000) == []


def test_it_fires_on_the_edge() -> None:
    """Once, until the figure has come back: here because the slow run left the window after an hour."""
    assert fired(SLOW, run(0, 700), run(60, 700), run(120, 900)) == [(900, "", 3)]
    again = fired(SLOW, run(0, 700), run(8000, 700), until=10_000)
    assert again == [(900, "", 1), (8900, "", 1)]


def test_a_failure_rate_needs_enough_runs() -> None:
    """`at_least` keeps one failure of one run from being 100 %."""
    rule = {
        "metric": {"measure": "failure_rate", "over": "1h", "at_least": 4}, "is": ">= 50%", "for_each": "data.flow.name",
    }  # fmt: skip
    bad, good = [run(t, word="failed") for t in (0, 1, 2)], [run(t) for t in (3, 4)]
    assert fired(rule, *bad) == []
    assert fired(rule, *bad, *good) == [(3, "etl", 4)]
    metric = {"measure": "success_rate", "over": "1h", "at_least": 4}
    rate = {**rule, "metric": metric, "is": "< 0.5"}
    assert fired(rate, *bad, *good) == [(3, "etl", 4)]


def test_a_share_of_exactly_the_limit_has_not_passed_it() -> None:
    """999 of 1000 are 99.9 %, though 99.9 / 100 is more than 0.999 in floats."""
    rule = {"metric": {"measure": "success_rate", "over": "1h", "at_least": 1000}, "is": "< 99.9%"}
    good, bad = [run(0.0) for _ in range(999)], run(0.0, word="failed")
    assert fired(rule, *good, bad, until=1) == []
    assert fired(rule, *good, bad, bad, until=1) == [(0, "", 1001)]


def test_silence_is_seen_when_the_window_has_been_watched() -> None:
    """ "Fewer than" cannot be said before a whole window has passed."""
    rule = {"metric": {"measure": "count", "on": "order.paid", "over": "10m"}, "is": "< 2"}
    assert fired(rule, given(100, "order.paid"), given(400, "order.paid"), until=599) == []
    assert fired(rule, given(100, "order.paid"), given(400, "order.paid"), until=1500) == [(710, "", 1)]
    assert fired(rule, until=5000) == [(600, "", 0)]


def test_a_rate_of_events() -> None:
    """More than ten a minute over five minutes."""
    rule = {"metric": {"measure": "event_rate", "on": "app.error", "over": "5m"}, "is": "> 10/m"}
    assert fired(rule, *[given(t, "app.error") for t in range(50)]) == []
    assert fired(rule, *[given(t, "app.error") for t in range(52)]) == [(50, "", 51)]


def test_lateness_of_starts() -> None:
    """From when a run was due to when it began."""
    rule = {"metric": {"measure": "lateness", "over": "1h"}, "is": "> 30s"}

    def began(at: float, late_s: int) -> tuple[float, dict[str, Any]]:
        times = {"scheduled_at": "2026-01-01T00:00:00Z", "started_at": f"2026-01-01T00:00:{late_s:02d}Z"}
        return given(at, "flow-run.running", run=times)

    assert fired(rule, began(0, 5), began(1, 45)) == [(1, "", 2)]
    assert fired(rule, began(0, 5), given(1, "flow-run.running", run={})) == []


def test_what_is_measured_is_in_the_decision() -> None:
    """The figure, in numbers and in words."""
    (made,) = triggers(SLOW, run(0, 700))
    data: Any = decision_event(made, made.row).data
    assert data["metric"]["measure"] == "p95_duration"
    assert (data["metric"]["value"], data["metric"]["shown"]) == (700.0, "11m40s")


def test_a_metric_that_comes_back_is_resolved() -> None:
    """At once, or when it has stayed back for `resolve.after`."""
    rule = {**SLOW, "on_resolve": [{"notify": "oncall"}]}
    assert over(rule, run(0, 700), run(1000, 5), *[run(1001 + t, 5) for t in range(20)]) == [
        (1018, "", "figure")
    ]
    held = {**rule, "resolve": {"after": "5m"}}
    history = [run(0, 700), *[run(1000 + t, 5) for t in range(20)]]
    assert over(held, *history, until=1317) == []
    assert over(held, *history, until=1400) == [(1318, "", "quiet")]


@settings(max_examples=60)
@examples(st.integers(0, 100_000))
def test_quantiles_agree_with_sorting_by_hand(seed: int) -> None:
    """The p50 of the last minute, at every event, against sorting all of it; windows slide in steps of a second."""
    rng = random.Random(seed)
    now, samples = 0.0, list[tuple[float, float]]()
    for _ in range(60):
        now += rng.choice([0.25, 1.0, 3.0, 20.0])
        samples.append((now, float(rng.randrange(100))))
    expected, was = [], False
    # A step falls before an event of the same moment.
    for at, is_event in sorted(
        {*((t, True) for t, _ in samples), *((float(m), False) for m in range(int(now) + 1))}
    ):
        held = sorted(v for t, v in samples if math.floor(at) - 60 <= t and (t <= at if is_event else t < at))
        holds = bool(held) and held[math.ceil(len(held) / 2) - 1] > 50
        if holds and not was:
            expected.append(at)
        was = holds
    rule = {"metric": {"measure": "p50_duration", "over": "1m"}, "is": "> 50s", "budget": "1000/s"}
    assert [at for at, _, _ in fired(rule, *[run(t, v) for t, v in samples], until=now)] == expected


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"metric": {"measure": "p95_duration", "over": "1h"}}, "needs `is`"),
        ({"metric": {"measure": "p95_duration", "over": "1h"}, "is": "10m"}, "not a comparison"),
        ({"metric": {"measure": "p95_duration", "over": "1h"}, "is": "> 10"}, "does not go with p95_duration"),
        ({"metric": {"measure": "success_rate", "over": "1h"}, "is": "> 1e9999999"}, "does not go with success_rate"),
        ({"metric": {"measure": "count", "on": "a.b", "over": "1h"}, "is": ">> 10"}, "'>> 10' is not a comparison"),
        ({"metric": {"measure": "failure_rate", "over": "1h"}, "is": "> 150%"}, "between 0% and 100%"),
        ({"metric": {"measure": "count", "over": "1h"}, "is": "> 5"}, "needs `on`"),
        ({"metric": {"measure": "p95_duration", "on": "a.b", "over": "1h"}, "is": "> 5s"}, "about flow runs"),
        ({"metric": {"measure": "p96", "over": "1h"}, "is": "> 5s"}, "p95_duration"),
        ({"on": "a.b", "is": "> 5"}, "belongs to `metric`"),
        ({"metric": {"measure": "count", "on": "a.b", "over": "1h"}, "is": "> 5", "within": "1h"}, "`over` inside"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_stand_says_why(rule: dict[str, Any], words: str) -> None:
    """Limits have to go with what is measured."""
    with pytest.raises(RuleInvalid) as caught:
        parse_automation(rule, name="r")
    assert words in str(caught.value)
