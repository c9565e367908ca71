"""Waiting for another thread in one that Ctrl-C may interrupt at any place."""

from __future__ import annotations

import threading

__all__ = ["Bell"]


class Bell:
    """What ``threading.Event`` is, for one who waits, once.

    That one is written in Python: an interruption may come where the thread that waits has locked it and is not yet in the
    block that unlocks it, and whoever sets it then waits for ever. Here the one who rings waits for nothing.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake who waits, or will. From any thread, as often as you like."""
        try:
            self._lock.release()
        except RuntimeError:
            return  # it has rung already

    def wait(self, timeout_s: float | None = None) -> None:
        """Return once it has rung, or after ``timeout_s``."""
        if timeout_s is None:
            self._lock.acquire()
        else:
            self._lock.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))
