"""Sinks: events sent to NATS and HTTP, again when they fail, and dead letters. A bare client and the SDK are the peers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hark.automations.acting.dead_letter import DeadLetters
from hark.automations.acting.forwarder import Forwarder
from hark.automations.acting.sink import Sink, outgoing
from hark.bus import Bus, Event, LateValues, SecretStore, secret_key
from hark.config import AutomationsConfig
from hark.triggers.preset import StandardWebhooksVerify
from hark.triggers.verify import Keys, Request, Verified, verify
from nats.aio.client import Client
from pydantic import ValidationError

from tests.automations.conftest import Receiver

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONFIG = AutomationsConfig(allow_private_addresses=True)


def sink(**value: Any) -> Sink:
    return Sink.model_validate({"name": "out", "on": "order.>", "backoff": "10ms", **value})


def paid(n: int = 1, **more: Any) -> Event:
    return Event(
        type="order.paid", source="/shop", id=f"e{n}", subject="order/Ä 1", time=NOW, data={"n": n}, **more
    )


async def define(bus: Bus, made: Sink) -> None:
    await bus.bucket("sinks").put(made.name, made.model_dump_json(exclude_defaults=True).encode())


@asynccontextmanager
async def forwarding(bus: Bus, home: Path) -> AsyncIterator[Forwarder]:
    secrets = SecretStore(bus, secret_key(home, None))
    await secrets.set("sink", SECRET)
    async with Forwarder(bus, LateValues(bus, secrets), CONFIG) as forwarder:
        yield forwarder


async def until(bus: Bus, filter_: str, count: int = 1) -> list[Event]:
    found: list[Event] = []
    with anyio.fail_after(60):
        async with bus.log.follow([filter_], after=0) as batches:
            async for batch in batches:
                found += [r.event for r in batch.records]
                if len(found) >= count:
                    break
    return found


# --- what is sent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize("target", ["nats", "http"])
def test_what_is_sent_is_the_event_to_the_sdk(target: str, mode: str) -> None:
    """The CloudEvents SDK reads it back, attribute for attribute, extensions and all."""
    where = (
        {"subject": "x.{{ event.type }}"} if target == "nats" else {"url": "https://x.example/{{ event.id }}"}
    )
    event = paid(extensions={"region": "eu"}, correlationid="c", causaldepth=2)
    sent = outgoing(sink(**{target: {**where, "mode": mode}}), event, {}, now=NOW)
    assert sent.to == ("x.order.paid" if target == "nats" else "https://x.example/e1")
    headers = {k.lower(): v for k, v in sent.headers.items()}
    if "ce-datacontenttype" in headers:
        headers["content-type"] = headers.pop("ce-datacontenttype")  # how NATS says it
    read = from_http_event(HTTPMessage(headers, sent.body))
    assert (read.get_id(), read.get_type(), read.get_source()) == ("e1", "order.paid", "/shop")
    assert (read.get_subject(), read.get_time(), read.get_data()) == ("order/Ä 1", NOW, {"n": 1})
    extensions = {name: str(read.get_extension(name)) for name in ("region", "correlationid", "causaldepth")}
    assert extensions == {"region": "eu", "correlationid": "c", "causaldepth": "2"}


def test_what_is_sent_can_be_changed_and_is_signed() -> None:
    """`data` takes the place of the event's own; the signature is that of Standard Webhooks over what is sent."""
    made = sink(
        data={"total": "{{ event.data.n }}", "of": "{{ variables.shop }}"},
        http={
            "url": "https://x.example",
            "secret": "{{ secrets.sink }}",
            "headers": {"X-Shop": "{{ variables.shop }}"},
        },
    )
    context = {"secrets": {"sink": SECRET}, "variables": {"shop": "s1"}}
    sent = outgoing(made, paid(), context, now=NOW)
    assert json.loads(sent.body)["data"] == {"total": 1, "of": "s1"}
    assert (sent.headers["X-Shop"], sent.headers["Idempotency-Key"]) == ("s1", "e1")
    headers = {k.lower(): v for k, v in sent.headers.items()}
    rule = StandardWebhooksVerify(preset="standard-webhooks", secret=("x",))
    request = Request("POST", headers, {}, sent.body)
    assert isinstance(verify(rule, request, Keys((SECRET,)), now=NOW, tolerance_s=10), Verified)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "one target"),
        ({"nats": {"subject": "a"}, "http": {"url": "https://x"}}, "one target"),
        ({"nats": {"subject": "hark.ev.x"}}, "Hark's own"),
        ({"nats": {"subject": "a.*"}}, "to send to"),
        ({"nats": {"subject": "a"}, "on": "Order.Paid"}, "lower-case"),
        ({"nats": {"subject": "a"}, "where": {"data.n": {"gtt": 1}}}, "gtt"),
        ({"http": {"url": "ftp://x"}}, "not a URL"),
        ({"http": {"url": "https://x", "sekret": "y"}}, "sekret"),
        ({"nats": {"subject": "{{ event. }}"}}, "template"),
    ],
)
def test_a_sink_that_cannot_be_meant_is_refused(value: Any, says: str) -> None:
    """With what is wrong in the message."""
    with pytest.raises(ValidationError, match=says):
        sink(**value)


