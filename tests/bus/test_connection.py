"""Connections: credentials and TLS for real, requests that fail fast, reconnects that are told."""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime as dt
import ipaddress
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hark.bus import BrokerAddress, Bus, EmbeddedBroker, Event, locate_broker
from hark.bus.address import external_address, parse_urls
from hark.bus.broker import find_program
from hark.bus.connection import ApiError, Connection, ConnectionLost, NotReady
from hark.config import BusConfig, Settings
from hark.errors import AccessDenied, BusUnavailable, DefinitionError, EventTooLarge
from pydantic import SecretStr

QUICK = BusConfig(connect_timeout_s=30)


@asynccontextmanager
async def server(folder: Path, **settings: object) -> AsyncIterator[str]:
    """A nats-server that is not ours, with extra ``settings``; yields ``host:port``."""
    folder.mkdir(exist_ok=True)
    conf = {"host": "127.0.0.1", "port": -1, "ports_file_dir": str(folder), **settings}
    (folder / "server.conf").write_text(json.dumps(conf))
    process = await asyncio.create_subprocess_exec(
        str(find_program()), "-c", str(folder / "server.conf"), stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        said = b""
        while b"Server is ready" not in said:
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
        reader = asyncio.ensure_future(process.stderr.read())
        port = said.split(b"client connections on 127.0.0.1:")[1].split()[0].decode()
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await reader


# --- addresses ----------------------------------------------------------------------------------------


def test_urls_are_read_from_a_list() -> None:
    """Commas separate; a bare host and a missing port are filled in."""
    assert parse_urls("nats://a:1, b,tls://c ,d:5") == (
        "nats://a:1",
        "nats://b:4222",
        "tls://c:4222",
        "nats://d:5",
    )


@pytest.mark.parametrize(
    "wrong", ["", " , ", "http://a:1", "nats://", "nats://a:port", "nats://a:99999", "nats://ann:secret@[::1"]
)
def test_what_is_no_address_is_refused(wrong: str) -> None:
    """The error names the setting, and shows no password."""
    with pytest.raises(DefinitionError, match="HARK_NATS_URL") as caught:
        parse_urls(wrong)
    assert "secret" not in str(caught.value)


def test_credentials_in_the_url_are_decoded_and_never_shown() -> None:
    """``user:password@`` and ``token@`` are percent-encoded; settings come first."""
    address = external_address("nats://ann:p%40ss@a:1,nats://ann:p%40ss@b:2,c:3", BusConfig())
    assert (address.user, address.password) == ("ann", "p@ss")
    assert address.urls == ("nats://a:1", "nats://b:2", "nats://c:3")
    assert "p%40ss" not in repr(address)
    assert "p@ss" not in repr(address)
    assert external_address("nats://s3cret@a:1", BusConfig()).token == "s3cret"
    other = external_address("nats://ann:x@a:1", BusConfig(user="bob", password=SecretStr("y")))
    assert (other.user, other.password) == ("bob", "y")
    with pytest.raises(DefinitionError, match="different credentials") as caught:
        external_address("nats://ann:x@a:1,nats://bob:y@b:1", BusConfig())
    assert "ann" not in str(caught.value)


# --- credentials, for real ----------------------------------------------------------------------------


async def test_user_and_password_open_an_external_broker(tmp_path: Path) -> None:
    """From the URL and from the settings; wrong ones are told apart from an absent broker."""
    async with server(tmp_path / "s", authorization={"user": "ann", "password": "p@ss"}) as at:
        for settings in (
            Settings(nats_url=f"nats://ann:p%40ss@{at}", bus=QUICK),
            Settings(
                nats_url=f"nats://{at}",
                bus=QUICK.model_copy(update={"user": "ann", "password": SecretStr("p@ss")}),
            ),
        ):
            address = locate_broker(settings)
            assert address is not None
            async with Connection(address, settings.bus) as connection:
                assert connection.is_connected
        with pytest.raises(AccessDenied, match="refuses the credentials"):
            async with Connection(external_address(f"nats://ann:wrong@{at}", QUICK), QUICK):
                pass


async def test_a_token_opens_an_external_broker(tmp_path: Path) -> None:
    """``HARK_BUS__TOKEN`` or ``token@`` in the URL."""
    async with server(tmp_path / "s", authorization={"token": "s3cret"}) as at:
        config = QUICK.model_copy(update={"token": SecretStr("s3cret")})
        for address in (external_address(at, config), external_address(f"nats://s3cret@{at}", QUICK)):
            async with Connection(address, QUICK) as connection:
                assert connection.is_connected


class Key:
    """An nkey: an Ed25519 key with the spelling NATS gives it."""

    def __init__(self, kind: int) -> None:
        self._key, self._kind = ed25519.Ed25519PrivateKey.generate(), kind

    def _spell(self, raw: bytes) -> str:
        return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")

    @property
    def public(self) -> str:
        return self._spell(bytes([self._kind]) + self._key.public_key().public_bytes_raw())

    @property
    def seed(self) -> str:
        head = bytes([18 << 3 | self._kind >> 5, (self._kind & 31) << 3])
        return self._spell(head + self._key.private_bytes_raw())

    def jwt(self, name: str, subject: str, nats: dict[str, object]) -> str:
        def part(value: object) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

        claims = {
            "jti": name,
            "iat": 1,
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": nats | {"version": 2},
        }
        signed = part({"typ": "JWT", "alg": "ed25519-nkey"}) + "." + part(claims)
        return signed + "." + base64.urlsafe_b64encode(self._key.sign(signed.encode())).decode().rstrip("=")


def creds_file(path: Path, jwt: str, seed: str) -> Path:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return path


async def test_a_credentials_file_opens_a_broker_with_accounts(tmp_path: Path) -> None:
    """A JWT and a seed, as ``nsc`` writes them, against a server in operator mode."""
    operator, account, user, stranger = Key(14 << 3), Key(0), Key(20 << 3), Key(20 << 3)
    limits = {
        "subs": -1,
        "conn": -1,
        "leaf": -1,
        "imports": -1,
        "exports": -1,
        "data": -1,
        "payload": -1,
        "wildcards": True,
    }
    account_jwt = operator.jwt("A", account.public, {"type": "account", "limits": limits})
    user_jwt = account.jwt("U", user.public, {"type": "user", "subs": -1, "data": -1, "payload": -1})
    async with server(
        tmp_path / "s",
        operator=operator.jwt("O", operator.public, {"type": "operator"}),
        resolver="MEMORY",
        resolver_preload={account.public: account_jwt},
    ) as at:
        config = QUICK.model_copy(
            update={"credentials": creds_file(tmp_path / "u.creds", user_jwt, user.seed)}
        )
        async with Connection(external_address(at, config), config) as connection:
            assert connection.is_connected
        config = QUICK.model_copy(
            update={"credentials": creds_file(tmp_path / "s.creds", user_jwt, stranger.seed)}
        )
        with pytest.raises(AccessDenied):
            async with Connection(external_address(at, config), config):
                pass


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("hello", "no NATS credentials file"),
        ("SUAAAAAA", "not a user's"),
        ("SU!", "not base32"),
    ],
)
async def test_a_broken_credentials_file_is_said_at_once(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    """Before anything is connected to, and without showing the seed."""
    path = tmp_path / "x.creds"
    if text is not None:
        path.write_text(text)
    if text is not None and text.startswith("SU"):
        creds_file(path, "x.y.z", text)
    config = BusConfig(credentials=path)
    with pytest.raises(DefinitionError, match=problem) as caught:
        async with Connection(external_address("127.0.0.1:1", config), config):
            pass
    assert text is None or not text.startswith("SU") or text not in str(caught.value)


# --- TLS, for real ------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of our own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        certificate = (
            self._builder(self.name, self.key).add_extension(constraints, True).add_extension(usage, True)
        )
        signed = certificate.add_extension(identifier, False).sign(self.key, hashes.SHA256())
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate for 127.0.0.1 and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = self._builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), key)
        signed = (
            builder.add_extension(names, False)
            .add_extension(identifier, False)
            .sign(self.key, hashes.SHA256())
        )
        cert, private = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert, private


