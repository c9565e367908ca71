"""The listener: reads the subjects and streams of every source, and stores what comes as events.

A message of a stream is acknowledged once its event is stored, and handed out again if it was not; its event has an id
that belongs to its place, and a repeat is looked for in the log. A message of core NATS that asks for an answer gets
``{"id": …}`` once it is stored, or ``{"error": …}``. What can never be an event becomes ``hark.source.rejected``, of a flood
a few per second.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

import orjson
from anyio import AsyncContextManagerMixin

from ..bus import Bus
from ..bus.consumer import Item
from ..bus.event import Event, readable
from ..bus.foreign import Foreign, ForeignMessage, durable_name
from ..bus.roster import Roster, Standing
from ..bus.subject import subject_of
from ..clock import SYSTEM_CLOCK, Clock
from ..config import TriggersConfig
from ..duration import Rate
from ..errors import DefinitionError, EventRefused, EventTooLarge, HarkError
from ..vocabulary import JsonObject
from .delivery import Deliveries
from .rate import TokenBucket
from .source import Message, NotAnEvent, Source, SourceEvent, event_of

__all__ = ["BUCKET", "SourceListener", "SourceState"]

log = logging.getLogger(__name__)

BUCKET = "sources"
# Events stored together, in their order.
_BATCH = 256
_AGAIN_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
_TOLD = Rate(5, 5.0)


@dataclass(slots=True)
class SourceState(Standing):
    """How a source is, as far as this process knows."""

    stored: int = 0
    rejected: int = 0

    def to_dict(self) -> JsonObject:
        return {"state": self.state, "error": self.error, "stored": self.stored, "rejected": self.rejected}


@dataclass(slots=True)
class _Reader:
    source: Source
    state: SourceState
    told: TokenBucket = field(default_factory=lambda: TokenBucket.full(_TOLD, now_s=0.0))
    suppressed: int = 0


class SourceListener(AsyncContextManagerMixin):
    """Reads sources. Any number may run side by side: each message goes to one. Entered: every source is being read."""

    def __init__(
        self, bus: Bus, config: TriggersConfig | None = None, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._bus, self._clock = bus, clock
        self._config = config or TriggersConfig()
        self._foreign = Foreign(bus.connection)
        self._deliveries = Deliveries(bus, ttl_s=self._config.webhook_dedupe_s)
        self._roster = Roster(
            bus.bucket(BUCKET), kind="source", at_work="reading", load=Source.model_validate_json, standing=SourceState,
            serve=self._serve, changed=self._changed, again_s=_AGAIN_S,
        )  # fmt: skip

    @property
    def states(self) -> dict[str, SourceState]:
        """How each source is, by name; of one that does not load, why."""
        return self._roster.standings

    def reading(self) -> dict[str, Source]:
        """Return the sources that are being read, by name."""
        standings = self._roster.standings
        return {
            name: source
            for name, source in self._roster.definitions.items()
            if standings[name].state == "reading"
        }

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with self._roster:
            yield self

    async def _changed(self, name: str, before: Source | None, now: Source | None) -> None:
        if before is not None and before.stream is not None and (now is None or now.stream != before.stream):
            await self._forget(before.stream, name)

    async def _forget(self, stream: str, name: str) -> None:
        try:
            await self._foreign.forget(stream, durable_name("hark", name))
        except HarkError as exc:
            log.warning("source.consumer_left", extra={"source": name, "stream": stream, "error": str(exc)})

    # --- reading --------------------------------------------------------------------------------------

    async def _serve(self, source: Source, state: SourceState, ready: Callable[[], None]) -> None:
        await (self._read_stream if source.stream else self._read_core)(_Reader(source, state), ready)

    async def _read_core(self, reader: _Reader, ready: Callable[[], None]) -> None:
        queue = durable_name("hark", reader.source.name)
        async with self._foreign.listen(reader.source.subject, queue=queue) as messages:
            ready()
            while True:
                batch = await messages.take(_BATCH)
                read = [Message(m.subject, m.data, m.headers) for m in batch]
                outcomes = await self._store(reader, [self._event_of(reader, m) for m in read])
                for message, outcome in zip(batch, outcomes, strict=True):
                    await self._answer(reader, message, outcome)

    async def _answer(self, reader: _Reader, message: ForeignMessage, outcome: str | Exception) -> None:
        answer: JsonObject
        if isinstance(outcome, str):
            answer = {"id": outcome}
        elif isinstance(outcome, NotAnEvent):
            answer = {"error": outcome.detail, "reason": outcome.reason}
            self._reject(reader, message.subject, outcome, len(message.data))
        else:
            answer = {"error": str(outcome), "reason": "unavailable"}
            log.warning("source.lost", extra={"source": reader.source.name, "error": str(outcome)})
        if message.reply:
            try:
                await self._foreign.publish(message.reply, orjson.dumps(answer))
            except HarkError as exc:
                log.info("source.unanswered", extra={"source": reader.source.name, "error": str(exc)})

    async def _read_stream(self, reader: _Reader, ready: Callable[[], None]) -> None:
        source = reader.source
        assert source.stream is not None
        async with self._foreign.consume(
            source.stream, durable_name("hark", source.name), source.subject, from_start=source.start == "all"
        ) as consumer:
            ready()
            while True:
                items = await consumer.fetch(_BATCH)
                made = [await self._event_of_item(reader, item) for item in items]
                outcomes = await self._store(reader, made)
                for item, outcome in zip(items, outcomes, strict=True):
                    if isinstance(outcome, str):
                        await item.ack()
                    elif isinstance(outcome, NotAnEvent):
                        self._reject(reader, item.recorded.subject, outcome, len(item.payload))
                        await item.term(outcome.reason)
                    else:
                        seq = item.recorded.seq
                        log.warning(
                            "source.again", extra={"source": source.name, "seq": seq, "error": str(outcome)}
                        )
                        await item.nak(1.0)

    def _event_of(self, reader: _Reader, message: Message) -> SourceEvent | NotAnEvent:
        try:
            return event_of(reader.source, message, now=self._clock.now())
        except NotAnEvent as exc:
            return exc

    async def _event_of_item(self, reader: _Reader, item: Item) -> SourceEvent | NotAnEvent | str:
        """Return the event of a message of a stream; or its id, if it was handed out before and is in the log."""
        recorded = item.recorded
        place = f"{reader.source.stream}/{recorded.seq}"
        message = Message(recorded.subject, item.payload, dict(recorded.headers), place, recorded.recorded_at)
        made = self._event_of(reader, message)
        # By now the broker may have forgotten that it has stored this id.
        is_again = item.deliveries > 1 and isinstance(made, SourceEvent) and made.delivery is None
        if (
            is_again
            and isinstance(made, SourceEvent)
            and await self._is_in_log(made.event, recorded.recorded_at)
        ):
            return made.event.id
        return made

    async def _store(
        self, reader: _Reader, made: Sequence[SourceEvent | NotAnEvent | str]
    ) -> list[str | NotAnEvent | HarkError]:
        """Store events in their order; return for each its id, or why it is not stored."""
        plain = [one.event for one in made if isinstance(one, SourceEvent) and one.delivery is None]
        together: HarkError | None = None
        if plain:
            try:
                await self._bus.log.append_many(plain)
            except HarkError as exc:
                together = exc  # perhaps one of them alone: each is tried by itself
        outcomes: list[str | NotAnEvent | HarkError] = []
        for one in made:
            if not isinstance(one, SourceEvent):
                outcomes.append(one)
            elif one.delivery is None and together is None:
                outcomes.append(one.event.id)
            else:
                outcomes.append(await self._store_one(reader, one))
            reader.state.stored += isinstance(one, SourceEvent) and isinstance(outcomes[-1], str)
        return outcomes

    async def _store_one(self, reader: _Reader, made: SourceEvent) -> str | NotAnEvent | HarkError:
        try:
            return (
                await self._deliveries.store(f"source/{reader.source.name}", made.delivery, made.event)
            ).id
        except (EventTooLarge, EventRefused, DefinitionError) as exc:
            return NotAnEvent("refused", str(exc))
        except HarkError as exc:
            return exc

    async def _is_in_log(self, event: Event, since: datetime) -> bool:
        """Return whether an event that was handed out before is in the log already."""
        async with self._bus.log.read([subject_of(event)], since=since) as batches:
            async for batch in batches:
                if any(r.event.msg_id == event.msg_id for r in readable(batch.records)):
                    return True
        return False

    def _reject(self, reader: _Reader, subject: str, why: NotAnEvent, size: int) -> None:
        """Tell that a message made no event, unless too many were just told."""
        reader.state.rejected += 1
        if reader.told.take(self._clock.monotonic()) > 0:
            reader.suppressed += 1
            return
        name = reader.source.name
        log.info("source.rejected", extra={"source": name, "reason": why.reason, "detail": why.detail[:200]})
        event = Event(
            type="hark.source.rejected",
            source="/hark/sources",
            subject=f"source/{name}",
            time=self._clock.now(),
            data={
                "source": {"name": name}, "nats_subject": subject[:255], "reason": why.reason,
                "detail": why.detail[:500], "size": size, "suppressed": reader.suppressed,
            },
        )  # fmt: skip
        try:
            self._bus.publisher.publish_nowait(event)
            reader.suppressed = 0
        except HarkError as exc:
            reader.suppressed += 1
            log.warning("source.rejection_untold", extra={"source": name, "error": str(exc)})
