"""The tracker: what writes the transitions of a tracked run and of its tasks into the log.

Transitions of the flow run are guarded appends, one at a time. Transitions of task runs stream through the publisher
without waiting; the flow's last transition goes behind a barrier, so a run that is over has all its task events in the
log. Three events for each task are the hot path of the whole engine: their JSON is put together from pieces that are
encoded once per run, task and set of tags.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from ..bus.outgoing import Outgoing
from ..bus.owner import Owner
from ..bus.subject import completed_subject, hooks_subject, is_for_resuming, task_run_subject
from ..errors import BufferFull, GuardFailed, MoveRefused, RunLost
from ..vocabulary import TERMINAL, JsonObject, JsonValue, StateType
from .caller import DETAIL, Caller, caller_of
from .going import Going
from .hook_log import HookLog, hooked_payload
from .replay import FinishedCall, FinishedCalls, attempt_starts, begins_anew, noted_waits, retries_made
from .results import InlineResult, LargeResult, RecordedResult, encode_result
from .run import SOURCE, FlowRun
from .side_session import SideSession
from .states import Crashed, State
from .task_event_text import COMPLETED_LINES, PENDING_LINES, QUOTED, RUNNING_LINES, known, quoted, texts
from .task_run import IdSource, TaskRun, stamp
from .undoing import Undoing, until_undone
from .upload import Upload

if TYPE_CHECKING:
    from ..bus.session import Session
    from .keeping import Keeping
    from .run_log import RunLog
    from .serializers import Serializer
    from .tag_limits import TagLimits

__all__ = ["FlowTracker", "TaskEvents"]

TURN = 300
"""Events given since the loop last turned, from which async tasks let it turn.

A task that never waits holds the loop, and what it gives stays here: the broker would have nothing to do while tasks
run, and tasks nothing while it stores.
"""
CROWDED = 4_000
"""Events waiting for the broker from which async tasks wait until it has caught up by half.

