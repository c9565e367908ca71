"""Secrets: kept encrypted, resolved late, and taken out of every text before somebody reads it.

A secret's value exists in clear only in the process that needs it, only from the moment a template that reads it is
rendered. ``LateValues`` fetches exactly the names a template reads; ``Redactor`` knows every value fetched so far.
"""

from __future__ import annotations

import html
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

import orjson

from ..config import environment
from ..errors import DefinitionError, SecretUnreadable, TemplateError, UnknownName
from ..template import template_names
from ..vocabulary import JsonValue

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

    from .bus import Bus

__all__ = [
    "LateValues",
    "Redactor",
    "SecretStore",
    "SecretText",
    "check_secret_name",
    "secret_key",
    "shown_url",
]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MASK = "***"
_MAX_BYTES = 65_536

Key = bytes | str | Path


def check_secret_name(name: str) -> str:
    """Return ``name`` if it can be read as ``{{ secrets.name }}``; else raise ``DefinitionError`` saying how to spell it."""
    if _NAME.fullmatch(name):
        return name
    near = re.sub(r"\W", "_", name, flags=re.ASCII)[:100]
    raise DefinitionError(
        f"{name!r} is no name for a secret",
        hint="letters, digits and _, beginning with a letter, so that `{{ secrets.name }}` reads it"
        + (f"; did you mean {near!r}?" if _NAME.fullmatch(near) else ""),
    )


def secret_key(home: Path, given: str | None = None) -> bytes:
    """Return the key that encrypts secrets: ``given``, or the one in ``home/secret.key``, made (0600) at first use.

    Two processes that make it at once end up with the same one. Several keys, separated by commas, may be given:
    the first encrypts, all decrypt, which is how a key is changed.

    Raises:
        DefinitionError: the key is not a Fernet key, or its file can be read by others.
    """
    if given is not None:
        return given.encode()
    path = home / "secret.key"
    with suppress(FileNotFoundError):
        return _read_key(path)
    from cryptography.fernet import Fernet

    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=home, prefix=".secret.key.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(file.fileno())
        # A link fails where a rename would replace: whoever comes second takes the first one's key.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    key = path.read_bytes().strip()
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise DefinitionError(
            f"{path} can be read by others than its owner",
            hint=f"`chmod 600 {path}`, and set the secrets anew if somebody may have looked",
        )
    return key


class SecretText(str):
    """A secret's value: text like any other, except that its ``repr`` does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{_MASK}'"


class SecretStore:
    """Secrets in the bucket ``secrets``, encrypted. The name is encrypted with the value, so two cannot be swapped.

    Args:
        key: a Fernet key (or several, separated by commas), or the path of the file that holds it.
    """

    def __init__(self, bus: Bus, key: Key) -> None:
        self._bus, self._key = bus, key
        self._fernet: MultiFernet | None = None

    def __repr__(self) -> str:
        return "SecretStore()"

    async def get(self, name: str) -> SecretText:
        """Return the value of a secret.

        Raises:
            UnknownName: there is none of that name; the message suggests a near one.
            SecretUnreadable: it was encrypted with another key.
        """
        entry = await self._bus.bucket("secrets").get(check_secret_name(name))
        if entry is None:
            raise UnknownName("secret", name, known=await self.names())
        return SecretText(_open(self._cipher(), name, entry.value))

    async def set(self, name: str, value: str) -> None:
        """Keep ``value`` under ``name``, in place of what was there.

        Raises:
            DefinitionError: the name is none, or the value is empty or longer than 64 KiB.
        """
        check_secret_name(name)
        if not 0 < len(value.encode()) <= _MAX_BYTES:
            raise DefinitionError(f"the value of secret {name!r} is empty or longer than {_MAX_BYTES} bytes")
        sealed = self._cipher().encrypt(orjson.dumps({"name": name, "value": str(value)}))
        await self._bus.bucket("secrets").put(name, sealed)

    async def delete(self, name: str) -> None:
        """Forget a secret.

        Raises:
            UnknownName: there is none of that name.
        """
        bucket = self._bus.bucket("secrets")
        if await bucket.get(check_secret_name(name)) is None:
            raise UnknownName("secret", name, known=await self.names())
        await bucket.delete(name)

    async def names(self) -> list[str]:
        """Return the names there are, sorted."""
        return await self._bus.bucket("secrets").keys()

    def seal(self, name: str, value: bytes) -> bytes:
        """Return ``value`` encrypted, to be kept elsewhere; ``unseal`` opens it under the same name only."""
        return self._cipher().encrypt(orjson.dumps({"name": name, "value": value.decode()}))

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """Return what ``seal`` was given.

        Raises:
            SecretUnreadable: it was sealed with another key, or under another name.
        """
        return _open(self._cipher(), name, sealed).encode()

    def _cipher(self) -> MultiFernet:
        if self._fernet is None:
            self._fernet = _cipher(self._key)
        return self._fernet


def _cipher(key: Key) -> MultiFernet:
    # Importing cryptography takes 30 ms, and most processes never see a secret.
    from cryptography.fernet import Fernet, MultiFernet

    if isinstance(key, Path):
        key = _read_key(key)
    text = key if isinstance(key, str) else key.decode("ascii", errors="replace")
    try:
        return MultiFernet([Fernet(part.strip()) for part in text.split(",")])
    except ValueError:
        # Not `from exc`: the fault is fully said, and the foreign text may quote the key.
        raise DefinitionError(
            "the key for secrets is no Fernet key",
            hint="32 random bytes in URL-safe base64, such as "
            '`python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"` prints',
        ) from None


def _open(cipher: MultiFernet, name: str, sealed: bytes) -> str:
    from cryptography.fernet import InvalidToken

    try:
        inner = orjson.loads(cipher.decrypt(sealed))
    except InvalidToken:
        raise SecretUnreadable(name, why="it was encrypted with another key") from None
    except orjson.JSONDecodeError:
        raise SecretUnreadable(name, why="its stored form is damaged") from None
    if not isinstance(inner, dict) or inner.get("name") != name or not isinstance(inner.get("value"), str):
        raise SecretUnreadable(name, why="it was stored under another name")
    value: str = inner["value"]
    return value


# --- late values --------------------------------------------------------------------------------------


class Values:
    """What ``secrets``, ``variables`` or ``env`` is in a template: names to values, shown as ``***``.

    It has no public methods, so ``{{ secrets.items }}`` is the secret called ``items``.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{name}: {_MASK}' for name in self._values)}}}"


