"""``POST /api/events``: storing facts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from .answer import answer
from .body import read_body
from .context import context_of
from .ingest import events_in

__all__ = ["store_events"]


async def store_events(request: Request) -> Response:
    """Store one event or a batch: CloudEvents (binary, structured, batch) or plain `{"type": …, "data": …}`.

    Answered 202 with the ids, and the types under which they stand there, once every event is in the log; an event whose
    source and id are known is not stored again. The type of a CloudEvent that is not lower-case dotted words is cleaned,
    and kept as it was in `originaltype`.
    """
    context = context_of(request)
    config = context.settings.server
    body = await read_body(request, limit_bytes=config.max_body_bytes)
    events = events_in(request.headers, body, max_events=config.max_batch_events)
    if len(events) == 1:
        stored = [await context.bus.log.append(events[0])]
    else:
        stored = await context.bus.log.append_many(events)
    context.metrics.received(len(events))
    return answer(
        {
            "ids": [e.id for e in events],
            "types": [e.type for e in events],
            "stored": sum(not s.duplicate for s in stored),
            "duplicates": sum(s.duplicate for s in stored),
            "seq": max((s.seq for s in stored), default=0),
        },
        202,
    )
