"""Noting how an action went: in its claim, for whoever takes it up, and in the log, for everybody.

What was done and is not noted would be done again, so everything here waits for the broker, however long it is away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import anyio
import orjson

from ...bus import Bus, Entry, Event
from ...clock import Clock
from ...errors import BusUnavailable, GuardFailed, StreamFull
from ...vocabulary import JsonObject
from .action_state import ActionState
from .claim import BUCKET
from .room import Room

__all__ = ["Outcomes", "bounded_decision", "bounded_result"]

log = logging.getLogger(__name__)

_INSIST_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses between two attempts, the last one again and again."""
_SAY_EACH = 15
"""Of so many attempts one is logged: every half minute, for each action that has been done and cannot be noted."""
_MAX_RESULT_BYTES = 64 * 1024
_MAX_DECISION_BYTES = 512 * 1024

T = TypeVar("T")


class Outcomes:
    """Notes what became of actions."""

    def __init__(self, bus: Bus, clock: Clock, room: Room) -> None:
        self._bus, self._clock, self._room = bus, clock, room
        self._bucket = bus.bucket(BUCKET)

    async def finish(
        self, key: str, state: ActionState, revision: int, event: Event, *, keep_s: float
    ) -> None:
        """Note the end of an action, for ``keep_s`` seconds, and say it."""
        state = replace(state, at=self._clock.now())
        if not await self.note(key, state, revision, ttl_s=keep_s):
            # We were thought dead and somebody took it over; it has been done, so the log shall say so once.
            log.warning("outbox.taken_over", extra={"key": key})
        await self.say(event, after=state.seq)

    async def note(self, key: str, state: ActionState, revision: int, *, ttl_s: float | None = None) -> bool:
        """Write how far an action has got; return False if somebody else has it now. Waits for the broker.

        Args:
            revision: of the claim; 0 for one that only the decision names.
        """
        value = state.to_json()

        async def write() -> bool:
            try:
                await self._bucket.update(key, value, revision=revision, ttl_s=ttl_s)
            except GuardFailed:
                entry = await self._bucket.get(key)
                return entry is not None and entry.value == value  # by ourselves: the answer was lost
            except StreamFull as exc:
                # Nothing was noted before a promised action began, so nobody may know yet.
                self._room.close(exc, looked=False)
                raise
            self._room.open()
            return True

        return await self._insist(write, key=key)

    async def say(self, event: Event, *, after: int, again: bool = False) -> None:
        """Append an event once; ``again``: it may have been tried before. Waits for the broker."""

        async def say() -> None:
            nonlocal again
            look, again = again, True
            await (self._bus.log.append_once(event, after=after) if look else self._bus.log.append(event))

        await self._insist(say, key=event.subject or "")

    async def _insist(self, act: Callable[[], Awaitable[T]], *, key: str) -> T:
        """Do it until the broker has answered: what was done and is not noted would be done again."""
        tries = 0
        while True:
            try:
                return await act()
            except BusUnavailable as exc:
                if tries % _SAY_EACH == 0:
                    log.warning("outbox.waits_to_note", extra={"key": key, "error": str(exc)})
            await anyio.sleep(_INSIST_S[min(tries, len(_INSIST_S) - 1)])
            tries += 1

    async def say_again(self, state: ActionState) -> None:
        """Make sure that the log says how an action ended, if a crash came between the two."""
        if state.outcome is not None:
            # The broker may have forgotten the id by now.
            await self._bus.log.append_once(Event.from_dict(state.outcome), after=state.seq)

    async def keep_dead(self, key: str, dead: ActionState) -> None:
        """Keep a dead letter of an action that was never claimed, unless it is over already. Waits for the broker."""

        async def keep() -> None:
            entry = await self._bucket.get(key)
            if entry is None or not _is_over(entry):
                await self._bucket.put(key, dead.to_json())

        await self._insist(keep, key=key)


def _is_over(entry: Entry) -> bool:
    try:
        return ActionState.from_json(entry.value).is_over
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def bounded_result(result: JsonObject) -> JsonObject:
    """Return what an action gave, or that it is too large to be kept: the outcome has to fit into one event."""
    size = len(orjson.dumps(result, default=str))
    return result if size <= _MAX_RESULT_BYTES else {"omitted_bytes": size}


def bounded_decision(event: Event) -> JsonObject | None:
    """Return a copy of the decision to keep with a dead letter, if it is small enough for the bucket."""
    out = event.to_dict()
    return out if len(orjson.dumps(out)) < _MAX_DECISION_BYTES else None
