"""How fast events go into the log and come out of it, against the broker's raw rate measured in the same run.

*Raw* is the fast-ingest rate of nats-py's own client: ``Client.publish`` of a 300-byte payload made beforehand, in a
loop, into one fast-ingest batch, no message ids. The *ceiling* is what the broker takes when the sender costs nothing:
the same frames made beforehand and written straight to the socket; with message ids the broker itself is slower, which
is the price of "stored exactly once" and the bound for everything below it.

Goals: ``emit`` as user code calls it, from async code on the session's own loop and from a thread beside it, with one
barrier at the end, reaches 40 % of raw; the publisher, given encoded payloads with ids, 70 %; reading 100 000/s on a
machine that is quiet. Kinds take turns, and each round gives a ratio of its own to the raw rate of that round: the
median is what counts. Beside it stands the CPU time of an event in this process and in the broker. One stream, uvloop.

Run: ``python -m benchmarks.bus [events]``
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import orjson
import psutil
import uvloop
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.arrival import Arrival, subscribe, unsubscribe
from hark.bus.connection import Connection
from hark.bus.emit import emit
from hark.bus.publisher import Publisher
from hark.bus.session import use_session
from hark.config import BusConfig
from hark.vocabulary import JsonObject
from nats.aio.client import Client

EVENTS = 20_000
PAYLOAD = b'{"x":"' + b"x" * 292 + b'"}'
FLOW = 500
ROUNDS = 7
GOAL_PUBLISHER = 0.70
GOAL_EMIT = 0.40
GOAL_READ = 100_000
AT_ONCE = 8_000  # given and not stored yet, in code that looks after itself


async def ceiling(connection: Connection, count: int, *, ids: str = "") -> float:
    """Return the seconds the broker takes for ``count`` messages in one fast-ingest batch, sender free of charge."""
    nc: Client = connection.nc
    inbox = nc.new_inbox()
    frames = []
    for n in range(1, count + 1):
        reply = f"{inbox}.raw.{FLOW}.fail.{n}.{0 if n == 1 else 1}.$FI"
        if ids:
            head = f"NATS/1.0\r\nNats-Msg-Id: {ids}{n}\r\n\r\n"
            line = f"HPUB hark.ev.raw {reply} {len(head)} {len(head) + len(PAYLOAD)}\r\n{head}"
        else:
            line = f"PUB hark.ev.raw {reply} {len(PAYLOAD)}\r\n"
        frames.append(line.encode() + PAYLOAD + b"\r\n")
    end = f"PUB hark.ev.raw {inbox}.raw.{FLOW}.fail.{count + 1}.3.$FI 0\r\n\r\n".encode()
    chunks = [b"".join(frames[1:][i : i + FLOW]) for i in range(0, count - 1, FLOW)]
    transport = nc._transport
    assert transport is not None
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    written = 0

    def on_answer(msg: Arrival) -> None:
        nonlocal written
        answer = orjson.loads(msg.data)
        if answer.get("type") == "ack":
            limit = (answer["seq"] + 3 * answer["msgs"]) // FLOW
            while written < min(limit, len(chunks)):
                transport.write(chunks[written])
                written += 1
                if written == len(chunks):
                    transport.write(end)
        elif not done.done():
            done.set_result(int(answer.get("count", -1)))

    subscription = await subscribe(nc, f"{inbox}.>", on_answer)
    await nc.flush()
    began = time.perf_counter()
    transport.write(frames[0])
    stored = await done
    took = time.perf_counter() - began
    await unsubscribe(subscription)
    assert stored == count, stored
    return took


async def raw_fast_ingest(connection: Connection, count: int) -> float:
    """Return the seconds nats-py's own client takes for ``count`` messages in one fast-ingest batch."""
    nc: Client = connection.nc
    inbox = nc.new_inbox()
    stored = limit = 0
    moved, done = asyncio.Event(), asyncio.Event()

    def on_answer(msg: Arrival) -> None:
        nonlocal limit, stored
        answer = orjson.loads(msg.data)
        if answer.get("type") == "ack":
            limit = answer["seq"] + 3 * answer["msgs"]
            moved.set()
        else:
            stored = int(answer.get("count", -1))
            done.set()

    subscription = await subscribe(nc, f"{inbox}.>", on_answer)
    await nc.flush()
    publish = nc.publish
    began = time.perf_counter()
    await publish("hark.ev.raw", PAYLOAD, reply=f"{inbox}.raw.{FLOW}.fail.1.0.$FI")
    for n in range(2, count + 1):
        while n > limit:
            moved.clear()
            await moved.wait()
        await publish("hark.ev.raw", PAYLOAD, reply=f"{inbox}.raw.{FLOW}.fail.{n}.1.$FI")
    await publish("hark.ev.raw", b"", reply=f"{inbox}.raw.{FLOW}.fail.{count + 1}.3.$FI")
    await done.wait()
    took = time.perf_counter() - began
    await unsubscribe(subscription)
    assert stored == count, stored
    return took


