"""Rule engine, outbox and broker are killed at random, over and over: what was decided is what an unbroken fold decides."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.model import parse_automation
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus import broker as broker_module
from hark.bus.event import readable
from hark.errors import BusUnavailable
from hark.vocabulary import JsonObject

from ..nursery import nursery
from . import chaos_child
from .chaos_child import CONFIG
from .conftest import Receiver

KILLS = int(os.environ.get("CHAOS_KILLS", "5"))
"""Iterations of the history, with a kill in each; `make chaos` asks for 1 000."""
SEED = int(os.environ.get("CHAOS_SEED", "1"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60 + 20 * KILLS)]

PARTS = ("engine", "outbox", "service")
"""The last one is an engine and an outbox in one process, which hands its decisions over."""
DECISIONS = ("automation.triggered", "automation.suppressed", "automation.resolved")


def rules(url: str) -> dict[str, dict[str, Any]]:
    """Return rules of every kind that keeps something between events, each calling the receiver."""
    call = [{"call": f"{url}/first"}, {"call": f"{url}/second"}]
    return {
        "each": {"on": "a.x", "do": call},
        "three": {"on": "a.*", "for_each": "data.k", "count": 3, "within": "1h", "do": call[:1]},
        "cool": {"on": "a.y", "for_each": "data.k", "cooldown": "1s", "do": call[:1]},
        "gone": {"after": "a.x", "expect": "a.y", "for_each": "data.k", "within": "300ms", "do": call[:1]},
        "seq": {
            "sequence": [{"as": "one", "on": "a.x"}, {"on": "a.y", "where": {"data.k": "{{ one.data.k }}"}}],
            "within": "1h",
            "do": call[:1],
        },
        "open": {"on": "a.y", "for_each": "data.k", "resolve": {"on": "a.x"}, "on_resolve": call[:1]},
    }


async def test_random_kills_change_no_decision_and_double_no_action(
    broker: EmbeddedBroker, bus: Bus, home: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every decision of an uninterrupted fold over the same log is in it once, no other is, and each action was done."""
    # A broker that dies again and again within seconds is given up; here that is nobody's fault but ours.
    monkeypatch.setattr(broker_module, "_STEADY_S", 0.0)
    rng = random.Random(SEED)
    for name, definition in rules(receiver.url).items():
        automation = parse_automation(definition, name=name)
        await bus.bucket("automations").put(name, automation.dumps())
    with nursery(home, chaos_child.__file__) as running:
        for part in PARTS:
            running.start(part)
        async with bus.log.follow(["hark.ev.automation.adopted"], after=0) as batches:
            adopted = 0
            async for batch in batches:
                adopted += len(batch.records)
                if adopted == len(rules("")):
                    break
        for n in range(KILLS):
            for i in range(rng.randrange(1, 6)):
                data: JsonObject = {"k": rng.choice("pqrs"), "n": f"{n}-{i}"}
                await _stored(bus, Event(type=rng.choice(["a.x", "a.y"]), source="/test", data=data))
            await _something_happens(bus, rng.choice(["automation.triggered", "action.executed"]))
            await anyio.sleep(rng.random() * 0.05)
            victim = rng.choice([*PARTS, "broker"])
            if victim == "broker":
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGKILL)
            else:
                running.kill(victim)
                running.start(victim)
        expected, stored = await _settled(bus)
    assert stored == dict.fromkeys(expected, 1), running.told
    assert [e.data for e in await _of(bus, "action.dead-lettered")] == []
    keys = Counter(r.headers["idempotency-key"] for r in receiver.requests)
    assert len(keys) == sum(expected.values())
    executed = Counter(_key(e) for e in await _of(bus, "action.executed"))
    assert executed == dict.fromkeys(keys, 1)
    bodies = {(r.headers["idempotency-key"], r.body) for r in receiver.requests}
    assert len(bodies) == len(keys), "a repeat is the same request"


async def _stored(bus: Bus, event: Event) -> None:
    """Send an event until it is stored, as whoever is told that it was not would do: a busy machine starts brokers slowly."""
    with anyio.fail_after(60):
        while True:
            try:
                await bus.log.append(event)
            except BusUnavailable:
                continue
            return


async def _something_happens(bus: Bus, type_: str) -> None:
    """Wait until an event of a type is stored, for half a second at most: not everything makes something happen."""
    with anyio.move_on_after(0.5):
        async with bus.log.follow([f"hark.ev.{type_}"]) as batches:
            async for batch in batches:
                if batch.records:
                    return


async def _settled(bus: Bus) -> tuple[dict[str, int], Counter[str]]:
    """Return how many actions each decision of an unbroken fold has, and how often each decision is in the log.

    Waits until no deadline is open and everything that fold has decided is stored and done, or nothing has come for a
    minute.
    """
    fold = Fold(FoldConfig(allowed_lateness_s=CONFIG.allowed_lateness_s, budget=CONFIG.budget_per_minute))
    expected: dict[str, int] = {}
    stored: Counter[str] = Counter()
    done = 0
    async with bus.log.follow(after=0) as batches:
        with anyio.move_on_after(60) as patience:
            async for batch in batches:
                for r in batch.records:
                    for d in fold.step_raw(r.raw, seq=r.seq, recorded=r.recorded_at.timestamp()):
                        expected[d.id] = len(d.actions)
                for e in (r.event for r in readable(batch.records)):
                    if e.type in DECISIONS:
                        stored[e.id] += 1
                    done += e.type == "action.executed"
                if (
                    batch.pending == 0
                    and fold.next_deadline() is None
                    and len(stored) >= len(expected)
                    and done >= sum(expected.values())
                ):
                    break
                if batch.records:
                    patience.deadline = anyio.current_time() + 60
    return expected, stored


def _key(event: Event) -> str:
    assert isinstance(event.data, dict)
    return str(event.data["key"])


async def _of(bus: Bus, *types: str) -> list[Event]:
    async with bus.log.read([f"hark.ev.{t}" for t in types]) as batches:
        return [r.event async for b in batches for r in readable(b.records)]
