"""Results that outlive their run: looked up before a task runs, kept after it has.

Where a broker is known they are kept there (bucket ``cache``, large ones in the object store), so every machine has them;
otherwise in files under ``HARK_HOME/storage``. What cannot be looked up or kept is said in the log, and the task runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ..bus.event import format_time, parse_time
from ..errors import HarkError
from ..vocabulary import JsonObject
from .either import blocking_session, session_here
from .results import LargeResult, RecordedResult, decode_inline, encode_result

if TYPE_CHECKING:
    from ..bus.session import Session
    from .cache_policies import CachePolicy
    from .task_call import TaskCall

__all__ = ["MISS", "CallCache", "TaskCache", "cache_of"]

log = logging.getLogger("hark.cache")

BUCKET = "cache"
INLINE_BYTES = 64 * 1024
MISS: Any = object()
"""What reading gives when there is nothing; None is a result like any other."""


@dataclass(frozen=True, slots=True)
class TaskCache:
    """How a task's results are cached.

    Attributes:
        expires_s: how long a result counts; None: for good.
        refreshes: run anyway, and keep the new result.
        is_implied: nobody asked for it but by ``persist_result=True``: it holds within one run, in memory.
    """

    policy: CachePolicy
    expires_s: float | None = None
    refreshes: bool = False
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
        from ..duration import seconds_of
        from .cache_policies import DEFAULT, NO_CACHE, CachePolicy

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
                log.warning("task %r has a cache_policy and a cache_key_fn; the function is used", name)
            chosen = CachePolicy.from_cache_key_fn(key_fn)
        if persist is False:
            if chosen is not None and chosen is not NO_CACHE:
                log.warning("task %r says persist_result=False, so nothing of it is cached", name)
            return None
        if chosen is NO_CACHE:
            return None
        if chosen is None:
            return cls(DEFAULT, expires_s, bool(refresh), is_implied=True) if persist else None
        return cls(chosen, expires_s, bool(refresh))


def cache_of(call: TaskCall) -> CallCache | None:
    """Return where the call's result is looked up and kept; None if it is not cached. Inside the task's context."""
    cache = call.task.cache
    if cache is None or call.task.isgenerator:
        return None
    from .cache_policies import MAX_KEY_CHARS
    from .context import TaskRunContext

    flow = call.flow
    if cache.is_implied and flow is None:
        return None
    try:
        key: object = cache.policy.compute_key(
            TaskRunContext.get(), call.run.parameters, flow.parameters if flow is not None else {}
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
            "task %r has the cache key %s, which is no text of 1 to %d characters",
            call.task.name,
            shown,
            MAX_KEY_CHARS,
        )
        return None
    if cache.is_implied:
        assert flow is not None
        return CallCache(cache, key, memory=flow.cached)
    if call.events is not None:
        return CallCache(cache, key)
    from ..config import load_settings

    return CallCache(cache, key, folder=load_settings().home_path / "storage")


class CallCache:
    """The cached result of one call: in a run's memory, in a folder, or (neither given) in the broker."""

    def __init__(
        self,
        cache: TaskCache,
        key: str,
        *,
        memory: dict[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._cache, self.key = cache, key
        self._memory, self._folder = memory, folder
        self._name = blake2b(key.encode(), digest_size=20).hexdigest()

    # --- reading --------------------------------------------------------------------------------------

    def read(self) -> Any:
        """Return the cached result, ``MISS`` if there is none that counts."""
        if self._cache.refreshes:
            return MISS
        if self._memory is not None:
            return self._from_memory()
        try:
            if self._folder is not None:
                return self._from_folder(self._folder)
            session = blocking_session("a cached result")
            record = session.call(self._look_up, session)
            return MISS if record is None else self._recorded(session, record).read()
        except HarkError as exc:
            return self._unreadable(exc)

    async def aread(self) -> Any:
        """Do what ``read`` does, without holding the loop."""
        if self._cache.refreshes:
            return MISS
        if self._memory is not None:
            return self._from_memory()
        try:
            if self._folder is not None:
                return self._from_folder(self._folder)
            session = session_here("a cached result")
            record = await session.acall(self._look_up, session)
            return MISS if record is None else await self._recorded(session, record).aread()
        except HarkError as exc:
            return self._unreadable(exc)

    async def _look_up(self, session: Session) -> JsonObject | None:
        entry = await session.bus.bucket(BUCKET).get(self._name)
        return None if entry is None else self._valid(entry.value)

    def _valid(self, raw: bytes) -> JsonObject | None:
        """Return the result in a record, if it is that of our key and still counts."""
        try:
            record: Any = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return None
        expires = record.get("expires")
        if record.get("key") != self.key or (expires and parse_time(expires) <= datetime.now(UTC)):
            return None
        result = record.get("result")
        return result if isinstance(result, dict) and result.get("format") != "none" else None

    def _recorded(self, session: Session, result: JsonObject) -> RecordedResult:
        return RecordedResult(session, result, run_id="(cached)", key=self.key)

    def _from_memory(self) -> Any:
        assert self._memory is not None
        value, expires = self._memory.get(self.key, (MISS, None))
        return MISS if expires is not None and expires <= datetime.now(UTC) else value

    def _from_folder(self, folder: Path) -> Any:
        try:
            raw = (folder / self._name).read_bytes()
        except OSError:
            return MISS
        result = self._valid(raw)
        return MISS if result is None else decode_inline(result, run_id="(cached)", key=self.key)

    def _unreadable(self, exc: HarkError) -> Any:
        log.warning("a cached result cannot be read, so the task runs: %s", exc)
        return MISS

    # --- keeping --------------------------------------------------------------------------------------

    def write(self, value: Any) -> None:
        """Keep a result."""
        if self._memory is not None:
            self._memory[self.key] = value, self._expires_at()
            return
        try:
            if self._folder is not None:
                self._into_folder(self._folder, value)
                return
            session = blocking_session("a cached result")
            session.call(self._keep, session, encode_result(value, inline_bytes=INLINE_BYTES))
        except (HarkError, OSError) as exc:
            self._unkept(exc)

    async def awrite(self, value: Any) -> None:
        """Do what ``write`` does, without holding the loop."""
        if self._memory is not None:
            self._memory[self.key] = value, self._expires_at()
            return
        try:
            if self._folder is not None:
                self._into_folder(self._folder, value)
                return
            session = session_here("a cached result")
            await session.acall(self._keep, session, encode_result(value, inline_bytes=INLINE_BYTES))
        except (HarkError, OSError) as exc:
            self._unkept(exc)

    async def _keep(self, session: Session, encoded: str | LargeResult) -> None:
        if isinstance(encoded, LargeResult):
            # By its content: a result that is read while another is kept stays whole.
            name = f"results/cache/{self._name}-{blake2b(encoded.data, digest_size=12).hexdigest()}"
            await session.bus.objects.put(name, encoded.data)
            encoded = encoded.reference(name)
        await session.bus.bucket(BUCKET).put(self._name, self._record(encoded), ttl_s=self._ttl_s)

    def _into_folder(self, folder: Path, value: Any) -> None:
        encoded = encode_result(value, inline_bytes=1 << 62)
        assert isinstance(encoded, str)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Renamed into its place, so that nobody ever reads half of it.
        temporary = folder / f".{self._name}.{os.getpid()}.{id(self):x}"
        temporary.write_bytes(self._record(encoded))
        temporary.replace(folder / self._name)

    def _record(self, result: str) -> bytes:
        expires = self._expires_at()
        about = {"key": self.key, "expires": format_time(expires) if expires else None}
        return orjson.dumps(about)[:-1] + b',"result":' + result.encode() + b"}"

    @property
    def _ttl_s(self) -> float | None:
        seconds = self._cache.expires_s
        return None if seconds is None else max(1.0, seconds)

    def _expires_at(self) -> datetime | None:
        seconds = self._cache.expires_s
        return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)

    def _unkept(self, exc: Exception) -> None:
        log.warning("a result could not be cached: %s", exc)
