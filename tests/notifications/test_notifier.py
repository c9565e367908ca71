"""Telling people for real: over HTTP and SMTP, with receivers that fail, hang and refuse, and never twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from cryptography.fernet import Fernet
from hark.bus import Bus, LateValues, SecretStore
from hark.bus.event import Event
from hark.clock import ManualClock
from hark.config import NotificationsConfig
from hark.errors import LimitError, NotificationFailed, UnknownName
from hark.notifications import Message, Notifier, Severity

TOKEN = "s3cr3tT0K3Nabc"
HELLO = Message("Flow etl failed", "3 times in ten minutes", Severity.ERROR)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again, a minute at most: the broker tells nobody when a held message is forgotten."""
    with anyio.fail_after(60):
        while not await is_so():  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def nothing_held(notifier: Notifier, channel: str) -> None:
    async def is_so() -> bool:
        return not await notifier._held.any(channel)

    await until(is_so)


async def test_a_message_reaches_every_address_of_a_channel(
    notifier: Notifier, define: Any, receiver: Any, mailbox: Any, events_of: Callable[..., Any]
) -> None:
    """HTTP, Slack-shaped JSON and mail from one channel; each delivery is an event that ties back to its cause."""
    await define(
        "oncall",
        f"json://127.0.0.1:{receiver.port}/{TOKEN}",
        f"slack+http://127.0.0.1:{receiver.port}/services/T0/B0/{TOKEN}?username=hark",
        f"mailto://bob:p4ssw0rd!@127.0.0.1:{mailbox.port}?from=hark@example.com&to=oncall@example.com",
    )
    cause = Event(type="automation.triggered", source="/x", correlationid="story-1", causaldepth=2)
    deliveries = await notifier.send("oncall", HELLO, key="k1", cause=cause)
    assert [(d.kind, d.outcome, d.attempts) for d in deliveries] == [
        ("json", "sent", 1), ("slack+http", "sent", 1), ("mailto", "sent", 1),
    ]  # fmt: skip
    by_path = dict(receiver.requests)
    assert by_path[f"/{TOKEN}"]["title"] == HELLO.title
    assert by_path[f"/{TOKEN}"]["type"] == "failure"
    slack = by_path[f"/services/T0/B0/{TOKEN}"]
    assert slack["text"] == "*Flow etl failed*\n3 times in ten minutes"
    assert slack["username"] == "hark"
    [mail] = mailbox.mails
    assert mail["Subject"] == HELLO.title
    assert mailbox.recipients == [["oncall@example.com"]]
    assert "3 times in ten minutes" in mail.get_body(("plain", "html")).get_content()
    events = await events_of()
    assert {(e.type, e.data["channel"], e.data["kind"]) for e in events} == {
        ("notification.sent", "oncall", kind) for kind in ("json", "slack+http", "mailto")
    }
    assert {(e.correlationid, e.causationid, e.causaldepth) for e in events} == {("story-1", cause.id, 3)}
    assert all(e.data["duration_s"] > 0 and e.data["attempt"] == 1 for e in events)
    assert TOKEN not in "".join(e.to_json().decode() for e in events)


async def test_mail_goes_out_encrypted_where_it_should(notifier: Notifier, tls_mailbox: Any) -> None:
    """STARTTLS and a login against a real server; a certificate nobody trusts is refused unless told otherwise."""
    url = f"mailtos://bob:p4ssw0rd!@127.0.0.1:{tls_mailbox.port}?from=a@example.com&to=b@example.com&mode=starttls"
    [delivery] = await notifier.send(url + "&verify=no", HELLO, key="k")
    assert (delivery.channel, delivery.kind, delivery.outcome) == (None, "mailtos", "sent")
    assert tls_mailbox.was_tls == [True]
    with pytest.raises(NotificationFailed, match="certificate"):
        await notifier.send(url, HELLO, key="k2")
    assert len(tls_mailbox.mails) == 1


