"""Looking into arguments and return values for futures and states, however deep they stand.

Lists, tuples, sets, dicts, dataclasses and pydantic models are looked into; everything else is a leaf. A structure
without anything to replace is returned as it is, never copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ..annotations import Annotation

__all__ = ["ATOMS", "is_plain", "replace_leaves"]

ATOMS = frozenset({str, int, float, bool, type(None), bytes, complex})
"""Types that hold nothing."""

_MAX_DEPTH = 64


def is_plain(values: Iterable[Any]) -> bool:
    """Return whether all values are of types that hold nothing, which is what most arguments are."""
    return ATOMS.issuperset(map(type, values))


def replace_leaves(value: Any, change: Callable[[Any], Any], *, depth: int = 0) -> Any:
    """Return ``value`` with ``change(leaf)`` in place of each leaf, where that is another object.

    ``change`` sees everything that is not a container, and annotations (``quote``, ``allow_failure`` and so on) whole.
    Structures deeper than 64 and those that contain themselves
    are left alone from there on.
    """
    kind = type(value)
    if kind in ATOMS or depth > _MAX_DEPTH:
        return value
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        if ATOMS.issuperset(map(type, value)):
            return value
        items = [replace_leaves(item, change, depth=depth + 1) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else kind(items)
    if kind is dict:
        if ATOMS.issuperset(map(type, value.values())):
            return value
        changed = {k: replace_leaves(v, change, depth=depth + 1) for k, v in value.items()}
        return value if all(changed[k] is value[k] for k in value) else changed
    if isinstance(value, Annotation):
        return change(value)
    if isinstance(value, list | tuple | dict | set):
        return _replace_in_subclass(value, change, depth)
    if not isinstance(value, type):
        if dataclasses.is_dataclass(value):
            return _replace_in_dataclass(value, change, depth)
        fields = getattr(kind, "model_fields", None)
        if isinstance(fields, dict) and hasattr(value, "model_copy"):
            updates = {
                name: new
                for name in fields
                if (new := replace_leaves(old := getattr(value, name), change, depth=depth + 1)) is not old
            }
            return value.model_copy(update=updates) if updates else value
    return change(value)


def _replace_in_subclass(value: Any, change: Callable[[Any], Any], depth: int) -> Any:
    if isinstance(value, dict):
        changed = {k: replace_leaves(v, change, depth=depth + 1) for k, v in value.items()}
        if all(changed[k] is value[k] for k in value):
            return change(value)
        copy = value.copy()
        copy.update(changed)
        return copy
    items = [replace_leaves(item, change, depth=depth + 1) for item in value]
    if all(a is b for a, b in zip(items, value, strict=True)):
        return change(value)
    # A named tuple takes its fields one by one, unlike a tuple.
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _replace_in_dataclass(value: Any, change: Callable[[Any], Any], depth: int) -> Any:
    updates: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if not field.init:
            continue
        old = getattr(value, field.name, None)
        new = replace_leaves(old, change, depth=depth + 1)
        if new is not old:
            updates[field.name] = new
    # Leaves that are dataclasses themselves (states, say) are handed over when nothing inside them changed.
    return dataclasses.replace(value, **updates) if updates else change(value)
