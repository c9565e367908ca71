"""How deeply an event may nest.

Whoever carries an event on wraps it: a decision, the dead letter of its action, a page of a listing. JSON as it is written
here goes no deeper than 254 levels, so what comes in has to leave room for that; an event that does not is no event. Pure.
"""

from __future__ import annotations

from typing import Any

import orjson

__all__ = ["MOST_LEVELS", "nests_too_deeply"]

MOST_LEVELS = 128
"""Levels of objects and lists in an event, its own included."""
_MOST_OWN_LEVELS = 200
"""Of Hark's own: each rule that answers to another's decision wraps that, and a chain of those is bounded."""
_WRITER_LEVELS = 254
"""What orjson writes. Wrapped so often that this many are left, a value is measured at the speed of writing it."""


def nests_too_deeply(raw: bytes, value: object, *, is_own: bool) -> bool:
    """Return whether an event, as bytes and as the value they say, has more levels than one may have."""
    levels = _MOST_OWN_LEVELS if is_own else MOST_LEVELS
    # As good as always this settles it, at the speed of memory.
    if raw.count(b"[") + raw.count(b"{") <= levels:
        return False
    wrapped: Any = value
    for _ in range(_WRITER_LEVELS - levels):
        wrapped = [wrapped]
    try:
        orjson.dumps(wrapped, default=str)
    except orjson.JSONEncodeError:
        return True
    return False
