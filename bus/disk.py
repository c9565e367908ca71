"""Writes of the embedded broker that failed: noticed in its log, and whether its disk takes writes again.

A nats-server that could not write once (the disk was full) takes nothing more for that stream until it is started anew,
whatever room there is by then, and says so nowhere but in its log: a publish gets no answer.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

__all__ = ["LogEnd", "room_for", "write_fault"]

_SIGNS = (b"JetStream failed to store a msg", b"ritical write error", b"will be DISABLED")
"""What the broker writes for a message that it could not write to disk. A stream that holds as much as it may is no such case:
that is written for debugging only, and answered."""
_NEEDED = 16 << 20
"""Less room than this is full again within moments."""
_MOST = 1 << 20
"""More of the log than this between two looks is not read: what is wrong is said again for every message."""


class LogEnd:
    """What is appended to a file, also when that is renamed and begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._at = 0, 0
        with suppress(OSError):
            found = path.stat()
            self._inode, self._at = found.st_ino, found.st_size

    def news(self) -> bytes:
        """Return what was written since the last look; empty when nothing was."""
        try:
            found = self._path.stat()
            if found.st_ino != self._inode or found.st_size < self._at:
                self._inode, self._at = found.st_ino, 0
            if found.st_size == self._at:
                return b""
            with self._path.open("rb") as file:
                file.seek(max(self._at, found.st_size - _MOST))
                text = file.read()
                self._at = file.tell()
        except OSError:
            return b""
        return text


def write_fault(said: bytes) -> str:
    """Return why the broker could not write, as it says in lines of its log; empty if they say nothing of that."""
    for line in said.splitlines():
        if any(sign in line for sign in _SIGNS):
            # "[831] 2026/11/21 15:41:44.191510 [ERR] Filestore [HARK] Critical write error: write <file>: no space left …"
            return (
                line.partition(b"] ")[2]
                .rpartition(b"[ERR] ")[2]
                .rpartition(b": ")[2]
                .decode(errors="replace")
            )
    return ""


def room_for(folder: Path) -> str:
    """Return why nothing much can be written into a folder now; empty if it can."""
    probe = folder / f".room.{os.getpid()}"
    try:
        with probe.open("wb") as out:
            out.write(bytes(_MOST))
            out.flush()
            os.fsync(out.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        return exc.strerror or str(exc)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return "" if free >= _NEEDED else f"{free >> 20} MiB are free, {_NEEDED >> 20} are needed"
