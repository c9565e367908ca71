"""A second connection for what is read: answers do not wait behind events that nobody has taken yet."""

from __future__ import annotations

from typing import Any

import anyio
from hark.bus import Bus, EmbeddedBroker
from hark.bus.event import Event
from hark.config import BusConfig


async def test_what_is_stored_is_answered_while_much_waits_to_be_read(
    broker: EmbeddedBroker, bus_config: BusConfig
) -> None:
    """Events that are stuck on their way here hold up no answer; and who loses that connection misses nothing."""
    async with Bus(broker.address, bus_config, name="both", reads_apart=True) as bus:
        reading: Any = bus.log._reading.nc._transport
        assert reading is not bus.connection.nc._transport
        async with bus.log.follow() as batches:
            wanted: list[int] = []

            async def append(count: int) -> None:
                with anyio.fail_after(60):
                    for _ in range(count):
                        wanted.append(  # noqa: PERF401 - each waits for its answer
                            (await bus.log.append(Event(type="some.thing", source="/test"))).seq
                        )

            reading._io_writer.transport.pause_reading()
            await append(50)
            reading._io_writer.transport.resume_reading()
            seen: list[int] = []
            with anyio.fail_after(60):
                async for batch in batches:
                    seen += [record.seq for record in batch.records]
                    if seen == wanted[:50] and len(wanted) == 50:
                        reading._io_writer.transport.abort()
                        await append(50)
                    if len(seen) >= 100:
                        break
            assert seen == wanted
