"""A first check of values against a JSON schema: names, presence, plain kinds. Pure.

What a schema cannot say is checked by the author's own annotations, where the code runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UnknownName

__all__ = ["problems_in"]


def problems_in(
    values: Mapping[str, Any], schema: Mapping[str, Any], *, what: str = "parameter"
) -> list[str]:
    """Return what is missing, unknown or of the wrong kind in ``values``, in words; empty if nothing is."""
    properties: Mapping[str, Any] = schema.get("properties") or {}
    problems: list[str] = []
    if schema.get("additionalProperties") is not True:
        unknown = sorted(values.keys() - properties.keys())
        problems.extend(str(UnknownName(what, name, known=list(properties))) for name in unknown)
    missing = [name for name in schema.get("required") or () if name not in values]
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    problems.extend(said for name, value in values.items() if (said := problem_with(name, value, properties)))
    return problems


def problem_with(name: str, value: object, properties: Mapping[str, Any]) -> str:
    """Return why a value is not of the kind its parameter takes, in words; empty if it may be."""
    expected = (properties.get(name) or {}).get("type")
    if isinstance(expected, str) and not _fits(value, expected):
        return f"{name!r} takes {_article(expected)}, got {value!r}"
    items = (properties.get(name) or {}).get("items")
    wanted = items.get("type") if isinstance(items, dict) else None
    if isinstance(value, list) and isinstance(wanted, str):
        for at, item in enumerate(value):
            if not _fits(item, wanted):
                return f"{name!r} takes a list, each {_article(wanted)}, got {item!r} at {at}"
    return ""


def _fits(value: object, expected: str) -> bool:
    """Whether a JSON value may become what a schema asks for; lenient where pydantic is (numbers as text)."""
    match expected:
        case "integer" | "number":
            return isinstance(value, int | float) or (isinstance(value, str) and _is_number(value))
        case "boolean":
            return isinstance(value, bool | int | str)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
