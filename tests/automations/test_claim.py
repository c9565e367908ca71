"""Claims on actions: outages double nothing, deaths cost no try, and what kills every process is given up."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark.automations.acting import outbox
from hark.automations.acting.claim import BUCKET, Claim, Claims, Over
from hark.automations.acting.dead_letter import DeadLetters
from hark.automations.acting.in_hand import InHand
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.bucket import Bucket
from hark.bus.presence import Presence
from hark.bus.subject import RESTORED
from hark.clock import SYSTEM_CLOCK
from hark.config import BusConfig

from ..nursery import Children, nursery
from . import chaos_child
from .chaos_child import CONFIG, FRAIL
from .conftest import House, Receiver, at
from .test_outbox_crashes import decide


@pytest.fixture
def children(home: Path, broker: EmbeddedBroker) -> Iterator[Children]:
    """Starts outboxes in processes of their own; ended with the test."""
    with nursery(home, chaos_child.__file__) as running:
        yield running


async def taken(claims: Claims, key: str, *, at_most_s: float) -> Claim | Over:
    """Ask for a claim for as long as the answer is to ask again later."""
    while isinstance(found := await claims.take(key, 1, round=0, named=None), float):
        assert 0 < found <= at_most_s
        await anyio.sleep(found)
    return found


async def test_what_is_over_is_remembered_for_longer_than_its_decision_can_come_again(
    house: House, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again for those of its actions that wait: two days behind the last of these. A run waits by itself."""
    kept: dict[str, float | None] = {}
    update = Bucket.update

    async def noted(self: Bucket, key: str, value: bytes, **more: Any) -> int:
        kept[key] = more.get("ttl_s")
        return await update(self, key, value, **more)

    monkeypatch.setattr(Bucket, "update", noted)
    async with house.outbox():
        one = await decide(house, {"emit": "c.d"}, {"call": receiver.url, "delay": "6d"})
        two = await decide(house, {"emit": "c.d"}, {"run": "none", "delay": "90d", "retries": 0})
        await house.of_type("action.executed", count=2)
        await house.of_type("action.dead-lettered")
    days = 86_400.0
    assert (kept[f"{one.id}/0"], kept[f"{two.id}/0"]) == (8 * days, 2 * days)
    assert receiver.requests == []


