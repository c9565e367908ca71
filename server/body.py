"""Reading a request body with the limits held while it is read, so that a large one is never in memory.

What a request says of its size is believed when it says too much: it is refused at once, unread. A body that stops
coming is given up, with 408, so that nobody holds a connection by sending nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from ..bus.exact import loads
from ..vocabulary import JsonObject
from .context import context_of
from .problem import BodyStalled, BodyTooLarge, MalformedBody, UnsupportedBody

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["declared_bytes", "read_at_most", "read_body", "read_object"]


def declared_bytes(request: Request) -> int:
    """Return how long the request says its body is; 0 when it does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 16 else 0


async def read_at_most(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body, cut off one byte past the limit if it is longer, or empty if it says that it is.

    Raises:
        BodyStalled: nothing came for ``server.read_timeout_s``, or not all in ``server.body_timeout_s``.
    """
    if declared_bytes(request) > limit_bytes:
        return b""
    config = context_of(request).settings.server
    parts: list[bytes] = []
    size, now_s = 0, anyio.current_time()
    ends_at_s = now_s + config.body_timeout_s
    with anyio.CancelScope(deadline=min(ends_at_s, now_s + config.read_timeout_s)) as reading:
        async for part in request.stream():
            if not part:
                continue
            parts.append(part[: limit_bytes + 1 - size])
            size += len(part)
            if size > limit_bytes:
                break
            reading.deadline = min(ends_at_s, anyio.current_time() + config.read_timeout_s)
    if reading.cancelled_caught:
        raise BodyStalled(after_s=anyio.current_time() - now_s, got_bytes=size)
    return b"".join(parts)


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body.

    Raises:
        BodyTooLarge: more than ``limit_bytes``. BodyStalled: it stopped coming. UnsupportedBody: it is compressed.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        # Unpacked it could be of any size, and kept as it is it would be an event that nobody can read.
        raise UnsupportedBody(f"bodies in {encoding!r} are not read", hint="send it without Content-Encoding")
    body = await read_at_most(request, limit_bytes=limit_bytes)
    if max(len(body), declared_bytes(request)) > limit_bytes:
        raise BodyTooLarge(limit_bytes=limit_bytes)
    return body


async def read_object(request: Request, *, limit_bytes: int) -> JsonObject:
    """Return the JSON object in the body, empty when there is no body.

    Raises:
        BodyTooLarge, BodyStalled, MalformedBody.
    """
    raw = await read_body(request, limit_bytes=limit_bytes)
    if not raw.strip():
        return {}
    try:
        value = loads(raw)
    except ValueError as exc:
        raise MalformedBody(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise MalformedBody(f"the body must be a JSON object, got {type(value).__name__}")
    return value
