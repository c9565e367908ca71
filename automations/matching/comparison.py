"""One comparison of one value: equality, ranges, texts, patterns, networks.

A ``Comparison`` is plain data. ``compile_comparison`` makes the function that decides it; ``misfit`` says, for the
explanation, why a value is of the wrong kind for it. Patterns run on RE2, whose time is linear in the text.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

from ...duration import parse_duration
from ...vocabulary import JsonScalar

__all__ = [
    "Comparison",
    "Limit",
    "Moment",
    "Test",
    "compile_comparison",
    "compile_regex",
    "glob_to_regex",
    "misfit",
    "parse_limit",
]

Test: TypeAlias = Callable[[Any], bool]

MAX_PATTERN_CHARS = 1000
_TEXT_OPS = frozenset({"prefix", "suffix", "contains", "glob", "regex", "cidr"})
_RANGE_OPS = frozenset({"gt", "gte", "lt", "lte", "between"})
_SIGN = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant to compare times with, in seconds since 1970."""

    at: float
    text: str


Limit: TypeAlias = "float | int | Moment"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One operator with what it compares to.

    Attributes:
        op: ``in`` (equal to one of ``operand``), prefix, suffix, contains, glob, regex, gt, gte, lt, lte, between, cidr.
        operand: a tuple: of scalars for ``in``, of texts for the text operators, of limits for the ranges.
    """

    op: str
    operand: tuple[Any, ...]
    ignore_case: bool = False

    def __str__(self) -> str:
        if self.op == "in":
            shown = " or ".join(_show(x) for x in self.operand)
            text = f"is {shown}"
        elif self.op in _SIGN:
            text = f"{_SIGN[self.op]} {_show(self.operand[0])}"
        elif self.op == "between":
            text = f"is between {_show(self.operand[0])} and {_show(self.operand[1])}"
        else:
            text = f"{self.op} {' or '.join(_show(x) for x in self.operand)}"
        return f"{text} (ignoring case)" if self.ignore_case else text


def _show(value: Any) -> str:
    if isinstance(value, Moment):
        return value.text
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def parse_limit(value: object) -> Limit:
    """Return the number, duration (in seconds) or time that a range compares with.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number, duration or time")
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not a number to compare with")
        return value
    if isinstance(value, datetime):  # YAML reads unquoted times by itself
        if value.tzinfo is None:
            raise ValueError(f"the time {value.isoformat()} needs a zone, such as {value.isoformat()}Z")
        return Moment(value.timestamp(), value.isoformat())
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?\d+", text):
            if len(text) <= 30:
                return int(text)
            raise ValueError(f"{text[:30]}… is too large a number to compare with")
        if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?", text):
            number = float(text)
            if math.isfinite(number):
                return number
        moment = _instant(text)
        if moment is not None:
            return Moment(moment, text)
        try:
            return parse_duration(text)
        except ValueError:
            pass
    raise ValueError(
        f"{value!r} is not a number, a duration such as 10m, or a time such as 2026-01-31T12:00:00Z"
    )


@lru_cache(maxsize=4096)
def _instant(text: str) -> float | None:
    """Return the seconds since 1970 of an RFC 3339 time with a zone, None if it is not one."""
    if len(text) < 17 or len(text) > 40 or text[4:5] != "-":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo else None


class _Regex(Protocol):
    def search(self, text: str) -> object: ...


@lru_cache(maxsize=4096)
def compile_regex(pattern: str, *, ignore_case: bool = False) -> _Regex:
    """Return a compiled RE2 pattern: its time grows with the text, never exponentially.

    Raises:
        ValueError: it does not parse, is too long or too large, or uses what cannot be run in linear time.
    """
    import re2  # type: ignore[import-untyped]  # kept out of `import hark`

    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"a pattern of {len(pattern)} characters is too long (at most {MAX_PATTERN_CHARS})")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 2 << 20
    options.case_sensitive = not ignore_case
    try:
        compiled: _Regex = re2.compile(pattern, options)
    except re2.error as exc:
        detail = exc.args[0] if exc.args else "it does not parse"
        if isinstance(detail, bytes):
            detail = detail.decode(errors="replace")
        if re.search(r"\(\?(=|!|<=|<!)", pattern):
            detail = "look-around is not available, because it can take forever"
        elif re.search(r"\\[1-9]", pattern):
            detail = "back-references are not available, because they can take forever"
        raise ValueError(f"{pattern!r} is not a pattern: {detail}") from exc
    return compiled


def glob_to_regex(pattern: str) -> str:
    """Return the RE2 pattern of a glob: ``*`` any text, ``?`` one character, ``[abc]`` one of these."""
    out = ""
    i = 0
    while i < len(pattern):
        c = pattern[i]
        i += 1
        if c == "*":
            if not out.endswith(".*"):
                out += ".*"
        elif c == "?":
            out += "."
        elif c == "[" and (end := pattern.find("]", i + 1)) > 0:
            body = pattern[i:end].replace("\\", "\\\\").replace("[", "\\[")
            if body[0] == "!":
                body = "^" + body[1:]
            elif body[0] == "^":
                body = "\\" + body
            out += f"[{body}]"
            i = end + 1
        else:
            out += re.escape(c)
    return f"^(?s:{out})$"


