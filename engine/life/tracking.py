"""The tracker: what writes the transitions of a tracked run into the log, and knows what it finished before.

Transitions of the flow run are guarded appends, one at a time. Those of its task runs stream without waiting
(``task_events.py``); the flow's last transition goes behind a barrier, so a run that is over has all its task events in
the log.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.owner import Owner
from ...bus.subject import completed_subject
from ...errors import GuardFailed, MoveRefused, RunLost
from ...vocabulary import JsonObject, JsonValue, StateType
from ..code.script_code import CODE
from ..results import InlineResult, LargeResult, RecordedResult, encode_result
from ..runs.hook_log import DETAIL as HOOKS
from ..runs.hook_log import HERE, HookLog, is_owed
from ..runs.replay import (
    FinishedCall,
    FinishedCalls,
    RetryingCall,
    attempt_starts,
    begins_anew,
    last_opened,
    last_retry,
    noted_waits,
    retries_made,
)
from ..runs.run import FlowRun
from ..runs.task_events import TaskEvents
from ..states import Cancelled, Crashed, State
from ..sync_async.side_session import SideSession
from .caller import DETAIL, Caller, caller_of
from .flow_steps import OnBus, Step, Store
from .undoing import Undoing, until_undone

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..code.script_code import ScriptCode
    from ..options.keeping import Keeping
    from ..runs.run_log import Draft, RunLog
    from .holding import Place
    from .owed_task_hooks import OwedCall

__all__ = ["FlowTracker"]


class FlowTracker:
    """Holds a flow run while it runs here: writes its transitions, knows what it finished before.

    Attributes:
        flow_run: as of the last transition.
        finished: calls that need not run again, by key; taken out as they are met.
        leaves_interrupted: what is interrupted from outside is left for another worker, not recorded as crashed.
    """

    def __init__(
        self,
        session: Session,
        run_log: RunLog,
        flow_run: FlowRun,
        *,
        inline_bytes: int,
        leaves_interrupted: bool,
        suspend_after_s: float = 30.0,
        beat_s: float | None = None,
    ) -> None:
        self.session = session
        self.run_log = run_log
        self.flow_run = flow_run
        self.finished: dict[str, FinishedCall] = {}
        self.retrying: dict[str, RetryingCall] = {}
        """Calls that were between two tries; taken out as they are met."""
        self.undoing: Undoing | None = None
        """Set where the run has ended and is gone through once more, to undo what it had begun."""
        self.hooked: set[str] = set()
        """Keys of finished calls whose ``on_completion`` hooks have run."""
        self.leaves_interrupted = leaves_interrupted
        self.retries_made = 0
        self.anew = 0
        """The sequence before which nothing of the run counts, because it was retried from its start; 0: all counts."""
        self.find_module: Callable[[str], ModuleType] = import_module
        """Returns the module of a name as the flow's own code sees it."""
        self.untold: list[OwedCall] = []
        """Task runs that had completed before a retry from the start, and whose hooks nobody has called."""
        self.retried_at = 0
        """The sequence at which the run was last begun again after a failure or an end; 0: never."""
        self.suspend_after_s = suspend_after_s
        """A wait longer than this holds no worker."""
        self.place: Place | None = None
        """Of the run in the worker that holds it; None: nobody wants to have it back."""
        self.told_to_hold: set[str] = set()
        """What has been said in the log of such waits that keep the run in memory."""
        self.waits: dict[str, JsonObject] = {}
        """Waits that earlier attempts began, by key; see ``replay.noted_waits``."""
        self._inline_bytes = inline_bytes
        self._beat_s = beat_s
        """For a run that no worker holds: how often its process says that it lives."""
        self._caller: Caller | None = None
        self._asked: str | None = None
        """The event of the last transition that was asked for; whoever was interrupted then may not know that it landed."""
        self._moves = asyncio.Lock()
        """Held while a transition is on its way, which may be so still when whoever asked for it was interrupted."""
        self.code: ScriptCode | None = None
        """Where the code of a run is that is, or is part of, a plain call which may come to owe hooks."""
        self.side = SideSession(session.bus)
        self.owner = Owner()
        """Told of what the broker refuses of this run, and of no other."""
        self._events: TaskEvents | None = None
        self._making = threading.Lock()

    @property
    def events(self) -> TaskEvents:
        """What writes the transitions of its task runs; made when it is first asked for."""
        if self._events is None:
            with self._making:
                if self._events is None:
                    self._events = self.events_of(self.flow_run)
        return self._events

    def events_of(self, run: FlowRun) -> TaskEvents:
        """Return what writes the transitions of the task runs of ``run``: this one, or a subflow that nobody executes."""
        return TaskEvents(
            self.session, run_id=run.id, run_name=run.name, attempt=run.attempt, flow_name=run.flow_name,
            deployment=run.deployment, correlationid=run.correlationid, causationid=run.causationid,
            causaldepth=run.causaldepth, inline_bytes=self._inline_bytes, owner=self.owner,
        )  # fmt: skip

    # The async methods below run on the session's loop (``session.call`` / ``acall``).

    def begin(
        self, state: State, then: State | None = None, name: str | None = None
    ) -> Generator[Step, Any, bool]:
        """Append the first transition of a new run; return whether it is new. If not, ``flow_run`` is as it stands.

        Args:
            then: the second, appended with it where the first is new. name: what it names the run; None: as it is.
        """
        if self._beat_s is not None:
            self._caller = caller_of(self.session.bus, self._beat_s)
            if not self._caller.hold_nowait(self.flow_run.id):
                yield OnBus(self._caller.hold, (self.flow_run.id,))
            state = state.with_details({DETAIL: self._caller.info.id})
        if self.code is not None:
            state = state.with_details({CODE: self.code.to_json()})
        attempt, moved = max(1, self.flow_run.attempt), None
        try:
            if then is None:
                begun = yield OnBus(self.run_log.begin, (self.flow_run, state))
            else:
                one, two = self.run_log.two_drafts(self.flow_run, state, then, attempt=attempt, name=name)
                messages = self.session.bus.log.two_messages(one.event, two.event, one.after)
                asked_at = time.monotonic()
                places: list[int] | None = yield Store(messages)
                if places is not None:
                    begun, moved = one.landed(places[0]), two.landed(places[1])
                else:
                    spent_s = time.monotonic() - asked_at
                    begun, moved = yield OnBus(self.run_log.begin_and_move, (one, two), {"spent_s": spent_s})
        except GuardFailed:
            there = yield OnBus(self.run_log.get, (self.flow_run.id,))
            if there is None:
                raise
            self._set(there)
            return False
        self._set(moved or begun)
        if then is not None and moved is None:
            yield OnBus(self.move, (then,), {"attempt": attempt, "name": name})
        return True

    async def move(
        self,
        state: State,
        *,
        result: JsonValue = None,
        draft: Draft | None = None,
        spent_s: float = 0.0,
        **changes: Any,
    ) -> None:
        """Append a transition; ``changes``, and the others, are those of ``RunLog.move``.

        Raises:
            RunLost: another worker has the run; from now on nothing is written here.
            MoveRefused: there is no such move.
        """
        async with self._moves:
            state, run = self._with_caller(state), self.flow_run
            draft = draft or self.run_log.draft(run, state, result=result, **changes)
            own, self._asked = self._asked, draft.event.id
            try:
                moved = await self.run_log.move(
                    run, state, result=result, draft=draft, own=own, spent_s=spent_s, **changes
                )
            except RunLost:
                self.events.silence()
                raise
            self._land(moved)

    def _with_caller(self, state: State) -> State:
        if self._caller is None or state.details.get(HOOKS) != HERE:
            return state
        # Who finds that this process has died finds by it that the hooks may not have run.
        return state.with_details({DETAIL: self._caller.info.id})

    def _land(self, run: FlowRun) -> None:
        self._set(run)
        if run.is_final and not is_owed(run, HERE):
            self.let_go()

    def let_go(self) -> None:
        """Stop saying that this process runs it. From any thread."""
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.release(self.flow_run.id)

    async def adopt(self, run: FlowRun) -> None:
        """Go on from what somebody else made of the run while it was ours to wait.

        Raises:
            RunLost: it is another worker's now, or over.
        """
        if run.attempt != self.flow_run.attempt or run.is_final:
            self.events.silence()
            raise RunLost(run.id, reason=f"it is {run.state_name}, attempt {run.attempt}")
        self._set(run)

    def finish(self, state: State, *, result: JsonValue = None) -> Generator[Step, Any, None]:
        """Append a final state, once all task events given before are stored.

        Raises:
            As ``barrier`` and ``move``.
        """
        draft: Draft | None = None
        asked_at = time.monotonic()
        if (self._events is None or self._events.is_settled) and self.session.bus.is_quiet:
            draft = self.run_log.draft(self.flow_run, self._with_caller(state), result=result)
            message = self.session.bus.log.message(draft.event, draft.after)
            places: list[int] | None = yield Store((message,), behind=self.owner)
            if places is not None:
                self._land(draft.landed(places[0]))
                return
        yield OnBus(self._finish, (state, result, draft, time.monotonic() - asked_at))

    async def _finish(self, state: State, result: JsonValue, draft: Draft | None, spent_s: float) -> None:
        await self.barrier()
        await self.move(state, result=result, draft=draft, spent_s=spent_s)

    def finish_with(
        self, state: State, value: Any, keeping: Keeping | None = None
    ) -> Generator[Step, Any, None]:
        """Store what the flow returned, and append its COMPLETED state behind it: see ``finish``."""
        if keeping is not None and keeping.persist and keeping.storage is not None:
            result = yield OnBus(self._store_elsewhere, (value, keeping))
        else:
            encoded = encode_result(
                value,
                inline_bytes=self._inline_bytes,
                serializer=keeping.serializer if keeping is not None else None,
            )
            if isinstance(encoded, LargeResult):
                encoded = yield OnBus(self._store_large, (encoded,))
            result = orjson.loads(encoded)
        yield from self.finish(state, result=result)

    async def close(self, left: Iterable[FlowRun], end: State) -> None:
        """End the runs of subflows that were stopped on their way to this end, where nobody else has ended or taken them up."""
        for run in left:
            now = await self.run_log.get(run.id)
            if now is None or now.is_final or now.attempt != run.attempt:
                continue
            # Moved by somebody else since we looked: then it is theirs, or over.
            with suppress(RunLost, MoveRefused):
                if StateType.CANCELLED is end.type or now.state_type is StateType.CANCELLING:
                    state = Cancelled(message="its parent was cancelled")
                else:
                    state = Crashed(message="it was stopped on its way, and its parent came to an end")
                await self.run_log.move(now, state)

    async def barrier(self) -> None:
        """Wait until every task event given so far is stored.

        Raises:
            HarkError: one of this run's events was refused for good.
        """
        if self._events is not None:
            await self._events.settle()
        await self.session.bus.publisher.barrier(owner=self.owner)

    async def look(self) -> FlowRun:
        """Return the run as the log has it now; if it is no longer ours, write nothing more.

        A transition that it was interrupted in asking for is its own.
        """
        async with self._moves:
            now = await self.run_log.get(self.flow_run.id)
        if now is not None and now.event_id is not None and now.event_id == self._asked:
            self._set(now)
        if now is None or now.attempt > self.flow_run.attempt:
            self.events.silence()
        return now or self.flow_run

    async def resume(self) -> None:
        """Read what earlier attempts of the run finished."""
        history = await self.run_log.history(self.flow_run.id)
        await until_undone(self, history)
        self.anew = anew = begins_anew(history)
        self.retried_at = last_retry(history)
        # A subflow is begun again by its parent, as often as that is tried: each time it has all of its retries.
        counted = max(anew, last_opened(history)) if self.flow_run.parent is not None else anew
        self.retries_made = retries_made(recorded for recorded in history if recorded.seq > counted)
        self.waits = noted_waits(self.flow_run.id, (recorded for recorded in history if recorded.seq > anew))
        finished = FinishedCalls(attempt_starts(history))
        reading = self.session.bus.log.read([completed_subject(self.flow_run.id)], after=anew)
        async with reading as batches:
            async for batch in batches:
                finished.add(batch.records)
        self.finished, self.retrying = finished.by_key, finished.retrying
        self.hooked = await HookLog(self.session.bus).calls(self.flow_run.id, after=anew)
        if anew and self.undoing is None:
            from .owed_task_hooks import untold_calls

            self.untold = await untold_calls(self.session.bus, self.flow_run.id, before=anew)

    async def begin_hooks(self) -> bool:
        """Note that the hooks of the run's end are about to be called; False if they have run before."""
        return await HookLog(self.session.bus).begin(self.flow_run) > 0

    async def note_hooks(self) -> None:
        """Note that the hooks of the run's end have run."""
        await HookLog(self.session.bus).note(self.flow_run, "ran")
        self.let_go()

    async def _store_elsewhere(self, value: Any, keeping: Keeping) -> JsonValue:
        from ..persistence.caching import store_elsewhere

        stored: JsonValue = orjson.loads(await store_elsewhere(value, keeping))
        return stored

    async def _store_large(self, result: LargeResult) -> InlineResult:
        """Store what the flow returned in the object store; return what stands in its last event."""
        name = f"results/{self.flow_run.id}/{self.flow_run.attempt}"
        await self.session.bus.objects.put(name, result.data)
        return result.reference(name)

    async def recorded_flow_result(self) -> JsonObject | None:
        """Return what the run's last event says of its result."""
        history = await self.run_log.history(self.flow_run.id)
        data = history[-1].event.data if history else None
        result = data.get("result") if isinstance(data, dict) else None
        return result if isinstance(result, dict) else None

    def take_finished(self, key: str) -> RecordedResult | None:
        """Return the recorded result of the call with this key, once; None if it has to run."""
        call = self.finished.pop(key, None)
        if call is None:
            return None
        recorded = RecordedResult(
            self.session, call.result, run_id=call.task_run_id, key=key, transaction=call.transaction
        )
        return recorded if recorded.is_kept else None

    def _set(self, run: FlowRun) -> None:
        renewed = run.attempt != self.flow_run.attempt or run.name != self.flow_run.name
        self.flow_run = run
        if renewed:
            self._events = None
