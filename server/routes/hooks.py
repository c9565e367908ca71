"""``/hooks/{name}``: requests from outside that become events. Each webhook verifies its own senders."""

from __future__ import annotations

from fastapi import Request, Response

from ..answer import answer
from ..body import read_body
from ..context import context_of
from ..problem import problem

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def receive(request: Request) -> Response:
    """Hand the raw request to the webhook; 202 only when its event is in the log."""
    context = context_of(request)
    name = request.path_params["name"]
    receiver = context.receiver
    body = await read_body(request, limit_bytes=receiver.max_bytes(name))
    got = await receiver.receive(
        name,
        method=request.method,
        headers=dict(request.headers),
        query=dict(request.query_params),
        body=body,
        remote=request.client.host if request.client else "",
    )
    if got.status >= 400:
        detail = str(got.body.get("detail") or got.body.get("error") or "")
        return problem(
            got.status, "Not accepted", detail=detail, kind="webhook-rejected", headers=got.headers
        )
    return answer(got.body, got.status, got.headers)
