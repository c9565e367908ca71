"""Values too large for the key they belong to: each put under a name of its own, and removed when nothing names it.

For a key that only a leader writes. A new object never takes the place of one, so whoever writes it (also a leader that
has been deposed and does not know) cannot harm what the key names. Which objects there are is noted before each is put,
in the key's own bucket, so that a successor finds those a crash has left.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import anyio
import orjson

from ..errors import BusUnavailable, HarkError
from ..vocabulary import new_id
from .bucket import Bucket
from .objects import Objects

__all__ = ["LargeValues", "on_hold"]

log = logging.getLogger(__name__)


HOLD = "backup.hold"
"""The key that says that a backup copies keys and objects one after the other: what the first named has to stay."""
HOLD_S = 3600.0
"""So long a hold stands that nobody ends, because its process was killed."""


async def is_on_hold(bucket: Bucket) -> bool:
    """Return whether no large value of the bucket's keys may be removed now."""
    entry = await bucket.get(HOLD)
    return entry is not None and (datetime.now(UTC) - entry.created_at).total_seconds() < HOLD_S


@asynccontextmanager
async def on_hold(bucket: Bucket, *, message_ttl: bool) -> AsyncGenerator[None]:
    """Keep every large value that a key of the bucket names on entering, or later, while inside."""
    await bucket.put(HOLD, b"{}", ttl_s=HOLD_S if message_ttl else None)
    try:
        yield
    finally:
        # Should the broker be away, the hold ends by itself.
        with anyio.CancelScope(shield=True), suppress(BusUnavailable):
            await bucket.delete(HOLD)


class LargeValues:
    """The large values of one owner.

    Args:
        bucket: where each process notes its objects, under ``<owner>.objects.``.
    """

    def __init__(self, bucket: Bucket, objects: Objects, *, owner: str) -> None:
        self._bucket, self._objects = bucket, objects
        self._names, self._notes = f"{bucket.name}/{owner}-", f"{owner}.objects."
        self._note = self._notes + new_id()
        self._known: set[str] = set()

    async def put(self, data: bytes) -> str:
        """Store a value and return the name of its object, used by no other."""
        name = self._names + new_id()
        self._known.add(name)
        await self._bucket.put(self._note, orjson.dumps(sorted(self._known)))
        await self._objects.put(name, data, keep=True)
        return name

    async def settle(self, live: Iterable[str]) -> None:
        """Remove what we have put or found and is not ``live``, once what names the live ones is stored.

        What cannot be removed now is tried again the next time.
        """
        kept = set(live)
        gone = self._known - kept
        if gone and await is_on_hold(self._bucket):
            return
        for name in gone:
            try:
                await self._objects.delete(name)
            except HarkError as exc:
                log.debug("bus.large_value_left", extra={"object": name, "error": str(exc)})
                return
            self._known.discard(name)

    async def sweep(self, live: Iterable[str]) -> None:
        """Remove what predecessors have left, but for ``live``. For whoever has just made sure that he alone writes."""
        kept = set(live)
        self._known |= kept
        notes = await self._bucket.entries(self._notes)
        for note in notes:
            self._known |= set(orjson.loads(note.value))
        if notes:
            await self._bucket.put(self._note, orjson.dumps(sorted(self._known)))
            for note in notes:
                if note.key != self._note:
                    await self._bucket.delete(note.key)
        await self.settle(kept)
