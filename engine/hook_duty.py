"""Having the hooks called of ends whose own process has not called them: of a run cancelled before it began, say.

Part of the leading dispatcher. It pushes a work message for each such end; the worker that takes it loads the flow's code
and calls them (``hook_log.py`` says how that is noted). Owed to anyone are the ends that were written by one who was not
executing the run. A subflow that wrote its end itself calls its hooks itself, unless its process dies in them: the next
attempt of the run above does it then, and where there is none, because that run was ended from outside, it is owed to
anyone, too. So ended subflows are remembered until the run above has ended. What is not pushed yet, and what is
remembered so, is part of the leader's checkpoint.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from ..bus import Bus
from ..errors import HarkError, StreamFull
from ..vocabulary import FlowRunId, JsonValue
from .hook_log import ANYONE, HERE, HookLog, is_from_outside, is_owed
from .insisting import insist
from .run import FlowRun
from .run_log import RunLog, readable_run
from .subflow_code import outermost_run
from .ticket import Ticket
from .waiting import LOOP

__all__ = ["HookDuty", "OwedHooks"]

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""After the queue of work was full."""


@dataclass(frozen=True, slots=True)
class _Owed:
    run_id: FlowRunId
    seq: int
    attempt: int
    pool: str | None
    """None of a subflow: that of the run around it."""


class OwedHooks:
    """Fold of the ends that owe hooks to anyone. Pure.

    Attributes:
        due: for which ends a work message is to be pushed, by their sequence. One run may have several: it was retried.
    """

    def __init__(self) -> None:
        self.due: dict[int, _Owed] = {}
        self._inside: dict[FlowRunId, dict[FlowRunId, _Owed]] = defaultdict(dict)
        """By the run above, subflows that call the hooks of their ends themselves; as long as that run goes on."""

    def observe(self, run: FlowRun, *, is_going: Callable[[FlowRunId], bool]) -> bool:
        """Fold one transition; return whether anything is due by it.

        Args:
            is_going: whether a run has not ended.
        """
        owed = _Owed(run.id, run.seq, run.attempt, run.pool)
        is_findable = run.entrypoint is not None
        is_new = is_findable and is_owed(run, ANYONE)
        if is_new:
            self.due[run.seq] = owed
        above = run.parent if run.pool is None else None
        if above is not None and above in self._inside:
            self._inside[above].pop(run.id, None)
        if above is not None and is_findable and is_owed(run, HERE) and is_going(above):
            self._inside[above][run.id] = owed
        inside = self._inside.pop(run.id, None) if run.is_final else None
        # A process that lived through all of it has called them. After a first attempt that is not known, nor of a run whose
        # own code nobody can find: its end does not say who wrote it.
        if inside and (run.attempt > 1 or not is_findable or is_from_outside(run)):
            self.due.update({one.seq: one for one in inside.values()})
            is_new = True
        return is_new

    def dump(self) -> dict[str, JsonValue]:
        """Return it as JSON."""
        return {
            "due": [_packed(one) for one in self.due.values()],
            "inside": [
                [parent, *_packed(one)] for parent, inside in self._inside.items() for one in inside.values()
            ],
        }

    def load(self, value: Mapping[str, Any]) -> None:
        """Take up what ``dump`` wrote."""
        if "due" not in value:
            # Checkpoints of older versions have what is due only, by the ids of runs.
            value = {"due": [[run_id, *rest] for run_id, rest in value.items()], "inside": []}
        self.due = {one.seq: one for one in map(_unpacked, value["due"])}
        self._inside.clear()
        for parent, *rest in value["inside"]:
            one = _unpacked(rest)
            self._inside[FlowRunId(parent)][one.run_id] = one


class HookDuty:
    """The loop that hands them out."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._notes = HookLog(bus)
        self._runs = RunLog(bus)
        self._owed = OwedHooks()
        self._more = anyio.Event()

    def observe(self, run: FlowRun, *, is_going: Callable[[FlowRunId], bool]) -> None:
        """Fold one transition; ``is_going`` says whether a run has not ended."""
        if self._owed.observe(run, is_going=is_going):
            self._more.set()

    async def serve(self) -> None:
        """Push a work message for each; returns only by being cancelled."""
        while True:
            self._more = anyio.Event()
            due = self._owed.due
            for seq, owed in list(due.items()):
                run_id = owed.run_id
                try:
                    await self._push(owed)
                except StreamFull as exc:
                    log.warning("dispatcher.work_full", extra={"run_id": run_id, "error": str(exc)})
                    await anyio.sleep(AGAIN_S)
                    self._more.set()
                    continue
                except HarkError as exc:
                    log.error("dispatcher.hooks_refused", extra={"run_id": run_id, "error": str(exc)})
                due.pop(seq, None)
            await self._more.wait()

    async def _push(self, owed: _Owed) -> None:
        # After a restart without a checkpoint the whole log is folded again, with ends whose hooks have long run.
        # Also of an end that somebody has retried the run after: its hooks are owed all the same.
        record = await insist(lambda: self._bus.log.get(owed.seq))
        run = readable_run(record) if record is not None else None
        if run is None or await insist(lambda: self._notes.is_settled(run)):
            return
        pool = owed.pool
        if pool is None:
            around = await insist(lambda: outermost_run(self._runs, run))
            pool = around.pool if around is not None else None
        if pool is None:
            why = "the run it is part of has left the log, and with it who has its code"
            log.error("hooks.abandoned", extra={"run_id": run.id, "state": run.state_name, "why": why})
            await insist(lambda: self._notes.note(run, "abandoned", why=why))
            return
        ticket = Ticket.issue(run.id, attempt=owed.attempt, since=owed.seq, hooks=True)
        # A worker that finds it to be a sync flow passes it on to a process.
        await insist(
            lambda: self._bus.work.push(pool, LOOP, ticket.to_json(), msg_id=f"{ticket.msg_id}/hooks")
        )

    # --- checkpoint -----------------------------------------------------------------------------------

    def dump(self) -> dict[str, JsonValue]:
        """Return what is not handed out yet, as JSON."""
        return self._owed.dump()

    def load(self, value: Mapping[str, Any]) -> None:
        """Take up what ``dump`` wrote."""
        self._owed.load(value)
        self._more.set()


def _packed(owed: _Owed) -> list[JsonValue]:
    return [owed.run_id, owed.seq, owed.attempt, owed.pool]


def _unpacked(value: Sequence[Any]) -> _Owed:
    run_id, seq, attempt, pool = value
    return _Owed(FlowRunId(run_id), seq, attempt, pool)
