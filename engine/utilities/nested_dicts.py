"""Dicts in dicts: flat and back, merged, asked and changed by a path. For code written for Prefect. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = [
    "deep_merge", "deep_merge_dicts", "dict_to_flatdict", "flatdict_to_dict", "get_from_dict", "remove_nested_keys",
    "set_in_dict",
]  # fmt: skip


def dict_to_flatdict(dct: dict[Any, Any]) -> dict[tuple[Any, ...], Any]:
    """Return a dict of the same kind from the path to each value to the value; an empty dict is a value."""

    def flat(inner: dict[Any, Any], path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        for key, value in inner.items():
            if isinstance(value, dict) and value:
                yield from flat(value, (*path, key))
            else:
                yield (*path, key), value

    return type(dct)(flat(dct, ()))


def flatdict_to_dict(dct: dict[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Return the dict, of the same kind, that ``dict_to_flatdict`` makes this one from."""
    kind: type[dict[Any, Any]] = type(dct)
    found = kind()
    for (*path, last), value in dct.items():
        inner = found
        for key in path:
            if key not in inner:
                inner[key] = kind()
            inner = inner[key]
        inner[last] = value
    return found


def remove_nested_keys(keys_to_remove: Sequence[Any], obj: Any) -> Any:
    """Return a copy of a dict without some keys, however deep they stand in dicts; anything else as it is."""
    if not isinstance(obj, dict):
        return obj
    return {
        key: remove_nested_keys(keys_to_remove, value)
        for key, value in obj.items()
        if key not in keys_to_remove
    }


def get_from_dict(dct: Any, keys: str | Sequence[str | int], default: Any = None) -> Any:
    """Return what stands at a path (``"a.b[1].c"``, or a list of keys and positions), or ``default`` if nothing does."""
    value = dct
    for key in _path(keys):
        try:
            value = value[_position(key)]
        except (TypeError, KeyError, IndexError):
            return default
    return value


def set_in_dict(dct: dict[Any, Any], keys: str | Sequence[str], value: Any) -> None:
    """Put a value at a path, making the dicts on the way to it.

    Raises:
        TypeError: on the way stands something that is no dict.
    """
    path = _path(keys)
    for key in path[:-1]:
        inner = dct.setdefault(key, {})
        if not isinstance(inner, dict):
            raise TypeError(
                f"Key path exists and contains a non-dict value: {list(path)} has {inner!r} at {key!r}"
            )
        dct = inner
    dct[path[-1]] = value


def deep_merge(dct: dict[Any, Any], merge: dict[Any, Any]) -> dict[Any, Any]:
    """Return the first dict with the second put over it; where both have a dict, these are merged in turn."""
    found = dct.copy()
    for key, value in merge.items():
        mine = found.get(key)
        found[key] = deep_merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return found


def deep_merge_dicts(*dicts: dict[Any, Any]) -> dict[Any, Any]:
    """Return all the dicts merged, each over those before it."""
    found: dict[Any, Any] = {}
    for one in dicts:
        found = deep_merge(found, one)
    return found


def _path(keys: str | Sequence[Any]) -> Sequence[Any]:
    return keys.replace("[", ".").replace("]", "").split(".") if isinstance(keys, str) else keys


def _position(key: Any) -> Any:
    """Return a key that is a number, or its text, as the number: positions in lists are."""
    try:
        return int(key)
    except (ValueError, TypeError):
        return key
