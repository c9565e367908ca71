"""The receiver against a real broker: accepted means stored, repeats are recognised, nothing raises."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hark.bus import Bus, EmbeddedBroker, LateValues, SecretStore, secret_key
from hark.bus.event import Event
from hark.clock import SYSTEM_CLOCK, Clock, ManualClock
from hark.config import BusConfig, TriggersConfig
from hark.triggers.capture import Captured
from hark.triggers.receiver import Answer, WebhookReceiver
from hark.triggers.signing import sign
from hark.triggers.verify import Keys
from hark.triggers.webhook import Webhook
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECRET = "It's a Secret to Everybody"
PUSH = {"ref": "refs/heads/main", "repository": {"full_name": "octo/hello"}}
GITHUB: dict[str, Any] = {"verify": {"preset": "github", "secret": SECRET}}


async def define(bus: Bus, name: str, value: Mapping[str, Any]) -> Webhook:
    webhook = Webhook.model_validate({"name": name, **value})
    await bus.bucket("webhooks").put(name, webhook.model_dump_json().encode())
    return webhook


@asynccontextmanager
async def receiving(
    bus: Bus, *, late: Any = None, clock: Clock = SYSTEM_CLOCK, **config: Any
) -> AsyncIterator[WebhookReceiver]:
    async with WebhookReceiver(bus, late, TriggersConfig(**config), clock=clock) as receiver:
        yield receiver


async def post(
    receiver: WebhookReceiver,
    name: str,
    body: Any = b"",
    *,
    method: str = "POST",
    query: Any = None,
    **headers: str,
) -> Answer:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    named.setdefault("Content-Type", "application/json")
    return await receiver.receive(
        name, method=method, headers=named, query=query or {}, body=raw, remote="203.0.113.7"
    )


def push(delivery: str = "d-1", *, secret: str = SECRET, raw: bytes | None = None) -> dict[str, str]:
    """Headers of a signed GitHub push."""
    body = orjson.dumps(PUSH) if raw is None else raw
    mac = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={mac}", "X-GitHub-Event": "push", "X-GitHub-Delivery": delivery}


async def stored(bus: Bus, type_: str = ">") -> list[Event]:
    async with bus.log.read([f"hark.ev.{type_}"]) as batches:
        return [record.event async for batch in batches for record in batch.records]


async def rejected(bus: Bus) -> list[dict[str, Any]]:
    await bus.publisher.barrier()
    found = []
    for event in await stored(bus, "webhook.rejected"):
        assert isinstance(event.data, dict)
        found.append(event.data)
    return found


async def knows(receiver: WebhookReceiver, name: str, *, not_as: Webhook | None = None) -> None:
    with anyio.fail_after(60):
        while receiver.webhooks.get(name) == not_as:  # noqa: ASYNC110 - it has no event to wait for
            await anyio.sleep(0.001)


# --- accepting ---------------------------------------------------------------------------------------------


async def test_a_signed_request_is_an_event_and_then_202(bus: Bus) -> None:
    """The answer names the event, and the event is in the log."""
    await define(bus, "github", GITHUB)
    async with receiving(bus) as receiver:
        answer = await post(receiver, "github", PUSH, **push())
    assert answer.status == 202
    (event,) = await stored(bus)
    assert answer.body == {"id": event.id}
    assert (event.type, event.subject, event.source) == ("github.push", "repo/octo/hello", "/webhooks/github")
    assert event.data == PUSH


async def test_a_repeated_delivery_makes_no_second_event(bus: Bus) -> None:
    """Three times the same delivery, then another of the same content."""
    await define(bus, "github", GITHUB)
    async with receiving(bus) as receiver:
        answers = [await post(receiver, "github", PUSH, **push()) for _ in range(3)]
        other = await post(receiver, "github", PUSH, **push("d-2"))
    assert [a.status for a in answers] == [202, 202, 202]
    assert [a.body.get("duplicate", False) for a in answers] == [False, True, True]
    assert len({a.body["id"] for a in answers}) == 1
    assert "duplicate" not in other.body
    assert len(await stored(bus)) == 2


async def test_a_repeat_is_recognised_after_the_broker_has_forgotten_the_id(home: Path) -> None:
    """Days later, as senders do it, and by another server."""
    config = BusConfig(dedup_window_s=0.2)
    async with EmbeddedBroker(home, config) as broker, Bus(broker.address, config) as bus:
        await define(bus, "github", GITHUB)
        async with receiving(bus) as receiver:
            first = await post(receiver, "github", PUSH, **push())
        await anyio.sleep(0.5)  # real time: the broker's own window must pass
        async with receiving(bus) as receiver:
            again = await post(receiver, "github", PUSH, **push())
        assert again.body == {**first.body, "duplicate": True}
        assert len(await stored(bus)) == 1


async def test_a_claim_whose_owner_died_is_resolved_from_the_log(home: Path) -> None:
    """Died before appending: the retry stores it. Died after: the retry finds it, though the broker forgot the id."""
    config = BusConfig(dedup_window_s=0.2)
    async with EmbeddedBroker(home, config) as broker, Bus(broker.address, config) as bus:
        await define(bus, "github", GITHUB)
        async with receiving(bus) as receiver:
            deliveries = receiver._deliveries
            event = Event(type="github.push", source="/webhooks/github", id="e-1")
            assert await deliveries._claim("github/aa", event) is None  # and died here
            assert (await deliveries._claim("github/aa", event)) is None
            await bus.log.append(event)  # a second time it died here, before the mark
            await anyio.sleep(0.5)
            assert await deliveries._claim("github/aa", event) == "e-1"


async def test_of_many_simultaneous_deliveries_one_is_stored(bus: Bus) -> None:
    """Twenty at once, over two receivers: one event, one answer without `duplicate`."""
    await define(bus, "github", GITHUB)
    answers: list[Answer] = []
    async with receiving(bus) as one, receiving(bus) as two, anyio.create_task_group() as tg:

        async def send(receiver: WebhookReceiver) -> None:
            answers.append(await post(receiver, "github", PUSH, **push()))

        for _ in range(10):
            tg.start_soon(send, one)
            tg.start_soon(send, two)
    assert [a.status for a in answers] == [202] * 20
    assert len([a for a in answers if "duplicate" not in a.body]) == 1
    assert len(await stored(bus)) == 1


async def test_secrets_are_resolved_late_and_two_are_valid_while_changing(bus: Bus, home: Path) -> None:
    """From the secret store, the new one within two seconds; a secret that is missing is our fault, not theirs."""
    secrets = SecretStore(bus, secret_key(home))
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    await define(
        bus, "github", {"verify": {"preset": "github", "secret": ["{{ secrets.new }}", "{{ secrets.old }}"]}}
    )
    async with receiving(bus, late=LateValues(bus, secrets), clock=clock) as receiver:
        assert (await post(receiver, "github", PUSH, **push())).status == 500
        await secrets.set("old", "o")
        await secrets.set("new", "n1")
        assert (await post(receiver, "github", PUSH, **push("1", secret="o"))).status == 202
        assert (await post(receiver, "github", PUSH, **push("2", secret="n1"))).status == 202
        await secrets.set("new", "n2")
        await clock.advance(3)
        assert (await post(receiver, "github", PUSH, **push("3", secret="n2"))).status == 202
        assert (await post(receiver, "github", PUSH, **push("4", secret="n1"))).status == 401
    await bus.publisher.barrier()
    raw = b"".join(e.to_json() for e in await stored(bus))
    assert b"n1" not in raw


async def test_slack_s_challenge_is_echoed_only_when_signed(bus: Bus) -> None:
    """The handshake of the Events API; no event is made of it."""
    webhook = await define(bus, "slack", {"verify": {"preset": "slack", "secret": "k"}})
    body = orjson.dumps({"type": "url_verification", "challenge": "3eZbrw1a"})
    async with receiving(bus) as receiver:
        signed = sign(webhook.verify, Keys(("k",)), body, now=datetime.now(UTC))
        answer = await post(receiver, "slack", body, **signed)
        assert (answer.status, answer.body) == (200, {"challenge": "3eZbrw1a"})
        assert (await post(receiver, "slack", body)).status == 401
    assert await stored(bus, "slack.>") == []


async def test_a_cloud_events_sender_is_let_in_by_the_handshake(bus: Bus) -> None:
    """OPTIONS with the origin is answered with permission and rate; then events come and repeats are known."""
    await define(
        bus,
        "ce",
        {"verify": {"preset": "cloudevents", "secret": "k", "allowed_origins": ["a.example"]}, "rate": "2/s"},
    )
    await define(bus, "open", {"verify": "none"})
    await define(bus, "any", {"verify": {"preset": "cloudevents", "secret": "k", "allowed_origins": ["*"]}})
    await define(bus, "github", {"verify": {"preset": "github", "secret": "k"}})
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/s", "ce_type": "a.b", "Authorization": "Bearer k"}  # fmt: skip
    async with receiving(bus) as receiver:
        # Where CloudEvents are read, whatever proves who sends them; a sender with a way of its own sends none.
        for name, expected in (("open", (200, "POST, OPTIONS")), ("any", (200, "POST, OPTIONS")), ("github", (405, "POST"))):  # fmt: skip
            asked = await post(receiver, name, method="OPTIONS", WebHook_Request_Origin="a.example")
            assert (asked.status, asked.headers["Allow"]) == expected
        hello = await post(receiver, "ce", method="OPTIONS", WebHook_Request_Origin="a.example")
        assert hello.status == 200
        assert hello.headers["WebHook-Allowed-Origin"] == "a.example"
        assert hello.headers["WebHook-Allowed-Rate"] == "120"
        assert (await post(receiver, "ce", method="OPTIONS", WebHook_Request_Origin="evil")).status == 401
        assert (await post(receiver, "ce", method="OPTIONS")).status == 405
        answer = await post(receiver, "ce", {"x": 1}, **headers)
        assert (answer.status, answer.body) == (202, {"id": "1"})
        assert (await post(receiver, "ce", {"x": 1}, **headers)).body == {"id": "1", "duplicate": True}
    (event,) = await stored(bus, "a.b")
    assert (event.source, event.data) == ("/s", {"x": 1})


async def test_get_is_taken_only_where_it_is_written(bus: Bus) -> None:
    """With GET the query is the message."""
    await define(bus, "open", {"verify": "none"})
    await define(
        bus, "ping", {"verify": "none", "methods": ["GET"], "event": {"type": "ping.{{ query.what }}"}}
    )
    async with receiving(bus) as receiver:
        answer = await post(receiver, "open", method="GET")
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert (await post(receiver, "ping", method="GET", query={"what": "door"})).status == 202
        assert (await post(receiver, "ping", method="POST")).status == 405
    assert [e.type for e in await stored(bus, "ping.>")] == ["ping.door"]


async def test_a_full_memory_of_deliveries_refuses_none(bus: Bus) -> None:
    """Recognising repeats for minutes only is better than losing what comes."""
    config = (await bus.connection.api("STREAM.INFO.KV_hark_deliveries"))["config"]
    assert isinstance(config, dict)
    await bus.connection.api("STREAM.UPDATE.KV_hark_deliveries", {**config, "max_msgs": 1})
    await define(bus, "github", GITHUB)
    async with receiving(bus) as receiver:
        for delivery in ("d-1", "d-2", "d-3"):
            assert (await post(receiver, "github", PUSH, **push(delivery))).status == 202


async def test_a_changed_definition_is_taken_up_at_once(bus: Bus) -> None:
    """New, changed, broken, gone: as soon as the bucket says so, without a restart."""
    async with receiving(bus) as receiver:
        assert (await post(receiver, "github", PUSH, **push())).status == 404
        first = await define(bus, "github", GITHUB)
        await knows(receiver, "github")
        assert (await post(receiver, "github", PUSH, **push())).status == 202
        paused = await define(bus, "github", {**GITHUB, "paused": True})
        await knows(receiver, "github", not_as=first)
        answer = await post(receiver, "github", PUSH, **push("d-2"))
        assert (answer.status, "Retry-After" in answer.headers) == (409, True)
        await define(bus, "github", {**GITHUB, "retired": True})
        await knows(receiver, "github", not_as=paused)
        assert (await post(receiver, "github", PUSH, **push("d-2"))).status == 410
        await bus.bucket("webhooks").put(
            "github", b'{"name": "github", "verify": {"preset": "github", "secret": 1}}'
        )
        with anyio.fail_after(60):
            while "github" not in receiver.broken:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        assert (await post(receiver, "github", PUSH, **push("d-2"))).status == 500


def run_event(story: str, state: str, *, parent: str | None = None, result: Any = None) -> Event:
    """What the engine says of a run (its own tests hold it to this shape)."""
    run_id = f"r-{state}-{parent}"
    return Event(
        type=f"flow-run.{state.lower()}",
        source="/hark/engine",
        subject=f"flow-run/{run_id}",
        correlationid=story,
        data={
            "run": {"id": run_id, "name": "brave-otter", "parent": parent},
            "state": {"type": state, "name": state.title(), "message": "m"},
            "result": {"inline": result, "format": "json"},
        },
    )


@pytest.mark.parametrize(("state", "status"), [("COMPLETED", 200), ("FAILED", 500)])
async def test_an_answer_can_wait_for_the_run_the_event_leads_to(bus: Bus, state: str, status: int) -> None:
    """The first run of the story that is nobody's child; others and their steps do not count."""
    await define(bus, "ask", {"verify": "none", "event": {"type": "ask.x"}, "wait_for_run": "30s"})
    answers: list[Answer] = []
    async with (
        receiving(bus) as receiver,
        bus.log.follow(["hark.ev.ask.x"]) as asked,
        anyio.create_task_group() as tg,
    ):

        async def ask() -> None:
            answers.append(await post(receiver, "ask", {"q": 1}))

        tg.start_soon(ask)
        story = ""
        async for batch in asked:
            if batch.records:
                story = batch.records[0].event.id
                break
        await bus.log.append(run_event("another", "FAILED"))
        await bus.log.append(run_event(story, "RUNNING"))
        await bus.log.append(run_event(story, "COMPLETED", parent="p", result="child"))
        await bus.log.append(run_event(story, state, result={"answer": 42}))
    (answer,) = answers
    assert answer.status == status
    assert answer.body["id"] == story
    assert answer.body["result"] == {"answer": 42}
    assert answer.body["state"] == {"type": state, "name": state.title(), "message": "m"}