def test_a_sink_of_everything_does_not_forward_that_it_has_failed() -> None:
    """Else each dead letter would be the next one's cause, for ever."""
    wanted = sink(on=">", nats={"subject": "a"}).check()
    told = Event(type="action.dead-lettered", source="/hark/actions", data={"kind": "forward"})
    assert not wanted(told.to_dict())
    assert wanted(told.replace(data={"kind": "run"}).to_dict())
    assert wanted(paid().to_dict())


# --- sending -----------------------------------------------------------------------------------------------------


async def sent(forwarder: Forwarder, count: int) -> None:
    """Wait until the sink counts as many as sent: left before, it would send the last one again."""
    with anyio.fail_after(60):
        while forwarder.states["out"].sent < count:  # noqa: ASYNC110 - it has no event to wait for
            await anyio.sleep(0.005)


async def test_events_go_to_subjects_of_others(bus: Bus, home: Path, peer: Client) -> None:
    """A bare client hears those that match, in order, in binary mode; what came while nobody ran comes later, if the sink
    was there by then."""
    heard = await peer.subscribe("out.>")
    await bus.log.append(paid(9))
    await define(bus, sink(where={"data.n": ">= 2"}, nats={"subject": "out.{{ event.type }}"}, at_once=1))
    await bus.log.append_many([paid(1), paid(2)])
    async with forwarding(bus, home) as forwarder:
        await bus.log.append_many([Event(type="user.came", source="/s"), paid(3)])
        messages = [await heard.next_msg(timeout=60) for _ in range(2)]
        assert [(m.headers or {})["ce-id"] for m in messages] == ["e2", "e3"]
        assert (messages[0].subject, json.loads(messages[0].data)) == ("out.order.paid", {"n": 2})
        assert forwarder.states["out"].state == "serving"
        await sent(forwarder, 2)
    await bus.log.append(paid(4))
    async with forwarding(bus, home) as forwarder:
        assert ((await heard.next_msg(timeout=60)).headers or {})["ce-id"] == "e4"
        await sent(forwarder, 1)
        with pytest.raises(nats.errors.TimeoutError):
            await heard.next_msg(timeout=0.1)


async def test_a_stream_of_theirs_has_each_event_once(bus: Bus, home: Path, peer: Client) -> None:
    """`stream: true` waits until it is stored, under an id by which a repeat is known; no stream: it is tried again."""
    await define(bus, sink(nats={"subject": "theirs.{{ event.type }}", "stream": True, "mode": "structured"}))
    js = peer.jetstream()
    async with forwarding(bus, home) as forwarder:
        await bus.log.append(paid(1))
        with anyio.fail_after(60):
            while not forwarder.states["out"].failed:  # noqa: ASYNC110 - it has no event to wait for
                await anyio.sleep(0.01)
        await js.add_stream(name="THEIRS", subjects=["theirs.>"])
        with anyio.fail_after(60):
            while not forwarder.states["out"].sent:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        stored = await js.get_msg("THEIRS", 1)
        assert (stored.headers or {})["Nats-Msg-Id"] == "/shop#e1"
        assert Event.from_json(stored.data or b"") == paid(1)


async def test_a_receiver_that_fails_is_tried_again(bus: Bus, home: Path, receiver: Receiver) -> None:
    """500, then 503 with Retry-After, then 200: three requests of one event, under one key, and no other is held up."""
    receiver.answers = [(500, ""), (503, "Retry-After: 0\r\n")]
    await define(bus, sink(http={"url": f"{receiver.url}/in", "mode": "binary"}, at_once=1))
    async with forwarding(bus, home):
        await bus.log.append(paid(1))
        await receiver.wait(3)
        await bus.log.append(paid(2))
        requests = await receiver.wait(4)
    assert [r.headers["ce-id"] for r in requests] == ["e1", "e1", "e1", "e2"]
    assert {r.headers["idempotency-key"] for r in requests[:3]} == {"e1"}
    assert (requests[0].path, requests[0].json, requests[0].headers["content-type"]) == (
        "/in", {"n": 1}, "application/json",
    )  # fmt: skip


