"""Rules on a real broker: how fast the log becomes decisions, how fast it is tried again, starting with many keys, and
adding a rule to many.

*The live path*: events that stand in the log are fetched, matched against 1 000 rules, and what is decided is stored.
The goals are for a machine that parses such events at 600 000/s, with a core of its own: what this one does is measured
in the same run, and goals are scaled by it. Rates are per second of CPU time of this process, with wall time beside.

Run: ``python -m benchmarks.live [events]``
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import uvloop
from hark.automations.analysis.backtest import backtest_log
from hark.automations.folding.checkpoint import Checkpoints
from hark.automations.folding.engine import RuleEngine
from hark.automations.folding.fold import Fold, FoldConfig
from hark.automations.model import Automation, parse_automation
from hark.bus import Bus, EmbeddedBroker, Event
from hark.config import AutomationsConfig, BusConfig

from benchmarks.goal import Goals
from benchmarks.rules import REFERENCE_PARSE, make_events, make_rules
from benchmarks.running import quantile

EVENTS = 100_000
RULES = 1_000
KEYS = 1_000_000
GOAL_LIVE = 20_000
GOAL_BACKTEST = 100_000
ROUNDS = 3
GOAL_RESTART_S = 5.0
MANY_RULES, ADDED = 10_000, 40
GOAL_ADDED_MS = 100
CONFIG = AutomationsConfig(budget_per_minute=10**9)
DECIDED = ("hark.ev.automation.triggered", "hark.ev.automation.suppressed")


def rules(count: int = RULES) -> list[Automation]:
    """Return the rules of ``benchmarks.rules``, as definitions."""
    return [
        parse_automation({"on": types, "where": where}, name=f"r{n}")
        for n, (types, where) in enumerate(make_rules(count))
    ]


async def fill(bus: Bus, count: int) -> None:
    """Put run events of 930 bytes into the log."""
    raw = make_events(5_000)
    for begin in range(0, count, 5_000):
        part = [Event.from_json(r) for r in raw[: count - begin]]
        await bus.log.append_many([e.replace(id=f"{e.id}-{begin}") for e in part])


async def reading(bus: Bus, *, after: int) -> float:
    """Return how many records of the log are read per second by somebody who only counts them."""
    began, count = time.perf_counter(), 0
    async with bus.log.read(after=after) as batches:
        async for batch in batches:
            count += len(batch.records)
    return count / (time.perf_counter() - began)


def parsing() -> float:
    """Return how many such events this machine parses per second, of those the goals speak of (at most 1)."""
    raw = make_events(5_000)
    best = 0.0
    for _ in range(5):
        began = time.process_time()
        for one in raw:
            orjson.loads(one)
        best = max(best, len(raw) / (time.process_time() - began))
    print(f"orjson.loads alone: {best:,.0f} events/s, of the {REFERENCE_PARSE:,} that the goals suppose")
    return min(1.0, best / REFERENCE_PARSE)


async def live_path(bus: Bus, count: int, scale: float, goals: Goals) -> None:
    """Print how fast a rule engine catches up with ``count`` events."""
    bucket = bus.bucket("automations")
    for automation in rules():
        await bucket.put(automation.name, automation.dumps())
    async with RuleEngine(bus, CONFIG) as engine:
        await engine.leading()
    before = await bus.log.head()
    await fill(bus, count)
    head = await bus.log.head()
    read = await reading(bus, after=before)
    began, cpu = time.perf_counter(), time.process_time()
    async with RuleEngine(bus, CONFIG) as engine:
        await engine.leading()  # that is: caught up
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert engine.fold is not None
        assert len(engine.fold.automations) == RULES
        assert engine.fold.seq >= head
    decided = 0
    async with bus.log.read(DECIDED, after=head) as batches:
        async for batch in batches:
            decided += len(batch.records)
    verdict = goals.at_least("live path", count / cpu, GOAL_LIVE * scale)
    print(
        f"live path, {RULES:,} rules: {count / cpu:,.0f} events per CPU second, {count / took:,.0f}/s by the clock,"
        f" {decided:,} decisions stored; reading alone {read:,.0f}/s by the clock   {verdict}"
    )


async def backtests(bus: Bus, count: int, scale: float, goals: Goals) -> None:
    """Print how fast a rule is tried on the live log, in the best of a few rounds."""
    now = datetime.now(UTC)
    where = {"data.run.attempt": ">= 2"}
    for name, on in (("one type", "flow-run.failed"), ("all types", "flow-run.*")):
        rule = {"on": on, "where": where, "for_each": "data.flow.name", "count": 3, "within": "6h"}
        rounds = []
        for _ in range(ROUNDS):
            began, cpu = time.perf_counter(), time.process_time()
            made = await backtest_log(
                bus, [parse_automation(rule, name="r")], since=now - timedelta(days=1), now=now
            )
            rounds.append((time.process_time() - cpu, time.perf_counter() - began))
        cpu, took = min(rounds)
        # Of one type the broker sends that type alone: the others are passed over all the same.
        verdict = goals.at_least(f"backtest of the log, {name}", count / cpu, GOAL_BACKTEST * scale)
        print(
            f"backtest of the log, {name}: {count / cpu:,.0f} events per CPU second, {count / took:,.0f}/s by the"
            f" clock, {made.events:,} looked at, {made.rules['r'].fired:,} firings   {verdict}"
        )


async def restart(bus: Bus, goals: Goals) -> None:
    """Print how long a rule engine takes to be ready with a million keys, and how long it makes events wait after."""
    name = "late"
    bucket = bus.bucket("automations")
    for key in await bucket.keys():
        await bucket.delete(key)
    rule = parse_automation(
        {"on": "order.late", "for_each": "data.key", "count": 3, "within": "1d"}, name=name
    )
    revision = await bucket.put(name, rule.dumps())
    await bus.bucket("checkpoints").delete("automations.state")
    fold = Fold(FoldConfig())
    fold.adopt(rule, revision=revision)
    now = time.time()
    for n in range(KEYS):
        row = {"type": "order.late", "id": f"0199aaaa-{n:08x}", "data": {"key": f"key-{n}"}}
        fold.step(row, seq=n + 1, recorded=now - 1)
    state = await bus.log.state()
    fold.seq = state.last_seq
    checkpoints = Checkpoints(bus, FoldConfig())
    await checkpoints.take_over()
    snapshot = fold.snapshot()

    async def parts() -> AsyncIterator[bytes]:
        while not snapshot.is_done:
            part = snapshot.take(1.0)
            if part is not None:
                yield part

    await checkpoints.write(
        generation=fold.generation,
        definitions=fold.dump_definitions(),
        state=parts(),
        incarnation=state.incarnation,
    )
    del fold
    began, cpu = time.perf_counter(), time.process_time()
    async with RuleEngine(bus, AutomationsConfig(checkpoint_s=1.0)) as engine:
        await engine.leading()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert engine.fold is not None
        kept = engine.fold.keys()
        verdict = goals.below("restart", min(took, cpu), GOAL_RESTART_S, " s")
        print(f"restart with {kept:,} keys: ready in {took:.1f} s, {cpu:.1f} s of CPU   {verdict}")
        waits, saves = await _waits(bus, engine, name)
    print(
        f"looks at the loop while {saves} checkpoints of them are taken: p50 {quantile(waits, 0.5) * 1000:.1f} ms,"
        f" p99 {quantile(waits, 0.99) * 1000:.1f} ms, longest {max(waits) * 1000:.0f} ms"
    )
    assert kept == KEYS, kept


async def adding(bus: Bus, goals: Goals) -> None:
    """Print how long a new rule takes to be in force beside many, while events come that it and others match."""
    counting = parse_automation(
        {"on": "order.late", "for_each": "data.key", "count": 3, "within": "1d"}, name="late"
    )
    bucket = bus.bucket("automations")
    for automation in [*rules(MANY_RULES), counting]:
        await bucket.put(automation.name, automation.dumps())
    raw = make_events(ADDED * 10)
    async with RuleEngine(bus, CONFIG) as engine:
        await engine.leading()
        fold = engine.fold
        assert fold is not None
        late = await bus.log.append(Event(type="order.late", source="/bench", data={"key": "k"}))
        took, spent = list[float](), list[float]()
        for n in range(ADDED):
            await bus.log.append_many([Event.from_json(r) for r in raw[n * 10 : n * 10 + 10]])
            where = {"data.host": f"host-{n}", "data.duration": "> 5"}
            added = parse_automation({"on": "flow-run.*" if n % 2 else ">", "where": where}, name=f"added{n}")
            began, cpu = time.perf_counter(), time.process_time()
            revision = await bucket.put(added.name, added.dumps())
            for _ in range(10_000):
                if fold.revision_of(added.name) >= revision:
                    break
                await asyncio.sleep(0.0005)
            took.append((time.perf_counter() - began) * 1000)
            spent.append((time.process_time() - cpu) * 1000)
            await asyncio.sleep(0.05)
        assert fold.seq > late.seq
        assert fold.window("late", "k") == 1, "the others keep their state"
    longest = max(took)
    print(
        f"adding a rule to {MANY_RULES:,}: in force after {quantile(took, 0.5):.1f} ms in the middle, {longest:.0f} ms at"
        f" most ({max(spent):.0f} ms of CPU)   {goals.below('adding a rule', longest, GOAL_ADDED_MS, ' ms')}"
    )


async def _waits(bus: Bus, engine: RuleEngine, name: str) -> tuple[list[float], int]:
    """Return how late the loop got round to somebody who asked for a millisecond, and how many checkpoints it wrote."""
    late: list[float] = []
    bucket = bus.bucket("checkpoints")
    entry = await bucket.get("automations.state")
    assert entry is not None
    turn, saves, n = orjson.loads(entry.value)["turn"], 0, 0
    until = time.perf_counter() + 20
    while saves < 2 and time.perf_counter() < until:
        for _ in range(200):
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)
            if n % 10 == 0:
                await bus.log.append(
                    Event(type="order.late", source="/bench", data={"key": f"key-{n * 7919 % KEYS}"})
                )
            n += 1
        entry = await bucket.get("automations.state")
        if entry is not None and (now := orjson.loads(entry.value)["turn"]) > turn:
            saves, turn = saves + 1, now
    return late, saves


@asynccontextmanager
async def fresh() -> AsyncIterator[Bus]:
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as home:
        async with EmbeddedBroker(Path(home), BusConfig()) as broker, Bus(broker.address, BusConfig()) as bus:
            yield bus


async def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    scale, goals = parsing(), Goals()
    async with fresh() as bus:
        await live_path(bus, count, scale, goals)
        await backtests(bus, count, scale, goals)
    async with fresh() as bus:
        await restart(bus, goals)
    async with fresh() as bus:
        await adding(bus, goals)
    return goals.code


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
