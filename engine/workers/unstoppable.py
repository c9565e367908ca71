"""Runs that were asked to stop and do not."""

from __future__ import annotations

import logging
from datetime import datetime

from ...errors import BusUnavailable, GuardFailed, MoveRefused
from ...vocabulary import FlowRunId, StateType
from ..runs.run_log import RunLog
from ..states import Cancelled

__all__ = ["give_up"]

log = logging.getLogger(__name__)


async def give_up(runs: RunLog, run_id: FlowRunId, *, asked_before: datetime | None = None) -> None:
    """Say of a run that was cancelled and does not stop that it is; what it still writes is refused.

    Args:
        asked_before: only if it was cancelled before then; None: whenever that was.
    """
    try:
        now = await runs.get(run_id)
        if now is None or now.state_type is not StateType.CANCELLING:
            return
        if asked_before is not None and now.updated_at > asked_before:
            return
        why = now.state_message or "cancelled"
        await runs.move_exactly(now, Cancelled(message=f"{why}; it has not stopped when asked to"))
    except (GuardFailed, MoveRefused, BusUnavailable) as exc:
        log.debug("worker.give_up", extra={"run_id": run_id, "error": str(exc)})
