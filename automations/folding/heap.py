"""Giving memory back that a checkpoint needed.

The C library keeps what was freed in the middle of its heap. A process that folded a million keys and put them down had
655 MB that way, of which 250 held nothing.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

from anyio import to_thread

__all__ = ["give_back"]


async def give_back() -> None:
    """Hand free memory back to the system, in a thread; where the C library cannot (it is not glibc's), do nothing."""
    trim = _trim()
    if trim is not None:
        await to_thread.run_sync(trim, 0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
