"""Change events of definitions, derived from the buckets' own revisions: one leader watches and appends.

The events are never a second write of the change: their ids come from the bucket and the revision
(``deployments-17``), so deriving them again gives the same events. What the leader has told so far is kept in the
bucket ``checkpoints``, so that a change made while nobody led is told by the next leader.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

import anyio
import orjson
from anyio import AsyncContextManagerMixin

from ..bus.event import Event
from ..clock import SYSTEM_CLOCK, Clock
from ..engine.limits.limit import name_of
from ..errors import EventInvalid, EventTooLarge, GuardFailed, UnavailableError
from ..vocabulary import JsonObject, JsonValue

if TYPE_CHECKING:
    from ..bus import Bus, Entry

__all__ = ["SOURCE", "WORDS", "DefinitionsFeed", "Seen", "change_event"]

log = logging.getLogger("hark.definitions")

SOURCE = "/hark/definitions"
WORDS: Mapping[str, str] = {
    "deployments": "deployment", "schedules": "schedule", "automations": "automation", "webhooks": "webhook",
    "pools": "work-pool", "limits": "limit", "variables": "variable",
    "blocks": "block", "channels": "hark.channel", "silences": "hark.silence",
    "sources": "hark.source", "sinks": "hark.sink",
}  # fmt: skip
"""From a bucket to the first word (or words) of its events' types."""
_HIDDEN = frozenset({"variables", "blocks", "channels"})
"""Buckets whose values may hold what nobody should read in an event."""
_SECRET = frozenset({
    ("webhooks", "verify"), ("sinks", "secret"), ("sinks", "headers"), ("sinks", "url"),
})  # fmt: skip
"""Parts of others in which somebody may have written out a secret."""
_MAX_DATA_BYTES = 64 << 10
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last told of a key: its revision, and whether it was paused."""

    revision: int
    paused: bool


def change_event(bucket: str, entry: Entry, before: Seen | None, *, gone: bool = False) -> Event | None:
    """Return the event a change of a bucket is told by; None when there is nothing new to tell.

    Args:
        before: what was told of this key so far, None if it is new.
        gone: the key is no longer there and its marker has not been seen; ``entry`` is what was known of it.
    """
    if before is not None and entry.revision <= before.revision and not gone:
        return None
    if (entry.deleted or gone) and before is None:
        return None
    value: JsonValue = None
    if not entry.deleted and not gone:
        try:
            value = orjson.loads(entry.value)
        except orjson.JSONDecodeError:
            value = None
    paused = bool(value.get("paused")) if isinstance(value, dict) else False
    if entry.deleted or gone:
        word = "deleted"
    elif before is None:
        # A pool is there before anybody writes it down, so writing it down paused is pausing it.
        word = "paused" if bucket == "pools" and paused else "created"
    elif before.paused != paused:
        word = "paused" if paused else "resumed"
    else:
        word = "expired" if bucket == "silences" and _is_over(value, entry.created_at) else "updated"
    name = name_of(entry.key) if bucket == "limits" else entry.key
    data: JsonObject = {"name": name, "bucket": bucket, "revision": entry.revision}
    if isinstance(value, dict) and bucket not in _HIDDEN and len(entry.value) <= _MAX_DATA_BYTES:
        data["definition"] = {k: v for k, v in value.items() if (bucket, k) not in _SECRET}
    kind = WORDS[bucket]
    return Event(
        type=f"{kind}.{word}", source=SOURCE, id=f"{bucket}-{entry.revision}" + ("-gone" if gone else ""),
        subject=f"{kind.removeprefix('hark.')}/{name}", time=entry.created_at, data=data,
    )  # fmt: skip


def _is_over(silence: JsonValue, at: datetime) -> bool:
    ends_at = silence.get("ends_at") if isinstance(silence, dict) else None
    try:
        return isinstance(ends_at, str) and datetime.fromisoformat(ends_at) <= at
    except ValueError:
        return False


def seen_after(entry: Entry) -> Seen | None:
    """Return what is known of a key once its change has been told."""
    if entry.deleted:
        return None
    try:
        value = orjson.loads(entry.value)
    except orjson.JSONDecodeError:
        value = None
    return Seen(entry.revision, bool(value.get("paused")) if isinstance(value, dict) else False)


class DefinitionsFeed(AsyncContextManagerMixin):
    """Tells changes of definitions while it leads; stands by while another does."""

    def __init__(self, bus: Bus, *, holder: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus, self._holder, self._clock = bus, holder, clock

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._lead)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel("definitions closing")

    async def _lead(self) -> None:
        while True:
            try:
                async with (
                    self._bus.lease("definitions", holder=self._holder).held(),
                    anyio.create_task_group() as tg,
                ):
                    for bucket in WORDS:
                        tg.start_soon(self._watch, bucket)
            except* (UnavailableError, GuardFailed) as group:
                log.warning("definitions.again", extra={"error": str(group.exceptions[0])})
            await self._clock.sleep(_AGAIN_S)

    async def _watch(self, bucket: str) -> None:
        checkpoint = _Checkpoint(self._bus, bucket)
        known = await checkpoint.load()
        now: set[str] = set()
        history = True
        async with self._bus.bucket(bucket).watch() as changes:
            async for entry in changes:
                if entry.key == "":
                    history = False
                    for key in known.keys() - now:
                        await self._tell(bucket, _gone(key, known[key], self._clock.now()), known, gone=True)
                    await checkpoint.save(known)
                    continue
                now.add(entry.key)
                if await self._tell(bucket, entry, known) and not history:
                    await checkpoint.save(known)

    async def _tell(self, bucket: str, entry: Entry, known: dict[str, Seen], *, gone: bool = False) -> bool:
        event = change_event(bucket, entry, known.get(entry.key), gone=gone)
        if event is None:
            return False
        try:
            await self._bus.log.append(event)
        except (EventTooLarge, EventInvalid) as exc:
            log.error("definitions.not_told", extra={"bucket": bucket, "key": entry.key, "error": str(exc)})
        seen = None if gone else seen_after(entry)
        if seen is None:
            known.pop(entry.key, None)
        else:
            known[entry.key] = seen
        return True


def _gone(key: str, seen: Seen, now: datetime) -> Entry:
    from ..bus import Entry

    return Entry(key, b"", seen.revision, now, deleted=True)


class _Checkpoint:
    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bucket, self._key = bus.bucket("checkpoints"), f"definitions/{bucket}"
        self._saved: bytes = b""

    async def load(self) -> dict[str, Seen]:
        entry = await self._bucket.get(self._key)
        if entry is None:
            return {}
        self._saved = entry.value
        return {
            key: Seen(revision, bool(paused)) for key, (revision, paused) in orjson.loads(entry.value).items()
        }

    async def save(self, known: Mapping[str, Seen]) -> None:
        raw = orjson.dumps({key: [seen.revision, int(seen.paused)] for key, seen in known.items()})
        if raw != self._saved:
            await self._bucket.put(self._key, raw)
            self._saved = raw
