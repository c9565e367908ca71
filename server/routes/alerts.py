"""``/api/alerts``: open incidents, raising and acknowledging them; and ``/ack/…``, the page behind the link in a message.

Opening the link changes nothing: mail scanners and chat previews open links too. The button on the page does.
"""

from __future__ import annotations

from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import HTMLResponse

from ...bus.event import format_time
from ...errors import AccessDenied, DefinitionError, UnknownName
from ...notifications.ack import Ticket, acknowledge
from ...notifications.alert import raise_alert
from ...notifications.checkpoint import RouterState, read_state, wait_for_state
from ...notifications.group import Group, Member, shown_address
from ...notifications.message import Message, Severity
from ...vocabulary import JsonObject, new_id
from ..answer import answer, page
from ..bodies import AckBody, AlertBody
from ..context import ServerContext, context_of
from ..paging import Paging
from ..taken import Taken

router = APIRouter(tags=["notifications"])

_MAX_BYTES = 256 << 10


def _groups(state: RouterState | None) -> list[Group]:
    found: Any = state.fold["groups"] if state is not None else []
    groups = [Group.from_json(g) for g in found]
    return sorted((g for g in groups if g.members), key=lambda g: g.opened_at)


def _stamp(at: float | None) -> str | None:
    from datetime import UTC, datetime

    return format_time(datetime.fromtimestamp(at, UTC)) if at is not None and at != float("inf") else None


def _state_of(group: Group) -> str:
    members = group.members.values()
    if all(m.resolved_at is not None for m in members):
        return "recovered"
    if group.acked_at is not None:
        return "acknowledged"
    if all(m.held for m in members):
        return "held"
    if group.muted:
        return "muted"
    return "told" if any(m.told_at is not None for m in members) else "waiting"


def _shown(group: Group, *, whole: bool = False) -> JsonObject:
    members = list(group.members.values())
    value: JsonObject = {
        "id": group.id, "state": _state_of(group), "labels": group.labels, "alerts": len(members),
        "title": members[0].alert.message.title,
        "severity": max((m.alert.message.severity for m in members), key=lambda s: s.rank).value,
        "opened_at": _stamp(group.opened_at), "told_at": _stamp(group.sent_at), "told_to": [*map(shown_address, group.told_to)],
        "escalated": group.escalated, "acknowledged_at": _stamp(group.acked_at), "acknowledged_by": group.acked_by or None,
        "next_at": _stamp(group.due),
    }  # fmt: skip
    if whole:
        value["members"] = [_member(m) for m in members]
    return value


def _member(member: Member) -> JsonObject:
    message = member.alert.message
    return {
        "alert": member.alert.id, "title": message.title, "body": message.body, "severity": message.severity.value,
        "count": member.count, "since": _stamp(member.since), "last": _stamp(member.last), "told_at": _stamp(member.told_at),
        "acknowledged": member.acked, "resolved_at": _stamp(member.resolved_at), "held": member.held or None,
        "facts": member.alert.facts,
    }  # fmt: skip


async def _one(context: ServerContext, incident: str) -> Group:
    groups = _groups(await read_state(context.bus, context.secrets))
    found = [g for g in groups if g.id.startswith(incident)] if len(incident) >= 4 else []
    if len(found) > 1:
        raise DefinitionError(f"{len(found)} incidents begin with {incident!r}", hint="write more of the id")
    if not found:
        raise UnknownName("open incident", incident, known=[g.id for g in groups])
    return found[0]


@router.get("/api/alerts")
async def list_alerts(request: Request, paging: Paging) -> Response:
    """List open incidents (groups of alerts), oldest first."""
    context = context_of(request)
    found = paging.page(_groups(await read_state(context.bus, context.secrets)), lambda g: g.id)
    return page(found, [_shown(g) for g in found.items])


@router.post("/api/alerts", status_code=202)
async def post_alert(
    request: Request, body: Annotated[AlertBody, Depends(Taken(AlertBody, limit_bytes=_MAX_BYTES))]
) -> Response:
    """Raise an alert, or end one: `{"title": …, "severity": "error", "labels": {…}, "alert": …, "resolved": false}`.

    With `key` (or the header `Idempotency-Key`), asking twice is asking once.
    """
    context = context_of(request)
    attach = body.attach or []
    if not body.title and not body.body:
        raise DefinitionError("an alert has a title or a body", hint='such as {"title": "disk is full"}')
    message = Message(
        str(body.title or ""), str(body.body or ""), body.severity or Severity.WARNING, tuple(attach)
    )
    if any(not a.startswith(("http://", "https://", "object:", "log:")) for a in attach):
        raise DefinitionError(
            "`attach` takes URLs, object:<name> and log:<flow run id>; no files of the server"
        )
    key = body.key or request.headers.get("idempotency-key") or new_id()
    raised = await raise_alert(
        context.bus, message, key=f"api/{key}", now=context.clock.now(), labels={k: str(v) for k, v in (body.labels or {}).items()},
        alert=str(body.alert) if body.alert else None, resolved=body.resolved,
    )  # fmt: skip
    return answer({"alert": raised.id, "resolved": raised.resolved}, 202)


