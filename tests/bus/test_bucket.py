"""Buckets: values by key, with revisions, guards and a watch."""

from __future__ import annotations

import pytest
from hark.bus import Bus
from hark.errors import AlreadyHeld, GuardFailed


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
