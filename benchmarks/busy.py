"""How long event -> action takes on a busy system: 1 000 rules, and 5 000 other events a second from another process.

The other events are run reports of 930 bytes, first of pools that no rule is about; then one in ten is of the pool that
the rules are about, so about one in a hundred makes a rule fire, one each second 56 of them at once, and each firing is
stored. The measured one is a ``call`` to a receiver in this process, whose
event is appended straight to the log. All clocks are this machine's.

A p99 of some milliseconds is as much the machine's as the program's: where others take the processors away, nobody
reaches it. So each measured event also goes to ``benchmarks.bare``, the least a program can do between a message and a
call, and both are printed, with the share of its time that the machine was kept from running. Where ``benchmarks.witness``
can tell, and the host left enough moments alone, the goal is judged by the events sent in those; more are sent until there
are enough. All events together are printed beside.

Run: ``python -m benchmarks.busy [events a second]``
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from hark.bus import Bus, Event, locate_broker
from hark.bus.subject import subject_of
from hark.config import BusConfig, Settings
from nats.aio.client import Client

from benchmarks.goal import Goals
from benchmarks.latency import Receiver, say
from benchmarks.rules import make_events, make_rules
from benchmarks.running import hark_up
from benchmarks.witness import Witnesses, watching

RULES = 1_000
RATE = 5_000
PINGS, WARM = 600, 100
MOST_PINGS = 1_800
PINGS_PER_S = 20
_ID = "the-id-of-the-event"
TURN_S = 0.01
"""The other events come in bursts of this long, as from programs that do not wait for each other."""
OWN, OTHERS = "flow-run.", "shop."
"""Run events that no engine made would be runs to the server: here they are a shop's."""


def traffic(*, fires: bool) -> list[Event]:
    """Return the other events; each is sent again and again under new ids. ``fires``: some make rules fire."""
    events = []
    for n, raw in enumerate(make_events(5_000)):
        row = orjson.loads(raw.replace(OWN.encode(), OTHERS.encode()))
        row["data"]["pool"] = "eu" if fires and n % 10 == 0 else "default"
        events.append(Event.from_dict(row).replace(source="/bench"))
    return events


def config(port: int) -> str:
    """Return a hark.yaml with the rules and the one that calls us."""
    automations: dict[str, object] = {}
    for n, (types, where) in enumerate(make_rules(RULES)):
        on = ["shop.*" if t == ">" else t.replace(OWN, OTHERS) for t in types]
        if isinstance(unwanted := where.get("type"), dict):
            where["type"] = {"not": str(unwanted["not"]).replace(OWN, OTHERS)}
        automations[f"r{n}"] = {"on": on, "where": where | {"data.pool": "eu"}, "budget": "100000/m"}
    automations["ping"] = {
        "on": "ping.sent",
        "budget": "100000/m",
        "do": [{"call": f"http://127.0.0.1:{port}/ping", "body": {"n": "{{ event.data.n }}"}}],
    }
    return json.dumps({"automations": automations})


async def load(home: Path, rate: int, *, fires: bool) -> None:
    """Publish the other events at ``rate`` a second until killed, and say how it goes once a second.

    They are written out beforehand, but for their ids, and sent by nats-py's own client: who makes them is not measured, and
    has the same processors.
    """
    address = locate_broker(Settings(home=home))
    assert address is not None
    written = []
    for event in traffic(fires=fires):
        head, tail = event.replace(id=_ID).to_json().split(_ID.encode())
        written.append((subject_of(event), head, tail))
    nc = Client()
    await nc.connect(list(address.urls), user=address.user, password=address.password, token=address.token)
    sent, begin = 0, time.perf_counter()
    told = begin
    while True:
        now = time.perf_counter()
        due = int((now - begin) * rate)
        for n in range(sent, due):
            subject, head, tail = written[n % len(written)]
            id_ = f"busy-{fires:d}-{n}"
            await nc.publish(subject, head + id_.encode() + tail, headers={"Nats-Msg-Id": id_})
        sent = due
        if now - told >= 1:
            print(sent, flush=True)
            told = now
        await asyncio.sleep(TURN_S)


