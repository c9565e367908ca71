"""Publishing without waiting: what is given here, from any thread, is stored soon, in order, once.

One publisher per process. ``publish_nowait`` puts a message into a bounded buffer and wakes the loop at most once
per turn; the lanes do the rest. ``barrier`` waits until all that was given before is stored.

Stored once: what is not acknowledged when the connection breaks is sent again under its id, and the broker knows the
ids of the last ``config.dedup_window_s``. An outage longer than that may store events twice whose acknowledgement was
on its way when it began; readers that must not see an event twice look at ``source`` and ``id``.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin

from ..config import BusConfig
from ..errors import BufferFull, BusUnavailable, EventTooLarge, HarkError
from .arrival import Arrival, subscribe, unsubscribe
from .connection import Connection
from .event import Event
from .lane import Lane, Outgoing
from .log import headers_of
from .owner import Owner
from .subject import PREFIX, subject_of
from .wire import Wire, check_subject, header_lines, message_id

__all__ = ["Outgoing", "Publisher"]

log = logging.getLogger(__name__)

BUFFER_BYTES = 64 << 20  # beside config.publish_buffer, so that large events do not fill the memory
LOGS_PREFIX = "hark.log."


class Publisher(AsyncContextManagerMixin):
    """Gives events to the broker in batches. Enter it to start; leaving waits until all is stored, then stops.

    Args:
        fast: use fast ingest where the broker has it; False forces plain acknowledged publishes.
        drain_s: how long leaving waits; what is not stored by then is reported as lost in the log.
    """

    def __init__(
        self, connection: Connection, config: BusConfig, *, fast: bool | None = None, drain_s: float = 10.0
    ) -> None:
        self._connection, self._config, self._drain_s = connection, config, drain_s
        fast = config.fast_ingest if fast is None else fast
        self._lock = threading.Lock()
        self._given: deque[Outgoing] = deque()
        self._waiting = 0  # given and neither stored nor refused
        self._waiting_bytes = 0
        self._most = config.publish_buffer
        self._limit = 0  # of the broker, known once a message comes near it
        self._awake = self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._ordinal = 0  # of the last one taken from the buffer
        self._floor = 0  # all up to this one are settled
        self._settled: set[int] = set()  # beyond the floor
        self._barriers: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._shared = Owner()
        self._before_barrier: list[Callable[[], None]] = []
        self._lanes = [
            self._lane("hark.ev.end", fast),
            self._lane("hark.log.end", fast),
            self._lane("", False),
        ]

    def _lane(self, end_subject: str, fast: bool) -> Lane:
        return Lane(
            self._connection, end_subject=end_subject, fast=fast, on_stored=self._on_stored,
            on_refused=self._on_refused, hurry=self._is_waited_for,
        )  # fmt: skip

    # --- life -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        nc = self._connection.nc
        inbox, wire = nc.new_inbox(), Wire(nc)
        start = len(inbox) + 1
        lanes = self._lanes

        def on_message(msg: Arrival) -> None:
            where = msg.subject[start:]
            lanes[int(where[0])].on_answer(where[2:], msg)

        subscription = await subscribe(nc, f"{inbox}.>", on_message)
        for number, lane in enumerate(lanes):
            lane.start(f"{inbox}.{number}", wire)
        unhook = [
            self._connection.on_disconnect(self._on_disconnect),
            self._connection.on_reconnect(self._on_reconnect),
        ]
        with self._lock:
            self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._turn()  # what was given before we started
        try:
            yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._drain()
                with self._lock:
                    self._loop, self._closed = None, True
                for end in unhook:
                    end()
                for lane in lanes:
                    lane.stop()
                await unsubscribe(subscription)
                self._give_up()

    async def _drain(self) -> None:
        try:
            await self.barrier(timeout_s=self._drain_s)
        except BusUnavailable:
            log.error("bus.events-lost", extra={"waiting": self._waiting, "after_s": self._drain_s})
        except HarkError as exc:
            log.error("bus.events-refused", extra={"error": str(exc)})

    def _give_up(self) -> None:
        closed = BusUnavailable("the publisher was closed before the broker had taken all")
        for _, future in self._barriers:
            if not future.done():
                future.set_exception(closed)
        for waiter in self._room:
            if not waiter.done():
                waiter.set_exception(closed)
        self._barriers.clear()
        self._room.clear()

    # --- giving ---------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many messages were given and are not stored yet."""
        return self._waiting

    @property
    def untaken(self) -> int:
        """How many messages were given since the loop last took some: they go out when it turns."""
        return len(self._given)

    def publish_nowait(self, event: Event, owner: Owner | None = None) -> None:
        """Give an event, from any thread. It will be stored, in the order given, unless a barrier says otherwise.

        Args:
            owner: at whose barrier a refusal is raised; None: at that of all who name none.
        Raises:
            BufferFull: ``config.publish_buffer`` events are waiting. EventTooLarge: larger than the broker takes.
            EventInvalid: it cannot be encoded. BusUnavailable: the publisher was closed.
        """
        type_ = event.type
        if type_.startswith("task-run."):
            self.publish_raw_nowait(
                subject_of(event), event.to_json(), event.msg_id, headers_of(event), owner
            )
        else:
            self.give_one(self._outgoing(subject_of(event), event.to_json(), event.msg_id, None, owner))

    def publish_raw_nowait(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Give an encoded message, from any thread; see ``publish_nowait``. ``msg_id`` makes it stored once."""
        self.give_one(self._outgoing(subject, payload, msg_id, headers, owner))

    def give(self, *messages: Outgoing) -> None:
        """Give messages that are ready to go, from any thread: all of them, or none; see ``publish_nowait``.

        For who makes tens of thousands a second and has looked at their subjects, ids and header lines before.
        """
        size, limit = 0, self._limit
        for message in messages:
            size += message.size
            if message.size > limit:
                self._check_size(message)
        with self._lock:
            self._check_room(size)
            self._given += messages
            self._waiting += len(messages)
            self._waiting_bytes += size
            if not self._awake:
                self._wake()

    def give_one(self, message: Outgoing) -> None:
        """Give a message that is ready to go, from any thread; see ``publish_nowait``."""
        size = message.size
        if size > self._limit:
            self._check_size(message)
        with self._lock:
            waiting = self._waiting
            if self._closed or waiting >= self._most or self._waiting_bytes + size > BUFFER_BYTES:
                self._check_room(size)
            self._given.append(message)
            self._waiting = waiting + 1
            self._waiting_bytes += size
            if not self._awake:
                self._wake()

    async def give_when_room(self, message: Outgoing) -> None:
        """Give a message that is ready to go, waiting for room in the buffer (in the loop of the publisher)."""
        while True:
            try:
                return self.give_one(message)
            except BufferFull:
                await self._settlement()

    async def publish(self, event: Event) -> None:
        """Give an event, waiting for room in the buffer. It is not stored yet on return: see ``barrier``."""
        await self.publish_raw(subject_of(event), event.to_json(), event.msg_id, headers_of(event) or None)

    async def publish_raw(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Give an encoded message, waiting for room in the buffer (in the loop of the publisher)."""
        await self.give_when_room(self._outgoing(subject, payload, msg_id, headers, owner))

    async def room(self, most: int | None = None) -> None:
        """Wait until at most half of the buffer is in use, so that who fills it is not woken for every event.

        Args:
            most: wait until at most so many messages are waiting, if that is less.
        Raises:
            BusUnavailable: the publisher was closed meanwhile.
        """
        most = self._most // 2 if most is None else min(most, self._most // 2)
        while not self._closed and (self._waiting > most or self._waiting_bytes > BUFFER_BYTES // 2):
            await self._settlement()

    async def _settlement(self) -> None:
        """Wait until something that was given is settled."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with suppress(ValueError):
                    self._room.remove(waiter)
            else:
                self._let_in(1)  # it was its turn: the next one's, then
            raise

    def _outgoing(
        self,
        subject: str,
        payload: bytes,
        msg_id: str,
        headers: Mapping[str, str] | None,
        owner: Owner | None,
    ) -> Outgoing:
        lines = f"Nats-Msg-Id: {message_id(msg_id)}\r\n"
        if headers:
            lines += header_lines(headers)
        return Outgoing(check_subject(subject), lines, payload, msg_id, owner)

    def _check_size(self, message: Outgoing) -> None:
        # The limit may have been taken from another broker, or from none yet.
        self._limit = self._connection.max_payload
        if message.size > self._limit:
            raise EventTooLarge(message.subject, size_bytes=message.size, limit_bytes=self._limit)

    def _check_room(self, size: int) -> None:
        """Raise if nothing of ``size`` bytes can be taken now. Something is always taken when nothing is waiting."""
        if self._closed:
            raise BusUnavailable("the publisher was closed; give events before leaving the bus")
        if self._waiting >= self._most or (self._waiting and self._waiting_bytes + size > BUFFER_BYTES):
            raise BufferFull(size=self._waiting)

    def _wake(self) -> None:
        """Have the loop take what was given, if there is one yet: else it is taken up when the publisher starts."""
        loop = self._loop
        if loop is None:
            return
        self._awake = True
        if threading.get_ident() == self._thread:
            loop.call_soon(self._turn)
        else:
            loop.call_soon_threadsafe(self._turn)

    # --- in the loop ----------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Take what was given to the lanes and let them send."""
        self._take_given()
        self._pump()

    def _take_given(self) -> None:
        self._awake = False
        given, ordinal = self._given, self._ordinal
        events, logs, others = (lane.queue for lane in self._lanes)
        for _ in range(len(given)):
            message = given.popleft()
            ordinal += 1
            message.ordinal = ordinal
            if message.subject[:8] == PREFIX:  # half of what startswith costs
                events.append(message)
            elif message.subject.startswith(LOGS_PREFIX):
                logs.append(message)
            else:
                others.append(message)
        self._ordinal = ordinal

    def _pump(self) -> None:
        for lane in self._lanes:
            lane.pump()

    def _on_disconnect(self) -> None:
        for lane in self._lanes:
            lane.reset()

    def _on_reconnect(self) -> None:
        self._limit = self._connection.max_payload
        self._pump()

    def _is_waited_for(self) -> bool:
        return bool(self._barriers) or bool(self._room)

    def _on_stored(self, messages: list[Outgoing]) -> None:
        first, last = messages[0].ordinal, messages[-1].ordinal
        if first == self._floor + 1 and last - first + 1 == len(messages):
            self._floor = last
        else:
            self._settled.update(message.ordinal for message in messages)
        size = 0
        for message in messages:
            size += message.size
        self._advance(len(messages), size)

    def _on_refused(self, message: Outgoing, error: HarkError) -> None:
        log.error(
            "bus.event-refused", extra={"subject": message.subject, "id": message.msg_id, "error": str(error)}
        )
        (message.owner or self._shared).note(error)
        self._settled.add(message.ordinal)
        self._advance(1, message.size)

    def _advance(self, count: int, size: int) -> None:
        settled = self._settled
        while settled and self._floor + 1 in settled:
            self._floor += 1
            settled.remove(self._floor)
        with self._lock:
            self._waiting -= count
            self._waiting_bytes -= size
        while self._barriers and self._barriers[0][0] <= self._floor:
            _, future = self._barriers.popleft()
            if not future.done():
                future.set_result(None)
        self._let_in(count)

    def _let_in(self, count: int) -> None:
        """Wake so many of those who wait until something is settled, in order."""
        room = self._room
        while room and count > 0:
            waiter = room.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    def is_settled(self, owner: Owner) -> bool:
        """Return whether ``barrier`` would have nothing to wait for and nothing to raise (in the loop of the publisher)."""
        for hook in self._before_barrier:
            hook()
        return not self._given and self._ordinal == self._floor and not owner.is_refused

    def on_barrier(self, hook: Callable[[], None]) -> None:
        """Call ``hook`` at the start of every barrier: who gathers before publishing gives its things then."""
        self._before_barrier.append(hook)

    # --- waiting --------------------------------------------------------------------------------------

    async def barrier(self, *, owner: Owner | None = None, timeout_s: float = 60.0) -> None:
        """Wait until all that was given before this call is stored, across lost connections and restarts.

        Args:
            owner: whose refusals are raised; None: those of all that was given without an owner.
        Raises:
            EventTooLarge, EventRefused: the broker refused something this owner gave, for good; the rest is stored.
                Each refusal is raised once, by the first barrier of its owner behind it.
            BusUnavailable: not all was stored in ``timeout_s``; it is still being tried.
        """
        for hook in self._before_barrier:
            hook()
        self._take_given()
        target = self._ordinal
        if target > self._floor:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._barriers.append((target, future))
            for lane in self._lanes:
                lane.pump()
                lane.hurry()
            try:
                async with asyncio.timeout(timeout_s):
                    await future
            except TimeoutError as exc:
                raise BusUnavailable(
                    f"{self._waiting} events were given to the broker and not all were stored in {timeout_s:g} s"
                ) from exc
        (owner or self._shared).raise_refusals()
