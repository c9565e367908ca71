"""The router: follows alerts in the log, lets the fold decide, and sends what it decided.

One leads at a time, by a lease. Decided messages are put down with the state before the first of them goes out, under
keys the notifier remembers, so a router that dies in between loses none and sends none twice. What was decided and not
put down has not been sent, and is decided again from the log. Nothing polls: one timer waits for the next deadline.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ..bus.candidate import Candidate, Deposed
from ..bus.event import Event, readable
from ..bus.lease import Grant
from ..clock import SYSTEM_CLOCK, Clock
from ..errors import BusUnavailable, DefinitionError, EventInvalid, HarkError, LimitError
from ..vocabulary import JsonObject, draw
from .ack import AckLinks, Ticket
from .alert import ACKNOWLEDGED, RAISED, SOURCE, Alert, Cause
from .checkpoint import RouterState, StateStore, Vault
from .group import Decision, Said, Send, shown_address
from .grouping import Grouping
from .language import Language
from .message import Delivery, Message
from .rate import backoff_s
from .routing import Routing, Tree, load_tree
from .silence import Silence, SilenceBook, silence_of

if TYPE_CHECKING:
    from ..bus import Bus, Recorded

__all__ = ["ROUTES_BUCKET", "ROUTES_KEY", "Router", "Sender"]

log = logging.getLogger(__name__)

LEASE = "notifications"
ROUTES_BUCKET, ROUTES_KEY = "notifications", "routes"
RESOLVED = "automation.resolved"
_FACTS = tuple(f"hark.ev.{type_}" for type_ in (RAISED, ACKNOWLEDGED, RESOLVED))
_SAID = ("hark.ev.notification.>",)
_SAVE_S = 0.1
_FIRST_LOOK_BACK = timedelta(hours=1)
_TRIES = 8
_RETRY_S, _RETRY_CAP_S = 5.0, 300.0
_GRACE_S = 5.0
MAX_WAITING = 1_000
"""Messages to one receiver that are on their way; at the next one the oldest that is not just being sent is given up: what
comes after it tells all that is still open of its group."""
_SENT_AT_ONCE = 20
"""Messages to one receiver that are tried at the same moment; the others wait, and may be given up."""
_SET_BACK_S = 10.0
"""A clock that is behind the last fact by more was set back; by less, it is that of another machine."""


class Sender(Protocol):
    """Sends to a channel. The notifier is behind it."""

    async def send(self, to: str, message: Message, *, key: str, cause: Event | None) -> Sequence[Delivery]:
        """Send; with the key of an earlier call, only what that one did not reach."""
        ...


class Router(Candidate["_Term"]):
    """The service. Entered means: it leads and has caught up, or another one leads. See ``Candidate``.

    Args:
        sender: returns what sends now; raises ``UnavailableError`` while nothing does.
        language: what conditions are written in.
        vault: encrypts what is put down.
        links: makes the links to acknowledge with; None: messages have none.
        look_s: longest sleep: a machine that was suspended, or whose clock was set, is behind for no longer.
    """

    def __init__(
        self,
        bus: Bus,
        sender: Callable[[], Sender],
        language: Language,
        clock: Clock = SYSTEM_CLOCK,
        *,
        vault: Vault,
        links: AckLinks | None = None,
        name: str | None = None,
        lease_ttl_s: float = 5.0,
        look_s: float = 30.0,
    ) -> None:
        super().__init__(
            bus, lease=LEASE, role="notifications", name=name, lease_ttl_s=lease_ttl_s, is_awaited=True
        )
        self._sender, self._language, self._vault = sender, language, vault
        self._clock, self._links, self._look_s = clock, links, look_s

    @property
    def status(self) -> JsonObject:
        """What it knows: ``leader``, open groups, messages on their way, what does not load."""
        term = self._term
        if term is None:
            return {"leader": False}
        errors: JsonObject = {**term.errors}
        return {
            "leader": True,
            "groups": len(term.fold.groups),
            "pending": len(term.pending),
            "errors": errors,
        }

    async def _lead(self, grant: Grant, on_ready: Callable[[_Term], None]) -> None:
        term = _Term(
            self._bus, self._sender, self._language, self._clock, self._vault, self._links, self._look_s
        )
        await term.lead(on_ready, lost=grant.lost)


class _Term:
    """One term of office. ``lead`` ends by being cancelled, deposed, or losing the broker."""

    def __init__(
        self,
        bus: Bus,
        sender: Callable[[], Sender],
        language: Language,
        clock: Clock,
        vault: Vault,
        links: AckLinks | None,
        look_s: float,
    ) -> None:
        self._bus, self._sender, self._language = bus, sender, language
        self._clock, self._links, self._look_s = clock, links, look_s
        self._store = StateStore(bus, vault)
        self._tree = Tree(Routing(), language)
        self._silences: dict[str, Silence] = {}
        self.fold = Grouping(self._tree, SilenceBook({}, language))
        self.pending: dict[str, Send] = {}
        self.errors: dict[str, str] = {}
        self._seq = 0
        self._since: datetime | None = None
        self._incarnation = ""
        self._told: set[str] = set()  # decisions that stand in the log behind the checkpoint
        self._turn = anyio.Lock()
        self._changed = anyio.Event()
        self._dirty = anyio.Event()
        self._lanes: dict[tuple[str, str], anyio.Lock] = {}
        self._places: dict[str, anyio.CapacityLimiter] = {}
        self._waiting: dict[str, dict[str, anyio.CancelScope]] = {}  # by receiver, oldest first
        self._tasks: TaskGroup | None = None
        self._is_ready = self._is_closing = False
        self._is_torn = False  # something was decided that is not in the log yet
        self._on_their_way: set[anyio.CancelScope] = set()
        self._being_sent: set[str] = set()
        self._one_ended = anyio.Event()

    async def lead(self, on_ready: Callable[[_Term], None], *, lost: anyio.Event) -> None:
        """Catch up, then decide and send for as long as nobody stops us.

        What is just being sent when it is stopped may end within a few seconds, unless the lease is ``lost``: then
        another is about to send it.
        """
        restored = await self._store.take_over()
        async with anyio.create_task_group() as tg:
            self._tasks = tg
            await tg.start(self._watch_routes)
            await tg.start(self._watch_silences)
            await self._restore(restored)
            self._is_ready = True
            await tg.start(self._follow)
            on_ready(self)
            tg.start_soon(self._keep_time)
            tg.start_soon(self._keep_saved)
            try:
                await anyio.sleep_forever()
            finally:
                await self._close(0.0 if lost.is_set() else _GRACE_S)

    async def _close(self, grace_s: float) -> None:
        until = anyio.current_time() + grace_s
        self._is_closing = True
        for scope in self._on_their_way:
            scope.deadline = until
        with anyio.move_on_after(grace_s + 2, shield=True):
            while self._on_their_way:
                await self._one_ended.wait()
            await self._last_save()

    async def _restore(self, restored: RouterState | None) -> None:
        state = await self._bus.log.state()
        self._incarnation = state.incarnation
        now = self._clock.now()
        book = self._book()
        if restored is None:
            # The first router ever: what was raised while it started, or with a checkpoint lost, is not old news.
            self._since = now - _FIRST_LOOK_BACK
            self.fold = Grouping(self._tree, book)
        else:
            same = restored.incarnation == state.incarnation
            if same and restored.seq > state.last_seq:
                log.warning("notifications.log_rewound", extra={"seq": restored.seq, "head": state.last_seq})
            elif not same:
                log.warning(
                    "notifications.other_log", extra={"was": restored.incarnation, "is": state.incarnation}
                )
            self._seq = min(restored.seq, state.last_seq) if same else state.last_seq
            self.fold = Grouping.load(restored.fold, self._tree, book)
            self.pending = {send.key: send for send in restored.pending}
            async with self._bus.log.read(_SAID, after=self._seq) as batches:
                async for batch in batches:
                    self._told.update(r.event.id for r in readable(batch.records))
        self.fold.wake(now.timestamp())
        for send in self.pending.values():
            self._start(send)

    # --- facts ----------------------------------------------------------------------------------------

    async def _follow(self, *, task_status: TaskStatus[None]) -> None:
        caught_up = False
        after = None if self._since is not None else self._seq
        async with self._bus.log.follow(_FACTS, after=after, since=self._since) as batches:
            async for batch in batches:
                if batch.records:
                    await self._decide(partial(self._fold_all, batch.records), seq=batch.records[-1].seq)
                if not caught_up and batch.pending == 0:
                    caught_up = True
                    book = self._book()
                    await self._decide(lambda book=book: self.fold.rouse(book, self._now()))  # type: ignore[misc]
                    task_status.started()

    def _fold_all(self, records: Sequence[Recorded]) -> list[Decision]:
        out: list[Decision] = []
        for record in records:
            try:
                out += self._fold_one(record.event)
            except (ValueError, KeyError, TypeError, EventInvalid) as exc:
                log.error("notifications.fact_unreadable", extra={"seq": record.seq, "error": repr(exc)})
        return out

    def _fold_one(self, event: Event) -> list[Decision]:
        # By the writer's clock, which is ours or nearly so; never later than now, never earlier than the last fact.
        at = min(event.time, self._clock.now()).timestamp()
        if event.type == RAISED:
            return self.fold.raised(Alert.of(event), at)
        data: Any = event.data if isinstance(event.data, dict) else {}
        if event.type == ACKNOWLEDGED:
            return self.fold.acknowledged(
                str(data["group"]), str(data.get("by", "")), at, stamp=data.get("stamp")
            )
        rule = data.get("automation")
        name = rule.get("name") if isinstance(rule, dict) else rule
        return self.fold.rule_resolved(str(name), str(data.get("key", "")), Cause.of(event), at)

    async def _decide(self, act: Callable[[], list[Decision]], *, seq: int | None = None) -> None:
        """Let the fold decide and carry out what it decided."""
        async with self._turn:
            self._is_torn = True
            decisions = act()
            if seq is not None:
                self._seq = seq
            sends = [d for d in decisions if isinstance(d, Send)]
            self.pending.update((send.key, send) for send in sends)
            said = [_event(d) for d in decisions if isinstance(d, Said) and d.id not in self._told]
            said += self._crowded_out(sends)
            if said:
                await self._bus.log.append_many(said)
            self._is_torn = False
            if sends:
                await self._save()
            else:
                self._dirty.set()
            for send in sends:
                if send.key in self.pending:  # not crowded out by those behind it
                    self._start(send)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    # --- time -----------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        while True:
            changed = self._changed
            due = self.fold.next_deadline()
            if due is None:
                await changed.wait()
                continue
            now = self._now()
            if now < self.fold.now - _SET_BACK_S:
                log.warning("notifications.clock_set_back", extra={"by_s": round(self.fold.now - now)})
                await self._decide(partial(self.fold.set_back, now))
                continue
            if due <= now:
                await self._decide(partial(self.fold.advance, now))
                continue
            await self._sleep_or(changed, min(due - now, self._look_s))

    async def _sleep_or(self, changed: anyio.Event, delay_s: float) -> None:
        async with anyio.create_task_group() as tg:

            async def sleep() -> None:
                await self._clock.sleep(delay_s)
                tg.cancel_scope.cancel()

            tg.start_soon(sleep)
            await changed.wait()
            tg.cancel_scope.cancel()

    # --- what people change ---------------------------------------------------------------------------

    async def _watch_routes(self, *, task_status: TaskStatus[None]) -> None:
        async with self._bus.bucket(ROUTES_BUCKET).watch(ROUTES_KEY) as changes:
            async for entry in changes:
                if entry.key == "":
                    task_status.started()
                    continue
                if entry.key != ROUTES_KEY:
                    continue
                try:
                    tree = (
                        Tree(Routing(), self._language)
                        if entry.deleted
                        else load_tree(entry.value, self._language)
                    )
                except DefinitionError as exc:
                    # What is in force stays in force.
                    log.error("notifications.routes_refused", extra={"error": str(exc)})
                    self.errors["routes"] = str(exc)
                    continue
                self.errors.pop("routes", None)
                self._tree = tree
                if self._is_ready:
                    await self._decide(lambda tree=tree: self.fold.adopt(tree, self._now()))  # type: ignore[misc]

    async def _watch_silences(self, *, task_status: TaskStatus[None]) -> None:
        in_history = True
        async with self._bus.bucket("silences").watch() as changes:
            async for entry in changes:
                if entry.key == "":
                    in_history = False
                    task_status.started()
                    continue
                if entry.deleted:
                    self._silences.pop(entry.key, None)
                else:
                    try:
                        self._silences[entry.key] = silence_of(entry.value)
                    except ValueError as exc:
                        log.error(
                            "notifications.silence_refused", extra={"silence": entry.key, "error": str(exc)}
                        )
                        self.errors[f"silence {entry.key}"] = str(exc)
                        continue
                if in_history:
                    continue
                book = self._book()
                if self._is_ready:
                    await self._decide(lambda book=book: self.fold.adopt_silences(book, self._now()))  # type: ignore[misc]

    def _book(self) -> SilenceBook:
        return SilenceBook(self._silences, self._language, before=self.fold.silences)

    def _now(self) -> float:
        return self._clock.now().timestamp()

    # --- sending --------------------------------------------------------------------------------------

    def _crowded_out(self, sends: Sequence[Send]) -> list[Event]:
        """Give up the oldest messages to receivers that have too many now; return the events that say so."""
        out: list[Event] = []
        for to, new in Counter(send.to for send in sends).items():
            waiting = self._waiting.get(to, {})
            over = len(waiting) + new - MAX_WAITING
            if over <= 0:
                continue
            oldest = [*waiting, *(send.key for send in sends if send.to == to)]
            for key in [key for key in oldest if key not in self._being_sent][:over]:
                send = self.pending.pop(key)
                if (scope := waiting.pop(key, None)) is not None:
                    scope.cancel()
                why = LimitError(f"more than {MAX_WAITING} messages to it are on their way")
                out.append(self._given_up(send, why))
            log.error("notification.crowded_out", extra={"to": shown_address(to), "messages": over})
        return out

    def _start(self, send: Send) -> None:
        assert self._tasks is not None
        scope = self._waiting.setdefault(send.to, {})[send.key] = anyio.CancelScope()
        self._tasks.start_soon(self._deliver, send, scope, name=f"message {send.key}")

    async def _deliver(self, send: Send, scope: anyio.CancelScope) -> None:
        """Send one message, again when it failed; messages of a group to one receiver go out in order."""
        lane = (send.group, send.to)
        lock = self._lanes.setdefault(lane, anyio.Lock())
        with scope:
            async with lock:
                await self._insist(send)
        state = lock.statistics()
        if not state.tasks_waiting and not state.locked:
            self._lanes.pop(lane, None)
        waiting = self._waiting.get(send.to, {})
        waiting.pop(send.key, None)
        if not waiting:
            self._waiting.pop(send.to, None)
            self._places.pop(send.to, None)
        self.pending.pop(send.key, None)
        self._dirty.set()

    async def _insist(self, send: Send) -> None:
        """Send one message until it is sent or given up."""
        tries = 0
        places = self._places.setdefault(send.to, anyio.CapacityLimiter(_SENT_AT_ONCE))
        while True:
            tries += 1
            try:
                async with places:
                    # Crowded out at this very moment: it has been said that it is not sent.
                    if send.key not in self.pending or await self._try(send):
                        return
            except HarkError as exc:
                log.warning(
                    "notification.not_sent",
                    extra={"to": shown_address(send.to), "try": tries, "error": str(exc)},
                )
                if tries >= _TRIES:
                    await self._give_up(send, exc)
                    return
            await self._clock.sleep(backoff_s(tries, base_s=_RETRY_S, cap_s=_RETRY_CAP_S, jitter=draw()))

    async def _try(self, send: Send) -> bool:
        """Send once, to the end even when we are asked to stop meanwhile, for then it would be sent again."""
        # No deadline yet: the notifier has one of its own.
        with anyio.CancelScope(shield=True) as scope:
            self._on_their_way.add(scope)
            self._being_sent.add(send.key)
            try:
                await self._sender().send(
                    send.to, self._with_link(send), key=send.key, cause=send.cause.event()
                )
            finally:
                self._on_their_way.discard(scope)
                self._being_sent.discard(send.key)
                ended, self._one_ended = self._one_ended, anyio.Event()
                ended.set()
            # At once, so that the last checkpoint knows.
            self.pending.pop(send.key, None)
            return True
        await anyio.lowlevel.checkpoint_if_cancelled()
        return False

    def _with_link(self, send: Send) -> Message:
        message = send.message
        link = None
        if self._links is not None and send.stamp is not None:
            link = self._links.link(Ticket(send.group, send.stamp, shown_address(send.to)), send.at)
        # No null, which a template that places it without asking would write out.
        return replace(message, context={**message.context, "ack_url": link or ""})

    async def _give_up(self, send: Send, exc: HarkError) -> None:
        await self._bus.log.append(self._given_up(send, exc))

    def _given_up(self, send: Send, exc: HarkError) -> Event:
        log.error("notification.given_up", extra={"to": shown_address(send.to), "group": send.group})
        data: JsonObject = {
            "channel": shown_address(send.to), "kind": None, "title": send.message.title, "group": send.group,
            "severity": send.message.severity.value, "error": str(exc), "given_up": True,
        }  # fmt: skip
        return Event(
            type="notification.failed", source=SOURCE, id=f"{send.key}-given-up", subject=f"notification/{send.key}",
            time=self._clock.now(), data=data, **send.cause.event().caused(),
        )  # fmt: skip

    # --- state ----------------------------------------------------------------------------------------

    async def _keep_saved(self) -> None:
        while True:
            await self._dirty.wait()
            # A burst of facts is one write.
            await anyio.sleep(_SAVE_S)
            async with self._turn:
                # Nobody else puts a new one in its place: we would go on waiting for the old one.
                self._dirty = anyio.Event()
                await self._save()

    async def _save(self) -> None:
        await self._store.write(
            self.fold, self.pending, incarnation=self._incarnation, seq=self._seq, errors=self.errors
        )

    async def _last_save(self) -> None:
        if self._turn.locked() or self._is_torn:
            return  # in the middle of something; who comes next decides it again
        try:
            await self._save()
        except (BusUnavailable, Deposed) as exc:
            log.debug("notifications.no_last_checkpoint", extra={"error": repr(exc)})


def _event(said: Said) -> Event:
    return Event(
        type=f"notification.{said.word}", source=SOURCE, id=said.id, subject=said.subject,
        time=datetime.fromtimestamp(said.at, UTC), data=said.data, **said.cause.event().caused(),
    )  # fmt: skip
