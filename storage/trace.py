"""Whether the files of the read model are still those that were opened, and can be read.

SQLite keeps the files it has opened, whatever becomes of their names: one that was deleted, or another put in its place, goes
unnoticed, and everything written from then on is lost with it.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from ..errors import HarkError, ReadModelDamaged, UnavailableError

__all__ = ["Traces", "identity", "read_only", "translated", "verify"]

_COMPANIONS = ("", "-wal", "-shm")


class Traces:
    """Which files the database at ``path`` is made of, and how large they were."""

    def __init__(self, path: Path) -> None:
        self._names = [path.with_name(path.name + suffix) for suffix in _COMPANIONS]
        self._seen: dict[Path, tuple[int, int, int]] = {}

    def check(self) -> None:
        """Look at the files, and remember them for the next time.

        Raises:
            ReadModelDamaged: one is gone, another, or shorter than it was: none of them shrinks while it is open.
            UnavailableError: they cannot be looked at now.
        """
        for name in self._names:
            before, now = self._seen.get(name), _look(name)
            if before is not None:
                if now is None:
                    raise ReadModelDamaged(name, why="it was deleted")
                if now[:2] != before[:2]:
                    raise ReadModelDamaged(name, why="another file stands in its place")
                if now[2] < before[2]:
                    raise ReadModelDamaged(name, why=f"it was cut from {before[2]} bytes to {now[2]}")
            if now is not None:
                self._seen[name] = now


def identity(path: Path) -> tuple[int, int] | None:
    """Return which file stands at ``path``; None: none does.

    Raises:
        UnavailableError: that cannot be seen now.
    """
    found = _look(path)
    return None if found is None else found[:2]


def _look(path: Path) -> tuple[int, int, int] | None:
    # Never opened: closing a file again would drop the locks that SQLite has on it in this process.
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UnavailableError(
            f"the read model at {path} cannot be looked at: {exc}", hint="see to it that its disk can be read"
        ) from exc
    return found.st_dev, found.st_ino, found.st_size


def verify(path: Path) -> None:
    """Read the whole database at ``path``. For a thread: it takes about a second for each gigabyte.

    Raises:
        ReadModelDamaged: it is not whole.
    """
    try:
        # A connection of its own: the writer's has pages in memory that the file may not have any more.
        with closing(sqlite3.connect(read_only(path), uri=True, isolation_level=None)) as db:
            [(said,)] = db.execute("PRAGMA quick_check(1)").fetchall()
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.DatabaseError as exc:
        raise translated(exc, path) from exc
    if said != "ok" or not tables:
        raise ReadModelDamaged(path, why=said if tables else "it is empty")


def translated(exc: sqlite3.DatabaseError, path: Path) -> HarkError:
    """Return what an error of SQLite's means for the read model at ``path``."""
    # The low byte is what went wrong; the others say where.
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such" in str(exc):
        return ReadModelDamaged(path, why=str(exc))
    return UnavailableError(
        f"the read model at {path} cannot be used: {exc}",
        hint="see to it that there is room on its disk, and that it can be written; it goes on by itself then",
    )


def read_only(path: Path) -> str:
    """Return the URI that opens the database at ``path`` without being able to make or change it."""
    return f"{path.absolute().as_uri()}?mode=ro"
