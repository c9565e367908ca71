"""A bucket: small values by key, with revisions, guards and a watch. The layout is that of NATS KV."""

from __future__ import annotations

import base64
import math
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from ..errors import AlreadyHeld, BusUnavailable, DefinitionError, GuardFailed
from ..vocabulary import JsonObject, new_id
from .connection import ApiError, Connection
from .event import Recorded, parse_time
from .feed import Feed
from .streams import BUCKET_PREFIX, MARKER_TTL_S

__all__ = ["Bucket", "Entry"]

_KEY = re.compile(r"[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*")
_WRONG_LAST = (10071, 10164)
_NO_MESSAGE = 10037
_EPOCH = datetime.fromtimestamp(0, UTC)
_TRIES = 3
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and its revision (the place of its last change in the bucket, growing). A deleted one is empty."""

    key: str
    value: bytes
    revision: int
    created_at: datetime
    deleted: bool = False


END_OF_HISTORY = Entry("", b"", 0, _EPOCH)
"""What a watch yields between what was there and what changes."""


def check_key(key: str) -> str:
    """Return ``key`` if a bucket takes it.

    Raises:
        DefinitionError: it has other characters than letters, digits, ``_ = / - .``, or a dot in a wrong place.
    """
    if not _KEY.fullmatch(key):
        raise DefinitionError(
            f"{key!r} is no key", hint="letters, digits, _ = / - and single dots between them; not empty"
        )
    return key


def filter_for(prefix: str) -> str:
    """Return the subject pattern of keys that may begin with ``prefix``: the broker matches whole words only."""
    words = prefix.rpartition(".")[0]
    return f"{words}.>" if words else ">"


def is_marker(headers: Mapping[str, str] | None) -> bool:
    """Return whether a message says that its key is gone (deleted by somebody, or expired)."""
    return headers is not None and (
        headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers
    )


class Bucket:
    """One bucket. Every method raises ``BusUnavailable`` when the broker does not answer in time."""

    def __init__(self, connection: Connection, name: str, *, message_ttl: bool = True) -> None:
        self.name = name
        self._connection = connection
        self._stream = f"KV_{BUCKET_PREFIX}{name}"
        self._prefix = f"$KV.{BUCKET_PREFIX}{name}."
        self._message_ttl = message_ttl

    async def get(self, key: str) -> Entry | None:
        """Return the value of ``key``, or None. Reads what the last completed write left, whoever wrote."""
        found = await self._last(check_key(key))
        return None if found is None or found.deleted else found

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Set ``key`` and return its new revision. ``ttl_s`` (whole seconds, at least 1) lets it expire.

        Raises:
            EventTooLarge: ``value`` is larger than the broker takes.
        """
        return await self._write(check_key(key), value, ttl_s=ttl_s)

    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Set ``key`` only if it does not exist; return its revision.

        Raises:
            AlreadyHeld: it exists.
        """
        expected = 0
        for _ in range(_TRIES):
            try:
                return await self._write(check_key(key), value, expected=expected, ttl_s=ttl_s)
            except GuardFailed:
                found = await self._last(key)
                if found is not None and not found.deleted:
                    break
                # Gone, but a marker stands in its place: write after that one.
                expected = found.revision if found is not None else 0
        raise AlreadyHeld(f"key {key!r} of bucket {self.name}", holder="an earlier write")

    async def update(self, key: str, value: bytes, *, revision: int, ttl_s: float | None = None) -> int:
        """Set ``key`` only if its last revision is ``revision``; return the new one.

        Raises:
            GuardFailed: somebody else wrote (or it expired) since.
        """
        return await self._write(check_key(key), value, expected=revision, ttl_s=ttl_s)

    async def take_over(self, key: str, *, empty: bytes) -> tuple[Entry | None, int]:
        """Make sure that nobody who wrote ``key`` under guard can do so any more.

        It is written again as it is, or made with ``empty``.

        Returns:
            What it held, None if it was not there; and the revision that the next ``update`` has to name.
        """
        while True:
            found = await self.get(key)
            try:
                if found is None:
                    return None, await self.create(key, empty)
                return found, await self.update(key, found.value, revision=found.revision)
            except (GuardFailed, AlreadyHeld):
                continue  # its owner wrote at this very moment

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Remove ``key``; nothing happens if it does not exist. Watchers see an entry with ``deleted``.

        Raises:
            GuardFailed: ``revision`` was given and is not the last one.
        """
        if revision is None:
            found = await self._last(check_key(key))
            if found is None or found.deleted:
                return
        await self._write(check_key(key), b"", expected=revision, marker=True)

    async def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, sorted."""
        return sorted([e.key for e in await self._list(prefix)])

    async def entries(self, prefix: str = "") -> list[Entry]:
        """Return the entries whose keys begin with ``prefix``, sorted by key."""
        return sorted(await self._list(prefix), key=lambda e: e.key)

    def watch(self, prefix: str = "") -> AbstractAsyncContextManager[AsyncIterator[Entry]]:
        """Yield what is there, then an entry with key ``""``, then every change, for as long as it is entered.

        In order of revision; outages are waited out and what changed meanwhile follows. Of several changes of a
        key during an outage only the last is seen. Deletions and expiries come as entries with ``deleted``; those
        that happened more than a day before a process came back from being cut off are not seen.
        """
        return self._watch(prefix)

    # --- doing ----------------------------------------------------------------------------------------

    async def _write(
        self,
        key: str,
        value: bytes,
        *,
        expected: int | None = None,
        ttl_s: float | None = None,
        marker: bool = False,
    ) -> int:
        # The id makes asking again after a broken connection harmless: the broker answers with the first result.
        headers = {"Nats-Msg-Id": new_id()}
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        if marker:
            # Not DEL: when the TTL of that runs out, the broker puts a mark of its own in its place.
            headers["KV-Operation"], headers["Nats-Rollup"] = "PURGE", "sub"
        if self._message_ttl:
            if marker:
                headers["Nats-TTL"] = f"{MARKER_TTL_S}s"
            elif ttl_s is not None:
                headers["Nats-TTL"] = f"{max(1, math.ceil(ttl_s))}s"
        subject = f"{self._prefix}{key}"
        try:
            seq = (await self._connection.insist(subject, value, headers=headers)).get("seq")
        except ApiError as exc:
            if exc.err_code in _WRONG_LAST:
                # A first try whose answer was lost makes the second one wrong: then what stands there is ours.
                last = await self._message(key)
                if last is not None and _headers_in(last).get("Nats-Msg-Id") == headers["Nats-Msg-Id"]:
                    return int(str(last["seq"]))
                raise GuardFailed(subject, expected=expected or 0) from exc
            raise
        if not isinstance(seq, int):
            raise BusUnavailable(f"bucket {self.name} answered a write of {key!r} without its revision")
        return seq

    async def _message(self, key: str) -> JsonObject | None:
        """Return the last message of a key as the API gives it. The stream's leader answers, never a copy behind it."""
        try:
            answer = await self._connection.api(
                f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": f"{self._prefix}{key}"}
            )
        except ApiError as exc:
            if exc.err_code == _NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        assert isinstance(message, dict)
        return message

    async def _last(self, key: str) -> Entry | None:
        """Return the last entry of a key, deleted or not."""
        message = await self._message(key)
        if message is None:
            return None
        headers = _headers_in(message)
        deleted = is_marker(headers)
        seq = message["seq"]
        assert isinstance(seq, int)
        return Entry(
            key=key,
            value=b"" if deleted else base64.b64decode(str(message.get("data", ""))),
            revision=seq,
            created_at=parse_time(str(message["time"])),
            deleted=deleted,
        )

    async def _list(self, prefix: str) -> list[Entry]:
        feed = self._feed(prefix, live=False)
        found: dict[str, Entry] = {}
        try:
            await feed.start()
            async for batch in feed:
                for record in batch.records:
                    entry = self._entry(record)
                    if entry.deleted:
                        found.pop(entry.key, None)
                    elif entry.key.startswith(prefix):
                        found[entry.key] = entry
        finally:
            await feed.close()
        return list(found.values())

    def _feed(self, prefix: str, *, live: bool) -> Feed:
        return Feed(
            self._connection,
            self._connection.config,
            stream=self._stream,
            filters=[f"{self._prefix}{filter_for(prefix)}"],
            after=0,
            since=None,
            batch=_BATCH,
            live=live,
        )

    def _entry(self, record: Recorded) -> Entry:
        deleted = is_marker(record.headers)
        return Entry(
            key=record.subject[len(self._prefix) :],
            value=b"" if deleted else record.raw,
            revision=record.seq,
            created_at=record.recorded_at,
            deleted=deleted,
        )

    @asynccontextmanager
    async def _watch(self, prefix: str) -> AsyncGenerator[AsyncIterator[Entry], None]:
        feed = self._feed(prefix, live=True)
        try:
            await feed.start()
            yield _Changes(feed, self._entry, prefix)
        finally:
            await feed.close()


