"""Sources: NATS messages of others that become events. A bare NATS client and the CloudEvents SDK are the peers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import nats
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from hark.bus import Bus, Event
from hark.triggers.listener import SourceListener
from hark.triggers.source import Message, NotAnEvent, Source, event_of
from nats.aio.client import Client
from pydantic import ValidationError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def source(**value: Any) -> Source:
    return Source.model_validate({"name": "shop", "subject": "shop.>", **value})


async def define(bus: Bus, made: Source) -> None:
    await bus.bucket("sources").put(made.name, made.model_dump_json(exclude_defaults=True).encode())


@asynccontextmanager
async def events(bus: Bus, filter_: str = "hark.ev.>") -> AsyncIterator[Any]:
    """Give a function that returns so many events of a filter, once they are there."""

    async def first(count: int) -> list[Event]:
        found: list[Event] = []
        with anyio.fail_after(60):
            async with bus.log.follow([filter_], after=0) as batches:
                async for batch in batches:
                    found += [r.event for r in batch.records]
                    if len(found) >= count:
                        return found
        return found

    yield first


# --- from a message to an event ------------------------------------------------------------------------------


def test_json_without_a_mapping_is_an_event_named_by_its_subject() -> None:
    """Words of the subject, cleaned; data is the payload; a message of a stream has an id of its own for ever."""
    made = event_of(source(), Message("shop.Order_Paid", b'{"n": 1}', place="S/7"), now=NOW).event
    assert (made.type, made.source, made.data) == ("shop.order-paid", "/nats/shop", {"n": 1})
    assert (
        event_of(source(), Message("shop.Order_Paid", b'{"n": 1}', place="S/7"), now=NOW).event.id == made.id
    )


def test_templates_make_the_event() -> None:
    """Type, subject, data, time and id from subject, words, headers and body; a field that is not there is left out."""
    made = source(
        event={
            "type": "shop.{{ words[1] }}.{{ body.what }}", "subject": "order/{{ body.id }}", "data": {"n": "{{ body.n }}"},
            "time": "{{ body.at }}", "partitionkey": "{{ body.nothing.here }}",
        },
        dedupe="{{ headers['x-id'] }}",
    )  # fmt: skip
    body = json.dumps({"what": "PAID", "id": 7, "n": 3, "at": 1767225600}).encode()
    got = event_of(made, Message("shop.eu", body, {"X-Id": "abc"}), now=NOW)
    event = got.event
    assert (event.type, event.subject, event.data, event.time) == ("shop.eu.paid", "order/7", {"n": 3}, NOW)
    assert (event.partitionkey, got.delivery) == (None, "abc")
    again = event_of(made, Message("shop.eu", body, {"X-Id": "abc"}), now=NOW)
    assert again.event.id == event.id


@pytest.mark.parametrize("to_message", [to_binary_event, to_structured_event])
def test_what_the_sdk_writes_is_the_event_it_is(to_message: Any) -> None:
    """Binary and structured, with extensions and a type that is not ours; the step is counted."""
    sent = CloudEvent(
        {
            "type": "com.Acme.OrderPaid",
            "source": "/acme",
            "id": "1",
            "subject": "o/1",
            "time": NOW,
            "region": "eu",
        },
        {"total": 12.5},
    )
    message = to_message(sent)
    event = event_of(source(), Message("shop.x", message.body, message.headers), now=NOW).event
    assert (event.type, event.source, event.id, event.subject) == ("com.acme.orderpaid", "/acme", "1", "o/1")
    assert (event.data, event.time, event.causaldepth) == ({"total": 12.5}, NOW, 1)
    assert event.extensions == {"region": "eu", "originaltype": "com.Acme.OrderPaid"}
    mapped = source(event={"type": "mine.{{ cloudevent.region }}", "data": {"sum": "{{ body.total }}"}})
    event = event_of(mapped, Message("shop.x", message.body, message.headers), now=NOW).event
    assert (event.type, event.id, event.data) == ("mine.eu", "1", {"sum": 12.5})


@pytest.mark.parametrize(
    ("message", "more", "reason"),
    [
        (Message("shop.x", b"{"), {}, "broken-json"),
        (Message("shop.x", b"\xff"), {"format": "text"}, "broken-text"),
        (Message("shop.x", b"{}"), {"event": {"type": "{{ body.kind }}"}}, "template: `event.type`"),
        (Message("shop.x", b"{}"), {"event": {"type": "x", "data": {"a": "{{ body.a }}"}}}, "template: `event.data`"),
        (Message("shop.x", b"{}"), {"dedupe": "{{ body.kind }}"}, "template: `dedupe`"),
        (Message("shop.x", b'{"kind": "flow-run.failed"}'), {"event": {"type": "{{ body.kind }}"}}, "type"),
        (Message("shop.x", b"{}", {"ce-specversion": "1.0", "ce-type": "flow-run.failed", "ce-source": "/x", "ce-id": "1"}), {}, "type"),
        (Message("shop.x", b"{}", {"ce-specversion": "1.0", "ce-type": "x", "ce-source": "/hark/engine", "ce-id": "1"}), {}, "source"),
        (Message("shop.x", b"{}", {"ce-specversion": "1.0", "ce-type": "x"}), {}, "not-an-event"),
        (Message("shop.x", b"", {"ce-specversion": "1.0", "ce-type": "x", "ce-source": "/x", "ce-id": "1", "ce-causaldepth": "99"}), {}, "loop"),
    ],
)  # fmt: skip
def test_what_can_be_no_event_says_why(message: Message, more: Any, reason: str) -> None:
    """Broken payloads, types and sources that are Hark's own, and what goes round for ever."""
    with pytest.raises(NotAnEvent) as refused:
        event_of(source(**more), message, now=NOW)
    assert f"{refused.value.reason}: {refused.value.detail}".startswith(reason)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"subject": "hark.ev.>"}, "Hark's own"),
        ({"subject": ">"}, "Hark's own"),
        ({"subject": "*.ev.x"}, "Hark's own"),
        ({"subject": "a..b"}, "not a NATS subject"),
        ({"subject": "a.>.b"}, "to listen to"),
        ({"stream": "HARK"}, "Hark's own"),
        ({"start": "all"}, "needs a `stream`"),
        ({"dedupe": "{{ secrets.x }}"}, "secrets"),
    ],
)
def test_a_source_of_what_is_hark_s_own_is_refused(value: Any, says: str) -> None:
    """A loop through the log itself, and definitions that cannot be meant."""
    with pytest.raises(ValidationError, match=says):
        source(**value)


