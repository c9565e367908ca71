"""Restoring a backup: into a home nobody uses, or onto a broker no Hark uses. The file is read to its end first.

A home is made anew beside the old one and takes its place in one step, so a restore that is killed has changed nothing or
has happened. A broker outside has no such step: what it holds is saved to a file first, and a restore that is killed is
begun anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..config import BusConfig
from ..errors import BackupUnreadable, HarkError, RefusedError
from ..vocabulary import JsonObject
from .address import BrokerAddress
from .archive import Archive, Piece
from .backup import SECRET_KEY, in_order, key_mark, our_streams, take_backup
from .broker import EmbeddedBroker, hold_home
from .bucket import Bucket
from .bus import Bus
from .connection import ApiError, Connection
from .event import Event
from .large_value import HOLD
from .stream_copy import restore_stream, stream_info
from .streams import BORN, BUCKET_PREFIX
from .subject import RESTORED, STREAM
from .swap import begin_swap, commit_swap, finish_swap

__all__ = ["Restored", "check_archive", "restore_broker", "restore_home"]

log = logging.getLogger(__name__)

_KEEP_METADATA_BUT = "_nats."
_RENEWED_S = 60.0
OnPiece = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. ``kept``: where what was there before is now, None if there was nothing."""

    streams: int
    last_seq: int
    kept: Path | None
    secret_key: str


def check_archive(archive: Archive) -> None:
    """Raise ``BackupUnreadable`` unless the archive is that of a whole Hark."""
    names = [p.name for p in archive.pieces]
    if STREAM not in names or len(set(names)) != len(names):
        raise BackupUnreadable(str(archive.path), "it does not hold the event log")


async def restore_home(
    archive: Archive, home: Path, config: BusConfig, *, force: bool = False, on_piece: OnPiece | None = None
) -> Restored:
    """Make ``home`` what the backup holds. With ``force`` also where there is something, which is kept in a folder.

    Raises:
        AlreadyHeld: `hark up` runs on this home. RefusedError: there is something and ``force`` was not said.
        BackupUnreadable: the broker cannot make streams of it; the home is as it was.
    """
    check_archive(archive)
    _make_folder(home)
    with hold_home(home):
        finish_swap(home)
        if (home / "nats" / "store").exists() and not force:
            raise RefusedError(
                f"{home} holds a Hark already",
                hint="say --force: it is kept in a folder beside; or set HARK_HOME to another folder",
            )
        new = begin_swap(home)
        failed: HarkError | None = None
        async with EmbeddedBroker(new, config) as broker:
            try:
                last_seq = await _put_back(archive, broker.address, config, on_piece=on_piece)
            except HarkError as exc:
                failed = exc  # raised outside: the broker's task group would wrap it
        if failed is not None:
            raise failed
        said = _put_key(archive, home, new)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        commit_swap(home, kept=_free_name(home, f"before-restore-{stamp}"))
        kept = finish_swap(home)
        if kept is not None and not any(kept.iterdir()):
            kept.rmdir()
            kept = None
    return Restored(_streams(archive), last_seq, kept, said)


async def restore_broker(
    archive: Archive, address: BrokerAddress, home: Path, config: BusConfig, *, force: bool = False,
    on_piece: OnPiece | None = None,
) -> Restored:  # fmt: skip
    """Make a broker of somebody else's hold what the backup holds; other streams there are left alone.

    With ``force`` also where there is a Hark, which is backed up into ``home`` first.

    Raises:
        RefusedError: a service uses it, or there is something and ``force`` was not said.
        BackupUnreadable: the broker cannot make streams of it, or is older than the one it was taken from.
    """
    check_archive(archive)
    kept: Path | None = None
    _make_folder(home)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection(address, config, name="hark restore"))
        _refuse_older(archive, connection)
        await _refuse_used(connection)
        there = await our_streams(connection)
        infos = [info for name in there if (info := await stream_info(connection, name)) is not None]
        if any(info["state"]["last_seq"] for info in infos):
            if not force:
                raise RefusedError(
                    f"the broker at {address.url} holds a Hark already",
                    hint="say --force: it is saved to a file first",
                )
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            kept = home / _free_name(home, f"before-restore-{stamp}.hark")
            async with Bus(address, config, name="hark backup", manage=False) as bus:
                await take_backup(bus, kept, key=None)
            there = await our_streams(connection)
        for name in there:
            await connection.api(f"STREAM.DELETE.{name}")
        last_seq = await _put_back(archive, address, config, on_piece=on_piece)
        said = _put_key(archive, home, home, only_new=True)
    return Restored(_streams(archive), last_seq, kept, said)


