"""Sequences: steps in order, joined by what earlier events said."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hark.automations.analysis.ruletest import START
from hark.automations.folding.decision import decision_event
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.forms import keyed
from hark.automations.model import parse_automation
from hark.automations.problem import RuleInvalid
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.automations.playing import fired, given, triggers

DEPLOY = {
    "sequence": [
        {"as": "deploy", "on": "deploy.finished"},
        {"on": "app.error", "where": {"data.service": "{{ deploy.data.service }}"}, "count": 3},
    ],
    "within": "15m",
}


def errors(*at: float, service: str = "web") -> list[tuple[float, dict[str, Any]]]:
    return [given(t, "app.error", service=service) for t in at]


def test_a_deploy_followed_by_its_own_errors_fires() -> None:
    """Errors count for the deploy of their service, and only those behind it."""
    history = [
        given(0, "deploy.finished", service="web"),
        *errors(-1, 1, 2, 3),
        *errors(1.5, 2.5, service="db"),
    ]
    assert fired(DEPLOY, *[h for h in history if h[0] >= 0]) == [(3, "", 4)]


def test_each_value_waits_for_itself() -> None:
    """Two services under one key do not disturb each other, and each fires with its own events."""
    made = triggers(
        DEPLOY,
        given(0, "deploy.finished", service="web"), given(1, "deploy.finished", service="db"),
        *errors(2, 4, 6), *errors(3, 5, 7, service="db"),
    )  # fmt: skip
    assert [[r.id for r in d.refs] for d in made] == [
        ["deploy.finished@0", "app.error@2", "app.error@4", "app.error@6"],
        ["deploy.finished@1", "app.error@3", "app.error@5", "app.error@7"],
    ]


@pytest.mark.parametrize(("last", "fires"), [(899.0, True), (900.0, True), (900.5, False)])
def test_all_of_it_happens_in_the_time(last: float, fires: bool) -> None:
    """`within` is counted from the first event, in event time."""
    assert bool(fired(DEPLOY, given(0, "deploy.finished", service="web"), *errors(1, 2, last))) is fires


def test_a_later_start_does_not_forget_what_an_earlier_one_has_counted() -> None:
    """Starts overlap: the second deploy begins a wait of its own."""
    history = [
        given(0, "deploy.finished", service="web"),
        *errors(1, 2),
        given(3, "deploy.finished", service="web"),
    ]
    assert fired(DEPLOY, *history, *errors(4)) == [(4, "", 4)]
    assert fired(DEPLOY, *history, *errors(901, 902)) == []
    assert fired(DEPLOY, *history, *errors(901, 902, 902.5)) == [(902.5, "", 4)]


def test_firing_begins_anew() -> None:
    """After firing, what was waiting for the same thing is gone; a new first event begins again."""
    start = given(0, "deploy.finished", service="web")
    assert fired(DEPLOY, start, *errors(1, 2, 3, 4, 5, 6)) == [(3, "", 4)]
    again = given(3.5, "deploy.finished", service="web")
    assert fired(DEPLOY, start, *errors(1, 2, 3), again, *errors(4, 5, 6)) == [(3, "", 4), (6, "", 4)]


def test_one_event_takes_a_sequence_one_step_on() -> None:
    """The same kind three times needs three events."""
    rule = {"sequence": ["a.b", "a.b", "a.b"], "within": "1m"}
    assert fired(rule, *[given(t, "a.b") for t in (1, 2)]) == []
    assert fired(rule, *[given(t, "a.b") for t in (1, 2, 3, 4, 5)]) == [(3, "", 3)]
    assert fired(rule, *[given(t, "a.b") for t in (1, 2, 3, 4, 5, 6)]) == [(3, "", 3), (6, "", 3)]


def test_the_count_of_a_step_may_have_a_time_of_its_own() -> None:
    """Three errors within 10 s, at any time within 15 minutes of the deploy."""
    step = {"on": "app.error", "count": 3, "within": "10s"}
    rule = {"sequence": ["deploy.finished", step], "within": "15m"}
    start = given(0, "deploy.finished")
    assert fired(rule, start, *errors(1, 20, 40, 60)) == []
    assert fired(rule, start, *errors(1, 100, 104, 109)) == [(109, "", 4)]


def test_the_first_step_may_count() -> None:
    """Three failures, then a success: somebody got in."""
    rule = {
        "sequence": [{"as": "try", "on": "login.failed", "count": 3, "within": "1m"}, "login.ok"],
        "for_each": "data.user", "within": "10m",
    }  # fmt: skip
    tries = [given(t, "login.failed", user="ann") for t in (0, 50, 70, 80)]
    assert fired(rule, *tries, given(90, "login.ok", user="bob")) == []
    assert fired(rule, *tries, given(90, "login.ok", user="ann")) == [(90, "ann", 4)]
    assert fired(rule, *tries[:2], given(90, "login.ok", user="ann")) == []


@pytest.mark.parametrize(
    ("where", "first", "second", "fires"),
    [
        ({"data.n": "> {{ a.data.n }}"}, {"n": 3}, {"n": 4}, True),
        ({"data.n": "> {{ a.data.n }}"}, {"n": 3}, {"n": 3}, False),
        ({"data.k": {"not": "{{ a.data.k }}"}}, {"k": "x"}, {"k": "y"}, True),
        ({"data.k": {"not": "{{ a.data.k }}"}}, {"k": "x"}, {"k": "x"}, False),
        ({"data.k": {"prefix": "{{ a.data.k }}-"}}, {"k": "x"}, {"k": "x-1"}, True),
        ({"data.k": "{{ a.data.k }}"}, {"k": ["x", "y"]}, {"k": "y"}, True),
        ({"data.k": "{{ a.data.k }}"}, {"k": "x"}, {"k": ["w", "x"]}, True),
        ({"data.k": "{{ a.data.k }}"}, {"k": True}, {"k": 1}, False),
        ({"data.k": "{{ a.data.k }}"}, {"k": 1.0}, {"k": 1}, True),
        ({"data.k": "{{ a.data.k }}"}, {}, {}, False),
        ({"data.k": "{{ a.data.k }}", "data.n": 1}, {"k": "x"}, {"k": "x", "n": 1}, True),
        ({"data.k": "{{ a.data.k }}", "data.n": 1}, {"k": "x"}, {"k": "x", "n": 2}, False),
        ({"data.k": "{{ a.data.k | upper }}"}, {"k": "x"}, {"k": "X"}, True),
        ({"any": [{"data.k": "{{ a.data.k }}"}, {"data.n": 7}]}, {"k": "x"}, {"n": 7}, True),
    ],
)  # fmt: skip
def test_conditions_read_earlier_events(
    where: dict[str, Any], first: dict[str, Any], second: dict[str, Any], fires: bool
) -> None:
    """Equality is a look-up; every other condition may hold a template too."""
    rule = {"sequence": [{"as": "a", "on": "x.a"}, {"on": "x.b", "where": where}], "within": "1m"}
    assert bool(fired(rule, given(0, "x.a", **first), given(1, "x.b", **second))) is fires


def test_the_events_of_named_steps_are_in_the_decision() -> None:
    """Templates of actions read them by their names."""
    (made,) = triggers(DEPLOY, given(0, "deploy.finished", service="web"), *errors(1, 2, 3))
    data: Any = decision_event(made, made.row).data
    assert data["steps"] == {"deploy": {"id": "deploy.finished@0", "seq": 1}}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["a.b"], "at least two steps"),
        ([{"on": "a.b", "as": "x"}, {"on": "a.c", "where": {"data.k": "{{ y.data.k }}"}}], "'y' is no step named before it: x"),
        ([{"on": "a.b", "where": {"data.k": "{{ x.data.k }}"}}, {"as": "x", "on": "a.c"}], "'x' is no step"),
        ([{"as": "event", "on": "a.b"}, "a.c"], "cannot name a step"),
        ([{"as": "x", "on": "a.b"}, {"as": "x", "on": "a.c"}], "names an earlier step"),
        (["a.b", {"on": "a.c", "where": {"data.k": {"prefixx": "{{ x.y }}"}}}], "prefixx"),
        (["a.b", {"on": "a.c", "where": {"data.{{ x }}": 1}}], "path cannot hold a template"),
        (["a.b", {"on": "a.c", "where": {"data.k": "{{ x."}}], "does not parse"),
        (["a.b", {"on": "a.c", "within": "5s"}], "about its `count`"),
        (["a.b", {"on": "a.c", "whre": {}}], "did you mean 'where'"),
    ],
)  # fmt: skip
def test_a_sequence_that_does_not_stand_says_why(steps: list[Any], words: str) -> None:
    """Names, references and words are checked when the rule is read."""
    with pytest.raises(RuleInvalid) as caught:
        parse_automation({"sequence": steps, "within": "1m"}, name="r")
    assert words in str(caught.value)


def test_a_hundred_thousand_waits_cost_an_event_one_look() -> None:
    """An event finds the waits of its own value, however many others there are."""
    fold = Fold(FoldConfig(budget=10**9))
    fold.adopt(parse_automation(DEPLOY, name="r"))
    for n in range(20_000):
        at, row = given(0, "deploy.finished", id=f"d{n}", service=f"s{n}")
        fold.step(row, seq=n + 1, recorded=1_767_225_600.0 + at)
    import time

    began = time.process_time()
    for n in range(3):
        at, row = given(1 + n, "app.error", service="s19999")
        made = fold.step(row, seq=30_000 + n, recorded=1_767_225_600.0 + at)
    assert [d.count for d in made] == [4]
    assert time.process_time() - began < 1


def test_of_too_many_waits_those_that_are_gone_make_room_whether_they_were_swept_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is swept, and when, depends on how many other keys there are and where they stand."""
    rule = parse_automation(
        {
            "sequence": [
                {"as": "first", "on": "a.x"},
                {"on": "a.y", "where": {"data.k": "{{ first.data.k }}"}},
                {"on": "a.z"},
            ],
            "within": "50s",
        },
        name="r",
    )
    # The oldest wait comes to stand behind a younger one, and is gone when there is one too many.
    history = [given(0, "a.x", k=1), given(30, "a.x", k=2), given(31, "a.y", k=2), given(40, "a.y", k=1)]
    for k in range(3, 17):
        history += [given(42 + k / 10, "a.x", k=k), given(42 + k / 10 + 0.05, "a.y", k=k)]
    history += [given(61 + k / 1000, "a.x", k=k) for k in range(17, 60)]
    history += [given(62, "a.y", k=17), given(63, "a.z")]
    for look_from in (1, 1024):
        monkeypatch.setattr(keyed, "_LOOK_FROM", look_from)
        fold = Fold(FoldConfig(allowed_lateness_s=10))
        fold.adopt(rule)
        made = [
            d for n, (at, row) in enumerate(history, 1) for d in fold.step(row, seq=n, recorded=START + at)
        ]
        assert [[r.id for r in d.refs] for d in made] == [["a.x@30", "a.y@31", "a.z@63"]]


