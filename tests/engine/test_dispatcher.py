"""The dispatcher on a real broker: limits, priorities, conflicts, pauses, due times, checkpoints."""

from __future__ import annotations

import zlib
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import orjson
import pytest
from hark.bus.candidate import Deposed
from hark.clock import ManualClock
from hark.config import BusConfig, EngineConfig, WorkerConfig
from hark.engine.dispatching import leader, presence
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.dispatch import Dispatch
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.dispatching.pool import Pool, QueueSpec
from hark.engine.dispatching.presence import WorkerInfo
from hark.engine.life.caller import CallerInfo
from hark.engine.runs.run import FlowRun
from hark.engine.workers.worker import Worker
from hark.errors import StreamFull
from hark.vocabulary import StateType, new_id

if TYPE_CHECKING:
    from .conftest import Stage

GATED = """
@flow
async def gated(name: str, group: str = ""):
    await asay(f"in-{name}")
    while not os.path.exists(os.path.join(os.path.dirname(__file__), f"open-{name}")):
        await asyncio.sleep(0.005)
"""


def let_go(stage: Stage, *names: str) -> None:
    for name in names:
        (stage.root / f"open-{name}").touch()


async def in_state(stage: Stage, run: FlowRun, name: str) -> None:
    await stage.until(run, lambda now: now.state_name == name)


async def test_a_deployment_limit_holds_runs_back_and_wakes_them_in_order(stage: Stage) -> None:
    """One runs; the others say that they wait; each start follows the end before it at once."""
    stage.write(GATED)
    await stage.deploy("gated", concurrency={"limit": 1})
    async with stage.working(processes=0):
        runs = [await stage.ask("gated", parameters={"name": name}) for name in "abc"]
        await stage.hear("said.in-a")
        for run in runs[1:]:
            await in_state(stage, run, "AwaitingConcurrencySlot")
        for name, run in zip("abc", runs, strict=True):
            await stage.hear(f"said.in-{name}")
            let_go(stage, name)
            assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await stage.states(runs[1]) == [
        "scheduled", "awaiting-concurrency-slot", "pending", "running", "completed",
    ]  # fmt: skip


async def test_a_limit_by_key_is_one_limit_for_each_value(stage: Stage) -> None:
    """The key is a template over the parameters."""
    stage.write(GATED)
    await stage.deploy("gated", concurrency={"limit": 1, "key": "{{ parameters.group }}"})
    async with stage.working(processes=0):
        a1 = await stage.ask("gated", parameters={"name": "a1", "group": "a"})
        a2 = await stage.ask("gated", parameters={"name": "a2", "group": "a"})
        b1 = await stage.ask("gated", parameters={"name": "b1", "group": "b"})
        assert (a1.concurrency_key, b1.concurrency_key) == ("a", "b")
        await stage.hear("said.in-a1")
        await stage.hear("said.in-b1")
        await in_state(stage, a2, "AwaitingConcurrencySlot")
        let_go(stage, "a1", "a2", "b1")
        for run in (a1, a2, b1):
            await stage.end(run)


async def test_skip_ends_the_run_that_comes_second(stage: Stage) -> None:
    """It is CANCELLED and says why; the first is not disturbed."""
    stage.write(GATED)
    await stage.deploy("gated", concurrency={"limit": 1, "on_conflict": "skip"})
    async with stage.working(processes=0):
        first = await stage.ask("gated", parameters={"name": "a"})
        await stage.hear("said.in-a")
        second = await stage.run("gated", parameters={"name": "b"})
        assert second.state_type is StateType.CANCELLED
        assert "skipped: the limit of 1 run of deployment 'gated' is full" in (second.state_message or "")
        let_go(stage, "a")
        assert (await stage.end(first)).state_type is StateType.COMPLETED


async def test_cancel_running_ends_the_older_run(stage: Stage) -> None:
    """The newest wins: the one that runs and the one that waits both make room for it."""
    stage.write(GATED)
    await stage.deploy("gated", concurrency={"limit": 1, "on_conflict": "cancel-running"})
    async with stage.working(processes=0):
        first = await stage.ask("gated", parameters={"name": "a"})
        await stage.hear("said.in-a")
        last = await stage.ask("gated", parameters={"name": "b"})
        ended = await stage.end(first)
        assert ended.state_type is StateType.CANCELLED
        assert last.id in (ended.state_message or "")
        let_go(stage, "b")
        assert (await stage.end(last)).state_type is StateType.COMPLETED


