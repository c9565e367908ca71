"""Transactions: tasks that count together or not at all, with hooks that make good what has to be undone.

::

    with transaction() as txn:      # or: async with
        reserve(order)              # @reserve.on_rollback says how to take it back
        charge(order)               # fails: what `reserve` did is rolled back

Every task run is a transaction of its own, and part of the one it is called in; parts commit with the whole. Commit hooks run
in order, rollback hooks in reverse.

In a tracked run this survives the process. A finished task run stands in the log; whoever takes the run up again goes
through the block again with recorded results, so it is either completed or, should it fail, rolled back as a whole. What
was rolled back is recorded as such and runs again if the code comes to it again.
"""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from contextlib import suppress
from contextvars import ContextVar, Token
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import DefinitionError, EnteredTwice, HarkError, RunLost
from ..vocabulary import StateType, new_id
from .context import FlowRunContext, TaskRunContext, current_run, refuse_if_leaving
from .options.hooks import Hook, call_blocking
from .signals import OF_THE_CODE, suspension_in
from .sync_async.steps import Do, Steps, take_steps, take_steps_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .life.tracking import FlowTracker
    from .persistence.result_store import ResultStore

__all__ = [
    "AsyncTransaction", "BaseTransaction", "CommitMode", "IsolationLevel", "Transaction", "TransactionState", "atransaction", "current_block", "get_transaction",
    "transaction",
]  # fmt: skip