async def test_an_answer_that_waited_in_vain_is_202(bus: Bus) -> None:
    """No run ended in time: the event is stored all the same, and a repeat does not wait."""
    await define(bus, "ask", {**GITHUB, "wait_for_run": "50ms"})
    async with receiving(bus) as receiver:
        first = await post(receiver, "ask", PUSH, **push())
        again = await post(receiver, "ask", PUSH, **push())
    assert (first.status, again.status) == (202, 202)
    assert again.body == {**first.body, "duplicate": True}


# --- rejecting -------------------------------------------------------------------------------------------------


async def test_what_is_wrong_gets_its_status_and_an_event_without_the_body(bus: Bus) -> None:
    """Bad signature, old timestamp, ten megabytes, broken JSON: 401, 401, 413, 400."""
    await define(bus, "github", GITHUB)
    stripe = await define(bus, "stripe", {"verify": {"preset": "stripe", "secret": "k"}})
    body = orjson.dumps({"type": "charge.succeeded", "id": "e", "card": "4242424242424242"})
    old = sign(stripe.verify, Keys(("k",)), body, now=datetime(2020, 1, 1, tzinfo=UTC))
    huge = b'"' + b"x" * (10 << 20) + b'"'
    async with receiving(bus) as receiver:
        answers = [
            await post(receiver, "github", PUSH, **push(secret="wrong")),
            await post(receiver, "stripe", body, **old),
            await post(receiver, "github", huge, **push(raw=huge)),
            await post(receiver, "github", b'{"card": 4242', **push(raw=b'{"card": 4242')),
        ]
    assert [a.status for a in answers] == [401, 401, 413, 400]
    assert all(a.headers["Content-Type"] == "application/problem+json" for a in answers)
    told = await rejected(bus)
    assert [(t["status"], t["reason"]) for t in told] == [
        (401, "signature-wrong"),
        (401, "timestamp-old"),
        (413, "too-large"),
        (400, "broken-json"),
    ]
    assert told[2]["size"] == len(huge)
    assert told[0]["remote"] == "203.0.113.7"
    raw = b"".join(e.to_json() for e in await stored(bus))
    assert b"4242" not in raw
    assert len(await stored(bus)) == 4


