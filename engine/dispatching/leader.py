"""What the leading dispatcher does: fold the log, decide, carry out.

Two things are written down besides what goes into the log: a checkpoint of the fold, to be quick after a restart; and
the places given away under limits whose runs no worker has taken up yet, *before* their messages go out, because
a successor must not give those places to others. Both writes are guarded, so they also tell a leader that it is none.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio
import orjson
from anyio.abc import TaskStatus
from pydantic import BaseModel, ValidationError

from ...bus import Bus
from ...bus.bucket import Bucket, Entry
from ...bus.candidate import Deposed
from ...bus.event import Recorded
from ...bus.large_value import LargeValues
from ...bus.patience import Patience
from ...bus.subject import FLOW_RUNS
from ...clock import Clock
from ...config import EngineConfig
from ...errors import (
    AlreadyHeld,
    BufferFull,
    BusUnavailable,
    EventInvalid,
    GuardFailed,
    HarkError,
    ObjectCorrupt,
    RefusedError,
    StreamFull,
    UnknownName,
)
from ...vocabulary import FlowRunId, JsonObject, StateType
from ..code.lane import LOOP, UNKNOWN
from ..life import caller as callers
from ..life.caller import CallerInfo
from ..pausing.pause import NEVER_RESUMED
from ..runs.open_tasks import end_open_tasks, leaves_tasks_open
from ..runs.run import FlowRun
from ..states import AwaitingConcurrencySlot, Cancelled, Crashed, Failed, State
from ..states import Late as LateState
from . import presence
from .control import Control
from .decision import Await, Cancel, Decision, Drop, Expire, Finish, Late, Start
from .deployment import BUCKET as DEPLOYMENTS
from .deployment import Deployment
from .dispatch import Dispatch
from .hook_duty import HookDuty
from .insisting import insist
from .pool import BUCKET as POOLS
from .pool import Pool
from .presence import WorkerInfo
from .ticket import Ticket

__all__ = ["Leader"]

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
CHECKPOINT = "dispatcher.state"
GRANTS = "dispatcher.grants"
CHECKPOINT_S = 5.0
"""Between two checkpoints when anything changed: what has to be folded again after a crash is seconds of history."""
INLINE_BYTES = 256 * 1024
"""A checkpoint larger than this goes to the object store, and a reference to it into the bucket."""
LONGEST_SLEEP_S = 60.0
"""Due times are wall time and sleeping is not: after a machine was suspended or its clock set, look again soon."""
SECOND_LOOK_S = 1.0
"""Between two looks at a silent worker. Coming later than this to the second, we know nothing of its silence."""
AT_ONCE = 64
NOTES_AT_ONCE = 16
_GATHER_S = 0.02
_UNPRESSING = frozenset(("pending", "running", "completed"))
_BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)

ModelT = TypeVar("ModelT", bound=BaseModel)


class Leader:
    """One term of office. ``lead`` returns only by being cancelled or deposed."""

    def __init__(self, bus: Bus, config: EngineConfig, clock: Clock) -> None:
        self._bus, self._config, self._clock = bus, config, clock
        self._control = Control(bus, clock)
        self._bucket: Bucket = bus.bucket(CHECKPOINTS)
        self._grants = _Guarded(self._bucket, GRANTS)
        self._checkpoint = _Guarded(self._bucket, CHECKPOINT)
        self._large = LargeValues(self._bucket, bus.objects, owner=CHECKPOINT)
        self.dispatch = Dispatch()
        self._wake = anyio.Event()
        self._changed = anyio.Event()
        self._workers: dict[str, tuple[WorkerInfo, float]] = {}
        self._worker_came = anyio.Event()
        self._callers: dict[str, tuple[CallerInfo, float, bool]] = {}
        """By key: who calls flows, until when by our own clock, and whether that is its last beat."""
        self._caller_came = anyio.Event()
        self._notes: dict[FlowRunId, Decision] = {}
        """Decisions to be written down, the newest of each run: no more than there are runs that have not ended."""
        self._noted = anyio.Semaphore(0)
        self._taken_up: dict[FlowRunId, FlowRun] = {}
        """Runs that go on while task runs of the process before may have no end."""
        self._was_taken_up = anyio.Event()
        self._refused: dict[FlowRunId, Start] = {}
        """Starts whose message found the queue of work full."""
        self._was_refused = anyio.Event()
        self._hooks = HookDuty(bus, self._pool_on)

    async def lead(self, on_ready: Callable[[Leader], None]) -> None:
        """Catch up, then decide and carry out for as long as nobody stops us."""
        # Taking both keys over first: from now on a predecessor that does not know yet cannot write them.
        grants = _numbers(await self._grants.take_over())
        checkpoint = await self._checkpoint.take_over()
        await self._large.sweep([checkpoint[1:].decode()] if checkpoint[:1] == _IN_OBJECT else ())
        self.dispatch = await self._restore(checkpoint)
        async with anyio.create_task_group() as tg:
            await tg.start(self._watch, DEPLOYMENTS, "", self._on_deployment)
            await tg.start(self._watch, POOLS, "", self._on_pool)
            await tg.start(self._watch, presence.BUCKET, presence.PREFIX, self._on_worker)
            await tg.start(self._watch, callers.BUCKET, callers.PREFIX, self._on_caller)
            await tg.start(self._follow)
            self.dispatch.restore_grants(grants)
            tg.start_soon(self._expire_workers)
            tg.start_soon(self._expire_callers)
            tg.start_soon(self._keep_checkpoint)
            tg.start_soon(self._push_refused)
            tg.start_soon(self._hooks.serve)
            tg.start_soon(self._end_tasks)
            for _ in range(NOTES_AT_ONCE):
                tg.start_soon(self._write_notes)
            on_ready(self)
            try:
                await self._decide()
            finally:
                with anyio.move_on_after(2, shield=True):
                    await self._last_save()

    # --- deciding -------------------------------------------------------------------------------------

    async def _decide(self) -> None:
        while True:
            self._wake = anyio.Event()
            decisions = self.dispatch.decide(self._clock.now())
            if decisions:
                await self._carry_out(decisions)
                continue
            due = self.dispatch.next_due()
            if due is None:
                await self._wake.wait()
                continue
            delay_s = (due - self._clock.now()).total_seconds()
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._wake_in, min(delay_s, LONGEST_SLEEP_S))
                await self._wake.wait()
                tg.cancel_scope.cancel()

    async def _wake_in(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._wake.set()

    # --- what comes in --------------------------------------------------------------------------------

    async def _follow(self, *, task_status: TaskStatus[None]) -> None:
        caught_up = False
        patience = Patience(_GATHER_S, unless=self._is_pressing)
        reading = self._bus.log.follow([FLOW_RUNS], after=self.dispatch.seq, patience=patience)
        async with reading as batches:
            async for batch in batches:
                for recorded in batch.records:
                    await self._on_transition(recorded)
                if batch.records:
                    self._wake.set()
                    self._changed.set()
                if not caught_up and batch.pending == 0:
                    caught_up = True
                    task_status.started()

    def _is_pressing(self, recorded: Recorded) -> bool:
        """Return whether something may have to be done at once: of a run that its caller executes there hardly ever is."""
        words = recorded.subject.split(".")
        return words[-2] not in _UNPRESSING or self.dispatch.may_hold(FlowRunId(words[-1]))

    async def _on_transition(self, recorded: Recorded) -> None:
        try:
            run = FlowRun.from_recorded(recorded)
        except (EventInvalid, KeyError, ValueError, TypeError) as exc:
            # Not of our making; one bad event must not stop all runs for ever.
            log.error("dispatcher.unreadable_event", extra={"seq": recorded.seq, "error": repr(exc)})
            return
        if not run.is_final:
            # The watches may be behind the log: a limit that was set before the run was asked for must count for it.
            if run.deployment and not self.dispatch.knows_deployment(run.deployment):
                await self._look_up(DEPLOYMENTS, run.deployment, self._on_deployment)
            if run.pool and not self.dispatch.knows_pool(run.pool):
                await self._look_up(POOLS, run.pool, self._on_pool)
        self.dispatch.observe(run)
        self._hooks.observe(run, is_going=self.dispatch.is_going)
        if run.attempt < 2:
            return
        data = recorded.event.data
        if isinstance(data, dict) and leaves_tasks_open(run, data.get("previous")):
            self._taken_up[run.id] = run
            self._was_taken_up.set()

    async def _look_up(self, bucket: str, key: str, take: Callable[[Entry], None]) -> None:
        entry = await insist(lambda: self._bus.bucket(bucket).get(key))
        if entry is not None:
            take(entry)
        elif bucket == POOLS:
            # Most pools are defined by nobody; remember that, or every event would ask again.
            self.dispatch.set_pool(key, Pool(name=key))

    async def _watch(
        self, bucket: str, prefix: str, take: Callable[[Entry], None], *, task_status: TaskStatus[None]
    ) -> None:
        async with self._bus.bucket(bucket).watch(prefix) as entries:
            async for entry in entries:
                if entry.key == "":
                    task_status.started()
                    continue
                take(entry)
                self._wake.set()

    def _on_deployment(self, entry: Entry) -> None:
        found = None if entry.deleted else _parsed(Deployment, entry)
        if found is not None or entry.deleted:
            self.dispatch.set_deployment(entry.key, found)

    def _on_pool(self, entry: Entry) -> None:
        found = None if entry.deleted else _parsed(Pool, entry)
        if found is not None or entry.deleted:
            self.dispatch.set_pool(entry.key, found)

    # --- workers --------------------------------------------------------------------------------------

    def _on_worker(self, entry: Entry) -> None:
        worker_id = entry.key.removeprefix(presence.PREFIX)
        info = None if entry.deleted else WorkerInfo.from_json(entry.value)
        if info is None:
            self._lose_worker(worker_id)
        elif info.stopped:
            self._workers.pop(worker_id, None)
            self.dispatch.set_worker(worker_id, None)
        else:
            known = self._workers.get(worker_id)
            if known is None or known[0].capacity != info.capacity:
                self.dispatch.set_worker(worker_id, info.pool, info.capacity)
            # By our own clock, from when we heard it: nobody's clocks are compared.
            self._workers[worker_id] = (info, anyio.current_time() + presence.TTL_S)
            self._worker_came.set()

    def _pool_on(self, host: str) -> str | None:
        """Return the pool of a worker on a machine that has processes; None if there is none."""
        return next(
            (info.pool for info, _ in self._workers.values() if info.host == host and info.processes), None
        )

    def _lose_worker(self, worker_id: str) -> None:
        known = self._workers.pop(worker_id, None)
        if known is None:
            return
        self.dispatch.set_worker(worker_id, None)
        self._wake.set()
        log.warning("worker.lost", extra={"worker": known[0].name, "pool": known[0].pool})
        try:
            self._bus.publisher.publish_nowait(known[0].event("lost"))
        except BufferFull as exc:
            log.error("dispatcher.event_dropped", extra={"error": str(exc)})

    async def _expire_workers(self) -> None:
        """Notice silent workers also where the broker does not let keys expire."""
        while True:
            self._worker_came = anyio.Event()
            if not self._workers:
                await self._worker_came.wait()
            # A little more than the TTL, so that the broker's own expiry comes first where there is one.
            due = min((until for _, until in self._workers.values()), default=0.0) + 1.0
            await anyio.sleep_until(due)
            silent = {key: until for key, (_, until) in self._workers.items() if until + 1.0 <= due}
            # It may be we who were stopped, or cut off: what they have said meanwhile is read first.
            await anyio.sleep(SECOND_LOOK_S)
            now = anyio.current_time()
            if now - due > 2 * SECOND_LOOK_S or not self._bus.is_connected:
                for worker_id, (info, until) in self._workers.items():
                    self._workers[worker_id] = (info, max(until, now + presence.TTL_S))
                continue
            for worker_id, until in silent.items():
                if worker_id in self._workers and self._workers[worker_id][1] == until:
                    self._lose_worker(worker_id)

    # --- processes that call flows themselves -----------------------------------------------------------

    def _on_caller(self, entry: Entry) -> None:
        info = None if entry.deleted else CallerInfo.from_json(entry.value)
        if info is None:
            self._callers.pop(entry.key, None)
            return
        # One beat before the last, so that one can be added for those whom the broker was away from as it was from us.
        self._callers[entry.key] = (info, anyio.current_time() + (callers.BEATS - 1) * info.beat_s, False)
        self._caller_came.set()

    async def _expire_callers(self) -> None:
        while True:
            self._caller_came = anyio.Event()
            if not self._callers:
                await self._caller_came.wait()
            await anyio.sleep_until(min((until for _, until, _ in self._callers.values()), default=0.0))
            now = anyio.current_time()
            for key, (info, until, is_last) in list(self._callers.items()):
                if until > now:
                    continue
                if is_last and self._bus.is_connected:
                    del self._callers[key]
                    await self._lose_caller(info)
                else:
                    self._callers[key] = (info, now + info.beat_s, True)

    async def _lose_caller(self, info: CallerInfo) -> None:
        """End what a process was running that has died; a process that ended in order has left nothing running.

        Hooks that it did not live to call are called by others, in both cases.
        """
        runs = self._control.runs

        def end(run: FlowRun) -> State | None:
            if run.is_final:
                return None
            if run.state_type is StateType.CANCELLING:
                return Cancelled(message=run.state_message or "cancelled")
            return Crashed(message=f"its process died: {info.pid} on {info.host}")

        for run_id in self.dispatch.plain_calls():
            history = await insist(partial(runs.history, run_id))
            if not any(_caller_in(recorded) == info.id for recorded in history[:1]):
                continue
            try:
                ended = await insist(partial(runs.change, run_id, end))
                await insist(partial(end_open_tasks, self._bus, ended))
            except HarkError as exc:
                log.error("dispatcher.note_refused", extra={"run_id": run_id, "error": str(exc)})
            else:
                log.warning("caller.lost", extra={"run_id": run_id, "host": info.host, "pid": info.pid})
        self._hooks.lose(info.id)
        try:
            await self._bus.bucket(callers.BUCKET).delete(info.key)
        except HarkError as exc:
            log.debug("dispatcher.caller_left", extra={"error": str(exc)})

    # --- carrying out ---------------------------------------------------------------------------------

    async def _carry_out(self, decisions: Sequence[Decision]) -> None:
        starts = [decision for decision in decisions if isinstance(decision, Start)]
        for decision in decisions:
            if not isinstance(decision, Start):
                self._note_later(decision)
        if any(start.limited for start in starts):
            grants: JsonObject = {**self.dispatch.grants}
            await insist(lambda: self._grants.write(orjson.dumps(grants)))
        if len(starts) == 1:
            await self._push(starts[0])
            return
        for first in range(0, len(starts), AT_ONCE):
            async with anyio.create_task_group() as tg:
                for start in starts[first : first + AT_ONCE]:
                    tg.start_soon(self._push, start)

    async def _push(self, start: Start) -> None:
        ticket = Ticket.issue(start.run_id, attempt=start.attempt, since=start.since)
        # Not the run's queue: its order has been decided here. Workers take from each lane what they can hold.
        lane = LOOP if start.lane == UNKNOWN else start.lane
        payload = ticket.to_json()

        async def push() -> None:
            try:
                await self._bus.work.push(start.pool, lane, payload, msg_id=ticket.msg_id)
            except StreamFull as exc:
                # It has its place and gets its message once there is room; other decisions do not wait for that.
                log.warning("dispatcher.work_full", extra={"run_id": start.run_id, "error": str(exc)})
                self._refused[start.run_id] = start
                self._was_refused.set()

        try:
            await insist(push)
        except HarkError as exc:
            log.error("dispatcher.push_refused", extra={"run_id": start.run_id, "error": str(exc)})
            why = f"it could not be given to a worker: {exc}"
            self._note_later(Finish(start.run_id, StateType.FAILED, why))

    async def _push_refused(self) -> None:
        """Push again, with growing pauses, what found the queue of work full; what moved on meanwhile is let go."""
        tries = 0
        while True:
            if not self._refused:
                tries, self._was_refused = 0, anyio.Event()
                await self._was_refused.wait()
            await anyio.sleep(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
            tries += 1
            for start in list(self._refused.values()):
                del self._refused[start.run_id]
                if self.dispatch.is_granted(start.run_id, start.since):
                    await self._push(start)
                if start.run_id in self._refused:
                    break
                tries = 0

    def _note_later(self, decision: Decision) -> None:
        """Have a decision that is not a start written down; it takes the place of an earlier one about the run."""
        is_new = decision.run_id not in self._notes
        self._notes[decision.run_id] = decision
        if is_new:
            self._noted.release()

    async def _write_notes(self) -> None:
        """Carry out what is not a start, apart, so that a thousand waits written do not hold up one start."""
        while True:
            await self._noted.acquire()
            decision = self._notes.pop(next(iter(self._notes)))
            try:
                await insist(partial(self._note, decision))
            except (RefusedError, UnknownName) as exc:
                # The run has moved on, which is all the decision could have asked for.
                log.debug("dispatcher.note_moot", extra={"run_id": decision.run_id, "why": str(exc)})
            except HarkError as exc:
                log.error("dispatcher.note_refused", extra={"run_id": decision.run_id, "error": str(exc)})

    async def _end_tasks(self) -> None:
        """End the task runs that died with the process of an earlier attempt, run after run: it means to read all of its tasks."""
        while True:
            while self._taken_up:
                run = self._taken_up.pop(next(iter(self._taken_up)))
                try:
                    await insist(end_open_tasks, self._bus, run)
                except HarkError as exc:
                    log.error("dispatcher.note_refused", extra={"run_id": run.id, "error": str(exc)})
            self._was_taken_up = anyio.Event()
            await self._was_taken_up.wait()

    async def _note(self, decision: Decision) -> None:
        runs = self._control.runs
        match decision:
            case Await(run_id=run_id, why=why):
                await runs.change(run_id, lambda run: _if_waiting(run, AwaitingConcurrencySlot(message=why)))
            case Late(run_id=run_id):
                await runs.change(run_id, lambda run: _if_waiting(run, LateState()))
            case Drop(run_id=run_id, why=why):
                await runs.change(run_id, lambda run: _if_scheduled(run, Cancelled(message=why)))
            case Cancel(run_id=run_id, why=why):
                await self._control.cancel(run_id, reason=why)
            case Expire(run_id=run_id, since=since):
                await runs.change(
                    run_id, lambda run: Failed(message=NEVER_RESUMED) if run.seq == since else None
                )
            case Finish(run_id=run_id, state=state, why=why):
                ended = await runs.change(
                    run_id, lambda run: None if run.is_final else State(state, message=why)
                )
                if ended.attempt and ended.state_message == why:
                    await end_open_tasks(self._bus, ended)
            case Start():
                raise AssertionError("starts are pushed, not noted")

    # --- checkpoint -----------------------------------------------------------------------------------

    async def _restore(self, raw: bytes) -> Dispatch:
        """Return the fold as the checkpoint has it; an empty one if there is none, or none that can be used."""
        found: Dispatch | None = None
        try:
            kind, packed = raw[:1], raw[1:]
            if kind == _IN_OBJECT:
                packed = await self._bus.objects.get(packed.decode())
            if packed:
                stored = orjson.loads(zlib.decompress(packed))
                found = Dispatch.load(stored)
                self._hooks.load(stored.get("hooks", {}))
        except (ValueError, KeyError, TypeError, zlib.error, UnknownName, ObjectCorrupt) as exc:
            log.warning("dispatcher.checkpoint_unreadable", extra={"error": repr(exc)})
        if found is None or found.seq > await self._bus.log.head():
            # A log that is shorter than the checkpoint is another log: somebody removed or restored it.
            self._hooks.load({})
            return Dispatch()
        return found

    async def _keep_checkpoint(self) -> None:
        while True:
            self._changed = anyio.Event()
            await self._changed.wait()
            await anyio.sleep(CHECKPOINT_S)
            try:
                await self._save()
            except BusUnavailable as exc:
                log.debug("dispatcher.broker_away", extra={"error": str(exc)})

    async def _save(self) -> None:
        packed = zlib.compress(orjson.dumps({**self.dispatch.dump(), "hooks": self._hooks.dump()}), 1)
        if len(packed) <= INLINE_BYTES:
            await self._checkpoint.write(_INLINE + packed)
            await self._large.settle(())
            return
        name = await self._large.put(packed)
        await self._checkpoint.write(_IN_OBJECT + name.encode())
        await self._large.settle([name])

    async def _last_save(self) -> None:
        try:
            await self._save()
        except (BusUnavailable, Deposed) as exc:
            log.debug("dispatcher.no_last_checkpoint", extra={"error": repr(exc)})


_INLINE, _IN_OBJECT = b"Z", b"O"


class _Guarded:
    """A key that only one process writes: each write names the one before."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._revision = 0
        self._lock = anyio.Lock()

    async def take_over(self) -> bytes:
        """Return the value, written again by us: whoever wrote it before cannot any more."""
        while True:
            entry = await self._bucket.get(self._key)
            try:
                if entry is None:
                    self._revision = await self._bucket.create(self._key, b"")
                    return b""
                self._revision = await self._bucket.update(self._key, entry.value, revision=entry.revision)
            except (GuardFailed, AlreadyHeld):
                continue
            return entry.value

    async def write(self, value: bytes) -> None:
        """Write the value. Raises ``Deposed`` if somebody else has since we last did."""
        async with self._lock:
            try:
                self._revision = await self._bucket.update(self._key, value, revision=self._revision)
            except GuardFailed as exc:
                raise Deposed(f"another dispatcher has written {self._key!r}") from exc


def _parsed(model: type[ModelT], entry: Entry) -> ModelT | None:
    """Return a definition; None, and a line in the log, if it cannot be read: the last good one stays in force."""
    try:
        return model.model_validate_json(entry.value)
    except ValidationError as exc:
        log.error("dispatcher.definition_unreadable", extra={"key": entry.key, "error": str(exc)})
        return None


def _numbers(raw: bytes) -> dict[str, int]:
    try:
        value = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError:
        return {}
    return {str(key): number for key, number in value.items() if isinstance(number, int)}


def _if_waiting(run: FlowRun, state: State) -> State | None:
    said = (state.name, "AwaitingConcurrencySlot")
    return state if run.state_type is StateType.SCHEDULED and run.state_name not in said else None


def _if_scheduled(run: FlowRun, state: State) -> State | None:
    return state if run.state_type is StateType.SCHEDULED else None


def _caller_in(recorded: Recorded) -> str | None:
    """Return which process called a run, by its first transition."""
    data = recorded.event.data
    state = data.get("state") if isinstance(data, dict) else None
    details = state.get("details") if isinstance(state, dict) else None
    found = details.get(callers.DETAIL) if isinstance(details, dict) else None
    return found if isinstance(found, str) else None
