"""``POST /api/events`` in batches of 100, each answered only when stored, from a few connections at once."""

from __future__ import annotations

import asyncio
import time

import httpx
import orjson

from benchmarks.running import hark_up

BATCH, BATCHES, CONNECTIONS = 100, 400, 4


async def _post(url: str) -> float:
    events = [
        {"specversion": "1.0", "type": "order.paid", "source": "/bench", "data": {"order": i, "amount": 12.5, "note": "x" * 80}}
        for i in range(BATCH)
    ]  # fmt: skip
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        turn = iter(range(BATCHES))

        async def sender() -> None:
            for n in turn:
                body = orjson.dumps([{**e, "id": f"{n}-{i}"} for i, e in enumerate(events)])
                answer = await client.post(
                    "/api/events",
                    content=body,
                    headers={"Content-Type": "application/cloudevents-batch+json"},
                )
                assert answer.status_code == 202, answer.text

        began = time.perf_counter()
        await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))
        return BATCH * BATCHES / (time.perf_counter() - began)


def main() -> None:
    with hark_up() as running:
        asyncio.run(_post(running.url))  # warm
        rates = sorted(asyncio.run(_post(running.url)) for _ in range(3))
    print(
        f"POST /api/events, batches of {BATCH}: {rates[1]:,.0f} events/s stored (min {rates[0]:,.0f}, max {rates[2]:,.0f}); goal 8,000"
    )


if __name__ == "__main__":
    main()
