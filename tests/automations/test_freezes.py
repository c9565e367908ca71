"""Rule engines and outboxes stand still for longer than their lease, and come back believing that they have it."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import anyio
import pytest
from hark.automations.model import parse_automation
from hark.bus import Bus, EmbeddedBroker, Event

from ..nursery import nursery
from . import chaos_child
from .conftest import Receiver
from .test_chaos import _key, _of, _settled, _stored, rules

FREEZES = int(os.environ.get("CHAOS_FREEZES", "1"))
"""How often one of them stands still; `make chaos` asks for more."""
SEED = int(os.environ.get("CHAOS_SEED", "1"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120 + 20 * FREEZES)]


async def test_who_stood_still_for_longer_than_its_lease_doubles_nothing(
    broker: EmbeddedBroker, bus: Bus, home: Path, receiver: Receiver
) -> None:
    """Of two engines and two outboxes, one pair of which is one process, one is stopped, and let go on while its successor is
    at work: every decision of an uninterrupted fold is in the log once, no other is, and each action was done and noted once."""
    rng = random.Random(SEED)

    async def some(word: str) -> None:
        for i in range(rng.randrange(1, 5)):
            data = {"k": rng.choice("pqrs"), "n": f"{word}-{i}"}
            await _stored(bus, Event(type=rng.choice(["a.x", "a.y"]), source="/test", data=dict(data)))

    for name, definition in rules(receiver.url).items():
        await bus.bucket("automations").put(name, parse_automation(definition, name=name).dumps())
    with nursery(home, chaos_child.__file__) as one, nursery(home, chaos_child.__file__) as two:
        one.start("engine")
        one.start("outbox")
        two.start("service")
        async with bus.log.follow(["hark.ev.automation.adopted"], after=0) as batches:
            adopted = 0
            async for batch in batches:
                adopted += len(batch.records)
                if adopted == len(rules("")):
                    break
        for n in range(FREEZES):
            pair, part = rng.choice([(one, "engine"), (one, "outbox"), (two, "service"), (two, "service")])
            await some(f"{n}-before")
            await anyio.sleep(rng.random() * 0.1)
            with pair.frozen(part):
                await some(f"{n}-meanwhile")
                # The lease is of a second, and an action of half of one.
                await anyio.sleep(0.5 + 2 * rng.random())
        expected, stored = await _settled(bus)
    assert stored == dict.fromkeys(expected, 1)
    assert [e.data for e in await _of(bus, "action.dead-lettered")] == []
    keys = Counter(r.headers["idempotency-key"] for r in receiver.requests)
    assert len(keys) == sum(expected.values())
    executed = Counter(_key(e) for e in await _of(bus, "action.executed"))
    assert executed == dict.fromkeys(keys, 1)
    bodies = {(r.headers["idempotency-key"], r.body) for r in receiver.requests}
    assert len(bodies) == len(keys), "a repeat is the same request"
