"""Giving memory back to the system after a large run that was executed in a process which goes on.

Freed memory stays with the C library, which gives back of itself what is at the end of its heaps: one small thing that was made
late keeps all below it. Asked for it, it gives back the rest, too. What Python's own allocator keeps (things up to 512 bytes)
cannot be asked for.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["giving_back"]

log = logging.getLogger(__name__)

_AFTER_S = 5.0
"""So long after the last run has ended: what comes one after the other uses again what the one before has freed."""
_GROWN_BYTES = 32 << 20
"""Less than this is not worth it: to look through what has been freed takes 10 ms of processor time for each 100 MB."""
_PAGE_BYTES = 4096

_in_hand = 0
_looks_at = 0.0
"""When (monotonic) it is looked next, or was last: short runs one after the other need one look."""
_least: int | None = None
"""What this process held before its first run, or when it had given back last."""


@contextmanager
def giving_back() -> Generator[None]:
    """Surround the execution of a run in the running loop: some seconds after the last one, what it has freed is given back."""
    global _in_hand, _least, _looks_at
    if _least is None:
        _least = _held_bytes()
    _in_hand += 1
    try:
        yield
    finally:
        _in_hand -= 1
        if not _in_hand and _trim is not None and time.monotonic() >= _looks_at:
            _looks_at = time.monotonic() + _AFTER_S
            asyncio.get_running_loop().call_later(_AFTER_S, _look)


def _look() -> None:
    global _least
    held = _held_bytes()
    if _in_hand or _least is None:
        return  # its end comes, too
    if held < _least:
        _least = held
    elif held - _least >= _GROWN_BYTES:
        # On a thread of its own, beside which the loop goes on but for what it wants to have allocated in these milliseconds.
        threading.Thread(target=_give_back, name="hark-memory", daemon=True).start()


def _give_back() -> None:
    global _least
    assert _trim is not None
    before = _held_bytes()
    _trim(0)
    _least = _held_bytes()
    log.debug("worker.memory-given-back", extra={"before_bytes": before, "after_bytes": _least})


def _held_bytes() -> int:
    """Return how much memory this process holds; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _found() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than GNU's
        return None
    return trim


_trim = _found()
