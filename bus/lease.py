"""A lease: at most one holder at a time, taken over when the holder goes silent.

The lease is a key in a bucket. The holder writes it again, under the guard of its last revision, about every third
of the TTL. A standby counts from the last write *it has seen*, by its own monotonic clock, and takes over with a
guarded write when the TTL has passed without another one; so no two clocks are ever compared. Brokers that can
also let the key expire, so that a newcomer need not wait.

The holder stops by itself when it has not been able to renew for the TTL, counted from before the request was
sent, which is earlier than anything a standby counts from.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import anyio
import orjson

from ..errors import AlreadyHeld, BusUnavailable, GuardFailed
from .bucket import Bucket, Entry

__all__ = ["Grant", "Lease"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease while it is held.

    Attributes:
        revision: the fencing token: every later grant of this lease has a higher one.
        lost: set when the lease is no longer ours.
    """

    name: str
    holder: str
    revision: int
    lost: anyio.Event = field(default_factory=anyio.Event)


class Lease:
    """The lease ``name``. ``async with lease.held() as grant`` waits for it and holds it."""

    def __init__(self, bucket: Bucket, name: str, *, holder: str, ttl_s: float = 5.0) -> None:
        if ttl_s < 1:
            raise ValueError(f"ttl_s is at least 1, got {ttl_s}")
        self.name, self.holder, self.ttl_s = name, holder, ttl_s
        self._bucket = bucket

    async def holder_now(self) -> str | None:
        """Return who holds the lease, as far as the broker knows; None if nobody does."""
        found = await self._bucket.get(self.name)
        return _holder_in(found) if found is not None else None

    def held(self) -> AbstractAsyncContextManager[Grant]:
        """Wait until the lease is ours, then hold it while inside. Leaving hands it back at once.

        When it is lost (the broker could not be reached for the TTL, or somebody removed it), ``grant.lost`` is set
        and the body is cancelled; leaving then is quiet, and ``grant.lost.is_set()`` tells.
        """
        return self._held()

    @asynccontextmanager
    async def _held(self) -> AsyncGenerator[Grant, None]:
        revision, renewed_at = await self._acquire()
        grant = Grant(self.name, self.holder, revision)
        keeper = _Keeper(self, grant, revision, renewed_at)
        log.info("lease.taken", extra={"lease": self.name, "holder": self.holder, "revision": revision})
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(keeper.run, tg)
                try:
                    yield grant
                finally:
                    tg.cancel_scope.cancel()
        finally:
            if not grant.lost.is_set():
                grant.lost.set()
                with anyio.move_on_after(2.0, shield=True):
                    await self._release(keeper.revision)

    async def _acquire(self) -> tuple[int, float]:
        """Return the revision of our first write, and when (monotonic) it was begun."""
        while True:
            began = anyio.current_time()
            try:
                return await self._bucket.create(self.name, self._value(), ttl_s=self.ttl_s), began
            except AlreadyHeld:
                pass
            except BusUnavailable as exc:
                log.warning("lease.waiting", extra={"lease": self.name, "error": str(exc)})
                await anyio.sleep(0.2)
                continue
            try:
                async with self._bucket.watch(self.name) as changes:
                    revision = await self._await_silence(changes)
                if revision is None:
                    continue
                began = anyio.current_time()
                taken = await self._bucket.update(
                    self.name, self._value(), revision=revision, ttl_s=self.ttl_s
                )
                return taken, began
            except GuardFailed:
                continue  # another standby was quicker
            except BusUnavailable as exc:
                log.warning("lease.waiting", extra={"lease": self.name, "error": str(exc)})
                await anyio.sleep(0.2)

    async def _await_silence(self, changes: AsyncIterator[Entry]) -> int | None:
        """Return the revision to take over from once its holder has gone silent; None if the key is gone."""
        last: Entry | None = None
        while True:
            silence_s = self.ttl_s if last is not None else None
            entry: Entry | None = None
            with anyio.move_on_after(silence_s):
                entry = await anext(changes)
            if entry is None:
                assert last is not None
                return last.revision
            if entry.key == self.name:
                if entry.deleted:
                    return None
                last = entry
                if _is_dead_neighbour(entry.value):
                    log.info("lease.holder_dead", extra={"lease": self.name, "holder": _holder_in(entry)})
                    return entry.revision
            elif entry.key == "" and last is None:
                return None  # went away before we looked

    async def _release(self, revision: int) -> None:
        try:
            try:
                await self._bucket.delete(self.name, revision=revision)
            except GuardFailed:
                # A renewal was on its way whose answer we did not wait for; else it is somebody else's.
                found = await self._bucket.get(self.name)
                if found is None or _holder_in(found) != self.holder:
                    raise
                await self._bucket.delete(self.name, revision=found.revision)
            log.info("lease.released", extra={"lease": self.name, "holder": self.holder})
        except (GuardFailed, BusUnavailable) as exc:
            log.debug("lease.release_failed", extra={"lease": self.name, "error": str(exc)})

    def _value(self) -> bytes:
        return orjson.dumps({"holder": self.holder, "pid": os.getpid(), "machine": _machine()})


class _Keeper:
    """Renews a grant until it is lost."""

    def __init__(self, lease: Lease, grant: Grant, revision: int, renewed_at: float) -> None:
        self._lease, self._grant = lease, grant
        self.revision = revision
        self._renewed_at = renewed_at

    async def run(self, tg: anyio.abc.TaskGroup) -> None:
        lease = self._lease
        value = lease._value()
        pause_s = _to_beat(lease.ttl_s / 3)
        why = "it could not be renewed in time"
        while True:
            deadline = self._renewed_at + lease.ttl_s
            await anyio.sleep(min(pause_s, max(0.0, deadline - anyio.current_time())))
            began = anyio.current_time()
            if began >= deadline:
                break
            try:
                with anyio.move_on_at(deadline):
                    self.revision = await lease._bucket.update(
                        lease.name, value, revision=self.revision, ttl_s=lease.ttl_s
                    )
                    self._renewed_at, pause_s = began, _to_beat(lease.ttl_s / 3)
            except GuardFailed:
                why = "somebody else wrote it"
                break
            except BusUnavailable as exc:
                log.debug("lease.renewal_failed", extra={"lease": lease.name, "error": str(exc)})
                pause_s = 0.05
        self._grant.lost.set()
        log.warning("lease.lost", extra={"lease": lease.name, "holder": lease.holder, "why": why})
        tg.cancel_scope.cancel()


def _to_beat(beat_s: float) -> float:
    """Return the seconds to the next beat: a whole multiple of ``beat_s`` on the clock of this machine.

    So all leases of a process are renewed at one moment, which wakes it and the broker once and not once for each.
    A quarter of a beat at least lies before it, lest a timer that is a little early renews twice.
    """
    now_s = anyio.current_time()
    return (math.floor(now_s / beat_s + 0.25) + 1) * beat_s - now_s


def _holder_in(entry: Entry) -> str | None:
    try:
        value = orjson.loads(entry.value)
    except orjson.JSONDecodeError:
        return None
    holder = value.get("holder") if isinstance(value, dict) else None
    return holder if isinstance(holder, str) else None


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return what two processes have in common exactly if one can see whether the other lives."""
    if sys.platform != "linux":
        return f"{socket.gethostname()}/{sys.platform}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _is_dead_neighbour(value: bytes) -> bool:
    """Return whether the holder was a process of this very machine that no longer exists (a crash, a restart)."""
    try:
        found = orjson.loads(value)
        pid, machine = int(found["pid"]), found["machine"]
    except (ValueError, KeyError, TypeError):
        return False
    if machine != _machine() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
