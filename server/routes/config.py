"""``/api/config``: what a configuration would change, and changing it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ...vocabulary import JsonObject
from ..answer import answer
from ..apply import apply_manifest, names_besides_config, plan_manifest
from ..body import read_object
from ..context import context_of
from ..manifest import Manifest

router = APIRouter(tags=["config"])

_MAX_BYTES = 32 << 20
"""A configuration of 10 000 rules is about 8 MB."""


async def _manifest(request: Request) -> tuple[Manifest, JsonObject]:
    body = await read_object(request, limit_bytes=_MAX_BYTES)
    return Manifest.from_json(body.get("manifest")), body


@router.get("/api/config/names")
async def names(request: Request) -> Response:
    """Return the names that are live and did not come from a configuration, by bucket: a new one may refer to them."""
    found = await names_besides_config(context_of(request).bus)
    return answer({bucket: sorted(keys) for bucket, keys in found.items()})


@router.post("/api/config/plan")
async def plan(request: Request) -> Response:
    """Return what applying would change: `{"manifest": {"records": […]}, "prune": false}`."""
    manifest, body = await _manifest(request)
    made = await plan_manifest(context_of(request).bus, manifest, prune=bool(body.get("prune")))
    return answer(made.to_json())


@router.post("/api/config/apply")
async def apply(request: Request) -> Response:
    """Make it so, and return what was changed."""
    manifest, body = await _manifest(request)
    made = await apply_manifest(context_of(request).bus, manifest, prune=bool(body.get("prune")))
    return answer(made.to_json())