# --- listening ---------------------------------------------------------------------------------------------------


async def test_messages_of_a_bare_client_are_events(bus: Bus, peer: Client) -> None:
    """Core NATS: plain JSON and CloudEvents, an answer for who asks, and a rejection that is told."""
    await define(bus, source())
    async with SourceListener(bus), events(bus, "hark.ev.shop.>") as first:
        answer = await peer.request("shop.order.paid", b'{"n": 1}', timeout=60)
        sent = to_binary_event(
            CloudEvent({"type": "shop.order.sent", "source": "/acme", "id": "e1"}, {"n": 2})
        )
        await peer.publish("shop.any", sent.body, headers=sent.headers)
        await peer.flush()
        seen = await first(2)
        assert json.loads(answer.data) == {"id": seen[0].id}
        assert [(e.type, e.data) for e in seen] == [
            ("shop.order.paid", {"n": 1}),
            ("shop.order.sent", {"n": 2}),
        ]
        refused = json.loads((await peer.request("shop.order.paid", b"{", timeout=60)).data)
        assert refused["reason"] == "broken-json"
        await bus.publisher.barrier()
        told = await bus.log.last("hark.ev.hark.source.rejected")
        assert told is not None
        assert isinstance(told.event.data, dict)
        assert (told.event.data["reason"], told.event.data["nats_subject"]) == (
            "broken-json",
            "shop.order.paid",
        )


