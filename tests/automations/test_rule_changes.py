"""What a change of a rule, or a pause, leaves of its cooldowns and open firings."""

from __future__ import annotations

from typing import Any

import pytest
from hark.automations.folding.decision import Decision
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.model import parse_automation

METRIC = {"metric": {"measure": "count", "on": "a.b", "over": "1m"}, "is": ">= 1"}
OVER = {"on_resolve": [{"notify": "x"}]}


class Story:
    """One rule, and what is told of it, in seconds from its adoption."""

    def __init__(self, rule: dict[str, Any], **config: Any) -> None:
        self.fold, self.seq = Fold(FoldConfig(say_all=True, **config)), 0
        self.rule(rule)

    def rule(self, rule: dict[str, Any], *, at: float = 0.0) -> None:
        self.fold.tick(at)
        self.fold.adopt(parse_automation(rule, name="r"))

    def event(self, at: float) -> list[Decision]:
        self.seq += 1
        row = {"specversion": "1.0", "id": f"e{self.seq}", "source": "/t", "type": "a.b"}
        return self.fold.step(row, seq=self.seq, recorded=at)

    def told(self, at: float) -> tuple[str, str, int]:
        (made,) = self.event(at)
        return made.what, made.reason, made.suppressed


def test_a_changed_cooldown_counts_from_the_last_firing() -> None:
    """Shorter or longer, it is as if it had been so when the key fired; lateness is of events, not of the cooldown."""
    story = Story({"on": "a.b", "cooldown": "1m"})
    assert story.told(100) == ("triggered", "", 0)
    story.rule({"on": "a.b", "cooldown": "5m"}, at=130)
    assert story.told(399) == ("suppressed", "cooldown", 1)
    story.rule({"on": "a.b", "cooldown": "299s"}, at=399)
    assert story.told(399) == ("triggered", "", 1)


def test_a_cooldown_that_is_over_stays_over() -> None:
    """A longer one begins with the next firing; so does one that was taken out and put back."""
    story = Story({"on": "a.b", "cooldown": "1m"}, allowed_lateness_s=0.0)
    story.event(0)
    story.rule({"on": "a.b", "cooldown": "5m"}, at=61)
    assert story.told(62) == ("triggered", "", 0)
    story.rule({"on": "a.b"}, at=63)
    story.rule({"on": "a.b", "cooldown": "5m"}, at=64)
    assert story.told(65) == ("triggered", "", 0)


def test_what_a_cooldown_held_back_is_told_though_it_was_taken_out() -> None:
    """The next firing says how many there were, once."""
    story = Story({"on": "a.b", "cooldown": "1m"})
    for at in (0, 1, 2):
        story.event(at)
    story.rule({"on": "a.b"}, at=3)
    assert [story.told(4), story.told(5)] == [("triggered", "", 2), ("triggered", "", 0)]


@pytest.mark.parametrize("via", ["live", "restored"])
def test_on_resolve_added_to_a_metric_is_done_for_what_has_fired(via: str) -> None:
    """It says so without a restart, and with one it says the same."""
    story = Story(METRIC)
    assert story.told(10)[0] == "triggered"
    story.rule({**METRIC, **OVER}, at=20)
    if via == "restored":
        story.fold = Fold.restore(story.fold.dump_definitions(), story.fold.dump_state())
    (over,) = story.fold.tick(80)
    assert (over.what, over.reason, over.count) == ("resolved", "figure", 1)
    assert over.actions == ({"notify": ["x"]},)


def test_a_figure_that_passes_the_limit_in_a_pause_is_not_quiet() -> None:
    """It came back and has not stayed so for `resolve.after`, whether or not it was allowed to fire."""
    rule = {**METRIC, "resolve": {"after": "1m"}}
    story = Story(rule)
    story.event(0)
    story.fold.tick(62)  # it has come back
    story.rule({**rule, "paused": True}, at=90)
    story.event(100)
    assert story.fold.tick(140) == []
    (over,) = story.fold.tick(250)
    assert (over.what, over.reason, over.at) == ("resolved", "quiet", 221.0)
