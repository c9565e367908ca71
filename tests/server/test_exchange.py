"""Sources and sinks of a configuration, end to end: curl, a bare NATS client and the CloudEvents SDK around a real service."""

from __future__ import annotations

import json
from typing import Any

import anyio
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from hark.config import AutomationsConfig
from hark.server.client import Hark

from tests.peer import a_peer
from tests.server.conftest import Start

CONFIG = """
deployments: {etl: {flow: flows.py:etl}}
webhooks:
  back: {verify: {preset: standard-webhooks, secret: "{{ secrets.back }}"}, event: {type: "back.{{ body.type }}"}}
sources:
  shop:
    subject: "shop.orders.>"
    event: {type: "shop.{{ words[2] }}", subject: "order/{{ body.id }}"}
    dedupe: "{{ headers['x-request-id'] }}"
  ledger: {subject: "ledger.>", stream: LEDGER, start: all}
sinks:
  out: {on: shop.paid, where: {data.total: "> 10"}, nats: {subject: "hark-out.{{ event.type }}"}}
  back: {on: ledger.>, http: {url: "{{ variables.base }}/hooks/back", secret: "{{ secrets.back }}"}}
automations:
  run: {on: shop.paid, do: [{run: etl, parameters: {n: "{{ event.data.total }}"}}]}
variables: {base: "http://127.0.0.1:9"}
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def test_what_others_publish_runs_flows_and_comes_out_as_cloud_events(start: Start) -> None:
    """NATS in (plain, twice), a rule and a run of it, NATS out to the SDK; their stream in, signed HTTP out, and listings."""
    allow = AutomationsConfig(allow_private_addresses=True)
    async with start(config=CONFIG, automations=allow) as (service, http), Hark(service.url, "") as hark:
        await hark.set_secret("back", SECRET)
        await hark.set_variable("base", service.url)
        async with a_peer(service.bus.address) as peer:
            heard = await peer.subscribe("hark-out.>")
            body = json.dumps({"id": 7, "total": 21}).encode()
            first, again = [
                json.loads(
                    (
                        await peer.request(
                            "shop.orders.paid", body, headers={"X-Request-Id": "r1"}, timeout=60
                        )
                    ).data
                )
                for _ in range(2)
            ]
            assert first == again
            await peer.request(
                "shop.orders.paid", b'{"id": 8, "total": 1}', headers={"X-Request-Id": "r2"}, timeout=60
            )
            message = await heard.next_msg(timeout=60)
            headers = {k.lower(): v for k, v in (message.headers or {}).items()}
            headers["content-type"] = headers.pop("ce-datacontenttype")
            read = from_http_event(HTTPMessage(headers, message.data))
            assert (message.subject, read.get_id(), read.get_subject()) == (
                "hark-out.shop.paid",
                first["id"],
                "order/7",
            )
            assert read.get_data() == {"id": 7, "total": 21}

            await peer.jetstream().add_stream(name="LEDGER", subjects=["ledger.>"])
            sent = to_structured_event(
                CloudEvent({"type": "ledger.booked", "source": "/bank", "id": "b1"}, {"sum": 3})
            )
            await peer.jetstream().publish("ledger.x", sent.body, headers=sent.headers)
            with anyio.fail_after(60):
                async with service.bus.log.follow(["hark.ev.back.>"], after=0) as batches:
                    async for batch in batches:
                        if batch.records:
                            back = batch.records[0].event
                            break
                ended: set[str] = set()
                async with service.bus.log.follow(["hark.ev.flow-run.completed.*"], after=0) as batches:
                    async for batch in batches:
                        ended |= {r.subject for r in batch.records}
                        if len(ended) == 2:
                            break
            assert back.type == "back.ledger.booked"
            assert isinstance(back.data, dict)
            assert (back.data["source"], back.data["id"], back.data["data"]) == ("/bank", "b1", {"sum": 3})

            listed: Any = {s["name"]: s for s in await hark.sources() + await hark.sinks()}
            assert {n: s["status"]["state"] for n, s in listed.items()} == {
                "shop": "reading", "ledger": "reading", "out": "serving", "back": "serving",
            }  # fmt: skip
            assert SECRET not in json.dumps(listed)
            assert (await hark.pause("sink", "out"))["paused"] is True
            assert (await hark.resume("source", "shop")).get("paused", False) is False
            assert (await http.get("/api/sinks/nope")).status_code == 404


async def test_curl_and_the_sdk_send_events_in_every_form(start: Start) -> None:
    """Binary, structured and batch over HTTP from other implementations; each is stored under its own source and id."""
    async with start() as (service, http):
        for n, to_message in enumerate((to_binary_event, to_structured_event)):
            event = CloudEvent(
                {"type": "sdk.sent", "source": "/sdk", "id": str(n), "datacontenttype": "application/json"},
                {"n": n},
            )
            made = to_message(event)
            answer = await http.post("/api/events", content=made.body, headers=dict(made.headers))
            assert (answer.status_code, answer.json()["ids"]) == (202, [str(n)]), answer.text
        batch = json.dumps(
            [{"specversion": "1.0", "type": "curl.sent", "source": "/curl", "id": str(n)} for n in range(3)]
        )
        url = f"{service.url}/api/events"
        for words in (
            ["-H", "ce-specversion: 1.0", "-H", "ce-type: curl.sent", "-H", "ce-source: /curl", "-H", "ce-id: b%C3%A4",
             "-H", "Content-Type: text/plain", "-d", "hello"],
            ["-H", "Content-Type: application/cloudevents-batch+json", "-d", batch],
        ):  # fmt: skip
            done = await anyio.run_process(["curl", "-sS", "-X", "POST", url, *words])
            assert "ids" in json.loads(done.stdout), done.stdout
        async with service.bus.log.read(["hark.ev.sdk.>", "hark.ev.curl.>"]) as batches:
            seen = [(r.event.source, r.event.id, r.event.data) async for b in batches for r in b.records]
    assert seen == [
        ("/sdk", "0", {"n": 0}), ("/sdk", "1", {"n": 1}), ("/curl", "bä", "hello"), ("/curl", "0", None),
        ("/curl", "1", None), ("/curl", "2", None),
    ]  # fmt: skip
