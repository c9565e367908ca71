"""Dead letters: actions that were given up, and task runs of ``delay``, to be tried again or dropped by a person."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import anyio

from ...bus import Bus, Event
from ...clock import SYSTEM_CLOCK, Clock
from ...engine.background_tasks.dead_task import PREFIX as DEAD_TASK
from ...engine.background_tasks.dead_task import DeadTasks
from ...errors import BusUnavailable, GuardFailed, HarkError, RefusedError, UnknownName
from ..folding.decision import TRIGGERED
from .action_state import ACTION_SOURCE, ActionState, action_event, kind_of
from .approval import Approvals
from .claim import BUCKET, kept_s
from .perform import Firing

__all__ = ["SINK_KEY", "UNREADABLE_KEY", "DeadLetter", "DeadLetters", "SeenTo", "forward_firing"]

SINK_KEY = "sink-"
"""What the keys of events that a sink did not take begin with; decisions have ids of another form."""


UNREADABLE_KEY = "unreadable-"
"""What the keys begin with of decisions that nobody can read, followed by their sequence: they can be dropped, no more."""


def forward_firing(sink: str, event: Event, seq: int) -> Firing:
    """Return the forwarding of an event to a sink, in the form of a rule's decision."""
    return Firing(event, seq, f"sink:{sink}", {"actions": [{"forward": sink}]})


_DEAD = ("dead", "dropping")
"""Dropping: given up by somebody who perhaps died before the log could say so."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An action that was given up. ``key`` names it."""

    key: str
    automation: str
    kind: str
    error: str
    attempt: int
    at: datetime
    seq: int


@dataclass(frozen=True, slots=True)
class SeenTo:
    """What became of a dead letter among many. ``seq``: of the event that says so; or why it was left as it is."""

    key: str
    seq: int | None = None
    error: HarkError | None = None


_AT_ONCE = 32
"""Letters of many that are seen to at once: each is some questions to the broker, which others ask as well."""


