"""The rule engine: follows the log, folds it, stores what is decided.

One leads at a time, by a lease; the others stand by. The leader takes the last checkpoint, folds on from there, and
appends its decisions under ids that belong to them, so that a decision made again after a crash is the same event.
Changes of rules and the passing of deadlines go through the log as well (``automation.adopted``, ``automation.due``),
which makes what is decided a function of the log alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from ...bus import Bus, Entry, Event
from ...bus.candidate import Candidate, Deposed
from ...bus.event import Recorded, readable
from ...bus.lease import Grant
from ...clock import SYSTEM_CLOCK, Clock
from ...config import AutomationsConfig
from ...errors import BusUnavailable
from ...vocabulary import JsonObject, derived_id
from ..model import parse_automation
from ..problem import RuleInvalid
from .checkpoint import Checkpoints
from .decision import ADOPTED, DUE, SOURCE
from .fold import Fold, FoldConfig
from .handover import Handover
from .snapshot import Snapshot
from .storing import DECISIONS, Storing
from .turn import SLICE_S, Turn

__all__ = ["RuleEngine"]

log = logging.getLogger(__name__)

LEASE = "automations"
_BACK_OFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_BATCH = 100
"""Events taken over from the feed in one go."""
_MOST_WAITING = 8_000
"""Events that may wait here to be folded: a few tenths of a second's work. The memory is for what is known of keys."""
_DUE_AT_ONCE = 32
_LONGEST_SLEEP_S = 30.0
_DEFINITIONS_AT_ONCE = 500


class RuleEngine(Candidate["_Term"]):
    """The service. Entered means: it leads and every rule there is is in force, or another one leads. See ``Candidate``.

    Args:
        handover: where an outbox of this process may promise to carry out what is decided.
    """

    def __init__(
        self,
        bus: Bus,
        config: AutomationsConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        name: str | None = None,
        lease_ttl_s: float = 5.0,
        handover: Handover | None = None,
    ) -> None:
        super().__init__(
            bus, lease=LEASE, role="automations", name=name, lease_ttl_s=lease_ttl_s, is_awaited=True
        )
        self._config, self._clock = config, clock
        self._handover = handover or Handover()

    @property
    def status(self) -> JsonObject:
        """What it knows: ``leader, rules, keys, seq`` (of the last event a rule wanted) and the rules that do not load, with
        their errors."""
        term = self._term
        if term is None:
            return {"leader": False}
        errors: Any = {**term.fold.errors, **term.refused}
        return {
            "leader": True, "rules": term.fold.size, "keys": term.fold.keys(), "seq": term.fold.seq,
            "errors": errors,
        }  # fmt: skip

    @property
    def fold(self) -> Fold | None:
        """The state it leads with, to be looked at only; None on a standby."""
        return self._term.fold if self._term is not None else None

    async def _lead(self, grant: Grant, on_ready: Callable[[_Term], None]) -> None:
        await _Term(self._bus, self._config, self._clock, self._handover).lead(on_ready)


@dataclass(frozen=True, slots=True)
class _Taking:
    """The fold at one place of the log, to be put down. ``definitions`` is None when the stored ones still hold."""

    generation: int
    definitions: bytes | None
    snapshot: Snapshot


