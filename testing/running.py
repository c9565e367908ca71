"""Everything ``hark up`` runs, in the process of the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..bus.session import use_session
from ..clock import SYSTEM_CLOCK, Clock
from ..config import load_settings
from .rig import temporary_home

if TYPE_CHECKING:
    from ..server.service import Service

__all__ = ["service"]


@asynccontextmanager
async def service(
    config: Path | str | None = None, *, clock: Clock = SYSTEM_CLOCK, processes: int = 0
) -> AsyncGenerator[Service]:
    """Run a whole Hark on a temporary home: broker, HTTP on a free port (``.url``), rules, workers, notifications.

    >>> async with service("hark.yaml") as hark:
    ...     await emit("order.paid", data={"n": 1})
    ...     ...

    Args:
        config: a ``hark.yaml`` or folder to apply.
        clock: for schedules, due times and back-off; a ``ManualClock`` moves when told to.
        processes: for sync flows of deployments; with 0, only async ones run.
    """
    from ..server.service import Service

    with temporary_home():
        base = load_settings()
        settings = base.model_copy(
            update={
                "server": base.server.model_copy(update={"host": "127.0.0.1", "port": 0, "drain_s": 1.0}),
                "worker": base.worker.model_copy(
                    update={"processes": processes, "warm": min(1, processes), "drain_s": 1.0}
                ),
            }
        )
        path = Path(config) if config is not None else None
        async with Service(settings, config=path, clock=clock) as running:
            with use_session(running.bus):
                yield running
