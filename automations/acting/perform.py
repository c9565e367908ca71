"""Carrying out one action of a firing: what it says is rendered, and the right part of Hark is asked to do it.

Each gets a key that belongs to the firing and the action's place in the rule, and hands it on: as the id of the run or
event that is made, as ``Idempotency-Key``, to the notifier. Doing an action twice is therefore doing it once,
wherever the other side can tell.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self

import orjson
from anyio import AsyncContextManagerMixin

from ...bus import Bus, Event
from ...bus.event import check_type, checked, is_own_type
from ...clock import SYSTEM_CLOCK, Clock
from ...config import AutomationsConfig
from ...engine.runs.run import Cause, run_id_for
from ...errors import (
    AlreadyHeld,
    DefinitionError,
    GuardFailed,
    HarkError,
    RateLimited,
    RefusedError,
    UnknownName,
)
from ...notifications.alert import ROUTES, raise_alert
from ...notifications.message import Delivery, Message, Severity
from ...template import render, render_value
from ...vocabulary import FlowRunId, JsonObject, JsonValue, StateType, derived_id
from ..action import Action, Approve, Call, Cancel, Emit, Notify, Pause, Resume, Retry, Run, SetState, Suspend
from .approval import ApprovalLinks, Approvals
from .facts import facts_of
from .http import AddressRefused, Caller, CallFailed, retry_after_s, sign_standard_webhook
from .recipient import RecipientRefused, recipient

if TYPE_CHECKING:
    from ...bus import LateValues
    from ...engine.dispatching.control import Control

__all__ = ["ActionFailed", "Firing", "Performers", "Teller"]

log = logging.getLogger(__name__)

_PAUSABLE = {"automation": "automations", "webhook": "webhooks", "schedule": "schedules"}


class ActionFailed(HarkError):
    """An action could not be done.

    Attributes:
        again: whether trying again may help; retry_after_s: how long the other side asks us to wait.
    """

    def __init__(
        self, message: str, *, again: bool = True, retry_after_s: float | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.again, self.retry_after_s = again, retry_after_s


class Teller(Protocol):
    """Tells people. The notifier is behind it."""

    async def send(self, to: str, message: Message, *, key: str, cause: Event | None) -> Sequence[Delivery]:
        """Send to a channel or an Apprise URL; with the key of an earlier call, only what that one did not reach."""
        ...


@dataclass(frozen=True, slots=True)
class Firing:
    """The decision an action belongs to: the stored event and its place in the log.

    ``repeated``: an earlier try of the action may have done it, and nobody could note that.
    """

    event: Event
    seq: int
    automation: str
    data: Mapping[str, Any] = field(repr=False)
    repeated: bool = False

    @classmethod
    def of(cls, event: Event, seq: int, data: JsonValue | bytes = None) -> Firing:
        """``data``: of the event as it stands in the log, where the event has not been read from there."""
        data = event.data if data is None else data
        data = data if isinstance(data, dict) else {}
        rule = data.get("automation")
        name = rule.get("name") if isinstance(rule, dict) else rule
        return cls(event, seq, str(name or ""), data)

    @property
    def cause(self) -> Cause:
        return Cause("automation", self.automation, self.event.id)

    @property
    def trigger(self) -> Event:
        """The decision as the cause of what actions make: a chain counts rules, not a rule and its effect apart."""
        return self.event.replace(causaldepth=max(0, self.event.causaldepth - 1))


class Performers(AsyncContextManagerMixin):
    """Does actions. Entered: ready to.

    Args:
        notifier: returns the notifier that runs now; raises ``UnavailableError`` while there is none.
    """

    def __init__(
        self,
        bus: Bus,
        control: Control,
        late: LateValues,
        config: AutomationsConfig,
        *,
        notifier: Callable[[], Teller],
        clock: Clock = SYSTEM_CLOCK,
        links: ApprovalLinks | None = None,
    ) -> None:
        self._bus, self._control, self._late, self._config = bus, control, late, config
        self._links = links
        self._notifier, self._clock = notifier, clock
        self._caller = Caller(allow_private=config.allow_private_addresses)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        async with self._caller:
            yield self

    def redact(self, text: str) -> str:
        """Return ``text`` without the secrets that have been rendered so far."""
        return self._late.redactor.redact(text)

    async def context(self, firing: Firing, action: Action) -> dict[str, Any]:
        """Return what the templates of an action may read."""
        return await facts_of(self._bus, self._late, firing, action)

    async def perform(self, action: Action, firing: Firing, *, key: str) -> JsonObject:
        """Do one action and return what to record about it.

        Raises:
            ActionFailed, HarkError: it did not happen; ``ActionFailed.again`` says whether to try again.
        """
        context = await self.context(firing, action)
        match action:
            case Run():
                return await self._run(action, firing, context, key)
            case Notify():
                return await self._notify(action, firing, context, key)
            case Approve():
                return await self._approve(action, firing, context, key)
            case Call():
                return await self._call(action, firing, context, key)
            case Emit():
                return await self._emit(action, firing, context, key)
            case Cancel() | Suspend() | Retry() | SetState():
                return await self._flow_run(action, firing, context)
            case Pause() | Resume():
                return await self._pause(action, firing, context)
        raise ActionFailed(f"nobody knows how to do `{action.word}`", again=False)

    # --- runs and definitions -------------------------------------------------------------------------

    async def _run(self, action: Run, firing: Firing, context: Mapping[str, Any], key: str) -> JsonObject:
        deployment = render(action.run, context)
        parameters = render_value(action.parameters, context)
        if not isinstance(parameters, dict):
            raise ActionFailed(f"parameters are a mapping, the template gave {parameters!r:.80}", again=False)
        run_id = run_id_for("action", key)
        if action.key is not None:
            run_id = run_id_for("key", deployment, render(action.key, context))
        run = await self._control.run_deployment(
            deployment,
            parameters=parameters,
            tags=[render(tag, context) for tag in action.tags],
            queue=render(action.queue, context) if action.queue is not None else None,
            scheduled_at=firing.event.time + timedelta(seconds=action.delay) if action.delay else None,
            cause=firing.cause,
            trigger_event=firing.trigger,
            run_id=run_id,
        )
        return {"flow_run": {"id": run.id, "name": run.name}, "deployment": deployment}

    async def _flow_run(
        self, action: Cancel | Suspend | Retry | SetState, firing: Firing, context: Mapping[str, Any]
    ) -> JsonObject:
        run_id = _flow_run_of(action.flow_run, context)
        cause = firing.cause
        match action:
            case Cancel():
                reason = render(action.reason, context) or f"cancelled by the automation {firing.automation}"
                run = await self._control.cancel(run_id, reason=reason, cause=cause)
            case Suspend():
                run = await self._control.suspend(run_id, cause=cause)
            case Retry():
                run = await self._control.retry(run_id, from_start=action.from_start, cause=cause)
            case SetState():
                run = await self._control.set_state(
                    run_id,
                    StateType(action.set_state),
                    name=render(action.name, context) if action.name is not None else "",
                    message=render(action.message, context) if action.message is not None else None,
                    cause=cause,
                )
        return {"flow_run": {"id": run.id, "name": run.name}, "state": run.state_name}

    async def _pause(self, action: Pause | Resume, firing: Firing, context: Mapping[str, Any]) -> JsonObject:
        target, paused = render(action.target, context), isinstance(action, Pause)
        control = self._control
        match action.kind:
            case "deployment":
                await (control.pause_deployment(target) if paused else control.resume_deployment(target))
            case "pool":
                await (control.pause_pool(target) if paused else control.resume_pool(target))
            case "queue":
                pool, _, queue = target.rpartition("/")
                pool = pool or "default"
                await (
                    control.pause_pool(pool, queue=queue)
                    if paused
                    else control.resume_pool(pool, queue=queue)
                )
            case "flow_run":
                run_id = FlowRunId(target)
                await (
                    control.suspend(run_id, cause=firing.cause)
                    if paused
                    else control.resume(run_id, cause=firing.cause)
                )
            case _:
                await self._set_paused(_PAUSABLE[action.kind], action.kind, target, paused=paused)
        return {action.kind: target, "paused": paused}

    async def _set_paused(self, bucket_name: str, kind: str, name: str, *, paused: bool) -> None:
        bucket = self._bus.bucket(bucket_name)
        for _ in range(10):
            entry = await bucket.get(name)
            if entry is None:
                raise UnknownName(kind, name, known=await bucket.keys())
            value = orjson.loads(entry.value)
            if bool(value.get("paused", False)) is paused:
                return
            value["paused"] = paused
            try:
                await bucket.update(name, orjson.dumps(value), revision=entry.revision)
            except (GuardFailed, AlreadyHeld):
                continue
            return
        raise RefusedError(f"the {kind} {name!r} is being changed by too many at once; try again")

    # --- people, other services, events ---------------------------------------------------------------

    async def _notify(
        self, action: Notify, firing: Firing, context: Mapping[str, Any], key: str
    ) -> JsonObject:
        body = render(action.body, context) if action.body is not None else _default_body(context)
        message = Message(
            title=render(action.title, context),
            body=body,
            severity=_severity(action.severity, context),
            attach=tuple(_attachment(render(a, context), context) for a in action.attach),
        )
        sent: list[JsonValue] = []
        errors: list[HarkError] = []
        for i, template in enumerate(action.notify):
            own_key = f"{key}/{i}" if i else key
            try:
                to = _recipient(template, context)
                if to == ROUTES:
                    sent.append(await self._alert(action, message, firing, context, own_key))
                    continue
                deliveries = await self._notifier().send(to, message, key=own_key, cause=firing.event)
            except HarkError as exc:
                errors.append(exc)  # the others are told all the same
                continue
            sent += [{"channel": d.channel, "kind": d.kind, "outcome": d.outcome} for d in deliveries]
        if errors:
            raise errors[0]
        return {"deliveries": sent}

    async def _alert(
        self, action: Notify, message: Message, firing: Firing, context: Mapping[str, Any], key: str
    ) -> JsonObject:
        resolved = action.resolved
        raised = await raise_alert(
            self._bus,
            message,
            key=key,
            now=self._clock.now(),
            alert=render(action.alert, context) if action.alert is not None else None,
            labels={name: render(text, context) for name, text in action.labels.items()},
            own={"automation": firing.automation, "key": str(context["key"] or "")},
            about=context["event"],
            resolved=resolved if resolved is not None else firing.event.type == "automation.resolved",
            cause=firing.event,
            tried_after=firing.seq if firing.repeated else None,
        )
        return {"alert": raised.id, "outcome": "resolved" if raised.resolved else "raised"}

    async def _approve(
        self, action: Approve, firing: Firing, context: Mapping[str, Any], key: str
    ) -> JsonObject:
        links, notifier = self._links, self._notifier()
        if links is None:
            raise ActionFailed("no server is known that answers could go to", again=False)
        told = [_recipient(template, context) for template in action.approve]
        yes, no = links.link(key, "yes"), links.link(key, "no")
        body = render(action.body, context) if action.body is not None else _default_body(context)
        asked = await Approvals(self._bus, self._clock).open(
            key,
            firing,
            title=render(action.title, context),
            body=body,
            wait_s=action.wait,
            branches=action.branches,
        )
        until = asked.expires_at.strftime("%Y-%m-%d %H:%M UTC")
        message = Message(
            title=asked.title,
            body=f"{asked.body}\n\nYes: {yes}\nNo: {no}\n\nOpen until {until}.".lstrip(),
            severity=_severity(action.severity, context),
        )
        sent: list[JsonValue] = []
        for i, to in enumerate(told):
            deliveries = await notifier.send(to, message, key=f"{key}/{i}" if i else key, cause=firing.event)
            sent += [{"channel": d.channel, "kind": d.kind, "outcome": d.outcome} for d in deliveries]
        return {"approval": asked.id, "expires_at": asked.to_json()["expires_at"], "deliveries": sent}

    async def _call(self, action: Call, firing: Firing, context: Mapping[str, Any], key: str) -> JsonObject:
        url = render(action.call, context)
        if not url.startswith(("http://", "https://")):
            raise ActionFailed(
                f"{self.redact(url)!r} is not a URL; it begins with https:// or http://", again=False
            )
        headers = {name: render(value, context) for name, value in action.headers.items()}
        given = {name.lower() for name in headers}
        body = b""
        if action.method not in ("GET", "HEAD"):
            made = (
                render_value(action.body, context)
                if action.body is not None
                else _default_call(firing, context)
            )
            body = made.encode() if isinstance(made, str) else orjson.dumps(made, default=str)
            if "content-type" not in given:
                headers["Content-Type"] = (
                    "text/plain; charset=utf-8" if isinstance(made, str) else "application/json"
                )
        if "idempotency-key" not in given:
            headers["Idempotency-Key"] = key
        if action.secret is not None:
            headers |= sign_standard_webhook(
                render(action.secret, context), id=key, at=self._clock.now(), body=body
            )
        try:
            answer = await self._caller.request(action.method, url, headers=headers, body=body)
        except AddressRefused as exc:
            raise ActionFailed(str(exc), again=False, hint=exc.hint) from exc
        except (ValueError, UnicodeError) as exc:
            shown_url = self.redact(_shown(url))
            raise ActionFailed(
                f"{shown_url!r} cannot be called: {self.redact(str(exc))}", again=False
            ) from exc
        except CallFailed as exc:
            raise ActionFailed(f"{action.method} {self.redact(_shown(url))}: {exc}") from exc
        status, shown_url = answer.status, self.redact(_shown(url))
        if status < 300:
            return {"status": status, "url": shown_url}
        said = f"{action.method} {shown_url} answered {status}"
        if status < 400:
            raise ActionFailed(f"{said}: redirects are not followed; write the new address", again=False)
        wait_s = retry_after_s(answer.headers.get("retry-after"), now=self._clock.now())
        shown = self.redact(answer.text.strip().replace("\n", " "))[:200]
        raise ActionFailed(
            f"{said}{': ' + shown if shown else ''}", again=status != 410, retry_after_s=wait_s
        )

    async def _emit(self, action: Emit, firing: Firing, context: Mapping[str, Any], key: str) -> JsonObject:
        type_ = check_type(render(action.emit, context))
        if is_own_type(type_):
            raise ActionFailed(f"events of the type {type_!r} are Hark's own", again=False)
        cause = firing.trigger
        event = Event(
            type=type_,
            source=render(action.source, context)
            if action.source is not None
            else f"/automations/{firing.automation}",
            id=derived_id("emit", key),
            subject=render(action.subject, context) if action.subject is not None else None,
            time=self._clock.now(),
            data=render_value(action.data, context) if action.data is not None else None,
            partitionkey=render(action.partitionkey, context) if action.partitionkey is not None else None,
            **cause.caused(),
        )
        checked(event)
        # An earlier try may lie further back than the broker remembers ids.
        appended = await (
            self._bus.log.append_once(event, after=firing.seq)
            if firing.repeated
            else self._bus.log.append(event)
        )
        return {"event": {"id": event.id, "type": type_, "seq": appended.seq}}


def _severity(template: str, context: Mapping[str, Any]) -> Severity:
    """Return the severity that a template gives, in any case.

    Raises:
        ActionFailed: it gives no such word.
    """
    said = render(template, context).strip()
    try:
        return Severity({"failure": "error", "failed": "error"}.get(said.lower(), said.lower()))
    except ValueError:
        raise ActionFailed(
            f"{said!r:.80} is no severity, which are {', '.join(Severity)}", again=False,
            hint="map what senders say, as in {{ {'high': 'critical'}.get(event.data.level, 'warning') }}",
        ) from None  # fmt: skip


def _recipient(template: str, context: Mapping[str, Any]) -> str:
    """Return the channel or address that a template gives.

    Raises:
        ActionFailed: the event made it an address, or a template.
    """
    try:
        return recipient(template, context)
    except RecipientRefused as exc:
        raise ActionFailed(
            str(exc), again=False, hint="define a channel for the address, and have the event name that"
        ) from exc


def _flow_run_of(template: str | None, context: Mapping[str, Any]) -> FlowRunId:
    """Return the run an action is about: the written one, or the one its event is about."""
    if template is not None:
        return FlowRunId(render(template, context))
    run = context["run"].get("id")
    subject = context["event"].get("subject")
    if isinstance(run, str) and run:
        return FlowRunId(run)
    if isinstance(subject, str) and subject.startswith("flow-run/"):
        return FlowRunId(subject[9:])
    raise ActionFailed('the event is not about a flow run; say which: flow_run: "{{ … }}"', again=False)


def _attachment(written: str, context: Mapping[str, Any]) -> str:
    """Return an attachment as the notifier knows it; ``run-log`` is the log of the run the event is about."""
    return f"log:{_flow_run_of(None, context)}" if written == "run-log" else written


def _default_body(context: Mapping[str, Any]) -> str:
    event = context["event"]
    lines = [
        f"{event.get('type', 'no event')}" + (f" about {event['subject']}" if event.get("subject") else "")
    ]
    if context["count"] > 1:
        lines.append(f"{context['count']} times")
    data = event.get("data")
    message = (
        data.get("state", {}).get("message")
        if isinstance(data, dict) and isinstance(data.get("state"), dict)
        else None
    )
    if message:
        lines.append(str(message))
    if context["suppressed"]:
        lines.append(f"{context['suppressed']} held back since the last message")
    return "\n".join(lines)


def _default_call(firing: Firing, context: Mapping[str, Any]) -> JsonObject:
    names = ("key", "count", "suppressed", "event")
    return {
        "automation": firing.automation,
        "firing": firing.event.id,
        **{name: context[name] for name in names},
    }


def _shown(url: str) -> str:
    """Return a URL without what may be secret in it: credentials and the query."""
    head, _, _ = url.partition("?")
    scheme, _, rest = head.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def failure_of(exc: BaseException) -> tuple[bool, float | None]:
    """Return whether trying again may help, and how long the other side asks us to wait."""
    if isinstance(exc, ActionFailed):
        return exc.again, exc.retry_after_s
    if isinstance(exc, RateLimited):
        return True, exc.retry_after_s
    # What was written has to be changed, or what was asked may not be done: the same again would end the same.
    return not isinstance(exc, DefinitionError | RefusedError), None
