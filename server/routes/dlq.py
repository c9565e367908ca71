"""``/api/dlq``: actions that were given up and wait for a person."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response

from ...storage import ActionRow, Page
from ..answer import answer, page
from ..context import ServerContext, context_of
from ..openapi import REFUSED

if TYPE_CHECKING:
    from ...automations.acting.dead_letter import SeenTo

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


@router.post("/api/dlq/redrive", status_code=202)
async def redrive_many(
    request: Request,
    automation: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> Response:
    """Try again what a page of the list holds, newest first; `left` are those that could not be, and why.

    What is given up again meanwhile stands before the cursor, so that going from page to page tries each once.
    """
    context = context_of(request)
    found = await context.queries.dead_letters(automation=automation, cursor=cursor, limit=limit)
    return await _seen_to(context, found, context.dead_letters.redrive_each, status=202)


@router.post("/api/dlq/drop")
async def drop_many(
    request: Request,
    automation: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> Response:
    """Give up what a page of the list holds, newest first; `left` are those that could not be, and why."""
    context = context_of(request)
    found = await context.queries.dead_letters(automation=automation, cursor=cursor, limit=limit)
    return await _seen_to(context, found, context.dead_letters.drop_each, status=200)


async def _seen_to(
    context: ServerContext,
    found: Page[ActionRow],
    each: Callable[[Sequence[str]], Awaitable[Sequence[SeenTo]]],
    *,
    status: int,
) -> Response:
    done = await each([row.key for row in found.items])
    await context.until_readable(max((one.seq for one in done if one.seq is not None), default=0))
    left = [{"id": one.key, "error": str(one.error)} for one in done if one.error is not None]
    ids = [one.key for one in done if one.error is None]
    return answer({"ids": ids, "left": left, "next_cursor": found.next_cursor}, status)


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
