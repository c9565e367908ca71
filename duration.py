"""Durations and rates as people write them: ``30s``, ``10m``, ``1h30m``, ``50/s``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

__all__ = ["Duration", "Rate", "RateSpec", "format_duration", "parse_duration", "parse_rate", "seconds_of"]

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+")
_WORDS = {
    "second": "s", "seconds": "s", "sec": "s", "secs": "s", "minute": "m", "minutes": "m", "min": "m",
    "mins": "m", "hour": "h", "hours": "h", "hr": "h", "hrs": "h", "day": "d", "days": "d", "week": "w", "weeks": "w",
}  # fmt: skip


def parse_duration(text: object) -> float:
    """Return the seconds meant by ``text``, such as ``"30s"``, ``"1h30m"`` or ``"500ms"``; or a ``timedelta``.

    Raises:
        ValueError: not a duration; the message says what one looks like. Bare numbers are refused,
            because nobody can tell seconds from milliseconds by looking.
    """
    if isinstance(text, timedelta) and text >= timedelta(0):
        return text.total_seconds()
    if isinstance(text, bool) or not isinstance(text, str):
        shown = f"{text}s" if isinstance(text, int | float) and not isinstance(text, bool) else "30s"
        raise ValueError(f"{text!r} is not a duration: write a number with a unit, such as {shown!r}")
    packed = text.strip().replace(" ", "").lower()
    if _WHOLE.fullmatch(packed):
        total = sum(float(n) * _UNIT_S[u] for n, u in _PART.findall(packed))
        if total > 10 * 366 * 86400:
            raise ValueError(f"{text!r} is longer than ten years")
        return total
    word = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]+)", packed)
    if word and word[2] in _WORDS:
        raise ValueError(f"{text!r} is not a duration; did you mean '{word[1]}{_WORDS[word[2]]}'?")
    raise ValueError(f"{text!r} is not a duration; write 500ms, 30s, 10m, 2h, 1d, 1w or a sum such as 1h30m")


def format_duration(seconds: float) -> str:
    """Return ``seconds`` as the shortest text that ``parse_duration`` reads back: ``90.0`` -> ``"1m30s"``."""
    if seconds < 0:
        raise ValueError(f"a duration is not negative, got {seconds}")
    left_ms = round(seconds * 1000)
    if left_ms == 0:
        return "0s"
    out = ""
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        n, left_ms = divmod(left_ms, size_ms)
        if n:
            out += f"{n}{unit}"
    return out


def seconds_of(duration: object) -> float:
    """Return seconds from a number of them, a ``timedelta``, or a text such as ``"2h"``.

    Raises:
        ValueError: it is none of these, or negative.
    """
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        seconds = float(duration)
    else:
        seconds = parse_duration(duration)
    if not seconds >= 0:
        raise ValueError(f"a duration is not negative, got {duration!r}")
    return seconds


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
]
"""A pydantic field holding seconds, written as ``30s`` in files."""


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` per ``per_s`` seconds, both > 0."""

    count: int
    per_s: float

    def __str__(self) -> str:
        for unit, size in _UNIT_S.items():
            if self.per_s == size:
                return f"{self.count}/{unit}"
        return f"{self.count}/{format_duration(self.per_s)}"


def parse_rate(text: object) -> Rate:
    """Return the rate meant by ``text``: ``"50/s"``, ``"10/m"``, ``"100/5m"``.

    Raises:
        ValueError: not a rate.
    """
    if isinstance(text, Rate):
        return text
    if isinstance(text, str) and (m := re.fullmatch(r"\s*(\d+)\s*/\s*(.+?)\s*", text)) and int(m[1]) > 0:
        unit = m[2] if m[2][0].isdigit() else f"1{m[2]}"
        per_s = parse_duration(unit)
        if per_s > 0:
            return Rate(int(m[1]), per_s)
    raise ValueError(f"{text!r} is not a rate; write how many per time, such as '10/m' or '50/s'")


RateSpec = Annotated[
    Rate, BeforeValidator(parse_rate), PlainSerializer(str, return_type=str, when_used="json")
]
