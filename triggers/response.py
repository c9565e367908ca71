"""Answering a webhook with what its event led to: wait for the first run of the story, up to a deadline."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from ..bus import Bus
from ..bus.event import Event, readable
from ..bus.subject import FLOW_RUNS, PREFIX
from ..vocabulary import TERMINAL, JsonObject, JsonValue, StateType

__all__ = ["Outcome", "Refusal", "RunWaits", "outcome_of"]

# Each wait reads the log on its own; past so many, requests are answered 202 without waiting.
_AT_ONCE = 100


_GIVEN_UP = "action.dead-lettered"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A run that there will not be: the action that was to begin it was given up."""

    error: str
    is_completed = False

    @property
    def told(self) -> JsonObject:
        return {"run": None, "error": self.error}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. ``result`` is its result where that travels in the event as JSON, else None."""

    run: JsonObject
    state: JsonObject
    result: JsonValue

    @property
    def is_completed(self) -> bool:
        return self.state.get("type") == StateType.COMPLETED

    @property
    def told(self) -> JsonObject:
        return {"run": self.run, "state": self.state, "result": self.result}


def outcome_of(event: Event, *, story: str) -> Outcome | Refusal | None:
    """Return the outcome an event tells, if it ends a run of ``story`` (a correlation id) that has no parent, or there is none."""
    data = event.data
    if event.correlationid != story or not isinstance(data, dict):
        return None
    if event.type == _GIVEN_UP:
        return Refusal(str(data.get("error", ""))) if data.get("kind") == "run" else None
    run, state = data.get("run"), data.get("state")
    if not isinstance(run, dict) or not isinstance(state, dict) or run.get("parent") is not None:
        return None
    if state.get("type") not in {kind.value for kind in TERMINAL}:
        return None
    recorded = data.get("result")
    result: JsonValue = None
    if isinstance(recorded, dict) and recorded.get("format") == "json":
        result = recorded.get("inline")
    shown: JsonObject = {"id": run.get("id"), "name": run.get("name")}
    return Outcome(shown, {key: state.get(key) for key in ("type", "name", "message")}, result)


class RunWaits:
    """Waits for runs that events lead to."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting = 0

    async def wait(self, event: Event, *, seq: int, within_s: float) -> Outcome | Refusal | None:
        """Return how the first run that ``event`` (stored at ``seq``) led to has ended, or why there is none.

        None: no run of it ended in ``within_s`` seconds, or too many are waiting already.
        Raises:
            BusUnavailable: the log cannot be read.
        """
        if self._waiting >= _AT_ONCE:
            return None
        story = event.correlationid or event.id
        self._waiting += 1
        try:
            with anyio.move_on_after(within_s):
                async with self._bus.log.follow([FLOW_RUNS, PREFIX + _GIVEN_UP], after=seq) as batches:
                    async for batch in batches:
                        for record in readable(batch.records):
                            outcome = outcome_of(record.event, story=story)
                            if outcome is not None:
                                return outcome
        finally:
            self._waiting -= 1
        return None
