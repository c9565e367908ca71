"""A backup holds the whole of a Hark, and a restore makes it whole again, or changes nothing."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker, Event
from hark.bus.archive import read_archive
from hark.bus.backup import BackupTaken, in_order, take_backup
from hark.bus.large_value import LargeValues, on_hold
from hark.bus.restore import restore_broker, restore_home
from hark.bus.subject import RESTORED
from hark.bus.swap import begin_swap, commit_swap, finish_swap
from hark.config import BusConfig
from hark.errors import AlreadyHeld, BackupUnreadable, BusUnavailable, RefusedError, UnknownName

CONFIG = BusConfig()


def an_event(id_: str, type_: str = "order.paid") -> Event:
    return Event(type=type_, source="/test", id=id_, data={"id": id_})


async def fill(bus: Bus) -> None:
    """Something of everything, with gaps in the sequences."""
    for i in range(20):
        await bus.log.append(an_event(f"e{i}"))
    await bus.connection.api("STREAM.MSG.DELETE.HARK", {"seq": 7})
    variables = bus.bucket("variables")
    for value in (b"1", b"2", b"3"):
        await variables.put("region", value)
    await bus.objects.put("results/big", b"r" * 400_000, keep=True)
    await bus.work.push("default", "default", b"run-1", msg_id="run-1/1")
    await bus.timers.set(
        "later", an_event("later", "timer.fired"), at=datetime.now(UTC) + timedelta(seconds=2)
    )
    await bus.timers.set("far", an_event("far", "timer.fired"), at=datetime.now(UTC) + timedelta(days=2))
    async with bus.log.consume("readers", deliver_after=0, ack_wait_s=1) as consumer:
        acknowledged = 0
        while acknowledged < 5:  # it gives what has come, which may be less
            for item in await consumer.fetch(5 - acknowledged):
                await item.ack()
                acknowledged += 1


async def backed_up(home: Path, path: Path) -> BackupTaken:
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        await fill(bus)
        return await take_backup(bus, path, key=b"k" * 44)


async def ids(bus: Bus) -> dict[int, str]:
    async with bus.log.read() as batches:
        return {r.seq: r.event.id async for b in batches for r in b.records}


async def test_a_restored_home_goes_on_where_the_backup_was_taken(tmp_path: Path) -> None:
    """Sequences, revisions, large values, work, timers, readers' places, and the name of the log."""
    home, other, path = tmp_path / "home", tmp_path / "other", tmp_path / "b.hark"
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        await fill(bus)
        taken = await take_backup(bus, path, key=b"k" * 44)
        # Not what has been stored since: the nearer timer may have fired.
        before = {seq: i for seq, i in (await ids(bus)).items() if seq <= taken.last_seq}
        state = await bus.log.state()
    assert taken.last_seq in (state.last_seq, state.last_seq - 1)
    done = await restore_home(read_archive(path), other, CONFIG)
    assert done.kept is None
    assert (other / "secret.key").read_bytes() == b"k" * 44
    assert (other / "secret.key").stat().st_mode & 0o777 == 0o600
    async with EmbeddedBroker(other, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        async with bus.log.follow(["hark.ev.timer.fired"], after=0) as batches:
            with anyio.fail_after(60):
                async for batch in batches:
                    if batch.records:
                        break
        assert [r.event.id for r in batch.records] == ["later"]
        after, now = await ids(bus), await bus.log.state()
        assert {seq: i for seq, i in after.items() if seq in before} == before
        assert [seq for seq in sorted(after) if seq > taken.last_seq][:1] in ([], [taken.last_seq + 1])
        assert now.incarnation == state.incarnation
        assert now.copy != state.copy
        assert (await bus.log.append(an_event("e19"))).duplicate
        region = await bus.bucket("variables").get("region")
        assert region is not None
        assert (region.value, region.revision) == (b"3", 3)
        assert await bus.objects.get("results/big") == b"r" * 400_000
        assert await bus.timers.cancel("far")
        async with bus.work.consume("default", ["default"]) as work:
            async for item in work:
                assert item.payload == b"run-1"
                await item.ack()
                break
        async with bus.log.consume("readers", ack_wait_s=1) as consumer:
            handed: set[str] = set()
            wanted = {f"e{i}" for i in range(5, 20) if i != 6}
            while not wanted <= handed:
                for got in await consumer.fetch(50):
                    handed.add(got.recorded.event.id)
                    await got.ack()
            assert not handed & {f"e{i}" for i in range(5)}


async def test_a_home_that_holds_something_is_kept_beside(tmp_path: Path) -> None:
    """Only on request; what was there stands in a folder of its own and can be put back by hand."""
    home, path = tmp_path / "home", tmp_path / "b.hark"
    await backed_up(home, path)
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        await bus.log.append(an_event("of-the-day-after"))
        with pytest.raises(AlreadyHeld):
            await restore_home(read_archive(path), home, CONFIG, force=True)
    (home / "hark.sqlite").write_text("rows")
    with pytest.raises(RefusedError, match="holds a Hark already"):
        await restore_home(read_archive(path), home, CONFIG)
    done = await restore_home(read_archive(path), home, CONFIG, force=True)
    assert done.kept is not None
    assert not (home / "hark.sqlite").exists()
    assert (done.kept / "hark.sqlite").read_text() == "rows"
    async with EmbeddedBroker(done.kept, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        assert "of-the-day-after" in (await ids(bus)).values()
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        found = await ids(bus)
        assert "of-the-day-after" not in found.values()
        assert "e19" in found.values()


async def test_a_restore_is_made_whole_by_whoever_opens_the_home_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two steps of the exchange: the old home before it is committed, the new one from then on."""
    real = Path.rename

    class Killed(Exception):
        pass

    for steps in range(6):
        home = tmp_path / f"home{steps}"
        (home / "nats").mkdir(parents=True)
        (home / "nats" / "who").write_text("old")
        (home / "secret.key").write_text("old")
        (home / "hark.sqlite").write_text("old")
        new = begin_swap(home)
        (new / "nats").mkdir()
        (new / "nats" / "who").write_text("new")
        (new / "secret.key").write_text("new")
        assert finish_swap(home) is None
        assert (home / "nats" / "who").read_text() == "old"
        commit_swap(home, kept="kept")
        done = 0

        def rename(self: Path, target: Path, *, most: int = steps) -> Path:
            nonlocal done
            if done == most:
                raise Killed
            done += 1
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename)
            if steps < 5:
                with pytest.raises(Killed):
                    finish_swap(home)
        finish_swap(home)
        assert (home / "nats" / "who").read_text() == (home / "secret.key").read_text() == "new"
        assert (home / "kept" / "nats" / "who").read_text() == "old"
        assert (
            (home / "kept" / "secret.key").read_text() == (home / "kept" / "hark.sqlite").read_text() == "old"
        )
        assert sorted(p.name for p in home.iterdir()) == ["kept", "nats", "secret.key"]


async def test_a_restore_that_is_killed_has_changed_nothing(tmp_path: Path) -> None:
    """While streams are being made: the home opens as it was, and the next restore goes through."""
    home, path = tmp_path / "home", tmp_path / "b.hark"
    await backed_up(home, path)
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        await bus.log.append(an_event("mine"))
    code = (
        "import os, sys, anyio, pathlib\nfrom hark.bus.archive import read_archive\n"
        "from hark.bus.restore import restore_home\nfrom hark.config import BusConfig\n"
        "def told(name, size):\n    if name == 'HARK_WORK': os.kill(os.getpid(), 9)\n"
        "async def main():\n"
        "    await restore_home(read_archive(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), BusConfig(),\n"
        "                       force=True, on_piece=told)\n"
        "anyio.run(main)\n"
    )
    process = await anyio.run_process([sys.executable, "-c", code, str(path), str(home)], check=False)
    assert process.returncode == -9, process.stderr.decode()
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        assert "mine" in (await ids(bus)).values()
    done = await restore_home(read_archive(path), home, CONFIG, force=True)
    assert done.kept is not None
    async with EmbeddedBroker(home, CONFIG) as broker, Bus(broker.address, CONFIG) as bus:
        assert "mine" not in (await ids(bus)).values()


async def test_a_broker_of_others_is_restored_while_nobody_uses_it(tmp_path: Path) -> None:
    """Streams of others stay; a Hark that is there is saved to a file first; a service that runs is in the way."""
    path = tmp_path / "b.hark"
    taken = await backed_up(tmp_path / "home", path)
    archive = read_archive(path)
    async with EmbeddedBroker(tmp_path / "outside", CONFIG) as broker:
        async with Bus(broker.address, CONFIG) as bus:
            await bus.connection.api("STREAM.CREATE.SHOP", {"name": "SHOP", "subjects": ["shop.>"]})
            await bus.log.append(an_event("there"))
            async with bus.lease("dispatcher", holder="somebody").held():
                with pytest.raises(RefusedError, match="uses this broker: dispatcher"):
                    await restore_broker(archive, broker.address, tmp_path / "h", CONFIG, force=True)
            with pytest.raises(RefusedError, match="holds a Hark already"):
                await restore_broker(archive, broker.address, tmp_path / "h", CONFIG)
        done = await restore_broker(archive, broker.address, tmp_path / "h", CONFIG, force=True)
        assert done.last_seq == taken.last_seq + 1
        async with Bus(broker.address, CONFIG) as bus:
            assert "there" not in (await ids(bus)).values()
            assert (await bus.log.get(done.last_seq)).event.type == RESTORED  # type: ignore[union-attr]
            assert await bus.connection.api("STREAM.INFO.SHOP")
        assert done.kept is not None
        back = await restore_broker(
            read_archive(done.kept), broker.address, tmp_path / "h", CONFIG, force=True
        )
        assert back.kept is not None
        async with Bus(broker.address, CONFIG) as bus:
            assert "there" in (await ids(bus)).values()


async def test_a_backup_of_a_later_broker_is_refused_before_anything_is_touched(
    broker: EmbeddedBroker, bus: Bus, tmp_path: Path
) -> None:
    """The message says which version it needs."""
    path = tmp_path / "b.hark"
    taken = await take_backup(bus, path, key=None)
    assert taken.secret_key == "not in the home"
    archive = read_archive(path)
    archive.header["broker"] = "99.1.0"
    with pytest.raises(BackupUnreadable, match=r"nats-server 99\.1\.0"):
        await restore_broker(archive, broker.address, tmp_path / "h", CONFIG, force=True)
    with pytest.raises(BackupUnreadable):
        await restore_home(archive, tmp_path / "h", CONFIG)
    assert not (tmp_path / "h" / "nats").exists()


async def test_what_a_checkpoint_names_stays_while_a_backup_copies(bus: Bus) -> None:
    """Keys are copied before large values; those that are replaced meanwhile are removed afterwards."""
    bucket = bus.bucket("checkpoints")
    large = LargeValues(bucket, bus.objects, owner="test")
    old = await large.put(b"old")
    async with on_hold(bucket, message_ttl=True):
        new = await large.put(b"new")
        await large.settle([new])
        assert await bus.objects.get(old) == b"old"
    await large.settle([new])
    with pytest.raises(UnknownName):
        await bus.objects.get(old)
    assert await bus.objects.get(new) == b"new"


def test_the_order_of_copies_keeps_readers_behind_the_log_and_definitions_in_front() -> None:
    """Checkpoints, outcomes and work, then the log, then definitions, then large values."""
    names = [
        "OBJ_hark_objects",
        "KV_hark_outbox",
        "HARK",
        "KV_hark_automations",
        "HARK_WORK",
        "KV_hark_checkpoints",
    ]
    assert in_order(names) == [
        "KV_hark_checkpoints", "KV_hark_outbox", "HARK_WORK", "HARK", "KV_hark_automations", "OBJ_hark_objects",
    ]  # fmt: skip


async def test_a_backup_outlives_a_broker_that_is_killed_and_comes_back(
    broker: EmbeddedBroker, bus: Bus, tmp_path: Path
) -> None:
    """With -9, between two streams: the file is whole, or there is none and the error says so."""
    path = tmp_path / "b.hark"
    await bus.log.append(an_event("e"))
    pid = broker.pid
    assert pid is not None

    def told(name: str, size: int) -> None:
        if name == "HARK_WORK":
            os.kill(pid, 9)

    try:
        await take_backup(bus, path, key=None, on_piece=told)
    except BusUnavailable:
        assert list(tmp_path.glob("b.hark*")) == []
    else:
        assert read_archive(path).piece("HARK") is not None
