"""From a verified request to an event. Pure.

What each preset's sender becomes when ``event:`` is not written (``<…>`` cleaned by ``clean_type``):

===================  =====================================  ===================================  ==========================
preset               type                                   subject                              delivery id
===================  =====================================  ===================================  ==========================
github               ``github.<X-GitHub-Event>``            ``repo/<full name>``, ``org/<login>``  ``X-GitHub-Delivery``
gitlab               ``gitlab.<object_kind>``               ``project/<path with namespace>``    ``webhook-id``, ``Idempotency-Key``, ``X-Gitlab-Event-UUID``
stripe               ``stripe.<type>``                      ``<object>/<id>`` of the object      ``id`` of the event
slack                ``slack.<event.type>``, of commands    ``channel/<id>``, ``command/<name>``  ``event_id``, ``trigger_id``
                     ``slack.command``, of actions ``slack.<type>``
shopify              ``shopify.<X-Shopify-Topic>``          ``shop/<domain>``                    ``X-Shopify-Event-Id``
standard-webhooks    ``<webhook's name>.<type>``            -                                    ``webhook-id``
others               the CloudEvent, if the request is      ``webhook/<name>``                   ``source`` and ``id`` of the
                     one; else ``webhook.received``                                              CloudEvent
===================  =====================================  ===================================  ==========================

The event's source is ``/webhooks/<name>`` (a CloudEvent keeps its own), its data is the body; of ``webhook.received`` it
is ``{webhook, method, query, body}``, since nobody said what the request means.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..bus.cloudevents import ORIGINAL_TYPE, decode_value
from ..bus.event import Event, check_type, checked, cleaned_text, is_own_type, parse_time
from ..bus.exact import loads
from ..errors import EventInvalid, TemplateError
from ..template import render, render_value
from ..vocabulary import JsonObject, JsonValue, derived_id, new_id
from .body import Body, media_type
from .preset import (
    GithubVerify,
    GitlabVerify,
    ShopifyVerify,
    SlackVerify,
    StandardWebhooksVerify,
    StripeVerify,
)
from .verify import Request
from .webhook import Webhook, clean_type

__all__ = [
    "HIDDEN",
    "MAX_BATCH",
    "Mapped",
    "MappingFailed",
    "challenge_of",
    "is_cloud_event",
    "map_request",
    "map_requests",
    "moment_of",
    "reads_cloud_events",
]

log = logging.getLogger(__name__)

# What proves who sent it must not stand in events: tokens could be used again, signatures say nothing more.
HIDDEN = re.compile(r"authorization|cookie|signature|token|secret|api-?key|hmac|password", re.IGNORECASE)
_MAX_DELIVERY_CHARS = 1000
MAX_BATCH = 1000
"""Most CloudEvents in one request."""
_BATCH_TYPE = "application/cloudevents-batch+json"
_ONE_TYPE = "application/cloudevents+json"
_CE_ATTRIBUTE = re.compile(r"ce-([a-z0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class Mapped:
    """The event a request becomes; ``delivery`` is what a repeat of it would have in common, or None."""

    event: Event
    delivery: str | None


class MappingFailed(Exception):
    """No event can be made of the request. ``status`` is what the sender is told."""

    def __init__(self, reason: str, detail: str, *, status: int = 422) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.status = reason, detail, status


def challenge_of(webhook: Webhook, body: Body) -> str | None:
    """Return the challenge of Slack's ``url_verification``, which wants to be echoed; None for all else."""
    if isinstance(webhook.verify, SlackVerify) and _text_at(body.value, "type") == "url_verification":
        return _text_at(body.value, "challenge")
    return None


def is_cloud_event(request: Request) -> bool:
    """Return whether the request carries a CloudEvent, structured or binary."""
    return media_type(request.headers) == _ONE_TYPE or "ce-specversion" in request.headers


def map_requests(webhook: Webhook, request: Request, body: Body, *, now: datetime) -> list[Mapped]:
    """Return the events ``request`` becomes: of a CloudEvents batch each of them, else one. None is stored unless all are events.

    A batch at a webhook with its own ``event:`` is one event, whose templates see the list.

    Raises:
        MappingFailed: see ``map_request``; of a batch, it says which event.
    """
    if (
        webhook.event is not None
        or media_type(request.headers) != _BATCH_TYPE
        or not reads_cloud_events(webhook)
    ):
        return [map_request(webhook, request, body, now=now)]
    if not isinstance(body.value, list):
        raise MappingFailed("not-an-event", "a batch is a JSON list of CloudEvents", status=400)
    if len(body.value) > MAX_BATCH:
        raise MappingFailed(
            "too-large", f"a batch holds {MAX_BATCH} events at most, got {len(body.value)}", status=413
        )
    single = replace(request, headers={**request.headers, "content-type": _ONE_TYPE})
    mapped = []
    for place, item in enumerate(body.value):
        try:
            mapped.append(map_request(webhook, single, Body(item), now=now))
        except MappingFailed as exc:
            raise MappingFailed(
                exc.reason, f"event {place} of the batch: {exc.detail}", status=exc.status
            ) from exc
    return mapped


