"""What is asked for, as the fragments and values of statements (``read.sql``)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import orjson

from ..bus.event import format_time
from ..errors import DefinitionError
from ..vocabulary import StateType

__all__ = ["MAX_LIMIT", "add_bounds", "checked_limit", "json_array", "like_text", "states_asked"]

MAX_LIMIT = 1000


def checked_limit(limit: int) -> int:
    """Return how many rows a page may have; raise ``DefinitionError`` for too many."""
    if not 1 <= limit <= MAX_LIMIT:
        raise DefinitionError(f"limit {limit} is not between 1 and {MAX_LIMIT}")
    return limit


def states_asked(states: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return (types, names in lower case without dashes) that ``states`` ask for."""
    types, names = [], []
    known = {t.value for t in StateType}
    for state in states:
        if state.upper() in known:
            types.append(state.upper())
        else:
            names.append(state.lower().replace("-", "").replace("_", "").replace(" ", ""))
    return types, names


def add_bounds(
    parts: list[str], values: dict[str, Any], table: str, since: datetime | None, until: datetime | None
) -> None:
    """Add the bounds of a time to the fragments and values of a question about ``table``."""
    for name, moment in (("since", since), ("until", until)):
        if moment is not None:
            parts.append(f"{table}.{name}")
            values[name] = format_time(moment)


def json_array(texts: Iterable[str]) -> str:
    """Return texts as one value, for ``json_each``."""
    return orjson.dumps(list(texts)).decode()


def like_text(text: str) -> str:
    """Return a text for LIKE in which nothing stands for anything else."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
