"""Resolved: a firing is over, by its own condition or because it is quiet."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.folding.decision import decision_event
from hark.automations.forms import keyed
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid

from tests.automations.playing import given, over, played

DOWN = {
    "on": "host.down", "for_each": "data.host", "resolve": {"on": "host.up"}, "do": [{"notify": "a"}],
    "on_resolve": [{"notify": "b"}],
}  # fmt: skip


def down(at: float, host: str = "a", *, late: float = 0.0) -> tuple[float, dict[str, Any]]:
    return given(at, "host.down", late=late, host=host)


def up(at: float, host: str = "a", *, late: float = 0.0) -> tuple[float, dict[str, Any]]:
    return given(at, "host.up", late=late, host=host)


def test_its_own_condition_ends_a_firing_once_per_key() -> None:
    """Good news for what never fired, or is over already, says nothing."""
    assert over(DOWN, up(0), down(1), up(2, "b"), up(3), up(4)) == [(3, "a", "condition")]
    assert over(DOWN, down(1), down(2, "b"), up(3, "b"), up(4)) == [
        (3, "b", "condition"),
        (4, "a", "condition"),
    ]


def test_a_resolved_key_can_fire_and_be_resolved_again() -> None:
    """Each firing has its own end, under an id of its own."""
    made = [d for d in played(DOWN, down(1), up(2), down(3), up(4)) if d.what == "resolved"]
    assert len({d.id for d in made}) == 2
    assert len(made) == 2


def test_good_news_from_before_the_firing_does_not_count() -> None:
    """By event time, with the allowed lateness."""
    rule = {**DOWN, "allowed_lateness": "1s"}
    assert over(rule, down(10), up(11, late=5)) == []
    assert over(rule, down(10), up(11, late=1.5)) == [(9.5, "a", "condition")]


def test_quiet_time_ends_a_firing() -> None:
    """Every matching event, also one that a cooldown holds back, begins the quiet time anew."""
    rule = {"on": "app.error", "count": 2, "within": "1m", "cooldown": "10m", "resolve": {"after": "5m"}}
    history = [given(t, "app.error") for t in (0, 1, 100, 350)]
    assert over(rule, *history, until=3000) == [(650, "", "quiet")]


def test_what_nothing_was_heard_of_for_thirty_days_is_gone_whether_it_was_swept_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No event makes it open again; and who waits for a longer quiet time is told at its end."""
    day = 86_400.0
    for look_from in (1, 1024):
        monkeypatch.setattr(keyed, "_LOOK_FROM", look_from)
        some = [down(31 * day, host) for host in "bcdef"]
        waits = {**DOWN, "count": 2, "within": "1h"}
        history = [
            down(0),
            down(1),
            *some,
            *((at + 1, row) for at, row in some),
            down(32 * day),
            up(33 * day),
        ]
        assert over(waits, *history) == []
        quiet = {"on": "host.down", "for_each": "data.host", "resolve": {"after": "40d"}}
        made = over(quiet, down(0), *some, until=41 * day)
        assert made == [(40 * day, "a", "quiet")]


def test_a_repeating_absence_is_over_when_the_beat_is_back() -> None:
    """`resolve` on the very event that was missed."""
    rule = {"expect": "sensor.beat", "for_each": "data.d", "within": "1m", "resolve": {"on": "sensor.beat"}}
    assert over(rule, given(0, "sensor.beat", d=1), given(200, "sensor.beat", d=1), until=230) == [
        (200, "1", "condition")
    ]


def test_the_decision_says_what_is_over() -> None:
    """The first firing, when it was, how long it lasted, and the actions to do."""
    first, _, made = played(DOWN, down(1), down(2), up(31))
    data: Any = decision_event(made, made.row).data
    assert (data["firing"], data["duration_s"], data["count"], data["reason"]) == (
        first.id,
        30.0,
        2,
        "condition",
    )
    assert data["actions"] == [{"notify": ["b"]}]
    assert decision_event(made, made.row).type == "automation.resolved"


def test_shadow_rules_resolve_without_acting() -> None:
    """They decide all the same, and do nothing."""
    first, made = played({**DOWN, "mode": "shadow"}, down(1), up(2))
    assert (first.shadow, first.actions, made.shadow, made.actions) == (True, (), True, ())


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"on": "a.b", "on_resolve": [{"notify": "x"}]}, "needs `resolve`"),
        ({"on": "a.b", "resolve": {}}, "say when it is over"),
        ({"on": "a.b", "resolve": {"where": {"data.x": 1}}}, "needs `on`"),
    ],
)
def test_a_resolve_that_does_not_stand_says_why(rule: dict[str, Any], words: str) -> None:
    """When it is over has to be said."""
    with pytest.raises(RuleInvalid) as caught:
        parse_automation(rule, name="r")
    assert words in str(caught.value)
