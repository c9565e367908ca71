"""What rules decide: edges, windows, cooldowns, absences, budgets, depth, and rules that change."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hark.automations.folding.decision import ADOPTED, SOURCE, Decision, decision_event, disabled_event
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.model import parse_automation
from hark.bus.event import format_time

BEGIN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


class Log:
    """A fold with a log before it: what is said at a time is folded at that time."""

    def __init__(self, *rules: dict[str, Any], **config: Any) -> None:
        self.fold = Fold(FoldConfig(**config))
        self.fold.tick(BEGIN)
        self.seq = 0
        self.decisions: list[Decision] = []
        for number, rule in enumerate(rules):
            self.fold.adopt(parse_automation({"name": f"r{number}", **rule}))

    def say(self, at: float, type_: str = "a.b", *, time: float | None = None, **more: Any) -> list[Decision]:
        """Record an event at an offset (s); ``time`` if it occurred at another."""
        self.seq += 1
        row = {
            "id": f"e{self.seq}", "source": "/t", "type": type_, "time": stamp(at if time is None else time), **more,
        }  # fmt: skip
        made = self.fold.step(row, seq=self.seq, recorded=BEGIN + at)
        self.decisions += made
        return made

    def wait(self, until: float) -> list[Decision]:
        made = self.fold.tick(BEGIN + until)
        self.decisions += made
        return made

    def fired(self) -> list[tuple[str, float]]:
        return [(d.key, d.at - BEGIN) for d in self.decisions if d.what == "triggered"]


def stamp(offset: float) -> str:
    return format_time(datetime.fromtimestamp(BEGIN + offset, UTC))


def ids(decisions: Iterable[Decision]) -> list[list[str]]:
    return [[r.id for r in d.refs] for d in decisions]


THREE = {"on": "a.b", "for_each": "data.k", "count": 3, "within": "10m"}


def test_a_plain_rule_fires_for_every_event() -> None:
    """Without a count each match is a firing, with the event in it."""
    log = Log({"on": "a.*"})
    (first,) = log.say(0)
    assert (first.what, first.automation, first.count, ids([first])) == ("triggered", "r0", 1, [["e1"]])
    assert first.row is not None
    assert log.say(1, "x.y") == []
    assert len(log.say(1, "a.c")) == 1


def test_three_in_ten_minutes_fire_on_the_third_and_start_anew() -> None:
    """Edge, not level: the fourth is the first of the next window."""
    log = Log(THREE)
    for minute in range(9):
        log.say(minute * 60, data={"k": "x"})
    assert log.fired() == [("x", 120), ("x", 300), ("x", 480)]
    assert ids(log.decisions)[0] == ["e1", "e2", "e3"]


def test_a_window_includes_both_ends_and_slides() -> None:
    """Exactly ten minutes apart counts; a second more does not, and the oldest falls out."""
    log = Log(THREE)
    for at in (0, 300, 600):
        log.say(at, data={"k": "x"})
    assert log.fired() == [("x", 600)]
    log = Log(THREE)
    for at in (0, 300, 601, 899, 900):
        log.say(at, data={"k": "x"})
    assert log.fired() == [("x", 899)]


def test_keys_have_windows_of_their_own() -> None:
    """One failing three times is not three failing once; numbers and texts are different keys."""
    log = Log(THREE)
    for n, key in enumerate(["x", "y", "x", 1, "1", "y", "x", 1, "1", 1]):
        log.say(n, data={"k": key})
    assert log.fired() == [("x", 6), ("1", 9)]
    assert [d.keys for d in log.decisions] == [("x",), (1,)]


def test_an_event_without_the_key_takes_no_part_and_one_with_several_takes_several() -> None:
    """`for_each` into an array is a window per element; null and objects are no keys."""
    log = Log({**THREE, "count": 2})
    none: list[dict[str, Any]] = [{}, {"k": None}, {"k": {"a": 1}}, {"k": []}]
    for data in none:
        log.say(0, data=data)
        log.say(1, data=data)
    assert log.decisions == []
    log.say(2, data={"k": ["p", "q", "p"]})
    log.say(3, data={"k": ["q", "r"]})
    assert log.fired() == [("q", 3)]


def test_several_paths_make_one_key_together() -> None:
    """The key is every combination, shown with a slash."""
    log = Log({"on": "a.b", "for_each": ["data.a", "data.b"], "count": 2, "within": "1m"})
    log.say(0, data={"a": "x", "b": 1})
    log.say(1, data={"a": "x", "b": 2})
    log.say(2, data={"a": "x", "b": 1})
    assert log.fired() == [("x/1", 2)]
    assert log.decisions[0].keys == ("x", 1)


def test_windows_are_in_event_time() -> None:
    """What counts is when it occurred: late arrivals fall into their place, up to the allowed lateness."""
    log = Log(THREE)
    log.say(700, time=0, data={"k": "x"})
    log.say(701, time=300, data={"k": "x"})
    log.say(702, time=595, data={"k": "x"})
    assert log.fired() == [("x", 595)]
    log = Log({**THREE, "within": "5s"})
    log.say(100, time=100, data={"k": "x"})
    log.say(101, time=96, data={"k": "x"})  # out of order, within the lateness
    log.say(102, time=98, data={"k": "x"})
    assert log.fired() == [("x", 100)]
    assert ids(log.decisions) == [["e2", "e3", "e1"]]
    log = Log({**THREE, "within": "1h"})
    log.say(100, data={"k": "x"})
    log.say(101, time=50, data={"k": "x"})  # too late: does not count
    log.say(102, data={"k": "x"})
    assert log.fired() == []
    assert log.fold.window("r0", "x") == 2


def test_a_clock_that_runs_ahead_does_not_hold_windows_open() -> None:
    """An event cannot occur after it was recorded."""
    log = Log({**THREE, "within": "1m"})
    log.say(0, time=9999, data={"k": "x"})
    log.say(1, data={"k": "x"})
    log.say(2, data={"k": "x"})
    assert log.fired() == [("x", 2)]


def test_a_cooldown_waits_for_late_events_as_long_as_the_rule_says() -> None:
    """What happened in the cooldown is held back if it is recorded within the rule's own lateness, not the service's."""
    for lateness, held in (("30s", True), ("1s", False)):
        log = Log({"on": "a.b", "cooldown": "10s", "allowed_lateness": lateness})
        log.say(0)
        (made,) = log.say(18, time=9)
        assert (made.what == "suppressed") is held


def test_cooldown_holds_back_and_counts() -> None:
    """Firings within the cooldown are suppressed, each is told, and the next message knows how many."""
    log = Log({"on": "a.b", "cooldown": "10m", "for_each": "data.k"})
    for at in (0, 60, 120, 599, 600, 700):
        log.say(at, data={"k": "x"})
    log.say(60, data={"k": "y"})
    assert log.fired() == [("x", 0), ("x", 600), ("y", 60)]
    assert [(d.suppressed, d.reason) for d in log.decisions] == [
        (0, ""), (1, "cooldown"), (2, "cooldown"), (3, "cooldown"), (3, ""), (1, "cooldown"), (0, ""),
    ]  # fmt: skip
    assert log.decisions[1].until == BEGIN + 600


def test_a_window_that_was_suppressed_starts_anew_too() -> None:
    """Three more within the cooldown are one suppressed firing, not a growing one."""
    log = Log({**THREE, "cooldown": "1h"})
    for at in range(12):
        log.say(at, data={"k": "x"})
    assert [d.what for d in log.decisions] == ["triggered", "suppressed", "suppressed", "suppressed"]


def test_suppressions_are_told_ever_more_rarely() -> None:
    """A storm within a cooldown does not become a storm of `automation.suppressed`; the numbers still say all."""
    log = Log({"on": "a.b", "cooldown": "1d"})
    for at in range(5_000):
        log.say(at)
    told = [d.suppressed for d in log.decisions if d.what == "suppressed"]
    assert told[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30]
    assert told[-1] == 4000
    assert len(told) < 50


def test_what_was_begun_and_not_followed_fires_at_its_deadline_once() -> None:
    """`after` without `expect` in time; answered ones do not fire."""
    log = Log({"after": "job.began", "expect": "job.ended", "for_each": "subject", "within": "2h"})
    log.say(0, "job.began", subject="a")
    log.say(60, "job.began", subject="b")
    log.say(3600, "job.ended", subject="a")
    assert log.wait(7259) == []
    (fired,) = log.wait(7260)
    assert (fired.key, fired.at - BEGIN, ids([fired]), fired.row, fired.kind) == (
        "b",
        7260,
        [["e2"]],
        None,
        "absence",
    )
    assert log.wait(100_000) == []
    log.say(100_001, "job.ended", subject="b")
    log.say(100_002, "job.began", subject="b")
    assert log.fired() == [("b", 7260)]
    assert len(log.wait(200_000)) == 1


def test_the_first_opening_event_counts() -> None:
    """More of them while it waits do not put the deadline off."""
    log = Log({"after": "job.began", "expect": "job.ended", "within": "10m"})
    for at in (0, 300, 599):
        log.say(at, "job.began")
    assert log.wait(601)[0].at == BEGIN + 600


def test_deadlines_pass_before_what_is_recorded_after_them() -> None:
    """The expected event recorded behind the deadline comes too late, also when both are read from a backlog."""
    log = Log({"after": "job.began", "expect": "job.ended", "within": "10m"})
    log.say(0, "job.began")
    (fired,) = log.say(3600, "job.ended")
    assert fired.at == BEGIN + 600
    log = Log({"after": "job.began", "expect": "job.ended", "within": "10m"})
    log.say(0, "job.began")
    log.say(599, "job.ended")
    assert log.wait(100_000) == []


def test_an_answer_that_overtook_its_question_counts() -> None:
    """Recorded in the wrong order within the lateness, the pair is complete."""
    log = Log({"after": "job.began", "expect": "job.ended", "within": "1h"})
    log.say(10, "job.ended", time=9)
    log.say(11, "job.began", time=8)
    assert log.wait(100_000) == []
    log = Log({"after": "job.began", "expect": "job.ended", "within": "1h"})
    log.say(10, "job.ended", time=5)  # of an earlier job: it ended before this one began
    log.say(11, "job.began", time=8)
    assert len(log.wait(100_000)) == 1


def test_an_answer_that_overtook_its_question_counts_whatever_came_since() -> None:
    """Neither an older answer behind it nor that it ended another wait hides it from a question that comes late."""
    log = Log({"after": "job.began", "expect": "job.ended", "within": "1h"})
    log.say(10, "job.ended", time=9)
    log.say(11, "job.ended", time=7)
    log.say(12, "job.began", time=8)
    assert log.wait(100_000) == []
    log = Log({"after": "job.began", "expect": "job.ended", "within": "1h"})
    log.say(1, "job.began")
    log.say(10, "job.ended", time=9)
    log.say(11, "job.began", time=8)
    assert log.wait(100_000) == []


def test_a_backlog_of_old_events_is_given_time_to_be_complete() -> None:
    """Old events recorded just now: the answer right behind the question is not too late."""
    log = Log({"after": "job.began", "expect": "job.ended", "within": "1m"})
    log.say(10_000, "job.began", time=0)
    log.say(10_001, "job.ended", time=30)
    assert log.wait(100_000) == []


def test_in_order_the_allowed_lateness_delays_nothing() -> None:
    """A live absence of one second fires after one second, not after the lateness."""
    log = Log({"after": "a.b", "expect": "c.d", "within": "1s"})
    log.say(0.010, time=0)
    assert log.wait(1.009) == []
    assert len(log.wait(1.010)) == 1


def test_a_heartbeat_that_stops_fires_every_period_until_it_returns() -> None:
    """Repeating absence: each further period of silence is another firing, counted."""
    log = Log({"expect": "sensor.beat", "for_each": "data.d", "within": "5m"})
    log.say(0, "sensor.beat", data={"d": 7})
    log.say(200, "sensor.beat", data={"d": 7})
    for minute in range(4, 20):
        log.wait(minute * 60)
    assert [(d.at - BEGIN, d.count) for d in log.decisions] == [(500, 1), (800, 2), (1100, 3)]
    assert ids(log.decisions) == [["e2"]] * 3
    log.say(1200, "sensor.beat", data={"d": 7})
    log.wait(1499)
    assert len(log.decisions) == 3
    log.wait(1500)
    assert log.decisions[-1].count == 1


def test_a_heartbeat_without_key_is_watched_from_its_adoption() -> None:
    """Nothing ever came: that is an absence too."""
    log = Log({"expect": "sensor.beat", "within": "5m"})
    (fired,) = log.wait(300)
    assert (fired.refs, fired.count, fired.row) == ((), 1, None)
    assert decision_event(fired, None).data["count"] == 1  # type: ignore[index,call-overload]


def test_periods_that_nobody_could_watch_fire_once() -> None:
    """An engine that was away for a day does not send 288 messages."""
    log = Log({"expect": "sensor.beat", "within": "5m"})
    assert len(log.wait(86_400 + 10)) == 1
    assert len(log.wait(86_400 + 299)) == 0
    assert len(log.wait(86_400 + 300)) == 1


def test_a_rule_over_its_budget_is_held_back_and_says_so() -> None:
    """The budget is per rule and minute; afterwards it fires again and tells how many it missed."""
    log = Log({"on": "a.b", "for_each": "data.k"}, {"on": "a.b", "budget": "1000/m"}, budget=5)
    for n in range(30):
        log.say(n, data={"k": f"k{n}"})
    mine = [d for d in log.decisions if d.automation == "r0"]
    assert [d.what for d in mine[:7]] == ["triggered"] * 5 + ["suppressed"] * 2
    assert {d.reason for d in mine[5:]} == {"budget"}
    assert sum(d.what == "triggered" for d in log.decisions if d.automation == "r1") == 30
    (after, _) = log.say(60, data={"k": "z"})
    assert (after.what, after.suppressed) == ("triggered", 25)
    told = [event for event in map(disabled_event, log.decisions) if event is not None]
    assert [(e.type, e.subject) for e in told] == [("automation.disabled", "automation/r0")]
    assert told[0].data["until"] == stamp(60)  # type: ignore[index,call-overload]


def test_a_chain_of_rules_ends_at_the_depth_limit() -> None:
    """A rule whose action makes what it reacts to is stopped, once loudly, then silently."""
    log = Log({"on": "a.b"})
    assert log.say(0, causaldepth=7)[0].what == "triggered"
    (stopped,) = log.say(1, causaldepth=8)
    assert (stopped.what, stopped.reason, stopped.depth) == ("suppressed", "depth", 8)
    assert log.say(2, causaldepth=9) == []


def test_rules_do_not_react_to_themselves_or_by_wildcard_to_bookkeeping() -> None:
    """`>` leaves out automation.*; naming it includes all but the rule's own."""
    log = Log({"name": "all", "on": ">"}, {"name": "meta", "on": "automation.triggered"})
    fired = log.say(0, "automation.triggered", data={"automation": {"name": "all", "version": "1"}})
    assert [d.automation for d in fired] == ["meta"]
    assert log.say(1, "automation.triggered", data={"automation": {"name": "meta"}}) == []


