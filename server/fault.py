"""What is wrong with a configuration file, and where: one line a person can act on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import DefinitionError
from ..vocabulary import JsonObject

__all__ = ["Fault", "ManifestInvalid", "Position", "did_you_mean"]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        path: where in the document, such as ``automations.slow.within``; empty for the file as a whole.
        suggestion: what to write instead, a whole sentence part such as ``did you mean 'within'?``; may be empty.
        is_warning: it is taken all the same.
    """

    at: Position
    message: str
    path: str = ""
    suggestion: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        kind = "warning: " if self.is_warning else ""
        tail = f"; {self.suggestion}" if self.suggestion else ""
        return f"{self.at}: {kind}{self.message}{tail}"

    def to_json(self) -> JsonObject:
        return {
            "file": self.at.file, "line": self.at.line, "column": self.at.column, "path": self.path,
            "message": self.message, "suggestion": self.suggestion or None,
            "severity": "warning" if self.is_warning else "error",
        }  # fmt: skip


class ManifestInvalid(DefinitionError):
    """A configuration was refused; ``faults`` holds everything that is wrong, in file order."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        errors = [f for f in faults if not f.is_warning]
        noun = "fault" if len(errors) == 1 else "faults"
        super().__init__(
            f"the configuration has {len(errors)} {noun}:\n" + "\n".join(str(f) for f in errors),
            hint="correct these lines; what was live before stays live",
        )
        self.faults = tuple(faults)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known word, or nothing when none is near."""
    near = get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""
