"""Is this request from whom it claims to be? Verification by preset, over the raw bytes; and signing, for trying out.

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
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias, assert_never

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..duration import Duration
from ..errors import TemplateError
from ..template import check_template
from ..vocabulary import new_id

__all__ = [
    "BasicVerify", "BearerVerify", "CloudEventsVerify", "GithubVerify", "GitlabVerify", "HmacVerify", "Keys", "NoneVerify",
    "Refused", "Request", "ShopifyVerify", "SlackVerify", "StandardWebhooksVerify", "StripeVerify", "Verified", "Verify",
    "sign", "verify",
]  # fmt: skip

PRESETS = (
    "github", "gitlab", "stripe", "slack", "shopify", "standard-webhooks", "cloudevents", "hmac", "bearer", "basic",
    "none",
)  # fmt: skip
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


# --- what is written -----------------------------------------------------------------------------------


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _checked(value: str) -> str:
    try:
        check_template(value)
    except TemplateError as exc:
        raise ValueError(f"the template of a secret does not parse: {exc.__cause__}") from exc
    if not value.strip():
        raise ValueError("a secret is not empty: anybody can sign with an empty one")
    return value


Secrets: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1, max_length=5),
]
"""One secret, or several that are valid at once while they are being changed. Templates: ``{{ secrets.github }}``."""


class _Verify(BaseModel):
    # A secret may be written out where a template belongs, and an error message must not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, hide_input_in_errors=True)

    tolerance: Duration | None = Field(None, description="largest age of a signed timestamp, either way")

    def templates(self) -> tuple[str, ...]:
        """Return what must be rendered to make ``Keys``: the secrets, then the user if there is one."""
        return ()


class _Secret(_Verify):
    secret: Secrets = Field(repr=False)

    @model_validator(mode="after")
    def _secrets_are_templates(self) -> Any:
        for text in self.secret:
            _checked(text)
        return self

    def templates(self) -> tuple[str, ...]:
        return self.secret


class GithubVerify(_Secret):
    preset: Literal["github"]


class GitlabVerify(_Secret):
    """A secret token (plain), or a signing token (begins with ``whsec_``)."""

    preset: Literal["gitlab"]


class StripeVerify(_Secret):
    preset: Literal["stripe"]


class SlackVerify(_Secret):
    preset: Literal["slack"]


class ShopifyVerify(_Secret):
    preset: Literal["shopify"]


class StandardWebhooksVerify(_Secret):
    """``secret`` is base64, with or without ``whsec_`` before it."""

    preset: Literal["standard-webhooks"]


class CloudEventsVerify(_Secret):
    """``secret`` is the bearer token. ``allowed_origins``: who may ask by OPTIONS whether it may deliver; any if empty."""

    preset: Literal["cloudevents"]
    allowed_origins: tuple[str, ...] = ()


class BearerVerify(_Secret):
    """``Authorization: Bearer <secret>``; or another ``header`` that holds ``scheme`` and secret, or the secret alone."""

    preset: Literal["bearer"]
    header: str = "authorization"
    scheme: str = "Bearer"


class BasicVerify(_Secret):
    """HTTP basic authentication; ``secret`` is the password."""

    preset: Literal["basic"]
    user: str

    def templates(self) -> tuple[str, ...]:
        return (*self.secret, self.user)


class HmacVerify(_Secret):
    """An HMAC in a header, as most services have it.

    Attributes:
        header: the header with the signature; several may stand in it, separated by commas.
        prefix: what stands before each signature, such as ``sha256=``.
        signed: what is signed, with ``{body}`` and, if wanted, ``{timestamp}``, ``{id}``, ``{method}``.
        timestamp_header, id_header: the headers those come from. A timestamp is Unix seconds or milliseconds, or ISO 8601.
    """

    preset: Literal["hmac"]
    header: str
    prefix: str = ""
    algorithm: Literal["sha1", "sha256", "sha384", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    signed: str = "{body}"
    timestamp_header: str | None = None
    id_header: str | None = None

    @model_validator(mode="after")
    def _sound(self) -> HmacVerify:
        parts = set(_PLACEHOLDER.findall(self.signed))
        unknown = parts - {"body", "timestamp", "id", "method"}
        if unknown:
            raise ValueError(
                f"`signed` may hold {{body}}, {{timestamp}}, {{id}}, {{method}}; not {{{min(unknown)}}}"
            )
        if "body" not in parts:
            raise ValueError("`signed` must hold {body}: what is not signed can be changed on the way")
        if "timestamp" in parts and self.timestamp_header is None:
            raise ValueError("`signed` holds {timestamp}, so `timestamp_header` must say where it is sent")
        if "id" in parts and self.id_header is None:
            raise ValueError("`signed` holds {id}, so `id_header` must say where it is sent")
        if self.timestamp_header is not None and "timestamp" not in parts:
            raise ValueError(
                "`timestamp_header` is given, but {timestamp} is not in `signed`, so it proves nothing"
            )
        return self


class NoneVerify(_Verify):
    """Anybody may send. Must be written out: ``verify: none``."""

    preset: Literal["none"]


def _named_preset(value: object) -> object:
    """Let ``verify: none`` stand for ``{preset: none}``, and say what is missing where a preset is."""
    if isinstance(value, BaseModel):
        return value
    if value == "none":
        return {"preset": "none"}
    choices = ", ".join(PRESETS)
    if isinstance(value, str) and value in PRESETS:
        raise ValueError(
            f"preset {value} needs a secret: {{preset: {value}, secret: '{{{{ secrets.{value} }}}}'}}"
        )
    if not isinstance(value, dict) or "preset" not in value:
        raise ValueError(f"`verify` needs a preset ({choices}); `verify: none` lets anybody send")
    preset = value["preset"]
    if preset not in PRESETS:
        near = get_close_matches(str(preset), PRESETS, n=1)
        raise ValueError(
            f"there is no preset {preset!r}" + (f"; did you mean {near[0]!r}?" if near else f" ({choices})")
        )
    if preset != "none" and not value.get("secret"):
        raise ValueError(f"preset {preset} needs a `secret`, such as '{{{{ secrets.{preset} }}}}'")
    return value


Verify: TypeAlias = Annotated[
    Annotated[
        GithubVerify | GitlabVerify | StripeVerify | SlackVerify | ShopifyVerify | StandardWebhooksVerify
        | CloudEventsVerify | HmacVerify | BearerVerify | BasicVerify | NoneVerify,
        Field(discriminator="preset"),
    ],
    BeforeValidator(_named_preset),
]  # fmt: skip


# --- verifying -------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
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
        want = ("sha256=" + h.hexdigest() for h in _macs(keys, request.body))
        return _any_equal(want, [_header(headers, "x-hub-signature-256")])
    if isinstance(rule, ShopifyVerify):
        want = (_b64(h.digest()) for h in _macs(keys, request.body))
        return _any_equal(want, [_header(headers, "x-shopify-hmac-sha256")])
    if isinstance(rule, GitlabVerify):
        return _verify_gitlab(headers, request.body, keys, now, tolerance_s)
    if isinstance(rule, StripeVerify):
        return _verify_stripe(headers, request.body, keys, now, tolerance_s)
    if isinstance(rule, SlackVerify):
        stamp = _header(headers, "x-slack-request-timestamp")
        want = ("v0=" + h.hexdigest() for h in _macs(keys, b"v0:%b:%b" % (_raw(stamp), request.body)))
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


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _macs(keys: Keys, message: bytes, algorithm: str = "sha256") -> Iterable[hmac.HMAC]:
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
    want = (h.hexdigest() for h in _macs(keys, _raw(stamp) + b"." + body))
    found = _any_equal(want, [value for key, _, value in parts if key == "v1"])
    return found if isinstance(found, Refused) else _age(stamp, now, tolerance_s)


def _standard_key(secret: str) -> bytes | None:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _standard_macs(keys: Keys, message: bytes) -> list[str]:
    found = (_standard_key(secret) for secret in keys.secrets)
    return ["v1," + _b64(hmac.new(key, message, "sha256").digest()) for key in found if key is not None]


def _verify_standard(
    headers: Mapping[str, str], body: bytes, keys: Keys, now: datetime, tolerance_s: float
) -> Verified | Refused:
    def header(name: str) -> str:
        return _header(headers, f"webhook-{name}") or _header(headers, f"svix-{name}")

    id_, stamp = header("id"), header("timestamp")
    given = header("signature").split()[:_MAX_SIGNATURES]
    if not id_ or not stamp:
        return _MISSING
    macs = _standard_macs(keys, b"%b.%b.%b" % (_raw(id_), _raw(stamp), body))
    if not macs:
        return Refused("secret-missing", "the secret of this webhook is not base64")
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
    message = _signed(rule, request, stamp)
    given = []
    for text in _header(request.headers, rule.header.lower()).split(",")[:_MAX_SIGNATURES]:
        text = text.strip()
        if text.startswith(rule.prefix):
            text = text.removeprefix(rule.prefix)
            given.append(text.lower() if rule.encoding == "hex" else text)
    want = (
        h.hexdigest() if rule.encoding == "hex" else _b64(h.digest())
        for h in _macs(keys, message, rule.algorithm)
    )
    found = _any_equal(want, given)
    if isinstance(found, Refused) or rule.timestamp_header is None:
        return found
    return _age(stamp, now, tolerance_s, iso=True)


def _signed(rule: HmacVerify, request: Request, stamp: str) -> bytes:
    values = {
        "body": request.body,
        "timestamp": _raw(stamp),
        "id": _raw(_header(request.headers, rule.id_header.lower())) if rule.id_header else b"",
        "method": _raw(request.method),
    }
    pieces = re.split(r"(\{[a-z]+\})", rule.signed)
    return b"".join(values[p[1:-1]] if _PLACEHOLDER.fullmatch(p) else p.encode() for p in pieces)


# --- signing, for trying out -----------------------------------------------------------------------------


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
            "X-Hub-Signature-256": "sha256=" + next(iter(_macs(first, body))).hexdigest(),
            "X-GitHub-Event": event or "push",
            "X-GitHub-Delivery": delivery,
        }
    if isinstance(rule, ShopifyVerify):
        return {
            "X-Shopify-Hmac-Sha256": _b64(next(iter(_macs(first, body))).digest()),
            "X-Shopify-Topic": event or "orders/create",
            "X-Shopify-Event-Id": delivery,
        }
    if isinstance(rule, GitlabVerify):
        named = {"X-Gitlab-Event": event or "Push Hook", "X-Gitlab-Event-UUID": delivery}
        if not secret.startswith("whsec_"):
            return {"X-Gitlab-Token": secret, **named}
        return {**_sign_standard(first, body, stamp, delivery), **named}
    if isinstance(rule, StripeVerify):
        mac = next(iter(_macs(first, f"{stamp}.".encode() + body))).hexdigest()
        return {"Stripe-Signature": f"t={stamp},v1={mac}"}
    if isinstance(rule, SlackVerify):
        mac = next(iter(_macs(first, f"v0:{stamp}:".encode() + body))).hexdigest()
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
        made = next(iter(_macs(first, _signed(rule, request, stamp), rule.algorithm)))
        headers[rule.header] = rule.prefix + (
            made.hexdigest() if rule.encoding == "hex" else _b64(made.digest())
        )
        return headers
    if isinstance(rule, CloudEventsVerify):
        return {"Authorization": f"Bearer {secret}", **_as_cloud_event(body, delivery, event)}
    if isinstance(rule, BearerVerify):
        return {rule.header: f"{rule.scheme} {secret}".strip()}
    if isinstance(rule, BasicVerify):
        return {"Authorization": "Basic " + _b64(f"{keys.user}:{secret}".encode())}
    assert_never(rule)


def _sign_standard(keys: Keys, body: bytes, stamp: str, delivery: str) -> dict[str, str]:
    macs = _standard_macs(keys, f"{delivery}.{stamp}.".encode() + body)
    return {"webhook-id": delivery, "webhook-timestamp": stamp, "webhook-signature": macs[0] if macs else ""}