class _Word(StrEnum):
    """Made of its text in any case, too: ``commit_mode="EAGER"``."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


class IsolationLevel(_Word):
    """READ_COMMITTED: two may compute one key at once. SERIALIZABLE: the second waits for the first."""

    READ_COMMITTED = "READ_COMMITTED"
    SERIALIZABLE = "SERIALIZABLE"


class CommitMode(_Word):
    """LAZY: with the outermost transaction. EAGER: each at its own end. OFF: rolled back unless committed by hand."""

    EAGER = "EAGER"
    LAZY = "LAZY"
    OFF = "OFF"


class TransactionState(_Word):
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    STAGED = "STAGED"
    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"


_NOT_SET: Any = object()
_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
_ENDED = (TransactionState.COMMITTED, TransactionState.ROLLED_BACK)
ASKING_S = 30.0
"""How long the end of a block that was interrupted may take to ask whether its run is cancelled."""

current_block: ContextVar[Transaction | None] = ContextVar("hark_transaction", default=None)
"""The innermost ``with transaction()`` block. Those of task runs stand in their contexts."""


class Transaction:
    """A transaction; enter it with ``with`` or ``async with``, once.

    Entered with ``async with``, its methods ``read``, ``commit`` and ``rollback`` are awaited.

    Attributes:
        state: where it stands; ask with ``is_committed()`` and so on.
        children: the transactions that ended inside it, in order, and end with it.
        parent: the one it is part of; None outside any, and before it is entered.
    """

    def __init__(
        self,
        key: str | None = None,
        store: ResultStore | None = None,
        commit_mode: CommitMode | str | None = None,
        isolation_level: IsolationLevel | str | None = None,
        overwrite: bool = False,
        write_on_commit: bool = True,
        logger: Any = None,
        state: TransactionState | str = TransactionState.PENDING,
    ) -> None:
        self.key = key
        self.store = store
        self.commit_mode = None if commit_mode is None else CommitMode(commit_mode)
        self.isolation_level = None if isolation_level is None else IsolationLevel(isolation_level)
        self.overwrite = overwrite
        self.write_on_commit = write_on_commit
        self.state = TransactionState(state)
        self.children: list[Transaction] = []
        self.parent: Transaction | None = None
        self.on_commit_hooks: list[Hook] = []
        self.on_rollback_hooks: list[Hook] = []
        self.values: dict[str, Any] = {}
        """What ``set`` keeps."""
        self.context: FlowRunContext | TaskRunContext | None = None
        """The run whose code entered it."""
        self._logger = logger
        self._staged: Any = None
        self._holder = new_id()
        self._has_lock = False
        self._ends = False
        self._is_undone = False
        self._children_lock = threading.Lock()
        self._token: Token[Transaction | None] | None = None
        self._is_async = False
        self._call: str | None = None
        self._was_committed = False
        """Whether the log says that an earlier attempt of the run committed it."""

    # --- values ---------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Keep a value for later in the transaction, and for its hooks. Of a task run it is kept in the log, too."""
        self.values[name] = value

    def get(self, name: str, default: Any = _NOT_SET) -> Any:
        """Return a copy of a value kept with ``set``, here or in a transaction around this one.

        Raises:
            ValueError: there is none of that name, and no ``default`` was given.
        """
        if name in self.values:
            return copy.deepcopy(self.values[name])
        if self.parent is not None:
            return self.parent.get(name, default)
        if default is _NOT_SET:
            raise ValueError(
                f"Could not retrieve value for unknown key: {name}; set it with .set({name!r}, …)"
            )
        return default

    def is_committed(self) -> bool:
        return self.state is TransactionState.COMMITTED

    def is_rolled_back(self) -> bool:
        return self.state is TransactionState.ROLLED_BACK

    def is_staged(self) -> bool:
        return self.state is TransactionState.STAGED

    def is_pending(self) -> bool:
        return self.state is TransactionState.PENDING

    def is_active(self) -> bool:
        return self.state is TransactionState.ACTIVE

    def stage(
        self,
        value: Any,
        on_rollback_hooks: Sequence[Hook] | None = None,
        on_commit_hooks: Sequence[Hook] | None = None,
    ) -> None:
        """Give the value that is kept under the key at the commit, and hooks ``hook(txn)``."""
        if self.state is TransactionState.COMMITTED:
            return
        self._staged = value
        self.on_rollback_hooks += on_rollback_hooks or []
        self.on_commit_hooks += on_commit_hooks or []
        self.state = TransactionState.STAGED

    @classmethod
    def get_active(cls) -> Transaction | None:
        """Return the transaction the code is in; None outside any."""
        return get_transaction()

    def get_parent(self) -> Transaction | None:
        return self.parent

    def add_child(self, transaction: Transaction) -> None:
        self.children.append(transaction)

    @property
    def logger(self) -> Any:
        if self._logger is None:
            from .logging import get_run_logger

            in_run = current_run.get() is not None
            self._logger = get_run_logger() if in_run else logging.getLogger("hark.transactions")
        return self._logger

    @property
    def call_key(self) -> str | None:
        """Under which key the log says that it is committed; None where nothing is recorded, and for those of task runs."""
        return self._call

    # --- doing ----------------------------------------------------------------------------------------

    def read(self) -> Any:
        """Return the record kept under the key (``.result`` is the value); None without a key.

        Raises:
            ResultMissing: there is none.
        """
        return self._do(self._read())

    def begin(self) -> Any:
        """Take the lock of the key, if SERIALIZABLE; be committed, if there is a result under the key already."""
        return self._do(self._begin())

    def commit(self) -> Any:
        """Commit the parts, call the commit hooks, keep the staged value; return whether that was done.

        A hook that raises, or a store that does not take the value, rolls it back.
        """
        return self._do(self._commit())

    def rollback(self) -> Any:
        """Call the rollback hooks in reverse, then those of the parts; return whether all went well.

        A hook that raises is logged, and the others are called all the same.
        """
        return self._do(self._rollback())

    def _do(self, steps: Steps[Any]) -> Any:
        refuse_if_leaving(current_run.get())
        return take_steps_async(steps) if self._is_async else take_steps(steps)

    def __enter__(self) -> Self:
        self._enter()
        take_steps(self._begin_or_leave())
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        take_steps(self._exit(exc))

    async def __aenter__(self) -> Self:
        self._is_async = True
        self._enter()
        await take_steps_async(self._begin_or_leave())
        return self

    async def __aexit__(self, _: object, exc: BaseException | None, __: object) -> None:
        await take_steps_async(self._exit(exc))

    # --- how ------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        if self.state is not TransactionState.PENDING:
            raise EnteredTwice(
                "Context already entered: a transaction is entered once",
                hint="make a new one with transaction(…)",
            )
        self.prepare(get_transaction())
        self.context = current_run.get()
        tracker = _tracker()
        if tracker is not None and self.context is not None:
            # Known in the log by its place in the run, as a task call is.
            self._call, _ = self.context.calls.key("transaction", {"key": self.key})
            self._was_committed = tracker.finished.pop(self._call, None) is not None
        self._token = current_block.set(self)

    def prepare(self, parent: Transaction | None) -> None:
        """Become part of another, which says what is not said here."""
        self.parent = parent
        if self.commit_mode is None:
            inherited = parent.commit_mode if parent is not None else None
            self.commit_mode = inherited or CommitMode.LAZY
        if self.isolation_level is None:
            level = parent.isolation_level if parent is not None else None
            self.isolation_level = level or IsolationLevel.READ_COMMITTED
        if (
            self.key
            and self.store is not None
            and not self.store.supports_isolation_level(self.isolation_level)
        ):
            raise DefinitionError(
                f"Isolation level {self.isolation_level.name} is not supported by provided configuration: the result "
                "store has no lock manager",
                hint="make the store with lock_manager=MemoryLockManager(), or give none: the default one has",
            )
        self.state = TransactionState.ACTIVE

    def _begin_or_leave(self) -> Steps[None]:
        try:
            yield from self._begin()
        except BaseException:
            self._reset()
            raise

    def _begin(self) -> Steps[None]:
        store, key = self.store, self.key
        if store is None or not key:
            return
        if self.isolation_level is IsolationLevel.SERIALIZABLE and not self._was_committed:
            self._has_lock = yield Do(
                lambda: store.acquire_lock(key, self._holder), lambda: store.aacquire_lock(key, self._holder)
            )
        # What the run itself committed before it was taken up again: its code goes the way it went then.
        if not self.overwrite and not self._was_committed:
            exists = yield Do(lambda: store.exists(key), lambda: store.aexists(key))
            if exists:
                self.state = TransactionState.COMMITTED

    def _read(self) -> Steps[Any]:
        store, key = self.store, self.key
        if store is None or not key:
            return None
        return (yield Do(lambda: store.read(key, self._holder), lambda: store.aread(key, self._holder)))

    def _exit(self, exc: BaseException | None) -> Steps[None]:
        """End the block: see what the mode says, and tell the one around it."""
        if exc is not None or _is_leaving():
            goes_on = yield from self._goes_on_elsewhere(exc)
            if goes_on:
                self._unlock()
                self._reset()
                return
            yield from self._rollback()
        elif _is_past_its_end():
            yield from self._rollback()
        elif self.commit_mode is CommitMode.EAGER:
            yield from self._commit()
        if exc is None and self.parent is None:
            if self.commit_mode is CommitMode.OFF:
                yield from self._rollback()
            else:
                yield from self._commit()
        self._reset()
        yield from self._join_parent()

    def _join_parent(self) -> Steps[None]:
        """Leave the end to the parent; of one that has ended already, follow it."""
        parent = self.parent
        if parent is None:
            return
        with parent._children_lock:
            is_over = parent._ends or parent.state in _ENDED
            if not is_over:
                parent.add_child(self)
        if self.state is TransactionState.ROLLED_BACK:
            yield from parent._rollback()
        elif is_over and parent._is_undone:
            yield from self._rollback()
        elif is_over:
            yield from self._commit()

    def _commit(self) -> Steps[bool]:
        if not self._claim():
            self._unlock()
            return False
        if self._was_committed:
            self._be_committed()
            return True
        try:
            for child in self._parts():
                yield from _ended(child, "commit")
            for hook in self.on_commit_hooks:
                yield from self._call_hook(hook, "commit")
            yield from self._write()
        except OF_THE_CODE:
            self.logger.exception("transaction %r could not be committed, and is rolled back", self.key)
            yield from self._rollback(is_claimed=True)
            return False
        self.state = TransactionState.COMMITTED
        self._unlock()
        tracker = _tracker()
        if tracker is not None and self._call is not None:
            tracker.events.write_committed(self._call)
        return True

    def _be_committed(self) -> None:
        """Be what the log says it is, parts included; its hooks have been called."""
        self.state = TransactionState.COMMITTED
        self._unlock()
        for child in self.children:
            child._be_committed()

    def _write(self) -> Steps[None]:
        store, key = self.store, self.key
        if store is not None and key and self.write_on_commit:
            value, holder = self._staged, self._holder if self._has_lock else None
            yield Do(
                lambda: store.write(value, key, holder=holder),
                lambda: store.awrite(value, key, holder=holder),
            )

    def _rollback(self, *, is_claimed: bool = False) -> Steps[bool]:
        if not is_claimed and (self._was_committed or not self._claim()):
            self._unlock()
            return False
        self._is_undone = is_well = True
        for hook in reversed(self.on_rollback_hooks):
            try:
                yield from self._call_hook(hook, "rollback")
            except OF_THE_CODE:
                # The others have something to undo as well.
                self.logger.exception("rollback hook %r of transaction %r failed", _name_of(hook), self.key)
                is_well = False
        self.state = TransactionState.ROLLED_BACK
        for child in reversed(self._parts()):
            try:
                undone = yield from _ended(child, "rollback")
            except OF_THE_CODE:
                self.logger.exception("a part of transaction %r could not be rolled back", self.key)
                undone = False
            is_well = is_well and (undone or child.is_committed())
        self._undone()
        self._unlock()
        return is_well

    def rolling_back(self) -> Steps[bool]:
        """Do what ``rollback`` does, for who takes the steps."""
        return self._rollback()

    def _undone(self) -> None:
        """For those of task runs: say that it is rolled back."""

    def _call_hook(self, hook: Hook, kind: str) -> Steps[None]:
        if getattr(hook, "log_on_run", True):
            self.logger.info("running %s hook %r", kind, _name_of(hook))
        yield Do(lambda: call_blocking(hook, self), lambda: _call_async(hook, self))

    def _claim(self) -> bool:
        """Return whether it is ours to end: once, though parts of it may end in several threads."""
        with self._children_lock:
            if self._ends or self.state in _ENDED:
                return False
            self._ends = True
            return True

    def _parts(self) -> list[Transaction]:
        with self._children_lock:
            return list(self.children)

    def _unlock(self) -> None:
        if self._has_lock and self.store is not None and self.key:
            self._has_lock = False
            self.store.release_lock(self.key, self._holder)

    def _reset(self) -> None:
        if self._token is not None:
            current_block.reset(self._token)
            self._token = None

    def _goes_on_elsewhere(self, exc: BaseException | None) -> Steps[bool]:
        """Whether the run is left as it stands and taken up again later, so that nothing is to be undone."""
        if isinstance(exc, RunLost) or exc is None or suspension_in(exc) is not None or _is_leaving():
            return True
        tracker = _tracker()
        if isinstance(exc, OF_THE_CODE) or tracker is None or not tracker.leaves_interrupted:
            return False
        cancelled = yield Do(lambda: _is_cancelled(FlowRunContext.get()), _is_cancelled_async)
        return not cancelled