class DeadLetters:
    """The door to dead letters. Stateless."""

    def __init__(self, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus, self._clock = bus, clock
        self._bucket = bus.bucket(BUCKET)

    async def list(self) -> list[DeadLetter]:
        """Return the dead letters there are, oldest first."""
        found = []
        for entry in await self._bucket.entries():
            if not _is_key(entry.key):
                continue  # what the notifier keeps in the same bucket
            try:
                state = ActionState.from_json(entry.value)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the outbox makes a dead letter of it when it comes to it
            if state.state not in _DEAD:
                continue
            outcome = state.outcome or {}
            data = outcome.get("data")
            about = data if isinstance(data, dict) else {}
            found.append(
                DeadLetter(
                    entry.key, str(about.get("automation", "")), str(about.get("kind", "")), state.error or "",
                    state.attempt, state.at, state.seq,
                )
            )  # fmt: skip
        return sorted(found, key=lambda d: (d.at, d.key))

    async def redrive(self, key: str) -> int:
        """Have the action tried again, with all its retries; return the sequence of ``action.redriven``.

        Asking twice is asking once, until it has failed again.

        Raises:
            UnknownName: there is no such dead letter.
            RefusedError: that action is not dead, or nobody can read the decision it is of.
        """
        if key.startswith(DEAD_TASK):
            return await DeadTasks(self._bus).redrive(key)
        state, _, firing = await self._find(key)
        if key.startswith(UNREADABLE_KEY):
            raise RefusedError(
                f"the decision behind {key!r} cannot be read, so there is no action to try again: {state.error}",
                hint=f"once you have seen what it is (`hark dlq show {key}`), `hark dlq drop {key}`",
            )
        again = replace(state, round=state.round + 1, attempt=0)
        event = action_event(
            "redriven", firing, key=key, kind=_kind(firing, key), state=again, now=self._clock.now()
        )
        return (await self._bus.log.append_once(event, after=state.seq)).seq

    async def drop(self, key: str) -> int:
        """Give the action up for good; return the sequence of ``action.dropped``. Errors as ``redrive``.

        It is set aside first, then the log says so: of a crash in between, what is left can be dropped again. The
        question of an ``approve`` is closed with it: nobody may have been told of it, and no answer is not one then.
        """
        if key.startswith(DEAD_TASK):
            return await DeadTasks(self._bus).drop(key)
        state, revision, firing = await self._find(key, _DEAD)
        kind = _kind(firing, key)
        event = action_event("dropped", firing, key=key, kind=kind, state=state, now=self._clock.now())
        going = replace(state, state="dropping")
        try:
            # From here on nobody tries it again, so that what the log says next holds.
            revision = await self._bucket.update(key, going.to_json(), revision=revision)
        except GuardFailed as exc:
            raise RefusedError(
                f"the dead letter {key!r} is being tried again or dropped at this moment"
            ) from exc
        if kind == "approve":
            await Approvals(self._bus, self._clock).drop(key)
        seq = (await self._bus.log.append_once(event, after=state.seq)).seq
        dropped = replace(
            state, state="dropped", at=self._clock.now(), outcome=event.to_dict(), decision=None
        )
        with suppress(GuardFailed):  # somebody else has dropped it as well
            await self._bucket.update(key, dropped.to_json(), revision=revision, ttl_s=kept_s(firing.data))
        return seq

    async def redrive_each(self, keys: Sequence[str]) -> Sequence[SeenTo]:
        """``redrive`` many; return what became of each, in the same order.

        Raises:
            BusUnavailable: the broker went away. Some may be redriven; asking again is asking once.
        """
        return await _each(keys, self.redrive)

    async def drop_each(self, keys: Sequence[str]) -> Sequence[SeenTo]:
        """``drop`` many; as ``redrive_each``."""
        return await _each(keys, self.drop)

    async def _find(self, key: str, states: Collection[str] = ("dead",)) -> tuple[ActionState, int, Firing]:
        entry = await self._bucket.get(key) if _is_key(key) else None
        if entry is None:
            raise UnknownName("dead letter", key, known=[letter.key for letter in await self.list()])
        state = ActionState.from_json(entry.value)
        if state.state not in states:
            raise RefusedError(f"the action {key!r} is {state.state}, not a dead letter")
        if key.startswith(SINK_KEY) and state.decision is not None:
            name = str((state.outcome or {}).get("data", {}).get("sink", ""))  # type: ignore[union-attr]
            return state, entry.revision, forward_firing(name, Event.from_dict(state.decision), state.seq)
        if key.startswith(UNREADABLE_KEY):
            about: Any = (state.outcome or {}).get("data", {})
            of = Event(type=TRIGGERED, source=ACTION_SOURCE, id=str(about["firing"]))
            return state, entry.revision, Firing(of, state.seq, str(about["automation"]), {})
        record = await self._bus.log.get(state.seq)
        if record is not None:
            return state, entry.revision, Firing.of(record.event, record.seq)
        if state.decision is None:
            raise RefusedError(f"the decision behind {key!r} has left the log; drop it")
        return state, entry.revision, Firing.of(Event.from_dict(state.decision), state.seq)


async def _each(keys: Sequence[str], see_to: Callable[[str], Awaitable[int]]) -> list[SeenTo]:
    found: dict[str, SeenTo] = {}
    away: list[BusUnavailable] = []
    places = anyio.CapacityLimiter(_AT_ONCE)

    async def one(key: str) -> None:
        async with places:
            if away:
                return
            try:
                found[key] = SeenTo(key, seq=await see_to(key))
            except BusUnavailable as exc:
                away.append(exc)
            except HarkError as exc:  # that one's: somebody else was quicker, or its decision is gone
                found[key] = SeenTo(key, error=exc)

    async with anyio.create_task_group() as tg:
        for key in dict.fromkeys(keys):
            tg.start_soon(one, key)
    if away:
        raise away[0]
    return [found[key] for key in keys]


def _is_key(key: str) -> bool:
    decision, _, index = key.rpartition("/")
    return bool(decision) and index.isdecimal() and all(c.isalnum() or c in "-_=" for c in decision)


def _kind(firing: Firing, key: str) -> str:
    if key.startswith(SINK_KEY):
        return "forward"
    actions = firing.data.get("actions") or []
    index = int(key.rpartition("/")[2])
    return kind_of(actions[index]) if index < len(actions) else "unknown"
