"""What is wrong with a written rule, and where: told in one form, whoever finds it.

Parsers in this room return or raise ``Problem``s; ``refuse`` turns them into a pydantic ``ValidationError`` whose
``loc`` goes down to the key at fault, so that the YAML loader can name file, line and column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..errors import DefinitionError

__all__ = ["Loc", "Problem", "RuleInvalid", "Strict", "did_you_mean", "problems_of", "refuse"]

Loc = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a definition: ``loc`` are the keys and indexes that lead to it."""

    loc: Loc
    message: str

    def under(self, *outer: str | int) -> Problem:
        """Return the same problem seen from further out."""
        return Problem((*outer, *self.loc), self.message)

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.loc)
        return f"{where}: {self.message}" if where else self.message


class RuleInvalid(DefinitionError):
    """A rule does not stand; ``problems`` says each fault with its place."""

    def __init__(self, problems: Sequence[Problem], *, name: str = "") -> None:
        head = f"automation {name!r}: " if name else ""
        super().__init__(head + "; ".join(str(p) for p in problems))
        self.problems = tuple(problems)


def did_you_mean(word: str, known: Iterable[str], *, also: Mapping[str, str] | None = None) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or an empty text.

    Args:
        also: words of other tools that people bring along, with ours for them.
    """
    if also and word in also:
        return f"; did you mean {also[word]!r}?"
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def refuse(title: str, problems: Iterable[Problem], value: object = None) -> NoReturn:
    """Raise the pydantic error that carries ``problems``, each at its own place below the current field."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("definition", "{message}", {"message": problem.message}),
            loc=problem.loc,
            input=value,
        )
        for problem in problems
    ]
    raise ValidationError.from_exception_data(title, details)


def problems_of(exc: ValidationError) -> list[Problem]:
    """Return the faults a validation error holds, in plain words."""
    out = []
    for error in exc.errors(include_url=False):
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            message = f"{error['loc'][-1]!r} is missing"
        out.append(Problem(tuple(error["loc"]), message))
    return out


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, naming the nearest known one.

    ``foreign_words`` maps words of other tools to ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, populate_by_name=True)
    foreign_words: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        names = known | set(cls.model_fields)
        unknown = [
            Problem(
                (str(key),),
                f"unknown key {key!r}{did_you_mean(str(key), sorted(known), also=cls.foreign_words)}",
            )
            for key in value
            if key not in names
        ]
        if unknown:
            refuse(cls.__name__, unknown, dict(value))
        return value
