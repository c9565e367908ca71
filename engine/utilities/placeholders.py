"""Placeholders in nested data, ``{{ name.of.value }}``: finding them, and putting values in their places.

Not the templates of rules (``template.py``): nothing is computed here, and what stands alone keeps its type.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from ..annotations import NotSet
from .nested_dicts import get_from_dict

__all__ = [
    "Placeholder",
    "PlaceholderType",
    "apply_values",
    "determine_placeholder_type",
    "find_placeholders",
]

log = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"{{\s*([\w.\-\[\]$]+)\s*}}")


class PlaceholderType(Enum):
    """What a placeholder stands for, by how its name begins."""

    STANDARD = "standard"
    BLOCK_DOCUMENT = "block_document"
    VARIABLE = "variable"
    ENV_VAR = "env_var"


_BEGINS = {
    "prefect.blocks.": PlaceholderType.BLOCK_DOCUMENT, "prefect.variables.": PlaceholderType.VARIABLE,
    "$": PlaceholderType.ENV_VAR,
}  # fmt: skip


class Placeholder(NamedTuple):
    """One placeholder, as it stands in a text."""

    full_match: str
    name: str
    type: PlaceholderType


def determine_placeholder_type(name: str) -> PlaceholderType:
    """Return what a placeholder of this name stands for."""
    return next((kind for begin, kind in _BEGINS.items() if name.startswith(begin)), PlaceholderType.STANDARD)


def find_placeholders(template: Any) -> set[Placeholder]:
    """Return all placeholders in nested lists and mappings, and the texts in them.

    Raises:
        ValueError: there is something else in them.
    """
    match template:
        case None | bool() | int() | float():
            return set()
        case str():
            return {
                Placeholder(found[0], found[1], determine_placeholder_type(found[1]))
                for found in _PLACEHOLDER.finditer(template)
            }
        case Mapping():
            return set().union(*map(find_placeholders, template.values()))
        case list():
            return set().union(*map(find_placeholders, template))
    raise ValueError(f"no placeholders can stand in a {type(template).__name__!r}: {template!r}")


def apply_values(
    template: Any,
    values: Mapping[str, Any],
    remove_notset: bool = True,
    warn_on_notset: bool = False,
    skip_prefixes: Iterable[str] | None = None,
) -> Any:
    """Return nested data with values in the places of placeholders.

    One that is a whole text becomes the value itself, others become part of their text. Where there is no value, a whole
    text becomes ``NotSet``; its key is left out, or, without ``remove_notset``, stays as it was.

    Args:
        warn_on_notset: say in the log what has no value.
        skip_prefixes: placeholders whose names begin so are left alone.
    Raises:
        ValueError: there is something else in it than texts, numbers, lists and mappings.
    """
    skip = tuple(skip_prefixes or ())

    def filled(part: Any) -> Any:
        if part is None or part is NotSet or isinstance(part, bool | int | float):
            return part
        if isinstance(part, str):
            return filled_text(part)
        if isinstance(part, Mapping):
            done = {key: (value, filled(value)) for key, value in part.items()}
            return {
                key: before if after is NotSet else after
                for key, (before, after) in done.items()
                if after is not NotSet or not remove_notset
            }
        if isinstance(part, list):
            return [after for after in map(filled, part) if after is not NotSet]
        raise ValueError(f"values cannot be put into a {type(part).__name__!r}: {part!r}")

    def filled_text(text: str) -> Any:
        found = [one for one in find_placeholders(text) if not (skip and one.name.startswith(skip))]
        if len(found) == 1 and found[0].full_match == text and found[0].type is PlaceholderType.STANDARD:
            return value_of(found[0])
        for one in found:
            if one.type not in (PlaceholderType.STANDARD, PlaceholderType.ENV_VAR):
                continue
            value = value_of(one)
            if value is not NotSet:
                text = text.replace(one.full_match, str(value))
            elif remove_notset:
                text = text.replace(one.full_match, "")
        return text

    def value_of(placeholder: Placeholder) -> Any:
        if placeholder.type is PlaceholderType.ENV_VAR:
            from ...config import environment_variable

            found = environment_variable(placeholder.name.lstrip("$"))
            value: Any = NotSet if found is None else found
        else:
            value = get_from_dict(values, placeholder.name, NotSet)
        if value is NotSet and warn_on_notset:
            log.warning("placeholder.no_value", extra={"placeholder": placeholder.full_match})
        return value

    return filled(template)
