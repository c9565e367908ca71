"""Is this request from whom it claims to be? Verification by preset, over the raw bytes.

Pure: secrets come in resolved, time is passed in. Comparisons take the same time whatever differs, every secret is
tried, and the timestamp is looked at only after the signature, so that an answer tells nothing about the secret.

===================  ======================================================  =========================================
preset               what is checked                                         source
===================  ======================================================  =========================================
github               ``X-Hub-Signature-256: sha256=<hex>`` of the body        docs.github.com, validating deliveries
gitlab               ``X-Gitlab-Token``; with a ``whsec_`` secret the         docs.gitlab.com, webhooks; MR 230944
                     ``webhook-signature`` of Standard Webhooks
stripe               ``Stripe-Signature: t=,v1=`` of ``t.body``, age          docs.stripe.com/webhooks
slack                ``X-Slack-Signature: v0=`` of ``v0:t:body``, age         docs.slack.dev, verifying requests
shopify              ``X-Shopify-Hmac-Sha256``, base64 of the body            shopify.dev, webhooks
standard-webhooks    ``webhook-signature: v1,…`` of ``id.t.body``, age        standardwebhooks.com 1.0
cloudevents          ``Authorization: Bearer`` or ``?access_token=``          CloudEvents HTTP 1.1 webhook 1.0.2, 3
hmac                 a header of your choice; see ``HmacVerify``
bearer, basic        ``Authorization``, or the header named                   RFC 6750, RFC 7617
none                 nothing; must be written out
===================  ======================================================  =========================================
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, assert_never

from .preset import (
    PLACEHOLDER,
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

__all__ = [
    "Keys", "Refused", "Request", "Verified", "base64_of", "macs", "signed_bytes", "standard_macs", "verify",
]  # fmt: skip

_MAX_HEADER_CHARS = 8192
_MAX_SIGNATURES = 20


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came: header names in lower case, the body as raw bytes; of a repeated query key, all values."""

    method: str
    headers: Mapping[str, str]
    query: Mapping[str, str | list[str]]
    body: bytes = field(repr=False)

    def asked(self, name: str) -> str:
        """Return the (last) value of a query key; empty if there is none."""
        value = self.query.get(name, "")
        return value if isinstance(value, str) else value[-1] if value else ""

    @property
    def size(self) -> int:
        """Bytes of the body, or what the request says they are where it was not read to its end."""
        said = self.headers.get("content-length", "")
        length = int(said) if said.isascii() and said.isdigit() and len(said) < 16 else 0
        return max(length, len(self.body))


@dataclass(frozen=True, slots=True)
class Keys:
    """The secrets of a webhook, resolved; any of them may have signed. Never shown."""

    secrets: tuple[str, ...] = field(repr=False)
    user: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    """The request is from whom it claims to be."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not, as far as anybody can tell. ``reason`` is a word for machines, ``detail`` a sentence."""

    reason: str
    detail: str


_MISSING = Refused("signature-missing", "the request is not signed")
_WRONG = Refused("signature-wrong", "the signature does not match")
_VERIFIED = Verified()