async def test_an_encrypted_connection_verifies_the_broker_and_shows_our_certificate(tmp_path: Path) -> None:
    """TLS with our own authority, both ways; a broker of another authority is not talked to."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    cert, key = ours.issue("server")
    tls = {"cert_file": str(cert), "key_file": str(key), "ca_file": str(ours.path), "verify": True}
    store = {"store_dir": str(tmp_path / "js"), "max_file_store": 64 << 30}
    async with server(tmp_path / "s", tls=tls, jetstream=store) as at:
        mine, my_key = ours.issue("client")
        config = BusConfig(connect_timeout_s=30, tls_ca=ours.path, tls_cert=mine, tls_key=my_key)
        async with Bus(external_address(f"tls://{at}", config), config) as bus:
            await bus.bucket("variables").put("a", b"b")
            assert bus.info.version
        stranger = BusConfig(connect_timeout_s=3, tls_ca=theirs.path, tls_cert=mine, tls_key=my_key)
        with pytest.raises(BusUnavailable, match=r"(?i)certificate"):
            async with Connection(external_address(f"tls://{at}", stranger), stranger):
                pass


def test_missing_tls_files_are_said(tmp_path: Path) -> None:
    """The error names the files and the settings."""
    address = external_address("a:1", BusConfig(tls_ca=tmp_path / "absent.pem"))
    with pytest.raises(DefinitionError, match=r"absent\.pem") as caught:
        address.ssl_context()
    assert "HARK_BUS__TLS_CA" in caught.value.hint


# --- living -------------------------------------------------------------------------------------------


async def test_a_request_in_flight_is_told_that_the_connection_broke(broker: EmbeddedBroker) -> None:
    """Not after its whole timeout: at once. The next one waits for the broker to be back."""
    config = BusConfig()
    async with Connection(broker.address, config) as connection:
        told: list[str] = []
        connection.on_disconnect(lambda: told.append("down"))
        back = anyio.Event()
        end = connection.on_reconnect(back.set)

        async def never_answer(msg: object) -> None:
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)

        subscription = await connection.subscribe("quiet", never_answer)
        with anyio.fail_after(60), pytest.raises(ConnectionLost):
            await connection.request("quiet", timeout_s=600)
        assert told == ["down"]
        await connection.api("INFO")
        with anyio.fail_after(60):
            await back.wait()
        end()
        await connection.unsubscribe(subscription)


async def test_a_socket_that_is_gone_unnoticed_is_a_lost_connection(broker: EmbeddedBroker) -> None:
    """What the loop says of it is told as ours; asked again, the broker answers once the client has found out."""
    async with Connection(broker.address, QUICK) as connection:
        nc = connection.nc
        await connection.flush()
        assert nc._flusher_task is not None
        nc._flusher_task.cancel()  # as when it has met the closed socket: the next one to write does so by itself
        await asyncio.wait([nc._flusher_task])
        transport: Any = nc._transport

        def refuse(data: object) -> None:
            raise RuntimeError(
                "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
            )

        # asyncio's own loop drops what is written to a closed socket
        transport._io_writer.write = transport._io_writer.writelines = refuse
        with pytest.raises(ConnectionLost, match="socket is closed"):
            await connection.request("$JS.API.INFO")
        transport._io_writer.transport.abort()
        assert "limits" in await connection.api("INFO")


async def test_a_question_outlasts_an_outage_that_begins_as_it_is_asked(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the loss and the question cross, it has its whole time, not that of one try."""
    monkeypatch.setattr("hark.bus.broker._RESTART_PAUSES_S", (1.5, 1.5))
    async with Connection(broker.address, BusConfig()) as connection:
        wait_for_it = connection.connected
        waits: list[float | None] = []

        async def connected(timeout_s: float | None = None) -> None:
            waits.append(timeout_s)
            if len(waits) > 1:
                return await wait_for_it(timeout_s)
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            while connection.is_connected:  # noqa: ASYNC110 - the socket tells the client, and the client nobody
                await anyio.sleep(0.005)
            return None

        monkeypatch.setattr(connection, "connected", connected)
        await connection.api("INFO")
    assert len(waits) >= 3


