"""Slots of named limits over the broker: asking, holding, giving back.

A ticket is a key ``slot.<limit>.<id>`` in the bucket ``leases``; the order of their revisions is the order of the queue
(``limit.holders``). A process that has tickets says so with a key ``slots.<process>`` that it renews; when that goes silent,
whoever waits removes its tickets. Both are watched, so a slot given back, or left by the dead, wakes the next at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio
import orjson
from pydantic import ValidationError

from ...bus.bucket import Entry
from ...errors import BusUnavailable, DefinitionError, GuardFailed, HarkError, SlotsRefused, SlotsTimedOut
from ...vocabulary import JsonObject, new_id
from ..context import in_no_run
from .limit import BUCKET, Limit, Ticket, Tickets, holders, key_of, reserve

if TYPE_CHECKING:
    from ...bus import Bus
    from ...bus.session import Session

__all__ = ["Slots", "Standing", "delete_limit", "limit_named", "put_limit", "reset", "slots_of", "standing"]

log = logging.getLogger("hark.limits")

TTL_S = 10.0
"""How long after a process's last sign of life its slots are free again."""
LEASES = "leases"
_TRIES = 100


async def put_limit(bus: Bus, name: str, limit: Limit) -> None:
    """Define a limit, or change it; whoever waits for it hears of it at once."""
    await bus.bucket(BUCKET).put(key_of(name), limit.model_dump_json(exclude_defaults=True).encode())


async def delete_limit(bus: Bus, name: str) -> None:
    """Remove a limit; nobody waits for it any more."""
    await bus.bucket(BUCKET).delete(key_of(name))


async def limit_named(bus: Bus, name: str) -> Limit | None:
    """Return a limit; None if there is none, or it is not active."""
    return _limit_in(await bus.bucket(BUCKET).get(key_of(name)), name)


def _limit_in(entry: Entry | None, name: str) -> Limit | None:
    if entry is None or entry.deleted:
        return None
    try:
        limit = Limit.model_validate_json(entry.value)
    except ValidationError as exc:
        raise DefinitionError(f"limit {name!r} cannot be read: {exc}") from exc
    return limit if limit.active else None


