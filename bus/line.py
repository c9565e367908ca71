"""Connections for those who ask and wait themselves, with no thread between them and the broker.

The session of a program lives on a thread of its own. Who waits there for an answer wakes that thread to have his message
sent, and is woken by it: two changes of threads for each exchange, which cost more than the exchange. So a program that
stores one thing after the other gets a second connection, a line. One caller at a time writes to it and reads the answer
from it, blocking in his thread or awaiting in his loop.

A line is a bare socket that knows as much of the protocol as that takes. It is never tried twice: whatever is out of the
ordinary (no answer, an error, a socket that is closed) ends it, and the session does what was asked for.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from .arrival import Arrival
from .wire import frame

if TYPE_CHECKING:
    from .bus import Bus

__all__ = ["Line", "Lines"]

log = logging.getLogger(__name__)

MOST_LINES = 4
"""More callers than these at once do better on one connection, which sends what they give together."""
FIRST_EXCHANGES = 4
"""So many go by the session before a line is opened: a program that calls one flow and ends needs none."""
MOST_BYTES = 32 << 10
"""What is larger goes by the session: so much a socket takes at once."""
MOST_IDLE_S = 60.0
"""A line that was not used for so long is not used again: nobody has answered the broker's PINGs meanwhile."""
_PAUSE_EXCHANGES = 1000
"""So many go by the session until it is tried again to open a line."""
_READ_BYTES = 8192
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""A write on a line that the broker has closed is an error, also where the program has set SIGPIPE to end it."""


class _BrokenLine(ValueError):
    """Something came that is no answer; the line can be used no more."""


class Line:
    """A connection to the broker that one caller uses at a time. After an exchange that returns None it is closed.

    Args:
        plain: connected and greeted, blocking. inbox: what it listens on, followed by ``.`` and a word.
        try_s: how long to wait for an answer.
    """

    def __init__(self, plain: socket.socket, inbox: str, *, try_s: float) -> None:
        self._socket, self._inbox, self._try_s = plain, f"{inbox}.", try_s
        self._numbers = itertools.count(1)
        self._open: dict[str, int] = {}
        self._answers: list[Arrival | None] = []
        self._rest = b""
        self._may_block = True
        self.is_closed = False
        self.used_at = time.monotonic()

    def ask(self, questions: Sequence[tuple[str, str, bytes]]) -> list[Arrival | None] | None:
        """Send messages and wait, holding the thread, until all are answered; None: they were not, or we do not know."""
        try:
            if not self._may_block:
                os.set_blocking(self._socket.fileno(), True)
                self._may_block = True
            self._socket.sendall(self._frames(questions), _NO_SIGNAL)
            while self._open:
                self._hear(self._socket.recv(_READ_BYTES))
        except (OSError, ValueError, IndexError) as exc:
            self._break(exc)
            return None
        except BaseException:  # interrupted: the answers would be taken for those of the next caller
            self.close()
            raise
        self.used_at = time.monotonic()
        return self._answers

    async def aask(self, questions: Sequence[tuple[str, str, bytes]]) -> list[Arrival | None] | None:
        """Do what ``ask`` does, awaiting it in the running loop. Cancelled, it closes the line.

        Raises:
            NotImplementedError: this kind of loop does not tell when a socket can be read; nothing was sent.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def hear() -> None:
            if answered.done():
                return
            try:
                self._hear(self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return
            except (OSError, ValueError, IndexError) as exc:
                answered.set_exception(exc)
                return
            if not self._open:
                answered.set_result(None)

        def give_up() -> None:
            if not answered.done():
                answered.set_exception(TimeoutError("no answer"))

        number = self._socket.fileno()
        loop.add_reader(number, hear)
        self._may_block = False  # uvloop takes that from a socket it watches
        limit = loop.call_later(self._try_s, give_up)
        try:
            try:
                data = self._frames(questions)
                if self._socket.send(data, socket.MSG_DONTWAIT | _NO_SIGNAL) != len(data):
                    raise _BrokenLine("its socket is full")
                await answered
            finally:
                limit.cancel()
                # Before it is closed: where a forked child has it, too, the system would tell the loop of it for ever.
                loop.remove_reader(number)
        except (OSError, ValueError, IndexError) as exc:
            self._break(exc)
            return None
        except BaseException:
            self.close()
            raise
        self.used_at = time.monotonic()
        return self._answers

    def close(self) -> None:
        self.is_closed = True
        self._socket.close()

    def _break(self, why: Exception) -> None:
        log.debug("bus.line-broken", extra={"error": repr(why)})
        self.close()

    def _frames(self, questions: Sequence[tuple[str, str, bytes]]) -> bytes:
        self._answers = [None] * len(questions)
        frames = []
        for index, (subject, headers, payload) in enumerate(questions):
            number = str(next(self._numbers))
            self._open[number] = index
            frames.append(frame(subject, self._inbox + number, headers, payload))
        return b"".join(frames)

    def _hear(self, data: bytes) -> None:
        """Take apart what has come: answers, and what the broker says of itself."""
        if not data:
            raise _BrokenLine("the broker has closed it")
        data, at = self._rest + data, 0
        while (end := data.find(b"\r\n", at)) >= 0:
            words = data[at:end].split()
            kind = words[0] if words else b""
            if kind == b"MSG" or kind == b"HMSG":
                body, size = end + 2, int(words[-1])
                if len(data) < body + size + 2:
                    break
                head = int(words[-2]) if kind == b"HMSG" else 0
                subject = words[1].decode()
                index = self._open.pop(subject[len(self._inbox) :], None)
                if index is not None:
                    block = data[body : body + head]
                    self._answers[index] = Arrival(subject, "", data[body + head : body + size], block)
                at = body + size + 2
                continue
            if kind == b"PING":
                self._socket.sendall(b"PONG\r\n", _NO_SIGNAL)
            elif kind not in (b"PONG", b"INFO", b"+OK"):
                raise _BrokenLine(data[at:end].decode(errors="replace"))
            at = end + 2
        self._rest = data[at:]


class Lines:
    """The lines of a session on a thread of its own; none where the broker asks for more than a password.

    To be taken and given back from any thread but the session's.
    """

    def __init__(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        self._bus, self._loop = bus, loop
        self._idle: list[Line] = []
        self._count = 0  # open, in use or not
        self._lock = threading.Lock()
        self._exchanges = 0
        self._opening: asyncio.Task[None] | None = None
        address = bus.address
        # What else there is (TLS, WebSocket, signing) is the client's business.
        self._may_open = (
            hasattr(socket, "MSG_DONTWAIT") and not address.uses_tls and address.credentials is None
        )

    def take(self, questions: Iterable[tuple[str, str, bytes]]) -> Line | None:
        """Return a line for these questions, to be given back; None: there is none. Opens one if that is worth while."""
        if not self._may_open or not self._bus.is_connected:
            return None
        if sum(len(headers) + len(payload) for _, headers, payload in questions) > MOST_BYTES:
            return None
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - line.used_at < MOST_IDLE_S:
                return line
            line.close()
            self.give_back(line)
        self._exchanges += 1
        if self._exchanges > FIRST_EXCHANGES and self._count < MOST_LINES:
            with self._lock:
                if self._opening is None and self._may_open:
                    # In its own time: who asks now is served by the session.
                    self._call(self._begin_opening)
        return None

    def give_back(self, line: Line) -> None:
        """Take back a line that was taken, closed or not."""
        with self._lock:
            if line.is_closed or not self._may_open:
                self._count -= 1
            else:
                self._idle.append(line)
                return
        line.close()

    async def aclose(self) -> None:
        """Close what is idle, and what is in use when it is given back. On the loop of the session."""
        with self._lock:
            self._may_open = False
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        if (opening := self._opening) is not None:
            opening.cancel()
            await asyncio.wait({opening})
        for line in idle:
            line.close()

    def _call(self, begin: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:  # closed
            self._may_open = False

    def _begin_opening(self) -> None:
        if self._opening is None and self._may_open and self._count < MOST_LINES:
            self._opening = self._loop.create_task(self._open(), name="hark line")

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self._bus.config.connect_timeout_s):
                line = await self._opened()
        except (OSError, TimeoutError) as exc:
            log.debug("bus.line-not-opened", extra={"error": repr(exc)})
            self._exchanges = -_PAUSE_EXCHANGES
            return
        except ValueError as exc:  # the broker greets in another way
            log.debug("bus.line-refused", extra={"error": repr(exc)})
            self._may_open = False
            return
        finally:
            self._opening = None
        with self._lock:
            self._count += 1
        self.give_back(line)

    async def _opened(self) -> Line:
        """Return a line to the server that the session is connected to."""
        bus, loop = self._bus, self._loop
        where, address = bus.connection.peer, bus.address
        if where is None:
            if not bus.is_connected:
                raise ConnectionError("the session has lost its broker")
            raise _BrokenLine(f"no plain connection: {bus.connection.url}")
        plain = socket.socket(socket.AF_INET6 if len(where) == 4 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            plain.setblocking(False)
            await _connect(loop, plain, where)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard, _ = await _read_line(loop, plain, b"")
            info = orjson.loads(heard[5:])
            if not heard.startswith(b"INFO ") or info.get("tls_required") or not info.get("headers"):
                raise _BrokenLine("the broker asks for TLS, or is too old")
            said = {
                "verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "python",
                "version": "1", "protocol": 1, "name": f"{bus.connection.name}, line", "user": address.user,
                "pass": address.password, "auth_token": address.token,
            }  # fmt: skip
            given = orjson.dumps({name: value for name, value in said.items() if value is not None})
            inbox = bus.connection.new_inbox()
            greeting = b"CONNECT %b\r\nSUB %b.* 1\r\nPING\r\n" % (given, inbox.encode())
            await loop.sock_sendall(plain, greeting)
            rest = b""
            while heard != b"PONG":
                heard, rest = await _read_line(loop, plain, rest)
                if heard.startswith(b"-ERR"):
                    raise _BrokenLine(heard.decode(errors="replace"))
            try_s = max(0.2, bus.config.request_timeout_s / 3)
            plain.setblocking(True)
            limit = struct.pack("ll", int(try_s), int(try_s % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                plain.setsockopt(socket.SOL_SOCKET, option, limit)
            return Line(plain, inbox, try_s=try_s)
        except BaseException:
            plain.close()
            raise


async def _connect(loop: asyncio.AbstractEventLoop, plain: socket.socket, where: tuple[Any, ...]) -> None:
    # By hand, because uvloop has addresses looked up that are known, by four threads that stay.
    error = plain.connect_ex(where)
    if error == errno.EINPROGRESS:
        connected: asyncio.Future[None] = loop.create_future()
        number = plain.fileno()
        loop.add_writer(number, lambda: None if connected.done() else connected.set_result(None))
        try:
            await connected
        finally:
            loop.remove_writer(number)
        error = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


async def _read_line(
    loop: asyncio.AbstractEventLoop, plain: socket.socket, rest: bytes
) -> tuple[bytes, bytes]:
    """Return the next line, without its end, and what was read behind it; ``rest`` is what was read before."""
    while b"\r\n" not in rest:
        data = await loop.sock_recv(plain, _READ_BYTES)
        if not data:
            raise ConnectionResetError("the broker has closed it")
        rest += data
    line, _, rest = rest.partition(b"\r\n")
    return line, rest
