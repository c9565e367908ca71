"""Messages as they arrive, without a detour: a faster reader of the NATS protocol for nats-py's client.

nats-py matches two regular expressions per message, parses every header and passes the message through a queue to a
task: 15 µs, of which most readers of the log need nothing. Here the frames are cut out with ``find``, headers are
parsed when asked for, and the message goes straight to a function. Whatever is not a whole ``MSG`` or ``HMSG`` frame
is left to nats-py's own parser, which this one extends.

This file and ``wire.py`` are the only ones that know the client's insides. ``subscribe`` falls back to the public way
with a client that is not ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from ..errors import BusUnavailable
from .headers import Headers, parse_headers

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["Arrival", "DirectClient", "Headers", "OnArrival", "parse_headers", "subscribe", "unsubscribe"]

log = logging.getLogger(__name__)

_BITE = 64
"""Messages handled before others of the loop have a turn, a millisecond of them: in a burst there are hundreds."""
_MUCH_BYTES = 1 << 14
"""Who finds so much to read at once has let enough come together."""
KEPT_BYTES = 1 << 16  # a frame larger than this is collected by nats-py's parser, which copies less


class Arrival:
    """A message: ``subject``, ``reply`` ("" if none), ``data``, and ``headers`` parsed on first use."""

    __slots__ = ("block", "data", "parsed", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, block: bytes) -> None:
        self.subject, self.reply, self.data, self.block = subject, reply, data, block
        self.parsed: Mapping[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        if self.parsed is None:
            self.parsed = Headers(self.block)
        return self.parsed

    @property
    def status(self) -> int:
        """The status of a status message (100, 404, 408, 503, …), 0 of an ordinary one."""
        if self.block[8:9] != b" " and self.parsed is None:
            return 0
        status = self.headers.get("Status", "")
        return int(status) if status.isdigit() else 0


OnArrival = Callable[[Arrival], object]
"""Takes a message; may return True to say that there is no hurry about it."""


class _DirectParser(Parser):
    """nats-py's parser with a short way for whole messages."""

    def __init__(self, client: DirectClient) -> None:
        self._epoch = 0
        self._unyielded = 0
        self._client = client
        super().__init__(client)

    def reset(self) -> None:
        self._epoch += 1
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        if self.state != AWAITING_CONTROL_LINE:  # within a large message
            await super().parse(data)
            return
        if self.buf:
            self.buf += data
            data = bytes(self.buf)
            self.buf.clear()
        client, epoch = self._client, self._epoch
        direct, find = client.direct, data.find
        at, size, messages, calm = 0, len(data), 0, 0
        wanted = 0  # bytes of the frame at ``at``, if its first line is there
        while at < size:
            end = find(b"\r\n", at)
            if end < 0:
                break
            # As text at once, and not word by word. Whoever publishes on a subject that is no UTF-8 harms himself alone.
            words = data[at:end].decode("utf-8", "replace").split()
            kind = words[0] if words else ""
            try:
                if kind == "HMSG":
                    head = int(words[-2])
                    reply = words[3] if len(words) == 6 else ""
                elif kind == "MSG":
                    head = 0
                    reply = words[3] if len(words) == 5 else ""
                else:
                    break
                sid, body = int(words[2]), end + 2
                stop = body + int(words[-1])
            except (ValueError, IndexError) as exc:
                raise ProtocolError from exc
            if stop + 2 > size:
                wanted = stop + 2 - at
                break
            at_line, at = at, stop + 2
            handler = direct.get(sid)
            if handler is not None:
                messages += 1
                block = data[body : body + head] if head else b""
                arrival = Arrival(words[1], reply, data[body + head : stop], block)
                try:
                    if handler(arrival) is True:
                        calm += 1
                except Exception:
                    _failed(arrival)
                continue
            block = data[body : body + head] if head else b""
            subject = data[at_line:end].split()[1]
            await client._process_msg(sid, subject, reply.encode(), data[body + head : stop], block)
            if epoch != self._epoch:  # reconnected meanwhile: the rest is of another connection
                return
        client.stats["in_msgs"] += messages
        if at < size:
            self.buf += data[at:] if at else data
            is_message = data[at : at + 1] in (b"M", b"H")
            if not is_message or wanted > KEPT_BYTES or (not wanted and size - at > 4096):
                await super().parse(b"")
        if client.lull_s and messages == calm != 0 and size < _MUCH_BYTES:
            await client.lull()
            return
        self._unyielded += messages
        if self._unyielded >= _BITE:
            # The client's loop goes on without a pause while there is something to read.
            self._unyielded = 0
            await asyncio.sleep(0)


class DirectClient(Client):
    """A client whose messages can go straight to functions: ``direct`` maps subscription numbers to them.

    Args:
        lull_s: for how long not to read after having read little that there is no hurry about: taking each message from the
            socket by itself costs several times what is done with it.
    """

    def __init__(self, *, lull_s: float = 0.0) -> None:
        super().__init__()
        self.lull_s = lull_s
        self.direct: dict[int, OnArrival] = {}
        # An nats-py without this attribute would parse by itself, and our subscriptions go the public way.
        if hasattr(self, "_ps"):
            self._ps = _DirectParser(self)

    async def lull(self) -> None:
        """Let messages come together in the socket."""
        transport = getattr(getattr(self._transport, "_io_writer", None), "transport", None)
        if transport is None or transport.is_closing():
            return
        transport.pause_reading()
        try:
            await asyncio.sleep(self.lull_s)
        finally:
            if not transport.is_closing():
                transport.resume_reading()

    async def _process_pong(self) -> None:
        # Who was cancelled while waiting for an answer must not end the read loop when that answer comes.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self.direct.pop(sid, None)
        super()._remove_sub(sid, max_msgs)


class _Handed:
    """Stands where the client expects a future: each message goes to a function, at once and in order."""

    def __init__(self, on_arrival: OnArrival) -> None:
        self._on_arrival = on_arrival

    def cancelled(self) -> bool:
        return False

    def set_result(self, msg: Msg) -> None:
        arrival = Arrival(msg.subject, msg.reply, msg.data, b"")
        arrival.parsed = {str(getattr(k, "value", k)): v for k, v in (msg.headers or {}).items()}
        try:
            self._on_arrival(arrival)
        except Exception:
            _failed(arrival)


def _failed(arrival: Arrival) -> None:
    """Log an error of a handler, which would otherwise end the client's read loop, and with it the connection."""
    log.exception("bus.handler-failed", extra={"subject": arrival.subject})


async def subscribe(nc: Client, subject: str, on_arrival: OnArrival) -> Subscription:
    """Hand every message on ``subject`` to ``on_arrival``, in the loop, from the client's read loop itself.

    Raises:
        BusUnavailable: the connection is closed.
    """
    handed: Any = _Handed(on_arrival)
    try:
        subscription = await nc.subscribe(subject, future=handed)
    except (nats.errors.Error, OSError) as exc:
        raise BusUnavailable(f"cannot listen on the broker: {exc}") from exc
    if isinstance(nc, DirectClient):
        nc.direct[subscription._id] = on_arrival
    return subscription


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription; quiet when the connection has gone first."""
    try:
        await subscription.unsubscribe()
    except (nats.errors.Error, OSError) as exc:
        log.debug("bus.unsubscribe-failed", extra={"error": str(exc)})