def _by_hand(events: list[tuple[float, str, str]], within: float) -> list[int]:
    """Return the indexes at which a, b, b, c, joined by key, fires: every start followed on its own."""
    waits: list[list[Any]] = []
    out = []
    for i, (at, kind, key) in enumerate(events):
        advanced = []
        for wait in waits:
            start, k, step, _ = wait
            if k != key or at - start > within:
                continue
            if step == 1 and kind == "b":
                wait[3] += 1
                if wait[3] == 2:
                    wait[2] = 2
            elif step == 2 and kind == "c":
                advanced.append(wait)
        if advanced:
            out.append(i)
            waits = [w for w in waits if w[1] != key]
        if kind == "a":
            waits.append([at, key, 1, 0])
    return out


def test_events_of_one_step_that_come_out_of_order_are_in_one_window() -> None:
    """Of a step with a time of its own, first or later, a late event does not count with one far after it."""
    errors = {"on": "app.error", "count": 2, "within": "2s"}
    for steps in ([{"on": "deploy.done"}, errors], [errors, {"on": "app.down"}]):
        rule = {"sequence": steps, "within": "1m", "allowed_lateness": "30s"}
        apart = [given(0, "deploy.done"), given(20, "app.error"), given(21, "app.error", late=11)]
        assert fired(rule, *apart, given(22, "app.down")) == []
        near = given(22, "app.error", late=11)
        assert len(fired(rule, *apart, near, given(23, "app.down"))) == 1


