"""What JSON has no form for, written as ``{"__class__": "module.Name", "data": …}`` and read back.

As ``default`` and ``object_hook`` of a JSON library. Classes are found by their names, so they have to be at the top of a
module; one that is not, or is gone, comes back as the plain mapping.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

__all__ = ["decode", "encode"]


def encode(value: Any) -> Any:
    """Return the JSON form of an object; raise ``TypeError`` if it has none."""
    kind = type(value)
    if isinstance(value, BaseException):
        return {"__exc_type__": _path(kind), "message": str(value)}
    if isinstance(value, bytes | bytearray):
        return {"__class__": _path(kind), "data": value.hex()}
    if isinstance(value, set | frozenset):
        return {"__class__": _path(kind), "data": list(value)}
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    # A parametrised generic model is found by what it is made of.
    origin = getattr(kind, "__pydantic_generic_metadata__", {}).get("origin") or kind
    try:
        return {"__class__": _path(origin), "data": to_jsonable_python(value)}
    except PydanticSerializationError as exc:
        raise TypeError(f"a {kind.__qualname__} has no form in JSON: {exc}") from exc


def decode(found: dict[str, Any]) -> Any:
    """Return the object that ``encode`` made this mapping of; the mapping itself if it made none of it.

    Raises:
        ValueError: it is an exception of a class that cannot be found. ValidationError: the data no longer fit the class.
    """
    if found.keys() == {"__class__", "data"}:
        kind = _class(str(found["__class__"]))
        if kind is None:
            return found
        data = found["data"]
        if issubclass(kind, bytes | bytearray):
            return kind.fromhex(data)
        if issubclass(kind, set | frozenset):
            return kind(data)
        return _adapter(kind).validate_python(data)
    if found.keys() == {"__exc_type__", "message"}:
        kind = _class(str(found["__exc_type__"]))
        if kind is None or not issubclass(kind, BaseException):
            raise ValueError(f"there is no exception {found['__exc_type__']!r}")
        return kind(found["message"])
    return found


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@lru_cache(maxsize=512)
def _class(path: str) -> type[Any] | None:
    parts = path.split(".")
    for at in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:at]))
            for part in parts[at:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        return found if isinstance(found, type) else None
    return None


def _adapter(kind: Any) -> Any:
    found = _adapters.get(kind)
    if found is None:
        from pydantic import TypeAdapter

        found = _adapters[kind] = TypeAdapter(kind)
    return found


_adapters: dict[Any, Any] = {}
