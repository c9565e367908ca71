"""Storing what the fold decides: in order, each decision once, while the fold goes on.

A few decisions are sent to the broker at once, by whoever folds: each turn of the loop in between is one in which all that
others have to do comes first. What is decided until the answer comes is stored together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import orjson

from ...bus import Bus, Event
from ...bus.event import readable
from ...bus.nesting import nests_too_deeply
from ...bus.subject import PREFIX
from ...errors import BusUnavailable, EventTooLarge
from ...tracing import begin_span
from ...vocabulary import JsonObject
from .decision import (
    DISABLED,
    RESOLVED,
    SUPPRESSED,
    TRIGGERED,
    Decision,
    decision_event,
    disabled_event,
    is_stop,
    within,
)  # fmt: skip
from .handover import CLAIMED_BY, Handover
from .turn import Turn

if TYPE_CHECKING:
    from ...bus.arrival import Arrival

__all__ = ["DECISIONS", "Storing"]

log = logging.getLogger(__name__)

DECISIONS = (PREFIX + TRIGGERED, PREFIX + SUPPRESSED, PREFIX + RESOLVED, PREFIX + DISABLED)
_BACK_OFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_FEW = 8
"""Decisions that are written and sent in one go, in half a millisecond."""
_MOST_UNSTORED = 1_000
"""Decisions that may wait to be stored while events after them are folded."""
_ROW_BYTES = 256 * 1024
"""A larger event, or one that nests more deeply than users' may, is only named by the decisions that rest on it."""


