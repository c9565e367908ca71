"""What the outbox does when processes die, brokers go away and decisions make no sense: nothing twice, nothing unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import Any

import anyio
import orjson
import pytest
from hark.automations.acting import outbox
from hark.automations.acting.dead_letter import DeadLetters
from hark.automations.acting.outbox import Doer, Outbox
from hark.automations.acting.perform import Firing, Performers
from hark.bus import Bus, Event, LateValues
from hark.config import BusConfig
from hark.errors import BusUnavailable, RefusedError
from hark.vocabulary import JsonObject, new_id

from .conftest import CONFIG, House, Receiver, at

Forgets = Callable[[], Awaitable[None]]


async def decide(house: House, *actions: Any, rule: str = "tell", id: str = "", **more: Any) -> Event:
    """Store a decision as the rule engine does, with ``more`` in its data."""
    event = Event(
        type="automation.triggered", source="/hark/automations", subject=f"automation/{rule}", causaldepth=1,
        id=id or new_id(),
        data={
            "automation": {"name": rule, "version": "1"}, "kind": "count", "key": "", "keys": [], "count": 1,
            "suppressed": 0, "events": [], "actions": list(actions),
            "event": {"id": "e", "type": "a.b", "source": "/test", "specversion": "1.0"}, **more,
        },
    )  # fmt: skip
    await house.bus.log.append(event)
    return event


class Deed:
    """Does what it is told to do for an action, and keeps which were done."""

    def __init__(self, then: Callable[[Firing], Awaitable[JsonObject]]) -> None:
        self._then = then
        self.done: list[str] = []

    async def perform(self, action: object, firing: Firing, *, key: str) -> JsonObject:
        self.done.append(key)
        return await self._then(firing)

    async def context(self, firing: Firing, action: object) -> dict[str, Any]:
        return {}

    def redact(self, text: str) -> str:
        return text


class Dies:
    """Does actions for real, and never comes back to say so."""

    def __init__(self, real: Doer) -> None:
        self._real = real
        self.did = anyio.Event()
        self.context, self.redact = real.context, real.redact

    async def perform(self, action: Any, firing: Firing, *, key: str) -> JsonObject:
        await self._real.perform(action, firing, key=key)
        self.did.set()
        await anyio.sleep_forever()
        raise AssertionError


@asynccontextmanager
async def performers(house: House) -> AsyncIterator[Performers]:
    late = LateValues(house.bus, house.secrets, environ={})
    async with Performers(house.bus, house.control, late, CONFIG, notifier=lambda: house.people) as running:
        yield running


class TestShortMemory:
    """With a broker that soon forgets the ids it has seen."""

    @pytest.fixture
    def bus_config(self) -> BusConfig:
        return BusConfig(dedup_window_s=0.1)

    @pytest.mark.parametrize(
        ("action", "made"),
        [
            ({"emit": "c.d"}, "c.d"),
            ({"notify": "routes", "title": "trouble"}, "notification.raised"),
        ],
        ids=["emit", "alert"],
    )
    async def test_what_was_stored_before_a_crash_is_not_stored_again_long_after_it(
        self, house: House, forgets: Forgets, monkeypatch: pytest.MonkeyPatch, action: JsonObject, made: str
    ) -> None:
        """Done, not noted, the process killed, taken up when the broker has forgotten the id: still one event."""
        monkeypatch.setattr(outbox, "_GRACE_S", 0.0)
        await decide(house, action)
        async with performers(house) as real:
            dies = Dies(real)
            async with Outbox(house.bus, dies, CONFIG, ack_wait_s=1):
                await dies.did.wait()
        await forgets()
        async with house.outbox(ack_wait_s=1):
            (done,) = await house.of_type("action.executed")
        assert at(done, "attempt") == 1
        assert len(await house.events(made)) == 1

    @pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("step", [1, 2])
    async def test_a_drop_that_is_cut_short_is_in_the_log_or_can_be_done_again(
        self,
        house: House,
        receiver: Receiver,
        forgets: Forgets,
        monkeypatch: pytest.MonkeyPatch,
        written: bool,
        step: int,
    ) -> None:
        """Killed on either side of each write to the bucket, then again: `action.dropped` once, and no dead letter."""
        receiver.answers = [(410, "")]
        await decide(house, {"call": receiver.url})
        async with house.outbox():
            await house.of_type("action.dead-lettered")
        letters = DeadLetters(house.bus)
        (letter,) = await letters.list()
        update = letters._bucket.update
        steps = 0

        async def cut(key: str, value: bytes, **more: Any) -> int:
            nonlocal steps
            steps += 1
            if steps < step or written:
                revision = await update(key, value, **more)
                if steps < step:
                    return revision
            raise BusUnavailable("the process ends here")

        with monkeypatch.context() as patch:
            patch.setattr(letters._bucket, "update", cut)
            with pytest.raises(BusUnavailable):
                await letters.drop(letter.key)
        assert len(await house.events("action.dropped")) == step - 1
        again = DeadLetters(house.bus)
        if await again.list():
            await forgets()
            await again.drop(letter.key)
        assert await again.list() == []
        assert len(await house.events("action.dropped")) == 1


async def test_a_drop_that_comes_while_somebody_redrives_is_refused_and_said_nowhere(
    house: House, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log never says `action.dropped` of an action that is then carried out."""
    receiver.answers = [(410, "")]
    await decide(house, {"call": receiver.url})
    letters, other = DeadLetters(house.bus), DeadLetters(house.bus)
    update = letters._bucket.update

    async def late(key: str, value: bytes, **more: Any) -> int:
        monkeypatch.undo()  # others use the same bucket
        await other.redrive(key)
        await house.of_type("action.executed")
        return await update(key, value, **more)

    async with house.outbox():
        await house.of_type("action.dead-lettered")
        (letter,) = await letters.list()
        monkeypatch.setattr(letters._bucket, "update", late)
        with pytest.raises(RefusedError, match="at this moment"):
            await letters.drop(letter.key)
    assert await house.events("action.dropped") == []
    assert len(receiver.requests) == 2


