"""Typed input of a person to a paused run: what ``wait_for_input`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ..errors import ParameterError
from ..vocabulary import JsonObject

__all__ = ["InputForm", "RunInput"]


class RunInput(BaseModel):
    """Fields a person fills in to resume a run. Any pydantic model does; this one can be given initial data."""

    model_config = ConfigDict(extra="forbid")

    _description: ClassVar[str | None] = None

    @classmethod
    def with_initial_data(cls, description: str | None = None, **initial: Any) -> type[Self]:
        """Return a form like this one with values filled in, and a text to show above it."""
        fields: dict[str, Any] = {
            name: (cls.model_fields[name].annotation, value) for name, value in initial.items()
        }
        made: Any = create_model(cls.__name__, __base__=cls, **fields)
        made._description = description
        filled: type[Self] = made
        return filled


class InputForm:
    """What ``wait_for_input=`` was given, as a form: its schema, and how an answer becomes a value.

    A pydantic model is filled in field by field; any other type has one field, ``value``.
    """

    def __init__(self, wanted: Any) -> None:
        self._is_model = isinstance(wanted, type) and issubclass(wanted, BaseModel)
        self._model: type[BaseModel] = (
            wanted
            if self._is_model
            else create_model(
                getattr(wanted, "__name__", "Input"),
                __config__=ConfigDict(arbitrary_types_allowed=True),
                value=(wanted, ...),
            )
        )

    @property
    def schema(self) -> JsonObject:
        """JSON schema of the answer; ``description`` is the text to show."""
        schema: JsonObject = self._model.model_json_schema()
        description = getattr(self._model, "_description", None)
        if isinstance(description, str):
            schema["description"] = description
        return schema

    def read(self, given: Mapping[str, Any] | None) -> Any:
        """Return the value an answer stands for.

        Raises:
            ParameterError: it does not fit.
        """
        try:
            answer = self._model.model_validate(dict(given or {}))
        except ValidationError as exc:
            raise ParameterError(f"the input the run was resumed with does not fit: {exc}") from exc
        return answer if self._is_model else answer.value  # type: ignore[attr-defined]
