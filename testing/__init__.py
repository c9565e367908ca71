"""What people test their flows and rules with. Names are loaded on first use, but for ``harness``: the submodule of
that name would stand in its place once anybody had imported it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .harness import Harness, harness

if TYPE_CHECKING:
    from ..clock import ManualClock

_WHERE = {
    "ManualClock": "..clock",
}

__all__ = ["Harness", "ManualClock", "harness"]


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module, __name__), name)
    globals()[name] = value
    return value
