"""Sharing the log among several readers of one name: each event is handed to one, again until acknowledged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import cast

from ..config import BusConfig
from ..vocabulary import JsonObject
from .arrival import Arrival
from .connection import Connection
from .event import Recorded, format_time
from .feed import distinct_filters, recorded_of
from .intake import Held, Intake, Source, start_of

__all__ = ["Consumer", "Item"]


class Item(Held):
    """An event in our hands, to be settled with ``ack``, ``nak`` or ``term`` within the ack wait."""

    __slots__ = ("recorded",)

    def __init__(self, intake: Intake[Held], msg: Arrival) -> None:
        self.recorded: Recorded
        self.recorded, deliveries, _, _ = recorded_of(msg)
        super().__init__(intake, msg, deliveries)


class Consumer(Intake[Item]):
    """A durable consumer: ``async for item in consumer`` or ``await consumer.fetch(n)``."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        config: BusConfig,
        *,
        stream: str,
        durable: str,
        filters: Sequence[str],
        ack_wait_s: float,
        max_ack_pending: int,
        deliver_after: int | None,
        in_hand: int | None = None,
        deliver_since: datetime | None = None,
    ) -> AsyncGenerator[Consumer]:
        """Create the durable if need be and pull from it while inside."""
        settings: JsonObject = {
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait_s * 1e9),
            "max_ack_pending": max_ack_pending,
            "num_replicas": config.replicas,
        }
        settings |= await _start_of(connection, stream, durable, deliver_after, deliver_since)
        kept = distinct_filters(filters)
        settings |= {"filter_subject": kept[0]} if len(kept) == 1 else {"filter_subjects": list(kept)}
        consumer = cls(
            connection, config, sources=[Source(stream, durable, settings)], ack_wait_s=ack_wait_s,
            make=lambda msg, _: Item(cast("Intake[Held]", consumer), msg), capacity=in_hand or max_ack_pending,
        )  # fmt: skip
        async with consumer.running():
            yield consumer


async def _start_of(
    connection: Connection, stream: str, durable: str, after: int | None, since: datetime | None
) -> JsonObject:
    """Return where the durable begins; the place of one that exists cannot be changed, and is not."""
    if (found := await start_of(connection, stream, durable)) is not None:
        return found
    if since is not None:
        return {"deliver_policy": "by_start_time", "opt_start_time": format_time(since)}
    if after is None:
        return {"deliver_policy": "new"}
    return {"deliver_policy": "by_start_sequence", "opt_start_seq": after + 1}