def verify(
    rule: Verify, request: Request, keys: Keys, *, now: datetime, tolerance_s: float = 300.0
) -> Verified | Refused:
    """Return whether ``request`` is genuine under ``rule``.

    Args:
        keys: ``rule``'s secrets, resolved; an empty one verifies nothing.
        now: aware; signed timestamps may be ``rule.tolerance`` (else ``tolerance_s``) away from it, either way.
    """
    headers = request.headers
    if rule.tolerance is not None:
        tolerance_s = rule.tolerance
    if not isinstance(rule, NoneVerify) and not any(keys.secrets):
        return Refused("secret-missing", "this webhook has no secret to verify with")
    if isinstance(rule, NoneVerify):
        return _VERIFIED
    if isinstance(rule, GithubVerify):
        want = ("sha256=" + h.hexdigest() for h in macs(keys, request.body))
        return _any_equal(want, [_header(headers, "x-hub-signature-256")])
    if isinstance(rule, ShopifyVerify):
        want = (base64_of(h.digest()) for h in macs(keys, request.body))
        return _any_equal(want, [_header(headers, "x-shopify-hmac-sha256")])
    if isinstance(rule, GitlabVerify):
        return _verify_gitlab(headers, request.body, keys, now, tolerance_s)
    if isinstance(rule, StripeVerify):
        return _verify_stripe(headers, request.body, keys, now, tolerance_s)
    if isinstance(rule, SlackVerify):
        stamp = _header(headers, "x-slack-request-timestamp")
        want = ("v0=" + h.hexdigest() for h in macs(keys, b"v0:%b:%b" % (_raw(stamp), request.body)))
        found = _any_equal(want, [_header(headers, "x-slack-signature")])
        return found if isinstance(found, Refused) else _age(stamp, now, tolerance_s)
    if isinstance(rule, StandardWebhooksVerify):
        return _verify_standard(headers, request.body, keys, now, tolerance_s)
    if isinstance(rule, HmacVerify):
        return _verify_hmac(rule, request, keys, now, tolerance_s)
    if isinstance(rule, CloudEventsVerify):
        given = _credentials(headers, "authorization", "Bearer") or request.asked("access_token")
        return _any_equal(iter(keys.secrets), [given], what="credentials")
    if isinstance(rule, BearerVerify):
        given = _credentials(headers, rule.header.lower(), rule.scheme)
        return _any_equal(iter(keys.secrets), [given], what="credentials")
    if isinstance(rule, BasicVerify):
        try:
            given = base64.b64decode(_credentials(headers, "authorization", "Basic"), validate=True).decode()
        except (binascii.Error, ValueError):
            given = "\0"
        return _any_equal(
            (f"{keys.user}:{secret}" for secret in keys.secrets if secret), [given], what="credentials"
        )
    assert_never(rule)


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    return value.strip() if len(value) <= _MAX_HEADER_CHARS else ""


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def macs(keys: Keys, message: bytes, algorithm: str = "sha256") -> Iterable[hmac.HMAC]:
    return [hmac.new(_raw(secret), message, algorithm) for secret in keys.secrets if secret]


def _any_equal(
    wanted: Iterable[str], given: Sequence[str], *, what: Literal["signature", "credentials"] = "signature"
) -> Verified | Refused:
    """Compare each of ``given`` with each of ``wanted``; always all of them, so that time tells nothing."""
    shown = [text for text in given if text]
    if not shown:
        return (
            Refused("credentials-missing", "there are no credentials") if what == "credentials" else _MISSING
        )
    hits = [hmac.compare_digest(_raw(one), _raw(other)) for one in wanted if one for other in shown]
    if any(hits):
        return _VERIFIED
    return (
        Refused("credentials-wrong", "the credentials are not the right ones")
        if what == "credentials"
        else _WRONG
    )


def _credentials(headers: Mapping[str, str], name: str, scheme: str) -> str:
    value = _header(headers, name)
    head, _, rest = value.partition(" ")
    if scheme and head.lower() == scheme.lower():
        return rest.strip()
    # A header of one's own usually holds the secret alone.
    return value if name != "authorization" else ""


def _age(stamp: str, now: datetime, tolerance_s: float, *, iso: bool = False) -> Verified | Refused:
    """Return whether a signed timestamp is near enough to ``now``."""
    at = _seconds(stamp, iso=iso)
    if at is None:
        return Refused("timestamp-unreadable", f"the timestamp {stamp[:40]!r} is not a time")
    age_s = now.timestamp() - at
    if age_s > tolerance_s:
        return Refused(
            "timestamp-old", f"the request was signed {age_s:.0f} s ago, and {tolerance_s:g} s are allowed"
        )
    if age_s < -tolerance_s:
        return Refused(
            "timestamp-ahead", f"the request was signed {-age_s:.0f} s in the future; check both clocks"
        )
    return _VERIFIED


