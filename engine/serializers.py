"""Values to bytes and back: pickle, JSON, and either of them compressed."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Any

import orjson

__all__ = [
    "CompressedSerializer",
    "JSONSerializer",
    "PickleSerializer",
    "Serializer",
    "pickled",
    "serializer_named",
    "unpickled",
]


def pickled(value: Any) -> bytes:
    """Return the cloudpickle of ``value``; anything at all may be raised for what cannot be pickled."""
    import cloudpickle  # type: ignore[import-untyped]

    data: bytes = cloudpickle.dumps(value)
    return data


def unpickled(data: bytes) -> Any:
    """Return the value that was pickled; anything at all may be raised, since its class has a say."""
    import cloudpickle

    return cloudpickle.loads(data)


class Serializer(ABC):
    """Turns a value into bytes and back; ``type`` is written beside the bytes."""

    type: str

    @abstractmethod
    def dumps(self, value: Any) -> bytes:
        """Return the bytes of ``value``; raises whatever the format raises for what it cannot hold."""

    @abstractmethod
    def loads(self, data: bytes) -> Any:
        """Return the value that ``dumps`` was given."""


class PickleSerializer(Serializer):
    """cloudpickle: nearly everything, functions and classes of ``__main__`` included."""

    type = "pickle"

    def dumps(self, value: Any) -> bytes:
        return pickled(value)

    def loads(self, data: bytes) -> Any:
        return unpickled(data)


class JSONSerializer(Serializer):
    """JSON; dataclasses, dates and pydantic models are written and come back as plain JSON values."""

    type = "json"

    def dumps(self, value: Any) -> bytes:
        return orjson.dumps(value, default=_json_form, option=orjson.OPT_SERIALIZE_NUMPY)

    def loads(self, data: bytes) -> Any:
        return orjson.loads(data)


class CompressedSerializer(Serializer):
    """Another serializer's bytes, through zlib."""

    def __init__(self, serializer: Serializer | str = "pickle") -> None:
        self.serializer = serializer_named(serializer) if isinstance(serializer, str) else serializer
        self.type = f"compressed/{self.serializer.type}"

    def dumps(self, value: Any) -> bytes:
        return zlib.compress(self.serializer.dumps(value), level=3)

    def loads(self, data: bytes) -> Any:
        return self.serializer.loads(zlib.decompress(data))


def serializer_named(name: str) -> Serializer:
    """Return the serializer called ``pickle``, ``json``, ``compressed/pickle`` or ``compressed/json``.

    Raises:
        ValueError: there is none of that name.
    """
    match name:
        case "pickle":
            return PickleSerializer()
        case "json":
            return JSONSerializer()
        case "compressed" | "compressed/pickle":
            return CompressedSerializer(PickleSerializer())
        case "compressed/json":
            return CompressedSerializer(JSONSerializer())
        case _:
            raise ValueError(
                f"there is no serializer {name!r}; take pickle, json, compressed/pickle or compressed/json"
            )


def _json_form(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__qualname__} is not JSON")
