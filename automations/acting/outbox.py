"""The outbox: carries out the actions of stored decisions, each once, whatever dies in between.

It shares the stream of decisions with every other outbox. Each action has a key, ``<decision>/<place in the rule>``,
under which one of them claims it (``claim.py``). A failed action is tried again with growing pauses; the decision stays
with the broker meanwhile, so a wait outlives every process. After the last try it is a dead letter, until somebody
redrives or drops it.

Crashes: an action that was claimed and not finished is done again by whoever takes it over, under the same key. The
receiving side can tell (see ``perform.py``); one that cannot may see it twice: when the process that did it died, was
stopped, or was cut off from the broker for longer than its claim holds, before it could note the outcome. A process that
is not stopped insists on noting what it has done, and does not do it again, however long the broker is away. A death is
no try: only an action that was being done each time is given up after some of them.

The rule engine of this process may hand its decisions over as soon as they are stored (``handover.py``); they are delivered
as well, and then settled as any other.

A decision or action that nobody can make sense of becomes a dead letter of its own, and does not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar

import anyio
import orjson
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from pydantic import ValidationError

from ...bus import Bus, Event, Recorded
from ...bus.consumer import Consumer
from ...bus.event import format_time
from ...bus.presence import Presence
from ...bus.subject import PREFIX
from ...clock import SYSTEM_CLOCK, Clock
from ...config import AutomationsConfig
from ...errors import BusUnavailable, DefinitionError, HarkError, StreamFull
from ...tracing import span
from ...vocabulary import JsonObject, draw, new_id
from ..action import Action, parse_stored_action, wait_before_retry_s
from ..folding.decision import RESOLVED, TRIGGERED
from ..folding.handover import CLAIMED_BY, Handover, Promises
from ..matching.expression import compile_expression
from ..problem import problems_of
from .action_state import (
    ACTION_SOURCE,
    ActionState,
    action_event,
    backoff_of,
    kind_of,
    number_of,
    said_of,
    timeout_of,
)
from .approval import ANSWERED, EXPIRED, Approvals
from .claim import BUCKET, KEEP_S, Claim, Claims, Over, kept_s
from .dead_letter import UNREADABLE_KEY
from .in_hand import InHand
from .outcome import Outcomes, bounded_decision, bounded_result
from .perform import ActionFailed, Firing, failure_of
from .room import Room
from .share import Places
from .waiting import delay_of

__all__ = ["Doer", "Outbox"]

log = logging.getLogger(__name__)

DURABLE = "outbox"
REDRIVEN = "action.redriven"
ACK_WAIT_S = 6.0
"""A process that has been silent for this long has lost its decisions to others."""
MAX_WAITING = 250_000
"""Decisions in hand or waiting for a retry, over all outboxes; beyond, new ones wait in the log, also those of other rules."""
MAX_IN_HAND = 128
"""Decisions of one outbox that are carried out or wait for a place, if it has no more places: each has its turn in the loop of
this process, and is kept alive at the broker."""
BEGIN_BACK_S = KEEP_S / 2
"""How far back the very first outbox begins. The rule engine may have decided before it; whatever has been done since
is remembered."""
_NO_ACTIONS = b'"actions":[]'
_LONGEST_BACKOFF_S = 15 * 60.0
_GRACE_S = 5.0
_NO_DECISION = (HarkError, ValueError, TypeError, KeyError, AttributeError)
"""What reading somebody's message that is no decision comes to: told in a line, while anything else is told whole."""

T = TypeVar("T")


class Doer(Protocol):
    """Does actions; ``Performers`` is the real one."""

    async def perform(self, action: Action, firing: Firing, *, key: str) -> JsonObject: ...

    async def context(self, firing: Firing, action: Action) -> dict[str, Any]: ...

    def redact(self, text: str) -> str: ...


@dataclass(frozen=True, slots=True)
class _Handed:
    """A decision that was handed over, at its place in the log."""

    seq: int
    event: Event

    @property
    def firing(self) -> Firing:
        """The decision as whoever it is delivered to reads it, now or after our death."""
        return Firing.of(self.event, self.seq, orjson.loads(orjson.dumps(self.event.data)))


