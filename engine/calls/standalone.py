"""Task runs outside any flow, made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runs.task_events import TaskEvents

if TYPE_CHECKING:
    from ...bus.session import Session

__all__ = ["standalone_events"]


def standalone_events(session: Session, task_run_id: str, *, inline_bytes: int) -> TaskEvents:
    """Return the writer for a task run outside any flow: its events stand under its own id."""
    return TaskEvents(
        session, run_id=task_run_id, run_name=None, attempt=1, flow_name=None, deployment=None, correlationid=None,
        causationid=None, causaldepth=0, inline_bytes=inline_bytes,
    )  # fmt: skip
