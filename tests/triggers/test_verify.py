"""Verifying requests: each preset against its documented vectors, and against whatever is changed on the way."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hark.triggers.preset import Verify
from hark.triggers.signing import sign
from hark.triggers.verify import Keys, Refused, Request, Verified, verify
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

RULE: TypeAdapter[Verify] = TypeAdapter(Verify)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STAMP = str(int(NOW.timestamp()))
BODY = b'{"hello": "w\xc3\xb6rld"}'
KEY = "s3cret"
WHSEC = "whsec_" + base64.b64encode(b"twenty-four bytes of key").decode()


def rule(preset: str, **more: Any) -> Verify:
    return RULE.validate_python({"preset": preset, "secret": KEY, **more})


def check(
    rule: Verify,
    headers: dict[str, str],
    body: bytes = BODY,
    *,
    secrets: tuple[str, ...] = (KEY,),
    now: datetime = NOW,
    query: dict[str, str] | None = None,
    user: str = "",
) -> str:
    """Return ``ok`` or the reason."""
    lowered = {name.lower(): value for name, value in headers.items()}
    found = verify(rule, Request("POST", lowered, query or {}, body), Keys(secrets, user), now=now)
    return "ok" if isinstance(found, Verified) else found.reason


def hex_mac(key: str, message: bytes, algorithm: Any = hashlib.sha256) -> str:
    return hmac.new(key.encode(), message, algorithm).hexdigest()


def b64_mac(key: bytes, message: bytes) -> str:
    return base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()


# --- documented vectors ----------------------------------------------------------------------------------


def test_github_s_documented_example_verifies() -> None:
    """docs.github.com, "Testing the webhook payload validation"."""
    headers = {
        "X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    }
    assert check(rule("github"), headers, b"Hello, World!", secrets=("It's a Secret to Everybody",)) == "ok"
    assert (
        check(rule("github"), headers, b"Hello, World?", secrets=("It's a Secret to Everybody",))
        == "signature-wrong"
    )


def test_slack_s_documented_example_verifies() -> None:
    """docs.slack.dev, "Verifying requests from Slack": the slash command of 2018."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    headers = {
        "X-Slack-Request-Timestamp": "1531420618",
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    at = datetime.fromtimestamp(1531420618, UTC)
    secrets = ("8f742231b10e8888abcd99yyyzzz85a5",)
    assert check(rule("slack"), headers, body, secrets=secrets, now=at + timedelta(seconds=60)) == "ok"
    assert check(rule("slack"), headers, body, secrets=secrets) == "timestamp-old"


def test_standard_webhooks_documented_example_verifies() -> None:
    """The vector of the reference implementations."""
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    at = datetime.fromtimestamp(1614265330, UTC)
    secrets = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",)
    body = b'{"test": 2432232314}'
    assert check(rule("standard-webhooks"), headers, body, secrets=secrets, now=at) == "ok"
    svix = {name.replace("webhook", "svix"): value for name, value in headers.items()}
    assert check(rule("standard-webhooks"), svix, body, secrets=secrets, now=at) == "ok"
    several = {**headers, "webhook-signature": "v1a,xxx v1,AAAA " + headers["webhook-signature"]}
    assert check(rule("standard-webhooks"), several, body, secrets=secrets, now=at) == "ok"


# --- golden signatures, computed here ----------------------------------------------------------------------

STANDARD_KEY = base64.b64decode(WHSEC[6:])
GENUINE: dict[str, tuple[Verify, str, dict[str, str]]] = {
    "github": (rule("github"), KEY, {"X-Hub-Signature-256": "sha256=" + hex_mac(KEY, BODY)}),
    "gitlab": (rule("gitlab"), KEY, {"X-Gitlab-Token": KEY}),
    "gitlab-signed": (
        rule("gitlab"),
        WHSEC,
        {
            "webhook-id": "d1",
            "webhook-timestamp": STAMP,
            "webhook-signature": "v1," + b64_mac(STANDARD_KEY, f"d1.{STAMP}.".encode() + BODY),
        },
    ),
    "stripe": (
        rule("stripe"),
        KEY,
        {"Stripe-Signature": f"t={STAMP},v1={hex_mac(KEY, f'{STAMP}.'.encode() + BODY)},v0=abc"},
    ),
    "slack": (
        rule("slack"),
        KEY,
        {
            "X-Slack-Request-Timestamp": STAMP,
            "X-Slack-Signature": "v0=" + hex_mac(KEY, f"v0:{STAMP}:".encode() + BODY),
        },
    ),
    "shopify": (rule("shopify"), KEY, {"X-Shopify-Hmac-Sha256": b64_mac(KEY.encode(), BODY)}),
    "hmac": (
        rule(
            "hmac", header="X-Sig", prefix="v1=", algorithm="sha512", encoding="hex",
            signed="{id}:{timestamp}.{body}", timestamp_header="X-Time", id_header="X-Id",
        ),
        KEY,
        {"X-Sig": "v1=" + hex_mac(KEY, f"7:{STAMP}.".encode() + BODY, hashlib.sha512), "X-Time": STAMP, "X-Id": "7"},
    ),
    "hmac-base64": (
        rule("hmac", header="X-Sig", encoding="base64"), KEY, {"X-Sig": b64_mac(KEY.encode(), BODY)},
    ),
    "bearer": (rule("bearer"), KEY, {"Authorization": f"Bearer {KEY}"}),
    "cloudevents": (rule("cloudevents"), KEY, {"Authorization": f"bearer {KEY}"}),
    "basic": (
        rule("basic", user="ann"), KEY, {"Authorization": "Basic " + base64.b64encode(b"ann:s3cret").decode()},
    ),
}  # fmt: skip
SIGNS_BODY = {"github", "gitlab-signed", "stripe", "slack", "shopify", "hmac", "hmac-base64"}
SIGNS_TIME = {"gitlab-signed", "stripe", "slack", "hmac"}


