"""Events over HTTP: every form they come in, what is refused, and following them live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC
from typing import Any

import anyio
import httpx
import orjson
import pytest
from hark.errors import EventInvalid
from hark.server.client import Hark
from hark.server.ingest import events_in
from hark.server.problem import BatchTooLarge, MalformedBody, UnsupportedBody
from hark.server.roles import Role

from tests.server.conftest import Start

SERVER = frozenset({Role.SERVER})
CE: Any = {"specversion": "1.0", "id": "1", "source": "/test", "type": "order.paid"}


def read(headers: dict[str, str], body: object) -> list[Any]:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return events_in(headers, raw, max_events=10)


def test_plain_json_is_an_event_with_an_id_and_a_source() -> None:
    """`{type, …}` is enough; what else is given is kept; a list of them is a batch in order."""
    [event] = read({"content-type": "application/json; charset=utf-8"}, {"type": "order.paid", "data": [1]})
    assert (event.type, event.source, event.data) == ("order.paid", "/api", [1])
    assert len(event.id) == 36
    two = read(
        {}, [{"type": "a.b", "id": "x", "source": "/s", "subject": "y"}, {"type": "a.c", "shop": "eu"}]
    )
    assert [(e.type, e.subject) for e in two] == [("a.b", "y"), ("a.c", None)]
    assert (two[0].msg_id, two[1].extensions) == ("/s#x", {"shop": "eu"})


def test_structured_and_batched_cloudevents_are_read() -> None:
    """Both JSON formats of CloudEvents."""
    [one] = read({"content-type": "application/cloudevents+json"}, {**CE, "data": {"n": 1}})
    assert (one.msg_id, one.data) == ("/test#1", {"n": 1})
    batch = read(
        {"content-type": "application/cloudevents-batch+json"}, [CE, {**CE, "id": "2", "data_base64": "AAE="}]
    )
    assert [e.data for e in batch] == [None, b"\0\1"]
    assert read({"content-type": "application/cloudevents-batch+json"}, []) == []


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json", b'{"n": 1}', {"n": 1}),
        ("application/vnd.shop+json", b"[1]", [1]),
        ("text/plain", "grüß dich".encode(), "grüß dich"),
        ("application/octet-stream", b"\0\1", b"\0\1"),
        ("application/json", b"", None),
    ],
)
def test_binary_cloudevents_carry_their_data_in_the_body(
    content_type: str, body: bytes, data: object
) -> None:
    """Attributes are headers, percent-decoded; the body is the data, by its content type."""
    headers = {
        "content-type": content_type, "ce-specversion": "1.0", "ce-id": "7", "ce-source": "/s", "ce-type": "a.b",
        "ce-subject": "gr%C3%BC%C3%9Fe", "ce-shop": "eu", "ce-time": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    [event] = read(headers, body)
    assert (event.data, event.subject, event.id) == (data, "grüße", "7")
    assert event.extensions == {"shop": "eu"}
    assert event.time.year == 2026


STRUCTURED = {"content-type": "application/cloudevents+json"}


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("com.example.OrderPlaced", "com.example.orderplaced"), ("com.X.Y", "com.x.y"),
        ("io.cloudevents/x", "io.cloudevents.x"), ("Microsoft.Storage.Blob_Created", "microsoft.storage.blob-created"),
    ],
)  # fmt: skip
def test_a_type_of_another_implementation_is_cleaned_and_kept(written: str, stored: str) -> None:
    """In every form of CloudEvents, as webhooks and sources do; `originaltype` holds what was sent."""
    foreign = {**CE, "type": written}
    binary = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/test", "ce-type": written}
    events = [
        *read(STRUCTURED, foreign),
        *read({"content-type": "application/cloudevents-batch+json"}, [foreign]),
        *read({"content-type": "application/json"}, foreign),
        *read(binary, b""),
    ]
    assert {e.type for e in events} == {stored}
    assert [e.extensions for e in events] == [{"originaltype": written}] * 4
    # One that came through another door before keeps what it was first.
    [again] = read(STRUCTURED, {**foreign, "originaltype": "Com.First"})
    assert again.extensions == {"originaltype": "Com.First"}


@pytest.mark.parametrize(
    "time",
    ["2026-01-01T00:00:00.123456789Z", "2026-01-01t01:00:00.123456+01:00", "2026-01-01t00:00:00.123456z"],
)
def test_times_of_other_implementations_are_read(time: str) -> None:
    """Nanoseconds, offsets and small letters; nothing, or null, is the moment it came."""
    [event] = read(STRUCTURED, {**CE, "time": time})
    assert event.to_dict()["time"] == "2026-01-01T00:00:00.123456Z"
    for untimed in (CE, {**CE, "time": None}):
        assert read(STRUCTURED, untimed)[0].time.tzinfo is UTC


def test_what_sdks_send_besides_is_kept() -> None:
    """Numbers and booleans of extensions, bytes of other content types, any text as subject; null is as good as left out."""
    [event] = read(
        STRUCTURED,
        {**CE, "n": 3, "flag": True, "subject": "Blatt 1 / grün €", "datacontenttype": "image/png", "data_base64": "AAE=", "gone": None},
    )  # fmt: skip
    assert (event.extensions, event.subject) == ({"n": 3, "flag": True}, "Blatt 1 / grün €")
    assert (event.datacontenttype, event.data) == ("image/png", b"\0\1")
    assert read(STRUCTURED, {**CE, "data_base64": None, "data": 1})[0].data == 1


@pytest.mark.parametrize(
    ("sent", "subject"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"), ("a b", "a b"), ("gr\xc3\xbcn", "grün"),
        (r'"a \"b\""', 'a "b"'),
    ],
)  # fmt: skip
def test_header_values_are_read_as_the_binding_says(sent: str, subject: str) -> None:
    """Percent-encoded, quoted, or UTF-8 that somebody did not encode; what is no text at all is refused."""
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "a.b"}
    [event] = read({**headers, "ce-subject": sent, "ce-data": "no attribute"}, b"")
    assert (event.subject, event.data, event.extensions) == (subject, None, {})
    with pytest.raises(EventInvalid, match="percent-encoded"):
        read({**headers, "ce-subject": "%FF"}, b"")


def test_a_body_whose_content_type_nobody_names_is_json_or_bytes() -> None:
    """In binary mode; JSON that is called so and is broken is refused."""
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "a.b"}
    assert [read(headers, body)[0].data for body in (b'{"n": 1}', b"\xff{")] == [{"n": 1}, b"\xff{"]
    with pytest.raises(MalformedBody):
        read({**headers, "content-type": "application/json"}, b"{")


@pytest.mark.parametrize(
    ("headers", "body", "error", "words"),
    [
        ({}, {"type": "flow-run.failed"}, EventInvalid, "one of Hark's own words"),
        ({}, {"type": "Order.Paid"}, EventInvalid, "lower-case dotted words"),
        ({}, {"data": 1}, EventInvalid, "'type' is missing"),
        ({}, {**CE, "data": 1, "data_base64": "AA=="}, EventInvalid, "one or the other"),
        ({}, [{"type": "a.b"}, {"type": "hark.x"}], EventInvalid, "[1].type"),
        ({}, [{"type": "a.b"}, 3], EventInvalid, "[1]"),
        ({}, {"type": "a.b", "nested": {}}, EventInvalid, "put the rest in `data`"),
        ({}, {"type": "a.b", "time": "yesterday"}, EventInvalid, "RFC 3339"),
        ({}, b"{", MalformedBody, "not JSON"),
        ({}, b"\xff", MalformedBody, "not JSON"),
        ({}, "text", EventInvalid, "a JSON object"),
        ({}, [{"type": "a.b"}] * 11, BatchTooLarge, "11 events"),
        ({"content-type": "application/xml"}, b"<a/>", UnsupportedBody, "application/xml"),
        ({"content-type": "application/cloudevents+json"}, {"type": "a.b", "id": "1", "source": "/"}, EventInvalid, "specversion"),
        ({"content-type": "application/cloudevents+json"}, {**CE, "specversion": "0.3"}, EventInvalid, "specversion"),
        ({"content-type": "application/cloudevents-batch+json"}, CE, MalformedBody, "array"),
        ({"content-type": "application/cloudevents+json"}, {**CE, "type": "Flow-Run/Failed"}, EventInvalid, "one of Hark's own"),
        ({"content-type": "application/cloudevents+json"}, {**CE, "type": "…"}, EventInvalid, "lower-case dotted words"),
        ({"content-type": "application/cloudevents+json"}, {**CE, "type": 3}, EventInvalid, "lower-case dotted words"),
        ({"ce-type": "a.b", "ce-id": "1", "ce-source": "/"}, b"", EventInvalid, "ce-specversion"),
        ({"ce-type": "a.b", "ce-specversion": "1.0", "ce-source": "/"}, b"", EventInvalid, "'id'"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(
    headers: dict[str, str], body: object, error: type[Exception], words: str
) -> None:
    """Each with a reason that names the attribute, and in a batch the place."""
    with pytest.raises(error) as caught:
        read(headers, body)
    assert words in str(caught.value) or words in getattr(caught.value, "hint", "")


async def test_accepted_means_stored_and_a_repeat_is_told(start: Start) -> None:
    """202 comes with ids that are in the log; the same source and id a second time is a duplicate."""
    async with start(roles=SERVER) as (service, http):
        answer = await http.post("/api/events", json=[CE, {"type": "a.b", "data": {"x": 1}}])
        assert answer.status_code == 202
        first = answer.json()
        assert (first["stored"], first["duplicates"], first["ids"][0]) == (2, 0, "1")
        assert first["types"] == ["order.paid", "a.b"]
        recorded = await service.bus.log.get(first["seq"])
        assert recorded is not None
        assert recorded.event.id == first["ids"][1]
        again = (await http.post("/api/events", json=CE)).json()
        assert (again["stored"], again["duplicates"]) == (0, 1)
        for body, status in (
            ({"type": "hark.x"}, 422), ([{"type": "a.b"}] * 1001, 413),
            ({"type": "a.b", "data": "x" * (2 << 20)}, 413),
        ):  # fmt: skip
            refused = await http.post("/api/events", json=body)
            assert (refused.status_code, refused.headers["content-type"]) == (
                status,
                "application/problem+json",
            )
        assert (await http.post("/api/events", content=b"{")).status_code == 400
        assert (
            await http.post("/api/events", content=b"x", headers={"content-type": "text/csv"})
        ).status_code == 415
        with anyio.fail_after(60):
            too_large = await http.post("/api/events", content=b"x" * (20 << 20))
        assert too_large.status_code == 413


async def test_events_are_listed_filtered_and_shown(start: Start) -> None:
    """Pages by cursor, newest first; patterns, subjects, times; one event with what it led to."""
    async with start(roles=SERVER) as (service, http):
        batch = [
            {"type": f"shop.{w}", "subject": f"order/{i}", "id": f"{w}{i}"}
            for i in range(3)
            for w in ("a", "b")
        ]
        await http.post("/api/events", json=batch)
        cause = {"type": "shop.c", "id": "led", "causationid": "a0"}
        seq = (await http.post("/api/events", json=cause)).json()["seq"]
        await service.parts.running("projector").caught_up(seq, timeout_s=60)
        page = (await http.get("/api/events", params={"type": "shop.*", "limit": 4})).json()
        rest = (
            await http.get(
                "/api/events", params={"type": "shop.*", "limit": 4, "cursor": page["next_cursor"]}
            )
        ).json()
        ids = [i["event"]["id"] for i in page["items"] + rest["items"]]
        assert ids == ["led", "b2", "a2", "b1", "a1", "b0", "a0"]
        assert rest["next_cursor"] is None
        only = (await http.get("/api/events", params={"type": ["shop.a"], "subject": "order/1"})).json()[
            "items"
        ]
        assert [i["event"]["id"] for i in only] == ["a1"]
        assert (await http.get("/api/events?since=1h&type=shop.*")).json()["items"] != []
        assert (await http.get("/api/events?until=1h&type=shop.*")).json()["items"] == []
        for path, says in (
            ("events?type=Shop.A", "did you mean 'shop.a'?"),
            ("events/stream?type=a..b", "is not an event type"),
            ("events?type=flow-run.fialed", "did you mean 'flow-run.failed'?"),
        ):
            refused = await http.get(f"/api/{path}")
            assert (refused.status_code, says in refused.text) == (422, True), refused.text
        shown = (await http.get("/api/events/a0")).json()
        assert [e["id"] for e in shown["led_to"]] == ["led"]
        assert [e["id"] for e in (await http.get("/api/events/led")).json()["caused_by"]] == ["a0"]
        assert (await http.get("/api/events/none")).status_code == 404
        assert (await http.get("/api/events?cursor=xx")).status_code == 422
        assert (await http.get("/api/events?limit=0")).status_code == 422
        refused = await http.get("/api/events?limt=1")  # a filter that is none would give everything
        assert (refused.status_code, "did you mean 'limit'?" in refused.json()["hint"]) == (422, True)


async def frames(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    frame: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            frame[name] = value.strip()
        else:
            yield frame
            frame = {}


async def test_a_stream_resumes_where_it_was_left(start: Start) -> None:
    """Every event has its sequence as id; `Last-Event-ID` goes on behind it, without a gap and without a repeat."""
    async with start(roles=SERVER) as (_, http), anyio.create_task_group() as tg:

        async def emit(first: int, count: int) -> None:
            for i in range(first, first + count):
                await http.post("/api/events", json={"type": "tick.a" if i % 2 == 0 else "tick.b", "data": i})
            emitted.set()

        emitted = anyio.Event()
        seen: list[int] = []
        last = ""
        with anyio.fail_after(60):
            async with http.stream("GET", "/api/events/stream?type=tick.a") as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                tg.start_soon(emit, 0, 6)
                async for frame in frames(answer):
                    last = frame.get("id", last)
                    if "data" in frame:
                        seen.append(orjson.loads(frame["data"])["event"]["data"])
                    if len(seen) == 2:
                        break
            await emitted.wait()
            await emit(6, 2)
            async with http.stream(
                "GET", "/api/events/stream?type=tick.a", headers={"last-event-id": last}
            ) as answer:
                async for frame in frames(answer):
                    if "data" in frame:
                        seen.append(orjson.loads(frame["data"])["event"]["data"])
                    if len(seen) == 4:
                        break
        assert seen == [0, 2, 4, 6]


async def test_clients_that_come_together_are_let_in_a_few_at_a_time(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are, but the broker is not asked for all places at once: it has leases to renew."""
    async with start(roles=SERVER) as (service, http):
        asking = most = let_in = 0
        head = type(service.bus.log).head

        async def counted(log: Any) -> int:
            nonlocal asking, most
            asking, most = asking + 1, max(most, asking + 1)
            try:
                return await head(log)
            finally:
                asking -= 1

        monkeypatch.setattr(type(service.bus.log), "head", counted)

        async def watch() -> None:
            nonlocal let_in
            async with http.stream("GET", "/api/events/stream") as answer:
                async for frame in frames(answer):
                    let_in += "id" in frame
                    return

        with anyio.fail_after(120):
            async with anyio.create_task_group() as tg:
                for _ in range(24):
                    tg.start_soon(watch)
        # Eight, and what other parts of the service may be asking meanwhile.
        assert (let_in, most <= 12) == (24, True)


