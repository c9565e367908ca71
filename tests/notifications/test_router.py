"""Alerts through the log, the routes, and out: on a real broker, to real receivers, with the hands of the clock turned."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import orjson
import pytest
from hark.automations.matching.language import WhereLanguage
from hark.bus import Bus, LateValues, SecretStore
from hark.bus.event import Event
from hark.clock import ManualClock
from hark.config import NotificationsConfig
from hark.errors import AccessDenied, UnknownName
from hark.notifications import AckLinks, Message, Notifier, Router, Severity, Silence, checkpoint, raise_alert
from hark.notifications import router as router_module
from hark.notifications.ack import acknowledge
from hark.notifications.checkpoint import read_state, wait_for_state

ROUTES = {
    "group_by": ["automation"],
    "group_wait": "10s",
    "group_interval": "5m",
    "repeat_interval": "4h",
    "routes": [
        {"match": {"data.tags": "prod"}, "to": "oncall", "escalate": [{"after": "15m", "to": "managers"}]},
        {"match": {"severity": "info"}, "to": "news"},
    ],
    "inhibit": [
        {"source": {"automation": "db-down"}, "target": {"data.tags": "needs-db"}, "equal": ["data.region"]}
    ],
}


class Desk:
    """A notifier and a router on one clock, and what a test does with them."""

    def __init__(self, bus: Bus, late: LateValues, config: NotificationsConfig, clock: ManualClock) -> None:
        self.bus, self.late, self.config, self.clock = bus, late, config, clock
        self.links = AckLinks(b"a key", base_url="http://hark.test")
        self.raised = 0
        self.router: Router | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Router]:
        # A machine that stands still for seconds costs a shorter lease, and with it what is known of it.
        async with (
            Notifier(self.bus, self.late, self.config, self.clock) as notifier,
            Router(
                self.bus,
                lambda: notifier,
                WhereLanguage(),
                self.clock,
                vault=self.late,
                links=self.links,
                lease_ttl_s=60,
                look_s=86_400,
            ) as router,
        ):
            self.router = router
            yield router

    async def routes(self, section: dict[str, Any]) -> None:
        await self.bus.bucket("notifications").put("routes", orjson.dumps(section))

    async def alert(self, title: str, *, key: str | None = None, resolved: bool = False, **more: Any) -> int:
        """Raise an alert of the rule ``automation`` and wait until the router has it."""
        self.raised += 1
        message = Message(title, more.pop("body", ""), more.pop("severity", Severity.ERROR))
        about: Any = {"type": "x", "data": {"tags": ["prod"], **more.pop("data", {})}}
        await raise_alert(
            self.bus, message, key=key or f"k{self.raised}", now=self.clock.now(), resolved=resolved, about=about,
            own={"automation": more.pop("automation", "etl"), "key": more.pop("of", title)}, **more,
        )  # fmt: skip
        return await self.folded()

    async def folded(self) -> int:
        """Wait until the router has everything in the log that is for it, and put it down."""
        last = 0
        for name in ("notification.raised", "notification.acknowledged", "automation.resolved"):
            record = await self.bus.log.last(f"hark.ev.{name}")
            last = max(last, record.seq if record else 0)
        await wait_for_state(self.bus, self.late, seq=last, timeout_s=60)
        return last

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)


def at(event: Event, word: str) -> Any:
    """Return what the data of an event say under a word."""
    assert isinstance(event.data, dict)
    return event.data.get(word)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def desk(bus: Bus, secrets: SecretStore, config: NotificationsConfig, clock: ManualClock) -> Desk:
    made = Desk(bus, LateValues(bus, secrets, environ={}), config, clock)
    await made.routes(ROUTES)
    return made


async def test_alerts_of_one_group_are_one_message(
    desk: Desk, define: Any, receiver: Any, events_of: Callable[..., Any]
) -> None:
    """Two alerts within group_wait come as one; a third after group_interval; the end of all is told; each is an event."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running():
        await desk.alert("orders late", body="no rows since six")
        await desk.alert("customers late")
        await desk.pass_time(9)
        assert receiver.requests == []
        await desk.pass_time(2)
        await receiver.wait_for(1)
        first = receiver.bodies[0]
        assert first["title"] == "2 open (automation etl)"
        assert first["message"].startswith("- orders late: no rows since six\n- customers late")
        assert "Acknowledge: http://hark.test/ack/" in first["message"]
        await desk.alert("stock late")
        await desk.pass_time(299)
        await receiver.wait_for(2)
        assert receiver.bodies[1]["title"] == "3 open (automation etl)"
        for title in ("orders late", "customers late", "stock late"):
            await desk.alert(title, resolved=True)
        await desk.pass_time(301)
        await receiver.wait_for(3)
        assert (receiver.bodies[2]["title"], receiver.bodies[2]["type"]) == (
            "3 recovered (automation etl)",
            "success",
        )
        assert "Acknowledge" not in receiver.bodies[2]["message"]
        await desk.pass_time(5 * 3600)
        assert len(receiver.requests) == 3
    types = [e.type for e in await events_of("notification.>")]
    assert types.count("notification.grouped") == 3
    assert types.count("notification.sent") == 3


