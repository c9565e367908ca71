"""The service that tells people: every address by itself, within its time, again when it failed, never twice."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio
import orjson
from anyio import AsyncContextManagerMixin, to_thread
from anyio.abc import TaskGroup
from pydantic import ValidationError

from ..bus.event import Event, format_time
from ..bus.secret import LateValues, Redactor
from ..clock import SYSTEM_CLOCK, Clock
from ..config import NotificationsConfig
from ..errors import (
    BusUnavailable,
    DefinitionError,
    HarkError,
    LimitError,
    NotificationFailed,
    UnknownName,
)
from ..template import render, template_names
from ..vocabulary import JsonObject, JsonValue, derived_id, draw, new_id
from .attachment import Attachments
from .channel import Channel, Template
from .held import Group, HeldMessages
from .message import Delivery, Message, clipped
from .rate import TokenBucket, backoff_s
from .threads import SendThreads, TooManyHang
from .wording import NO_ALERT

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["Notifier"]

log = logging.getLogger(__name__)

SOURCE = "/hark/notifications"
_GROUP_TRIES = 8
_MAX_UNNOTED = 10_000
_INSIST_S = (0.1, 0.2, 0.5, 1.0, 2.0)
_BARE = "bare-address"
"""Name of the channel that is made up around a bare Apprise URL; it has no rate and is never shown."""


@dataclass(frozen=True, slots=True)
class _Address:
    """One address, rendered, and what is said to it; ``url`` is a secret."""

    index: int
    kind: str
    url: str
    message: Message
    format: str = "text"

    def __repr__(self) -> str:
        return f"_Address({self.index}, {self.kind!r})"


@dataclass(frozen=True, slots=True)
class _Job:
    """A message to all addresses of a channel; ``id`` is derived from the caller's key."""

    id: str
    channel: str | None
    addresses: tuple[_Address, ...]
    message: Message
    redactor: Redactor
    cause: Event | None
    grouped: int = 0
    files: tuple[str, ...] = ()

    @property
    def shown_as(self) -> str:
        return self.channel or self.addresses[0].kind


