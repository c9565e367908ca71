"""Having the hooks called of ends that nobody executing the run has written: a run cancelled before it began, say.

Part of the leading dispatcher. It pushes a work message for each such end; the worker that takes it loads the flow's code
and calls them (``hook_log.py`` says how that is noted). What is not pushed yet is part of the leader's checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from ..bus import Bus
from ..errors import HarkError, StreamFull
from ..vocabulary import FlowRunId, JsonValue
from .hook_log import ANYONE, HookLog, is_owed
from .insisting import insist
from .run import FlowRun
from .run_log import readable_run
from .ticket import Ticket
from .waiting import LOOP

__all__ = ["HookDuty"]

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""After the queue of work was full."""


@dataclass(frozen=True, slots=True)
class _Owed:
    seq: int
    attempt: int
    pool: str


class HookDuty:
    """Fold of the ends that owe hooks to anyone, and the loop that hands them out."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._notes = HookLog(bus)
        self._owed: dict[FlowRunId, _Owed] = {}
        self._more = anyio.Event()

    def observe(self, run: FlowRun) -> None:
        """Fold one transition."""
        if is_owed(run, ANYONE) and run.pool is not None:
            self._owed[run.id] = _Owed(run.seq, run.attempt, run.pool)
            self._more.set()

    async def serve(self) -> None:
        """Push a work message for each; returns only by being cancelled."""
        while True:
            self._more = anyio.Event()
            for run_id, owed in list(self._owed.items()):
                if self._owed.get(run_id) is not owed:
                    continue
                try:
                    await self._push(run_id, owed)
                except StreamFull as exc:
                    log.warning("dispatcher.work_full", extra={"run_id": run_id, "error": str(exc)})
                    await anyio.sleep(AGAIN_S)
                    self._more.set()
                    continue
                except HarkError as exc:
                    log.error("dispatcher.hooks_refused", extra={"run_id": run_id, "error": str(exc)})
                if self._owed.get(run_id) is owed:
                    del self._owed[run_id]
            await self._more.wait()

    async def _push(self, run_id: FlowRunId, owed: _Owed) -> None:
        # After a restart without a checkpoint the whole log is folded again, with ends whose hooks have long run.
        # Also of an end that somebody has retried the run after: its hooks are owed all the same.
        record = await insist(lambda: self._bus.log.get(owed.seq))
        run = readable_run(record) if record is not None else None
        if run is None or await insist(lambda: self._notes.is_settled(run)):
            return
        ticket = Ticket.issue(run_id, attempt=owed.attempt, since=owed.seq, hooks=True)
        # A worker that finds it to be a sync flow passes it on to a process.
        await insist(
            lambda: self._bus.work.push(owed.pool, LOOP, ticket.to_json(), msg_id=f"{ticket.msg_id}/hooks")
        )

    # --- checkpoint -----------------------------------------------------------------------------------

    def dump(self) -> dict[str, JsonValue]:
        """Return what is not handed out yet, as JSON."""
        return {run_id: [owed.seq, owed.attempt, owed.pool] for run_id, owed in self._owed.items()}

    def load(self, value: Mapping[str, Any]) -> None:
        """Take up what ``dump`` wrote."""
        self._owed = {FlowRunId(run_id): _Owed(*owed) for run_id, owed in value.items()}
        self._more.set()
