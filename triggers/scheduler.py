"""The scheduler: one leader that makes a run of every slot, once, whatever restarts.

For each due slot it appends ``schedule.fired`` and asks the ``RunStarter`` for a run whose id belongs to the slot. When
there is none (an overlap, a deployment that is paused or gone), ``schedule.skipped`` follows and says why.

It waits on a heap of next slots and on the bucket of definitions; a change is taken up as it is stored. What is
decided when is in ``due.py``, what is written down in ``progress.py``.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol, Self, TypeVar

import anyio
import anyio.lowlevel
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus
from pydantic import ValidationError

from ..bus import Bus, Entry
from ..bus.candidate import first_error
from ..bus.event import Event, readable
from ..clock import SYSTEM_CLOCK, Clock
from ..config import TriggersConfig
from ..errors import AlreadyHeld, EventInvalid, GuardFailed, HarkError, UnavailableError
from ..vocabulary import FlowRunId, JsonObject
from .due import plan_slots
from .insist import insist
from .progress import CHECKPOINT_PREFIX, Progress, base_of, fired_event, missed_event, not_started_event
from .schedule import Overlap, StoredSchedule, due_at, next_fire, slot_run_id, timing_version

__all__ = ["NotStarted", "RunStarter", "Scheduler", "Started"]

log = logging.getLogger(__name__)
T = TypeVar("T")

_FILTERS = ("hark.ev.schedule.fired", "hark.ev.schedule.skipped")
# Clocks are set and machines sleep, and neither wakes a sleeping task; so no sleep is longer than this, and a slot is
# never later than this after the machine has woken up.
LOOK_UP_S = 30.0
# Writes under way at once: ten thousand schedules of one slot must not time out waiting for each other.
_A_TURN = 20
"""Schedules that are looked at before others of the loop have their turn: ten thousand of one slot took seconds, and the lease."""
_AT_ONCE = 200
_READY_AFTER_S = 2.0
# A clock that was wrong and has been set back: the slots up to then stay decided, since none may fire twice.
_CLOCK_WENT_BACK = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Started:
    """There is a run for the slot (made now, or before: asking twice is asking once)."""

    run_id: FlowRunId


@dataclass(frozen=True, slots=True)
class NotStarted:
    """There is no run for this slot, and there will be none."""

    reason: str


class RunStarter(Protocol):
    """Starts runs for the scheduler. The engine is behind it; the composition root makes the adapter."""

    async def start(
        self,
        deployment: str,
        *,
        run_id: FlowRunId,
        scheduled_at: datetime,
        parameters: JsonObject,
        cause_name: str,
        overlap: Overlap,
        trigger_event: Event,
    ) -> Started | NotStarted:
        """Ask for the run ``run_id`` and say whether there is one.

        May take as long as it needs: other schedules go on, and slots of this one that come meanwhile are missed ones.
        May be asked again for the same ``run_id``, also by another process after a crash: if that run exists, the
        answer is ``Started``, whatever ``overlap`` would say now.

        Raises:
            UnavailableError, GuardFailed: ask again later.
            HarkError: there will be no run; the message says why (no such deployment, parameters it does not take).
        """
        ...


@dataclass(slots=True)
class _Item:
    """One schedule as the leader knows it. ``is_busy``: a task is settling it; ``again``: and must look once more.

    ``due``: when its next slot is waited for; ``open``: that slot until somebody decides it. ``owed``: the definition before
    this one, and until when slots that nobody has decided were its own.
    """

    key: str
    stored: StoredSchedule | None = None
    stored_at: datetime | None = None
    progress: Progress | None = None
    revision: int | None = None
    claimed_at: datetime | None = None
    owed: tuple[StoredSchedule, datetime] | None = None
    due: datetime | None = None
    open: datetime | None = None
    is_busy: bool = False
    again: bool = False


class Scheduler(AsyncContextManagerMixin):
    """Fires schedules while it leads; stands by while another does. Entered: standing by, or leading.

    Args:
        holder: who we are, for people who ask who leads.
        look_up_s: longest time to sleep without looking at the wall clock.
    """

    def __init__(
        self,
        bus: Bus,
        starter: RunStarter,
        config: TriggersConfig | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        holder: str = "",
        lease_ttl_s: float = 5.0,
        look_up_s: float = LOOK_UP_S,
    ) -> None:
        self._bus, self._starter, self._clock = bus, starter, clock
        self._config = config or TriggersConfig()
        self._holder = holder or f"scheduler-{os.getpid()}"
        self._lease_ttl_s, self._look_up_s = lease_ttl_s, look_up_s
        self._term: _Term | None = None
        self._leading = anyio.Event()

    @property
    def is_leading(self) -> bool:
        """Whether this scheduler leads and knows all schedules."""
        return self._leading.is_set()

    @property
    def broken(self) -> dict[str, str]:
        """Keys of definitions that do not load, with the error; they stay unfired until they are put right."""
        return dict(self._term.broken) if self._term is not None else {}

    def upcoming(self) -> list[tuple[str, datetime]]:
        """Return keys and due times of the schedules waiting here, soonest first; empty when not leading."""
        items = self._term.items.values() if self._term is not None else ()
        return sorted(
            ((i.key, i.due) for i in items if i.due is not None), key=lambda pair: (pair[1], pair[0])
        )

    async def wait_leading(self) -> None:
        """Wait until this scheduler leads and has dealt with the slots that were due (or asked for 2 s)."""
        await self._leading.wait()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            await tg.start(self._lead)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel()

    async def _lead(self, *, task_status: TaskStatus[None]) -> None:
        task_status.started()
        while True:
            lease = self._bus.lease("scheduler", holder=self._holder, ttl_s=self._lease_ttl_s)
            async with lease.held():
                try:
                    self._term = _Term(self._bus, self._starter, self._config, self._clock, self._look_up_s)
                    await self._term.run(self._leading)
                except* UnavailableError as group:
                    # The term ends, the lease is given back, and whoever reaches the broker first leads on.
                    log.warning("scheduler.interrupted", extra={"error": str(first_error(group))})
                    await anyio.sleep(0.2)
                finally:
                    self._term = None
                    if self._leading.is_set():  # else somebody may be waiting for it
                        self._leading = anyio.Event()


@dataclass(slots=True)
class _Term:
    """One time of leading: what is known and what waits."""

    bus: Bus
    starter: RunStarter
    config: TriggersConfig
    clock: Clock
    look_up_s: float
    items: dict[str, _Item] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    heap: list[tuple[datetime, str]] = field(default_factory=list)
    wake: anyio.Event = field(default_factory=anyio.Event)
    idle: anyio.Event = field(default_factory=anyio.Event)
    busy: int = 0
    known: frozenset[str] = frozenset()
    known_for: frozenset[datetime] = frozenset()
    limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_AT_ONCE))

    async def run(self, leading: anyio.Event) -> None:
        """Lead until cancelled. ``leading`` is set once all that was due at the start is decided."""
        for entry in await self.bus.bucket("checkpoints").entries(CHECKPOINT_PREFIX):
            self._learn(self._item(entry.key.removeprefix(CHECKPOINT_PREFIX)), entry)
        claims = [
            i.claimed_at for i in self.items.values() if i.claimed_at and i.progress and i.progress.plan
        ]
        if claims:  # one look into the log for all of them
            self.known, self.known_for = await self._known_since(min(claims)), frozenset(claims)
        async with anyio.create_task_group() as tg, self.bus.bucket("schedules").watch() as changes:
            in_history = True
            async for entry in changes:
                if entry.key:
                    self._define(entry)
                    if not in_history:
                        self._settle_soon(tg, self.items[entry.key])
                elif in_history:
                    in_history = False
                    for count, item in enumerate(list(self.items.values()), 1):
                        self._settle_soon(tg, item)
                        if count % _A_TURN == 0:
                            await anyio.lowlevel.checkpoint()
                    tg.start_soon(self._announce, leading)
                    tg.start_soon(self._wait_and_fire, tg)

    async def _announce(self, leading: anyio.Event) -> None:
        if self.busy:
            self.idle = anyio.Event()
            # A starter may wait for hours until the run before is over (`overlap: queue`); nobody waits for that.
            with anyio.move_on_after(_READY_AFTER_S):
                await self.idle.wait()
        leading.set()
        log.info("scheduler.leading", extra={"schedules": len(self.items), "broken": len(self.broken)})

    # --- what there is --------------------------------------------------------------------------------

    def _item(self, key: str) -> _Item:
        return self.items.setdefault(key, _Item(key))

    def _learn(self, item: _Item, entry: Entry | None) -> None:
        """Take over the stored progress of a schedule."""
        item.progress, item.revision, item.claimed_at = None, None, None
        if entry is None:
            return
        item.revision = entry.revision
        try:
            item.progress, item.claimed_at = Progress.from_json(entry.value), entry.created_at
        except (ValueError, KeyError, TypeError, EventInvalid) as exc:
            # Counting from now is the one choice that cannot run a slot twice.
            log.error("schedule.progress_unreadable", extra={"schedule": item.key, "error": repr(exc)})

    def _define(self, entry: Entry) -> None:
        item = self._item(entry.key)
        self.broken.pop(entry.key, None)
        until = min(self.clock.now(), entry.created_at)
        if item.stored is not None and item.open is not None and item.open <= until:
            # It came a moment before the change, which we heard of first. Of another change at once it was no slot.
            item.owed, item.open = (item.stored, until), None
        item.stored, item.stored_at = None, None
        if entry.deleted:
            return
        try:
            stored = StoredSchedule.model_validate_json(entry.value)
            if stored.key != entry.key:
                raise ValueError(f"it says it is {stored.key!r}")
            item.stored, item.stored_at = stored, entry.created_at
        except (ValidationError, ValueError) as exc:
            self.broken[entry.key] = str(exc)
            log.error("schedule.broken", extra={"schedule": entry.key, "error": str(exc)})

    # --- waiting --------------------------------------------------------------------------------------

    def _wait_for(self, item: _Item, due: datetime | None) -> None:
        item.due = item.open = due
        if due is not None:
            heapq.heappush(self.heap, (due, item.key))
        self.wake.set()

    async def _wait_and_fire(self, tg: TaskGroup) -> None:
        while True:
            self.wake = anyio.Event()
            now, count = self.clock.now(), 0
            while self.heap and self.heap[0][0] <= now:
                due, key = heapq.heappop(self.heap)
                item = self.items.get(key)
                if item is not None and item.due == due:  # else a change has put it elsewhere
                    self._settle_soon(tg, item)
                    if (count := count + 1) % _A_TURN == 0:
                        await anyio.lowlevel.checkpoint()
            await self._rest(self.heap[0][0] if self.heap else None)

    async def _rest(self, until: datetime | None) -> None:
        """Wait until something changes, or until a moment if given (or until it is time to look at the clock)."""
        async with anyio.create_task_group() as tg:

            async def nap(until: datetime) -> None:
                delay_s = (until - self.clock.now()).total_seconds()
                await self.clock.sleep(min(delay_s, self.look_up_s))
                tg.cancel_scope.cancel()

            if until is not None:
                tg.start_soon(nap, until)
            await self.wake.wait()
            tg.cancel_scope.cancel()

    # --- settling one schedule ------------------------------------------------------------------------

    def _settle_soon(self, tg: TaskGroup, item: _Item) -> None:
        item.due = None
        if item.is_busy:
            item.again = True
            return
        item.is_busy = True
        self.busy += 1
        tg.start_soon(self._settle, item)

    async def _settle(self, item: _Item) -> None:
        """Bring one schedule to where it waits for its next slot; slots of one schedule are run one by one."""
        try:
            while True:
                item.again = False
                try:
                    await self._settle_once(item)
                except (GuardFailed, AlreadyHeld):
                    # Another took itself for the leader and decided first: go on from what it wrote.
                    log.warning("schedule.decided_elsewhere", extra={"schedule": item.key})
                    self._learn(item, await self._stored_progress(item))
                    item.again = True
                if not item.again:
                    return
        finally:
            item.is_busy = False
            self.busy -= 1
            if self.busy == 0:
                self.idle.set()

    async def _settle_once(self, item: _Item) -> None:
        if item.owed is not None and item.progress is not None:
            before, until = item.owed
            await self._decide(item, before, item.progress, until)
            item.owed = None
        stored, stored_at, item.open = item.stored, item.stored_at, None
        if stored is None or stored_at is None:
            if item.key not in self.broken:
                await self._forget(item)
            return
        if item.progress is not None and item.progress.plan is not None:
            await self._carry_out(item, stored, item.progress, is_again=True)
        now = self.clock.now()
        timing = timing_version(stored.schedule)
        base = base_of(stored, item.progress, stored_at=stored_at, now=now)
        if stored.is_paused:
            if item.progress is None or not item.progress.paused or item.progress.timing != timing:
                await self._write(item, Progress(timing, max(base, now), paused=True))
            return
        if item.progress is None or item.progress.paused or item.progress.timing != timing:
            # From here on it is ours: what comes while nobody leads is missed, and is made up for.
            await self._write(item, Progress(timing, base))
        if await self._decide(item, stored, Progress(timing, base), now):
            item.again = True  # time has passed: more may be due
            return
        if base > now + _CLOCK_WENT_BACK:
            log.warning("schedule.ahead_of_clock", extra={"schedule": item.key, "through": base.isoformat()})
        slot = next_fire(stored.schedule, base)
        self._wait_for(item, due_at(stored.schedule, slot, key=stored.key) if slot is not None else None)

    async def _decide(self, item: _Item, stored: StoredSchedule, progress: Progress, now: datetime) -> bool:
        """Decide the slots up to ``now`` and do what was decided; return whether there were any."""
        plan = plan_slots(
            stored.schedule,
            key=stored.key,
            through=progress.through,
            now=now,
            grace_s=self.config.schedule_grace_s,
        )
        if plan.is_empty:
            return False
        claim = replace(progress, plan=plan)
        await self._write(item, claim)
        await self._carry_out(item, stored, claim, is_again=False)
        return True

    async def _carry_out(
        self, item: _Item, stored: StoredSchedule, claim: Progress, *, is_again: bool
    ) -> None:
        """Do what a claimed plan says, and write down that it is done."""
        plan = claim.plan
        assert plan is not None
        known: frozenset[str] = frozenset()
        if is_again:
            seen = item.claimed_at in self.known_for
            known = self.known if seen else await self._known_since(item.claimed_at)
        if plan.skipped is not None:
            await self._append(missed_event(stored, plan.skipped, now=self.clock.now()), item, known)
        for n, slot in enumerate(plan.fire):
            fired = fired_event(stored, slot, is_missed=n < plan.missed, now=self.clock.now())
            await self._append(fired, item, known)
            refusal = await self._start(stored, slot, fired)
            if refusal is not None:
                why, reason = refusal
                skipped = not_started_event(stored, fired, slot, why=why, reason=reason, now=self.clock.now())
                await self._append(skipped, item, known)
        await self._write(item, claim.done())

    async def _start(self, stored: StoredSchedule, slot: datetime, fired: Event) -> tuple[str, str] | None:
        """Ask for the slot's run; return why there is none, or None if there is."""
        run_id = FlowRunId(slot_run_id(stored.deployment, stored.name, slot))
        try:
            outcome = await self._insist(
                lambda: self.starter.start(
                    stored.deployment,
                    run_id=run_id,
                    scheduled_at=slot,
                    parameters=stored.schedule.parameters,
                    cause_name=stored.key,
                    overlap=stored.schedule.overlap,
                    trigger_event=fired,
                )
            )
        except HarkError as exc:
            log.warning("schedule.not_started", extra={"schedule": stored.key, "error": str(exc)})
            return "failed", str(exc)
        except Exception as exc:  # one schedule's trouble must not end the others'
            log.exception("schedule.start_failed", extra={"schedule": stored.key, "run_id": run_id})
            return "failed", f"{type(exc).__name__}: {exc}"
        if isinstance(outcome, NotStarted):
            log.info("schedule.skipped", extra={"schedule": stored.key, "reason": outcome.reason})
            return "refused", outcome.reason
        log.info("schedule.fired", extra={"schedule": stored.key, "run_id": run_id, "slot": slot.isoformat()})
        return None

    # --- writing --------------------------------------------------------------------------------------

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await insist(ask, log=log, who="scheduler")

    async def _stored_progress(self, item: _Item) -> Entry | None:
        bucket = self.bus.bucket("checkpoints")
        return await self._insist(lambda: bucket.get(f"{CHECKPOINT_PREFIX}{item.key}"))

    async def _append(self, event: Event, item: _Item, known: frozenset[str]) -> None:
        """Append an event that is in the log once, however often and however late this is called."""
        wait_s = 0.1
        while event.id not in known:
            try:
                async with self.limiter:
                    await self.bus.log.append(event)
                return
            except UnavailableError as exc:
                log.warning("scheduler.waiting", extra={"error": str(exc), "wait_s": wait_s})
                await anyio.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)
            # It may have landed, and the outage may outlast the time for which the broker recognises its id.
            claim = await self._stored_progress(item)
            known = await self._known_since(claim.created_at if claim is not None else None)

    async def _known_since(self, since: datetime | None) -> frozenset[str]:
        """Return the ids of the schedules' events in the log since a claim (the broker's time on both sides)."""

        async def read() -> frozenset[str]:
            found: set[str] = set()
            async with self.bus.log.read(_FILTERS, since=since) as batches:
                async for batch in batches:
                    found.update(record.event.id for record in readable(batch.records))
            return frozenset(found)

        return await self._insist(read)

    async def _write(self, item: _Item, progress: Progress) -> None:
        """Store the progress over the one we know.

        Raises:
            GuardFailed, AlreadyHeld: it is no longer the one we know.
        """
        bucket, key, value = (
            self.bus.bucket("checkpoints"),
            f"{CHECKPOINT_PREFIX}{item.key}",
            progress.to_json(),
        )
        wait_s = 0.1
        while True:
            try:
                async with self.limiter:
                    if item.revision is None:
                        item.revision = await bucket.create(key, value)
                    else:
                        item.revision = await bucket.update(key, value, revision=item.revision)
                break
            except UnavailableError as exc:
                log.warning("scheduler.waiting", extra={"error": str(exc), "wait_s": wait_s})
                await anyio.sleep(wait_s)
                wait_s = min(wait_s * 2, 5.0)
                entry = await self._stored_progress(item)
                if entry is not None and entry.value == value:  # our write had landed
                    item.revision = entry.revision
                    break
        item.progress, item.claimed_at = progress, None

    async def _forget(self, item: _Item) -> None:
        """Remove what is known of a schedule that is gone."""
        if item.revision is not None:
            await self._insist(
                lambda: self.bus.bucket("checkpoints").delete(f"{CHECKPOINT_PREFIX}{item.key}")
            )
        item.progress, item.revision, item.claimed_at = None, None, None
        if item.stored is None and not item.again:
            self.items.pop(item.key, None)
