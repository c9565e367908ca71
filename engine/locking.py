"""Locks on the keys of results: of those who compute one key at once, one does, and the others wait for its result.

``BrokerLockManager``: leases in the broker, for everybody who uses it; freed when the holder dies. ``MemoryLockManager``: for
one process. Whoever waits for these is woken at once. ``FileSystemLockManager``: for processes that share a folder.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import anyio
from anyio import to_thread

from .persistence.file_locks import FileSystemLockManager

if TYPE_CHECKING:
    from ..bus.lease import Lease
    from ..bus.session import Session

__all__ = [
    "BrokerLockManager", "FileSystemLockManager", "LockManager", "MemoryLockManager", "broker_locks", "default_lock_manager",
]  # fmt: skip

LEASES = "leases"
TTL_S = 10.0
"""How long after its holder's last sign of life a lock in the broker is free again."""


@runtime_checkable
class LockManager(Protocol):
    """Gives a key to one holder at a time. Times in seconds; None: for as long as it takes."""

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Wait for the lock; return whether it was got. Asking for a lock one has returns True."""

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Do what ``acquire_lock`` does, without holding the loop."""

    def release_lock(self, key: str, holder: str) -> None:
        """Give the lock back. Never waits. Raises ``ValueError`` if the holder does not have it."""

    def is_locked(self, key: str) -> bool:
        """Return whether anybody has the lock."""

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Return whether ``holder`` has it."""

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until nobody has it; return whether that came to be in time."""

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Do what ``wait_for_lock`` does, without holding the loop."""


class MemoryLockManager:
    """Locks among the threads and tasks of this process; made anywhere, it is always the same one, as in Prefect."""

    _one: MemoryLockManager | None = None
    _holders: dict[str, str]
    _changed: threading.Condition

    def __new__(cls) -> MemoryLockManager:
        if cls._one is None:
            cls._one = super().__new__(cls)
            cls._one._holders = {}
            cls._one._changed = threading.Condition()
        return cls._one

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        with self._changed:
            got = self._changed.wait_for(lambda: self._holders.get(key, holder) == holder, acquire_timeout)
            if got:
                self._holders[key] = holder
        if got and hold_timeout is not None:
            timer = threading.Timer(hold_timeout, self._expire, (key, holder))
            timer.daemon = True
            timer.start()
        return got

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        if self.acquire_lock(key, holder, 0, hold_timeout):
            return True
        if acquire_timeout == 0:
            return False
        with anyio.move_on_after(acquire_timeout):
            while True:
                # In short waits: a thread that waits cannot be cancelled, and would take the lock for nobody.
                if await to_thread.run_sync(self.wait_for_lock, key, _PATIENCE_S) and self.acquire_lock(
                    key, holder, 0, hold_timeout
                ):
                    return True
        return False

    def release_lock(self, key: str, holder: str) -> None:
        with self._changed:
            if self._holders.get(key) != holder:
                raise ValueError(f"{holder!r} does not have the lock of {key!r}")
            del self._holders[key]
            self._changed.notify_all()

    def _expire(self, key: str, holder: str) -> None:
        with self._changed:
            if self._holders.get(key) == holder:
                del self._holders[key]
                self._changed.notify_all()

    def is_locked(self, key: str) -> bool:
        with self._changed:
            return key in self._holders

    def is_lock_holder(self, key: str, holder: str) -> bool:
        with self._changed:
            return self._holders.get(key) == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: key not in self._holders, timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        with anyio.move_on_after(timeout):
            while not await to_thread.run_sync(self.wait_for_lock, key, _PATIENCE_S):
                pass
            return True
        return False


_PATIENCE_S = 0.5


@dataclass(slots=True)
class _Held:
    """A lease that this process holds, kept alive by a task on the session's loop."""

    holder: str
    session: Session
    task: asyncio.Task[None]
    given_back: asyncio.Event


class BrokerLockManager:
    """Locks among everybody who uses the broker: leases with a TTL, so a holder that dies has them no longer."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        from .sync_async.either import blocking_session

        session = blocking_session("a lock")
        return session.call(self.acquire_on, session, key, holder, acquire_timeout, hold_timeout)

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        from .sync_async.either import session_here

        session = session_here("a lock")
        return await session.acall(self.acquire_on, session, key, holder, acquire_timeout, hold_timeout)

    async def acquire_on(
        self,
        session: Session,
        key: str,
        holder: str,
        timeout: float | None = None,
        hold_s: float | None = None,
    ) -> bool:
        """Do what ``acquire_lock`` does, on the session's loop: start the task that holds the lease, and wait until it does."""
        if self.is_ours(key, holder):
            return True
        ready, back = asyncio.Event(), asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._hold(session, key, holder, hold_s, ready, back))
        try:
            with anyio.move_on_after(max(0.001, timeout) if timeout is not None else None):
                waiting = asyncio.ensure_future(ready.wait())
                try:
                    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
        except BaseException:
            task.cancel()
            raise
        if ready.is_set():
            with self._lock:
                self._held[key] = _Held(holder, session, task, back)
            return True
        if task.done():
            task.result()
        task.cancel()
        return False

    async def _hold(
        self,
        session: Session,
        key: str,
        holder: str,
        hold_s: float | None,
        ready: asyncio.Event,
        back: asyncio.Event,
    ) -> None:
        async with self._lease(session, key, holder).held():
            ready.set()
            with anyio.move_on_after(hold_s):
                await back.wait()

    def _lease(self, session: Session, key: str, holder: str) -> Lease:
        from ..bus.lease import Lease

        return Lease(session.bus.bucket(LEASES), _name_of(key), holder=holder, ttl_s=TTL_S)

    def release_lock(self, key: str, holder: str) -> None:
        with self._lock:
            held = self._held.get(key)
            if held is None or held.holder != holder:
                raise ValueError(f"{holder!r} does not have the lock of {key!r}")
            del self._held[key]
        if not held.session.loop.is_closed():
            held.session.loop.call_soon_threadsafe(held.given_back.set)

    def is_ours(self, key: str, holder: str) -> bool:
        """Return whether a holder of this process has it, asking nobody."""
        with self._lock:
            held = self._held.get(key)
            return held is not None and held.holder == holder and not held.task.done()

    def is_lock_holder(self, key: str, holder: str) -> bool:
        return self.is_ours(key, holder)

    def is_locked(self, key: str) -> bool:
        from .sync_async.either import blocking_session

        with self._lock:
            held = self._held.get(key)
            if held is not None and not held.task.done():
                return True
        session = blocking_session("a lock")
        return session.call(self._lease(session, key, "").holder_now) is not None

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        from .sync_async.either import blocking_session

        session = blocking_session("a lock")
        return session.call(self.wait_on, session, key, timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        from .sync_async.either import session_here

        session = session_here("a lock")
        return await session.acall(self.wait_on, session, key, timeout)

    async def wait_on(self, session: Session, key: str, timeout: float | None = None) -> bool:
        """Do what ``wait_for_lock`` does, on the session's loop: take the lock and give it back."""
        me = f"waiting-{id(object()):x}"
        with anyio.move_on_after(timeout):
            async with self._lease(session, key, me).held():
                return True
        return False


def _name_of(key: str) -> str:
    return f"lock.{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"


broker_locks = BrokerLockManager()


def default_lock_manager() -> LockManager:
    """Return the one of the broker where one is known, else that of this process."""
    from ..bus.session import current_session
    from .context import FlowRunContext

    flow = FlowRunContext.get()
    tracked = flow.tracker is not None if flow is not None else current_session() is not None
    return broker_locks if tracked else MemoryLockManager()
