"""Pages of lists that are whole in memory: definitions, keys, alerts. What comes from SQLite is paged there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from ..storage import Page
from ..storage.row import decode_cursor, encode_cursor

__all__ = ["Asked", "Paging", "one_page"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which page somebody asks for: at most ``limit`` items after those that ``cursor`` stands behind."""

    cursor: str | None = None
    limit: int = 50

    def page(self, items: Sequence[T], name: Callable[[T], Any]) -> Page[T]:
        """Return the page of ``items``; ``name`` tells them apart.

        Raises:
            DefinitionError: the cursor is none of a whole list.
        """
        return one_page(items, name, cursor=self.cursor, limit=self.limit)


def _asked(
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="most items of a page")] = 50,
) -> Asked:
    return Asked(cursor, limit)


Paging = Annotated[Asked, Depends(_asked)]
"""What a route of a whole list takes as a parameter: reads ``cursor`` and ``limit`` of the query."""


def one_page(items: Sequence[T], name: Callable[[T], Any], *, cursor: str | None, limit: int) -> Page[T]:
    """Return ``limit`` items after the one ``cursor`` names, and the cursor behind them, None at the end.

    The cursor holds the name of the last item shown and its place: where that item is gone meanwhile, the next one
    has moved up to the place, so that what stays there all the while is shown once, whatever comes and goes behind it.

    Raises:
        DefinitionError: the cursor is none of a whole list.
    """
    begin = 0
    if cursor is not None:
        place, last = decode_cursor(cursor, int, str)
        begin = next((at + 1 for at, item in enumerate(items) if str(name(item)) == last), max(0, place))
    shown = tuple(items[begin : begin + limit])
    end = begin + len(shown)
    more = bool(shown) and end < len(items)
    return Page(shown, encode_cursor(end - 1, str(name(shown[-1]))) if more else None)
