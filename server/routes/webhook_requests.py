"""``/api/webhooks/{name}/requests`` and ``/api/webhook-requests``: what came in lately, and delivering it again."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ...vocabulary import JsonObject
from ..answer import answer, listing
from ..context import context_of
from ..definition import one_defined
from ..openapi import REFUSED
from ..paging import Paging

router = APIRouter(tags=["webhooks"])


@router.get("/api/webhooks/{name}/requests")
async def list_requests(
    request: Request,
    name: str,
    paging: Paging,
    refused: bool | None = None,
) -> Response:
    """List the requests kept of a webhook, the newest first; with `refused` only those that were, or were not."""
    context = context_of(request)
    await one_defined(context.bus, "webhooks", name)
    found = [
        one
        for one in await context.receiver.requests(name)
        if refused is None or refused == (one.status >= 400)
    ]
    return listing([one.shown(with_body=False) for one in found], paging)


@router.get("/api/webhook-requests/{id}")
async def show_request(request: Request, id: str) -> Response:
    """Show one kept request with its headers and body, without what proves who sent it."""
    return answer((await context_of(request).receiver.kept(id)).shown(with_body=True))


@router.post("/api/webhook-requests/{id}/redeliver", responses=REFUSED)
async def redeliver(request: Request, id: str) -> Response:
    """Take a kept request in again, by the webhook as it is now: `{"status", "answer"}` as its sender would be answered."""
    got = await context_of(request).receiver.redeliver(id)
    shown: JsonObject = {"status": got.status, "answer": got.body}
    return answer(shown)