class _Term:
    """One term of office. ``lead`` ends by being cancelled, deposed, or losing the broker."""

    def __init__(self, bus: Bus, config: AutomationsConfig, clock: Clock, handover: Handover) -> None:
        self._bus, self._config, self._clock, self._handover = bus, config, clock, handover
        self.fold_config = FoldConfig(
            allowed_lateness_s=config.allowed_lateness_s,
            max_causal_depth=config.max_causal_depth,
            budget=config.budget_per_minute,
        )
        self.fold = Fold(self.fold_config)
        self.refused: dict[str, str] = {}
        self._checkpoints = Checkpoints(bus, self.fold_config)
        self._incarnation = ""
        self._storing = Storing(bus, handover, after=0)
        self._is_between = False  # of what falls due before an event, a part is decided
        self._ahead_s = 0.0  # how far the broker's clock is ahead of ours, as far as we can tell
        self._recorded_at: datetime | None = None  # of the last event we were given
        self._saving = anyio.Lock()
        self._saved_seq = 0
        self._saved_at = 0.0
        self._save_cost_s = 0.0
        self._taking: _Taking | None = None

    async def lead(self, on_ready: Callable[[_Term], None]) -> None:
        """Catch up, then decide for as long as nobody stops us."""
        await self._restore()
        async with anyio.create_task_group() as tg:
            # From the first batch on: who catches up with a long log and dies has got somewhere.
            tg.start_soon(self._keep_checkpoint)
            tg.start_soon(self._storing.run)
            await tg.start(self._follow)
            await tg.start(self._watch_definitions)
            on_ready(self)
            await self._checkpoints.settled()
            tg.start_soon(self._keep_time)
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.move_on_after(2, shield=True):
                    await self._last_save()

    # --- beginning ------------------------------------------------------------------------------------

    async def _restore(self) -> None:
        restored = await self._checkpoints.take_over()
        state, decided = await self._bus.log.state(), set[str]()
        self._incarnation = state.incarnation
        if restored is not None and restored.incarnation == state.incarnation:
            self.fold = restored.fold
            if self.fold.seq > state.last_seq:
                # A power cut took the log's tail; what the lost events had begun is still the best we know.
                log.warning("automations.log_rewound", extra={"seq": self.fold.seq, "head": state.last_seq})
                self.fold.seq = state.last_seq
            async with self._bus.log.read(DECISIONS, after=self.fold.seq) as batches:
                async for batch in batches:
                    decided.update(r.event.id for r in readable(batch.records))
        else:
            if restored is not None:
                log.warning(
                    "automations.other_log", extra={"was": restored.incarnation, "is": state.incarnation}
                )
                self.fold = restored.fold.in_another_log(seq=state.last_seq)
            else:
                self.fold.seq = state.last_seq
            self.fold.tick(self._clock.now().timestamp())
            # At once: events from here on count, also if we die before the first regular checkpoint.
            await self._write(self._begun())
        self._storing = Storing(self._bus, self._handover, after=self.fold.seq, decided=decided)

    # --- folding --------------------------------------------------------------------------------------

    async def _follow(self, *, task_status: TaskStatus[None]) -> None:
        """Fold what comes, for ever. Where no rule wants the most frequent events, they do not come here at all."""
        started: Callable[[], None] | None = task_status.started
        while True:
            filters = self.fold.filters
            async with self._bus.log.follow(
                filters, after=self.fold.seq, batch=_BATCH, most_waiting=_MOST_WAITING
            ) as batches:
                async for batch in batches:
                    changed = await self._fold(batch.records, filters)
                    if changed:
                        break
                    if batch.pending:
                        # It comes without a pause, and the lease has to be renewed meanwhile.
                        await anyio.lowlevel.checkpoint()
                    elif started is not None:
                        await self._storing.reached(self.fold.seq)
                        self._storing.caught_up()
                        started()
                        started = None

    async def _fold(self, records: Sequence[Recorded], filters: tuple[str, ...]) -> bool:
        """Fold records up to one from which on rules want to see other events, and return whether there was one."""
        fold, step, storing, changed = self.fold, self.fold.step_record, self._storing, False
        generation, turn = fold.generation, Turn()
        for record in records:
            while fold.is_due(record.recorded_s):
                # Thousands may fall due at one moment, and what they decide is not to stand in memory all at once.
                self._is_between = True
                storing.add(fold.tick(record.recorded_s, most=_DUE_AT_ONCE), seq=fold.seq)
                if turn.is_over:
                    await turn.pass_on()
                await storing.room()
            decided, self._is_between = step(record), False
            is_over = turn.is_over
            # At once, and not behind the rest of the batch.
            if ((decided or is_over) and storing.add(decided, seq=fold.seq, more=not is_over)) or is_over:
                # What was decided before is being stored and carried out meanwhile: each step of it waits for its turn.
                await turn.pass_on()
            if fold.generation != generation:
                generation = fold.generation
                if changed := fold.filters != filters:
                    break
        if records:
            self._note_time(records[-1].recorded_at)
        if self._is_worth_saving() and self._taking is None and not self._saving.locked():
            self._taking = self._begun()
        storing.add((), seq=fold.seq)
        await storing.room()
        return changed

    def _note_time(self, recorded_at: datetime) -> None:
        """Learn how far the broker's clock is ahead; a record is never older than its arrival makes it seem."""
        ahead = recorded_at.timestamp() - self._clock.now().timestamp()
        was_set_back = self._recorded_at is not None and recorded_at < self._recorded_at
        self._recorded_at = recorded_at
        self._ahead_s = max(ahead, 0.0 if was_set_back else self._ahead_s * 0.99, 0.0)

    # --- time -----------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        """Say in the log that a deadline has passed, when nothing else does: then the fold hears of it in order."""
        while True:
            due = self.fold.next_deadline()
            if due is None:
                await self._storing.until(lambda: self.fold.next_deadline() is not None)
                continue
            if (wait_s := self._wait_s(due)) > 0:
                # In slices: a machine that slept, or whose clock was set, must look again.
                with anyio.move_on_after(min(wait_s, _LONGEST_SLEEP_S)):
                    await self._storing.until(partial(self._is_other_or_over, due))
                continue
            event = Event(
                type=DUE, source=SOURCE, subject="automation", time=self._clock.now(),
                data={"deadline": datetime.fromtimestamp(due, UTC).isoformat()},
            )  # fmt: skip
            try:
                appended = await self._bus.log.append(event)
            except BusUnavailable:
                await anyio.sleep(0.2)
                continue
            await self._storing.reached(appended.seq)
            # The broker's clock may be behind ours, and is the one that counts; or it was set back, and deadlines with it.
            due = self.fold.next_deadline()
            if due is not None and due > self.fold.now:
                with anyio.move_on_after(min(due - self.fold.now, _LONGEST_SLEEP_S)):
                    await self._storing.until(partial(self._is_earlier_than, due))

    def _wait_s(self, due: float) -> float:
        return due - self._clock.now().timestamp() - self._ahead_s

    def _is_other_or_over(self, due: float) -> bool:
        return self.fold.next_deadline() != due or self._wait_s(due) <= 0

    def _is_earlier_than(self, due: float) -> bool:
        """Whether there is a deadline before ``due``, or none any more."""
        now_due = self.fold.next_deadline()
        return now_due is None or now_due < due

    # --- definitions ----------------------------------------------------------------------------------

    async def _watch_definitions(self, *, task_status: TaskStatus[None]) -> None:
        async with self._bus.bucket("automations").watch() as entries:
            first: list[Event] = []
            found: set[str] = set()
            in_history = True
            async for entry in entries:
                if entry.key == "":
                    gone = [name for name in self.fold.automations if name not in found]
                    first += [_adopted(name, self.fold.revision_of(name) + 1, None) for name in gone]
                    await self._adopt(first)
                    in_history = False
                    task_status.started()
                    continue
                found.add(entry.key)
                event = self._adoption(entry)
                if event is None:
                    continue
                if in_history:
                    first.append(event)
                else:
                    await self._adopt([event])

    def _adoption(self, entry: Entry) -> Event | None:
        """Return the event that puts a definition in force from here on; None if it is, or does not stand."""
        name = entry.key
        if entry.revision <= self.fold.revision_of(name):
            return None
        if entry.deleted:
            self.refused.pop(name, None)
            return _adopted(name, entry.revision, None)
        try:
            automation = parse_automation(entry.value, name=name)
        except RuleInvalid as exc:
            # The one in force stays in force, and the status says why this one is not.
            log.error("automations.rule_refused", extra={"automation": name, "error": str(exc)})
            self.refused[name] = str(exc)
            return None
        self.refused.pop(name, None)
        return _adopted(name, entry.revision, automation.to_json())

    async def _adopt(self, events: list[Event]) -> None:
        """Append adoptions and wait until they are in force."""
        tries = 0
        for start in range(0, len(events), _DEFINITIONS_AT_ONCE):
            part = events[start : start + _DEFINITIONS_AT_ONCE]
            while True:
                try:
                    appended = await self._bus.log.append_many(part)
                    break
                except BusUnavailable:
                    await anyio.sleep(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
                    tries += 1
            await self._storing.reached(max(a.seq for a in appended))

    # --- checkpoints ----------------------------------------------------------------------------------

    async def _keep_checkpoint(self) -> None:
        while True:
            taking = self._taking
            if (
                taking is None
                and not self._is_between
                and self._storing.seq == self.fold.seq
                and self._is_worth_saving()
            ):
                taking = self._begun()  # nothing happens any more that would have begun it
            if taking is not None:
                # A checkpoint stands for what its events have led to.
                await self._storing.reached(taking.snapshot.seq)
                try:
                    async with self._saving:
                        await self._write(taking)
                except BusUnavailable as exc:
                    log.warning("automations.no_checkpoint", extra={"error": str(exc)})
                    await anyio.sleep(1)
                finally:
                    self._taking = None
                continue
            if self._storing.seq <= self._saved_seq:
                await self._storing.until(self._is_to_save)
            # Until then nothing more is of interest than that one has been begun.
            with anyio.move_on_after(
                max(0.05, self._saved_at + self._config.checkpoint_s - time.monotonic())
            ):
                await self._storing.until(lambda: self._taking is not None)

    def _is_to_save(self) -> bool:
        return self._taking is not None or self._storing.seq > self._saved_seq

    def _is_worth_saving(self) -> bool:
        """Whether it is time: enough events or seconds since the last one, and saving stays a small part of the work."""
        since = time.monotonic() - self._saved_at
        if self._storing.seq <= self._saved_seq or since < 20 * self._save_cost_s:
            return False
        return (
            since >= self._config.checkpoint_s
            or self._storing.seq - self._saved_seq >= self._config.checkpoint_events
        )

    def _begun(self) -> _Taking:
        """Begin to take the state of this moment. It may be kept once all that has been decided by now is stored."""
        fold = self.fold
        definitions = (
            fold.dump_definitions() if self._checkpoints.needs_definitions(fold.generation) else None
        )
        taking = _Taking(fold.generation, definitions, fold.snapshot())
        self._saved_at, self._saved_seq = time.monotonic(), fold.seq
        return taking

    async def _write(self, taking: _Taking) -> None:
        try:
            await self._checkpoints.write(
                generation=taking.generation, definitions=taking.definitions,
                state=_parts(taking.snapshot), incarnation=self._incarnation,
            )  # fmt: skip
        finally:
            self.fold.end_snapshot(taking.snapshot)
        self._save_cost_s = taking.snapshot.took_s

    async def _last_save(self) -> None:
        async with self._saving:  # the regular one has been cancelled, and may still be ending
            if self._is_between or self._storing.seq != self.fold.seq:
                return  # decisions are on their way; who comes next makes them again
            try:
                await self._write(self._begun())
            except (BusUnavailable, Deposed) as exc:
                log.debug("automations.no_last_checkpoint", extra={"error": repr(exc)})


async def _parts(snapshot: Snapshot) -> AsyncIterator[bytes]:
    """Take a snapshot in slices, between which events are folded."""
    while not snapshot.is_done:
        part = snapshot.take(SLICE_S)
        if part is not None:
            yield part
        await anyio.lowlevel.checkpoint()


def _adopted(name: str, revision: int, definition: JsonObject | None) -> Event:
    return Event(
        type=ADOPTED, source=SOURCE, id=derived_id(ADOPTED, name, str(revision)), subject=f"automation/{name}",
        data={"name": name, "revision": revision, "definition": definition},
    )  # fmt: skip
