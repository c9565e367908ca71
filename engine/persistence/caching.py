"""Results that outlive their call: looked up before a task runs, kept after it has, under a key.

They are kept in the storage that the task or its flow chose; else, where a broker is known, there, so that every machine has
them; else in files under ``HARK_HOME/storage``. What cannot be looked up or kept is said in the log, and the task runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ...errors import DefinitionError, HarkError
from ...vocabulary import new_id
from ..options.task_options import engine_settings
from ..results import InlineResult, missing, reference_to
from .result_store import ResultStore

if TYPE_CHECKING:
    from ..cache_policies import CachePolicy
    from ..calls.task_call import TaskCall
    from ..options.keeping import Keeping

__all__ = ["MISS", "CallCache", "TaskCache", "cache_of", "staged_copy", "store_elsewhere"]

log = logging.getLogger("hark.cache")

MISS: Any = object()
"""What reading gives when there is nothing; None is a result like any other."""


@dataclass(frozen=True, slots=True)
class TaskCache:
    """How a task's results are cached.

    Attributes:
        expires_s: how long a result counts; None: for good.
        refreshes: run anyway, and keep the new result; None: as the settings say.
        is_implied: nobody asked for it but by ``persist_result=True``: it holds within one run, in memory.
    """

    policy: CachePolicy
    expires_s: float | None = None
    refreshes: bool | None = None
    is_implied: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        *,
        policy: CachePolicy | None,
        key_fn: Callable[..., str | None] | None,
        expiration: timedelta | float | str | None,
        refresh: bool | None,
        persist: bool | None,
    ) -> TaskCache | None:
        """Return what the options of a task say; None if nothing of it is cached.

        Raises:
            TypeError, ValueError: an option makes no sense.
        """
        from ...duration import seconds_of
        from ..cache_policies import DEFAULT, NO_CACHE, CachePolicy

        if key_fn is not None and not callable(key_fn):
            raise TypeError(f"cache_key_fn must be a function, got {key_fn!r}")
        if policy is not None and not isinstance(policy, CachePolicy):
            raise TypeError(f"cache_policy must be a cache policy such as INPUTS, got {policy!r}")
        expires_s = None
        if isinstance(expiration, timedelta):
            # One in the past is a result that never counts.
            expires_s = max(0.0, expiration.total_seconds())
        elif expiration is not None:
            expires_s = seconds_of(expiration)
        chosen = policy
        if key_fn is not None:
            if policy is not None:
                log.warning(
                    "Both `cache_policy` and `cache_key_fn` are set on task %r. `cache_key_fn` will be used.",
                    name,
                )
            chosen = CachePolicy.from_cache_key_fn(key_fn)
        if persist is False:
            if chosen is not None and chosen is not NO_CACHE:
                log.warning("task %r: Ignoring `cache_policy` because `persist_result` is False", name)
            return None
        if chosen is NO_CACHE:
            return None
        if chosen is None:
            return cls(DEFAULT, expires_s, refresh, is_implied=True) if persist else None
        return cls(chosen, expires_s, refresh)


def cache_of(call: TaskCall) -> CallCache | None:
    """Return where the call's result is looked up and kept; None if it is neither. Inside the task's context.

    Raises:
        DefinitionError: its storage is none, or its ``result_storage_key`` cannot be made.
    """
    task, flow, keeping = call.task, call.flow, call.keeping
    if task.isgenerator or (keeping is not None and keeping.persist is False):
        return None
    persists = keeping is not None and bool(keeping.persist)
    cache = task.cache or (_implied() if persists and not task.is_uncached else None)
    storage = keeping.storage if keeping is not None and persists else None
    expires_s = cache.expires_s if cache is not None else None
    if task.result_storage_key is not None:
        key: str | None = _named(task.result_storage_key)
    else:
        key = _key_of(call, cache) if cache is not None else None
    if key is None:
        # Under a name of its own: nobody looks for it but those who have the reference.
        return CallCache(_store(call, storage), new_id(), looks_up=False) if call.is_stored else None
    refreshes = task.cache.refreshes if task.cache is not None else None
    looks_up = not (engine_settings().refresh_cache if refreshes is None else refreshes)
    if cache is not None and cache.is_implied and storage is None and task.result_storage_key is None:
        if flow is None:
            return None
        return CallCache(None, key, memory=flow.cached, expires_s=expires_s, looks_up=looks_up)
    policy = cache.policy if cache is not None and task.result_storage_key is None else None
    return CallCache(
        _store(call, storage, policy), key, expires_s=expires_s, looks_up=looks_up,
        is_exclusive=policy is not None and policy.isolation_level == "SERIALIZABLE",
    )  # fmt: skip


def _store(call: TaskCall, storage: object, policy: CachePolicy | None = None) -> ResultStore:
    serializer = call.keeping.serializer if call.keeping is not None else None
    locks = None
    if policy is not None and policy.isolation_level == "SERIALIZABLE":
        from ..locking import default_lock_manager

        locks = policy.lock_manager or default_lock_manager()
    return ResultStore(
        storage,
        serializer=serializer,
        lock_manager=locks,
        metadata_storage=policy.key_storage if policy is not None else None,
    )


def staged_copy(call: TaskCall) -> CallCache | None:
    """Return where the result of a call stands until it is committed; None if that is in the log."""
    if not call.is_stored or call.keeping is None:
        return None
    return CallCache(_store(call, call.keeping.storage), f"staged/{call.run.id}", looks_up=False)


async def store_elsewhere(value: Any, keeping: Keeping) -> InlineResult:
    """Keep what a flow returned in the storage it chose; return what its last event says of it."""
    kept = CallCache(ResultStore(keeping.storage, serializer=keeping.serializer), new_id(), looks_up=False)
    if await kept.awrite(value):
        return kept.reference()
    return missing(f"it could not be kept in {keeping.storage!r}")


def _implied() -> TaskCache:
    from ..cache_policies import DEFAULT

    return TaskCache(DEFAULT, is_implied=True)


def _key_of(call: TaskCall, cache: TaskCache) -> str | None:
    from ..cache_policies import MAX_KEY_CHARS
    from ..context import TaskRunContext

    flow = call.flow
    try:
        key: object = cache.policy.compute_key(
            TaskRunContext.here(), call.run.parameters, flow.parameters if flow is not None else {}
        )
    except Exception as exc:  # whatever the author's function raises
        log.exception(
            "the cache key of task %r cannot be made, so it runs and is not cached: %s", call.task.name, exc
        )
        return None
    if key is None:
        return None
    if not isinstance(key, str) or not key or len(key) > MAX_KEY_CHARS:
        shown = repr(key)[:80]
        log.error(
            "task %r has the cache key %s, which is no text of 1 to %d characters: it is not cached; return str(key)",
            call.task.name,
            shown,
            MAX_KEY_CHARS,
        )
        return None
    return key


def _named(template: str) -> str:
    """Return the key that a ``result_storage_key`` makes of the run: ``"{flow_run.name}/{parameters[day]}"``."""
    from .. import runtime

    try:
        return template.format(
            flow_run=runtime.flow_run, task_run=runtime.task_run, deployment=runtime.deployment,
            parameters=runtime.task_run.parameters,
        )  # fmt: skip
    except (LookupError, AttributeError, ValueError) as exc:
        raise DefinitionError(
            f"result_storage_key {template!r} cannot be made: {type(exc).__name__}: {exc}",
            hint="it may use {flow_run.…}, {task_run.…}, {deployment.…} and {parameters[…]}",
        ) from exc


class CallCache:
    """The kept result of one call: in a store, or in the memory of a run.

    Attributes:
        is_exclusive: who looks it up has to have the lock first.
    """

    def __init__(
        self,
        store: ResultStore | None,
        key: str,
        *,
        memory: dict[str, Any] | None = None,
        expires_s: float | None = None,
        looks_up: bool = True,
        is_exclusive: bool = False,
    ) -> None:
        self._store, self.key = store, key
        self._memory, self._expires_s, self._looks_up = memory, expires_s, looks_up
        self.is_exclusive = is_exclusive
        self._holder = new_id()
        self._has_lock = False

    def reference(self) -> InlineResult:
        """Return what an event says of a result that is kept here."""
        assert self._store is not None
        return reference_to(self._store.shelf.name, self.key)

    # --- reading --------------------------------------------------------------------------------------

    def read(self) -> Any:
        """Return the kept result, ``MISS`` if there is none that counts."""
        if self._memory is not None:
            return self._from_memory()
        assert self._store is not None
        try:
            if self.is_exclusive:
                self._has_lock = self._store.acquire_lock(self.key, self._holder)
            if self._looks_up and self._store.exists(self.key):
                return self._store.read(self.key, self._holder).result
        except HarkError as exc:
            self._unreadable(exc)
        return MISS

    async def aread(self) -> Any:
        """Do what ``read`` does, without holding the loop."""
        if self._memory is not None:
            return self._from_memory()
        assert self._store is not None
        try:
            if self.is_exclusive:
                self._has_lock = await self._store.aacquire_lock(self.key, self._holder)
            if self._looks_up and await self._store.aexists(self.key):
                return (await self._store.aread(self.key, self._holder)).result
        except HarkError as exc:
            self._unreadable(exc)
        return MISS

    def _from_memory(self) -> Any:
        assert self._memory is not None
        value, expires = self._memory.get(self.key, (MISS, None)) if self._looks_up else (MISS, None)
        return MISS if expires is not None and expires <= datetime.now(UTC) else value

    def _unreadable(self, exc: HarkError) -> None:
        if isinstance(exc, DefinitionError):
            raise exc  # what is to be fixed is no bad weather
        log.warning("a cached result cannot be read, so the task runs: %s", exc)

    # --- keeping --------------------------------------------------------------------------------------

    def write(self, value: Any) -> bool:
        """Keep a result; return whether it is kept."""
        if self._memory is not None:
            self._memory[self.key] = value, self._expires_at()
            return True
        assert self._store is not None
        try:
            self._store.write(value, self.key, self._expires_at(), self._holder if self._has_lock else None)
        except Exception as exc:  # what cannot be written raises whatever it likes
            return self._unkept(exc)
        return True

    async def awrite(self, value: Any) -> bool:
        """Do what ``write`` does, without holding the loop."""
        if self._memory is not None:
            self._memory[self.key] = value, self._expires_at()
            return True
        assert self._store is not None
        try:
            await self._store.awrite(
                value, self.key, self._expires_at(), self._holder if self._has_lock else None
            )
        except Exception as exc:  # what cannot be written raises whatever it likes
            return self._unkept(exc)
        return True

    def let_go(self) -> None:
        """Give the lock back, if we have it. From any thread; never waits."""
        if self._has_lock and self._store is not None:
            self._has_lock = False
            self._store.release_lock(self.key, self._holder)

    def _expires_at(self) -> datetime | None:
        seconds = self._expires_s
        return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)

    def _unkept(self, exc: Exception) -> bool:
        if isinstance(exc, DefinitionError):
            raise exc
        log.warning("a result could not be kept under %r: %s", self.key, exc)
        return False
