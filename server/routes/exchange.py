"""``/api/sources`` and ``/api/sinks``: events from NATS subjects of others, and events for others."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from ...vocabulary import JsonObject, JsonValue
from ..answer import answer, listing
from ..context import ServerContext, context_of
from ..definition import Defined, all_defined, one_defined, set_paused
from ..openapi import REFUSED
from ..paging import Paging

router = APIRouter(tags=["exchange"])


def _states(context: ServerContext, part: str) -> dict[str, Any]:
    running = context.services.running(part)
    return {} if running is None else running.states


def _shown(one: Defined, states: dict[str, Any]) -> JsonObject:
    shown = one.shown()
    target = shown.get("nats") or shown.get("http")
    if isinstance(target, dict):
        hidden: dict[str, JsonValue] = {
            k: v if isinstance(v, str) and "{{" in v else "***" for k, v in target.items() if k == "secret"
        }
        target.update(hidden)
    state = states.get(one.key)
    # What this process knows; where the role runs elsewhere, nothing.
    return {
        **shown,
        "name": one.key,
        "paused": shown.get("paused", False),
        "status": state.to_dict() if state else None,
    }


@router.get("/api/sources")
async def list_sources(request: Request, paging: Paging) -> Response:
    """List sources with how each is."""
    context = context_of(request)
    states = _states(context, "sources")
    return listing([_shown(one, states) for one in await all_defined(context.bus, "sources")], paging)


@router.get("/api/sources/{name}")
async def show_source(request: Request, name: str) -> Response:
    """Show one source."""
    context = context_of(request)
    return answer(_shown(await one_defined(context.bus, "sources", name), _states(context, "sources")))


@router.post("/api/sources/{name}/pause", responses=REFUSED)
async def pause_source(request: Request, name: str) -> Response:
    """Stop listening; a stream keeps what comes meanwhile."""
    return answer((await set_paused(context_of(request).bus, "sources", name, True)).shown())


@router.post("/api/sources/{name}/resume", responses=REFUSED)
async def resume_source(request: Request, name: str) -> Response:
    """Listen again."""
    return answer((await set_paused(context_of(request).bus, "sources", name, False)).shown())


@router.get("/api/sinks")
async def list_sinks(request: Request, paging: Paging) -> Response:
    """List sinks with how each is; secrets are templates and are not resolved."""
    context = context_of(request)
    states = _states(context, "sinks")
    return listing([_shown(one, states) for one in await all_defined(context.bus, "sinks")], paging)


@router.get("/api/sinks/{name}")
async def show_sink(request: Request, name: str) -> Response:
    """Show one sink."""
    context = context_of(request)
    return answer(_shown(await one_defined(context.bus, "sinks", name), _states(context, "sinks")))


@router.post("/api/sinks/{name}/pause", responses=REFUSED)
async def pause_sink(request: Request, name: str) -> Response:
    """Stop forwarding; what comes meanwhile is forwarded when it goes on."""
    return answer((await set_paused(context_of(request).bus, "sinks", name, True)).shown())


@router.post("/api/sinks/{name}/resume", responses=REFUSED)
async def resume_sink(request: Request, name: str) -> Response:
    """Forward again, from where it stopped."""
    return answer((await set_paused(context_of(request).bus, "sinks", name, False)).shown())
