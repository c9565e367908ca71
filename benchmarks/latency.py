"""How long things take on an idle machine: event -> action, event -> first line of a flow, a deadline -> its rule.

The event is appended straight to the log; the action is a `call` to a receiver in this process; the flows write the
wall time of their first line to a file. All clocks are this machine's. "Alone" are the events that the host of this machine
did not disturb, see ``benchmarks.witness``.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from hark.bus import Bus, Event, locate_broker
from hark.config import BusConfig, Settings

from benchmarks.goal import Goals
from benchmarks.running import hark_up, median, quantile
from benchmarks.witness import watching

EVENTS, MOST_EVENTS, FLOWS, DEADLINES = 400, 2_000, 40, 20

FLOW_FILE = """
import time
from hark import flow

def note(path, n):
    with open(path, "a") as out:
        out.write(f"{n} {time.time()}\\n")

@flow
async def quick(path: str, n: int):
    note(path, n)

@flow
def steady(path: str, n: int):
    note(path, n)
"""


def _config(port: int, out: Path) -> str:
    rules = "".join(
        f"  other-{i}: {{on: ping.sent, where: {{data.kind: other-{i}}}, do: [{{emit: other.seen}}]}}\n"
        for i in range(9)
    )
    call = f'call: "http://127.0.0.1:{port}/'
    return f"""
deployments:
  quick: {{flow: "flows.py:quick"}}
  steady: {{flow: "flows.py:steady"}}
automations:
{rules}
  ping:
    on: ping.sent
    where: {{data.kind: ping}}
    budget: 100000/m
    do: [{{{call}ping", body: {{n: "{{{{ event.data.n }}}}"}}}}]
  start-quick:
    on: flow.wanted
    where: {{data.kind: quick}}
    budget: 100000/m
    do: [{{run: quick, parameters: {{path: "{out}", n: "{{{{ event.data.n }}}}"}}}}]
  start-steady:
    on: flow.wanted
    where: {{data.kind: steady}}
    budget: 100000/m
    do: [{{run: steady, parameters: {{path: "{out}", n: "{{{{ event.data.n }}}}"}}}}]
  too-late:
    after: job.began
    expect: job.ended
    for_each: data.n
    within: 1s
    budget: 100000/m
    do: [{{{call}late", body: {{n: "{{{{ key }}}}"}}}}]
"""


class Receiver:
    """The smallest HTTP server that tells when each numbered call came."""

    def __init__(self) -> None:
        self.came: dict[tuple[str, int], float] = {}
        self.changed = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import json

        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                came = time.time()
                lines = head.decode().split("\r\n")
                length = next((int(x[15:]) for x in lines if x.lower().startswith("content-length:")), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                self.came.setdefault((lines[0].split()[1], int(body["n"])), came)
                self.changed.set()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def wait(self, path: str, n: int) -> float:
        while (path, n) not in self.came:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 60)
        return self.came[path, n]


def say(
    goals: Goals,
    what: str,
    values: list[float],
    *,
    middle_ms: float | None = None,
    p99_ms: float | None = None,
) -> None:
    ms = [v * 1000 for v in values]
    print(f"{what:<66} median {median(ms):6.1f} ms  p99 {quantile(ms, 0.99):6.1f} ms  n={len(ms)}")
    if middle_ms is not None:
        print(f"{'':<59} median: {goals.below(f'median of {what}', median(ms), middle_ms, ' ms')}")
    if p99_ms is not None:
        print(f"{'':<59} p99: {goals.below(f'p99 of {what}', quantile(ms, 0.99), p99_ms, ' ms')}")


async def main() -> int:
    goals = Goals()
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    out = Path(f"/tmp/hark-bench-{time.time_ns()}.txt")
    out.touch()
    up = hark_up(
        _config(port, out),
        files={"flows.py": FLOW_FILE},
        environment={"HARK_AUTOMATIONS__ALLOW_PRIVATE_ADDRESSES": "true"},
    )
    running = await asyncio.to_thread(up.__enter__)
    try:
        address = locate_broker(Settings(home=running.home))
        assert address is not None
        async with Bus(address, BusConfig()) as bus:

            async def send(type_: str, **data: str | int) -> float:
                began = time.time()
                await bus.log.append(Event(type=type_, source="/bench", data=dict(data)))
                return began

            begins, took = list[float](), list[float]()
            with watching() as witnesses:
                for n in range(-20, MOST_EVENTS):  # the first ones warm every path
                    began = await send("ping.sent", kind="ping", n=n)
                    called = await receiver.wait("/ping", n)
                    if n >= 0:
                        begins.append(began)
                        took.append(called - began)
                    if n > 0 and n % EVENTS == 0 and witnesses.has_enough(begins):
                        break
                alone = witnesses.alone(begins, took)
            what = "event -> call at its receiver, 10+ rules"
            if alone is not None:
                say(goals, what, took)
                what, took = f"{what}, alone", alone
            say(goals, what, took, middle_ms=5, p99_ms=20)

            lateness = []
            for n in range(DEADLINES):
                began = await send("job.began", n=n)
                lateness.append(await receiver.wait("/late", n) - began - 1.0)
            say(goals, "absence: after its deadline", lateness)
            largest = max(lateness) * 1000
            print(
                f"{'':<59} largest {largest:.0f} ms: {goals.below('lateness of absence', largest, 300, ' ms')}"
            )

            for kind, how, goal_ms in (("quick", "async", 25), ("steady", "sync", 60)):
                took = []
                for n in range(-5, FLOWS):
                    began = await send("flow.wanted", kind=kind, n=n)
                    took.append(await _noted(out, n) - began)
                    out.write_text("")
                say(goals, f"event -> first line of an {how} flow", took[5:], middle_ms=goal_ms)
    finally:
        await asyncio.to_thread(up.__exit__, None, None, None)
        server.close()
        out.unlink(missing_ok=True)
    return goals.code


async def _noted(out: Path, n: int) -> float:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for line in out.read_text().splitlines():
            number, _, at = line.partition(" ")
            if int(number) == n:
                return float(at)
        await asyncio.sleep(0.002)
    raise TimeoutError(f"flow {n} did not start")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
