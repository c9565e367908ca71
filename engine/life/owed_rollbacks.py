"""Rollback hooks of plain calls whose process died between a task of a transaction and the end of that: called from what the log says.

The code of a deployment's run is gone through once more to undo what it had begun (``undoing.py``): that code is made to be taken up
again. That of a program is not: what it does between its tasks may be anything, and its arguments need not be recorded as they were.
So none of it runs. The event of a finished task that has such hooks says instead where the task is found, which block it is part
of, and what was set around it; a block that is committed says so, too, and so does a task that is rolled back.

What only the code knows is not undone by that: hooks that are given to a block by ``stage``. Tasks of subflows, of which the events of
the outermost run tell, are undone with it: all of them in reverse, as they stand in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.event import Recorded
from ...bus.subject import completed_subject
from ...vocabulary import FlowRunId, StateType
from ..calls.task_call import TaskCall
from ..code.named_code import NO_NAME, module_names, name_here
from ..context import FlowRunContext, TaskRunContext, entered
from ..results import RecordedResult, encode_result
from ..runs.final_state import describe
from ..runs.hook_log import HookLog, is_from_outside
from ..runs.run_log import RunLog
from ..signals import OF_THE_CODE
from ..sync_async.steps import Do, Steps
from ..transactions import Transaction, TransactionState
from .owed_task_hooks import OwedCall
from .task_transaction import TaskTransaction

if TYPE_CHECKING:
    from ...bus import Bus
    from ..runs.run import FlowRun
    from ..tasks import Task

__all__ = ["IN_SUBFLOW", "OwedRollback", "owed_rollbacks", "roll_back", "undo_text"]

log = logging.getLogger("hark.engine")

_UNDO = "undo"
"""The member of the data of a finished task's event."""
_UNDOES = (StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
_COMMITTED = "hark.transaction.committed"
IN_SUBFLOW = "hark.transaction.subflow"
"""The type of what the outermost run notes of a subflow that has parts of transactions, by its id."""


def undo_text(call: TaskCall, txn: TaskTransaction) -> str:
    """Return the piece of the event of a finished task that says how it is undone by others; "" where it is not to be.

    That is: where nobody has to, or the run's code is gone through once more for it.
    """
    hooks, tracker = call.task.on_rollback_hooks, call.flow.tracker if call.flow is not None else None
    if not hooks or tracker is None or tracker.code is None or txn.state is not TransactionState.STAGED:
        return ""
    said: dict[str, Any] = {"task": _place_of(call.task)}
    around: list[dict[str, Any]] = []
    above = txn.parent
    while above is not None:
        around.append(above.values)
        if above.call_key is not None and "block" not in said:
            flow = above.context.flow_context if above.context is not None else None
            said |= {"block": above.call_key, "run": flow.flow_run.id if flow is not None else None}
        above = above.parent
    text = orjson.dumps(said).decode()
    values = {name: value for each in reversed(around) for name, value in each.items()}
    if values:
        encoded = encode_result(values, inline_bytes=1 << 62)
        if isinstance(encoded, str):
            text = f'{text[:-1]},"around":{encoded}}}'
    return f'"{_UNDO}":{text},'


def _place_of(task: Task[..., Any]) -> str:
    """Return ``module:name`` of a task, or of one with the same function and the same rollback hooks."""
    module, what = name_here(task) or ("", f"{task.name}.{NO_NAME}")
    if "<" not in what:
        first, *rest = what.split(".")
        found: Any = module_names(task).get(first)
        for name in rest:
            found = vars(found).get(name)
        if getattr(found, "on_rollback_hooks", None) != task.on_rollback_hooks:
            what = f"{what}.{NO_NAME}"
    return f"{module}:{what}"


@dataclass(frozen=True, slots=True)
class OwedRollback:
    """A finished task that is rolled back if what it is part of has not been committed.

    Attributes:
        seq: where its end stands in the log. run: whose task it is.
    """

    seq: int
    run: FlowRun
    call: OwedCall

    @property
    def undo(self) -> dict[str, Any]:
        """What its end says of how it is undone."""
        undo: dict[str, Any] = self.call.data[_UNDO]
        return undo

    @property
    def block(self) -> tuple[str | None, str] | None:
        """The block it is part of: the run whose code it stands in, and its key there."""
        block = self.undo.get("block")
        return (self.undo.get("run"), block) if isinstance(block, str) else None


class Finished:
    """Fold of what a run has finished. Pure.

    Attributes:
        committed: keys of blocks.
        subflows: ids of those that have parts of transactions.
    """

    def __init__(self, run: FlowRun) -> None:
        self._run = run
        self.committed: set[str] = set()
        self.subflows: dict[str, None] = {}
        self._part_of: dict[str, bool] = {}
        """By the keys of calls that have completed: whether they are part of a transaction."""
        self._open: dict[str, OwedRollback] = {}
        """By task run."""

    def add(self, recorded: Recorded) -> None:
        event = orjson.loads(recorded.raw)
        data = event.get("data")
        key = data.get("call") if isinstance(data, dict) else None
        if not key:
            return
        if event["type"] == _COMMITTED:
            self.committed.add(key)
        elif event["type"] == IN_SUBFLOW:
            self.subflows[key] = None
        elif data.get("state", {}).get("type") == "COMPLETED":
            id_ = str(data["run"]["id"])
            self._open.pop(id_, None)
            if data["state"].get("name") == "RolledBack":
                self._part_of.pop(key, None)
                return
            self._part_of[key] = data.get("transaction") is not None
            if isinstance(data.get(_UNDO), dict):
                self._open[id_] = OwedRollback(recorded.seq, self._run, OwedCall(data))

    def left(self) -> list[OwedRollback]:
        """Return what is to be undone unless it is part of a block of another run, whose events say whether that was committed."""
        return [one for one in self._open.values() if not self._is_over(one)]

    def _is_over(self, one: OwedRollback) -> bool:
        if one.block is not None and one.block[1] in self.committed:
            return True
        # What a task called is committed with it, before the task itself is recorded, where that is part of nothing.
        return self._part_of.get(one.call.data.get("within") or "") is False


async def owed_rollbacks(bus: Bus, run: FlowRun) -> list[OwedRollback]:
    """Return the finished tasks of a plain call and its subflows that nobody is left to roll back; the newest first."""
    if run.state_type not in _UNDOES or run.parent is not None or not run.attempt or not is_from_outside(run):
        return []
    own = await _finished(bus, run)
    below = [await RunLog(bus).get(FlowRunId(id_)) for id_ in own.subflows]
    all_ = {run.id: own} | {one.id: await _finished(bus, one) for one in below if one is not None}
    committed = {(id_, key) for id_, finished in all_.items() for key in finished.committed}
    left = [one for finished in all_.values() for one in finished.left() if one.block not in committed]
    return sorted(left, key=lambda one: one.seq, reverse=True)


async def _finished(bus: Bus, run: FlowRun) -> Finished:
    finished = Finished(run)
    async with bus.log.read([completed_subject(run.id)]) as batches:
        async for batch in batches:
            for recorded in batch.records:
                finished.add(recorded)
    return finished


def roll_back(flow: FlowRunContext, owed: Iterable[OwedRollback]) -> Steps[None]:
    """Call the rollback hooks of finished tasks, each in its own run, and write that it is rolled back, or why it cannot be."""
    tracker = flow.tracker
    assert tracker is not None
    for one in owed:
        call = one.call
        try:
            context, _, _ = call.enter(flow, at=str(one.undo["task"]))
            txn = _transaction(flow, context, one)
        except OF_THE_CODE as exc:
            # Importing is running other people's code.
            why = f"it cannot be rolled back: {describe(exc)}"
            log.error("rollback.abandoned", extra={"run_id": one.run.id, "task": call.name, "why": why})
            note = partial(
                HookLog(tracker.session.bus).abandon_task, one.run, call.id, name=call.name, why=why
            )
            yield Do(partial(tracker.session.call, note), partial(tracker.session.acall, note))
            continue
        with entered(context):
            yield from txn.rolling_back()


def _transaction(flow: FlowRunContext, context: TaskRunContext, owed: OwedRollback) -> TaskTransaction:
    """Return the transaction of a finished task as it stood when its process died."""
    tracker = flow.tracker
    assert tracker is not None
    txn = TaskTransaction(context)
    txn.parent = Transaction()
    call = owed.call
    for one, values in ((txn, call.data.get("transaction")), (txn.parent, owed.undo.get("around"))):
        read = RecordedResult(tracker.session, {}, run_id=call.id, key=call.key, transaction=values)
        one.values.update(read.transaction_values())
    txn.call = TaskCall(context.task, context.task_run, flow, log_prints=False)
    txn.call.events, txn.is_recorded = tracker.events_of(owed.run), True
    txn.stage(None, context.task.on_rollback_hooks)
    return txn
