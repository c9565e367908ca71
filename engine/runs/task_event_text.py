"""Pieces of the JSON of task events that many of them share, encoded once."""

from __future__ import annotations

from functools import lru_cache

import orjson

from ...bus.subject import STATE_HEADER
from ...bus.wire import header_lines
from ...vocabulary import StateType, sendable
from ..states import event_word

__all__ = [
    "COMPLETED_LINES",
    "PENDING_LINES",
    "QUOTED",
    "RUNNING_LINES",
    "known",
    "quoted",
    "texts",
    "upstream_text",
]

MOST_UPSTREAM = 500
"""So many upstream runs are named in an event: the broker takes 1 MiB, which is 26 000 of them."""

PENDING_LINES, RUNNING_LINES, COMPLETED_LINES = (
    header_lines({STATE_HEADER: word}) for word in ("pending", "running", "completed")
)
QUOTED: dict[StateType | None, str] = {None: "null", **{type_: f'"{type_.value}"' for type_ in StateType}}


@lru_cache(maxsize=256)
def known(type_: StateType, name: str) -> tuple[str, str, str]:
    """Return the event's last word, the state as JSON with a null message at its end, and the header lines."""
    word = event_word(type_, name)
    state = f'{{"type":"{type_.value}","name":{quoted(name)},"message":null}}'
    return word, state, header_lines({STATE_HEADER: word})


@lru_cache(maxsize=4096)
def quoted(value: str | None) -> str:
    return orjson.dumps(sendable(value)).decode() if value is not None else "null"


def upstream_text(run_ids: tuple[str, ...]) -> str:
    """Return the member ``upstream`` of the data of a task event, and of very many runs also how many they are."""
    if len(run_ids) <= 20:
        return f'"upstream":{texts(run_ids)}'
    first = texts.__wrapped__(
        run_ids[:MOST_UPSTREAM]
    )  # too long to be remembered, and hardly ever asked for again
    count = f',"upstream_count":{len(run_ids)}' if len(run_ids) > MOST_UPSTREAM else ""
    return f'"upstream":{first}{count}'


@lru_cache(maxsize=1024)
def texts(values: tuple[str, ...] | frozenset[str]) -> str:
    texts = [sendable(value) for value in values]
    return orjson.dumps(sorted(texts) if isinstance(values, frozenset) else texts).decode()
