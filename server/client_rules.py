"""The part of ``Hark`` that is about rules: what they are, what they did or would do, and what failed for good."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ..vocabulary import JsonObject, JsonValue
from .client_people import Page, _object, _part
from .client_values import ValueCalls

if TYPE_CHECKING:
    from ..automations.model import Automation

__all__ = ["RuleCalls"]


class RuleCalls(ValueCalls):
    """Rules and dead letters; ``Hark`` has these methods."""

    async def automations(self) -> list[JsonObject]:
        return await self._all("/api/automations")

    async def save_automation(self, rule: Automation) -> JsonObject:
        """Make a rule live, or change it."""
        path = f"/api/automations/{_part(rule.name)}"
        return _object(await self.request("PUT", path, json=rule.to_json()))

    async def delete_automation(self, name: str) -> JsonObject:
        """Take a rule away."""
        return _object(await self.request("DELETE", f"/api/automations/{_part(name)}"))

    async def backtest(self, body: JsonObject) -> JsonObject:
        """Return what rules would have done: ``automation`` (a name) or ``rules`` (by name), ``since``, ``until``, ``limit``."""
        path = "/api/automations/backtest"
        return _object(await self.request("POST", path, json=body, timeout_s=330))

    async def explain(self, body: JsonObject) -> JsonObject:
        """Return why rules acted on an event: ``event`` (id or sequence), and ``automation`` for one rule only."""
        return _object(await self.request("POST", "/api/automations/explain", json=body, timeout_s=90))

    async def automation(self, name: str) -> JsonObject:
        return _object(await self._get(f"/api/automations/{_part(name)}"))

    async def automation_definition(self, name: str) -> JsonObject:
        """Return a rule as it is stored."""
        return _object(await self._get(f"/api/automations/{_part(name)}/definition"))

    async def firing(self, automation: str, firing_id: str) -> JsonObject:
        """Return what led to a firing, what became of its actions, and the runs it started."""
        return _object(await self._get(f"/api/automations/{_part(automation)}/firings/{_part(firing_id)}"))

    # --- dead letters ----------------------------------------------------------------------------------

    async def dead_letters(self, **filters: Any) -> Page:
        return await self._page("/api/dlq", **filters)

    async def all_dead_letters(self, *, automation: str | None = None) -> list[JsonObject]:
        """Return every dead letter (of one rule), newest first."""
        return await self._all("/api/dlq", automation=automation)

    async def dead_letter(self, id: str) -> JsonObject:
        return _object(await self._get(f"/api/dlq/{_part(id)}"))

    async def redrive(self, id: str) -> JsonObject:
        return _object(await self.request("POST", f"/api/dlq/{_part(id)}/redrive"))

    async def drop(self, id: str) -> JsonObject:
        return _object(await self.request("POST", f"/api/dlq/{_part(id)}/drop"))

    def redrive_all(self, *, automation: str | None = None) -> AsyncIterator[JsonObject]:
        """Try every dead letter (of one rule) again; one that is given up again meanwhile is not tried a second time.

        Yields:
            for each page what the service has done: ``ids``, and ``left``: those it could not, with ``error``.
        """
        return self._see_to_letters("/api/dlq/redrive", automation)

    def drop_all(self, *, automation: str | None = None) -> AsyncIterator[JsonObject]:
        """Give up every dead letter (of one rule); as ``redrive_all``."""
        return self._see_to_letters("/api/dlq/drop", automation)

    async def _see_to_letters(self, path: str, automation: str | None) -> AsyncIterator[JsonObject]:
        cursor: JsonValue = None
        while True:
            asked = {k: v for k, v in (("automation", automation), ("cursor", cursor)) if v is not None}
            page = _object(await self.request("POST", path, params=asked, timeout_s=120))
            yield page
            cursor = page["next_cursor"]
            if cursor is None:
                return
