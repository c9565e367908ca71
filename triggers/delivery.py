"""Remembering deliveries, so that one that is sent again makes no second event, also days later.

A delivery is claimed in the bucket ``deliveries`` before its event is appended, and marked when it is stored. A repeat
that finds the mark is answered from it. One that finds a claim without a mark (two at once, or a process that died
between the two) looks into the log from the moment of the claim, and appends the same event under the same id if
it is not there: the broker recognises the id if the other is appending at this moment.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime

import orjson

from ..bus import Bus
from ..bus.event import Event, readable
from ..bus.subject import subject_of
from ..errors import AlreadyHeld, HarkError, StreamFull

__all__ = ["Deliveries", "Stored"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """The event is in the log. ``is_repeat``: it was there before this delivery; ``seq``: its place, if it was not."""

    id: str
    is_repeat: bool
    seq: int | None = None


class Deliveries:
    """What has been delivered to webhooks. Safe to use from many tasks and processes.

    On a broker that cannot let keys expire (before 2.11), only its own memory of ids remains: two minutes by default.
    """

    def __init__(self, bus: Bus, *, ttl_s: float) -> None:
        self._bus, self._ttl_s = bus, ttl_s

    async def store(self, webhook: str, delivery: str | None, event: Event) -> Stored:
        """Append ``event`` unless its delivery has been stored before.

        Raises:
            UnavailableError: it may be stored or not; the sender should try again, which is safe.
            EventTooLarge, EventRefused, EventInvalid: it is not stored, and never will be.
        """
        if delivery is None or not self._bus.info.message_ttl:
            appended = await self._bus.log.append(event)
            return Stored(event.id, appended.duplicate, None if appended.duplicate else appended.seq)
        key = f"{webhook}/{hashlib.blake2b(delivery.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
        found = await self._claim(key, event)
        if found is not None:
            return Stored(found, True)
        appended = await self._bus.log.append(event)
        await self._mark(key, event)
        return Stored(event.id, appended.duplicate, None if appended.duplicate else appended.seq)

    async def _claim(self, key: str, event: Event) -> str | None:
        """Return the id of the event stored for this delivery before, or None: it is to be appended now."""
        bucket = self._bus.bucket("deliveries")
        try:
            await bucket.create(key, self._value(event, is_stored=False), ttl_s=self._ttl_s)
            return None
        except AlreadyHeld:
            pass
        except StreamFull as exc:
            # The bucket is full: refusing deliveries would be worse than recognising repeats for minutes only.
            log.warning("webhook.deliveries_full", extra={"error": str(exc)})
            return None
        entry = await bucket.get(key)
        if entry is None:
            return None  # it has just expired
        try:
            value = orjson.loads(entry.value)
            id_, is_stored = str(value["id"]), bool(value["stored"])
        except (ValueError, KeyError, TypeError):
            return None
        if is_stored or await self._is_in_log(event, since=entry.created_at):
            return id_
        return None

    async def _is_in_log(self, event: Event, *, since: datetime) -> bool:
        """Return whether the event was appended since its delivery was claimed."""
        async with self._bus.log.read([subject_of(event)], since=since) as batches:
            async for batch in batches:
                for record in readable(batch.records):
                    if record.event.id == event.id and record.event.source == event.source:
                        return True
        return False

    async def _mark(self, key: str, event: Event) -> None:
        try:
            await self._bus.bucket("deliveries").put(
                key, self._value(event, is_stored=True), ttl_s=self._ttl_s
            )
        except HarkError as exc:
            # The event is stored, and that is what was promised; a repeat will look into the log.
            log.warning("webhook.delivery_unmarked", extra={"key": key, "error": str(exc)})

    @staticmethod
    def _value(event: Event, *, is_stored: bool) -> bytes:
        return orjson.dumps({"id": event.id, "stored": is_stored})
