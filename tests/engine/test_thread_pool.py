"""Threads that are interrupted at any instruction leave their pool usable."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator

import pytest
from hark.engine.sync_async.thread_pool import ThreadPool


@pytest.fixture
def fast_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def note_thread(seen: set[threading.Thread]) -> None:
    seen.add(threading.current_thread())


def test_an_interrupt_never_leaves_the_lock_taken(fast_switching: None) -> None:
    """The exception may come at the very moment the thread takes the pool's lock."""
    for _ in range(60):
        pool = ThreadPool(4)
        seen: set[threading.Thread] = set()
        for _ in range(200):
            pool.submit(functools.partial(note_thread, seen))
        pool.interrupt()
        pool.close(wait=False)
        # Threads that were interrupted are gone for good; the others do what is left.
        for thread in list(seen):
            thread.join(10)
            assert not thread.is_alive()


def test_idle_threads_wake_one_another_while_there_is_work() -> None:
    """What is submitted in one go runs at once, in as many threads as there are, the second time too."""
    pool, size = ThreadPool(6), 6
    for _ in range(20):
        together = threading.Barrier(size + 1)
        for _ in range(size):
            pool.submit(lambda barrier=together: barrier.wait(30))  # type: ignore[misc]
        together.wait(30)
    assert pool.threads <= size
    pool.close()