async def test_what_is_never_taken_is_a_dead_letter_that_can_be_redriven(
    bus: Bus, home: Path, receiver: Receiver
) -> None:
    """404 is not tried again, 500 as often as agreed; each is told, stays, and goes out when a person asks for it."""
    receiver.answers = [(404, ""), (500, ""), (500, "")]
    await define(bus, sink(http={"url": receiver.url}, retries=1, at_once=1))
    letters = DeadLetters(bus)
    async with forwarding(bus, home) as forwarder:
        await bus.log.append(paid(1))
        await until(bus, "hark.ev.action.dead-lettered")
        await bus.log.append(paid(2))
        told = await until(bus, "hark.ev.action.dead-lettered", 2)
        assert isinstance(told[1].data, dict)
        assert (told[1].data["kind"], told[1].data["automation"], told[1].data["attempt"]) == (
            "forward",
            "sink:out",
            2,
        )
        assert "answered 500" in str(told[1].data["error"])
        assert told[1].causationid == "e2"
        first, second = await letters.list()
        assert (first.kind, first.key.startswith("sink-out-"), first.automation) == (
            "forward",
            True,
            "sink:out",
        )
        receiver.answers = [(500, "")]
        # Anybody may publish to the broker what looks like somebody's wish: it stops nobody's.
        no_wish = {
            "id": "1",
            "source": "/x",
            "type": "action.redriven",
            "data": {"key": first.key, "round": "x"},
        }
        for raw in (b"\0", b"", json.dumps(no_wish).encode()):
            await bus.publisher.publish_raw("hark.ev.action.redriven", raw, f"no-{len(raw)}")
        await letters.redrive(first.key)
        await until(bus, "hark.ev.action.dead-lettered", 3)
        assert "answered 500" in forwarder.states["out"].error
        await letters.redrive(first.key)
        [done] = await until(bus, "hark.ev.action.executed")
        assert (forwarder.states["out"].error, forwarder.states["out"].sent) == ("", 1)
        assert isinstance(done.data, dict)
        assert (done.data["key"], done.data["round"]) == (first.key, 2)
        await letters.drop(second.key)
        assert await letters.list() == []
    assert [json.loads(r.body)["id"] for r in receiver.requests] == ["e1", "e2", "e2", "e1", "e1"]


async def test_a_sink_is_changed_paused_and_removed_while_it_serves(
    bus: Bus, home: Path, peer: Client
) -> None:
    """A change is in force at once; a pause loses nothing, nor does one from the beginning; removed, nothing of it is left
    with the broker."""
    heard = await peer.subscribe("out.>")
    made = sink(nats={"subject": "out.a"})
    await define(bus, made.model_copy(update={"paused": True}))
    async with forwarding(bus, home) as forwarder:
        assert forwarder.states["out"].state == "paused"
        await bus.log.append(paid(1))
        await define(bus, made)
        assert (await heard.next_msg(timeout=60)).subject == "out.a"
        await sent(forwarder, 1)

        async def becomes(changed: Sink, state: str) -> None:
            await define(bus, changed)
            with anyio.fail_after(60):
                defined = forwarder._roster
                while defined.definitions["out"] != changed or forwarder.states["out"].state != state:  # noqa: ASYNC110
                    await anyio.sleep(0.001)

        await becomes(made.model_copy(update={"paused": True}), "paused")
        await bus.log.append(paid(2))
        other = sink(nats={"subject": "out.b"}, on=["order.*", "user.came"])
        await becomes(other, "serving")
        await bus.log.append(Event(type="user.came", source="/s", id="u"))
        messages = [await heard.next_msg(timeout=60) for _ in range(2)]
        assert sorted((m.subject, (m.headers or {})["ce-id"]) for m in messages) == [
            ("out.b", "e2"),
            ("out.b", "u"),
        ]
        await bus.bucket("sinks").delete("out")
        with anyio.fail_after(60):
            while "sink-out" in {c.name for c in await peer.jetstream().consumers_info("HARK")}:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        await bus.bucket("sinks").put("out", b'{"name": "out", "on": "x"}')
        with anyio.fail_after(60):
            while forwarder.states.get("out") is None:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        assert forwarder.states["out"].state == "broken"
