"""Where the state of the router is put down: before a message goes out, so that none is lost or sent twice.

One key of the bucket ``checkpoints``, each write guarded by the one before: a router that was deposed cannot write, and
therefore cannot send. The API reads the same key; nobody asks the router.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import orjson

from ..errors import AlreadyHeld, GuardFailed, ObjectCorrupt, RefusedError, UnknownName
from ..vocabulary import JsonObject, JsonValue
from .group import Send

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["Deposed", "RouterState", "StateStore", "read_state", "wait_for_state"]

log = logging.getLogger(__name__)

KEY = "notifications.state"
_INLINE_BYTES = 128 * 1024


class Deposed(RefusedError):
    """Another router leads now: a guarded write of ours was refused."""


@dataclass(frozen=True, slots=True)
class RouterState:
    """What was put down.

    Attributes:
        seq: the last fact that is in it; incarnation: of the log that counts so.
        fold: as ``Grouping.dump`` gives it; pending: messages decided and not yet known to be sent.
    """

    incarnation: str
    seq: int
    fold: JsonObject
    pending: tuple[Send, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)


class StateStore:
    """Reads and writes the one checkpoint. ``take_over`` first."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._bucket = bus, bus.bucket("checkpoints")
        self._revision = self._turn = 0

    async def take_over(self) -> RouterState | None:
        """Return what the last leader put down, having made sure that it cannot write any more; None if nothing."""
        while True:
            entry = await self._bucket.get(KEY)
            try:
                if entry is None:
                    self._revision = await self._bucket.create(KEY, b"{}")
                    return None
                self._revision = await self._bucket.update(KEY, entry.value, revision=entry.revision)
                break
            except (GuardFailed, AlreadyHeld):
                continue  # its owner wrote at this very moment
        try:
            self._turn = int(orjson.loads(entry.value).get("turn", 0))
            return await _read(self._bus, entry.value)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zlib.error,
            UnknownName,
            ObjectCorrupt,
        ) as exc:
            log.error("notifications.checkpoint_unreadable", extra={"error": repr(exc)})
            return None

    async def write(self, state: RouterState) -> None:
        """Put a state down.

        Raises:
            Deposed: somebody else has written since we last did.
        """
        self._turn += 1
        raw = orjson.dumps({"fold": state.fold, "pending": [s.to_json() for s in state.pending]})
        packed = zlib.compress(raw, 1)
        where: JsonObject = {"inline": base64.b64encode(packed).decode()}
        if len(packed) > _INLINE_BYTES:
            # Two names in turn: a crash halfway leaves the last whole one.
            name = f"checkpoints/notifications-{self._turn % 2}"
            await self._bus.objects.put(name, packed, keep=True)
            where = {"object": name}
        head: JsonObject = {
            "turn": self._turn, "incarnation": state.incarnation, "seq": state.seq, "state": where,
            "errors": dict(state.errors),
        }  # fmt: skip
        try:
            self._revision = await self._bucket.update(KEY, orjson.dumps(head), revision=self._revision)
        except GuardFailed as exc:
            raise Deposed("another router has taken over the checkpoint") from exc


async def _read(bus: Bus, raw: bytes) -> RouterState | None:
    head: Any = orjson.loads(raw)
    where: JsonValue = head.get("state")
    if not isinstance(where, dict):
        return None
    if "inline" in where:
        packed = base64.b64decode(str(where["inline"]))
    else:
        packed = await bus.objects.get(str(where["object"]))
    value = orjson.loads(zlib.decompress(packed))
    pending = tuple(Send.from_json(s) for s in value["pending"])
    return RouterState(
        str(head["incarnation"]), int(head["seq"]), value["fold"], pending, head.get("errors") or {}
    )


async def read_state(bus: Bus) -> RouterState | None:
    """Return what the router last put down, at most a moment old; None if none ever ran."""
    entry = await bus.bucket("checkpoints").get(KEY)
    try:
        return await _read(bus, entry.value) if entry is not None else None
    except (UnknownName, ObjectCorrupt):
        # Written over while we were reading: the newer one is whole.
        entry = await bus.bucket("checkpoints").get(KEY)
        return await _read(bus, entry.value) if entry is not None else None


async def wait_for_state(bus: Bus, *, seq: int, timeout_s: float = 5.0) -> RouterState | None:
    """Return the state once it has the fact ``seq`` in it, or what there is after ``timeout_s``."""
    with anyio.move_on_after(timeout_s):
        async with bus.bucket("checkpoints").watch(KEY) as changes:
            async for entry in changes:
                if entry.key == KEY and int(orjson.loads(entry.value).get("seq", 0)) >= seq:
                    break
    return await read_state(bus)
