"""Objects: large values, checked at every read."""

from __future__ import annotations

import base64
import os
import signal
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import orjson
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.objects import ObjectInfo, Objects
from hark.bus.streams import OBJECTS_STREAM
from hark.bus.sweep import ObjectSweep
from hark.config import BusConfig
from hark.errors import BusUnavailable, ObjectCorrupt, UnknownName


@pytest.mark.parametrize("size", [0, 1, 131_072, 131_073, 3_000_001])
async def test_what_is_stored_is_read_back(bus: Bus, size: int) -> None:
    """Of every size: empty, one piece, a whole number of pieces, many."""
    data = os.urandom(size)
    info = await bus.objects.put("results/a b.bin", data)
    assert info.size == size
    assert await bus.objects.get("results/a b.bin") == data
    assert (await bus.objects.info("results/a b.bin")).sha256 == info.sha256
    assert await bus.objects.exists("results/a b.bin")


async def test_what_was_never_stored_or_deleted_is_unknown(bus: Bus) -> None:
    """``UnknownName``; deleting twice is no error; nothing is left of a deleted object."""
    with pytest.raises(UnknownName, match="object named 'x'"):
        await bus.objects.get("x")
    assert not await bus.objects.exists("x")
    await bus.objects.put("x", b"1" * 300_000)
    await bus.objects.delete("x")
    await bus.objects.delete("x")
    with pytest.raises(UnknownName):
        await bus.objects.get("x")
    assert await stored_messages(bus) == 0


async def test_a_new_value_replaces_the_old_one_whole(bus: Bus) -> None:
    """Readers see one or the other; the old pieces are removed."""
    await bus.objects.put("x", b"1" * 300_000)
    await bus.objects.put("x", b"2" * 10)
    assert await bus.objects.get("x") == b"2" * 10
    assert await stored_messages(bus) == 2


async def test_objects_leave_with_the_log_unless_they_are_kept(broker: EmbeddedBroker) -> None:
    """A result goes when the events that name it do; what is still in use is put to be kept."""
    async with Bus(broker.address, BusConfig(max_age_days=1 / 86_400, dedup_window_s=0.5)) as bus:
        await bus.objects.put("results/a", b"1" * 300_000)
        await bus.objects.put("checkpoints/a", b"2" * 300_000, keep=True)
        with anyio.fail_after(60):
            # Only the broker knows when it lets something go, and it tells nobody.
            while await stored_messages(bus) > 4:  # noqa: ASYNC110
                await anyio.sleep(0.1)
        with pytest.raises(UnknownName):
            await bus.objects.get("results/a")
        assert await bus.objects.get("checkpoints/a") == b"2" * 300_000


async def stored_messages(bus: Bus) -> int:
    state = (await bus.connection.api(f"STREAM.INFO.{OBJECTS_STREAM}"))["state"]
    assert isinstance(state, dict)
    count = state["messages"]
    assert isinstance(count, int)
    return count


async def test_a_missing_piece_is_told_from_a_missing_object(bus: Bus) -> None:
    """Damage is said with its size, not handed out."""
    info = await bus.objects.put("x", os.urandom(400_000))
    await bus.connection.api(f"STREAM.MSG.DELETE.{OBJECTS_STREAM}", {"seq": 2})
    with pytest.raises(ObjectCorrupt, match=r"'x' is damaged: 268928 of 400000 bytes"):
        await bus.objects.get("x")
    await bus.connection.api(f"STREAM.PURGE.{OBJECTS_STREAM}", {"filter": f"$O.hark_objects.C.{info.nuid}"})
    with pytest.raises(ObjectCorrupt, match="0 of 400000 bytes"):
        await bus.objects.get("x")


async def test_changed_bytes_are_noticed(bus: Bus) -> None:
    """The hash is that of the bytes, checked at every read."""
    info = await bus.objects.put("x", b"1" * 100)
    pieces = f"$O.hark_objects.C.{info.nuid}"
    await bus.connection.api(f"STREAM.PURGE.{OBJECTS_STREAM}", {"filter": pieces})
    await bus.connection.request(pieces, b"2" * 100)
    with pytest.raises(ObjectCorrupt, match="SHA-256"):
        await bus.objects.get("x")


async def test_a_broken_description_is_damage(bus: Bus) -> None:
    """Not an error of the JSON library."""
    name = base64.urlsafe_b64encode(b"x").decode()
    await bus.connection.request(f"$O.hark_objects.M.{name}", b"{")
    with pytest.raises(ObjectCorrupt, match="description"):
        await bus.objects.get("x")


async def test_a_put_survives_the_broker_being_killed_halfway(broker: EmbeddedBroker) -> None:
    """Pieces are sent again, and none is stored twice."""
    data = os.urandom(5_000_000)
    async with Bus(broker.address, BusConfig()) as bus, anyio.create_task_group() as tg:
        tg.start_soon(bus.objects.put, "big", data)
        while await stored_messages(bus) < 5:
            await anyio.lowlevel.checkpoint()
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
    async with Bus(broker.address, BusConfig()) as bus:
        assert await bus.objects.get("big") == data