@pytest.mark.parametrize("name", GENUINE)
def test_a_genuine_request_verifies_and_a_changed_one_does_not(name: str) -> None:
    """Another body, another key, no signature, half a signature: refused, with the reason."""
    what, key, headers = GENUINE[name]
    user = "ann" if name == "basic" else ""
    assert check(what, headers, secrets=(key,), user=user) == "ok"
    wrong = WHSEC[:-4] + "AAA=" if key == WHSEC else "other"
    assert check(what, headers, secrets=(wrong,), user=user).endswith("-wrong")
    assert check(what, {}, secrets=(key,), user=user).endswith("-missing")
    if name in SIGNS_BODY:
        assert check(what, headers, BODY + b" ", secrets=(key,)) == "signature-wrong"
        assert check(what, headers, b"", secrets=(key,)) == "signature-wrong"
    for header, value in headers.items():
        cut = {**headers, header: value[: len(value) // 2]}
        assert check(what, cut, secrets=(key,), user=user) != "ok"


@pytest.mark.parametrize("name", GENUINE)
def test_two_secrets_are_valid_at_once_while_one_is_changed(name: str) -> None:
    """Old and new, in either order; an empty one verifies nothing."""
    what, key, headers = GENUINE[name]
    user = "ann" if name == "basic" else ""
    other = "whsec_" + base64.b64encode(b"another key").decode() if key == WHSEC else "new"
    assert check(what, headers, secrets=(other, key), user=user) == "ok"
    assert check(what, headers, secrets=(key, other), user=user) == "ok"
    assert check(what, headers, secrets=("",), user=user) == "secret-missing"
    assert check(what, headers, secrets=(), user=user) == "secret-missing"


@pytest.mark.parametrize("name", sorted(SIGNS_TIME))
def test_an_old_timestamp_is_refused_and_so_is_one_from_the_future(name: str) -> None:
    """Five minutes either way by default; a replay an hour later fails though its signature is right."""
    what, key, headers = GENUINE[name]
    for seconds, want in [
        (299, "ok"),
        (-299, "ok"),
        (301, "timestamp-old"),
        (3600, "timestamp-old"),
        (-301, "timestamp-ahead"),
    ]:
        assert check(what, headers, secrets=(key,), now=NOW + timedelta(seconds=seconds)) == want
    wider = what.model_copy(update={"tolerance": 7200.0})
    assert check(wider, headers, secrets=(key,), now=NOW + timedelta(hours=1)) == "ok"


def test_a_moved_timestamp_breaks_the_signature() -> None:
    """The timestamp is signed: a fresh one on an old request does not help."""
    what, _, headers = GENUINE["stripe"]
    later = NOW + timedelta(hours=1)
    fresh = headers["Stripe-Signature"].replace(STAMP, str(int(later.timestamp())))
    assert check(what, {"Stripe-Signature": fresh}, now=later) == "signature-wrong"
    what, _, headers = GENUINE["slack"]
    assert (
        check(what, {**headers, "X-Slack-Request-Timestamp": str(int(later.timestamp()))}, now=later)
        == "signature-wrong"
    )


def test_an_hmac_of_an_empty_key_opens_nothing() -> None:
    """A secret that resolved to nothing must not make everybody genuine."""
    forged = {"X-Hub-Signature-256": "sha256=" + hex_mac("", BODY)}
    assert check(rule("github"), forged, secrets=("",)) == "secret-missing"
    assert check(rule("github"), forged, secrets=("", KEY)) == "signature-wrong"
    assert check(rule("basic", user="ann"), {"Authorization": "Basic " + base64.b64encode(b"ann:").decode()}, secrets=("", "x"), user="ann") == "credentials-wrong"  # fmt: skip


def test_timestamps_of_a_generic_hmac_may_be_seconds_milliseconds_or_iso() -> None:
    """All three name the same moment; anything else is unreadable."""
    what = rule("hmac", header="X-Sig", signed="{timestamp}{body}", timestamp_header="X-Time")
    for stamp, want in [
        (STAMP, "ok"),
        (STAMP + "000", "ok"),
        ("2026-01-01T12:00:00Z", "ok"),
        ("2026-01-01T13:00:00+01:00", "ok"),
        ("yesterday", "timestamp-unreadable"),
        ("٣٤٥", "timestamp-unreadable"),
    ]:
        headers = {"X-Sig": hex_mac(KEY, stamp.encode() + BODY), "X-Time": stamp}
        assert check(what, headers) == want


def test_a_bearer_secret_may_come_in_a_header_of_its_own() -> None:
    """With a scheme before it or alone; the CloudEvents token also in the query."""
    own = rule("bearer", header="X-Api-Key", scheme="")
    assert check(own, {"x-api-key": KEY}) == "ok"
    assert check(own, {"x-api-key": KEY + "x"}) == "credentials-wrong"
    assert check(rule("bearer"), {"Authorization": KEY}) == "credentials-missing"
    assert check(rule("cloudevents"), {}, query={"access_token": KEY}) == "ok"
    assert check(RULE.validate_python("none"), {}, secrets=()) == "ok"


# --- what is written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("github", "preset github needs a secret"),
        ({"preset": "githb", "secret": "x"}, "did you mean 'github'"),
        ({"preset": "github"}, r"needs a `secret`, such as '\{\{ secrets.github \}\}'"),
        ({"secret": "x"}, "`verify: none` lets anybody send"),
        (None, "`verify` needs a preset"),
        ({"preset": "github", "secret": ["a"] * 6}, "at most 5"),
        ({"preset": "github", "secret": " "}, "not empty"),
        ({"preset": "github", "secret": "{{ secrets. }}"}, "does not parse"),
        ({"preset": "github", "secret": "x", "header": "y"}, "Extra inputs"),
        ({"preset": "hmac", "secret": "x"}, "header"),
        ({"preset": "hmac", "secret": "x", "header": "h", "signed": "{timestamp}"}, r"must hold \{body\}"),
        ({"preset": "hmac", "secret": "x", "header": "h", "signed": "{timestamp}{body}"}, "timestamp_header"),
        ({"preset": "hmac", "secret": "x", "header": "h", "signed": "{url}{body}"}, r"not \{url\}"),
        ({"preset": "hmac", "secret": "x", "header": "h", "timestamp_header": "t"}, "proves nothing"),
        ({"preset": "slack", "secret": "x", "tolerance": 300}, "not a duration"),
    ],
)
def test_a_wrong_verification_says_what_is_wrong(value: object, says: str) -> None:
    """Every message names the fault and what to write."""
    with pytest.raises(ValidationError, match=says):
        RULE.validate_python(value)


