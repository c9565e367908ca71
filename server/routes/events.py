"""``/api/events``: storing facts, listing them, and following them live."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from ...automations.pattern import check_pattern
from ...bus.subject import ALL_EVENTS, filters_for, flow_run_filter
from ...errors import DefinitionError
from ...storage import EventFilter, EventRow
from ..answer import answer, moment, page
from ..context import context_of
from ..intake import store_events
from ..openapi import EVENTS
from ..stream import EventStream, Wanted

router = APIRouter(tags=["events"])


router.post("/api/events", status_code=202, openapi_extra=EVENTS)(store_events)


def shown(row: EventRow) -> dict[str, object]:
    """Return one event of a listing: ``{"seq", "recorded_at", "event"}``."""
    event = row.to_dict()
    event.pop("sequence", None)
    event.pop("recordedtime", None)
    return {"seq": row.seq, "recorded_at": row.recorded_at, "event": event}


def _patterns(given: list[str] | None) -> tuple[str, ...]:
    """Return patterns of types. Raises ``DefinitionError``: one is none, and would look like an answer without events."""
    try:
        return tuple(check_pattern(one) for one in given or ())
    except ValueError as exc:
        raise DefinitionError(
            str(exc), hint="`*` is one word, a last `>` all that follow: order.*, flow-run.>"
        ) from exc


@router.get("/api/events")
async def list_events(
    request: Request,
    type: Annotated[list[str] | None, Query(description="patterns such as order.* or flow-run.>")] = None,
    source: str | None = None,
    subject: Annotated[str | None, Query(description="whole, or its beginning followed by *")] = None,
    correlation: str | None = None,
    causation: str | None = None,
    id_prefix: str | None = None,
    since: Annotated[str | None, Query(description="a time, or how long ago: 10m, 7d")] = None,
    until: str | None = None,
    after_seq: int | None = None,
    before_seq: int | None = None,
    oldest_first: bool = False,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List events, newest first."""
    where = EventFilter(
        types=_patterns(type), subject=subject, source=source, correlation=correlation, causation=causation, id_prefix=id_prefix,
        since=moment(since, name="since"), until=moment(until, name="until"), after_seq=after_seq, before_seq=before_seq,
    )  # fmt: skip
    found = await context_of(request).queries.events(
        where, cursor=cursor, limit=limit, oldest_first=oldest_first
    )
    return page(found, [shown(row) for row in found.items])


@router.get("/api/events/stream")
async def stream_events(
    request: Request,
    type: Annotated[list[str] | None, Query()] = None,
    source: str | None = None,
    subject: str | None = None,
    after: Annotated[int | None, Query(ge=0, description="begin behind this sequence")] = None,
) -> Response:
    """Follow events as server-sent events. Each has its log sequence as id: `Last-Event-ID` resumes without a gap."""
    context = context_of(request)
    wanted = Wanted(_patterns(type), subject=subject, source=source)
    last = request.headers.get("last-event-id", "")
    if last.isdigit():
        after = int(last)
    filters = sorted({f for pattern in wanted.types for f in filters_for(pattern)}) or [ALL_EVENTS]
    if (
        subject
        and subject.startswith("flow-run/")
        and all(p.startswith("flow-run.") for p in wanted.types or ("",))
    ):
        # The broker finds the transitions of one run by themselves.
        filters = [flow_run_filter(subject[9:])]
    return EventStream(context, wanted, filters, after=after)


@router.get("/api/events/{event_id}")
async def show_event(request: Request, event_id: str) -> Response:
    """Show one event, what led to it and what it led to."""
    queries = context_of(request).queries
    row = await queries.event(event_id)
    causes = await queries.causes(event_id)
    led_to = await queries.led_to(event_id)
    return answer(
        {
            **shown(row),
            "caused_by": [_brief(e) for e in causes if e.id != row.id],
            "led_to": [_brief(e) for e in led_to],
        }
    )


def _brief(row: EventRow) -> dict[str, object]:
    return {"seq": row.seq, "id": row.id, "type": row.type, "subject": row.subject, "time": row.time}
