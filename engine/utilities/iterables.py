"""Questions to iterables, and enums that are named by themselves, under the names that code written for Prefect uses. Pure."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence, Set
from enum import Enum, auto
from itertools import islice
from typing import Any, TypeVar, cast

__all__ = [
    "AutoEnum", "batched_iterable", "distinct", "ensure_iterable", "extract_instances", "isiterable", "listrepr",
]  # fmt: skip

T = TypeVar("T")


class AutoEnum(str, Enum):  # noqa: UP042  a StrEnum would be shown by its value, and this is shown by its name
    """An enum of texts that are the names themselves: ``RED = AutoEnum.auto()`` is ``"RED"``. JSON takes it as it is."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[Any]) -> str:
        return name

    @staticmethod
    def auto() -> Any:
        """Return what makes a member have its own name."""
        return auto()

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.value}"


def isiterable(obj: object) -> bool:
    """Return whether something is iterated over; a text, bytes and an open file are one thing each, not several."""
    try:
        iter(cast("Iterable[Any]", obj))
    except TypeError:
        return False
    return not isinstance(obj, str | bytes | io.IOBase)


def ensure_iterable(obj: Any) -> Collection[Any]:
    """Return a sequence or a set as it is, and anything else as the only item of a list."""
    return obj if isinstance(obj, Sequence | Set) else [obj]


def listrepr(objs: Iterable[object], sep: str = " ") -> str:
    """Return the ``repr`` of each, with ``sep`` between them."""
    return sep.join(map(repr, objs))


def extract_instances(
    objects: Iterable[Any], types: type | tuple[type, ...] = object
) -> list[Any] | dict[type, list[Any]]:
    """Return which of the objects are of a type; of several types, those of each, by type.

    Raises:
        KeyError: there are none of the one type.
    """
    wanted = ensure_iterable(types)
    found: dict[type, list[Any]] = {}
    for value in objects:
        for kind in wanted:
            if isinstance(value, kind):
                found.setdefault(kind, []).append(value)
    return found[next(iter(wanted))] if len(wanted) == 1 else found


def batched_iterable(iterable: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield the items in tuples of ``size``; the last may be shorter."""
    rest = iter(iterable)
    while batch := tuple(islice(rest, size)):
        yield batch


def distinct(iterable: Iterable[T], key: Callable[[T], Hashable] | None = None) -> Iterator[T]:
    """Yield the items, without those whose ``key`` (default: the item itself) one before had."""
    seen: set[Hashable] = set()
    for item in iterable:
        known = cast("Hashable", item) if key is None else key(item)
        if known not in seen:
            seen.add(known)
            yield item