def _is_leaving() -> bool:
    """Whether the run the code is in leaves its worker, be it that the code has caught the exception that says so."""
    run = current_run.get()
    return isinstance(run, FlowRunContext) and run.leaving is not None and not run.flow_run.is_final


def transaction(
    key: str | None = None,
    store: ResultStore | None = None,
    commit_mode: CommitMode | str | None = None,
    isolation_level: IsolationLevel | str | None = None,
    overwrite: bool = False,
    write_on_commit: bool = True,
    logger: Any = None,
) -> Transaction:
    """Return a transaction to be entered with ``with`` or ``async with``.

    Args:
        key: the staged value is kept under it at the commit; if one is kept already, it is committed from the start.
        store: where. Default: that of the run the code is in.
        commit_mode: LAZY (with the outermost one), EAGER (at its own end) or OFF. Default: as the one around it, else LAZY.
        isolation_level: SERIALIZABLE: nobody else is inside with the same key. Default: as the one around it.
        overwrite: do not look whether there is a result under the key.
        write_on_commit: False: keep nothing.
    Raises:
        DefinitionError: SERIALIZABLE, with a store of one's own that has no lock manager.
    """
    if key and store is None:
        from .locking import default_lock_manager
        from .persistence.result_store import get_result_store

        store = get_result_store().with_changes(lock_manager=default_lock_manager())
    return Transaction(key, store, commit_mode, isolation_level, overwrite, write_on_commit, logger)


