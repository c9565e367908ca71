"""Blocks in the broker: sealed as a whole, each under its kind and name, with what else is saved kept by reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import orjson
from pydantic import ValidationError

from ...bus.secret import check_secret_name
from ...errors import AlreadyExists, AlreadyHeld, BlockUnfit, InvalidNameError, SecretUnreadable, UnknownBlock
from ..blocks import BLOCKS, Block
from ..sync_async.either import Either
from ..values import secret_store
from .block_form import opened, stored_form

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["block_named", "delete_block", "load_block", "load_reference", "load_referred", "save_block"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")
_REF = "$ref"
_SECRET = "secret/"  # noqa: S105
"""Before the names of secrets, which are in a bucket of their own."""
MAX_DEPTH = 50
"""Of references that lead on to others: more than that is a circle."""


@Either
async def save_block(
    session: Session, block: Block, name: str | None = None, *, overwrite: bool = False
) -> str:
    """Keep a block; see ``Block.save``."""
    name = name or block._block_document_name
    if not name:
        raise InvalidNameError("a block is saved under a name, and none was given", hint='block.save("main")')
    key = _key(type(block), name)
    if key.startswith(_SECRET):
        await _save_secret(session, key, block, overwrite=overwrite)
        return key
    saved = {
        (field.serialization_alias or field.alias or word): {_REF: _slug(value)}
        for word, field in type(block).model_fields.items()
        if isinstance(value := getattr(block, word, None), Block) and value._block_document_name
    }
    dumped = block.model_dump(
        mode="python", by_alias=True, include=set(type(block).model_fields), serialize_as_any=True
    )
    sealed = secret_store(session.bus).seal(key, stored_form({**dumped, **saved}))
    bucket = session.bus.bucket(BLOCKS)
    if overwrite:
        await bucket.put(key.replace("/", "."), sealed)
    else:
        try:
            await bucket.create(key.replace("/", "."), sealed)
        except AlreadyHeld:
            raise AlreadyExists("block", key) from None
    _mark(block, key)
    return key


async def _save_secret(session: Session, key: str, block: Block, *, overwrite: bool) -> None:
    """Keep a ``Secret`` where templates and ``hark secrets`` find it."""
    from ..secret import Secret

    assert isinstance(block, Secret)
    store, name = secret_store(session.bus), key.removeprefix(_SECRET)
    if not overwrite and name in await store.names():
        raise AlreadyExists("secret", name)
    await store.set(name, block.get_secret_value())
    _mark(block, key)


@Either
async def load_block(session: Session, cls: type[Block], name: str, validate: bool = True) -> Block:
    """Return a saved block; see ``Block.load``."""
    return await _load(session, cls, _key(cls, name), validate)


@Either
async def load_referred(session: Session, ref: object, validate: bool = True) -> Block:
    """Return the saved block that a reference names; see ``Block.load_from_ref``."""
    return await _load(session, Block, await _key_of(session, ref), validate)


@Either
async def delete_block(session: Session, cls: type[Block], name: str) -> None:
    """Forget a block. Raises ``UnknownBlock``."""
    key = _key(cls, name)
    if key.startswith(_SECRET):
        await _secret(session, key)  # raises the same error as everything else that does not find one
        await secret_store(session.bus).delete(key.removeprefix(_SECRET))
        return
    bucket = session.bus.bucket(BLOCKS)
    if await bucket.get(key.replace("/", ".")) is None:
        raise UnknownBlock("block", key, known=await _known(session))
    await bucket.delete(key.replace("/", "."))


async def block_named(session: Session, ref: object) -> str:
    """Return the name of a saved block, by its id or as ``kind/name``. Raises ``UnknownBlock``, ``InvalidNameError``."""
    if "/" in str(ref):
        return str(ref).rpartition("/")[2]
    return (await _key_of(session, ref)).rpartition("/")[2]


def load_reference(ref: object) -> Block:
    """Return the saved block that a reference names, waiting for it, from sync and async code."""
    return load_referred.blocking(ref)


async def _load(session: Session, cls: type[Block], key: str, validate: bool, *, depth: int = 0) -> Block:
    fields = await _fields(session, key)
    slug = key.partition("/")[0]
    kind = Block.get_block_class_from_key(slug) if cls is Block or cls.get_block_type_slug() != slug else cls
    for word, value in fields.items():
        # What is saved of its own is read here, and not while the model is made, which would hold this loop.
        if isinstance(value, dict) and set(value) == {_REF} and isinstance(value[_REF], str):
            if depth >= MAX_DEPTH:
                raise BlockUnfit(key, f"its references lead {MAX_DEPTH} deep, which is a circle")
            fields[word] = await _load(session, Block, value[_REF], validate, depth=depth + 1)
    try:
        block = kind.model_validate(fields) if validate else _as_it_is(kind, fields)
    except ValidationError as exc:
        raise BlockUnfit(key, f"it does not fit {kind.__name__}: {exc}") from exc
    _mark(block, key)
    return block


async def _secret(session: Session, key: str) -> str:
    store, name = secret_store(session.bus), key.removeprefix(_SECRET)
    known = await store.names()
    if name not in known:
        raise UnknownBlock("secret", name, known=known)
    return str(await store.get(name))


async def _fields(session: Session, key: str) -> dict[str, Any]:
    if key.startswith(_SECRET):
        return {"value": await _secret(session, key)}
    entry = await session.bus.bucket(BLOCKS).get(key.replace("/", "."))
    if entry is None:
        raise UnknownBlock("block", key, known=await _known(session))
    try:
        return opened(secret_store(session.bus).unseal(key, entry.value))
    except orjson.JSONDecodeError:
        raise SecretUnreadable(key, why="its stored form is damaged") from None


def _as_it_is(kind: type[Block], fields: Mapping[str, Any]) -> Block:
    missing = {
        word: None
        for word, field in kind.model_fields.items()
        if field.is_required() and word not in fields and field.alias not in fields
    }
    return kind.model_construct(None, **{**missing, **fields})


async def _key_of(session: Session, ref: object) -> str:
    """Return the key of a reference: ``{"block_document_id": …}``, ``{"block_document_slug": …}``, or the id itself."""
    given = ref
    if isinstance(ref, Mapping):
        slug = ref.get("block_document_slug")
        if slug is not None:
            return _key(Block, str(slug))
        given = ref.get("block_document_id")
    if given is None:
        raise InvalidNameError(f"{ref!r} refers to no block", hint='{"block_document_slug": "kind/name"}')
    try:
        wanted = str(UUID(str(given)))
    except ValueError:
        raise InvalidNameError(
            f"{given!r} is not the id of a block", hint='{"block_document_slug": "kind/name"}'
        ) from None
    known = await _known(session)
    found = next((key for key in known if _id(key) == wanted), None)
    if found is None:
        raise UnknownBlock("block", wanted)
    return found


def _mark(block: Block, key: str) -> None:
    block._block_document_name, block._block_document_id = key.partition("/")[2], _id(key)
    block._is_anonymous = False


def _id(key: str) -> str:
    """Return the id of a saved block: made of its kind and name, so that it stays what it is."""
    return str(uuid5(NAMESPACE_URL, f"hark:block/{key}"))


def _slug(block: Block) -> str:
    return f"{block.get_block_type_slug()}/{block._block_document_name}"


async def _known(session: Session) -> list[str]:
    blocks = [known.replace(".", "/", 1) for known in await session.bus.bucket(BLOCKS).keys()]
    return blocks + [_SECRET + name for name in await secret_store(session.bus).names()]


def _key(cls: type[Block], name: str) -> str:
    slug, slash, short = str(name).rpartition("/")
    if not slash:
        if cls is Block:
            raise InvalidNameError(f"{name!r} does not say the kind of block", hint='write "kind/name"')
        slug = cls.get_block_type_slug()
    elif cls is not Block and slug != cls.get_block_type_slug():
        raise InvalidNameError(f"{name!r} is no block of kind {cls.get_block_type_slug()!r}")
    if slug == "secret":
        # Prefect's names have dashes, which templates would read as minus: my-key is `{{ secrets.my_key }}`.
        return _SECRET + check_secret_name(short.replace("-", "_"))
    for part in (slug, short):
        if not _NAME.fullmatch(part):
            raise InvalidNameError(
                f"{part!r} is no name for a block",
                hint="lower-case letters, digits and -, beginning with one of the first",
            )
    return f"{slug}/{short}"
