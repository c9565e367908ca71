"""Pulling from durable consumers: several sources in order of preference, never more in hand than agreed.

Nothing polls: an idle intake has one long pull request open per source. With one source the request is for all
the free places. With several, a message of a later source must not take the place of one of an earlier, so each
free place is first offered to the sources in order (requests that do not wait), and only when all are empty is one
waiting request opened for each; those are taken back when the last place fills.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
import nats.errors
import orjson

from ..config import BusConfig
from ..errors import BusUnavailable, DefinitionError
from ..vocabulary import JsonObject
from .arrival import Arrival, subscribe, unsubscribe
from .connection import ApiError, Connection
from .replies import Replies
from .wire import Wire, frame

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

__all__ = ["Held", "Intake", "Source", "start_of"]

log = logging.getLogger(__name__)

PULL_S = 60
HEARTBEAT_S = 15
_RETRY_S = 0.2
_NO_STREAM = 10059
_NOT_CREATED = 10012
"""Among others: a consumer of that name is there and begins elsewhere."""
_START = frozenset(("deliver_policy", "opt_start_seq", "opt_start_time"))


class Held:
    """A message in our hands: the broker gives it to somebody else when it is not settled in time.

    Settling (``ack``, ``nak``, ``term``) twice does nothing the second time.
    """

    __slots__ = ("_intake", "_msg", "deliveries")

    def __init__(self, intake: Intake[Held], msg: Arrival, deliveries: int) -> None:
        self._intake, self._msg, self.deliveries = intake, msg, deliveries

    @property
    def handle(self) -> str:
        """Where the broker hears of it."""
        return self._msg.reply

    async def ack(self) -> None:
        """Say that it is done. Should this be lost on the way, it comes again after the ack wait."""
        self._settle(b"+ACK")

    async def nak(self, delay_s: float = 0) -> None:
        """Hand it back, to be given out again after ``delay_s`` seconds."""
        self._settle(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    async def in_progress(self) -> None:
        """Say that it is still being worked on: the ack wait starts anew."""
        self._intake.extend(self._msg.reply)

    async def term(self, reason: str = "") -> None:
        """Say that it will never succeed: it is not given out again."""
        self._settle(f"+TERM {reason}".strip().encode())

    def _settle(self, word: bytes) -> bool:
        return self._intake.settle(self._msg.reply, word)


ItemT = TypeVar("ItemT", bound=Held)


@dataclass(slots=True)
class Source:
    """One durable consumer of a stream. ``settings`` is its configuration without the name."""

    stream: str
    durable: str
    settings: JsonObject
    asked: int = 0  # messages still to come of the request that is open
    waits: bool = False  # whether that request waits
    number: int = 0
    heard: float = 0.0
    inbox: str = ""
    subscription: Subscription | None = field(default=None, repr=False)


async def start_of(connection: Connection, stream: str, durable: str) -> JsonObject | None:
    """Return what of a consumer's configuration says where it begins; None if there is no such consumer."""
    try:
        config = (await connection.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"]
    except ApiError as exc:
        if exc.code != 404:
            raise
        return None
    assert isinstance(config, dict)
    return {key: value for key, value in config.items() if key in _START}


class Intake(Generic[ItemT]):
    """Items of some sources, as they come and as there is room: ``async for item in intake`` or ``fetch``.

    Args:
        make: builds the item of a message, given the intake, the message and its deliveries.
        capacity: items in hand at once: handed out or waiting to be, and not settled.
    """

    def __init__(
        self,
        connection: Connection,
        config: BusConfig,
        *,
        sources: Sequence[Source],
        make: Callable[[Arrival, Source], ItemT],
        ack_wait_s: float,
        capacity: int,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity counts from 1, got {capacity}")
        self._connection, self._config = connection, config
        self._sources, self._make = list(sources), make
        self._ack_wait_s, self._capacity = ack_wait_s, capacity
        self._wire = Wire(connection.nc)
        self.replies = Replies(connection, config)
        self._ready: deque[ItemT] = deque()
        self._held: dict[str, float] = {}
        self._work = asyncio.Event()
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # --- life -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Pull while inside; on leaving, hand back what was not handed out."""
        for source in self._sources:
            await self._create(source)
            await self._listen(source)
        unhook = self._connection.on_disconnect(self._on_lost)
        self._work.set()
        # Not a task group: it would wrap every error of the body in an exception group.
        pump = asyncio.create_task(self._pump())
        pump.add_done_callback(lambda _: self._arrived.set())
        self._task = pump
        try:
            yield
        finally:
            unhook()
            self._closed = True
            pump.cancel()
            await asyncio.wait([pump])
            if self._timer is not None:
                self._timer.cancel()
            with anyio.move_on_after(2, shield=True):
                await self._give_back()

    async def _give_back(self) -> None:
        """Take back the open requests, then return what came and nobody got."""
        for source in self._sources:
            if source.subscription is not None:
                await self._quiet(source.subscription)
        while self._ready:
            await self._ready.popleft().nak()

    async def _create(self, source: Source) -> None:
        try:
            try:
                await self._ask_to_create(source)
            except ApiError as exc:
                found = exc.err_code == _NOT_CREATED and await start_of(
                    self._connection, source.stream, source.durable
                )
                if not found:
                    raise
                # Somebody made it after we had looked, and where it begins stays: theirs it is.
                kept = {key: value for key, value in source.settings.items() if key not in _START}
                source.settings = kept | found
                await self._ask_to_create(source)
        except ApiError as exc:
            if exc.err_code == _NO_STREAM:
                raise BusUnavailable(f"there is no stream {source.stream!r} on this broker") from exc
            if exc.code >= 500 or exc.code == 404:
                raise BusUnavailable(str(exc)) from exc
            raise DefinitionError(
                f"consumer {source.durable} on {source.stream} cannot be set up: {exc.description}"
            ) from exc

    async def _ask_to_create(self, source: Source) -> None:
        await self._connection.api(
            f"CONSUMER.CREATE.{source.stream}.{source.durable}",
            {
                "stream_name": source.stream,
                "config": {**source.settings, "durable_name": source.durable, "name": source.durable},
            },
        )

    async def _listen(self, source: Source) -> None:
        source.inbox = self._connection.new_inbox()
        source.asked = 0
        source.subscription = await subscribe(
            self._connection.nc, f"{source.inbox}.*", lambda msg: self._on_message(msg, source)
        )

    async def _quiet(self, subscription: Subscription) -> None:
        """End a subscription without losing what is on its way to it."""
        try:
            if self._connection.is_connected:
                await subscription.drain()  # type: ignore[no-untyped-call]
            else:
                await unsubscribe(subscription)
        except nats.errors.Error as exc:
            log.debug("bus.drain-failed", extra={"error": str(exc)})

    # --- asking ---------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many more items may be taken in hand."""
        return self._capacity - len(self._held)

    def resize(self, capacity: int) -> None:
        """Change how many items may be in hand at once. Those that are stay: where they are more, none is taken until some are settled."""
        self._capacity = capacity
        self._work.set()

    async def _pump(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._connection.connected()
                await self._ask_sources()
            except BusUnavailable as exc:
                if self._connection.nc.is_closed:
                    raise  # for good: whoever waits for an item hears of it
                log.debug("bus.intake-waits", extra={"error": str(exc)})
                await asyncio.sleep(_RETRY_S)
                self._work.set()

    async def _ask_sources(self) -> None:
        now = asyncio.get_running_loop().time()
        for source in self._sources:
            if source.asked and now - source.heard > 2.5 * HEARTBEAT_S:
                log.debug("bus.pull-lost", extra={"durable": source.durable})
                source.asked = 0
            if source.asked < 0:  # nobody answered: the consumer is gone
                await self._create(source)
                source.asked = 0
        self._forget_lapsed()
        if self.free <= 0:
            await self._take_back()
        elif len(self._sources) == 1:
            if not self._sources[0].asked:
                self._ask(self._sources[0], self.free, waits=True)
        elif not any(source.asked and not source.waits for source in self._sources):
            for source in self._sources:
                if not source.asked:
                    self._ask(source, self.free, waits=False)
                    break
        self._set_timer()

    def _ask(self, source: Source, count: int, *, waits: bool) -> None:
        source.number += 1
        source.asked, source.waits = count, waits
        source.heard = asyncio.get_running_loop().time()
        request: JsonObject = {
            "batch": count,
            "expires": PULL_S * 10**9,
            "idle_heartbeat": HEARTBEAT_S * 10**9,
        }
        if not waits:
            request = {"batch": count, "no_wait": True}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{source.stream}.{source.durable}"
        self._wire.send(frame(subject, f"{source.inbox}.{source.number}", "", orjson.dumps(request)))

    async def _take_back(self) -> None:
        """Close the waiting requests: all hands are full. What is under way already is handed back."""
        for source in self._sources:
            if source.asked and source.waits and source.subscription is not None:
                old = source.subscription
                await self._listen(source)
                await self._quiet(old)

    def _set_timer(self) -> None:
        """Look again when a request has been silent for too long, or an item in hand has lapsed."""
        loop = asyncio.get_running_loop()
        delay_s = 2.5 * HEARTBEAT_S + 0.1
        if self.free <= 0 and self._held:
            delay_s = min(delay_s, max(0.05, min(self._held.values()) - loop.time()))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._work.set)

    def _forget_lapsed(self) -> None:
        """Let go of items that were never settled: by now the broker has given them to somebody else."""
        if self.free > 0:
            return
        now = asyncio.get_running_loop().time()
        for reply in [reply for reply, until in self._held.items() if until <= now]:
            del self._held[reply]

    # --- what arrives ---------------------------------------------------------------------------------

    def _on_message(self, msg: Arrival, source: Source) -> None:
        if msg.status:
            self._on_status(msg, source)
            return
        source.heard = asyncio.get_running_loop().time()
        if source.asked > 0:
            source.asked -= 1
        over = self.free <= 0 or self._closed
        item = self._make(msg, source)
        self._held[msg.reply] = source.heard + self._ack_wait_s
        if over:
            self.settle(msg.reply, b"-NAK")
            return
        self._ready.append(item)
        self._arrived.set()
        if not source.asked:
            self._work.set()

    def _on_status(self, msg: Arrival, source: Source) -> None:
        headers = msg.headers
        source.heard = asyncio.get_running_loop().time()
        status = headers.get("Status", "")
        if status == "100" or msg.subject != f"{source.inbox}.{source.number}":
            return  # a heartbeat, or the end of a request we no longer count on
        was_waiting = source.waits
        source.asked = 0
        if status == "503" or (status == "409" and "Deleted" in headers.get("Description", "")):
            source.asked = -1
        elif len(self._sources) > 1 and not was_waiting:
            self._ask(source, 1, waits=True)  # empty: from now on it will call us
        self._work.set()

    def _on_lost(self) -> None:
        for source in self._sources:
            source.asked = 0
        self._work.set()

    # --- what is handed out and settled ---------------------------------------------------------------

    async def fetch(self, count: int) -> list[ItemT]:
        """Return up to ``count`` items, waiting for the first.

        Raises:
            DefinitionError: the consumer was removed and cannot be made again.
            BusUnavailable: the connection was closed for good. Outages are waited out.
        """
        while not self._ready:
            if self._task is not None and self._task.done():
                self._task.result()
            self._arrived.clear()
            await self._arrived.wait()
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def __aiter__(self) -> Intake[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        return (await self.fetch(1))[0]

    def settle(self, reply: str, word: bytes) -> bool:
        """Send how an item ended, and make room; whether it was still ours."""
        if self._held.pop(reply, None) is None:
            return False
        self._wire.send(frame(reply, "", "", word))
        self._freed()
        return True

    def extend(self, reply: str) -> None:
        if reply in self._held:
            self._held[reply] = asyncio.get_running_loop().time() + self._ack_wait_s
        self._wire.send(frame(reply, "", "", b"+WPI"))

    async def settle_surely(self, reply: str, word: bytes) -> None:
        """As ``settle``, and wait until the broker has taken note.

        Raises:
            BusUnavailable: it did not in ``config.request_timeout_s``; the item may come again.
        """
        if self._held.pop(reply, None) is None:
            return
        self._freed()
        await self.replies.insist(reply, word, what="an acknowledgement", at_once=True)

    def _freed(self) -> None:
        if any(not source.asked for source in self._sources):
            self._work.set()
