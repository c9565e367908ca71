"""The receiver of webhooks: a request comes in, an event is stored, and only then the answer is 202.

======  ==============================================================================================================
answer  when
======  ==============================================================================================================
202     the event is stored: ``{"id": …}``; with ``"duplicate": true`` if this delivery was stored before
200     Slack's ``url_verification`` (the challenge is echoed); a CloudEvents handshake by OPTIONS; with
        ``wait_for_run``, the run the event led to has completed: ``{"id", "run", "state", "result"}``
400     broken JSON, form or text; a request that does not say what it is
401     no signature, a wrong one, or one that is too old
404     there is no webhook of that name
405     the method is not one of ``methods``; ``Allow`` says which are
409     the webhook is paused: a sender that tries again will get through later
410     the webhook is retired: a sender need not try again
413     the body (or the event made of it) is too large
415     a content type or encoding that is not read
422     the webhook's templates make no event of this request
429     over the rate; ``Retry-After`` says when to come back
500     the webhook's definition or secret is broken; the server's log says how; with ``wait_for_run``, the run failed or was refused
503     the log cannot be reached; ``Retry-After``
======  ==============================================================================================================

What is not accepted becomes ``webhook.rejected`` without the body; of a flood, a few per second with the number of
those that were not told. Nothing a request holds can raise out of ``receive``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Protocol, Self

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskStatus
from pydantic import ValidationError

from ..bus import Bus, Entry
from ..bus.event import Event
from ..clock import SYSTEM_CLOCK, Clock
from ..config import TriggersConfig
from ..duration import Rate
from ..errors import (
    DefinitionError,
    EventRefused,
    EventTooLarge,
    HarkError,
    RefusedError,
    UnavailableError,
    UnknownName,
)
from ..template import render
from ..vocabulary import JsonObject, JsonValue, new_id
from .body import Body, BodyError, parse_body
from .capture import Captured, capture, has_kept_proof
from .delivery import Deliveries
from .mapping import Mapped, MappingFailed, challenge_of, is_cloud_event, map_requests, reads_cloud_events
from .preset import BasicVerify, CloudEventsVerify
from .rate import TokenBucket
from .rejection import Rejections
from .response import RunWaits
from .verify import Keys, Refused, Request, verify
from .webhook import Webhook

__all__ = ["Answer", "LateValues", "WebhookReceiver"]

log = logging.getLogger(__name__)

# Senders give up after 3 s (Slack) to 10 s (GitHub); past that nobody hears the answer.
_DEADLINE_S = 9.0
# A rotated secret is taken up this soon; asking the broker for it at every request would cost more than all the rest.
_KEYS_FRESH_S = 2.0

_TITLES = {
    400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    410: "Gone", 413: "Content Too Large", 415: "Unsupported Media Type", 422: "Unprocessable Content",
    429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


class LateValues(Protocol):
    """Resolves ``{{ secrets.x }}``, ``{{ variables.x }}`` and ``{{ env.X }}`` when they are needed."""

    async def context(self, *templates: JsonValue) -> Mapping[str, Any]:
        """Return what the templates read.

        Raises:
            UnknownName: a name does not exist. UnavailableError: cannot be asked now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer over HTTP; ``body`` as JSON. Errors are problem documents (RFC 9457)."""

    status: int
    body: JsonObject
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Hook:
    """A webhook and what the receiver remembers of it."""

    webhook: Webhook
    bucket: TokenBucket
    keys: Keys | None = None
    keys_until_s: float = 0.0


@dataclass(slots=True)
class _Trace:
    """What has become of a request so far, for what is kept of it."""

    is_genuine: bool = False
    event_ids: tuple[str, ...] = ()
    is_told: bool = True


_NOT_SET_UP = "this webhook is not set up completely"


class _Rejected(Exception):
    """The request is not accepted. ``told`` is for its sender, ``detail`` for us where senders need not know."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        told: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.headers = status, reason, detail, dict(headers or {})
        self.told = detail if told is None else told


