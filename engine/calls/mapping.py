"""What ``task.map`` iterates over: which of its arguments, and the parameters of each call. Pure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

from ...errors import MappingLengthMismatch, MappingMissingIterable
from ..annotations import Annotation, allow_failure, quote, unmapped
from ..futures import TaskFuture
from ..states import State

if TYPE_CHECKING:
    from ..tasks import Task

__all__ = ["map_calls"]


def map_calls(task: Task[..., Any], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each call that ``map`` makes.

    Raises:
        MappingMissingIterable, MappingLengthMismatch: nothing to iterate over, or lengths differ.
    """
    shape = task.shape
    if shape.varkw is not None and shape.varkw in given:
        extra = given.pop(shape.varkw)
        given = {**given, **extra}
    else:
        extra = {}
    single: dict[str, Any] = {}
    mapped: dict[str, list[Any]] = {}
    for name, value in given.items():
        values = _elements(value)
        if values is None:
            single[name] = value.value if isinstance(value, unmapped) else value
        else:
            mapped[name] = values
    if not mapped:
        raise MappingMissingIterable(
            f"task {task.name!r} was mapped over nothing: No iterable parameters were received",
            hint="give at least one list, and call .submit for a single run",
        )
    lengths = {name: len(values) for name, values in mapped.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name}: {n}" for name, n in lengths.items())
        raise MappingLengthMismatch(
            f"task {task.name!r}: Received iterable parameters with different lengths ({shown})",
            hint="wrap what every call should get whole in unmapped(…)",
        )
    calls = []
    for i in range(next(iter(lengths.values()))):
        one = {**single, **{name: values[i] for name, values in mapped.items()}}
        if extra:
            one[cast(str, shape.varkw)] = {name: one.pop(name) for name in extra}
        calls.append(shape.with_defaults(one))
    return calls


def _state_of(upstream: TaskFuture[Any] | State) -> State:
    return upstream.state if isinstance(upstream, TaskFuture) else upstream


def _elements(value: Any) -> list[Any] | None:
    """Return what ``map`` iterates over in an argument; None if every call gets the argument whole."""
    if isinstance(value, allow_failure):
        if isinstance(value.value, TaskFuture):
            value.value.wait()
        if isinstance(value.value, TaskFuture | State) and not _state_of(value.value).is_completed():
            return None  # every call gets its exception
        inner = _elements(value.value)
        return None if inner is None else [allow_failure(item) for item in inner]
    if isinstance(value, quote):
        inner = None if isinstance(value.value, TaskFuture | State) else _elements(value.value)
        return None if inner is None else [quote(item) for item in inner]
    if isinstance(value, Annotation):
        return None
    if isinstance(value, (TaskFuture, State)):
        value = value.result()
    if isinstance(value, str | bytes | bytearray | io.IOBase):
        return None
    try:
        # Not isinstance(…, Iterable): what has only __getitem__ and a length is iterated over, too.
        return list(iter(value))
    except TypeError:
        if hasattr(value, "__iter__"):
            raise
        return None
