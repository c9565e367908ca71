"""The files of the read model deleted, cut, replaced or overwritten while they are in use: made anew, and never a wrong answer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from hark.bus import Bus
from hark.bus.event import Event, Recorded
from hark.clock import SystemClock
from hark.config import StorageConfig
from hark.errors import UnavailableError
from hark.storage import EventFilter, Projector, Queries
from hark.storage import projector as projector_module
from hark.storage.fold import fold
from hark.storage.progress import Progress
from hark.storage.store import Store
from hark.storage.trace import Traces

History = Callable[[int, int], list[Recorded]]


def deleted(path: Path) -> None:
    path.unlink()


def without_its_journal(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def cut(path: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def overwritten(path: Path) -> None:
    """Put garbage where the rows are, with nothing of them left in the journal."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


async def test_harmed_while_in_use_it_is_made_anew_and_no_answer_is_wrong(
    bus: Bus,
    home: Path,
    make_history: History,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is done to the files, answers are right or refused, soon right again, and the log says what was found."""
    monkeypatch.setattr(projector_module, "_DISK_S", 0.0)
    path, progress = home / "a.db", Progress()
    for record in make_history(300, 1):
        await bus.publisher.publish_raw(record.subject, record.raw, f"m{record.seq}")
    await bus.publisher.barrier()
    await bus.log.append(Event(type="to.find", source="/test"))
    asked = EventFilter(types=("to.find",))
    async with (
        Projector(bus, path, StorageConfig(), progress=progress) as projector,
        Queries(path, progress=progress) as queries,
    ):
        await projector.caught_up(await bus.log.head(), timeout_s=60)
        for number, harm in enumerate((deleted, without_its_journal, cut, replaced, overwritten), 1):
            assert len((await queries.events(asked)).items) == number
            harm(path)
            # Asked before anything is written: who cannot read tells who folds.
            for _ in range(3):
                try:
                    assert len((await queries.events(asked)).items) == number, harm.__name__
                except UnavailableError:
                    await anyio.lowlevel.checkpoint()
            added = await bus.log.append(Event(type="to.find", source="/test"))
            await projector.caught_up(added.seq, timeout_s=60)
            with anyio.fail_after(60):
                while True:  # damage inside the file shows only when somebody reads what is damaged
                    try:
                        assert len((await queries.events(asked)).items) == number + 1, harm.__name__
                        break
                    except UnavailableError:
                        await anyio.sleep(0.01)
            assert [r.message for r in caplog.records].count("storage.made_anew") == number, harm.__name__


async def test_another_process_leaves_the_journal_to_readers_that_use_it(
    tmp_path: Path, make_history: History
) -> None:
    """Opened again for writing while somebody reads, the file keeps the locks that tell other processes of the readers."""
    path = tmp_path / "a.db"
    async with Queries(path) as queries:
        async with Store(path, stream="s") as store:
            await store.commit(fold(make_history(20, 1)))
            before = len((await queries.events(limit=1000)).items)
        async with Store(path, stream="s"):
            pass
        script = (
            "import sqlite3, sys\n"
            "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "db.execute('UPDATE meta SET stream = stream'); db.close()"
        )
        await anyio.run_process([sys.executable, "-c", script, str(path)], stderr=subprocess.STDOUT)
        assert path.with_name("a.db-wal").exists()
        assert len((await queries.events(limit=1000)).items) == before


class Slept(SystemClock):
    """Remembers for how long it was asked to sleep, and sleeps a little; it always shows the same time."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, delay_s: float) -> None:
        self.asked.append(delay_s)
        await anyio.sleep(0.01)


async def test_damaged_files_that_cannot_be_deleted_are_waited_for(
    bus: Bus, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The projector goes on once they can be, and pauses before it makes another file anew right after that."""
    path, clock = home / "a.db", Slept()
    async with Projector(bus, path, StorageConfig(), clock) as projector:
        path.unlink()
        path.mkdir()  # no unlink removes it, whoever asks
        await bus.log.append(Event(type="some.thing", source="/test"))
        with anyio.fail_after(60):
            # What is logged makes no event here.
            while "storage.disk_unavailable" not in caplog.messages:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        path.rmdir()
        added = await bus.log.append(Event(type="some.thing", source="/test"))
        await projector.caught_up(added.seq, timeout_s=60)
        deleted(path)
        clock.asked.clear()
        added = await bus.log.append(Event(type="some.thing", source="/test"))
        await projector.caught_up(added.seq, timeout_s=60)
    assert caplog.messages.count("storage.made_anew") == 2
    assert 5.0 in clock.asked
    with pytest.raises(UnavailableError, match="looked at"):
        Traces(home / ("a" * 300)).check()


def test_old_rows_that_were_answered_go_on_being_answered() -> None:
    """Opened anew far behind (another process, an outage), only what began anew is refused; at the start, also what is far behind."""
    progress = Progress()
    for seq, last_seq, whole_from in (
        (500, 5_000, 5_000),  # where the service begins: old for a while
        (800, 5_500, 5_000),  # still catching up
        (5_500, 90_000, 5_000),  # whole before: old rows are better than none
        (0, 95_000, 95_000),  # rows are missing
        (300, 96_000, 95_000),
        (95_000, 94_000, 94_000),
    ):
        progress.open_at(seq, last_seq=last_seq, far=1_000)
        assert progress.whole_from == whole_from, seq
    near = Progress()
    near.open_at(500, last_seq=1_500, far=1_000)
    near.reach(500, 1_000)
    near.require_whole()


async def test_while_it_is_folded_from_the_beginning_nothing_is_said_to_be_missing(
    tmp_path: Path, make_history: History
) -> None:
    """An answer that would leave out what was there before is refused, with how far it is."""
    path, progress = tmp_path / "a.db", Progress()
    async with Store(path, stream="s") as store, Queries(path, progress=progress) as queries:
        await store.commit(fold(make_history(20, 1)))
        progress.begin(500)
        progress.reach(20, 480)
        with pytest.raises(UnavailableError, match="event 20 of 500"):
            await queries.events()
        progress.reach(500, 0)
        assert (await queries.events()).items
