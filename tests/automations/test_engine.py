"""The rule engine on a real broker: rules come into force, decisions are stored once, others take over."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import orjson
import pytest
from hark.automations.folding import engine as engine_module
from hark.automations.folding import storing as storing_module
from hark.automations.folding.decision import Decision, within
from hark.automations.folding.engine import RuleEngine, _Term
from hark.automations.folding.storing import Storing
from hark.bus import Bucket, Bus, EmbeddedBroker, Event
from hark.bus.arrival import Arrival
from hark.bus.log import Appended, EventLog, Message
from hark.clock import SystemClock
from hark.config import AutomationsConfig, BusConfig
from hark.errors import BusUnavailable, EventInvalid
from hark.vocabulary import JsonObject

from .conftest import CONFIG, House, at

THREE = {"on": "build.failed", "for_each": "data.repo", "count": 3, "within": "10m"}


async def test_an_event_that_matches_becomes_a_decision(house: House) -> None:
    """The stored decision names rule, version, key, count and events, and follows from the event."""
    async with house.engine() as engine:
        await house.define("failing", **THREE, do=[{"notify": "oncall"}])
        sent = [await house.emit("build.failed", {"repo": "hark"}, correlationid="story") for _ in range(3)]
        (decision,) = await house.of_type("automation.triggered")
        assert engine.is_leader
    assert decision.subject == "automation/failing"
    assert (at(decision, "automation.name"), at(decision, "key"), at(decision, "count")) == (
        "failing",
        "hark",
        3,
    )
    assert [e["id"] for e in at(decision, "events")] == [e.id for e in sent]
    assert at(decision, "event.id") == sent[2].id
    assert at(decision, "actions") == [{"notify": ["oncall"]}]
    assert (decision.causationid, decision.correlationid, decision.causaldepth) == (sent[2].id, "story", 1)


async def test_a_rule_takes_effect_at_once_and_leaves_the_others(house: House) -> None:
    """Adding, changing and removing one rule loses nothing of another's windows."""
    async with house.engine():
        await house.define("failing", **THREE)
        await house.emit("build.failed", {"repo": "hark"})
        await house.emit("build.failed", {"repo": "hark"})
        await house.define("other", on="x.y")
        await house.emit("x.y")
        await house.of_type("automation.triggered")
        await house.define("other", on="x.z")
        await house.define("failing", **THREE, do=[{"notify": "someone-else"}])
        await house.emit("x.y")
        await house.emit("build.failed", {"repo": "hark"})
        _, second = await house.of_type("automation.triggered", count=2)
        await house.remove("failing")
        await house.until(lambda e: e.type == "automation.adopted" and at(e, "definition") is None)
        for _ in range(3):
            await house.emit("build.failed", {"repo": "hark"})
        await house.define("end", on="the.end")
        await house.emit("the.end")
        fired = await house.of_type("automation.triggered", count=3)
    assert at(second, "automation.name") == "failing"
    assert at(second, "actions") == [{"notify": ["someone-else"]}]
    assert [at(e, "automation.name") for e in fired] == ["other", "failing", "end"]


async def test_only_events_that_a_rule_could_want_are_read(house: House) -> None:
    """What no rule listens to does not reach the engine, and does from the moment one does."""
    async with house.engine() as engine:
        await house.define("failing", on="build.failed")
        assert engine.fold is not None
        before = engine.fold.seq
        for _ in range(3):
            await house.emit("build.started")
        failed = await house.emit("build.failed")
        await house.of_type("automation.triggered")
        assert engine.fold.filters == (
            "hark.ev.automation.adopted",
            "hark.ev.automation.due",
            "hark.ev.build.failed",
        )
        assert before < engine.fold.seq
        await house.define("starting", on="build.started")
        started = await house.emit("build.started")
        _, second = await house.of_type("automation.triggered", count=2)
    assert at(second, "event.id") == started.id != failed.id