async def test_the_same_key_is_not_sent_twice(
    notifier: Notifier,
    define: Any,
    receiver: Any,
    events_of: Any,
    bus: Bus,
    secrets: SecretStore,
    config: NotificationsConfig,
) -> None:
    """A redelivered action, at once or later, here or in another process, does not send again."""
    await define("a", f"json://127.0.0.1:{receiver.port}")
    outcomes: list[str] = []

    async def send() -> None:
        outcomes.extend(d.outcome for d in await notifier.send("a", HELLO, key="k"))

    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(send)
    assert sorted(outcomes) == ["already-sent"] * 4 + ["sent"]
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as other:
        assert [d.outcome for d in await other.send("a", HELLO, key="k")] == ["already-sent"]
        assert [d.outcome for d in await other.send("a", HELLO, key="k2")] == ["sent"]
    assert len(receiver.requests) == 2
    assert len(await events_of()) == 2


async def test_only_the_address_that_failed_is_tried_again(
    notifier: Notifier, define: Any, receiver: Any, second_receiver: Any, events_of: Any
) -> None:
    """One address takes it at once, the other at the third try; after a final failure a new call tries only that one."""
    await define("a", f"json://127.0.0.1:{receiver.port}", f"json://127.0.0.1:{second_receiver.port}")
    second_receiver.answers = [500, 503]
    deliveries = await notifier.send("a", HELLO, key="k")
    assert [d.attempts for d in deliveries] == [1, 3]
    assert (len(receiver.requests), len(second_receiver.requests)) == (1, 3)

    second_receiver.answers = [500] * 3
    with pytest.raises(
        NotificationFailed, match=r"1 of 2 addresses failed \(1 took it\): json: .*error=500"
    ) as failed:
        await notifier.send("a", HELLO, key="k2")
    assert failed.value.failures[0][0] == "json"
    assert "hark channels test a" in failed.value.hint
    assert [d.outcome for d in await notifier.send("a", HELLO, key="k2")] == ["already-sent", "sent"]
    assert (len(receiver.requests), len(second_receiver.requests)) == (2, 7)
    [failure] = [e for e in await events_of() if e.type == "notification.failed"]
    assert (failure.data["address"], failure.data["attempt"]) == (1, 3)
    assert "500" in failure.data["error"]


async def test_of_a_mail_only_the_refused_recipients_are_tried_again(
    notifier: Notifier, mailbox: Any
) -> None:
    """Inside one address, too, who has the mail does not get it again."""
    mailbox.refuse = {"gone@example.com"}
    url = f"mailto://bob:p4ssw0rd!@127.0.0.1:{mailbox.port}?from=a@example.com&to=b@example.com,gone@example.com"
    with pytest.raises(NotificationFailed, match="no such mailbox") as failed:
        await notifier.send(url, HELLO, key="k")
    assert mailbox.recipients == [["b@example.com"]]
    assert "gone@" not in str(failed.value)


async def test_a_wrong_password_says_so_without_showing_it(notifier: Notifier, mailbox: Any) -> None:
    """The reason comes through, the password and the address do not."""
    url = f"mailto://bob:{TOKEN}@127.0.0.1:{mailbox.port}?from=a@example.com&to=b@example.com"
    with pytest.raises(NotificationFailed, match="uthentication") as failed:
        await notifier.send(url, HELLO, key="k")
    assert TOKEN not in f"{failed.value} {failed.value!r}"
    assert "b@example.com" not in str(failed.value)


