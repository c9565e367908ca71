"""Locks as files in a folder, for processes that share it: of those who ask for a key at once, one has it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path

import orjson
from anyio import sleep, to_thread

from ...vocabulary import new_id

__all__ = ["FileSystemLockManager"]

LOOK_S = 0.05
"""How often a waiting process looks: files tell nobody that they are gone."""


class FileSystemLockManager:
    """Locks among processes that see the same folder. A process that dies keeps its locks until their ``hold_timeout``.

    Where a broker is known, its locks (the default) are better: they end with their holder, and wake who waits.

    Args:
        lock_files_directory: made when it is needed.
    """

    def __init__(self, lock_files_directory: Path | str) -> None:
        self.lock_files_directory = Path(lock_files_directory).expanduser().resolve()

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Wait for the lock; return whether it was got. Asking for a lock one has returns True."""
        deadline = _deadline(acquire_timeout)
        while not self._take(key, holder, hold_timeout):
            if not _has_time(deadline):
                return False
            time.sleep(LOOK_S)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Do what ``acquire_lock`` does, without holding the loop."""
        deadline = _deadline(acquire_timeout)
        # Not given up halfway: a lock that was taken by a cancelled call would be nobody's.
        while not await to_thread.run_sync(self._take, key, holder, hold_timeout):
            if not _has_time(deadline):
                return False
            await sleep(LOOK_S)
        return True

    def release_lock(self, key: str, holder: str) -> None:
        """Give the lock back. Raises ``ValueError`` if the holder does not have it."""
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder!r} does not have the lock of {key!r}")
        self._path(key).unlink(missing_ok=True)

    def is_locked(self, key: str) -> bool:
        return self._holder(key) is not None

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return self._holder(key) == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody has it; return whether that came to be in time."""
        deadline = _deadline(timeout)
        while self.is_locked(key):
            if not _has_time(deadline):
                return False
            time.sleep(LOOK_S)
        return True

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Do what ``wait_for_lock`` does, without holding the loop."""
        deadline = _deadline(timeout)
        while await to_thread.run_sync(self.is_locked, key):
            if not _has_time(deadline):
                return False
            await sleep(LOOK_S)
        return True

    def _take(self, key: str, holder: str, hold_s: float | None) -> bool:
        """Take the lock if it is free; return whether the holder has it now."""
        holds = self._holder(key)
        if holds is not None:
            return holds == holder
        self.lock_files_directory.mkdir(parents=True, exist_ok=True)
        until = None if hold_s is None else (datetime.now(UTC) + timedelta(seconds=hold_s)).isoformat()
        draft = self.lock_files_directory / f".{new_id()}"
        draft.write_bytes(orjson.dumps({"key": key, "holder": holder, "expiration": until}))
        try:
            # Linking fails if the name is taken, and nobody ever sees a file that is not whole.
            os.link(draft, self._path(key))
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _holder(self, key: str) -> str | None:
        """Return who has the lock; one whose time is up is put out of the way."""
        path = self._path(key)
        try:
            written = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        until = written["expiration"]
        if until is None or datetime.fromisoformat(until) > datetime.now(UTC):
            return str(written["holder"])
        self._expire(path, written)
        return None

    def _expire(self, path: Path, written: dict[str, str | None]) -> None:
        """Remove a lock whose time is up, and not the one that somebody has taken in its place meanwhile."""
        aside = path.with_name(f".{new_id()}")
        with _expiring:
            try:
                path.rename(aside)
            except FileNotFoundError:
                return
            if orjson.loads(aside.read_bytes()) != written:
                # Somebody else's: it goes back, unless yet another has come.
                with contextlib.suppress(FileExistsError):
                    os.link(aside, path)
            aside.unlink()

    def _path(self, key: str) -> Path:
        # Keys are any text; names of files are not.
        name = key
        if not _AS_IT_IS.fullmatch(key):
            name = "key-" + blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return self.lock_files_directory / f"{name}.lock"


_expiring = threading.Lock()
_AS_IT_IS = re.compile(r"[a-z0-9_-][a-z0-9_.-]{0,199}")
"""Keys that are names of files everywhere; those with capitals are not told apart by every file system."""


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _has_time(deadline: float | None) -> bool:
    return deadline is None or time.monotonic() < deadline
