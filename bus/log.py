"""The event log: appending facts to it, under guard where two might write, and reading it in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

import orjson

from ..config import BusConfig
from ..errors import BusUnavailable, EventRefused, EventTooLarge, GuardFailed
from ..vocabulary import JsonObject
from .arrival import Arrival
from .connection import Connection
from .consumer import Consumer
from .event import Event, Recorded
from .feed import Batch, Feed, record_of
from .hearing import Hearing
from .look_back import LookBack, Mark, message_id_of
from .patience import Patience
from .replies import Refusal, Replies, refusal_in
from .streams import born_at
from .subject import ALL_EVENTS, STATE_HEADER, STREAM, flow_run_filter, subject_of
from .wire import check_subject, header_lines, message_id

__all__ = ["Appended", "EventLog", "LogState", "Message", "headers_of"]

Message: TypeAlias = tuple[str, str, bytes]
"""Subject, header lines, payload."""

WRONG_LAST_SEQUENCE = (10071, 10164)
TOO_LARGE = 10054
_FRAME_BYTES = 12  # of the header block beyond its lines: the version line and the empty one


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an event stands. ``duplicate``: it stood there already, because its id was known."""

    seq: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class LogState:
    """Where the log begins and ends.

    Attributes:
        incarnation: names this very log: one made anew bears another name, one restored from a backup the old one, so that
            what was restored with it goes on from where it stood.
        copy: names this very stream: a restored one bears another name too. What is kept outside the broker may have seen
            events that a backup of earlier does not hold, and compares this one.
    """

    first_seq: int
    last_seq: int
    incarnation: str
    copy: str


def headers_of(event: Event) -> dict[str, str]:
    """Return the headers an event is stored with: a task run's state, which its subject does not say."""
    type_ = event.type
    return {STATE_HEADER: type_[9:]} if type_.startswith("task-run.") else {}