async def test_a_hanging_receiver_holds_up_nobody(
    bus: Bus, secrets: SecretStore, define: Any, receiver: Any, second_receiver: Any
) -> None:
    """Within its time the hanging address has failed; the other one has long been told, and the loop never waited."""
    config = NotificationsConfig(send_timeout_s=3, retries=0)
    receiver.answers = [0]
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as notifier:
        await notifier.test_channel(f"json://127.0.0.1:{second_receiver.port}")  # Apprise is loaded
        await define("a", f"json://127.0.0.1:{receiver.port}", f"json://127.0.0.1:{second_receiver.port}")
        turns = 0

        async def watch_the_loop() -> None:
            nonlocal turns
            while True:
                await anyio.sleep(0.01)
                turns += 1

        async with anyio.create_task_group() as tg:
            tg.start_soon(watch_the_loop)
            with pytest.raises(NotificationFailed, match=r"timed out|no answer") as failed:
                await notifier.send("a", HELLO, key="k")
            tg.cancel_scope.cancel()
        assert turns >= 3, "the loop waited for the address that hangs"
    assert failed.value.sent == 1
    assert len(second_receiver.requests) == 2


async def test_a_dribbling_receiver_is_left_behind(bus: Bus, secrets: SecretStore, receiver: Any) -> None:
    """One that sends a byte now and then defeats socket timeouts, not our deadline; its thread is left to itself."""
    receiver.dribble, receiver.answers = True, [0]
    config = NotificationsConfig(send_timeout_s=2, retries=0)
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as notifier:
        await notifier.test_channel(f"json://127.0.0.1:{receiver.port}1")
        [delivery] = await notifier.test_channel(f"json://127.0.0.1:{receiver.port}")
        assert delivery.reason == "no answer within 2 s"
        assert notifier._threads.left == 1
        receiver._closing.set()

        async def nobody_left() -> bool:
            return notifier._threads.left == 0

        await until(nobody_left)


async def test_what_a_receiver_asks_for_is_heeded(bus: Bus, secrets: SecretStore, receiver: Any) -> None:
    """A 429 with Retry-After is tried again after that long, not earlier."""
    receiver.answers, receiver.headers = [429], {"Retry-After": "1"}
    config = NotificationsConfig(send_timeout_s=5, retries=1, backoff_s=0.01)
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as notifier:
        began = time.monotonic()
        [delivery] = await notifier.send(f"slack+http://127.0.0.1:{receiver.port}/x", HELLO, key="k")
        assert delivery.attempts == 2
        assert time.monotonic() - began >= 1


async def test_tries_end_when_the_action_behind_them_would(
    bus: Bus, secrets: SecretStore, receiver: Any, second_receiver: Any
) -> None:
    """All tries together stay within ``give_up_s``, so that the sender hears why instead of being cut off."""
    receiver.answers, receiver.headers = [429] * 9, {"Retry-After": "600"}
    config = NotificationsConfig(send_timeout_s=5, retries=9, give_up_s=4.0)
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as notifier:
        with pytest.raises(NotificationFailed, match="answered 429"):
            await notifier.send(f"slack+http://127.0.0.1:{receiver.port}/x", HELLO, key="k")
        second_receiver.answers = [0]
        with pytest.raises(NotificationFailed, match=r"no answer within|timed out"):
            await notifier.send(f"json://127.0.0.1:{second_receiver.port}/x", HELLO, key="k2")
    assert len(receiver.requests) == 1


async def test_over_the_rate_messages_come_as_one_summary(
    bus: Bus, late: LateValues, config: NotificationsConfig, define: Any, receiver: Any, events_of: Any
) -> None:
    """Two go out at once, the rest as "and N more" when the rate allows; every one is accounted for by an event."""
    await define("a", f"json://127.0.0.1:{receiver.port}", rate="2/s")
    clock, outcomes = ManualClock(), list[str]()

    async with Notifier(bus, late, config, clock) as notifier:
        for n in range(7):
            [delivery] = await notifier.send("a", Message(f"m{n}"), key=f"k{n}")
            outcomes.append(delivery.outcome)
        assert outcomes == ["sent"] * 2 + ["held"] * 5
        assert [d.outcome for d in await notifier.send("a", Message("m6"), key="k6")] == ["held"]
        assert len(receiver.bodies) == 2
        with anyio.fail_after(60):
            # The summary asks for its place when it has its lease.
            while await notifier._held.any("a"):
                await clock.advance(0.5)
                await anyio.sleep(0.01)
        assert [d.outcome for d in await notifier.send("a", Message("m6"), key="k6")] == [
            "held"
        ]  # its summary is out
    told = "\n".join(f"{b['title']}\n{b['message']}" for b in receiver.bodies)
    assert all(f"m{n}" in told for n in range(7))
    assert "and 4 more" in told
    assert len(receiver.bodies) == 3
    events = await events_of()
    assert sum(e.type == "notification.grouped" for e in events) == 5
    sent = [e for e in events if e.type == "notification.sent"]
    assert sum(int(e.data.get("grouped", 1)) for e in sent) == 7