@lru_cache(maxsize=8192)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _equal_to(options: tuple[JsonScalar, ...]) -> Test:
    # In Python True == 1; in JSON they are different things.
    if len(options) == 1:
        (only,) = options
        if isinstance(only, bool) or only is None:
            return lambda v: v is only
        if isinstance(only, int | float) and only in (0, 1):
            return lambda v: v == only and v.__class__ is not bool
        return lambda v: bool(v == only)
    texts = frozenset(o for o in options if isinstance(o, str))
    if len(texts) == len(options):
        return lambda v: v.__class__ is str and v in texts
    exact = frozenset((o.__class__ is bool, o) for o in options)
    return lambda v: v.__class__ not in (dict, list) and (v.__class__ is bool, v) in exact


def _text_test(comparison: Comparison) -> Test:
    op, fold = comparison.op, comparison.ignore_case
    options: tuple[str, ...] = tuple(o.casefold() for o in comparison.operand) if fold else comparison.operand
    if op == "prefix":
        return (lambda v: v.__class__ is str and v.casefold().startswith(options)) if fold else (
            lambda v: v.__class__ is str and v.startswith(options)
        )  # fmt: skip
    if op == "suffix":
        return (lambda v: v.__class__ is str and v.casefold().endswith(options)) if fold else (
            lambda v: v.__class__ is str and v.endswith(options)
        )  # fmt: skip
    if op == "contains":
        if fold:
            return lambda v: v.__class__ is str and any(o in v.casefold() for o in options)
        return lambda v: v.__class__ is str and any(o in v for o in options)
    if op == "cidr":
        networks = [ipaddress.ip_network(o, strict=False) for o in comparison.operand]

        def within(v: Any) -> bool:
            address = _address(v) if v.__class__ is str and len(v) <= 64 else None
            return address is not None and any(address in network for network in networks)

        return within
    sources = [glob_to_regex(o) if op == "glob" else o for o in comparison.operand]
    searches = [compile_regex(s, ignore_case=fold).search for s in sources]
    return lambda v: v.__class__ is str and any(search(v) is not None for search in searches)


def _range_test(op: str, limits: tuple[Limit, ...]) -> Test:
    numbers = tuple(limit.at if isinstance(limit, Moment) else limit for limit in limits)
    low, high = numbers[0], numbers[-1]
    if isinstance(limits[0], Moment):
        inner = _range_test(op, numbers)

        def instant(v: Any) -> bool:
            at = _instant(v) if v.__class__ is str else None
            return at is not None and inner(at)

        return instant
    # `v.__class__ is` and not isinstance: bool is a kind of int in Python, and not a number in JSON.
    if op == "gt":
        return lambda v: (v.__class__ is int or v.__class__ is float) and v > low
    if op == "gte":
        return lambda v: (v.__class__ is int or v.__class__ is float) and v >= low
    if op == "lt":
        return lambda v: (v.__class__ is int or v.__class__ is float) and v < low
    if op == "lte":
        return lambda v: (v.__class__ is int or v.__class__ is float) and v <= low
    return lambda v: (v.__class__ is int or v.__class__ is float) and low <= v <= high


def compile_comparison(comparison: Comparison) -> Test:
    """Return the function that decides ``comparison`` for one value; it never raises."""
    if comparison.op == "in":
        if comparison.ignore_case:
            folded = frozenset(o.casefold() for o in comparison.operand if isinstance(o, str))
            rest = tuple(o for o in comparison.operand if not isinstance(o, str))
            plain = _equal_to(rest) if rest else (lambda v: False)
            return lambda v: v.casefold() in folded if v.__class__ is str else plain(v)
        return _equal_to(comparison.operand)
    if comparison.op in _RANGE_OPS:
        return _range_test(comparison.op, comparison.operand)
    return _text_test(comparison)


def misfit(comparison: Comparison, value: Any) -> str:
    """Return why ``value`` is of the wrong kind for ``comparison``, or an empty text when the kind fits."""
    kind = _kind(value)
    if comparison.op in _TEXT_OPS:
        if kind != "text":
            return f"{comparison.op} needs text, this is {_a(kind)}"
        if comparison.op == "cidr" and _address(value) is None:
            return f"{value!r} is not an IP address"
    elif comparison.op in _RANGE_OPS:
        if isinstance(comparison.operand[0], Moment):
            if kind != "text" or _instant(value) is None:
                return f"needs a time such as 2026-01-31T12:00:00Z, this is {_a(kind)}"
        elif kind != "number":
            return f"needs a number, this is {_a(kind)}"
    elif all(_kind(o) != kind for o in comparison.operand):
        return f"compared with {_a(_kind(comparison.operand[0]))}, this is {_a(kind)}"
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "object" if isinstance(value, dict) else "array"


def _a(kind: str) -> str:
    return kind if kind in ("null", "text") else f"an {kind}" if kind[0] in "ao" else f"a {kind}"