def test_a_decision_keeps_its_id_and_other_decisions_have_others() -> None:
    """The id belongs to version, key and events: the same for the same, never for two."""
    first, second = Log(THREE), Log(THREE)
    for log in (first, second):
        for n in range(30):
            log.say(n, data={"k": f"k{n % 3}"})
    assert [d.id for d in first.decisions] == [d.id for d in second.decisions]
    assert len({d.id for d in first.decisions}) == len(first.decisions)
    other = Log({**THREE, "do": [{"notify": "x"}]})
    for n in range(30):
        other.say(n, data={"k": f"k{n % 3}"})
    assert not {d.id for d in other.decisions} & {d.id for d in first.decisions}


def test_rules_are_told_in_the_order_of_their_names() -> None:
    """Decisions of one event come in one order, whatever the order of definition."""
    log = Log({"name": "b", "on": "a.b"}, {"name": "c", "on": "a.*"}, {"name": "a", "on": ">"})
    assert [d.automation for d in log.say(0)] == ["a", "b", "c"]


def adopted(name: str, revision: int, definition: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "type": ADOPTED,
        "source": SOURCE,
        "data": {"name": name, "revision": revision, "definition": definition},
    }


def adopt(
    log: Log, at: float, name: str, revision: int, definition: dict[str, Any] | None, **more: Any
) -> None:
    log.seq += 1
    log.fold.step({**adopted(name, revision, definition), **more}, seq=log.seq, recorded=BEGIN + at)


