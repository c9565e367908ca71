"""The API described for machines: FastAPI's document with what Hark reads and answers itself.

Bodies come from what each route takes (``taken.py``), answers from ``shown.py``, errors from what a route can meet: a
name in its path that is not there, a body, a query, a state that does not allow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from ..bus.cloudevents import BATCH, STRUCTURED
from ..vocabulary import JsonObject
from .rule_schema import rule_schema
from .shown import ITEMS, NOTHING, ONE
from .taken import Taken

__all__ = ["EVENTS", "REFUSED", "RULE", "UNKNOWN", "body_of", "fields_of", "describe"]

_REF = "#/components/schemas/{model}"

REFUSED: dict[int | str, dict[str, Any]] = {409: {}}
"""For ``responses=`` of a route that what it is about may not allow."""
UNKNOWN: dict[int | str, dict[str, Any]] = {404: {}}
"""For ``responses=`` of a route whose body names what may not be there."""

_ERRORS = {
    "400": "The body does not parse", "401": "An access key is needed, or this one is not valid",
    "403": "A page of another site asks", "404": "There is no such thing", "408": "The body stopped coming",
    "409": "Refused as things stand", "413": "The body is too large",
    "415": "The body is in a format that is not taken", "421": "The `Host` is not a name of this server",
    "405": "The webhook takes other methods", "422": "The content is wrong", "429": "Too many; `Retry-After` says when to come again",
    "503": "Not available now; `Retry-After` says when to come again",
}  # fmt: skip
_OF_A_BODY = ("400", "408", "413", "415", "422")

_PROBLEM: JsonObject = {
    "title": "Problem", "description": "An error (RFC 9457).", "type": "object", "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"},
        "detail": {"type": "string"}, "hint": {"type": "string", "description": "what to do next"},
        "suggestion": {"type": "string", "description": "a name that is there and near the one asked for"},
        "faults": {"type": "array", "items": {"type": "object"}},
    },
}  # fmt: skip

_EVENT: JsonObject = {
    "title": "PlainEvent", "description": "An event: `id`, `source` and `time` are filled in.", "type": "object",
    "required": ["type"], "additionalProperties": True,
    "properties": {
        "type": {"type": "string", "pattern": r"^[a-z0-9-]+(\.[a-z0-9-]+)*$"}, "subject": {"type": "string", "minLength": 1},
        "data": {}, "source": {"type": "string", "minLength": 1}, "id": {"type": "string", "minLength": 1},
        "time": {"type": "string", "format": "date-time"}, "partitionkey": {"type": "string", "minLength": 1},
    },
    "examples": [{"type": "order.paid", "subject": "order/1", "data": {"amount": 3}}],
}  # fmt: skip
_CLOUD_EVENT: JsonObject = {
    "title": "CloudEvent", "description": "A CloudEvent 1.0 in structured form, with any extensions.", "type": "object",
    "required": ["specversion", "id", "source", "type"], "additionalProperties": True,
    "properties": {
        "specversion": {"type": "string", "enum": ["1.0"]}, "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1}, "type": {"type": "string", "minLength": 1},
        "subject": {"type": "string", "minLength": 1}, "time": {"type": "string", "format": "date-time"}, "data": {},
        "data_base64": {"type": "string", "contentEncoding": "base64"},
        "datacontenttype": {"type": "string", "minLength": 1}, "dataschema": {"type": "string", "minLength": 1},
    },
    "examples": [{"specversion": "1.0", "id": "e1", "source": "/shop", "type": "order.paid", "data": {"amount": 3}}],
}  # fmt: skip


def _ref(name: str) -> JsonObject:
    return {"$ref": _REF.format(model=name)}


def _of(name: str) -> JsonObject:
    return {"schema": _ref(name)}


EVENTS: JsonObject = {
    "requestBody": {
        "required": True,
        "description": "With `ce-…` headers (binary form) the body is the event's data, in any format.",
        "content": {
            "application/json": {
                "schema": {"anyOf": [_ref("PlainEvent"), {"type": "array", "items": _ref("PlainEvent")}]}
            },
            STRUCTURED: _of("CloudEvent"),
            BATCH: {"schema": {"type": "array", "items": _ref("CloudEvent")}},
        },
    }
}  # fmt: skip
"""The body of ``POST /api/events``."""

RULE: JsonObject = {"requestBody": {"required": True, "content": {"application/json": _of("Rule")}}}
"""A body that is a rule, as it is written in ``hark.yaml``."""


_HOOK: JsonObject = {
    "tags": ["webhooks"], "summary": "Receive", "operationId": "receive_hook",
    "description": "Hand a request to a webhook, which verifies its sender itself. 202 only when its event is in the log; "
    "200 with what its answer is made of where it waits for a run. Any method is taken that the webhook allows.",
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
    "requestBody": {"content": {"*/*": {"schema": {}}}},
}  # fmt: skip
_HOOK_ANSWERS: JsonObject = {
    "202": {"description": "The event is stored", "content": {"application/json": {"schema": {"type": "object"}}}},
    "200": {"description": "The answer that was waited for", "content": {"application/json": {"schema": {}}}},
}  # fmt: skip
_OF_HOOKS = ("401", "404", "405", "408", "413", "415", "422", "429", "503")


def describe(app: FastAPI, routes: Sequence[APIRoute]) -> dict[str, Any]:
    """Return the document of ``app``, which serves ``routes``, and keep it as FastAPI does."""
    if app.openapi_schema is None:
        app.openapi_schema = _describe(app, [r for r in routes if r.include_in_schema])
    return app.openapi_schema


def _describe(app: FastAPI, routes: Sequence[APIRoute]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    schemas: dict[str, Any] = {
        "Problem": _PROBLEM, "PlainEvent": _EVENT, "CloudEvent": _CLOUD_EVENT, "Rule": rule_schema(),
    }  # fmt: skip
    models = {m for route in routes for m in _taken(route.dependant)}
    for model in sorted(models, key=lambda m: m.__name__):
        _keep(schemas, model.__name__, model.model_json_schema(ref_template=_REF, by_alias=True))
    for route in routes:
        path = route.path_format
        for method in sorted(route.methods or ()):
            operation = document["paths"][path][method.lower()]
            taken = next(_taken(route.dependant), None)
            if taken is not None:
                operation["requestBody"] = {
                    "required": any(f.is_required() for f in taken.model_fields.values()),
                    "content": {"application/json": _of(taken.__name__)},
                }
            _answers(operation, f"{method} {path}", schemas)
            _errors(operation, f"{method} {path}")
    of_hooks = {status: _problem(status) for status in _OF_HOOKS}
    document["paths"]["/hooks/{name}"] = {"post": {**_HOOK, "responses": {**_HOOK_ANSWERS, **of_hooks}}}
    document["components"] = {"schemas": schemas}
    return document


def body_of(document: JsonObject, operation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a route's JSON body, empty where it takes none."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    schema = schema.get("anyOf", [schema])[0]
    components: Any = document["components"]
    found: dict[str, Any] = components["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
    return found


def fields_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know of each field of a body: whether it is required, and what it says."""
    required = body.get("required", ())
    return {
        name: {"required": name in required, "text": said.get("description", "")}
        for name, said in body.get("properties", {}).items()
    }


