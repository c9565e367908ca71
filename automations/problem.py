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
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ..errors import DefinitionError

__all__ = [
    "Loc",
    "Problem",
    "RuleInvalid",
    "Strict",
    "did_you_mean",
    "in_plain_words",
    "problems_of",
    "refuse",
]

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


def in_plain_words(error: ErrorDetails) -> str:
    """Return what pydantic says of a value in the words of who wrote it: no types of Python, and what to write."""
    limits = error.get("ctx") or {}
    match error["type"]:
        case "model_type" | "model_attributes_type" | "dict_type" | "mapping_type":
            return "this is a mapping, written as `{key: value}`"
        case "list_type" | "tuple_type" | "set_type":
            return "this is a list, written as `[one, two]`"
        case "too_short":
            return f"this needs at least {_entries(limits['min_length'])}"
        case "too_long":
            return f"this takes at most {_entries(limits['max_length'])}"
        case "int_type" | "int_parsing" | "int_from_float":
            return "this is a whole number"
        case "float_type" | "float_parsing":
            return "this is a number"
        case "bool_type" | "bool_parsing":
            return "this is true or false"
        case "string_type":
            return "this is a text; put it in quotes"
        case "greater_than_equal":
            return f"this is at least {limits['ge']}"
        case "greater_than":
            return f"this is more than {limits['gt']}"
        case "less_than_equal":
            return f"this is at most {limits['le']}"
        case "less_than":
            return f"this is less than {limits['lt']}"
    return str(error["msg"])


def _entries(count: int) -> str:
    return f"{count} entry" if count == 1 else f"{count} entries"


def problems_of(exc: ValidationError) -> list[Problem]:
    """Return the faults a validation error holds, in plain words."""
    out = []
    for error in exc.errors(include_url=False):
        message = in_plain_words(error).removeprefix("Value error, ")
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
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(value, str | int | float | list | tuple):
            refuse(
                cls.__name__, [Problem((), f"this is a mapping, with {', '.join(known)}; got {value!r:.60}")]
            )
        if not isinstance(value, Mapping):
            return value
        names = {*known, *cls.model_fields}
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
