"""Marks on arguments of tasks: ``unmapped``, ``allow_failure``, ``quote``, ``opaque``; and ``freeze``, on those of deployments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core.core_schema import CoreSchema

__all__ = [
    "Annotation", "BaseAnnotation", "NotSet", "allow_failure", "freeze", "opaque", "quote", "unmapped",
]  # fmt: skip

T = TypeVar("T")


class NotSet:
    """Stands where nothing was said, which is not the same as None."""


@dataclass(frozen=True, slots=True, repr=False)
class Annotation(Generic[T]):
    """A value with a mark on it."""

    value: T

    def unwrap(self) -> T:
        return self.value

    def rewrap(self, value: Any) -> Self:
        """Return another value with the same mark."""
        return type(self)(value)

    def __iter__(self) -> Iterator[T]:
        # As a tuple of one, which Prefect's are; unmapped would be endless otherwise.
        yield self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


BaseAnnotation = Annotation


class unmapped(Annotation[T]):
    """``task.map(xs, unmapped(y))``: every call gets the whole of ``y``."""

    __slots__ = ()

    def __getitem__(self, _: object) -> T:
        return self.value


class allow_failure(Annotation[T]):
    """``task.submit(allow_failure(future))``: run even if it failed; the argument is then its exception."""

    __slots__ = ()


class quote(Annotation[T]):
    """``task(quote(value))``: do not look for futures inside ``value``; the task gets it as it is."""

    __slots__ = ()

    def unquote(self) -> T:
        return self.value


class opaque(Annotation[T]):
    """``task(opaque(future))``: wait for the future, and do not look for others inside its result."""

    __slots__ = ()


class freeze(Annotation[T]):
    """``flow.deploy(…, parameters={"day": freeze("mon")})``: a value that is JSON, whatever the deployment is run with.

    Raises:
        ValueError: the value is no JSON.
    """

    __slots__ = ()

    def __init__(self, value: T) -> None:
        from pydantic_core import to_json

        try:
            to_json(value)
        except Exception as exc:  # of whatever kind the value's class raises
            raise ValueError("Value must be JSON serializable") from exc
        Annotation.__init__(self, value)

    def unfreeze(self) -> T:
        return self.value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take any value of a model's field and freeze it; written, it is the value again."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.unfreeze),
        )
