"""What the client asks of the parts that speak to people: alerts, silences, questions of rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ..vocabulary import JsonObject, JsonValue

__all__ = ["Page", "PeopleCalls"]

_PAGE = 1000
"""Items asked for at once where all are wanted: the most the server gives."""


def _part(name: str) -> str:
    return quote(name, safe="")


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {"value": value}


@dataclass(frozen=True, slots=True)
class Page:
    """Some items of a listing and the cursor of the next page, None at the end."""

    items: list[JsonObject]
    next: str | None


class PeopleCalls:
    """Alerts, silences and approvals; ``Hark`` has these methods."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: JsonValue = None,
        timeout_s: float | None = None,
    ) -> Any:
        """Return the JSON of one answer."""
        raise NotImplementedError

    async def _get(self, path: str, **params: Any) -> Any:
        raise NotImplementedError

    async def _page(self, path: str, **params: Any) -> Page:
        value = await self._get(path, **params)
        return Page(value["items"], value.get("next_cursor"))

    async def _all(
        self, path: str, *, page: int | None = None, most: int | None = None, **params: Any
    ) -> list[JsonObject]:
        """Return every item of a listing, or the first ``most``, by pages of ``page`` items (default: as many as most
        listings give).
        """
        items: list[JsonObject] = []
        cursor: str | None = None
        while True:
            size = page or _PAGE
            if most is not None:
                size = min(size, most - len(items))
            value = await self._get(path, **params, limit=size, cursor=cursor)
            items += value["items"]
            cursor = value["next_cursor"]
            if cursor is None or len(items) == most:
                return items

    async def raise_alert(self, title: str, **fields: JsonValue) -> JsonObject:
        """Raise an alert for the routing tree, or end one: ``body, severity, labels, alert, resolved, key, attach``."""
        return _object(await self.request("POST", "/api/alerts", json={"title": title, **fields}))

    async def alerts(self) -> list[JsonObject]:
        """List open incidents, oldest first."""
        return await self._all("/api/alerts")

    async def alert(self, incident: str) -> JsonObject:
        return _object(await self._get(f"/api/alerts/{_part(incident)}"))

    async def acknowledge(self, incident: str, *, by: str = "", note: str = "") -> JsonObject:
        """Take on an incident: it is not repeated and not escalated until something new comes."""
        body: JsonObject = {"by": by, "note": note}
        return _object(await self.request("POST", f"/api/alerts/{_part(incident)}/ack", json=body))

    async def silences(self, *, expired: bool = False) -> list[JsonObject]:
        return await self._all("/api/silences", expired=expired)

    async def silence(self, id: str) -> JsonObject:
        return _object(await self._get(f"/api/silences/{_part(id)}"))

    async def add_silence(self, body: JsonObject) -> JsonObject:
        """Make a silence: ``match`` or ``matchers``, ``for`` or ``ends_at``, ``starts_at, created_by, comment``."""
        return _object(await self.request("POST", "/api/silences", json=body))

    async def expire_silence(self, id: str) -> JsonObject:
        return _object(await self.request("POST", f"/api/silences/{_part(id)}/expire", json={}))

    async def approvals(self) -> list[JsonObject]:
        """List questions that rules ask: those open, and those that ended lately, the newest first."""
        return await self._all("/api/approvals")

    async def answer_approval(self, id: str, answer: str, *, by: str = "") -> JsonObject:
        """Answer a question with ``yes`` or ``no``; the first answer counts. ``id``: or the beginning of one."""
        return _object(
            await self.request("POST", f"/api/approvals/{quote(id)}", json={"answer": answer, "by": by})
        )
