"""``/api/blocks`` and ``/api/artifacts``: what code keeps, and what it shows people."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ...engine.blocks import BLOCKS, shown_fields
from ...errors import UnknownName
from ...storage import EventFilter
from ...vocabulary import JsonObject
from ..answer import answer, page
from ..context import ServerContext, context_of
from ..paging import Paging

router = APIRouter(tags=["kept"])


def _block(key: str) -> JsonObject:
    kind, _, name = key.partition(".")
    return {"type": kind, "name": name}


@router.get("/api/blocks")
async def list_blocks(request: Request, paging: Paging, type: str | None = None) -> Response:
    """List blocks by type and name; what is in them is not shown here."""
    entries = await context_of(request).bus.bucket(BLOCKS).entries(f"{type}." if type else "")
    found = paging.page(entries, lambda e: e.key)
    return page(found, [{**_block(e.key), "changed_at": e.created_at} for e in found.items])


async def _known(context: ServerContext, kind: str, name: str) -> Any:
    bucket = context.bus.bucket(BLOCKS)
    keys = await bucket.keys()
    if f"{kind}.{name}" not in keys:
        raise UnknownName("block", f"{kind}/{name}", known=[key.replace(".", "/", 1) for key in keys])
    return await bucket.get(f"{kind}.{name}")


@router.get("/api/blocks/{kind}/{name}")
async def show_block(request: Request, kind: str, name: str) -> Response:
    """Show one block, its secrets masked."""
    context = context_of(request)
    entry = await _known(context, kind, name)
    fields = shown_fields(context.secrets.unseal(f"{kind}/{name}", entry.value))
    return answer({**_block(entry.key), "changed_at": entry.created_at, "fields": fields})


@router.delete("/api/blocks/{kind}/{name}", status_code=204)
async def remove_block(request: Request, kind: str, name: str) -> Response:
    """Remove a block."""
    context = context_of(request)
    await _known(context, kind, name)
    await context.bus.bucket(BLOCKS).delete(f"{kind}.{name}")
    return Response(status_code=204)


@router.get("/api/artifacts")
async def list_artifacts(
    request: Request,
    type: Annotated[str | None, Query(description="markdown, table, link, image or progress")] = None,
    flow_run: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List artifacts as they are now, the latest first; their content is not shown here."""
    queries = context_of(request).queries
    return page(await queries.artifacts(type=type, flow_run=flow_run, cursor=cursor, limit=limit))


@router.get("/api/artifacts/{key_or_id}")
async def show_artifact(request: Request, key_or_id: str) -> Response:
    """Show one artifact with its content and its latest versions."""
    queries = context_of(request).queries
    found, event = await queries.artifact(key_or_id)
    versions = await queries.events(EventFilter(subject=f"artifact/{key_or_id}"), limit=50)
    return answer(
        {
            **{name: getattr(found, name) for name in found.__slots__},
            "data": _content(event.data),
            "versions": [
                {"event": e.id, "time": e.time, "artifact": _shown(e.data).get("id")} for e in versions.items
            ],
        }
    )


def _shown(data: Any) -> dict[str, Any]:
    shown = data.get("artifact") if isinstance(data, dict) else None
    return shown if isinstance(shown, dict) else {}


def _content(data: Any) -> Any:
    return _shown(data).get("data")
