"""Outgoing HTTP: which addresses, how connections are kept, what comes back, how it fails."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSListener, TLSStream
from hark.automations.acting.http import (
    AddressRefused,
    Caller,
    CallFailed,
    is_public,
    retry_after_s,
    sign_standard_webhook,
)

from tests.notifications.conftest import self_signed

from .conftest import Receiver

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.0.0.1", False), ("192.168.1.1", False),
        ("172.16.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False), ("100.64.0.1", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fc00::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True), ("ff02::1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    """Loopback, private, link-local, shared and multicast are not, in any disguise."""
    assert is_public(address) is public


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with Caller(allow_private=True) as made:
        yield made


async def test_connections_are_kept_for_the_next_call(caller: Caller, receiver: Receiver) -> None:
    """Two calls one after the other use one connection; the answer has its status, headers and text."""
    for n in range(3):
        answer = await caller.request("POST", f"{receiver.url}/{n}?q=1", headers={"X-A": "b"}, body=b"hello")
        assert (answer.status, answer.text, answer.headers["content-length"]) == (200, "ok", "2")
    assert [(r.method, r.path, r.body, r.headers["x-a"]) for r in receiver.requests] == [
        ("POST", f"/{n}?q=1", b"hello", "b") for n in range(3)
    ]
    assert receiver.requests[0].headers["host"] == f"127.0.0.1:{receiver.port}"
    assert receiver.connections == 1


async def test_user_and_password_of_a_url_are_what_they_stand_for(caller: Caller, receiver: Receiver) -> None:
    """An @ has to be written in another way there, a colon may be."""
    await caller.request("GET", f"http://us%40er:p%3Ass@127.0.0.1:{receiver.port}/", headers={})
    written = base64.b64encode(b"us@er:p:ss").decode()
    assert receiver.requests[0].headers["authorization"] == f"Basic {written}"


async def test_a_kept_connection_that_was_closed_is_replaced(caller: Caller) -> None:
    """The other side closes after each answer; every call still succeeds."""
    served = 0

    async def once(stream: SocketStream) -> None:
        nonlocal served
        async with stream:
            asked = await stream.receive()
            served += 1
            # What answers a HEAD has the length of what is not there.
            await stream.send(
                b"HTTP/1.1 204 No\r\ncontent-length: %d\r\n\r\n" % (5 * asked.startswith(b"HEAD"))
            )

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, once)
        for method in ("GET", "HEAD", "GET", "HEAD", "DELETE"):
            assert (await caller.request(method, f"http://127.0.0.1:{port}/", headers={})).status == 204
        tg.cancel_scope.cancel()
    assert served == 5


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"x"])
async def test_what_follows_an_answer_is_not_the_answer_to_the_next_call(caller: Caller, more: bytes) -> None:
    """Each call is answered by who has read it, and is sent once."""
    served = 0

    async def too_much(stream: SocketStream) -> None:
        nonlocal served
        async with stream:
            async for _ in stream:
                served += 1
                await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d%b" % (served, more))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, too_much)
        texts = [
            (await caller.request("GET", f"http://127.0.0.1:{port}/", headers={})).text for _ in range(3)
        ]
        tg.cancel_scope.cancel()
    assert (texts, served) == (["1", "2", "3"], 3)


async def test_nor_is_what_follows_it_encrypted_in_a_piece_of_its_own(
    caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken from the socket with the answer, where nobody sees it; a connection without it is used again."""
    served, connections = 0, 0

    async def serve(stream: TLSStream) -> None:
        nonlocal served, connections
        connections += 1
        with suppress(anyio.BrokenResourceError):  # whoever is told too much hangs up
            async with stream:
                async for asked in stream:
                    served += 1
                    await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % served)
                    if asked.startswith(b"GET /more"):
                        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    context = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    plain = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    url = f"https://127.0.0.1:{plain.extra(SocketAttribute.local_port)}"
    async with (
        TLSListener(plain, context, standard_compatible=False) as listener,
        anyio.create_task_group() as tg,
    ):
        tg.start_soon(listener.serve, serve)
        paths = ("/", "/", "/more", "/more", "/more", "/")
        texts = [(await caller.request("GET", url + path, headers={})).text for path in paths]
        tg.cancel_scope.cancel()
    assert texts == ["1", "2", "3", "4", "5", "6"]
    assert connections == 4