async def test_queues_start_by_priority_within_the_pools_limit(stage: Stage) -> None:
    """With one place in the pool, the queue with the smallest number goes first, whoever asked first."""
    stage.write(GATED)
    await stage.deploy("gated")
    await stage.control.put_pool(
        Pool(
            name="default",
            concurrency=1,
            queues={"high": QueueSpec(priority=1), "default": QueueSpec(priority=5)},
        )
    )
    async with stage.working(processes=0):
        first = await stage.ask("gated", parameters={"name": "first"})
        await stage.hear("said.in-first")
        low = await stage.ask("gated", parameters={"name": "low"})
        high = await stage.ask("gated", parameters={"name": "high"}, queue="high")
        for run in (low, high):
            await in_state(stage, run, "AwaitingConcurrencySlot")
        let_go(stage, "first", "low", "high")
        for run in (first, low, high):
            await stage.end(run)
    assert await order_of_starts(stage) == [first.id, high.id, low.id]


async def test_a_full_worker_gets_the_urgent_run_next(stage: Stage) -> None:
    """Priority holds without any limit, too: runs are handed out when a worker has room, not before."""
    stage.write(GATED)
    await stage.deploy("gated")
    await stage.control.put_pool(Pool(name="default", queues={"high": QueueSpec(priority=1)}))
    async with stage.working(processes=0, concurrency=1):
        first = await stage.ask("gated", parameters={"name": "first"})
        await stage.hear("said.in-first")
        runs = [await stage.ask("gated", parameters={"name": f"low{n}"}) for n in range(3)]
        high = await stage.ask("gated", parameters={"name": "high"}, queue="high")
        let_go(stage, "first", "high", *(f"low{n}" for n in range(3)))
        for run in (first, high, *runs):
            await stage.end(run)
    assert await order_of_starts(stage) == [first.id, high.id, *(run.id for run in runs)]


async def order_of_starts(stage: Stage) -> list[str]:
    async with stage.bus.log.read(["hark.ev.flow-run.running.*"]) as batches:
        return [recorded.subject.rpartition(".")[2] async for batch in batches for recorded in batch.records]


async def test_a_paused_deployment_or_pool_starts_nothing_until_resumed(stage: Stage) -> None:
    """The runs stay SCHEDULED; resuming starts them at once."""
    stage.write("@flow\nasync def f():\n    pass\n\n@flow\nasync def marker():\n    pass\n")
    await stage.deploy("f")
    await stage.deploy("marker", pool="other")
    control = stage.control
    await control.pause_deployment("f")
    async with (
        stage.working(processes=0),
        Worker(stage.bus, WorkerConfig(pool="other", processes=0), EngineConfig()),
    ):
        run = await stage.ask("f")
        await stage.run("marker")  # asked for later, and ended: the dispatcher has passed the first by
        assert (await stage.states(run)) == ["scheduled"]
        await control.resume_deployment("f")
        assert (await stage.end(run)).state_type is StateType.COMPLETED
        await control.pause_pool("default")
        run = await stage.ask("f")
        await stage.run("marker")
        assert (await stage.states(run)) == ["scheduled"]
        await control.resume_pool("default")
        assert (await stage.end(run)).state_type is StateType.COMPLETED


