"""Values too large for the key they belong to: each put under a name of its own, and removed when nothing names it.

For a key that only a leader writes. A new object never takes the place of one, so whoever writes it (also a leader that
has been deposed and does not know) cannot harm what the key names. Which objects there are is noted before each is put,
in the key's own bucket, so that a successor finds those a crash has left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import orjson

from ..errors import HarkError
from ..vocabulary import new_id
from .bucket import Bucket
from .objects import Objects

__all__ = ["LargeValues"]

log = logging.getLogger(__name__)


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
        for name in self._known - kept:
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