class LateValues:
    """Resolves what templates read of ``secrets``, ``variables`` and ``env``, at the last moment.

    Every secret and environment value it has handed out is known to ``redactor`` from then on.
    """

    def __init__(self, bus: Bus, secrets: SecretStore, *, environ: Mapping[str, str] | None = None) -> None:
        self._bus, self._secrets, self._environ = bus, secrets, environ
        self._handed_out: frozenset[str] = frozenset()
        self._redactor = self._handed_out, Redactor()
        """The last one that was made, and of which values."""

    @property
    def redactor(self) -> Redactor:
        """Takes out of texts every value handed out so far. From any thread: lines of the log are written by several."""
        values = self._handed_out
        known, redactor = self._redactor
        if known is not values:
            # One that was made while another value was handed out may be put there last. It is seen not to be of all.
            redactor = Redactor(values)
            self._redactor = values, redactor
        return redactor

    def seal(self, name: str, value: bytes) -> bytes:
        """Return what a template has been rendered to, encrypted as secrets are; ``unseal`` opens it."""
        return self._secrets.seal(name, value)

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """Return what ``seal`` was given.

        Raises:
            SecretUnreadable: it was sealed with another key, or under another name.
        """
        return self._secrets.unseal(name, sealed)

    async def context(self, *templates: JsonValue) -> dict[str, Values]:
        """Return ``{"secrets": …, "variables": …, "env": …}`` with exactly the names that ``templates`` read.

        A template may be a text, or a list or object with texts in it.

        Raises:
            UnknownName: a secret, variable or environment variable does not exist; the message suggests a near one.
            TemplateError: a template does not parse, or reads a setting of Hark's from the environment.
        """
        names: set[str] = set()
        for text in _texts(templates):
            if "{{" in text or "{%" in text:
                names |= template_names(text)
        return await self.named(names)

    async def named(self, names: Iterable[str]) -> dict[str, Values]:
        """Do as ``context`` for those who know what their templates read: ``secrets.slack_url``."""
        asked: dict[str, set[str]] = {"secrets": set(), "variables": set(), "env": set()}
        for dotted in names:
            place, dot, name = dotted.partition(".")
            if dot and place in asked:
                asked[place].add(name)
        secrets = {name: await self._secrets.get(name) for name in sorted(asked["secrets"])}
        env = {name: self._from_environment(name) for name in sorted(asked["env"])}
        variables = {name: await self._variable(name) for name in sorted(asked["variables"])}
        fresh = {*map(str, secrets.values()), *map(str, env.values())} - self._handed_out
        if fresh:
            self._handed_out |= fresh
        return {"secrets": Values(secrets), "variables": Values(variables), "env": Values(env)}

    def _from_environment(self, name: str) -> SecretText:
        if name.upper().startswith("HARK_"):
            raise TemplateError(
                f"env.{name} is a setting of Hark, which templates may not read",
                hint="keep what a template needs as a secret or a variable",
            )
        environ = environment() if self._environ is None else self._environ
        if name not in environ:
            known = [known for known in environ if not known.startswith("HARK_")]
            raise UnknownName("environment variable", name, known=known)
        return SecretText(environ[name])

    async def _variable(self, name: str) -> JsonValue:
        bucket = self._bus.bucket("variables")
        entry = await bucket.get(name) if re.fullmatch(r"[A-Za-z0-9_-]+", name) else None
        if entry is None:
            raise UnknownName("variable", name, known=await bucket.keys())
        value: JsonValue = orjson.loads(entry.value)
        return value


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for item in value:
            yield from _texts(item)


