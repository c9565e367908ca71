"""``/hooks/{name}``: requests from outside that become events. Each webhook verifies its own senders."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from ...triggers.body import gathered
from ..body import declared_bytes, read_at_most
from ..context import context_of
from ..problem import Lingering

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def receive(request: Request) -> Response:
    """Hand the raw request to the webhook; it answers 202 only when its event is in the log."""
    receiver = context_of(request).receiver
    name = request.path_params["name"]
    limit_bytes = receiver.limit_of(name)
    body = await read_at_most(request, limit_bytes=limit_bytes)
    got = await receiver.receive(
        name,
        method=request.method,
        headers=dict(request.headers),
        query=gathered(request.query_params.multi_items()),
        body=body,
        remote=request.client.host if request.client else None,
    )
    media_type = "application/json" if got.status < 400 else "application/problem+json"
    content = b"" if got.status == 204 else orjson.dumps(got.body)
    # What is larger than the limit was not read to its end; what an unknown webhook is sent, not at all.
    is_whole = max(len(body), declared_bytes(request)) <= limit_bytes
    return (Response if is_whole else Lingering)(content, got.status, dict(got.headers), media_type)
