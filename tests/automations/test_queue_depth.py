"""The metric of runs that wait to start."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hark.automations.analysis.ruletest import START
from hark.automations.folding.decision import Decision
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.forms.catalogue import form_of
from hark.automations.forms.form import Seen
from hark.automations.forms.queue_depth import due_of
from hark.automations.model import parse_automation
from hark.automations.pattern import RUN_WORDS
from hark.automations.problem import RuleInvalid
from hark.bus.event import format_time
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.automations.playing import fired, given, over

DEEP: dict[str, Any] = {
    "metric": {"measure": "queue_depth", "pool": "gpu"}, "is": "> 2", "for": "1m", "for_each": "data.queue",
}  # fmt: skip


def run(
    at: float, word: str, number: int, *, due: float | None = None, pool: str = "gpu", queue: str = "q"
) -> Any:
    when = format_time(datetime.fromtimestamp(START + (at if due is None else due), UTC))
    return given(
        at, f"flow-run.{word}", id=f"{number}-{word}-{at:g}", subject=f"flow-run/{number}", pool=pool, queue=queue,
        run={"scheduled_at": when},
    )  # fmt: skip


def test_runs_that_wait_for_so_long_are_told_once() -> None:
    """Three wait for a minute; one that is taken in time keeps it quiet."""
    three = [run(n, "scheduled", n) for n in (0, 1, 2)]
    assert fired(DEEP, *three, until=500) == [(62, "q", 3)]
    assert fired(DEEP, *three, run(30, "pending", 1), until=500) == []
    assert fired(DEEP, *three, run(3, "late", 1), run(4, "awaiting-concurrency-slot", 2), until=500) == [
        (62, "q", 3)
    ]
    assert fired(DEEP, *[run(n, "scheduled", n, pool="cpu") for n in range(5)], until=500) == []
    assert fired(DEEP, *[run(n, "scheduled", n, queue=f"q{n}") for n in range(5)], until=500) == []


def test_a_run_waits_from_when_it_is_due() -> None:
    """Asked for an hour ahead, it waits in an hour; cancelled before, never."""
    ahead = [run(n, "scheduled", n, due=3600) for n in range(3)]
    assert fired(DEEP, *ahead, until=4000) == [(3660, "q", 3)]
    assert fired(DEEP, *ahead, run(100, "cancelled", 2), until=4000) == []


def test_it_is_over_when_the_queue_has_drained() -> None:
    """It fires on the edge, and again after it has come back."""
    rule = {**DEEP, "for": None, "do": [], "resolve": {"after": "1s"}}
    rule = {k: v for k, v in rule.items() if v is not None}
    three = [run(n, "scheduled", n) for n in (0, 1, 2)]
    drained = [*three, run(10, "running", 0), run(20, "scheduled", 3), run(30, "pending", 1)]
    assert [at for at, _, _ in fired(rule, *drained, until=500)] == [2, 20]
    assert [at for at, _, _ in over(rule, *drained, until=500)] == [11, 31]


def test_a_queue_that_nothing_was_ever_put_into_is_empty() -> None:
    """There is no window to be watched: it is known from the adoption on, and held for a time from then."""
    idle = {"metric": {"measure": "queue_depth"}, "is": "< 1"}
    assert fired(idle, until=100) == [(0, "", 0)]
    assert fired({**idle, "for": "1m"}, until=100) == [(60, "", 0)]
    assert fired({**idle, "for": "1m"}, run(59, "scheduled", 1), until=100) == []


@settings(max_examples=100)
@examples(st.integers(0, 100_000))
def test_the_depth_is_what_counting_every_run_gives(seed: int) -> None:
    """Against a table of every run's last state, taken down and restored between events."""
    rng = random.Random(seed)
    rule = parse_automation(
        {"metric": {"measure": "queue_depth"}, "is": ">= 3", "for": "1h", "budget": "1000/s"}, name="r"
    )
    now = 0.0
    last: dict[int, float | None] = {}
    form = _form(rule)
    for _ in range(rng.randrange(5, 40)):
        now += rng.choice([0.5, 1.0, 10.0])
        number, word = rng.randrange(6), rng.choice(RUN_WORDS)
        _, row = run(now, word, number, due=now + rng.choice([-5.0, 0.0, 15.0]))
        last[number] = due_of(row, now=START + now)
        form.event(0, "", _seen(row, START + now))
        if rng.random() < 0.3:
            state, form = form.dump(), _form(rule)
            form.load(state)
        want = sum(due is not None and due <= START + now for due in last.values())
        assert form.look("")["figure"] == f"{want:g}"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ({"measure": "queue_depth", "over": "1h"}, "how many wait now"),
        ({"measure": "count", "on": "a.b"}, "needs `over`"),
        ({"measure": "queue_depth", "on": "a.b"}, "narrow it by"),
    ],
)
def test_words_that_do_not_go_with_it_are_told(metric: dict[str, Any], words: str) -> None:
    """A gauge has no window, a window metric needs one."""
    with pytest.raises(RuleInvalid, match=words):
        parse_automation({"metric": metric, "is": "> 3"}, name="r")


def _form(rule: Any) -> Any:
    form = form_of(rule, lateness_s=10.0, arm=lambda key, at: None)
    form.start(START)
    return form


def _seen(row: dict[str, Any], recorded: float) -> Any:
    return Seen(row, 1, recorded, recorded, row["id"], 0)


def test_a_clock_that_is_set_back_makes_runs_wait_from_the_reading_they_were_asked_for() -> None:
    """Asked for at twelve: an hour is set back at ten to, so that twelve is further off. What waits already goes on waiting."""
    fold = Fold(FoldConfig())
    fold.tick(START)
    fold.adopt(parse_automation({**DEEP, "name": "r", "is": "> 1"}))
    rows = [
        run(0, "scheduled", 1), run(1, "scheduled", 2, due=600), run(-3597, "scheduled", 3, due=900),
    ]  # fmt: skip
    made: list[Decision] = []
    for seq, (at, row) in enumerate(rows, 1):
        made += fold.step(row, seq=seq, recorded=START + at)
        fold = Fold.restore(fold.dump_definitions(), fold.dump_state(), fold.config)
    assert made == []
    looked = fold.look("r", "q")["holds_since"]
    assert looked is None
    made = fold.tick(START + 659)
    assert made == []
    (fired,) = fold.tick(START + 661)
    assert (fired.at, fired.count) == (START + 660, 2)
    assert fired.extra is not None
    assert fired.extra["metric"]["since"] == START + 600  # type: ignore[index, call-overload]
    assert fold.look("r", "q")["holds_since"] == START + 600