async def _put_back(
    archive: Archive, address: BrokerAddress, config: BusConfig, *, on_piece: OnPiece | None
) -> int:
    """Make the streams and say so in the log; return where that ends."""
    async with Connection(address, config, name="hark restore") as connection:
        _refuse_older(archive, connection)
        pieces = {p.name: p for p in archive.pieces if p.about.get("kind") == "stream"}
        # The log last: a Hark without it is none, so a restore that was killed is not taken for one.
        for name in [n for n in in_order(list(pieces)) if n != STREAM] + [STREAM]:
            piece = pieces[name]
            await _make(connection, archive, piece, config)
            if on_piece is not None:
                on_piece(name, piece.size_bytes)
        ahead = await _furthest_consumer(connection)
    async with Bus(address, config, name="hark restore", manage=False) as bus:
        await bus.bucket("checkpoints").delete(HOLD)
        event = Event(
            type=RESTORED, source="/hark/restore", subject="hark",
            data={"backup": archive.header.get("id"), "taken_at": archive.header.get("taken_at")},
        )  # fmt: skip
        last_seq = (await bus.log.append(event)).seq
        while last_seq < ahead:
            # A consumer's place is copied a moment after the messages. It would pass over what takes the places of those
            # the copy does not hold: let that be these.
            again = Event(type=RESTORED, source="/hark/restore", subject="hark", data={"skipped": last_seq})
            last_seq = (await bus.log.append(again)).seq
        return last_seq


async def _make(connection: Connection, archive: Archive, piece: Piece, config: BusConfig) -> None:
    about: dict[str, Any] = piece.about
    wanted: JsonObject = {k: v for k, v in about["config"].items() if k not in ("placement", "num_replicas")}
    metadata = {
        k: v
        for k, v in (about["config"].get("metadata") or {}).items()
        if not k.startswith(_KEEP_METADATA_BUT)
    }
    wanted |= {"num_replicas": config.replicas, "metadata": {**metadata, BORN: str(about["born"])}}
    try:
        await restore_stream(connection, wanted, about["state"], archive.chunks(piece))
    except ApiError as exc:
        raise BackupUnreadable(
            str(archive.path), f"the broker does not take {piece.name}: {exc.description}",
            hint="give JetStream more room (the broker's own log says what it lacks), then restore again",
        ) from exc  # fmt: skip


async def _furthest_consumer(connection: Connection) -> int:
    """Return the furthest place of the log that a durable consumer thinks it has been handed."""
    page: dict[str, Any] = await connection.api(f"CONSUMER.LIST.{STREAM}")
    return max((int(c["delivered"]["stream_seq"]) for c in page.get("consumers") or ()), default=0)


def _refuse_older(archive: Archive, connection: Connection) -> None:
    """A broker cannot read the files of a later one."""
    taken = str(archive.header.get("broker", "0.0.0"))
    numbers = tuple(int(n) for n in taken.split("-")[0].split(".")[:2])
    if numbers > connection.server_version[:2]:
        raise BackupUnreadable(
            str(archive.path), f"it was taken from nats-server {taken}, and this one is {connection.server_version_text}",
            hint=f"restore onto nats-server {taken} or later",
        )  # fmt: skip


async def _refuse_used(connection: Connection) -> None:
    if await stream_info(connection, f"KV_{BUCKET_PREFIX}leases") is None:
        return
    # Renewed every few seconds; older brokers do not remove those of processes that were killed.
    recent = datetime.now(UTC) - timedelta(seconds=_RENEWED_S)
    held = [e.key for e in await Bucket(connection, "leases").entries() if e.created_at > recent]
    if held:
        raise RefusedError(
            f"a Hark uses this broker: {', '.join(sorted(held)[:5])} held",
            hint="stop its services (one that was killed is forgotten within a minute), then restore",
        )


def _put_key(archive: Archive, home: Path, into: Path, *, only_new: bool = False) -> str:
    """Write the key of the backup's secrets to ``into``; return what there is to say of it, empty if nothing."""
    piece, path = archive.piece(SECRET_KEY), home / "secret.key"
    have = path.read_bytes().strip() if path.exists() else None
    if piece is None:
        mark = archive.header.get("secret_key_mark")
        if mark is not None and (have is None or key_mark(have) != mark):
            return (
                f"the backup does not hold the key of its secrets: put it to {path}, or set the secrets anew"
            )
        return ""
    key = b"".join(archive.chunks(piece))
    if have == key:
        return ""
    if only_new and have is not None:
        return f"{path} is another key than the backup's: set HARK_SECRET_KEY to both, separated by a comma"
    fd = os.open(into / "secret.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(key)
        out.flush()
        os.fsync(out.fileno())
    return ""


def _make_folder(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)


def _streams(archive: Archive) -> int:
    return sum(1 for p in archive.pieces if p.about.get("kind") == "stream")


def _free_name(home: Path, name: str) -> str:
    stem, dot, suffix = name.partition(".")
    count, tried = 1, name
    while (home / tried).exists():
        count += 1
        tried = f"{stem}-{count}{dot}{suffix}"
    return tried