def test_a_rule_holds_from_its_place_in_the_log_on() -> None:
    """Adoption is an event: what came before is not matched, an older revision changes nothing, removal ends it."""
    log = Log()
    log.say(0)
    adopt(log, 1, "r", 5, {"on": "a.b"})
    log.say(2)
    adopt(log, 3, "r", 4, {"on": "x.y"})
    log.say(4)
    adopt(log, 5, "r", 6, None)
    log.say(6)
    adopt(log, 7, "r", 5, {"on": "a.b"})
    log.say(8)
    assert log.fired() == [("", 2), ("", 4)]
    assert log.fold.revision_of("r") == 6


def test_nobody_else_can_adopt_rules() -> None:
    """An event of the right type from another source is just an event."""
    log = Log()
    adopt(log, 0, "r", 1, {"on": "a.b"}, source="/somebody")
    assert log.say(1) == []


def test_editing_texts_keeps_windows_and_editing_matching_resets_them() -> None:
    """Two of three counted stay counted when only the action changes."""
    log = Log()
    adopt(log, 0, "r", 1, THREE)
    log.say(1, data={"k": "x"})
    log.say(2, data={"k": "x"})
    adopt(log, 3, "r", 2, {**THREE, "do": [{"notify": "oncall"}]})
    (fired,) = log.say(4, data={"k": "x"})
    assert fired.actions == ({"notify": ["oncall"]},)
    log.say(5, data={"k": "x"})
    log.say(6, data={"k": "x"})
    adopt(log, 7, "r", 3, {**THREE, "within": "11m"})
    assert log.say(8, data={"k": "x"}) == []
    assert log.fold.window("r", "x") == 1


