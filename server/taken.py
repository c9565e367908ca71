"""A request body as a model of ``bodies.py``, read with the limits held and refused in words when it does not fit."""

from __future__ import annotations

from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ..errors import DefinitionError
from ..vocabulary import JsonObject, JsonValue
from .body import read_object
from .context import context_of
from .fault import Position
from .shape import shape
from .yaml_source import Node

__all__ = ["Taken", "body_as"]

M = TypeVar("M", bound=BaseModel)

_AT = Position("the body", 1, 1)


class Taken(Generic[M]):
    """What a route takes as its body: a dependency of the route, in which ``/openapi.json`` finds the model."""

    def __init__(self, model: type[M], *, limit_bytes: int | None = 64 << 10) -> None:
        """``limit_bytes``: None is what the server takes of events (``HARK_SERVER__MAX_BODY_BYTES``)."""
        self.model = model
        self._limit_bytes = limit_bytes

    async def __call__(self, request: Request) -> M:
        limit_bytes = self._limit_bytes
        if limit_bytes is None:
            limit_bytes = context_of(request).settings.server.max_body_bytes
        return body_as(self.model, await read_object(request, limit_bytes=limit_bytes))


def body_as(model: type[M], body: JsonObject) -> M:
    """Return a body as its model.

    Raises:
        DefinitionError: it does not fit; the message names the field, the hint what to write.
    """
    try:
        return model.model_validate(body)
    except ValidationError:
        # Only now: of what fits, nobody asks where in it things stand.
        _, faults = shape(model, _node(body), path=(), value=body)
    said = [f"{f.path}: {f.message}" if f.path and f.path not in f.message else f.message for f in faults[:5]]
    hint = next((f.suggestion for f in faults if f.suggestion), _meaning(model, faults[0].path))
    raise DefinitionError("; ".join(said), hint=hint)


def _meaning(model: type[BaseModel], path: str) -> str:
    """Return what is said of the field a fault is in."""
    for name, field in model.model_fields.items():
        word = field.alias or name
        if field.description and (path == word or path.startswith((f"{word}.", f"{word}["))):
            return f"`{word}`: {field.description}"
    return "the page /docs shows what this takes"


def _node(value: JsonValue) -> Node:
    if isinstance(value, dict):
        return Node(value, _AT, {k: _node(v) for k, v in value.items()}, dict.fromkeys(value, _AT))
    if isinstance(value, list):
        return Node(value, _AT, {i: _node(v) for i, v in enumerate(value)})
    return Node(value, _AT)
