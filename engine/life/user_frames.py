"""Tracebacks as their reader needs them: the author's own lines, without those of Hark between and above them."""

from __future__ import annotations

import traceback
from types import FrameType
from typing import Any

from ...errors import HarkError
from ..signals import Abort

__all__ = ["format_for_author", "is_ours", "note_where", "shown_exception"]

_WHERE = "in task run "
_OURS = ("hark", "importlib")


def format_for_author(exc: BaseException) -> str:
    """Return the traceback of an exception without Hark's own frames and those of the import machinery.

    Causes, contexts, groups and notes are shown as Python shows them. An exception that never left Hark's own code is shown
    whole: then those frames are what there is to see.
    """
    shown = traceback.TracebackException.from_exception(exc)
    _cut(shown, exc, set())
    return "".join(shown.format()).rstrip("\n")


def shown_exception(data: Any) -> BaseException | None:
    """Return the exception whose traceback helps: not of what says all there is to say in its message."""
    return data if isinstance(data, Exception) and not isinstance(data, Abort | HarkError) else None


def note_where(exc: BaseException, task_run: str) -> None:
    """Add to an exception in which task run it happened: Python shows it below the message, wherever the exception goes.

    The first to fail with it is where it came from; those it passed through only handed it on.
    """
    if not any(str(note).startswith(_WHERE) for note in getattr(exc, "__notes__", ())):
        exc.add_note(_WHERE + task_run)


def _cut(shown: traceback.TracebackException, exc: BaseException, seen: set[int]) -> None:
    if id(exc) in seen:
        return
    seen.add(id(exc))
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    kept = [not is_ours(frame) for frame in frames]
    if len(kept) == len(shown.stack) and any(kept):
        shown.stack[:] = [summary for summary, keep in zip(shown.stack, kept, strict=True) if keep]
    for below, cause in ((shown.__cause__, exc.__cause__), (shown.__context__, exc.__context__)):
        if below is not None and cause is not None:
            _cut(below, cause, seen)
    if isinstance(exc, BaseExceptionGroup):
        for below, member in zip(shown.exceptions or (), exc.exceptions, strict=False):
            _cut(below, member, seen)


def is_ours(frame: FrameType) -> bool:
    """Whether a frame is of Hark, or of the import machinery."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _OURS