def test_a_definition_that_does_not_load_leaves_the_one_in_force() -> None:
    """What was live stays live, and the status says why the new one is not."""
    log = Log()
    adopt(log, 0, "r", 1, {"on": "a.b"})
    adopt(log, 1, "r", 2, {"on": "a.b", "from_the_future": True})
    assert len(log.say(2)) == 1
    assert "from_the_future" in log.fold.errors["r"]


def test_a_paused_rule_does_nothing_and_forgets_what_it_waited_for() -> None:
    """Deadlines that were open when it was paused do not fire later."""
    absence = {"after": "a.b", "expect": "c.d", "within": "1m"}
    log = Log()
    adopt(log, 0, "r", 1, absence)
    log.say(1)
    adopt(log, 2, "r", 2, {**absence, "paused": True})
    assert log.wait(1000) == []
    assert log.fold.next_deadline() is None
    adopt(log, 1001, "r", 3, absence)
    assert log.wait(2000) == []
    log.say(2001)
    assert len(log.wait(3000)) == 1


@pytest.mark.parametrize("via", ["live", "restored"])
def test_pausing_a_rule_keeps_its_windows(via: str) -> None:
    """It goes on counting and says nothing; what came due meanwhile is not said later."""
    counting = {"on": "a.b", "count": 3, "within": "10m"}
    log = Log()
    adopt(log, 0, "r", 1, counting)
    log.say(1)
    adopt(log, 2, "r", 2, {**counting, "paused": True})
    assert log.fold.keys() == 1
    assert log.say(3) == []
    if via == "restored":
        log.fold = Fold.restore(log.fold.dump_definitions(), log.fold.dump_state())
    adopt(log, 4, "r", 3, counting)
    assert len(log.say(5)) == 1
    adopt(log, 6, "r", 4, {**counting, "paused": True})
    for at in (7, 8, 9):
        assert log.say(at) == []
    adopt(log, 10, "r", 5, counting)
    assert log.say(11) == [], "three came while it was paused: that firing is over"


