"""Where the state of the router is put down: before a message goes out, so that none is lost or sent twice.

One key of the bucket ``checkpoints``, each write guarded by the one before: a router that was deposed cannot write, and
therefore cannot send. The state stands in slices, of which a write packs those that have changed: what it costs does not
grow with what is open. They are encrypted, for messages carry what templates have read and addresses their tokens. What
has no room in the key is an object, each time under a new name, so that nothing the key names is ever written over. The
API reads the same key; nobody asks the router.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import orjson
from anyio import to_thread

from ..bus.candidate import Deposed
from ..bus.large_value import LargeValues
from ..errors import GuardFailed, ObjectCorrupt, SecretUnreadable, UnknownName
from ..vocabulary import JsonObject, JsonValue
from .group import Send
from .grouping import Grouping

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["RouterState", "StateStore", "Vault", "read_state", "wait_for_state"]

log = logging.getLogger(__name__)

KEY = "notifications.state"
_INLINE_BYTES = 96 * 1024
_IN_THREAD_BYTES = 64 * 1024
_SLICES = 64
_MOST_TRIES = 5
"""With one and the same head: then a part is missing for good."""
_GROUPS, _PENDING, _SEEN = "groups", "pending", "seen"


class Vault(Protocol):
    """Encrypts with the key of the home; the store of secrets."""

    def seal(self, name: str, value: bytes) -> bytes: ...

    def unseal(self, name: str, sealed: bytes) -> bytes: ...


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

    def __init__(self, bus: Bus, vault: Vault) -> None:
        self._bus, self._vault, self._bucket = bus, vault, bus.bucket("checkpoints")
        self._large = LargeValues(self._bucket, bus.objects, owner=KEY)
        self._revision = 0
        self._parts: dict[str, JsonObject] = {}
        self._stale: set[str] = set()
        self._pending: set[str] = set()  # keys of the messages that were put down

    async def take_over(self) -> RouterState | None:
        """Return what the last leader put down, having made sure that it cannot write any more; None if nothing.

        A checkpoint that cannot be read is said in the log and counts as none.
        """
        entry, self._revision = await self._bucket.take_over(KEY, empty=b"{}")
        if entry is None:
            await self._large.sweep(())
            return None
        try:
            head = orjson.loads(entry.value)
            await self._large.sweep(_objects_of(head.get("parts") or {}))
            return await _read(self._bus, self._vault, head)
        except (
            ValueError, KeyError, TypeError, AttributeError, zlib.error, UnknownName, ObjectCorrupt, SecretUnreadable,
        ) as exc:  # fmt: skip
            log.error("notifications.checkpoint_unreadable", extra={"error": repr(exc)})
            return None

    async def write(
        self,
        fold: Grouping,
        pending: Mapping[str, Send],
        *,
        incarnation: str,
        seq: int,
        errors: Mapping[str, str],
    ) -> None:
        """Put down what has changed since the last call. Nothing may be decided meanwhile.

        Raises:
            Deposed: somebody else has written since we last did.
        """
        sends = dict(pending)  # one that is delivered while we write leaves it
        self._note_changes(fold, sends)
        contents = _contents(fold, sends, self._stale)
        for name in sorted(self._stale):
            content = contents.get(name)
            if content:
                self._parts[name] = await self._pack(name, content)
            else:
                self._parts.pop(name, None)
            # Only now: what was not packed, because the broker went away, is stale the next time.
            self._stale.discard(name)
        head: JsonObject = {
            "incarnation": incarnation, "seq": seq, "now": fold.now, "errors": dict(errors), "parts": {**self._parts},
        }  # fmt: skip
        try:
            self._revision = await self._bucket.update(KEY, orjson.dumps(head), revision=self._revision)
        except GuardFailed as exc:
            raise Deposed("another router has taken over the checkpoint") from exc
        await self._large.settle(_objects_of(self._parts))

    def _note_changes(self, fold: Grouping, sends: Mapping[str, Send]) -> None:
        self._stale |= {_slice(_GROUPS, key) for key in fold.changed}
        self._stale |= {f"{_SEEN}-{number}" for number in fold.seen.changed}
        fold.changed.clear()
        fold.seen.changed.clear()
        self._stale |= {_slice(_PENDING, key) for key in self._pending ^ sends.keys()}
        self._pending = set(sends)

    async def _pack(self, name: str, content: JsonValue) -> JsonObject:
        raw = orjson.dumps(content)

        def seal() -> bytes:
            return self._vault.seal(f"{KEY}/{name}", base64.b64encode(zlib.compress(raw, 1)))

        sealed = seal() if len(raw) <= _IN_THREAD_BYTES else await to_thread.run_sync(seal)
        used = sum(len(str(part.get("inline", ""))) for other, part in self._parts.items() if other != name)
        if used + len(sealed) <= _INLINE_BYTES:
            return {"inline": sealed.decode()}
        return {"object": await self._large.put(sealed)}


def _slice(kind: str, key: str) -> str:
    return f"{kind}-{zlib.crc32(key.encode()) % _SLICES}"


def _contents(fold: Grouping, sends: Mapping[str, Send], names: set[str]) -> dict[str, list[JsonValue]]:
    """Return what the slices ``names`` hold now; an empty one is not in it."""
    out: dict[str, list[JsonValue]] = defaultdict(list)
    for key, group in fold.groups.items():
        if (name := _slice(_GROUPS, key)) in names:
            out[name].append(group.to_json())
    for key, send in sends.items():
        if (name := _slice(_PENDING, key)) in names:
            out[name].append(send.to_json())
    for name in names:
        kind, _, number = name.partition("-")
        if kind == _SEEN:
            out[name] += fold.seen.segment(int(number))
    return out


def _objects_of(parts: Mapping[str, Any]) -> list[str]:
    return [str(part["object"]) for part in parts.values() if "object" in part]


async def _read(
    bus: Bus, vault: Vault, head: Any, fetched: dict[str, bytes] | None = None
) -> RouterState | None:
    """Return the state a key names. ``fetched``: objects that need not be fetched again, since none ever changes."""
    fetched = {} if fetched is None else fetched
    if "parts" not in head:
        return None
    found: dict[str, list[Any]] = {_GROUPS: [], _PENDING: [], _SEEN: []}

    def number_of(name: str) -> int:
        return int(name.partition("-")[2])

    for name in sorted(head["parts"], key=number_of):
        where = head["parts"][name]
        if "inline" in where:
            sealed = where["inline"].encode()
        else:
            place = str(where["object"])
            if place not in fetched:
                fetched[place] = await bus.objects.get(place)
            sealed = fetched[place]
        packed = base64.b64decode(vault.unseal(f"{KEY}/{name}", sealed))
        found[name.partition("-")[0]] += orjson.loads(zlib.decompress(packed))
    # Each in the order in which it was put in, of which the slices know nothing.
    groups = sorted(found[_GROUPS], key=lambda g: (g["opened_at"], g["key"]))
    pending = sorted((Send.from_json(s) for s in found[_PENDING]), key=lambda s: (s.at, s.key))
    fold: JsonObject = {"now": float(head["now"]), "seen": found[_SEEN], "groups": groups}
    return RouterState(
        str(head["incarnation"]), int(head["seq"]), fold, tuple(pending), head.get("errors") or {}
    )


async def read_state(bus: Bus, vault: Vault) -> RouterState | None:
    """Return what the router last put down, at most a moment old; None if none ever ran.

    Raises:
        SecretUnreadable: it was put down by a router with another key.
    """
    fetched: dict[str, bytes] = {}
    last, tries = 0, 0
    while True:
        entry = await bus.bucket("checkpoints").get(KEY)
        if entry is None:
            return None
        try:
            return await _read(bus, vault, orjson.loads(entry.value), fetched)
        except (UnknownName, ObjectCorrupt):
            # A part was replaced while we were reading; the newer head names what there is. On a busy machine the router
            # may write as often as we read: what has been fetched is kept, so there is less to fetch each time.
            tries = tries + 1 if entry.revision == last else 0
            last = entry.revision
            if tries == _MOST_TRIES:
                raise


async def wait_for_state(bus: Bus, vault: Vault, *, seq: int, timeout_s: float = 5.0) -> RouterState | None:
    """Return the state once it has the fact ``seq`` in it, or what there is after ``timeout_s``."""
    with anyio.move_on_after(timeout_s):
        async with bus.bucket("checkpoints").watch(KEY) as changes:
            async for entry in changes:
                if entry.key == KEY and int(orjson.loads(entry.value).get("seq", 0)) >= seq:
                    break
    return await read_state(bus, vault)
