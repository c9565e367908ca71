"""JSON read so that no number changes: a whole number that 64 bits do not hold is refused, not rounded. Pure.

The JSON library turns such a number into a float and says nothing, so an id of twenty digits would come out as another.
"""

from __future__ import annotations

import re

import orjson

from ..vocabulary import JsonValue

__all__ = ["NotExact", "loads"]

_LEAST, _MOST = -(2**63), 2**64 - 1
# Every digit as 0 and all else as a space: whether some run of digits is long enough is then one search, at the speed
# of memory. Only then are the numbers looked at.
_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_LONG = b"0" * 19
# Valid JSON only, so a quote begins a text and everything that looks like a number outside of one is one.
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?')
_FRACTION = re.compile(rb"[.eE]")


class NotExact(ValueError):
    """A whole number is beyond 64 bits."""

    def __init__(self, digits: str) -> None:
        shown = digits if len(digits) <= 40 else f"{digits[:30]}… ({len(digits)} digits)"
        super().__init__(
            f"the whole number {shown} is beyond 64 bits and would lose digits; send it as a text, in quotes"
        )


def loads(raw: bytes | str) -> JsonValue:
    """Return the value that JSON says.

    Raises:
        NotExact: it has a whole number that would not come out as it went in.
        orjson.JSONDecodeError: it is not JSON. Both are ``ValueError``.
    """
    value: JsonValue = orjson.loads(raw)
    data = raw.encode() if isinstance(raw, str) else raw
    if _LONG in data.translate(_DIGITS):
        _check(data)
    return value


def _check(raw: bytes) -> None:
    for token in _TOKEN.finditer(raw):
        text = token[0]
        if len(text) < len(_LONG) or text[:1] == b'"' or _FRACTION.search(text):
            continue
        if len(text) > 20 or not _LEAST <= int(text) <= _MOST:
            raise NotExact(text.decode())