async def test_the_client_watches_and_emits(start: Start) -> None:
    """`Hark.emit` returns when stored; `watch_events` yields what is stored from then on."""
    async with start(roles=SERVER) as (service, _), Hark(service.url, "") as hark:
        watching = hark.watch_events("shop.*", after=await service.bus.log.head())
        event = await hark.emit("shop.opened", subject="shop/1", data={"n": 1})
        with anyio.fail_after(60):
            item: Any = await anext(watching)
        assert item["event"]["id"] == event.id
        assert item["event"]["data"] == {"n": 1}
        await watching.aclose()  # type: ignore[attr-defined]


async def test_webhooks_take_signed_requests_only(start: Start) -> None:
    """A signed request is an event; a bad signature, an unknown name, a large and a broken body are refused."""
    config = """
        webhooks:
          shop:
            verify: {preset: github, secret: "{{ secrets.shop }}"}
            event: {type: "shop.{{ headers['x-github-event'] }}", subject: "order/{{ body.id }}"}
          open: {verify: none, event: {type: "open.{{ body.kind }}"}}
    """
    async with start(roles=SERVER, config=config) as (service, http), Hark(service.url, "") as hark:
        await hark.set_secret("shop", "s3cret-s3cret")
        hook: Any = await hark.webhook("shop")
        assert (hook["url"], hook["preset"]) == (f"{service.url}/hooks/shop", "github")
        from hark.server.signing import signed_headers

        body = b'{"id": 7}'
        headers = signed_headers(hook["verify"], body=body, secret="s3cret-s3cret", event="paid")
        status, answer = await hark.send_webhook(
            "shop", body=body, headers={"content-type": "application/json", **headers}
        )
        assert (status, list(answer)) == (202, ["id"])
        shown: Any = await service.bus.log.last("hark.ev.shop.>")
        assert (shown.event.type, shown.event.subject) == ("shop.paid", "order/7")
        wrong = signed_headers(hook["verify"], body=body, secret="other", event="paid")
        status, answer = await hark.send_webhook("shop", body=body, headers=wrong)
        assert status == 401
        assert (await http.post("/hooks/none")).status_code == 404
        broken = await http.post("/hooks/open", content=b"{", headers={"content-type": "application/json"})
        assert broken.status_code == 400
        with anyio.fail_after(60):
            large = await http.post("/hooks/open", content=b"x" * (10 << 20))
        assert large.status_code == 413
        assert large.headers["content-type"] == "application/problem+json"
        await service.bus.publisher.barrier()
        rejected: Any = await service.bus.log.last("hark.ev.webhook.rejected")
        assert "xxxx" not in rejected.raw.decode()
        # A webhook verifies for itself: the Host header and where it comes from do not matter.
        ok = await http.post(
            "/hooks/open", json={"kind": "x"}, headers={"host": "tunnel.example", "origin": "http://evil"}
        )
        assert ok.status_code == 202


