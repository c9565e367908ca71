"""One file that holds pieces of bytes, each with its hash: what ``hark backup`` writes.

A line that says what it is, then frames of a kind (one byte), a length (four) and a payload: a header; for each piece its
description, its bytes in chunks, and its hash; at the end the hash of all that came before. A file without its end, or
with one bit that is not as it was written, is recognised before anything of it is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from ..errors import AlreadyHeld, BackupUnreadable, RefusedError
from ..vocabulary import JsonObject

__all__ = ["FORMAT", "Archive", "ArchiveWriter", "Piece", "read_archive", "writing"]

MAGIC = b"hark-backup\n"
FORMAT = 1
"""Raised when a file written now could not be read as it was before."""
_FRAME = struct.Struct(">cI")
_MOST_BYTES = 64 << 20
"""No frame is longer: a length above it is not a length."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of an archive. ``about`` says what it is; ``offset`` is where its first frame begins."""

    name: str
    about: JsonObject
    size_bytes: int
    sha256: str
    offset: int


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that is whole: every hash has been compared."""

    path: Path
    header: JsonObject
    pieces: tuple[Piece, ...]
    size_bytes: int

    def piece(self, name: str) -> Piece | None:
        """Return the piece of that name, None if there is none."""
        return next((p for p in self.pieces if p.name == name), None)

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """Yield the bytes of a piece as they were written, chunk by chunk.

        Raises:
            BackupUnreadable: the file has changed since it was read.
        """
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(piece.offset)
            reader = _Reader(file, self.path)
            while True:
                kind, payload = reader.frame()
                if kind != b"D":
                    break
                digest.update(payload)
                yield payload
        if digest.hexdigest() != piece.sha256:
            raise BackupUnreadable(str(self.path), f"{piece.name} has changed while it was read")


class ArchiveWriter:
    """Writes pieces one after the other. Made by ``writing``."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._all = file, hashlib.sha256()
        self._digest: Any = None
        self._size = 0
        self.pieces = 0
        self.size_bytes = 0
        self._put(MAGIC)

    def header(self, value: JsonObject) -> None:
        """Write what the file as a whole is. First."""
        self._frame(b"H", orjson.dumps({"format": FORMAT, **value}))

    def begin(self, name: str, about: JsonObject) -> None:
        """Begin a piece."""
        self._digest, self._size = hashlib.sha256(), 0
        self._frame(b"P", orjson.dumps({"name": name, "about": about}))

    def chunk(self, data: bytes) -> None:
        """Write the next bytes of the piece."""
        self._digest.update(data)
        self._size += len(data)
        self._frame(b"D", data)

    def end(self) -> int:
        """End the piece; return its size in bytes."""
        self._frame(b"E", orjson.dumps({"sha256": self._digest.hexdigest(), "size_bytes": self._size}))
        self.pieces += 1
        return self._size

    def close(self) -> None:
        """Write the end, without which the file is none."""
        self._frame(b"Z", orjson.dumps({"pieces": self.pieces, "sha256": self._all.hexdigest()}))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _frame(self, kind: bytes, payload: bytes) -> None:
        self._put(_FRAME.pack(kind, len(payload)))
        self._put(payload)

    def _put(self, data: bytes) -> None:
        self._all.update(data)
        self._file.write(data)
        self.size_bytes += len(data)


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[ArchiveWriter]:
    """Write an archive (0600): under another name until it is whole, so that ``path`` is the old one or the new one.

    What a killed process has left (``<path>.partial``) is written over.

    Raises:
        RefusedError: ``path`` is there. AlreadyHeld: another process writes it now.
    """
    if path.exists() and not overwrite:
        raise RefusedError(f"{path} is there already", hint="name another file, or say --force to replace it")
    partial = path.with_name(f"{path.name}.partial")
    # Not truncated before it is ours: somebody may be writing it.
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b", buffering=1 << 20) as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise AlreadyHeld(
                f"the file {partial}", holder="another backup", hint="wait for it, or name another file"
            ) from exc
        os.fchmod(fd, 0o600)
        file.truncate(0)
        done = False
        try:
            writer = ArchiveWriter(file)
            yield writer
            writer.close()
            if overwrite:
                partial.replace(path)
            else:
                _link(partial, path)
            done = True
        finally:
            if not done:
                partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _link(partial: Path, path: Path) -> None:
    """Give the finished file its name, unless somebody has made one of that name meanwhile."""
    try:
        os.link(partial, path)
    except FileExistsError as exc:
        raise RefusedError(f"{path} has been made meanwhile", hint="name another file") from exc
    except OSError:
        # A file system without links (FAT, some network ones).
        partial.rename(path)
        return
    partial.unlink()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Reader:
    """Reads frames, and says where and how a file ends too early."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self.digest = hashlib.sha256()
        self.before_frame = b""

    def frame(self) -> tuple[bytes, bytes]:
        # Of all that came before this frame, which is what the last one holds.
        self.before_frame = self.digest.copy().hexdigest().encode()
        kind, length = _FRAME.unpack(self.take(_FRAME.size))
        if length > _MOST_BYTES:
            raise BackupUnreadable(str(self._path), f"it is damaged at byte {self._file.tell()}")
        return kind, self.take(length)

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise BackupUnreadable(
                str(self._path), f"it ends too early, at byte {self._file.tell()}",
                hint="its copying was cut off, or the disk was full: copy it again, or use another backup",
            )  # fmt: skip
        self.digest.update(data)
        return data


def read_archive(path: Path) -> Archive:
    """Read an archive to its end, comparing every hash; nothing is kept but where its pieces are.

    Raises:
        BackupUnreadable: it is none, of a newer format, cut off, or damaged; the message says which.
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise BackupUnreadable(str(path), exc.strerror or str(exc), hint="check the path") from exc
    with file:
        reader = _Reader(file, path)
        if file.read(len(MAGIC)) != MAGIC:
            raise BackupUnreadable(str(path), "it is no backup of Hark", hint="`hark backup FILE` writes one")
        reader.digest.update(MAGIC)
        try:
            return _read(reader, file, path)
        except (KeyError, TypeError, ValueError) as exc:
            raise BackupUnreadable(str(path), f"it is damaged at byte {file.tell()} ({exc!r})") from exc


