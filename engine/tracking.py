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
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from ..bus.subject import STATE_HEADER, task_run_subject
from ..errors import BufferFull, GuardFailed, HarkError, RunLost
from ..vocabulary import JsonObject, JsonValue, StateType, TaskRunId
from .replay import FinishedCall, attempt_starts, begins_anew, finished_calls, retries_made
from .results import InlineResult, LargeResult, RecordedResult, encode_result
from .run import SOURCE, FlowRun
from .states import State, event_word
from .task_run import IdSource, TaskRun

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.session import Session, SessionThread
    from .run_log import RunLog

__all__ = ["FlowTracker", "SideSession", "TaskEvents", "standalone_events"]

CROWDED = 2_000
"""Events waiting for the broker from which async tasks let the loop turn, so that it can send them."""


class TaskEvents:
    """Writes the transitions of task runs that share one flow run (or of one task run outside any)."""

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
    ) -> None:
        self.session = session
        self.inline_bytes = inline_bytes
        self.ids = IdSource()
        self.is_silent = False
        """Set when the run was lost to another worker: nothing more is written."""
        self._event_ids = IdSource()
        self._subject = task_run_subject(run_id)
        self._publisher = session.bus.publisher
        self._later: deque[_Message | _Upload] = deque()
        self._later_lock = threading.Lock()
        self._sender: asyncio.Task[None] | None = None
        self._failed: HarkError | None = None
        attributes = f'"correlationid":{_text(correlationid or run_id)},'
        if causationid:
            attributes += f'"causationid":{_text(causationid)},'
        if causaldepth:
            attributes += f'"causaldepth":{causaldepth},'
        self._attributes = (
            f'{attributes}"data":{{"flow_run":{{"id":{_text(run_id)},"name":{_text(run_name)},"attempt":{attempt}}},'
            f'"flow":{{"name":{_text(flow_name)}}},'
            f'"deployment":{f"""{{"name":{_text(deployment)}}}""" if deployment else "null"},'
        )

    def write(
        self,
        run: TaskRun,
        type_: StateType,
        name: str,
        message: str | None = None,
        result: InlineResult | LargeResult | None = None,
    ) -> None:
        """Give one transition to the publisher. From any thread; never waits.

        What cannot be given now (the buffer is full, a large result has to be stored first) is sent in order as soon
        as it can be; ``settle`` waits for that.
        """
        if self.is_silent:
            run.previous = type_
            return
        word, state, headers = _known(type_, name)
        if message is not None:
            state = f"{state[:-5]}{_text(message)}}}"
        now = time.time_ns()
        event_id = self._event_ids.draw()
        started = run.started_ns
        if started:
            timing = f'"{_stamp(started)}","duration_s":{(now - started) / 1e9 if type_.value in _ENDED else "null"}'
        else:
            timing = 'null,"duration_s":null'
        pieces = run.pieces
        if pieces is None:
            pieces = run.pieces = self._pieces(run)
        about, call, tail = pieces
        head = (
            f'{{"specversion":"1.0","id":"{event_id}","source":"{SOURCE}","type":"task-run.{word}",'
            f'"time":"{_stamp(now)}",{about}"attempt":{run.run_count},"started_at":{timing}}},"state":{state},'
            f'"previous":{_QUOTED[run.previous]},{call}'
        )
        run.previous = type_
        if isinstance(result, LargeResult):
            self._send_later(_Upload(self._subject, head, tail, event_id, headers, run.id, result))
            return
        if result is not None:
            head += f'"result":{result},'
        payload = (head + tail).encode()
        if self._later:
            self._send_later(_Message(self._subject, payload, event_id, headers))
            return
        try:
            self._publisher.publish_raw_nowait(self._subject, payload, event_id, headers)
        except BufferFull:
            self._send_later(_Message(self._subject, payload, event_id, headers))

    def _pieces(self, run: TaskRun) -> tuple[str, str, str]:
        """Return what is the same in all events of a task run: before the attempt, after the state, at the end."""
        name, call = orjson.dumps(run.name).decode(), orjson.dumps(run.call).decode()
        about = (
            f'"subject":"task-run/{run.id}",{self._attributes}"task":{run.task.fragment},'
            f'"run":{{"id":"{run.id}","name":{name},"index":{run.index},'
        )
        return about, f'"call":{call},', f'"upstream":{_texts(run.upstream)},"tags":{_texts(run.tags)}}}}}'

    @property
    def is_crowded(self) -> bool:
        """Whether the maker of events should let the sender of events catch up."""
        return self._publisher.waiting > CROWDED or bool(self._later)

    def give_way(self) -> None:
        """Wait, in sync code, until what could not be given at once has been; not on the session's own loop."""
        if self._later and not self.session.is_own_loop:
            self.session.call(self.settle)

    async def give_way_async(self) -> None:
        """Let the loop turn, and wait until what could not be given at once has been."""
        if self._later:
            await self.session.acall(self.settle)
        else:
            await asyncio.sleep(0)

    def _send_later(self, item: _Message | _Upload) -> None:
        with self._later_lock:
            self._later.append(item)
            if len(self._later) > 1:
                return
        self.session.loop.call_soon_threadsafe(self._start_sender)

    def _start_sender(self) -> None:
        self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        while self._later:
            item = self._later[0]
            try:
                message = item if isinstance(item, _Message) else await self._upload(item)
                await self._publisher.publish_raw(
                    message.subject, message.payload, message.id, message.headers
                )
            except HarkError as exc:
                self._failed = self._failed or exc
            with self._later_lock:
                self._later.popleft()

    async def _upload(self, item: _Upload) -> _Message:
        name = f"results/{item.subject.rpartition('.')[2]}/{item.run_id}"
        await self.session.bus.objects.put(name, item.result.data)
        payload = f'{item.head}"result":{item.result.reference(name)},{item.tail}'.encode()
        return _Message(item.subject, payload, item.id, item.headers)

    async def settle(self) -> None:
        """Wait until everything has been given to the publisher. On the session's loop.

        Raises:
            HarkError: something could not be stored, for good.
        """
        while self._later:
            if self._sender is not None and not self._sender.done():
                await asyncio.wait([self._sender])
            else:
                await asyncio.sleep(0)
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def record(self, value: Any) -> InlineResult | LargeResult:
        """Return how a task's result is recorded."""
        return encode_result(value, inline_bytes=self.inline_bytes)


