"""Walking through a value and all that is in it, from the outside in: ``visit_collection``, for code written for Prefect.

The engine itself looks for futures with ``nested.replace_leaves``, which sees leaves only and costs less.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from ..annotations import Annotation, opaque

__all__ = ["StopVisiting", "visit_collection"]


class StopVisiting(BaseException):
    """Raised by a visitor: leave this value as it is, and do not look into it."""


def visit_collection(
    expr: Any,
    visit_fn: Callable[..., Any],
    *,
    return_data: bool = False,
    max_depth: int = -1,
    context: dict[str, Any] | None = None,
    remove_annotations: bool = False,
) -> Any:
    """Call ``visit_fn`` with a value, then with all that is in it, however deep: a collection before its items.

    Looked into are lists, tuples, sets, dicts (keys too), dataclasses, pydantic models and annotations. Generators and mocks are
    not, and what contains itself is looked into once.

    Args:
        visit_fn: called as ``visit_fn(value)``; with a ``context``, as ``visit_fn(value, context)``.
        return_data: put what ``visit_fn`` returns in the place of what it was given. What had to be changed is copied for that,
            and nothing else.
        max_depth: how many layers are looked into; 0: none, below 0: all.
        context: what is set in it for a value is seen where its items are visited, and not beside it. Inside of an annotation
            (``unmapped``, ``quote``, …) that stands in it as ``annotation``.
        remove_annotations: put what is annotated in the place of its annotation.
    Returns:
        The value, changed or not, if ``return_data``; else None.
    """
    visit = _Visit(visit_fn, replaces=return_data, unwraps=remove_annotations)
    found = visit.go(expr, max_depth, context)
    return found if return_data else None


class _Visit:
    """One walk."""

    def __init__(self, visit_fn: Callable[..., Any], *, replaces: bool, unwraps: bool) -> None:
        self._visit_fn = visit_fn
        self._replaces = replaces
        self._unwraps = unwraps
        self._seen: dict[int, tuple[Any, Any]] = {}
        """By id: a value, held so that its id stays its own, and what stands in its place."""

    def go(self, value: Any, depth: int, context: dict[str, Any] | None) -> Any:
        """Visit a value and what is in it; return what is in its place."""
        visited, stops = self._call(value, context)
        if self._replaces:
            value = visited
        if stops or depth == 0:
            return value
        if id(value) in self._seen:
            return self._seen[id(value)][1]
        self._seen[id(value)] = (value, value)
        changed = self._inside(value, depth - 1, context)
        if not self._replaces:
            return value
        self._seen[id(value)] = (value, changed)
        return changed

    def _call(self, value: Any, context: dict[str, Any] | None) -> tuple[Any, bool]:
        """Return what the visitor gives for a value, and whether it wants to go no further."""
        try:
            return (self._visit_fn(value) if context is None else self._visit_fn(value, context)), False
        except StopVisiting:
            return value, True

    def _inside(self, value: Any, depth: int, context: dict[str, Any] | None) -> Any:
        """Visit what is in a value; return the value, or a copy of it in which that is changed."""

        def item(inner: Any) -> Any:
            return self.go(inner, depth, None if context is None else context.copy())

        if isinstance(value, GeneratorType | AsyncGeneratorType) or _is_mock(value):
            return value
        if isinstance(value, Annotation):
            if context is not None:
                context["annotation"] = value
            inner = value.unwrap()
            new = self._call(inner, context)[0] if isinstance(value, opaque) else item(inner)
            if self._unwraps:
                return new
            return value if new is inner else value.rewrap(new)
        if isinstance(value, list | tuple | set):
            items = [item(inner) for inner in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            make: Any = getattr(
                type(value), "_make", type(value)
            )  # a named tuple takes its fields one by one
            return make(items)
        if isinstance(value, dict):
            pairs = [(item(key), item(inner)) for key, inner in value.items()]
            if all(
                new[0] is old[0] and new[1] is old[1] for new, old in zip(pairs, value.items(), strict=True)
            ):
                return value
            return _dict_like(value, pairs)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _with_fields(
                value,
                [field.name for field in dataclasses.fields(value)],
                item,
                lambda new: dataclasses.replace(value, **new),
            )
        if not isinstance(value, type) and hasattr(value, "__pydantic_fields_set__"):
            return _with_fields(value, [name for name, _ in value], item, lambda new: _model_like(value, new))
        return value


def _is_mock(value: Any) -> bool:
    # Who has mocks has loaded the module; it is not loaded for everybody else.
    mocks = sys.modules.get("unittest.mock")
    return mocks is not None and isinstance(value, mocks.Mock)


def _dict_like(value: dict[Any, Any], pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if isinstance(value, defaultdict):
        return type(value)(value.default_factory, pairs)
    return type(value)(pairs)


def _with_fields(
    value: Any, names: list[str], item: Callable[[Any], Any], make: Callable[[dict[str, Any]], Any]
) -> Any:
    old = {name: getattr(value, name) for name in names}
    new = {name: item(inner) for name, inner in old.items()}
    return value if all(new[name] is old[name] for name in names) else make(new)


def _model_like(value: Any, fields: dict[str, Any]) -> Any:
    # Made without a check: what stands in a field for a while need not be what the field takes, or be frozen.
    made = value.model_construct(_fields_set=value.model_fields_set, **fields)
    for name in value.__private_attributes__:
        setattr(made, name, getattr(value, name))
    return made
