"""Task runs as transactions: staged when the function has returned, ended alone or with what they are part of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..context import FlowRunContext, TaskRunContext, current_run
from ..persistence.caching import CallCache, staged_copy
from ..results import NOT_KEPT, InlineResult, LargeResult, encode_result, missing
from ..runs.task_event_text import quoted
from ..states import RolledBack, State, StateType
from ..sync_async.steps import Do, Steps
from ..transactions import CommitMode, Transaction, TransactionState, current_block
from .undoing import IN_SUBFLOWS

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall
    from ..runs.task_run import TaskRun

__all__ = [
    "TaskTransaction",
    "abandon",
    "conclude",
    "own_transaction",
    "replayed",
    "transaction_of",
    "try_transaction",
    "undo_try",
    "values_of",
]


class TaskTransaction(Transaction):
    """The transaction of one try of a task run."""

    def __init__(self, run: TaskRunContext) -> None:
        super().__init__()
        self.context = run
        self.run: TaskRun = run.task_run
        self.call: TaskCall | None = None
        self.is_recorded = False
        """Whether the log says that the task run completed."""

    def _write(self) -> Steps[None]:
        cache = self.call.cache if self.call is not None else None
        if cache is not None:
            value = self._staged
            yield Do(lambda: cache.write(value), lambda: cache.awrite(value))

    def _undone(self) -> None:
        """Say that the task run is rolled back: its result does not count any more, and a call like it runs again."""
        call = self.call
        if call is None or not self.is_recorded:
            return
        flow = call.flow
        if flow is not None and flow.memo is not None:
            flow.memo.pop(self.run.call, None)
        self.run.state = state = RolledBack(
            message="Task rolled back as part of transaction", run_id=self.run.id
        )
        if call.events is not None:
            call.events.write(self.run, StateType.COMPLETED, state.name, state.message)


def transaction_of(run: TaskRunContext) -> TaskTransaction:
    """Return the transaction of a task run, which exists from the first time that somebody asks for it."""
    if run.transaction is None:
        made = TaskTransaction(run)
        made.prepare(_around(run.caller))
        run.transaction = made
    return run.transaction


def _around(caller: Any) -> Transaction | None:
    """Return the transaction that a call made by ``caller`` is part of."""
    block = current_block.get()
    if isinstance(caller, TaskRunContext) and (block is None or block.context is not caller):
        return transaction_of(caller)
    return block


def try_transaction(call: TaskCall) -> None:
    """Begin the transaction of a try whose task has hooks of it, or that is part of one."""
    run = current_run.get()
    if not isinstance(run, TaskRunContext):
        return
    run.transaction = None
    caller, block = run.caller, current_block.get()
    if (
        call.task.has_transaction_hooks
        or block is not None
        or (caller is not None and caller.transaction is not None)
    ):
        transaction_of(run)


def own_transaction() -> TaskTransaction | None:
    """Return the transaction of the present try, if it has one."""
    run = current_run.get()
    return run.transaction if isinstance(run, TaskRunContext) else None


def conclude(call: TaskCall, state: State, finish: Any, finish_async: Any) -> Steps[State]:
    """End a try whose function returned: keep the result, record it, and commit or leave that to what it is part of.

    What is on its own commits first: a task that the log says has completed has called its commit hooks. What is part of
    something is recorded first, so that whoever takes the run up knows what there may be to undo.
    """
    txn = own_transaction()
    task = call.task
    if state.type is not StateType.COMPLETED:
        if txn is not None:
            yield from undo_try(is_last=True)
        yield Do(lambda: finish(call, state, None), lambda: finish_async(call, state, None))
        return state
    is_alone = txn is None or txn.parent is None or txn.commit_mode is CommitMode.EAGER
    if txn is not None:
        txn.call = call
        txn.stage(state.data, task.on_rollback_hooks, task.on_commit_hooks)
    if is_alone:
        if txn is not None:
            yield from txn._exit(None)
            is_kept = txn.is_committed()
        elif call.cache is not None:
            cache, value = call.cache, state.data
            is_kept = yield Do(lambda: cache.write(value), lambda: cache.awrite(value))
        else:
            is_kept = True
        result = _recorded(call, state.data, call.cache, is_kept)
    else:
        # Under its key it is seen by others, so that has to wait for the commit; recorded it has to be now.
        staged, value, is_kept = staged_copy(call), state.data, True
        if staged is not None:
            is_kept = yield Do(lambda: staged.write(value), lambda: staged.awrite(value))
        result = _recorded(call, value, staged, is_kept)
    yield Do(lambda: finish(call, state, result), lambda: finish_async(call, state, result))
    if txn is not None:
        txn.is_recorded = True
        if not is_alone:
            yield from txn._exit(None)
    return state


def undo_try(*, is_last: bool) -> Steps[None]:
    """End the transaction of a try that failed. The last one's failure is that of what it is part of, too."""
    txn = own_transaction()
    if txn is None:
        return
    run = current_run.get()
    assert isinstance(run, TaskRunContext)
    run.transaction = None
    yield from txn._rollback()
    if is_last:
        yield from txn._join_parent()