class Slots:
    """The tickets of this process. All on the session's loop; nothing runs while there are none."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket = bus.bucket(LEASES)
        self.process = new_id()
        self._lines: dict[str, _Line] = {}
        self._count = 0
        self._reserving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._beating: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[None] | None = None

    async def acquire(
        self,
        name: str,
        occupy: int,
        *,
        timeout_s: float | None,
        on_wait: Callable[[], None] | None = None,
        holder: str | None = None,
        max_retries: int | None = None,
    ) -> _Held | None:
        """Wait for slots and return what holds them; None if there is no such limit.

        Args:
            on_wait: called once if they are not free at once.
            holder: shown to people: who has them, such as ``task-run/<id>``.
            max_retries: give up once slots were given back so often without its being our turn; 0: do not wait.
        Raises:
            SlotsTimedOut: they were not free within ``timeout_s``.
            SlotsRefused: the limit is one per time, or has fewer slots than that.
        """
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line(self, name)
        line.uses += 1
        held = _Held(self, line, name, occupy, holder)
        try:
            self._count += 1
            # One after the other, so that those who ask in one process come in the order in which they did.
            async with line.asking:
                limit = line.limit if line.is_watched else await limit_named(self._bus, name)
                if limit is None:
                    await held.release()
                    return None
                if limit.rate is not None:
                    raise SlotsRefused(f"limit {name!r} is one per time", hint="use rate_limit() for it")
                if limit.slots is not None and 0 < limit.slots < occupy:
                    raise SlotsRefused(f"limit {name!r} has {limit.slots} slots, so {occupy} are never free")
                await self._be_alive()
                await line.watched()
                await held.ask()
            await line.knows(held)
            if max_retries is not None:
                held.tries_left = max_retries
                line.counting[held.id] = held
            with anyio.move_on_after(timeout_s) as scope:
                await line.until_granted(held, on_wait)
            if scope.cancelled_caught or held.gave_up:
                raise SlotsTimedOut(name, occupy=occupy, timeout_s=timeout_s or 0.0)
        except BaseException:
            await held.release()
            raise
        return held

    async def pace(self, name: str, occupy: int, *, timeout_s: float | None) -> float | None:
        """Reserve under a limit per time; return how long to wait before going on, None if there is no such limit.

        Raises:
            SlotsTimedOut: it would be longer than ``timeout_s``; nothing is reserved then.
            SlotsRefused: it is a limit of slots.
        """
        # One after the other: were all that ask in one process to reserve at once, one would succeed in each round.
        reserving = self._reserving.get(name)
        if reserving is None:
            reserving = self._reserving[name] = asyncio.Lock()
        async with reserving:
            return await self._pace(name, occupy, timeout_s=timeout_s)

    async def _pace(self, name: str, occupy: int, *, timeout_s: float | None) -> float | None:
        limit = await limit_named(self._bus, name)
        if limit is None:
            return None
        pace = limit.pace
        if pace is None:
            raise SlotsRefused(
                f"limit {name!r} is one of slots, and never frees them by itself",
                hint="use concurrency() for it",
            )
        key = f"rate.{key_of(name)}"
        for attempt in range(_TRIES):
            entry = await self._bucket.get(key)
            free_at_s = float(orjson.loads(entry.value)) if entry is not None else 0.0
            new, wait_s = reserve(free_at_s, time.time(), occupy=occupy, each_s=pace[0], burst=pace[1])
            if timeout_s is not None and wait_s > timeout_s:
                raise SlotsTimedOut(name, occupy=occupy, timeout_s=timeout_s)
            raw, ttl_s = orjson.dumps(new), max(1.0, new - time.time() + 1.0)
            try:
                if entry is None:
                    await self._bucket.create(key, raw, ttl_s=ttl_s)
                else:
                    await self._bucket.update(key, raw, revision=entry.revision, ttl_s=ttl_s)
            except HarkError as exc:
                if isinstance(exc, BusUnavailable):
                    raise
                await asyncio.sleep(0.001 * min(attempt, 20))  # another reserved first
                continue
            return wait_s
        raise BusUnavailable(f"limit {name!r} is asked by too many at once")

    # --- being alive ----------------------------------------------------------------------------------

    async def _be_alive(self) -> None:
        if self._beating is None or self._begun is None:
            loop = asyncio.get_running_loop()
            self._begun = loop.create_future()
            self._beating = loop.create_task(
                self._keep_beating(self.process, self._begun), context=in_no_run()
            )
        await asyncio.shield(self._begun)

    async def _beat(self, process: str) -> None:
        value = orjson.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        await self._bucket.put(f"slots.{process}", value, ttl_s=TTL_S)

    async def _keep_beating(self, process: str, begun: asyncio.Future[None]) -> None:
        while True:
            pause_s = TTL_S / 3
            try:
                await self._beat(process)
                if not begun.done():
                    begun.set_result(None)
            except HarkError as exc:
                log.warning("limits.no_beat", extra={"error": str(exc)})
                pause_s = 0.2
            await asyncio.sleep(pause_s)

    async def end(self, line: _Line) -> None:
        """Note that one ticket is gone; stop what nobody needs any more."""
        line.uses -= 1
        if not line.uses and self._lines.get(line.name) is line:
            del self._lines[line.name]
            await line.close()
        self._count -= 1
        if self._count or self._beating is None:
            return
        beating, self._beating, self._begun = self._beating, None, None
        # Under another name from here on: what we sign off now must not take the next tickets along.
        process, self.process = self.process, new_id()
        beating.cancel()
        await asyncio.wait([beating])
        try:
            await self._bucket.delete(f"slots.{process}")
        except HarkError as exc:
            log.debug("limits.not_signed_off", extra={"error": str(exc)})


class _Held:
    """Slots that were asked for. ``release`` gives them back, whether they were granted or not."""

    def __init__(self, slots: Slots, line: _Line, name: str, occupy: int, holder: str | None = None) -> None:
        self._slots, self._line = slots, line
        self.id = new_id()
        self.name, self.occupy, self.holder = name, occupy, holder
        self.tries_left: int | None = None
        """How often slots may still be given back without its being its turn; None: as often as they like."""
        self.gave_up = False
        self.is_lost = False
        """Set when somebody has taken them for left by the dead: others may hold them now."""
        self._key = f"slot.{key_of(name)}.{self.id}"
        self._process = ""
        self._asked = False
        self._released = False
        self.lost_event = asyncio.Event()
        self.told = asyncio.Event()
        """Set when the watch has told of it, and so of all that came before."""
        self.turn = asyncio.Event()
        """Set when it holds its slots."""

    async def ask(self) -> None:
        self._asked, self._process = True, self._slots.process
        self.told.clear()
        value = orjson.dumps({"occupy": self.occupy, "process": self._process, "holder": self.holder})
        self._line.mine[self.id] = self._line.waiting[self.id] = self
        await self._slots._bucket.create(self._key, value)

    async def release(self) -> None:
        """Give the slots back; the next in line is woken. Safe to call twice, and when cancelled."""
        if self._released:
            return
        self._released = True
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 10.0):
            try:
                for ours in (self._line.mine, self._line.waiting, self._line.counting):
                    ours.pop(self.id, None)
                if self._asked:
                    await self._slots._bucket.delete(self._key)
                    self._line.forget(self.id)
            except HarkError as exc:
                # It goes with our sign of life, at the latest.
                log.warning("limits.not_released", extra={"limit": self.name, "error": str(exc)})
            finally:
                await self._slots.end(self._line)

    def lose(self) -> None:
        if not self._released:
            if self.turn.is_set():
                log.error("limits.slots_lost", extra={"limit": self.name})
            self.is_lost = True
            self.lost_event.set()
            self.told.set()
            self.turn.set()


class _Line:
    """The tickets of one limit, as the watch tells, while this process has any."""

    def __init__(self, slots: Slots, name: str) -> None:
        self._slots, self.name = slots, name
        self._bus = slots._bus
        self.uses = 0
        self.asking = asyncio.Lock()
        self.mine: dict[str, _Held] = {}
        self.waiting: dict[str, _Held] = {}
        """Those of ours whose turn has not come."""
        self.counting: dict[str, _Held] = {}
        """Those of ours that give up after some tries."""
        self._tickets = Tickets()
        self.limit: Limit | None = None
        self._alive: dict[str, float] = {}
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_watched(self) -> bool:
        return self._ready is not None and self._ready.done()

    async def watched(self) -> None:
        """Wait until the watch has told what is there."""
        if self._ready is None:
            loop = asyncio.get_running_loop()
            self._ready = loop.create_future()
            self._task = loop.create_task(self._watch(), context=in_no_run())
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def until_granted(self, held: _Held, on_wait: Callable[[], None] | None) -> None:
        """Wait until a ticket holds its slots, or there is no limit any more."""
        self._look()
        if held.tries_left == 0 and not held.turn.is_set():
            held.gave_up = True
            return
        while held.is_lost or not held.turn.is_set():
            if held.is_lost:
                # Taken for dead while it waited: to the end of the line.
                held.is_lost = False
                held.turn.clear()
                held.lost_event.clear()
                await held.ask()
                await self.knows(held)
                continue
            if on_wait is not None:
                on_wait()
                on_wait = None
            await held.turn.wait()
            self._check_watched()

    async def knows(self, held: _Held) -> None:
        """Wait until the watch has told of a ticket of ours. It tells in order, so then all that came before are known.

        The answer to who asks may come before the news of others who asked earlier, elsewhere: both would go on.
        """
        await held.told.wait()
        self._check_watched()

    def _check_watched(self) -> None:
        if self._task is not None and self._task.done():
            raise BusUnavailable(f"limit {self.name!r} cannot be watched any more")

    def _look(self) -> None:
        """Tell those of ours whose turn it is. What that costs does not grow with the number of those who wait."""
        slots = None if self.limit is None else self.limit.slots
        for id_ in list(self.waiting) if slots is None else self._tickets.next_holders(slots):
            held = self.waiting.pop(id_, None)
            if held is not None:
                held.turn.set()

    def _left(self, ticket_id: str) -> None:
        """Note that a ticket is gone: the next may have their turn, and some have waited for it often enough."""
        if not self._tickets.remove(ticket_id):
            return
        self._look()
        for held in self.counting.values():
            if held.tries_left is not None and not held.turn.is_set():
                held.tries_left -= 1
                if held.tries_left <= 0:
                    held.gave_up = True
                    held.turn.set()

    def forget(self, ticket_id: str) -> None:
        self._left(ticket_id)

    # --- watching -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        assert self._ready is not None
        ready = self._ready
        left = 3

        def caught_up() -> None:
            nonlocal left
            left -= 1
            if not left and not ready.done():
                ready.set_result(None)

        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._watch_limit, caught_up)
                tg.start_soon(self._watch_tickets, caught_up)
                tg.start_soon(self._watch_processes, caught_up)
                tg.start_soon(self._bury)
        except Exception as exc:
            cause: BaseException = exc
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            if not ready.done():
                ready.set_exception(cause)
                ready.exception()
            else:
                log.error(
                    "limits.watch_ended", extra={"limit": self.name, "error": repr(cause)}, exc_info=cause
                )
        finally:
            for held in self.mine.values():
                asyncio.get_running_loop().call_soon(held.told.set)
                asyncio.get_running_loop().call_soon(held.turn.set)

    async def _watch_limit(self, caught_up: Callable[[], None]) -> None:
        key = key_of(self.name)
        async with self._bus.bucket(BUCKET).watch(key) as entries:
            async for entry in entries:
                if entry.key == "":
                    caught_up()
                elif entry.key == key:
                    try:
                        self.limit = _limit_in(entry, self.name)
                    except DefinitionError as exc:
                        log.error("limits.unreadable", extra={"limit": self.name, "error": str(exc)})
                    self._look()

    async def _watch_tickets(self, caught_up: Callable[[], None]) -> None:
        prefix = f"slot.{key_of(self.name)}."
        async with self._slots._bucket.watch(prefix) as entries:
            async for entry in entries:
                if entry.key == "":
                    caught_up()
                    continue
                ticket_id = entry.key.removeprefix(prefix)
                if entry.deleted:
                    self._left(ticket_id)
                    if (held := self.mine.get(ticket_id)) is not None:
                        held.lose()
                else:
                    value: Any = orjson.loads(entry.value)
                    self._tickets.add(Ticket(ticket_id, entry.revision, value["occupy"], value["process"]))
                    # Whose sign of life we have not seen yet gets the time to give one.
                    self._alive.setdefault(value["process"], time.monotonic())
                    if (held := self.mine.get(ticket_id)) is not None:
                        held.told.set()
                self._look()

    async def _watch_processes(self, caught_up: Callable[[], None]) -> None:
        async with self._slots._bucket.watch("slots.") as entries:
            async for entry in entries:
                if entry.key == "":
                    caught_up()
                    continue
                process = entry.key.removeprefix("slots.")
                if entry.deleted:
                    await self._remove_tickets_of(process)
                else:
                    self._alive[process] = time.monotonic()

    async def _bury(self) -> None:
        """Notice the silent, by our own clock from when we last heard them: nobody's clocks are compared."""
        while True:
            await asyncio.sleep(TTL_S / 2)
            for process in {ticket.process for ticket in self._tickets}:
                silent_s = time.monotonic() - self._alive.get(process, time.monotonic())
                if silent_s > TTL_S + 2.0 and process != self._slots.process and self._bus.is_connected:
                    await self._remove_tickets_of(process)

    async def _remove_tickets_of(self, process: str) -> None:
        if process == self._slots.process:
            return
        for ticket in [ticket for ticket in self._tickets if ticket.process == process]:
            log.warning("limits.holder_dead", extra={"limit": self.name, "holder": process})
            try:
                await self._slots._bucket.delete(
                    f"slot.{key_of(self.name)}.{ticket.id}", revision=ticket.order
                )
            except GuardFailed as exc:
                log.debug("limits.ticket_gone", extra={"limit": self.name, "error": str(exc)})
            self._left(ticket.id)  # by us or by another: whatever the watch has told of it