async def test_other_refusals_say_what_to_do(bus: Bus) -> None:
    """Kinds of body, templates that do not fit, events that cannot be written."""
    await define(bus, "open", {"verify": "none", "event": {"type": "x.{{ body.kind }}"}, "max_bytes": 20_000})
    await define(bus, "raw", {"verify": "none"})
    await define(bus, "basic", {"verify": {"preset": "basic", "user": "ann", "secret": "k"}})
    await define(bus, "std", {"verify": {"preset": "standard-webhooks", "secret": "no base64!"}})
    deep = b"[" * 600 + b"]" * 600
    async with receiving(bus, webhook_rejected_per_s=1000) as receiver:
        assert (await post(receiver, "open", b"x", Content_Type="image/png")).status == 415
        # What is wrong with a secret is for us to know, not for the sender.
        answer = await post(receiver, "std", {}, webhook_id="m1", webhook_timestamp="1")
        assert (answer.status, "base64" in str(answer.body)) == (500, False)
        [_, told] = await rejected(bus)
        assert (told["reason"], "base64" in told["detail"]) == ("secret-malformed", True)
        answer = await post(receiver, "open", {"other": 1})
        assert (answer.status, answer.body["reason"]) == (422, "template")
        assert "kind" in str(answer.body["detail"])
        assert (await post(receiver, "open", {"kind": "y", "deep": 1, "pad": "x" * 20_000})).status == 413
        assert (await post(receiver, "raw", deep)).status == 400
        answer = await post(receiver, "basic", {})
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="hark"')
        credentials = base64.b64encode(b"ann:k").decode()
        assert (await post(receiver, "basic", {}, Authorization=f"Basic {credentials}")).status == 202


