"""What an event is about, and has to do with, in Prefect's words: labels with an id, and a type made of any text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import EventInvalid

__all__ = ["RelatedResource", "Resource", "event_type"]


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


def event_type(written: str) -> str:
    """Return a type Hark takes for a name that may be any text; ``convert_prefect`` makes the same of it in rules."""
    words = [re.sub(r"[^a-z0-9-]+", "-", part.lower()).strip("-") for part in str(written).split(".")]
    return ".".join(word for word in words if word)
