"""What rules would have done: over the log, over a file, and why at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hark.automations.analysis.backtest import Replay, backtest_lines, backtest_log, filters_of
from hark.automations.analysis.hindsight import Judgement, explain_moment, memory_s
from hark.automations.analysis.ruletest import START
from hark.automations.folding.fold import FoldConfig
from hark.automations.model import Automation, parse_automation
from hark.bus import Recorded
from hark.errors import DefinitionError
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.automations.conftest import House, at
from tests.automations.playing import given, played

FAILING = {"on": "build.failed", "for_each": "data.repo", "count": 3, "within": "10m", "cooldown": "30m"}


def rule(definition: dict[str, Any], name: str = "r") -> Automation:
    return parse_automation(definition, name=name)


def failed(*at: float, repo: str = "hark") -> list[tuple[float, dict[str, Any]]]:
    return [given(t, "build.failed", id=f"{repo}{t:g}", repo=repo) for t in at]


def lines_of(*events: tuple[float, dict[str, Any]]) -> Iterator[bytes]:
    for _, row in events:
        yield orjson.dumps({"specversion": "1.0", **row})


def test_a_file_of_events_gives_every_firing_with_its_events() -> None:
    """One JSON object a line; what the cooldown would have held back is said too."""
    made = backtest_lines(lines_of(*failed(0, 10, 20, 30, 40, 50)), [rule(FAILING)])
    outcome = made.rules["r"]
    assert (outcome.fired, outcome.suppressed, made.events) == (1, 1, 6)
    fired: Any = outcome.to_json()["decisions"]
    assert [e["id"] for e in fired[0]["events"]] == ["hark0", "hark10", "hark20"]
    assert (fired[0]["what"], fired[0]["key"], fired[1]["reason"]) == ("triggered", "hark", "cooldown")
    assert orjson.loads(orjson.dumps(made.to_json()))["whole"] is True


def test_deadlines_within_the_history_pass_one_by_one() -> None:
    """A beat that was missed three times fired three times, though no event came to say so."""
    beat = {"expect": "sensor.beat", "for_each": "data.d", "within": "10s"}
    made = backtest_lines(
        lines_of(given(0, "sensor.beat", d="a"), given(35, "sensor.beat", d="b")), [rule(beat)]
    )
    assert [d.key for d in made.rules["r"].decisions] == ["a", "a", "a"]
    # Up to a time: what is later is left out, and what is due until then is not.
    early = datetime.fromtimestamp(START + 24, UTC)
    made = backtest_lines(
        lines_of(given(0, "sensor.beat", d="a"), given(35, "sensor.beat", d="b")), [rule(beat)], until=early
    )
    assert ([d.key for d in made.rules["r"].decisions], made.events) == (["a", "a"], 1)


def test_lines_may_be_what_watching_prints() -> None:
    """With their recorded time, which then counts; blank lines are passed over."""
    (_, row), *_ = failed(0)
    line = orjson.dumps({"seq": 7, "recorded_at": "2026-01-01T00:01:00Z", "event": row})
    made = backtest_lines([b"\n", line], [rule({"on": "build.failed"})])
    assert made.begins_at == datetime(2026, 1, 1, 0, 1, tzinfo=UTC).timestamp()


def test_a_file_may_be_the_list_that_a_listing_prints() -> None:
    """The newest first, over many lines: it is put in the order of the log. One without places stays as it is."""
    rows = [row for _, row in failed(0, 10, 20)]
    listed = [{"seq": n, "recorded_at": row["time"], "event": row} for n, row in enumerate(rows, 1)]
    for items in (listed[::-1], rows):
        lines = orjson.dumps(items, option=orjson.OPT_INDENT_2).splitlines(keepends=True)
        (fired,) = backtest_lines(lines, [rule(FAILING)]).rules["r"].decisions
        assert [ref.id for ref in fired.refs] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("line", "why"),
    [(b"{", "line 1"), (b"[1]", "not an event"), (b'{"type": "a.b"}', "'time' is missing"), (b'{"type": 1, "time": "2026-01-01T00:00:00Z"}', "not text"),
     (b'{"type": "a.b", "time": "2026-01-01T00:00:00"}', "no time zone offset")],
)  # fmt: skip
def test_a_line_that_is_no_event_is_named(line: bytes, why: str) -> None:
    """With its number."""
    with pytest.raises(DefinitionError) as caught:
        backtest_lines([line], [rule(FAILING)])
    assert why in str(caught.value)


def test_only_what_is_listened_to_is_asked_for() -> None:
    """By subject, where types say it."""
    assert filters_of([rule(FAILING)]) == ["hark.ev.build.failed"]
    both = rule({"on": "flow-run.failed", "resolve": {"on": "flow-run.completed"}})
    assert filters_of([both]) == ["hark.ev.flow-run.failed.*", "hark.ev.flow-run.completed.*"]
    assert filters_of([rule(FAILING), rule({"on": ">"}, "s")]) == ["hark.ev.>"]


def test_many_firings_are_counted_and_some_kept() -> None:
    """Memory is bounded, whatever the rule."""
    replay = Replay([rule({"on": "build.failed", "budget": "100000/s"})], begins=0.0, keep=10)
    for n, (_, row) in enumerate(failed(*range(200))):
        replay.row(row, seq=n + 1, recorded=1e9 + n)
    made = replay.finish()
    assert (made.rules["r"].fired, len(made.rules["r"].decisions)) == (200, 10)


@settings(max_examples=50)
@examples(st.lists(st.tuples(st.sampled_from([1.0, 100.0, 700.0]), st.sampled_from("pq")), max_size=30))
def test_a_backtest_decides_what_a_live_fold_would(steps: list[tuple[float, str]]) -> None:
    """The same events give the same decisions, here and in a rule test."""
    now, history = 0.0, []
    for gap, repo in steps:
        now += gap
        history += failed(now, repo=f"{repo}-")
    made = backtest_lines(lines_of(*history), [rule(FAILING)], config=FoldConfig(say_all=True))
    assert [(d.what, d.key, d.refs) for d in made.rules["r"].decisions] == [
        (d.what, d.key, d.refs) for d in played(FAILING, *history)
    ]


@settings(max_examples=50)
@examples(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 400]),
            st.sampled_from(["failed", "completed", "beside"]),
            st.sampled_from("pq"),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_events_nobody_listens_to_change_nothing_parsed_or_not(
    steps: list[tuple[int, str, str]], wide: bool
) -> None:
    """Whether a record is judged by its subject or by what it holds, the decisions and the time are the same."""
    now, records = datetime(2026, 1, 1, tzinfo=UTC), list[Recorded]()
    for n, (gap, word, run) in enumerate(steps):
        now += timedelta(seconds=gap)
        type_ = f"flow-run.{word}" if word != "beside" else "build.failed"
        subject = f"hark.ev.{type_}.{run}" if word != "beside" else f"hark.ev.{type_}"
        row = {"type": type_, "id": f"e{n}", "source": "/t", "data": {"run": run}}
        records.append(Recorded(n + 1, subject, now, b"{" if n % 7 == 6 else orjson.dumps(row)))
    on = "flow-run.*" if wide else "flow-run.failed"
    made = []
    for sifted in (False, True):
        replay = Replay(
            [rule({"on": on, "for_each": "data.run", "count": 2, "within": "5m"})],
            begins=datetime(2025, 12, 31, tzinfo=UTC).timestamp(),
        )
        assert replay.records(records, sifted=sifted)
        made.append((replay.finish().rules["r"].to_json(), replay.events, replay.fold.now, replay.fold.seq))
    assert made[0] == made[1]


async def test_the_live_log_is_looked_at_and_not_touched(house: House) -> None:
    """A rule that never was live, over what has really happened; the log is as long as before."""
    for _ in range(3):
        await house.emit("build.failed", {"repo": "hark"})
        await house.emit("build.passed", {"repo": "hark"})
    before = await house.bus.log.head()
    now = datetime.now(UTC)
    made = await backtest_log(house.bus, [rule(FAILING)], since=now - timedelta(hours=1), now=now)
    assert (made.rules["r"].fired, made.events, made.whole) == (1, 3, True)
    assert [r.seq for r in made.rules["r"].decisions[0].refs] == [1, 3, 5]
    assert await house.bus.log.head() == before
    later = await backtest_log(house.bus, [rule(FAILING)], since=now + timedelta(hours=1), now=now)
    assert (later.rules["r"].fired, later.events) == (0, 0)


async def test_a_rule_of_the_past_is_not_adopted_by_a_backtest(house: House) -> None:
    """Rules that listen to everything read adoptions too, and do not follow them."""
    async with house.engine():
        await house.define("other", on="a.b")
        await house.emit("a.b")
        await house.of_type("automation.triggered")
    now = datetime.now(UTC)
    made = await backtest_log(house.bus, [rule({"on": ">"})], since=now - timedelta(hours=1), now=now)
    assert list(made.rules) == ["r"]
    assert made.rules["r"].fired == 1


# --- why --------------------------------------------------------------------------------------------------


async def last_of(house: House, type_: str) -> Recorded:
    return (await house.events(type_))[-1]


async def judged(house: House, record: Recorded, *definitions: dict[str, Any]) -> list[Judgement]:
    rules = [rule(d, f"r{i}") for i, d in enumerate(definitions)]
    return await explain_moment(house.bus, rules, record)


async def test_the_window_of_that_moment_is_made_again(house: House) -> None:
    """Two counted before, the third fires; and the one behind it is held back."""
    for _ in range(3):
        await house.emit("build.failed", {"repo": "hark"})
    (one,) = await judged(house, await last_of(house, "build.failed"), FAILING)
    assert one.verdict == "fires"
    (standing,) = one.standings
    assert (standing.key, standing.before["counted"], standing.after["counted"]) == ("hark", 2, 0)
    for _ in range(3):
        await house.emit("build.failed", {"repo": "hark"})
    (held,) = await judged(house, await last_of(house, "build.failed"), FAILING)
    assert held.verdict.startswith("held back by cooldown until 20")
    assert held.standings[0].cooling_until is not None
    await house.emit("build.failed", {"repo": "other"})
    (few,) = await judged(house, await last_of(house, "build.failed"), FAILING)
    assert few.verdict == "counted, and not enough yet"
    await house.emit("build.failed", {"repo": "other"}, time=datetime.now(UTC) - timedelta(minutes=1))
    (late,) = await judged(house, await last_of(house, "build.failed"), FAILING)
    assert late.verdict.startswith("not counted: it came ")
    assert "`allowed_lateness`" in late.verdict
    assert late.standings[0].before["counted"] == late.standings[0].after["counted"] == 1


async def test_near_misses_say_which_condition_failed(house: House) -> None:
    """Rules that took part come first; rules of other types are left out when all are asked."""
    await house.emit("build.failed", {"repo": "hark", "n": 1})
    near = {"on": "build.failed", "where": {"data.n": "> 3"}}
    found = await judged(
        house, await last_of(house, "build.failed"), near, {"on": "build.failed"}, {"on": "other.type"}
    )
    assert [j.automation.name for j in found] == ["r1", "r0"]
    assert found[1].verdict == "no match for `on`: data.n > 3: saw 1"
    (alone,) = await judged(house, await last_of(house, "build.failed"), {"on": "other.type"})
    assert alone.verdict == 'no match for `on`: type is other.type: saw "build.failed"'


async def test_what_a_sequence_waits_for_is_compared_with_the_event(house: House) -> None:
    """An event of a later step that no wait asks for is not said to be counted; the value that differs is shown."""
    pair = {
        "sequence": [
            {"as": "deploy", "on": "deploy.finished"},
            {"on": "app.error", "where": {"data.service": "{{ deploy.data.service }}"}, "count": 2},
        ],
        "within": "15m",
    }
    await house.emit("app.error", {"service": "web"})
    (early,) = await judged(house, await last_of(house, "app.error"), pair)
    assert early.verdict == "nothing waited for it"
    await house.emit("deploy.finished", {"service": "web"})
    await house.emit("app.error", {"service": "db"})
    (other,) = await judged(house, await last_of(house, "app.error"), pair)
    assert other.verdict == "no match for what is waited for: data.service is 'web': saw \"db\""
    (standing,) = other.standings
    assert standing.to_json()["before"] == {
        "waits": [{"step": 1, "of": 2, "has": 0, "needs": 2, "events": 1, "asks": {"data.service": "web"}}]
    }
    await house.emit("app.error", {"service": "web"})
    (counted,) = await judged(house, await last_of(house, "app.error"), pair)
    assert counted.verdict == "counted, and not enough yet"
    assert [look.matched for look in counted.waits] == [True]


async def test_what_was_really_decided_stands_beside_it(house: House) -> None:
    """From the log, with the version that decided."""
    async with house.engine():
        await house.define("r0", on="build.failed", cooldown="1h")
        await house.emit("build.failed", {"repo": "hark"})
        await house.emit("build.failed", {"repo": "hark"})
        (decision,) = await house.of_type("automation.suppressed")
    (one,) = await judged(
        house, await last_of(house, "build.failed"), {"on": "build.failed", "cooldown": "1h"}
    )
    assert [(a["what"], a["reason"], a["id"]) for a in one.actual] == [
        ("suppressed", "cooldown", decision.id)
    ]
    assert one.decisions[0].reason == "cooldown"
    assert at(decision, "automation.version") == one.automation.version


def test_every_form_knows_how_far_back_it_remembers() -> None:
    """No less than its own times, no more than a week."""
    config = FoldConfig()
    assert memory_s(rule(FAILING), config) >= 600 + 1800
    assert memory_s(rule({"all_of": ["a.b", "a.c"], "within": "30d"}), config) == 7 * 86_400
    slow = {"metric": {"measure": "count", "on": "a.b", "over": "1h"}, "is": "> 3", "for": "15m"}
    assert memory_s(rule(slow), config) >= 3600 + 900
