"""Sharing the log among several readers of one name: each event is handed to one, again until acknowledged."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import cast

import anyio

from ..config import BusConfig
from ..vocabulary import JsonObject
from .arrival import Arrival
from .connection import ApiError, Connection
from .event import Recorded, format_time
from .feed import recorded_of
from .intake import Held, Intake, Source, start_of
from .subject import distinct_filters

__all__ = ["Consumer", "Item"]

log = logging.getLogger(__name__)

_HURRY_S, _LOOKS_AFTER_S = 0.01, 0.1
"""The second: how long after a change of its ack wait a broker looks at what it waits for."""


class Item(Held):
    """An event in our hands, to be settled with ``ack``, ``nak`` or ``term`` within the ack wait.

    ``payload`` is the message as it came: of a CloudEvent in binary mode the data alone, which ``recorded`` has as JSON.
    """

    __slots__ = ("payload", "recorded")

    def __init__(self, intake: Intake[Held], msg: Arrival) -> None:
        self.payload: bytes = msg.data
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
        take_back: bool = False,
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
        if take_back:
            await _take_back(connection, stream, durable)
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


async def _take_back(connection: Connection, stream: str, durable: str) -> None:
    """Have handed out again, at once, what somebody has who is dead, unless others live who may have some, too.

    What is put off for longer stays put off.
    """
    try:
        found = await connection.api(f"CONSUMER.INFO.{stream}.{durable}")
        config = found["config"]
        if not found.get("num_ack_pending") or found.get("num_waiting") or not isinstance(config, dict):
            return  # nothing in hand; or somebody lives who asks for more, and may have some of it
        # The broker looks at what it waits for when the time it waits is changed; it is set right again by who opens it now.
        hurried = {**config, "ack_wait": int(_HURRY_S * 1e9)}
        await connection.api(
            f"CONSUMER.CREATE.{stream}.{durable}", {"stream_name": stream, "config": hurried}
        )
    except ApiError as exc:
        log.debug("bus.nothing-taken-back", extra={"durable": durable, "error": str(exc)})
        return
    await anyio.sleep(2 * _LOOKS_AFTER_S)
