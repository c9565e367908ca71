"""``ResultStore``: results by key, with what is known of them, wherever they are kept.

A result is kept as one line of JSON (key, when it expires, its format, size and SHA-256) and then its bytes, so a file says
by itself what it holds, and what was damaged is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.event import format_time, parse_time
from ...errors import DefinitionError, NotSerializable, ResultLocked, ResultMissing
from ...vocabulary import new_id
from ..results import decode_bytes, encode_bytes
from ..writing import serializer_meant, serializer_or_pickle, serializer_that_reads
from .result_record import ResultRecord, ResultRecordMetadata
from .shelf import BrokerShelf, FileShelf, Shelf

if TYPE_CHECKING:
    from ..flows import Flow
    from ..locking import LockManager
    from ..options.keeping import Keeping
    from ..serializers import Serializer
    from ..tasks import Task
    from ..transactions import IsolationLevel

__all__ = ["ResultRecord", "ResultRecordMetadata", "ResultStore", "get_result_store", "shelf_at", "store_of"]

NOWHERE = "(no run)"


class ResultStore:
    """Reads and writes results by key.

    Args:
        result_storage: what ``filesystems.storage_at`` takes. Default: where a broker is known, the broker; else
            files under ``HARK_HOME/storage``.
        metadata_storage: where the lines about results are kept, if not beside them.
        lock_manager: who may compute a key; see ``locking.py``.
        serializer: one, or its name. Default: JSON where a value survives that, else pickle.
    Raises:
        DefinitionError, ValueError, TypeError: an argument makes no sense.
    """

    def __init__(
        self,
        result_storage: object = None,
        *,
        metadata_storage: object = None,
        lock_manager: LockManager | None = None,
        serializer: Serializer | str | None = None,
        cache_result_in_memory: bool = True,
        storage_key_fn: Callable[[], str] = new_id,
    ) -> None:
        self.result_storage = result_storage
        self.metadata_storage = metadata_storage
        self.lock_manager = lock_manager
        self.serializer = serializer_meant(serializer)
        self.cache_result_in_memory = cache_result_in_memory
        self.storage_key_fn = storage_key_fn

    @property
    def shelf(self) -> Shelf:
        """Where the results are. Raises ``DefinitionError`` if the storage is none."""
        return shelf_at(self.result_storage)

    @property
    def _about(self) -> Shelf | None:
        return None if self.metadata_storage is None else shelf_at(self.metadata_storage)

    # --- reading --------------------------------------------------------------------------------------

    def exists(self, key: str) -> bool:
        """Return whether there is a result that has not expired."""
        return self._valid(key, (self._about or self.shelf).get(key)) is not None

    async def aexists(self, key: str) -> bool:
        """Do what ``exists`` does, without holding the loop."""
        return self._valid(key, await (self._about or self.shelf).aget(key)) is not None

    def read(self, key: str, holder: str | None = None) -> ResultRecord:
        """Return a result; waits while somebody else has its lock.

        Raises:
            ResultMissing: there is none, it has expired, or it cannot be read.
            ResultStorageFailed, BusUnavailable: the storage does not answer.
        """
        if self.lock_manager is not None and not self.is_lock_holder(key, holder):
            self.lock_manager.wait_for_lock(key)
        about = self._about
        if about is not None and self._valid(key, about.get(key)) is None:
            raise self._missing(key)
        return self._record(key, self.shelf.get(key))

    async def aread(self, key: str, holder: str | None = None) -> ResultRecord:
        """Do what ``read`` does, without holding the loop."""
        if self.lock_manager is not None and not self.is_lock_holder(key, holder):
            await self.lock_manager.await_for_lock(key)
        about = self._about
        if about is not None and self._valid(key, await about.aget(key)) is None:
            raise self._missing(key)
        return self._record(key, await self.shelf.aget(key))

    def _valid(self, key: str, raw: bytes | None) -> tuple[dict[str, Any], bytes] | None:
        """Return the line about a result and its bytes, if it is that of the key and still counts."""
        line, newline, data = (raw or b"").partition(b"\n")
        try:
            header = orjson.loads(line) if newline else None
        except orjson.JSONDecodeError:
            return None
        if not isinstance(header, dict) or header.get("key") != key:
            return None
        expires = header.get("expires")
        return None if expires and parse_time(expires) <= datetime.now(UTC) else (header, data)

    def _record(self, key: str, raw: bytes | None) -> ResultRecord:
        found = self._valid(key, raw)
        if found is None:
            raise self._missing(key)
        header, data = found
        value = opened(header, data, run_id=NOWHERE, key=key, serializer=self.serializer)
        expires = header.get("expires")
        by = self.serializer or serializer_that_reads(str(header["format"]))
        about = ResultRecordMetadata(key, parse_time(expires) if expires else None, by)
        return ResultRecord(value, about)

    def _missing(self, key: str) -> ResultMissing:
        where = self.shelf.name or repr(self.result_storage)[:200]
        return ResultMissing(NOWHERE, key, why=f"there is none at {where} that counts")

    # --- writing --------------------------------------------------------------------------------------

    def write(
        self, obj: Any, key: str | None = None, expiration: datetime | None = None, holder: str | None = None
    ) -> str:
        """Keep a result; return its key.

        Raises:
            NotSerializable: the serializer cannot write it; also a ``TypeError``.
            ResultLocked: somebody else has the lock of the key; also a ``RuntimeError``.
            ResultStorageFailed, BusUnavailable, LimitError: the storage does not take it.
        """
        key = key or self.storage_key_fn()
        self._check_lock(key, holder)
        line, data, ttl_s = self._packed(obj, key, expiration)
        self.shelf.put(key, line + data, ttl_s=ttl_s)
        if (about := self._about) is not None:
            about.put(key, line, ttl_s=ttl_s)
        return key

    async def awrite(
        self, obj: Any, key: str | None = None, expiration: datetime | None = None, holder: str | None = None
    ) -> str:
        """Do what ``write`` does, without holding the loop."""
        key = key or self.storage_key_fn()
        self._check_lock(key, holder)
        line, data, ttl_s = self._packed(obj, key, expiration)
        await self.shelf.aput(key, line + data, ttl_s=ttl_s)
        if (about := self._about) is not None:
            await about.aput(key, line, ttl_s=ttl_s)
        return key

    def create_result_record(
        self, obj: Any, key: str | None = None, expiration: datetime | None = None
    ) -> ResultRecord:
        """Return a record to be kept with ``persist_result_record``; nothing is kept yet."""
        by = serializer_or_pickle(self.serializer)
        return ResultRecord(obj, ResultRecordMetadata(key or self.storage_key_fn(), expiration, by))

    def persist_result_record(self, result_record: ResultRecord, holder: str | None = None) -> None:
        """Keep a record under its key; raises what ``write`` raises."""
        about = result_record.metadata
        self.write(result_record.result, about.storage_key, about.expiration, holder)

    async def apersist_result_record(self, result_record: ResultRecord, holder: str | None = None) -> None:
        """Do what ``persist_result_record`` does, without holding the loop."""
        about = result_record.metadata
        await self.awrite(result_record.result, about.storage_key, about.expiration, holder)

    def _packed(self, obj: Any, key: str, expiration: datetime | None) -> tuple[bytes, bytes, float | None]:
        try:
            data, format_ = encode_bytes(obj, self.serializer)
        except Exception as exc:  # anything at all may be raised by what cannot be written
            kind = self.serializer.format if self.serializer is not None else "pickle"
            raise NotSerializable(
                f"the result {key!r}, a {type(obj).__name__}, cannot be written as {kind}: {exc}"
            ) from exc
        header = {
            "key": key, "expires": format_time(expiration) if expiration else None, "format": format_,
            "size": len(data), "sha256": sha256(data).hexdigest(),
        }  # fmt: skip
        ttl_s = None
        if expiration is not None:
            ttl_s = max(1.0, (expiration - datetime.now(UTC)) / timedelta(seconds=1))
        return orjson.dumps(header) + b"\n", data, ttl_s

    # --- locks ----------------------------------------------------------------------------------------

    def supports_isolation_level(self, level: IsolationLevel | str) -> bool:
        """Return whether the level can be had here: SERIALIZABLE takes a lock manager."""
        return str(getattr(level, "value", level)) != "SERIALIZABLE" or self.lock_manager is not None

    def acquire_lock(self, key: str, holder: str | None = None, timeout: float | None = None) -> bool:
        """Wait for the lock of a key; return whether it was got within ``timeout`` seconds."""
        return self._locks().acquire_lock(key, holder or new_id(), acquire_timeout=timeout)

    async def aacquire_lock(self, key: str, holder: str | None = None, timeout: float | None = None) -> bool:
        """Do what ``acquire_lock`` does, without holding the loop."""
        return await self._locks().aacquire_lock(key, holder or new_id(), acquire_timeout=timeout)

    def release_lock(self, key: str, holder: str | None = None) -> None:
        """Give a lock back. Raises ``ValueError`` if the holder does not have it."""
        self._locks().release_lock(key, holder or "")

    def is_locked(self, key: str) -> bool:
        return self._locks().is_locked(key)

    def is_lock_holder(self, key: str, holder: str | None = None) -> bool:
        return self._locks().is_lock_holder(key, holder or "")

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody has the lock; return whether that came to be within ``timeout`` seconds."""
        return self._locks().wait_for_lock(key, timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Do what ``wait_for_lock`` does, without holding the loop."""
        return await self._locks().await_for_lock(key, timeout)

    def _locks(self) -> LockManager:
        if self.lock_manager is None:
            raise DefinitionError(
                "this result store has no lock manager", hint="say lock_manager=MemoryLockManager(), for one"
            )
        return self.lock_manager

    def _check_lock(self, key: str, holder: str | None) -> None:
        locks = self.lock_manager
        # Asked with a holder only: whoever writes without one takes part in no locking.
        if locks is None or holder is None or locks.is_lock_holder(key, holder):
            return
        if locks.is_locked(key):
            raise ResultLocked(f"the result {key!r} cannot be written: it is locked by another holder")

    def update_for_flow(self, flow: Flow[..., Any]) -> ResultStore:
        """Return a copy that keeps results as a flow says."""
        return self.with_changes(**self._said(flow))

    def update_for_task(self, task: Task[..., Any]) -> ResultStore:
        """Return a copy that keeps results as a task says, and its cache policy."""
        policy = task.cache_policy
        about = (
            {"metadata_storage": policy.key_storage, "lock_manager": policy.lock_manager} if policy else {}
        )
        return self.with_changes(
            **self._said(task), **{name: value for name, value in about.items() if value is not None}
        )

    async def aupdate_for_flow(self, flow: Flow[..., Any]) -> ResultStore:
        """Do what ``update_for_flow`` does, in async code."""
        return self.update_for_flow(flow)

    async def aupdate_for_task(self, task: Task[..., Any]) -> ResultStore:
        """Do what ``update_for_task`` does, in async code."""
        return self.update_for_task(task)

    @staticmethod
    def _said(of: Flow[..., Any] | Task[..., Any]) -> dict[str, Any]:
        said = {"result_storage": of.result_storage, "serializer": of.result_serializer}
        if not of.cache_result_in_memory:
            said["cache_result_in_memory"] = False
        return {name: value for name, value in said.items() if value is not None}

    def with_changes(self, **changes: Any) -> ResultStore:
        """Return a copy with some of its arguments changed."""
        mine = {
            "metadata_storage": self.metadata_storage, "lock_manager": self.lock_manager, "serializer": self.serializer,
            "cache_result_in_memory": self.cache_result_in_memory, "storage_key_fn": self.storage_key_fn,
            "result_storage": self.result_storage,
        }  # fmt: skip
        return ResultStore(**{**mine, **changes})


def opened(
    header: dict[str, Any], data: bytes, *, run_id: str, key: str, serializer: Serializer | None = None
) -> Any:
    """Return the value of a kept result. Raises ``ResultMissing`` if its bytes are not those that were kept."""
    if len(data) != header.get("size") or sha256(data).hexdigest() != header.get("sha256"):
        raise ResultMissing(run_id, key, why="it is not what was stored (its SHA-256 differs)")
    return decode_bytes(data, header.get("format"), run_id=run_id, key=key, serializer=serializer)


def shelf_at(storage: object) -> Shelf:
    """Return where a storage keeps results; of None, where this code keeps them by default.

    Raises:
        DefinitionError: it is no storage. UnknownName: no such block.
    """
    if isinstance(storage, Shelf):
        return storage
    if storage is None:
        return _default_shelf()
    if isinstance(storage, str):
        return BrokerShelf() if storage == "broker" else _shelf_named(storage)
    from ..filesystems import storage_at

    return FileShelf(*storage_at(storage))


@lru_cache(maxsize=256)
def _shelf_named(name: str) -> Shelf:
    # Once per process: a saved block is read from the broker.
    from ..filesystems import storage_at

    return FileShelf(*storage_at(name))


def _default_shelf() -> Shelf:
    from ...bus.session import current_session
    from ..context import FlowRunContext
    from ..filesystems import LocalFileSystem

    flow = FlowRunContext.get()
    tracked = flow.tracker is not None if flow is not None else current_session() is not None
    if tracked:
        return BrokerShelf()
    local = LocalFileSystem()
    return FileShelf(local, local.where())


def get_result_store() -> ResultStore:
    """Return the store of the run the code is in; outside of any, the default one."""
    from ..options.keeping import keeping_here

    return store_of(keeping_here())


def store_of(keeping: Keeping | None) -> ResultStore:
    """Return the store that what has been said of results makes."""
    if keeping is None:
        return ResultStore()
    return ResultStore(
        keeping.storage, serializer=keeping.serializer, cache_result_in_memory=keeping.in_memory
    )
