"""Feeds that say how much may wait for them."""

from __future__ import annotations

from typing import Any

from hark.bus import Bus


async def test_a_slow_reader_may_say_how_many_records_wait_for_it(bus: Bus) -> None:
    """No more are sent than it has room for, none is sent twice, and all come, also across the loss of its consumer."""
    for number in range(2_000):
        await bus.publisher.publish_raw("hark.ev.small", b"{}", str(number))
    await bus.publisher.barrier()
    most, seen = 0, list[int]()
    async with bus.log.follow(after=0, batch=10, most_waiting=64) as batches:
        feed: Any = batches
        async for batch in batches:
            seen += [record.seq for record in batch.records]
            most = max(most, len(feed._buffer))
            if len(seen) == 1_000:
                feed._lost("of the test")
            if not batch.pending:
                break
    assert seen == list(range(1, 2_001))
    assert 10 < most <= 64 + 8
