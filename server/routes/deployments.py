"""``/api/deployments``, ``/api/schedules``, ``/api/pools``: what can run, when, and where."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from ...bus.event import parse_time
from ...engine.runs.run import Cause, run_id_for
from ...errors import DefinitionError, EventInvalid, UnknownName
from ...triggers.schedule import StoredSchedule, due_at, fires_after, schedule_kind
from ...triggers.upcoming import upcoming
from ...vocabulary import JsonObject
from ..answer import answer, listing, page
from ..bodies import RunBody
from ..context import context_of
from ..definition import Defined, all_defined, one_defined, set_paused
from ..openapi import REFUSED
from ..ownership import delete_deployment, rules_of
from ..paging import Paging
from ..taken import Taken
from .runs import run_json
from .workers import by_pool, shown_workers

router = APIRouter(tags=["deployments"])

_KINDS = frozenset({"api", "cli"})


@router.get("/api/deployments")
async def list_deployments(request: Request, paging: Paging) -> Response:
    """List deployments with their latest run."""
    context = context_of(request)
    found = paging.page(await all_defined(context.bus, "deployments"), lambda one: one.key)
    schedules = [k.partition("/")[0] for k in await context.bus.bucket("schedules").keys()]
    activity = await context.queries.deployments(since=datetime.now(UTC) - timedelta(days=7))
    items = []
    for one in found.items:
        known = activity.get(one.key)
        items.append(
            {
                **one.shown(),
                "name": one.key,
                "schedules": schedules.count(one.key),
                "last_run": known.last if known else None,
                "next_run": known.next if known else None,
                "runs_7d": dict(known.states) if known else {},
            }
        )
    return page(found, items)


@router.get("/api/deployments/{name}")
async def show_deployment(request: Request, name: str) -> Response:
    """Show one deployment with its schedules, and the names of the rules that are its triggers."""
    context = context_of(request)
    found = await one_defined(context.bus, "deployments", name)
    schedules = [
        _schedule(s, 1) for s in await all_defined(context.bus, "schedules") if s.key.startswith(name + "/")
    ]
    shown = {**found.shown(), "name": name, "changed_at": found.changed_at, "schedules": schedules}
    return answer({**shown, "triggers": sorted(await rules_of(context.bus, name))})


@router.delete("/api/deployments/{name}", responses=REFUSED)
async def remove_deployment(request: Request, name: str) -> Response:
    """Take a deployment away with its schedules and triggers; its runs stay. One of a configuration comes back with it."""
    bus = context_of(request).bus
    found = await one_defined(bus, "deployments", name)
    return answer({"name": name, "triggers": await delete_deployment(bus, name, revision=found.revision)})


@router.post("/api/deployments/{name}/run", status_code=201, responses=REFUSED)
async def run_deployment(
    request: Request, name: str, body: Annotated[RunBody, Depends(Taken(RunBody, limit_bytes=None))]
) -> Response:
    """Ask for a run: `{"parameters": {}, "tags": [], "queue", "scheduled_at", "delay_s", "key"}`, all optional."""
    context = context_of(request)
    run = await context.control.run_deployment(
        name,
        parameters=body.parameters or {},
        tags=tuple(str(t) for t in body.tags or ()),
        queue=body.queue,
        scheduled_at=_due(body, context.clock.now()),
        cause=Cause(kind=body.kind if body.kind in _KINDS else "api"),
        run_id=run_id_for("key", name, str(body.key)) if body.key is not None else None,
    )
    return answer(run_json(run), 201, {"Location": f"/api/flow-runs/{run.id}"})


def _due(body: RunBody, now: datetime) -> datetime | None:
    if body.scheduled_at is not None:
        if body.delay_s is not None:
            raise DefinitionError("`scheduled_at` and `delay_s` both say when", hint="send one of them")
        try:
            return parse_time(body.scheduled_at)
        except EventInvalid as exc:
            raise DefinitionError(
                f"`scheduled_at` is a time, got {body.scheduled_at!r}", hint="such as 2026-01-31T09:00:00Z"
            ) from exc
    return now + timedelta(seconds=body.delay_s) if body.delay_s is not None else None


@router.post("/api/deployments/{name}/pause", responses=REFUSED)
async def pause_deployment(request: Request, name: str) -> Response:
    """Stop starting its runs; what runs goes on."""
    return answer((await set_paused(context_of(request).bus, "deployments", name, True)).shown())


@router.post("/api/deployments/{name}/resume", responses=REFUSED)
async def resume_deployment(request: Request, name: str) -> Response:
    """Start its runs again."""
    return answer((await set_paused(context_of(request).bus, "deployments", name, False)).shown())


# --- schedules ------------------------------------------------------------------------------------------------


def _schedule(one: Defined, count: int) -> dict[str, Any]:
    out: dict[str, Any] = {"key": one.key, **one.shown(), "next": [], "description": ""}
    stored = one.model
    if isinstance(stored, StoredSchedule):
        now = datetime.now(UTC)
        kind = schedule_kind(stored.schedule)
        out["paused"] = stored.is_paused
        shown = one.shown().get("schedule")
        zone = f" {stored.schedule.timezone}" if stored.schedule.timezone != "UTC" else ""
        out["description"] = f"{kind} {shown.get(kind) if isinstance(shown, dict) else ''}{zone}"
        slots = islice(fires_after(stored.schedule, now), count)
        out["next"] = [due_at(stored.schedule, slot, key=stored.key) for slot in slots]
    return out


@router.get("/api/schedules")
async def list_schedules(
    request: Request,
    paging: Paging,
    deployment: str | None = None,
    count: Annotated[int, Query(ge=0, le=100)] = 1,
) -> Response:
    """List schedules with their next `count` fire times."""
    found = await all_defined(context_of(request).bus, "schedules")
    chosen = [one for one in found if deployment is None or one.key.partition("/")[0] == deployment]
    if deployment is not None and not chosen:
        await one_defined(context_of(request).bus, "deployments", deployment)
    shown = paging.page(chosen, lambda one: one.key)
    return page(shown, [_schedule(one, count) for one in shown.items])


@router.get("/api/schedules/next")
async def next_slots(
    request: Request,
    paging: Paging,
    deployment: str | None = None,
    count: Annotated[int, Query(ge=1, le=100)] = 5,
) -> Response:
    """List slots that are to come, soonest first: `count` of each schedule that fire, and those between them that do not."""
    context = context_of(request)
    paused = {d.key for d in await all_defined(context.bus, "deployments") if d.fields.get("paused") is True}
    if deployment is not None:
        await one_defined(context.bus, "deployments", deployment)
    items: list[dict[str, Any]] = []
    for one in await all_defined(context.bus, "schedules"):
        stored = one.model
        if not isinstance(stored, StoredSchedule) or deployment not in (None, stored.deployment):
            continue
        for slot in upcoming(stored, context.clock.now(), count):
            excluded = slot.excluded
            if not excluded and stored.deployment in paused:
                excluded = "the deployment is paused"
            items.append(
                {
                    "at": slot.due, "slot": slot.slot, "local": slot.local.isoformat(),
                    "timezone": stored.schedule.timezone, "schedule": stored.key, "excluded": excluded, "note": slot.note,
                }
            )  # fmt: skip
    items.sort(key=lambda item: (item["at"], item["schedule"]))
    return listing(items, paging, name=lambda item: f"{item['schedule']} {item['slot'].isoformat()}")


@router.post("/api/schedules/{key:path}/pause", responses=REFUSED)
async def pause_schedule(request: Request, key: str) -> Response:
    """Stop a schedule."""
    return answer(_schedule(await set_paused(context_of(request).bus, "schedules", key, True), 1))


@router.post("/api/schedules/{key:path}/resume", responses=REFUSED)
async def resume_schedule(request: Request, key: str) -> Response:
    """Let a schedule fire again."""
    return answer(_schedule(await set_paused(context_of(request).bus, "schedules", key, False), 1))


# --- pools ----------------------------------------------------------------------------------------------------


@router.get("/api/pools")
async def list_pools(request: Request, paging: Paging) -> Response:
    """List pools, with what their workers hold together; `default` exists always, others once they are defined or have a worker."""
    bus = context_of(request).bus
    found = {one.key: one.shown() | {"name": one.key} for one in await all_defined(bus, "pools")}
    held = by_pool(await shown_workers(bus))
    for name in sorted({"default", *held} - found.keys(), key=lambda name: (name != "default", name)):
        found[name] = {"name": name, "type": "process", "queues": {}, "paused": False}
    nobody = {"count": 0, "places": 0, "taken": 0, "waiting": 0}
    return listing([{**one, "workers": held.get(name, nobody)} for name, one in found.items()], paging)


@router.post("/api/pools/{name}/pause", responses=REFUSED)
async def pause_pool(request: Request, name: str) -> Response:
    """Stop handing runs to its workers."""
    return answer(await _pause_pool(request, name, True))


@router.post("/api/pools/{name}/resume", responses=REFUSED)
async def resume_pool(request: Request, name: str) -> Response:
    """Hand runs to its workers again."""
    return answer(await _pause_pool(request, name, False))


async def _pause_pool(request: Request, name: str, paused: bool) -> JsonObject:
    import orjson

    bus = context_of(request).bus
    try:
        return (await set_paused(bus, "pools", name, paused)).shown()
    except UnknownName:
        if name != "default":
            raise
        await bus.bucket("pools").create(name, orjson.dumps({"name": name, "paused": paused}))
        return (await one_defined(bus, "pools", name)).shown()
