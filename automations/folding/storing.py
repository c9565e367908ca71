"""Storing what the fold decides: in order, each decision once, while the fold goes on.

A few decisions are sent to the broker at once, by whoever folds: each turn of the loop in between is one in which all that
others have to do comes first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
_MOST_SENT = 256
"""Decisions that are on their way when more are sent. What is decided while there are more is stored together."""
_FRESH_S = 0.05
"""For how long what is on its way may wait for its answer while more is sent behind it. A stream that changes its leader takes
longer: what is lost in that has nothing behind it that is not lost, too, and stands in the log in order when it is sent again."""
_MOST_UNSTORED = 1_000
"""Decisions that may wait to be stored while events after them are folded."""
_ROW_BYTES = 256 * 1024
"""A larger event, or one that nests more deeply than users' may, is only named by the decisions that rest on it."""


@dataclass(slots=True)
class _Sent:
    """Decisions that are in the log or on their way to it.

    Attributes:
        seq: the place of the fold when they were taken: all that was decided by then is in these or before them.
        at_s: when they were sent, by the clock of the process.
        was_sent: it has been tried, at least. is_stored: None until it is known.
    """

    decisions: list[Decision]
    events: list[Event]
    seq: int
    at_s: float
    was_sent: bool = False
    is_stored: bool | None = None


class Storing:
    """The decisions of one term on their way to the log. ``run`` it; ended, it promises nothing any more.

    More is sent before what was sent is answered, so that the one decision somebody waits for does not stand behind the answers
    to a hundred. All of it goes one way, on which nothing is overtaken; where answers fail, or take long, no more is sent until
    it is known what became of all that was.

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
        self._sent: deque[_Sent] = deque()
        self._on_way = 0  # decisions in these
        self._is_writing = self._has_ended = False
        self._to_do = anyio.Event()
        self._waiting: list[tuple[Callable[[], bool], anyio.Event]] = []

    # --- what the fold gives ---------------------------------------------------------------------------

    def add(self, decisions: Sequence[Decision], *, seq: int, more: bool = False) -> bool:
        """Take what is decided by now, with the place of the fold; return whether ``run`` needs a turn to begin with it.

        ``more``: this is called again within the turn. Behind what is on its way, a few are sent together then: a message
        costs as much to send as a decision to make.
        """
        self._unstored += decisions
        self._given = seq
        if more and self._sent and len(self._unstored) < _FEW:
            return False
        self._go_on()
        return bool(self._unstored) and not self._is_writing

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

    def _advance(self, seq: int) -> None:
        self.seq = seq
        for holds, event in self._waiting:
            if not event.is_set() and holds():
                event.set()

    # --- sending ---------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Send what has gathered, if that can be done now."""
        if self._has_ended:
            return  # the one that folds may get a last batch: whoever leads next decides that
        if not self._unstored:
            if not self._sent and not self._is_writing:
                self._advance(self._given)
        elif self._is_writing or not self._may_send():
            return  # what comes before it has to get on first
        elif len(self._unstored) > _FEW or any(d.row is None and d.refs for d in self._unstored):
            self._to_do.set()
        else:
            decisions, seq = self._take()
            self._send(decisions, self._written(decisions), seq)

    def _may_send(self) -> bool:
        sent = self._sent
        if not sent:
            return True
        if self._on_way >= _MOST_SENT or time.monotonic() - sent[0].at_s > _FRESH_S:
            return False
        return all(s.is_stored is not False for s in sent)

    def _take(self) -> tuple[list[Decision], int]:
        decisions, self._unstored = self._unstored, []
        return decisions, self._given

    def _send(self, decisions: list[Decision], events: list[Event], seq: int) -> None:
        # What is before it may have failed while it was written: then it is stored behind that.
        is_its_turn = self._may_send()
        sent = _Sent(decisions, events, seq, time.monotonic())
        self._sent.append(sent)
        self._on_way += len(decisions)
        try:
            messages = [self._bus.log.message(event, None) for event in events]
            sent.was_sent = (
                is_its_turn
                and bool(messages)
                and self._bus.log.store_nowait(messages, partial(self._on_answers, sent))
            )
        except EventTooLarge:
            pass  # it can be made shorter
        if not sent.was_sent:
            sent.is_stored = not events
            self._settle()

    def _on_answers(self, sent: _Sent, answers: list[Arrival | None]) -> None:
        if self._has_ended:
            return
        places = self._bus.log.places_in(answers)
        sent.is_stored = places is not None
        if places is not None:
            for event, seq in zip(sent.events, places, strict=True):
                self._handover.stored(event, seq)
            self._release(sent.decisions)
            # Behind what was handed over, which has its turn first.
            asyncio.get_running_loop().call_soon(_tell, sent.decisions)
        self._settle()
        self._go_on()

    def _settle(self) -> None:
        """Move on behind what is stored, as far as that is all; what has failed is for ``run``, once all is answered."""
        sent = self._sent
        while sent and sent[0].is_stored:
            self._drop_first()
        if sent and all(s.is_stored is not None for s in sent):
            self._to_do.set()

    async def run(self) -> None:
        """Do what takes longer, for ever."""
        try:
            while True:
                await self._to_do.wait()
                self._to_do = anyio.Event()
                if any(s.is_stored is False for s in self._sent):
                    if all(s.is_stored is not None for s in self._sent):
                        await self._insist()
                elif self._unstored:
                    self._is_writing = True
                    decisions, seq = self._take()
                    self._send(decisions, await self._written_in_turns(decisions), seq)
                    self._is_writing = False
                self._go_on()
        finally:
            self._has_ended = True
            for sent in self._sent:
                self._release(sent.decisions)

    async def _insist(self) -> None:
        """Store all that was not, however long it takes."""
        while self._sent:
            sent = self._sent[0]
            if not sent.is_stored:
                await self._append(sent.events, were_sent=sent.was_sent)
                self._release(sent.decisions)
                _tell(sent.decisions)
            self._drop_first()

    def _drop_first(self) -> None:
        first = self._sent.popleft()
        self._on_way -= len(first.decisions)
        self._advance(first.seq)

    def _release(self, decisions: Sequence[Decision]) -> None:
        """Take back the promises of what has not been handed over: it is for the broker to deliver."""
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

    def _written(self, decisions: Sequence[Decision]) -> list[Event]:
        """Return the events that say decisions which have at hand what they rest on."""
        events, whole = list[Event](), dict[int, bool]()
        try:
            for decision in decisions:
                events += self._events_of(decision, decision.row, whole)
        except BaseException:
            self._release(decisions)
            raise
        return events

    async def _written_in_turns(self, decisions: Sequence[Decision]) -> list[Event]:
        """Return the events that say decisions, however many, and look up in the log what they rest on."""
        events, whole, turn = list[Event](), dict[int, bool](), Turn()
        try:
            for decision in decisions:
                row = decision.row
                if row is None and decision.refs and decision.id not in self._decided:
                    record = await self._bus.log.get(decision.refs[-1].seq)
                    row = orjson.loads(record.raw) if record is not None else None
                events += self._events_of(decision, row, whole)
                if turn.is_over:
                    await turn.pass_on()
        except BaseException:
            self._release(decisions)
            raise
        return events

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
    """Say in this process's own log what has been decided and stored, a few in each turn of the loop."""
    if len(decisions) > _FEW:
        asyncio.get_running_loop().call_soon(_tell, decisions[_FEW:])
    for decision in decisions[:_FEW]:
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
