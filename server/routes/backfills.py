"""``/api/deployments/{name}/backfill`` and ``/api/backfills``: running the slots of the past."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from ...errors import UnknownName
from ...triggers.backfill import Backfill, BackfillProgress
from ...triggers.backfiller import Backfills
from ...vocabulary import JsonObject
from ..answer import answer, page
from ..backfill import BackfillRequest, make_plan
from ..bodies import BackfillBody, CancelBackfillBody
from ..context import context_of
from ..openapi import REFUSED
from ..paging import Paging
from ..taken import Taken

router = APIRouter(tags=["backfills"])


def _shown(backfill: Backfill, progress: BackfillProgress) -> JsonObject:
    shown = progress.to_dict()
    status = shown.pop("status")
    if backfill.round > progress.round:
        status = "running"
    return {
        "name": backfill.name, "deployment": backfill.deployment, "schedules": [*backfill.schedules],
        "start": backfill.start, "end": backfill.end, "reprocess": backfill.reprocess,
        "max_parallel": backfill.max_parallel, "asked_at": backfill.asked_at.isoformat(),
        "status": "cancelling" if backfill.cancelled and status == "running" else status,
        "total": len(backfill.slots), "over": sum(progress.ended.values()), "went_wrong": progress.went_wrong, **shown,
    }  # fmt: skip


def _request(name: str, body: BackfillBody) -> BackfillRequest:
    return BackfillRequest(
        name, body.from_, body.to, max_parallel=body.max_parallel, schedules=tuple(str(s) for s in body.schedules or ()),
        reprocess=body.reprocess or "none", newest_first=body.newest_first, queue=body.queue,
        parameters=body.parameters or {}, name=str(body.name) if body.name is not None else None,
    )  # fmt: skip


@router.post("/api/deployments/{name}/backfill", status_code=201, responses=REFUSED)
async def ask_backfill(
    request: Request, name: str, body: Annotated[BackfillBody, Depends(Taken(BackfillBody, limit_bytes=None))]
) -> Response:
    """Run the slots of a stretch of the past: `{"from", "to", "max_parallel", "schedules", "reprocess", "newest_first",
    "queue", "parameters", "name"}`; with `"dry_run": true` only the plan. Asking twice is asking once.
    """
    context = context_of(request)
    asked = _request(name, body)
    plan = await make_plan(context.bus, context.control, asked, now=context.clock.now())
    backfills = Backfills(context.bus, context.clock)
    if body.dry_run:
        shown = plan.to_json()
        try:
            earlier = await backfills.get(plan.backfill.name)
        except UnknownName:
            return answer(shown)
        return answer({**shown, "existing": _shown(earlier, await backfills.progress(earlier.name))})
    found, is_new = await backfills.ask(plan.backfill)
    shown = _shown(found, await backfills.progress(found.name))
    return answer(
        {**shown, "is_new": is_new}, 201 if is_new else 200, {"Location": f"/api/backfills/{found.name}"}
    )


@router.get("/api/backfills")
async def list_backfills(request: Request, paging: Paging, deployment: str | None = None) -> Response:
    """List backfills with how far each has come, the latest first."""
    context = context_of(request)
    backfills = Backfills(context.bus, context.clock)
    every = [b for b in await backfills.all() if deployment is None or b.deployment == deployment]
    found = paging.page(every, lambda b: b.name)
    return page(found, [_shown(b, await backfills.progress(b.name)) for b in found.items])


@router.get("/api/backfills/{name}")
async def show_backfill(
    request: Request, name: str, wait_s: Annotated[float, Query(ge=0, le=60)] = 0, over: int | None = None
) -> Response:
    """Show one backfill; with `wait_s`, once it has come further than `over` runs, or after so many seconds."""
    context = context_of(request)
    backfills = Backfills(context.bus, context.clock)
    found = await backfills.get(name)
    progress = await backfills.progress(name)
    seen = progress
    if wait_s and progress.status == "running" and over is not None and sum(progress.ended.values()) <= over:
        progress = await backfills.moved(name, seen, within_s=wait_s)
        found = await backfills.get(name)
    slots: list[Any] = [
        {"schedule": s, "slot": at, "run_id": found.run_id(i)} for i, (s, at) in enumerate(found.slots)
    ]
    return answer({**_shown(found, progress), "slots": slots})


@router.post("/api/backfills/{name}/cancel", responses=REFUSED)
async def cancel_backfill(
    request: Request, name: str, body: Annotated[CancelBackfillBody, Depends(Taken(CancelBackfillBody))]
) -> Response:
    """Start no more of its runs; with `{"runs": true}` cancel those under way."""
    context = context_of(request)
    backfills = Backfills(context.bus, context.clock)
    found = await backfills.cancel(name, runs=body.runs)
    return answer(_shown(found, await backfills.progress(name)))
