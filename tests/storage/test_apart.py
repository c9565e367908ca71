"""Folding in a process of its own while much happens: the same rows, whoever folds, and no process left behind."""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from hark.bus import Bus
from hark.bus.event import Event, Recorded
from hark.config import StorageConfig
from hark.storage import apart, rebuild
from hark.storage.apart import Projection
from hark.storage.charge import GO, Charge
from hark.storage.precedence import Processor, is_starving
from hark.storage.progress import Pace, Progress
from hark.storage.store import digest

History = Callable[[int, int], list[Recorded]]


async def stored(bus: Bus, records: list[Recorded]) -> int:
    """Put made-up messages into the log and return its last sequence."""
    for record in records:
        await bus.publisher.publish_raw(record.subject, record.raw, f"m{record.seq}-{id(records)}")
    await bus.publisher.barrier()
    return await bus.log.head()


async def until(projection: Projection, bus: Bus, *, is_apart: bool) -> None:
    """Append an event now and then until the read model is folded where it is asked for."""
    with anyio.fail_after(60):
        while projection.is_apart is not is_apart:
            added = await bus.log.append(Event(type="some.thing", source="/test"))
            await projection.caught_up(added.seq, timeout_s=60)
            await anyio.sleep(0.01)


def insists(projection: Projection) -> None:
    """Have its processes not give way to others at once: on a machine where others never rest they would be ended for it."""
    projection._pushes_until_s = math.inf


