"""``/health/*``, ``/metrics``, ``/api/status``, ``/api/rebuild``, ``/docs`` and the page at ``/``."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from ...automations.folding.catching_up import why_behind
from ...errors import HarkError
from ...storage import EventFilter, RunFilter
from ..answer import answer, moment, page
from ..audit import AUDIT_TYPES, AUDITED, audit_row, subject_for
from ..context import ServerContext, context_of
from ..health import live, not_ready, ready
from ..metrics import CONTENT_TYPE_LATEST
from ..openapi import body_of, fields_of
from ..page import page_of
from ..problem import problem
from ..telling import failing_channels, said_of
from .workers import shown_workers

router = APIRouter(tags=["system"])


router.get("/health/live")(live)
router.get("/health/ready")(ready)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything for Prometheus, in OpenMetrics text."""
    context = context_of(request)
    return Response(await context.metrics.exposition(context), headers={"content-type": CONTENT_TYPE_LATEST})


@lru_cache(maxsize=1)
def _version() -> str:
    return version("hark")


async def _status(context: ServerContext) -> dict[str, Any]:
    now = context.clock.now()
    out: dict[str, Any] = {
        "version": _version(),
        "ready": not not_ready(context),
        "started_at": context.started_at,
        "url": context.url,
        "home": str(context.settings.home_path),
        "access": "open" if context.keys.is_open else "keys",
        "broker": {
            "version": context.bus.info.version,
            "connected": context.bus.is_connected,
            "fast_ingest": context.bus.info.fast_ingest,
            "schedules": context.bus.info.schedules,
            **({"cannot_write": fault} if (fault := context.broker.fault if context.broker else "") else {}),
        },
        "parts": context.services.report(),
    }
    counts = await context.queries.counts(since=now - timedelta(days=1))
    head = await context.bus.log.head()
    out["log"] = {"seq": head, "read_model_seq": counts.seq, "behind": max(0, head - counts.seq)}
    out["last_24h"] = {
        "flow_runs": dict(counts.flow_runs), "task_runs": counts.task_runs, "events": counts.events,
        "triggered": counts.triggered, "suppressed": counts.suppressed, "actions": dict(counts.actions),
        "notifications": dict(counts.notifications), "webhooks": dict(counts.webhooks),
    }  # fmt: skip
    out["dead_letters"] = counts.dead_letters
    out["workers"] = dict(counts.workers)
    behind = await why_behind(context.bus)
    if behind is not None:
        out["rules_behind"] = behind
    out["failing_channels"] = {
        name: [said_of(row) for row in rows] for name, rows in (await failing_channels(context)).items()
    }
    return out


@router.get("/api/status")
async def status(request: Request) -> Response:
    """Say how the service is and what it did in the last 24 hours."""
    return answer(await _status(context_of(request)))


@router.post("/api/rebuild")
async def rebuild(request: Request) -> Response:
    """Drop the read model of this server and fold it anew from the log; answered when it has caught up."""
    context = context_of(request)
    began = time.monotonic()
    await context.projector.rebuild()
    return answer({"events": context.projector.seq, "took_s": round(time.monotonic() - began, 3)})


@router.get("/api/audit")
async def list_audit(
    request: Request,
    by: Annotated[str | None, Query(description="the name of a key, or `configuration`")] = None,
    since: Annotated[str | None, Query(description="a time, or how long ago: 10m, 7d")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List who called what that changes something, and what was changed, newest first."""
    where = EventFilter(
        types=(AUDITED,) if by is not None else AUDIT_TYPES,
        subject=subject_for(by) if by is not None else None,
        since=moment(since, name="since"),
    )
    found = await context_of(request).queries.events(where, cursor=cursor, limit=limit)
    return page(found, [audit_row(row) for row in found.items])


# --- pages ----------------------------------------------------------------------------------------------------


@router.get("/", include_in_schema=False)
async def home(request: Request) -> Response:
    """One page for people: how it is, what ran, what fired, what waits."""
    context = context_of(request)
    try:
        runs = (await context.queries.flow_runs(RunFilter(), limit=20)).items
        firings = (await context.queries.firings(limit=15)).items
        letters = (await context.queries.dead_letters(limit=15)).items
        shown = await _status(context)
        workers = await shown_workers(context.bus)
    except HarkError as exc:
        return problem(503, "Not available now", detail=str(exc), kind="read-model")
    return page_of(
        "status.html", status=shown, runs=runs, firings=firings, dead_letters=letters, workers=workers, is_open=context.keys.is_open,
        now=context.clock.now(), wrong=not_ready(context),
    )  # fmt: skip


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API as a page that needs nothing from elsewhere; the same for machines is at /openapi.json."""
    schema = request.app.openapi()
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            body = body_of(schema, operation)
            groups.setdefault(tag, []).append(
                {
                    "method": method.upper(),
                    "path": path,
                    "text": operation.get("description") or operation.get("summary") or "",
                    "parameters": operation.get("parameters", []),
                    "body": fields_of(body),
                    "example": orjson.dumps(body["examples"][0]).decode() if "examples" in body else "",
                    "answers": ", ".join(sorted(operation["responses"])),
                }
            )
    return page_of("docs.html", groups=groups, version=_version())
