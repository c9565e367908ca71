"""Memory that a large run has freed, in a process that goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hark.engine.workers import memory


@pytest.mark.skipif(memory._trim is None, reason="this C library cannot be asked to give memory back")
async def test_what_a_large_run_has_freed_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last run has ended; what was made late, and stays, does not keep what was freed below it."""
    loop, looked, kept = asyncio.get_running_loop(), asyncio.Event(), list[bytes]()
    look = memory._look
    monkeypatch.setattr(memory, "_AFTER_S", 0)
    monkeypatch.setattr(memory, "_least", None)
    monkeypatch.setattr(memory, "_looks_at", 0.0)

    def looking() -> None:
        look()
        looked.set()

    monkeypatch.setattr(memory, "_look", looking)

    def large() -> None:
        made = [bytes(700) for _ in range(150_000)]
        kept.extend(made[::400])

    before = memory._held_bytes()
    with memory.giving_back():
        with memory.giving_back():
            await loop.run_in_executor(None, large)
        assert memory._held_bytes() - before > memory._GROWN_BYTES
    await looked.wait()
    for thread in threading.enumerate():
        if thread.name == "hark-memory":
            await loop.run_in_executor(None, thread.join)
    assert memory._held_bytes() - before < memory._GROWN_BYTES // 2
    assert len(kept) == 375