async def test_held_messages_survive_a_restart(
    bus: Bus, secrets: SecretStore, config: NotificationsConfig, define: Any, receiver: Any
) -> None:
    """What waited for a channel's rate when the process ended is sent by the next one."""
    await define("a.b", f"json://127.0.0.1:{receiver.port}", rate="1/h")
    late = LateValues(bus, secrets, environ={})
    async with Notifier(bus, late, config) as one:
        await one.send("a.b", Message("first"), key="1")
        for n in range(3):
            [delivery] = await one.send("a.b", Message("later"), key=f"later-{n}")
            assert delivery.outcome == "held"
    held = await bus.bucket("outbox").entries("held.")
    assert len(held) == 3
    assert not any(b"later" in entry.value for entry in held), "nobody reads them in the broker"
    await define("a.b", f"json://127.0.0.1:{receiver.port}", rate="100/s")
    async with Notifier(bus, late, config) as two:
        await receiver.wait_for(2)
        await nothing_held(two, "a.b")
    assert receiver.bodies[1]["title"] == "later and 2 more"
    assert "later (3x)" in receiver.bodies[1]["message"]


async def test_held_messages_under_another_key_are_told_of(
    bus: Bus, secrets: SecretStore, config: NotificationsConfig, define: Any, receiver: Any
) -> None:
    """Who changes the key and forgets the old one cannot read them any more, and hears that there were some."""
    await define("a", f"json://127.0.0.1:{receiver.port}", rate="1/h")
    async with Notifier(bus, LateValues(bus, secrets, environ={}), config) as one:
        await one.send("a", Message("first"), key="1")
        await one.send("a", Message("later"), key="2")
    await define("a", f"json://127.0.0.1:{receiver.port}", rate="100/s")
    other = LateValues(bus, SecretStore(bus, Fernet.generate_key()), environ={})
    async with Notifier(bus, other, config) as two:
        await receiver.wait_for(2)
        await nothing_held(two, "a")
    assert receiver.bodies[1]["title"] == "A message that cannot be read any more"


async def test_too_many_held_messages_are_refused_and_a_gone_channel_is_recorded(
    bus: Bus, secrets: SecretStore, define: Any, receiver: Any, events_of: Any
) -> None:
    """Nothing is lost in silence: the bound is an error for the sender, a channel that is gone an event."""
    config = NotificationsConfig(max_held=2, retries=0)
    await define("a", f"json://127.0.0.1:{receiver.port}", rate="1/h")
    late = LateValues(bus, secrets, environ={})
    async with Notifier(bus, late, config) as notifier:
        for n in range(3):
            await notifier.send("a", Message(f"m{n}"), key=str(n))
        with pytest.raises(LimitError, match="2 messages wait"):
            await notifier.send("a", Message("m3"), key="3")
    await bus.bucket("channels").delete("a")
    async with Notifier(bus, late, config) as other:
        await nothing_held(other, "a")
    [failure] = [e for e in await events_of() if e.type == "notification.failed"]
    assert failure.data["grouped"] == 2
    assert "no channel named 'a'" in failure.data["error"]
    assert "m1" in failure.data["body"]


