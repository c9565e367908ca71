"""Where the rule engine's state is put down, so that a restart folds seconds of history and not all of it.

One key of the bucket ``checkpoints``, written under guard: each write names the one before, so a leader that has been
deposed cannot write over its successor. Definitions and state are stored apart, because definitions change rarely; the
state comes in parts, while it is being taken. What is large goes to the object store, each time under a new name, so
that nothing the key names is ever written over.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import AsyncIterable
from contextlib import suppress
from dataclasses import dataclass

import anyio.lowlevel
import orjson
from anyio import to_thread

from ...bus import Bus
from ...bus.candidate import Deposed
from ...bus.large_value import LargeValues
from ...errors import BusUnavailable, GuardFailed, ObjectCorrupt, UnknownName
from ...vocabulary import JsonObject, JsonValue
from .catching_up import note_begun, note_caught_up
from .fold import Fold, FoldConfig
from .heap import give_back

__all__ = ["Checkpoints", "Restored"]

log = logging.getLogger(__name__)

KEY = "automations.state"
_INLINE_BYTES = 128 * 1024
_MANY_PARTS = 4
"""Of 2 MB: from here on the state is large enough for the memory that taking it needed to matter."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A fold as it was put down, and the log it belongs to."""

    fold: Fold
    incarnation: str


class Checkpoints:
    """Reads and writes the one checkpoint. ``take_over`` first."""

    def __init__(self, bus: Bus, config: FoldConfig) -> None:
        self._bus, self._config = bus, config
        self._bucket = bus.bucket("checkpoints")
        self._large = LargeValues(self._bucket, bus.objects, owner=KEY)
        self._revision = 0
        self._turn = 0
        self._definitions: tuple[int, JsonValue] | None = None

    async def take_over(self) -> Restored | None:
        """Return what the last leader put down, having made sure that it cannot write any more; None if nothing.

        A checkpoint that cannot be read is said in the log and counts as none.
        """
        entry, self._revision = await self._bucket.take_over(KEY, empty=b"{}")
        await note_begun(self._bus)
        if entry is None:
            await self._large.sweep(())
            return None
        try:
            head = orjson.loads(entry.value)
            self._turn = int(head.get("turn", 0))
            await self._large.sweep(_objects_of(head))
            if not head.get("state"):
                return None
            fold = Fold.defined(await self._unpack(head["definitions"]), self._config)
            parts = head["state"]
            for part in parts if isinstance(parts, list) else [parts]:
                fold.take_up(await self._unpack(part))
                await (
                    anyio.lowlevel.checkpoint()
                )  # a million keys take seconds, and the lease must be kept meanwhile
            fold.wind_up()
            if isinstance(parts, list) and len(parts) >= _MANY_PARTS:
                await give_back()
            self._definitions = (fold.generation, head["definitions"])
            return Restored(fold, str(head["incarnation"]))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zlib.error,
            UnknownName,
            ObjectCorrupt,
        ) as exc:
            log.error("automations.checkpoint_unreadable", extra={"error": repr(exc)})
            return None

    async def settled(self) -> None:
        """Note that this term has caught up."""
        with suppress(BusUnavailable):
            await note_caught_up(self._bus)

    async def write(
        self,
        *,
        generation: int,
        definitions: bytes | None,
        state: AsyncIterable[bytes],
        incarnation: str,
    ) -> None:
        """Put a state down.

        Args:
            generation: of the definitions; ``definitions`` are only stored when it has changed.
            state: its parts.
        Raises:
            Deposed: somebody else has written since we last did.
        """
        self._turn += 1
        if self._definitions is None or self._definitions[0] != generation:
            assert definitions is not None
            self._definitions = (generation, await self._pack(definitions))
        parts: list[JsonValue] = []
        inline_bytes = 0
        async for part in state:
            packed = await self._pack(part, room_bytes=_INLINE_BYTES - inline_bytes)
            inline_bytes += len(str(packed.get("inline", "")))
            parts.append(packed)
        head: JsonObject = {
            "turn": self._turn, "incarnation": incarnation, "definitions": self._definitions[1], "state": parts,
        }  # fmt: skip
        try:
            self._revision = await self._bucket.update(KEY, orjson.dumps(head), revision=self._revision)
        except GuardFailed as exc:
            raise Deposed("another rule engine has taken over the checkpoint") from exc
        await self._large.settle(_objects_of(head))
        if len(parts) >= _MANY_PARTS:
            await give_back()

    def needs_definitions(self, generation: int) -> bool:
        """Return whether the next ``write`` has to be given the definitions."""
        return self._definitions is None or self._definitions[0] != generation

    async def _pack(self, raw: bytes, *, room_bytes: int | None = None) -> JsonObject:
        """Return where the packed bytes stand: in the key itself if they fit into the room there is, else an object."""
        room_bytes = _INLINE_BYTES if room_bytes is None else room_bytes
        # Not in the loop that decides, unless it is next to nothing.
        packed = (
            await to_thread.run_sync(zlib.compress, raw, 1)
            if len(raw) > _INLINE_BYTES
            else zlib.compress(raw, 1)
        )
        if len(packed) <= room_bytes:
            return {"inline": base64.b64encode(packed).decode()}
        return {"object": await self._large.put(packed)}

    async def _unpack(self, where: JsonObject) -> bytes:
        if "inline" in where:
            return zlib.decompress(base64.b64decode(str(where["inline"])))
        packed = await self._bus.objects.get(str(where["object"]))
        return await to_thread.run_sync(zlib.decompress, packed)


def _objects_of(head: JsonObject) -> list[str]:
    """Return the names of the objects a checkpoint consists of."""
    state = head.get("state")
    parts = [head.get("definitions"), *(state if isinstance(state, list) else [state])]
    return [str(part["object"]) for part in parts if isinstance(part, dict) and "object" in part]