async def test_what_else_is_in_the_bucket_does_not_hide_dead_letters(
    house: House, receiver: Receiver
) -> None:
    """Marks of sent messages, held ones, and an entry that nobody can read."""
    receiver.answers = [(410, "")]
    await decide(house, {"call": receiver.url})
    async with house.outbox():
        await house.of_type("action.dead-lettered")
    bucket = house.bus.bucket("outbox")
    for key, value in (("notify.abc.0", b""), ("held.a.abc", b"gAAAA"), ("abc/0", b"nonsense")):
        await bucket.put(key, value)
    assert len(await DeadLetters(house.bus).list()) == 1


class TestBrokerAway:
    """With a client that soon stops waiting for the broker."""

    @pytest.fixture
    def bus_config(self) -> BusConfig:
        return BusConfig(request_timeout_s=1.5)

    @pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
    async def test_an_outcome_is_insisted_on_while_the_broker_is_away(
        self,
        house: House,
        frozen: Callable[[], AbstractContextManager[None]],
        hears: Callable[[str, str], anyio.Event],
        fails: bool,
    ) -> None:
        """The broker hangs right after the action: who has done it notes it later, and does not do it again."""
        waits = [
            hears("hark.automations.acting.outcome", "outbox.waits_to_note"),
            hears("hark.automations.acting.outbox", "outbox.waits_for_broker"),
        ]
        with ExitStack() as ice:

            async def freeze(firing: Firing) -> JsonObject:
                if len(deed.done) == 1:
                    ice.enter_context(frozen())
                    if fails:
                        raise ValueError("it broke")
                return {}

            deed = Deed(freeze)
            await decide(house, {"emit": "c.d", "retries": 0})
            async with Outbox(house.bus, deed, CONFIG):
                async with anyio.create_task_group() as tg:

                    async def first(heard: anyio.Event) -> None:
                        await heard.wait()
                        tg.cancel_scope.cancel()

                    for heard in waits:
                        tg.start_soon(first, heard)
                ice.close()
                last = "action.dead-lettered" if fails else "action.executed"
                (ended,) = await house.of_type(last)
                await decide(house, {"emit": "c.d"}, rule="other")
                await house.until(lambda e: e.type == "action.executed" and at(e, "automation") == "other")
        assert at(ended, "attempt") == 1
        assert set(Counter(deed.done).values()) == {1}
        assert len(await house.events("action.executed", "action.dead-lettered")) == 2


