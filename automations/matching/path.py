"""Paths into an event: ``type``, ``data.flow.name``, ``data.items.0.sku``, ``data["a.b"]``.

A path into an array leads to every element, so following one may give several values. ``follow`` returns

- ``MISSING`` when nothing is there,
- a list when the way went through, or ended at, an array: its elements are the values (it may be empty),
- the value itself otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = [
    "ATTRIBUTES",
    "MISSING",
    "Getter",
    "Path",
    "follow",
    "getter",
    "parse_path",
    "show_path",
    "step",
    "values_of",
]

Path = tuple[str, ...]
Getter = Callable[[Any], Any]

ATTRIBUTES = frozenset({
    "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion", "data", "data_base64",
    "correlationid", "causationid", "causaldepth", "traceparent", "tracestate", "partitionkey", "recordedtime",
    "expirytime", "replayof", "replayid",
})  # fmt: skip
"""Attributes every event may have; others are extensions of whoever emits it."""

_TOKEN = re.compile(
    r"""(?:^|\.)(?P<word>[^.\[\]'"\s]+) | (?:^|\.)(?P<quote>['"])(?P<quoted>.+?)(?P=quote) | \[(?:(?P<index>\d+)|(?P<bq>['"])(?P<key>.+?)(?P=bq))\]""",
    re.VERBOSE,
)
_ATTRIBUTE = re.compile(r"[a-z0-9_]{1,20}")
MAX_STEPS = 32


class _Missing:
    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = _Missing()


def parse_path(text: object, *, relative: bool = False) -> Path:
    """Return the steps of a path.

    Args:
        relative: the path starts inside an array element, so its first step may be any field.
    Raises:
        ValueError: not a path; the message says what one looks like.
    """
    if not isinstance(text, str) or not text:
        raise ValueError(f"{text!r} is not a path; write one such as data.flow.name")
    steps: list[str] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found or (at == 0 and text[0] == "."):
            raise ValueError(f"{text!r} is not a path; write one such as data.flow.name or data['a.b']")
        steps.append(found["word"] or found["quoted"] or found["index"] or found["key"])
        at = found.end()
    if len(steps) > MAX_STEPS:
        raise ValueError(f"{text!r} has more than {MAX_STEPS} steps")
    if not relative:
        if len(steps) > 1 and steps[0] != "data":
            raise ValueError(
                f"{text!r} leads nowhere: fields of the payload begin with data; did you mean 'data.{text}'?"
            )
        if not _ATTRIBUTE.fullmatch(steps[0]):
            raise ValueError(
                f"{text!r} is no event attribute; fields of the payload begin with data; did you mean 'data.{text}'?"
            )
    return tuple(steps)


def show_path(path: Path) -> str:
    """Return a path as people write it."""
    out = ""
    for part in path:
        if re.fullmatch(r"[^.\[\]'\"\s]+", part):
            out += f".{part}" if out else part
        else:
            out += f"[{part!r}]"
    return out


def step(value: Any, key: str) -> Any:
    """Follow one step that does not start at an object: through an array, or into nothing."""
    if value.__class__ is not list:
        return MISSING
    found: list[Any] = []
    hit = False
    # Iterative: arrays nest as deep as the JSON parser allows, which is deeper than Python's stack likes.
    stack = [iter(value)]
    while stack:
        for item in stack[-1]:
            if item.__class__ is dict:
                inner = item.get(key, MISSING)
                if inner is not MISSING:
                    hit = True
                    found.append(inner)
            elif item.__class__ is list:
                stack.append(iter(item))
                break
        else:
            stack.pop()
    if not hit and key.isdecimal() and int(key) < len(value):
        return value[int(key)]
    return found if hit else MISSING


def follow(value: Any, path: Path) -> Any:
    """Return what ``path`` leads to from ``value``; see the module for the three forms of the answer."""
    for key in path:
        value = value.get(key, MISSING) if value.__class__ is dict else step(value, key)
        if value is MISSING:
            return MISSING
    return value


def getter(path: Path) -> Getter:
    """Return a function that follows ``path``, fast for the usual short ways through objects."""
    if not path:
        return lambda value: value
    if len(path) == 1:
        (a,) = path
        return lambda e: e.get(a, MISSING) if e.__class__ is dict else step(e, a)
    if len(path) == 2:
        a, b = path

        def two(e: Any) -> Any:
            if e.__class__ is dict:
                e = e.get(a, MISSING)
                if e.__class__ is dict:
                    return e.get(b, MISSING)
                return step(e, b)
            return follow(e, path)

        return two
    if len(path) == 3:
        a, b, c = path

        def three(e: Any) -> Any:
            if e.__class__ is dict:
                e = e.get(a, MISSING)
                if e.__class__ is dict:
                    e = e.get(b, MISSING)
                    if e.__class__ is dict:
                        return e.get(c, MISSING)
                    return step(e, c)
                return follow(e, path[1:])
            return follow(e, path)

        return three
    return lambda e: follow(e, path)


def values_of(found: Any) -> Iterator[Any]:
    """Yield the values of what ``follow`` returned: none, one, or the elements of arrays however nested."""
    if found is MISSING:
        return
    if found.__class__ is not list:
        yield found
        return
    stack = [iter(found)]
    while stack:
        for item in stack[-1]:
            if item.__class__ is list:
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()
