"""An event with the words that Prefect has for what is in it: ``event``, ``resource``, ``related``, ``payload``, …"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from ..bus.event import Event as Plain
from .event_resource import RelatedResource, Resource, event_type

__all__ = ["Event", "seen"]

SOURCE = "/hark/python"


class Event(Plain):
    """An event, read by Prefect's names. ``emit_event`` gives it; made by itself, it has not been emitted."""

    def __init__(
        self,
        *,
        event: str,
        resource: Mapping[str, str],
        occurred: datetime | None = None,
        related: Iterable[Mapping[str, str]] = (),
        payload: Mapping[str, Any] | None = None,
        id: object = None,
        follows: object = None,
    ) -> None:
        about = Resource(resource)
        labels = {label: value for label, value in about.items() if label != "prefect.resource.id"}
        others = [dict(RelatedResource(one)) for one in related]
        data: dict[str, Any] = {**(payload or {})}
        if labels:
            data["resource"] = labels
        if others:
            data["related"] = others
        super().__init__(
            type=event_type(event), source=SOURCE, subject=about.id, time=occurred, id=str(id) if id is not None else None,
            data=data,
            causationid=str(follows) if follows is not None else None,
        )  # fmt: skip

    @property
    def event(self) -> str:
        """What has happened: its type."""
        return self.type

    @property
    def occurred(self) -> datetime:
        return self.time

    @property
    def follows(self) -> str | None:
        """The id of the event that led to it."""
        return self.causationid

    @property
    def payload(self) -> dict[str, Any]:
        """Its data, but for the labels of resources."""
        return {name: value for name, value in self._data().items() if name not in ("resource", "related")}

    @property
    def resource(self) -> Resource:
        """What it is about."""
        labels = self._data().get("resource")
        return Resource({"prefect.resource.id": self.subject, **(labels if isinstance(labels, dict) else {})})

    @property
    def related(self) -> list[RelatedResource]:
        """What else it has to do with."""
        others = self._data().get("related")
        return (
            [RelatedResource(one) for one in others if isinstance(one, dict)]
            if isinstance(others, list)
            else []
        )

    @property
    def involved_resources(self) -> list[Resource]:
        return [self.resource, *self.related]

    @property
    def resource_in_role(self) -> dict[str, RelatedResource]:
        """By role, the first in it."""
        return {one.role: one for one in reversed(self.related)}

    @property
    def resources_in_role(self) -> dict[str, list[RelatedResource]]:
        """By role, all in it; of a role that is not there, none."""
        found: dict[str, list[RelatedResource]] = defaultdict(list)
        for one in self.related:
            found[one.role].append(one)
        return found

    def find_resource_label(self, label: str) -> str | None:
        """Return a label of the resource, or as ``related:role:label`` of the first in a role that has it."""
        where, _, rest = label.partition(":")
        role, _, name = rest.partition(":")
        if where == "related" and name:
            return next((one[name] for one in self.resources_in_role.get(role, ()) if name in one), None)
        return self.resource.get(label)

    def _data(self) -> dict[str, Any]:
        return self.data if isinstance(self.data, dict) else {}


def seen(event: Plain) -> Event:
    """Return the same event to be read by Prefect's names."""
    made = Event.__new__(Event)
    for field in fields(event):
        object.__setattr__(made, field.name, getattr(event, field.name))
    return made