class Outbox(AsyncContextManagerMixin):
    """The service: any number may run side by side. Leaving gives running actions a few seconds to finish.

    Args:
        performers: does the actions; entered and left by whoever made it.
        handover: where the rule engine of this process finds us.
    """

    def __init__(
        self,
        bus: Bus,
        performers: Doer,
        config: AutomationsConfig,
        clock: Clock = SYSTEM_CLOCK,
        *,
        ack_wait_s: float = ACK_WAIT_S,
        handover: Handover | None = None,
    ) -> None:
        self._bus, self._performers, self._config, self._clock = bus, performers, config, clock
        self._bucket, self._approvals = bus.bucket(BUCKET), Approvals(bus, clock)
        self._ack_wait_s = ack_wait_s
        self._name = new_id()
        self._places = Places(config.action_concurrency)
        self._in_hand = InHand()
        self._handover = handover or Handover()
        self._promises = Promises(hold_s=ack_wait_s / 6)
        self._beginning: TaskGroup | None = None
        self._suspects = anyio.CapacityLimiter(1)
        self._running: set[str] = set()
        self._presence, self._room = Presence(bus.connection), Room()
        gone, dead = self._handover.gone, self._handover.dead
        self._claims = Claims(bus, clock, name=self._name, holds_s=ack_wait_s, gone=gone, dead=dead)
        self._outcomes = Outcomes(bus, clock, self._room)

    @property
    def in_hand(self) -> int:
        """How many decisions are being carried out by this one."""
        return len(self._in_hand)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        filters = [PREFIX + type_ for type_ in (TRIGGERED, RESOLVED, REDRIVEN, *ANSWERED, EXPIRED)]
        async with (
            self._handover.lasting(self._name),
            self._presence.answering(self._name, self._has),
            self._bus.log.consume(
                DURABLE,
                filters,
                ack_wait_s=self._ack_wait_s,
                max_ack_pending=MAX_WAITING,
                take_back=bool(self._handover.dead),
                in_hand=min(max(MAX_IN_HAND, 2 * self._config.action_concurrency), MAX_WAITING),
                deliver_since=self._clock.now() - timedelta(seconds=BEGIN_BACK_S),
            ) as consumer,
            anyio.create_task_group() as tg,
        ):
            fetching = anyio.CancelScope()
            tg.start_soon(self._fetch, consumer, tg, fetching)
            tg.start_soon(self._keep_alive)
            self._beginning = tg
            self._handover.enter(self)
            try:
                yield self
            finally:
                self._handover.leave(self)
                fetching.cancel()
                with anyio.move_on_after(_GRACE_S, shield=True):
                    await self._in_hand.empty()
                tg.cancel_scope.cancel()

    async def _fetch(self, consumer: Consumer, tg: TaskGroup, scope: anyio.CancelScope) -> None:
        with scope:
            async for item in consumer:
                if _has_nothing_to_do(item.recorded):
                    # At once: when many rules that only watch fire together, the one that acts comes behind them.
                    await item.ack()
                    continue
                # In hand from here on: kept alive even while it waits for a place.
                if await self._in_hand.deliver(item):
                    tg.start_soon(self._carry_out, item.recorded)

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(self._ack_wait_s / 3)
            await self._in_hand.keep_alive()

    # --- what the rule engine hands over --------------------------------------------------------------

    def promise(self, decision: str) -> str | None:
        """Say that we would carry out a decision at once, with our name, if a place is free."""
        if (
            len(self._in_hand) + self._promises.places >= self._config.action_concurrency
            or self._room.is_closed
        ):
            return None
        self._promises.give(decision)
        return self._name

    def take(self, decision: Event, seq: int) -> None:
        """Carry out a promised decision that has been stored, unless it has been delivered already."""
        if self._beginning is None or not self._promises.keep(decision.id):
            return
        if self._in_hand.hand_over(seq, decision.id):
            self._beginning.start_soon(self._carry_out, _Handed(seq, decision))

    def release(self, decision: str) -> None:
        """Give up a promise: who the decision is delivered to, if it is, claims it."""
        self._promises.release(decision)

    def _has(self, key: str) -> bool:
        return key in self._running or key.rpartition("/")[0] in self._promises

    # --- carrying out ---------------------------------------------------------------------------------

    async def _carry_out(self, recorded: Recorded | _Handed) -> None:
        seq = recorded.seq
        try:
            delay_s = await self._firing_with_room(recorded)
            await self._in_hand.settle(seq, delay_s)
        except BusUnavailable as exc:
            log.warning("outbox.waits_for_broker", extra={"seq": seq, "error": str(exc)})
            await self._in_hand.settle(seq, 1.0)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                # Another outbox need not wait for our silence to be noticed.
                await self._in_hand.settle(seq, 0.0)
            raise
        except Exception as exc:
            # One decision that cannot be read must not stop all the others.
            log.error(
                "outbox.unreadable",
                extra={"seq": seq, "error": repr(exc)},
                exc_info=not isinstance(exc, _NO_DECISION),
            )
            await self._unreadable(recorded, exc)
            await self._in_hand.refuse(seq, "it cannot be read")
        finally:
            self._in_hand.drop(seq)

    # --- one decision ---------------------------------------------------------------------------------

    async def _firing_with_room(self, recorded: Recorded | _Handed) -> float | None:
        """``_firing``, again once the broker has room for its notes. It stays in hand meanwhile, not to come again and again."""
        while True:
            looks = await self._room.wait()
            try:
                delay_s = await self._firing(recorded)
            except StreamFull as exc:
                self._room.close(exc, looked=looks)
                continue
            if looks:  # it may have had nothing to note: then the next one finds out
                self._room.open()
            return delay_s

    async def _firing(self, recorded: Recorded | _Handed) -> float | None:
        """Do what is to be done now of a decision; return when to come back (s), None when all is over."""
        event = recorded.event
        if event.type == REDRIVEN:
            return await self._redriven(event)
        if event.type == EXPIRED and not await self._approvals.expire(
            str(event.subject or "").removeprefix("action/")
        ):
            return None  # somebody had answered
        firing = recorded.firing if isinstance(recorded, _Handed) else Firing.of(event, recorded.seq)
        self._promises.keep(event.id)
        try:
            return await self._actions(firing)
        finally:
            self._promises.end(event.id)

    async def _actions(self, firing: Firing) -> float | None:
        """Bring all actions of a decision forward; return when to come back (s), None when all is over."""
        actions = firing.data.get("actions") or []
        if not isinstance(actions, list):
            raise DefinitionError(f"the actions of a decision are a list, not {type(actions).__name__}")
        if not actions:
            return None
        if len(actions) == 1:
            return await self._action(firing, actions[0], 0)
        waits: list[float] = []
        away: list[BusUnavailable] = []

        async def one(i: int, written: Any) -> None:
            try:
                wait_s = await self._action(firing, written, i)
            except BusUnavailable as exc:
                away.append(exc)  # the others are in the middle of something, perhaps
                return
            if wait_s is not None:
                waits.append(wait_s)

        async with anyio.create_task_group() as tg:
            for i, written in enumerate(actions):
                tg.start_soon(one, i, written)
        if away:
            raise away[0]
        return min(waits) if waits else None

    async def _redriven(self, event: Event) -> float | None:
        data: Any = event.data
        key = str(data["key"])
        if key.startswith("sink-") or data.get("kind") == "task":
            return None  # an event for a sink: the forwarder's; a background task: its workers'
        entry = await self._bucket.get(key)
        if entry is None:
            return None
        state = ActionState.from_json(entry.value)
        record = await self._bus.log.get(state.seq)
        if record is not None:
            firing = Firing.of(record.event, record.seq)
        elif state.decision is not None:
            firing = Firing.of(Event.from_dict(state.decision), state.seq)
        else:
            log.error("outbox.decision_gone", extra={"key": key, "seq": state.seq})
            return None
        index = int(key.rpartition("/")[2])
        return await self._action(firing, firing.data["actions"][index], index, round=int(data["round"]))

    async def _action(self, firing: Firing, written: Any, index: int, *, round: int = 0) -> float | None:
        """Bring one action forward; return when to come back, None when it is over."""
        key = f"{firing.event.id}/{index}"
        if key in self._running:
            return self._ack_wait_s  # it came a second time while we are at it
        # From here on we say that we have it, to whoever finds the claim before we know that it is ours.
        self._running.add(key)
        try:
            return await self._bring_forward(key, firing, written, round=round)
        except BusUnavailable:
            raise
        except Exception as exc:  # what stands in the way is this action's, not its siblings'
            log.exception("outbox.action_unmanageable", extra={"key": key})
            await self._bury(key, kind_of(written), firing, exc, round=round)
            return None
        finally:
            self._running.discard(key)

    async def _bring_forward(self, key: str, firing: Firing, written: Any, *, round: int) -> float | None:
        if not round and (delay_s := delay_of(written)):
            wait_s = delay_s - (self._clock.now() - firing.event.time).total_seconds()
            if wait_s > 0:
                return wait_s
        failure: Exception | None = None
        # First the place, then the claim: what is claimed is done at once, and few are in the middle at a death.
        async with self._places.one_of(firing.automation) as put_off_s:
            if put_off_s is not None:
                return put_off_s
            named = firing.data.get(CLAIMED_BY)
            # The one in the log may name another, if two rule engines have made it and ours comes second.
            if not round and named == self._name and self._promises.is_claim(firing.event.id):
                claim: Claim | Over | float = self._claims.promised(key, firing.seq)
            else:
                claim = await self._claims.take(
                    key, firing.seq, round=round, named=named if isinstance(named, str) else None,
                    again=self._in_hand.has_come_again(firing.seq), keep_s=kept_s(firing.data),
                )  # fmt: skip
            if isinstance(claim, float):
                return claim
            if isinstance(claim, Over):
                if claim.state is not None:
                    await self._outcomes.say_again(claim.state)
                return None
            # One of those that were in the middle kills; it must not count against the others again and again.
            async with self._suspects if claim.state.deaths > 1 else nullcontext():
                begun = await self._claims.begin(key, claim)
                if begun is None:
                    return self._ack_wait_s
                if begun.revision:
                    self._room.open()
                if not begun.fresh or begun.state.round:
                    firing = replace(firing, repeated=True)
                began = anyio.current_time()
                try:
                    word, outcome = await self._perform(key, written, firing, begun.state)
                except BusUnavailable:
                    # Ours, not the action's fault; the claim stays and is taken up again when the broker is back.
                    raise
                except anyio.get_cancelled_exc_class():
                    with anyio.move_on_after(1.0, shield=True):
                        await self._claims.stop(key, begun)
                    raise
                except Exception as exc:  # somebody else's code: whatever an action runs into is its outcome
                    failure, took_s = exc, anyio.current_time() - began
        state, revision = begun.state, begun.revision
        if failure is not None:
            return await self._failed(failure, key, written, firing, state, revision, took_s)
        await self._outcomes.finish(
            key, replace(state, state=word, outcome=outcome.to_dict()), revision, outcome,
            keep_s=kept_s(firing.data),
        )  # fmt: skip
        return None

    async def _bury(self, key: str, kind: str, firing: Firing, exc: Exception, *, round: int) -> None:
        """Make a dead letter of an action that could not even be claimed, or its outcome not be noted."""
        now, error = self._clock.now(), self._error_of(exc)
        dead = ActionState("dead", 1, round, self._name, now, firing.seq, error=error)
        event = action_event(
            "dead-lettered", firing, key=key, kind=kind, state=dead, now=now, error=error, duration_s=0.0
        )
        await self._outcomes.say(event, after=firing.seq, again=True)
        dead = replace(dead, outcome=event.to_dict(), decision=bounded_decision(firing.event))

        try:
            await self._outcomes.keep_dead(key, dead)
        except HarkError as refused:
            # Such as a key that no bucket takes: the log has said it, and there is nothing to try again.
            log.error("outbox.no_dead_letter", extra={"key": key, "error": str(refused)})

    async def _unreadable(self, recorded: Recorded | _Handed, exc: Exception) -> None:
        """Make a dead letter of a decision that cannot be read, which a person can see and drop."""
        seq = recorded.seq
        try:
            firing = Firing.of(recorded.event, seq)
        except (HarkError, ValueError):
            firing = Firing(Event(type=TRIGGERED, source=ACTION_SOURCE, id=f"unreadable-{seq}"), seq, "", {})
        now, error = self._clock.now(), self._error_of(exc)
        key = f"{UNREADABLE_KEY}{seq}/0"  # its id may be that of another, or no key at all
        dead = ActionState("dead", 0, 0, self._name, now, seq, error=error)
        event = action_event(
            "dead-lettered", firing, key=key, kind="unknown", state=dead, now=now, error=error,
            duration_s=0.0, seq=seq,
        )  # fmt: skip
        try:
            await self._outcomes.say(event, after=seq, again=True)
            await self._outcomes.keep_dead(key, replace(dead, outcome=event.to_dict()))
        except HarkError as refused:
            log.error("outbox.not_said", extra={"seq": seq, "error": str(refused)})

    def _error_of(self, exc: Exception) -> str:
        if isinstance(exc, HarkError):
            error = f"{exc}{f' ({exc.hint})' if exc.hint else ''}"
        else:
            error = f"{type(exc).__name__}: {exc}"
        return self._performers.redact(error)[:2000]

    async def _perform(self, key: str, written: Any, firing: Firing, state: ActionState) -> tuple[str, Event]:
        """Do an action; return how it stands now and the event that says so. Raises whatever it ran into."""
        began, kind = anyio.current_time(), kind_of(written)
        if state.deaths >= self._config.action_deaths:
            raise ActionFailed(
                f"{state.deaths} processes, one after the other, died or were killed while they did this action, so "
                "nobody tries it any more",
                again=False,
                hint="find out what ends them (memory, a crash in a template or library), then `hark dlq redrive`",
            )
        try:
            action: Action = parse_stored_action(written)
        except ValidationError as exc:
            problem = problems_of(exc)[0]
            raise ActionFailed(f"the action cannot be read: {problem}", again=False) from exc
        except ValueError as exc:
            raise ActionFailed(f"the action cannot be read: {exc}", again=False) from exc
        if action.if_ is not None and not await self._wanted(action, firing):
            return "skipped", action_event(
                "skipped", firing, key=key, kind=kind, state=state, now=self._clock.now(), reason="if"
            )
        with (
            anyio.move_on_after(action.timeout or self._config.action_timeout_s) as in_time,
            span(
                f"action {kind}",
                parent=firing.event.traceparent,
                attributes={"hark.automation": firing.automation, "hark.action.attempt": state.attempt},
            ),
        ):
            result = await self._performers.perform(action, firing, key=key)
        if in_time.cancelled_caught:
            raise TimeoutError  # what `fail_after` does, at twice the price
        log.info(
            "action.executed",
            extra={"automation": firing.automation, "kind": kind, "key": key, "attempt": state.attempt},
        )
        return "done", action_event(
            "executed", firing, key=key, kind=kind, state=state, now=self._clock.now(),
            duration_s=round_s(anyio.current_time() - began), result=bounded_result(result),
        )  # fmt: skip

    async def _wanted(self, action: Action, firing: Firing) -> bool:
        assert action.if_ is not None
        data = firing.data
        event = data.get("event")
        names = {
            "key": data.get("key"),
            "count": data.get("count"),
            "automation": {"name": firing.automation},
        }
        return compile_expression(action.if_).holds(event if isinstance(event, dict) else {}, names)

    # --- how it ends ----------------------------------------------------------------------------------

    async def _failed(
        self,
        exc: Exception,
        key: str,
        written: Any,
        firing: Firing,
        state: ActionState,
        revision: int,
        took_s: float,
    ) -> float | None:
        """Note a failed try; return when the next one is due, None if there is none."""
        kind = kind_of(written)
        again, asked_s = failure_of(exc)
        if isinstance(exc, TimeoutError):
            error = f"{said_of(written)}: not done within {timeout_of(written, self._config):g} s"
        else:
            error = self._error_of(exc)
            if not isinstance(exc, HarkError):
                log.error("outbox.action_broke", exc_info=exc, extra={"key": key})
        retries = number_of(written, "retries", self._config.action_retries)
        now = self._clock.now()
        more: JsonObject = {"error": error, "duration_s": round_s(took_s)}
        if again and state.attempt <= retries:
            wait_s = wait_before_retry_s(
                state.attempt,
                base_s=backoff_of(written),
                cap_s=_LONGEST_BACKOFF_S,
                jitter=draw(),
            )
            wait_s = max(wait_s, asked_s or 0.0)
            next_at = now + timedelta(seconds=wait_s)
            waiting = replace(state, state="waiting", at=now, next_at=next_at, error=error)
            log.warning(
                "action.failed",
                extra={"automation": firing.automation, "kind": kind, "key": key, "error": error},
            )
            if not await self._outcomes.note(key, waiting, revision):
                return self._ack_wait_s
            event = action_event(
                "failed",
                firing,
                key=key,
                kind=kind,
                state=state,
                now=now,
                next_at=format_time(next_at),
                **more,
            )
            await self._outcomes.say(event, after=firing.seq)
            return wait_s
        event = action_event("failed", firing, key=key, kind=kind, state=state, now=now, next_at=None, **more)
        await self._outcomes.say(event, after=firing.seq)
        event = action_event("dead-lettered", firing, key=key, kind=kind, state=state, now=now, **more)
        log.error(
            "action.dead_lettered",
            extra={"automation": firing.automation, "kind": kind, "key": key, "error": error},
        )
        dead = replace(
            state,
            state="dead",
            at=now,
            error=error,
            outcome=event.to_dict(),
            decision=bounded_decision(firing.event),
        )
        if not await self._outcomes.note(key, dead, revision):
            return self._ack_wait_s
        await self._outcomes.say(event, after=firing.seq)
        return None


def round_s(seconds: float) -> float:
    return round(seconds, 6)


def _has_nothing_to_do(recorded: Recorded) -> bool:
    """Whether a record is a decision of a rule without actions. What cannot be read has: it is to be said."""
    if _NO_ACTIONS not in recorded.raw:
        return False
    try:
        row = orjson.loads(recorded.raw)
        return row["type"] in (TRIGGERED, RESOLVED) and row["data"]["actions"] == []
    except (ValueError, KeyError, TypeError):
        return False