def test_what_came_while_a_rule_was_paused_is_not_missed_later() -> None:
    """The expected event arrives during the pause: there is nothing to alarm about after it."""
    absence = {"after": "a.b", "expect": "c.d", "within": "1m"}
    log = Log()
    adopt(log, 0, "r", 1, absence)
    log.say(1)
    adopt(log, 2, "r", 2, {**absence, "paused": True})
    log.say(3, "c.d")
    adopt(log, 4, "r", 3, absence)
    assert log.wait(1000) == []


def test_a_shadow_rule_decides_and_does_nothing() -> None:
    """Its decisions are recorded without actions."""
    log = Log({"on": "a.b", "mode": "shadow", "do": [{"notify": "x"}]})
    (fired,) = log.say(0)
    assert (fired.shadow, fired.actions) == (True, ())
    assert Log({"on": "a.b", "do": [{"notify": "x"}]}).say(0)[0].actions == ({"notify": ["x"]},)


def test_if_is_checked_behind_where() -> None:
    """CEL decides what `where` lets through; what it cannot decide does not match."""
    log = Log({"on": "a.b", "where": {"data.n": "> 1"}, "if": "data.n < data.m && size(data.s) > 1"})
    for data in (
        {"n": 2, "m": 3, "s": "ab"},
        {"n": 1, "m": 3, "s": "ab"},
        {"n": 2, "m": 1, "s": "ab"},
        {"n": 2, "m": "x", "s": "ab"},
        {"n": 2},
    ):
        log.say(0, data=data)
    assert ids(log.decisions) == [["e1"]]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"[]",
        b'{"no": "type"}',
        b'{"type": 5}',
        b'{"type": "a.b", "time": "yesterday", "causaldepth": "x"}',
    ],
)
def test_no_stored_bytes_stop_the_fold(raw: bytes) -> None:
    """What is not an event moves time on, and no more."""
    log = Log({"on": "a.b", "count": 2, "within": "1m"})
    log.fold.step_raw(raw, seq=1, recorded=BEGIN + 5)
    assert (log.fold.seq, log.fold.now) == (1, BEGIN + 5)