@dataclass(slots=True)
class _Message:
    subject: str
    payload: bytes
    id: str
    headers: dict[str, str]


@dataclass(slots=True)
class _Upload:
    """A completed task whose result has to be in the object store before its event is in the log."""

    subject: str
    head: str
    tail: str
    id: str
    headers: dict[str, str]
    run_id: TaskRunId
    result: LargeResult


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
    ) -> None:
        self.session = session
        self.run_log = run_log
        self.flow_run = flow_run
        self.finished: dict[str, FinishedCall] = {}
        self.leaves_interrupted = leaves_interrupted
        self.retries_made = 0
        self._inline_bytes = inline_bytes
        self.side = SideSession(session.bus)
        self.events = self._events_of(flow_run)

    def _events_of(self, run: FlowRun) -> TaskEvents:
        return TaskEvents(
            self.session, run_id=run.id, run_name=run.name, attempt=run.attempt, flow_name=run.flow_name,
            deployment=run.deployment, correlationid=run.correlationid, causationid=run.causationid,
            causaldepth=run.causaldepth, inline_bytes=self._inline_bytes,
        )  # fmt: skip

    # The async methods below run on the session's loop (``session.call`` / ``acall``).

    async def begin(self, state: State) -> bool:
        """Append the first transition of a new run; return whether it is new. If not, ``flow_run`` is as it stands."""
        try:
            self._set(await self.run_log.begin(self.flow_run, state))
        except GuardFailed:
            there = await self.run_log.get(self.flow_run.id)
            if there is None:
                raise
            self._set(there)
            return False
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
            self.events.is_silent = True
            raise

    async def finish(self, state: State, *, result: JsonValue = None) -> None:
        """Append a final state, once all task events given before are stored."""
        await self.barrier()
        await self.move(state, result=result)

    async def barrier(self) -> None:
        """Wait until every task event given so far is stored."""
        await self.events.settle()
        await self.session.bus.publisher.barrier()

    async def look(self) -> FlowRun:
        """Return the run as the log has it now; if it is no longer ours, write nothing more."""
        now = await self.run_log.get(self.flow_run.id)
        if now is None or now.attempt > self.flow_run.attempt:
            self.events.is_silent = True
        return now or self.flow_run

    async def resume(self) -> None:
        """Read what earlier attempts of the run finished."""
        history = await self.run_log.history(self.flow_run.id)
        self.retries_made = retries_made(history)
        anew = begins_anew(history)
        tasks = [
            recorded for recorded in await self.run_log.task_history(self.flow_run.id) if recorded.seq > anew
        ]
        self.finished = finished_calls(tasks, attempt_starts(history))

    async def store_flow_result(self, value: Any) -> JsonValue:
        """Store a flow's return value if it is large; return what stands in its last event."""
        encoded = encode_result(value, inline_bytes=self._inline_bytes)
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
        data = call.data()
        result = data.get("result")
        run = data.get("run")
        recorded = RecordedResult(
            self.session,
            result if isinstance(result, dict) else {"inline": None, "format": "json"},
            run_id=str(run["id"]) if isinstance(run, dict) else self.flow_run.id,
            key=key,
        )
        return recorded if recorded.is_kept else None

    def _set(self, run: FlowRun) -> None:
        renewed = run.attempt != self.flow_run.attempt or run.name != self.flow_run.name
        self.flow_run = run
        if renewed:
            self.events = self._events_of(run)


