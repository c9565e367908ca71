"""Types for the fields of pydantic models, under the names that code written for Prefect imports from ``prefect.types``."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

__all__ = [
    "Date", "DateTime", "ListOfNonEmptyStrings", "LogLevel", "Name", "NameOrEmpty", "NonEmptyishName", "NonNegativeFloat",
    "NonNegativeInteger", "NonNegativeTimeDelta", "PositiveInteger", "SecondsTimeDelta", "StatusCode",
]  # fmt: skip

_NAME = r"^[^/%&><]+$"


def _not_negative(given: timedelta) -> timedelta:
    if given < timedelta(0):
        raise ValueError(f"must not be negative, got {given}")
    return given


def _as_seconds(given: Any) -> Any:
    """Numbers, and texts that are numbers, are seconds."""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            return given
    return timedelta(seconds=given) if isinstance(given, int | float) else given


def _said(given: list[str]) -> list[str]:
    return [text for text in map(str, given) if text.strip()]


DateTime: TypeAlias = datetime
Date: TypeAlias = date
PositiveInteger = Annotated[int, Field(gt=0)]
NonNegativeInteger = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
NonNegativeTimeDelta = Annotated[timedelta, AfterValidator(_not_negative)]
SecondsTimeDelta = Annotated[timedelta, BeforeValidator(_as_seconds)]
StatusCode = Annotated[int, Field(ge=100, le=599)]
ListOfNonEmptyStrings = Annotated[list[str], BeforeValidator(_said)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(lambda word: str(word).upper())
]
Name = Annotated[str, Field(pattern=_NAME)]
NameOrEmpty = Annotated[str, Field(pattern=r"^[^/%&><]*$")]
NonEmptyishName = Annotated[str, Field(pattern=r"\S")]