def test_a_place_in_the_log_is_folded_once() -> None:
    """A repeat of a sequence changes nothing; time never goes back."""
    log = Log({"on": "a.b"})
    assert len(log.say(10)) == 1
    assert log.fold.step({"type": "a.b", "id": "x"}, seq=1, recorded=BEGIN) == []
    assert log.fold.now == BEGIN + 10


def test_the_stored_decision_carries_what_the_outbox_needs() -> None:
    """Name, version, key, count, events, actions and the event itself; cause, story and depth of the chain."""
    log = Log({"on": "a.b", "for_each": "data.k", "do": [{"emit": "x.y"}]})
    (fired,) = log.say(5, data={"k": "q"}, correlationid="story", causaldepth=2, traceparent="tp")
    event = decision_event(fired, fired.row)
    data: Any = event.data
    assert event.id == fired.id
    assert (event.type, event.source, event.subject) == (
        "automation.triggered",
        "/hark/automations",
        "automation/r0",
    )
    assert (event.causationid, event.correlationid, event.causaldepth, event.traceparent) == (
        "e1",
        "story",
        3,
        "tp",
    )
    assert data["automation"] == {"name": "r0", "version": fired.version}
    assert (data["key"], data["keys"], data["count"], data["actions"]) == ("q", ["q"], 1, [{"emit": "x.y"}])
    assert data["events"] == [{"id": "e1", "seq": 1, "time": stamp(5)}]
    assert data["event"]["data"] == {"k": "q"}
    assert "event" not in decision_event(fired, fired.row, with_row=False).data  # type: ignore[operator]
