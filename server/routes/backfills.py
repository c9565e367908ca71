"""``/api/deployments/{name}/backfill`` and ``/api/backfills``: running the slots of the past."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request, Response

from ...errors import DefinitionError, UnknownName
from ...triggers.backfill import Backfill, BackfillProgress, Reprocess
from ...triggers.backfiller import Backfills
from ...vocabulary import JsonObject
from ..answer import answer, page
from ..backfill import BackfillRequest, make_plan
from ..body import read_object
from ..context import context_of
from ..paging import Paging

router = APIRouter(tags=["backfills"])

_FIELDS = frozenset({
    "from", "to", "max_parallel", "schedules", "reprocess", "newest_first", "queue", "parameters", "name", "dry_run",
})  # fmt: skip
_REPROCESS = ("none", "failed", "all")


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


def _request(name: str, body: JsonObject) -> BackfillRequest:
    unknown = sorted(body.keys() - _FIELDS)
    if unknown:
        raise DefinitionError(
            f"{unknown[0]!r} is not known here", hint=f"known are {', '.join(sorted(_FIELDS))}"
        )
    start, end, most = body.get("from"), body.get("to"), body.get("max_parallel", 1)
    if not isinstance(start, str) or not isinstance(end, str):
        raise DefinitionError("`from` and `to` are needed", hint="such as 2026-01-01 and 2026-02-01")
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 1000:
        raise DefinitionError(f"`max_parallel` is a whole number from 1 to 1000, got {most!r}")
    schedules, parameters = body.get("schedules") or [], body.get("parameters") or {}
    if not isinstance(schedules, list) or not isinstance(parameters, dict):
        raise DefinitionError("`schedules` is a list of names and `parameters` an object")
    reprocess = body.get("reprocess") or "none"
    if reprocess not in _REPROCESS:
        raise DefinitionError(f"`reprocess` is one of {', '.join(_REPROCESS)}, got {reprocess!r}")
    queue, own_name = body.get("queue"), body.get("name")
    return BackfillRequest(
        name, start, end, max_parallel=most, schedules=tuple(str(s) for s in schedules),
        reprocess=cast("Reprocess", reprocess), newest_first=body.get("newest_first") is True,
        queue=str(queue) if queue is not None else None, parameters=parameters,
        name=str(own_name) if own_name is not None else None,
    )  # fmt: skip


@router.post("/api/deployments/{name}/backfill", status_code=201)
async def ask_backfill(request: Request, name: str) -> Response:
    """Run the slots of a stretch of the past: `{"from", "to", "max_parallel", "schedules", "reprocess", "newest_first",
    "queue", "parameters", "name"}`; with `"dry_run": true` only the plan. Asking twice is asking once.
    """
    context = context_of(request)
    body = await read_object(request, limit_bytes=context.settings.server.max_body_bytes)
    asked = _request(name, body)
    plan = await make_plan(context.bus, context.control, asked, now=context.clock.now())
    backfills = Backfills(context.bus, context.clock)
    if body.get("dry_run") is True:
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


@router.post("/api/backfills/{name}/cancel")
async def cancel_backfill(request: Request, name: str) -> Response:
    """Start no more of its runs; with `{"runs": true}` cancel those under way."""
    context = context_of(request)
    body = await read_object(request, limit_bytes=65_536)
    backfills = Backfills(context.bus, context.clock)
    found = await backfills.cancel(name, runs=body.get("runs") is True)
    return answer(_shown(found, await backfills.progress(name)))
