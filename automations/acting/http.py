"""Outgoing HTTP: a small HTTP/1.1 client that connects only to addresses it may reach and follows no redirects.

The name of a host is resolved here and the connection goes to the very address that was checked, so a name that
answers differently the second time gains nothing. It is written on h11 and not on a general client, because the
connection pool of the usual one costs milliseconds per request once many are under way.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import select
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from time import monotonic
from typing import Self, TypeAlias

import anyio
import h11
import httpx
from anyio import AsyncContextManagerMixin
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from ...errors import HarkError, RefusedError, UnavailableError

__all__ = [
    "AddressRefused",
    "Answer",
    "CallFailed",
    "Caller",
    "is_public",
    "retry_after_s",
    "sign_standard_webhook",
]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_READ_BYTES = 16 * 1024
_IDLE_S = 15.0
_IDLE_PER_ORIGIN = 16
_IDLE = 128
_ADDRESSES = 4


class AddressRefused(RefusedError):
    """A request would have gone to a loopback or private address, which has not been allowed."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(
            # In the message itself: what stands in dead letters and listings has no room for a hint beside it.
            f"{host if host == address else f'{host} is {address}, which'} is not a public address; "
            "HARK_AUTOMATIONS__ALLOW_PRIVATE_ADDRESSES=true lets calls and sinks reach it"
        )
        self.host, self.address = host, address


class CallFailed(UnavailableError):
    """There was no answer: no connection, or it broke."""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, looking through IPv4 addresses inside IPv6 ones."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip.sixtofour is not None:
            ip = ip.sixtofour
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: lower-case header names, and the beginning of the body as text."""

    status: int
    headers: Mapping[str, str]
    text: str


_Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port."""


_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE = re.compile(rb"([^\x00\s]+([ \t]+[^\x00\s]+)*)?")
_OURS = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""Headers that say where a request goes and where it ends."""


@lru_cache(maxsize=256)
def _destination(url: str) -> tuple[_Origin, bytes, bytes]:
    """Return where a request for a URL goes, its target there, and the headers that all of them have. Most are called often.

    Raises:
        ValueError: nothing can be sent there.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ValueError(str(exc)) from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("it is not an http:// or https:// address")
    port = parsed.port if parsed.port is not None else 443 if parsed.scheme == "https" else 80
    if not 0 < port < 65536:
        raise ValueError(f"there is no port {port}")
    try:
        h11.Request(method="GET", target=parsed.raw_path, headers=[(b"Host", parsed.netloc)])
    except h11.LocalProtocolError as exc:
        raise ValueError(str(exc)) from exc
    head = b"Host: %b\r\nUser-Agent: hark\r\nAccept: */*\r\n" % parsed.netloc
    if parsed.userinfo:
        head += b"Authorization: Basic %b\r\n" % base64.b64encode(
            f"{parsed.username}:{parsed.password}".encode()
        )
    return (parsed.scheme, parsed.raw_host.decode(), port), parsed.raw_path, head