async def test_two_listeners_share_what_comes(bus: Bus, peer: Client) -> None:
    """Of several servers each message is stored by one."""
    await define(bus, source())
    async with SourceListener(bus) as one, SourceListener(bus) as two, events(bus, "hark.ev.shop.>") as first:
        for n in range(100):
            await peer.publish("shop.n", b"%d" % n)
        await peer.flush()
        seen = await first(100)
        assert sorted(e.data for e in seen) == list(range(100))
        # An event may be read before who appended it hears that it is stored.
        await _until(lambda: sum(listener.states["shop"].stored for listener in (one, two)) == 100)
        assert min(listener.states["shop"].stored for listener in (one, two)) > 0


async def test_a_stream_of_theirs_is_read_from_where_it_was_left(bus: Bus, peer: Client) -> None:
    """What was there, what comes, and what came while nobody listened: each once, also when it is handed out twice."""
    js = peer.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    await js.publish("orders.paid", b'{"n": 0}')
    made = source(subject="orders.paid", stream="ORDERS", start="all")
    await define(bus, made)
    async with events(bus, "hark.ev.orders.>") as first:
        async with SourceListener(bus) as listener:
            await js.publish("orders.paid", b'{"n": 1}')
            await js.publish("orders.other", b'{"n": 9}')
            await first(2)
            assert listener.states["shop"].state == "reading"
        await js.publish("orders.paid", b'{"n": 2}')
        async with SourceListener(bus):
            seen = await first(3)
            # The message is acknowledged after its event is stored.
            with anyio.fail_after(60):
                while (await js.consumer_info("ORDERS", "hark-shop")).num_ack_pending:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            # In binary mode the payload is the data, of whatever kind.
            named = {"ce-specversion": "1.0", "ce-source": "/shop", "ce-type": "orders.picture"}
            for kind, data in (("image/png", b"\x89P\xff"), ("application/json", b'{"n": 3}')):
                sent = {**named, "ce-id": kind, "content-type": kind}
                await js.publish("orders.paid", data, headers=sent)
            seen = await first(5)
        assert [e.data for e in seen] == [{"n": 0}, {"n": 1}, {"n": 2}, b"\x89P\xff", {"n": 3}]
        # The consumer is lost, with its place: everything is handed out again, and is known.
        await js.delete_consumer("ORDERS", "hark-shop")
        async with SourceListener(bus):
            with anyio.fail_after(60):
                while (await js.consumer_info("ORDERS", "hark-shop")).ack_floor.stream_seq < 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        assert len(await first(5)) == 5


async def test_a_source_is_changed_paused_and_removed_while_it_is_read(bus: Bus, peer: Client) -> None:
    """Each change is in force at once; a stream that is not there yet holds up nothing; removed, no consumer is left."""
    js = peer.jetstream()
    missing = source(name="later", subject="later.>", stream="LATER", start="all")
    await define(bus, missing)
    await define(bus, source())
    async with SourceListener(bus) as listener, events(bus, "hark.ev.>") as first:
        waiting = listener.states["later"]
        assert (waiting.state, waiting.error) == ("waiting", "there is no stream 'LATER' on this broker")
        await js.add_stream(name="LATER", subjects=["later.>"])
        await js.publish("later.x", b"1")
        await first(1)
        changed = source(event={"type": "mine.came"})
        await define(bus, changed)
        await _until(lambda: listener.reading().get("shop") == changed)
        await peer.request("shop.x", b"2", timeout=60)
        assert [e.type for e in await first(2)] == ["later.x", "mine.came"]
        await define(bus, changed.model_copy(update={"paused": True}))
        await _until(lambda: listener.states["shop"].state == "paused")
        with pytest.raises(nats.errors.NoRespondersError):
            await peer.request("shop.x", b"3", timeout=60)
        await bus.bucket("sources").delete("later")
        await _until(lambda: "later" not in listener.states)
        with anyio.fail_after(60):
            while await js.consumers_info("LATER"):  # noqa: ASYNC110 - it has no event to wait for
                await anyio.sleep(0.01)


async def _until(holds: Any) -> None:
    with anyio.fail_after(60):
        while not holds():  # noqa: ASYNC110 - it has no event to wait for
            await anyio.sleep(0.001)
