"""The language of ``where``, as the routing of notifications asks for it: one way to write conditions everywhere."""

from __future__ import annotations

from typing import Any

from ...errors import DefinitionError
from ...notifications.language import Facts, Holds, Reads
from ...vocabulary import JsonObject, JsonValue
from .path import follow, parse_path, values_of
from .where import compile_where

__all__ = ["WhereLanguage"]


class WhereLanguage:
    """Implements ``notifications.language.Language``."""

    def condition(self, written: JsonObject) -> Holds:
        if not written:
            return lambda facts: True
        return compile_where(written)

    def path(self, written: str) -> Reads:
        try:
            path = parse_path(written)
        except ValueError as exc:
            raise DefinitionError(str(exc)) from exc

        def read(facts: Facts) -> JsonValue:
            found: Any = follow(facts, path)
            if found.__class__ is list:
                return list(values_of(found))
            values = list(values_of(found))
            return values[0] if values else None

        return read