async def test_a_decision_made_before_the_very_first_outbox_is_acted_on(house: House) -> None:
    """The rule engine may be quicker than the outbox on the first start."""
    decision = await decide(house, {"emit": "c.d"})
    async with house.outbox():
        (done,) = await house.of_type("action.executed")
    assert at(done, "firing") == decision.id


async def test_an_action_that_cannot_be_claimed_becomes_a_dead_letter_and_its_siblings_are_done(
    house: House,
) -> None:
    """What is noted of it makes no sense: said with the error, kept to be redriven; the sibling is not disturbed."""
    decision = await decide(house, {"emit": "c.d"}, {"emit": "e.f"})
    key = f"{decision.id}/0"
    await house.bus.bucket("outbox").put(key, b"nonsense")
    begun, may_end = anyio.Event(), anyio.Event()

    async def slowly(firing: Firing) -> JsonObject:
        begun.set()
        await may_end.wait()
        return {}

    deed = Deed(slowly)
    async with Outbox(house.bus, deed, CONFIG):
        await begun.wait()
        (dead,) = await house.of_type("action.dead-lettered")
        may_end.set()
        (done,) = await house.of_type("action.executed")
        assert (at(dead, "key"), at(dead, "kind"), at(dead, "automation")) == (key, "emit", "tell")
        assert "JSONDecodeError" in at(dead, "error")
        assert (at(done, "index"), at(done, "attempt")) == (1, 1)
        letters = DeadLetters(house.bus)
        (letter,) = await letters.list()
        assert letter.key == key
        await letters.redrive(key)
        await house.of_type("action.executed", count=2)
    assert deed.done == [f"{decision.id}/1", key]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"not json", "not JSON"),
        (orjson.dumps({
            "specversion": "1.0", "id": "d1", "source": "/x", "type": "automation.triggered", "data": {"actions": 7},
        }), "the actions of a decision are a list"),
    ],
    ids=["no-event", "no-actions"],
)  # fmt: skip
async def test_a_decision_that_cannot_be_read_is_said_in_the_log(
    house: House, bus: Bus, raw: bytes, words: str
) -> None:
    """Nobody has to look into a process's own log to learn that something was not done; and the next one is done."""
    await bus.publisher.publish_raw("hark.ev.automation.triggered", raw, "raw")
    await bus.publisher.barrier()
    async with house.outbox():
        await decide(house, {"emit": "c.d"})
        ended: list[Event] = []
        async with bus.log.follow(["hark.ev.action.>"], after=0) as batches:
            async for batch in batches:
                ended += [r.event for r in batch.records]
                if len(ended) >= 2:
                    break
    (dead,) = [e for e in ended if e.type == "action.dead-lettered"]
    assert [e.type for e in ended if e is not dead] == ["action.executed"]
    assert words.lower() in at(dead, "error").lower()


async def test_a_result_too_large_for_an_event_does_not_hide_that_the_action_was_done(house: House) -> None:
    """The outcome says how large it was instead."""

    async def much(firing: Firing) -> JsonObject:
        return {"text": "x" * 2_000_000}

    await decide(house, {"emit": "c.d"})
    async with Outbox(house.bus, Deed(much), CONFIG):
        (done,) = await house.of_type("action.executed")
    assert at(done, "result.omitted_bytes") > 2_000_000


async def test_the_places_of_rules_are_forgotten_with_their_actions(house: House) -> None:
    """A thousand rules that fired once are a thousand rules, and not a thousand limits."""
    async with house.outbox() as running:
        for n in range(5):
            await decide(house, {"emit": "c.d"}, {"emit": "c.e"}, rule=f"r{n}")
        await house.of_type("action.executed", count=10)
        assert running._places._shares == {}
