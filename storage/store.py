"""The one writer of the read model: opens the file, commits folded stretches of the log, prunes, starts over.

A stretch and the sequence it reaches are one transaction: a process killed at any moment leaves the file at a
batch boundary, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import aiosqlite
import anyio
from anyio import to_thread

from ..errors import GuardFailed, HarkError, ReadModelDamaged, UnavailableError
from .fold import KEYED, LISTED, Changes, Row
from .statement import in_its_thread, of_many, schema, statements
from .trace import Traces, read_only, translated, verify

__all__ = ["SCHEMA_VERSION", "Reached", "Store", "digest", "read_only", "remove_files"]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 8
"""Raise it whenever schema.sql or fold.py changes what rows look like; files of another version are folded again."""

_PRUNE_BITE = 20_000
_MOST_ROWS = 512
"""Rows of one statement when there are many; times 24 columns it stays far below SQLite's 32 766 parameters."""
_WRITE = "write.sql"


@dataclass(frozen=True, slots=True)
class Reached:
    """How far the file is: ``seq`` of the log ``stream``; what came before ``first_seq`` is gone from both."""

    stream: str
    seq: int
    first_seq: int


class Store:
    """The read model, open for writing. Enter it to open (and if need be make) the file; leave it to close.

    Entering drops and remakes everything when the file has another schema version or is no database at all.
    It may be entered by one process at a time in effect: a second writer's commits are refused by ``GuardFailed``.

    Raises (on entering, and wherever it writes):
        UnavailableError: the file cannot be written now: no room, a read-only disk, another program's lock.
        ReadModelDamaged: (not on entering) the files are gone, or are not what was written: enter another one.
    """

    def __init__(self, path: Path, *, stream: str) -> None:
        self._path, self._stream = path, stream
        self._db: aiosqlite.Connection | None = None
        self._writer = anyio.Lock()
        self._reached = Reached(stream, 0, 0)
        self._traces = Traces(path)

    @property
    def reached(self) -> Reached:
        """What was last committed here."""
        return self._reached

    async def __aenter__(self) -> Self:
        try:
            try:
                await self._open()
            except ReadModelDamaged as exc:
                # Nothing in it that the log does not have.
                log.warning("storage.made_anew", extra={"path": str(self._path), "why": exc.why})
                await self.__aexit__(None, None, None)
                remove_files(self._path)
                await self._open()
        except OSError as exc:
            await self.__aexit__(None, None, None)
            raise _unwritable(self._path, exc) from exc
        except BaseException:
            # Cancelled halfway: the connection's thread would keep the process from ending.
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        db, self._db = self._db, None
        if db is not None:
            with anyio.CancelScope(shield=True):
                await db.close()

    async def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Events may hold what is nobody else's business. Its journal files get the mode of the file itself.
        try:
            os.chmod(self._path, 0o600)
        except FileNotFoundError:
            # Only made here, never opened when it is there: closing it would drop the locks that readers in this process
            # have on it, and another process would then take away the journal under them.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            await self._set_up()
        except sqlite3.DatabaseError as exc:
            raise translated(exc, self._path) from exc

    async def _set_up(self) -> None:
        with anyio.CancelScope(shield=True):  # a connection half made would leave its thread behind
            self._db = db = await aiosqlite.connect(self._path, isolation_level=None)
        # 8 KiB pages hold a few event bodies each. NORMAL: a power cut may undo the last commits, whole, and the
        # sequence with them; they are folded again.
        for pragma in (
            "page_size = 8192",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "busy_timeout = 5000",
            "cache_size = -8192",
            "temp_store = MEMORY",
            "wal_autocheckpoint = 4000",
        ):
            await (await db.execute(f"PRAGMA {pragma}")).close()
        found = await self._read_meta()
        if found is None or found[0] != SCHEMA_VERSION or found[1] != self._stream:
            await self.reset()
        else:
            self._reached = Reached(found[1], found[2], found[3])
        self._traces = Traces(self._path)
        self._traces.check()

    async def _read_meta(self) -> tuple[int, str, int, int] | None:
        try:
            async with self._connection.execute(statements(_WRITE)["read_meta"]) as cursor:
                row = await cursor.fetchone()
        except sqlite3.OperationalError as exc:
            if "no such" in str(exc):
                return None
            raise
        return None if row is None else (int(row[0]), str(row[1]), int(row[2]), int(row[3]))

    @property
    def _connection(self) -> aiosqlite.Connection:
        if self._db is None:
            raise RuntimeError("the store is not open; enter it first")
        return self._db

    @asynccontextmanager
    async def _writing(self) -> AsyncGenerator[aiosqlite.Connection, None]:
        """Hold the one writer: commit if the block ends well, else leave no trace of it."""
        async with self._writer:
            db = self._connection
            self._traces.check()
            try:
                try:
                    await db.execute("BEGIN IMMEDIATE")
                    yield db
                except BaseException:
                    # The statement may still be running in SQLite's thread when we are cancelled.
                    with anyio.CancelScope(shield=True):
                        await db.rollback()
                    raise
                with anyio.CancelScope(shield=True):
                    await db.commit()
            except sqlite3.DatabaseError as exc:
                raise self._meaning(exc) from exc

    def _meaning(self, exc: sqlite3.DatabaseError) -> HarkError:
        try:
            self._traces.check()
        except ReadModelDamaged as damaged:  # what SQLite says follows from that
            return damaged
        return translated(exc, self._path)

    def check(self) -> None:
        """Look whether the files are those that were opened, whatever is in them.

        Raises:
            ReadModelDamaged: they are not.
        """
        self._traces.check()

    async def examine(self) -> None:
        """Look whether the files are there and whole, since somebody could not read them.

        Raises:
            ReadModelDamaged: they are not.
        """
        self._traces.check()
        await to_thread.run_sync(verify, self._path)

    async def reset(self) -> None:
        """Drop everything and begin at sequence 0. Readers keep seeing the old rows until this is committed."""
        write = statements(_WRITE)
        async with self._writing() as db:
            async with db.execute(write["objects"]) as cursor:
                objects = [(str(kind), str(name)) for kind, name in await cursor.fetchall()]
            # Indexes and triggers go with their tables.
            for kind, name in objects:
                if kind in ("table", "view"):
                    quoted = name.replace('"', '""')
                    await db.execute(f'DROP {kind.upper()} IF EXISTS "{quoted}"')
            for statement in schema():
                await db.execute(statement)
            await db.execute(write["begin_meta"], {"schema_version": SCHEMA_VERSION, "stream": self._stream})
        self._reached = Reached(self._stream, 0, 0)

    async def commit(self, changes: Changes) -> None:
        """Write the rows and move the sequence to ``changes.reached``, in one transaction. Once begun it is not cancelled.

        Raises:
            GuardFailed: another writer moved the sequence; ``reload`` and go on from there.
        """
        if changes.reached <= self._reached.seq:
            return
        async with self._writer:
            # Whole, in one go of SQLite's thread: were each statement asked for from the loop, each would wait for its
            # turn there and for Python's lock here, which under load takes far longer than writing the rows.
            with anyio.CancelScope(shield=True):
                try:
                    await in_its_thread(self._connection, self._write, changes)
                except sqlite3.DatabaseError as exc:
                    raise self._meaning(exc) from exc
            self._reached = Reached(self._stream, changes.reached, self._reached.first_seq)

    def _write(self, db: sqlite3.Connection, changes: Changes) -> None:
        write = statements(_WRITE)
        self._traces.check()
        db.execute("BEGIN IMMEDIATE")
        try:
            moved = db.execute(
                write["reached"],
                {"seq": changes.reached, "previous": self._reached.seq, "stream": self._stream},
            )
            if moved.rowcount != 1:
                raise GuardFailed("the read model", expected=self._reached.seq)
            for table, rows in changes.rows():
                _insert(db, write[table], rows)
            db.commit()
        except BaseException:
            db.rollback()
            raise

    async def reload(self) -> Reached:
        """Read again how far the file is, after another writer was here."""
        found = await self._read_meta()
        if found is None or found[0] != SCHEMA_VERSION or found[1] != self._stream:
            await self.reset()
        else:
            self._reached = Reached(found[1], found[2], found[3])
        return self._reached

    async def last_body(self) -> bytes | None:
        """Return the event at the sequence reached, as it was stored; None if it was none, or is gone.

        Raises:
            ReadModelDamaged, UnavailableError: it cannot be read.
        """
        body = statements(_WRITE)["body"]
        try:
            async with self._connection.execute(body, {"seq": self._reached.seq}) as cursor:
                row = await cursor.fetchone()
        except sqlite3.DatabaseError as exc:
            raise self._meaning(exc) from exc
        return None if row is None else bytes(row[0])

    async def prune(self, first_seq: int) -> int:
        """Delete the rows made by events before ``first_seq``; return how many went. Cancelled halfway, it is
        finished by the next call."""
        if first_seq <= self._reached.first_seq:
            return 0
        write, gone = statements(_WRITE), 0
        while True:
            async with self._writing() as db:
                cursor = await db.execute(
                    write["prune_events"], {"first_seq": first_seq, "bite": _PRUNE_BITE}
                )
                gone += cursor.rowcount
            if cursor.rowcount < _PRUNE_BITE:
                break
        async with self._writing() as db:
            async with db.execute(write["first_hour"], {"first_seq": first_seq}) as found:
                row = await found.fetchone()
            hour = str(row[0]) if row is not None else "~"
            await db.execute(write["prune_event_hours"], {"hour": hour})
            await db.execute(write["recount_event_hour"], {"hour": hour})
            for table in (*LISTED, *KEYED):
                if table != "events":
                    cursor = await db.execute(write[f"prune_{table}"], {"first_seq": first_seq})
                    gone += cursor.rowcount
            await db.execute(write["forgotten"], {"first_seq": first_seq})
        self._reached = Reached(self._stream, self._reached.seq, first_seq)
        return gone


