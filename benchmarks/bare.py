"""The least that event -> action takes here: nats-py's own client follows the log, stores one message, calls.

No rules, no retries, no memory of what has been done: what is left is the broker, two wake-ups of a process and one HTTP
call, under whatever else this machine is doing. Beside a measured latency it tells how much of it is the machine's.

Run by ``benchmarks.busy`` as ``python -m benchmarks.bare HOME PORT``, until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import orjson
import uvloop
from hark.bus import BrokerAddress, locate_broker
from hark.bus.subject import PREFIX, STREAM
from hark.config import Settings
from nats.aio.client import Client
from nats.js.api import DeliverPolicy


async def follow(address: BrokerAddress, port: int) -> None:
    """Answer each ``ping.sent`` with a stored message and a call to ``/bare``, for ever."""
    nc = Client()
    await nc.connect(list(address.urls), user=address.user, password=address.password, token=address.token)
    log = nc.jetstream()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    pings = await log.subscribe(
        f"{PREFIX}ping.sent", stream=STREAM, ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
    )
    print("following", flush=True)
    async for message in pings.messages:
        n = orjson.loads(message.data)["data"]["n"]
        noted = {
            "specversion": "1.0",
            "id": f"bare-{n}",
            "type": "bench.noted",
            "source": "/bench",
            "data": {"n": n},
        }
        await log.publish(f"{PREFIX}bench.noted", orjson.dumps(noted), stream=STREAM)
        body = json.dumps({"n": n}).encode()
        writer.write(b"POST /bare HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await reader.readuntil(b"\r\n\r\n")


if __name__ == "__main__":
    home, port = sys.argv[1:]
    address = locate_broker(Settings(home=Path(home)))
    assert address is not None, f"no broker runs under {home}"
    uvloop.run(follow(address, int(port)))