def reads_cloud_events(webhook: Webhook) -> bool:
    """Return whether the preset has no sender with a way of its own."""
    own = GithubVerify | GitlabVerify | StripeVerify | SlackVerify | ShopifyVerify | StandardWebhooksVerify
    return not isinstance(webhook.verify, own)


def map_request(webhook: Webhook, request: Request, body: Body, *, now: datetime) -> Mapped:
    """Return the event ``request`` becomes.

    Raises:
        MappingFailed: a template that is needed cannot be rendered, or what comes out is no event.
    """
    try:
        if webhook.event is not None:
            made = _by_templates(webhook, request, body, now)
        else:
            made = _by_preset(webhook, request, body, now)
        return _with_id(webhook, request, body, made)
    except EventInvalid as exc:
        raise MappingFailed("not-an-event", str(exc)) from exc


def _with_id(webhook: Webhook, request: Request, body: Body, made: Mapped) -> Mapped:
    """Give the event the id that belongs to its delivery, so that a repeat is the same event."""
    delivery = made.delivery
    if webhook.dedupe is not None:
        delivery = (
            _needed("dedupe", webhook.dedupe, _context(webhook, request, body)) if webhook.dedupe else None
        )
    elif webhook.event is not None and webhook.event.id is not None:
        delivery = made.event.id
    if not delivery:
        return Mapped(made.event, None)
    if len(delivery) > _MAX_DELIVERY_CHARS:
        raise MappingFailed("dedupe", f"a delivery id of {len(delivery)} characters is too long")
    if is_cloud_event(request) and webhook.event is None and webhook.dedupe is None:
        return Mapped(made.event, delivery)  # it is named by its own source and id
    has_own_id = webhook.event is not None and webhook.event.id is not None
    id_ = made.event.id if has_own_id else derived_id("webhook", webhook.name, delivery)
    return Mapped(made.event.replace(id=id_), delivery)


# --- templates -------------------------------------------------------------------------------------------


def _context(webhook: Webhook, request: Request, body: Body) -> dict[str, Any]:
    return {
        "headers": {
            name: _as_sent(value) for name, value in request.headers.items() if not HIDDEN.search(name)
        },
        "body": _payload_of(webhook, body),
        "form": body.form,
        "form_all": body.form_all,
        "query": {name: request.asked(name) for name in request.query},
        "query_all": {
            name: [value] if isinstance(value, str) else value for name, value in request.query.items()
        },
        "method": request.method,
        "webhook": {"name": webhook.name},
    }


def _as_sent(value: str) -> str:
    """Return a header as its sender wrote it: servers hand the bytes over as Latin-1, and most senders mean UTF-8."""
    try:
        return value if value.isascii() else value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _needed(what: str, template: str, context: Mapping[str, Any]) -> str:
    try:
        return render(template, context).strip()
    except TemplateError as exc:
        raise MappingFailed("template", f"`{what}`: {exc}") from exc


def _optional(what: str, template: str | None, context: Mapping[str, Any]) -> str | None:
    if template is None:
        return None
    try:
        return render(template, context).strip() or None
    except TemplateError as exc:
        log.warning(
            "webhook.field_left_out",
            extra={"webhook": context["webhook"]["name"], "field": what, "error": str(exc)},
        )
        return None


def _by_templates(webhook: Webhook, request: Request, body: Body, now: datetime) -> Mapped:
    mapping, context = webhook.event, _context(webhook, request, body)
    assert mapping is not None
    type_ = _checked_type(_needed("event.type", mapping.type, context))
    data: JsonValue = context["body"]
    if mapping.has_data:
        try:
            data = render_value(mapping.data, context)
        except TemplateError as exc:
            raise MappingFailed("template", f"`event.data`: {exc}") from exc
    source = f"/webhooks/{webhook.name}"
    if mapping.source is not None:
        source = _checked_source(_needed("event.source", mapping.source, context))
    id_ = new_id() if mapping.id is None else _needed("event.id", mapping.id, context)
    if not id_:
        raise MappingFailed("template", "`event.id` is empty")
    event = Event(
        type=type_,
        source=source,
        id=id_,
        subject=_optional("event.subject", mapping.subject, context),
        time=moment_of(_optional("event.time", mapping.time, context)) or now,
        partitionkey=_optional("event.partitionkey", mapping.partitionkey, context),
        data=data,
    )
    return Mapped(_checked(event), _preset_delivery(webhook, request, body))


