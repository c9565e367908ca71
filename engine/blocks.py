"""``Block``: a typed piece of configuration that is saved under a name and loaded again, its secrets encrypted.

::

    class Warehouse(Block):
        host: str
        password: SecretStr

    Warehouse(host="db", password="…").save("main")
    Warehouse.load("main")              # or Block.load("warehouse/main")

As a whole it is sealed with the key of secrets, so nothing of it stands readable in the broker. Awaited in async code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import orjson
from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr, ValidationError

from ..errors import (
    AlreadyExists,
    AlreadyHeld,
    DefinitionError,
    InvalidNameError,
    SecretUnreadable,
    UnknownBlock,
)
from ..vocabulary import JsonObject, JsonValue
from .either import Either
from .values import secret_store

if TYPE_CHECKING:
    from ..bus.session import Session

__all__ = ["BLOCKS", "Block", "shown_fields"]

BLOCKS = "blocks"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_known: dict[str, type[Block]] = {}
_HIDDEN = "$secret"
"""In the stored form, beside the fields: the paths of those that are secret."""


class Block(BaseModel):
    """A pydantic model that can be saved and loaded. Subclasses are found by their slug, such as ``warehouse``."""

    model_config = ConfigDict(extra="ignore")

    _block_type_name: ClassVar[str | None] = None
    _block_type_slug: ClassVar[str | None] = None
    _description: ClassVar[str | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        _known[cls.get_block_type_slug()] = cls

    @classmethod
    def get_block_type_name(cls) -> str:
        """Return what people read: the name given, or the class's."""
        return cls._block_type_name or cls.__name__

    @classmethod
    def get_block_type_slug(cls) -> str:
        """Return what it is stored under: ``AwsCredentials`` is ``awscredentials``, as in Prefect."""
        given = cls._block_type_slug
        return given or re.sub(r"[^a-z0-9]+", "-", cls.get_block_type_name().lower()).strip("-")

    def block_initialization(self) -> None:
        """For subclasses: called once a block has been made or loaded."""

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self.block_initialization()

    # --- keeping --------------------------------------------------------------------------------------

    def save(self, name: str, *, overwrite: bool = False) -> Any:
        """Keep it under a name; return ``slug/name``.

        Raises:
            AlreadyExists: there is one of this name, and ``overwrite`` was not said.
            DefinitionError: the name is none.
        """
        return _save(self, name, overwrite=overwrite)

    async def asave(self, name: str, *, overwrite: bool = False) -> str:
        """Do what ``save`` does, in async code."""
        return await _save.aio(self, name, overwrite=overwrite)

    @classmethod
    def load(cls, name: str, validate: bool = True) -> Any:
        """Return a block: ``Warehouse.load("main")``, or of any kind ``Block.load("warehouse/main")``.

        Args:
            validate: False: take what is stored as it is, though the class has changed since.
        Raises:
            UnknownBlock: there is none of that name; also a ``ValueError``.
            DefinitionError: what is stored does not fit the class; or its class has not been imported.
            SecretUnreadable: it was sealed with another key.
        """
        return _load(cls, name, validate)

    @classmethod
    async def aload(cls, name: str, validate: bool = True) -> Self:
        """Do what ``load`` does, in async code."""
        return cast(Self, await _load.aio(cls, name, validate))

    @classmethod
    def register_type_and_schema(cls) -> None:
        """Do nothing: a kind of block is known once its class is imported. For code written for Prefect."""

    @classmethod
    def get_description(cls) -> str | None:
        """Return what people read about this kind: what ``_description`` says, or the docstring."""
        return cls._description or (inspect.cleandoc(cls.__doc__) if cls.__doc__ else None)

    @classmethod
    def delete(cls, name: str) -> Any:
        """Remove a block. Raises ``UnknownBlock``."""
        return _delete(cls, name)

    @classmethod
    async def adelete(cls, name: str) -> None:
        """Do what ``delete`` does, in async code."""
        await _delete.aio(cls, name)


