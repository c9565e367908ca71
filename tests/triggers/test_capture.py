"""Requests kept for a while: what stays in them, and delivering them again, on a real broker."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hark.bus import Bus, EmbeddedBroker, LateValues, SecretStore, secret_key
from hark.config import BusConfig, TriggersConfig
from hark.errors import RefusedError, UnknownName
from hark.triggers.capture import Captured, capture
from hark.triggers.receiver import Answer, WebhookReceiver
from hark.triggers.signing import sign
from hark.triggers.verify import Keys, Request
from hark.triggers.webhook import Webhook

SECRET = "It's a Secret to Everybody"
BODY = orjson.dumps({"ref": "main", "repository": {"full_name": "octo/hello"}})


def webhook(verify: Any, **more: Any) -> Webhook:
    return Webhook.model_validate({"name": "w", "verify": verify, **more})


async def define(bus: Bus, made: Webhook) -> None:
    await bus.bucket("webhooks").put(made.name, made.model_dump_json().encode())


async def post(
    receiver: WebhookReceiver, body: bytes = BODY, headers: Mapping[str, str] | None = None
) -> Answer:
    named = {"Content-Type": "application/json", **(headers or {})}
    return await receiver.receive(
        "w", method="POST", headers=named, query={}, body=body, remote="203.0.113.7"
    )


async def kept(receiver: WebhookReceiver, bus: Bus, count: int) -> list[Captured]:
    await bus.publisher.barrier()
    found = await receiver.requests("w")
    assert len(found) == count
    return found


@pytest.mark.parametrize(
    ("verify", "secret", "hidden", "shown"),
    [
        ({"preset": "github", "secret": SECRET}, SECRET, (), ("x-hub-signature-256",)),
        ({"preset": "bearer", "secret": SECRET}, SECRET, ("authorization",), ()),
        ({"preset": "bearer", "secret": SECRET, "header": "X-Mine"}, SECRET, ("x-mine",), ()),
        ({"preset": "basic", "secret": SECRET, "user": "u"}, SECRET, ("authorization",), ()),
        ({"preset": "gitlab", "secret": SECRET}, SECRET, ("x-gitlab-token",), ()),
        ({"preset": "hmac", "secret": SECRET, "header": "X-Sig"}, SECRET, (), ("x-sig",)),
    ],
)
def test_what_proves_the_sender_is_not_kept(
    verify: Any, secret: str, hidden: tuple[str, ...], shown: tuple[str, ...]
) -> None:
    """Tokens, passwords and cookies are masked wherever they stand; a signature over the body may stay."""
    rule = webhook(verify).verify
    signed = {k.lower(): v for k, v in sign(rule, Keys((secret,), "u"), BODY, now=datetime.now(UTC)).items()}
    headers = {**signed, "cookie": "session=1", "x-api-key": "k", "x-copy": f"see {secret}"}
    request = Request("POST", headers, {"access_token": "t", "page": "1"}, BODY + secret.encode())
    made = capture(
        "w", rule, request, secrets=(secret,), received_at=datetime.now(UTC), remote=None, status=202, reason="",
        event_ids=("e",), is_genuine=True, max_bytes=10_000,
    )  # fmt: skip
    assert {name for name, value in made.headers.items() if value == "***"} >= {
        *hidden, "cookie", "x-api-key", "x-copy",
    }  # fmt: skip
    assert all(made.headers[name] == signed[name] for name in shown)
    assert (made.query, made.is_whole) == ({"access_token": "***", "page": "1"}, False)
    assert secret.encode() not in made.to_json()
    assert Captured.from_json(made.to_json(), id="") == made


async def test_so_many_are_kept_of_each_kind_and_a_flood_pushes_out_no_genuine_one(home: Path) -> None:
    """Three accepted and three refused at most; requests of strangers never push out genuine ones."""
    config = BusConfig(requests_kept=3)
    async with EmbeddedBroker(home, config) as broker, Bus(broker.address, config) as bus:
        await define(bus, webhook({"preset": "github", "secret": SECRET}))
        async with WebhookReceiver(bus, None, TriggersConfig(webhook_kept_bytes=20)) as receiver:
            rule = receiver.webhooks["w"].verify
            for n in range(5):
                headers = sign(rule, Keys((SECRET,)), BODY, now=datetime.now(UTC), delivery=f"d{n}")
                assert (await post(receiver, headers=headers)).status == 202
            for _ in range(20):
                assert (await post(receiver)).status == 401
            found = await kept(receiver, bus, 6)
            assert [one.status for one in found] == [401] * 3 + [202] * 3
            assert [one.headers.get("x-github-delivery") for one in found[3:]] == ["d4", "d3", "d2"]
            assert (found[3].body, found[3].size, found[3].is_whole) == (BODY[:20], len(BODY), False)
            with pytest.raises(RefusedError, match="20 of the"):
                await receiver.redeliver(found[3].id)
            with pytest.raises(UnknownName):
                await receiver.redeliver("999999")


async def test_a_stored_request_delivered_again_is_a_new_event(bus: Bus) -> None:
    """It names the first in ``replayof``, and is made by the webhook as it is now."""
    made = webhook({"preset": "github", "secret": SECRET})
    await define(bus, made)
    async with WebhookReceiver(bus, None) as receiver:
        headers = sign(made.verify, Keys((SECRET,)), BODY, now=datetime.now(UTC))
        first = await post(receiver, headers=headers)
        [one] = await kept(receiver, bus, 1)
        assert one.event_ids == (first.body["id"],)
        changed = made.model_copy(update={"description": "changed"})
        changed = Webhook.model_validate({**changed.model_dump(), "event": {"type": "mine.{{ body.ref }}"}})
        await define(bus, changed)
        with anyio.fail_after(60):
            while receiver.webhooks.get("w") != changed:  # noqa: ASYNC110 - it has no event to wait for
                await anyio.sleep(0.001)
        again = await receiver.redeliver(one.id)
    assert again.status == 202
    stored = await bus.log.last("hark.ev.mine.>")
    assert stored is not None
    assert (stored.event.type, stored.event.replayof) == ("mine.main", first.body["id"])
    assert stored.event.id == again.body["id"] != first.body["id"]


async def test_a_refused_request_is_stored_once_it_can_be(bus: Bus, home: Path) -> None:
    """A wrong secret is put right: the request is verified anew as of its time; its sender's own repeat is a repeat."""
    secrets = SecretStore(bus, secret_key(home, None))
    await secrets.set("gh", "wrong-wrong-wrong")
    await define(bus, webhook({"preset": "github", "secret": "{{ secrets.gh }}"}))
    async with WebhookReceiver(bus, LateValues(bus, secrets)) as receiver:
        rule = receiver.webhooks["w"].verify
        headers = sign(rule, Keys((SECRET,)), BODY, now=datetime.now(UTC), delivery="d1")
        assert (await post(receiver, headers=headers)).status == 401
        [one] = await kept(receiver, bus, 1)
        assert not one.is_genuine
        with pytest.raises(RefusedError, match="still not genuine"):
            await receiver.redeliver(one.id)
        await secrets.set("gh", SECRET)
        answer = await receiver.redeliver(one.id)
        assert (answer.status, answer.body.get("duplicate")) == (202, None)
        repeat = await post(receiver, headers=headers)
        assert (repeat.body["id"], repeat.body["duplicate"]) == (answer.body["id"], True)