def _insert(db: sqlite3.Connection, insert: str, rows: list[Row]) -> None:
    """Insert rows by as few statements as can be kept prepared: of 512 rows, and then of each power of two below."""
    at, end = 0, len(rows)
    while at < end:
        size = min(_MOST_ROWS, 1 << (end - at).bit_length() - 1)
        stop = end - (end - at) % size if size == _MOST_ROWS else at + size
        db.executemany(
            of_many(insert, size), [tuple(chain(*rows[i : i + size])) for i in range(at, stop, size)]
        )
        at = stop


async def digest(path: Path) -> str:
    """Return a hash over every row of every table of the read model at ``path``, in the order of their keys.

    Two files with the same digest answer every question alike.
    """
    total = hashlib.blake2b(digest_size=16)
    async with aiosqlite.connect(read_only(path), uri=True) as db:
        for table in (*LISTED, *KEYED, "event_hours"):
            key = (
                "seq" if table in LISTED else {"actions": "key", "event_hours": "hour, type"}.get(table, "id")
            )
            # Both names come from this module, not from outside.
            async with db.execute(f"SELECT * FROM {table} ORDER BY {key}") as cursor:  # noqa: S608
                async for row in cursor:
                    total.update(repr((table, tuple(row))).encode())
    return total.hexdigest()


def remove_files(path: Path) -> None:
    """Delete the database file and SQLite's companions of it, if they are there.

    Raises:
        UnavailableError: they cannot be deleted now: a read-only disk, say.
    """
    try:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as exc:
        raise _unwritable(path, exc) from exc


def _unwritable(path: Path, exc: OSError) -> UnavailableError:
    return UnavailableError(
        f"the read model at {path} cannot be written: {exc}",
        hint="see to it that its disk can be written, and has room",
    )
