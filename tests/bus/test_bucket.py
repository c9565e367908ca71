"""Buckets: values by key, with revisions, guards and a watch."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import cast

import anyio
import pytest
from hark.bus import BrokerAddress, Bus, EmbeddedBroker, Recorded
from hark.bus.bucket import _Changes
from hark.bus.feed import Batch, Feed
from hark.config import BusConfig
from hark.errors import AlreadyHeld, BusUnavailable, DefinitionError, EventTooLarge, GuardFailed


async def test_a_value_is_read_back_with_its_revision(bus: Bus) -> None:
    """What was put is what is got; revisions grow."""
    bucket = bus.bucket("variables")
    first = await bucket.put("region", b"eu")
    second = await bucket.put("region", b"us")
    found = await bucket.get("region")
    assert found is not None
    assert (found.key, found.value, found.revision) == ("region", b"us", second)
    assert second > first
    assert await bucket.get("other") is None


async def test_create_refuses_what_exists_and_takes_what_was_deleted(bus: Bus) -> None:
    """Creating is for names that are free, again after a deletion."""
    bucket = bus.bucket("variables")
    await bucket.create("a.b", b"1")
    with pytest.raises(AlreadyHeld):
        await bucket.create("a.b", b"2")
    await bucket.delete("a.b")
    assert await bucket.get("a.b") is None
    await bucket.create("a.b", b"3")
    assert [e.value for e in await bucket.entries()] == [b"3"]


async def test_an_update_on_an_old_revision_is_refused(bus: Bus) -> None:
    """One writer wins."""
    bucket = bus.bucket("limits")
    first = await bucket.create("w", b"1")
    second = await bucket.update("w", b"2", revision=first)
    with pytest.raises(GuardFailed):
        await bucket.update("w", b"3", revision=first)
    with pytest.raises(GuardFailed):
        await bucket.delete("w", revision=first)
    await bucket.delete("w", revision=second)


async def test_a_watch_yields_what_is_there_then_a_marker_then_changes(bus: Bus) -> None:
    """First the current entries, then an entry without key, then every change, deletions too."""
    bucket = bus.bucket("channels")
    await bucket.put("a/1", b"1")
    await bucket.put("b/1", b"2")
    await bucket.put("a/2", b"3")
    await bucket.delete("a/1")
    async with bucket.watch("a/") as entries:
        seen = [await anext(entries), await anext(entries)]
        assert [(e.key, e.value) for e in seen] == [("a/2", b"3"), ("", b"")]
        await bucket.put("b/2", b"x")
        await bucket.put("a/3", b"4")
        await bucket.delete("a/2")
        seen = [await anext(entries), await anext(entries)]
    assert [(e.key, e.value, e.deleted) for e in seen] == [("a/3", b"4", False), ("a/2", b"", True)]


async def test_keys_are_listed_by_prefix(bus: Bus) -> None:
    """A prefix is a prefix of the text, whatever its dots and slashes."""
    bucket = bus.bucket("keys")
    for key in ("x.a", "x.ab", "x.b", "y", "x/1"):
        await bucket.put(key, b"")
    assert await bucket.keys("x.a") == ["x.a", "x.ab"]
    assert await bucket.keys("x") == ["x.a", "x.ab", "x.b", "x/1"]
    assert await bucket.keys("z") == []
    assert len(await bucket.keys()) == 5


async def test_a_watch_goes_on_where_it_was_when_the_broker_comes_back(
    broker: EmbeddedBroker, bus: Bus
) -> None:
    """Changes made during the outage follow; nothing is seen twice, and history is not told again."""
    bucket = bus.bucket("channels")
    await bucket.put("a", b"1")
    await bucket.put("b", b"1")
    async with bucket.watch() as entries:
        assert [(await anext(entries)).key for _ in range(3)] == ["a", "b", ""]
        for round_ in range(3):
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            async with Bus(broker.address, BusConfig()) as other:
                await other.bucket("channels").put("a", b"%d" % round_)
                await other.bucket("channels").delete("b")
                await other.bucket("channels").put("c", b"%d" % round_)
            with anyio.fail_after(60):
                seen = [await anext(entries) for _ in range(3 if round_ == 0 else 2)]
            expected = [("a", b"%d" % round_), ("b", b""), ("c", b"%d" % round_)]
            assert [(e.key, e.value) for e in seen] == [e for e in expected if round_ == 0 or e[0] != "b"]


async def test_a_write_in_flight_when_the_broker_dies_lands_once(broker: EmbeddedBroker, bus: Bus) -> None:
    """A create whose answer was lost is not refused because of itself."""
    bucket = bus.bucket("limits")
    done = 0

    async def write() -> None:
        nonlocal done
        for number in range(300):
            revision = await bucket.create(f"k{number}", b"1")
            await bucket.update(f"k{number}", b"2", revision=revision)
            done += 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tg:
            tg.start_soon(write)
            for limit in (30, 120, 210):
                while done < limit or broker.pid is None:  # noqa: ASYNC110 - counted by the other task
                    await anyio.sleep(0.001)
                os.kill(broker.pid, signal.SIGKILL)
    found = await bucket.entries()
    assert len(found) == 300
    assert all(e.value == b"2" for e in found)


async def test_a_key_with_a_ttl_expires_and_the_watch_says_so(bus: Bus) -> None:
    """After its time the key is gone, for readers and watchers."""
    bucket = bus.bucket("silences")
    await bucket.put("s", b"1", ttl_s=3)
    async with bucket.watch() as entries:
        assert [(await anext(entries)).key for _ in range(2)] == ["s", ""]
        with anyio.fail_after(60):
            entry = await anext(entries)
    assert (entry.key, entry.deleted) == ("s", True)
    assert await bucket.get("s") is None
    assert await bucket.keys() == []
    await bucket.create("s", b"2")


async def test_nothing_is_left_of_deleted_keys(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of a deletion expires too, so short-lived keys do not fill the broker."""
    monkeypatch.setattr("hark.bus.bucket.MARKER_TTL_S", 1)
    bucket = bus.bucket("outbox")
    for number in range(20):
        await bucket.put(f"k{number}", b"1")
        await bucket.delete(f"k{number}")
    with anyio.fail_after(60):
        while True:
            state = (await bus.connection.api("STREAM.INFO.KV_hark_outbox"))["state"]
            assert isinstance(state, dict)
            if state["messages"] == 0:
                break
            await anyio.sleep(0.1)


