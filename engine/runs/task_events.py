"""Writing the transitions of task runs, which stream through the publisher without waiting.

Three events for each task are the hot path of the whole engine: their JSON is put together from pieces that are
encoded once per run, task and set of tags.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.outgoing import Outgoing
from ...bus.owner import Owner
from ...bus.subject import completed_subject, hooks_subject, is_for_resuming, task_run_subject
from ...errors import BufferFull
from ...vocabulary import TERMINAL, StateType
from ..code.named_code import mark_of
from ..context import in_no_run
from ..results import InlineResult, LargeResult, encode_result
from .going import Going
from .hook_log import hooked_payload
from .run import SOURCE
from .task_event_text import (
    COMPLETED_LINES,
    PENDING_LINES,
    QUOTED,
    RUNNING_LINES,
    known,
    quoted,
    texts,
    upstream_text,
)
from .task_run import IdSource, TaskRun, stamp
from .upload import Upload

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..limits.tag_limits import TagLimits
    from ..serializers import Serializer

__all__ = ["TaskEvents"]

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
        self.ids = IdSource(attempt)
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
        if type_ is StateType.RUNNING:
            self.going.begin(run)
        elif type_ in TERMINAL:
            self.going.end(run)
        if self.is_silent:
            run.previous = type_
            return
        word, state, lines = known(type_, name)
        if message is not None:
            state = f"{state[:-5]}{quoted(message)}}}"
        now = time.time_ns()
        event_id = self._event_ids.draw()
        started = run.started_text
        if type_ is StateType.RUNNING or type_ is StateType.SCHEDULED:
            more += _mark(run)
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
            f'"state":{{"type":"RUNNING","name":"Running","message":null}},"previous":"PENDING",{call}{_mark(run)}{tail}'.encode(),
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

    def write_hooked(self, run: TaskRun, *, is_keyed: bool = True) -> None:
        """Write that the hooks of a completed call have run, so that a resumed run does not call them again.

        Args:
            is_keyed: whether the call's key says which call it is; the task run's id does, always.
        """
        if self.is_silent or not run.call:
            return
        event_id = self._event_ids.draw()
        payload = hooked_payload(run, run_id=self._run_id, event_id=event_id, is_keyed=is_keyed)
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
        tail = f'{upstream_text(run.upstream)},"tags":{texts(run.tags)}}}}}'
        run.pieces = (about, f'"call":{call},', tail)
        return run.pieces

    def limited(self, tags: frozenset[str]) -> tuple[str, ...] | None:
        """Return which of these tags are limited; None if that is not known yet. See ``tag_limits.py``."""
        limits = self._tag_limits
        if limits is None:
            from ..limits.tag_limits import tag_limits_of

            limits = self._tag_limits = tag_limits_of(self.session.bus)
        return limits.among(tags)

    @property
    def is_settled(self) -> bool:
        """Whether ``settle`` has nothing to wait for and nothing to raise."""
        return not self._later and self._failed is None

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

        Those who wait are let through in order, as many as there is room for: were all hundred thousand tasks of a
        ``gather`` to look again at each turn of the loop, nothing else would get done.
        """
        loop = asyncio.get_running_loop()
        waiters = self._turnstiles.setdefault(loop, deque())
        me = loop.create_future()
        waiters.append(me)
        if len(waiters) > 1:
            try:
                await me
            except asyncio.CancelledError:
                self._leave(waiters, me)
                raise
            if not waiters or waiters[0] is not me:
                return
        # The first to wait lets the others through, and stays the first until it is done.
        try:
            while True:
                await self.session.acall(self._catch_up)
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
            self._leave(waiters, me)

    @staticmethod
    def _leave(waiters: deque[asyncio.Future[None]], me: asyncio.Future[None]) -> None:
        """Leave the turnstile, cancelled or not; if the first does, have the next one who still waits be the first."""
        if not waiters or waiters[0] is not me:
            return  # cancelled, it is passed over
        waiters.popleft()
        while waiters and waiters[0].done():
            waiters.popleft()
        if waiters:
            waiters[0].set_result(None)

    async def _catch_up(self) -> None:
        """Turn the session's loop; wait on it until all has been given, and till half of a crowd has been stored."""
        if self._later:
            await self.settle()
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
            sender = self._sender = asyncio.get_running_loop().create_task(self._send(), context=in_no_run())
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


def _mark(run: TaskRun) -> str:
    """Return where the task is found whose hooks are told of an end that others have to write, should its process die."""
    hooks = run.task.hooks
    if run.flow_run_id is None or not (hooks.get("on_crashed") or hooks.get("on_cancellation")):
        return ""
    return mark_of(run.task)
