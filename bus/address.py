"""Where a broker is and what to show it; and how a process finds the one it should use."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import orjson

from ..errors import DefinitionError

if TYPE_CHECKING:
    import ssl

    from ..config import BusConfig, Settings

__all__ = ["BrokerAddress", "Discovery", "discovery_path", "locate_broker", "parse_urls", "read_discovery"]

_SCHEMES = ("nats", "tls")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """One broker (or the servers of one cluster), with the credentials it asks for.

    Attributes:
        urls: at least one, each ``scheme://[user[:password]@]host:port``.
        credentials: a NATS ``.creds`` file (user JWT and seed).
        tls_ca, tls_cert, tls_key: PEM files; any of them, or a ``tls://`` URL, asks for an encrypted connection.
    """

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def url(self) -> str:
        """The servers, comma-separated, without any password: fit for logs and pages."""
        return ",".join(without_secret(url) for url in self.urls)

    def __repr__(self) -> str:
        how = (
            "creds file" if self.credentials else "token" if self.token
            else f"user {self.user!r}" if self.user else "url or none"
        )  # fmt: skip
        return f"BrokerAddress({self.url}, authentication: {how}, tls: {self.uses_tls})"

    @property
    def uses_tls(self) -> bool:
        """Whether the connection must be encrypted."""
        return bool(self.tls_ca or self.tls_cert) or any(u.startswith("tls:") for u in self.urls)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return what verifies the broker, or None where the connection is plain.

        Raises:
            DefinitionError: a PEM file is missing or unreadable.
        """
        if not self.uses_tls:
            return None
        import ssl

        try:
            context = ssl.create_default_context(cafile=str(self.tls_ca) if self.tls_ca else None)
            if self.tls_cert:
                context.load_cert_chain(str(self.tls_cert), str(self.tls_key) if self.tls_key else None)
        except OSError as exc:  # ssl.SSLError is one
            files = ", ".join(str(p) for p in (self.tls_ca, self.tls_cert, self.tls_key) if p)
            raise DefinitionError(
                f"the TLS files of the broker connection cannot be used ({files}): {exc}",
                hint="check HARK_BUS__TLS_CA, HARK_BUS__TLS_CERT and HARK_BUS__TLS_KEY",
            ) from exc
        return context


def without_secret(url: str) -> str:
    """Return ``url`` with the part before the ``@`` of its host left out."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no address, but there may be a password in it all the same
        return url.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def parse_urls(text: str) -> tuple[str, ...]:
    """Return the server URLs in a comma-separated list; a bare ``host[:port]`` means ``nats://``.

    Raises:
        DefinitionError: empty, an unknown scheme, no host, or a port that is none.
    """
    urls = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        url = part if "://" in part else f"nats://{part}"
        try:
            parts = urlsplit(url)
            host, port, scheme = parts.hostname, parts.port, parts.scheme
        except ValueError as exc:
            raise DefinitionError(f"HARK_NATS_URL has {without_secret(url)!r}: {exc}") from exc
        if scheme not in _SCHEMES or not host:
            raise DefinitionError(
                f"HARK_NATS_URL has {without_secret(url)!r}, which is no broker address",
                hint="write nats://host:4222, tls://host:4222 or several, separated by commas",
            )
        if port is None:
            url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rstrip(':')}:4222"))
        urls.append(url)
    if not urls:
        raise DefinitionError("HARK_NATS_URL is empty", hint="write nats://host:4222, or unset it")
    return tuple(urls)


def external_address(url: str, config: BusConfig) -> BrokerAddress:
    """Return the address of an external broker; credentials come from ``config``, else from the URL itself.

    In a URL they are ``user:password@`` or ``token@``, percent-encoded, and the same for all servers of the list.

    Raises:
        DefinitionError: see ``parse_urls``; or the servers have different credentials.
    """
    urls = parse_urls(url)
    user, password = config.user, config.password.get_secret_value() if config.password else None
    token = config.token.get_secret_value() if config.token else None
    # The client would send them percent-encoded as they stand, and show them in its messages.
    found = {(p.username, p.password) for p in map(urlsplit, urls) if p.username}
    if len(found) > 1:
        raise DefinitionError(
            "the servers in HARK_NATS_URL have different credentials", hint="write them once"
        )
    if found and user is None and token is None and config.credentials is None:
        name, secret = found.pop()
        if secret is None:
            token = unquote(name or "")
        else:
            user, password = unquote(name or ""), unquote(secret)
    return BrokerAddress(
        urls=tuple(without_secret(one) for one in urls),
        user=user,
        password=password,
        token=token,
        credentials=config.credentials.expanduser() if config.credentials else None,
        tls_ca=config.tls_ca,
        tls_cert=config.tls_cert,
        tls_key=config.tls_key,
    )


# --- the embedded broker of this machine --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Discovery:
    """What an embedded broker tells the other processes of its machine, in a file only its owner reads."""

    url: str
    user: str
    password: str = field(repr=False)
    pid: int
    parent_pid: int
    started_at: str

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress(urls=(self.url,), user=self.user, password=self.password)


def discovery_path(home: Path) -> Path:
    """Where the embedded broker under ``home`` tells others how to reach it."""
    return home / "broker.json"


def server_config_path(home: Path) -> Path:
    """The configuration the embedded broker was started with; it stands in its command line.

    Resolved, because two processes may know one home by different names.
    """
    return home.resolve() / "nats" / "server.conf"


def is_our_server(pid: int, home: Path) -> bool:
    """Return whether process ``pid`` lives and is the nats-server of ``home``, not a stranger with its number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return False  # ours would be our user's
    wanted = str(server_config_path(home)).encode()
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return _command_of(pid).find(wanted) >= 0
    return wanted in words and state not in (b"Z", b"X")


def _command_of(pid: int) -> bytes:
    """Return the command line of ``pid`` where there is no ``/proc``; empty if it is gone."""
    import subprocess

    if Path("/proc/self").exists():
        return b""
    found = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
    )
    return found.stdout


def read_discovery(home: Path) -> Discovery | None:
    """Return what the embedded broker of ``home`` wrote, or None if there is none or the file is broken."""
    try:
        value = orjson.loads(discovery_path(home).read_bytes())
        return Discovery(
            url=str(value["url"]),
            user=str(value["user"]),
            password=str(value["password"]),
            pid=int(value["pid"]),
            parent_pid=int(value["parent_pid"]),
            started_at=str(value["started_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def locate_broker(settings: Settings) -> BrokerAddress | None:
    """Return the broker this process should use, or None if none is known.

    ``HARK_NATS_URL`` comes first; then the embedded broker that runs under ``HARK_HOME``, if its process
    lives. Nothing is connected to: a cheap look at one file.

    Raises:
        DefinitionError: ``HARK_NATS_URL`` is not an address.
    """
    if settings.nats_url:
        return external_address(settings.nats_url, settings.bus)
    found = read_discovery(settings.home_path)
    if found is None or not is_our_server(found.pid, settings.home_path):
        return None
    return found.address