def test_a_secret_is_not_shown() -> None:
    """Neither by the model nor by what carries it."""
    assert KEY not in repr(rule("github"))
    assert KEY not in repr(Keys((KEY,)))


# --- signing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENUINE)
@given(body=st.binary(max_size=200))
@settings(max_examples=20, deadline=None)
def test_what_is_signed_here_verifies_here_and_only_so(name: str, body: bytes) -> None:
    """`sign` makes what `verify` takes, for every preset and any bytes."""
    what, key, _ = GENUINE[name]
    user = "ann" if name == "basic" else ""
    headers = sign(what, Keys((key, "second"), user), body, now=NOW)
    assert check(what, headers, body, secrets=(key,), user=user) == "ok"
    if name in SIGNS_BODY:
        assert check(what, headers, body + b"!", secrets=(key,), user=user) == "signature-wrong"


@given(
    st.sampled_from(sorted(GENUINE)),
    st.dictionaries(
        st.sampled_from(
            [h.lower() for _, _, hs in GENUINE.values() for h in hs] + ["svix-id", "stripe-signature"]
        ),
        st.text(max_size=60)
        | st.sampled_from([",", "t=,v1=", "v1,", "sha256=", "Basic ====", "\ud800", "v0=é"]),
    ),
    st.binary(max_size=50),
)
@settings(max_examples=150, deadline=None)
def test_no_header_makes_verification_raise_or_pass(name: str, headers: dict[str, str], body: bytes) -> None:
    """Garbage is refused, never an error and never accepted."""
    what, key, _ = GENUINE[name]
    found = verify(what, Request("POST", headers, {}, body), Keys((key + "-not-guessable",), "ann"), now=NOW)
    assert isinstance(found, Refused)
