"""Values to bytes and back: pickle, JSON, and either of them compressed.

A serializer has a ``type``, and a ``format`` that is written beside its bytes, so that whoever reads them finds the right one. A
subclass with a ``type`` of its own is found by it too, once its module has been imported.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, field_validator, model_validator

from .writing import pickled, unpickled

__all__ = [
    "CompressedJSONSerializer",
    "CompressedPickleSerializer",
    "CompressedSerializer",
    "JSONSerializer",
    "PickleSerializer",
    "Serializer",
    "pickled",
    "prefect_json_object_decoder",
    "prefect_json_object_encoder",
    "serializer_named",
    "serializer_of",
    "unpickled",
]


class Serializer(BaseModel):
    """Turns a value into bytes and back. ``Serializer(type="json")`` is a ``JSONSerializer``, and so on.

    A subclass gives its ``type`` a default (``type: str = "mine"``), and is found by it; other fields are said by name, and need
    defaults for results to be read back by whoever has only the type.
    """

    model_config = ConfigDict(extra="forbid")

    _known: ClassVar[dict[str, builtins.type[Serializer]]] = {}

    type: str

    def __class_getitem__(cls, item: Any) -> builtins.type[Self]:
        return cls  # ``Serializer[Order]`` says what it is for, to who reads it

    def __new__(cls, *args: Any, type: str | None = None, **fields: Any) -> Self:
        made: Any = super().__new__(_kind_named(type) if cls is Serializer and type else cls)
        return made  # type: ignore[no-any-return]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        said = cls.model_fields["type"].default
        if isinstance(said, str):
            Serializer._known.setdefault(said, cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Any:
        if cls is Serializer and isinstance(given, dict) and given.get("type") in Serializer._known:
            return Serializer._known[given["type"]].model_validate(given)
        return handler(given)

    def dumps(self, obj: Any) -> bytes:
        """Return the bytes of ``obj``; raises whatever the format raises for what it cannot hold."""
        raise NotImplementedError(f"{self.__class__.__name__} has no dumps(obj)")

    def loads(self, blob: bytes) -> Any:
        """Return the value that ``dumps`` was given."""
        raise NotImplementedError(f"{self.__class__.__name__} has no loads(blob)")

    @property
    def format(self) -> str:
        """What is written beside its bytes; ``serializer_named`` finds by it what reads them."""
        return self.type

    def __hash__(self) -> int:
        return hash(self.type)


class PickleSerializer(Serializer):
    """cloudpickle: nearly everything, functions and classes of ``__main__`` included.

    Args:
        picklelib: another module with ``dumps`` and ``loads``. What it writes must be readable by cloudpickle.
        picklelib_version: taken; nothing depends on it.
    """

    type: str = Field(default="pickle", frozen=True)
    picklelib: str = "cloudpickle"
    picklelib_version: str | None = None

    @field_validator("picklelib")
    @classmethod
    def _has_functions(cls, name: str) -> str:
        _module_with(name, "dumps", "loads", what="pickle")
        return name

    def dumps(self, obj: Any) -> bytes:
        data: bytes = import_module(self.picklelib).dumps(obj)
        return data

    def loads(self, blob: bytes) -> Any:
        return import_module(self.picklelib).loads(blob)


class JSONSerializer(Serializer):
    """JSON that people and other programs can read.

    What JSON has no form for (dates, dataclasses, pydantic models, sets, bytes, exceptions, …) is written as
    ``{"__class__": "module.Name", "data": …}`` and comes back as an object of that class. Tuples come back as lists, keys
    as texts.

    Args:
        jsonlib: another module with ``dumps`` and ``loads``.
        object_encoder, object_decoder: ``module.function`` instead of the ones that do the above; None for none.
        dumps_kwargs, loads_kwargs: passed on to the library.
    """

    type: str = Field(default="json", frozen=True)
    jsonlib: str = "json"
    object_encoder: str | None = "hark.engine.json_objects.encode"
    object_decoder: str | None = "hark.engine.json_objects.decode"
    dumps_kwargs: dict[str, Any] = Field(default_factory=dict)
    loads_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("jsonlib")
    @classmethod
    def _has_functions(cls, name: str) -> str:
        _module_with(name, "dumps", "loads", what="JSON")
        return name

    @field_validator("dumps_kwargs")
    @classmethod
    def _no_default(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "default" in given:
            raise ValueError("`default` cannot be provided. Use `object_encoder` instead.")
        return given

    @field_validator("loads_kwargs")
    @classmethod
    def _no_object_hook(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "object_hook" in given:
            raise ValueError("`object_hook` cannot be provided. Use `object_decoder` instead.")
        return given

    def dumps(self, obj: Any) -> bytes:
        options = dict(self.dumps_kwargs)
        if self.object_encoder:
            options["default"] = _function(self.object_encoder)
        library = json if self.jsonlib == "json" else import_module(self.jsonlib)
        written: str | bytes = library.dumps(obj, **options)
        return written.encode("utf-8", "surrogatepass") if isinstance(written, str) else written

    def loads(self, blob: bytes) -> Any:
        options = dict(self.loads_kwargs)
        if self.object_decoder:
            options["object_hook"] = _function(self.object_decoder)
        library = json if self.jsonlib == "json" else import_module(self.jsonlib)
        return library.loads(blob.decode("utf-8", "surrogatepass"), **options)


class CompressedSerializer(Serializer):
    """Another serializer's bytes, compressed.

    Args:
        serializer: it, or its type.
        compressionlib: a module with ``compress`` and ``decompress``: ``zlib``, ``lzma``, ``bz2``, …
    """

    type: str = Field(default="compressed", frozen=True)
    serializer: Serializer
    compressionlib: str = "zlib"

    @field_validator("serializer", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return serializer_named(given) if isinstance(given, str) else given

    @field_validator("compressionlib")
    @classmethod
    def _has_functions(cls, name: str) -> str:
        _module_with(name, "compress", "decompress", what="compression")
        return name

    @property
    def format(self) -> str:
        by = "" if self.compressionlib == "zlib" else f":{self.compressionlib}"
        return f"compressed{by}/{self.serializer.format}"

    def dumps(self, obj: Any) -> bytes:
        data: bytes = import_module(self.compressionlib).compress(self.serializer.dumps(obj))
        return data

    def loads(self, blob: bytes) -> Any:
        return self.serializer.loads(import_module(self.compressionlib).decompress(blob))


class CompressedPickleSerializer(CompressedSerializer):
    """cloudpickle, compressed."""

    type: str = Field(default="compressed/pickle", frozen=True)
    serializer: Serializer = Field(default_factory=PickleSerializer)


class CompressedJSONSerializer(CompressedSerializer):
    """JSON, compressed."""

    type: str = Field(default="compressed/json", frozen=True)
    serializer: Serializer = Field(default_factory=JSONSerializer)


def prefect_json_object_encoder(obj: Any) -> Any:
    """Return what JSON can hold for what it cannot: Prefect's name for what ``JSONSerializer`` uses."""
    from .json_objects import encode

    return encode(obj)