@router.get("/api/alerts/{incident}")
async def show_alert(request: Request, incident: str) -> Response:
    """Show one open incident with its alerts; the beginning of its id is enough."""
    return answer(_shown(await _one(context_of(request), incident), whole=True))


@router.post("/api/alerts/{incident}/ack")
async def ack_alert(
    request: Request, incident: str, body: Annotated[AckBody, Depends(Taken(AckBody))]
) -> Response:
    """Take on an incident: it is not repeated and not escalated until something new comes. `{"by": …, "note": …}`."""
    context = context_of(request)
    group = await _one(context, incident)
    by = (body.by or "someone")[:200]
    seq = await acknowledge(context.bus, group.id, by=by, now=context.clock.now(), note=body.note or "")
    state = await wait_for_state(context.bus, context.secrets, seq=seq)
    after = next((g for g in _groups(state) if g.id == group.id), None)
    return answer(_shown(after, whole=True) if after is not None else {"id": group.id, "state": "over"})


# --- the link ---------------------------------------------------------------------------------------------

_HEADERS = {
    "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
}  # fmt: skip
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:3rem auto;padding:0 1rem}}
button{{font:inherit;padding:.6rem 1.2rem}}</style><h1>{title}</h1>{body}</html>"""


def _page(title: str, body: str, status: int = 200) -> Response:
    return HTMLResponse(_PAGE.format(title=escape(title), body=body), status_code=status, headers=_HEADERS)


def _about(group: Group) -> str:
    items = "".join(
        f"<li>{escape(m.alert.message.title or m.alert.message.body[:200])}</li>"
        for m in list(group.members.values())[:20]
    )
    left = len(group.members) - 20
    return f"<ul>{items}{f'<li>and {left} more</li>' if left > 0 else ''}</ul>"


async def _ticket(request: Request, token: str) -> tuple[Ticket, Group | None]:
    context = context_of(request)
    if context.links is None:
        raise AccessDenied("this server makes no such links")
    ticket = context.links.read(token, context.clock.now())
    groups = _groups(await read_state(context.bus, context.secrets))
    return ticket, next((g for g in groups if g.id == ticket.incident), None)


def _used(group: Group | None, ticket: Ticket) -> Response | None:
    if group is None:
        return _page("It is over", "<p>There is nothing to acknowledge any more.</p>")
    if group.acked_at is not None:
        by = f" by {escape(group.acked_by)}" if group.acked_by else ""
        return _page(
            "Acknowledged",
            f"<p>It was acknowledged{by} at {escape(_stamp(group.acked_at) or '')}.</p>{_about(group)}",
        )
    if group.unacked_since != ticket.stamp:
        return _page(
            "This link was used", "<p>Something new came since: use the link in the newest message.</p>", 410
        )
    return None


@router.get("/ack/{token}", include_in_schema=False)
async def ask_ack(request: Request, token: str) -> Response:
    """Show what would be acknowledged, with a button."""
    try:
        ticket, group = await _ticket(request, token)
    except AccessDenied as exc:
        return _page("Not valid", f"<p>{escape(str(exc))}.</p>", 403)
    used = _used(group, ticket)
    if used is not None:
        return used
    assert group is not None
    return _page("Acknowledge?", f'{_about(group)}<form method="post"><button>I am on it</button></form>')


@router.post("/ack/{token}", include_in_schema=False)
async def do_ack(request: Request, token: str) -> Response:
    """Acknowledge, once."""
    context = context_of(request)
    try:
        ticket, group = await _ticket(request, token)
    except AccessDenied as exc:
        return _page("Not valid", f"<p>{escape(str(exc))}.</p>", 403)
    used = _used(group, ticket)
    if used is not None:
        return used
    now = context.clock.now()
    seq = await acknowledge(
        context.bus, ticket.incident, by=f"link sent to {ticket.to}", now=now, stamp=ticket.stamp
    )
    await wait_for_state(context.bus, context.secrets, seq=seq)
    return _page(
        "Acknowledged", "<p>Thank you. It is not repeated or escalated until something new comes.</p>"
    )