async def test_testing_a_channel_tells_each_address(
    notifier: Notifier, define: Any, receiver: Any, events_of: Any
) -> None:
    """Each address once, with its time and, if it failed, the reason; nothing is raised or recorded."""
    receiver.answers = [200, 500]
    await define("a", f"json://127.0.0.1:{receiver.port}/{TOKEN}", "json://127.0.0.1:1/", rate="1/h")
    for _ in range(2):
        one, two = await notifier.test_channel("a")
        assert one.duration_s > 0
        assert not two.ok
        assert "refused" in (two.reason or "")
    assert not one.ok
    assert TOKEN not in f"{one}{two}"
    assert await events_of() == []


async def test_unknown_channels_secrets_and_addresses_are_told_apart(
    notifier: Notifier, define: Any, secrets: SecretStore, receiver: Any
) -> None:
    """A name that does not exist is an error to fix, with the one that was meant; nothing is tried or retried."""
    await define("oncall", f"json://127.0.0.1:{receiver.port}/{{{{ secrets.path }}}}")
    with pytest.raises(UnknownName, match="did you mean 'oncall'"):
        await notifier.send("onkall", HELLO, key="1")
    with pytest.raises(UnknownName):
        await notifier.send("no such name!", HELLO, key="1")
    with pytest.raises(UnknownName, match="secret named 'path'"):
        await notifier.send("oncall", HELLO, key="1")
    await secrets.set("path", TOKEN)
    assert (await notifier.send("oncall", HELLO, key="1"))[0].outcome == "sent"
    assert receiver.requests[0][0] == f"/{TOKEN}"
    with pytest.raises(NotificationFailed, match="did you mean 'slack'") as failed:
        await notifier.send(f"slak://{TOKEN}", HELLO, key="2")
    assert TOKEN not in str(failed.value)


async def test_templates_of_a_channel_shape_its_messages(
    notifier: Notifier, define: Any, receiver: Any, secrets: SecretStore
) -> None:
    """Title and body may be templates over the message and the event behind it; a secret in them is not recorded."""
    await secrets.set("sign", TOKEN)
    await define(
        "a", f"json://127.0.0.1:{receiver.port}", title="[{{ severity }}] {{ title }} {{ secrets.sign }}",
        body="{{ body }} ({{ event.data.n }})",
    )  # fmt: skip
    await notifier.send("a", HELLO, key="k", cause=Event(type="x", source="/x", data={"n": 7}))
    assert receiver.bodies[0]["title"] == f"[error] Flow etl failed {TOKEN}"
    assert receiver.bodies[0]["message"] == "3 times in ten minutes (7)"


async def test_secrets_are_in_no_log_event_or_error(
    notifier: Notifier,
    define: Any,
    receiver: Any,
    secrets: SecretStore,
    events_of: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever happens, at whatever log level, of any library: the token of an address is nowhere to be read."""
    await secrets.set("token", TOKEN)
    await define(
        "a", f"json://user:{{{{ secrets.token }}}}@127.0.0.1:{receiver.port}/x/{{{{ secrets.token }}}}?+X-Key={{{{ secrets.token }}}}",
        f"slack+http://127.0.0.1:{receiver.port}/services/{TOKEN}", title="{{ secrets.token }}",
    )  # fmt: skip
    receiver.answers = [500] * 3 + [404] * 3
    with caplog.at_level(logging.DEBUG), pytest.raises(NotificationFailed) as failed:
        await notifier.send("a", HELLO, key="k")
    assert len(receiver.requests) == 6
    assert any(TOKEN in path for path, _ in receiver.requests)
    texts = [caplog.text, *(repr(r.__dict__) for r in caplog.records), f"{failed.value} {failed.value!r}"]
    texts += [e.to_json().decode() for e in await events_of()]
    assert [t for t in texts if TOKEN in t] == []
    assert "notification.try_failed" in caplog.text


async def test_others_may_use_apprise_beside_us(caplog: pytest.LogCaptureFixture) -> None:
    """What Apprise says when Hark is not sending goes where it always went, at the level that is set."""
    from hark.notifications.apprise_port import load

    load()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("apprise").warning("heard")
        logging.getLogger("apprise").info("not heard")
    assert "heard" in caplog.text
    assert "not heard" not in caplog.text
