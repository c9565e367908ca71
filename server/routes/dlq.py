"""``/api/dlq``: actions that were given up and wait for a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from ...storage import ActionRow
from ..answer import answer, page
from ..context import context_of
from ..openapi import REFUSED

router = APIRouter(tags=["dead letters"])


def _shown(row: ActionRow) -> dict[str, object]:
    return {
        "id": row.key, "state": row.state, "kind": row.kind, "automation": row.automation, "firing": row.firing,
        "attempt": row.attempt, "error": row.error, "at": row.time,
    }  # fmt: skip


@router.get("/api/dlq")
async def list_dead_letters(
    request: Request,
    automation: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List dead letters (of one rule), newest first."""
    found = await context_of(request).queries.dead_letters(automation=automation, cursor=cursor, limit=limit)
    return page(found, [_shown(row) for row in found.items])


@router.get("/api/dlq/{letter_id:path}")
async def show_dead_letter(request: Request, letter_id: str) -> Response:
    """Show one action with the event of its latest outcome."""
    row, event = await context_of(request).queries.action(letter_id)
    return answer({**_shown(row), "event": event.to_dict()})


@router.post("/api/dlq/{letter_id:path}/redrive", status_code=202, responses=REFUSED)
async def redrive(request: Request, letter_id: str) -> Response:
    """Try the action again."""
    context = context_of(request)
    seq = await context.dead_letters.redrive(letter_id)
    await context.until_readable(seq)
    return answer({"id": letter_id, "state": "redriven"}, 202)


@router.post("/api/dlq/{letter_id:path}/drop", responses=REFUSED)
async def drop(request: Request, letter_id: str) -> Response:
    """Give it up."""
    context = context_of(request)
    seq = await context.dead_letters.drop(letter_id)
    await context.until_readable(seq)
    return answer({"id": letter_id, "state": "dropped"})
