"""What a genuine sender of a preset would add to a request: signing, for trying out."""

from __future__ import annotations

from datetime import datetime
from typing import assert_never

import orjson

from ..vocabulary import new_id
from .preset import (
    BasicVerify,
    BearerVerify,
    CloudEventsVerify,
    GithubVerify,
    GitlabVerify,
    HmacVerify,
    NoneVerify,
    ShopifyVerify,
    SlackVerify,
    StandardWebhooksVerify,
    StripeVerify,
    Verify,
)
from .verify import Keys, Request, base64_of, macs, signed_bytes, standard_macs

__all__ = ["sign"]


def _as_cloud_event(body: bytes, delivery: str, event: str) -> dict[str, str]:
    """Return the headers that make ``body`` a CloudEvent: structured or a batch if it is one by itself, else binary."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(value, dict) and "specversion" in value:
        return {"content-type": "application/cloudevents+json"}
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, dict) and "specversion" in one for one in value)
    ):
        return {"content-type": "application/cloudevents-batch+json"}
    return {
        "ce-specversion": "1.0", "ce-id": delivery, "ce-source": "/webhooks/send",
        "ce-type": event or "com.example.tried",
    }  # fmt: skip


def sign(
    rule: Verify,
    keys: Keys,
    body: bytes,
    *,
    now: datetime,
    delivery: str = "",
    event: str = "",
    method: str = "POST",
) -> dict[str, str]:
    """Return the headers a genuine sender would add to ``body``, signed with the first secret.

    Args:
        delivery: the delivery's id; a new one if empty.
        event: what the sender calls the event, where it says so in a header: ``push``, ``orders/create``.
    """
    delivery = delivery or new_id()
    first = Keys(keys.secrets[:1], keys.user)
    stamp = str(int(now.timestamp()))
    secret = keys.secrets[0] if keys.secrets else ""
    if isinstance(rule, NoneVerify):
        return {}
    if isinstance(rule, GithubVerify):
        return {
            "X-Hub-Signature-256": "sha256=" + next(iter(macs(first, body))).hexdigest(),
            "X-GitHub-Event": event or "push",
            "X-GitHub-Delivery": delivery,
        }
    if isinstance(rule, ShopifyVerify):
        return {
            "X-Shopify-Hmac-Sha256": base64_of(next(iter(macs(first, body))).digest()),
            "X-Shopify-Topic": event or "orders/create",
            "X-Shopify-Event-Id": delivery,
        }
    if isinstance(rule, GitlabVerify):
        named = {"X-Gitlab-Event": event or "Push Hook", "X-Gitlab-Event-UUID": delivery}
        if not secret.startswith("whsec_"):
            return {"X-Gitlab-Token": secret, **named}
        return {**_sign_standard(first, body, stamp, delivery), **named}
    if isinstance(rule, StripeVerify):
        mac = next(iter(macs(first, f"{stamp}.".encode() + body))).hexdigest()
        return {"Stripe-Signature": f"t={stamp},v1={mac}"}
    if isinstance(rule, SlackVerify):
        mac = next(iter(macs(first, f"v0:{stamp}:".encode() + body))).hexdigest()
        return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={mac}"}
    if isinstance(rule, StandardWebhooksVerify):
        return _sign_standard(first, body, stamp, delivery)
    if isinstance(rule, HmacVerify):
        headers = {}
        if rule.timestamp_header:
            headers[rule.timestamp_header] = stamp
        if rule.id_header:
            headers[rule.id_header] = delivery
        request = Request(method, {name.lower(): value for name, value in headers.items()}, {}, body)
        made = next(iter(macs(first, signed_bytes(rule, request, stamp), rule.algorithm)))
        headers[rule.header] = rule.prefix + (
            made.hexdigest() if rule.encoding == "hex" else base64_of(made.digest())
        )
        return headers
    if isinstance(rule, CloudEventsVerify):
        return {"Authorization": f"Bearer {secret}", **_as_cloud_event(body, delivery, event)}
    if isinstance(rule, BearerVerify):
        return {rule.header: f"{rule.scheme} {secret}".strip()}
    if isinstance(rule, BasicVerify):
        return {"Authorization": "Basic " + base64_of(f"{keys.user}:{secret}".encode())}
    assert_never(rule)


def _sign_standard(keys: Keys, body: bytes, stamp: str, delivery: str) -> dict[str, str]:
    macs = standard_macs(keys, f"{delivery}.{stamp}.".encode() + body)
    return {"webhook-id": delivery, "webhook-timestamp": stamp, "webhook-signature": macs[0] if macs else ""}
