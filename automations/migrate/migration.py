"""What comes of reading another tool's rules: parts of a configuration, and what a person has to look at. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import ValidationError

from ...vocabulary import JsonValue
from ..model import Automation
from ..problem import Loc, problems_of

__all__ = ["Converted", "Note", "NotConverted", "Sections", "slug"]

Sections: TypeAlias = dict[str, dict[str, JsonValue]]
"""Parts of a configuration by name, each with its entries by name."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something about one place of what was read. ``is_lost``: it is not in what came out."""

    loc: Loc
    message: str
    is_lost: bool = True


class NotConverted(Exception):
    """A rule (or a part that it needs) has no equivalent, so the rule is left out."""

    def __init__(self, loc: Loc, message: str) -> None:
        super().__init__(message)
        self.note = Note(loc, message)


@dataclass(slots=True)
class Converted:
    """Sections of a configuration by name, and the notes in the order of the file."""

    sections: Sections = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def lost(self, loc: Loc, message: str) -> None:
        """Say that a thing is not in what came out."""
        self.notes.append(Note(loc, message))

    def look(self, loc: Loc, message: str) -> None:
        """Say that a person has to complete or check a thing."""
        self.notes.append(Note(loc, message, is_lost=False))

    def rule(self, name: str, rule: dict[str, Any], loc: Loc) -> None:
        """Take a rule if it loads; else say why it does not."""
        taken = self.sections.setdefault("automations", {})
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        written = {key: value for key, value in rule.items() if value is not None}
        try:
            Automation.model_validate({**written, "name": unique})
        except ValidationError as exc:
            said = "; ".join(problem.message for problem in problems_of(exc)[:3])
            self.lost(loc, f"the rule {unique!r} was converted, and does not stand: {said}")
            return
        taken[unique] = written


def slug(text: str, *, default: str) -> str:
    """Return a name made of a title: ``Prod flow failed!`` becomes ``prod-flow-failed``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9._]+", "-", plain.lower()).strip("-._")[:100].rstrip("-._") or default