async def test_messages_of_others_on_the_log_stop_nobody(start: Start) -> None:
    """What is no event is passed over by streams, rules and the read model alike; binary mode is taken by all."""
    config = """
        automations:
          paid: {on: shop.paid, do: [{emit: shop.seen, subject: "{{ event.id }}"}]}
          moved: {on: "flow-run.>", do: [{emit: shop.moved}]}
    """
    binary = {"ce-specversion": "1.0", "ce-id": "b", "ce-source": "/till", "ce-type": "shop.paid"}
    binary["content-type"] = "application/json"
    pretty = orjson.dumps({**CE, "type": "shop.paid"}, option=orjson.OPT_INDENT_2)
    async with start(config=config) as (service, http):
        put = service.bus.publisher.publish_raw
        await put("hark.ev.shop.paid", b"junk\n\n", "m1")
        await put("hark.ev.shop.paid", b'{"type": "shop.paid", "data": 1}', "m2")
        for subject in ("flow-run.running.r", "task-run.r", "automation.triggered", "notification.sent"):
            await put(f"hark.ev.{subject}", b"junk", f"m-{subject}")
        await put("hark.ev.shop.paid", pretty, "m3")
        await put("hark.ev.shop.paid", b'{"n": 2}', "m4", binary)
        await service.bus.publisher.barrier()
        for query in ("type=shop.>", "source=/till", ""):
            seen: dict[str, Any] = {}
            with anyio.fail_after(60):
                async with http.stream(
                    "GET", f"/api/events/stream?{query}", headers={"last-event-id": "0"}
                ) as answer:
                    async for frame in frames(answer):
                        event = orjson.loads(frame["data"])["event"] if "data" in frame else {}
                        seen[event.get("id", "")] = event
                        if event.get("id") == "b":
                            break
            assert seen["b"]["data"] == {"n": 2}
            assert ("1" in seen) == (query != "source=/till")
        fired: list[Any] = []
        with anyio.fail_after(60):
            while len(fired) < 2:
                fired = (await http.get("/api/events?type=shop.seen")).json()["items"]
        assert sorted(e["event"]["subject"] for e in fired) == ["1", "b"]
        listed = (await http.get("/api/events?type=shop.paid")).json()["items"]
        assert sorted(e["event"]["id"] for e in listed) == ["1", "b"]
        # All is as it was: a run can be asked for and comes to its end.
        assert (await http.get("/health/ready")).status_code == 200