async def test_an_event_larger_than_the_broker_takes_is_413(bus: Bus) -> None:
    """The body was small enough, the broker says no: the sender hears it, and nothing is stored."""
    await define(bus, "raw", {"verify": "none"})
    async with receiving(bus, webhook_max_bytes=4 << 20) as receiver:
        assert receiver.limit_of("raw") == 4 << 20
        assert receiver.limit_of("nobody") == 0
        assert (await post(receiver, "raw", b'"' + b"x" * (2 << 20) + b'"')).status == 413


async def test_over_the_rate_is_429_until_it_has_passed(bus: Bus) -> None:
    """Three in a minute; refused ones and badly signed ones use up nothing."""
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    await define(bus, "github", {**GITHUB, "rate": "3/m"})
    async with receiving(bus, clock=clock, webhook_rejected_per_s=1000) as receiver:
        for _ in range(10):
            assert (await post(receiver, "github", PUSH, **push(secret="wrong"))).status == 401
        assert [(await post(receiver, "github", PUSH, **push(str(n)))).status for n in range(5)] == [
            202
        ] * 3 + [429] * 2
        answer = await post(receiver, "github", PUSH, **push("9"))
        assert answer.headers["Retry-After"] == "20"
        await clock.advance(20)
        assert (await post(receiver, "github", PUSH, **push("9"))).status == 202
        assert (await post(receiver, "github", PUSH, **push("10"))).status == 429


