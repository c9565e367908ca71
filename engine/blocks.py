"""``Block``: a typed piece of configuration that is saved under a name and loaded again, its secrets encrypted.

::

    class Warehouse(Block):
        host: str
        password: SecretStr

    Warehouse(host="db", password="…").save("main")
    Warehouse.load("main")              # or Block.load("warehouse/main")

As a whole it is sealed with the key of secrets, so nothing of it stands readable in the broker. Awaited in async code.
A field that holds a saved block is kept as a reference to it: who loads the outer one gets what the inner one is then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ..errors import BlockNotSaved, BlockRegistrationRefused, UnknownBlockKind
from .persistence.block_form import ABOUT, SLUG, described, plain, secret_paths, shown_fields
from .persistence.block_schema import add_to_schema
from .sync_async.either import is_async_here

__all__ = [
    "BLOCKS", "Block", "BlockNotSavedError", "InvalidBlockRegistration", "UnknownBlockType", "load_blocking", "shown_fields",
]  # fmt: skip

BLOCKS = "blocks"
_known: dict[str, type[Block]] = {}

# As Prefect calls them.
BlockNotSavedError, InvalidBlockRegistration, UnknownBlockType = (
    BlockNotSaved,
    BlockRegistrationRefused,
    UnknownBlockKind,
)


class Block(BaseModel):
    """A pydantic model that can be saved and loaded. Subclasses are found by their slug, such as ``warehouse``."""

    model_config = ConfigDict(extra="allow", json_schema_extra=add_to_schema)

    _block_type_name: ClassVar[str | None] = None
    _block_type_slug: ClassVar[str | None] = None
    _description: ClassVar[str | None] = None
    _code_example: ClassVar[str | None] = None
    _logo_url: ClassVar[Any] = None
    _documentation_url: ClassVar[Any] = None
    _block_schema_capabilities: ClassVar[list[str] | None] = None
    _block_schema_version: ClassVar[str | None] = None

    _block_document_name: str | None = PrivateAttr(None)
    """Under which it was saved or loaded; None if it was not."""
    _block_document_id: str | None = PrivateAttr(None)
    _is_anonymous: bool | None = PrivateAttr(None)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Return an empty block of the kind that ``block_type_slug`` says, where that is a kind of this one."""
        kind = _known.get(str(kwargs.get(SLUG)))
        return super().__new__(kind if kind is not None and issubclass(kind, cls) else cls)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not cls.__pydantic_generic_metadata__["origin"]:  # Kind[int] is no kind of its own
            _known[cls.get_block_type_slug()] = cls

    def __eq__(self, other: object) -> bool:
        """Return whether they have the same fields, saved or not."""
        return (
            isinstance(other, Block)
            and type(self) is type(other)
            and self.__dict__ == other.__dict__
            and self.__pydantic_extra__ == other.__pydantic_extra__
        )

    __hash__ = None  # type: ignore[assignment]  # its fields may change

    def __str__(self) -> str:
        return repr(self)

    def __repr_args__(self) -> Any:
        fields = type(self).model_fields
        return [(name, value) for name, value in super().__repr_args__() if name is None or name in fields]

    @classmethod
    def get_block_type_name(cls) -> str:
        """Return what people read: the name given, or the class's."""
        origin = cls.__pydantic_generic_metadata__["origin"] or cls
        return cls._block_type_name or str(origin.__name__)

    @classmethod
    def get_block_type_slug(cls) -> str:
        """Return what it is stored under: ``AwsCredentials`` is ``awscredentials``, as in Prefect."""
        given = cls._block_type_slug or cls.get_block_type_name()
        return re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")

    def block_initialization(self) -> None:
        """For subclasses: called once a block has been made or loaded."""

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self.block_initialization()

    # --- reading and writing --------------------------------------------------------------------------

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take ``{"$ref": …}`` for the saved block it names, and a mapping with a slug for a block of that kind."""
        if not isinstance(value, Mapping):
            return handler(value)
        if set(value) == {"$ref"}:
            from .persistence.block_storage import load_reference

            # What stands there need not be of this class: then the fields both have are taken.
            found = load_reference(value["$ref"])
            return found if isinstance(found, cls) else handler(plain(found.model_dump()))
        if ABOUT.isdisjoint(value):
            return handler(value)
        slug, fields = value.get(SLUG), {name: one for name, one in value.items() if name not in ABOUT}
        if slug is None or slug == cls.get_block_type_slug():
            return handler(fields)
        kind = _known.get(str(slug))
        if kind is None or not issubclass(kind, cls):
            raise ValueError(
                f"it is a block of kind {slug!r}, and {cls.get_block_type_slug()!r} was expected"
            )
        return kind.model_validate(fields)

    @model_serializer(mode="wrap")
    def _with_its_kind(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Add of which kind it is, and as what it is saved; with ``context={"include_secrets": True}`` show its secrets."""
        dumped: dict[str, Any] = handler(self)
        if info.context and info.context.get("include_secrets"):
            for name, field in type(self).model_fields.items():
                key = (field.serialization_alias or field.alias or name) if info.by_alias else name
                value = getattr(self, name)
                if key in dumped and next(secret_paths(value), None) is not None:
                    dumped[key] = plain(value)
        about = {
            SLUG: self.get_block_type_slug(), "_block_document_id": self._block_document_id,
            "_block_document_name": self._block_document_name, "_is_anonymous": self._is_anonymous,
        }  # fmt: skip
        wanted, barred = info.include, info.exclude
        return dumped | {
            name: value
            for name, value in about.items()
            if value is not None
            and (wanted is None or name in wanted)
            and (barred is None or name not in barred)
        }

    # --- keeping --------------------------------------------------------------------------------------

    def save(self, name: str | None = None, overwrite: bool = False) -> Any:
        """Keep it under a name; return ``slug/name``.

        Args:
            name: default: the one it was saved or loaded under.
        Raises:
            AlreadyExists: there is one of this name, and ``overwrite`` was not said.
            DefinitionError: the name is none.
        """
        from .persistence.block_storage import save_block

        return save_block(self, name, overwrite=overwrite)

    async def asave(self, name: str | None = None, overwrite: bool = False) -> str:
        """Do what ``save`` does, in async code."""
        from .persistence.block_storage import save_block

        return await save_block.aio(self, name, overwrite=overwrite)

    @classmethod
    def load(cls, name: str, validate: bool = True) -> Any:
        """Return a block: ``Warehouse.load("main")``, or of any kind ``Block.load("warehouse/main")``.

        Args:
            validate: False: take what is stored as it is, though the class has changed since; what is missing is None.
        Raises:
            UnknownBlock: there is none of that name; also a ``ValueError``.
            BlockUnfit: what is stored does not fit the class. UnknownBlockKind: its class has not been imported.
            SecretUnreadable: it was sealed with another key.
        """
        from .persistence.block_storage import load_block

        return load_block(cls, name, validate)

    @classmethod
    async def aload(cls, name: str, validate: bool = True) -> Self:
        """Do what ``load`` does, in async code."""
        from .persistence.block_storage import load_block

        return cast(Self, await load_block.aio(cls, name, validate))

    @classmethod
    def load_from_ref(cls, ref: object, validate: bool = True) -> Any:
        """Return a saved block by its id, or ``{"block_document_id": …}`` or ``{"block_document_slug": "kind/name"}``."""
        from .persistence.block_storage import load_referred

        return load_referred(ref, validate)

    @classmethod
    async def aload_from_ref(cls, ref: object, validate: bool = True) -> Self:
        """Do what ``load_from_ref`` does, in async code."""
        from .persistence.block_storage import load_referred

        return cast(Self, await load_referred.aio(ref, validate))

    @classmethod
    def delete(cls, name: str) -> Any:
        """Remove a block. Raises ``UnknownBlock``."""
        from .persistence.block_storage import delete_block

        return delete_block(cls, name)

    @classmethod
    async def adelete(cls, name: str) -> None:
        """Do what ``delete`` does, in async code."""
        from .persistence.block_storage import delete_block

        await delete_block.aio(cls, name)

    # --- what people and programs ask about a kind ----------------------------------------------------

    @classmethod
    def register_type_and_schema(cls) -> Any:
        """Do nothing: a kind of block is known once its class is imported. For code written for Prefect.

        Raises:
            BlockRegistrationRefused: it is ``Block`` itself, of which there are none.
        """
        if cls is Block:
            raise BlockRegistrationRefused("Block itself is no kind of block; call this of a subclass of it")
        return _Nothing() if is_async_here() else None

    @classmethod
    def get_block_class_from_key(cls, key: str) -> type[Block]:
        """Return the kind of a slug. Raises ``UnknownBlockKind`` if nothing imported here is one."""
        found = _known.get(key)
        if found is None:
            raise UnknownBlockKind("kind of block", key, known=sorted(_known))
        return found

    @classmethod
    def get_block_capabilities(cls) -> frozenset[str]:
        """Return what ``_block_schema_capabilities`` says, here and in the classes this one is made of."""
        return frozenset(
            word for base in cls.__mro__ for word in getattr(base, "_block_schema_capabilities", None) or ()
        )

    @classmethod
    def get_block_schema_version(cls) -> str:
        """Return what ``_block_schema_version`` says, if anything."""
        return cls._block_schema_version or "non-versioned"

    @classmethod
    def get_description(cls) -> str | None:
        """Return what people read about this kind: what ``_description`` says, or the docstring before its sections."""
        return cls._description or described(cls.__doc__)[0]

    @classmethod
    def get_code_example(cls) -> str:
        """Return how to use this kind: what ``_code_example`` says, the example of the docstring, or one that loads it."""
        said = cls._code_example or described(cls.__doc__)[1]
        if said:
            return said
        variable, name = cls.get_block_type_slug().replace("-", "_"), cls.__name__
        return f'```python\nfrom {cls.__module__} import {name}\n\n{variable}_block = {name}.load("BLOCK_NAME")\n```'

    def get_block_placeholder(self) -> str:
        """Return ``prefect.blocks.kind.name``, which stands for this block in texts.

        Raises:
            BlockNotSaved: it has no name yet.
        """
        if not self._block_document_name:
            raise BlockNotSaved(self.get_block_type_slug())
        return f"prefect.blocks.{self.get_block_type_slug()}.{self._block_document_name}"


class _Nothing:
    """To be awaited, or not."""

    def __await__(self) -> Iterator[None]:
        return iter(())


def load_blocking(name: str) -> Any:
    """Return the block ``slug/name``, waiting for it, from sync and async code."""
    from .persistence.block_storage import load_block

    return load_block.blocking(Block, name)
