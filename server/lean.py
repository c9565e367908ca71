"""Importing less."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["import_httpx"]


def import_httpx() -> ModuleType:
    """Import httpx without its command line, which brings rich, click and pygments along: 50 ms and 6 MB.

    httpx does without it where those are not installed; an entry of None in ``sys.modules`` says they are not.
    """
    missing: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    hidden = "httpx" not in missing and "httpx._main" not in missing
    if hidden:
        missing["httpx._main"] = None
    try:
        import httpx

        return httpx
    finally:
        if hidden:
            del missing["httpx._main"]
