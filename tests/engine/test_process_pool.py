"""Warm processes: what they keep apart, what they survive, what they show to the outside."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from hark.bus import Bus, EmbeddedBroker
from hark.config import EngineConfig, WorkerConfig
from hark.engine.dispatching.deployment import Deployment
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.states import Pending
from hark.engine.workers import process_pool
from hark.engine.workers.execution import Job, Outcome
from hark.engine.workers.process_child import decode_address, encode_address
from hark.engine.workers.process_pool import ProcessPool
from hark.engine.workers.stop_request import StopRequest
from hark.engine.workers.worker import Worker
from hark.errors import UnavailableError
from hark.vocabulary import StateType

if TYPE_CHECKING:
    from .conftest import Stage

SAYS_PID = """
@flow
def pid():
    say(f"pid-{os.getpid()}")
"""


@asynccontextmanager
async def a_pool(bus: Bus, *, warm: int = 1, keep: int = 2) -> AsyncIterator[ProcessPool]:
    async with ProcessPool(bus.address, bus.config, EngineConfig(), warm=warm, keep=keep) as pool:
        yield pool


async def execute(stage: Stage, pool: ProcessPool, name: str = "pid", **fields: object) -> Outcome:
    """Claim a run as a worker would, and execute it."""
    deployment = Deployment(name=name, flow=f"flows.py:{name}", path=str(stage.root))
    await stage.control.put_deployment(deployment)
    run = await stage.control.runs.move(await stage.ask(name, parameters=fields), Pending(), attempt=1)
    return await pool.run(Job(run, deployment.flow, deployment.path))


async def pids_said(stage: Stage) -> list[int]:
    said = await stage.said()
    return sorted(int(word.removeprefix("pid-")) for word in said.elements())


async def test_a_process_is_replaced_after_so_many_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What user code leaks, leaks no further than that."""
    monkeypatch.setattr(process_pool, "MAX_RUNS", 3)
    stage.write(SAYS_PID)
    async with a_pool(stage.bus) as pool:
        for _ in range(6):
            assert await execute(stage, pool) == Outcome("ended")
    pids = await pids_said(stage)
    assert [pids.count(pid) for pid in sorted(set(pids))] == [3, 3]


async def test_an_idle_process_that_dies_costs_no_run_anything(stage: Stage) -> None:
    """The next run gets another; nothing counts as a crash."""
    stage.write(SAYS_PID)
    async with a_pool(stage.bus) as pool:
        await execute(stage, pool)
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        assert await execute(stage, pool) == Outcome("ended")
    assert len(set(await pids_said(stage))) == 2


async def test_a_process_that_dies_before_it_is_known_is_known_to_have_died(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is forked and killed while we still open our end of its socket: how it died is said, and nothing is left of it."""
    async with a_pool(bus, warm=0) as pool:
        heard, end, connect = anyio.Event(), pool._end, asyncio.open_connection

        def hear_end(*args: Any) -> None:
            end(*args)
            heard.set()

        async def connect_late(**how: Any) -> Any:
            [child] = psutil.Process(pool.server_pid).children()
            child.kill()
            with anyio.fail_after(30):
                await heard.wait()
            return await connect(**how)

        monkeypatch.setattr(pool, "_end", hear_end)
        monkeypatch.setattr(asyncio, "open_connection", connect_late)
        with pytest.raises(UnavailableError, match="was killed by SIGKILL"):
            await pool._new_child()
        assert pool.pids == []


async def test_the_pool_outlives_its_fork_server(stage: Stage) -> None:
    """Its children go with it, and the next run starts a new one."""
    stage.write(SAYS_PID)
    async with a_pool(stage.bus) as pool:
        first = pool.server_pid
        assert first is not None
        children = [psutil.Process(pid) for pid in pool.pids]
        os.kill(first, signal.SIGKILL)
        await anyio.to_thread.run_sync(psutil.wait_procs, children, 60)
        with anyio.fail_after(60):
            while (await execute(stage, pool)).kind != "ended":
                pass
        assert pool.server_pid != first


async def test_a_run_that_is_to_stop_before_it_has_a_process_gets_none(stage: Stage) -> None:
    """A cancel that comes while the run is being given to a process is not lost."""
    stage.write(SAYS_PID)
    await stage.deploy("pid")
    stop = StopRequest()
    stop.set()
    async with a_pool(stage.bus) as pool:
        run = await stage.control.runs.move(await stage.ask("pid"), Pending(), attempt=1)
        assert await pool.run(Job(run, "flows.py:pid", str(stage.root)), stop=stop) == Outcome("interrupted")
    assert await stage.said() == {}


async def test_no_secret_of_the_broker_is_seen_from_outside(stage: Stage) -> None:
    """Neither in the arguments nor in the environment of any process: it goes through the pipe."""
    address = stage.bus.address
    secret = address.password or address.token
    assert secret
    assert decode_address(encode_address(address)) == address
    async with a_pool(stage.bus) as pool:
        for pid in [pool.server_pid, *pool.pids]:
            process = psutil.Process(pid)
            assert secret not in " ".join(process.cmdline())
            assert secret not in str(process.environ())


async def test_idle_processes_are_kept_within_bounds(stage: Stage) -> None:
    """One for each deployment that ran would be one too many."""
    stage.write("".join(f"@flow\ndef f{n}():\n    pass\n\n" for n in range(5)))
    async with a_pool(stage.bus, warm=1, keep=2) as pool:
        for n in range(5):
            await execute(stage, pool, f"f{n}")
        ended = []
        for pid in pool.pids:
            if pid not in pool.kept:
                with suppress(psutil.NoSuchProcess):
                    ended.append(psutil.Process(pid))
        _, alive = await anyio.to_thread.run_sync(psutil.wait_procs, ended, 60)
        assert alive == [], "those let go end by themselves"
        assert len(pool.kept) <= 3


async def test_runs_outlast_a_broker_that_is_killed_and_restarted(
    stage: Stage, broker: EmbeddedBroker
) -> None:
    """Each reaches one terminal state, in the loop and in processes, and none runs a finished task twice."""
    stage.write(
        """
        @task
        def step(n, i):
            say(f"s{n}-{i}")
            time.sleep(0.1)

        @flow
        def sync_one(n: int):
            for i in range(4):
                step(n, i)

        @task
        async def astep(n, i):
            await asay(f"a{n}-{i}")
            await asyncio.sleep(0.1)

        @flow
        async def async_one(n: int):
            for i in range(4):
                await astep(n, i)
        """
    )
    await stage.deploy("sync_one", "async_one")
    engine = EngineConfig()
    async with Dispatcher(stage.bus, engine) as dispatcher:
        await dispatcher.leading()
        async with Worker(stage.bus, WorkerConfig(drain_s=0), engine):
            runs = [
                await stage.ask(name, parameters={"n": n})
                for n in range(4)
                for name in ("sync_one", "async_one")
            ]
            await stage.hear("said.*", times=2)
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            for run in runs:
                ended = await stage.control.wait(run.id, timeout_s=60)
                assert ended.state_type is StateType.COMPLETED, ended.state_message
    for run in runs:
        assert (await stage.states(run)).count("completed") == 1
    said = await stage.said()
    assert set(said.values()) == {1}
    assert len(said) == 8 * 4