async def test_a_flood_of_rejections_does_not_flood_the_log(bus: Bus) -> None:
    """A thousand forged requests: five events at first, one per second after, each saying how many were not told."""
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    await define(bus, "github", GITHUB)
    async with receiving(bus, clock=clock) as receiver:
        for _ in range(1000):
            assert (await post(receiver, "github", PUSH, **push(secret="wrong"))).status == 401
        await clock.advance(1)
        await post(receiver, "github", PUSH, **push(secret="wrong"))
        for n in range(100):  # names are as many as the attacker likes: they share one allowance
            assert (await post(receiver, f"nobody-{n}", PUSH)).status == 404
    told = await rejected(bus)
    assert [t["suppressed"] for t in told if t["webhook"]["name"] == "github"] == [0, 0, 0, 0, 0, 995]
    assert len([t for t in told if t["status"] == 404]) == 5


async def test_an_unreachable_log_is_503_and_the_retry_is_stored_once(
    broker: EmbeddedBroker, frozen: Callable[[], AbstractContextManager[None]]
) -> None:
    """Nothing is promised that is not stored; after the broker is back the same delivery is accepted."""
    async with Bus(broker.address, BusConfig(request_timeout_s=1.5)) as bus, receiving(bus) as receiver:
        await define(bus, "github", GITHUB)
        await knows(receiver, "github")
        assert (await post(receiver, "github", PUSH, **push("d-0"))).status == 202
        with frozen():
            answer = await post(receiver, "github", PUSH, **push())
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        with anyio.fail_after(60):
            while (await post(receiver, "github", PUSH, **push())).status != 202:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert len(await stored(bus, "github.>")) == 2