@pytest.mark.parametrize(
    "reply",
    [b"", b"HTTP/1.1 200", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort"],
)
async def test_a_broken_answer_is_a_failure(caller: Caller, reply: bytes) -> None:
    """Closed early, or not HTTP: an error that says so, once."""

    async def badly(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            if reply:
                await stream.send(reply)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, badly)
        with pytest.raises(CallFailed):
            await caller.request("POST", f"http://127.0.0.1:{port}/", headers={}, body=b"x")
        tg.cancel_scope.cancel()


async def test_a_huge_answer_is_read_only_at_its_beginning(caller: Caller) -> None:
    """What follows the first kilobytes is not read."""

    async def much(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            try:
                await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
                while True:
                    await stream.send(b"x" * 65536)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, much)
        answer = await caller.request("GET", f"http://127.0.0.1:{port}/", headers={})
        tg.cancel_scope.cancel()
    assert len(answer.text) == 16 * 1024


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1/", CallFailed), ("http://no-such-host.invalid/", CallFailed), ("ftp://x/", ValueError),
        ("http://", ValueError), ("https://127.0.0.1:1/", CallFailed), ("http://127.0.0.1:99999/", ValueError),
        ("http://127.0.0.1:0/", ValueError),
    ],
)  # fmt: skip
async def test_what_cannot_be_reached_is_told(caller: Caller, url: str, error: type[Exception]) -> None:
    """No such host, nobody listening, no such scheme."""
    with pytest.raises(error):
        await caller.request("GET", url, headers={})


async def test_what_no_header_may_be_is_not_sent(caller: Caller, receiver: Receiver) -> None:
    """A value from an event cannot add headers of its own, nor say where the request ends; what it was is not repeated."""
    values = ("b\r\nX-Evil: 1", "b\nX-Evil: 1", "secret\0", " b", "b\t", "b\x0bc")
    ours = {"host": "a", "Content-Length": "1", "Transfer-Encoding": "chunked"}
    for headers in (*({"X-A": value} for value in values), {"X A": "b"}, {"": "b"}, {"X-ü": "b"}, {"X:": "b"}, *({n: v} for n, v in ours.items())):  # fmt: skip
        with pytest.raises(ValueError, match="header") as caught:
            await caller.request("POST", receiver.url, headers=headers, body=b"x")
        assert not {"Evil", "secret"} & set(re.split(r"\W", str(caught.value)))
    assert receiver.requests == []
    await caller.request("PUT", receiver.url, headers={"X-A": "b \t ü", "X-B": "", "User-Agent": "mine"})
    (got,) = receiver.requests
    assert (got.headers["x-a"], got.headers["x-b"], got.headers["content-length"]) == ("b \t ü", "", "0")


async def test_private_addresses_are_refused_before_anything_is_sent(receiver: Receiver) -> None:
    """By number and by name."""
    async with Caller(allow_private=False) as careful:
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0"):
            with pytest.raises(AddressRefused, match="not a public address"):
                await careful.request("GET", f"http://{host}:{receiver.port}/", headers={})
    assert receiver.connections == 0


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """id.timestamp.body under the decoded secret."""
    key = b"0123456789abcdef"
    headers = sign_standard_webhook("whsec_" + base64.b64encode(key).decode(), id="msg_1", at=NOW, body=b"{}")
    mac = hmac.new(key, f"msg_1.{int(NOW.timestamp())}.{{}}".encode(), hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
    assert sign_standard_webhook("plain", id="x", at=NOW, body=b"")["webhook-id"] == "x"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5.0), ("0", 0.0), ("999999999999", 86400.0), ("Thu, 01 Jan 2026 00:00:10 GMT", 10.0), ("Thu, 01 Jan 2015 00:00:10 GMT", 0.0), ("soon", None), ("", None), (None, None), ("-1", None)],
)  # fmt: skip
def test_retry_after_is_read(value: str | None, seconds: float | None) -> None:
    """Seconds and dates, bounded; nonsense says nothing."""
    assert retry_after_s(value, now=NOW) == seconds
