"""Writing values without loading what writes them before it is needed: cloudpickle, and serializers, which are pydantic models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serializers import Serializer

__all__ = ["pickled", "serializer_meant", "serializer_or_pickle", "serializer_that_reads", "unpickled"]


def pickled(value: Any) -> bytes:
    """Return the cloudpickle of ``value``; anything at all may be raised for what cannot be pickled."""
    import cloudpickle  # type: ignore[import-untyped]

    data: bytes = cloudpickle.dumps(value)
    return data


def unpickled(data: bytes) -> Any:
    """Return the value that was pickled; anything at all may be raised, since its class has a say."""
    import cloudpickle

    return cloudpickle.loads(data)


def serializer_meant(given: object) -> Serializer | None:
    """Return what ``serializers.serializer_of`` does, and raise what it raises."""
    if given is None:
        return None
    from .serializers import serializer_of

    return serializer_of(given)


def serializer_or_pickle(given: object) -> Serializer:
    """Return the serializer that is meant; without one, pickle."""
    from .serializers import PickleSerializer, serializer_of

    return serializer_of(given) or PickleSerializer()


def serializer_that_reads(format_: str) -> Serializer:
    """Return what ``serializers.serializer_named`` does, and raise what it raises."""
    from .serializers import serializer_named

    return serializer_named(format_)
