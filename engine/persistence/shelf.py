"""Where results are kept by their keys: files of a storage, or the broker. Bytes in, bytes out; sync and async."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from ...errors import HarkError, ResultStorageFailed
from ..options.hooks import call_blocking
from ..sync_async.either import blocking_session, session_here

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["BrokerShelf", "FileShelf", "Shelf", "path_of"]

BUCKET = "cache"
INLINE_BYTES = 64 * 1024
_MAX_PART_BYTES = 200
"""File systems take names of 255 bytes."""


class Shelf(ABC):
    """Keeps bytes by key."""

    name: str | None = None
    """How another process finds it; None if it cannot."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return what is kept, None if nothing is. Raises ``ResultStorageFailed``, ``BusUnavailable``."""

    @abstractmethod
    async def aget(self, key: str) -> bytes | None:
        """Do what ``get`` does, without holding the loop."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, ttl_s: float | None = None) -> None:
        """Keep bytes in place of what was there. Raises ``ResultStorageFailed``, ``BusUnavailable``, ``LimitError``."""

    @abstractmethod
    async def aput(self, key: str, data: bytes, *, ttl_s: float | None = None) -> None:
        """Do what ``put`` does, without holding the loop."""


def path_of(key: str) -> str:
    """Return the relative path a key is kept under: itself where it can be a path, else a hash of it."""
    parts = key.split("/")
    fits = all(
        part not in ("", ".", "..") and len(part.encode("utf-8", "replace")) <= _MAX_PART_BYTES
        for part in parts
    )
    if fits and key.isprintable() and "\\" not in key and ":" not in parts[0]:
        return key
    return f"key-{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"


class FileShelf(Shelf):
    """The files of a storage (``filesystems.py``), or of any object with ``read_path`` and ``write_path``."""

    def __init__(self, files: Any, name: str | None) -> None:
        self.files = files
        self.name = name

    def get(self, key: str) -> bytes | None:
        try:
            found = call_blocking(self.files.read_path, path_of(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError):
            return None
        except Exception as exc:  # whatever a storage of somebody's raises
            raise self._failed("reading", key, exc) from exc
        return _bytes(found)

    async def aget(self, key: str) -> bytes | None:
        try:
            found = await _in_thread(self.files.read_path, path_of(key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError):
            return None
        except Exception as exc:  # whatever a storage of somebody's raises
            raise self._failed("reading", key, exc) from exc
        return _bytes(found)

    def put(self, key: str, data: bytes, *, ttl_s: float | None = None) -> None:
        try:
            call_blocking(self.files.write_path, path_of(key), data)
        except Exception as exc:  # whatever a storage of somebody's raises
            raise self._failed("writing", key, exc) from exc

    async def aput(self, key: str, data: bytes, *, ttl_s: float | None = None) -> None:
        try:
            await _in_thread(self.files.write_path, path_of(key), data)
        except Exception as exc:  # whatever a storage of somebody's raises
            raise self._failed("writing", key, exc) from exc

    def _failed(self, doing: str, key: str, exc: Exception) -> HarkError:
        if isinstance(exc, HarkError):
            return exc
        where = self.name or repr(self.files)[:200]
        return ResultStorageFailed(where, key, doing=doing, why=f"{type(exc).__name__}: {exc}"[:1000])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileShelf) and (other.files is self.files or other.files == self.files)

    def __hash__(self) -> int:
        return hash(self.name)


class BrokerShelf(Shelf):
    """The broker: bucket ``cache``, and the object store for what is large. Every machine has it."""

    name = "broker"

    def get(self, key: str) -> bytes | None:
        session = blocking_session("a kept result")
        return session.call(self._get, session, key)

    async def aget(self, key: str) -> bytes | None:
        session = session_here("a kept result")
        return await session.acall(self._get, session, key)

    def put(self, key: str, data: bytes, *, ttl_s: float | None = None) -> None:
        session = blocking_session("a kept result")
        session.call(self._put, session, key, data, ttl_s)

    async def aput(self, key: str, data: bytes, *, ttl_s: float | None = None) -> None:
        session = session_here("a kept result")
        await session.acall(self._put, session, key, data, ttl_s)

    async def _get(self, session: Session, key: str) -> bytes | None:
        entry = await session.bus.bucket(BUCKET).get(_hashed(key))
        if entry is None:
            return None
        if entry.value[:1] == b"@":
            return await session.bus.objects.get(orjson.loads(entry.value[1:]))
        return entry.value

    async def _put(self, session: Session, key: str, data: bytes, ttl_s: float | None) -> None:
        value = data
        if len(data) > INLINE_BYTES:
            # By its content: a result that is read while another is kept stays whole.
            name = f"results/cache/{_hashed(key)}-{blake2b(data, digest_size=12).hexdigest()}"
            await session.bus.objects.put(name, data)
            value = b"@" + orjson.dumps(name)
        await session.bus.bucket(BUCKET).put(_hashed(key), value, ttl_s=ttl_s)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BrokerShelf)

    def __hash__(self) -> int:
        return hash("broker")


def _hashed(key: str) -> str:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _bytes(found: object) -> bytes | None:
    if found is None:
        return None
    return found.encode() if isinstance(found, str) else bytes(found)  # type: ignore[call-overload]


async def _in_thread(fn: Any, *args: Any) -> Any:
    """Call what may be sync, which must not hold the loop, or async."""
    if inspect.iscoroutinefunction(fn):
        return await fn(*args)
    from anyio import to_thread

    outcome = await to_thread.run_sync(fn, *args)
    return await outcome if inspect.isawaitable(outcome) else outcome
