"""What the JSON schema of a block says besides its fields: its kind, which fields are secret, and which are blocks. Pure."""

from __future__ import annotations

import collections.abc
import hashlib
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic import Secret as AnySecret

__all__ = ["add_to_schema", "all_secret"]


def all_secret(given: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with its values as secrets."""
    return {
        name: value if isinstance(value, SecretStr) else SecretStr(str(value))
        for name, value in given.items()
    }


def add_to_schema(schema: dict[str, Any], model: Any) -> None:
    """Add ``block_type_slug``, ``secret_fields`` (``*``: all below it) and ``block_schema_references`` to a schema."""
    schema["block_type_slug"] = model.get_block_type_slug()
    description = model.get_description()
    if description:
        schema["description"] = description
    else:
        schema.pop("description", None)
    fields = {name: field for name, field in model.model_fields.items() if field.annotation is not None}
    schema["secret_fields"] = [
        path
        for name, field in fields.items()
        for path in _secret(name, field.annotation, _all_below=bool(_is_secret_dict(field)))
    ]
    references: dict[str, Any] = {}
    for name, field in fields.items():
        found = [_reference(kind) for kind in _blocks(field.annotation)]
        if found:
            references[name] = found[0] if len(found) == 1 else found
    schema["block_schema_references"] = references


def _is_secret_dict(field: Any) -> bool:
    return any(getattr(part, "func", None) is all_secret for part in field.metadata)


def _secret(name: str, kind: Any, *, _all_below: bool = False) -> Iterator[str]:
    if _all_below:
        yield f"{name}.*"
    elif inner := _inner(kind):
        for one in inner:
            yield from _secret(name, one)
    elif isinstance(kind, type) and issubclass(kind, SecretStr | SecretBytes | AnySecret):
        yield name
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for word, field in kind.model_fields.items():
            if field.annotation is not None:
                yield from _secret(f"{name}.{word}", field.annotation, _all_below=_is_secret_dict(field))


def _blocks(kind: Any) -> Iterator[Any]:
    if isinstance(kind, type) and get_origin(kind) is None and hasattr(kind, "get_block_type_slug"):
        yield kind
    for one in _inner(kind):
        yield from _blocks(one)


def _reference(kind: Any) -> dict[str, str]:
    fields = orjson.dumps(kind.model_json_schema(), option=orjson.OPT_SORT_KEYS)
    return {
        "block_type_slug": kind.get_block_type_slug(),
        "block_schema_checksum": f"sha256:{hashlib.sha256(fields).hexdigest()}",
    }


def _inner(kind: Any) -> tuple[Any, ...]:
    """Return what a union or a collection is made of."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return get_args(kind)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return get_args(kind)
    return ()