def _checked(event: Event) -> Event:
    """Return an event whose attributes are texts; of what only describes it, control characters are replaced.

    A commit message in the subject is no reason to lose a delivery; what tells events apart has to be right.
    """
    event = event.replace(
        subject=None if event.subject is None else cleaned_text(event.subject),
        partitionkey=None if event.partitionkey is None else cleaned_text(event.partitionkey),
    )
    try:
        return checked(event)
    except EventInvalid as exc:
        raise MappingFailed("not-an-event", str(exc)) from exc


def _checked_type(text: str) -> str:
    type_ = clean_type(text)
    if not type_:
        raise MappingFailed("type", f"{text[:80]!r} makes no event type")
    if is_own_type(type_):
        raise MappingFailed("type", f"event types beginning with {type_.partition('.')[0]!r} are Hark's own")
    return check_type(type_)


def _checked_source(text: str) -> str:
    if not text or text == "/hark" or text.startswith("/hark/"):
        raise MappingFailed("source", f"{text[:80]!r} cannot be the source of an event from outside")
    return text


def moment_of(text: object) -> datetime | None:
    """Return a moment from ISO 8601 or Unix seconds; None if it is neither."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(int(text)) if 0 <= text < 10**11 else ""
    if not isinstance(text, str):
        return None
    try:
        if re.fullmatch(r"[0-9]{1,11}(\.[0-9]+)?", text):
            return datetime.fromtimestamp(float(text), UTC)
        return parse_time(text)
    except (EventInvalid, ValueError, OverflowError):
        return None


# --- what each sender's requests are -----------------------------------------------------------------------


def _at(value: JsonValue, *path: str) -> JsonValue:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _text_at(value: JsonValue, *path: str) -> str:
    found = _at(value, *path)
    if isinstance(found, str):
        return found
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else ""


def _payload_of(webhook: Webhook, body: Body) -> JsonValue:
    """Return the body; of Slack's interactive requests and GitHub's forms the JSON in the field ``payload``."""
    if isinstance(webhook.verify, SlackVerify | GithubVerify) and isinstance(body.form.get("payload"), str):
        try:
            value: JsonValue = loads(str(body.form["payload"]))
        except ValueError as exc:
            raise MappingFailed("broken-json", f"the field `payload` is not JSON: {exc}", status=400) from exc
        return value
    return body.value


def _preset_delivery(webhook: Webhook, request: Request, body: Body) -> str | None:
    """Return what the preset's sender calls this delivery, or None."""
    rule, headers = webhook.verify, request.headers
    if isinstance(rule, GithubVerify):
        return headers.get("x-github-delivery")
    if isinstance(rule, GitlabVerify):
        names = ("webhook-id", "idempotency-key", "x-gitlab-event-uuid")
        return next((headers[name] for name in names if headers.get(name)), None)
    if isinstance(rule, ShopifyVerify):
        # With the topic: an app may subscribe several topics, and one happening in the shop then comes under each.
        event_id = headers.get("x-shopify-event-id") or headers.get("x-shopify-webhook-id")
        return f"{headers.get('x-shopify-topic', '')}#{event_id}" if event_id else None
    if isinstance(rule, StandardWebhooksVerify):
        return headers.get("webhook-id") or headers.get("svix-id")
    if isinstance(rule, StripeVerify):
        return _text_at(body.value, "id") or None
    if isinstance(rule, SlackVerify):
        payload = _payload_of(webhook, body)
        return _text_at(payload, "event_id") or _text_at(payload, "trigger_id") or None
    return None


