"""``wait_for_event``: a run that waits for something to happen, and may have missed it already.

The log is looked into first, from where the wait counts from; then the run waits in place for a while, and then leaves its
worker (``hark.engine.pausing.durable``) with what it waits for noted in its state. ``Waker`` reads those notes and the log, and has
a run go on when its event comes; the code, replayed, looks into the log again and finds it. So waking may happen
twice, or late, without harm, and what a wait came to is recorded once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio

from ..bus.event import Event, Recorded, readable
from ..bus.subject import filters_for, matches
from ..duration import seconds_of
from ..engine.context import FlowRunContext, refuse_if_leaving
from ..engine.life.background_place import freeing_thread
from ..engine.life.held_here import held_later
from ..engine.pausing.durable import Wait, now
from ..engine.runs.replay import begins_anew
from ..engine.signals import Suspend
from ..engine.states import Scheduled
from ..engine.sync_async.either import blocking_session, is_async_here, session_here
from ..errors import DefinitionError, EventWaitTimedOut, MissingContextError
from ..vocabulary import FlowRunId, JsonObject, JsonValue
from .matching.where import Check, compile_where

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.session import Session

__all__ = ["AWAITING_EVENT", "EventPattern", "await_for_event", "wait_for_event"]

AWAITING_EVENT = "AwaitingEvent"
"""Name of the state of a run that waits for an event without a worker."""
_FOREVER = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class EventPattern:
    """Which events are meant: a type pattern or several, and a ``where`` as in rules."""

    types: tuple[str, ...]
    where: JsonValue
    check: Check | None

    @classmethod
    def of(cls, types: object, where: object) -> EventPattern:
        """Return the pattern as written.

        Raises:
            DefinitionError: it names no type, or the ``where`` does not stand.
        """
        names = (
            (types,) if isinstance(types, str) else tuple(types) if isinstance(types, list | tuple) else ()
        )
        if not names or not all(isinstance(name, str) and name for name in names):
            raise DefinitionError(
                f"{types!r} is no type of event",
                hint='write "order.paid", a pattern such as "order.*", or a list',
            )
        if where is None or where == {}:
            return cls(tuple(map(str, names)), None, None)
        stored: Any = where
        return cls(tuple(map(str, names)), stored, compile_where(where))

    @property
    def filters(self) -> tuple[str, ...]:
        """The bus filters under which such events stand."""
        return tuple(sorted({found for type_ in self.types for found in filters_for(type_)}))

    def fits(self, recorded: Recorded) -> bool:
        if not list(readable((recorded,))):
            return False
        event = recorded.event
        if not any(matches(type_, event.type) for type_ in self.types):
            return False
        return self.check is None or self.check(event.to_dict())

    def first(self, records: Iterable[Recorded]) -> Recorded | None:
        return next((recorded for recorded in records if self.fits(recorded)), None)

    def __str__(self) -> str:
        return " or ".join(self.types)


def wait_for_event(
    type: str | Sequence[str],
    *,
    where: Mapping[str, Any] | None = None,
    since: str | datetime | timedelta = "run",
    within: float | str | timedelta | None = None,
) -> Any:
    """Return the first event that fits, as an ``Event``; waiting for it if it has not come yet.

    ``await wait_for_event("order.paid", where={"data.order": 42}, within="1d")`` in async code, without ``await`` in sync
    code. In the run of a deployment a long wait holds no worker, see ``hark.sleep``. A wait that is over is recorded: a run
    that is taken up again gets the same event.

    Args:
        type: of the event; ``*`` stands for one word, a last ``>`` for the rest; a list means any of them.
        where: conditions as in rules, on the fields of the event: ``{"subject": "order/42", "data.total": ">= 10"}``.
        since: what counts: ``"run"``, since this run was asked for; ``"now"``; a moment (aware); or how long ago, as
            ``"10m"`` or a ``timedelta``.
        within: how long to wait at most, from now; None: for as long as it takes.
    Raises:
        EventWaitTimedOut: none came in time (also a ``TimeoutError``).
        DefinitionError: the type or the conditions make no sense.
        MissingContextError: ``since="run"`` outside a tracked run.
    """
    pattern = EventPattern.of(type, where)
    limit_s = None if within is None else seconds_of(within)
    if is_async_here():
        return _wait_async(pattern, since, limit_s)
    wait = _wait_here(pattern)
    if wait is not None and wait.is_over:
        return Event.from_dict(wait.value())
    session = blocking_session("wait_for_event()")
    waiting = session.call(_Waiting.begin, session, pattern, wait, since, limit_s)
    with freeing_thread():
        found = session.call(waiting.look)
    return waiting.settle(found)


async def _wait_async(
    pattern: EventPattern, since: str | datetime | timedelta, limit_s: float | None
) -> Event:
    wait = _wait_here(pattern)
    if wait is not None and wait.is_over:
        return Event.from_dict(await wait.avalue())
    session = session_here("wait_for_event()")
    waiting = await session.acall(_Waiting.begin, session, pattern, wait, since, limit_s)
    found = await session.acall(waiting.look)
    return waiting.settle(found)


async def await_for_event(
    type: str | Sequence[str],
    *,
    where: Mapping[str, Any] | None = None,
    since: str | datetime | timedelta = "run",
    within: float | str | timedelta | None = None,
) -> Event:
    """Do what ``wait_for_event`` does, in async code whatever surrounds it."""
    limit_s = None if within is None else seconds_of(within)
    return await _wait_async(EventPattern.of(type, where), since, limit_s)


def _wait_here(pattern: EventPattern) -> Wait | None:
    return Wait.here("wait_for_event", {"type": list(pattern.types), "where": pattern.where})


class _Waiting:
    """One wait: from where the log counts, until when, and whether it may leave its worker."""

    def __init__(
        self,
        session: Session,
        pattern: EventPattern,
        wait: Wait | None,
        *,
        after: int,
        since: datetime | None,
        until: datetime | None,
    ) -> None:
        self._bus: Bus = session.bus
        self._pattern, self._wait = pattern, wait
        self._after, self._since, self._until = after, since, until

    @classmethod
    async def begin(
        cls,
        session: Session,
        pattern: EventPattern,
        wait: Wait | None,
        since: str | datetime | timedelta,
        limit_s: float | None,
    ) -> _Waiting:
        """Return the wait as it begins, or as an earlier attempt noted it."""
        if wait is not None and wait.noted:
            return cls(
                session, pattern, wait, after=int(wait.noted["after"]), since=None, until=wait.moment("until")
            )
        until = None if limit_s is None else now() + timedelta(seconds=limit_s)
        after, moment = await _position(session.bus, since)
        return cls(session, pattern, wait, after=after, since=moment, until=until)

    async def look(self) -> Recorded | None:
        """Return the event if it has come, or comes while we wait in place; None if not. On the session's loop."""
        log, pattern = self._bus.log, self._pattern
        head = await log.head()
        reading = (
            log.read(pattern.filters, since=self._since)
            if self._since is not None
            else log.read(pattern.filters, after=self._after)
        )
        async with reading as batches:
            async for batch in batches:
                found = pattern.first(batch.records)
                if found is not None:
                    return found if self._in_time(found) else None
        # Nothing up to here; a wait that is met again begins here.
        self._after, self._since = max(self._after, head), None
        with anyio.move_on_after(self._left_s()) as scope, self._resting(scope):
            async with log.follow(pattern.filters, after=self._after) as batches:
                async for batch in batches:
                    found = pattern.first(batch.records)
                    if found is not None:
                        return found if self._in_time(found) else None
        return None

    @contextmanager
    def _resting(self, scope: anyio.CancelScope) -> Generator[None]:
        """Have ``scope`` cancelled when the run leaves its worker: for this wait, not before it has taken long."""
        rests = self._wait.rests if self._wait is not None else None
        if self._wait is None or rests is None:
            hold_s = self._wait.tracker.suspend_after_s if self._wait is not None and self.can_leave else None
            if hold_s is not None:  # in a hook of an end, which fails by it
                scope.deadline = min(scope.deadline, anyio.current_time() + hold_s)
            with held_later("waits for an event"):
                yield
            return
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(scope.cancel)

        one = rests.begin(None, self._left_s(), wake, suspend=self._suspension(self._wait), stays=True)
        leaving = loop.call_later(self._wait.tracker.suspend_after_s, rests.release, one)
        try:
            yield
        finally:
            leaving.cancel()
            rests.withdraw(one)

    def settle(self, found: Recorded | None) -> Event:
        """Return the event that was found; otherwise leave the worker, or give up. In the run's own code."""
        if found is not None:
            if self._wait is not None:
                self._wait.finish(found.event.to_dict())
            return found.event
        if self._wait is not None:
            refuse_if_leaving(self._wait.flow)
        left_s = self._left_s()
        if left_s == 0 or self._wait is None or not self.can_leave:
            raise EventWaitTimedOut(f"no event {self._pattern} has come in time")
        raise self._suspension(self._wait)

    def _suspension(self, wait: Wait) -> Suspend:
        """Return what the run leaves its worker with meanwhile."""
        facts: dict[str, Any] = {
            "event": {"types": list(self._pattern.types), "where": self._pattern.where}, "after": self._after,
        }  # fmt: skip
        if self._until is not None:
            facts["until"] = self._until
        state = Scheduled(
            name=AWAITING_EVENT, message=f"waits for an event {self._pattern}", details=wait.note(facts)
        )
        return Suspend(state, due_at=self._until or now() + _FOREVER)

    @property
    def can_leave(self) -> bool:
        return self._wait is not None and self._wait.can_leave

    def _left_s(self) -> float | None:
        return None if self._until is None else max(0.0, (self._until - now()).total_seconds())

    def _in_time(self, found: Recorded) -> bool:
        return self._until is None or found.recorded_at <= self._until


