"""The writer: exactly once, survives anything, throws away what it cannot trust."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from hark.bus.event import Recorded
from hark.errors import GuardFailed
from hark.storage import store as store_module
from hark.storage.fold import fold
from hark.storage.store import Store, digest

History = Callable[[int, int], list[Recorded]]


async def test_a_second_open_goes_on_where_the_first_stopped(tmp_path: Path, make_history: History) -> None:
    """The sequence is in the file with the rows, so nothing is folded twice or skipped."""
    log, path = make_history(400, 1), tmp_path / "a.db"
    async with Store(path, stream="s") as store:
        await store.commit(fold(log[:150]))
    async with Store(path, stream="s") as store:
        assert store.reached.seq == 150
        await store.commit(fold(log[150:]))
        await store.commit(fold(log[100:150]))  # old news changes nothing
        assert store.reached.seq == 400
    async with Store(tmp_path / "b.db", stream="s") as store:
        await store.commit(fold(log))
    assert await digest(path) == await digest(tmp_path / "b.db")


@pytest.mark.parametrize("reason", ["stream", "version", "rubbish", "cut"])
async def test_a_file_that_cannot_be_trusted_is_made_anew(
    tmp_path: Path, make_history: History, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another log, another schema, no database, or damaged: the file is dropped, and folding begins at 0."""
    path = tmp_path / "a.db"
    async with Store(path, stream="s") as store:
        await store.commit(fold(make_history(100, 1)))
    if reason == "version":
        monkeypatch.setattr(store_module, "SCHEMA_VERSION", 99_999)
    elif reason == "rubbish":
        path.write_bytes(b"this is no database at all" * 1000)
    elif reason == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    async with Store(path, stream="other" if reason == "stream" else "s") as store:
        assert store.reached.seq == 0
        await store.commit(fold(make_history(100, 1)))
        assert store.reached.seq == 100


async def test_of_two_writers_one_is_refused(tmp_path: Path, make_history: History) -> None:
    """A second process folding into the same file cannot fold anything twice: its commit names a stale sequence."""
    log, path = make_history(200, 1), tmp_path / "a.db"
    async with Store(path, stream="s") as one, Store(path, stream="s") as two:
        await one.commit(fold(log[:100]))
        with pytest.raises(GuardFailed):
            await two.commit(fold(log[:50]))
        assert (await two.reload()).seq == 100
        await two.commit(fold(log[100:]))
    async with Store(tmp_path / "b.db", stream="s") as store:
        await store.commit(fold(log))
    assert await digest(path) == await digest(tmp_path / "b.db")


async def test_a_commit_cancelled_halfway_leaves_no_trace(tmp_path: Path, make_history: History) -> None:
    """Either the whole batch with its sequence, or nothing of it."""
    log, path = make_history(3000, 1), tmp_path / "a.db"
    changes = fold(log)
    async with Store(path, stream="s") as store:
        for delay_s in (0.0005, 0.002, 0.005, 0.02):
            with anyio.move_on_after(delay_s):
                await store.commit(changes)
            async with Store(path, stream="s") as other:
                with sqlite3.connect(path) as db:
                    [n] = db.execute("SELECT count(*) FROM events").fetchone()
                db.close()
                assert other.reached.seq in (0, 3000)
                assert (n > 0) == (other.reached.seq > 0)
        await store.reload()
        await store.commit(changes)
        assert store.reached.seq == 3000


def test_killed_in_the_middle_it_ends_with_the_same_rows(tmp_path: Path, make_history: History) -> None:
    """kill -9 at any moment, restart, and the rows are those of an uninterrupted fold."""
    script, count, path = Path(__file__).with_name("history.py"), 3000, tmp_path / "a.db"
    command = [sys.executable, str(script), str(path), str(count), "5", "10"]
    for lines in (5, 23, 40):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
            assert child.stdout is not None
            # Its line comes just before a commit begins, so the kill falls into the middle of one.
            for _ in range(lines):
                assert child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, check=True)
    assert b'"done":true' in done.stdout

    async def both() -> tuple[str, str]:
        async with Store(tmp_path / "b.db", stream="HARK@test") as store:
            await store.commit(fold(make_history(count, 5)))
        return await digest(path), await digest(tmp_path / "b.db")

    assert len(set(anyio.run(both))) == 1
