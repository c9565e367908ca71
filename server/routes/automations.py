"""``/api/automations``, ``/api/webhooks``, ``/api/channels``: rules, doors, and ways to tell people."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from ...bus.event import format_time
from ...errors import UnknownName
from ...notifications import Delivery, Message, Severity
from ...storage import AutomationActivity, FiringRow
from ...vocabulary import JsonObject, JsonValue
from ..answer import answer, listing, page
from ..bodies import TestBody
from ..context import ServerContext, context_of
from ..definition import Defined, all_defined, one_defined, set_paused
from ..openapi import REFUSED
from ..paging import Paging
from ..taken import Taken
from ..telling import Failing, failing_channels, mute_channels

router = APIRouter(tags=["automations"])

_LATELY = timedelta(days=7)


@router.get("/api/automations")
async def list_automations(request: Request, paging: Paging) -> Response:
    """List rules with what each has been doing for the last 7 days; one that does not load is listed with its error.

    Of a rule that is in shadow, `fired` and `suppressed` are what it decided there.
    """
    context = context_of(request)
    found = paging.page(await all_defined(context.bus, "automations"), lambda one: one.key)
    shown = [one.key for one in found.items]
    shadowed = [one.key for one in found.items if _is_shadow(one)]
    activity = await context.queries.automations(shown, since=datetime.now(UTC) - _LATELY, shadowed=shadowed)
    names, failing = await _names(context), await failing_channels(context)
    items = []
    for one in found.items:
        known = activity.get(one.key)
        items.append(
            {
                **one.shown(),
                "name": one.key,
                "problems": _problems(one, names, failing, known),
                "fired": known.triggered if known else 0,
                "suppressed": known.suppressed if known else 0,
                "dead_letters": known.dead_letters if known else 0,
                "last_fired_at": known.last_triggered_at if known else None,
            }
        )
    return page(found, items)


@router.get("/api/automations/{name}")
async def show_automation(request: Request, name: str) -> Response:
    """Show one rule with its latest firings, and `problems`: what its actions need and is not there, or does not work."""
    context = context_of(request)
    found = await one_defined(context.bus, "automations", name)
    firings = await context.queries.firings(name, limit=20)
    done: dict[str, list[JsonObject]] = {}
    begun: dict[str, set[int]] = {}
    for a in (await context.queries.actions(automation=name, limit=200)).items:
        if a.firing is not None:
            done.setdefault(a.firing, []).append(
                {"kind": a.kind, "state": a.state, "error": a.error, "due_at": None}
            )
            begun.setdefault(a.firing, set()).add(int(a.key.rpartition("/")[2]))
    waiting = {f.id: await _waiting(context, f, begun.get(f.id, ())) for f in firings.items}
    shown = [
        {
            "id": f.id,
            "triggered_at": f.time,
            "decision": f.decision,
            "shadow": f.shadow,
            "key": f.key,
            "count": f.count,
            "reason": f.reason,
            "actions": [*reversed(done.get(f.id, [])), *waiting[f.id]],
        }
        for f in firings.items
    ]
    activity = await context.queries.automations([name], since=datetime.now(UTC) - _LATELY)
    problems = _problems(found, await _names(context), await failing_channels(context), activity.get(name))
    status = {"name": name, "changed_at": found.changed_at, "problems": problems, "firings": shown}
    return answer({**found.shown(), **status})


async def _waiting(context: ServerContext, firing: FiringRow, begun: Collection[int]) -> list[JsonObject]:
    """Return the actions of a firing that wait by their `delay`; the read model holds what has been begun."""
    from ...automations.acting.waiting import waiting_in
    from ...automations.action import MAX_DELAY_S

    now = context.clock.now()
    if firing.shadow or firing.decision == "suppressed" or now - firing.time > timedelta(seconds=MAX_DELAY_S):
        return []
    try:
        event = await context.queries.event(firing.id)
    except UnknownName:
        return []  # its place in the log has been given back
    if b'"delay"' not in event.body:
        return []
    return [
        {"kind": one.kind, "state": "waiting", "error": None, "due_at": format_time(one.due_at)}
        for one in waiting_in(event.data, decided_at=event.time, begun=begun, now=now)
    ]


def _is_shadow(one: Defined) -> bool:
    return one.fields.get("mode") == "shadow"


async def _names(context: ServerContext) -> dict[str, list[str]]:
    """Return the names that exist of what actions can be about, by bucket."""
    buckets = ("deployments", "schedules", "automations", "webhooks", "channels")
    return {bucket: await context.bus.bucket(bucket).keys() for bucket in buckets}


def _problems(
    one: Defined, names: dict[str, list[str]], failing: Failing, activity: AutomationActivity | None
) -> list[str]:
    """Return what a rule needs and is not there, or does not work: it would fire, and its actions would fail, or did."""
    from ...automations.analysis.target import missing_targets

    found: list[str] = []
    if one.model is not None:
        found = [str(p) for p in (*missing_targets(one.model, names), *mute_channels(one.model, failing))]
    if activity is not None and activity.dead_letters:
        many = activity.dead_letters
        were = "1 action was given up" if many == 1 else f"{many} actions were given up, the last"
        why = activity.last_error or "no reason given"
        found.append(f"{were}: {why}; `hark dlq redrive --rule {one.key}` tries again")
    return found


@router.get("/api/automations/{name}/firings/{firing_id}")
async def show_firing(request: Request, name: str, firing_id: str) -> Response:
    """Show one firing: what led to it and what became of its actions."""
    context = context_of(request)
    found = await context.queries.firing(firing_id)
    if found.firing.automation != name:
        raise UnknownName(f"firing of {name!r}", firing_id)
    begun = {int(a.key.rpartition("/")[2]) for a in found.actions}
    return answer(
        {
            "firing": found.firing, "actions": found.actions, "runs": found.runs,
            "waiting": await _waiting(context, found.firing, begun),
            "caused_by": [{"id": e.id, "type": e.type, "subject": e.subject, "time": e.time} for e in found.causes],
        }
    )  # fmt: skip


@router.post("/api/automations/{name}/pause", responses=REFUSED)
async def pause_automation(request: Request, name: str) -> Response:
    """Stop it from firing; its windows are kept."""
    return answer((await set_paused(context_of(request).bus, "automations", name, True)).shown())


@router.post("/api/automations/{name}/resume", responses=REFUSED)
async def resume_automation(request: Request, name: str) -> Response:
    """Let it fire again."""
    return answer((await set_paused(context_of(request).bus, "automations", name, False)).shown())


# --- webhooks -------------------------------------------------------------------------------------------------


def _masked(verify: JsonObject) -> JsonObject:
    """Return it without secrets that somebody wrote out instead of naming them by a template."""

    def hide(value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [hide(item) for item in value]
        return value if isinstance(value, str) and "{{" in value else "***"

    return {key: hide(value) if key == "secret" else value for key, value in verify.items()}


def _webhook(context: ServerContext, one: Defined) -> JsonObject:
    shown = one.shown()
    verify, event = shown.get("verify"), shown.get("event")
    return {
        **shown,
        **({"verify": _masked(verify)} if isinstance(verify, dict) else {}),
        "name": one.key,
        "url": f"{context.url}/hooks/{one.key}",
        "preset": verify.get("preset") if isinstance(verify, dict) else verify,
        "type": event.get("type") if isinstance(event, dict) else None,
    }


@router.get("/api/webhooks")
async def list_webhooks(request: Request, paging: Paging) -> Response:
    """List webhooks with their addresses; secrets are templates and are not resolved."""
    context = context_of(request)
    found = paging.page(await all_defined(context.bus, "webhooks"), lambda one: one.key)
    return page(found, [_webhook(context, one) for one in found.items])


@router.get("/api/webhooks/{name}")
async def show_webhook(request: Request, name: str) -> Response:
    """Show one webhook with its latest deliveries."""
    context = context_of(request)
    found = await one_defined(context.bus, "webhooks", name)
    deliveries = await context.queries.webhook_deliveries(name, limit=20)
    return answer({**_webhook(context, found), "deliveries": deliveries.items})


@router.post("/api/webhooks/{name}/pause", responses=REFUSED)
async def pause_webhook(request: Request, name: str) -> Response:
    """Refuse what is sent to it."""
    return answer((await set_paused(context_of(request).bus, "webhooks", name, True)).shown())


@router.post("/api/webhooks/{name}/resume", responses=REFUSED)
async def resume_webhook(request: Request, name: str) -> Response:
    """Accept again what is sent to it."""
    return answer((await set_paused(context_of(request).bus, "webhooks", name, False)).shown())


# --- channels -------------------------------------------------------------------------------------------------


def _services(urls: object) -> list[str]:
    """Return the schemes of Apprise URLs; the rest of each is a secret."""
    if not isinstance(urls, list):
        return []
    return sorted({str(u).partition("://")[0] if "://" in str(u) else "secret" for u in urls})


@router.get("/api/channels")
async def list_channels(request: Request, paging: Paging) -> Response:
    """List channels: their names and services, never their addresses; `failing`: those that took nothing lately."""
    context = context_of(request)
    items: list[dict[str, Any]] = []
    failing = await failing_channels(context)
    for one in await all_defined(context.bus, "channels"):
        urls = one.fields.get("urls")
        items.append(
            {
                "name": one.key,
                "addresses": len(urls) if isinstance(urls, list) else 0,
                "services": _services(urls),
                "rate": one.fields.get("rate"),
                "failing": [
                    {
                        "address": r.address,
                        "kind": r.kind,
                        "failures": r.failures,
                        "error": r.error,
                        "last_failed_at": r.time,
                    }
                    for r in failing.get(one.key, ())
                ],
                **({"error": one.error} if one.error else {}),
            }
        )
    return listing(items, paging)


@router.post("/api/channels/{name}/test")
async def test_channel(
    request: Request, name: str, body: Annotated[TestBody, Depends(Taken(TestBody))]
) -> Response:
    """Send a message to every address of a channel, once, whatever its rate: `{"title", "body"}`, both optional.

    Nothing of it is recorded as an event.
    """
    context = context_of(request)
    await one_defined(context.bus, "channels", name)
    message = Message(
        title=str(body.title or f"Test of {name}"),
        body=str(body.body or f"This is a test of the channel {name!r}. If you can read it, it works."),
        severity=Severity.INFO,
    )
    deliveries = await context.notifier.test_channel(name, message)
    failed = sum(not d.ok for d in deliveries)
    return answer(
        {
            "channel": name,
            "ok": not failed,
            "sent": len(deliveries) - failed,
            "deliveries": [_delivery(d) for d in deliveries],
        }
    )


def _delivery(one: Delivery) -> dict[str, Any]:
    return {
        "address": one.address, "kind": one.kind, "ok": one.ok, "outcome": one.outcome, "error": one.reason,
        "attempts": one.attempts, "duration_s": one.duration_s,
    }  # fmt: skip
