"""The projector on a real log: it keeps up, says so, and starts over when the log is another one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.bus.event import Event, Recorded
from hark.config import BusConfig, StorageConfig
from hark.errors import UnavailableError
from hark.storage import EventFilter, Projector, Queries, rebuild
from hark.storage import projector as projector_module
from hark.storage.fold import Changes, fold
from hark.storage.progress import Progress
from hark.storage.store import Store, digest

History = Callable[[int, int], list[Recorded]]


async def publish(bus: Bus, records: list[Recorded]) -> int:
    """Put made-up messages into the real log, rubbish included; return the last sequence."""
    for n, record in enumerate(records):
        await bus.publisher.publish_raw(record.subject, record.raw, f"m{record.seq}-{n}-{id(records)}")
    await bus.publisher.barrier()
    return await bus.log.head()


async def test_what_is_in_the_log_can_be_asked_for(bus: Bus, home: Path, make_history: History) -> None:
    """Everything stored before and after the projector began is there once ``caught_up`` has returned."""
    path = home / "hark.db"
    log = make_history(900, 1)
    await publish(bus, log[:500])
    async with Projector(bus, path, StorageConfig(batch=64)) as projector, Queries(path) as queries:
        head = await publish(bus, log[500:])
        await projector.caught_up(head, timeout_s=60)
        assert (projector.seq, head) == (900, 900)
        assert await queries.reached() == 900
        added = await bus.log.append(Event(type="order.late", source="/x", id="late"))
        await projector.caught_up(added.seq, timeout_s=60)
        assert (await queries.event("late")).seq == added.seq
        with pytest.raises(UnavailableError, match="asked for"):
            await projector.caught_up(head + 100, timeout_s=0.05)


async def test_the_file_is_disposable(bus: Bus, home: Path, make_history: History) -> None:
    """Deleted and folded again, rebuilt in place, rebuilt offline, in batches of any size: the rows are the same."""
    head = await publish(bus, make_history(1200, 2))
    digests = set()
    for batch in (1000, 37):
        async with Projector(bus, home / "a.db", StorageConfig(batch=batch)) as projector:
            await projector.caught_up(head, timeout_s=60)
        digests.add(await digest(home / "a.db"))
        for name in ("a.db", "a.db-wal", "a.db-shm"):
            (home / name).unlink(missing_ok=True)
    async with Projector(bus, home / "b.db", StorageConfig()) as projector, Queries(home / "b.db") as queries:
        await projector.caught_up(head, timeout_s=60)
        await projector.rebuild()
        assert await queries.reached() == head
        assert len((await queries.events(EventFilter(types=("order.paid",)), limit=5)).items) == 5
    digests.add(await digest(home / "b.db"))
    seen: list[tuple[int, int]] = []
    reached = await rebuild(
        bus, home / "b.db", StorageConfig(batch=500), progress=lambda n, left: seen.append((n, left))
    )
    assert reached == head
    assert seen[-1] == (1200, 0)
    digests.add(await digest(home / "b.db"))
    assert len(digests) == 1


async def test_a_log_that_ends_in_what_is_no_event_is_whole_at_its_last_event(bus: Bus, home: Path) -> None:
    """A timer behind the last event, or a tail that is gone, keeps nobody waiting for an event that will not come."""
    path, progress = home / "a.db", Progress()
    found = await bus.log.append(Event(type="order.placed", source="/x", id="found"))
    await bus.timers.set(
        "later", Event(type="order.late", source="/x"), at=datetime.now(UTC) + timedelta(days=1)
    )
    assert await bus.log.head() > found.seq
    with anyio.fail_after(60):
        async with (
            Projector(bus, path, StorageConfig(), progress=progress) as projector,
            Queries(path, progress=progress) as queries,
        ):
            await projector.caught_up(found.seq, timeout_s=60)
            assert (await queries.event("found")).seq == found.seq
            await projector.rebuild()
            assert (await queries.event("found")).seq == found.seq
        await bus.connection.api("STREAM.PURGE.HARK", {})
        async with Projector(bus, home / "b.db", StorageConfig(), progress=(anew := Progress())):
            anew.require_whole()


async def test_a_file_ahead_of_its_log_is_folded_again(bus: Bus, home: Path, make_history: History) -> None:
    """A log that lost its tail (a restored backup, a power cut) makes the file begin anew, not wait for ever."""
    path = home / "a.db"
    head = await publish(bus, make_history(50, 1))
    async with Store(path, stream=(await bus.log.state()).copy) as store:
        await store.commit(Changes(reached=5000))
    async with Projector(bus, path, StorageConfig()) as projector:
        await projector.caught_up(head, timeout_s=60)
        assert projector.seq == head
    async with Queries(path) as queries:
        assert (await queries.events(limit=1000)).items[-1].seq == 1


async def test_an_older_log_put_back_is_noticed_though_it_has_grown_since(
    bus: Bus, home: Path, make_history: History, caplog: pytest.LogCaptureFixture
) -> None:
    """The last event of the file is not the one that stands in its place: what is in no log is in no row either."""
    path, lost = home / "a.db", make_history(30, 2)
    head = await publish(bus, make_history(60, 1))
    async with Store(path, stream=(await bus.log.state()).copy) as store:
        await store.commit(fold(lost))  # as a file folded before the older copy was put back would have them
    async with Projector(bus, path, StorageConfig()) as projector, Queries(path) as queries:
        await projector.caught_up(head, timeout_s=60)
        rows = (await queries.events(limit=1000, oldest_first=True)).items
    assert rows[0].seq == 1
    assert await digest(path) == await _folded_anew(bus, home / "b.db")
    assert [r.message for r in caplog.records if "rewound" in r.message] == ["storage.log_rewound"]


async def _folded_anew(bus: Bus, path: Path) -> str:
    await rebuild(bus, path, StorageConfig())
    return await digest(path)


async def test_another_log_is_noticed_though_it_is_longer(
    bus: Bus, home: Path, tmp_path: Path, make_history: History
) -> None:
    """The file remembers which log it was folded from; a wiped and refilled one is another."""
    path = home / "a.db"
    first = await publish(bus, make_history(100, 1))
    async with Projector(bus, path, StorageConfig()) as projector:
        await projector.caught_up(first, timeout_s=60)
    other_home = tmp_path / "other"
    other_home.mkdir()
    async with (
        EmbeddedBroker(other_home, BusConfig()) as broker,
        Bus(broker.address, BusConfig(), name="other") as other,
        Projector(other, path, StorageConfig()) as projector,
        Queries(path) as queries,
    ):
        await other.log.append(Event(type="new.log", source="/x"))
        head = await publish(other, make_history(150, 2))
        await projector.caught_up(head, timeout_s=60)
        events = await queries.events(EventFilter(types=("new.log",)))
        assert [e.seq for e in events.items] == [1]
        assert (await queries.reached()) == 151


async def test_a_rebuild_does_not_wait_for_an_event_that_has_left_the_log(
    bus: Bus, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Purged, or grown too old, between the asking and the folding."""
    monkeypatch.setattr(projector_module, "_LOOK_AGAIN_S", 0.05)
    found = await bus.log.append(Event(type="order.placed", source="/x"))
    last_event = projector_module._last_event

    async def purged_behind(bus: Bus) -> int:
        last = await last_event(bus)
        await bus.connection.api("STREAM.PURGE.HARK", {})
        return last

    async with Projector(bus, home / "a.db", StorageConfig()) as projector:
        await projector.caught_up(found.seq, timeout_s=60)
        monkeypatch.setattr(projector_module, "_last_event", purged_behind)
        with anyio.fail_after(60):
            await projector.rebuild()