# --- anything at all ---------------------------------------------------------------------------------------------

names = st.sampled_from(
    [
        "github",
        "gitlab",
        "stripe",
        "slack",
        "shopify",
        "std",
        "ce",
        "hmac",
        "bearer",
        "basic",
        "open",
        "mapped",
    ]
)
header_names = st.sampled_from(
    ["Content-Type", "Content-Length", "Content-Encoding", "Authorization", "X-Hub-Signature-256", "X-GitHub-Event",
     "Stripe-Signature", "webhook-id", "webhook-timestamp", "webhook-signature", "ce-specversion", "ce-id", "ce-type",
     "ce-source", "ce-time", "ce-causaldepth", "X-Slack-Request-Timestamp", "WebHook-Request-Origin"]
) | st.text(max_size=20)  # fmt: skip
header_values = (
    st.text(max_size=50)
    | st.sampled_from(
        [
            "application/json",
            "application/cloudevents+json",
            "application/cloudevents-batch+json",
            "multipart/form-data; boundary=b",
            "1.0",
            "1e9",
        ]
    )
    | st.sampled_from(["application/x-www-form-urlencoded", "Bearer k", "\ud800", "9" * 400, "sha256="])
)
json_bodies = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "source", "event", "data", "payload", "specversion"]), inner, max_size=4),
    max_leaves=8,
).map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=str) if _writable(value) else b"{")  # fmt: skip