async def test_a_template_that_places_the_link_shows_it_once(desk: Desk, define: Any, receiver: Any) -> None:
    """With `ack_url` in its template a channel's message has the link there and not below; without, below."""
    placed = "[take it]({{ ack_url }}) {{ body }}"
    await define("oncall", f"json://127.0.0.1:{receiver.port}/", body=placed)
    async with desk.running():
        await desk.alert("orders late", body="no rows since six")
        await desk.pass_time(11)
        await receiver.wait_for(1)
    message = receiver.bodies[0]["message"]
    assert message.startswith("[take it](http://hark.test/ack/")
    assert message.endswith("no rows since six")
    assert "Acknowledge" not in message


async def test_a_silence_holds_back_while_it_lasts(
    desk: Desk, define: Any, receiver: Any, events_of: Any
) -> None:
    """What a silence held back and is still open is told when it ends; news is dropped; both are said."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    now = desk.clock.now()
    silence = Silence(
        id="s1", match={"automation": "etl"}, starts_at=now, ends_at=now + timedelta(minutes=30)
    )
    async with desk.running():
        await desk.bus.bucket("silences").put("s1", silence.to_bytes())
        await desk.alert("orders late")
        await desk.alert("all well", severity=Severity.INFO)
        await desk.pass_time(11)
        await desk.pass_time(29 * 60)
        assert receiver.requests == []
        await desk.pass_time(60)
        await receiver.wait_for(1)
        assert receiver.bodies[0]["title"] == "orders late"
    said = [e for e in await events_of() if e.type == "notification.silenced"]
    assert {(e.data["title"], e.data["silence"], e.data["dropped"]) for e in said} == {
        ("orders late", "s1", False), ("all well", "s1", True),
    }  # fmt: skip


async def test_a_silence_that_is_ended_early_lets_go_at_once(desk: Desk, define: Any, receiver: Any) -> None:
    """Expiring or removing a silence takes effect without waiting for anything."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    now = desk.clock.now()
    silence = Silence(id="s1", match={"severity": "error"}, starts_at=now, ends_at=now + timedelta(days=1))
    async with desk.running():
        await desk.bus.bucket("silences").put("s1", silence.to_bytes())
        await desk.alert("orders late")
        await desk.pass_time(60)
        assert receiver.requests == []
        await desk.bus.bucket("silences").put(
            "s1", silence.model_copy(update={"ends_at": desk.clock.now()}).to_bytes()
        )
        await receiver.wait_for(1)


