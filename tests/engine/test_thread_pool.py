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