@Either
async def _save(session: Session, block: Block, name: str, *, overwrite: bool) -> str:
    key = _key(type(block), name)
    dumped = block.model_dump(mode="python")
    fields = {**_plain(dumped), _HIDDEN: [".".join(path) for path in _secrets_in(dumped)]}
    sealed = secret_store(session.bus).seal(key, orjson.dumps(fields))
    bucket = session.bus.bucket(BLOCKS)
    if overwrite:
        await bucket.put(key.replace("/", "."), sealed)
        return key
    try:
        await bucket.create(key.replace("/", "."), sealed)
    except AlreadyHeld:
        raise AlreadyExists("block", key) from None
    return key


@Either
async def _load(session: Session, cls: type[Block], name: str, validate: bool = True) -> Block:
    key = _key(cls, name)
    bucket = session.bus.bucket(BLOCKS)
    entry = await bucket.get(key.replace("/", "."))
    if entry is None:
        raise UnknownBlock("block", key, known=[known.replace(".", "/", 1) for known in await bucket.keys()])
    opened = secret_store(session.bus).unseal(key, entry.value)
    if cls is Block:
        slug = key.partition("/")[0]
        found = _known.get(slug)
        if found is None:
            raise DefinitionError(
                f"nothing imported here is a block of kind {slug!r}", hint="import its class first"
            )
        cls = found
    try:
        fields: dict[str, Any] = orjson.loads(opened)
        fields.pop(_HIDDEN, None)
        return cls.model_validate(fields) if validate else cls.model_construct(**fields)
    except orjson.JSONDecodeError:
        raise SecretUnreadable(key, why="its stored form is damaged") from None
    except ValidationError as exc:
        raise DefinitionError(f"block {key!r} does not fit {cls.__name__}: {exc}") from exc


def load_blocking(name: str) -> Any:
    """Return the block ``slug/name``, waiting for it, from sync and async code."""
    return _load.blocking(Block, name)


@Either
async def _delete(session: Session, cls: type[Block], name: str) -> None:
    key = _key(cls, name)
    bucket = session.bus.bucket(BLOCKS)
    if await bucket.get(key.replace("/", ".")) is None:
        raise UnknownBlock("block", key, known=[known.replace(".", "/", 1) for known in await bucket.keys()])
    await bucket.delete(key.replace("/", "."))


def _key(cls: type[Block], name: str) -> str:
    slug, slash, short = str(name).rpartition("/")
    if not slash:
        if cls is Block:
            raise DefinitionError(f"{name!r} does not say the kind of block", hint='write "kind/name"')
        slug = cls.get_block_type_slug()
    elif cls is not Block and slug != cls.get_block_type_slug():
        raise DefinitionError(f"{name!r} is no block of kind {cls.get_block_type_slug()!r}")
    for part in (slug, short):
        if not _NAME.fullmatch(part):
            raise InvalidNameError(
                f"{part!r} is no name for a block",
                hint="lower-case letters, digits and -, beginning with one of the first",
            )
    return f"{slug}/{short}"


def shown_fields(stored: bytes) -> JsonObject:
    """Return the fields of a block's opened form with its secrets left out: for people."""
    fields: JsonObject = orjson.loads(stored)
    secret = fields.pop(_HIDDEN, None)
    # One that was saved before it was said which are: any may be.
    hidden = {str(path) for path in secret} if isinstance(secret, list) else None
    return {name: _masked(value, name, hidden) for name, value in fields.items()}


def _masked(value: JsonValue, path: str, hidden: set[str] | None) -> JsonValue:
    if hidden is None or path in hidden:
        return "********"
    if isinstance(value, dict):
        return {name: _masked(item, f"{path}.{name}", hidden) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, f"{path}.{i}", hidden) for i, item in enumerate(value)]
    return value


def _secrets_in(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the secrets in a dumped model."""
    if isinstance(value, SecretStr | SecretBytes):
        yield at
    elif isinstance(value, BaseModel):
        yield from _secrets_in(value.model_dump(mode="python"), at)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _secrets_in(item, (*at, str(name)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _secrets_in(item, (*at, str(i)))
    elif isinstance(value, set | frozenset) and any(
        isinstance(item, SecretStr | SecretBytes) for item in value
    ):
        yield at


def _plain(value: Any) -> Any:
    """Return a dumped model with its secrets readable: what holds it is sealed as a whole."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, SecretBytes):
        return value.get_secret_value().decode()
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="python"))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)
