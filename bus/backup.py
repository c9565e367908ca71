"""Taking a backup: every stream of a Hark into one file, while it is running.

The streams are copied one after the other, each as of one moment, so their order is what makes the whole consistent. What
Hark keeps is kept so that it may be behind what it follows, because any process may be killed between two writes; a copy in
the right order is such a state:

1. where readers of the log stand, what has become of actions, what is claimed and what waits for workers: never ahead of
   the log. What the log says more than they do is folded again, or found done (``automations/acting/claim.py``);
2. the log, with its durable consumers and timers;
3. definitions: never behind the log, which says which revisions of them are in force;
4. large values, which the others name: put before they are named, and not removed while a backup holds them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from anyio import to_thread

from ..errors import RefusedError
from ..vocabulary import JsonObject, new_id
from .archive import ArchiveWriter, writing
from .bus import Bus
from .connection import Connection
from .large_value import on_hold
from .stream_copy import snapshot_stream, stream_info
from .streams import BUCKET_PREFIX, OBJECTS_STREAM, born_at
from .subject import LOGS_STREAM, REQUESTS_STREAM, STREAM, WORK_STREAM

__all__ = ["SECRET_KEY", "BackupTaken", "in_order", "key_mark", "our_streams", "take_backup"]

log = logging.getLogger(__name__)

SECRET_KEY: Final = "secret.key"  # noqa: S105 - its name
"""The piece with the key that secrets are encrypted with."""
_KV = f"KV_{BUCKET_PREFIX}"
_FIRST: Final = (
    *(f"{_KV}{bucket}" for bucket in ("checkpoints", "outbox", "approvals", "deliveries", "leases")),
    WORK_STREAM,
)
_LAST: Final = (LOGS_STREAM, REQUESTS_STREAM, OBJECTS_STREAM)
OnPiece = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class BackupTaken:
    """A backup that is whole. ``secret_key``: ``included``, ``left out``, or ``not in the home``."""

    id: str
    path: Path
    taken_at: datetime
    streams: int
    size_bytes: int
    last_seq: int
    secret_key: str


def in_order(streams: Sequence[str]) -> list[str]:
    """Return the streams in the order in which their copies fit together; see the top of this file."""
    known = {name: at for at, name in enumerate(_FIRST)} | {STREAM: 10}
    known |= {name: 90 + at for at, name in enumerate(_LAST)}
    return sorted(streams, key=lambda name: (known.get(name, 20), name))


async def our_streams(connection: Connection) -> list[str]:
    """Return the names of all streams of Hark on the broker; it may carry others' as well."""
    names: list[str] = []
    while True:
        page = await connection.api("STREAM.NAMES", {"offset": len(names)})
        found = page.get("streams")
        listed = [str(n) for n in found] if isinstance(found, list) else []
        names += listed
        if not listed or len(names) >= int(str(page.get("total", 0))):
            break
    fixed = {STREAM, LOGS_STREAM, WORK_STREAM, REQUESTS_STREAM, OBJECTS_STREAM}
    return [n for n in names if n in fixed or n.startswith(_KV)]


def key_mark(key: bytes) -> str:
    """Return what two same keys have in common and what tells nothing of them: a key is 256 random bits."""
    return hashlib.sha256(b"hark-secret-key:" + key).hexdigest()[:16]


async def take_backup(
    bus: Bus, path: Path, *, key: bytes | None, with_key: bool = True, overwrite: bool = False,
    on_piece: OnPiece | None = None,
) -> BackupTaken:  # fmt: skip
    """Copy the whole state into a file at ``path``, readable by its owner only. Nothing has to stop for it.

    A killed backup leaves ``path`` as it was, and ``<path>.partial``, which the next one writes over.

    Args:
        key: what the home's secrets are encrypted with; None if it is not kept in the home.
        with_key: put the key in. Without it the file gives no secret away, and is no use without the key either.
        on_piece: called after each piece with its name and size.
    Raises:
        RefusedError: ``path`` is there. AlreadyHeld: another process writes it.
        BusUnavailable: the broker went away meanwhile; nothing is left at ``path``.
    """
    taken_at, backup_id = bus.clock.now().astimezone(UTC), new_id()
    connection = bus.connection
    names = in_order(await our_streams(connection))
    if STREAM not in names:
        raise RefusedError("the broker holds no Hark", hint="check HARK_NATS_URL and HARK_HOME")
    kept = "not in the home" if key is None else "included" if with_key else "left out"
    last_seq = 0
    with writing(path, overwrite=overwrite) as archive:
        archive.header(
            {
                "id": backup_id, "hark": version("hark"), "broker": bus.info.version,
                "taken_at": taken_at.isoformat(), "secret_key": kept,
                "secret_key_mark": key_mark(key) if key is not None else None,
            }
        )  # fmt: skip
        if key is not None and with_key:
            archive.begin(SECRET_KEY, {"kind": "file"})
            archive.chunk(key)
            archive.end()
        async with on_hold(bus.bucket("checkpoints"), message_ttl=bus.info.message_ttl):
            for name in names:
                state = await _copy(connection, name, archive)
                if name == STREAM:
                    last_seq = int(str(state["last_seq"]))
                if on_piece is not None:
                    on_piece(name, archive.size_bytes)
    log.info("backup.taken", extra={"path": str(path), "bytes": archive.size_bytes, "seq": last_seq})
    return BackupTaken(backup_id, path, taken_at, len(names), archive.size_bytes, last_seq, kept)


async def _copy(connection: Connection, name: str, archive: ArchiveWriter) -> JsonObject:
    """Write one stream as a piece and return the state it was in."""
    info = await stream_info(connection, name)
    if info is None:
        raise RefusedError(f"stream {name} has been removed meanwhile", hint="take the backup again")
    found: list[JsonObject] = []

    async def opened(config: JsonObject, state: JsonObject) -> None:
        found.append(state)
        about: JsonObject = {"kind": "stream", "config": config, "state": state, "born": born_at(info)}
        archive.begin(name, about)

    async for chunk in snapshot_stream(connection, name, opened):
        await to_thread.run_sync(archive.chunk, chunk)
    archive.end()
    return found[0]