def _writable(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


class _NoBus:
    """Where the log would be: what is stored is checked to be an event and thrown away."""

    class captures:  # noqa: N801
        @staticmethod
        def keep_nowait(kind: str, value: bytes) -> bool:
            Captured.from_json(value, id="1")
            return True

    class info:  # noqa: N801
        message_ttl = False

    class log:  # noqa: N801
        @staticmethod
        async def append(event: Event) -> Any:
            Event.from_json(event.to_json())

            class Appended:
                seq, duplicate = 1, False

            return Appended

    class publisher:  # noqa: N801
        @staticmethod
        def publish_nowait(event: Event) -> None:
            Event.from_json(event.to_json())


def _all_kinds() -> dict[str, Webhook]:
    values: dict[str, dict[str, Any]] = {
        "open": {"verify": "none", "methods": ["POST", "GET", "PUT"]},
        "mapped": {
            "verify": "none",
            "event": {"type": "x.{{ body.type }}", "id": "{{ body.id }}", "data": "{{ body }}"},
        },
        "ce": {"verify": {"preset": "cloudevents", "secret": "k"}},
        "std": {"verify": {"preset": "standard-webhooks", "secret": "whsec_a2V5"}},
        "hmac": {"verify": {"preset": "hmac", "secret": "k", "header": "X-Sig"}},
        "basic": {"verify": {"preset": "basic", "secret": "k", "user": "u"}},
    }
    for name in ("github", "gitlab", "stripe", "slack", "shopify", "bearer"):
        values[name] = {"verify": {"preset": name, "secret": "k"}}
    return {name: Webhook.model_validate({"name": name, **value}) for name, value in values.items()}


KINDS = _all_kinds()


@given(
    name=names | st.text(max_size=20),
    method=st.sampled_from(["POST", "GET", "OPTIONS", "PUT"]) | st.text(max_size=8),
    headers=st.dictionaries(header_names, header_values, max_size=5),
    query=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    body=st.binary(max_size=100) | json_bodies,
    is_signed=st.booleans(),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_request_raises_and_every_answer_can_be_written(
    name: str, method: str, headers: dict[str, str], query: dict[str, str], body: bytes, is_signed: bool
) -> None:
    """Whatever comes over the wire, signed or not: an answer with a status of the table, as JSON."""
    import asyncio

    from hark.bus import Entry

    receiver = WebhookReceiver(_NoBus(), None, TriggersConfig(webhook_rejected_per_s=1e6))  # type: ignore[arg-type]
    for webhook in KINDS.values():
        raw = webhook.model_dump_json().encode()
        receiver._define(Entry(webhook.name, raw, 1, datetime.now(UTC)))
    if is_signed and name in KINDS:
        keys = Keys(("whsec_a2V5" if name == "std" else "k",), "u")
        headers = {**headers, **sign(KINDS[name].verify, keys, body, now=datetime.now(UTC))}
    answer = asyncio.run(
        receiver.receive(name, method=method, headers=headers, query=query, body=body, remote=None)
    )
    assert answer.status in {200, 202, 400, 401, 404, 405, 413, 415, 422, 429}, answer
    orjson.dumps(answer.body)
    for header, value in answer.headers.items():
        (header + value).encode("latin-1")


async def test_deliveries_come_together(bus: Bus) -> None:
    """Concurrent signed deliveries, deduplicated and stored, each once."""
    await define(bus, "github", {**GITHUB, "rate": "100000/s"})
    async with receiving(bus) as receiver, anyio.create_task_group() as tg:
        for n in range(300):
            tg.start_soon(lambda n=n: post(receiver, "github", PUSH, **push(str(n))))  # type: ignore[misc]
    assert len(await stored(bus, "github.>")) == 300


@pytest.mark.parametrize("rate", [0.5, 1, 3.7, 500])
def test_a_rate_in_requests_per_second_keeps_its_meaning(rate: float) -> None:
    """Also below one and with a fraction."""
    from hark.triggers.receiver import _per_second

    made = _per_second(rate)
    assert made.count / made.per_s == pytest.approx(rate)
