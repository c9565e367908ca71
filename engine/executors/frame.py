"""Messages between a worker and its processes: JSON objects with their length in front, over a socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import orjson

from ...errors import UnavailableError
from ...vocabulary import JsonObject

__all__ = ["MAX_FRAME_BYTES", "ORPHANED", "Channel", "encode", "read_frame"]

_HEAD = struct.Struct(">I")
_BYTES_HEAD = struct.Struct(">Q")
MAX_FRAME_BYTES = 64 << 20
"""Above the largest event a broker can be set to take."""
ORPHANED = 71
"""Exit code of a process whose worker is gone: nobody is at the other end."""


def encode(value: JsonObject) -> bytes:
    """Return the frame that carries ``value``."""
    body = orjson.dumps(value)
    if len(body) > MAX_FRAME_BYTES:
        raise UnavailableError(f"a message of {len(body)} bytes is too long for a process of the worker")
    return _HEAD.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> JsonObject | None:
    """Return the next message; None when the other side has closed or died."""
    try:
        head = await reader.readexactly(_HEAD.size)
        (size,) = _HEAD.unpack(head)
        value: JsonObject = orjson.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return value


class Channel:
    """One end of the socket pair in a process without an event loop. Reads and writes block."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        sock.setblocking(True)

    def send(self, value: JsonObject) -> None:
        """Write a message, from any thread. The other side being gone raises ``OSError``."""
        with self._sending:
            self._sock.sendall(encode(value))

    def receive(self) -> JsonObject | None:
        """Return the next message; None when the other side has closed or died."""
        head = self._exactly(_HEAD.size)
        if head is None:
            return None
        (size,) = _HEAD.unpack(head)
        body = self._exactly(size)
        if body is None:
            return None
        value: JsonObject = orjson.loads(body)
        return value

    def send_bytes(self, data: bytes) -> None:
        """Write bytes of any length, for the other side's ``receive_bytes``."""
        self._sock.sendall(_BYTES_HEAD.pack(len(data)))
        self._sock.sendall(data)

    def receive_bytes(self) -> bytes | None:
        """Return the next bytes that were sent so; None when the other side has closed or died.

        Raises:
            TimeoutError: ``wait_at_most`` was set, and that long nothing came.
        """
        head = self._exactly(_BYTES_HEAD.size)
        return None if head is None else self._exactly(*_BYTES_HEAD.unpack(head))

    def wait_at_most(self, seconds: float | None) -> None:
        """Limit each wait from now on; None for no limit."""
        self._sock.settimeout(seconds)

    def close(self) -> None:
        self._sock.close()

    def _exactly(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._sock.recv(min(size - len(parts), 1 << 20))
            except ConnectionError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
