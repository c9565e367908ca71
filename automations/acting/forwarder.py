"""The forwarder: sends events to sinks, each at least once, again with growing pauses, and at last to the dead letters.

Each sink has a durable consumer on the log, so what came while nobody ran is sent later, and of several processes each
event is sent by one. An event that has failed waits with the broker; others go on meanwhile. After the last try it
is a dead letter under ``sink-<name>-<seq>/0``, which can be redriven and dropped like those of rules.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio import AsyncContextManagerMixin

from ...bus import Bus, Event
from ...bus.consumer import Consumer, Item
from ...bus.event import readable
from ...bus.foreign import Foreign, durable_name
from ...bus.roster import Roster, Standing
from ...bus.subject import PREFIX, STREAM
from ...clock import SYSTEM_CLOCK, Clock
from ...config import AutomationsConfig
from ...errors import (
    AlreadyHeld,
    BusUnavailable,
    DefinitionError,
    EventTooLarge,
    GuardFailed,
    HarkError,
    RefusedError,
    UnavailableError,
)
from ...vocabulary import JsonObject, draw, new_id
from ..action import wait_before_retry_s
from .action_state import ActionState, action_event
from .claim import BUCKET as OUTBOX
from .claim import KEEP_S
from .dead_letter import SINK_KEY, forward_firing
from .http import AddressRefused, Caller, CallFailed, retry_after_s
from .outbox import REDRIVEN
from .sink import Sink, outgoing

if TYPE_CHECKING:
    from ...bus import LateValues

__all__ = ["BUCKET", "Forwarder", "SinkState"]

log = logging.getLogger(__name__)

BUCKET = "sinks"
ACK_WAIT_S = 30.0
_MAX_PENDING = 1000
_LONGEST_S = 15 * 60.0
_AGAIN_S = (0.2, 1.0, 2.0, 5.0, 10.0)


@dataclass(slots=True)
class SinkState(Standing):
    """How a sink is, as far as this process knows."""

    sent: int = 0
    failed: int = 0

    def to_dict(self) -> JsonObject:
        return {"state": self.state, "error": self.error, "sent": self.sent, "failed": self.failed}


class _Failed(Exception):
    """An event was not taken. ``again``: trying again may help."""

    def __init__(self, message: str, *, again: bool = True, after_s: float | None = None) -> None:
        super().__init__(message)
        self.again, self.after_s = again, after_s


@dataclass(slots=True)
class _Line:
    """One sink being served."""

    sink: Sink
    state: SinkState
    in_hand: set[Item] = field(default_factory=set)
    places: anyio.CapacityLimiter = field(init=False)

    def __post_init__(self) -> None:
        self.places = anyio.CapacityLimiter(self.sink.at_once)


class Forwarder(AsyncContextManagerMixin):
    """Serves sinks. Any number may run side by side. Entered: every sink that can be served is."""

    def __init__(
        self, bus: Bus, late: LateValues, config: AutomationsConfig | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._bus, self._late, self._clock = bus, late, clock
        self._config = config or AutomationsConfig()
        self._foreign = Foreign(bus.connection)
        self._caller = Caller(allow_private=self._config.allow_private_addresses)
        self._name = new_id()
        self._roster = Roster(
            bus.bucket(BUCKET), kind="sink", at_work="serving", load=Sink.model_validate_json, standing=SinkState,
            serve=self._serve, changed=self._changed, again_s=_AGAIN_S, hold=self._hold,
        )  # fmt: skip

    @property
    def states(self) -> dict[str, SinkState]:
        """How each sink is, by name; of one that does not load, why."""
        return self._roster.standings

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with self._caller, self._roster, anyio.create_task_group() as tg:
            tg.start_soon(self._redrive)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel()

    # --- one sink -------------------------------------------------------------------------------------

    async def _changed(self, name: str, before: Sink | None, now: Sink | None) -> None:
        if now is None:
            try:
                await self._foreign.forget(STREAM, durable_name("sink", name))
            except HarkError as exc:
                log.warning("sink.consumer_left", extra={"sink": name, "error": str(exc)})

    def _events(self, sink: Sink, state: SinkState) -> AbstractAsyncContextManager[Consumer]:
        # A new one begins with what came since it was stored: it takes a moment, or a start, until somebody serves it.
        return self._bus.log.consume(
            durable_name("sink", sink.name), sink.filters, ack_wait_s=ACK_WAIT_S, max_ack_pending=_MAX_PENDING,
            deliver_since=state.since,
        )  # fmt: skip

    async def _hold(self, sink: Sink, state: SinkState) -> None:
        """Have the broker keep the place of one that is paused, perhaps before anybody has served it."""
        async with self._events(sink, state):
            pass

    async def _serve(self, sink: Sink, state: SinkState, ready: Callable[[], None]) -> None:
        line, check = _Line(sink, state), sink.check()
        async with self._events(sink, state) as consumer, anyio.create_task_group() as tg:
            ready()
            tg.start_soon(self._keep_alive, line)
            async for item in consumer:
                if not any(check(r.event.to_dict()) for r in readable([item.recorded])):
                    await item.ack()
                    continue
                line.in_hand.add(item)
                tg.start_soon(self._forward, line, item)

    async def _keep_alive(self, line: _Line) -> None:
        """Keep what is in hand ours while it waits for a place or for an answer."""
        while True:
            await anyio.sleep(ACK_WAIT_S / 3)
            for item in list(line.in_hand):
                await item.in_progress()

    async def _forward(self, line: _Line, item: Item) -> None:
        sink, recorded = line.sink, item.recorded
        try:
            async with line.places:
                await self._send(sink, recorded.event)
            line.state.sent, line.state.error = line.state.sent + 1, ""
            await item.ack()
        except _Failed as exc:
            line.state.failed, line.state.error = line.state.failed + 1, str(exc)
            if exc.again and item.deliveries <= sink.retries:
                wait_s = wait_before_retry_s(
                    item.deliveries,
                    base_s=sink.backoff,
                    cap_s=_LONGEST_S,
                    jitter=draw(),
                )
                log.info("sink.again", extra={"sink": sink.name, "seq": recorded.seq, "error": str(exc)})
                await item.nak(max(wait_s, exc.after_s or 0.0))
                return
            try:
                await self._bury(
                    sink.name, recorded.event, recorded.seq, str(exc), attempt=item.deliveries, round=0
                )
            except BusUnavailable:
                await item.nak(1.0)
                return
            await item.ack()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await item.nak()  # another need not wait for our silence to be noticed
            raise
        finally:
            line.in_hand.discard(item)

    async def _send(self, sink: Sink, event: Event) -> None:
        """Send one event; raise ``_Failed`` if it was not taken."""
        try:
            context = await self._late.context(*sink.templates())
            out = outgoing(sink, event, context, now=self._clock.now())
        except UnavailableError as exc:
            raise _Failed(str(exc)) from exc
        except DefinitionError as exc:
            raise _Failed(self._redact(str(exc)), again=False) from exc
        with anyio.move_on_after(sink.timeout) as deadline:
            if sink.http is not None:
                await self._post(sink, out.to, out.headers, out.body)
            else:
                assert sink.nats is not None
                try:
                    if sink.nats.stream:
                        await self._foreign.store(out.to, out.body, out.headers, msg_id=event.msg_id)
                    else:
                        await self._foreign.publish(out.to, out.body, out.headers)
                except EventTooLarge as exc:
                    raise _Failed(str(exc), again=False) from exc
                except HarkError as exc:
                    raise _Failed(str(exc)) from exc
        if deadline.cancelled_caught:
            raise _Failed(f"no answer within {sink.timeout:g} s")

    async def _post(self, sink: Sink, url: str, headers: dict[str, str], body: bytes) -> None:
        assert sink.http is not None
        shown = self._redact(url.partition("?")[0])
        try:
            answer = await self._caller.request(sink.http.method, url, headers=headers, body=body)
        except AddressRefused as exc:
            raise _Failed(str(exc), again=False) from exc
        except (ValueError, UnicodeError) as exc:
            raise _Failed(f"{shown!r} cannot be called: {self._redact(str(exc))}", again=False) from exc
        except CallFailed as exc:
            raise _Failed(f"{shown}: {exc}") from exc
        if answer.status < 300:
            return
        said = f"{shown} answered {answer.status}: {self._redact(answer.text.strip())[:200]}".rstrip(": ")
        after_s = retry_after_s(answer.headers.get("retry-after"), now=self._clock.now())
        raise _Failed(
            said, again=answer.status not in (400, 401, 403, 404, 410, 413, 415, 422), after_s=after_s
        )

    def _redact(self, text: str) -> str:
        return self._late.redactor.redact(text)

    # --- dead letters ---------------------------------------------------------------------------------

    async def _bury(self, name: str, event: Event, seq: int, error: str, *, attempt: int, round: int) -> None:
        """Put an event among the dead letters, and tell.

        Raises:
            BusUnavailable: it is not there; come back with it.
        """
        key = f"{SINK_KEY}{name.replace('.', '=')}-{seq}/0"
        now = self._clock.now()
        state = ActionState(
            "dead", attempt, round, self._name, now, seq, error=error[:1000], decision=event.to_dict()
        )
        told = action_event(
            "dead-lettered", forward_firing(name, event, seq), key=key, kind="forward", state=state, now=now,
            error=error[:1000], sink=name,
        )  # fmt: skip
        state = ActionState(
            "dead",
            attempt,
            round,
            self._name,
            now,
            seq,
            error=error[:1000],
            outcome=told.to_dict(),
            decision=event.to_dict(),
        )
        await self._bus.bucket(OUTBOX).put(key, state.to_json())
        await self._bus.log.append(told)
        log.warning("sink.dead_lettered", extra={"sink": name, "seq": seq, "error": error})

    async def _redrive(self) -> None:
        """Send dead letters again that a person has asked for."""
        while True:
            try:
                async with self._bus.log.consume(
                    "sinks-redriven", [PREFIX + REDRIVEN], ack_wait_s=60, max_ack_pending=100
                ) as consumer:
                    async for item in consumer:
                        try:
                            for recorded in readable([item.recorded]):
                                await self._redriven(recorded.event)
                            await item.ack()
                        except (UnavailableError, GuardFailed, AlreadyHeld) as exc:
                            log.warning("sink.redrive_again", extra={"error": str(exc)})
                            await item.nak(1.0)
                        except (ValueError, TypeError, KeyError, HarkError) as exc:
                            # Anybody may have published it: what it says is no word of ours, and never will be.
                            log.error(
                                "sink.redrive_unreadable",
                                extra={"seq": item.recorded.seq, "error": repr(exc)},
                            )
                            await item.term("it cannot be read")
            except UnavailableError as exc:
                log.warning("sink.waiting", extra={"error": str(exc)})
            await anyio.sleep(1.0)

    async def _redriven(self, told: Event) -> None:
        data: Any = told.data
        key = str(data.get("key", "")) if isinstance(data, dict) else ""
        if not key.startswith(SINK_KEY):
            return
        name = str(data.get("automation", "")).removeprefix("sink:")
        bucket = self._bus.bucket(OUTBOX)
        entry, defined = await bucket.get(key), await self._bus.bucket(BUCKET).get(name)
        if entry is None:
            return
        state = ActionState.from_json(entry.value)
        wanted = int(data["round"])
        if state.state != "dead" or state.round >= wanted or state.decision is None:
            return  # it has been done, or dropped
        event = Event.from_dict(state.decision)
        standing = self._roster.standings.get(name)
        try:
            if defined is None:
                raise _Failed(f"there is no sink {name!r} any more", again=False)
            await self._send(Sink.model_validate_json(defined.value), event)
        except _Failed as exc:
            if standing is not None:
                standing.failed, standing.error = standing.failed + 1, str(exc)
            await self._bury(name, event, state.seq, str(exc), attempt=1, round=wanted)
            return
        if standing is not None and standing.state == "serving":  # what a broken one suffers from goes on
            standing.sent, standing.error = standing.sent + 1, ""
        now = self._clock.now()
        done = ActionState("done", 1, wanted, self._name, now, state.seq)
        executed = action_event(
            "executed",
            forward_firing(name, event, state.seq),
            key=key,
            kind="forward",
            state=done,
            now=now,
            sink=name,
        )
        try:
            await bucket.update(key, done.to_json(), revision=entry.revision, ttl_s=KEEP_S)
        except RefusedError as exc:
            log.warning("sink.redrive_raced", extra={"key": key, "error": str(exc)})
        await self._bus.log.append(executed)
