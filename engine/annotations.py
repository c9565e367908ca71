"""Marks on arguments of tasks: ``unmapped``, ``allow_failure``, ``quote``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Annotation", "allow_failure", "quote", "unmapped"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Annotation(Generic[T]):
    """A value with a mark on it."""

    value: T

    def unwrap(self) -> T:
        return self.value


class unmapped(Annotation[T]):  # noqa: N801  the name users of the field know
    """``task.map(xs, unmapped(y))``: every call gets the whole of ``y``."""

    __slots__ = ()


class allow_failure(Annotation[T]):  # noqa: N801
    """``task.submit(allow_failure(future))``: run even if it failed; the argument is then its exception."""

    __slots__ = ()


class quote(Annotation[T]):  # noqa: N801
    """``task(quote(value))``: do not look for futures inside ``value``; the task gets it as it is."""

    __slots__ = ()

    def unquote(self) -> T:
        return self.value
