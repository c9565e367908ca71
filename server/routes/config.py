"""``/api/config``: what a configuration would change, and changing it."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Request, Response

from ..answer import answer
from ..apply import apply_manifest, names_besides_config, plan_manifest
from ..bodies import ApplyBody, PlanBody
from ..context import ServerContext, context_of
from ..manifest import Manifest
from ..openapi import REFUSED
from ..plan import Plan
from ..taken import Taken

router = APIRouter(tags=["config"])

_MAX_BYTES = 32 << 20
"""A configuration of 10 000 rules is about 8 MB."""


def _manifest(body: ApplyBody) -> Manifest:
    return Manifest.from_json({"records": [dict(record) for record in body.manifest.records]})


@router.get("/api/config/names")
async def names(request: Request) -> Response:
    """Return the names that are live and did not come from a configuration, by bucket: a new one may refer to them."""
    found = await names_besides_config(context_of(request).bus)
    return answer({bucket: sorted(keys) for bucket, keys in found.items()})


@router.post("/api/config/plan")
async def plan(
    request: Request, body: Annotated[PlanBody, Depends(Taken(PlanBody, limit_bytes=_MAX_BYTES))]
) -> Response:
    """Return what applying would change: `{"manifest": {"records": […]}, "prune": false, "impact": false}`.

    With `impact`, also what each changed rule would have done over the last 7 days.
    """
    context = context_of(request)
    made = await plan_manifest(context.bus, _manifest(body), prune=body.prune)
    if body.impact:
        made = await _with_impact(context, made)
    return answer(made.to_json())


async def _with_impact(context: ServerContext, made: Plan) -> Plan:
    from ...automations.folding.fold import FoldConfig
    from ..impact import with_impact

    config = context.settings.automations
    live = {}
    for entry in await context.bus.bucket("automations").entries():
        # One that cannot be read did nothing that could be compared; the plan says that it does not load.
        with suppress(orjson.JSONDecodeError):
            live["automations", entry.key] = orjson.loads(entry.value)
    rules = context.services.running("rules")
    return await with_impact(
        context.bus, made, live, now=context.clock.now(), fold=rules.fold if rules is not None else None,
        config=FoldConfig(
            allowed_lateness_s=config.allowed_lateness_s, max_causal_depth=config.max_causal_depth,
            budget=config.budget_per_minute,
        ),
    )  # fmt: skip


@router.post("/api/config/apply", responses=REFUSED)
async def apply(
    request: Request, body: Annotated[ApplyBody, Depends(Taken(ApplyBody, limit_bytes=_MAX_BYTES))]
) -> Response:
    """Make it so, and return what was changed."""
    made = await apply_manifest(context_of(request).bus, _manifest(body), prune=body.prune)
    return answer(made.to_json())
