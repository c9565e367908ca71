"""A broker whose disk takes no writes for a while: nothing acknowledged is lost, and it goes on by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker, Event, disk
from hark.bus import broker as broker_module
from hark.bus.disk import LogEnd, room_for, write_fault
from hark.config import BusConfig
from hark.errors import BrokerStartFailed, BusUnavailable


@pytest.fixture
def bus_config() -> BusConfig:
    """Who is not answered hears of it soon."""
    return BusConfig(request_timeout_s=1.0)


async def test_a_broker_that_could_not_write_goes_on_once_there_is_room(
    broker: EmbeddedBroker,
    bus: Bus,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    hears: Callable[[str, str], anyio.Event],
) -> None:
    """What was acknowledged is there, what was not is refused with an error, and then the same broker takes events again."""
    (block,) = (home / "nats" / "store").rglob("streams/HARK/msgs/1.blk")
    full = block.with_name("2.blk")
    full.symlink_to("/dev/full")
    room = False

    def has_room(folder: Path) -> str:
        return "" if room else "No space left on device"

    monkeypatch.setattr(broker_module, "room_for", has_room)
    monkeypatch.setattr(broker_module, "_LOOK_S", 0.02)
    told = hears("hark.bus.broker", "broker.cannot_write")
    stored: list[str] = []

    async def fill() -> None:
        for _ in range(20):
            # The log is kept in files of 8 MiB each.
            event = Event(type="a.x", source="/test", data={"text": "x" * 900_000})
            await bus.log.append(event)
            stored.append(event.id)

    with pytest.raises(BusUnavailable, match="did not store") as caught:
        await fill()
    assert "disk full" in caught.value.hint
    assert len(stored) >= 5, "the first file took some"
    with anyio.fail_after(20):
        await told.wait()
    assert broker.fault == "No space left on device"
    assert await bus.log.head() >= len(stored), "what is there can be read"
    gone = hears("hark.bus.connection", "bus.disconnected")
    full.unlink()
    room = True
    with anyio.fail_after(60):
        await gone.wait()
    late = Event(type="a.x", source="/test", data={"text": "late"})
    with anyio.fail_after(60):
        while True:
            try:
                await bus.log.append(late)
            except BusUnavailable:
                continue
            break
    assert broker.restarts == 1
    assert broker.fault == ""
    async with bus.log.read(["hark.ev.a.x"]) as batches:
        found = [r.event.id async for b in batches for r in b.records]
    assert set(found) >= {*stored, late.id}
    assert len(found) == len(set(found))


async def test_a_home_that_cannot_be_written_is_said_when_the_broker_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder, the reason and what to do; no traceback of a file that nobody knows."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    nowhere = home / "file" / "home"
    nowhere.parent.write_text("")
    full = home / "full"
    (full / "broker.lock").mkdir(parents=True)
    for where, why in (
        (nowhere, "Not a directory"),
        (full, "Is a directory"),
        (home, "Read-only file system"),
    ):
        if where == home:
            monkeypatch.setattr(broker_module, "write_private", refuse)
        with pytest.raises(BrokerStartFailed, match=why) as caught:
            async with EmbeddedBroker(where, BusConfig()):
                pass
        assert str(where) in str(caught.value)
        assert "HARK_HOME" in caught.value.hint


async def test_a_home_without_locks_is_no_home_of_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none: that is said, and not that somebody else has the home."""

    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(BrokerStartFailed, match="cannot be locked: No locks available") as caught:
        async with EmbeddedBroker(home, BusConfig()):
            pass
    assert "HARK_HOME" in caught.value.hint


async def test_a_broker_that_cannot_say_its_port_for_a_full_disk_says_why(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-server keeps that to itself, and is waited for."""
    program = home.parent / "silent"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(broker_module, "_SLOW_S", 0.05)
    monkeypatch.setattr(broker_module, "room_for", lambda folder: "No space left on device")
    with pytest.raises(BrokerStartFailed, match="cannot be written: No space left") as caught:
        async with EmbeddedBroker(home, BusConfig(), program=program):
            pass
    assert "make room" in caught.value.hint


def test_what_the_broker_says_of_writes_is_told_from_the_rest() -> None:
    """Its own words, as nats-server 2.15.1 writes them; connections that come and go are none of them."""
    said = (
        b"[831] 2026/11/21 15:41:37.939071 [WRN] Plaintext passwords detected, use nkeys or bcrypt\n"
        b"[831] 2026/11/21 15:41:44.191510 [ERR] Filestore [HARK] Critical write error: write /h/nats/1.blk: "
        b"no space left on device\n"
    )
    assert write_fault(said) == "no space left on device"
    assert write_fault(said.splitlines()[0]) == ""
    assert write_fault(b"") == ""
    half = b"failed to store a msg on str[831] 2026/11/21 15:42:21.8 [ERR] JetStream failed to store a msg on stream '$G > HARK': EIO"
    assert write_fault(half) == "EIO"


def test_the_end_of_a_log_is_read_across_its_turnover(tmp_path: Path) -> None:
    """Each line once; what stood there before is old; a log that was begun anew is read from its beginning."""
    path = tmp_path / "server.log"
    path.write_bytes(b"old\n")
    end = LogEnd(path)
    assert end.news() == b""
    with path.open("ab") as out:
        out.write(b"one\n")
    assert end.news() == b"one\n"
    path.rename(tmp_path / "server.log.1")
    assert end.news() == b""
    path.write_bytes(b"two\n")
    assert end.news() == b"two\n"
    assert end.news() == b""


def test_room_is_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there, and one on a disk with next to nothing left, have none; nothing stays behind."""
    assert room_for(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    assert room_for(tmp_path / "gone") == os.strerror(errno.ENOENT)
    monkeypatch.setattr(disk, "_NEEDED", 1 << 60)
    assert "are needed" in room_for(tmp_path)
