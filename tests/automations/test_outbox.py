"""The outbox on a real broker and a real HTTP receiver: each action once, retried, given up, taken up again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections import Counter
from typing import Any

import anyio
import orjson
import pytest
from hark.automations.acting import outbox, share
from hark.automations.acting.dead_letter import DeadLetters
from hark.automations.acting.outbox import DURABLE
from hark.automations.acting.perform import Firing
from hark.automations.folding.decision import TRIGGERED
from hark.bus import Event
from hark.bus.subject import PREFIX, STREAM
from hark.config import AutomationsConfig
from hark.engine.dispatching.deployment import Deployment
from hark.engine.runs.run import RunRequest
from hark.errors import RefusedError, UnknownName
from hark.vocabulary import FlowRunId, JsonObject

from .conftest import CONFIG, House, Receiver, at

OUTCOMES = ("action.executed", "action.failed", "action.dead-lettered", "action.skipped")


async def outcomes(house: House, count: int, *types: str) -> list[Any]:
    return await house.of_type(*(types or OUTCOMES), count=count)


async def test_a_call_carries_the_firing_a_key_and_a_signature(house: House, receiver: Receiver) -> None:
    """The body is what the rule says, signed as Standard Webhooks with a secret that nobody sees."""
    secret = "whsec_" + base64.b64encode(b"very secret key").decode()
    await house.secrets.set("hook", secret)
    async with house.all():
        await house.define(
            "tell", on="order.paid",
            do=[{"call": f"{receiver.url}/x?n={{{{ event.data.n }}}}", "secret": "{{ secrets.hook }}", "headers": {"X-Rule": "{{ automation.name }}"}, "body": {"n": "{{ event.data.n }}", "text": "n={{ event.data.n }}"}}],
        )  # fmt: skip
        await house.emit("order.paid", {"n": 42})
        (request,) = await receiver.wait(1)
        (done,) = await outcomes(house, 1)
        (decision,) = await house.of_type("automation.triggered")
    assert (request.method, request.path, request.json) == ("POST", "/x?n=42", {"n": 42, "text": "n=42"})
    assert request.headers["x-rule"] == "tell"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == request.headers["webhook-id"] == f"{decision.id}/0"
    signed = f"{decision.id}/0.{request.headers['webhook-timestamp']}.".encode() + request.body
    mac = base64.b64encode(hmac.new(b"very secret key", signed, hashlib.sha256).digest()).decode()
    assert request.headers["webhook-signature"] == f"v1,{mac}"
    assert done.type == "action.executed"
    assert (at(done, "automation"), at(done, "kind"), at(done, "result.status"), at(done, "attempt")) == (
        "tell",
        "call",
        200,
        1,
    )
    assert (at(done, "firing"), done.causationid) == (decision.id, decision.id)
    stored = b"".join([r.raw for r in await house.events()])
    assert b"very secret" not in stored
    assert secret.encode() not in stored


async def test_every_kind_of_action_does_its_work(house: House, receiver: Receiver) -> None:
    """run, emit, notify, call, pause and resume in one firing; each names its cause."""
    await house.control.put_deployment(Deployment(name="fix", flow="f.py:f"))
    async with house.all():
        await house.define(
            "all", on="order.paid", for_each="data.n",
            do=[
                {"run": "fix", "parameters": {"n": "{{ event.data.n }}"}, "tags": ["by-{{ key }}"]},
                {"emit": "order.seen", "subject": "order/{{ key }}", "data": {"n": "{{ event.data.n }}"}},
                {"notify": ["oncall", "managers"], "title": "order {{ key }}", "severity": "{{ {7: 'Success'}.get(event.data.n) }}"},
                {"call": receiver.url},
                {"pause": {"automation": "other"}},
                {"resume": {"deployment": "fix"}},
                {"pause": {"pool": "default"}},
                {"pause": {"queue": "default/low"}},
            ],
        )  # fmt: skip
        await house.define("other", on="x.y")
        await house.emit("order.paid", {"n": 7})
        done = await outcomes(house, 8)
        (decision,) = await house.of_type("automation.triggered")
        (seen,) = await house.of_type("order.seen")
        (scheduled,) = await house.of_type("flow-run.scheduled")
        (request,) = await receiver.wait(1)
        await house.until(lambda e: e.type == "automation.adopted" and at(e, "definition.paused") is True)
        pool = await house.control.pool("default")
    assert {e.type for e in done} == {"action.executed"}
    assert Counter(at(e, "kind") for e in done) == {
        "run": 1,
        "emit": 1,
        "notify": 1,
        "call": 1,
        "pause": 3,
        "resume": 1,
    }
    assert (seen.subject, seen.data, seen.causationid, seen.causaldepth) == (
        "order/7",
        {"n": 7},
        decision.id,
        1,
    )
    assert at(scheduled, "parameters") == {"n": 7}
    assert at(scheduled, "tags") == ["by-7"]
    assert at(scheduled, "cause") == {"event": decision.id, "kind": "automation", "name": "all"}
    assert scheduled.causaldepth == 1
    assert [(to, m.title, m.severity.value) for to, m, _ in house.people.told] == [
        ("oncall", "order 7", "success"), ("managers", "order 7", "success"),
    ]  # fmt: skip
    assert request.json["automation"] == "all"
    assert request.json["event"]["data"] == {"n": 7}
    assert (pool.paused, pool.queues["low"].paused) == (True, True)


async def test_an_action_with_a_delay_is_done_when_its_time_has_come(
    house: House, receiver: Receiver
) -> None:
    """Counted from the firing; the others of the firing do not wait for it, nor does it hold a place meanwhile."""
    async with house.all():
        await house.define("one", on="order.paid", do=[{"call": receiver.url, "delay": "400ms"}])
        await house.define(
            "two", on="order.paid", do=[{"emit": "order.late", "delay": "200ms"}, {"emit": "order.now"}]
        )
        await house.emit("order.paid", {"n": 7})
        done = sorted(await outcomes(house, 3), key=lambda e: (at(e, "automation"), at(e, "index")))
        decided = {
            at(d, "automation.name"): d.time for d in await house.of_type("automation.triggered", count=2)
        }
        await receiver.wait(1)
    assert [(at(e, "automation"), at(e, "index"), e.type, at(e, "attempt")) for e in done] == [
        ("one", 0, "action.executed", 1), ("two", 0, "action.executed", 1), ("two", 1, "action.executed", 1),
    ]  # fmt: skip
    waited = [(e.time - decided[at(e, "automation")]).total_seconds() for e in done]
    assert (waited[0] >= 0.4, waited[1] >= 0.2, waited[2] < waited[1]) == (True, True, True)


async def test_actions_on_runs_find_the_run_their_event_is_about(house: House) -> None:
    """`cancel: {}` cancels the run whose event matched."""
    await house.control.put_deployment(Deployment(name="fix", flow="f.py:f"))
    async with house.all():
        await house.define("stop", on="flow-run.scheduled", do=[{"cancel": {}}])
        run = await house.control.runs.request(
            RunRequest(
                flow_name="f", id=FlowRunId("r-1"), deployment="fix", entrypoint="f.py:f", pool="default"
            )
        )
        (done,) = await outcomes(house, 1)
        assert done.type == "action.executed", done.data
        found = await house.control.get(run.id)
    assert found is not None
    assert found.state_name == "Cancelled"
    assert "stop" in (found.state_message or "")


async def test_events_of_a_window_reach_the_template(house: House) -> None:
    """`events` are all the events the firing rests on, oldest first."""
    async with house.all():
        await house.define(
            "batch", on="doc.changed", count=3, within="1m",
            do=[{"emit": "docs.batch", "data": {"ids": "{{ events | map(attribute='data.id') | list }}", "n": "{{ count }}"}}],
        )  # fmt: skip
        for n in range(3):
            await house.emit("doc.changed", {"id": f"d{n}"})
        (batch,) = await house.of_type("docs.batch")
    assert batch.data == {"ids": ["d0", "d1", "d2"], "n": 3}


async def test_a_failed_call_is_tried_again_with_pauses_and_says_so(house: House, receiver: Receiver) -> None:
    """500, 503, then 200: two `action.failed` with the next try, one `action.executed`, one key throughout."""
    receiver.answers = [(500, ""), (503, "")]
    async with house.all():
        await house.define("tell", on="a.b", do=[{"call": receiver.url, "backoff": "50ms"}])
        await house.emit("a.b")
        done = await outcomes(house, 3)
    assert [e.type for e in done] == ["action.failed", "action.failed", "action.executed"]
    assert [at(e, "attempt") for e in done] == [1, 2, 3]
    assert "answered 500: ok" in at(done[0], "error")
    assert at(done[0], "next_at") is not None
    assert len({r.headers["idempotency-key"] for r in receiver.requests}) == 1
    assert len({e.id for e in done}) == 3


async def test_the_other_side_may_say_when(house: House, receiver: Receiver) -> None:
    """`Retry-After` is obeyed."""
    receiver.answers = [(429, "retry-after: 1\r\n")]
    async with house.all():
        await house.define("tell", on="a.b", do=[{"call": receiver.url, "backoff": "10ms"}])
        began = time.monotonic()
        await house.emit("a.b")
        await receiver.wait(2)
        assert time.monotonic() - began > 0.9


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"call": "{{ event.data.url }}/gone"}, "answered 410"),
        ({"call": "{{ event.data.url }}/moved"}, "redirects are not followed"),
        ({"call": "{{ event.data.nothing }}"}, "nothing"),
        ({"call": "nonsense{{ 1 }}"}, "not a URL"),
        ({"run": "missing"}, "no deployment named 'missing'"),
        ({"notify": "oncal"}, "did you mean 'oncall'"),
        ({"pause": {"automation": "nobody"}}, "no automation named 'nobody'"),
        ({"cancel": {}}, "not about a flow run"),
        ({"emit": "{{ 'Not a Type' }}"}, "lower-case dotted words"),
        ({"emit": "{{ 'flow-run' }}.failed"}, "Hark's own"),
        ({"notify": "oncall", "title": "{{ secrets.absent }}"}, "absent"),
    ],
    ids=str,
)
async def test_what_trying_again_cannot_help_is_given_up_at_once(
    house: House, receiver: Receiver, action: dict[str, Any], words: str
) -> None:
    """Definitions that are wrong go to the dead letters without pointless retries, saying what to do."""
    receiver.answers = [(410 if "gone" in str(action) else 302, "")]
    async with house.all():
        await house.define("tell", on="a.b", do=[action])
        await house.emit("a.b", {"url": receiver.url})
        failed, dead = await outcomes(house, 2)
    assert (failed.type, dead.type) == ("action.failed", "action.dead-lettered")
    assert words in at(dead, "error")
    assert at(dead, "attempt") == 1


async def test_after_the_last_try_it_is_a_dead_letter_that_can_be_redriven_or_dropped(
    house: House, receiver: Receiver
) -> None:
    """Redriving executes it once more under the same key; asking twice is asking once; dropping ends it."""
    receiver.answers = [(500, "")] * 4
    letters = DeadLetters(house.bus)
    async with house.all(AutomationsConfig(allow_private_addresses=True, action_retries=1)):
        await house.define(
            "tell", on="a.b", do=[{"call": f"{receiver.url}/{{{{ event.data.n }}}}", "backoff": "10ms"}]
        )
        await house.emit("a.b", {"n": 1})
        await house.of_type("action.dead-lettered")
        await house.emit("a.b", {"n": 2})
        await house.of_type("action.dead-lettered", count=2)
        first, second = await letters.list()
        assert (first.automation, first.kind, first.attempt) == ("tell", "call", 2)
        assert "answered 500" in first.error
        seq = await letters.redrive(first.key)
        assert await letters.redrive(first.key) == seq
        (done,) = await house.of_type("action.executed")
        assert at(done, "key") == first.key
        assert at(done, "round") == 1
        await letters.drop(second.key)
        assert await letters.list() == []
        with pytest.raises(RefusedError, match="done"):
            await letters.redrive(first.key)
        with pytest.raises(UnknownName):
            await letters.redrive("nothing/0")
        # Of many each is seen to by itself, and one that cannot be does not keep the others.
        left = await letters.redrive_each([first.key, second.key])
        assert [(one.seq, type(one.error)) for one in left] == [(None, RefusedError)] * 2
        with pytest.raises(UnknownName):
            await letters.drop("not a key")
        assert [e.event.type for e in await house.events("action.redriven", "action.dropped")] == [
            "action.redriven",
            "action.dropped",
        ]
    assert [r.path for r in receiver.requests] == ["/1", "/1", "/2", "/2", "/1"]
    keys = [r.headers["idempotency-key"] for r in receiver.requests]
    assert keys[0] == keys[4] == first.key


async def test_a_decision_nobody_can_read_is_a_dead_letter_that_can_be_dropped(house: House) -> None:
    """Of those that parse and make no sense, and of what is no event: both are listed, not redriven, and gone once dropped."""
    letters = DeadLetters(house.bus)
    async with house.outbox():
        strange = Event(
            type=TRIGGERED, source="x", id="no key.", data={"automation": "tell", "actions": "all"}
        )
        await house.bus.log.append(strange)
        await house.of_type("action.dead-lettered")
        await house.bus.connection.nc.publish(PREFIX + TRIGGERED, b"{")  # nor can tests read it
        with anyio.fail_after(60):
            while len(found := await letters.list()) < 2:
                await anyio.lowlevel.checkpoint()
        assert [(one.automation, one.kind) for one in found] == [("tell", "unknown"), ("", "unknown")]
        left = await letters.redrive_each([one.key for one in found])
        assert all("cannot be read, so there is no action to try again" in str(one.error) for one in left)
        dropped = [await house.bus.log.get(await letters.drop(one.key)) for one in found]
        assert await letters.list() == []
        assert [(d.event.type, at(d.event, "key")) for d in dropped if d is not None] == [
            ("action.dropped", one.key) for one in found
        ]


async def test_a_dead_letter_can_die_and_be_redriven_again(house: House, receiver: Receiver) -> None:
    """Each round has its own retries and its own events."""
    receiver.answers = [(500, "")] * 6
    letters = DeadLetters(house.bus)
    async with house.all():
        await house.define("tell", on="a.b", do=[{"call": receiver.url, "retries": 0}])
        await house.emit("a.b")
        await house.emit("a.b")
        for n in (2, 4, 6):
            await house.of_type("action.dead-lettered", count=n)
            keys = [letter.key for letter in await letters.list()]
            # Asked for twice at once, as two people may: each is tried once.
            once, again = await letters.redrive_each(keys), await letters.redrive_each([*keys, *keys])
            assert [one.key for one in again] == [*keys, *keys]
            assert all(one.seq is not None for one in once)
        await house.of_type("action.executed", count=2)
    assert len(receiver.requests) == 8


async def test_a_condition_on_an_action_is_asked_when_it_is_done(house: House) -> None:
    """`if` in an action: only where it holds; the other is recorded as skipped."""
    async with house.all():
        await house.define(
            "tell",
            on="a.b",
            do=[{"emit": "yes.sir", "if": "event.data.n > 1"}, {"emit": "no.sir", "if": "count > 5"}],
        )
        await house.emit("a.b", {"n": 2})
        done = await outcomes(house, 2)
    assert Counter((e.type, at(e, "index")) for e in done) == {
        ("action.executed", 0): 1,
        ("action.skipped", 1): 1,
    }


async def test_private_addresses_are_refused_unless_allowed(house: House, receiver: Receiver) -> None:
    """Loopback by number, by name, and hidden in IPv6: nothing is sent."""
    urls = [
        receiver.url,
        f"http://localhost:{receiver.port}/",
        f"http://[::ffff:127.0.0.1]:{receiver.port}/",
        "http://169.254.169.254/latest",
    ]
    async with house.all(AutomationsConfig()):
        for n, url in enumerate(urls):
            await house.define(f"r{n}", on="a.b", do=[{"call": url}])
        await house.emit("a.b")
        dead = await house.of_type("action.dead-lettered", count=4)
    assert all("not a public address" in at(e, "error") for e in dead)
    assert all("ALLOW_PRIVATE_ADDRESSES" in at(e, "error") for e in dead)
    assert receiver.requests == []


async def test_one_that_hangs_does_not_hold_up_the_others_and_times_out(
    house: House, receiver: Receiver
) -> None:
    """While one call waits for its answer, other rules act; one that is never answered ends at its timeout as a failure."""
    receiver.answers = [(-2, ""), (-1, "")]
    async with house.all(AutomationsConfig(allow_private_addresses=True, action_concurrency=2)):
        await house.define("waits", on="a.b", do=[{"call": f"{receiver.url}/waits", "timeout": "10m"}])
        await house.define("hangs", on="b.c", do=[{"call": receiver.url, "timeout": "400ms", "retries": 0}])
        await house.define("quick", on="c.d", do=[{"emit": "done.it"}])
        await house.emit("a.b")
        await receiver.wait(1)
        for _ in range(5):
            await house.emit("c.d")
        await house.of_type("done.it", count=5)
        await house.emit("b.c")
        (dead,) = await house.of_type("action.dead-lettered")
        receiver.go.set()
        done = await house.of_type("action.executed", count=6)
    assert at(dead, "automation") == "hangs"
    assert Counter(at(one, "automation") for one in done) == {"quick": 5, "waits": 1}
    assert (
        "not done within 0.4 s" in at(dead, "error")
        or "no answer in time" in at(dead, "error")
        or "too long" in at(dead, "error")
    )


async def test_a_rule_with_more_to_do_than_is_kept_in_hand_lets_others_act(
    house: House, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the target of one hangs, what it has to do waits with the broker, and each is done once it answers again."""
    monkeypatch.setattr(outbox, "MAX_IN_HAND", 2)
    monkeypatch.setattr(share, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(share, "_LONGEST_PUT_OFF_S", 0.2)
    receiver.answers = [(-2, "")]
    async with house.all(AutomationsConfig(allow_private_addresses=True, action_concurrency=2)):
        await house.define("hangs", on="a.b", do=[{"call": receiver.url}])
        await house.define("quick", on="c.d", do=[{"emit": "done.it"}])
        for _ in range(9):
            await house.emit("a.b")
        await receiver.wait(1)
        await house.emit("c.d")
        await house.of_type("done.it")
        assert len(receiver.requests) == 1
        receiver.go.set()
        done = await house.of_type("action.executed", count=10)
    assert Counter(at(one, "automation") for one in done) == {"hangs": 9, "quick": 1}
    assert len({r.headers["idempotency-key"] for r in receiver.requests}) == len(receiver.requests) == 9


async def test_a_notifier_that_fails_is_tried_again_with_the_same_key(house: House) -> None:
    """The notifier can tell by the key whom it has reached."""
    house.people.failing = 1
    async with house.all():
        await house.define("tell", on="a.b", do=[{"notify": "oncall", "backoff": "10ms"}])
        await house.emit("a.b")
        failed, done = await outcomes(house, 2)
    assert (failed.type, done.type) == ("action.failed", "action.executed")
    assert [key for _, _, key in house.people.told] == [at(done, "key")]


class Slow:
    """Does actions slowly, and remembers which were begun and which ended."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.begun_one = anyio.Event()
        self.may_end = anyio.Event()

    async def perform(self, action: object, firing: Firing, *, key: str) -> JsonObject:
        self.begun.append(key)
        self.begun_one.set()
        await self.may_end.wait()
        self.ended.append(key)
        return {}

    async def context(self, firing: Firing, action: object) -> dict[str, Any]:
        return {}

    def redact(self, text: str) -> str:
        return text


async def test_an_action_interrupted_by_a_crash_is_done_by_whoever_comes_next(house: House) -> None:
    """Claimed and not finished: taken over under the same key, as the same try: a stop costs none."""
    from hark.automations.acting.outbox import Outbox

    slow = Slow()
    async with house.engine():
        await house.define("tell", on="a.b", do=[{"emit": "c.d"}])
        scope = anyio.CancelScope()

        async def dies() -> None:
            with scope:
                async with Outbox(house.bus, slow, CONFIG, ack_wait_s=1):
                    await anyio.sleep_forever()

        async with anyio.create_task_group() as tg:
            tg.start_soon(dies)
            await house.define("other", on="x.y")
            await house.emit("a.b")
            await slow.begun_one.wait()
            async with house.outbox(ack_wait_s=1):
                # The first one is stopped in the middle of its action and given no time to end it.
                scope.cancel()
                (done,) = await house.of_type("action.executed")
    assert slow.ended == []
    assert at(done, "key") == slow.begun[0]
    assert at(done, "attempt") == 1
    assert len(await house.events("c.d")) == 1


async def test_a_decision_that_comes_again_while_it_is_in_hand_is_not_handed_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outbox too slow to say that it has one gets it again; giving that back would bring it again without end."""
    from hark.automations.acting.outbox import Outbox
    from hark.bus.consumer import Item

    slow, came, handed_back = Slow(), 0, list[int]()
    again = anyio.Event()
    make, nak = Item.__init__, Item.nak

    def count(self: Item, *args: Any) -> None:
        nonlocal came
        make(self, *args)
        came += 1
        if came == 3:
            again.set()

    async def note(self: Item, delay_s: float = 0.0) -> None:
        handed_back.append(self.recorded.seq)
        await nak(self, delay_s)

    monkeypatch.setattr(Item, "__init__", count)
    monkeypatch.setattr(Item, "nak", note)
    monkeypatch.setattr(Outbox, "_keep_alive", lambda self: anyio.sleep_forever())
    async with house.engine(), Outbox(house.bus, slow, CONFIG, ack_wait_s=0.2) as outbox:
        await house.define("tell", on="a.b", do=[{"emit": "c.d"}])
        await house.emit("a.b")
        await again.wait()
        assert outbox.in_hand == 1
        slow.may_end.set()
        (done,) = await house.of_type("action.executed")
    assert (slow.begun, slow.ended, handed_back) == ([at(done, "key")], [at(done, "key")], [])


async def test_a_decision_stored_before_the_crash_is_acted_on_after_it(
    house: House, receiver: Receiver
) -> None:
    """Between decision and action everything dies: the action happens, once."""
    async with house.all():
        await house.define("tell", on="a.b", do=[{"call": receiver.url}])
    async with house.engine():
        for _ in range(5):
            await house.emit("a.b")
        await house.of_type("automation.triggered", count=5)
    assert receiver.requests == []
    async with house.outbox(), house.outbox():
        await outcomes(house, 5)
    async with house.outbox():
        await house.emit("x.y")
    assert len(receiver.requests) == 5
    assert len({r.headers["idempotency-key"] for r in receiver.requests}) == 5


async def test_an_action_done_but_not_noted_is_not_done_again(house: House, receiver: Receiver) -> None:
    """The log says it was executed and the claim does not: the log is believed."""
    async with house.all():
        await house.define("tell", on="a.b", do=[{"call": receiver.url}])
        await house.emit("a.b")
        (done,) = await outcomes(house, 1)
        (decision,) = await house.events("automation.triggered")
    bucket, key = house.bus.bucket("outbox"), at(done, "key")
    entry = await bucket.get(key)
    assert entry is not None
    claimed = {**orjson.loads(entry.value), "state": "claimed", "outcome": None, "by": "a dead one"}
    await bucket.put(key, orjson.dumps(claimed))
    # The decision comes again, under another id for the broker's memory.
    await house.bus.publisher.publish_raw(decision.subject, decision.raw, "again")
    await house.bus.publisher.barrier()
    async with house.all():
        await house.define("other", on="c.d", do=[{"call": receiver.url + "/other"}])
        await house.emit("c.d")
        await receiver.wait(2)
    assert [r.path for r in receiver.requests] == ["/", "/other"]


async def test_many_actions_each_happen_once_with_two_outboxes(house: House, receiver: Receiver) -> None:
    """Three hundred firings, two outboxes, some failures: three hundred keys executed once each."""
    receiver.answers = [(500, "")] * 20
    async with house.all(), house.outbox():
        await house.define(
            "tell", on="a.b", budget="100000/m", do=[{"call": receiver.url, "backoff": "20ms"}]
        )
        async with anyio.create_task_group() as tg:
            for n in range(300):
                tg.start_soon(house.emit, "a.b", {"n": n})
        done = await house.of_type("action.executed", count=300)
    assert len({at(e, "key") for e in done}) == 300
    assert len(receiver.requests) == 320


async def test_a_shadow_rule_acts_on_nothing(house: House) -> None:
    """Its firing is in the log and no action follows."""
    async with house.all():
        await house.define("shy", on="a.b", mode="shadow", do=[{"emit": "c.d"}])
        await house.define("bold", on="a.b", do=[{"emit": "e.f"}])
        await house.emit("a.b")
        await house.of_type("action.executed")
        shadows = [e.event for e in await house.events("automation.triggered") if at(e.event, "shadow")]
    assert len(shadows) == 1
    assert len(await house.events("c.d")) == 0


async def test_a_hostile_template_fails_its_own_action_only(house: House) -> None:
    """What a template may not do ends as a dead letter, and the next rule works."""
    async with house.all():
        await house.define(
            "bad",
            on="a.b",
            do=[
                {"emit": "c.d", "data": {"x": "{{ 'a' * 10000000 }}"}},
                {"emit": "c.e", "data": {"x": "{{ event.__class__ }}"}},
            ],
        )
        await house.define("good", on="a.b", do=[{"emit": "e.f"}])
        await house.emit("a.b")
        await house.of_type("e.f")
        dead = await house.of_type("action.dead-lettered", count=2)
    assert all("template" in at(e, "error") for e in dead)


async def consumer_state(house: House) -> Any:
    return await house.bus.log._connection.api(f"CONSUMER.INFO.{STREAM}.{DURABLE}")


async def test_a_rule_that_only_watches_keeps_no_place(house: House) -> None:
    """Its decisions are done with as they come; one that acts is not taken for such by what its event holds."""
    async with house.all():
        await house.define("watch", on="order.paid")
        await house.define("act", on="order.paid", do=[{"emit": "order.seen"}])
        await house.emit("order.paid", {"actions": []})
        (done,) = await outcomes(house, 1)
        # Of this one nothing is left with the broker, so that it never comes again.
        with anyio.fail_after(60):
            while (state := await consumer_state(house))["num_ack_pending"] or state["num_pending"]:
                await anyio.lowlevel.checkpoint()
    assert at(done, "automation") == "act"
