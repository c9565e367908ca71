"""What a request's body says: JSON, forms, multipart fields, plain text. Pure; bounded; never executes anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl

from ..bus.exact import NotExact, loads
from ..vocabulary import JsonObject, JsonValue

__all__ = ["Body", "BodyError", "gathered", "media_type", "parse_body"]

_MAX_FIELDS = 1000
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Body:
    """A parsed body.

    Attributes:
        value: the JSON, the form as an object (a list where a name is repeated), the text, or None when there is no body.
        form: fields of a form, of a repeated name the last; of multipart also ``{"filename", "type", "size"}`` for files,
            whose contents are not kept.
        form_all: the same, each a list of all its values.
        octets: what was asked to be kept as it is; None of all that could be read.
    """

    value: JsonValue
    form: JsonObject = field(default_factory=dict)
    form_all: JsonObject = field(default_factory=dict)
    octets: bytes | None = None


class BodyError(Exception):
    """The body cannot be read. ``status`` is 400 (broken) or 415 (not a kind we read)."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a request in lower case, without parameters; empty if it names none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()[:200]


def parse_body(headers: Mapping[str, str], raw: bytes, *, any_kind: bool = False) -> Body:
    """Return what the body says, read as its content type (JSON, if it names none).

    Args:
        any_kind: what is neither JSON nor text is kept as ``octets``, as the data of a CloudEvent in binary mode is.
    Raises:
        BodyError: it is broken, compressed, or of a type that is not read here.
    """
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BodyError(415, "content-encoding", "compressed bodies are not read; send it uncompressed")
    kind = media_type(headers)
    if not raw:
        return Body(None)
    if kind == "application/json" or kind.endswith("+json") or kind == "text/json":
        return Body(_json(raw))
    if any_kind and kind and not kind.startswith("text/"):
        return Body(None, octets=raw)
    if kind == "application/x-www-form-urlencoded":
        return _form(raw)
    if kind == "multipart/form-data":
        return _multipart(headers["content-type"], raw)
    if kind.startswith("text/"):
        return Body(_text(raw))
    if kind == "":
        try:
            return Body(_json(raw))
        except BodyError:
            raise BodyError(
                415, "content-type", "the request names no content type, and is not JSON"
            ) from None
    raise BodyError(415, "content-type", f"{kind[:80]!r} is not read here; send JSON, a form or text")


def _json(raw: bytes) -> JsonValue:
    try:
        value: JsonValue = loads(raw)
    except NotExact as exc:
        raise BodyError(400, "broken-json", str(exc)) from exc
    except ValueError as exc:
        raise BodyError(400, "broken-json", f"the body is not JSON: {exc}") from exc
    return value


def gathered(pairs: Iterable[tuple[str, _T]]) -> dict[str, _T | list[_T]]:
    """Return pairs by name: the value, or a list of them where a name is repeated."""
    found: dict[str, list[_T]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _form_of(pairs: Sequence[tuple[str, JsonValue]]) -> Body:
    form_all: dict[str, JsonValue] = {}
    for name, value in pairs:
        values = form_all.setdefault(name, [])
        assert isinstance(values, list)
        values.append(value)
    return Body(dict(gathered(pairs)), dict(pairs), form_all)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise BodyError(400, "broken-text", "the body is not UTF-8 text") from exc


def _form(raw: bytes) -> Body:
    try:
        pairs = parse_qsl(_text(raw), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as exc:
        raise BodyError(400, "broken-form", f"the form cannot be read: {exc}") from exc
    return _form_of(pairs)


def _multipart(content_type: str, raw: bytes) -> Body:
    # Only here: the parser costs 20 ms to load, and few senders use it.
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary or len(boundary) > 200:
        raise BodyError(400, "broken-form", "the multipart form names no boundary")
    fields: list[tuple[str, JsonValue]] = []
    name, value = bytearray(), bytearray()
    head: dict[bytes, bytes] = {}
    content = bytearray()

    def end_header() -> None:
        head[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def end_part() -> None:
        _, disposition = parse_options_header(head.get(b"content-disposition", b""))
        field_name = disposition.get(b"name", b"").decode("utf-8", "replace")
        if not field_name:
            raise BodyError(400, "broken-form", "a part of the form has no name")
        if len(fields) >= _MAX_FIELDS:
            raise BodyError(400, "broken-form", f"the form has more than {_MAX_FIELDS} fields")
        if b"filename" in disposition:
            file: JsonObject = {
                "filename": disposition[b"filename"].decode("utf-8", "replace"),
                "type": head.get(b"content-type", b"application/octet-stream").decode("latin-1"),
                "size": len(content),
            }
            fields.append((field_name, file))
        else:
            fields.append((field_name, bytes(content).decode("utf-8", "replace")))
        head.clear()
        content.clear()

    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
            "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
            "on_header_end": end_header,
            "on_part_data": lambda data, start, stop: content.extend(data[start:stop]),
            "on_part_end": end_part,
            "on_end": end,
        },
    )
    try:
        parser.write(raw)
        parser.finalize()
    except FormParserError as exc:
        raise BodyError(400, "broken-form", f"the form cannot be read: {exc}") from exc
    if not ended:
        raise BodyError(400, "broken-form", "the form ends before its last boundary")
    return _form_of(fields)
