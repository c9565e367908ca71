"""The router is killed at random, over and over: everybody is told, once, and what people said stays said."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hark.bus import Bus, EmbeddedBroker, LateValues, SecretStore
from hark.bus import broker as broker_module
from hark.clock import SYSTEM_CLOCK
from hark.notifications import Message, Severity, Silence, raise_alert
from hark.notifications.ack import acknowledge
from hark.notifications.checkpoint import KEY as STATE
from hark.notifications.checkpoint import RouterState, read_state

from ..nursery import nursery
from . import router_child
from .conftest import a_receiver

KILLS = int(os.environ.get("CHAOS_ALERT_KILLS", "4"))
"""How often something is killed; `make chaos` asks for more."""
SEED = int(os.environ.get("CHAOS_SEED", "1"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90 + 20 * KILLS)]

ROUTES = {
    "group_by": ["key"],
    "group_wait": "50ms",
    "group_interval": "100ms",
    "repeat_interval": "never",
    "routes": [
        {"match": {"kind": "plain"}, "to": "oncall", "escalate": [{"after": "300ms", "to": "managers"}]},
        {"match": {"kind": "acked"}, "to": "oncall", "escalate": [{"after": "1h", "to": "managers"}]},
        {"match": {"kind": "quiet"}, "to": "oncall"},
        {"match": {"kind": "bulk"}, "to": "slow"},
    ],
}


class Story:
    """What is raised, by kind, and what came of it."""

    def __init__(self, bus: Bus, vault: SecretStore) -> None:
        self.bus, self.vault = bus, vault
        self.titles: dict[str, list[str]] = {"plain": [], "acked": [], "quiet": [], "bulk": []}

    async def raises(self, kind: str, *, resolved: str = "") -> str:
        title = resolved or f"{kind}-{sum(map(len, self.titles.values()))}"
        if not resolved:
            self.titles[kind].append(title)
        await raise_alert(
            self.bus, Message(title, "body of it", Severity.ERROR), key=f"{title} {bool(resolved)}",
            now=SYSTEM_CLOCK.now(), labels={"kind": kind}, own={"automation": "etl", "key": title}, resolved=bool(resolved),
        )  # fmt: skip
        return title

    async def state(self) -> RouterState:
        """Return what the router has put down, once it has put down anything."""
        while (found := await read_state(self.bus, self.vault)) is None:  # noqa: ASYNC110
            await anyio.sleep(0.05)
        return found

    async def until(self, path: str, titles: set[str]) -> dict[str, Any]:
        """Return the groups of alerts by their titles, once all of ``titles`` have something at ``path``."""
        with anyio.fail_after(60):
            while True:
                found: Any = (await self.state()).fold["groups"]
                groups = {g["labels"]["key"]: g for g in found}
                if all(groups.get(title, {}).get(path) for title in titles):
                    return groups
                await anyio.sleep(0.05)

    async def said(self, type_: str) -> list[dict[str, Any]]:
        async with self.bus.log.read([f"hark.ev.{type_}"]) as batches:
            return [r.event.data async for b in batches for r in b.records if isinstance(r.event.data, dict)]


async def test_a_router_that_is_killed_loses_no_message_no_answer_and_no_silence(
    broker: EmbeddedBroker, bus: Bus, home: Path, define: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First messages, escalations, recoveries, summaries, acknowledgements and silences, over kills of router and broker.

    The receivers are bare: each message comes at least once, and once more at most for each kill. One kill may meet several
    messages on their way.
    """
    monkeypatch.setattr(broker_module, "_STEADY_S", 0.0)
    rng = random.Random(SEED)
    story = Story(bus, SecretStore(bus, router_child.KEY))
    now = SYSTEM_CLOCK.now()
    silence = Silence(
        id="s1", match={"kind": "quiet"}, starts_at=now, ends_at=now + timedelta(hours=9), created_by="ann"
    )
    await bus.bucket("notifications").put("routes", orjson.dumps(ROUTES))
    await bus.bucket("silences").put("s1", silence.to_bytes())
    async with a_receiver() as oncall, a_receiver() as managers, a_receiver() as slow:
        await define("oncall", f"json://127.0.0.1:{oncall.port}/")
        await define("managers", f"json://127.0.0.1:{managers.port}/")
        await define("slow", f"json://127.0.0.1:{slow.port}/", rate="5/s")
        with nursery(home, router_child.__file__) as running:
            running.start("router")
            acked: set[str] = set()
            for n in range(KILLS):
                titles = [
                    await story.raises(rng.choice(["plain", "acked", "quiet", "bulk"])) for _ in range(5)
                ]
                titles.append(await story.raises("acked"))
                if n % 2:
                    groups = await story.until("told_to", {t for t in titles if t.startswith("acked")})
                    for title in titles:
                        if title.startswith("acked"):
                            acked.add(title)
                            await acknowledge(bus, groups[title]["id"], by="bob", now=SYSTEM_CLOCK.now())
                await anyio.sleep(rng.random() * 0.3)
                if rng.random() < 0.2:
                    assert broker.pid is not None
                    os.kill(broker.pid, signal.SIGKILL)
                else:
                    running.kill("router")
                    running.start("router")
            await story.until("acked_at", acked)
            plain = set(story.titles["plain"])
            groups = await story.until("escalated", plain)
            assert {groups[t]["escalated"] for t in plain} <= {1}
            assert {groups[t]["acked_by"] for t in acked} <= {"bob"}
            assert not any(b["title"].startswith("quiet") for b in oncall.bodies), "a silence holds"
            # Over the end of the silence and of some alerts, once more.
            await bus.bucket("silences").delete("s1")
            for title in sorted(acked):
                await story.raises("acked", resolved=title)
            running.kill("router")
            running.start("router")
            told = plain | set(story.titles["acked"]) | set(story.titles["quiet"])
            recovered = {f"Recovered: {title}" for title in acked}
            with anyio.fail_after(60):
                while True:
                    titles_told = {b["title"] for b in oncall.bodies}
                    escalated_to = {b["title"] for b in managers.bodies}
                    if (
                        (told | recovered) <= titles_told
                        and len(escalated_to) == len(plain)
                        and _all_in(story.titles["bulk"], slow.bodies)
                        and not (await story.state()).pending
                    ):
                        break
                    await anyio.sleep(0.05)
    for receiver in (oncall, managers, slow):
        times = Counter((b["title"], b["message"]) for b in receiver.bodies)
        assert max(times.values()) <= 1 + KILLS + 1, "once more at most for each kill"
    assert {b["title"] for b in oncall.bodies} == told | recovered
    sent = Counter(
        (data["channel"], data["group"], data["about"])
        for data in await story.said("notification.sent")
        if "group" in data
    )
    assert set(sent.values()) == {1}, "the log has each message once"
    assert await story.said("notification.failed") == []
    escalated = Counter(data["labels"]["key"] for data in await story.said("notification.escalated"))
    assert escalated == dict.fromkeys(plain, 1)


