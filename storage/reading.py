"""Connections to the read model that can neither make nor change it, lent to whoever asks."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import aiosqlite
import anyio

from ..errors import HarkError, UnavailableError
from .progress import Progress
from .trace import identity, read_only

__all__ = ["Readers"]

_File: TypeAlias = "tuple[int, int] | None"


class Readers:
    """At most ``count`` connections to the file at ``path``, made when first needed. Enter to use; leave to close.

    Args:
        progress: of whoever folds, to be told of a file that cannot be read, and asked whether it is whole.
    """

    def __init__(self, path: Path, *, count: int, progress: Progress | None) -> None:
        self._path, self._progress = path, progress
        self._idle: list[tuple[aiosqlite.Connection, _File]] = []
        self._limit = anyio.Semaphore(count, max_value=count)
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_open = False
        with anyio.CancelScope(shield=True):
            while self._idle:
                await self._idle.pop()[0].close()

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[aiosqlite.Connection, None]:
        """Lend a connection, in one transaction, so that several statements see the same moment.

        Raises:
            UnavailableError: there is no file, it cannot be read, or it is not whole.
        """
        if not self._is_open:
            raise RuntimeError("the queries are not open; enter them first")
        if self._progress is not None:
            self._progress.require_whole()
        async with self._limit:
            db, file = await self._take()
            usable = False
            try:
                await db.execute("BEGIN")
                yield db
                usable = True
            except HarkError:
                usable = True
                raise
            except sqlite3.DatabaseError as exc:
                self._doubt()
                raise UnavailableError(
                    f"the read model cannot be read: {exc}",
                    hint="it may be in the making; try again in a moment, or run `hark rebuild`",
                ) from exc
            finally:
                with anyio.CancelScope(shield=True):
                    # After a cancellation a statement may still be running in the connection's thread.
                    if usable and self._is_open:
                        await db.rollback()
                        self._idle.append((db, file))
                    else:
                        await db.close()

    async def _take(self) -> tuple[aiosqlite.Connection, _File]:
        """Return a connection to the file that stands there now; those to one that stood there before are closed."""
        file = identity(self._path)
        while self._idle:
            db, opened = self._idle.pop()
            if opened == file:
                return db, file
            with anyio.CancelScope(shield=True):
                await db.close()
        return await self._connect(), file

    async def _connect(self) -> aiosqlite.Connection:
        with anyio.CancelScope(shield=True):  # a connection half made would leave its thread behind
            try:
                db = await aiosqlite.connect(read_only(self._path), uri=True, isolation_level=None)
            except sqlite3.OperationalError as exc:
                self._doubt()
                raise UnavailableError(
                    f"there is no read model at {self._path} yet", hint="is the server running? `hark up`"
                ) from exc
            db.row_factory = sqlite3.Row
            await db.execute("PRAGMA query_only = ON")
            await db.execute("PRAGMA busy_timeout = 2000")
        return db

    def _doubt(self) -> None:
        if self._progress is not None:
            self._progress.doubt()