def prefect_json_object_decoder(result: dict[str, Any]) -> Any:
    """Return the object that was written so; the other way round."""
    from .json_objects import decode

    return decode(result)


def serializer_named(name: str) -> Serializer:
    """Return the serializer of a type or a format: ``pickle``, ``compressed/json``, ``compressed:lzma/json``, one's own.

    Raises:
        ValueError: there is none of that name, or it cannot be made of its type alone.
    """
    first, slash, inner = name.partition("/")
    word, _, library = first.partition(":")
    if word == "compressed" and name not in Serializer._known:
        of = serializer_named(inner if slash else "pickle")
        return CompressedSerializer(serializer=of, compressionlib=library or "zlib")
    if name == "compressed":
        return CompressedPickleSerializer()
    kind: Any = _kind_named(name)
    made: Serializer = kind()
    return made


def _kind_named(name: str) -> builtins.type[Serializer]:
    found = Serializer._known.get(name)
    if found is None:
        raise ValueError(
            f"there is no serializer {name!r}; there is {', '.join(sorted(Serializer._known))}, and compressed:lzma/json and its kind"
        )
    return found


def serializer_of(given: Any) -> Serializer | None:
    """Return what was said as ``result_serializer``: a serializer, its name, or None for "as it fits".

    Raises:
        ValueError: there is none of that name. TypeError: it is neither.
    """
    if given is None or isinstance(given, Serializer):
        return given
    if isinstance(given, str):
        return serializer_named(given)
    raise TypeError(f"result_serializer must be a serializer or its name, such as 'json', got {given!r}")


def _module_with(name: str, *functions: str, what: str) -> None:
    try:
        module = import_module(name)
    except ImportError as exc:
        raise ValueError(f"Failed to import requested {what} library: {name!r}.") from exc
    for function in functions:
        if not callable(getattr(module, function, None)):
            raise ValueError(f"{what.capitalize()} library at {name!r} does not have a {function!r} method.")


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
