"""``/api/workers``: who is there to execute runs, and how many each has."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ...bus import Bus
from ...engine.code.lane import LOOP, PROCESS, Lane
from ...engine.dispatching.presence import WorkerInfo, live_workers
from ..answer import listing
from ..context import context_of
from ..paging import Paging

__all__ = ["by_pool", "router", "shown_workers"]

router = APIRouter(tags=["deployments"])


async def shown_workers(bus: Bus, pool: str | None = None) -> list[dict[str, Any]]:
    """Return the workers that are there, by pool and name."""
    return [_shown(info, heard) for info, heard in await live_workers(bus) if pool in (None, info.pool)]


def _shown(info: WorkerInfo, heard: datetime) -> dict[str, Any]:
    return {
        "id": info.id, "name": info.name, "pool": info.pool, "host": info.host, "pid": info.pid,
        "version": info.version or None, "started_at": info.started_at, "heard_at": heard,
        "async": _held(info, LOOP), "sync": _held(info, PROCESS),
    }  # fmt: skip


def _held(info: WorkerInfo, lane: Lane) -> dict[str, int]:
    return dict(zip(("places", "taken", "waiting"), info.held_in(lane), strict=True))


def by_pool(workers: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return by pool how many workers it has, and what they hold together."""
    found: dict[str, dict[str, int]] = {}
    for one in workers:
        sums = found.setdefault(one["pool"], {"count": 0, "places": 0, "taken": 0, "waiting": 0})
        sums["count"] += 1
        for word in ("places", "taken", "waiting"):
            sums[word] += one["async"][word] + one["sync"][word]
    return found


@router.get("/api/workers")
async def list_workers(
    request: Request,
    paging: Paging,
    pool: Annotated[str | None, Query(description="only those of this pool")] = None,
) -> Response:
    """List the workers that are there: places they have for async and sync runs, how many of those are taken, and how many runs wait
    in a worker's memory without one. Each says so every 5 s, and whenever a run begins or ends to wait so."""
    return listing(
        await shown_workers(context_of(request).bus, pool),
        paging,
        name=lambda one: (one["pool"], one["name"], one["id"]),
    )
