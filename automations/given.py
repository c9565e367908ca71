"""The tests written inside a rule: what is given, and what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from ..duration import Duration
from ..vocabulary import JsonValue
from .problem import Problem, Strict, refuse

__all__ = ["Expected", "GivenEvent", "RuleTest"]


class GivenEvent(Strict):
    """An event of a test: ``at`` an offset in virtual time; ``same`` repeats an earlier one by its index."""

    at: Duration = 0.0
    type: str | None = None
    same: int | None = Field(None, ge=0)
    id: str | None = None
    source: str | None = None
    subject: str | None = None
    time: Duration | None = Field(None, description="when it occurred, if not when it arrived")
    causaldepth: int = Field(0, ge=0)
    data: JsonValue = None

    @model_validator(mode="after")
    def _type_or_same(self) -> Self:
        if self.type is None and self.same is None:
            raise ValueError("give a `type`, or `same` with the index of an earlier event")
        return self


def _expected(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower().replace("_", " ")
        if word in ("fired", "not fired"):
            return {"fired": 1 if word == "fired" else 0}
        raise ValueError(
            f"{value!r} is not an expectation; write `fired`, `not fired` or {{fired: 2, key: etl}}"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return {"fired": value}
    if isinstance(value, Mapping) and isinstance(value.get("fired"), bool):
        return {**value, "fired": int(value["fired"])}
    return value


class Expected(Strict):
    """What a test expects: how often the rule fires (at all, or for one key), and with what."""

    fired: int | None = Field(None, ge=0)
    key: str | int | float | bool | tuple[str | int | float | bool, ...] | None = None
    count: int | None = None
    at: (
        Annotated[tuple[Duration, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] | None
    ) = None
    suppressed: int | None = Field(None, ge=0)
    resolved: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if all(v is None for v in (self.fired, self.at, self.suppressed, self.count, self.resolved)):
            raise ValueError("say what is expected: {fired: 1}, {fired: 0}, {at: 10m}, {suppressed: 2}")
        return self


class RuleTest(Strict):
    """An inline test of a rule, run in virtual time."""

    name: str | None = None
    given: tuple[GivenEvent, ...]
    until: Duration | None = Field(None, description="how long to go on after the first moment")
    expect: Annotated[
        tuple[Annotated[Expected, BeforeValidator(_expected)], ...],
        BeforeValidator(lambda v: v if isinstance(v, list | tuple) else [v]),
    ]

    @model_validator(mode="after")
    def _same_is_earlier(self) -> Self:
        for i, given in enumerate(self.given):
            if given.same is not None and given.same >= i:
                refuse(
                    "test",
                    [
                        Problem(
                            ("given", i, "same"),
                            f"`same: {given.same}` repeats an earlier event of `given`, "
                            + (
                                f"by its place from 0 to {i - 1}"
                                if i
                                else "and this is the first; give it a `type`"
                            ),
                        )
                    ],
                )
        return self