class WebhookReceiver(AsyncContextManagerMixin):
    """Turns requests into events. Entered: every stored definition is known; changes are taken up as they come.

    Args:
        late: where the secrets come from; without it, a webhook whose secret is a template answers 500.
    """

    def __init__(
        self,
        bus: Bus,
        late: LateValues | None,
        config: TriggersConfig | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._bus, self._late, self._clock = bus, late, clock
        self._config = config or TriggersConfig()
        self._waits = RunWaits(bus)
        self._deliveries = Deliveries(bus, ttl_s=self._config.webhook_dedupe_s)
        self._hooks: dict[str, _Hook] = {}
        self._broken: dict[str, str] = {}
        self._rejections = Rejections(bus, per_s=self._config.webhook_rejected_per_s, clock=clock)

    # --- definitions ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with anyio.create_task_group() as tg:
            await tg.start(self._watch)
            try:
                yield self
            finally:
                tg.cancel_scope.cancel()

    async def _watch(self, *, task_status: TaskStatus[None]) -> None:
        async with self._bus.bucket("webhooks").watch() as changes:
            async for entry in changes:
                if entry.key:
                    self._define(entry)
                else:
                    task_status.started()

    def _define(self, entry: Entry) -> None:
        old = self._hooks.pop(entry.key, None)
        self._broken.pop(entry.key, None)
        if entry.deleted:
            self._rejections.forget(entry.key)
            return
        try:
            webhook = Webhook.model_validate_json(entry.value)
            if webhook.name != entry.key:
                raise ValueError(f"it says it is {webhook.name!r}")
        except (ValidationError, ValueError) as exc:
            self._broken[entry.key] = str(exc)
            log.error("webhook.broken", extra={"webhook": entry.key, "error": str(exc)})
            return
        rate = webhook.rate or _per_second(self._config.webhook_rate_per_s)
        bucket = TokenBucket.full(rate, now_s=self._clock.monotonic())
        if old is not None and old.bucket.rate == rate:
            bucket = old.bucket  # a change of a text does not refill it
        self._hooks[entry.key] = _Hook(webhook, bucket)

    @property
    def webhooks(self) -> dict[str, Webhook]:
        """The webhooks that load, by name."""
        return {name: hook.webhook for name, hook in sorted(self._hooks.items())}

    @property
    def broken(self) -> dict[str, str]:
        """Names of definitions that do not load, with the error."""
        return dict(self._broken)

    def limit_of(self, name: str) -> int:
        """Return how many bytes of a body are of interest: the webhook's limit; 0 for one that does not exist.

        Who reads the body from a socket may stop at one byte more: ``receive`` then answers 413.
        """
        hook = self._hooks.get(name)
        if hook is None:
            return 0
        return min(hook.webhook.max_bytes or self._config.webhook_max_bytes, self._config.webhook_max_bytes)

    # --- receiving ------------------------------------------------------------------------------------

    async def receive(
        self,
        name: str,
        *,
        method: str,
        headers: Mapping[str, str],
        query: Mapping[str, str | list[str]],
        body: bytes,
        remote: str | None = None,
    ) -> Answer:
        """Take one request in and return the answer to give. Raises nothing but cancellation.

        Args:
            name: the webhook, from the address.
            headers: names in any case.
            query: a list of values where a key is repeated.
            body: the raw bytes; may be cut off one byte past ``limit_of(name)``, and left out where the header
                Content-Length says more than that.
            remote: the sender's address, for ``webhook.rejected``.
        """
        request = Request(
            method.upper(), {key.lower(): value for key, value in headers.items()}, dict(query), body
        )
        received_at, trace = self._clock.now(), _Trace()
        answer = await self._receive(name, request, remote, trace)
        if request.method != "OPTIONS" and answer.status != 503:
            self._keep(name, request, answer, trace, remote=remote, received_at=received_at)
        return answer

    async def _receive(self, name: str, request: Request, remote: str | None, trace: _Trace) -> Answer:
        try:
            with anyio.move_on_after(_DEADLINE_S) as deadline:
                webhook, answer, stored = await self._accept(name, request, trace)
            if deadline.cancelled_caught:
                raise _Rejected(
                    503, "unavailable", "the log did not answer in time", headers={"Retry-After": "5"}
                )
            if stored is not None and webhook.wait_for_run is not None:
                return await self._with_outcome(webhook, answer, *stored)
            return answer
        except _Rejected as exc:
            return self._reject(name, request, exc, remote, trace)
        except UnavailableError as exc:
            unavailable = _Rejected(503, "unavailable", str(exc), headers={"Retry-After": "5"})
            return self._reject(name, request, unavailable, remote, trace)
        except Exception:  # whatever a request holds, the next one is received
            log.exception("webhook.failed", extra={"webhook": name})
            return self._reject(
                name, request, _Rejected(500, "error", "the request could not be processed"), remote, trace
            )

    async def _accept(
        self, name: str, request: Request, trace: _Trace
    ) -> tuple[Webhook, Answer, tuple[Event, int] | None]:
        hook = self._find(name)
        webhook = hook.webhook
        if request.method == "OPTIONS":
            return webhook, _handshake(webhook, request, hook.bucket.rate), None
        if request.method not in webhook.methods:
            allow = ", ".join(webhook.methods)
            raise _Rejected(405, "method", f"this webhook takes {allow}", headers={"Allow": allow})
        limit = self.limit_of(name)
        if request.size > limit:
            raise _Rejected(413, "too-large", f"the body is larger than {limit} bytes")
        now = self._clock.now()
        verdict = verify(
            webhook.verify,
            request,
            await self._keys(hook),
            now=now,
            tolerance_s=self._config.webhook_tolerance_s,
        )
        if isinstance(verdict, Refused):
            if verdict.reason in ("secret-missing", "secret-malformed"):
                log.error("webhook.no_secret", extra={"webhook": name, "error": verdict.detail})
                raise _Rejected(500, verdict.reason, verdict.detail, told=_NOT_SET_UP)
            challenge = "Basic" if isinstance(webhook.verify, BasicVerify) else "Bearer"
            needs = (
                {"WWW-Authenticate": f'{challenge} realm="hark"'} if "credentials" in verdict.reason else {}
            )
            raise _Rejected(401, verdict.reason, verdict.detail, headers=needs)
        trace.is_genuine = True
        # After verifying: else anybody could use up the rate of the genuine sender.
        wait_s = hook.bucket.take(self._clock.monotonic())
        if wait_s > 0:
            after = {"Retry-After": str(math.ceil(wait_s))}
            raise _Rejected(429, "rate", f"more than {hook.bucket.rate} requests", headers=after)
        return webhook, *await self._store(webhook, request, _read(webhook, request), trace)

    def _find(self, name: str) -> _Hook:
        hook = self._hooks.get(name)
        if hook is None:
            if name in self._broken:
                raise _Rejected(500, "broken", "the definition of this webhook does not load")
            raise _Rejected(404, "unknown", "there is no such webhook")
        if hook.webhook.retired:
            raise _Rejected(410, "retired", "this webhook is retired")
        if hook.webhook.paused:
            raise _Rejected(409, "paused", "this webhook is paused", headers={"Retry-After": "300"})
        return hook

    async def _keys(self, hook: _Hook) -> Keys:
        """Return the webhook's secrets, resolved not long ago."""
        now_s = self._clock.monotonic()
        if hook.keys is not None and now_s < hook.keys_until_s:
            return hook.keys
        rule = hook.webhook.verify
        templates = rule.templates()
        try:
            context = await self._late.context(*templates) if self._late is not None and templates else {}
            rendered = [render(template, context) for template in templates]
        except DefinitionError as exc:
            log.error("webhook.no_secret", extra={"webhook": hook.webhook.name, "error": str(exc)})
            raise _Rejected(500, "secret-missing", str(exc), told=_NOT_SET_UP) from exc
        if isinstance(rule, BasicVerify):
            keys = Keys(tuple(rendered[:-1]), rendered[-1])
        else:
            keys = Keys(tuple(rendered))
        hook.keys, hook.keys_until_s = keys, now_s + _KEYS_FRESH_S
        return keys

    async def _store(
        self, webhook: Webhook, request: Request, body: Body, trace: _Trace, *, again: Captured | None = None
    ) -> tuple[Answer, tuple[Event, int] | None]:
        """Return the answer and, if one event was stored now, that event and its place.

        Args:
            again: the kept request this is, if it is delivered again: what was stored then is stored as a new event.
        """
        challenge = challenge_of(webhook, body)
        if challenge is not None:
            return Answer(200, {"challenge": challenge}), None
        try:
            mapped = map_requests(webhook, request, body, now=self._clock.now())
            if again is not None and again.event_ids:
                mapped = [_replayed(one, again, place) for place, one in enumerate(mapped)]
            stored = [await self._deliveries.store(webhook.name, one.delivery, one.event) for one in mapped]
        except MappingFailed as exc:
            raise _Rejected(exc.status, exc.reason, exc.detail) from exc
        except EventTooLarge as exc:
            raise _Rejected(413, "too-large", str(exc)) from exc
        except EventRefused as exc:
            raise _Rejected(422, "refused", str(exc)) from exc
        except DefinitionError as exc:  # such as JSON nested deeper than can be written
            raise _Rejected(400, "not-an-event", str(exc)) from exc
        trace.event_ids = tuple(one.id for one in stored)
        if len(stored) != 1:
            ids: list[JsonValue] = [*trace.event_ids]
            repeats = sum(one.is_repeat for one in stored)
            return Answer(202, {"ids": ids, **({"duplicates": repeats} if repeats else {})}), None
        [first] = stored
        answer: JsonObject = {"id": first.id}
        if first.is_repeat:
            answer["duplicate"] = True
        return Answer(202, answer), None if first.seq is None else (mapped[0].event, first.seq)

    async def _with_outcome(self, webhook: Webhook, answer: Answer, event: Event, seq: int) -> Answer:
        """Return the answer with how the run ended that the event led to, or as it is where none has ended in time."""
        assert webhook.wait_for_run is not None
        try:
            outcome = await self._waits.wait(event, seq=seq, within_s=webhook.wait_for_run)
        except HarkError as exc:  # the event is stored, and that is what 202 says
            log.warning("webhook.wait_failed", extra={"webhook": webhook.name, "error": str(exc)})
            return answer
        if outcome is None:
            return answer
        return Answer(200 if outcome.is_completed else 500, {**answer.body, **outcome.told})

    # --- keeping, and delivering again ----------------------------------------------------------------

    def _keep(
        self,
        name: str,
        request: Request,
        answer: Answer,
        trace: _Trace,
        *,
        remote: str | None,
        received_at: datetime,
    ) -> None:
        """Keep the request for a while, if its webhook exists; of refused ones, as many as are told of."""
        hook = self._hooks.get(name)
        if hook is None or not self._config.webhook_kept_bytes:
            return
        is_stored = answer.status < 300 or bool(trace.event_ids)
        if not is_stored and not trace.is_told:
            return
        kept = capture(
            name,
            hook.webhook.verify,
            request,
            secrets=hook.keys.secrets if hook.keys is not None else (),
            received_at=received_at,
            remote=remote,
            status=answer.status,
            reason=str(answer.body.get("reason") or ""),
            event_ids=trace.event_ids,
            is_genuine=trace.is_genuine,
            max_bytes=self._config.webhook_kept_bytes,
        )
        # Two kinds, so that a flood of requests that are not genuine does not push out those that are.
        try:
            self._bus.captures.keep_nowait(f"{_kind_of(name)}.{'ok' if is_stored else 'no'}", kept.to_json())
        except HarkError as exc:
            log.warning("webhook.not_kept", extra={"webhook": name, "error": str(exc)})

    async def requests(self, name: str) -> list[Captured]:
        """Return the requests kept of a webhook, the newest first. Empty also for one that does not exist.

        Raises:
            UnavailableError: the broker cannot be reached.
        """
        found = await self._bus.captures.list(f"{_kind_of(name)}.*")
        return [Captured.from_json(one.raw, id=str(one.seq)) for one in reversed(found)]

    async def kept(self, id: str) -> Captured:
        """Return one kept request.

        Raises:
            UnknownName: there is none of this id (any more). UnavailableError: the broker cannot be reached.
        """
        found = (
            await self._bus.captures.get(int(id)) if id.isascii() and id.isdigit() and len(id) < 19 else None
        )
        if found is None:
            raise UnknownName("webhook request", id[:40])
        return Captured.from_json(found[0], id=id)

    async def redeliver(self, id: str) -> Answer:
        """Take a kept request in again, by the webhook as it is now, and return the answer.

        One that was refused then is the delivery it was, so that the sender's own repeat makes no second event; one that
        was stored makes a new event, whose ``replayof`` names the first.

        Raises:
            UnknownName: there is none of this id (any more). UnavailableError: nothing was stored.
            RefusedError: not all of it was kept, or it cannot be verified.
        """
        again = await self.kept(id)
        request, trace = again.request(), _Trace()
        if not again.is_whole:
            raise RefusedError(
                f"only {len(again.body)} of the {again.size} bytes of request {id} were kept",
                hint="have the sender send it again; HARK_TRIGGERS__WEBHOOK_KEPT_BYTES keeps more",
            )
        try:
            hook = self._find(again.webhook)
            if not again.is_genuine:
                await self._verify_again(hook, again, request)
            answer, _ = await self._store(
                hook.webhook, request, _read(hook.webhook, request), trace, again=again
            )
        except _Rejected as exc:
            return self._reject(again.webhook, request, exc, again.remote, trace)
        return answer

    async def _verify_again(self, hook: _Hook, again: Captured, request: Request) -> None:
        """Raise ``RefusedError`` unless a request that was not genuine then is so by the secrets of now."""
        rule = hook.webhook.verify
        if not has_kept_proof(rule, request):
            raise RefusedError(
                f"request {again.id} was not genuine, and what would prove it is not kept",
                hint="have the sender send it again",
            )
        tolerance_s = self._config.webhook_tolerance_s
        hook.keys = None  # the secret may have been put right a moment ago
        verdict = verify(
            rule, request, await self._keys(hook), now=again.received_at, tolerance_s=tolerance_s
        )
        if isinstance(verdict, Refused):
            raise RefusedError(f"request {again.id} is still not genuine: {verdict.detail}")

    # --- rejecting ------------------------------------------------------------------------------------

    def _reject(
        self, name: str, request: Request, why: _Rejected, remote: str | None, trace: _Trace
    ) -> Answer:
        trace.is_told = self._tell(name, request, why, remote)
        problem: JsonObject = {
            "type": f"urn:hark:problem:webhook-{why.reason}",
            "title": _TITLES.get(why.status, "Error"),
            "status": why.status,
            "detail": why.told,
            "reason": why.reason,
        }
        return Answer(why.status, problem, {"Content-Type": "application/problem+json", **why.headers})

    def _tell(self, name: str, request: Request, why: _Rejected, remote: str | None) -> bool:
        log.info(
            "webhook.rejected", extra={"webhook": name[:100], "status": why.status, "reason": why.reason}
        )
        if why.status == 503:
            return False  # there is nobody to tell
        known = name if name in self._hooks or name in self._broken else ""
        return self._rejections.tell(
            known, name, request, status=why.status, reason=why.reason, detail=why.detail, remote=remote
        )


def _kind_of(name: str) -> str:
    """Return a webhook's name as one word of a bus subject."""
    return name.replace(".", "=")


def _replayed(mapped: Mapped, again: Captured, place: int) -> Mapped:
    """Return the event under a new id, as a replay of the one that was stored first."""
    first = again.event_ids[place] if place < len(again.event_ids) else again.event_ids[0]
    return Mapped(mapped.event.replace(id=new_id(), replayof=first), None)


def _read(webhook: Webhook, request: Request) -> Body:
    # A CloudEvent in binary mode may have data of any kind; templates read what they can.
    is_event = webhook.event is None and reads_cloud_events(webhook) and is_cloud_event(request)
    try:
        return parse_body(request.headers, request.body, any_kind=is_event)
    except BodyError as exc:
        raise _Rejected(exc.status, exc.reason, exc.detail) from exc


def _per_second(rate: float) -> Rate:
    """Return a rate of whole requests: 500.0 as 500 in 1 s, 0.5 as 1 in 2 s."""
    return Rate(math.floor(rate), math.floor(rate) / rate) if rate >= 1 else Rate(1, 1 / rate)


def _handshake(webhook: Webhook, request: Request, rate: Rate) -> Answer:
    """Answer whether a CloudEvents sender may deliver here.

    Source: HTTP 1.1 Web Hooks for Event Delivery 1.0.2, section 4. A ``WebHook-Request-Callback`` is not called: the
    permission is given at once, and calling addresses that strangers name is not safe.
    """
    takes_events = reads_cloud_events(webhook)
    allow = ", ".join((*webhook.methods, "OPTIONS") if takes_events else webhook.methods)
    origin = request.headers.get("webhook-request-origin", "").strip()
    if not takes_events or not origin:
        how = "; OPTIONS is for CloudEvents senders, who say `WebHook-Request-Origin`" if takes_events else ""
        raise _Rejected(405, "method", f"this webhook takes {allow}{how}", headers={"Allow": allow})
    allowed = webhook.verify.allowed_origins if isinstance(webhook.verify, CloudEventsVerify) else ()
    if allowed and "*" not in allowed and origin not in allowed:
        near = get_close_matches(origin, allowed, n=1)
        log.info(
            "webhook.origin_refused", extra={"webhook": webhook.name, "origin": origin[:200], "near": near}
        )
        raise _Rejected(401, "origin", "this origin may not deliver here")
    headers = {
        "Allow": allow,
        "WebHook-Allowed-Origin": origin[:500] if origin.isascii() and origin.isprintable() else "*",
        "WebHook-Allowed-Rate": str(max(1, math.floor(rate.count / rate.per_s * 60))),
    }
    return Answer(200, {}, headers)
