"""Task events that wait for what they name."""

from __future__ import annotations

from dataclasses import dataclass

from ..results import LargeResult

__all__ = ["Upload"]


@dataclass(slots=True)
class Upload:
    """A completed task whose result has to be in the object store before its event is in the log."""

    subject: str
    head: str
    tail: str
    id: str
    lines: str
    name: str
    """Of the result in the object store."""
    result: LargeResult