def test_an_event_that_fired_begins_nothing_for_any_of_its_keys() -> None:
    """It ends the sequence of one key and of another, and is the first event of neither."""
    rule = {"sequence": ["app.*", "app.error"], "for_each": "data.hosts", "within": "1m"}
    events = [given(at, "app.error", hosts=["h1", "h2"]) for at in (0, 1, 2)]
    assert fired(rule, *events) == [(1, "h1", 2), (1, "h2", 2)]


@settings(max_examples=150)
@examples(st.integers(0, 10_000), st.sampled_from([5.0, 20.0]))
def test_sequences_agree_with_following_each_start_by_hand(seed: int, within: float) -> None:
    """Against a slow oracle that follows every start, joined by the value or by the key."""
    rng = random.Random(seed)
    now, events = 0.0, []
    for _ in range(rng.randrange(5, 40)):
        now += rng.choice([0.1, 1.0, 3.0])
        events.append((now, rng.choice("abbc"), rng.choice("pq")))
    expected = _by_hand(events, within)
    history = [given(at, f"x.{kind}", id=str(i), k=key) for i, (at, kind, key) in enumerate(events)]
    window = f"{within:g}s"
    joined = {
        "sequence": [
            {"as": "a", "on": "x.a"},
            {"on": "x.b", "count": 2, "where": {"data.k": "{{ a.data.k }}"}},
            {"on": "x.c", "where": {"data.k": "{{ a.data.k }}"}},
        ],
        "within": window, "budget": "1000/s",
    }  # fmt: skip
    keyed = {
        "sequence": ["x.a", {"on": "x.b", "count": 2}, "x.c"],
        "for_each": "data.k",
        "within": window,
        "budget": "1000/s",
    }
    for rule in (joined, keyed):
        assert [int(d.refs[-1].id) for d in triggers(rule, *history)] == expected


