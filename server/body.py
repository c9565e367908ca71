"""Reading a request body with the limit held while it is read, so that a large one is never in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import orjson

from ..vocabulary import JsonObject
from .problem import BodyTooLarge, MalformedBody

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["read_body", "read_object"]

_DISCARD_BYTES = 64 << 20
_DISCARD_S = 5.0


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body.

    A body over the limit is read on into nothing for a while before the answer: most clients write all of it before
    they read, and would see a broken connection instead of the 413.

    Raises:
        BodyTooLarge: more than ``limit_bytes``.
    """
    declared = request.headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared) > limit_bytes
    if too_large and request.headers.get("expect", "").lower() == "100-continue":
        raise BodyTooLarge(limit_bytes=limit_bytes)
    parts: list[bytes] = []
    size = 0
    with anyio.move_on_after(_DISCARD_S) as discarding:
        discarding.deadline = anyio.current_time() + _DISCARD_S if too_large else float("inf")
        async for part in request.stream():
            size += len(part)
            if too_large:
                if size > _DISCARD_BYTES:
                    break
            elif size > limit_bytes:
                too_large = True
                parts.clear()
                discarding.deadline = anyio.current_time() + _DISCARD_S
            else:
                parts.append(part)
    if too_large:
        raise BodyTooLarge(limit_bytes=limit_bytes)
    return b"".join(parts)


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