async def test_a_request_without_an_answer_ends_in_time(broker: EmbeddedBroker) -> None:
    """Nobody there is said at once, silence after the timeout; a refusal carries its numbers."""

    async def silent(msg: object) -> None:
        return None

    async with Connection(broker.address, BusConfig()) as connection:
        await connection.subscribe("silent", silent)
        with pytest.raises(NotReady):
            await connection.request("nobody.there")
        with pytest.raises(BusUnavailable, match=r"within 0\.05 s"):
            await connection.request("silent", timeout_s=0.05)
        with pytest.raises(ApiError) as caught:
            await connection.api("STREAM.INFO.ABSENT")
        assert (caught.value.code, caught.value.err_code) == (404, 10059)
        with pytest.raises(EventTooLarge, match=r"1048577 bytes.* 1048576"):
            await connection.request("silent", b"x" * ((1 << 20) + 1))


async def test_a_broker_that_stays_away_is_said(home: Path) -> None:
    """A request while disconnected waits its timeout for the broker, then says so."""
    config = BusConfig(request_timeout_s=0.1)
    async with EmbeddedBroker(home, config) as broker:
        connection = Connection(broker.address, config)
        await connection.__aenter__()
    with anyio.fail_after(60):
        while connection.is_connected:  # noqa: ASYNC110 - the socket tells the client, and the client nobody
            await anyio.sleep(0.005)
    with pytest.raises(BusUnavailable, match="not been reachable"):
        await connection.api("INFO")
    await connection.__aexit__(None, None, None)
    with pytest.raises(BusUnavailable, match="closed"):
        await connection.api("INFO")


async def test_the_second_server_of_a_list_is_taken_when_the_first_is_away(tmp_path: Path) -> None:
    """``HARK_NATS_URL`` may name a whole cluster."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # kept, so that nobody else gets the port, and not listened on
        away = closed.getsockname()[1]
        async with server(tmp_path / "s") as at:
            address = external_address(f"nats://127.0.0.1:{away},nats://{at}", QUICK)
            async with Connection(address, QUICK) as connection:
                assert connection.url == f"nats://{at}"


async def test_a_broker_without_jetstream_is_told_from_one_with(tmp_path: Path) -> None:
    """The hint says what is missing."""
    async with server(tmp_path / "s") as at:
        config = BusConfig(connect_timeout_s=3)
        with pytest.raises(BusUnavailable) as caught:
            async with Bus(BrokerAddress((f"nats://{at}",)), config):
                pass
        assert "JetStream" in caught.value.hint


async def test_a_flush_that_was_cancelled_leaves_the_connection_as_it_is(bus: Bus) -> None:
    """The broker's answer comes to nobody; the client by itself would break off for that."""
    for _ in range(20):
        flush = asyncio.ensure_future(bus.connection.flush())
        await asyncio.sleep(0)
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush
    breaks: list[None] = []
    bus.connection.on_disconnect(lambda: breaks.append(None))
    await bus.connection.flush()
    await bus.log.append(Event(type="a.b", source="/test"))
    assert not breaks