def _by_preset(webhook: Webhook, request: Request, body: Body, now: datetime) -> Mapped:
    rule, headers, value = webhook.verify, request.headers, _payload_of(webhook, body)
    subject, moment = "", None
    if isinstance(rule, GithubVerify):
        type_ = f"github.{headers.get('x-github-event', '')}"
        subject = _named("repo", _text_at(value, "repository", "full_name")) or _named(
            "org", _text_at(value, "organization", "login")
        )
    elif isinstance(rule, GitlabVerify):
        kind = _text_at(value, "object_kind") or _text_at(value, "event_name")
        type_ = f"gitlab.{kind or headers.get('x-gitlab-event', '').removesuffix(' Hook')}"
        subject = _named(
            "project",
            _text_at(value, "project", "path_with_namespace") or _text_at(value, "path_with_namespace"),
        )
    elif isinstance(rule, StripeVerify):
        type_ = f"stripe.{_text_at(value, 'type')}"
        subject = _named(
            _text_at(value, "data", "object", "object") or "object", _text_at(value, "data", "object", "id")
        )
        moment = moment_of(_at(value, "created"))
    elif isinstance(rule, SlackVerify):
        type_, subject, moment = _slack(value)
    elif isinstance(rule, ShopifyVerify):
        type_ = f"shopify.{headers.get('x-shopify-topic', '')}"
        subject = _named("shop", headers.get("x-shopify-shop-domain", ""))
        moment = moment_of(headers.get("x-shopify-triggered-at"))
    elif isinstance(rule, StandardWebhooksVerify):
        type_ = f"{clean_type(webhook.name).replace('.', '-')}.{_text_at(value, 'type') or 'received'}"
        moment = moment_of(_at(value, "timestamp"))
    elif is_cloud_event(request):
        return _cloud_event(request, body, now)
    else:
        return _unmapped(webhook, request, body, now)
    if type_.endswith("."):
        raise MappingFailed("type", f"the request does not say what kind of {type_}event it is", status=400)
    event = Event(
        type=_checked_type(type_),
        source=f"/webhooks/{webhook.name}",
        subject=subject or None,
        time=moment or now,
        data=value,
    )
    return Mapped(_checked(event), _preset_delivery(webhook, request, body))


def _named(kind: str, name: str) -> str:
    return f"{kind}/{name}" if name else ""


def _slack(value: JsonValue) -> tuple[str, str, datetime | None]:
    inner = _text_at(value, "event", "type")
    if inner:
        channel = _text_at(value, "event", "channel") or _text_at(value, "event", "item", "channel")
        return f"slack.{inner}", _named("channel", channel), moment_of(_at(value, "event_time"))
    command = _text_at(value, "command")
    if command:
        return "slack.command", _named("command", command.lstrip("/")), None
    return f"slack.{_text_at(value, 'type')}", _named("channel", _text_at(value, "channel", "id")), None


def _unmapped(webhook: Webhook, request: Request, body: Body, now: datetime) -> Mapped:
    data: JsonObject = {
        "webhook": {"name": webhook.name},
        "method": request.method,
        "query": {
            name: value if isinstance(value, str) else [*value]
            for name, value in request.query.items()
            if not HIDDEN.search(name)
        },
        "body": body.value,
    }
    event = Event(
        type="webhook.received",
        source=f"/webhooks/{webhook.name}",
        subject=f"webhook/{webhook.name}",
        time=now,
        data=data,
    )
    return Mapped(event, None)


def _cloud_event(request: Request, body: Body, now: datetime) -> Mapped:
    """Read a CloudEvent, binary or structured. Types of others are cleaned; the original is kept if that changed it."""
    if media_type(request.headers) == "application/cloudevents+json":
        if not isinstance(body.value, dict):
            raise MappingFailed("not-an-event", "a CloudEvent is a JSON object", status=400)
        attributes = dict(body.value)
    else:
        try:
            attributes = {
                match[1]: decode_value(value, match[1])
                for name, value in request.headers.items()
                if (match := _CE_ATTRIBUTE.fullmatch(name)) and match[1] not in ("data", "datacontenttype")
            }
        except EventInvalid as exc:
            raise MappingFailed("not-an-event", str(exc), status=400) from exc
        if isinstance(depth := attributes.pop("causaldepth", None), str) and depth.isdigit():
            attributes["causaldepth"] = int(depth[:6])
        if body.octets is None:
            attributes["data"] = body.value
        else:
            attributes["data_base64"] = b64encode(body.octets).decode()
        if media_type(request.headers):
            attributes["datacontenttype"] = request.headers["content-type"].strip()
    written = attributes.get("type")
    type_ = _checked_type(written if isinstance(written, str) else "")
    attributes["type"] = type_
    if written != type_:
        attributes.setdefault(ORIGINAL_TYPE, written)
    attributes.setdefault("time", None)
    try:
        event = Event.from_dict(attributes)
    except EventInvalid as exc:
        raise MappingFailed("not-an-event", str(exc), status=400) from exc
    _checked_source(event.source)
    if attributes["time"] is None:
        event = event.replace(time=now)
    return Mapped(event, f"{event.source}\n{event.id}")
