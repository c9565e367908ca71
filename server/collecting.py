"""Looking through all that lives for garbage, the more rarely the longer it takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

__all__ = ["begin_collecting", "spaced_collections"]

_LONG_S = 0.02
_SHARE = 0.01
_MOST_S = 60.0
"""Garbage that refers to itself is not older than this by much."""
_NEVER = 1_000_000_000


class _Spacing:
    def __init__(self, now: Callable[[], float], oldest: int) -> None:
        self._now, self._oldest = now, oldest
        self._began = self._again_at = 0.0
        self._is_held = False

    def __call__(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if info["generation"] == 2:
            if phase == "start":
                self._began = self._now()
                return
            now = self._now()
            took_s = now - self._began
            if took_s > _LONG_S:
                self._again_at = now + min(_MOST_S, took_s / _SHARE)
                self._hold(True)
        elif phase == "stop" and self._is_held and self._now() >= self._again_at:
            self._hold(False)

    def _hold(self, is_held: bool) -> None:
        self._is_held = is_held
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _NEVER if is_held else self._oldest)

    def end(self) -> None:
        if self._is_held:
            self._hold(False)


def begin_collecting() -> None:
    """Turn the collector on. What start has made lives as long as the process: it is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@contextmanager
def spaced_collections(now: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """While inside, let a full collection that took long be followed by the next only after a hundred times as long.

    Python looks through all objects whenever there are a quarter more of them. Of the state of 300 000 begun sequences that
    takes half a second and more, in which the loop stands still; and with keys that come and go it would come again every few
    seconds. Garbage that has not grown old is found as ever.

    Args:
        now: a clock, in seconds.
    """
    spacing = _Spacing(now, gc.get_threshold()[2])
    gc.callbacks.append(spacing)
    try:
        yield
    finally:
        gc.callbacks.remove(spacing)
        spacing.end()
