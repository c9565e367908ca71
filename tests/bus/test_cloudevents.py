"""CloudEvents in every form come in as the event they are, and go out so that they come back equal."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from hark.bus.cloudevents import (
    decode_http,
    decode_nats,
    encode_http_batch,
    encode_http_binary,
    encode_http_structured,
    encode_nats_binary,
    encode_nats_structured,
    plain_type,
)
from hark.bus.event import Event
from hark.bus.subject import (
    TASK_RUNS,
    completed_subject,
    covers,
    flow_run_filter,
    matches,
    subject_of,
    task_run_subject,
)
from hark.errors import EventInvalid
from hypothesis import given
from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
# Blanks at the ends of a header value belong to nobody, so attributes are compared without them.
ATTRIBUTE = (
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn")), max_size=30)
    .map(str.strip)
    .filter(bool)
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
TYPES = st.from_regex(r"[a-z0-9-]{1,8}(\.[a-z0-9-]{1,8}){0,3}", fullmatch=True)
KNOWN = {
    "id", "source", "type", "subject", "time", "data", "correlationid", "causationid", "causaldepth", "traceparent",
    "tracestate", "partitionkey", "recordedtime", "expirytime", "replayof", "replayid", "dataschema", "datacontenttype",
    "specversion", "data_base64",
}  # fmt: skip
EXTENSIONS = st.dictionaries(
    st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in KNOWN),
    ATTRIBUTE,
    max_size=3,
)
EVENTS = st.builds(
    Event,
    type=TYPES,
    source=ATTRIBUTE,
    id=ATTRIBUTE,
    subject=st.none() | ATTRIBUTE,
    time=TIMES,
    data=JSON,
    dataschema=st.none() | ATTRIBUTE,
    correlationid=st.none() | ATTRIBUTE,
    causationid=st.none() | ATTRIBUTE,
    causaldepth=st.integers(0, 10),
    traceparent=st.none() | ATTRIBUTE,
    partitionkey=st.none() | ATTRIBUTE,
    recordedtime=st.none() | TIMES,
    expirytime=st.none() | TIMES,
    extensions=EXTENSIONS,
)


@given(EVENTS)
def test_an_event_survives_structured_mode(event: Event) -> None:
    """decode(encode(x)) == x, over HTTP and NATS."""
    assert decode_http(*encode_http_structured(event)) == [event]
    assert decode_nats(*encode_nats_structured(event)) == event


@given(EVENTS)
def test_an_event_survives_binary_mode(event: Event) -> None:
    """decode(encode(x)) == x with every attribute in a printable ASCII header, over HTTP and NATS."""
    headers, body = encode_http_binary(event)
    for name, value in headers.items():
        assert name.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert '"' not in value
    assert decode_http({name.upper(): value for name, value in headers.items()}, body) == [event]
    assert decode_nats(*encode_nats_binary(event)) == event


@given(st.lists(EVENTS, max_size=4))
def test_a_batch_survives(events: list[Event]) -> None:
    """Many events travel together and in order."""
    assert decode_http(*encode_http_batch(events)) == events


@given(st.binary(min_size=1), st.sampled_from(["application/octet-stream", "image/png", None]))
def test_bytes_survive(data: bytes, media: str | None) -> None:
    """What is no JSON travels as it is, or as base64 in structured mode."""
    event = Event(type="a.b", source="/s", data=data, datacontenttype=media)
    assert decode_http(*encode_http_structured(event)) == [event]
    named = event.replace(datacontenttype=media or "application/octet-stream")
    assert decode_http(*encode_http_binary(event)) == [named]
    assert decode_nats(*encode_nats_binary(event)) == named


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_text_survives(data: str) -> None:
    """``text/*`` is text."""
    event = Event(type="a.b", source="/s", data=data, datacontenttype="text/plain")
    assert decode_http(*encode_http_binary(event)) == [event]


def test_the_examples_of_the_binding_are_read() -> None:
    """The percent-encoding examples of the CloudEvents HTTP binding: the euro sign, an emoji, quotes."""
    headers = {
        "Content-Type": "application/json; charset=utf-8", "ce-specversion": "1.0", "CE-Type": "com.example.someevent",
        "ce-id": "1234-1234-1234", "ce-source": "/mycontext/subcontext", "ce-time": "2018-04-05T03:56:24Z",
        "ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80", "ce-quoted": '"a \\"b\\" c"', "ce-raw": "€".encode().decode("latin-1"),
    }  # fmt: skip
    (event,) = decode_http(headers, b'{"a": 1}')
    assert event.subject == "Euro € 😀"
    assert event.extensions == {"quoted": 'a "b" c', "raw": "€"}
    assert event.time == datetime(2018, 4, 5, 3, 56, 24, tzinfo=UTC)
    assert event.data == {"a": 1}
    assert event.datacontenttype is None
    body = encode_http_binary(event)
    assert body[0]["ce-subject"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"


def test_plain_json_is_an_event() -> None:
    """``{"type": …}`` is enough; id and source are made, a list is a batch."""
    (event,) = decode_http(
        {"Content-Type": "application/json"}, b'{"type": "order.paid", "data": {"n": 1}}', source="/x"
    )
    assert (event.type, event.source, event.data) == ("order.paid", "/x", {"n": 1})
    assert len(event.id) == 36
    events = decode_http(
        {},
        b'[{"type": "a", "id": "1", "source": "/s"}, {"type": "b", "specversion": "1.0", "id": "2", "source": "/t"}]',
    )
    assert [(e.type, e.id, e.source) for e in events] == [("a", "1", "/s"), ("b", "2", "/t")]
    assert decode_nats(None, b'{"type": "a"}').source == "/nats"


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({}, b"{", "not JSON"),
        ({}, b"3", "an event is a JSON object"),
        ({}, b"{}", "is missing"),
        ({}, b'{"type": "Not Words"}', "lower-case dotted words"),
        ({}, b'{"type": "a", "data_base64": "%"}', "base64"),
        ({}, b'{"type": "a", "stray": {}}', "put the rest in `data`"),
        ({}, b'{"type": "a", "time": "yesterday"}', "RFC 3339"),
        ({}, b'{"type": "a", "specversion": "0.3", "id": "1", "source": "/"}', "must be '1.0'"),
        ({"content-type": "application/cloudevents+json"}, b'{"type": "a", "specversion": "1.0", "id": "1"}', "'source'"),
        ({"content-type": "application/cloudevents+xml"}, b"<x/>", "must be application/cloudevents"),
        ({"content-type": "application/cloudevents-batch+json"}, b"{}", "JSON list"),
        ({"content-type": "application/cloudevents-batch+json"}, b'[{"type": "a"}, {"type": ""}]', "event 1 of the batch"),
        ({"content-type": "text/plain"}, b"hello", "ce- headers"),
        ({"ce-type": "a", "ce-id": "1", "ce-source": "/"}, b"", "ce-specversion"),
        ({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/"}, b"", "'type'"),
        ({"ce-specversion": "1.0", "ce-type": "a", "ce-id": "%ff", "ce-source": "/"}, b"", "percent-encoded UTF-8"),
        ({"ce-specversion": "1.0", "ce-type": "a", "ce-id": "1", "ce-source": "/", "ce-causaldepth": "-1"}, b"", "whole number"),
        ({"ce-specversion": "1.0", "ce-type": "a", "ce-id": "1", "ce-source": "/", "content-type": "application/json"}, b"{", "not JSON"),
        ({"content-type": "application/json; charset=klingon"}, b"{}", "klingon"),
    ],
)  # fmt: skip
def test_wrong_events_are_refused_with_the_reason(headers: dict[str, str], body: bytes, said: str) -> None:
    """What is wrong, and where."""
    with pytest.raises(EventInvalid) as caught:
        decode_http(headers, body)
    assert said in str(caught.value)


def test_foreign_types_are_made_plain_and_kept() -> None:
    """CloudEvents allow any type; ours are dotted words, and the original is kept beside."""
    body = orjson.dumps({"specversion": "1.0", "type": "Com.GitHub.pull_request", "id": "1", "source": "/"})
    (event,) = decode_http({"content-type": "application/cloudevents+json"}, body)
    assert event.type == "com.github.pull-request"
    assert event.extensions == {"originaltype": "Com.GitHub.pull_request"}
    assert plain_type("Microsoft.Storage.BlobCreated") == "microsoft.storage.blobcreated"
    assert plain_type("a..b.") == "a.b"
    with pytest.raises(EventInvalid):
        plain_type("…")


@given(TYPES)
def test_plain_types_stay_as_they_are(type_: str) -> None:
    """Our own types pass unchanged."""
    assert plain_type(type_) == type_


@given(st.text(min_size=1, max_size=300))
def test_any_type_is_made_an_allowed_one_or_refused(type_: str) -> None:
    """Whatever comes, what is stored under is a subject."""
    try:
        plain = plain_type(type_)
    except EventInvalid:
        return
    assert subject_of(Event(type=plain, source="/s")) == f"hark.ev.{plain}"
    assert Event.from_dict({"type": plain, "id": "1", "source": "/s"}).type == plain


@given(state=st.sampled_from(["running", "timed-out"]), run=st.uuids(), other=st.uuids())
def test_subjects_of_runs_match_their_own_filter_only(state: str, run: object, other: object) -> None:
    """The mapping from events to subjects keeps runs apart."""
    event = Event(type=f"flow-run.{state}", source="/s", subject=f"flow-run/{run}")
    assert matches(flow_run_filter(str(run)), subject_of(event))
    assert matches(flow_run_filter(str(other)), subject_of(event)) == (run == other)
    task = Event(type="task-run.running", source="/s", data={"flow_run": {"id": str(run)}})
    assert subject_of(task) == task_run_subject(str(run))
    done = Event(
        type="task-run.cached",
        source="/s",
        data={"flow_run": {"id": str(run)}, "state": {"type": "COMPLETED", "name": "Cached"}},
    )
    assert subject_of(done) == completed_subject(str(run))
    assert all(covers(TASK_RUNS, subject_of(event)) for event in (task, done))