def _read(reader: _Reader, file: IO[bytes], path: Path) -> Archive:
    kind, payload = reader.frame()
    header = orjson.loads(payload) if kind == b"H" else {}
    if int(header["format"]) > FORMAT:
        raise BackupUnreadable(
            str(path), f"a newer Hark has written it (format {header['format']}, this one reads {FORMAT})",
            hint=f"install Hark {header.get('hark', 'of that time')} or later",
        )  # fmt: skip
    pieces: list[Piece] = []
    while True:
        kind, payload = reader.frame()
        if kind == b"Z":
            end = orjson.loads(payload)
            if end["sha256"].encode() != reader.before_frame or end["pieces"] != len(pieces):
                raise BackupUnreadable(str(path), "it is damaged: its bytes are not those that were written")
            break
        if kind != b"P":
            raise BackupUnreadable(str(path), f"it is damaged at byte {file.tell()}")
        begun, offset, digest, size = orjson.loads(payload), file.tell(), hashlib.sha256(), 0
        while True:
            kind, payload = reader.frame()
            if kind != b"D":
                break
            digest.update(payload)
            size += len(payload)
        ended = orjson.loads(payload) if kind == b"E" else {}
        if ended.get("sha256") != digest.hexdigest() or ended.get("size_bytes") != size:
            raise BackupUnreadable(
                str(path), f"{begun['name']} is damaged: its bytes are not those that were written"
            )
        pieces.append(Piece(str(begun["name"]), begun["about"], size, digest.hexdigest(), offset))
    if file.read(1):
        raise BackupUnreadable(str(path), "something has been written behind its end")
    return Archive(path, header, tuple(pieces), file.tell())
