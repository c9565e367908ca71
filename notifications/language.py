"""What routing asks of the language conditions are written in; ``automations`` has the one rules use, and adapts it.

Routes, silences and inhibitions look at *facts*: one flat JSON object per alert, its labels (``automation``, ``key``,
``severity`` and those the rule wrote) beside the attributes of the event it is about (``type``, ``subject``, ``data``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from ..vocabulary import JsonObject, JsonValue

__all__ = ["Facts", "Holds", "Language", "Reads"]

Facts: TypeAlias = Mapping[str, Any]
Holds: TypeAlias = Callable[[Facts], bool]
Reads: TypeAlias = "Callable[[Facts], JsonValue]"


class Language(Protocol):
    """Conditions and paths, compiled. Both raise ``DefinitionError`` for what does not stand."""

    def condition(self, written: JsonObject) -> Holds:
        """Return the function that decides a written condition; it never raises."""
        ...

    def path(self, written: str) -> Reads:
        """Return the function that reads a path; None where nothing is."""
        ...