async def test_readers_are_answered_though_the_last_event_has_left_the_log_unread(
    bus: Bus, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that is folded from the beginning: nothing more will come, so what there is is whole."""
    await bus.log.append(Event(type="order.placed", source="/x"))
    last_event = projector_module._last_event

    async def purged_behind(bus: Bus) -> int:
        last = await last_event(bus)
        await bus.connection.api("STREAM.PURGE.HARK", {})
        return last

    monkeypatch.setattr(projector_module, "_last_event", purged_behind)
    progress = Progress()
    async with (
        Projector(bus, home / "a.db", StorageConfig(), progress=progress),
        Queries(home / "a.db", progress=progress) as queries,
    ):
        assert await queries.reached() == 0


async def test_rows_go_when_their_events_leave_the_log(
    home: Path, broker: EmbeddedBroker, make_history: History
) -> None:
    """A bounded log bounds the read model: what the broker dropped is dropped here too."""
    config = BusConfig(max_bytes=1 << 20)
    path = home / "a.db"
    async with Bus(broker.address, config, name="small") as bus:
        await publish(bus, make_history(1500, 1))
        async with Projector(bus, path, StorageConfig()) as projector:
            await projector.caught_up(1500, timeout_s=60)
        for seed in (2, 3):
            await publish(bus, make_history(1500, seed))
        state = await bus.log.state()
        assert state.first_seq > 1500
        async with (
            Projector(bus, path, StorageConfig(prune_every_s=0.001)) as projector,
            Queries(path) as queries,
        ):
            await projector.caught_up(state.last_seq, timeout_s=60)
            added = await bus.log.append(Event(type="one.more", source="/x"))
            await projector.caught_up(added.seq, timeout_s=60)
            oldest = (await queries.events(limit=1, oldest_first=True)).items[0]
            assert oldest.seq >= state.first_seq
        async with Projector(bus, path, StorageConfig()):
            pass
        await rebuild(bus, home / "b.db", StorageConfig())
    assert await digest(path) == await digest(home / "b.db")


async def test_a_broker_killed_meanwhile_costs_nothing(
    bus: Bus, broker: EmbeddedBroker, home: Path, make_history: History
) -> None:
    """Across a kill -9 of the broker the projector goes on by itself, every event once."""
    path = home / "a.db"
    async with Projector(bus, path, StorageConfig(batch=20)) as projector:
        await publish(bus, make_history(300, 1))
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        with anyio.fail_after(60):
            while True:
                try:
                    added = await bus.log.append(Event(type="after.kill", source="/x", id="after"))
                    break
                except UnavailableError:
                    await anyio.sleep(0.05)
        await projector.caught_up(added.seq, timeout_s=60)
    await rebuild(bus, home / "b.db", StorageConfig())
    assert await digest(path) == await digest(home / "b.db")
