"""How fast the read model keeps up: task events folded per second, with what it is made of measured beside it.

Three durable events per task run, as the engine writes them. Printed with this machine's `orjson.loads` and SQLite rates,
because absolute figures of a shared machine mean little. The goal is 20 000 task events/s, end to end (log -> rows), on
a machine where `orjson.loads` of them does 600 000/s: a thirtieth of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import orjson
from hark.bus import Bus, EmbeddedBroker
from hark.bus.event import Event, Recorded, format_time
from hark.bus.subject import subject_of
from hark.config import BusConfig, StorageConfig
from hark.storage import EventFilter, Projector, Queries, RunFilter
from hark.storage.fold import fold
from hark.storage.store import Store
from hark.vocabulary import JsonObject, new_id

TASKS_PER_RUN = 500
GOAL = 20_000
GOAL_SHARE = 1 / 30


def task_events(tasks: int) -> list[Recorded]:
    """Return the three events of each of ``tasks`` task runs."""
    at, flow_run = datetime.now(UTC), ""
    out: list[Recorded] = []
    for i in range(tasks):
        if i % TASKS_PER_RUN == 0:
            flow_run = new_id()
        task_run = new_id()
        for word in ("pending", "running", "completed"):
            data: JsonObject = {
                "flow_run": {"id": flow_run, "name": "brave-otter"}, "flow": {"name": "etl"},
                "deployment": {"name": "nightly-etl"}, "task": {"name": "add", "key": "add-0f3c"},
                "run": {"id": task_run, "name": f"add-{i}", "attempt": 1, "index": i % TASKS_PER_RUN,
                        "started_at": format_time(at), "duration_s": 0.001 if word == "completed" else None},
                "state": {"type": word.upper(), "name": word.capitalize(), "message": None}, "previous": "PENDING",
                "call": "add-1-0123456789abcdef", "upstream": [], "tags": [],
            }  # fmt: skip
            if word == "completed":
                data["result"] = {"inline": i, "format": "json"}
            event = Event(
                type=f"task-run.{word}", source="/hark/engine", subject=f"task-run/{task_run}", time=at, data=data,
                correlationid=flow_run,
            )  # fmt: skip
            out.append(Recorded(len(out) + 1, subject_of(event), at, event.to_json()))
    return out


def rate(count: int, seconds: float) -> str:
    return f"{count / seconds:>9,.0f}/s"


def raw_rates(log: list[Recorded]) -> float:
    """Print what parsing alone and inserting alone do on this machine now; return the first."""
    began = time.perf_counter()
    for record in log:
        orjson.loads(record.raw)
    parsed = len(log) / (time.perf_counter() - began)
    print(f"  orjson.loads of one event ({len(log[-1].raw)} bytes)      {parsed:>9,.0f}/s")
    with tempfile.TemporaryDirectory() as folder:
        db = sqlite3.connect(Path(folder, "raw.db"), isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, body BLOB)")
        began = time.perf_counter()
        for a in range(0, len(log), 1000):
            db.execute("BEGIN")
            db.executemany("INSERT INTO t VALUES (?, ?)", [(r.seq, r.raw) for r in log[a : a + 1000]])
            db.execute("COMMIT")
        print(
            f"  SQLite, the bodies alone, no index            {rate(len(log), time.perf_counter() - began)}"
        )
        db.close()
    return parsed


async def folding(log: list[Recorded]) -> None:
    """Print the rate of the fold, and of fold and commit, without a broker."""
    began = time.perf_counter()
    for a in range(0, len(log), 1000):
        fold(log[a : a + 1000])
    print(f"  fold (pure)                                   {rate(len(log), time.perf_counter() - began)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hark.db")
        async with Store(path, stream="bench") as store:
            began = time.perf_counter()
            for a in range(0, len(log), 1000):
                await store.commit(fold(log[a : a + 1000]))
            seconds = time.perf_counter() - began
        print(f"  fold and commit, batches of 1000              {rate(len(log), seconds)}")
        print(
            f"  size of the database                          {path.stat().st_size / len(log):>9,.0f} bytes/event"
        )


async def end_to_end(log: list[Recorded]) -> float:
    """Print the rate of the projector on a real log, how far it lags one event, and how fast questions are answered."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with EmbeddedBroker(home, BusConfig()) as broker, Bus(broker.address, BusConfig()) as bus:
            began = time.perf_counter()
            for record in log:
                await bus.publisher.publish_raw(record.subject, record.raw, str(record.seq))
            await bus.publisher.barrier()
            print(
                f"  the broker takes them from one publisher at   {rate(len(log), time.perf_counter() - began)}"
            )
            head = await bus.log.head()
            began = time.perf_counter()
            async with Projector(bus, home / "hark.db", StorageConfig()) as projector:
                await projector.caught_up(head, timeout_s=600)
                seconds = time.perf_counter() - began
                print(
                    f"  projector: log -> rows                        {rate(head, seconds)}   (goal {GOAL:,}/s)"
                )
                lags = []
                for _ in range(200):
                    began = time.perf_counter()
                    added = await bus.log.append(Event(type="ping.sent", source="/bench"))
                    await projector.caught_up(added.seq)
                    lags.append((time.perf_counter() - began) * 1000)
                print(f"  one event: append -> can be read, median      {statistics.median(lags):>9.1f} ms")
                async with Queries(home / "hark.db") as queries:
                    for what, ask in (
                        (
                            "events by type, first page",
                            lambda: queries.events(EventFilter(types=("task-run.*",))),
                        ),
                        ("flow runs, first page", lambda: queries.flow_runs(RunFilter(states=("FAILED",)))),
                        (
                            "counts of the status page",
                            lambda: queries.counts(since=datetime(2020, 1, 1, tzinfo=UTC)),
                        ),
                    ):
                        took = []
                        for _ in range(20):
                            began = time.perf_counter()
                            await ask()
                            took.append((time.perf_counter() - began) * 1000)
                        print(f"  {what:<45} {statistics.median(took):>9.1f} ms")
    return head / seconds


def main() -> int:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    log = task_events(tasks)
    print(f"{len(log):,} events of {tasks:,} task runs")
    parsed = raw_rates(log)
    asyncio.run(folding(log))
    reached = asyncio.run(end_to_end(log))
    print(
        f"  projector / orjson.loads                      {reached / parsed:>9.1%}   (goal {GOAL_SHARE:.1%})"
    )
    return 0 if reached >= GOAL or reached / parsed >= GOAL_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
