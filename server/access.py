"""Who may call: access keys, the Host header, and requests that other web pages make a browser send.

A key is ``hark_<id>_<secret>``. The bucket ``keys`` holds the SHA-256 of the secret, which is enough for a secret of
256 random bits (slow hashes are for secrets people choose).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import orjson
from anyio import AsyncContextManagerMixin, Event, create_task_group

from ..bus.event import format_time
from ..errors import AccessDenied, DefinitionError, UnknownName
from ..vocabulary import JsonObject

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["AccessKeys", "KeyInfo", "cross_site", "host_allowed", "is_loopback", "token_of"]

_TOKEN = re.compile(r"hark_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key."""

    id: str
    name: str
    created_at: str

    def to_json(self) -> JsonObject:
        return {"id": self.id, "name": self.name, "created_at": self.created_at}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class AccessKeys(AsyncContextManagerMixin):
    """The keys of a service, followed live. Entered: all keys there were are known."""

    def __init__(self, bus: Bus, *, extra_key: str | None = None) -> None:
        """``extra_key``: a whole token that is taken besides those of the bucket (the server's own ``HARK_API_KEY``)."""
        self._bucket = bus.bucket("keys")
        self._extra = hashlib.sha256(extra_key.encode()).digest() if extra_key else None
        self._known: dict[str, tuple[KeyInfo, str]] = {}
        self._moved = Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with create_task_group() as tg:
            ready = Event()
            tg.start_soon(self._follow, ready)
            await ready.wait()
            yield self
            tg.cancel_scope.cancel("keys closing")

    async def _follow(self, ready: Event) -> None:
        async with self._bucket.watch() as changes:
            async for entry in changes:
                if entry.key == "":
                    ready.set()
                elif entry.deleted:
                    self._known.pop(entry.key, None)
                else:
                    value = orjson.loads(entry.value)
                    info = KeyInfo(entry.key, str(value["name"]), str(value["created_at"]))
                    self._known[entry.key] = (info, str(value["sha256"]))
                moved, self._moved = self._moved, Event()
                moved.set()

    async def changed(self) -> None:
        """Wait until a key was made or revoked, here or elsewhere."""
        await self._moved.wait()

    @property
    def is_open(self) -> bool:
        """Whether no key exists, so that everyone who reaches the server may do everything."""
        return not self._known and self._extra is None

    def all(self) -> list[KeyInfo]:
        return sorted((info for info, _ in self._known.values()), key=lambda k: k.created_at)

    async def create(self, name: str) -> tuple[KeyInfo, str]:
        """Make a key and return it with its token, which is shown this once and stored nowhere."""
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"{name!r} is no name for a key", hint="use letters, digits, spaces, . _ -")
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        info = KeyInfo(key_id, name, format_time(datetime.now(UTC)))
        stored = {"name": name, "created_at": info.created_at, "sha256": _digest(secret)}
        await self._bucket.create(key_id, orjson.dumps(stored))
        # Ours takes effect at once, here; other servers hear it from the bucket.
        self._known[key_id] = (info, _digest(secret))
        return info, f"hark_{key_id}_{secret}"

    async def revoke(self, id_or_name: str) -> KeyInfo:
        """Remove a key.

        Raises:
            UnknownName: no key has this id or name; DefinitionError: several have this name.
        """
        found = [info for info, _ in self._known.values() if id_or_name in (info.id, info.name)]
        if not found:
            known = [n for info, _ in self._known.values() for n in (info.id, info.name)]
            raise UnknownName("key", id_or_name, known=known)
        if len(found) > 1:
            ids = ", ".join(k.id for k in found)
            raise DefinitionError(
                f"{len(found)} keys are named {id_or_name!r}", hint=f"name one by id: {ids}"
            )
        await self._bucket.delete(found[0].id)
        self._known.pop(found[0].id, None)
        return found[0]

    def check(self, token: str | None) -> str:
        """Return the name of the caller.

        Raises:
            AccessDenied: keys exist and this is none of them.
        """
        if self.is_open:
            return "anyone"
        if token is None:
            raise AccessDenied(
                "an access key is needed",
                hint="send `Authorization: Bearer <key>`; on the command line set HARK_API_KEY",
            )
        if self._extra is not None and hmac.compare_digest(
            hashlib.sha256(token.encode()).digest(), self._extra
        ):
            return "HARK_API_KEY"
        match = _TOKEN.fullmatch(token)
        info, stored = self._known.get(match[1], (None, "")) if match else (None, "")
        # Compared also when no such id exists, so that time does not tell which ids do.
        same = hmac.compare_digest(_digest(match[2] if match else token), stored or "0" * 64)
        if info is None or not same:
            raise AccessDenied("this access key is not valid", hint="make one with `hark keys create NAME`")
        return info.name


def token_of(headers: Mapping[str, str]) -> str | None:
    """Return the token a request shows: ``Bearer <token>``, or the password of ``Basic`` (what a browser can send)."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer" and rest:
        return rest
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return None


def is_loopback(host: str) -> bool:
    """Return whether a host to listen on can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_allowed(header: str, *, extra: frozenset[str] = frozenset()) -> bool:
    """Return whether a ``Host`` header names this machine's loopback (or one of ``extra``).

    A page of another site whose name was made to point at 127.0.0.1 (DNS rebinding) shows its own name here.
    """
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or name in extra


def cross_site(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a browser sends this request for a page of another site.

    Source: F. Valsorda, "Cross-Site Request Forgery" (2025), the rule of Go 1.25's ``CrossOriginProtection``.
    """
    if method in ("GET", "HEAD", "OPTIONS"):
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False  # no browser
    return urlsplit(origin).netloc != headers.get("host", "")
