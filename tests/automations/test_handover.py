"""Decisions that the rule engine hands over to the outbox of its own process, and what becomes of promises nobody keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from hark.automations.claim import BUCKET
from hark.automations.handover import Handover, Promises
from hark.automations.outbox import Outbox
from hark.bus.consumer import Consumer
from hark.bus.presence import Presence

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


async def test_what_a_dead_outbox_had_promised_is_done_by_another(house: House) -> None:
    """It does not answer for as long as a claim holds: taken over, once, and as the same try."""
    async with house.outbox(ack_wait_s=0.5), settled(house):
        decision = await decide(house, {"emit": "c.d"}, claimed_by="dead")
        (done,) = await house.of_type("action.executed")
    assert (at(done, "firing"), at(done, "attempt")) == (decision.id, 1)
    assert len(await house.events("c.d")) == 1


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
