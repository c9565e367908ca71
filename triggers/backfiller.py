"""The backfiller: one leader that runs the slots of backfills, so many at once as each allows.

What is to be run stands in the bucket ``backfills``, how far it has come in ``checkpoints``. A run is asked for before that
is written down, under an id that belongs to its slot; so whoever leads after a crash asks once more for at most one
run, and is given the one that exists. Ends of runs are heard from the log; nothing polls.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Protocol, Self, TypeVar

import anyio
import orjson
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from pydantic import ValidationError

from ..bus import Bus, Entry
from ..bus.candidate import first_error
from ..bus.event import Event
from ..bus.subject import PREFIX, flow_run_filter
from ..clock import SYSTEM_CLOCK, Clock
from ..errors import AlreadyHeld, GuardFailed, HarkError, RefusedError, UnavailableError, UnknownName
from ..vocabulary import FlowRunId, JsonObject
from .backfill import CHECKPOINT_PREFIX, ENDED, Backfill, BackfillProgress, backfill_event, parameters_of
from .insist import insist
from .schedule import StoredSchedule, next_fire

__all__ = ["BUCKET", "Backfiller", "Backfills", "BackfillStarter"]

log = logging.getLogger(__name__)
T = TypeVar("T")

BUCKET = "backfills"
_FILTERS = [f"{PREFIX}flow-run.{word}.*" for word in sorted(ENDED)]
_LOOK_AT_ONCE = 50
# Long enough to be asked for again by accident, and to be looked up; the runs themselves are in the log.
_KEPT_S = 90 * 86_400
_TRIES = 10


class BackfillStarter(Protocol):
    """Starts runs for the backfiller. The engine is behind it; the composition root makes the adapter."""

    async def start(
        self,
        deployment: str,
        *,
        run_id: FlowRunId,
        slot: datetime,
        parameters: JsonObject,
        queue: str | None,
        backfill: str,
    ) -> str:
        """Ask for the run ``run_id`` (one that exists is that run) and return the last word of its transitions.

        Raises:
            UnavailableError, GuardFailed: ask again later.
            HarkError: there will be no such run; the message says why.
        """
        ...

    async def cancel(self, run_id: FlowRunId, *, reason: str) -> None:
        """Ask a run to stop; one that is over is left as it is."""
        ...


async def last_words(bus: Bus, run_ids: Iterable[str]) -> dict[str, str]:
    """Return the last word of each run's transitions, by run id; those without a run are left out."""
    found: dict[str, str] = {}
    limiter = anyio.CapacityLimiter(_LOOK_AT_ONCE)

    async def look(run_id: str) -> None:
        async with limiter:
            last = await bus.log.last(flow_run_filter(run_id))
        if last is not None:
            found[run_id] = last.subject.removeprefix(f"{PREFIX}flow-run.").partition(".")[0]

    async with anyio.create_task_group() as tg:
        for run_id in run_ids:
            tg.start_soon(look, run_id)
    return found


