"""``emit_event``: saying that something happened the way Prefect's flows say it, as an event of Hark.

``emit_event("order.paid", resource={"prefect.resource.id": "order/42", "kind": "web"}, payload={"amount": 3})`` is the event
``order.paid`` with subject ``order/42``, whose data is the payload; labels of the resource, and related resources, are in it
under ``resource`` and ``related``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..bus.emit import emit
from ..vocabulary import JsonObject
from .event_resource import RelatedResource, Resource, event_type
from .event_view import seen

if TYPE_CHECKING:
    from ..bus.event import Event

__all__ = ["RelatedResource", "Resource", "emit_event"]


def emit_event(
    event: str,
    resource: Mapping[str, str],
    occurred: datetime | None = None,
    related: Iterable[Mapping[str, str]] | None = None,
    payload: Mapping[str, Any] | None = None,
    id: str | None = None,
    follows: Event | None = None,
) -> Event:
    """Emit an event and return it; see ``hark.emit``, which this calls.

    Args:
        event: its type. What may not stand in one is written with dashes: ``Order Paid!`` becomes ``order-paid``.
        resource: labels, with ``prefect.resource.id``: the subject.
        payload: becomes the data of the event.
        related: other resources, with ``prefect.resource.role``.
    Raises:
        EventInvalid: the resource has no id, a related one no role, or the payload is no JSON.
        BusUnavailable: no broker is known.
    """
    about = Resource(resource)
    data: JsonObject = dict(payload or {})
    labels = {label: value for label, value in about.items() if label != "prefect.resource.id"}
    if labels:
        data.setdefault("resource", dict(labels))
    others = [dict(RelatedResource(one)) for one in related or ()]
    if others:
        data.setdefault("related", others)  # type: ignore[arg-type]
    return seen(
        emit(
            event_type(event), subject=about.id, data=data, time=occurred, id=str(id) if id is not None else None,
            follows=follows,
        )
    )  # fmt: skip