def _written(method: str, target: bytes, head: bytes, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a request as it goes over the line. By hand: with h11 it took a fifth of all that is done until a call is sent.

    Raises:
        ValueError: a header cannot be sent, or would say where the request ends.
    """
    lines = [b"%b %b HTTP/1.1\r\n%b" % (method.encode(), target, head)]
    for name, value in headers.items():
        header, said = name.encode(), value.encode()
        if not _NAME.fullmatch(header) or not _VALUE.fullmatch(said):
            # Without the value, which may hold a secret.
            raise ValueError(
                f"the header {name!r} or its value has characters that none may have, such as line breaks"
            )
        if header.lower() in _OURS:
            raise ValueError(f"Hark writes the header {name} itself; leave it out")
        lines.append(b"%b: %b\r\n" % (header, said))
    if body or method not in ("GET", "HEAD"):
        lines.append(b"Content-Length: %d\r\n" % len(body))
    return b"%b\r\n%b" % (b"".join(lines), body)


@lru_cache(maxsize=16)
def _asked(method: str) -> h11.Request:
    """Return a request by which h11 knows what kind of answer to expect."""
    return h11.Request(method=method, target="/", headers=[("Host", "")])


class _Line:
    """A connection to one origin."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream, self.protocol = stream, h11.Connection(h11.CLIENT)
        self.used, self.heard, self._idle_since = 0, False, 0.0
        # Asked for once: to ask costs as much as all the rest of `is_fresh`.
        self._socket = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610  # anyio's, not a query's
        self._tls = stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610

    def rest(self) -> None:
        """Get ready for the next request."""
        self.protocol.start_next_cycle()
        self.used += 1
        self._idle_since = monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether it may be used again: not idle for long, and not closed by the other side."""
        if monotonic() - self._idle_since > _IDLE_S:
            return False
        if self._socket is None or (number := self._socket.fileno()) < 0:
            return False
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return not poll.poll(0) and not self._has_rest  # readable while idle: it has been closed

    @property
    def _has_rest(self) -> bool:
        """Whether more has come than the answers, or the end, and was taken from the socket with the last of them."""
        if self._tls is None:
            return False  # h11 has it then
        try:
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            return True
        return True


class Caller(AsyncContextManagerMixin):
    """Makes requests; keeps connections for the next ones. Callers bound the time and the number at once."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._idle: dict[_Origin, list[_Line]] = {}
        self._ssl: ssl.SSLContext | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        try:
            yield self
        finally:
            with anyio.move_on_after(2, shield=True):
                for lines in self._idle.values():
                    for line in lines:
                        await anyio.aclose_forcefully(line.stream)
                self._idle.clear()

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """Send one request and return the answer, whatever its status.

        Raises:
            AddressRefused: nothing was sent.
            ValueError: the URL or a header cannot be sent.
            CallFailed: there was no answer.
        """
        origin, target, head = _destination(url)
        asked, written = _asked(method), _written(method, target, head, headers, body)
        while True:
            line = await self._line(origin)
            try:
                return await self._exchange(line, asked, written, origin)
            except (
                anyio.BrokenResourceError,
                anyio.ClosedResourceError,
                anyio.EndOfStream,
                h11.ProtocolError,
                OSError,
            ) as exc:
                if line.used and not line.heard:
                    continue  # a kept connection that was being closed as we wrote: nothing has been answered on it
                raise CallFailed(_said(exc)) from exc

    async def _exchange(self, line: _Line, asked: h11.Request, written: bytes, origin: _Origin) -> Answer:
        protocol, stream, kept = line.protocol, line.stream, False
        try:
            line.heard = False
            await stream.send(written)
            protocol.send(asked)
            protocol.send(h11.EndOfMessage())
            response: h11.Response | None = None
            text = b""
            while True:
                event = protocol.next_event()
                if event is h11.NEED_DATA:
                    try:
                        received = await stream.receive(65536)
                    except anyio.EndOfStream:
                        received = b""
                    line.heard = line.heard or bool(received)
                    protocol.receive_data(received)
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    text += bytes(event.data)
                    if len(text) >= _READ_BYTES:
                        break
                elif isinstance(event, h11.EndOfMessage):
                    # What follows an answer nobody asked for: the next one would be taken for answered by it.
                    kept = (
                        protocol.our_state is h11.DONE
                        and protocol.their_state is h11.DONE
                        and not protocol.trailing_data[0]
                    )
                    break
                elif isinstance(event, h11.ConnectionClosed):
                    break
            if response is None:
                raise anyio.EndOfStream
            answer = Answer(
                response.status_code,
                {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers},
                text[:_READ_BYTES].decode(errors="replace"),
            )
            if kept:
                self._keep(line, origin)
            return answer
        finally:
            if not kept:
                await anyio.aclose_forcefully(stream)

    def _keep(self, line: _Line, origin: _Origin) -> None:
        lines = self._idle.setdefault(origin, [])
        line.rest()
        lines.append(line)

    async def _line(self, origin: _Origin) -> _Line:
        """Return a kept connection that is still good, or a new one."""
        lines = self._idle.get(origin)
        while lines:
            line = lines.pop()
            if line.is_fresh:
                if len(lines) > _IDLE_PER_ORIGIN:
                    await anyio.aclose_forcefully(lines.pop(0).stream)
                return line
            await anyio.aclose_forcefully(line.stream)
        self._idle.pop(origin, None)
        if len(self._idle) > _IDLE:
            _, oldest = self._idle.popitem()
            for line in oldest:
                await anyio.aclose_forcefully(line.stream)
        return _Line(await self._connect(origin))

    async def _connect(self, origin: _Origin) -> ByteStream:
        scheme, host, port = origin
        error: OSError | ssl.SSLError | None = None
        for address in await self._addresses(host, port):
            try:
                stream: ByteStream = await anyio.connect_tcp(address, port)
                break
            except OSError as exc:
                error = exc
        else:
            raise CallFailed(f"no connection to {host}:{port}: {_said(error)}")
        if scheme == "http":
            return stream
        if self._ssl is None:
            self._ssl = await anyio.to_thread.run_sync(httpx.create_ssl_context)
        try:
            return await TLSStream.wrap(
                stream, hostname=host, ssl_context=self._ssl, standard_compatible=False
            )
        except (ssl.SSLError, OSError, anyio.BrokenResourceError, anyio.EndOfStream) as exc:
            await anyio.aclose_forcefully(stream)
            raise CallFailed(f"no secure connection to {host}:{port}: {_said(exc)}") from exc
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that may be connected to, each of them looked at."""
        host = host.strip("[]")
        try:
            addresses = [str(ipaddress.ip_address(host))]
        except ValueError:
            try:
                found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as exc:
                raise CallFailed(f"{host} cannot be looked up: {exc}") from exc
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [a for a in addresses if self._allow_private or is_public(a)]
        if not allowed:
            raise AddressRefused(host, addresses[0] if addresses else "nowhere")
        return allowed[:_ADDRESSES]


def _said(exc: BaseException | None) -> str:
    inner = exc.__cause__ if isinstance(exc, anyio.BrokenResourceError) and exc.__cause__ else exc
    if isinstance(inner, anyio.EndOfStream):
        return "it was closed without an answer"
    return str(inner) or type(inner).__name__


def sign_standard_webhook(secret: str, *, id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the three headers of the Standard Webhooks specification for a body.

    Args:
        secret: ``whsec_`` and base64, or any text, which is then used as it is.
    Source: Standard Webhooks 1.0, "signature scheme" (symmetric).
    """
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret[6:], validate=True)
        except ValueError as exc:
            raise HarkError("a secret that begins with whsec_ goes on in base64") from exc
    timestamp = str(int(at.timestamp()))
    mac = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def retry_after_s(value: str | None, *, now: datetime) -> float | None:
    """Return the seconds a ``Retry-After`` header asks for (at most a day); None if it says nothing we understand."""
    if not value:
        return None
    text = value.strip()
    if text.isdecimal():
        return min(float(text[:9]), 86400.0)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return min(max(0.0, (at - now).total_seconds()), 86400.0)
