"""Which keys an event belongs to under ``for_each``, and what a key looks like."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from ...vocabulary import JsonValue
from ..matching.path import MISSING, follow, getter, values_of
from ..model import Automation

__all__ = ["key_reader", "key_values", "keys_of", "show_key"]

_MAX_KEYS_PER_EVENT = 100


def keys_of(automation: Automation, row: dict[str, Any]) -> list[str]:
    """Return the keys an event belongs to under ``for_each``: one per value; none if a path leads nowhere.

    Without ``for_each`` the one key is the empty text. A text stands for itself; other values, and several paths,
    are written as JSON behind a tab.
    """
    paths = automation.key_paths
    if not paths:
        return [""]
    if len(paths) == 1:
        found = follow(row, paths[0])
        if found.__class__ is str:
            return [found] if found[:1] != "\t" else ["\t" + orjson.dumps(found).decode()]
        return list(
            dict.fromkeys(_key_text(v) for v in itertools.islice(_scalars(found), _MAX_KEYS_PER_EVENT))
        )
    columns = [list(itertools.islice(_scalars(follow(row, path)), _MAX_KEYS_PER_EVENT)) for path in paths]
    combos = itertools.islice(itertools.product(*columns), _MAX_KEYS_PER_EVENT)
    return list(dict.fromkeys("\t" + orjson.dumps(combo).decode() for combo in combos))


def key_reader(automation: Automation) -> Callable[[dict[str, Any]], Sequence[str]]:
    """Return ``keys_of`` for one automation, fast for the usual kinds of key."""
    paths = automation.key_paths
    if not paths:
        return lambda row: _THE_ONE
    if len(paths) > 1:
        return lambda row: keys_of(automation, row)
    get = getter(paths[0])

    def read(row: dict[str, Any]) -> Sequence[str]:
        found = get(row)
        if found.__class__ is str and found[:1] != "\t":
            return (found,)
        return keys_of(automation, row)

    return read


_THE_ONE = ("",)


def _scalars(found: Any) -> Iterator[Any]:
    for value in values_of(found):
        if value is not None and value is not MISSING and not isinstance(value, dict):
            yield value


def _key_text(value: Any) -> str:
    return value if value.__class__ is str and value[:1] != "\t" else "\t" + orjson.dumps(value).decode()


def key_values(automation: Automation, key: str) -> tuple[JsonValue, ...]:
    """Return the values a key stands for, one per path of ``for_each``."""
    if not automation.key_paths:
        return ()
    if key[:1] != "\t":
        return (key,)
    value = orjson.loads(key[1:])
    return tuple(value) if len(automation.key_paths) > 1 else (value,)


def show_key(values: tuple[JsonValue, ...]) -> str:
    """Return a key as people read it: its values, several separated by a slash."""
    return "/".join(v if isinstance(v, str) else orjson.dumps(v).decode() for v in values)
