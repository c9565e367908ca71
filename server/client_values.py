"""The part of ``Hark`` that is about named things kept beside the code: variables, secrets, limits, access keys."""

from __future__ import annotations

from ..vocabulary import JsonObject, JsonValue
from .client_people import PeopleCalls, _object, _part

__all__ = ["ValueCalls"]


class ValueCalls(PeopleCalls):
    """Variables, secrets, limits and keys; ``Hark`` has these methods."""

    async def variables(self) -> list[JsonObject]:
        return await self._all("/api/variables")

    async def variable(self, name: str) -> JsonValue:
        value: JsonValue = (await self._get(f"/api/variables/{_part(name)}"))["value"]
        return value

    async def set_variable(self, name: str, value: JsonValue) -> None:
        await self.request("PUT", f"/api/variables/{_part(name)}", json={"value": value})

    async def remove_variable(self, name: str) -> None:
        await self.request("DELETE", f"/api/variables/{_part(name)}")

    async def secrets(self) -> list[str]:
        """Return the names; values never leave the server."""
        return [str(i["name"]) for i in await self._all("/api/secrets")]

    async def set_secret(self, name: str, value: str) -> None:
        await self.request("PUT", f"/api/secrets/{_part(name)}", json={"value": value})

    async def remove_secret(self, name: str) -> None:
        await self.request("DELETE", f"/api/secrets/{_part(name)}")

    # --- limits ----------------------------------------------------------------------------------------

    async def limits(self) -> list[JsonObject]:
        """List limits; those of slots say how many are ``occupied`` and how many calls are ``waiting``."""
        return await self._all("/api/limits")

    async def limit(self, name: str) -> JsonObject:
        """Return one limit; ``line`` is who holds slots and who waits, in order."""
        return _object(await self._get(f"/api/limits/{_part(name)}"))

    async def create_limit(self, name: str, **fields: JsonValue) -> JsonObject:
        """Make a limit: ``slots=4`` or ``rate="100/m"``, with ``slot_decay_per_second``, ``active``."""
        return _object(await self.request("POST", f"/api/limits/{_part(name)}", json=fields))

    async def set_limit(self, name: str, **fields: JsonValue) -> JsonObject:
        """Make a limit, or put another in its place; the fields are those of ``create_limit``."""
        return _object(await self.request("PUT", f"/api/limits/{_part(name)}", json=fields))

    async def remove_limit(self, name: str) -> None:
        await self.request("DELETE", f"/api/limits/{_part(name)}")

    async def reset_limit(self, name: str) -> JsonObject:
        """Take every slot from whoever has it; ``removed`` says how many tickets there were."""
        return _object(await self.request("POST", f"/api/limits/{_part(name)}/reset"))

    # --- blocks and artifacts --------------------------------------------------------------------------

    async def blocks(self, *, type: str | None = None) -> list[JsonObject]:
        """List blocks by ``type`` and ``name``; what is in them is not shown here."""
        return await self._all("/api/blocks", type=type)

    async def block(self, type: str, name: str) -> JsonObject:
        """Return one block; secrets among its ``fields`` are masked."""
        return _object(await self._get(f"/api/blocks/{_part(type)}/{_part(name)}"))

    async def remove_block(self, type: str, name: str) -> None:
        await self.request("DELETE", f"/api/blocks/{_part(type)}/{_part(name)}")

    async def artifact(self, key_or_id: str) -> JsonObject:
        """Return one artifact as it is now; ``data`` is its content."""
        return _object(await self._get(f"/api/artifacts/{_part(key_or_id)}"))

    # --- keys ------------------------------------------------------------------------------------------

    async def keys(self) -> list[JsonObject]:
        return await self._all("/api/keys")

    async def create_key(self, name: str) -> JsonObject:
        """Make an access key; the answer's ``token`` is shown this once."""
        return _object(await self.request("POST", "/api/keys", json={"name": name}))

    async def revoke_key(self, id_or_name: str) -> JsonObject:
        return _object(await self.request("DELETE", f"/api/keys/{_part(id_or_name)}"))