async def test_a_value_over_the_brokers_limit_is_refused_with_both_sizes(bus: Bus) -> None:
    """Trying again cannot help, and the error says how much too much it is."""
    with pytest.raises(EventTooLarge, match=r"is \d+ bytes, and the broker takes 1048576 at most") as caught:
        await bus.bucket("blocks").put("big", b"x" * (1 << 20))
    assert caught.value.size_bytes > caught.value.limit_bytes == 1 << 20


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "a b", "ä", "a*", "a>", "x\n"])
async def test_what_is_no_key_is_refused(bus: Bus, key: str) -> None:
    """Before it reaches the broker, where it could mean something else."""
    for call in (
        bus.bucket("keys").get(key),
        bus.bucket("keys").put(key, b""),
        bus.bucket("keys").delete(key),
    ):
        with pytest.raises(DefinitionError, match="is no key"):
            await call


async def test_a_bucket_of_many_keys_is_listed_whole(bus: Bus) -> None:
    """All of them, sorted, however many batches that takes."""
    bucket = bus.bucket("variables")
    names = [f"v{number:04}" for number in range(1500)]

    async def put(part: list[str]) -> None:
        for name in part:
            await bucket.put(name, name.encode())

    async with anyio.create_task_group() as tg:
        for at in range(0, len(names), 100):
            tg.start_soon(put, names[at : at + 100])
    assert await bucket.keys() == names
    assert [e.value.decode() for e in await bucket.entries("v00")] == names[:100]


async def test_a_bus_that_is_not_entered_says_so(home: object) -> None:
    """Not an attribute error."""
    bus = Bus(BrokerAddress(("nats://127.0.0.1:1",)), BusConfig())
    assert not bus.is_connected
    with pytest.raises(BusUnavailable, match="not been entered"):
        bus.bucket("keys")


async def test_giving_up_on_a_watch_for_a_moment_does_not_end_it(bus: Bus) -> None:
    """A deadline on the next entry is harmless: later entries are still told."""
    bucket = bus.bucket("silences")
    async with bucket.watch() as entries:
        assert (await anext(entries)).key == ""
        with anyio.move_on_after(0.05):
            await anext(entries)
        await bucket.put("a", b"1")
        with anyio.fail_after(60):
            assert (await anext(entries)).key == "a"


async def test_what_goes_while_it_is_being_told_is_told_as_gone(bus: Bus) -> None:
    """A deletion that comes between a key and the end of what is there is news; one of a key not told of is none."""
    bucket = bus.bucket("leases")
    gone = {"KV-Operation": "PURGE"}

    def record(seq: int, key: str, headers: dict[str, str] | None = None) -> Recorded:
        return Recorded(seq, f"{bucket._prefix}{key}", datetime.now(UTC), b"value", headers)

    async def told() -> AsyncIterator[Batch]:
        yield Batch([record(1, "old", gone), record(2, "a"), record(3, "b")], 1)
        yield Batch([record(4, "a", gone)], 0)
        yield Batch([record(5, "b", gone)], 0)

    entries = _Changes(cast("Feed", told()), bucket._entry, "")
    seen = [await anext(entries) for _ in range(5)]
    assert [(entry.key, entry.deleted) for entry in seen] == [
        ("a", False), ("b", False), ("a", True), ("", False), ("b", True),
    ]  # fmt: skip