class _Changes:
    """The entries of a watch. Not a generator, so that giving up waiting for the next one does not end it."""

    def __init__(self, feed: Feed, entry: Callable[[Recorded], Entry], prefix: str) -> None:
        self._feed, self._entry, self._prefix = feed, entry, prefix
        self._ready: deque[Entry] = deque()
        self._in_history = True
        self._told: set[str] = set()
        """Keys that were there, until what is there has been told."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        while not self._ready:
            batch = await anext(self._feed)
            entries = map(self._entry, batch.records)
            self._ready.extend(e for e in entries if e.key.startswith(self._prefix) and self._is_news(e))
            if self._in_history and batch.pending == 0:
                self._in_history = False
                self._told.clear()
                self._ready.append(END_OF_HISTORY)
        return self._ready.popleft()

    def _is_news(self, entry: Entry) -> bool:
        """Whether a change is passed on: all are, but deletions from before the watch."""
        if not self._in_history:
            return True
        if not entry.deleted:
            self._told.add(entry.key)
            return True
        # Deleted while what is there is being told: who has been told of it must hear that it is gone.
        return entry.key in self._told


def read_headers(raw: bytes) -> dict[str, str]:
    """Return the headers in a NATS header block; empty for an empty one."""
    out = {}
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            out[name.decode()] = value.strip().decode()
    return out


def _headers_in(message: JsonObject) -> Mapping[str, str]:
    return read_headers(base64.b64decode(str(message.get("hdrs", ""))))
