"""Plain calls of flows in a process that dies: what it was running does not stay RUNNING."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from hark.bus import Bus
from hark.bus.session import use_session
from hark.config import EngineConfig
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.flows import flow
from hark.engine.life.caller import BEATS, BUCKET, PREFIX
from hark.engine.runs.run import FlowRun
from hark.vocabulary import FlowRunId, StateType

SCRIPT = """
import time
from hark import flow

@flow
def inner():
    print("runs", flush=True)
    time.sleep(1000)

@flow
def outer():
    inner()

outer()
"""


@contextmanager
def script(home: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of a user's that calls a flow."""
    env = {**os.environ, "HARK_HOME": str(home), "HARK_ENGINE__ACK_WAIT_S": "2"}
    process = subprocess.Popen([sys.executable, "script.py"], cwd=folder, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def plain_runs(bus: Bus) -> dict[str, FlowRun]:
    ids: dict[str, str] = {}
    async with bus.log.read(["hark.ev.flow-run.>"]) as batches:
        async for batch in batches:
            for recorded in batch.records:
                data: Any = recorded.event.data
                ids[data["flow"]["name"]] = data["run"]["id"]
    found = {name: await Control(bus).get(FlowRunId(id_)) for name, id_ in ids.items()}
    return {name: run for name, run in found.items() if run is not None}


async def beats(bus: Bus, times: int) -> None:
    """Wait until a process has said so often from now on that it lives."""
    [entry] = await bus.bucket(BUCKET).entries(PREFIX)
    with anyio.fail_after(60):
        async with bus.bucket(BUCKET).watch(PREFIX) as changes:
            async for change in changes:
                if change.key == entry.key and change.revision > entry.revision:
                    times -= 1
                    if times == 0:
                        return


async def test_a_plain_call_whose_process_dies_is_crashed(bus: Bus, home: Path, tmp_path: Path) -> None:
    """Also what it called; one whose process lives goes on, and a leader that comes later notices, too."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with script(home, tmp_path) as process:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == b"runs\n"
        control = Control(bus)
        outer = (await plain_runs(bus))["outer"]
        async with Dispatcher(bus, EngineConfig()) as dispatcher:
            await dispatcher.leading()
            await beats(bus, BEATS + 1)  # which takes longer than a silence that means death
            now = await control.get(outer.id)
            assert now is not None
            assert now.state_type is StateType.RUNNING
        process.kill()
        async with Dispatcher(bus, EngineConfig()):
            ended = await control.wait(outer.id, timeout_s=60)
            assert ended.state_type is StateType.CRASHED
            assert "its process died" in (ended.state_message or "")
            inner = await control.wait((await plain_runs(bus))["inner"].id, timeout_s=60)
            assert inner.state_type is StateType.CRASHED
            with anyio.fail_after(60):
                async with bus.bucket(BUCKET).watch(PREFIX) as changes:
                    async for change in changes:
                        if change.deleted or (not change.key and not await bus.bucket(BUCKET).keys(PREFIX)):
                            break
            assert await bus.bucket(BUCKET).keys(PREFIX) == []


async def test_many_short_calls_say_once_that_their_process_lives(bus: Bus) -> None:
    """Ten calls one after the other write one key, which is written again only after a beat."""

    @flow
    async def short() -> int:
        return 1

    with use_session(bus):
        for _ in range(10):
            assert await short() == 1
    [entry] = await bus.bucket(BUCKET).entries(PREFIX)
    assert entry.revision == 1
    states = [run.state_type for run in (await plain_runs(bus)).values()]
    assert states == [StateType.COMPLETED]
