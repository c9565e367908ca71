"""The CloudEvents SDK as the peer: what it writes, every door of Hark reads, and what Hark writes, it reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from hark.bus.cloudevents import (
    decode_http,
    decode_nats,
    encode_http_binary,
    encode_http_structured,
    encode_nats_binary,
)
from hark.bus.event import Event
from hark.server.ingest import events_in
from hark.triggers.body import parse_body
from hark.triggers.mapping import map_requests
from hark.triggers.verify import Request
from hark.triggers.webhook import Webhook
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOOK = Webhook.model_validate({"name": "peer", "verify": {"preset": "none"}})
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Cs")), min_size=1, max_size=20)
WORDS = TEXT.map(str.strip).filter(lambda text: bool(text) and not text.startswith("/hark"))
"""Blanks at the ends of a header value belong to nobody; what begins with /hark is Hark's own source."""
ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
JSON = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
CONTENT = st.one_of(
    st.tuples(st.sampled_from([None, "application/json", "application/json; charset=utf-8", "application/vnd.x+json"]),
              st.dictionaries(TEXT, JSON, max_size=3)),
    st.tuples(st.sampled_from(["text/plain", "text/plain; charset=utf-8"]), TEXT),
    st.tuples(st.sampled_from([None, "application/json", "text/plain"]), st.none()),
)  # fmt: skip
KNOWN = frozenset({
    "id", "source", "type", "subject", "time", "data", "datacontenttype", "dataschema", "specversion",
    "correlationid", "causationid", "causaldepth", "traceparent", "tracestate", "partitionkey", "recordedtime", "expirytime",
    "replayof", "replayid", "originaltype",
})  # fmt: skip


@st.composite
def theirs(draw: st.DrawFn) -> CloudEvent:
    """Events of the SDK: odd ids, subjects in any script, times of any zone, extensions, with data and without."""
    media, data = draw(CONTENT)
    attributes: dict[str, Any] = {
        "id": draw(WORDS),
        "source": draw(WORDS),
        "type": "order.paid",
        "specversion": "1.0",
    }
    attributes |= {
        name: value
        for name, value in {
            "subject": draw(st.none() | WORDS),
            "time": draw(st.none() | st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=ZONES)),
            "datacontenttype": media,
            "dataschema": draw(st.none() | st.just("https://example.org/schema#1")),
            **draw(st.dictionaries(
                st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda n: n not in KNOWN), WORDS, max_size=2,
            )),
        }.items()
        if value is not None
    }  # fmt: skip
    return CloudEvent(attributes, data)


def at_every_door(message: HTTPMessage) -> list[Event]:
    """Return the event a message of the SDK becomes at the API, at a webhook, from NATS and in the library."""
    headers = {name.lower(): value for name, value in message.headers.items()}
    request = Request(method="POST", headers=headers, body=message.body, query={})
    [mapped] = map_requests(HOOK, request, parse_body(headers, message.body), now=NOW)
    [by_api] = events_in(headers, message.body, max_events=10)
    [by_library] = decode_http(headers, message.body)
    return [by_api, mapped.event, by_library, decode_nats(headers, message.body)]


def check(event: Event, peer: BaseCloudEvent) -> None:
    """The event is the peer's, attribute by attribute."""
    assert (event.id, event.source, event.type) == (peer.get_id(), peer.get_source(), peer.get_type())
    assert event.subject == peer.get_subject()
    assert event.dataschema == peer.get_dataschema()
    if peer.get_time() is not None:
        assert event.time == peer.get_time()
    assert event.data == peer.get_data()
    known = {"id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion"}
    assert event.extensions == {k: v for k, v in peer.get_attributes().items() if k not in known}


@given(theirs())
@settings(max_examples=60, deadline=None)
def test_what_the_sdk_writes_is_read_the_same_at_every_door(peer: CloudEvent) -> None:
    """Binary and structured; over HTTP at the API and at a webhook, and over NATS."""
    for message in (to_binary_event(peer), to_structured_event(peer)):
        for event in at_every_door(message):
            check(event, peer)
            assert Event.from_json(event.to_json()) == event


@given(theirs())
@settings(max_examples=60, deadline=None)
def test_what_hark_writes_the_sdk_reads(peer: CloudEvent) -> None:
    """Binary and structured, over HTTP and, with the same headers, NATS."""
    event = at_every_door(to_structured_event(peer))[0]
    for headers, body in (
        encode_http_binary(event),
        encode_http_structured(event),
        encode_nats_binary(event),
    ):
        named = {name.lower(): value for name, value in headers.items()}
        if "ce-datacontenttype" in named:
            named["content-type"] = named.pop("ce-datacontenttype")
        check(event, from_http_event(HTTPMessage(named, body)))


@given(st.binary(min_size=1, max_size=50), theirs())
@settings(max_examples=30, deadline=None)
def test_bytes_are_the_same_bytes(data: bytes, peer: CloudEvent) -> None:
    """What is no text travels as `data_base64`, or as the body."""
    attributes = {**peer.get_attributes(), "datacontenttype": "application/octet-stream"}
    sent = CloudEvent(attributes, data)
    structured = to_structured_event(sent)
    assert "data_base64" in orjson.loads(structured.body)
    for event in at_every_door(structured):
        check(event, sent)
    binary = to_binary_event(sent)
    [event] = events_in({k.lower(): v for k, v in binary.headers.items()}, binary.body, max_events=1)
    check(event, sent)
    assert from_http_event(HTTPMessage(*encode_http_structured(event))).get_data() == data


def test_an_empty_content_type_is_none() -> None:
    """As a header, or written out: what is nothing is not kept as something."""
    ce = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "a.b"}
    written = {
        "specversion": "1.0",
        "id": "1",
        "source": "/s",
        "type": "a.b",
        "datacontenttype": "",
        "subject": "",
    }
    for message in (
        *(
            HTTPMessage({**ce, "content-type": empty}, b'{"a": 1}')
            for empty in ("", "  ", ";", "; charset=utf-8")
        ),
        HTTPMessage(
            {"content-type": "application/cloudevents+json"}, orjson.dumps({**written, "data": {"a": 1}})
        ),
    ):
        for event in at_every_door(message)[:2]:
            assert (event.datacontenttype, event.subject, event.data) == (None, None, {"a": 1}), message