async def test_what_follows_from_a_cause_is_not_told(
    desk: Desk, define: Any, receiver: Any, events_of: Any
) -> None:
    """While the database of a region is down, what needs it there is held back, and told if it outlasts the cause."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running():
        await desk.alert("db down in eu", automation="db-down", data={"region": "eu"})
        await desk.alert("api slow", automation="api", data={"region": "eu", "tags": ["prod", "needs-db"]})
        await desk.alert(
            "api slow in us", automation="api", data={"region": "us", "tags": ["prod", "needs-db"]}
        )
        await desk.pass_time(11)
        await receiver.wait_for(2)
        assert sorted(b["title"] for b in receiver.bodies) == ["api slow in us", "db down in eu"]
        await desk.alert("db down in eu", automation="db-down", resolved=True)
        await desk.pass_time(301)
        await receiver.wait_for(4)
        assert {b["title"] for b in receiver.bodies[2:]} == {
            "2 open (automation api)",
            "Recovered: db down in eu",
        }
    [said] = [e for e in await events_of() if e.type == "notification.inhibited"]
    assert said.data["title"] == "api slow"


async def test_nobody_answers_so_somebody_else_is_told(
    desk: Desk, define: Any, receiver: Any, second_receiver: Any, events_of: Any
) -> None:
    """Escalation after a quarter of an hour, with a link; acknowledged by it, nothing more comes until something new does."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    await define("managers", f"json://127.0.0.1:{second_receiver.port}/")
    async with desk.running():
        await desk.alert("orders late")
        await desk.pass_time(11)
        await receiver.wait_for(1)
        await desk.pass_time(15 * 60 - 2)
        assert second_receiver.requests == []
        await desk.pass_time(2)
        await second_receiver.wait_for(1)
        body = second_receiver.bodies[0]
        assert body["title"] == "Not acknowledged for 15m: orders late"
        token = body["message"].rpartition("/ack/")[2].strip()
        ticket = desk.links.read(token, desk.clock.now())
        with pytest.raises(AccessDenied, match="not valid"):
            desk.links.read(token[:-2] + "xx", desk.clock.now())
        with pytest.raises(AccessDenied, match="week"):
            desk.links.read(token, desk.clock.now() + timedelta(days=8))
        await acknowledge(desk.bus, ticket.incident, by="ann", now=desk.clock.now(), stamp=ticket.stamp)
        await desk.folded()
        await desk.pass_time(9 * 3600)
        assert (len(receiver.requests), len(second_receiver.requests)) == (1, 1)
        # Something new: it is told, and the old link is used up.
        await desk.alert("stock late")
        await receiver.wait_for(2)
        await acknowledge(desk.bus, ticket.incident, by="ann", now=desk.clock.now(), stamp=ticket.stamp)
        await desk.folded()
        await desk.pass_time(15 * 60 + 1)
        await second_receiver.wait_for(2)
        await desk.alert("stock late", resolved=True)
        await second_receiver.wait_for(3)
        assert second_receiver.bodies[2]["title"] == "Recovered: stock late"
    assert [e.data["to"] for e in await events_of() if e.type == "notification.escalated"] == [
        ["managers"]
    ] * 2


async def test_a_rule_that_resolves_ends_its_alerts(desk: Desk, define: Any, receiver: Any) -> None:
    """``automation.resolved`` for a rule and key is the end of what they raised, without an action of their own."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running():
        await desk.alert("orders late", of="orders")
        await desk.alert("stock late", of="stock")
        await desk.pass_time(11)
        await receiver.wait_for(1)
        data: Any = {"automation": {"name": "etl", "version": "1"}, "key": "orders"}
        await desk.bus.log.append(
            Event(type="automation.resolved", source="/hark/automations", time=desk.clock.now(), data=data)
        )
        await desk.folded()
        await desk.pass_time(301)
        await receiver.wait_for(2)
        assert receiver.bodies[1]["title"] == "Recovered: orders late"


async def test_a_restart_loses_and_doubles_nothing(desk: Desk, define: Any, receiver: Any) -> None:
    """What waited is told by the next router, what was told is not told again, what fell due meanwhile comes once."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running():
        await desk.alert("orders late")
    async with desk.running():
        await desk.pass_time(11)
        await receiver.wait_for(1)
    # Raised while nobody was there, by one that could not know whether its first try had landed.
    for _ in range(2):
        await raise_alert(
            desk.bus, Message("stock late", "", Severity.ERROR), key="same", now=desk.clock.now(),
            about={"data": {"tags": ["prod"]}}, own={"automation": "etl", "key": "stock"},
        )  # fmt: skip
    await desk.pass_time(13 * 3600)  # three repeats and an escalation would have been due
    async with desk.running():
        await desk.folded()
        await receiver.wait_for(2)
        await desk.pass_time(301)
        titles = [b["title"] for b in receiver.bodies]
        assert titles == ["orders late", "2 open (automation etl)"]
        state = await read_state(desk.bus, desk.late)
        assert state is not None
        groups: Any = state.fold["groups"]
        assert [m["count"] for m in groups[0]["members"]] == [1, 1]


