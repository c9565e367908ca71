"""Outgoing HTTP: a client that connects only to addresses it may reach, follows no redirects, and reads little.

The name of a host is resolved here and the connection goes to the very address that was checked, so a name that
answers differently the second time gains nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpcore
import httpx

from ..errors import HarkError, RefusedError

__all__ = ["AddressRefused", "is_public", "make_client", "retry_after_s", "sign_standard_webhook"]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(RefusedError):
    """A request would have gone to a loopback or private address, which has not been allowed."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(
            f"{host} is {address}, which is not a public address",
            hint="set HARK_AUTOMATIONS__ALLOW_PRIVATE_ADDRESSES=true to let `call` reach it",
        )
        self.host, self.address = host, address


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


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses."""

    def __init__(self, *, allow_private: bool) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(f"looking up {host} took too long") from exc
        except OSError as exc:
            raise httpcore.ConnectError(f"{host} cannot be looked up: {exc}") from exc
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        refused = [a for a in addresses if not self._allow_private and not is_public(a)]
        allowed = [a for a in addresses if a not in refused]
        if not allowed:
            raise AddressRefused(host, refused[0] if refused else "nowhere")
        error: Exception | None = None
        for address in allowed[:4]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                error = exc
        assert error is not None
        raise error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise RefusedError("unix sockets cannot be called")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.aiter_stream():
                yield part
        except httpcore.TimeoutException as exc:
            raise httpx.ReadTimeout(str(exc) or "the answer took too long") from exc
        except (httpcore.NetworkError, httpcore.ProtocolError) as exc:
            raise httpx.ReadError(str(exc) or type(exc).__name__) from exc

    async def aclose(self) -> None:
        await self._response.aclose()


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, *, allow_private: bool, connections: int) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=30,
            network_backend=_Backend(allow_private=allow_private),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except httpcore.TimeoutException as exc:
            raise httpx.ConnectTimeout(str(exc) or "no answer in time", request=request) from exc
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as exc:
            raise httpx.ConnectError(str(exc) or type(exc).__name__, request=request) from exc
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Stream(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def make_client(*, allow_private: bool, connections: int) -> httpx.AsyncClient:
    """Return a client for calls; close it after use. It ignores proxies of the environment and keeps no cookies."""
    return httpx.AsyncClient(
        transport=_Transport(allow_private=allow_private, connections=connections),
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": "hark"},
    )


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
