"""``Variable`` and ``Secret``: values kept beside the code, read by name from any process. Sync and async alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import AlreadyExists, AlreadyHeld, DefinitionError, InvalidNameError
from ..vocabulary import JsonValue
from .either import Either

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.secret import SecretStore
    from ..bus.session import Session

__all__ = ["Secret", "Variable", "secret_store"]

VARIABLES = "variables"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
MAX_VARIABLE_BYTES = 65_536


def check_variable_name(name: str) -> str:
    """Return ``name`` if a variable can have it; raise ``InvalidNameError`` saying the rule if not."""
    if not _NAME.fullmatch(str(name)):
        raise InvalidNameError(
            f"{name!r} is no name for a variable",
            hint="letters, digits, _ and -, beginning with a letter or digit",
        )
    return name


class Variable:
    """A named JSON value: ``Variable.get("region", default="eu")``, ``Variable.set("region", "us", overwrite=True)``.

    Awaited in async code. Templates read it as ``{{ variables.region }}``.
    """

    @Either
    async def get(session: Session, name: str, default: JsonValue = None) -> JsonValue:  # noqa: N805
        """Return the value; ``default`` if there is no such variable."""
        entry = await session.bus.bucket(VARIABLES).get(check_variable_name(name))
        if entry is None:
            return default
        value: JsonValue = orjson.loads(entry.value)
        return value

    @Either
    async def set(
        session: Session,  # noqa: N805
        name: str,
        value: JsonValue,
        tags: Iterable[str] | None = None,
        overwrite: bool = False,
    ) -> JsonValue:
        """Keep a value and return it. ``tags`` do nothing here; for code written for Prefect.

        Raises:
            AlreadyExists: there is one of this name, and ``overwrite`` was not said.
            DefinitionError: the name is none, or the value no JSON, or larger than 64 KiB.
        """
        del tags
        try:
            raw = orjson.dumps(value)
        except TypeError as exc:
            raise DefinitionError(f"the value of variable {name!r} is no JSON: {exc}") from exc
        if len(raw) > MAX_VARIABLE_BYTES:
            raise DefinitionError(f"the value of variable {name!r} is longer than {MAX_VARIABLE_BYTES} bytes")
        bucket = session.bus.bucket(VARIABLES)
        if overwrite:
            await bucket.put(check_variable_name(name), raw)
            return value
        try:
            await bucket.create(check_variable_name(name), raw)
        except AlreadyHeld:
            raise AlreadyExists("variable", name) from None
        return value

    @Either
    async def unset(session: Session, name: str) -> bool:  # noqa: N805
        """Remove a variable; return whether there was one."""
        bucket = session.bus.bucket(VARIABLES)
        if await bucket.get(check_variable_name(name)) is None:
            return False
        await bucket.delete(name)
        return True

    aget, aset, aunset = get.aio, set.aio, unset.aio


def secret_store(bus: Bus) -> SecretStore:
    """Return the store of secrets, with this machine's key."""
    from ..bus.secret import SecretStore, secret_key
    from ..config import load_settings

    settings = load_settings()
    given = settings.secret_key.get_secret_value() if settings.secret_key else None
    return SecretStore(bus, secret_key(settings.home_path, given))


class Secret:
    """A text that is kept encrypted: ``Secret.load("github").get()``, ``Secret("…").save("github")``.

    ``load`` and ``save`` are awaited in async code. Its ``repr`` does not show it. Templates read it as
    ``{{ secrets.github }}``.
    """

    __slots__ = ("_value", "name")

    def __init__(self, value: str) -> None:
        self._value = str(value)
        self.name: str | None = None
        """Under which it was loaded or saved; None if it was not."""

    def get(self) -> str:
        """Return the text."""
        return self._value

    get_secret_value = get

    @property
    def value(self) -> Secret:
        return self

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    @Either
    async def load(session: Session, name: str) -> Secret:  # noqa: N805
        """Return a secret. Raises ``UnknownName``, with the nearest name there is, and ``SecretUnreadable``."""
        found = Secret(await secret_store(session.bus).get(name))
        found.name = name
        return found

    @Either
    async def _save(session: Session, secret: Secret, name: str, *, overwrite: bool) -> str:  # noqa: N805
        store = secret_store(session.bus)
        if not overwrite and name in await store.names():
            raise AlreadyExists("secret", name)
        await store.set(name, secret._value)
        secret.name = name
        return name

    def save(self, name: str, *, overwrite: bool = False) -> Any:
        """Keep it under a name, encrypted; return the name.

        Raises:
            AlreadyExists: there is one of this name, and ``overwrite`` was not said.
            DefinitionError: the name is none, or the text is empty or too long.
        """
        return Secret._save(self, name, overwrite=overwrite)

    @Either
    async def delete(session: Session, name: str) -> None:  # noqa: N805
        """Forget a secret. Raises ``UnknownName``."""
        await secret_store(session.bus).delete(name)

    aload, adelete = load.aio, delete.aio