async def _position(bus: Bus, since: str | datetime | timedelta) -> tuple[int, datetime | None]:
    """Return from where the log counts: a sequence, or a moment."""
    if since == "now":
        return await bus.log.head(), None
    if since == "run":
        flow = FlowRunContext.get()
        if flow is None or flow.tracker is None:
            raise MissingContextError(
                'since="run" needs a tracked run around it',
                hint='outside of runs, say since="now" or a moment',
            )
        history = await flow.tracker.run_log.history(FlowRunId(flow.flow_run.id))
        first = history[0].seq if history else 0
        return max(first, begins_anew(history)), None
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise DefinitionError(
                f"since={since!r} has no time zone", hint="use datetime.now(UTC) and the like"
            )
        return 0, since
    try:
        return 0, now() - timedelta(seconds=seconds_of(since))
    except ValueError as exc:
        raise DefinitionError(
            f'since is "run", "now", a moment, or how long ago such as "10m": {exc}'
        ) from exc


def patterns_in(details: JsonObject) -> list[tuple[str, EventPattern, int]]:
    """Return (key, pattern, after) of each wait for an event that is noted in a state, of those we can read."""
    others = details.get("waits")
    waits = [details.get("wait"), *(others if isinstance(others, list) else ())]
    return [found for wait in waits if (found := _pattern_of(wait)) is not None]


def _pattern_of(wait: JsonValue) -> tuple[str, EventPattern, int] | None:
    event = wait.get("event") if isinstance(wait, dict) else None
    if not isinstance(wait, dict) or not isinstance(event, dict):
        return None
    try:
        pattern = EventPattern.of(event.get("types"), event.get("where"))
    except DefinitionError:
        return None
    after = wait.get("after")
    return str(wait.get("key")), pattern, after if isinstance(after, int) else 0
