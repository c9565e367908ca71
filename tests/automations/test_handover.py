"""Decisions that the rule engine hands over to the outbox of its own process, and what becomes of promises nobody keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from hark.automations.acting.claim import BUCKET
from hark.automations.acting.in_hand import InHand
from hark.automations.acting.outbox import DURABLE, Outbox
from hark.automations.folding import storing as storing_module
from hark.automations.folding.decision import Decision
from hark.automations.folding.forebears import FILE, Forebears
from hark.automations.folding.handover import Handover, Promises
from hark.automations.folding.storing import Storing
from hark.automations.forms.form import EventRef
from hark.bus import Bucket, Event
from hark.bus.consumer import Consumer, Item
from hark.bus.log import EventLog
from hark.bus.presence import Presence
from hark.errors import BusUnavailable, StreamFull

from .conftest import CONFIG, House, Receiver, at
from .test_outbox import Slow, consumer_state
from .test_outbox_crashes import decide


@asynccontextmanager
async def settled(house: House) -> AsyncIterator[None]:
    """Wait at the end until the broker has heard of every decision what became of it."""
    yield
    with anyio.fail_after(30):
        while (state := await consumer_state(house))["num_ack_pending"] or state["num_pending"]:
            await anyio.lowlevel.checkpoint()


async def test_a_decision_names_the_outbox_that_carries_it_out_at_once(
    house: House, receiver: Receiver
) -> None:
    """No claim is written: the one note about each action is that it is done. The delivered decisions are settled."""
    handover = Handover()
    async with (
        house.outbox(ack_wait_s=60, handover=handover),  # a busy machine may take long
        house.engine(handover=handover),
        settled(house),
    ):
        await house.define("tell", on="a.b", do=[{"call": f"{receiver.url}/x"}, {"emit": "c.d"}])
        for n in range(20):
            await house.emit("a.b", {"n": n})
        done = await house.of_type("action.executed", count=40)
        decisions = await house.of_type("automation.triggered", count=20)
        assert len({at(d, "claimed_by") for d in decisions}) == 1
        assert at(decisions[0], "claimed_by")
        entries = await house.bus.bucket(BUCKET).entries()
    assert len(receiver.requests) == 20
    assert {e.key for e in entries} == {at(d, "key") for d in done}
    assert [e.revision for e in sorted(entries, key=lambda e: e.revision)] == list(range(1, 41))


async def test_an_engine_without_an_outbox_beside_it_promises_nothing(house: House) -> None:
    """In processes apart a decision is whoever's it is delivered to."""
    async with house.engine(), house.outbox(), settled(house):
        await house.define("tell", on="a.b", do=[{"emit": "c.d"}])
        await house.emit("a.b")
        await house.of_type("c.d")
        (decision,) = await house.of_type("automation.triggered")
    assert at(decision, "claimed_by") is None


