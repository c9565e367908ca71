"""``POST /api/events`` in batches of 100, each answered only when stored, from a few connections at once.

Beside the rate stands the CPU time of an event: that of the server (with everything `hark up` runs: rules and read
model follow the log meanwhile) and that of the broker. On a machine with other work it says more than the rate.
"""

from __future__ import annotations

import asyncio
import sys
import time

import httpx
import orjson
import psutil
from hark.server.child import HarkProcess

from benchmarks.goal import Goals
from benchmarks.running import hark_up, median

BATCH, BATCHES, CONNECTIONS, ROUNDS = 100, 300, 4, 3
GOAL = 8_000


def bodies(round_: int) -> list[bytes]:
    """Return what is posted, made beforehand: it is the server that is measured."""
    return [
        orjson.dumps([
            {"specversion": "1.0", "type": "order.paid", "source": "/bench", "id": f"{round_}-{n}-{i}",
             "data": {"order": i, "amount": 12.5, "note": "x" * 80}}
            for i in range(BATCH)
        ])
        for n in range(BATCHES)
    ]  # fmt: skip


async def post(url: str, batches: list[bytes]) -> float:
    """Return events per second."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        turn = iter(batches)

        async def sender() -> None:
            for body in turn:
                answer = await client.post(
                    "/api/events",
                    content=body,
                    headers={"Content-Type": "application/cloudevents-batch+json"},
                )
                assert answer.status_code == 202, answer.text
                assert answer.json()["stored"] == BATCH, answer.text

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))
        return BATCH * len(batches) / (time.perf_counter() - began)


def cpu_s(running: HarkProcess) -> tuple[float, float]:
    """Return the CPU seconds used so far by the server, and by all the processes it started."""
    server = psutil.Process(running.pid)
    return sum(server.cpu_times()[:2]), sum(sum(p.cpu_times()[:2]) for p in server.children(recursive=True))


def main() -> int:
    with hark_up() as running:
        asyncio.run(post(running.url, bodies(0)))  # warm
        before = cpu_s(running)
        rates = [asyncio.run(post(running.url, bodies(round_))) for round_ in range(1, ROUNDS + 1)]
        after = cpu_s(running)
    events = BATCH * BATCHES * ROUNDS
    server_us, broker_us = ((b - a) / events * 1e6 for a, b in zip(before, after, strict=True))
    middle, goals = median(rates), Goals()
    print(f"POST /api/events, batches of {BATCH}: {middle:,.0f} events/s stored"
          f" (min {min(rates):,.0f}, max {max(rates):,.0f})   {goals.at_least('rate', middle, GOAL)}")  # fmt: skip
    print(f"CPU time of an event: server {server_us:.0f} us, broker {broker_us:.0f} us")
    return goals.code


if __name__ == "__main__":
    sys.exit(main())