atransaction = transaction

# One kind serves sync and async code.
BaseTransaction = AsyncTransaction = Transaction
"""The same: ``async with atransaction() as txn``."""


def get_transaction() -> Transaction | None:
    """Return the innermost transaction the code is in: a block, or that of its task run; None outside any."""
    block, run = current_block.get(), current_run.get()
    if isinstance(run, TaskRunContext) and (block is None or block.context is not run):
        from .life.task_transaction import transaction_of

        return transaction_of(run)
    return block


def _ended(child: Transaction, how: Literal["commit", "rollback"]) -> Steps[bool]:
    """Commit or roll back a part; one of a class that does it in its own way does it so."""
    if getattr(type(child), how) is not getattr(Transaction, how):
        own = getattr(child, how)
        return bool((yield Do(own, lambda: _awaited(own()))))
    return (yield from (child._commit() if how == "commit" else child._rollback()))


async def _awaited(outcome: Any) -> Any:
    return await outcome if inspect.isawaitable(outcome) else outcome


def _tracker() -> FlowTracker | None:
    flow = FlowRunContext.get()
    return flow.tracker if flow is not None else None


def _is_past_its_end() -> bool:
    """Whether the code goes on in a run that has ended and is being undone: somebody has caught what was to stop it."""
    tracker = _tracker()
    return tracker is not None and tracker.undoing is not None and tracker.undoing.is_reached