@contextmanager
def beside(*args: str) -> Iterator[None]:
    """Run another Python process while the block lasts, which begins when it has printed something."""
    child = subprocess.Popen([sys.executable, "-m", *args], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        child.stdout.readline()
        yield
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@dataclass(slots=True)
class Took:
    """Seconds from an event to its call: by the rule, and by ``benchmarks.bare`` at the same event."""

    rule: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)  # seconds since 1970


async def ping(
    bus: Bus, receiver: Receiver, first: int, count: int, witnesses: Witnesses | None = None
) -> Took:
    """Return how long each of ``count`` events took to its calls, sent at times of their own.

    With witnesses more are sent, if need be, until enough were left alone by the host.
    """
    rng, took = random.Random(first), Took()

    async def one(n: int) -> None:
        began = time.time()
        await bus.log.append(Event(type="ping.sent", source="/bench", data={"n": n}))
        rule = await receiver.wait("/ping", n) - began
        bare = await receiver.wait("/bare", n) - began
        took.begins.append(began)
        took.rule.append(rule)
        took.bare.append(bare)

    while not took.begins or (
        witnesses is not None and len(took.begins) < MOST_PINGS and not witnesses.has_enough(took.begins)
    ):
        async with asyncio.TaskGroup() as tasks:
            for n in range(first, first + count):
                tasks.create_task(one(n))
                await asyncio.sleep(rng.expovariate(PINGS_PER_S))
        first += count
    return took


def tell(goals: Goals, what: str, took: Took, witnesses: Witnesses) -> None:
    """Print what the rule took, with its goal, and what the machine takes at the least; and both "alone", where that is known."""
    alone = witnesses.alone(took.begins, took.rule)
    say(goals, what, took.rule, p99_ms=20 if alone is None else None)
    say(goals, "  the same by a bare client", took.bare)
    if alone is not None:
        say(goals, f"{what}, alone", alone, p99_ms=20)
        say(goals, "  the same by a bare client", witnesses.alone(took.begins, took.bare) or [])


def cpu_s(pid: int) -> float:
    """Return the CPU time a process has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


def stolen_s() -> float:
    """Return the processor seconds, over all processors, that this machine wanted and its host gave to others."""
    return int(Path("/proc/stat").read_text().splitlines()[0].split()[8]) / 100


async def main(rate: int) -> int:
    goals = Goals()
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    up = hark_up(config(port), environment={"HARK_AUTOMATIONS__ALLOW_PRIVATE_ADDRESSES": "true"})
    running = await asyncio.to_thread(up.__enter__)
    home = str(running.home)
    try:
        address = locate_broker(Settings(home=running.home))
        assert address is not None
        async with Bus(address, BusConfig()) as bus:
            with beside("benchmarks.bare", home, str(port)), watching() as witnesses:
                await ping(bus, receiver, 0, WARM)
                took = await ping(bus, receiver, WARM, PINGS // 2, witnesses)
                tell(goals, "event -> call, 1,000 rules, idle", took, witnesses)
                for first, kind, which in (
                    (10_000, "quiet", "that fire nothing"),
                    (20_000, "firing", "that fire rules"),
                ):
                    with beside("benchmarks.busy", "--load", home, str(rate), kind):
                        await ping(bus, receiver, first, WARM)
                        head, began = await bus.log.head(), time.perf_counter()
                        spent, stolen = cpu_s(running.pid), stolen_s()
                        took = await ping(bus, receiver, first + WARM, PINGS, witnesses)
                        elapsed = time.perf_counter() - began
                        spent, stolen = cpu_s(running.pid) - spent, stolen_s() - stolen
                        stored = (await bus.log.head() - head) / elapsed
                    what = f"event -> call, {rate:,} other events/s {which}"
                    tell(goals, what, took, witnesses)
                    verdict = goals.at_least(f"stored beside {what}", stored, rate, "/s")
                    print(
                        f"{'':<10} stored meanwhile: {stored:,.0f} events/s, {verdict}; of a core: hark took"
                        f" {spent / elapsed:.0%}, the host took {stolen / elapsed:.0%} away"
                    )
    finally:
        await asyncio.to_thread(up.__exit__, None, None, None)
        server.close()
    return goals.code


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        asyncio.run(load(Path(sys.argv[2]), int(sys.argv[3]), fires=sys.argv[4] == "firing"))
    else:
        sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else RATE)))
