"""Reading a request body with the limit held while it is read, so that a large one is never in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import orjson

from ..vocabulary import JsonObject
from .problem import BodyTooLarge, MalformedBody

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["read_at_most", "read_body", "read_object"]

_DISCARD_BYTES = 64 << 20
_DISCARD_S = 5.0


async def read_at_most(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body, cut off one byte past the limit if it is longer.

    The rest is read on into nothing for a while: most clients write all of a body before they read, and would see a
    broken connection instead of the answer.
    """
    parts: list[bytes] = []
    kept = size = 0
    with anyio.CancelScope() as discarding:
        async for part in request.stream():
            size += len(part)
            if kept <= limit_bytes:
                part = part[: limit_bytes + 1 - kept]
                parts.append(part)
                kept += len(part)
            if kept > limit_bytes:
                if discarding.deadline == float("inf"):
                    discarding.deadline = anyio.current_time() + _DISCARD_S
                if size > _DISCARD_BYTES:
                    break
    return b"".join(parts)


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body.

    Raises:
        BodyTooLarge: more than ``limit_bytes``.
    """
    declared = request.headers.get("content-length", "")
    waits_for_us = request.headers.get("expect", "").lower() == "100-continue"
    if waits_for_us and declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(limit_bytes=limit_bytes)
    body = await read_at_most(request, limit_bytes=limit_bytes)
    if len(body) > limit_bytes:
        raise BodyTooLarge(limit_bytes=limit_bytes)
    return body


async def read_object(request: Request, *, limit_bytes: int) -> JsonObject:
    """Return the JSON object in the body, empty when there is no body.

    Raises:
        BodyTooLarge, MalformedBody.
    """
    raw = await read_body(request, limit_bytes=limit_bytes)
    if not raw.strip():
        return {}
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise MalformedBody(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise MalformedBody(f"the body must be a JSON object, got {type(value).__name__}")
    return value