class EventLog:
    """The stream ``HARK``. Needs no closing; safe to use from many tasks of the connection's loop.

    Args:
        reading: another connection, for what is read and followed, of which much may be on its way at once; answers to
            what is stored and asked do not wait behind it then.
    """

    def __init__(
        self,
        connection: Connection,
        config: BusConfig,
        *,
        stream: str = STREAM,
        reading: Connection | None = None,
    ) -> None:
        self._connection, self._config, self._stream = connection, config, stream
        self._reading = reading or connection
        self._replies = Replies(connection, config)
        self._feeds: dict[tuple[str, ...], list[Feed]] = {}
        self._hearing = Hearing(self.follow)
        self._look_back = LookBack(self.read)
        # Several replicas: a direct get may be answered by one that lags, and a guard would be set on old news.
        self._direct = config.replicas == 1

    # --- writing --------------------------------------------------------------------------------------

    async def append(
        self, event: Event, *, after: int | None = None, guard: str | None = None, spent_s: float = 0.0
    ) -> Appended:
        """Store one event and return its place, once the broker has it.

        Sent again under the same id when an answer is lost, so it is stored once. Events of concurrent callers
        travel together.

        Args:
            after: the last sequence on the event's run (``flow_run_filter``) must be this; 0: none yet.
            guard: the filter ``after`` speaks of, where it is not the event's run.
            spent_s: so long the caller has waited for a quicker try, which counts: see ``Session.store``.
        Raises:
            GuardFailed: somebody else wrote first.
            EventTooLarge: nothing was sent.
            EventRefused: the broker will not store it.
            BusUnavailable: no answer in ``config.request_timeout_s``; the event may be stored or not. Appending the
                same event (same id, same guard) again is safe.
        """
        if after is not None:
            guard = guard or _guard_of(event, subject_of(event))
        made = self.message(event, after, guard)
        return await self._store(event, *made, after=after, guard=guard, spent_s=spent_s)

    def message(self, event: Event, after: int | None, guard: str | None = None) -> Message:
        """Return what ``append`` sends; see there. From any thread."""
        subject = check_subject(subject_of(event))
        if after is not None and guard is None:
            guard = _guard_of(event, subject)
        lines, payload = _lines(event, after, guard), event.to_json()
        self._check_size(subject, lines, payload)
        return subject, lines, payload

    def two_messages(self, first: Event, second: Event, after: int) -> tuple[Message, Message]:
        """Return what ``append_two`` sends; see there. From any thread."""
        one = self.message(first, after)
        lines = f"{_lines(second)}Nats-Expected-Last-Msg-Id: {message_id(first.msg_id)}\r\n"
        two = (check_subject(subject_of(second)), lines, second.to_json())
        self._check_size(*two)
        return one, two

    def store_nowait(
        self, messages: Sequence[Message], on_answers: Callable[[list[Arrival | None]], None]
    ) -> bool:
        """Send messages once, in order, if that can be done at once (in the loop); see ``Replies.ask_nowait``."""
        return self._replies.ask_nowait(messages, on_answers)

    @staticmethod
    def places_in(answers: Iterable[Arrival | None]) -> list[int] | None:
        """Return the sequences under which messages were stored, by the answers to them; None unless all were, now and by these."""
        places: list[int] = []
        for msg in answers:
            if msg is None or msg.status:
                return None
            try:
                body = orjson.loads(msg.data)
            except orjson.JSONDecodeError:
                return None
            if "error" in body or body.get("duplicate"):
                return None
            places.append(int(body["seq"]))
        return places

    async def append_two(
        self, first: Event, second: Event, *, after: int, spent_s: float = 0.0
    ) -> tuple[Appended, Appended | None]:
        """Store two events of one run in one exchange with the broker; return their places.

        The second is stored behind the first and nothing else of the run, as if it were appended after its answer: it says
        that the log's last event is the first, and where others wrote meanwhile, it is sent once more under the usual guard.
        None: somebody wrote of the run between them, so only the first was stored.

        Args:
            after: the last sequence on the run must be this; 0: none yet. spent_s: as ``append``.
        Raises:
            GuardFailed: somebody else wrote first; neither was stored.
            EventTooLarge: neither was sent.
            EventRefused, BusUnavailable: as ``append``; the first may be stored, the second may too.
        """
        one, two = self.two_messages(first, second, after)
        guard = _guard_of(first, one[0])
        async with self._replies.turnstile:
            deadline = self._replies.deadline(spent_s)
            connected = self._connection.is_connected
            answers = await self._replies.ask_many((one, two)) if connected else (None, None)
            place, other = map(_ack_of, answers)
            if not isinstance(place, Appended):
                place = await self._insist(first, *one, after, guard, 0, deadline)
        if isinstance(other, Appended):
            return place, other
        try:
            # Where its answer was lost, this finds it behind the first.
            return place, await self.append(second, after=place.seq)
        except GuardFailed:
            return place, None

    async def append_once(self, event: Event, *, after: int) -> Appended:
        """Store an event that an earlier try may have stored, longer ago than the broker remembers ids.

        Args:
            after: the earlier try, if there was one, came behind this sequence.
        Raises:
            As ``append``; LogRewound: the log ends before ``after``.
        """
        there = await self.find(check_subject(subject_of(event)), message_id(event.msg_id), after)
        return Appended(there, duplicate=True) if there is not None else await self.append(event)

    async def find(
        self, filter: str, wanted: str, begin: int | datetime, *, mark: Mark = message_id_of
    ) -> int | None:
        """Return where the first event on ``filter`` stands that bears a mark; None if it is not in the log now.

        Many who look at once share one reading.

        Args:
            begin: it would stand behind this sequence, or not before this (broker) time.
            mark: a function of a module, which reads the mark of a record; by default its message id.
        Raises:
            BusUnavailable: the log cannot be read. LogRewound: it ends before ``begin``.
        """
        return await self._look_back.find(filter, wanted, begin, mark=mark)

    async def append_many(self, events: Sequence[Event]) -> list[Appended]:
        """Store events, pipelined; return their places in the same order once the broker has all.

        They are stored in this order unless an answer is lost on the way.

        Raises:
            EventTooLarge: one is too large; nothing was sent.
            BusUnavailable, EventRefused: as ``append``; the others may be stored.
        """
        prepared = []
        for index, event in enumerate(events):
            subject = check_subject(subject_of(event))
            lines = f"Nats-Msg-Id: {message_id(event.msg_id)}\r\n"
            if headers := headers_of(event):
                lines += header_lines(headers)
            payload = event.to_json()
            self._check_size(subject, lines, payload, index=index)
            prepared.append((subject, lines, payload))
        # In slices, so that a million events do not stand in the broker's inbound queue at once.
        done: list[Appended] = []
        for start in range(0, len(prepared), 1000):
            done += await self._store_many(events[start : start + 1000], prepared[start : start + 1000])
        return done

    async def _store_many(
        self, events: Sequence[Event], prepared: Sequence[tuple[str, str, bytes]]
    ) -> list[Appended]:
        deadline = self._replies.deadline()
        connected = self._connection.is_connected
        answers = await self._replies.ask_many(prepared) if connected else [None] * len(prepared)
        done = [_ack_of(msg) for msg in answers]
        # What was not stored at the first try goes the long way: tried again, or refused with an error.
        again = [
            asyncio.ensure_future(self._store(event, *one, tries=1, deadline=deadline))
            for event, one, ack in zip(events, prepared, done, strict=True)
            if not isinstance(ack, Appended)
        ]
        if again:
            try:
                late = iter(await asyncio.gather(*again))
            finally:
                for task in again:
                    task.cancel()
            return [ack if isinstance(ack, Appended) else next(late) for ack in done]
        return [ack for ack in done if isinstance(ack, Appended)]

    def _check_size(self, subject: str, lines: str, payload: bytes, *, index: int | None = None) -> None:
        size, limit = len(lines) + _FRAME_BYTES + len(payload), self._connection.max_payload
        if size > limit:
            raise EventTooLarge(subject, size_bytes=size, limit_bytes=limit, index=index)

    async def _store(
        self,
        event: Event,
        subject: str,
        lines: str,
        payload: bytes,
        *,
        after: int | None = None,
        guard: str | None = None,
        tries: int = 0,
        deadline: float | None = None,
        spent_s: float = 0.0,
    ) -> Appended:
        """Send until there is a verdict. ``tries``: made already; ``deadline``: loop time, by default from its turn on."""
        async with self._replies.turnstile:
            deadline = self._replies.deadline(spent_s) if deadline is None else deadline
            return await self._insist(event, subject, lines, payload, after, guard, tries, deadline)

    async def _insist(
        self,
        event: Event,
        subject: str,
        lines: str,
        payload: bytes,
        after: int | None,
        guard: str | None,
        tries: int,
        deadline: float,
    ) -> Appended:
        loop, heard, still_s = asyncio.get_running_loop(), self._replies.heard, self._replies.still_s
        why = "no answer"
        while True:
            if tries or not self._connection.is_connected:
                await self._replies.open()
                deadline, still_s = deadline + self._replies.still_s - still_s, self._replies.still_s
                await self._replies.until_up(deadline)
                if loop.time() >= deadline:
                    self._replies.give_up(heard)
                    raise BusUnavailable(
                        f"the broker did not store {event.type} within {self._config.request_timeout_s:g} s ({why})",
                        hint="is its disk full? `hark doctor` tells; ask again later",
                    )
            tries += 1
            msg = await self._replies.ask(subject, payload, headers=lines)
            answer = _ack_of(msg)
            if isinstance(answer, Appended):
                return answer
            if answer is None:
                continue
            if answer.err_code in WRONG_LAST_SEQUENCE and after is not None and guard is not None:
                # The broker checks the guard before the id, so a repeat of what has landed looks like a lost race.
                # Our first try: an earlier call for the same event, whose answer its caller never saw.
                ours = await self._landed(event, after=after, guard=guard)
                if ours is not None:
                    return Appended(ours, duplicate=tries == 1)
                raise GuardFailed(subject, expected=after)
            if answer.is_passing:
                why = str(answer)
                continue
            if answer.err_code == TOO_LARGE:
                size, limit = len(lines) + len(payload), self._connection.max_payload
                raise EventTooLarge(subject, size_bytes=size, limit_bytes=limit)
            raise EventRefused(subject, msg_id=event.msg_id, why=str(answer))

    async def _landed(self, event: Event, *, after: int, guard: str) -> int | None:
        """Return the sequence of ``event`` if an earlier try of ours was stored: it would be the first behind ``after``."""
        found = await self._get({"seq": after + 1, "next_by_subj": guard}, at_once=True)
        if found is None:
            return None
        ours = found.headers.get("Nats-Msg-Id") == message_id(event.msg_id)
        return found.seq if ours else None

    # --- looking up -----------------------------------------------------------------------------------

    async def last(self, filter: str) -> Recorded | None:
        """Return the last event on a filter (wildcards allowed), None if there is none."""
        return await self._get({"last_by_subj": filter})

    async def get(self, seq: int) -> Recorded | None:
        """Return the event at a sequence, None if it is not there (any more)."""
        return await self._get({"seq": seq}) if seq > 0 else None

    async def next(self, filter: str, *, after: int = 0) -> Recorded | None:
        """Return the first event on a filter behind a sequence, None if there is none."""
        return await self._get({"seq": after + 1, "next_by_subj": filter})

    async def state(self) -> LogState:
        """Return where the log begins and ends, and which log it is."""
        info = await self._connection.api(f"STREAM.INFO.{self._stream}")
        state = info["state"]
        assert isinstance(state, dict)
        return LogState(
            first_seq=int(str(state["first_seq"])),
            last_seq=int(str(state["last_seq"])),
            incarnation=f"{self._stream}@{born_at(info)}",
            copy=f"{self._stream}@{info['created']}",
        )

    async def head(self) -> int:
        """Return the last sequence of the log, 0 when nothing was ever stored."""
        info = await self._connection.api(f"STREAM.INFO.{self._stream}")
        state = info["state"]
        assert isinstance(state, dict)
        return int(str(state["last_seq"]))

    async def _get(self, what: JsonObject, *, at_once: bool = False) -> Recorded | None:
        verb = "DIRECT.GET" if self._direct else "STREAM.MSG.GET"
        msg = await self._replies.insist(
            f"$JS.API.{verb}.{self._stream}", orjson.dumps(what), again=_not_ready, what="a look into the log",
            at_once=at_once,
        )  # fmt: skip
        return _direct_record(msg) if self._direct else _leader_record(msg)

    # --- reading in order -----------------------------------------------------------------------------

    def read(
        self,
        filters: Sequence[str] = (ALL_EVENTS,),
        *,
        after: int = 0,
        since: datetime | None = None,
        batch: int = 500,
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Read what is in the log now, in order: batches of up to ``batch`` records, then the end.

        Args:
            after: begin behind this sequence. since: begin at this (broker) time instead.
        Raises:
            BusUnavailable: on entering. LogRewound: the log ends before ``after``.
        """
        return self._feed(
            filters, after=None if since and not after else after, since=since, batch=batch, live=False
        )

    def follow(
        self,
        filters: Sequence[str] = (ALL_EVENTS,),
        *,
        after: int | None = None,
        since: datetime | None = None,
        batch: int = 500,
        most_waiting: int | None = None,
        patience: Patience | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Read the log in order for ever: gap-free and without repeats, across lost connections and brokers.

        Entered means that everything appended from now on will come. The first batch may be empty: caught up.

        Args:
            after: begin behind this sequence; since: at this (broker) time; neither: from now on.
            most_waiting: records that may be on their way or wait here; by default as many as there are in 32 MB.
            patience: how long few records may wait for more to come with them; by default not at all.
        Raises:
            BusUnavailable: on entering. Later outages are waited out.
            LogRewound: the log ends before the position; also later, if a restarted broker has lost its tail.
        """
        return self._feed(
            filters, after=after, since=since, batch=batch, live=True, most_waiting=most_waiting, patience=patience
        )  # fmt: skip

    def hear(self, filter: str, word: str) -> AbstractAsyncContextManager[AsyncIterator[Recorded]]:
        """Hear of one thing of many: what is stored from now on under ``filter``, which ends in ``*``, with ``word`` there.

        For waits: thousands at once cost the broker a handful of readers.

        Raises:
            BusUnavailable: on entering. LogRewound: while iterating, see ``follow``.
        """
        return self._hearing.hear(filter, word)

    @asynccontextmanager
    async def _feed(
        self,
        filters: Sequence[str],
        *,
        after: int | None,
        since: datetime | None,
        batch: int,
        live: bool,
        most_waiting: int | None = None,
        patience: Patience | None = None,
    ) -> AsyncGenerator[AsyncIterator[Batch]]:
        feed = Feed(
            self._reading, self._config, stream=self._stream, filters=filters, after=after,
            since=since.astimezone(UTC) if since else None, batch=batch, live=live, others=self._feeds,
            most_waiting=most_waiting, patience=patience,
        )  # fmt: skip
        try:
            await feed.start()
            yield feed
        finally:
            await feed.close()

    def consume(
        self,
        durable: str,
        filters: Sequence[str] = (ALL_EVENTS,),
        *,
        ack_wait_s: float = 30,
        max_ack_pending: int = 1000,
        in_hand: int | None = None,
        take_back: bool = False,
        deliver_after: int | None = None,
        deliver_since: datetime | None = None,
    ) -> AbstractAsyncContextManager[Consumer]:
        """Share the log among consumers of one name: each event goes to one of them, again until acknowledged.

        Args:
            durable: name the broker keeps the position under.
            ack_wait_s: an event not acknowledged for this long is handed out again.
            max_ack_pending: events handed out and not acknowledged, over all of that name, those put off with ``nak`` among them.
            in_hand: of these, how many this one may have at once; None: all.
            take_back: whoever else had events of it in hand is known to be dead: they are handed out again at once.
            deliver_after: where a new durable begins (None: from now on); an existing one keeps its place.
            deliver_since: the (broker) time at which a new durable begins instead.
        """
        return Consumer.open(
            self._connection, self._config, stream=self._stream, durable=durable, filters=filters,
            ack_wait_s=ack_wait_s, max_ack_pending=max_ack_pending, in_hand=in_hand, take_back=take_back,
            deliver_after=deliver_after, deliver_since=deliver_since,
        )  # fmt: skip


def _lines(event: Event, after: int | None = None, guard: str | None = None) -> str:
    # A message id can stand in a header line as it is, and so can most guards: looking at them costs more than writing them.
    lines = f"Nats-Msg-Id: {message_id(event.msg_id)}\r\n"
    if headers := headers_of(event):
        lines += header_lines(headers)
    if after is None or guard is None:
        return lines
    lines += f"Nats-Expected-Last-Subject-Sequence: {after}\r\n"
    if guard.isascii() and guard.isprintable() and " " not in guard:
        return f"{lines}Nats-Expected-Last-Subject-Sequence-Subject: {guard}\r\n"
    return lines + header_lines({"Nats-Expected-Last-Subject-Sequence-Subject": guard})


def _guard_of(event: Event, subject: str) -> str:
    """Return the filter an event is guarded on: its run's, or its own subject."""
    if event.type.startswith("flow-run.") and event.subject and event.subject.startswith("flow-run/"):
        return flow_run_filter(event.subject[9:])
    return subject


def _ack_of(msg: Arrival | None) -> Appended | Refusal | None:
    """Return what an answer to a publish says; None when it was lost."""
    if msg is None:
        return None
    status = msg.status
    if status:
        return Refusal(status, 0, "nobody stores that subject (yet)")
    try:
        body = orjson.loads(msg.data)
    except orjson.JSONDecodeError:
        return Refusal(500, 0, f"an answer that is not JSON: {msg.data[:80]!r}")
    refusal = refusal_in(body)
    if refusal is not None:
        return refusal
    return Appended(int(body["seq"]), bool(body.get("duplicate")))


def _not_ready(msg: Arrival) -> bool:
    """Whether a look-up was answered with an error that passes."""
    if msg.status in (0, 404):
        if msg.headers and "Nats-Sequence" in msg.headers:
            return False
        if msg.data[:1] == b"{" and b'"error"' in msg.data[:200]:
            refusal = refusal_in(orjson.loads(msg.data))
            return refusal is not None and refusal.is_passing
        return False
    return True


def _direct_record(msg: Arrival) -> Recorded | None:
    headers = msg.headers or {}
    if "Nats-Sequence" not in headers:
        return None
    own = {name: value for name, value in headers.items() if name not in _DIRECT_HEADERS}
    return record_of(
        int(headers["Nats-Sequence"]),
        headers["Nats-Subject"],
        _moment(headers["Nats-Time-Stamp"]),
        msg.data,
        own,
    )


_DIRECT_HEADERS = frozenset(
    {
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-Last-Sequence",
    }
)


def _leader_record(msg: Arrival) -> Recorded | None:
    import base64

    body = orjson.loads(msg.data)
    refusal = refusal_in(body)
    if refusal is not None:
        if refusal.code == 404:
            return None
        raise BusUnavailable(f"cannot look into the log: {refusal}")
    found = body["message"]
    headers: dict[str, str] = {}
    for line in base64.b64decode(found.get("hdrs", "")).decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return record_of(
        int(found["seq"]),
        found["subject"],
        _moment(found["time"]),
        base64.b64decode(found.get("data", "")),
        headers,
    )


def _moment(text: str) -> datetime:
    """Return the moment the broker wrote with nanoseconds (``datetime`` reads at most six digits of them)."""
    whole, _, rest = text.partition(".")
    digits = rest.rstrip("Z")
    return datetime.fromisoformat(
        f"{whole}.{digits[:6]:0<6}+00:00" if digits else f"{whole.rstrip('Z')}+00:00"
    )
