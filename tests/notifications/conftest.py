"""Real receivers: an HTTP server that can be told to fail, hang or refuse, and a real SMTP server."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import orjson
import pytest
from cryptography.fernet import Fernet
from hark.bus import Bus, LateValues, SecretStore
from hark.bus.event import Event
from hark.config import NotificationsConfig
from hark.notifications import Channel, Notifier

HANG = 0


@dataclass
class Receiver:
    """An HTTP server on a free port. ``answers`` are the statuses it gives in turn, then 200; 0 hangs."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    dribble: bool = False
    _came: anyio.Event = field(default_factory=anyio.Event)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def bodies(self) -> list[Any]:
        return [body for _, body in self.requests]

    async def wait_for(self, count: int) -> None:
        """Wait until so many requests have come."""
        with anyio.fail_after(60):
            while len(self.requests) < count:
                await self._came.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (
                    int(line.split(":")[1])
                    for line in head.split("\r\n")
                    if line.lower().startswith("content-length")
                ),
                0,
            )
            body = await reader.readexactly(length)
            status = self.answers.pop(0) if self.answers else 200
            self.requests.append((head.split(" ")[1], orjson.loads(body)))
            self._came.set()
            self._came = anyio.Event()
            if status == HANG:
                while self.dribble and not self._closing.is_set():
                    writer.write(b"HTTP/1.1 200 OK\r\n" if len(head) < 0 else b"H")
                    await writer.drain()
                    await asyncio.sleep(0.05)
                await self._closing.wait()
                return
            extra = "".join(f"{k}: {v}\r\n" for k, v in self.headers.items())
            writer.write(
                f"HTTP/1.1 {status} X\r\n{extra}Content-Length: 2\r\nConnection: close\r\n\r\nok".encode()
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def a_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        receiver._closing.set()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with a_receiver() as running:
        yield running


@pytest.fixture
async def second_receiver() -> AsyncIterator[Receiver]:
    async with a_receiver() as running:
        yield running


@dataclass
class Mailbox:
    """What a real SMTP server took. ``refuse`` holds recipients it turns away."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    refuse: set[str] = field(default_factory=set)
    was_tls: list[bool] = field(default_factory=list)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address in self.refuse:
            return "550 no such mailbox here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = BytesParser(policy=default).parsebytes(envelope.content)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.recipients.append(list(envelope.rcpt_tos))
        self.was_tls.append(session.ssl is not None)
        return "250 taken"


def self_signed(folder: Path) -> ssl.SSLContext:
    """Return a server context with a certificate for 127.0.0.1 that nobody else trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@asynccontextmanager
async def a_mailbox(tls: ssl.SSLContext | None = None) -> AsyncIterator[Mailbox]:
    from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

    box = Mailbox()

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"bob", b"p4ssw0rd!")
        return AuthResult(success=right, handled=False)

    def serve() -> Any:
        with warnings.catch_warnings():
            # It warns of logging in without TLS, which is what the plain test is about.
            warnings.simplefilter("ignore")
            return SMTP(
                box, hostname="localhost", ident="test", tls_context=tls, require_starttls=tls is not None,
                auth_require_tls=tls is not None, auth_required=True, authenticator=authenticate,
            )  # fmt: skip

    server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with a_mailbox() as box:
        yield box


@pytest.fixture
async def tls_mailbox(tmp_path: Path) -> AsyncIterator[Mailbox]:
    async with a_mailbox(self_signed(tmp_path)) as box:
        yield box


@pytest.fixture
def config() -> NotificationsConfig:
    """Quick to give up and try again."""
    return NotificationsConfig(send_timeout_s=6.0, retries=2, backoff_s=0.02)


@pytest.fixture
def secrets(bus: Bus) -> SecretStore:
    return SecretStore(bus, Fernet.generate_key())


@pytest.fixture
def late(bus: Bus, secrets: SecretStore) -> LateValues:
    return LateValues(bus, secrets, environ={})


@pytest.fixture
async def notifier(bus: Bus, secrets: SecretStore, config: NotificationsConfig) -> AsyncIterator[Notifier]:
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as running:
        yield running


@pytest.fixture
def define(bus: Bus) -> Callable[..., Any]:
    """``await define("oncall", url, …, rate="2/s")`` puts a channel where the service finds it."""

    async def put(name: str, *urls: str, **more: Any) -> Channel:
        channel = Channel(name=name, urls=urls, **more)
        await bus.bucket("channels").put(name, channel.model_dump_json(exclude={"name"}).encode())
        return channel

    return put


EventsOf: TypeAlias = "Callable[..., Any]"


@pytest.fixture
def events_of(bus: Bus) -> EventsOf:
    """``await events_of("notification.>")``: what stands in the log."""

    async def read(pattern: str = "notification.>") -> list[Event]:
        found: list[Event] = []
        async with AsyncExitStack() as stack:
            batches = await stack.enter_async_context(bus.log.read([f"hark.ev.{pattern}"]))
            async for batch in batches:
                found += [record.event for record in batch.records]
        return found

    return read
