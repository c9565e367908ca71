"""Requests that do not come to an end, or say at once that they are too large: answered, and bounded in time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import SocketStream
from hark.server.roles import Role
from hark.server.service import Service

from tests.server.conftest import Start

SERVER = frozenset({Role.SERVER})
CONFIG = 'webhooks: {open: {verify: none, event: {type: "open.{{ body.kind }}"}}}'
TEN_MB = 10 << 20
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def connected(service: Service) -> AsyncGenerator[SocketStream, None]:
    """A connection on which a test says what it likes."""
    address = urlsplit(service.url)
    assert address.hostname is not None
    assert address.port is not None
    async with await anyio.connect_tcp(address.hostname, address.port) as stream:
        yield stream


async def answer(stream: SocketStream) -> bytes:
    """Everything that is answered until the server closes the connection."""
    got = b""
    with anyio.fail_after(60):
        try:
            while True:
                got += await stream.receive()
        except anyio.EndOfStream:
            return got


def head(path: str, *lines: str) -> bytes:
    """A POST without its body."""
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


@pytest.mark.parametrize("path", ["/api/events", "/hooks/open", "/api/deployments/etl/run"])
async def test_a_body_that_stops_coming_is_given_up(start: Start, path: str) -> None:
    """After `read_timeout_s` with 408, and the connection is closed: what else comes on it is no request."""
    limits = {"read_timeout_s": 1.5}
    async with (
        start(roles=SERVER, config=CONFIG, server=limits) as (service, _),
        connected(service) as stream,
    ):
        await stream.send(head(path, "Content-Type: application/json", "Content-Length: 100") + b'{"type"')
        got = await answer(stream)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"7 bytes" in got
    assert b"HARK_SERVER__READ_TIMEOUT_S" in got


async def test_a_body_that_comes_in_drips_is_given_up(start: Start) -> None:
    """Each drip is in time and all of them are not: `body_timeout_s` bounds the whole."""
    limits = {"read_timeout_s": 30.0, "body_timeout_s": 0.3}
    async with (
        start(roles=SERVER, config=CONFIG, server=limits) as (service, _),
        connected(service) as stream,
    ):
        await stream.send(head("/api/events", "Content-Length: 1000"))

        async def drip() -> None:
            with suppress(anyio.BrokenResourceError):  # closed behind the answer
                while True:
                    await stream.send(b" ")
                    await anyio.sleep(0.02)

        async with anyio.create_task_group() as tg:
            tg.start_soon(drip)
            with anyio.fail_after(60):
                got = await stream.receive()
            tg.cancel_scope.cancel()
    assert got.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["/api/events", "/hooks/open"])
async def test_a_body_that_says_it_is_too_large_is_refused_unread(start: Start, path: str) -> None:
    """At once, by what it says of itself: the sender need not send it, and `webhook.rejected` says its size."""
    async with start(roles=SERVER, config=CONFIG) as (service, _):
        async with connected(service) as stream:
            await stream.send(head(path, "Content-Type: application/json", f"Content-Length: {TEN_MB}"))
            with anyio.fail_after(60):
                got = await stream.receive()
        assert got.startswith(b"HTTP/1.1 413 ")
        if path == "/hooks/open":
            await service.bus.publisher.barrier()
            told = await service.bus.log.last("hark.ev.webhook.rejected")
            assert told is not None
            assert isinstance(told.event.data, dict)
            assert (told.event.data["size"], told.event.data["reason"]) == (TEN_MB, "too-large")
            [kept] = await service.parts.running("webhooks").requests("open")
            assert (kept.size, kept.body, kept.is_whole) == (TEN_MB, b"", False)


async def test_who_writes_a_large_body_before_reading_gets_the_answer(start: Start) -> None:
    """Not a broken connection: the answer is sent at once, and what still comes is read into nothing."""
    async with start(roles=SERVER, config=CONFIG) as (service, _):
        for path in ("/api/events", "/hooks/open", "/hooks/unknown"):
            async with connected(service) as stream:
                await stream.send(head(path, f"Content-Length: {TEN_MB}") + b"x" * TEN_MB)
                got = await answer(stream)
            assert got.startswith(b"HTTP/1.1 404 " if path == "/hooks/unknown" else b"HTTP/1.1 413 "), got


@pytest.mark.parametrize(
    "said",
    [
        (),
        (b"POST /api/events HTTP/1.1\r\nHost:",),
        (head("/api/events", "Content-Length: 2") + b"[]", b"POST /"),
    ],
)
async def test_a_head_that_does_not_come_is_given_up(start: Start, said: Sequence[bytes]) -> None:
    """Nothing at all, half a head, and half a second head: the connection is closed in time."""
    limits = {"read_timeout_s": 1.5}
    async with (
        start(roles=SERVER, config=CONFIG, server=limits) as (service, _),
        connected(service) as stream,
    ):
        got = b""
        for words in said:
            await stream.send(words)
            if words.endswith(b"[]"):
                got += await stream.receive()
        got += await answer(stream)
    assert got.count(b"408 Request Timeout") == (1 if said else 0)


async def test_callers_past_what_may_be_open_are_turned_away(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and those who are in are served: files are left for all else the service does."""
    monkeypatch.setattr("hark.server.web.for_callers", lambda: 1)
    async with start(roles=SERVER, config=CONFIG) as (service, _):
        async with connected(service) as first, connected(service) as second:
            assert (await answer(second)).startswith(b"HTTP/1.1 503 ")
            await first.send(LIVE)
            assert b" 200 " in await answer(first)
        async with connected(service) as third:
            await third.send(LIVE)
            assert b" 200 " in await answer(third)


async def test_a_request_that_is_being_answered_is_not_given_up(start: Start) -> None:
    """However long the answer takes: only asking is bounded."""
    async with start(roles=SERVER, config=CONFIG, server={"read_timeout_s": 0.2}) as (service, http):
        async with http.stream("GET", "/api/events/stream") as stream:
            await anyio.sleep(0.5)
            await http.post("/api/events", json={"type": "order.paid", "id": "still-here"})
            got = cast("AsyncGenerator[str, None]", stream.aiter_lines())
            with anyio.fail_after(60):
                async with aclosing(got) as lines:
                    async for line in lines:
                        if "still-here" in line:
                            break
        assert service.parts.is_ready


async def test_who_leaves_in_the_middle_of_a_body_is_no_error(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It happens all day; nobody has to look at it."""
    async with start(roles=SERVER, config=CONFIG) as (service, http):
        async with connected(service) as stream:
            await stream.send(head("/api/events", "Content-Length: 100") + b"{")
        assert (await http.get("/health/live")).status_code == 200
        await service.bus.publisher.barrier()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