PUTS = """
import sys, anyio
from pathlib import Path
from hark.bus import Bus, locate_broker
from hark.config import BusConfig, Settings

async def main():
    async with Bus(locate_broker(Settings(home=Path(sys.argv[1]))), BusConfig()) as bus:
        while True:
            await bus.objects.put("big", bytes(40_000_000))

anyio.run(main)
"""


async def test_what_a_killed_put_has_left_is_swept(bus: Bus, home: Path) -> None:
    """A process is killed in the middle of a put: what was there stays, its pieces go once they are old enough."""
    await bus.objects.put("big", b"1" * 300_000)
    await bus.objects.put("other", b"2" * 300_000)
    before = await stored_messages(bus)
    process = await anyio.open_process([sys.executable, "-c", PUTS, str(home)])
    try:
        while await stored_messages(bus) < before + 5:
            assert process.returncode is None
    finally:
        process.kill()
        await process.aclose()
    assert await bus.objects.sweep(older_s=3600) == 0
    assert await bus.objects.sweep(older_s=0) == 1
    assert await stored_messages(bus) == before
    assert await bus.objects.get("big") == b"1" * 300_000
    assert await bus.objects.sweep(older_s=0) == 0


async def test_pieces_of_other_clients_are_left_alone(bus: Bus) -> None:
    """What another NATS client has put is not ours to sweep, whole or not."""
    store = await bus.connection.js.object_store("hark_objects")
    await store.put("theirs", b"3" * 1000)
    await bus.connection.js.publish("$O.hark_objects.C.VGhlaXJz", b"half")
    assert await bus.objects.sweep(older_s=0) == 0
    assert (await store.get("theirs")).data == b"3" * 1000


_LONG_AGO = "00000000000070008000000000000000"
"""The number that a put of ours would have drawn in 1970."""


async def test_what_other_clients_describe_keeps_nothing_from_being_swept(bus: Bus) -> None:
    """A link has no digest and no size. Beside a description that nobody can read, nothing is swept."""
    js = bus.connection.js
    link = {"name": "l", "bucket": "hark_objects", "nuid": "x" * 22, "options": {"link": {"bucket": "other"}}}
    await js.publish("$O.hark_objects.M.bA==", orjson.dumps(link))
    await js.publish(f"$O.hark_objects.C.{_LONG_AGO}", b"half")
    assert await bus.objects.sweep(older_s=0) == 1
    await js.publish(f"$O.hark_objects.C.{_LONG_AGO}", b"half")
    await js.publish("$O.hark_objects.M.bA==", b"?")
    with pytest.raises(ObjectCorrupt):
        await bus.objects.sweep(older_s=0)


async def test_a_sweep_that_cannot_be_done_is_tried_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in its way, the process it runs in lives on."""
    errors: list[Exception] = [ObjectCorrupt("x", why="of a test"), BusUnavailable("of a test")]
    swept = anyio.Event()

    async def sweep(*, older_s: float) -> int:
        if errors:
            raise errors.pop()
        swept.set()
        return 0

    monkeypatch.setattr(bus.objects, "sweep", sweep)
    monkeypatch.setattr("hark.bus.sweep._AGAIN_S", 0.0)
    monkeypatch.setattr("hark.bus.sweep.EVERY_S", 0.01)
    with anyio.fail_after(30):
        async with ObjectSweep(bus.objects):
            await swept.wait()
    assert not errors


async def test_the_nats_layout_is_kept(bus: Bus) -> None:
    """Other NATS tools can read what Hark stores."""
    await bus.objects.put("x", b"1" * 200_000)
    store = await bus.connection.js.object_store("hark_objects")
    assert (await store.get("x")).data == b"1" * 200_000
    bucket = await bus.connection.js.key_value("hark_variables")
    await bus.bucket("variables").put("region", b"eu")
    assert (await bucket.get("region")).value == b"eu"


async def test_a_copy_that_is_behind_is_asked_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several, the one that answers may not have the pieces yet; with one copy nothing is waited for."""
    await bus.objects.put("late", b"l" * 1000)
    read, asked = Objects._read, 0

    async def behind(objects: Objects, info: ObjectInfo) -> bytes:
        nonlocal asked
        asked += 1
        return b"" if asked == 1 else await read(objects, info)

    monkeypatch.setattr(Objects, "_read", behind)
    copies = bus.config.model_copy(update={"replicas": 3})
    assert await Objects(bus.connection, copies, message_ttl=True).get("late") == b"l" * 1000
    asked = 0
    with pytest.raises(ObjectCorrupt, match="0 of 1000 bytes"):
        await bus.objects.get("late")