async def test_no_event_is_missed_while_rules_for_others_come(house: House) -> None:
    """Each new type that is listened to makes the engine read the log through other filters; it goes on where it was."""
    count, others = 200, 5
    async with house.engine():
        await house.define("all", on="tick", count=count, within="1h")

        async def emit_all() -> None:
            for n in range(count):
                await house.emit("tick", {"n": n})

        async with anyio.create_task_group() as tg:
            tg.start_soon(emit_all)
            for n in range(others):
                await house.define(f"other{n}", on=f"other.of-{n}")
        (decision,) = await house.of_type("automation.triggered")
    assert (at(decision, "automation.name"), at(decision, "count")) == ("all", count)


async def test_an_event_that_nests_too_deeply_stops_no_rule(house: House) -> None:
    """Published to the broker by others, it is no event to anybody; as deep as it may be, it stands in the decision."""

    def nested(levels: int) -> bytes:
        lists = b"[" * (levels - 1) + b"]" * (levels - 1)
        return b'{"id":"%d","source":"/x","type":"order.paid","data":%s}' % (levels, lists)

    async with house.engine() as engine:
        await house.define("each", on="order.paid", do=[{"notify": "oncall"}])
        for levels in (129, 253, 900, 128):
            await house.bus.publisher.publish_raw("hark.ev.order.paid", nested(levels), str(levels))
        with anyio.fail_after(60):
            while (found := await house.bus.log.last("hark.ev.automation.triggered")) is None:
                await anyio.lowlevel.checkpoint()
        decision = found.event
        assert engine.is_leader
    assert at(decision, "event.id") == "128"
    with pytest.raises(EventInvalid, match="128 levels"):
        await house.emit("order.paid", orjson.loads(nested(129))["data"])


async def test_a_definition_that_does_not_load_is_told_and_changes_nothing(house: House) -> None:
    """The live rule stays live; the status shows the fault."""
    async with house.engine() as engine:
        await house.define("r", on="a.b")
        await house.bus.bucket("automations").put("r", b'{"on": "a.b", "wehre": {}}')
        await house.define("other", on="c.d")
        await house.emit("a.b")
        await house.of_type("automation.triggered")
        errors = engine.status["errors"]
        assert isinstance(errors, dict)
        assert "did you mean 'where'" in str(errors["r"])


async def test_an_absence_fires_at_its_deadline_with_nothing_else_happening(house: House) -> None:
    """No event wakes the engine then: time alone does, and not too early."""
    async with house.engine():
        await house.define("gone", after="job.began", expect="job.ended", for_each="data.n", within="2s")
        first = await house.emit("job.began", {"n": 1})
        await house.emit("job.began", {"n": 2})
        await house.emit("job.ended", {"n": 2})
        (decision,) = await house.of_type("automation.triggered")
        recorded = next(r for r in await house.events("automation.triggered"))
    late_s = recorded.recorded_at.timestamp() - first.time.timestamp() - 2
    assert late_s >= 0
    assert (at(decision, "key"), at(decision, "kind"), at(decision, "event.id")) == ("1", "absence", first.id)


