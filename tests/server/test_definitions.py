"""Change events of definitions: derived from revisions, told once, also what changed while nobody led."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import orjson
from hark.bus import Bus, Entry
from hark.server.definitions import DefinitionsFeed, Seen, change_event

AT = datetime(2026, 1, 1, tzinfo=UTC)


def entry(revision: int, value: object, *, deleted: bool = False) -> Entry:
    return Entry("etl", b"" if deleted else orjson.dumps(value), revision, AT, deleted=deleted)


def word(bucket: str, one: Entry, before: Seen | None, *, gone: bool = False) -> str | None:
    event = change_event(bucket, one, before, gone=gone)
    return f"{event.type} {event.id}" if event else None


def test_what_a_change_is_called() -> None:
    """New, changed, paused, resumed, deleted; nothing for what was told before."""
    plain, paused = {"name": "etl"}, {"name": "etl", "paused": True}
    assert word("deployments", entry(3, plain), None) == "deployment.created deployments-3"
    assert word("deployments", entry(4, plain), Seen(3, False)) == "deployment.updated deployments-4"
    assert word("deployments", entry(5, paused), Seen(4, False)) == "deployment.paused deployments-5"
    assert word("deployments", entry(6, plain), Seen(5, True)) == "deployment.resumed deployments-6"
    assert word("deployments", entry(6, plain), Seen(6, False)) is None
    assert (
        word("deployments", entry(7, None, deleted=True), Seen(6, False))
        == "deployment.deleted deployments-7"
    )
    assert word("deployments", entry(7, None, deleted=True), None) is None
    assert (
        word("deployments", entry(6, None, deleted=True), Seen(6, False), gone=True)
        == "deployment.deleted deployments-6-gone"
    )
    assert word("deployments", entry(3, paused), None) == "deployment.created deployments-3"
    assert word("pools", entry(3, paused), None) == "work-pool.paused pools-3"
    assert word("pools", entry(3, plain), None) == "work-pool.created pools-3"
    assert word("variables", Entry("v", b"not json", 9, AT), None) == "variable.created variables-9"


def test_silences_channels_sources_and_sinks_are_told() -> None:
    """Made, ended before their time, gone; without the addresses and secrets that may stand in them."""
    lasting, over = {"ends_at": "2026-01-01T01:00:00Z"}, {"ends_at": "2026-01-01T00:00:00Z"}
    assert word("silences", entry(3, lasting), None) == "hark.silence.created silences-3"
    assert word("silences", entry(4, lasting), Seen(3, False)) == "hark.silence.updated silences-4"
    assert word("silences", entry(4, over), Seen(3, False)) == "hark.silence.expired silences-4"
    assert word("silences", entry(5, None, deleted=True), Seen(4, False)) == "hark.silence.deleted silences-5"
    assert word("sources", entry(3, {"paused": True}), Seen(2, False)) == "hark.source.paused sources-3"
    hidden = {
        "channels": {"urls": ["slack://s3cret"]}, "sinks": {"url": "https://s3cret", "secret": "s3cret", "events": "a.>"},
        "webhooks": {"verify": {"preset": "github", "secret": "s3cret"}, "rate": "1/s"},
    }  # fmt: skip
    for bucket, value in hidden.items():
        event = change_event(bucket, entry(1, value), None)
        assert event is not None
        assert "s3cret" not in event.to_json().decode()
    channel = change_event("channels", entry(1, {}), None)
    assert channel is not None
    assert (channel.type, channel.subject) == ("hark.channel.created", "channel/etl")


def test_values_that_nobody_should_read_are_not_told() -> None:
    """A variable's value stays where it is; a deployment's definition travels."""
    variable = change_event("variables", entry(1, "s3cret"), None)
    assert variable is not None
    assert "s3cret" not in variable.to_json().decode()
    deployment = change_event("deployments", entry(1, {"name": "etl", "flow": "f.py:f"}), None)
    assert deployment is not None
    assert isinstance(deployment.data, dict)
    assert deployment.data["definition"] == {"name": "etl", "flow": "f.py:f"}
    assert deployment.subject == "deployment/etl"


async def told(bus: Bus, count: int) -> list[str]:
    """Return the first ``count`` change events, waiting for them."""
    found: list[str] = []
    with anyio.fail_after(60):
        async with bus.log.follow(after=0) as batches:
            async for batch in batches:
                found += [f"{r.event.type} {r.event.id}" for r in batch.records]
                if len(found) >= count:
                    break
    return found


async def test_changes_while_nobody_led_are_told_by_the_next(bus: Bus) -> None:
    """Made, changed and removed between two leaders: each is told, what was told before is not told again."""
    deployments = bus.bucket("deployments")
    await deployments.put("a", b'{"name": "a"}')
    await deployments.put("b", b'{"name": "b"}')
    async with DefinitionsFeed(bus, holder="one"):
        assert await told(bus, 2) == ["deployment.created deployments-1", "deployment.created deployments-2"]
        await deployments.put("a", b'{"name": "a", "paused": true}')
        await told(bus, 3)
        checkpoint = bus.bucket("checkpoints")
        with anyio.fail_after(60):
            async with checkpoint.watch("definitions/deployments") as changes:
                async for one in changes:
                    if one.key and orjson.loads(one.value)["a"] == [3, 1]:
                        break
    await deployments.put("a", b'{"name": "a"}')
    await deployments.delete("b")
    await deployments.put("c", b'{"name": "c"}')
    async with DefinitionsFeed(bus, holder="two"):
        last = (await told(bus, 6))[3:]
    assert sorted(last) == [
        "deployment.created deployments-6", "deployment.deleted deployments-2-gone", "deployment.resumed deployments-4",
    ]  # fmt: skip


async def test_one_of_two_tells(bus: Bus) -> None:
    """A standby says nothing; it takes over when the leader leaves."""
    async with DefinitionsFeed(bus, holder="standby"):
        async with DefinitionsFeed(bus, holder="other"):
            await bus.bucket("pools").put("p", b'{"name": "p"}')
            await told(bus, 1)
        await bus.bucket("pools").put("p", b'{"name": "p", "concurrency": 2}')
        assert await told(bus, 2) == ["work-pool.created pools-1", "work-pool.updated pools-2"]