def _taken(dependant: Dependant) -> Iterator[type[BaseModel]]:
    for one in dependant.dependencies:
        if isinstance(one.call, Taken):
            yield one.call.model
        yield from _taken(one)


def _keep(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Put a schema among the components, with those it is made of."""
    for inner, below in schema.pop("$defs", {}).items():
        schemas.setdefault(inner, below)
    schemas[name] = schema


def _answers(operation: dict[str, Any], route: str, schemas: dict[str, Any]) -> None:
    """Say what is answered when it goes well."""
    method, _, path = route.partition(" ")
    responses = operation["responses"]
    good = next(status for status in responses if status.startswith("2"))
    said = responses[good]
    if route in NOTHING:
        said.pop("content", None)
        return
    if method == "GET" and path in ITEMS:
        schema: dict[str, Any] = {
            "type": "object", "required": ["items", "next_cursor"],
            "properties": {
                "items": {"type": "array", "items": _shape_of(ITEMS[path], schemas)},
                "next_cursor": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "null on the last page"},
            },
        }  # fmt: skip
    elif route in ONE:
        schema = _shape_of(ONE[route], schemas)
    else:
        media = "text/event-stream" if path.endswith("/stream") else "application/openmetrics-text"
        said["content"] = {media: {"schema": {"type": "string"}}}
        return
    said["content"] = {"application/json": {"schema": schema}}
    if route == "POST /api/deployments/{name}/backfill":
        responses["200"] = {**said, "description": "The plan, or one that was asked for before"}


def _shape_of(shape: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(shape).json_schema(mode="serialization", ref_template=_REF)
    name = schema.get("title")
    for inner, below in schema.pop("$defs", {}).items():
        schemas.setdefault(inner, below)
    if name is None:
        return schema
    schemas[name] = schema
    return {"$ref": _REF.format(model=name)}


def _problem(status: str) -> dict[str, Any]:
    return {
        "description": _ERRORS.get(status, "Refused"),
        "content": {"application/problem+json": {"schema": _ref("Problem")}},
    }


def _errors(operation: dict[str, Any], route: str) -> None:
    """Say what is answered when it does not."""
    method, _, path = route.partition(" ")
    responses = operation["responses"]
    found = {"503"} if path != "/health/live" else set()
    found |= {status for status in responses if status in ("404", "409")}
    if not path.startswith("/health/"):
        found |= {"401", "421"}
        if method != "GET":
            found.add("403")
    if "{" in path:
        found |= {"404", "422"}
    if "requestBody" in operation:
        found |= {*_OF_A_BODY}
    if any(p["in"] == "query" for p in operation.get("parameters", ())):
        found.add("422")
    elif method == "GET" and path.startswith("/api/"):
        found.add("422")  # it takes no query, and says so
    if path == "/api/events/stream":
        found.add("429")
    responses.pop("422", None)
    for status in sorted(found):
        responses[status] = _problem(status)
