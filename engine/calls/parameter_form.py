"""What a signature takes, as an OpenAPI schema: for ``callables.parameter_schema``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

__all__ = ["schema_of_signature"]

_CONFIG = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
_IMPLICIT = frozenset({"self", "cls"})


class _OpenForClasses(GenerateJsonSchema):
    """Takes anything where an instance of somebody's own class is wanted: JSON cannot say more of it."""

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        return {}


def schema_of_signature(signature: inspect.Signature, docstrings: Mapping[str, str]) -> dict[str, Any]:
    """Return the schema, with what it refers to under ``definitions``; a type that has none takes anything."""
    fields: dict[str, Any] = {}
    for position, (name, parameter) in enumerate(signature.parameters.items()):
        if name in _IMPLICIT:
            continue
        # Called p0, p1, …: a parameter may have a name that a model cannot take for a field.
        field = {f"p{position}": _field(parameter, position, docstrings.get(name))}
        try:
            _schema(field)
        except (ValueError, TypeError, PydanticInvalidForJsonSchema, PydanticUserError):
            field = {f"p{position}": (Any, field[f"p{position}"][1])}
        fields |= field
    found = _schema(fields)
    return {**found, "definitions": found.get("$defs", {})}


def _field(parameter: inspect.Parameter, position: int, description: str | None) -> tuple[Any, FieldInfo]:
    hint = Any if parameter.annotation is parameter.empty else parameter.annotation
    default, extra = parameter.default, {}
    if isinstance(default, FieldInfo):
        description = default.description or description
        if isinstance(default.json_schema_extra, dict):
            extra = dict(default.json_schema_extra)
        default = default.default
    extra.setdefault("position", position)
    made: FieldInfo = Field(
        default=... if default is parameter.empty else default, title=parameter.name, description=description,
        alias=parameter.name, json_schema_extra=extra,
    )  # fmt: skip
    return hint, made


def _schema(fields: dict[str, Any]) -> dict[str, Any]:
    model: type[BaseModel] = create_model("Parameters", __config__=_CONFIG, **fields)
    try:
        return TypeAdapter(model).json_schema(
            by_alias=True, ref_template="#/definitions/{model}", schema_generator=_OpenForClasses
        )
    except PydanticUndefinedAnnotation as exc:
        raise TypeError(exc.message) from exc