class TestLittleRoom:
    """With a queue of work that is soon full."""

    @pytest.fixture
    def bus_config(self) -> BusConfig:
        return BusConfig(work_max_bytes=1 << 20)

    async def test_a_run_waits_for_room_in_the_queue_and_then_runs(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its message is refused while the queue is full and goes out once it is not; others are decided meanwhile."""
        stage.write(GATED)
        await stage.deploy("gated")
        await stage.control.put_pool(Pool(name="default", concurrency=1))
        for size in (300_000, 10_000, 100, 1):
            with suppress(StreamFull):
                while True:
                    await stage.bus.work.push("elsewhere", "q", b"x" * size, msg_id=new_id())
        let_go(stage, "a", "b")
        async with stage.working(processes=0):
            first = await stage.ask("gated", parameters={"name": "a"})
            second = await stage.ask("gated", parameters={"name": "b"})
            # Decided while the first one's message has no room.
            await in_state(stage, second, "AwaitingConcurrencySlot")
            assert await stage.states(first) == ["scheduled"]
            assert any(record.getMessage() == "dispatcher.work_full" for record in caplog.records)
            await stage.bus.connection.api("STREAM.PURGE.HARK_WORK", {"filter": "hark.work.elsewhere.>"})
            for run in (first, second):
                assert (await stage.end(run)).state_type is StateType.COMPLETED


async def test_a_run_whose_message_is_refused_for_good_fails_and_says_why(stage: Stage) -> None:
    """It does not keep its place with nobody to run it."""
    stage.write(GATED)
    await stage.deploy("gated", concurrency={"limit": 1})
    config = (await stage.bus.connection.api("STREAM.INFO.HARK_WORK"))["config"]
    assert isinstance(config, dict)
    await stage.bus.connection.api("STREAM.UPDATE.HARK_WORK", {**config, "max_msg_size": 10})
    let_go(stage, "a", "b")
    async with stage.working(processes=0):
        refused = await stage.run("gated", parameters={"name": "a"})
        assert refused.state_type is StateType.FAILED
        assert "could not be given to a worker" in (refused.state_message or "")
        await stage.bus.connection.api("STREAM.UPDATE.HARK_WORK", config)
        assert (await stage.run("gated", parameters={"name": "b"})).state_type is StateType.COMPLETED


async def test_a_run_starts_when_it_is_due(stage: Stage) -> None:
    """Not before its time, and at it, by the dispatcher's clock; nothing polls."""
    stage.write("@flow\nasync def f():\n    pass\n")
    await stage.deploy("f")
    clock = ManualClock(start=stage.bus.clock.now())
    control = Control(stage.bus, clock)
    engine = EngineConfig()
    async with AsyncExitStack() as stack:
        dispatcher = await stack.enter_async_context(Dispatcher(stage.bus, engine, clock))
        await dispatcher.leading()
        await stack.enter_async_context(Worker(stage.bus, WorkerConfig(processes=0), engine, clock=clock))
        later = await stage.ask("f", scheduled_at=clock.now() + timedelta(seconds=100))
        await stage.run("f")
        await clock.advance(99)
        await stage.run("f")
        now = await control.get(later.id)
        assert now is not None
        assert now.state_name == "Scheduled"
        await clock.advance(1)
        assert (await stage.end(later)).state_type is StateType.COMPLETED


async def test_a_run_that_nobody_starts_is_late_once(stage: Stage) -> None:
    """Fifteen seconds after it was due, once; when a worker comes it starts."""
    stage.write("@flow\nasync def f():\n    pass\n")
    await stage.deploy("f")
    clock = ManualClock(start=stage.bus.clock.now())
    async with Dispatcher(stage.bus, EngineConfig(), clock) as dispatcher:
        await dispatcher.leading()
        run = await stage.ask("f")
        await clock.advance(14)
        while dispatcher.waiting == 0:
            await clock.advance(0.1)
        await clock.advance(15)
        await in_state(stage, run, "Late")
        await clock.advance(600)
        async with Worker(stage.bus, WorkerConfig(processes=0), EngineConfig(), clock=clock):
            await stage.end(run)
    assert await stage.states(run) == ["scheduled", "late", "pending", "running", "completed"]


async def test_cancelling_a_run_cancels_the_runs_it_asked_for(stage: Stage) -> None:
    """Children of other deployments stop with their parent."""
    stage.write(GATED)
    await stage.deploy("gated")
    async with stage.working(processes=0):
        parent = await stage.ask("gated", parameters={"name": "parent"})
        child = await stage.ask("gated", parameters={"name": "child"}, parent=parent.id)
        grandchild = await stage.ask("gated", parameters={"name": "grandchild"}, parent=child.id)
        for name in ("parent", "child", "grandchild"):
            await stage.hear(f"said.in-{name}")
        await stage.control.cancel(parent.id)
        for run in (parent, child, grandchild):
            assert (await stage.end(run)).state_type is StateType.CANCELLED


@pytest.mark.parametrize("large", [False, True])
async def test_a_dispatcher_that_starts_again_goes_on_from_its_checkpoint(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """What waited still waits, in its place; a checkpoint too large for the bucket goes to the object store."""
    if large:
        monkeypatch.setattr(leader, "INLINE_BYTES", 10)
    stage.write(GATED)
    await stage.deploy("gated", concurrency={"limit": 1})
    engine = EngineConfig()
    async with Worker(stage.bus, WorkerConfig(processes=0, drain_s=0), engine):
        async with Dispatcher(stage.bus, engine) as dispatcher:
            await dispatcher.leading()
            runs = [await stage.ask("gated", parameters={"name": name}) for name in "abc"]
            await stage.hear("said.in-a")
            for run in runs[1:]:
                await in_state(stage, run, "AwaitingConcurrencySlot")
        stored = await stage.bus.bucket("checkpoints").get(leader.CHECKPOINT)
        assert stored is not None
        assert stored.value[:1] == (b"O" if large else b"Z")
        let_go(stage, "a")
        await stage.end(runs[0])
        async with Dispatcher(stage.bus, engine) as dispatcher:
            await dispatcher.leading()
            let_go(stage, "b", "c")
            for run in runs:
                assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await order_of_starts(stage) == [run.id for run in runs]


async def test_a_deposed_dispatcher_does_not_write_over_its_successors_checkpoint(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own write is refused; the object the live checkpoint names is the one that was put for it."""
    monkeypatch.setattr(leader, "INLINE_BYTES", 10)
    old, new, last = (leader.Leader(stage.bus, EngineConfig(), ManualClock()) for _ in range(3))
    await old._checkpoint.take_over()
    await old._save()
    await new._checkpoint.take_over()
    for seq in (11, 12):
        new.dispatch.seq = seq
        await new._save()
        old.dispatch.seq = 666
        with pytest.raises(Deposed):
            await old._save()
        raw = await last._checkpoint.take_over()
        stored = await stage.bus.objects.get(raw[1:].decode())
        picture = Dispatch.load(orjson.loads(zlib.decompress(stored)))
        assert picture is not None
        assert picture.seq == seq
        new = last
        last = leader.Leader(stage.bus, EngineConfig(), ManualClock())


async def test_an_unreadable_checkpoint_costs_time_and_nothing_else(stage: Stage) -> None:
    """The log is folded from its beginning instead."""
    stage.write(GATED)
    await stage.deploy("gated")
    run = await stage.ask("gated", parameters={"name": "a"})
    let_go(stage, "a")
    await stage.bus.bucket("checkpoints").put(leader.CHECKPOINT, b"Zgarbage")
    async with stage.working(processes=0):
        assert (await stage.end(run)).state_type is StateType.COMPLETED


async def test_many_runs_of_two_dispatchers_and_two_workers_each_run_once(stage: Stage) -> None:
    """A leader, a standby, two workers, sixty runs under a limit: each ends once, and the limit holds."""
    stage.write("@flow\nasync def f(n: int):\n    await asay(f'n{n}')\n")
    await stage.deploy("f", concurrency={"limit": 7})
    engine = EngineConfig()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(Dispatcher(stage.bus, engine))
            await stack.enter_async_context(
                Worker(stage.bus, WorkerConfig(processes=0, concurrency=5), engine)
            )
        runs = [await stage.ask("f", parameters={"n": n}) for n in range(60)]
        with anyio.fail_after(60):
            for run in runs:
                assert (await stage.end(run)).state_type is StateType.COMPLETED
    assert await stage.said() == Counter({f"n{n}": 1 for n in range(60)})


@pytest.mark.parametrize("expires", [True, False])
async def test_a_worker_that_falls_silent_is_lost_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, expires: bool
) -> None:
    """By the broker's expiry, or by the dispatcher's own watch where the broker has none; a run for it waits."""
    if not expires:
        monkeypatch.setattr(presence, "TTL_S", 0.1)
    stage.write("@flow\nasync def f():\n    pass\n")
    await stage.deploy("f")
    silent = WorkerInfo("w1", "silent", "default", loop=1, processes=0, host="elsewhere", pid=1)
    async with Dispatcher(stage.bus, EngineConfig()) as dispatcher:
        await dispatcher.leading()
        await stage.bus.bucket(presence.BUCKET).put(
            silent.key, silent.to_json(), ttl_s=1 if expires else None
        )
        await stage.hear("worker.lost")
        run = await stage.ask("f")
        async with Worker(stage.bus, WorkerConfig(processes=0), EngineConfig()):
            await stage.end(run)
    async with stage.bus.log.read(["hark.ev.worker.>"]) as batches:
        words = [recorded.event.type async for batch in batches for recorded in batch.records]
    assert words == ["worker.lost", "worker.started", "worker.stopped"]


def test_what_a_later_version_says_of_a_worker_is_passed_over() -> None:
    """So that workers of two versions serve one dispatcher; one of before leaves out what it does not know."""
    worker = WorkerInfo("w1", "newer", "default", loop=1, processes=2, host="here", pid=1, waiting_loop=3)
    said = orjson.loads(worker.to_json())
    assert WorkerInfo.from_json(orjson.dumps({**said, "planets": 9})) == worker
    del said["waiting_loop"]
    assert WorkerInfo.from_json(orjson.dumps(said)) == replace(worker, waiting_loop=0)
    for raw in (b"{", b"[]", b'["id"]', b'"id"', b"7", b"null", b'{"id": "w1"}'):
        assert WorkerInfo.from_json(raw) is None
    for wrong in ({"name": None}, {"pool": 7}, {"loop": "2"}, {"waiting_processes": None}, {"since": 5}):
        assert WorkerInfo.from_json(orjson.dumps({**said, **wrong})) is None, "or who lists them would fail"
    assert worker.started_at is None
    assert replace(worker, since="yesterday").started_at is None
    assert replace(worker, since="2026-02-03T04:05:06.789+01:00").started_at == datetime(
        2026, 2, 3, 3, 5, 6, 789_000, UTC
    )
    caller = CallerInfo("c1", "here", 1, 7.5)
    assert CallerInfo.from_json(caller.to_json()) == caller
    assert CallerInfo.from_json(orjson.dumps({**asdict(caller), "since": "a later version"})) == caller
    for raw in (b"{", b"[]", b"7", b"null", b'{"beat_s": 7.5}', caller.to_json().replace(b"7.5", b'"7.5"')):
        assert CallerInfo.from_json(raw) is None
