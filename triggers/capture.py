"""A request at a webhook as it is kept for a while: to be looked at, and to be delivered again. Pure.

What proves who sent it is taken out: credentials, cookies, tokens, and every place that holds one of the webhook's
secrets. Signatures are kept where they are made of the body with a secret (they give nothing away), so that a request
that was refused because of a wrong secret can be verified again once the secret is right.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

import orjson

from ..bus.event import format_time, parse_time
from ..vocabulary import JsonObject
from .body import gathered
from .mapping import HIDDEN
from .preset import (
    GithubVerify,
    GitlabVerify,
    HmacVerify,
    ShopifyVerify,
    SlackVerify,
    StandardWebhooksVerify,
    StripeVerify,
    Verify,
)
from .verify import Request

__all__ = ["Captured", "capture", "has_kept_proof"]

MASK = "***"
_MAX_HEADERS = 100
_MAX_HEADER_CHARS = 4096
_MAX_QUERY = 100
# A secret shorter than that would be found everywhere by chance.
_MIN_SECRET_CHARS = 6
_SIGNATURES = frozenset({
    "x-hub-signature-256", "x-hub-signature", "stripe-signature", "x-slack-signature", "x-shopify-hmac-sha256",
    "webhook-signature", "svix-signature",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Captured:
    """A request and what became of it.

    Attributes:
        body: its first bytes; ``size`` is how many there were; ``is_whole``: nothing was cut off or taken out.
        status: the answer; ``reason`` the word of a refusal; ``event_ids`` what was stored.
        is_genuine: it was verified.
        id: what it is called once it is kept; empty before.
    """

    webhook: str
    received_at: datetime
    method: str
    query: Mapping[str, str | list[str]]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    size: int
    is_whole: bool
    remote: str | None
    status: int
    reason: str
    event_ids: tuple[str, ...]
    is_genuine: bool
    id: str = ""

    def request(self) -> Request:
        """Return the request to be taken in again."""
        return Request(self.method, self.headers, self.query, self.body)

    def to_json(self) -> bytes:
        """Return the bytes that are stored."""
        return orjson.dumps({
            "webhook": self.webhook, "received_at": format_time(self.received_at), "method": self.method,
            "query": dict(self.query), "headers": dict(self.headers), "body": base64.b64encode(self.body).decode(),
            "size": self.size, "is_whole": self.is_whole, "remote": self.remote, "status": self.status,
            "reason": self.reason, "event_ids": list(self.event_ids), "is_genuine": self.is_genuine,
        })  # fmt: skip

    @classmethod
    def from_json(cls, raw: bytes, *, id: str) -> Self:
        """Read what ``to_json`` wrote."""
        value = orjson.loads(raw)
        return cls(
            webhook=value["webhook"], received_at=parse_time(value["received_at"]), method=value["method"],
            query=value["query"], headers=value["headers"], body=base64.b64decode(value["body"]), size=value["size"], is_whole=value["is_whole"],
            remote=value["remote"], status=value["status"], reason=value["reason"],
            event_ids=tuple(value["event_ids"]), is_genuine=value["is_genuine"], id=id,
        )  # fmt: skip

    def shown(self, *, with_body: bool) -> JsonObject:
        """Return it for people: the body as text where it is text."""
        out: JsonObject = {
            "id": self.id, "webhook": self.webhook, "received_at": format_time(self.received_at),
            "method": self.method, "status": self.status, "reason": self.reason or None,
            "event_ids": [*self.event_ids], "size": self.size, "remote": self.remote, "is_genuine": self.is_genuine,
            "is_whole": self.is_whole, "content_type": self.headers.get("content-type"),
        }  # fmt: skip
        if with_body:
            try:
                body, encoding = self.body.decode(), "utf-8"
            except UnicodeDecodeError:
                body, encoding = base64.b64encode(self.body).decode(), "base64"
            out |= {
                "query": {k: v if isinstance(v, str) else [*v] for k, v in self.query.items()}, "headers": dict(self.headers), "body": body, "body_encoding": encoding,
            }  # fmt: skip
        return out


def _proof_headers(rule: Verify) -> frozenset[str]:
    """Return the headers that hold a signature over the body, which may be kept."""
    if isinstance(rule, HmacVerify):
        return frozenset({rule.header.lower()})
    if isinstance(
        rule,
        GithubVerify | StripeVerify | SlackVerify | ShopifyVerify | StandardWebhooksVerify | GitlabVerify,
    ):
        return _SIGNATURES
    return frozenset()


def has_kept_proof(rule: Verify, request: Request) -> bool:
    """Return whether a kept request still holds what is needed to verify it again."""
    return bool(_proof_headers(rule) & request.headers.keys())


def _own_header(rule: Verify) -> str:
    """Return the header in which a token is sent that is the secret itself, if the rule names one."""
    header = getattr(rule, "header", None)
    return header.lower() if isinstance(header, str) and not isinstance(rule, HmacVerify) else ""


def _masked(
    items: Iterable[tuple[str, str]], *, keep: frozenset[str], own: str, secrets: tuple[str, ...], most: int
) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in items:
        if len(out) >= most:
            break
        hide = name not in keep and (name == own or HIDDEN.search(name) is not None)
        hide = hide or any(secret in value for secret in secrets)
        text = MASK if hide else value[:_MAX_HEADER_CHARS]
        out[name[:200].encode("utf-8", "replace").decode()] = text.encode("utf-8", "replace").decode()
    return out


def _masked_query(request: Request, secrets: tuple[str, ...]) -> dict[str, str | list[str]]:
    pairs = [
        (name, one)
        for name, value in request.query.items()
        for one in ([value] if isinstance(value, str) else value)
    ]
    shown = (
        _masked([pair], keep=frozenset(), own="", secrets=secrets, most=1).popitem()
        for pair in pairs[:_MAX_QUERY]
    )
    return gathered(shown)


def capture(
    webhook: str,
    rule: Verify,
    request: Request,
    *,
    secrets: tuple[str, ...],
    received_at: datetime,
    remote: str | None,
    status: int,
    reason: str,
    event_ids: tuple[str, ...],
    is_genuine: bool,
    max_bytes: int,
) -> Captured:
    """Return what is kept of a request.

    Args:
        secrets: the webhook's, as far as they are known: taken out wherever they stand.
        max_bytes: most of the body that is kept.
    """
    known = tuple(secret for secret in secrets if len(secret) >= _MIN_SECRET_CHARS)
    body = request.body[:max_bytes]
    for secret in known:
        body = body.replace(secret.encode(), MASK.encode())
    keep, own = _proof_headers(rule), _own_header(rule)
    return Captured(
        webhook=webhook,
        received_at=received_at,
        method=request.method[:20],
        query=_masked_query(request, known),
        headers=_masked(request.headers.items(), keep=keep, own=own, secrets=known, most=_MAX_HEADERS),
        body=body,
        size=request.size,
        is_whole=body == request.body and len(body) == request.size,
        remote=remote,
        status=status,
        reason=reason,
        event_ids=event_ids,
        is_genuine=is_genuine,
    )
