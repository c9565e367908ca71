"""Thousands of alerts and silences at once: what is said of one costs no look at all others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hark.notifications.alert import Alert, Cause
from hark.notifications.group import Member
from hark.notifications.message import Message, Severity
from hark.notifications.silence import SilenceBook
from hypothesis import given
from hypothesis import strategies as st

from .test_grouping import LANGUAGE, START, Story, a_book, a_tree, an_alert, said, sends


def test_what_is_said_of_one_alert_costs_no_look_at_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised again, over, past the bound: a group of many is gone through when something is due, not each time."""
    many, looks = 200, Counter[str]()
    due = Member.due_by_itself

    def counted(self: Member, resolve_timeout_s: float) -> float:
        looks["due"] += 1
        return due(self, resolve_timeout_s)

    monkeypatch.setattr(Member, "due_by_itself", counted)
    story = Story(a_tree(group_by=[]), max_open=many).at(0, *(an_alert(f"x{n}") for n in range(many))).at(10)
    assert story.told == [(10, "a", "firing", f"{many} open")]
    looks.clear()
    story.at(20, *(an_alert(f"x{n}") for n in range(many)))
    story.at(30, *(an_alert(f"y{n}") for n in range(many - 1)))
    assert len(said(story.out, "closed")) == many - 1
    story.at(40, *(an_alert(f"y{n}", resolved=True) for n in range(many - 1))).at(71)
    assert looks["due"] < 10 * many
    (group,) = story.fold.groups.values()
    assert list(group.members) == [max(f"x{n}" for n in range(many))]  # of one moment in order of their names


@pytest.mark.parametrize("by", ["silence", "mute"])
def test_what_is_kept_quiet_costs_no_look_either(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """A group of many that is silenced past its escalation, or in its mute time, while all of it is raised again and again."""
    many, looks = 200, Counter[str]()
    due = Member.due_by_itself

    def counted(self: Member, resolve_timeout_s: float) -> float:
        looks["due"] += 1
        return due(self, resolve_timeout_s)

    monkeypatch.setattr(Member, "due_by_itself", counted)
    quiet: dict[str, Any] = {"escalate": [{"after": "60s", "to": "boss"}]}
    if by == "mute":
        quiet |= {"mute_times": {"nights": {"times": ["22:00-07:00"]}}, "mute": ["nights"]}
    story = Story(a_tree(group_by=[], **quiet)).at(0, *(an_alert(f"x{n}") for n in range(many))).at(10)
    if by == "silence":
        story.out += story.fold.adopt_silences(a_book(({"severity": "error"}, 0, 7 * 3600)), START + 20)
    story.at(100)
    looks.clear()
    for again in range(3):
        story.at(200 + again, *(an_alert(f"x{n}") for n in range(many)))
    if by == "mute":
        story.at(300, *(an_alert(f"y{n}") for n in range(many))).at(301)
    assert looks["due"] < 15 * many
    story.at(6 * 3600, an_alert("x0", "critical"))  # which no silence holds back
    end = [(at, to) for at, to, kind, _ in story.at(7 * 3600 + 60).told if kind == "escalation"]
    assert end == [(6 * 3600 if by == "silence" else 7 * 3600 + 60, "boss")]


def test_a_rule_that_is_over_ends_what_it_raised_last() -> None:
    """Not what another rule has raised again since, under the same name."""
    story = Story().at(0, an_alert("x"), an_alert("y")).at(10)
    story.at(
        20,
        Alert("y", Message("y", "", Severity("error")), {"automation": "z", "key": ""}, False, Cause("z1")),
    )
    for rule in ("x", "y"):
        story.out += story.fold.rule_resolved(rule, "", Cause(f"over-{rule}"), START + 30)
    assert [s.message.title for s in sends(story.at(100).out)][1:] == ["Recovered: x"]


MATCHES = st.dictionaries(
    st.sampled_from(["automation", "key", "data.n"]),
    st.sampled_from(["a", "b", ">= 1", ["a", "c"], {"prefix": "a"}, "1", 1, "!= a"]),
    min_size=1, max_size=2,
)  # fmt: skip


@given(
    st.lists(st.tuples(MATCHES, st.integers(0, 3), st.integers(0, 3)), max_size=6),
    st.dictionaries(st.sampled_from(["automation", "key"]), st.sampled_from(["a", "b", 1, ["a", "b"], None])),
)
def test_a_silence_is_found_by_what_it_names(silences: list[Any], facts: dict[str, Any]) -> None:
    """As by asking each; taken over into the next book, or not."""
    silences = [(match, start, start + lasts) for match, start, lasts in silences]
    book = a_book(*silences)
    again = SilenceBook({e.silence.id: e.silence for e in book._known.values()}, LANGUAGE, before=book)
    holding = [
        (START + end, f"s{n}")
        for n, (match, start, end) in enumerate(silences)
        if start <= 2 < end and LANGUAGE.condition(match)(facts)
    ]
    latest = max((end for end, _ in holding), default=0.0)
    expected = min(((id_, end) for end, id_ in holding if end == latest), default=None)
    assert book.holding(facts, START + 2) == again.holding(facts, START + 2) == expected