# --- redaction ----------------------------------------------------------------------------------------

_URL = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,31})://(?P<rest>[^\s'\"<>`,;)\]}]*)")
_WEB = frozenset({"http", "https", "ws", "wss", "ftp", "nats", "tls"})
_SHORT = 4
"""Values shorter than this are only masked where they stand alone: masking every ``a`` would leave no text."""


class Redactor:
    """Takes secrets out of texts: known values in every form they may appear in, and what URLs carry.

    Args:
        values: texts nobody may read. A value that is itself a URL also hides its parts.
    """

    __slots__ = ("_pattern", "_values")

    def __init__(self, values: Iterable[str] = ()) -> None:
        forms: set[str] = set()
        self._values = frozenset(values)
        for value in self._values:
            forms |= _forms(str(value))
            if "://" in value:
                forms |= {form for part in _parts_of_url(value) for form in _forms(part)}
        pieces = [
            re.escape(form) if len(form) >= _SHORT else rf"(?<!\w){re.escape(form)}(?!\w)"
            for form in sorted(forms, key=len, reverse=True)
        ]
        self._pattern = re.compile("|".join(pieces)) if pieces else None

    def __repr__(self) -> str:
        return "Redactor()"

    def also(self, values: Iterable[str]) -> Redactor:
        """Return one that hides ``values`` as well."""
        return Redactor(self._values.union(values))

    def redact(self, text: str) -> str:
        """Return ``text`` with every secret in it replaced by ``***``."""
        if self._pattern is not None:
            text = self._pattern.sub(_MASK, text)
        return _URL.sub(_shown_match, text) if "://" in text else text

    def redact_value(self, value: JsonValue) -> JsonValue:
        """Return ``value`` with every text in it redacted."""
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, list):
            return [self.redact_value(item) for item in value]
        if isinstance(value, dict):
            return {self.redact(key): self.redact_value(item) for key, item in value.items()}
        return value


def shown_url(url: str) -> str:
    """Return what may be shown of an Apprise URL, its scheme: ``slack://***``."""
    scheme, found, _ = url.partition("://")
    return f"{scheme}://{_MASK}" if found and re.fullmatch(r"[A-Za-z0-9+.-]{1,32}", scheme) else _MASK


def _shown_match(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"], match["rest"]
    if scheme.lower() not in _WEB:
        # In an Apprise URL any part may be the token, the host included.
        return f"{scheme}://{_MASK}"
    credentials, at, place = rest.partition("@")
    if at and "/" not in credentials:
        return f"{scheme}://{_MASK}@{place}"
    return match[0]


def _forms(value: str) -> set[str]:
    """Return the ways a value may be written in a text: as it is, URL-encoded, in JSON, in HTML, a line of it."""
    value = value.strip()
    if not value:
        return set()
    forms = {
        value, quote(value), quote(value, safe=""), quote_plus(value), unquote(value), html.escape(value),
        orjson.dumps(value).decode()[1:-1], repr(value)[1:-1],
    }  # fmt: skip
    if "\n" in value:  # a PEM key in a traceback is printed line by line
        forms |= {line.strip() for line in value.splitlines() if len(line.strip()) >= 8}
    return {form for form in forms if form}


def _parts_of_url(url: str) -> Iterator[str]:
    """Yield the parts of a URL that may be a token: user, password, host (unless it is plainly one), path, query."""
    try:
        # The scheme decides how urlsplit reads the rest, so it is given one it knows.
        split = urlsplit("http://" + url.partition("://")[2])
        host = split.hostname or ""
        for part in (split.username, split.password):
            if part:
                yield unquote(part)
    except ValueError:
        return
    if len(host) >= 8 and "." not in host and ":" not in host and host != "localhost":
        # urlsplit lower-cases the host; as a token it stands in the text as it was written.
        start = url.lower().find(host)
        yield url[start : start + len(host)]
    values = [*split.path.split("/"), *(pair.partition("=")[2] for pair in split.query.split("&"))]
    for value in values:
        # Several recipients in one place are printed one by one.
        yield from (part for part in re.split(r"[,;\s]+", unquote(value)) if len(part) >= 6)
