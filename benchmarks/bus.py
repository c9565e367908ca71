"""How fast events go into the log and come out of it, against the broker's raw rate measured in the same run.

*Raw* is the fast-ingest rate of nats-py's own client: ``Client.publish`` of a 300-byte payload in a loop, into one
fast-ingest batch, no message ids. The *ceiling* is what the broker takes when the sender costs nothing: the same frames
made beforehand and written straight to the socket; with message ids the broker itself is about half as fast, which is
the price of "stored exactly once" and the bound for the publisher. Goals: the publisher, given encoded 300-byte
payloads with ids, reaches 70 % of raw; making and publishing ``Event`` objects 40 %. All on one stream, uvloop.

Run: ``python -m benchmarks.bus [events]``
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import uvloop
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.arrival import Arrival, subscribe, unsubscribe
from hark.bus.connection import Connection
from hark.bus.publisher import Publisher
from hark.config import BusConfig
from nats.aio.client import Client

EVENTS = 50_000
PAYLOAD = b'{"x":"' + b"x" * 292 + b'"}'
FLOW = 500
ROUNDS = 3
GOAL_PUBLISHER = 0.70
GOAL_EVENTS = 0.40


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


async def publish_events(bus: Bus, count: int) -> float:
    """Return the seconds for making and publishing ``Event`` objects, barrier included."""
    began = time.perf_counter()
    for n in range(count):
        event = Event(
            type="order.paid", source="/bench", subject="order/42", data={"n": n, "text": "x" * 100}
        )
        await bus.publisher.publish(event)
        if n % 100 == 0:
            await asyncio.sleep(0)
    await bus.publisher.barrier()
    return time.perf_counter() - began


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


async def read(bus: Bus) -> tuple[int, float]:
    count, began = 0, time.perf_counter()
    async with bus.log.read() as batches:
        async for batch in batches:
            count += len(batch.records)
    return count, time.perf_counter() - began


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


async def interleaved(bus: Bus, broker: EmbeddedBroker, count: int) -> dict[str, float]:
    """Return the best rates of publishing. They take turns, so that a busy machine is busy for all of them."""
    kinds: dict[str, Callable[[Connection, int], Awaitable[float]]] = {
        "raw": lambda connection, _: raw_fast_ingest(connection, count),
        "ceiling": lambda connection, _: ceiling(connection, count),
        "ceiling with ids": lambda connection, n: ceiling(connection, count, ids=f"raw{n}/"),
        "payloads": lambda connection, n: publish_payloads(connection, count, fast=True, prefix=f"f{n}/"),
        "events": lambda _, __: publish_events(bus, count),
    }
    rates = dict.fromkeys(kinds, 0.0)
    for n in range(2 * ROUNDS):
        for kind, run in kinds.items():
            async with Connection(broker.address, bus.config, name=kind) as connection:
                rates[kind] = max(rates[kind], count / await run(connection, n))
    return rates


async def best(run: Callable[[int], Awaitable[float]], count: int) -> float:
    """Return the best rate of some rounds, per second."""
    return max([count / await run(round_) for round_ in range(ROUNDS)])


def line(name: str, rate: float, raw: float, goal: float | None = None) -> bool:
    met = goal is None or rate >= goal * raw
    told = "" if goal is None else f"   goal {goal:.0%}: {'met' if met else 'MISSED'}"
    print(f"{name:<44} {rate:>10,.0f}/s {rate / raw:>7.1%} of raw{told}", flush=True)
    return met


async def measure(count: int) -> bool:
    config = BusConfig()
    met = True
    with tempfile.TemporaryDirectory(prefix="hark-bench-") as home:
        async with EmbeddedBroker(Path(home), config) as broker, Bus(broker.address, config) as bus:
            rates = await interleaved(bus, broker, count)
            raw = rates["raw"]
            print(f"{'raw: fast ingest by nats-py publish':<44} {raw:>10,.0f}/s")
            line("ceiling of the broker, sender free", rates["ceiling"], raw)
            line("ceiling with message ids", rates["ceiling with ids"], raw)
            met &= line("publisher, encoded payloads", rates["payloads"], raw, GOAL_PUBLISHER)
            met &= line("publisher, Event objects", rates["events"], raw, GOAL_EVENTS)
            line("publisher without fast ingest", await best(
                lambda n: publish_payloads(bus.connection, count, fast=False, prefix=f"p{n}/"), count), raw
            )  # fmt: skip
            line("js.publish, one at a time", await best(lambda _: js_publish(bus, 3000), 3000), raw)
            line("guarded append, one at a time",
                 await best(lambda n: guarded(bus, 3000, at_once=1, prefix=f"one{n}-"), 3000), raw)  # fmt: skip
            line("guarded append, 256 at once",
                 await best(lambda n: guarded(bus, 20_000, at_once=256, prefix=f"many{n}-"), 20_000), raw)  # fmt: skip
            total, took = await read(bus)
            line(f"read of {total:,} events", total / took, raw)
            line("durable consumer, fetched and acked", 100_000 / await shared(bus, 100_000), raw)
            pushed, taken = await worked(bus, 10_000)
            line("work pushed, 64 at once", 10_000 / pushed, raw)
            line("work taken and acked, 32 in hand", 10_000 / taken, raw)
    return met


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    return 0 if uvloop.run(measure(count)) else 1


if __name__ == "__main__":
    sys.exit(main())