class Notifier(AsyncContextManagerMixin):
    """Sends messages to channels and bare Apprise URLs. Enter it to start; leaving drops what is just being tried.

    Rates count per process: two servers together send up to twice a channel's rate.
    """

    def __init__(
        self, bus: Bus, late: LateValues, config: NotificationsConfig, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._bus, self._late, self._config, self._clock = bus, late, config, clock
        self._threads = SendThreads(config.threads)
        self._held = HeldMessages(bus, late)
        self._buckets: dict[str, TokenBucket] = {}
        self._sending: dict[str, anyio.Lock] = {}
        # What an address has taken and the broker does not know yet; whoever asked may have stopped waiting for that.
        self._unnoted: dict[str, Delivery] = {}
        self._flushing: set[str] = set()
        self._waiting: dict[str, int] = {}
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            self._tasks = tg
            # Summaries that an earlier process did not get to send.
            for name in await self._held.channels():
                self._flush_soon(name)
            try:
                yield self
            finally:
                self._tasks = None
                tg.cancel_scope.cancel("notifier closing")

    # --- telling --------------------------------------------------------------------------------------

    async def send(
        self, to: str, message: Message, *, key: str, cause: Event | None = None
    ) -> list[Delivery]:
        """Send a message and return what became of it at each address.

        Addresses that took the message are remembered under ``key``, so calling again with the same key tries only the
        others. (A crash between an address taking it and our noting so can repeat it there. While the broker is away this
        waits until it can be noted; who stops waiting and calls again finds that the address has it.) Over the channel's
        rate the message is kept, and comes with the next summary.

        Args:
            to: name of a channel, or an Apprise URL (with ``{{ secrets.x }}`` in it or not).
            cause: the event that led to this, for ``correlationid`` and ``causationid`` of what is recorded.
        Raises:
            UnknownName: no such channel, or an address reads a secret that does not exist.
            NotificationFailed: some addresses did not take it, after all tries; its reasons are redacted.
            LimitError: so many messages are waiting for the channel's rate that no more are kept.
            BusUnavailable: the broker does not answer.
        """
        id_ = derived_id("notification", key)
        lock = self._sending.setdefault(id_, anyio.Lock())
        try:
            # The same key twice at once: the second waits, and finds the first's work done.
            async with lock:
                return await self._send(to, message, id_, cause)
        finally:
            if not lock.statistics().tasks_waiting:
                self._sending.pop(id_, None)

    async def _send(self, to: str, message: Message, id_: str, cause: Event | None) -> list[Delivery]:
        channel = await self._channel(to)
        job = await self._prepare(channel, message, id_, cause)
        done = await self._done(job, [str(a.index) for a in job.addresses])
        begun = done | {str(a.index) for a in job.addresses if f"{id_}.{a.index}" in self._unnoted}
        if channel.rate is not None and len(begun) < len(job.addresses):
            if await self._done(job, ["held"]) or await self._held.has(channel.name, id_):
                self._flush_soon(channel.name)
                return _held(job)
            # What was begun is finished without asking the rate again.
            if not begun and not self._bucket(channel).take(now=self._clock.monotonic()):
                return await self._hold(channel, job)
        return await self._deliver(job, done, tries=self._config.retries + 1)

    async def test_channel(self, to: str, message: Message | None = None) -> list[Delivery]:
        """Send a test message to every address of a channel, once each, whatever its rate, and return how it went.

        Failures are in the answer, not raised; nothing is recorded as an event.

        Raises:
            UnknownName: no such channel, or an address reads a secret that does not exist.
        """
        at = format_time(self._clock.now())
        message = message or Message("Hark test", f"If you can read this, the channel works. Sent at {at}.")
        channel = await self._channel(to)
        job = await self._prepare(channel, message, new_id(), None)
        found: list[Delivery] = []

        async def one(address: _Address) -> None:
            found.append(await self._try_address(job, address, tries=1))

        async with anyio.create_task_group() as tg:
            for address in job.addresses:
                tg.start_soon(one, address)
        return sorted(found, key=lambda d: d.address)

    # --- finding out what to do -----------------------------------------------------------------------

    async def _channel(self, to: str) -> Channel:
        if "://" in to or "{{" in to:
            # Trusted: it is checked when it is used, in a thread.
            return Channel.model_validate({"name": _BARE, "urls": [to]}, context={"trusted": True})
        bucket = self._bus.bucket("channels")
        try:
            entry = await bucket.get(to)
        except DefinitionError:  # no key of a bucket, so no channel either
            entry = None
        if entry is None:
            raise UnknownName("channel", to, known=await bucket.keys())
        try:
            value = orjson.loads(entry.value)
            return Channel.model_validate({**value, "name": to}, context={"trusted": True})
        except (ValidationError, orjson.JSONDecodeError, TypeError) as exc:
            raise DefinitionError(
                f"channel {to!r} is not readable as it is stored: {type(exc).__name__}",
                hint="apply its definition again",
            ) from None

    async def _prepare(self, channel: Channel, message: Message, id_: str, cause: Event | None) -> _Job:
        templates: list[JsonValue] = [
            t or "" for kind in channel.templates.values() for t in (kind.title, kind.body)
        ]
        context = await self._late.context(
            list(channel.urls), channel.title or "", channel.body or "", templates
        )
        urls = [render(url, context) for url in channel.urls]
        redactor = self._late.redactor.also(urls)
        link = message.context.get("ack_url")
        linked = replace(message, body=f"{message.body}\n\nAcknowledge: {link}".strip()) if link else message
        said: dict[str, Any] = {
            **NO_ALERT, **message.context, **context, "title": message.title, "severity": message.severity.value,
            "channel": channel.name, "event": cause.to_dict() if cause is not None else {},
        }  # fmt: skip
        from .apprise_port import kind_of

        def written(template: Template) -> Message:
            title, body = template.title, template.body
            # Whoever puts the link where they want it does not get it once more below.
            places_it = any("ack_url" in template_names(text) for text in (title, body) if text is not None)
            plain = message if places_it else linked
            known = {**said, "body": plain.body}
            return clipped(
                replace(
                    message,
                    title=render(title, known) if title is not None else plain.title,
                    body=render(body, known) if body is not None else plain.body,
                )
            )

        addresses = []
        for i, url in enumerate(urls):
            kind = kind_of(url)
            template = channel.template_for(kind)
            addresses.append(_Address(i, kind, url, written(template), template.format))
        return _Job(
            id=id_, channel=None if channel.name == _BARE else channel.name, addresses=tuple(addresses),
            redactor=redactor, cause=cause, message=written(Template(title=channel.title, body=channel.body)),
        )  # fmt: skip

    async def _done(self, job: _Job, parts: list[str]) -> set[str]:
        """Return which ``parts`` (address numbers, or ``held``) of a message an earlier call has noted as done."""
        found: set[str] = set()

        async def look(part: str) -> None:
            if await self._bus.bucket("outbox").get(f"notify.{job.id}.{part}") is not None:
                found.add(part)

        try:
            async with anyio.create_task_group() as tg:
                for part in parts:
                    tg.start_soon(look, part)
        except ExceptionGroup as group:  # a broker that is away is no failure of the message
            raise group.exceptions[0] from None
        return found

    async def _note(self, job: _Job, part: str) -> None:
        await self._bus.bucket("outbox").put(
            f"notify.{job.id}.{part}", b"", ttl_s=self._config.remember_days * 86_400
        )

    async def _insist(self, act: Callable[[], Awaitable[None]]) -> None:
        """Do it until the broker has answered."""
        tries = 0
        while True:
            try:
                return await act()
            except BusUnavailable as exc:
                log.warning("notification.waits_to_note", extra={"error": str(exc)})
            await anyio.sleep(_INSIST_S[min(tries, len(_INSIST_S) - 1)])
            tries += 1

    def _bucket(self, channel: Channel) -> TokenBucket:
        assert channel.rate is not None
        bucket = self._buckets.get(channel.name)
        if bucket is None or bucket.rate != channel.rate:
            bucket = self._buckets[channel.name] = TokenBucket(channel.rate, now=self._clock.monotonic())
        return bucket

    # --- sending --------------------------------------------------------------------------------------

    async def _deliver(self, job: _Job, done: set[str], *, tries: int) -> list[Delivery]:
        found: list[Delivery] = []
        errors: list[HarkError] = []

        async def one(address: _Address) -> None:
            mark = f"{job.id}.{address.index}"
            delivery = self._unnoted.get(mark)
            if delivery is None and str(address.index) in done:
                found.append(Delivery(job.channel, address.index, address.kind, "already-sent"))
                return
            if delivery is None:
                delivery = await self._try_address(job, address, tries=tries)
            found.append(delivery)
            try:
                if delivery.outcome == "sent":
                    self._unnoted[mark] = delivery
                    if len(self._unnoted) > _MAX_UNNOTED:
                        del self._unnoted[next(iter(self._unnoted))]
                    # Noted before the event is: a repeat of the event does no harm, one of the message does.
                    await self._insist(partial(self._note, job, str(address.index)))
                    await self._insist(partial(self._record, job, delivery))
                    self._unnoted.pop(mark, None)
                else:
                    await self._record(job, delivery)
            except HarkError as exc:  # must not cancel what is being sent to the other addresses
                errors.append(exc)

        async with Attachments(self._bus, self._late.redactor).files(job.message.attach) as files:
            job = replace(job, files=files)
            async with anyio.create_task_group() as tg:
                for address in job.addresses:
                    tg.start_soon(one, address)
        if errors:
            raise errors[0]
        found.sort(key=lambda d: d.address)
        failed = [(d.kind, d.reason or "") for d in found if d.outcome == "failed"]
        if failed:
            raise NotificationFailed(
                job.shown_as, failures=failed, sent=len(found) - len(failed), is_named=job.channel is not None
            )
        return found

    async def _try_address(self, job: _Job, address: _Address, *, tries: int) -> Delivery:
        from .apprise_port import Tried, load, send

        delivered: set[Any] = set()
        duration_s, reason, attempt = 0.0, "", 0
        give_up_at = self._clock.monotonic() + self._config.give_up_s
        await to_thread.run_sync(load)
        while True:
            attempt += 1
            began = self._clock.monotonic()
            timeout_s = max(0.1, min(self._config.send_timeout_s, give_up_at - began))
            work = partial(
                send,
                address.url,
                replace(address.message, attach=job.files),
                timeout_s=timeout_s,
                redactor=job.redactor,
                delivered=delivered,
                body_format=address.format,
            )
            try:
                tried = await self._threads.run(work, timeout_s=timeout_s)
            except TimeoutError:
                tried = Tried(False, f"no answer within {timeout_s:.3g} s")
            except TooManyHang as exc:
                tried = Tried(False, str(exc))
            duration_s += self._clock.monotonic() - began
            outcome: JsonObject = {"channel": job.shown_as, "kind": address.kind, "attempt": attempt}
            if tried.ok:
                log.info("notification.sent", extra={**outcome, "took_ms": round(duration_s * 1000)})
                return Delivery(
                    job.channel, address.index, address.kind, "sent", attempt, round(duration_s, 4)
                )
            reason = tried.reason
            log.warning("notification.try_failed", extra={**outcome, "reason": reason})
            wait_s = backoff_s(
                attempt, base_s=self._config.backoff_s, jitter=draw(), asked_s=tried.retry_after_s
            )
            late = self._clock.monotonic() + wait_s >= give_up_at
            if attempt >= tries or tried.is_final or late:
                break
            await self._clock.sleep(wait_s)
        return Delivery(
            job.channel, address.index, address.kind, "failed", attempt, round(duration_s, 4), reason
        )

    async def _record(self, job: _Job, delivery: Delivery) -> None:
        data: JsonObject = {
            "channel": job.channel, "kind": delivery.kind, "address": delivery.address,
            "title": job.redactor.redact(job.message.title), "severity": job.message.severity.value,
            "attempt": delivery.attempts, "duration_s": delivery.duration_s,
        }  # fmt: skip
        if job.grouped:
            data["grouped"] = job.grouped
        if delivery.reason is not None:
            data["error"] = delivery.reason
        about = job.message.context.get("group")
        if isinstance(about, dict):
            data["group"], data["about"] = about.get("id"), job.message.context.get("kind")
        await self._append(delivery.outcome, job, data)

    async def _append(self, word: str, job: _Job, data: JsonObject) -> None:
        caused = job.cause.caused() if job.cause is not None else {}
        # A fresh id for failures: the same message may fail again, and that is another fact.
        id_ = (
            new_id()
            if word == "failed"
            else derived_id("notification", job.id, word, str(data.get("address")))
        )
        await self._bus.log.append(
            Event(
                type=f"notification.{word}",
                source=SOURCE,
                id=id_,
                subject=f"notification/{job.id}",
                time=self._clock.now(),
                data=data,
                **caused,
            )
        )

    # --- over the rate --------------------------------------------------------------------------------

    async def _hold(self, channel: Channel, job: _Job) -> list[Delivery]:
        name = channel.name
        if name not in self._waiting:
            self._waiting[name] = await self._held.count(name)
        if self._waiting[name] >= self._config.max_held:
            raise LimitError(
                f"{self._waiting[name]} messages wait for the rate of channel {name!r}, which is the bound",
                hint="raise its rate, group what is sent there, or raise HARK_NOTIFICATIONS__MAX_HELD",
            )
        self._waiting[name] += 1
        await self._held.add(name, job.id, job.message)
        # Also after the summary has gone out, the same key is not sent again.
        await self._note(job, "held")
        log.info("notification.grouped", extra={"channel": name, "waiting": self._waiting[name]})
        data: JsonObject = {
            "channel": name, "title": job.redactor.redact(job.message.title),
            "severity": job.message.severity.value, "waiting": self._waiting[name],
        }  # fmt: skip
        await self._append("grouped", job, data)
        self._flush_soon(name)
        return _held(job)

    def _flush_soon(self, name: str) -> None:
        if self._tasks is not None and name not in self._flushing:
            self._flushing.add(name)
            self._tasks.start_soon(self._flush, name, name=f"summaries of {name}")

    async def _flush(self, name: str) -> None:
        """Send summaries until nothing waits for the channel any more; one process at a time does so."""
        holder = f"{socket.gethostname()}/{os.getpid()}"
        while True:
            try:
                async with self._bus.lease(f"notify.{name}", holder=holder).held():
                    await self._flush_held(name)
                # In this order, so that what comes in meanwhile is seen here or begins a new task.
                self._flushing.discard(name)
                if not await self._held.any(name) or name in self._flushing:
                    return
                self._flushing.add(name)
            except HarkError as exc:
                log.warning("notification.flush_stopped", extra={"channel": name, "error": str(exc)})
                self._flushing.add(name)
                await self._clock.sleep(1)

    async def _flush_held(self, name: str) -> None:
        tries = 0
        while await self._held.any(name):
            try:
                channel = await self._channel(name)
                if channel.rate is not None:
                    bucket = self._bucket(channel)
                    while not bucket.take(now=self._clock.monotonic()):
                        await self._clock.sleep(bucket.wait_s(now=self._clock.monotonic()))
            except DefinitionError as exc:
                await self._give_up(name, await self._held.next_group(name), str(exc))
                return
            group = await self._held.next_group(name)
            if group is None:
                return
            tries += 1
            try:
                # Its templates were applied to each message when it was held.
                plain = channel.model_copy(update={"title": None, "body": None, "templates": {}})
                id_ = derived_id("notification", group.key)
                job = replace(
                    await self._prepare(plain, group.message, id_, None), grouped=len(group.members)
                )
                done = await self._done(job, [str(a.index) for a in job.addresses])
                await self._deliver(job, done, tries=self._config.retries + 1)
            except (NotificationFailed, DefinitionError) as exc:
                log.warning(
                    "notification.summary_failed", extra={"channel": name, "try": tries, "error": str(exc)}
                )
                if tries >= _GROUP_TRIES:
                    await self._give_up(name, group, str(exc))
                    tries = 0
                else:
                    await self._clock.sleep(
                        backoff_s(tries, base_s=self._config.backoff_s * 4, jitter=draw())
                    )
                continue
            tries = 0
            await self._forget(name, group)

    async def _forget(self, name: str, group: Group) -> None:
        await self._held.done(name, group)
        self._waiting[name] = await self._held.count(name)

    async def _give_up(self, name: str, group: Group | None, why: str) -> None:
        """Record that a summary could not be sent, with what it stood for, and forget it."""
        if group is None:
            return
        log.error("notification.summary_given_up", extra={"channel": name, "messages": len(group.members)})
        redact = self._late.redactor.redact
        await self._bus.log.append(
            Event(
                type="notification.failed",
                source=SOURCE,
                subject=f"notification/{group.key}",
                time=self._clock.now(),
                data={
                    "channel": name,
                    "kind": None,
                    "title": redact(group.message.title),
                    "body": redact(group.message.body),
                    "severity": group.message.severity.value,
                    "grouped": len(group.members),
                    "error": redact(why),
                },
            )
        )
        await self._forget(name, group)


def _held(job: _Job) -> list[Delivery]:
    return [Delivery(job.channel, a.index, a.kind, "held") for a in job.addresses]
