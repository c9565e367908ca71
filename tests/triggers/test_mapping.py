"""From requests to events: types, subjects and delivery ids of each sender, templates, bodies, CloudEvents."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hark.bus.event import check_type
from hark.triggers.body import BodyError, parse_body
from hark.triggers.mapping import Mapped, MappingFailed, map_request
from hark.triggers.verify import Request
from hark.triggers.webhook import Webhook, clean_type
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def hook(preset: str = "none", **more: Any) -> Webhook:
    verify: dict[str, Any] = {"preset": preset}
    if preset != "none":
        verify["secret"] = "k"
    return Webhook.model_validate({"name": "inbox", "verify": verify, **more})


def mapped(webhook: Webhook, body: Any = None, *, raw: bytes | None = None, **headers: str) -> Mapped:
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    data = raw if raw is not None else (b"" if body is None else orjson.dumps(body))
    named.setdefault("content-type", "application/json")
    request = Request("POST", named, {"page": "2"}, data)
    return map_request(webhook, request, parse_body(named, data), now=NOW)


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("github.workflow_run", "github.workflow-run"),
        ("orders/create", "orders.create"),
        ("Push Hook", "push-hook"),
        ("a..b.", "a.b"),
        ("_x_._y_", "x.y"),
        ("Microsoft.Storage.BlobCreated", "microsoft.storage.blobcreated"),
        ("!!!", ""),
        ("ä", ""),
        ("x" * 500, "x" * 200),
    ],
)
def test_event_types_are_made_of_lower_case_dotted_words(text: str, type_: str) -> None:
    """`_` becomes `-`, `/` and `:` become `.`: what people write in rules follows from this."""
    assert clean_type(text) == type_


@given(st.text(max_size=300))
def test_a_cleaned_type_is_a_type_or_nothing(text: str) -> None:
    """Whatever comes in a header; cleaning twice changes nothing."""
    made = clean_type(text)
    if made:
        check_type(made)
    assert clean_type(made) == made


# --- senders ---------------------------------------------------------------------------------------------


def test_github_s_requests_are_named_by_their_event_and_repository() -> None:
    """Type from the header, subject from the payload, delivery id as GitHub gives it."""
    body = {"action": "completed", "repository": {"full_name": "octo/hello"}}
    made = mapped(hook("github"), body, X_GitHub_Event="workflow_run", X_GitHub_Delivery="d-1")
    assert (made.event.type, made.event.subject) == ("github.workflow-run", "repo/octo/hello")
    assert (made.event.source, made.delivery) == ("/webhooks/inbox", "d-1")
    assert made.event.data == body
    assert (
        made.event.id == mapped(hook("github"), {}, X_GitHub_Event="push", X_GitHub_Delivery="d-1").event.id
    )
    org = mapped(hook("github"), {"organization": {"login": "octo"}}, X_GitHub_Event="member")
    assert (org.event.subject, org.delivery) == ("org/octo", None)
    form = b"payload=" + b"%7B%22repository%22%3A%7B%22full_name%22%3A%22a%2Fb%22%7D%7D"
    as_form = mapped(
        hook("github"), raw=form, X_GitHub_Event="push", content_type="application/x-www-form-urlencoded"
    )
    assert as_form.event.subject == "repo/a/b"
    with pytest.raises(MappingFailed, match="does not say"):
        mapped(hook("github"), body)


def test_the_other_senders_are_named_as_documented() -> None:
    """The table in `mapping.py`, one line each."""
    gitlab = mapped(
        hook("gitlab"),
        {"object_kind": "merge_request", "project": {"path_with_namespace": "g/p"}},
        X_Gitlab_Event="Merge Request Hook", X_Gitlab_Event_UUID="u-1",
    )  # fmt: skip
    assert (gitlab.event.type, gitlab.event.subject, gitlab.delivery) == (
        "gitlab.merge-request",
        "project/g/p",
        "u-1",
    )
    stripe = mapped(
        hook("stripe"),
        {"id": "evt_1", "type": "payment_intent.succeeded", "created": 1767268800, "data": {"object": {"object": "payment_intent", "id": "pi_1"}}},
    )  # fmt: skip
    assert (stripe.event.type, stripe.event.subject) == (
        "stripe.payment-intent.succeeded",
        "payment_intent/pi_1",
    )
    assert (stripe.delivery, stripe.event.time) == ("evt_1", NOW)
    slack = mapped(
        hook("slack"),
        {
            "type": "event_callback",
            "event_id": "Ev1",
            "event": {"type": "reaction_added", "item": {"channel": "C1"}},
        },
    )
    assert (slack.event.type, slack.event.subject, slack.delivery) == (
        "slack.reaction-added",
        "channel/C1",
        "Ev1",
    )
    command = mapped(
        hook("slack"),
        raw=b"command=%2Fdeploy&trigger_id=t1&text=prod",
        content_type="application/x-www-form-urlencoded",
    )
    assert (command.event.type, command.event.subject, command.delivery) == (
        "slack.command",
        "command/deploy",
        "t1",
    )
    action = mapped(
        hook("slack"),
        raw=b"payload=%7B%22type%22%3A%22block_actions%22%2C%22channel%22%3A%7B%22id%22%3A%22C2%22%7D%7D",
        content_type="application/x-www-form-urlencoded",
    )
    assert (action.event.type, action.event.subject) == ("slack.block-actions", "channel/C2")
    assert action.event.data == {"type": "block_actions", "channel": {"id": "C2"}}
    shopify = mapped(
        hook("shopify"), {"id": 1}, X_Shopify_Topic="orders/create", X_Shopify_Event_Id="e1", X_Shopify_Shop_Domain="a.myshopify.com"
    )  # fmt: skip
    assert (shopify.event.type, shopify.event.subject) == ("shopify.orders.create", "shop/a.myshopify.com")
    assert shopify.delivery == "orders/create#e1"
    standard = mapped(
        hook("standard-webhooks"),
        {"type": "invoice.paid", "timestamp": "2026-01-01T00:00:00Z"},
        webhook_id="m1",
    )
    assert (standard.event.type, standard.delivery) == ("inbox.invoice.paid", "m1")
    assert standard.event.time == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_request_nobody_explained_is_webhook_received() -> None:
    """Without a mapping the event holds the whole request, without credentials."""
    made = mapped(hook("bearer"), {"a": 1}, Authorization="Bearer k")
    assert made.event.type == "webhook.received"
    assert made.event.subject == "webhook/inbox"
    assert made.event.data == {
        "webhook": {"name": "inbox"},
        "method": "POST",
        "query": {"page": "2"},
        "body": {"a": 1},
    }
    assert made.delivery is None


# --- CloudEvents -------------------------------------------------------------------------------------------


def test_cloud_events_are_taken_as_they_are() -> None:
    """Structured and binary; the type in our spelling, the original kept; the id and source are theirs."""
    structured = mapped(
        hook("cloudevents"),
        {"specversion": "1.0", "id": "1", "source": "/s", "type": "com.Acme.Paid", "time": "2026-01-01T00:00:00Z", "data": {"x": 1}},
        content_type="application/cloudevents+json",
    )  # fmt: skip
    event = structured.event
    assert (event.type, event.source, event.id, event.data) == ("com.acme.paid", "/s", "1", {"x": 1})
    assert event.extensions == {"originaltype": "com.Acme.Paid"}
    assert structured.delivery == "/s\n1"
    binary = mapped(
        hook("cloudevents"), {"x": 2}, ce_specversion="1.0", ce_id="2", ce_source="/s", ce_type="a.b", ce_subject="caf%C3%A9",
        ce_tenant="t",
    ).event  # fmt: skip
    assert (binary.type, binary.id, binary.subject, binary.data) == ("a.b", "2", "café", {"x": 2})
    assert (binary.time, binary.extensions) == (NOW, {"tenant": "t"})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"id": "1", "source": "/s", "type": "flow-run.completed"}, "Hark's own"),
        ({"id": "1", "source": "/hark/engine", "type": "a.b"}, "cannot be the source"),
        ({"source": "/s", "type": "a.b"}, "'id' is missing"),
        ({"id": "1", "source": "/s"}, "no event type"),
        ({"specversion": "0.3", "id": "1", "source": "/s", "type": "a"}, "must be '1.0'"),
        ([], "is a JSON object"),
    ],
)
def test_a_cloud_event_that_is_none_or_pretends_is_refused(body: Any, says: str) -> None:
    """Nobody outside can speak as the engine."""
    with pytest.raises(MappingFailed, match=says):
        mapped(hook("cloudevents"), body, content_type="application/cloudevents+json")


# --- templates -----------------------------------------------------------------------------------------------


def test_templates_make_every_part_of_the_event() -> None:
    """The example of the manual, and all the other fields."""
    github = hook(
        "github",
        event={
            "type": "github.{{ headers['x-github-event'] }}",
            "subject": "repo/{{ body.repository.full_name }}",
        },
        dedupe="{{ headers['x-github-delivery'] }}",
    )
    made = mapped(
        github, {"repository": {"full_name": "o/r"}}, X_GitHub_Event="pull_request", X_GitHub_Delivery="d"
    )
    assert (made.event.type, made.event.subject, made.delivery) == ("github.pull-request", "repo/o/r", "d")
    whole = hook(
        event={
            "type": "sensor.{{ body.kind }}", "id": "{{ body.n }}", "source": "/sensors/{{ body.device }}",
            "time": "{{ body.at }}", "partitionkey": "{{ body.device }}", "subject": "{{ query.page }}",
            "data": {"value": "{{ body.value }}", "text": "{{ body.value }} C", "m": "{{ method }}"},
        },
    )  # fmt: skip
    body = {"kind": "temp", "n": 7, "device": "d1", "at": 1767225600, "value": 21.5}
    event = mapped(whole, body).event
    assert (event.type, event.id, event.source, event.subject) == ("sensor.temp", "7", "/sensors/d1", "2")
    assert event.time == datetime(2026, 1, 1, tzinfo=UTC)
    assert event.partitionkey == "d1"
    assert event.data == {"value": 21.5, "text": "21.5 C", "m": "POST"}
    assert mapped(whole, body).delivery == "7"
    # Servers hand header bytes over as Latin-1; what is not UTF-8 stays so.
    named = hook(event={"type": "x.y", "subject": "{{ headers['x-who'] }}"})
    assert mapped(named, X_Who="Zoë".encode().decode("latin-1")).event.subject == "Zoë"
    assert mapped(named, X_Who="Zoë").event.subject == "Zoë"


def test_a_missing_field_costs_the_subject_but_not_the_type() -> None:
    """What is for convenience is left out; what gives the event its meaning refuses the request."""
    optional = hook(event={"type": "x.y", "subject": "repo/{{ body.repo }}", "time": "{{ body.at }}"})
    made = mapped(optional, {"at": "soon"})
    assert (made.event.subject, made.event.time) == (None, NOW)
    for field in (
        {"type": "x.{{ body.kind }}"},
        {"type": "x", "data": "{{ body.d }}"},
        {"type": "x", "id": "{{ body.i }}"},
    ):
        with pytest.raises(MappingFailed, match="`event"):
            mapped(hook(event=field), {})
    with pytest.raises(MappingFailed, match="`dedupe`"):
        mapped(hook(event={"type": "x"}, dedupe="{{ body.id }}"), {})
    with pytest.raises(MappingFailed, match="Hark's own"):
        mapped(hook(event={"type": "{{ body.t }}"}), {"t": "flow-run.failed"})


def test_a_control_character_costs_the_character_and_not_the_delivery() -> None:
    """In the subject and the partition key it becomes U+FFFD; in an id, which tells events apart, it is refused."""
    event = {"type": "a.b", "subject": "{{ body.s }}", "partitionkey": "{{ body.s }}"}
    found = mapped(hook(event=event), {"s": "one\ntwo\x00"}).event
    assert (found.subject, found.partitionkey) == ("one\ufffdtwo\ufffd", "one\ufffdtwo\ufffd")
    pushed = {"repository": {"full_name": "ann/\x07app"}}
    github = mapped(hook("github"), pushed, x_github_event="push", x_github_delivery="1").event
    assert github.subject == "repo/ann/\ufffdapp"
    with pytest.raises(MappingFailed, match="'id' may not hold the character U\\+000A"):
        mapped(hook(event={"type": "a.b", "id": "{{ body.s }}"}), {"s": "one\ntwo"})


def test_credentials_do_not_reach_templates() -> None:
    """Headers with tokens and signatures are not there to be copied into an event."""
    leaky = hook(event={"type": "x", "data": "{{ headers }}"})
    made = mapped(
        leaky, {}, Authorization="Bearer k", X_Api_Key="k", Cookie="k", X_Hub_Signature_256="k", X_Ok="1"
    )
    assert made.event.data == {"content-type": "application/json", "x-ok": "1"}


def test_dedupe_can_be_switched_off_and_replaced() -> None:
    """False means every delivery counts."""
    off = mapped(hook("github", dedupe=False), {}, X_GitHub_Event="push", X_GitHub_Delivery="d")
    assert off.delivery is None
    own = mapped(
        hook("github", dedupe="{{ body.sha }}"), {"sha": "abc"}, X_GitHub_Event="push", X_GitHub_Delivery="d"
    )
    assert own.delivery == "abc"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "`verify` is missing"),
        ({"verify": "none", "event": {"type": "flow-run.x"}}, "Hark's own"),
        ({"verify": "none", "event": {"type": "webhook.{{ body.x }}"}}, "Hark's own"),
        ({"verify": "none", "event": {"type": "{{ body. }}"}}, "does not parse"),
        (
            {"verify": "none", "event": {"type": "x", "data": ["{{ secrets.y }}"]}},
            "would then stand in every event",
        ),
        ({"verify": "none", "event": {"typ": "x"}}, "typ"),
        ({"verify": "none", "rate": "fast"}, "not a rate"),
        ({"verify": "none", "methods": []}, "methods"),
        ({"verify": "none", "methods": ["DELETE"]}, "methods"),
        ({"verify": "none", "max_bytes": 0}, "max_bytes"),
    ],
)
def test_a_wrong_webhook_says_what_is_wrong(value: dict[str, Any], says: str) -> None:
    """Found when it is written, not when a request comes."""
    with pytest.raises(ValidationError, match=says):
        Webhook.model_validate({"name": "w", **value})


def test_a_webhook_reads_back_the_same() -> None:
    """JSON and back, as stored."""
    for webhook in (
        hook("github", rate="50/s", dedupe=False),
        hook("hmac", verify={"preset": "hmac", "secret": ["a", "b"], "header": "X", "tolerance": "5m"}),
        hook(event={"type": "x", "data": None}),
        hook(event={"type": "x"}),
    ):
        again = Webhook.model_validate_json(webhook.model_dump_json())
        assert again == webhook
        assert again.event is None or webhook.event is None or again.event.has_data == webhook.event.has_data


# --- bodies ------------------------------------------------------------------------------------------------------

MULTIPART = (
    b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n"
    b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x.txt\"\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
    b"--b--\r\n"
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        ("application/json; charset=utf-8", b'{"a": [1]}', {"a": [1]}),
        ("application/vnd.x+json", b"1", 1),
        ("", b"[]", []),
        ("application/x-www-form-urlencoded", b"a=1&b=&a=2", {"a": ["1", "2"], "b": ""}),
        ("text/plain", "grüß".encode(), "grüß"),
        ("image/png", b"", None),
        (
            "multipart/form-data; boundary=b",
            MULTIPART,
            {"a": "1", "f": {"filename": "x.txt", "type": "text/plain", "size": 5}},
        ),
    ],
)
def test_bodies_are_read_by_their_content_type(kind: str, raw: bytes, value: Any) -> None:
    """JSON, forms, multipart fields, text, nothing; of files only what they are called."""
    assert parse_body({"content-type": kind}, raw).value == value


def test_names_that_repeat_lose_no_value() -> None:
    """In forms and queries: the last by name, all of them as a list; data of events has lists where a name repeats."""
    what = hook(event={
        "type": "a.b",
        "data": {"last": "{{ form.a }}{{ query.q }}", "all": "{{ form_all.a }}", "one": "{{ form_all.b }}", "asked": "{{ query_all.q }}"},
    })  # fmt: skip
    multipart = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("a", "1"), ("b", "x"), ("a", "2"))
    )
    for kind, raw in (
        ("application/x-www-form-urlencoded", b"a=1&b=x&a=2"),
        ("multipart/form-data; boundary=b", multipart + b"--b--\r\n"),
    ):
        headers = {"content-type": kind}
        request = Request("POST", headers, {"q": ["u", "v"], "one": "w"}, raw)
        body = parse_body(headers, raw)
        made = map_request(what, request, body, now=NOW).event
        assert made.data == {"last": "2v", "all": ["1", "2"], "one": ["x"], "asked": ["u", "v"]}
        unmapped: Any = map_request(hook(), request, body, now=NOW).event.data
        assert (unmapped["body"], unmapped["query"]) == (
            {"a": ["1", "2"], "b": "x"},
            {"q": ["u", "v"], "one": "w"},
        )


@pytest.mark.parametrize(
    ("headers", "raw", "status"),
    [
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"\xff", 400),
        ({"content-type": "application/json"}, b"[" * 5000, 400),
        ({"content-type": "text/plain"}, b"\xff", 400),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=%ff", 400),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a&" * 2000, 400),
        ({"content-type": "multipart/form-data"}, b"x", 400),
        ({"content-type": "multipart/form-data; boundary=b"}, MULTIPART[:60], 400),
        ({"content-type": "multipart/form-data; boundary=b"}, b"garbage", 400),
        ({"content-type": "image/png"}, b"x", 415),
        ({}, b"hello", 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"{}", 415),
    ],
)
def test_a_broken_body_is_told_from_one_that_is_not_read(
    headers: dict[str, str], raw: bytes, status: int
) -> None:
    """400 for what should have been right, 415 for what never will be."""
    with pytest.raises(BodyError) as caught:
        parse_body(headers, raw)
    assert caught.value.status == status


@given(
    st.sampled_from(
        [
            "application/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=b",
            "text/plain",
            "",
            "x",
        ]
    ),
    st.binary(max_size=300) | st.binary(max_size=50).map(lambda b: MULTIPART[:90] + b),
)
def test_no_body_raises_anything_but_a_body_error(kind: str, raw: bytes) -> None:
    """Garbage in, a status out."""
    with suppress(BodyError):
        parse_body({"content-type": kind}, raw)