def _is_cancelled(flow: FlowRunContext | None) -> bool:
    """Whether somebody asked for the run, or one around it, to be cancelled; blocks."""
    from .runs.run_log import RunLog
    from .sync_async.either import blocking_session

    with suppress(HarkError):  # who cannot ask leaves it to whoever takes the run up
        session = blocking_session("a transaction")
        while flow is not None:
            now = session.call(RunLog(session.bus).get, flow.flow_run.id)
            if now is not None and now.state_type in _CANCELLED:
                return True
            flow = flow.parent.flow_context if flow.parent is not None else None
    return False


async def _is_cancelled_async() -> bool:
    import anyio

    flow = FlowRunContext.get()
    # Who cannot ask, or has no answer in time, leaves it to whoever takes the run up.
    with suppress(HarkError), anyio.CancelScope(shield=True, deadline=anyio.current_time() + ASKING_S):
        while flow is not None:
            if flow.tracker is not None:
                now = await flow.tracker.session.acall(flow.tracker.look)
                if now.state_type in _CANCELLED:
                    return True
            flow = flow.parent.flow_context if flow.parent is not None else None
    return False


async def _call_async(hook: Hook, txn: Transaction) -> None:
    outcome = hook(txn)
    if inspect.isawaitable(outcome):
        await outcome


def _name_of(hook: Hook) -> str:
    return getattr(hook, "__name__", None) or repr(getattr(hook, "func", hook))
