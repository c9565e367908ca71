"""Definitions in their buckets: reading them typed, pausing and resuming them under guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ValidationError

from ..errors import GuardFailed, UnknownName
from ..vocabulary import JsonObject, JsonValue
from .manifest import model_of, stored_form

if TYPE_CHECKING:
    from ..bus import Bus, Entry

__all__ = ["Defined", "all_defined", "one_defined", "set_paused"]

_TRIES = 5


class Defined:
    """One definition: its model, or why it does not load (it stays listed, with the error)."""

    def __init__(self, bucket: str, entry: Entry) -> None:
        self.bucket, self.key, self.revision, self.changed_at = (
            bucket,
            entry.key,
            entry.revision,
            entry.created_at,
        )
        self.error = ""
        self.model: Any = None
        try:
            self.raw: JsonValue = orjson.loads(entry.value)
            model = model_of(bucket)
            if model is not None:
                self.model = model.model_validate(self.raw)
        except orjson.JSONDecodeError as exc:
            self.raw, self.error = None, f"not JSON: {exc}"
        except ValidationError as exc:
            self.error = "; ".join(
                f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in exc.errors()[:5]
            )

    @property
    def fields(self) -> JsonObject:
        """The stored JSON, as an object."""
        return self.raw if isinstance(self.raw, dict) else {}

    def shown(self) -> JsonObject:
        """Return it with its defaults, and with its error if it has one."""
        value: JsonObject = dict(self.fields)
        if isinstance(self.model, BaseModel):
            value = orjson.loads(self.model.model_dump_json(by_alias=True, exclude_none=True))
        return {**value, "error": self.error} if self.error else value


async def all_defined(bus: Bus, bucket: str) -> list[Defined]:
    """Return everything in a bucket, by name."""
    return [Defined(bucket, entry) for entry in await bus.bucket(bucket).entries()]


async def one_defined(bus: Bus, bucket: str, key: str) -> Defined:
    """Return one definition.

    Raises:
        UnknownName: there is none of this name; the message suggests a near one.
    """
    entry = await bus.bucket(bucket).get(key) if _may_be_key(key) else None
    if entry is None:
        raise UnknownName(bucket.removesuffix("s"), key, known=await bus.bucket(bucket).keys())
    return Defined(bucket, entry)


def _may_be_key(key: str) -> bool:
    return bool(key) and all(c.isalnum() or c in "_=/.-" for c in key) and key.isascii() and ".." not in key


async def set_paused(bus: Bus, bucket: str, key: str, paused: bool) -> Defined:
    """Make a definition paused or not; nothing is written when it is so already.

    Raises:
        UnknownName: there is none of this name; GuardFailed: others keep writing it.
    """
    for _ in range(_TRIES):
        found = await one_defined(bus, bucket, key)
        value = dict(found.fields)
        if bool(value.get("paused", False)) == paused:
            return found
        value["paused"] = paused
        model = model_of(bucket)
        stored = stored_form(model.model_validate(value)) if model is not None else value
        try:
            await bus.bucket(bucket).update(key, orjson.dumps(stored), revision=found.revision)
        except GuardFailed:
            continue
        return await one_defined(bus, bucket, key)
    raise GuardFailed(f"{bucket}/{key}", expected=found.revision)
