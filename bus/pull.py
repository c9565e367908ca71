"""Reading so many messages of a stream and no more, from a place on: what is not asked for is not sent.

A ``Feed`` has the broker push all there is; who shows one page of a long log would have it sent whole for each page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import orjson

from ..errors import BusUnavailable
from ..vocabulary import new_id
from .arrival import Arrival, subscribe, unsubscribe
from .connection import ApiError, Connection
from .event import Recorded
from .feed import recorded_of
from .wire import Wire, frame

__all__ = ["Pull", "pulling"]

_FORGOTTEN_S = 30
"""The broker forgets the consumer of a reader that has gone after this long."""


class Pull:
    """Messages of one subject, taken in steps. Use ``pulling``.

    Attributes:
        pending: messages that are there and have not been taken.
    """

    def __init__(self, connection: Connection, stream: str, consumer: str, inbox: str) -> None:
        self._connection, self._wire = connection, Wire(connection.nc)
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._delete = f"$JS.API.CONSUMER.DELETE.{stream}.{consumer}"
        self._inbox = inbox
        self._arrived = asyncio.Queue[Arrival]()
        self.pending = 0

    def on_message(self, msg: Arrival) -> None:
        self._arrived.put_nowait(msg)

    def forget(self) -> None:
        """Tell the broker that the reader has gone; should that not arrive, it notices by itself."""
        if self._connection.is_connected:
            self._wire.send(frame(self._delete, "", "", b""))

    async def take(self, most: int) -> list[Recorded]:
        """Return the next messages in order, ``most`` of them or as many as are there.

        Raises:
            BusUnavailable: they did not come in ``config.request_timeout_s``.
        """
        most = min(most, self.pending)
        records: list[Recorded] = []
        if most <= 0:
            return records
        self._wire.send(frame(self._next, self._inbox, "", orjson.dumps({"batch": most, "no_wait": True})))
        try:
            with anyio.fail_after(self._connection.config.request_timeout_s):
                while len(records) < most:
                    msg = await self._arrived.get()
                    if msg.status:  # there are no more: they have left the stream meanwhile
                        self.pending = 0
                        break
                    record, _, _, self.pending = recorded_of(msg)
                    records.append(record)
        except TimeoutError as exc:
            raise BusUnavailable("the broker did not send what it was asked for in time") from exc
        return records


@asynccontextmanager
async def pulling(connection: Connection, *, stream: str, filter: str, first: int) -> AsyncGenerator[Pull]:
    """Open a reader of what is stored on ``filter`` from the sequence ``first`` on.

    Raises:
        BusUnavailable: the broker cannot be reached.
    """
    name = f"pull-{new_id()[-12:]}"
    inbox = connection.new_inbox()
    pull = Pull(connection, stream, name, inbox)
    subscription = await subscribe(connection.nc, inbox, pull.on_message)
    try:
        created = await connection.api(
            f"CONSUMER.CREATE.{stream}.{name}",
            {"stream_name": stream, "action": "create", "config": {
                "name": name, "ack_policy": "none", "deliver_policy": "by_start_sequence",
                "opt_start_seq": max(1, first), "filter_subject": filter, "mem_storage": True, "num_replicas": 1,
                "inactive_threshold": _FORGOTTEN_S * 10**9,
            }},
        )  # fmt: skip
        pull.pending = int(str(created.get("num_pending", 0)))
        yield pull
    except ApiError as exc:
        raise BusUnavailable(f"cannot read the log: {exc}") from exc
    finally:
        with anyio.CancelScope(shield=True):
            await unsubscribe(subscription)
        pull.forget()