async def js_publish(bus: Bus, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        await bus.connection.js.publish("hark.ev.js", PAYLOAD)
    return time.perf_counter() - began


async def publish_payloads(connection: Connection, count: int, *, fast: bool, prefix: str) -> float:
    """Return the seconds our publisher takes for encoded payloads, barrier included."""
    async with Publisher(connection, BusConfig(), fast=fast) as publisher:
        await publisher.barrier()
        give, most = publisher.publish_raw_nowait, 40_000
        began = time.perf_counter()
        for n in range(count):
            give("hark.ev.pub", PAYLOAD, f"{prefix}{n}")
            if n % 100 == 0:
                await asyncio.sleep(0)  # what gives events has a loop of its own to run
                if publisher.waiting > most:
                    await publisher.barrier()
        await publisher.barrier()
        return time.perf_counter() - began


def data(n: int) -> JsonObject:
    """Return the data of an event that is about 300 bytes in the log."""
    return {"order": n, "amount": 12.5, "note": "x" * 90}


async def emit_async(bus: Bus, count: int) -> float:
    """Return the seconds for ``emit`` on the session's own loop, barrier included."""
    publisher = bus.publisher
    with use_session(bus):
        began = time.perf_counter()
        for n in range(count):
            emit("order.paid", subject="order/42", data=data(n))
            if n % 100 == 0:
                await asyncio.sleep(0)
                if publisher.waiting > AT_ONCE:
                    await publisher.barrier()
        await publisher.barrier()
        return time.perf_counter() - began


async def emit_sync(bus: Bus, count: int) -> float:
    """Return the seconds for ``emit`` in a thread, the session's loop in another, barrier included."""
    with use_session(bus) as session:

        def run() -> float:
            began = time.perf_counter()
            for n in range(count):
                emit("order.paid", subject="order/42", data=data(n))
            session.call(session.bus.publisher.barrier)
            return time.perf_counter() - began

        return await asyncio.to_thread(run)


async def guarded(bus: Bus, count: int, *, at_once: int, prefix: str) -> float:
    """Return the seconds for guarded appends, ``at_once`` of them under way."""
    numbers = iter(range(count))

    async def work() -> None:
        for n in numbers:
            event = Event(type="flow-run.scheduled", source="/bench", subject=f"flow-run/{prefix}{n}")
            await bus.log.append(event, after=0)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.perf_counter() - began


async def read(bus: Bus, most: int) -> float:
    """Return the seconds for reading ``most`` records."""
    count, began = 0, time.perf_counter()
    async with bus.log.read() as batches:
        async for batch in batches:
            count += len(batch.records)
            if count >= most:
                break
    return (time.perf_counter() - began) * most / count


async def shared(bus: Bus, most: int) -> float:
    count, began = 0, time.perf_counter()
    async with bus.log.consume("bench", deliver_after=0) as consumer:
        while count < most:
            for item in await consumer.fetch(500):
                await item.ack()
                count += 1
    return time.perf_counter() - began


async def worked(bus: Bus, count: int) -> tuple[float, float]:
    """Return the seconds for pushing work, and for taking and acknowledging it, 32 pieces in hand."""
    began = time.perf_counter()
    numbers = iter(range(count))

    async def push() -> None:
        for n in numbers:
            await bus.work.push("bench", "default", b"{}", msg_id=str(n))

    await asyncio.gather(*(push() for _ in range(64)))
    pushed = time.perf_counter() - began
    began = time.perf_counter()
    async with bus.work.consume("bench", ["default"], max_pending=32) as consumer:

        async def take(left: list[None]) -> None:
            while left:
                left.pop()
                item = await anext(consumer)
                await item.ack()

        left: list[None] = [None] * count
        await asyncio.gather(*(take(left) for _ in range(32)))
    return pushed, time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one kind took: seconds on the clock, and of CPU here and in the broker."""

    took_s: float
    own_s: float
    broker_s: float


async def interleaved(bus: Bus, broker: EmbeddedBroker, count: int) -> dict[str, list[Round]]:
    """Return the rounds of each kind. They take turns, so that a busy machine is busy for all of them."""
    kinds: dict[str, Callable[[Connection, int], Awaitable[float]]] = {
        "raw": lambda connection, _: raw_fast_ingest(connection, count),
        "ceiling": lambda connection, _: ceiling(connection, count),
        "ceiling with ids": lambda connection, n: ceiling(connection, count, ids=f"raw{n}/"),
        "payloads": lambda connection, n: publish_payloads(connection, count, fast=True, prefix=f"f{n}/"),
        "emit, async": lambda _, __: emit_async(bus, count),
        "emit, sync": lambda _, __: emit_sync(bus, count),
        "read": lambda _, __: read(bus, count),
    }
    rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
    assert broker.pid is not None
    server = psutil.Process(broker.pid)
    for n in range(ROUNDS + 1):
        for kind, run in kinds.items():
            async with Connection(broker.address, bus.config, name=kind) as connection:
                own, its = time.process_time(), sum(server.cpu_times()[:2])
                took = await run(connection, n)
                used = time.process_time() - own, sum(server.cpu_times()[:2]) - its
            if n:  # the first warms up
                rounds[kind].append(Round(took, *used))
    return rounds


def told(name: str, kind: str, rounds: dict[str, list[Round]], count: int, goal: float | None = None) -> bool:
    """Print one kind: its median rate, the median of its rounds' ratios to raw, CPU of an event; whether the goal is met."""
    mine, raw = rounds[kind], rounds["raw"]
    rate = count / median([one.took_s for one in mine])
    share = median([r.took_s / one.took_s for one, r in zip(mine, raw, strict=True)])
    own, its = (median([getattr(one, of) for one in mine]) / count * 1e6 for of in ("own_s", "broker_s"))
    met = goal is None or share >= goal
    verdict = "" if goal is None else f"   goal {goal:.0%}: {'met' if met else 'MISSED'}"
    print(
        f"{name:<40} {rate:>9,.0f}/s {share:>6.0%} of raw   CPU {own:4.1f} + {its:4.1f} us{verdict}",
        flush=True,
    )
    return met


def line(name: str, rate: float) -> None:
    print(f"{name:<40} {rate:>9,.0f}/s", flush=True)


async def measure(count: int) -> bool:
    config = BusConfig()
    met = True
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as home:
        async with EmbeddedBroker(Path(home), config) as broker, Bus(broker.address, config) as bus:
            rounds = await interleaved(bus, broker, count)
            print(f"{ROUNDS} rounds of {count:,} events, medians; CPU of an event: this process + the broker")
            told("raw: fast ingest by nats-py publish", "raw", rounds, count)
            told("ceiling of the broker, sender free", "ceiling", rounds, count)
            told("ceiling with message ids", "ceiling with ids", rounds, count)
            met &= told("publisher, encoded payloads", "payloads", rounds, count, GOAL_PUBLISHER)
            met &= told("emit in async code", "emit, async", rounds, count, GOAL_EMIT)
            met &= told("emit in a thread", "emit, sync", rounds, count, GOAL_EMIT)
            told(f"read (goal {GOAL_READ:,}/s, quiet machine)", "read", rounds, count)
            line("publisher without fast ingest",
                 count / await publish_payloads(bus.connection, count, fast=False, prefix="p/"))  # fmt: skip
            line("js.publish, one at a time", 2000 / await js_publish(bus, 2000))
            line("guarded append, one at a time", 2000 / await guarded(bus, 2000, at_once=1, prefix="one-"))
            line(
                "guarded append, 256 at once",
                10_000 / await guarded(bus, 10_000, at_once=256, prefix="many-"),
            )
            line("durable consumer, fetched and acked", 30_000 / await shared(bus, 30_000))
            pushed, taken = await worked(bus, 5000)
            line("work pushed, 64 at once", 5000 / pushed)
            line("work taken and acked, 32 in hand", 5000 / taken)
    return met


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    return 0 if uvloop.run(measure(count)) else 1


if __name__ == "__main__":
    sys.exit(main())