@dataclass(frozen=True, slots=True)
class Standing:
    """Who has asked for slots of a limit, in order, as of one look.

    Attributes:
        process: where the ticket lives: ``{"pid", "host"}``; empty if it says so no more.
        holds: whether it has its slots; else it waits for them.
    """

    occupy: int
    holds: bool
    holder: str | None
    process: JsonObject
    since: datetime


async def standing(bus: Bus, name: str, limit: Limit) -> list[Standing]:
    """Return who holds slots of a limit and who waits for them, the first to ask first."""
    prefix = f"slot.{key_of(name)}."
    bucket = bus.bucket(LEASES)
    entries = {entry.key.removeprefix(prefix): entry for entry in await bucket.entries(prefix)}
    if not entries:
        return []
    values: dict[str, Any] = {id_: orjson.loads(entry.value) for id_, entry in entries.items()}
    tickets = [
        Ticket(id_, entry.revision, values[id_]["occupy"], values[id_]["process"])
        for id_, entry in entries.items()
    ]
    held = holders(tickets, limit.slots or 0)
    alive = {
        entry.key.removeprefix("slots."): orjson.loads(entry.value)
        for entry in await bucket.entries("slots.")
    }
    return [
        Standing(
            ticket.occupy, ticket.id in held, values[ticket.id].get("holder"), alive.get(ticket.process, {}),
            entries[ticket.id].created_at,
        )
        for ticket in sorted(tickets, key=lambda ticket: ticket.order)
    ]  # fmt: skip


async def reset(bus: Bus, name: str) -> int:
    """Take every slot of a limit from whoever has it, and forget what was reserved; return how many tickets there were.

    Those who wait ask again; code that runs inside goes on, and is told that it lost its slots.
    """
    bucket = bus.bucket(LEASES)
    found = await bucket.keys(f"slot.{key_of(name)}.")
    for key in (*found, f"rate.{key_of(name)}"):
        await bucket.delete(key)
    return len(found)


_of_session: WeakKeyDictionary[Session, Slots] = WeakKeyDictionary()


def slots_of(session: Session) -> Slots:
    """Return the tickets of a session's process. On the session's loop."""
    found = _of_session.get(session)
    if found is None:
        found = _of_session[session] = Slots(session.bus)
    return found
