"""Collecting garbage less often, where a thousand runs live at once and hardly anything of theirs is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["rare_collections"]

YOUNG = 10_000
"""New objects that are waited for before a look at them; Python's own is 700, which is what two runs of a flow make.

More saves nothing: from here on, the looks at older ones are what is left.
"""

_holders = 0
_before = 0


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let ``YOUNG`` new objects gather before Python looks for garbage among them. Of all who ask, until the last leaves.

    A threshold somebody has set higher, and a collector that is off, stay as they are.
    """
    global _holders, _before
    young, *older = gc.get_threshold()
    if _holders == 0:
        _before = young
        if 0 < young < YOUNG:
            gc.set_threshold(YOUNG, *older)
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if _holders == 0 and gc.get_threshold()[0] == YOUNG:
            gc.set_threshold(_before, *gc.get_threshold()[1:])
