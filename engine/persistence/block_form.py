"""What a block is when it is kept: its fields as JSON, with the paths of those that are secret beside them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from textwrap import dedent
from typing import Any

import orjson
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic import Secret as AnySecret

from ...vocabulary import JsonObject, JsonValue

__all__ = ["HIDDEN", "SLUG", "described", "opened", "plain", "secret_paths", "shown_fields", "stored_form"]

HIDDEN = "$secret"
"""In the stored form, beside the fields: the paths of those that are secret."""
SLUG = "block_type_slug"
"""In the dump of a block: of which kind it is."""
ABOUT = frozenset({SLUG, "_block_document_id", "_block_document_name", "_is_anonymous"})
"""What a dump has besides the fields."""
_SECTION = re.compile(
    r"(?m)^(?:Args|Arguments|Attributes|Parameters|Examples?|Raises|Returns|Yields|Notes?):[ \t]*$"
)
_EXAMPLE = re.compile(r"(?m)^Examples?:[ \t]*\n((?:[ \t]+.*\n?|[ \t]*\n)+)")


def stored_form(dumped: Mapping[str, Any]) -> bytes:
    """Return the fields of a dumped block as they are kept, with what is secret readable: it is sealed as a whole."""
    fields = {name: value for name, value in dumped.items() if name not in ABOUT}
    return orjson.dumps({**plain(fields), HIDDEN: [".".join(path) for path in secret_paths(fields)]})


def opened(stored: bytes) -> dict[str, Any]:
    """Return the fields that were kept. Raises ``orjson.JSONDecodeError`` for what is none."""
    fields: dict[str, Any] = orjson.loads(stored)
    fields.pop(HIDDEN, None)
    return fields


def shown_fields(stored: bytes) -> JsonObject:
    """Return the fields of a block's opened form with its secrets left out: for people."""
    fields: JsonObject = orjson.loads(stored)
    secret = fields.pop(HIDDEN, None)
    # One that was saved before it was said which are: any may be.
    hidden = {str(path) for path in secret} if isinstance(secret, list) else None
    return {name: _masked(value, name, hidden) for name, value in fields.items()}


def described(docstring: str | None) -> tuple[str | None, str | None]:
    """Return what a docstring says before its first section, and its example; None for what it has not."""
    if not docstring:
        return None, None
    text = cleandoc(docstring)
    section, example = _SECTION.search(text), _EXAMPLE.search(text)
    return (text[: section.start()] if section else text).strip() or None, dedent(
        example[1]
    ).strip() if example else None


def _masked(value: JsonValue, path: str, hidden: set[str] | None) -> JsonValue:
    if hidden is None or path in hidden:
        return "********"
    if isinstance(value, dict):
        return {name: _masked(item, f"{path}.{name}", hidden) for name, item in value.items() if name != SLUG}
    if isinstance(value, list):
        return [_masked(item, f"{path}.{i}", hidden) for i, item in enumerate(value)]
    return value


def secret_paths(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the secrets in a dumped model."""
    if isinstance(value, SecretStr | SecretBytes | AnySecret):
        yield at
    elif isinstance(value, BaseModel):
        yield from secret_paths(value.model_dump(mode="python"), at)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from secret_paths(item, (*at, str(name)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from secret_paths(item, (*at, str(i)))
    elif isinstance(value, set | frozenset) and any(
        isinstance(item, SecretStr | SecretBytes | AnySecret) for item in value
    ):
        yield at


def plain(value: Any) -> Any:
    """Return a dumped model as JSON with its secrets readable."""
    if isinstance(value, SecretStr | SecretBytes | AnySecret):
        inner = value.get_secret_value()
        return inner.decode() if isinstance(inner, bytes) else plain(inner)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="python"))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value)