async def test_a_state_that_is_replaced_as_fast_as_it_is_read_is_read(
    desk: Desk, define: Any, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts go while somebody reads them, over and over; a part that is missing for good is still an error."""
    monkeypatch.setattr(checkpoint, "_INLINE_BYTES", 0)
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running():
        await desk.alert("orders late")
        await desk.pass_time(11)
        await receiver.wait_for(1)
        await desk.folded()
    bucket, get = desk.bus.bucket("checkpoints"), desk.bus.objects.get
    replaced = 0

    async def replaces(name: str) -> bytes:
        nonlocal replaced
        replaced += 1
        if replaced <= 12:
            head = await bucket.get(checkpoint.KEY)
            assert head is not None
            await bucket.put(checkpoint.KEY, head.value)
            raise UnknownName("object", name)
        return await get(name)

    async def lacks(name: str) -> bytes:
        raise UnknownName("object", name)

    monkeypatch.setattr(desk.bus.objects, "get", replaces)
    state = await read_state(desk.bus, desk.late)
    assert state is not None
    groups: Any = state.fold["groups"]
    assert [g["labels"] for g in groups] == [{"automation": "etl"}]
    assert replaced > 12
    monkeypatch.setattr(desk.bus.objects, "get", lacks)
    with pytest.raises(UnknownName):
        await read_state(desk.bus, desk.late)


async def test_what_people_said_while_nobody_was_there_counts_before_what_fell_due(
    desk: Desk, define: Any, receiver: Any, second_receiver: Any
) -> None:
    """Acknowledged, and a silence removed, while no router ran: no escalation, no repeat, and what was held back is told."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    await define("managers", f"json://127.0.0.1:{second_receiver.port}/")
    now = desk.clock.now()
    silence = Silence(id="s1", match={"automation": "quiet"}, starts_at=now, ends_at=now + timedelta(days=1))
    await desk.bus.bucket("silences").put("s1", silence.to_bytes())
    async with desk.running():
        await desk.alert("orders late")
        await desk.alert("held back", automation="quiet")
        await desk.pass_time(11)
        await receiver.wait_for(1)
        state = await read_state(desk.bus, desk.late)
        assert state is not None
        groups: Any = state.fold["groups"]
        incident = next(g["id"] for g in groups if g["labels"] == {"automation": "etl"})
    await acknowledge(desk.bus, incident, by="ann", now=desk.clock.now())
    await desk.bus.bucket("silences").delete("s1")
    await desk.pass_time(5 * 3600)
    async with desk.running():
        await receiver.wait_for(2)
        await desk.pass_time(10)
    assert [b["title"] for b in receiver.bodies] == ["orders late", "held back"]
    assert second_receiver.requests == []


async def test_a_message_on_its_way_goes_out_after_a_crash(desk: Desk, define: Any, receiver: Any) -> None:
    """A receiver that fails is tried again by the next router too, under the same key, until it takes the message once."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    receiver.answers = [500] * 9
    async with desk.running():
        await desk.alert("orders late")
        await desk.pass_time(11)
        await receiver.wait_for(1)
    receiver.answers = []
    before = len(receiver.requests)
    async with desk.running():
        await receiver.wait_for(before + 1)
    for _ in range(2):
        async with desk.running() as router:
            await desk.pass_time(60)
            assert router.status["pending"] == 0
    assert len(receiver.requests) == before + 1


async def test_messages_to_one_receiver_that_nobody_takes_are_bounded(
    desk: Desk, define: Any, receiver: Any, events_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound the oldest is given up and said to be; those to others, and the newest, go out."""
    monkeypatch.setattr(router_module, "MAX_WAITING", 2)
    await define("news", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running() as router:
        await desk.alert("some news", severity=Severity.INFO, data={"tags": []})
        for n in range(4):
            await desk.alert(f"late {n}", automation=f"rule-{n}")  # their channel is not there yet
            await desk.pass_time(11)
        await receiver.wait_for(1)
        failed = [e for e in await events_of("notification.failed") if at(e, "given_up")]
        assert [at(e, "title") for e in failed] == ["late 0", "late 1"]
        assert "more than 2 messages" in str(at(failed[0], "error"))
        assert router.status["pending"] == 2
        await define("oncall", f"json://127.0.0.1:{receiver.port}/")
        await desk.pass_time(600)
        await receiver.wait_for(3)
    assert sorted(b["title"] for b in receiver.bodies) == ["late 2", "late 3", "some news"]


async def test_stopping_lets_what_is_being_sent_arrive(
    desk: Desk, define: Any, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that is stopped while a receiver is still reading waits for it, and nobody is told twice."""
    # A machine that stands still for seconds is not what this is about: it costs what waits its time.
    monkeypatch.setattr(router_module, "_GRACE_S", 60.0)
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running():
        await desk.alert("orders late")
        await desk.pass_time(11)
    for _ in range(2):
        async with desk.running() as router:
            await desk.pass_time(60)
            assert router.status["pending"] == 0
    assert len(receiver.requests) == 1


async def test_a_channel_that_fails_holds_up_nobody_else(
    desk: Desk, define: Any, receiver: Any, second_receiver: Any, events_of: Any
) -> None:
    """A receiver that hangs or limits its rate delays its own messages, which are tried again; the others' go out."""
    await desk.routes(
        {"group_wait": "1s", "routes": [{"match": {"severity": "critical"}, "to": "bad"}], "to": "good"}
    )
    await define("bad", f"json://127.0.0.1:{receiver.port}/")
    await define("good", f"slack+http://127.0.0.1:{second_receiver.port}/services/T")
    receiver.answers, receiver.headers = [0, 429, 429], {"Retry-After": "2"}
    async with desk.running():
        await desk.alert("worse", severity=Severity.CRITICAL)
        await desk.alert("bad")
        await desk.pass_time(2)
        await second_receiver.wait_for(1)
        assert second_receiver.bodies[0]["text"].startswith("*bad*")
        with anyio.fail_after(60):
            while not any(
                e.type == "notification.sent" and e.data["channel"] == "bad" for e in await events_of()
            ):
                await desk.pass_time(1)
                await anyio.sleep(0.05)
        assert len(receiver.requests) == 4


async def test_routes_are_changed_while_they_are_in_use(
    desk: Desk, define: Any, receiver: Any, events_of: Any
) -> None:
    """A new section holds from then on: what waits goes where it says, what was told stays told; a wrong one is refused."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    await define("night", f"json://127.0.0.1:{receiver.port}/night")
    async with desk.running() as router:
        await desk.alert("orders late")
        await desk.pass_time(11)
        await receiver.wait_for(1)
        await desk.alert("stock late")
        await desk.routes(
            {"group_by": ["automation"], "to": "night", "group_interval": "1m", "group_wait": "1s"}
        )
        await desk.alert("mark")
        await desk.pass_time(61)
        await receiver.wait_for(2)
        assert receiver.requests[1][0] == "/night"
        assert "stock late" in receiver.bodies[1]["message"]
        await desk.routes({"to": "night", "group_by": ["no such path"]})
        await desk.alert("mark of the refused")
        assert "routes" in str(router.status["errors"])
        await desk.bus.bucket("notifications").delete("routes")
        await desk.alert("nobody is told")
    unrouted = [e for e in await events_of() if e.type == "notification.unrouted"]
    assert "nobody is told" in {e.data["title"] for e in unrouted}


async def test_one_leads_and_the_other_takes_over(desk: Desk, define: Any, receiver: Any) -> None:
    """Two routers send once; when the leader goes, the other goes on where it was."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/")
    async with desk.running() as first, desk.running() as second:
        assert (first.is_leader, second.is_leader) == (True, False)
        await desk.alert("orders late")
        await desk.pass_time(11)
        await receiver.wait_for(1)
    async with desk.running():
        await desk.pass_time(60)
    assert len(receiver.requests) == 1