def standalone_events(session: Session, task_run_id: str, *, inline_bytes: int) -> TaskEvents:
    """Return the writer for a task run outside any flow: its events stand under its own id."""
    return TaskEvents(
        session, run_id=task_run_id, run_name=None, attempt=1, flow_name=None, deployment=None, correlationid=None,
        causationid=None, causaldepth=0, inline_bytes=inline_bytes,
    )  # fmt: skip


class SideSession:
    """A second session, on a thread of its own, for sync code that holds the loop the first one lives on.

    A sync flow called inside an async one, in the worker's own loop, keeps that loop from turning while it runs, so
    what it writes has to go out by another. Started when first needed; its owner closes it.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._thread: SessionThread | None = None
        self._session: Session | None = None
        self._lock = threading.Lock()

    def session(self) -> Session:
        """Return the session, connecting at the first call."""
        from ..bus.session import SessionThread, open_bus

        with self._lock:
            if self._session is None:
                bus = self._bus
                self._thread = SessionThread(lambda: open_bus(bus.address, bus.config))
                self._session = self._thread.start()
            return self._session

    def close(self) -> None:
        """Wait until what it published is stored, and end its thread."""
        with self._lock:
            thread, self._thread, self._session = self._thread, None, None
        if thread is not None:
            thread.stop()

    async def aclose(self) -> None:
        """Close without holding the loop."""
        if self._thread is not None:
            await asyncio.to_thread(self.close)


_ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
_QUOTED: dict[StateType | None, str] = {None: "null", **{type_: f'"{type_.value}"' for type_ in StateType}}


@lru_cache(maxsize=256)
def _known(type_: StateType, name: str) -> tuple[str, str, dict[str, str]]:
    """Return the event's last word, the state as JSON with a null message at its end, and the headers."""
    word = event_word(type_, name)
    state = f'{{"type":"{type_.value}","name":{_text(name)},"message":null}}'
    return word, state, {STATE_HEADER: word}


@lru_cache(maxsize=4096)
def _text(value: str | None) -> str:
    return orjson.dumps(value).decode() if value is not None else "null"


@lru_cache(maxsize=1024)
def _texts(values: tuple[str, ...] | frozenset[str]) -> str:
    return orjson.dumps(sorted(values) if isinstance(values, frozenset) else list(values)).decode()


_second = (-1, "")


def _stamp(ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339; the part down to the second is worked out once per second."""
    global _second
    second, rest = divmod(ns, 1_000_000_000)
    # One name for both, so that two threads in different seconds never mix them.
    at, text = _second
    if second != at:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = (second, text)
    return f"{text}.{rest // 1000:06d}Z"
