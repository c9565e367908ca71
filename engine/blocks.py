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

import re
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import orjson
from pydantic import BaseModel, ConfigDict, SecretBytes, SecretStr, ValidationError

from ..errors import DefinitionError, RefusedError, SecretUnreadable, UnknownName
from ..vocabulary import JsonObject
from .either import Either
from .values import secret_store

if TYPE_CHECKING:
    from ..bus.session import Session

__all__ = ["Block"]

BLOCKS = "blocks"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_known: dict[str, type[Block]] = {}


class Block(BaseModel):
    """A pydantic model that can be saved and loaded. Subclasses are found by their slug, such as ``warehouse``."""

    model_config = ConfigDict(extra="ignore")

    _block_type_name: ClassVar[str | None] = None
    _block_type_slug: ClassVar[str | None] = None

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
            RefusedError: there is one of this name, and ``overwrite`` was not said.
            DefinitionError: the name is none.
        """
        return _save(self, name, overwrite=overwrite)

    async def asave(self, name: str, *, overwrite: bool = False) -> str:
        """Do what ``save`` does, in async code."""
        return await _save.aio(self, name, overwrite=overwrite)

    @classmethod
    def load(cls, name: str) -> Any:
        """Return a block: ``Warehouse.load("main")``, or of any kind ``Block.load("warehouse/main")``.

        Raises:
            UnknownName: there is none of that name.
            DefinitionError: what is stored does not fit the class; or its class has not been imported.
            SecretUnreadable: it was sealed with another key.
        """
        return _load(cls, name)

    @classmethod
    async def aload(cls, name: str) -> Self:
        """Do what ``load`` does, in async code."""
        return cast(Self, await _load.aio(cls, name))

    @classmethod
    def delete(cls, name: str) -> Any:
        """Remove a block. Raises ``UnknownName``."""
        return _delete(cls, name)

    @classmethod
    async def adelete(cls, name: str) -> None:
        """Do what ``delete`` does, in async code."""
        await _delete.aio(cls, name)


@Either
async def _save(session: Session, block: Block, name: str, *, overwrite: bool) -> str:
    from ..errors import AlreadyHeld

    key = _key(type(block), name)
    sealed = secret_store(session.bus).seal(key, orjson.dumps(_plain(block.model_dump(mode="python"))))
    bucket = session.bus.bucket(BLOCKS)
    if overwrite:
        await bucket.put(key.replace("/", "."), sealed)
        return key
    try:
        await bucket.create(key.replace("/", "."), sealed)
    except AlreadyHeld:
        raise RefusedError(f"block {key!r} exists", hint="say overwrite=True to change it") from None
    return key


@Either
async def _load(session: Session, cls: type[Block], name: str) -> Block:
    key = _key(cls, name)
    bucket = session.bus.bucket(BLOCKS)
    entry = await bucket.get(key.replace("/", "."))
    if entry is None:
        raise UnknownName("block", key, known=[known.replace(".", "/", 1) for known in await bucket.keys()])
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
        fields: JsonObject = orjson.loads(opened)
        return cls.model_validate(fields)
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
        raise UnknownName("block", key, known=[known.replace(".", "/", 1) for known in await bucket.keys()])
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
            raise DefinitionError(
                f"{part!r} is no name for a block",
                hint="lower-case letters, digits and -, beginning with one of the first",
            )
    return f"{slug}/{short}"


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
