"""Where a test hangs: said when its time is over, with what each of its tasks waits for."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

import pytest

_LAST_CHARS = 20_000


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Have the end of a test's time tell where it hangs, and fail it.

    In a loop that hangs no fixture can be taken down, and nothing more would ever be heard of the run: there the process
    ends. Of a run in several, another takes its place, and the test counts as failed.
    """
    if threading.current_thread() is not threading.main_thread():
        return None

    def ring(signum: int, frame: FrameType | None) -> None:
        capture: Any = item.config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(item)
        out = sys.__stderr__ or sys.stderr
        print(f"\n+++ {item.nodeid} has not ended within {settings.timeout:g} s", file=out)
        if capture is not None:
            print("".join(capture.read_global_capture())[-_LAST_CHARS:], file=out)
        try:
            tell_where(frame, out)
            out.flush()
        finally:
            if asyncio._get_running_loop() is not None:
                os._exit(1)
        pytest.fail(f"not ended within {settings.timeout:g} s; what it waited for is in the output")

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]  # where pytest-timeout looks for it
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


def tell_where(frame: FrameType | None, out: TextIO) -> None:
    """Write what was logged last, the stacks of all threads, and of every task the calls down to what it awaits."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and isinstance(handler.stream, io.StringIO):
            print(f"--- log\n{handler.stream.getvalue()[-_LAST_CHARS:]}", file=out)
            break
    here = threading.get_ident()
    for ident, top in sys._current_frames().items():
        name = next((t.name for t in threading.enumerate() if t.ident == ident), "?")
        stack = traceback.format_stack(frame if ident == here and frame else top, limit=15)
        print(f"--- thread {name}\n{''.join(stack)}", file=out)
    # Not isinstance(), which a proxy of something gone answers with an error.
    for task in [found for found in gc.get_objects() if issubclass(type(found), asyncio.Task)]:
        if not task.done():
            print(f"--- task {task.get_name()}", *_awaited(task.get_coro()), sep="\n  ", file=out)


def _awaited(coro: Any) -> Iterator[str]:
    while coro is not None:
        kind = next((k for k in ("cr", "ag", "gi") if hasattr(coro, f"{k}_frame")), None)
        if kind is None:
            yield repr(coro)
            return
        frame = getattr(coro, f"{kind}_frame")
        if frame is not None:
            yield f"{frame.f_code.co_filename}:{frame.f_lineno} in {coro.__qualname__}"
        coro = getattr(coro, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