Small enough that a run's memory does not grow with the number of its tasks, large enough that the sender always has
work; far below the bound of the publisher's buffer.
"""
_EVENTS_PER_TASK = 3


class TaskEvents:
    """Writes the transitions of task runs that share one flow run (or of one task run outside any)."""

    is_guarded = False
    """Whether an end is in the log, or refused, when ``give_way`` returns."""

    def __init__(
        self,
        session: Session,
        *,
        run_id: str,
        run_name: str | None,
        attempt: int,
        flow_name: str | None,
        deployment: str | None,
        correlationid: str | None,
        causationid: str | None,
        causaldepth: int,
        inline_bytes: int,
        owner: Owner | None = None,
    ) -> None:
        self.session = session
        self.inline_bytes = inline_bytes
        self.ids = IdSource()
        self.is_silent = False
        """Whether the run was lost to another worker: nothing more is written. Set by ``silence``."""
        self._event_ids = IdSource()
        self._run_id = run_id
        self._subject = task_run_subject(run_id)
        self._completed_subject = completed_subject(run_id)
        self._publisher = session.bus.publisher
        self._owner = owner
        self._later: deque[Outgoing | Upload] = deque()
        self._later_lock = threading.Lock()
        self._sender: asyncio.Task[None] | None = None
        self._turnstiles: dict[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]] = {}
        self._failed: Exception | None = None
        self._tag_limits: TagLimits | None = None
        self.going = Going()
        self.on_end: Callable[[], object] | None = None
        """Called when a call is not running any more."""
        attributes = f'"correlationid":{quoted(correlationid or run_id)},'
        if causationid:
            attributes += f'"causationid":{quoted(causationid)},'
        if causaldepth:
            attributes += f'"causaldepth":{causaldepth},'
        self._attributes = (
            f'{attributes}"data":{{"flow_run":{{"id":{quoted(run_id)},"name":{quoted(run_name)},"attempt":{attempt}}},'
            f'"flow":{{"name":{quoted(flow_name)}}},'
            f'"deployment":{f"""{{"name":{quoted(deployment)}}}""" if deployment else "null"},'
        )

    def write(
        self,
        run: TaskRun,
        type_: StateType,
        name: str,
        message: str | None = None,
        result: InlineResult | LargeResult | None = None,
        more: str = "",
    ) -> None:
        """Give one transition to the publisher. From any thread; never waits.

        What cannot be given now (the buffer is full, a large result has to be stored first) is sent in order as soon
        as it can be; ``settle`` waits for that.

        Args:
            more: further members of ``data``, as JSON text, each with a comma behind.
        """
        if self.is_silent:
            run.previous = type_
            return
        word, state, lines = known(type_, name)
        if message is not None:
            state = f"{state[:-5]}{quoted(message)}}}"
        now = time.time_ns()
        event_id = self._event_ids.draw()
        started = run.started_text
        if started is None:
            timing = 'null,"duration_s":null'
        elif type_ in TERMINAL:
            timing = f'"{started}","duration_s":{(now - run.started_ns) / 1e9:.6f}'
        else:
            timing = f'"{started}","duration_s":null'
        about, call, tail = run.pieces or self._pieces(run)
        head = (
            f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"task-run.{word}",'
            f'"time":"{stamp(now)}",{about}"attempt":{run.run_count},"started_at":{timing}}},"state":{state},'
            f'"previous":{QUOTED[run.previous]},{call}{more}'
        )
        if type_ is StateType.RUNNING:
            self.going.begin(run)
        elif type_ in TERMINAL:
            self.going.end(run)
        run.previous = type_
        kept = is_for_resuming(type_, name, run.run_count)
        subject = self._completed_subject if kept else self._subject
        if isinstance(result, LargeResult):
            name = f"results/{self._run_id}/{run.id}"
            self._send_later(Upload(subject, head, tail, event_id, lines, name, result))
            return
        if result is not None:
            head += f'"result":{result},'
        self._give(self._message((head + tail).encode(), event_id, lines, subject))
        if self.on_end is not None and type_ is not StateType.RUNNING:
            self.on_end()

    def write_begun(self, run: TaskRun) -> None:
        """Write PENDING and the first RUNNING of a call that begins where it is made: one moment, two events."""
        now = time.time_ns()
        run.started_ns = now
        run.started_text = text = stamp(now)
        self.going.begin(run)
        if self.is_silent:
            return
        about, call, tail = run.pieces or self._pieces(run)
        event_id = self._event_ids.draw()
        pending = self._message(
            f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"task-run.pending","time":"{text}",'
            f'{about}"attempt":0,"started_at":null,"duration_s":null}},'
            f'"state":{{"type":"PENDING","name":"Pending","message":null}},"previous":null,{call}{tail}'.encode(),
            event_id,
            PENDING_LINES,
        )
        event_id = self._event_ids.draw()
        running = self._message(
            f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"task-run.running","time":"{text}",'
            f'{about}"attempt":1,"started_at":"{text}","duration_s":null}},'
            f'"state":{{"type":"RUNNING","name":"Running","message":null}},"previous":"PENDING",{call}{tail}'.encode(),
            event_id,
            RUNNING_LINES,
        )
        self._give(pending, running)
        run.previous = StateType.RUNNING

    def write_committed(self, call: str) -> None:
        """Say that a ``with transaction()`` block, known by its place in the run as a call is, has been committed."""
        self.write_note("hark.transaction.committed", call)

    def write_note(self, type_: str, call: str) -> None:
        """Note something under a key that whoever takes up the run finds among its finished calls."""
        if self.is_silent:
            return
        event_id = self._event_ids.draw()
        self._give(
            self._message(
                f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"{type_}",'
                f'"time":"{stamp(time.time_ns())}","subject":"flow-run/{self._run_id}",{self._attributes}'
                f'"run":{{"id":{quoted(call)}}},"call":{quoted(call)}}}}}'.encode(),
                event_id,
                COMPLETED_LINES,
                self._completed_subject,
            )
        )

    def write_hooked(self, run: TaskRun) -> None:
        """Write that the hooks of a completed call have run, so that a resumed run does not call them again."""
        if self.is_silent or not run.call:
            return
        event_id = self._event_ids.draw()
        payload = hooked_payload(run, run_id=self._run_id, event_id=event_id)
        self._give(self._message(payload, event_id, "", hooks_subject("ran", self._run_id)))

    def _message(self, payload: bytes, event_id: str, lines: str, subject: str | None = None) -> Outgoing:
        # The ids are our own, and the subjects made of them: nothing to be looked at once more.
        return Outgoing(
            subject or self._subject, f"Nats-Msg-Id: {event_id}\r\n{lines}", payload, event_id, self._owner
        )

    def _give(self, *messages: Outgoing) -> None:
        if not self._later:
            try:
                self._publisher.give(*messages)
            except BufferFull:
                pass
            else:
                return
        for message in messages:
            self._send_later(message)

    def _pieces(self, run: TaskRun) -> tuple[str, str, str]:
        """Return what is the same in all events of a task run: before the attempt, after the state, at the end."""
        name, call = orjson.dumps(run.name).decode(), orjson.dumps(run.call).decode()
        about = (
            f'"subject":"task-run/{run.id}",{self._attributes}"task":{run.task.fragment},'
            f'"run":{{"id":"{run.id}","name":{name},"index":{run.index},'
        )
        tail = f'"upstream":{texts(run.upstream)},"tags":{texts(run.tags)}}}}}'
        run.pieces = (about, f'"call":{call},', tail)
        return run.pieces

    def limited(self, tags: frozenset[str]) -> tuple[str, ...] | None:
        """Return which of these tags are limited; None if that is not known yet. See ``tag_limits.py``."""
        limits = self._tag_limits
        if limits is None:
            from .tag_limits import tag_limits_of

            limits = self._tag_limits = tag_limits_of(self.session.bus)
        return limits.among(tags)

    @property
    def is_crowded(self) -> bool:
        """Whether the maker of events should let the sender of events catch up."""
        publisher = self._publisher
        return publisher.untaken > TURN or publisher.waiting > CROWDED or bool(self._later)

    def give_way(self) -> None:
        """Wait, in sync code, until what could not be given at once has been; not on the session's own loop."""
        if self._later and not self.session.is_own_loop:
            self.session.call(self.settle)

    async def give_way_async(self) -> None:
        """Let the loop turn; wait until the broker has caught up, and until what could not be given at once has been.

        Those who wait are let through in order, as many as there is room for: were all ten thousand tasks of a
        ``gather`` to look again at each turn of the loop, nothing else would get done.
        """
        if self._later:
            await self.session.acall(self.settle)
            return
        loop = asyncio.get_running_loop()
        waiters = self._turnstiles.get(loop)
        if waiters is None:
            self._turnstiles[loop] = waiters = deque()
        elif waiters:
            turn = loop.create_future()
            waiters.append(turn)
            await turn
            return
        # The first to wait lets the others through; its own place stands for "somebody does".
        me = loop.create_future()
        waiters.append(me)
        try:
            while True:
                await self.session.acall(self._half_room)
                room = min(CROWDED - self._publisher.waiting, TURN) // _EVENTS_PER_TASK
                while len(waiters) > 1 and room > 0:
                    turn = waiters[1]
                    del waiters[1]
                    if not turn.done():
                        turn.set_result(None)
                        room -= 1
                if len(waiters) == 1:
                    return
                await asyncio.sleep(0)  # those let through go first, and fill the room they were given
        finally:
            # Cancelled, it lets everybody through: each looks for itself again.
            for turn in waiters:
                if not turn.done():
                    turn.set_result(None)
            waiters.clear()

    async def _half_room(self) -> None:
        """Let the session's loop turn, and wait on it until the broker has caught up by half if that is far behind."""
        publisher = self._publisher
        if publisher.waiting > CROWDED:
            await publisher.room(CROWDED // 2)
        else:
            await asyncio.sleep(0)

    def silence(self) -> None:
        """Write nothing more, what waits to be written included: the run is another worker's. On the session's loop."""
        self.is_silent = True
        with self._later_lock:
            self._later.clear()
        if self._sender is not None:
            self._sender.cancel()

    def _send_later(self, item: Outgoing | Upload) -> None:
        with self._later_lock:
            if self.is_silent:
                return
            self._later.append(item)
            if len(self._later) > 1:
                return
        self.session.loop.call_soon_threadsafe(self._start_sender)

    def _start_sender(self) -> asyncio.Task[None]:
        """Return the task that sends what could not be given at once: at most one, and one that lives."""
        sender = self._sender
        if sender is None or sender.done():
            sender = self._sender = asyncio.get_running_loop().create_task(self._send())
        return sender

    async def _send(self) -> None:
        while self._later:
            item = self._later[0]
            try:
                message = item if isinstance(item, Outgoing) else await self._upload(item)
                await self._publisher.give_when_room(message)
            except Exception as exc:  # whatever it is, it is raised by settle, and the others are sent
                self._failed = self._failed or exc
            with self._later_lock:
                if self._later:  # silenced meanwhile
                    self._later.popleft()

    async def _upload(self, item: Upload) -> Outgoing:
        await self.session.bus.objects.put(item.name, item.result.data)
        payload = f'{item.head}"result":{item.result.reference(item.name)},{item.tail}'.encode()
        return self._message(payload, item.id, item.lines, item.subject)

    async def settle(self) -> None:
        """Wait until everything has been given to the publisher. On the session's loop.

        Raises:
            Exception: why something could not be stored, for good: a HarkError, unless it is a fault of Hark's.
        """
        while self._later:
            # Started here too: one that was cancelled has left something.
            await asyncio.wait([self._start_sender()])
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def record(self, value: Any, serializer: Serializer | None = None) -> InlineResult | LargeResult:
        """Return how a task's result is recorded."""
        return encode_result(value, inline_bytes=self.inline_bytes, serializer=serializer)


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
        self.retrying: dict[str, tuple[int, datetime | None]] = {}
        """Calls that were between two tries: how many they had made, and when the next is due; taken out as they are met."""
        self.undoing: Undoing | None = None
        """Set where the run has ended and is gone through once more, to undo what it had begun."""
        self.hooked: set[str] = set()
        """Keys of finished calls whose ``on_completion`` hooks have run."""
        self.leaves_interrupted = leaves_interrupted
        self.retries_made = 0
        self.anew = 0
        """The sequence before which nothing of the run counts, because it was retried from its start; 0: all counts."""
        self.suspend_after_s = suspend_after_s
        """A wait longer than this holds no worker."""
        self.waits: dict[str, JsonObject] = {}
        """Waits that earlier attempts began, by key; see ``replay.noted_waits``."""
        self._inline_bytes = inline_bytes
        self._beat_s = beat_s
        """For a run that no worker holds: how often its process says that it lives."""
        self._caller: Caller | None = None
        self.side = SideSession(session.bus)
        self.owner = Owner()
        """Told of what the broker refuses of this run, and of no other."""
        self.events = self._events_of(flow_run)

    def _events_of(self, run: FlowRun) -> TaskEvents:
        return TaskEvents(
            self.session, run_id=run.id, run_name=run.name, attempt=run.attempt, flow_name=run.flow_name,
            deployment=run.deployment, correlationid=run.correlationid, causationid=run.causationid,
            causaldepth=run.causaldepth, inline_bytes=self._inline_bytes, owner=self.owner,
        )  # fmt: skip

    # The async methods below run on the session's loop (``session.call`` / ``acall``).

    async def begin(self, state: State, then: State | None = None, name: str | None = None) -> bool:
        """Append the first transition of a new run; return whether it is new. If not, ``flow_run`` is as it stands.

        Args:
            then: the second, appended at once where the first is new. name: what it names the run; None: as it is.
        """
        if self._beat_s is not None:
            self._caller = caller_of(self.session.bus, self._beat_s)
            await self._caller.hold(self.flow_run.id)
            state = state.replace(details={**state.details, DETAIL: self._caller.info.id})
        try:
            self._set(await self.run_log.begin(self.flow_run, state))
        except GuardFailed:
            there = await self.run_log.get(self.flow_run.id)
            if there is None:
                raise
            self._set(there)
            return False
        if then is not None:
            await self.move(then, attempt=max(1, self.flow_run.attempt), name=name)
        return True

    async def move(self, state: State, *, result: JsonValue = None, **changes: Any) -> None:
        """Append a transition; ``changes`` are those of ``RunLog.move``.

        Raises:
            RunLost: another worker has the run; from now on nothing is written here.
            MoveRefused: there is no such move.
        """
        try:
            self._set(await self.run_log.move(self.flow_run, state, result=result, **changes))
        except RunLost:
            self.events.silence()
            raise
        if self.flow_run.is_final:
            self.let_go()

    def let_go(self) -> None:
        """Stop saying that this process runs it. From any thread."""
        caller, self._caller = self._caller, None
        if caller is None:
            return
        if self.session.is_own_loop:
            caller.release(self.flow_run.id)
        else:
            with suppress(RuntimeError):  # its loop is closed, and the beating with it
                self.session.loop.call_soon_threadsafe(caller.release, self.flow_run.id)

    async def adopt(self, run: FlowRun) -> None:
        """Go on from what somebody else made of the run while it was ours to wait.

        Raises:
            RunLost: it is another worker's now, or over.
        """
        if run.attempt != self.flow_run.attempt or run.is_final:
            self.events.silence()
            raise RunLost(run.id, reason=f"it is {run.state_name}, attempt {run.attempt}")
        self._set(run)

    async def finish(self, state: State, *, result: JsonValue = None) -> None:
        """Append a final state, once all task events given before are stored."""
        await self.barrier()
        await self.move(state, result=result)

    async def finish_with(self, state: State, value: Any, keeping: Keeping | None = None) -> None:
        """Store what the flow returned, and append its COMPLETED state behind it: see ``finish``."""
        result = await self.store_flow_result(value, keeping)
        await self.finish(state, result=result)

    async def close(self, left: Iterable[FlowRun]) -> None:
        """End the runs of subflows that were stopped on their way, where nobody else has ended or taken them up."""
        for run in left:
            now = await self.run_log.get(run.id)
            if now is None or now.is_final or now.attempt != run.attempt:
                continue
            # Moved by somebody else since we looked: then it is theirs, or over.
            with suppress(RunLost, MoveRefused):
                await self.run_log.move(
                    now, Crashed(message="it was stopped on its way, and its parent came to an end")
                )

    async def barrier(self) -> None:
        """Wait until every task event given so far is stored.

        Raises:
            HarkError: one of this run's events was refused for good.
        """
        await self.events.settle()
        await self.session.bus.publisher.barrier(owner=self.owner)

    async def look(self) -> FlowRun:
        """Return the run as the log has it now; if it is no longer ours, write nothing more."""
        now = await self.run_log.get(self.flow_run.id)
        if now is None or now.attempt > self.flow_run.attempt:
            self.events.silence()
        return now or self.flow_run

    async def resume(self) -> None:
        """Read what earlier attempts of the run finished."""
        history = await self.run_log.history(self.flow_run.id)
        await until_undone(self, history)
        self.anew = anew = begins_anew(history)
        self.retries_made = retries_made(recorded for recorded in history if recorded.seq > anew)
        self.waits = noted_waits(self.flow_run.id, (recorded for recorded in history if recorded.seq > anew))
        finished = FinishedCalls(attempt_starts(history))
        reading = self.session.bus.log.read([completed_subject(self.flow_run.id)], after=anew)
        async with reading as batches:
            async for batch in batches:
                finished.add(batch.records)
        self.finished, self.retrying = finished.by_key, finished.retrying
        self.hooked = await HookLog(self.session.bus).calls(self.flow_run.id, after=anew)

    async def begin_hooks(self) -> bool:
        """Note that the hooks of the run's end are about to be called; False if they have run before."""
        return await HookLog(self.session.bus).begin(self.flow_run) > 0

    async def note_hooks(self) -> None:
        """Note that the hooks of the run's end have run."""
        await HookLog(self.session.bus).note(self.flow_run, "ran")

    async def store_flow_result(self, value: Any, keeping: Keeping | None = None) -> JsonValue:
        """Store a flow's return value if it is large, or told to; return what stands in its last event."""
        if keeping is not None and keeping.persist and keeping.storage is not None:
            from .caching import store_elsewhere

            stored: JsonValue = orjson.loads(await store_elsewhere(value, keeping))
            return stored
        encoded = encode_result(
            value,
            inline_bytes=self._inline_bytes,
            serializer=keeping.serializer if keeping is not None else None,
        )
        if isinstance(encoded, LargeResult):
            name = f"results/{self.flow_run.id}/{self.flow_run.attempt}"
            await self.session.bus.objects.put(name, encoded.data)
            encoded = encoded.reference(name)
        result: JsonValue = orjson.loads(encoded)
        return result

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
            self.events = self._events_of(run)