def test_of_waits_that_one_list_of_values_answers_the_oldest_fires_and_no_other_is_carried_on() -> None:
    """In whatever order the values stand in the list, and however the waits came to where they are."""
    ask: dict[str, Any] = {"on": "b", "where": {"data.k": "{{ first.data.k }}"}}
    rule = {"sequence": [{"as": "first", "on": "a"}, ask], "within": "1m"}
    begun = [given(1, "a", k="q"), given(2, "a", k="p")]
    for values in (["p", "q"], ["q", "p"]):
        (made,) = triggers(rule, *begun, given(3, "b", k=values))
        assert [ref.id for ref in made.refs] == ["a@1", "b@3"]
    # The wait for p has one of two when that for q is complete: the event is used up, and p needs two more.
    twice = {"sequence": [{"as": "first", "on": "a"}, {**ask, "count": 2}], "within": "1m"}
    history = [*begun, given(3, "b", k="q"), given(4, "b", k=["p", "q"]), given(5, "b", k="p")]
    assert fired(twice, *history) == [(4, "", 3)]
    assert fired(twice, *history, given(6, "b", k="p")) == [(4, "", 3), (6, "", 3)]
    # The younger comes first to the place where both wait.
    three = {"sequence": [*rule["sequence"], "c"], "within": "1m"}
    (made,) = triggers(three, *begun, given(3, "b", k="p"), given(4, "b", k="q"), given(5, "c"))
    assert [ref.id for ref in made.refs] == ["a@1", "b@4", "c@5"]
