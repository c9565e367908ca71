"""``emit_event``: saying that something happened the way Prefect's flows say it, as an event of Hark.

``emit_event("order.paid", resource={"prefect.resource.id": "order/42", "kind": "web"}, payload={"amount": 3})`` is the event
``order.paid`` with subject ``order/42``, whose data is the payload; labels of the resource, and related resources, are in it
under ``resource`` and ``related``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..bus.emit import emit
from ..errors import EventInvalid
from ..vocabulary import JsonObject

if TYPE_CHECKING:
    from ..bus.event import Event

__all__ = ["RelatedResource", "Resource", "emit_event"]


class Resource(dict[str, str]):
    """What an event is about: labels, of which ``prefect.resource.id`` has to be there.

    Raises:
        EventInvalid: it is not.
    """

    def __init__(self, labels: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        found = {**(labels or {}), **more}
        # ``Resource.model_validate`` and ``Resource(root={…})`` are how pydantic's root models are made.
        if isinstance(found.get("root"), Mapping):
            found = {**found.pop("root"), **found}
        super().__init__({str(label): str(value) for label, value in found.items()})
        if not self.get("prefect.resource.id"):
            raise EventInvalid("resource", "has no `prefect.resource.id`")

    @classmethod
    def model_validate(cls, labels: Mapping[str, Any]) -> Resource:
        return cls(labels)

    @property
    def id(self) -> str:
        return self["prefect.resource.id"]

    @property
    def name(self) -> str | None:
        return self.get("prefect.resource.name")


class RelatedResource(Resource):
    """What an event has to do with besides; ``prefect.resource.role`` says how.

    Raises:
        EventInvalid: that, or its id, is missing.
    """

    def __init__(self, labels: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        super().__init__(labels, **more)
        if not self.get("prefect.resource.role"):
            raise EventInvalid("related", "has no `prefect.resource.role`")

    @property
    def role(self) -> str:
        return self["prefect.resource.role"]


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
    from .event_view import seen

    return seen(
        emit(
            event_type(event), subject=about.id, data=data, time=occurred, id=str(id) if id is not None else None,
            follows=follows,
        )
    )  # fmt: skip


def event_type(written: str) -> str:
    """Return a type Hark takes for a name that may be any text; ``convert_prefect`` makes the same of it in rules."""
    words = [re.sub(r"[^a-z0-9-]+", "-", part.lower()).strip("-") for part in str(written).split(".")]
    return ".".join(word for word in words if word)