class Storing:
    """The decisions of one term on their way to the log. ``run`` it; ended, it promises nothing any more.

    Attributes:
        seq: all that was decided up to here is in the log.

    Args:
        after: where the term begins.
        decided: ids of what an earlier leader has decided behind that, and stored.
    """

    def __init__(self, bus: Bus, handover: Handover, *, after: int, decided: set[str] | None = None) -> None:
        self._bus, self._handover = bus, handover
        self.seq = self._given = after
        self._decided = decided or set()
        self._unstored: list[Decision] = []
        self._in_hand: list[Decision] = []  # being stored
        self._sent: list[Event] | None = None  # how that was written, if it was sent at once
        self._unsure: list[Event] | None = None  # the same, if it may be stored or not
        self._reaches = after  # where we are once what is in hand is stored
        self._to_store = anyio.Event()
        self._waiting: list[tuple[Callable[[], bool], anyio.Event]] = []

    # --- what the fold gives ---------------------------------------------------------------------------

    def add(self, decisions: Sequence[Decision], *, seq: int) -> bool:
        """Take what is decided by now, with the place of the fold; return whether ``run`` needs a turn to begin with it."""
        self._unstored += decisions
        self._given = seq
        if not self._in_hand:
            self._go_on()
        return bool(self._unstored) and not self._in_hand

    def caught_up(self) -> None:
        """Note that nothing of what is decided from here on can have been decided before."""
        self._decided = set()

    async def room(self) -> None:
        """Return once so few decisions wait that more may come."""
        if len(self._unstored) > _MOST_UNSTORED:
            await self.until(lambda: len(self._unstored) <= _MOST_UNSTORED)

    async def reached(self, seq: int) -> None:
        """Return once all that was decided up to ``seq`` is stored."""
        await self.until(lambda: self.seq >= seq)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once ``holds()``. It is asked each time that something was folded or stored, and has to be cheap."""
        if holds():
            return
        waiting = holds, anyio.Event()
        self._waiting.append(waiting)
        try:
            await waiting[1].wait()
        finally:
            self._waiting.remove(waiting)

    def _go_on(self) -> None:
        """Begin to store what has gathered. Nothing is in hand."""
        if not self._unstored:
            self._advance(self._given)
        elif not self._send():
            self._to_store.set()

    def _advance(self, seq: int) -> None:
        self.seq = seq
        for holds, event in self._waiting:
            if not event.is_set() and holds():
                event.set()

    def _take(self) -> list[Decision]:
        self._in_hand, self._unstored = self._unstored, []
        self._reaches = self._given
        return self._in_hand

    def _stored(self) -> None:
        """Note that what was in hand is stored."""
        self._in_hand, self._sent, self._unsure = [], None, None
        self._advance(self._reaches)
        self._go_on()

    # --- a few, at once --------------------------------------------------------------------------------

    def _send(self) -> bool:
        """Send what has gathered, if it is little and nothing has to be waited for; return whether it was sent."""
        decisions = self._unstored
        if (
            len(decisions) > _FEW
            or self._decided
            or not all(d.row is not None or not d.refs for d in decisions)
        ):
            return False
        is_sent, events, whole = False, list[Event](), dict[int, bool]()
        try:
            for decision in decisions:
                events += self._events_of(decision, decision.row, whole)
            messages = [self._bus.log.message(event, None) for event in events]
            is_sent = self._bus.log.store_nowait(messages, self._on_answers)
        except EventTooLarge:
            pass  # it can be made shorter
        finally:
            if not is_sent:
                self._release(decisions)
        if is_sent:
            self._sent = events
            self._take()
        return is_sent

    def _on_answers(self, answers: list[Arrival | None]) -> None:
        decisions, events = self._in_hand, self._sent
        if events is None:
            return  # the term has ended
        places = self._bus.log.places_in(answers)
        if places is None:
            self._unsure = events
            self._to_store.set()
            return
        for event, seq in zip(events, places, strict=True):
            self._handover.stored(event, seq)
        self._release(decisions)
        self._stored()
        # Behind what was handed over, which has its turn first.
        asyncio.get_running_loop().call_soon(_tell, decisions)

    # --- as many as there are --------------------------------------------------------------------------

    async def run(self) -> None:
        """Store what is not sent at once, for ever."""
        try:
            async with anyio.create_task_group() as beside:
                while True:
                    await self._to_store.wait()
                    self._to_store = anyio.Event()
                    if self._unsure is not None:
                        await self._append(self._unsure, were_sent=True)
                    elif self._unstored and not self._in_hand:
                        await self._store(self._take())
                    else:
                        continue
                    # Beside: what is decided next need not wait for lines.
                    beside.start_soon(_tell_in_turns, self._in_hand)
                    self._stored()
        finally:
            self._sent = None
            self._release(self._in_hand)

    async def _store(self, decisions: Sequence[Decision]) -> None:
        """Append decisions; each is stored once, whatever is lost on the way."""
        whole: dict[int, bool] = {}
        events: list[Event] = []
        turn = Turn()
        try:
            for decision in decisions:
                row = decision.row
                if row is None and decision.refs and decision.id not in self._decided:
                    record = await self._bus.log.get(decision.refs[-1].seq)
                    row = orjson.loads(record.raw) if record is not None else None
                events += self._events_of(decision, row, whole)
                if turn.is_over:
                    await turn.pass_on()
            await self._append(events)
        finally:
            self._release(decisions)  # what has not been handed over is for the broker to deliver

    def _release(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            self._handover.release(decision.id)

    async def _append(self, events: list[Event], *, were_sent: bool = False) -> None:
        """Append events. ``were_sent``: once already, and they may be stored or not."""
        tries = 0
        while events:
            if were_sent:
                for event in events:
                    self._handover.release(event.id)
                events = [_unclaimed(e) for e in events]
                landed: set[str] | None = None
                while landed is None:
                    await anyio.sleep(_BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)])
                    tries += 1
                    # Longer than the broker remembers ids, perhaps: look for what has landed before anything is sent again.
                    landed = await self._landed()
                events = [e for e in events if e.id not in landed]
            try:
                stored = await self._bus.log.append_many(events)
                for event, at in zip(events, stored, strict=True):
                    if not at.duplicate:  # which may name another outbox
                        self._handover.stored(event, at.seq)
                return
            except EventTooLarge as exc:
                shorter = [within(e, exc.limit_bytes) for e in events]
                if all(new is old for new, old in zip(shorter, events, strict=True)):
                    raise
                events, were_sent = shorter, False
            except BusUnavailable as exc:
                log.warning("automations.waits_for_broker", extra={"error": str(exc)})
                were_sent = True

    async def _landed(self) -> set[str] | None:
        """Return which decisions stand in the log behind our place; None if the broker does not say."""
        try:
            async with self._bus.log.read(DECISIONS, after=self.seq) as batches:
                return {r.event.id async for batch in batches for r in readable(batch.records)}
        except BusUnavailable:
            return None

    # --- how they are written --------------------------------------------------------------------------

    def _events_of(
        self, decision: Decision, row: dict[str, Any] | None, whole: dict[int, bool]
    ) -> list[Event]:
        """Return the events that say a decision, without those an earlier leader has stored.

        Args:
            row: the event it rests on.
            whole: by identity, whether an event at hand is small enough to stand in the decisions that rest on it.
        """
        events = []
        stops = disabled_event(decision)
        if stops is not None and stops.id not in self._decided:
            events.append(stops)
        if decision.id in self._decided:
            return events
        fits = False
        if row is not None and row is decision.row:
            # Many rules may fire at one event: it is measured once.
            known = whole.get(id(row))
            fits = whole[id(row)] = _fits(row) if known is None else known
        elif row is not None:
            fits = _fits(row)
        acts = bool(decision.actions) and decision.what != "suppressed"
        claimed_by = self._handover.promise(decision.id) if acts else None
        event = decision_event(decision, row, with_row=fits, claimed_by=claimed_by)
        return [*events, _traced(decision, event)]


def _tell(decisions: Sequence[Decision]) -> None:
    """Say in this process's own log what has been decided and stored."""
    for decision in decisions:
        if is_stop(decision):
            log.warning(
                "automation.disabled", extra={"automation": decision.automation, "until": decision.until}
            )
        elif decision.what != "suppressed":
            log.info(
                f"automation.{decision.what}",
                extra={
                    "automation": decision.automation,
                    "key": decision.key,
                    "count": decision.count,
                    "decision": decision.id,
                },
            )


async def _tell_in_turns(decisions: Sequence[Decision]) -> None:
    turn = Turn()
    for decision in decisions:
        if turn.is_over:
            await turn.pass_on()
        _tell([decision])


def _unclaimed(event: Event) -> Event:
    """Return a decision that nobody has promised to carry out."""
    if not isinstance(event.data, dict) or CLAIMED_BY not in event.data:
        return event
    return event.replace(data={k: v for k, v in event.data.items() if k != CLAIMED_BY})


def _fits(row: JsonObject) -> bool:
    raw = orjson.dumps(row)
    return len(raw) <= _ROW_BYTES and not nests_too_deeply(raw, row, is_own=False)


def _traced(decision: Decision, event: Event) -> Event:
    """Return a decision's event as the child of the event it rests on, with a span of its own, where that is traced."""
    if decision.what == "suppressed":
        return event
    begun = begin_span(
        f"rule {decision.automation}",
        kind="consumer",
        parent=event.traceparent,
        attributes={
            "hark.automation": decision.automation,
            "hark.decision": decision.what,
            "hark.key": decision.key,
            "hark.count": decision.count,
        },
    )
    if begun is None:
        return event
    begun.end()
    return event.replace(traceparent=begun.traceparent)