def abandon(exc: BaseException) -> Steps[None]:
    """End the transaction of a try that something from outside ended."""
    txn = own_transaction()
    if txn is None:
        return
    goes_on = yield from txn._goes_on_elsewhere(exc)
    if not goes_on:
        yield from undo_try(is_last=True)


def replayed(call: TaskCall, value: Any) -> Steps[None]:
    """Take a call whose result is recorded into the transaction that it was part of, so that it can be undone."""
    run = TaskRunContext(
        call.task, call.run, call.run.parameters, call.flow, False, call.caller, call.keeping
    )
    around = call.caller.transaction if call.caller is not None else None
    has_hooks = call.task.has_transaction_hooks
    if not has_hooks and around is None and current_block.get() is None:
        return
    token = current_run.set(run)
    try:
        txn = transaction_of(run)
        if txn.parent is None or txn.parent._was_committed:
            _meet(call)
            return
        txn.call, txn.is_recorded = call, True
        assert call.recorded is not None
        txn.values.update(call.recorded.transaction_values())
        txn.stage(value, call.task.on_rollback_hooks, call.task.on_commit_hooks)
        if txn.commit_mode is CommitMode.EAGER:
            txn.state = TransactionState.COMMITTED  # it called its commit hooks before it was recorded
        yield from txn._join_parent()
        _meet(call)
    finally:
        current_run.reset(token)


def _meet(call: TaskCall) -> None:
    """Stop the code of a run that is undone, where this was the last call that may be part of something."""
    tracker = call.flow.tracker if call.flow is not None else None
    if tracker is not None and tracker.undoing is not None:
        tracker.undoing.meet(call.run.call)


def _tell_outermost(flow: FlowRunContext) -> None:
    """Note in the outermost run that subflows of it have parts of transactions, for whoever may have to undo them."""
    from .owed_rollbacks import IN_SUBFLOW

    if flow.has_told:
        return
    flow.has_told = True
    above: FlowRunContext | None = flow
    while above is not None and above.parent is not None:
        above = above.parent.flow_context
    if above is None or above.tracker is None:
        return
    if above.tracker.code is not None:
        above.tracker.events.write_note(IN_SUBFLOW, flow.flow_run.id)
    elif IN_SUBFLOWS not in above.tracker.finished:
        above.tracker.events.write_note("hark.transaction.noted", IN_SUBFLOWS)


def _recorded(
    call: TaskCall, value: Any, cache: CallCache | None, is_kept: bool
) -> InlineResult | LargeResult | None:
    """Return what the event says of the result."""
    events = call.events
    if events is None:
        return None
    if call.is_unkept:
        return NOT_KEPT
    if call.is_stored and cache is not None:
        if not is_kept:
            return missing(f"it could not be kept under {cache.key!r} in its storage")
        return cache.reference()
    return events.record(value, call.keeping.serializer if call.keeping is not None else None)


def values_of(call: TaskCall) -> str:
    """Return the piece of the event that tells of the transaction: what its hooks may want to know again."""
    txn = own_transaction()
    if txn is None or txn.parent is None:
        return ""
    from .owed_rollbacks import undo_text

    encoded = encode_result(txn.values, inline_bytes=1 << 62) if txn.values else "{}"
    if not isinstance(encoded, str):
        return ""
    undo = undo_text(call, txn)
    flow = call.flow
    is_within = isinstance(call.caller, TaskRunContext)
    if flow is not None and flow.parent is not None and (undo or not is_within):
        _tell_outermost(flow)
    if isinstance(call.caller, TaskRunContext):
        return f'"transaction":{encoded},"within":{quoted(call.caller.task_run.call)},{undo}'
    return f'"transaction":{encoded},{undo}'