async def test_a_promise_whose_turn_came_late_is_no_claim(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have stood still for so long that others have the decision: its actions are claimed first."""
    monkeypatch.setattr(Promises, "is_claim", lambda self, decision: False)
    async with house.all(), settled(house):
        await house.define("tell", on="a.b", do=[{"emit": "c.d"}])
        await house.emit("a.b")
        await house.of_type("action.executed")
        (decision,) = await house.of_type("automation.triggered")
        assert at(decision, "claimed_by")
        (noted,) = await house.bus.bucket(BUCKET).entries()
    assert noted.revision == 2
    assert len(await house.events("c.d")) == 1


async def test_a_decision_that_was_handed_over_takes_one_place(house: House) -> None:
    """Promised, it holds a place; begun, it has that one and no other. As many are taken as are carried out at once."""
    data: Any = {"automation": {"name": "r", "version": "v"}, "actions": []}
    async with house.outbox() as outbox:
        for n in range(CONFIG.action_concurrency):
            assert outbox.promise(f"d{n}") is not None
            outbox.take(Event(type="automation.triggered", source="/t", id=f"d{n}", data=data), n + 1)
        assert outbox.in_hand == CONFIG.action_concurrency
        assert outbox.promise("one-more") is None


async def test_what_a_dead_outbox_had_promised_is_done_by_another(house: House) -> None:
    """It does not answer for as long as a claim holds: taken over, once, and as the same try."""
    async with house.outbox(ack_wait_s=0.5), settled(house):
        decision = await decide(house, {"emit": "c.d"}, claimed_by="dead")
        (done,) = await house.of_type("action.executed")
    assert (at(done, "firing"), at(done, "attempt")) == (decision.id, 1)
    assert len(await house.events("c.d")) == 1


async def test_what_an_outbox_that_was_replaced_had_promised_is_done_at_once(house: House) -> None:
    """Its process knows that it is no more, and waits for no answer."""
    handover = Handover()
    async with house.outbox(handover=handover) as first:
        name = first.promise("d")
    async with house.outbox(ack_wait_s=600, handover=handover), settled(house):
        await decide(house, {"emit": "c.d"}, id="d", claimed_by=name)
        await house.of_type("action.executed")
    assert len(await house.events("c.d")) == 1


async def test_what_an_outbox_of_a_dead_holder_of_the_home_had_promised_is_done_at_once(
    house: House, tmp_path: Path
) -> None:
    """Holder after holder notes the names of its outboxes before they claim anything; that one has died counts as a death.

    What the broker had delivered to it is taken back, too.
    """
    names = []
    for _ in range(2):  # as if each were killed: nobody takes its name out again
        async with house.outbox(handover=Handover(Forebears(tmp_path))) as killed:
            names.append(killed.promise("d"))
    assert (tmp_path / FILE).read_text().split() == names
    async with house.bus.log.consume(DURABLE, ["hark.ev.automation.triggered"], ack_wait_s=600) as theirs:
        await decide(house, {"emit": "c.e"}, id="e")
        await theirs.fetch(1)
    async with house.outbox(ack_wait_s=600, handover=Handover(Forebears(tmp_path))), settled(house):
        await decide(house, {"emit": "c.d"}, id="d", claimed_by=names[0])
        done = await house.of_type("action.executed", count=2)
    assert [at(one, "attempt") for one in done] == [1, 1]
    assert (len(await house.events("c.d")), len(await house.events("c.e"))) == (1, 1)
    unwritable = Forebears(tmp_path / FILE)
    await unwritable.enter("e")
    assert "e" not in unwritable


async def test_what_a_living_outbox_has_promised_is_left_to_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gets the decision delivered meanwhile asks the one it names, and does nothing."""
    asked = anyio.Event()
    holds = Presence.holds

    async def heard(self: Presence, name: str, what: str) -> bool | None:
        found = await holds(self, name, what)
        if found:
            asked.set()
        return found

    monkeypatch.setattr(Presence, "holds", heard)

    class Deaf(Outbox):
        async def _fetch(self, consumer: Consumer, tg: TaskGroup, scope: anyio.CancelScope) -> None:
            with scope:
                async for item in consumer:
                    await item.nak()

    slow, handover = Slow(), Handover()
    async with (
        house.engine(handover=handover),
        Deaf(house.bus, slow, CONFIG, ack_wait_s=0.5, handover=handover),
        house.outbox(ack_wait_s=0.5),
    ):
        await house.define("tell", on="a.b", do=[{"emit": "c.d"}])
        await house.emit("a.b")
        await slow.begun_one.wait()
        await asked.wait()
        slow.may_end.set()
        (done,) = await house.of_type("action.executed")
    assert slow.ended == [at(done, "key")]
    assert await house.events("c.d") == []


async def test_a_promise_claims_no_decision_that_names_another(house: House) -> None:
    """Two rule engines made it, each with an outbox beside it: that of the one whose decision was stored does it."""
    asked = anyio.Event()

    def has(key: str) -> bool:
        asked.set()
        return True

    async with (
        Presence(house.bus.connection).answering("other", has),
        house.outbox(ack_wait_s=60) as running,
    ):
        assert running.promise("twice")
        await decide(house, {"emit": "c.d"}, id="twice", claimed_by="other")
        with anyio.fail_after(30):
            await asked.wait()
        assert await house.events("c.d") == []


async def test_one_question_that_is_not_answered_takes_no_action_over(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outbox that a decision names was busy for a second. Another has the decision from the first moment on."""
    answers: list[bool | None] = [None, True, None]
    asked_all = anyio.Event()

    async def holds(self: Presence, name: str, what: str) -> bool | None:
        if answers:
            return answers.pop(0)
        asked_all.set()
        return None

    monkeypatch.setattr(Presence, "holds", holds)
    monkeypatch.setattr(type(house.bus.connection), "connected_s", 3600.0)
    async with house.outbox(ack_wait_s=0.5):
        await decide(house, {"emit": "c.d"}, claimed_by="busy")
        (done,) = await house.of_type("action.executed")
    assert asked_all.is_set(), "done before the silence was as long as a claim holds"
    assert at(done, "attempt") == 1


async def test_promises_are_taken_back_when_decisions_cannot_be_made(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker goes away while one of several is written: nobody is left saying that it has the others."""

    class Taker:
        def __init__(self) -> None:
            self.held: list[str] = []
            self.released: list[str] = []

        def promise(self, decision: str) -> str:
            self.held.append(decision)
            return "me"

        def take(self, decision: Event, seq: int) -> None:
            raise AssertionError

        def release(self, decision: str) -> None:
            self.released.append(decision)

    async def away(self: EventLog, seq: int) -> None:
        raise BusUnavailable("away")

    monkeypatch.setattr(EventLog, "get", away)
    taker, handover = Taker(), Handover()
    handover.enter(taker)
    refs = (EventRef("e", 1, 0.0),)
    one, two = (
        Decision(id, "triggered", "r", "1", "", (), 1, 0.0, 0.0, refs, row, 0, actions=({"emit": "c.d"},))
        for id, row in (("one", {"id": "e"}), ("two", None))
    )
    with pytest.raises(BusUnavailable):
        await Storing(house.bus, handover, after=0)._written_in_turns([one, two])
    assert taker.held == taker.released == ["one"]
    assert handover.promise("three")
    handover.leave(taker)
    assert taker.released == ["one", "three"]


async def test_what_is_written_while_a_decision_before_it_fails_is_stored_behind_that(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker refuses one; what took longer to write is not sent past it. And who has ended takes nothing more."""
    store_nowait, get = EventLog.store_nowait, EventLog.get
    refused: list[Any] = []

    def refuse_first(self: EventLog, messages: Any, on_answers: Any) -> bool:
        refused.append(on_answers)
        monkeypatch.setattr(EventLog, "store_nowait", store_nowait)
        return True

    async def looked_up(self: EventLog, seq: int) -> Any:
        refused[0]([None])
        return await get(self, seq)

    def decided(id: str, row: dict[str, Any] | None) -> Decision:
        return Decision(id, "triggered", "r", "1", "", (), 1, 0.0, 0.0, (EventRef("e", 1, 0.0),), row, 0)

    monkeypatch.setattr(EventLog, "store_nowait", refuse_first)
    monkeypatch.setattr(EventLog, "get", looked_up)
    monkeypatch.setattr(storing_module, "_FRESH_S", 60)
    storing = Storing(house.bus, Handover(), after=0)
    async with anyio.create_task_group() as tg:
        tg.start_soon(storing.run)
        storing.add([decided("one", {"id": "e"})], seq=1)
        storing.add([decided("two", None)], seq=2)
        await storing.reached(2)
        tg.cancel_scope.cancel()
    storing.add([decided("three", {"id": "e"})], seq=3)
    assert [r.event.id for r in await house.events("automation.triggered")] == ["one", "two"]


async def test_another_decision_in_the_place_of_one_that_was_done_is_begun(house: House) -> None:
    """A broker lost its latest events in a power cut, and their places are given anew."""
    in_hand = InHand()
    for seq, name in ((1, "lost"), (2, "four")):
        assert in_hand.hand_over(seq, name)
        await in_hand.settle(seq, None)
        in_hand.drop(seq)
    await decide(house, id="three")
    await decide(house, id="four")
    begun: list[str] = []
    async with house.bus.log.consume("probe", ["hark.ev.automation.triggered"], deliver_after=0) as consumer:
        for item in await _fetched(consumer, 2):
            if await in_hand.deliver(item):
                begun.append(item.recorded.event.id)
                in_hand.drop(item.recorded.seq)
    assert begun == ["three"]


async def _fetched(consumer: Consumer, count: int) -> list[Item]:
    found: list[Item] = []
    while len(found) < count:
        found += await consumer.fetch(count)
    return found


async def test_nothing_more_is_promised_while_nothing_can_be_noted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket is full: what has been done is noted later, and nothing more is begun before."""
    update = Bucket.update
    full, has_room = anyio.Event(), anyio.Event()

    async def refuse(self: Bucket, key: str, value: bytes, **more: Any) -> int:
        if self.name == BUCKET and not has_room.is_set():  # and not the checkpoints of the engine
            full.set()
            raise StreamFull(key, why="maximum bytes exceeded")
        return await update(self, key, value, **more)

    handover = Handover()
    async with house.outbox(handover=handover) as running, house.engine(handover=handover), settled(house):
        await house.define("tell", on="a.b", do=[{"emit": "c.d"}])
        monkeypatch.setattr(Bucket, "update", refuse)
        await house.emit("a.b")
        await full.wait()
        assert running.promise("another") is None
        has_room.set()
        await house.of_type("action.executed")
        assert running.promise("another")
        running.release("another")
