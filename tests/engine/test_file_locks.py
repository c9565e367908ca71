"""Locks in files: one holder at a time, whoever asks."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest
from hark.engine.locking import LockManager
from hark.engine.persistence.file_locks import FileSystemLockManager


def test_a_file_lock_has_one_holder(tmp_path: Path) -> None:
    """Across managers, as across processes: who has it has it again, others wait in vain or until it is free."""
    one, other = FileSystemLockManager(tmp_path / "locks"), FileSystemLockManager(tmp_path / "locks")
    assert isinstance(one, LockManager)
    assert not one.is_locked("a/b ä")
    assert one.acquire_lock("a/b ä", holder="ann")
    assert one.acquire_lock("a/b ä", holder="ann", acquire_timeout=0)
    assert other.is_locked("a/b ä")
    assert other.is_lock_holder("a/b ä", "ann")
    assert not other.acquire_lock("a/b ä", holder="bob", acquire_timeout=0)
    assert not other.wait_for_lock("a/b ä", timeout=0)
    assert other.acquire_lock("another", holder="bob", acquire_timeout=0)
    with pytest.raises(ValueError, match="does not have the lock"):
        other.release_lock("a/b ä", holder="bob")
    one.release_lock("a/b ä", holder="ann")
    assert other.wait_for_lock("a/b ä", timeout=0)
    assert other.acquire_lock("a/b ä", holder="bob", acquire_timeout=0)
    assert sorted(p.suffix for p in (tmp_path / "locks").iterdir()) == [".lock", ".lock"]


def test_a_file_lock_whose_time_is_up_is_free(tmp_path: Path) -> None:
    """Also for somebody else; its holder has it no longer."""
    locks = FileSystemLockManager(tmp_path)
    assert locks.acquire_lock("k", holder="ann", hold_timeout=-1)
    assert not locks.is_lock_holder("k", "ann")
    assert locks.acquire_lock("k", holder="bob", acquire_timeout=0, hold_timeout=60)
    assert locks.is_lock_holder("k", "bob")


async def test_a_file_lock_is_waited_for_without_holding_the_loop(tmp_path: Path) -> None:
    """And got once it is given back."""
    locks = FileSystemLockManager(tmp_path)
    assert await locks.aacquire_lock("k", holder="ann")
    assert not await locks.aacquire_lock("k", holder="bob", acquire_timeout=0)
    assert not await locks.await_for_lock("k", timeout=0)
    got: list[bool] = []

    async def take() -> None:
        got.append(await locks.aacquire_lock("k", holder="bob"))

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        await anyio.lowlevel.checkpoint()
        locks.release_lock("k", holder="ann")
    assert got == [True]
    assert locks.is_lock_holder("k", "bob")


def test_of_many_who_want_a_file_lock_one_has_it_at_a_time(tmp_path: Path) -> None:
    """Threads with managers of their own, as processes would."""
    inside, most = [0], [0]
    guard = threading.Lock()

    def work(name: str) -> None:
        locks = FileSystemLockManager(tmp_path)
        for _ in range(5):
            assert locks.acquire_lock("k", holder=name)
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with guard:
                inside[0] -= 1
            locks.release_lock("k", holder=name)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