class TestOutage:
    async def test_an_action_in_progress_is_nobody_elses_after_an_outage(
        self,
        house: House,
        broker: EmbeddedBroker,
        receiver: Receiver,
        bus_config: BusConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The broker hangs and is killed while a call waits, and then hands the decision to another outbox: one call."""
        asked, away = anyio.Event(), anyio.Event()
        holds, keep_alive = Presence.holds, InHand.keep_alive

        async def heard(self: Presence, name: str, what: str) -> bool | None:
            found = await holds(self, name, what)
            if found:
                asked.set()
            return found

        async def unless_away(self: InHand) -> None:
            # Else who comes back to the broker first and says at once that it is at it keeps the decision, and nothing is asked.
            if not away.is_set():
                await keep_alive(self)

        monkeypatch.setattr(Presence, "holds", heard)
        monkeypatch.setattr(InHand, "keep_alive", unless_away)
        # Who has one in hand asks for no more, so what is handed out again goes to the other.
        monkeypatch.setattr(outbox, "MAX_WAITING", 1)
        receiver.answers = [(-2, "")]
        await decide(house, {"call": receiver.url})
        async with AsyncExitStack() as stack:
            for name in ("one", "two"):
                own = House(await stack.enter_async_context(Bus(broker.address, bus_config, name=name)))
                await stack.enter_async_context(own.outbox(CONFIG, ack_wait_s=1))
            await receiver.wait(1)
            assert broker.pid is not None
            # Away for longer than the claim holds, so that the decision is due to be handed out when it is back.
            os.kill(broker.pid, signal.SIGSTOP)
            away.set()
            await anyio.sleep(1.2)
            os.kill(broker.pid, signal.SIGKILL)
            with anyio.fail_after(60):
                await asked.wait()
            receiver.go.set()
            (done,) = await house.of_type("action.executed")
        assert at(done, "attempt") == 1
        assert len(receiver.requests) == 1

    async def test_a_claim_whose_owner_is_silent_holds_until_it_could_have_connected_again(
        self, house: House, bus: Bus, broker: EmbeddedBroker
    ) -> None:
        """Right after the broker was away silence means nothing; after the time of a claim it means a death."""
        event = await decide(house, {"emit": "c.d"})
        gone = Claims(bus, SYSTEM_CLOCK, name="gone", holds_s=0.5)
        mine = Claims(bus, SYSTEM_CLOCK, name="mine", holds_s=0.5)
        key = f"{event.id}/0"
        assert isinstance(await gone.take(key, 1, round=0, named=None), Claim)
        again = anyio.Event()
        bus.connection.on_reconnect(again.set)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await again.wait()
        claim = await taken(mine, key, at_most_s=0.5)
        assert isinstance(claim, Claim)
        assert bus.connection.connected_s >= 0.5
        assert (claim.state.attempt, claim.state.deaths, claim.fresh) == (1, 0, False)

    async def test_a_claim_whose_owner_is_known_to_be_dead_is_taken_over_at_once(
        self, house: House, bus: Bus
    ) -> None:
        """As a death: if the action was being done, it counts."""
        event = await decide(house, {"emit": "c.d"})
        key = f"{event.id}/0"
        first = Claims(bus, SYSTEM_CLOCK, name="first", holds_s=600)
        second = Claims(bus, SYSTEM_CLOCK, name="second", holds_s=600, dead={"first"})
        third = Claims(bus, SYSTEM_CLOCK, name="third", holds_s=600, dead={"second"})
        assert isinstance(await first.take(key, 1, round=0, named=None), Claim)
        assert isinstance(await third.take(key, 1, round=0, named=None), float)
        claim = await second.take(key, 1, round=0, named=None)
        assert isinstance(claim, Claim)
        assert (claim.state.deaths, claim.state.suspect) == (0, True)
        assert await second.begin(key, claim) is not None
        claim = await third.take(key, 1, round=0, named=None)
        assert isinstance(claim, Claim)
        assert (claim.state.attempt, claim.state.deaths, claim.state.begun) == (1, 1, False)

    async def test_who_is_asked_says_what_it_has(self, bus: Bus) -> None:
        """Yes, no, or nothing at all."""
        presence = Presence(bus.connection)
        async with presence.answering("me", {"a/0"}.__contains__):
            assert await presence.holds("me", "a/0") is True
            assert await presence.holds("me", "b/0") is False
        assert await presence.holds("me", "a/0") is None


class TestDeaths:
    async def test_deaths_before_an_action_was_begun_cost_it_nothing(
        self, house: House, receiver: Receiver, children: Children
    ) -> None:
        """Killed again and again between the claim and the call, more often than deaths are allowed: done, at its first try."""
        event = await decide(house, {"call": receiver.url})
        key = f"{event.id}/0"
        bucket = house.bus.bucket("outbox")
        for n in range(2):
            children.start("stillborn")
            await children.death("stillborn")
            entry = await bucket.get(key)
            assert entry is not None, f"{n}: {children.told}"
        # As many again without waiting for as many processes.
        for n in range(2 * CONFIG.action_deaths):
            claims = Claims(house.bus, SYSTEM_CLOCK, name=f"dead-{n}", holds_s=0.01)
            assert isinstance(await claims.take(key, 1, round=0, named=None), Claim)
        children.start("outbox")
        (done,) = await house.of_type("action.executed", "action.dead-lettered")
        assert (done.type, at(done, "attempt"), at(done, "deaths")) == ("action.executed", 1, None)
        assert len(receiver.requests) == 1

    async def test_an_action_that_kills_every_process_is_given_up_and_takes_no_other_with_it(
        self, house: House, receiver: Receiver, children: Children
    ) -> None:
        """The poison ends as a dead letter that says why; what was being done beside it each time is done."""
        receiver.answers = [(-2, "")] * 100
        await decide(house, {"call": f"{receiver.url}/poison"}, rule="poison")
        for n in range(2):
            await decide(house, {"call": receiver.url}, rule=f"other-{n}")
        deaths = 0
        with anyio.fail_after(60):
            while deaths <= FRAIL.action_deaths:
                children.start("poisoned")
                await children.death("poisoned")
                deaths += 1
                if deaths == 3:
                    receiver.go.set()
            children.start("poisoned")
            (dead,) = await house.of_type("action.dead-lettered")
            done = await house.of_type("action.executed", count=2)
        assert at(dead, "automation") == "poison"
        assert at(dead, "deaths") == FRAIL.action_deaths
        assert "processes, one after the other, died or were killed while they did this action" in at(
            dead, "error"
        )
        assert {at(e, "attempt") for e in done} == {1}
        (letter,) = await DeadLetters(house.bus).list()
        assert letter.automation == "poison"
        assert Counter(r.path for r in receiver.requests).keys() == {"/"}

    async def test_a_redriven_poison_has_all_its_deaths_again_and_is_counted_from_the_first(
        self, house: House
    ) -> None:
        """Redriving forgets the deaths, but not that the action is suspect."""
        event = await decide(house, {"emit": "c.d"})
        key = f"{event.id}/0"
        names = (f"dead-{n}" for n in range(99))

        async def die() -> int | None:
            claims = Claims(house.bus, SYSTEM_CLOCK, name=next(names), holds_s=0.01)
            claim = await taken(claims, key, at_most_s=0.01)
            assert isinstance(claim, Claim)
            assert await claims.begin(key, claim) is not None
            return claim.state.deaths

        # Of the first nobody knows whether it had begun.
        assert [await die() for _ in range(8)] == [0, 0, 1, 2, 3, 4, 5, 6]

    async def test_what_is_over_is_over_for_everybody(self, house: House) -> None:
        """A claim on what has been done tells how it ended."""
        event = await decide(house, {"emit": "c.d"})
        async with house.outbox():
            await house.of_type("action.executed")
        found = await Claims(house.bus, SYSTEM_CLOCK, name="late", holds_s=1).take(
            f"{event.id}/0", 1, round=0, named=None
        )
        assert isinstance(found, Over)
        assert found.state is not None
        assert found.state.outcome is not None
        assert Event.from_dict(found.state.outcome).type == "action.executed"

    async def test_what_comes_again_is_looked_up_before_it_is_claimed(
        self, bus: Bus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is written for what waits; what nobody has noted anything of is claimed all the same."""
        claims = Claims(bus, SYSTEM_CLOCK, name="one", holds_s=6)
        claim = await claims.take("d/0", 1, round=0, named=None, again=True)
        assert isinstance(claim, Claim)
        assert claim.fresh
        later = replace(claim.state, state="waiting", next_at=SYSTEM_CLOCK.now() + timedelta(seconds=60))
        await bus.bucket(BUCKET).update("d/0", later.to_json(), revision=claim.revision)
        monkeypatch.delattr(Bucket, "create")
        wait_s = await claims.take("d/0", 1, round=0, named=None, again=True)
        assert isinstance(wait_s, float)
        assert 30 < wait_s <= 60

    async def test_what_was_done_before_a_backup_is_not_done_again_after_it(self, house: House) -> None:
        """The copy of what became of actions is older than that of the log, which says more; what it does not say is open."""
        done, begun, open_ = [await decide(house, {"emit": "c.d"}) for _ in range(3)]
        dead = Claims(house.bus, SYSTEM_CLOCK, name="dead", holds_s=0.01)
        assert isinstance(await dead.take(f"{begun.id}/0", 2, round=0, named=None), Claim)
        for event in (done, begun):
            key = f"{event.id}/0"
            await house.bus.log.append(Event(type="action.executed", source="/t", data={"key": key}))
        await house.bus.log.append(Event(type=RESTORED, source="/t"))
        claims = Claims(house.bus, SYSTEM_CLOCK, name="new", holds_s=0.01)
        assert isinstance(await claims.take(f"{done.id}/0", 1, round=0, named=None), Over)
        assert isinstance(await claims.take(f"{begun.id}/0", 2, round=0, named=None), Over)
        assert isinstance(await claims.take(f"{open_.id}/0", 3, round=0, named=None), Claim)
        # Noted, so that the log is not asked again.
        found = await Claims(house.bus, SYSTEM_CLOCK, name="x", holds_s=1).take(
            f"{done.id}/0", 1, round=0, named=None
        )
        assert isinstance(found, Over)
        assert found.state is not None
