"""Whole streams over the wire: the broker's own snapshots, with sequences, times and the state of consumers.

What the broker sends is a packed copy of the stream's files of one moment; it says how the stream was, and takes the same
bytes back under the same name. Hark does not look inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import anyio
import orjson
from nats.aio.msg import Msg

from ..errors import BackupUnreadable, BusUnavailable
from ..vocabulary import JsonObject
from .arrival import Arrival
from .connection import ApiError, Connection, NotReady, read_api_answer

__all__ = ["SnapshotOpened", "restore_stream", "snapshot_stream", "stream_info"]

_CHUNK_BYTES = 256 << 10
_PAUSE_S, _HEARD_S = 0.02, 10.0
"""How long the servers of a cluster may take to tell each other who takes a stream that is put back."""
_SILENCE_S = 60.0
"""Without a chunk for so long a snapshot is given up."""
_NOT_FOUND = 10059

SnapshotOpened = Callable[[JsonObject, JsonObject], Awaitable[None]]


async def stream_info(connection: Connection, stream: str) -> dict[str, Any] | None:
    """Return what the broker says of a stream, None if there is none of that name."""
    try:
        return await connection.api(f"STREAM.INFO.{stream}")
    except ApiError as exc:
        if exc.err_code == _NOT_FOUND:
            return None
        raise


async def snapshot_stream(
    connection: Connection, stream: str, opened: SnapshotOpened
) -> AsyncIterator[bytes]:
    """Yield a snapshot of a stream with its consumers, chunk by chunk; the stream goes on being written meanwhile.

    Args:
        opened: called before the first chunk with the stream's configuration and state as of the snapshot.
    Raises:
        ApiError: there is no such stream, or the broker found it damaged.
        BusUnavailable: the connection broke, or the broker fell silent; begin anew.
    """
    inbox = connection.new_inbox()
    chunks: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def take(msg: Msg) -> None:
        chunks.put_nowait(msg)

    subscription = await connection.subscribe(inbox, take)
    unhook = connection.on_disconnect(lambda: chunks.put_nowait(None))
    try:
        await connection.flush()
        size = min(_CHUNK_BYTES, connection.max_payload // 2)
        said = await connection.api(
            f"STREAM.SNAPSHOT.{stream}", {"deliver_subject": inbox, "chunk_size": size, "jsck": True}
        )
        await opened(_object(said["config"]), _object(said["state"]))
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    msg = await chunks.get()
            except TimeoutError as exc:
                raise BusUnavailable(f"the broker stopped sending the snapshot of {stream}") from exc
            if msg is None:
                raise BusUnavailable(f"the connection broke during the snapshot of {stream}")
            if not msg.data:
                status = (msg.headers or {}).get("Status", "204")
                if status != "204":
                    raise BusUnavailable(f"the broker gave up the snapshot of {stream} (status {status})")
                return
            yield msg.data
            # Only now: the broker sends no more than a few megabytes that have not been answered.
            if msg.reply:
                await connection.nc.publish(msg.reply, b"")
    finally:
        unhook()
        await connection.unsubscribe(subscription)


async def restore_stream(
    connection: Connection, config: JsonObject, state: JsonObject, chunks: Iterable[bytes]
) -> dict[str, Any]:
    """Make a stream of a snapshot and return what the broker says of it. No stream of that name may be there.

    Raises:
        ApiError: it is there, or the broker will not have it so.
        BackupUnreadable: the broker cannot make a stream of these bytes; there is none then.
    """
    name = str(config["name"])
    begun = await connection.api(f"STREAM.RESTORE.{name}", {"config": config, "state": state})
    to = str(begun["deliver_subject"])
    timeout_s = max(_SILENCE_S, connection.config.request_timeout_s)
    until = anyio.current_time() + _HEARD_S
    for chunk in chunks:
        msg = await _hand_over(connection, to, chunk, timeout_s=timeout_s, until=until)
        until = 0.0
        if msg.data:
            _raise_refusal(name, msg.data)
    msg = await _hand_over(connection, to, b"", timeout_s=timeout_s, until=until)
    _raise_refusal(name, msg.data)
    made: dict[str, Any] = orjson.loads(msg.data)
    wanted, found = int(str(state["last_seq"])), int(made["state"]["last_seq"])
    if found < wanted:
        raise BackupUnreadable(name, f"the broker made a stream that ends at {found} and not at {wanted}")
    return made


async def _hand_over(
    connection: Connection, to: str, chunk: bytes, *, timeout_s: float, until: float
) -> Arrival:
    """Send a piece and return the answer. ``until``: when at the latest somebody must be there to take it.

    The server of a cluster that asked for the first one may be another than ours, which hears of it a moment later.
    """
    while True:
        try:
            return await connection.request(to, chunk, timeout_s=timeout_s)
        except NotReady:
            if anyio.current_time() >= until:
                raise
            await anyio.sleep(_PAUSE_S)


def _raise_refusal(name: str, raw: bytes) -> None:
    try:
        read_api_answer(f"the restore of {name}", raw)
    except ApiError as exc:
        raise BackupUnreadable(name, f"the broker cannot make a stream of it: {exc.description}") from exc


def _object(value: object) -> JsonObject:
    assert isinstance(value, dict)
    return value
