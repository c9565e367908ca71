"""Having the hooks called of ends whose own process has not called them: of a run cancelled before it began, say.

Part of the leading dispatcher. It pushes a work message for each such end; the worker that takes it loads the flow's code
and calls them (``hook_log.py`` says how that is noted). Owed to anyone are the ends that were written by one who was not
executing the run. A subflow that wrote its end itself calls its hooks itself, unless its process dies in them: the next
attempt of the run above does it then, and where there is none, because that run was ended from outside, it is owed to
anyone, too. So ended subflows are remembered until the run above has ended. A program that called a flow itself calls the
hooks of its end itself, too; the newest such ends of each are remembered until it falls silent. What is not pushed yet, and
what is remembered so, is part of the leader's checkpoint.

The code of a plain call is on the machine of its process (``script_code.py``): a worker there is to call its hooks, of whatever
pool. If there is none, they wait for one for a while.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from ...bus import Bus
from ...errors import HarkError, StreamFull
from ...vocabulary import FlowRunId, JsonValue
from ..code.lane import LOOP, PROCESS
from ..code.script_code import NO_CODE, ScriptCode, recorded_code
from ..code.subflow_code import outermost_run
from ..life.caller import DETAIL as CALLER
from ..runs.hook_log import ANYONE, HERE, HookLog, is_from_outside, is_owed
from ..runs.run import FlowRun
from ..runs.run_log import RunLog, readable_run
from .insisting import insist
from .ticket import Ticket

__all__ = ["HookDuty", "OwedHooks"]

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""After the queue of work was full."""
WAIT_S = 600.0
"""How long the hooks of a plain call wait for a worker on the machine of its process, which may be starting anew."""
LOOK_S = 5.0
"""Between two looks for one."""
KEPT_PER_CALLER = 256
"""Ends whose hooks a process may be calling at once that are remembered: of older ones it has called them."""


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
        self._of_caller: dict[str, dict[FlowRunId, _Owed]] = defaultdict(dict)
        """By the process, plain calls of it that have ended, the newest last; until it falls silent."""

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
        caller = run.state_details.get(CALLER) if is_findable and is_owed(run, HERE) else None
        if isinstance(caller, str):
            ends = self._of_caller[caller]
            ends[run.id] = owed
            if len(ends) > KEPT_PER_CALLER:
                del ends[next(iter(ends))]
        inside = self._inside.pop(run.id, None) if run.is_final else None
        # A process that lived through all of it has called them. After a first attempt that is not known, nor of a run whose
        # own code nobody can find: its end does not say who wrote it.
        if inside and (run.attempt > 1 or not is_findable or is_from_outside(run)):
            self.due.update({one.seq: one for one in inside.values()})
            is_new = True
        return is_new

    def lose(self, caller: str) -> bool:
        """Note that a process is gone that called flows; return whether anything is due by it."""
        ends = self._of_caller.pop(caller, {})
        self.due.update({one.seq: one for one in ends.values()})
        return bool(ends)

    def dump(self) -> dict[str, JsonValue]:
        """Return it as JSON."""
        return {
            "due": [_packed(one) for one in self.due.values()],
            "inside": [
                [parent, *_packed(one)] for parent, inside in self._inside.items() for one in inside.values()
            ],
            "of_caller": [
                [caller, *_packed(one)] for caller, ends in self._of_caller.items() for one in ends.values()
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
        self._of_caller.clear()
        for caller, *rest in value.get("of_caller", []):
            one = _unpacked(rest)
            self._of_caller[caller][one.run_id] = one


class HookDuty:
    """The loop that hands them out.

    Args:
        pool_on: returns the pool of a worker on a machine that has processes, if there is one.
    """

    def __init__(self, bus: Bus, pool_on: Callable[[str], str | None]) -> None:
        self._bus = bus
        self._pool_on = pool_on
        self._waiting: dict[int, float] = {}
        """Until when (monotonic) an end waits for a worker on the machine where its code is, by its sequence."""
        self._notes = HookLog(bus)
        self._runs = RunLog(bus)
        self._owed = OwedHooks()
        self._more = anyio.Event()

    def observe(self, run: FlowRun, *, is_going: Callable[[FlowRunId], bool]) -> None:
        """Fold one transition; ``is_going`` says whether a run has not ended."""
        if self._owed.observe(run, is_going=is_going):
            self._more.set()

    def lose(self, caller: str) -> None:
        """Note that a process is gone that called flows."""
        if self._owed.lose(caller):
            self._more.set()

    async def serve(self) -> None:
        """Push a work message for each; returns only by being cancelled."""
        while True:
            self._more = anyio.Event()
            due = self._owed.due
            for seq, owed in list(due.items()):
                run_id = owed.run_id
                try:
                    if not await self._push(owed):
                        continue
                except StreamFull as exc:
                    log.warning("dispatcher.work_full", extra={"run_id": run_id, "error": str(exc)})
                    await anyio.sleep(AGAIN_S)
                    self._more.set()
                    continue
                except HarkError as exc:
                    log.error("dispatcher.hooks_refused", extra={"run_id": run_id, "error": str(exc)})
                due.pop(seq, None)
                self._waiting.pop(seq, None)
            with anyio.move_on_after(LOOK_S if self._waiting else None):
                await self._more.wait()

    async def _push(self, owed: _Owed) -> bool:
        """Hand one out, or give it up; return whether that is done."""
        # After a restart without a checkpoint the whole log is folded again, with ends whose hooks have long run.
        # Also of an end that somebody has retried the run after: its hooks are owed all the same.
        record = await insist(lambda: self._bus.log.get(owed.seq))
        run = readable_run(record) if record is not None else None
        if run is None or await insist(lambda: self._notes.is_settled(run)):
            return True
        # A worker that finds it to be a sync flow passes it on to a process.
        pool, lane, why = owed.pool, LOOP, None
        if pool is None:
            around = await insist(lambda: outermost_run(self._runs, run))
            if around is None:
                why = "the run it is part of has left the log, and with it who has its code"
            elif around.pool is not None:
                pool = around.pool
            else:
                code = await insist(lambda: recorded_code(self._runs, run.id))
                why = NO_CODE if code is None else code.why
                lane, pool = PROCESS, self._pool_on(code.host) if code is not None else None
                if code is not None and why is None and pool is None:
                    if not self._has_waited(run, code):
                        return False
                    why = f"its code, {code.file}, is on {code.host}, where no worker with processes runs"
        if pool is None or why is not None:
            log.error("hooks.abandoned", extra={"run_id": run.id, "state": run.state_name, "why": why})
            await insist(lambda: self._notes.note(run, "abandoned", why=why))
            return True
        ticket = Ticket.issue(run.id, attempt=owed.attempt, since=owed.seq, hooks=True)
        await insist(
            lambda: self._bus.work.push(pool, lane, ticket.to_json(), msg_id=f"{ticket.msg_id}/hooks")
        )
        return True

    def _has_waited(self, run: FlowRun, code: ScriptCode) -> bool:
        """Whether an end has waited long enough for a worker where its code is."""
        now = anyio.current_time()
        if run.seq not in self._waiting:
            log.warning(
                "hooks.wait_for_worker", extra={"run_id": run.id, "host": code.host, "file": code.file}
            )
        return self._waiting.setdefault(run.seq, now + WAIT_S) <= now

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