async def test_what_falls_due_at_one_moment_is_told_bit_by_bit(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that thousands hold up nobody and do not stand in memory at once; no checkpoint is of a part of them."""
    monkeypatch.setattr(engine_module, "_DUE_AT_ONCE", 3)
    monkeypatch.setattr(storing_module, "_MOST_UNSTORED", 5)
    take, begun = Storing._take, _Term._begun
    at_once, between = list[int](), list[bool]()

    def taken(self: Storing) -> tuple[list[Decision], int]:
        decisions, seq = take(self)
        at_once.append(len(decisions))
        return decisions, seq

    def begins(self: _Term) -> Any:
        between.append(self._is_between)
        return begun(self)

    monkeypatch.setattr(Storing, "_take", taken)
    monkeypatch.setattr(_Term, "_begun", begins)
    async with house.engine(AutomationsConfig(checkpoint_s=0.05, checkpoint_events=1)):
        await house.define("quiet", after="a.b", expect="a.c", for_each="data.n", within="300ms")
        await house.bus.log.append_many(
            [Event(type="a.b", source="/t", data={"n": f"{n:02}"}) for n in range(40)]
        )
        fired = await house.of_type("automation.triggered", count=40)
    assert sorted(at(e, "key") for e in fired) == [f"{n:02}" for n in range(40)]
    assert max(at_once) <= 5 + 3
    assert True not in between


class Ahead(SystemClock):
    """A clock that runs an hour ahead of the broker's."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)


async def test_a_clock_ahead_of_the_brokers_holds_up_no_deadline(house: House) -> None:
    """The broker's clock counts: who waits for it to reach a far deadline sees that a nearer one has come up."""
    async with RuleEngine(house.bus, CONFIG, Ahead()):
        await house.define("far", after="a.far", expect="a.end", within="30m")
        await house.define("near", after="a.near", expect="a.end", within="100ms")
        await house.emit("a.far")
        await house.of_type("automation.due")
        await house.emit("a.near")
        # It looks anew every half a minute in any case.
        (fired,) = await house.until(lambda e: e.type == "automation.triggered", timeout_s=20)
    assert at(fired, "automation.name") == "near"


async def test_a_deadline_that_passed_while_nobody_ran_fires_once(house: House) -> None:
    """After the restart it fires, unless what was expected is in the log before it."""
    async with house.engine():
        await house.define("gone", after="job.began", expect="job.ended", for_each="data.n", within="3s")
        await house.emit("job.began", {"n": "lost"})
        last = await house.emit("job.began", {"n": "found"})
        await house.define("marker", on="x.y")
    await house.emit("job.ended", {"n": "found"})
    # The deadline has to pass on the wall.
    await anyio.sleep(max(0.0, last.time.timestamp() + 3.05 - datetime.now(UTC).timestamp()))
    await house.emit("job.ended", {"n": "lost"})
    async with house.engine():
        await house.emit("x.y")
        decisions = await house.of_type("automation.triggered", count=2)
    assert [(at(d, "automation.name"), at(d, "key")) for d in decisions] == [("gone", "lost"), ("marker", "")]


@pytest.mark.parametrize("at_once", [True, False])
async def test_nothing_is_stored_again_before_the_log_was_looked_at(
    house: House, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """The broker took a decision, its answer was lost, and it does not answer the first look either: one append.

    So it is for one that was sent at once, and for those that are appended together.
    """
    asked: list[str] = []
    append, read, store_nowait = EventLog.append_many, EventLog.read, EventLog.store_nowait

    def sent(self: EventLog, messages: Sequence[Message], on_answers: Callable[..., None]) -> bool:
        def answered(answers: list[Arrival | None]) -> None:
            asked.append("append")
            on_answers([None for _ in answers])

        return at_once and store_nowait(self, messages, answered)

    async def append_many(self: EventLog, events: Sequence[Event]) -> list[Appended]:
        appended = await append(self, events)
        if any(event.type == "automation.triggered" for event in events):
            asked.append("append")
            raise BusUnavailable("the answer was lost")
        return appended

    @asynccontextmanager
    async def read_back(self: EventLog, *args: Any, **more: Any) -> AsyncIterator[Any]:
        if asked:
            asked.append("look")
            if len(asked) == 2:
                raise BusUnavailable("nor this")
        async with read(self, *args, **more) as batches:
            yield batches

    async with house.engine():
        await house.define("failing", on="build.failed")
        monkeypatch.setattr(EventLog, "append_many", append_many)
        monkeypatch.setattr(EventLog, "store_nowait", sent)
        monkeypatch.setattr(EventLog, "read", read_back)
        await house.emit("build.failed")
        with anyio.fail_after(60):
            while len(asked) < 3:
                await house.emit("build.started")
        monkeypatch.undo()
        await house.define("end", on="the.end")
        await house.emit("the.end")
        fired = await house.of_type("automation.triggered", count=2)
    assert asked == ["append", "look", "look"]
    assert [at(e, "automation.name") for e in fired] == ["failing", "end"]


async def test_decisions_go_on_while_the_answer_to_one_is_awaited(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decided behind it is in the log before; then its answer is lost, and each stands there once, in order."""
    monkeypatch.setattr(storing_module, "_FRESH_S", 60)
    store_nowait = EventLog.store_nowait
    lost: list[Callable[[], None]] = []

    def sent(self: EventLog, messages: Sequence[Message], on_answers: Callable[..., None]) -> bool:
        def answered(answers: list[Arrival | None]) -> None:
            lost.append(lambda: on_answers([None for _ in answers]))

        return store_nowait(self, messages, on_answers if lost else answered)

    async with house.engine():
        await house.define("failing", on="build.failed", for_each="data.n")
        monkeypatch.setattr(EventLog, "store_nowait", sent)
        for n in range(3):
            await house.emit("build.failed", {"n": n})
            await house.of_type("automation.triggered", count=n + 1)
            with anyio.fail_after(10):
                while not lost:
                    await anyio.lowlevel.checkpoint()
        monkeypatch.undo()
        lost[0]()
        await house.define("end", on="the.end")
        await house.emit("the.end")
        fired = await house.of_type("automation.triggered", count=4)
    assert [at(e, "key") for e in fired] == ["0", "1", "2", ""]


async def test_windows_survive_a_restart(house: House) -> None:
    """Two before, one after: three."""
    async with house.engine():
        await house.define("failing", **THREE)
        await house.emit("build.failed", {"repo": "hark"})
    await house.emit("build.failed", {"repo": "hark"})
    async with house.engine():
        await house.emit("build.failed", {"repo": "hark"})
        (decision,) = await house.of_type("automation.triggered")
    assert at(decision, "count") == 3


async def test_what_happened_while_nobody_ran_is_decided_by_the_rules_of_then(house: House) -> None:
    """Events of the downtime are folded with the rules in force before; rules changed meanwhile hold from now on."""
    async with house.engine():
        await house.define("r", on="a.b")
    await house.emit("a.b", {"n": 1})
    bucket = house.bus.bucket("automations")
    await bucket.put("s", b'{"on": "a.b"}')
    await bucket.delete("r")
    await house.emit("a.b", {"n": 2})
    async with house.engine():
        await house.emit("a.b", {"n": 3})
        decisions = await house.of_type("automation.triggered", count=3)
    assert [(at(d, "automation.name"), at(d, "event.data.n")) for d in decisions] == [
        ("r", 1),
        ("r", 2),
        ("s", 3),
    ]


@pytest.mark.parametrize(
    "config", [CONFIG, AutomationsConfig(checkpoint_events=1), AutomationsConfig(checkpoint_s=3600)]
)
async def test_engines_that_die_lose_and_double_no_decision(house: House, config: AutomationsConfig) -> None:
    """Killed over and over in the middle of events: each event is decided exactly once."""
    sent = 0

    async def life(first: bool) -> None:
        nonlocal sent
        async with RuleEngine(house.bus, config, lease_ttl_s=1) as engine:
            await engine.leading()
            if first:
                await house.define("each", on="a.b", budget="100000/m")
                await house.define("pairs", on="a.b", count=2, within="10m", budget="100000/m")
            for _ in range(20):
                await house.emit("a.b", {"n": sent})
                sent += 1
            await forget_checkpoints(bucket, last_of)

    bucket, last_of = house.bus.bucket("checkpoints"), list[bytes]()
    for n in range(4):
        await life(n == 0)
    async with RuleEngine(house.bus, config, lease_ttl_s=1) as last:
        await last.leading()
        await house.until(lambda e: e.type == "automation.triggered", count=120)
        await house.define("marker", on="the.end")
        await house.emit("the.end")
        await house.until(lambda e: at(e, "automation.name") == "marker")
        decided = await house.events("automation.triggered")
    each = [at(r.event, "event.data.n") for r in decided if at(r.event, "automation.name") == "each"]
    pairs = [at(r.event, "event.data.n") for r in decided if at(r.event, "automation.name") == "pairs"]
    assert each == list(range(80))
    assert pairs == list(range(1, 80, 2))
    assert max(Counter(r.event.id for r in decided).values()) == 1


async def forget_checkpoints(bucket: Bucket, kept: list[bytes]) -> None:
    """Put back the checkpoint of an earlier moment, as if the engine had died before it wrote any since.

    The guard of the engine's own writes is gone with it, so it cannot write a last one either.
    """
    entry = await bucket.get("automations.state")
    assert entry is not None
    kept.append(entry.value)
    await bucket.put("automations.state", kept[max(0, len(kept) - 2)])


class TestShortMemory:
    """With a broker that soon forgets the ids it has seen."""

    @pytest.fixture
    def bus_config(self) -> BusConfig:
        return BusConfig(dedup_window_s=0.1)

    async def test_decisions_are_not_doubled_when_the_broker_has_forgotten_their_ids(
        self, house: House, forgets: Callable[[], Awaitable[None]]
    ) -> None:
        """A successor that folds again from an old checkpoint finds in the log what has been decided."""
        bucket, kept = house.bus.bucket("checkpoints"), list[bytes]()
        for n in range(3):
            async with house.engine() as engine:
                await engine.leading()
                if n == 0:
                    await house.define("each", on="a.b")
                    kept.append((await bucket.get("automations.state") or pytest.fail("no checkpoint")).value)
                for i in range(5):
                    await house.emit("a.b", {"n": n * 5 + i})
                await house.until(lambda e: e.type == "automation.triggered", count=(n + 1) * 5)
                await bucket.put("automations.state", kept[0])
            await forgets()
        async with house.engine():
            await house.define("marker", on="the.end")
            await house.emit("the.end")
            await house.until(lambda e: at(e, "automation.name") == "marker")
        decided = [at(r.event, "event.data.n") for r in await house.events("automation.triggered")]
        assert decided == [*range(15), None]


async def test_a_standby_takes_over_where_the_leader_was(
    broker: EmbeddedBroker, bus: Bus, house: House
) -> None:
    """The leader loses its connection without a word; the other one carries its windows on."""
    async with (
        Bus(broker.address, BusConfig(), name="first") as other,
        RuleEngine(other, CONFIG, lease_ttl_s=3, name="first") as first,
    ):
        await first.leading()
        await house.define("failing", **THREE)
        await house.emit("build.failed", {"repo": "hark"})
        await house.emit("build.failed", {"repo": "hark"})
        async with RuleEngine(bus, CONFIG, lease_ttl_s=3, name="second") as second:
            assert not second.is_leader
            await bus.bucket("leases").delete("automations")
            with anyio.fail_after(60):
                await second.leading()
            await house.emit("build.failed", {"repo": "hark"})
            (decision,) = await house.of_type("automation.triggered")
            assert at(decision, "count") == 3


async def test_a_storm_is_held_back_by_the_budget(house: House) -> None:
    """A rule that emits what it reacts to stops by itself and says why."""
    async with house.all(AutomationsConfig(budget_per_minute=5)):
        await house.define("echo", on="a.b", do=[{"emit": "a.b"}])
        await house.emit("a.b")
        (stopped,) = await house.of_type("automation.suppressed")
        assert at(stopped, "reason") == "budget"
        assert len(await house.events("automation.triggered")) == 5
        (disabled,) = await house.events("automation.disabled")
        assert at(disabled.event, "automation.name") == "echo"
        assert at(disabled.event, "until") == at(stopped, "until")
        assert disabled.event.causationid == stopped.id


async def test_a_loop_of_rules_ends_at_the_causal_depth(house: House) -> None:
    """Eight rules deep and no further."""
    async with house.all():
        await house.define("ping", on="ping.sent", do=[{"emit": "pong.sent"}])
        await house.define("pong", on="pong.sent", do=[{"emit": "ping.sent"}])
        await house.emit("ping.sent")
        (stopped,) = await house.of_type("automation.suppressed")
        assert at(stopped, "reason") == "depth"
        assert len(await house.events("automation.triggered")) == 8


async def test_a_large_event_is_found_through_the_log_instead_of_copied(house: House) -> None:
    """The decision stays small, and the action still reads the whole event."""
    async with house.all():
        await house.define(
            "big", on="a.b", do=[{"emit": "c.d", "data": {"size": "{{ event.data.text | length }}"}}]
        )
        await house.emit("a.b", {"text": "x" * 600_000})
        (made,) = await house.of_type("c.d")
        (decision,) = await house.of_type("automation.triggered")
    assert at(made, "size") == 600_000
    assert at(decision, "event") is None
    assert len(decision.to_json()) < 10_000


async def test_a_decision_larger_than_the_broker_takes_loses_what_matters_least(house: House) -> None:
    """A key of half of what the broker takes stands in its decision twice: cut, and the action is carried out."""
    async with house.all():
        await house.define("big", on="a.b", for_each="data.k", do=[{"emit": "c.d"}])
        await house.emit("a.b", {"k": "x" * 600_000})
        await house.of_type("c.d")
        (decision,) = await house.of_type("automation.triggered")
    assert at(decision, "key") == "x" * 200 + "…"


def test_what_a_decision_loses_goes_in_order_until_it_fits() -> None:
    """The event it carries first; actions too large for any event become one that is said to be unreadable."""
    text = "x" * 5000
    data: JsonObject = {
        "event": {"t": text},
        "events": [{"id": text}, {"id": text}],
        "key": text,
        "actions": [{"log": text}],
    }
    whole = Event(type="automation.triggered", source="/test", id="d", data=data)
    assert within(whole, 100_000) is whole
    assert within(whole, 25_000).data == {k: v for k, v in data.items() if k != "event"}
    cut = {"events": [{"id": "x" * 200 + "…"}], "key": "x" * 200 + "…"}
    assert within(whole, 10_000).data == {**cut, "actions": [{"log": text}]}
    least = within(whole, 5_000)
    assert least.data == {**cut, "actions": [{"omitted_bytes": 5012}]}
    assert within(least, 100) is least, "who asks once more is told that there is nothing left"


async def test_another_log_begins_anew_with_the_same_rules(house: House) -> None:
    """A checkpoint of another log is not applied to this one."""
    async with house.engine():
        await house.define("r", on="a.b")
    bucket = house.bus.bucket("checkpoints")
    entry = await bucket.get("automations.state")
    assert entry is not None
    state = await house.bus.log.state()
    await bucket.put("automations.state", entry.value.replace(state.incarnation.encode(), b"HARK@elsewhere"))
    await house.emit("a.b", {"n": "unseen"})
    async with house.engine() as engine:
        await engine.leading()  # what came before is not of its log
        await house.emit("a.b", {"n": "seen"})
        (decision,) = await house.of_type("automation.triggered")
    assert at(decision, "event.data.n") == "seen"


@pytest.mark.parametrize("value", [b"", b"garbage", b'{"state": {"inline": "AAAA"}, "definitions": {}}'])
async def test_a_checkpoint_that_cannot_be_read_does_not_stop_the_engine(house: House, value: bytes) -> None:
    """It begins anew at the end of the log, and rules come from the bucket."""
    await house.bus.bucket("checkpoints").put("automations.state", value)
    await house.bus.bucket("automations").put("r", b'{"on": "a.b"}')
    async with house.engine():
        await house.emit("a.b")
        await house.of_type("automation.triggered")


async def test_many_rules_are_in_force_when_the_engine_is_ready(house: House) -> None:
    """Three hundred rules in the bucket, and the first event behind `entered` is matched."""
    bucket = house.bus.bucket("automations")
    async with anyio.create_task_group() as tg:
        for n in range(300):
            tg.start_soon(bucket.put, f"r{n}", b'{"on": "a.b", "where": {"data.n": %d}}' % n)
    async with house.engine() as engine:
        await house.emit("a.b", {"n": 299})
        (decision,) = await house.of_type("automation.triggered")
        assert engine.fold is not None
        assert len(engine.fold.automations) == 300
    assert at(decision, "automation.name") == "r299"