class Backfills:
    """Asking for backfills, and looking at them. Stateless: any number may be used side by side."""

    def __init__(self, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus, self._clock = bus, clock

    async def ask(self, wanted: Backfill) -> tuple[Backfill, bool]:
        """Store a backfill and return it, and whether it is new. The same asked again is the one there is.

        Asking again changes how many run at once, and takes up what had been cancelled or had failed.

        Raises:
            RefusedError: another one has this name.
        """
        bucket = self._bus.bucket(BUCKET)
        for _ in range(_TRIES):
            try:
                await bucket.create(wanted.name, wanted.model_dump_json().encode())
                return wanted, True
            except AlreadyHeld:
                entry = await bucket.get(wanted.name)
            if entry is None:
                continue
            found = Backfill.model_validate_json(entry.value)
            if not found.asks_the_same(wanted):
                raise RefusedError(
                    f"there is a backfill {wanted.name!r} that asks for something else",
                    hint="give this one another name",
                )
            progress = await self.progress(found.name)
            is_stopped = found.cancelled or progress.status == "failed"
            changed = found.model_copy(
                update={
                    "max_parallel": wanted.max_parallel,
                    **(
                        {"cancelled": False, "cancel_runs": False, "round": found.round + 1}
                        if is_stopped
                        else {}
                    ),
                }
            )
            if changed == found or progress.status == "finished":
                return found, False
            try:
                await bucket.update(found.name, changed.model_dump_json().encode(), revision=entry.revision)
            except GuardFailed:
                continue
            return changed, False
        raise RefusedError(f"the backfill {wanted.name!r} is being changed by too many at once; try again")

    async def cancel(self, name: str, *, runs: bool) -> Backfill:
        """Have a backfill start no more runs, and with ``runs`` cancel those under way.

        Raises:
            UnknownName: there is no such backfill.
        """
        for _ in range(_TRIES):
            found, revision = await self._stored(name)
            if (found.cancelled and found.cancel_runs >= runs) or (
                await self.progress(name)
            ).status == "finished":
                return found
            changed = found.model_copy(update={"cancelled": True, "cancel_runs": runs})
            try:
                await self._bus.bucket(BUCKET).update(
                    name, changed.model_dump_json().encode(), revision=revision
                )
            except GuardFailed:
                continue
            return changed
        raise RefusedError(f"the backfill {name!r} is being changed by too many at once; try again")

    async def get(self, name: str) -> Backfill:
        """Return a backfill. Raises ``UnknownName``."""
        return (await self._stored(name))[0]

    async def _stored(self, name: str) -> tuple[Backfill, int]:
        bucket = self._bus.bucket(BUCKET)
        try:
            entry = await bucket.get(name)
        except HarkError:
            entry = None
        if entry is None:
            raise UnknownName("backfill", name, known=await bucket.keys())
        return Backfill.model_validate_json(entry.value), entry.revision

    async def all(self) -> list[Backfill]:
        """Return every backfill there is, the one asked for last first."""
        entries = await self._bus.bucket(BUCKET).entries()
        found = [Backfill.model_validate_json(entry.value) for entry in entries]
        return sorted(found, key=lambda b: b.asked_at, reverse=True)

    async def progress(self, name: str) -> BackfillProgress:
        """Return how far a backfill has come; one that nobody has begun has come nowhere."""
        entry = await self._bus.bucket("checkpoints").get(f"{CHECKPOINT_PREFIX}{name}")
        return BackfillProgress() if entry is None else BackfillProgress.from_json(entry.value)

    async def moved(self, name: str, seen: BackfillProgress, *, within_s: float) -> BackfillProgress:
        """Return the progress once it differs from ``seen``, or as it is after ``within_s`` seconds."""
        key = f"{CHECKPOINT_PREFIX}{name}"
        with anyio.move_on_after(within_s):
            async with self._bus.bucket("checkpoints").watch(key) as changes:
                async for entry in changes:
                    if entry.key == key and not entry.deleted:
                        now = BackfillProgress.from_json(entry.value)
                        if now != seen:
                            return now
        return await self.progress(name)


@dataclass(slots=True)
class _Item:
    """One backfill as the leader knows it. ``moved`` is set when its definition or one of its runs has."""

    backfill: Backfill
    progress: BackfillProgress = field(default_factory=BackfillProgress)
    revision: int | None = None
    moved: anyio.Event = field(default_factory=anyio.Event)
    following: dict[str, StoredSchedule] = field(default_factory=dict)


class Backfiller(AsyncContextManagerMixin):
    """Carries backfills out while it leads; stands by while another does."""

    def __init__(
        self,
        bus: Bus,
        starter: BackfillStarter,
        *,
        clock: Clock = SYSTEM_CLOCK,
        holder: str = "",
        lease_ttl_s: float = 5.0,
    ) -> None:
        self._bus, self._starter, self._clock = bus, starter, clock
        self._holder = holder or f"backfiller-{os.getpid()}"
        self._lease_ttl_s = lease_ttl_s
        self._items: dict[str, _Item] = {}

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._lead)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel()

    async def _lead(self) -> None:
        while True:
            async with self._bus.lease("backfills", holder=self._holder, ttl_s=self._lease_ttl_s).held():
                try:
                    self._items = {}
                    async with anyio.create_task_group() as tg:
                        await self._watch(tg)
                except* UnavailableError as group:
                    # The lease is given back, and whoever reaches the broker first leads on.
                    log.warning("backfiller.interrupted", extra={"error": str(first_error(group))})
                    await anyio.sleep(0.2)

    async def _watch(self, tg: TaskGroup) -> None:
        async with self._bus.bucket(BUCKET).watch() as changes:
            async for entry in changes:
                if entry.key:
                    self._define(tg, entry)

    def _define(self, tg: TaskGroup, entry: Entry) -> None:
        item = self._items.get(entry.key)
        if entry.deleted:
            return
        try:
            backfill = Backfill.model_validate_json(entry.value)
        except ValidationError as exc:
            log.error("backfill.broken", extra={"backfill": entry.key, "error": str(exc)})
            return
        if item is not None:
            item.backfill = backfill
            item.moved.set()
        else:
            item = self._items[entry.key] = _Item(backfill)
            tg.start_soon(self._work, item)

    async def _work(self, item: _Item) -> None:
        """Carry one backfill out, and wait for it to be taken up again when it has stopped."""
        name = item.backfill.name
        while True:
            item.moved = anyio.Event()
            try:
                await self._load(item)
                if item.progress.status != "running" and item.progress.round < item.backfill.round:
                    item.progress = replace(
                        item.progress, status="running", error="", ended_at=None, round=item.backfill.round
                    )
                if item.progress.status == "running":
                    await self._carry_out(item)
            except (GuardFailed, AlreadyHeld):
                # Another took itself for the leader: go on from what it wrote.
                log.warning("backfill.decided_elsewhere", extra={"backfill": name})
                continue
            except HarkError as exc:
                if isinstance(exc, UnavailableError):
                    raise
                log.warning("backfill.failed", extra={"backfill": name, "error": str(exc)})
                await self._end(item, replace(item.progress, status="failed", error=str(exc)))
            if item.progress.status == "finished":
                return
            await item.moved.wait()

    # --- carrying out ---------------------------------------------------------------------------------

    async def _carry_out(self, item: _Item) -> None:
        head = await self._insist(self._bus.log.head)
        async with anyio.create_task_group() as tg:
            # What ends after `head` is heard, what had ended before is looked up: nothing falls between.
            ends: dict[str, str] = {}
            tg.start_soon(self._listen, item, head, ends)
            ends.update(await self._insist(lambda: last_words(self._bus, item.progress.active)))
            try:
                await self._run_slots(item, ends)
            except HarkError as exc:
                failure: HarkError | None = exc
            else:
                failure = None
            tg.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _listen(self, item: _Item, head: int, ends: dict[str, str]) -> None:
        async with self._bus.log.follow(_FILTERS, after=head) as batches:
            async for batch in batches:
                for record in batch.records:
                    word, _, run_id = record.subject.removeprefix(f"{PREFIX}flow-run.").partition(".")
                    # One that is being asked for right now may end before the answer that it exists.
                    ends[run_id] = word
                if batch.records:
                    item.moved.set()

    async def _run_slots(self, item: _Item, ends: dict[str, str]) -> None:
        if item.progress.asked == 0 and item.revision is None:
            await self._tell(backfill_event(item.backfill, "started", item.progress, now=self._clock.now()))
        while True:
            item.moved = anyio.Event()
            backfill, progress = item.backfill, item.progress
            for run_id in progress.active:
                if ends.get(run_id) in ENDED:
                    progress = progress.over(run_id, ends[run_id])
            ends.clear()  # what it still holds is of runs that are none of ours
            if progress != item.progress:
                await self._save(item, progress)
            if backfill.cancelled:
                await self._stop(item)
                return
            if progress.asked >= len(backfill.slots):
                if not progress.active:
                    await self._end(item, replace(progress, status="finished"))
                    return
            elif len(progress.active) < backfill.max_parallel:
                await self._ask(item, progress.asked)
                continue
            await item.moved.wait()

    async def _ask(self, item: _Item, place: int) -> None:
        backfill = item.backfill
        schedule, slot = backfill.slots[place]
        run_id = backfill.run_id(place)
        parameters = parameters_of(backfill, place, await self._following(item, schedule, slot))
        word = await self._insist(
            lambda: self._starter.start(
                backfill.deployment, run_id=run_id, slot=slot, parameters=parameters, queue=backfill.queue,
                backfill=backfill.name,
            )
        )  # fmt: skip
        progress = item.progress.begun(run_id)
        await self._save(item, progress.over(run_id, word) if word in ENDED else progress)

    async def _following(self, item: _Item, schedule: str, slot: datetime) -> datetime | None:
        """Return the slot after ``slot``, if the schedule still exists."""
        stored = item.following.get(schedule)
        if stored is None:
            entry = await self._insist(
                lambda: self._bus.bucket("schedules").get(f"{item.backfill.deployment}/{schedule}")
            )
            if entry is None:
                return None
            stored = item.following[schedule] = StoredSchedule.model_validate_json(entry.value)
        return next_fire(stored.schedule, slot)

    async def _stop(self, item: _Item) -> None:
        if item.backfill.cancel_runs:
            reason = f"the backfill {item.backfill.name} was cancelled"
            for run_id in item.progress.active:
                cancel = partial(self._starter.cancel, FlowRunId(run_id), reason=reason)
                await self._insist(cancel)
        await self._end(item, replace(item.progress, status="cancelled"))

    # --- writing --------------------------------------------------------------------------------------

    async def _end(self, item: _Item, progress: BackfillProgress) -> None:
        ended = replace(progress, ended_at=self._clock.now())
        await self._tell(backfill_event(item.backfill, ended.status, ended, now=self._clock.now()))
        ttl_s = None
        if ended.status != "failed":
            # The progress outlives the backfill: one without it would look as if it had never begun.
            ttl_s = _KEPT_S + 86_400
            value = item.backfill.model_dump_json().encode()
            await self._insist(lambda: self._bus.bucket(BUCKET).put(item.backfill.name, value, ttl_s=_KEPT_S))
        await self._save(item, ended, ttl_s=ttl_s)
        log.info(
            "backfill.ended",
            extra={"backfill": item.backfill.name, "status": ended.status, "ended": dict(ended.ended)},
        )

    async def _tell(self, event: Event) -> None:
        await self._insist(lambda: self._bus.log.append(event))

    async def _load(self, item: _Item) -> None:
        key = f"{CHECKPOINT_PREFIX}{item.backfill.name}"
        entry = await self._insist(lambda: self._bus.bucket("checkpoints").get(key))
        item.revision = entry.revision if entry is not None else None
        item.progress = BackfillProgress.from_json(entry.value) if entry is not None else BackfillProgress()

    async def _save(self, item: _Item, progress: BackfillProgress, *, ttl_s: float | None = None) -> None:
        """Store the progress over the one we know.

        Raises:
            GuardFailed, AlreadyHeld: it is no longer the one we know.
        """
        bucket, key = self._bus.bucket("checkpoints"), f"{CHECKPOINT_PREFIX}{item.backfill.name}"
        value = orjson.dumps(progress.to_dict())
        if item.revision is None:
            item.revision = await bucket.create(key, value, ttl_s=ttl_s)
        else:
            item.revision = await bucket.update(key, value, revision=item.revision, ttl_s=ttl_s)
        item.progress = progress

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await insist(ask, log=log, who="backfiller")
