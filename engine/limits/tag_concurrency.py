"""``concurrency`` of Prefect's first kind: slots of the limits that tags have, as tasks that carry the tags take them."""

from __future__ import annotations

from collections.abc import Sequence

from ..concurrency import ConcurrencySlotAcquisitionError
from ..concurrency import concurrency as held
from .limit import TAG_PREFIX

__all__ = ["ConcurrencySlotAcquisitionError", "concurrency"]


def concurrency(
    names: str | Sequence[str], task_run_id: object = None, timeout_seconds: float | None = None
) -> held:
    """Hold one slot of the limit of each tag while inside; see ``hark.concurrency``. Tags without a limit hold nothing back.

    Args:
        names: tags. task_run_id: shown as who holds the slots.
    """
    tags = [names] if isinstance(names, str) else names
    return held(
        [TAG_PREFIX + tag for tag in tags],
        timeout_seconds=timeout_seconds,
        holder=f"task-run/{task_run_id}" if task_run_id is not None else None,
    )