def pids(caplog: pytest.LogCaptureFixture) -> list[int]:
    """Return the processes that were started, in order."""
    return [record.__dict__["child"] for record in caplog.records if record.message == "storage.apart"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call any events at all much, at once, and nothing little; and try again without a pause."""
    monkeypatch.setattr(apart, "_BUSY_S", 0.0)
    monkeypatch.setattr(apart, "_QUIET_SHARE", 0.0)
    monkeypatch.setattr(apart, "_AGAIN_S", 0.0)


async def test_while_much_happens_another_process_folds_the_same_rows(
    bus: Bus, home: Path, make_history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes before, while and after it folds can be read here; asked to rebuild, it comes home."""
    path, config, log = home / "a.db", StorageConfig(apart_from=0.001, batch=64), make_history(900, 1)
    before, progress = await stored(bus, log[:300]), Progress()
    async with Projection(bus, path, config, progress=progress) as projection:
        insists(projection)
        await until(projection, bus, is_apart=True)
        head = await stored(bus, log[300:600])
        await projection.caught_up(head, timeout_s=60)
        was_apart = projection.is_apart
        assert progress.whole_from == before  # nobody was refused what could be read when it moved out
        monkeypatch.setattr(apart, "_BUSY_S", math.inf)
        await projection.rebuild()
        assert not projection.is_apart
        assert was_apart
        assert projection.seq >= head
        await projection.caught_up(await stored(bus, log[600:]), timeout_s=60)
    await rebuild(bus, home / "b.db", config)
    assert await digest(path) == await digest(home / "b.db")


async def test_a_killed_process_costs_nothing(
    bus: Bus,
    home: Path,
    make_history: History,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed with -9 while it folds, this process goes on where the file stops; the next one ends when little happens."""
    caplog.set_level(logging.INFO, "hark.storage.apart")
    path, config = home / "a.db", StorageConfig(apart_from=0.001)
    async with Projection(bus, path, config) as projection:
        insists(projection)
        await until(projection, bus, is_apart=True)
        head = await stored(bus, make_history(300, 1))
        monkeypatch.setattr(apart, "_QUIET_S", 0.05)
        monkeypatch.setattr(apart, "_QUIET_SHARE", math.inf)
        os.kill(pids(caplog)[0], signal.SIGKILL)
        await projection.caught_up(head, timeout_s=60)
        with anyio.fail_after(60):
            while len(pids(caplog)) < 2:
                await bus.log.append(Event(type="some.thing", source="/test"))
                await anyio.sleep(0.01)
        monkeypatch.setattr(apart, "_BUSY_S", math.inf)
        await until(projection, bus, is_apart=False)
        await projection.caught_up(await bus.log.head(), timeout_s=60)
    said = [r.message for r in caplog.records if r.name == "hark.storage.apart"]
    assert said.count("storage.apart_failed") == 1
    assert "storage.home" in said
    await rebuild(bus, home / "b.db", config)
    assert await digest(path) == await digest(home / "b.db")


def abandoned(charge: Charge) -> tuple[int, str]:
    """Start a process, listen until it is ready and no more, and let it go; return its code and what it complained of."""
    with subprocess.Popen(
        [sys.executable, "-m", "hark.storage.projector_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(pickle.dumps(charge))
        child.stdin.flush()
        assert b"ready" in child.stdout.readline()
        child.stdout.close()
        child.stdin.write(b"%s 0\n" % GO)
        child.stdin.flush()
        return child.wait(60), child.stderr.read().decode()


async def test_a_process_whose_service_was_killed_ends_without_a_word(bus: Bus, home: Path) -> None:
    """Nobody reads any more what it says of how far it is; its complaint would be the last thing in the service's log."""
    await bus.log.append(Event(type="some.thing", source="/test"))
    charge = Charge(bus.address, bus.config, StorageConfig(), home / "a.db")
    assert await anyio.to_thread.run_sync(abandoned, charge) == (0, "")


async def test_without_another_process_it_stays_here(
    bus: Bus, home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no process can be started, or none is wanted, this one folds."""
    monkeypatch.setattr(sys, "executable", str(home / "no-python"))
    async with Projection(bus, home / "a.db", StorageConfig(apart_from=0.001)) as projection:
        for n in range(3):
            added = await bus.log.append(Event(type="some.thing", source="/test", id=f"e{n}"))
            await projection.caught_up(added.seq, timeout_s=60)
        assert not projection.is_apart
    assert "storage.apart_failed" in [r.message for r in caplog.records]
    caplog.clear()
    async with Projection(bus, home / "a.db", StorageConfig(apart_from=0)) as projection:
        added = await bus.log.append(Event(type="some.thing", source="/test"))
        await projection.caught_up(added.seq, timeout_s=60)
    assert caplog.records == []


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such class of processes")
async def test_a_process_gives_way_to_others_until_they_leave_it_nothing(
    bus: Bus, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, even in the middle of what it does; where it does not get to run, the next one insists on some of the time. In
    between nothing is folded here, where everything else would wait for it."""
    caplog.set_level(logging.INFO, "hark.storage.apart")

    def looks(before: Processor, now: Processor, *, took_s: float) -> bool:
        # What is seen of it on a machine where others never rest; it gives way once it is at work.
        return os.sched_getscheduler(pids(caplog)[-1]) == os.SCHED_IDLE

    monkeypatch.setattr(apart, "_HUNGER_S", 0.01)
    monkeypatch.setattr(apart, "is_starving", looks)
    async with Projection(bus, home / "a.db", StorageConfig(apart_from=0.001)) as projection:
        with anyio.fail_after(60):
            while len(pids(caplog)) < 2:
                await bus.log.append(Event(type="some.thing", source="/test"))
                await anyio.sleep(0.01)
            pushing = pids(caplog)[1]
            # What another process does makes no event here.
            while os.getpriority(os.PRIO_PROCESS, pushing) == os.getpriority(os.PRIO_PROCESS, 0):  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert os.sched_getscheduler(pushing) == os.sched_getscheduler(0)
        await projection.caught_up(await bus.log.head(), timeout_s=60)
        assert projection.is_apart
        assert "storage.home" not in [r.message for r in caplog.records]
    # How soon it ends is the machine's affair.
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [word for word in warned if word != "storage.apart_killed"] == ["storage.apart_starving"]


def test_hunger_is_waiting_without_running() -> None:
    """Who runs as much as it waits is only slow, and who does neither has nothing to do."""
    now = Processor.of(os.getpid())
    if now is not None:
        assert now.ran_s > 0
    for ran_s, waited_s, starves in (
        (0.02, 1.9, True),
        (0.8, 1.4, False),
        (0.0, 0.0, False),
        (0.3, 0.9, False),
    ):
        assert is_starving(Processor(5, 7), Processor(5 + ran_s, 7 + waited_s), took_s=2.0) is starves
    assert Processor.of(2**22 + 1) is None


def test_a_pace_is_of_the_stretch_since_the_last_answer() -> None:
    """Asked too soon it says nothing; a sequence that went back (rows were dropped) is no pace below none."""
    pace = Pace(seq=100, now_s=10.0, over_s=2.0)
    assert pace.at(5_000, 11.9) is None
    assert pace.at(4_100, 12.0) == 2_000
    assert pace.at(4_200, 13.0) is None
    assert pace.at(4_200, 22.0) == 10
    assert pace.at(0, 24.0) == 0
