"""How what is started by a call is stopped: by another call, from whatever thread, or by the signal TERM."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

__all__ = ["Asked", "StopAsked", "term_heard"]


class Asked:
    """That it was asked. Async code may await it, nobody has to."""

    def __await__(self) -> Generator[Any, Any, None]:
        return checkpoint().__await__()


class StopAsked:
    """Whether somebody has asked what runs on a loop to stop."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread = 0

    def begin(self) -> None:
        """Forget what was asked before: it starts now, on the loop that runs here."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._event = anyio.Event()

    def ask(self) -> Asked:
        """Ask, from any thread, or from a handler of a signal."""
        event = self._event
        if event is not None:
            if self._thread == threading.get_ident():
                event.set()
            # A loop that sleeps does not look before it is woken; one that is closed has stopped already.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(event.set)
        return Asked()

    async def wait(self) -> None:
        """Wait until somebody asks. Then it may begin again."""
        event = self._event
        assert event is not None, "begin() first"
        await event.wait()
        if event is self._event:
            self.begin()


@contextmanager
def term_heard() -> Generator[anyio.CancelScope]:
    """While inside, TERM cancels the scope that is given, instead of ending the process at once.

    Only in the main thread, and where nobody else has a handler for it: a web application that has one ends by that.
    """
    scope = anyio.CancelScope()
    is_ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield scope
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, scope.cancel)
    try:
        yield scope
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
