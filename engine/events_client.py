"""``get_events_client``: emitting events that were made beforehand, in the words of Prefect's client.

::

    async with get_events_client() as client:
        await client.emit(Event(event="order.paid", resource={"prefect.resource.id": "order/42"}))
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from ..bus.emit import emit
from ..bus.event import Event
from .sync_async.either import session_here

__all__ = ["EventsClient", "PrefectEventsClient", "get_events_client"]


class EventsClient:
    """Emits events; an event is stored when ``emit`` returns. Two with the same source and id are one."""

    async def __aenter__(self) -> Self:
        session_here("get_events_client()")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close nothing: the connection is that of the process, and nothing waits to be sent."""

    async def emit(self, event: Event) -> None:
        """Store an event. In a run it follows from what led to the run, as with ``hark.emit``.

        Raises:
            EventInvalid: its type is one of Hark's own, or something in it cannot be sent.
            BusUnavailable: no broker is known, or it does not answer.
        """
        await emit(
            event.type, subject=event.subject, data=event.data, source=event.source, time=event.time, id=event.id,
            partitionkey=event.partitionkey,
        )  # fmt: skip


PrefectEventsClient = EventsClient


def get_events_client(**_: Any) -> EventsClient:
    """Return a client that emits events. Options of Prefect's, of how it connects, are taken and do nothing."""
    return EventsClient()
