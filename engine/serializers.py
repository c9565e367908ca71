"""Values to bytes and back: pickle, JSON, and either of them compressed.

A serializer has a ``type``, which is written beside its bytes, so that whoever reads them finds the right one. A subclass
with a ``type`` of its own is found by it too, once its module has been imported.
"""

from __future__ import annotations

import builtins
import json
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

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


def pickled(value: Any) -> bytes:
    """Return the cloudpickle of ``value``; anything at all may be raised for what cannot be pickled."""
    import cloudpickle  # type: ignore[import-untyped]

    data: bytes = cloudpickle.dumps(value)
    return data


def unpickled(data: bytes) -> Any:
    """Return the value that was pickled; anything at all may be raised, since its class has a say."""
    import cloudpickle

    return cloudpickle.loads(data)


class _Kinds(ABCMeta):
    """``Serializer(type="json")`` is a ``JSONSerializer``, and so on."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("_is_base"):
            return serializer_named(kwargs.pop("type", ""), **kwargs)
        if kwargs.get("type") == getattr(cls, "type", ""):
            del kwargs["type"]
        return super().__call__(*args, **kwargs)


class Serializer(metaclass=_Kinds):
    """Turns a value into bytes and back. Subclasses say a ``type``, and are found by it if they can be made without arguments.

    A subclass need not say how it is made: what it annotates can be given by name.
    """

    _is_base = True

    _known: ClassVar[dict[str, builtins.type[Serializer]]] = {}
    type: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.type:
            Serializer._known.setdefault(cls.type, cls)

    def __init__(self, **fields: Any) -> None:
        known = {word for base in type(self).__mro__ for word in vars(base).get("__annotations__", ())}
        for name, value in fields.items():
            if name not in known or name.startswith("_"):
                raise TypeError(f"{type(self).__name__} takes no {name!r}")
            setattr(self, name, value)

    @abstractmethod
    def dumps(self, value: Any) -> bytes:
        """Return the bytes of ``value``; raises whatever the format raises for what it cannot hold."""

    @abstractmethod
    def loads(self, data: bytes) -> Any:
        """Return the value that ``dumps`` was given."""

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return its ``type`` and what it was made with."""
        return {"type": self.type, **vars(self)}

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.model_dump().items())
        return f"{type(self).__name__}({said})"

    def __eq__(self, other: object) -> bool:
        return other.__class__ is self.__class__ and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(self.type)


class PickleSerializer(Serializer):
    """cloudpickle: nearly everything, functions and classes of ``__main__`` included.

    Args:
        picklelib: another module with ``dumps`` and ``loads``. What it writes must be readable by cloudpickle.
    """

    type = "pickle"

    def __init__(self, picklelib: str = "cloudpickle") -> None:
        self.picklelib = picklelib
        _module_with(picklelib, "dumps", "loads")

    def dumps(self, value: Any) -> bytes:
        data: bytes = _module_with(self.picklelib, "dumps", "loads").dumps(value)
        return data

    def loads(self, data: bytes) -> Any:
        return _module_with(self.picklelib, "dumps", "loads").loads(data)


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

    type = "json"

    def __init__(
        self,
        jsonlib: str = "json",
        *,
        object_encoder: str | None = "hark.engine.json_objects.encode",
        object_decoder: str | None = "hark.engine.json_objects.decode",
        dumps_kwargs: Mapping[str, Any] | None = None,
        loads_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        _module_with(jsonlib, "dumps", "loads")
        if dumps_kwargs and "default" in dumps_kwargs:
            raise ValueError("dumps_kwargs takes no `default`; say object_encoder instead")
        if loads_kwargs and "object_hook" in loads_kwargs:
            raise ValueError("loads_kwargs takes no `object_hook`; say object_decoder instead")
        self.jsonlib = jsonlib
        self.object_encoder, self.object_decoder = object_encoder, object_decoder
        self.dumps_kwargs, self.loads_kwargs = dict(dumps_kwargs or {}), dict(loads_kwargs or {})

    def dumps(self, value: Any) -> bytes:
        options = dict(self.dumps_kwargs)
        if self.object_encoder:
            options["default"] = _function(self.object_encoder)
        library = json if self.jsonlib == "json" else import_module(self.jsonlib)
        written: str | bytes = library.dumps(value, **options)
        return written.encode("utf-8", "surrogatepass") if isinstance(written, str) else written

    def loads(self, data: bytes) -> Any:
        options = dict(self.loads_kwargs)
        if self.object_decoder:
            options["object_hook"] = _function(self.object_decoder)
        library = json if self.jsonlib == "json" else import_module(self.jsonlib)
        return library.loads(data.decode("utf-8", "surrogatepass"), **options)


class CompressedSerializer(Serializer):
    """Another serializer's bytes, compressed.

    Args:
        compressionlib: a module with ``compress`` and ``decompress``: ``zlib``, ``lzma``, ``bz2``, …
    """

    def __init__(self, serializer: Serializer | str = "pickle", compressionlib: str = "zlib") -> None:
        self.serializer = serializer_named(serializer) if isinstance(serializer, str) else serializer
        self.compressionlib = compressionlib
        _module_with(compressionlib, "compress", "decompress")
        by = "" if compressionlib == "zlib" else f":{compressionlib}"
        self.type = f"compressed{by}/{self.serializer.type}"

    def dumps(self, value: Any) -> bytes:
        data: bytes = import_module(self.compressionlib).compress(self.serializer.dumps(value))
        return data

    def loads(self, data: bytes) -> Any:
        return self.serializer.loads(import_module(self.compressionlib).decompress(data))


class CompressedPickleSerializer(CompressedSerializer):
    """cloudpickle, compressed."""

    def __init__(self, compressionlib: str = "zlib") -> None:
        super().__init__("pickle", compressionlib)


class CompressedJSONSerializer(CompressedSerializer):
    """JSON, compressed."""

    def __init__(self, compressionlib: str = "zlib") -> None:
        super().__init__("json", compressionlib)


def prefect_json_object_encoder(obj: Any) -> Any:
    """Return what JSON can hold for what it cannot: Prefect's name for what ``JSONSerializer`` uses."""
    from .json_objects import encode

    return encode(obj)


def prefect_json_object_decoder(result: dict[str, Any]) -> Any:
    """Return the object that was written so; the other way round."""
    from .json_objects import decode

    return decode(result)


def serializer_named(name: str, **fields: Any) -> Serializer:
    """Return the serializer of a type: ``pickle``, ``json``, ``compressed/pickle``, ``compressed:lzma/json``, one's own.

    Raises:
        ValueError: there is none of that name.
    """
    first, slash, inner = name.partition("/")
    word, _, library = first.partition(":")
    if word == "compressed":
        of = fields.pop("serializer", None) or serializer_named(inner if slash else "pickle")
        by = fields.pop("compressionlib", None) or library or "zlib"
        return CompressedSerializer(of, by, **fields)
    found = Serializer._known.get(name)
    if found is None:
        own = sorted(set(Serializer._known) - {"pickle", "json"})
        raise ValueError(
            f"there is no serializer {name!r}; take pickle, json, compressed/pickle or compressed/json"
            + (f", or {', '.join(own)}" if own else "")
        )
    return found(**fields)


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


def _module_with(name: str, *functions: str) -> Any:
    try:
        module = import_module(name)
    except ImportError as exc:
        raise ValueError(f"module {name!r} cannot be imported: {exc}") from exc
    for function in functions:
        if not callable(getattr(module, function, None)):
            raise ValueError(f"module {name!r} has no function {function!r}")
    return module


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
