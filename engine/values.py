"""``Variable``: values kept beside the code, read by name from any process. Sync and async alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import orjson

from ..errors import AlreadyExists, AlreadyHeld, InvalidNameError, InvalidValueError
from ..vocabulary import JsonValue
from .sync_async.either import Either

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.secret import SecretStore
    from ..bus.session import Session

__all__ = ["Variable", "secret_store"]

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

    Attributes:
        tags: what it was made with; they are not kept.
    """

    name: str
    value: JsonValue
    tags: list[str]

    def __init__(self, name: str, value: JsonValue, tags: Iterable[str] | None = None) -> None:
        self.name, self.value, self.tags = name, value, list(tags or ())

    def __repr__(self) -> str:
        return f"Variable(name={self.name!r}, value={self.value!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Variable) and (self.name, self.value) == (other.name, other.value)

    __hash__ = None  # type: ignore[assignment]  # its value may be a list

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
    ) -> Variable:
        """Keep a value; return it as a ``Variable``. ``tags`` are not kept; for code written for Prefect.

        Raises:
            AlreadyExists: there is one of this name, and ``overwrite`` was not said.
            InvalidNameError, InvalidValueError: the name is none, or the value no JSON, or larger than 64 KiB.
        """
        try:
            raw = orjson.dumps(value)
        except TypeError as exc:
            raise InvalidValueError(f"the value of variable {name!r} is no JSON: {exc}") from exc
        if len(raw) > MAX_VARIABLE_BYTES:
            raise InvalidValueError(
                f"the value of variable {name!r} is longer than {MAX_VARIABLE_BYTES} bytes"
            )
        bucket = session.bus.bucket(VARIABLES)
        made = Variable(name, orjson.loads(raw), tags)
        if overwrite:
            await bucket.put(check_variable_name(name), raw)
            return made
        try:
            await bucket.create(check_variable_name(name), raw)
        except AlreadyHeld:
            raise AlreadyExists("variable", name) from None
        return made

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