def _seconds(stamp: str, *, iso: bool) -> float | None:
    if re.fullmatch(r"[0-9]{1,14}", stamp):
        value = int(stamp)
        return value / 1000 if value > 100_000_000_000 else float(value)
    if iso:
        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None


def _verify_stripe(
    headers: Mapping[str, str], body: bytes, keys: Keys, now: datetime, tolerance_s: float
) -> Verified | Refused:
    parts = [item.strip().partition("=") for item in _header(headers, "stripe-signature").split(",")]
    if len(parts) > _MAX_SIGNATURES:
        return _WRONG
    stamp = next((value for key, _, value in parts if key == "t"), "")
    want = (h.hexdigest() for h in macs(keys, _raw(stamp) + b"." + body))
    found = _any_equal(want, [value for key, _, value in parts if key == "v1"])
    return found if isinstance(found, Refused) else _age(stamp, now, tolerance_s)


def _standard_key(secret: str) -> bytes | None:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def standard_macs(keys: Keys, message: bytes) -> list[str]:
    found = (_standard_key(secret) for secret in keys.secrets)
    return ["v1," + base64_of(hmac.new(key, message, "sha256").digest()) for key in found if key is not None]


def _verify_standard(
    headers: Mapping[str, str], body: bytes, keys: Keys, now: datetime, tolerance_s: float
) -> Verified | Refused:
    def header(name: str) -> str:
        return _header(headers, f"webhook-{name}") or _header(headers, f"svix-{name}")

    id_, stamp = header("id"), header("timestamp")
    given = header("signature").split()[:_MAX_SIGNATURES]
    if not id_ or not stamp:
        return _MISSING
    macs = standard_macs(keys, b"%b.%b.%b" % (_raw(id_), _raw(stamp), body))
    if not macs:
        return Refused(
            "secret-malformed", "no secret of this webhook is base64, with or without whsec_ before it"
        )
    found = _any_equal(macs, given)
    return found if isinstance(found, Refused) else _age(stamp, now, tolerance_s)


def _verify_gitlab(
    headers: Mapping[str, str], body: bytes, keys: Keys, now: datetime, tolerance_s: float
) -> Verified | Refused:
    signing = Keys(tuple(secret for secret in keys.secrets if secret.startswith("whsec_")))
    plain = [secret for secret in keys.secrets if secret and not secret.startswith("whsec_")]
    if signing.secrets and _header(headers, "webhook-signature"):
        found = _verify_standard(headers, body, signing, now, tolerance_s)
        if isinstance(found, Verified) or not plain:
            return found
    if not plain:
        return _MISSING
    return _any_equal(plain, [_header(headers, "x-gitlab-token")], what="credentials")


def _verify_hmac(
    rule: HmacVerify, request: Request, keys: Keys, now: datetime, tolerance_s: float
) -> Verified | Refused:
    stamp = _header(request.headers, rule.timestamp_header.lower()) if rule.timestamp_header else ""
    message = signed_bytes(rule, request, stamp)
    given = []
    for text in _header(request.headers, rule.header.lower()).split(",")[:_MAX_SIGNATURES]:
        text = text.strip()
        if text.startswith(rule.prefix):
            text = text.removeprefix(rule.prefix)
            given.append(text.lower() if rule.encoding == "hex" else text)
    want = (
        h.hexdigest() if rule.encoding == "hex" else base64_of(h.digest())
        for h in macs(keys, message, rule.algorithm)
    )
    found = _any_equal(want, given)
    if isinstance(found, Refused) or rule.timestamp_header is None:
        return found
    return _age(stamp, now, tolerance_s, iso=True)


def signed_bytes(rule: HmacVerify, request: Request, stamp: str) -> bytes:
    values = {
        "body": request.body,
        "timestamp": _raw(stamp),
        "id": _raw(_header(request.headers, rule.id_header.lower())) if rule.id_header else b"",
        "method": _raw(request.method),
    }
    pieces = re.split(r"(\{[a-z]+\})", rule.signed)
    return b"".join(values[p[1:-1]] if PLACEHOLDER.fullmatch(p) else p.encode() for p in pieces)
