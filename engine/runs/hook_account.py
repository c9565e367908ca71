"""What became of the hooks of a run's end, in a person's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..code.script_code import recorded_code
from .hook_log import DETAIL, HookLog
from .run_log import RunLog

if TYPE_CHECKING:
    from ...bus import Bus
    from .run import FlowRun

__all__ = ["account_of_hooks"]


async def account_of_hooks(bus: Bus, run: FlowRun) -> str | None:
    """Return what became of them; None where the run has not ended, or its end owes none to others.

    Raises:
        BusUnavailable: the broker did not answer.
    """
    if not run.is_final or DETAIL not in run.state_details:
        return None
    said = await HookLog(bus).words(run)
    if "abandoned" in said:
        return f"not called: {said['abandoned'] or 'it is not known why'}"
    if "ran" in said:
        return "called"
    if "began" in said:
        return "being called by another process"
    code = await recorded_code(RunLog(bus), run.id) if run.pool is None else None
    return "to be called" if code is None else f"to be called by a worker on {code.host}"