def _all_in(titles: list[str], bodies: list[Any]) -> bool:
    text = "\n".join(f"{b['title']}\n{b['message']}\n" for b in bodies)
    return all(f"{title}\n" in text or f"{title}:" in text or f"{title} " in text for title in titles)


async def test_nothing_that_was_put_down_can_be_read_without_the_key(
    bus: Bus, late: LateValues, define: Any
) -> None:
    """Neither the text of a message on its way nor the token in its address stands in the bucket or the object store."""
    from hark.automations.matching.language import WhereLanguage
    from hark.config import NotificationsConfig
    from hark.notifications import Notifier, Router

    token = "xoxb-very-secret-token"
    await bus.bucket("notifications").put(
        "routes", orjson.dumps({"group_wait": "0s", "to": f"json://127.0.0.1:9/{token}"})
    )
    config = NotificationsConfig(retries=0, backoff_s=0.01)
    async with (
        Notifier(bus, late, config) as notifier,
        Router(bus, lambda: notifier, WhereLanguage(), vault=late, lease_ttl_s=1) as router,
    ):
        await router.leading()
        await raise_alert(
            bus, Message("the title", "hidden-body" * 20, Severity.ERROR), key="k", now=SYSTEM_CLOCK.now()
        )
        with anyio.fail_after(20):
            async with bus.bucket("checkpoints").watch(STATE) as changes:
                async for _ in changes:
                    state = await read_state(bus, late)
                    if state is not None and state.pending:
                        break
        assert state is not None
        assert state.pending[0].to.endswith(token)
        for entry in await bus.bucket("checkpoints").entries():
            for word in (token, "hidden-body", "the title"):
                assert word.encode() not in entry.value
        stored = orjson.loads((await bus.bucket("checkpoints").get(STATE)).value)  # type: ignore[union-attr]
        assert {name.partition("-")[0] for name in stored["parts"]} == {"groups", "pending", "seen"}
    async with bus.log.read() as batches:
        logged = b"".join([r.raw async for b in batches for r in b.records])
    assert token.encode() not in logged
