"""Frames of the NATS protocol, made by hand and written once per loop turn.

nats-py's ``publish`` costs about 10 µs a message (a coroutine, a queue, a future for each), which is most of what a
message costs us. Should a future nats-py look different inside, ``Wire`` notices at start and goes through ``publish`` instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import EventInvalid

if TYPE_CHECKING:
    from nats.aio.client import Client

__all__ = ["Wire", "check_subject", "frame", "header_lines", "message_id"]

log = logging.getLogger(__name__)

_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_HEADER_NAME = re.compile(r"[!-9;-~]+")
MAX_SUBJECT_BYTES = 1024  # the broker closes connections whose control line passes 4096 bytes


def check_subject(subject: str) -> str:
    """Return ``subject`` if a message can be published on it (no wildcards, no empty words, no white space)."""
    if subject in _checked:
        return subject
    if len(subject.encode("utf-8", "replace")) > MAX_SUBJECT_BYTES or not _SUBJECT.fullmatch(subject):
        raise EventInvalid("subject", f"cannot be a bus subject: {subject[:100]!r}")
    if len(_checked) >= 4096:
        _checked.clear()
    _checked.add(subject)
    return subject


_checked: set[str] = set()  # most events go to few subjects, and a look costs a tenth of a match


def message_id(text: str) -> str:
    """Return the ``Nats-Msg-Id`` for ``text``: itself where it can stand in a header, else a stand-in of its own.

    Ids come from outside (``source#id``) and may hold anything. Different texts never share an id.
    """
    if text.isascii() and text.isprintable() and 0 < len(text) <= 256 and " " not in text and "%" not in text:
        return text
    quoted = quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}", errors="surrogatepass")
    if len(quoted) <= 256:
        return quoted  # holds a '%', which an id that stands for itself never does
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=24).hexdigest()
    return f"%{digest}"  # '%' + 48 digits is not the quoted form of anything we would quote to that length


def header_lines(headers: Mapping[str, str]) -> str:
    """Return header lines ``Name: value\\r\\n…``; runs of white space in values, line breaks too, become one blank.

    Raises:
        EventInvalid: a name is not a header name, or a value is not ASCII (so that its length is its size).
    """
    lines = []
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise EventInvalid(name, "cannot be a header name")
        if not value.isascii():
            raise EventInvalid(name, f"is a header and must be ASCII, got {value[:100]!r}; percent-encode it")
        lines.append(f"{name}: {' '.join(value.split())}\r\n")
    return "".join(lines)


def frame(subject: str, reply: str, headers: str, payload: bytes) -> bytes:
    """Return one publish frame. ``headers`` is what ``header_lines`` made, or empty."""
    if not headers:
        return b"".join((f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n"))
    block = f"NATS/1.0\r\n{headers}\r\n".encode()
    size = len(block)
    head = f"HPUB {subject} {reply} {size} {size + len(payload)}\r\n".encode()
    return b"".join((head, block, payload, b"\r\n"))


class Wire:
    """Writes frames to the present connection, all frames of a loop turn in one go.

    A frame is written to the connection that is up, or dropped: whoever needs it to arrive waits for an answer and
    sends again. (The client's own buffer for the time without a connection would send frames of a dead batch.)

    Args:
        on_refused: called when frames could not be written to a connection that was thought to be up.
    """

    def __init__(self, nc: Client, *, on_refused: Callable[[], None] | None = None) -> None:
        self._nc, self._on_refused = nc, on_refused
        self._out: list[bytes] = []
        self._direct = all(
            hasattr(nc, name) for name in ("_pending", "_pending_data_size", "_transport", "_flush_queue")
        )
        self._detour: set[asyncio.Task[None]] = set()

    def send(self, data: bytes) -> None:
        """Write ``data``, one or more whole frames, at the end of this loop turn."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)

    def send_now(self, data: bytes) -> None:
        """Write ``data``, one or more whole frames, and what was to be sent before: a turn of the loop sooner."""
        self._out.append(data)
        self._flush()

    def send_parts(self, parts: Iterable[bytes]) -> None:
        """Write the pieces of whole frames at the end of this loop turn."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.extend(parts)

    def _flush(self) -> None:
        out, self._out = self._out, []
        nc = self._nc
        if not out or not nc.is_connected:
            return
        transport = getattr(nc, "_transport", None)
        writer = getattr(transport, "_io_writer", None)
        if not self._direct or writer is None:  # WebSocket, or another nats-py
            task = asyncio.get_running_loop().create_task(self._detour_write(b"".join(out)))
            self._detour.add(task)
            task.add_done_callback(self._detour.discard)
            return
        # What the client has queued (a SUB whose answers we are about to ask for) must go first.
        if nc._pending:
            out = [*nc._pending, *out]
            nc._pending = []
            nc._pending_data_size = 0
        try:
            writer.write(b"".join(out))
        except (OSError, RuntimeError, TypeError) as exc:
            # What loops say of a socket that has closed unnoticed; the read loop reports the lost connection.
            log.debug("bus.write-failed", extra={"error": str(exc)})
            if self._on_refused is not None:
                self._on_refused()

    async def _detour_write(self, data: bytes) -> None:
        """Send frames through the client's public ``publish``."""
        import nats.errors  # loaded by now: who makes frames for later must not pay for the client

        try:
            for subject, reply, headers, payload in _frames(data):
                await self._nc.publish(subject, payload, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as exc:
            log.debug(
                "bus.write-failed", extra={"error": str(exc)}
            )  # not answered, so sent again by its owner


def _frames(data: bytes) -> Iterable[tuple[str, str, dict[str, str] | None, bytes]]:
    """Take frames apart again, for the detour."""
    at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        words = data[at:end].decode().split(" ")
        at = end + 2
        total = int(words[-1])
        head = int(words[3]) if words[0] == "HPUB" else 0
        headers: dict[str, str] | None = None
        if head:
            lines = data[at : at + head].decode().split("\r\n")[1:]
            headers = dict(line.split(": ", 1) for line in lines if line)
        yield words[1], words[2], headers, data[at + head : at + total]
        at += total + 2