async def test_a_token_that_was_wrong_cannot_be_delivered_again(bus: Bus) -> None:
    """What would prove its sender is not kept."""
    await define(bus, webhook({"preset": "bearer", "secret": SECRET}))
    async with WebhookReceiver(bus, None) as receiver:
        assert (await post(receiver, headers={"Authorization": "Bearer nope"})).status == 401
        [one] = await kept(receiver, bus, 1)
        with pytest.raises(RefusedError, match="not kept"):
            await receiver.redeliver(one.id)


async def test_a_batch_of_cloud_events_is_taken_as_a_whole(bus: Bus) -> None:
    """Each is an event under its own source and id; one that is none refuses all; a repeat stores nothing."""
    await define(bus, webhook({"preset": "cloudevents", "secret": SECRET}))
    batch = [
        {"specversion": "1.0", "type": "com.Acme.Paid", "source": "/acme", "id": str(n), "data": {"n": n}} for n in range(3)
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/cloudevents-batch+json"}
    async with WebhookReceiver(bus, None) as receiver:
        wrong = await post(receiver, orjson.dumps([*batch, {"type": "x"}]), headers)
        assert (wrong.status, "event 3 of the batch" in str(wrong.body["detail"])) == (400, True)
        assert await bus.log.last("hark.ev.com.>") is None
        answer = await post(receiver, orjson.dumps(batch), headers)
        assert (answer.status, answer.body) == (202, {"ids": ["0", "1", "2"]})
        again = await post(receiver, orjson.dumps(batch), headers)
        assert again.body == {"ids": ["0", "1", "2"], "duplicates": 3}
        assert (await post(receiver, b"{}", headers)).status == 400
        assert (await post(receiver, b"[]", headers)).body == {"ids": []}
        large = await post(receiver, orjson.dumps([batch[0]] * 1001), headers)
        assert (large.status, large.body["reason"]) == (413, "too-large")
        one = {"Ce-Specversion": "1.0", "Ce-Id": "png", "Ce-Source": "/acme", "Ce-Type": "com.acme.picture", "Content-Type": "image/png"}  # fmt: skip
        # In binary mode the data may be of any kind, and is kept as it is.
        assert (await post(receiver, b"\x89P\xff", {**headers, **one})).body == {"id": "png"}
        [(_, came)] = [(r, await receiver.redeliver(r.id)) for r in await receiver.requests("w") if r.event_ids == ("png",)]  # fmt: skip
        assert came.status == 202
    async with bus.log.read(["hark.ev.com.acme.*"]) as batches:
        seen = [r.event async for b in batches for r in b.records]
    pictures = [(e.id == "png", e.data, e.datacontenttype) for e in seen[3:]]
    assert pictures == [(True, b"\x89P\xff", "image/png"), (False, b"\x89P\xff", "image/png")]
    assert [(e.source, e.id, e.extensions["originaltype"]) for e in seen[:3]] == [
        ("/acme", str(n), "com.Acme.Paid") for n in range(3)
    ]
