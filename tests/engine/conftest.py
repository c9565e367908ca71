"""A stage for flows: a folder of flow files, deployments of them, and words that flows say in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import pytest
from hark.bus import Bus, Recorded
from hark.bus.subject import completed_subject, task_run_subject
from hark.config import EngineConfig, WorkerConfig
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.deployment import Deployment
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.runs.run import Cause, FlowRun
from hark.engine.workers.worker import Worker

HEAD = """
import asyncio, os, signal, sys, time
from hark.bus.emit import emit
from hark.engine.flows import flow
from hark.engine.tasks import task

def say(word):
    emit("said." + word, wait=True)

async def asay(word):
    await emit("said." + word)

"""


async def events(bus: Bus, filter_: str = "hark.ev.>") -> list[Recorded]:
    """Everything in the log on a filter, once the publisher has nothing waiting."""
    await bus.publisher.barrier()
    found: list[Recorded] = []
    async with bus.log.read([filter_]) as batches:
        async for batch in batches:
            found.extend(batch.records)
    return found


async def words(bus: Bus, filter_: str = "hark.ev.>") -> list[str]:
    """The types of those events, in order."""
    return [record.event.type for record in await events(bus, filter_)]


async def said(bus: Bus) -> Counter[str]:
    """Return how often each word has been said: the rest of the type of events `said.<word>`."""
    words: Counter[str] = Counter()
    async with bus.log.read(["hark.ev.said.>"]) as batches:
        async for batch in batches:
            words.update(recorded.event.type.removeprefix("said.") for recorded in batch.records)
    return words


async def hear(bus: Bus, pattern: str, *, times: int = 1) -> None:
    """Wait until ``times`` events of a type have been in the log."""
    with anyio.fail_after(60):
        async with bus.log.follow([f"hark.ev.{pattern}"], after=0) as batches:
            async for batch in batches:
                times -= len(batch.records)
                if times <= 0:
                    return


async def hear_task(bus: Bus, run: FlowRun, word: str) -> None:
    """Wait until a task run of a run has come to a state, but COMPLETED."""
    with anyio.fail_after(60):
        async with bus.log.follow([task_run_subject(run.id)], after=0) as batches:
            async for batch in batches:
                if any(recorded.event.type == f"task-run.{word}" for recorded in batch.records):
                    return


async def task_ends(bus: Bus, run: FlowRun) -> Counter[tuple[str, str | None]]:
    """Return the type and the message of the state each task run of a run is in, and how many are."""
    last: dict[str | None, Any] = {}
    async with bus.log.read([task_run_subject(run.id), completed_subject(run.id)]) as batches:
        async for batch in batches:
            last |= {recorded.event.subject: recorded.event.data for recorded in batch.records}
    return Counter((data["state"]["type"], data["state"]["message"]) for data in last.values())


class Stage:
    """Deploys flows, asks for runs, and hears what flows say."""

    def __init__(self, bus: Bus, root: Path) -> None:
        self.bus, self.root = bus, root
        self.control = Control(bus)

    def write(self, text: str, *, file: str = "flows.py") -> None:
        (self.root / file).write_text(HEAD + dedent(text))

    async def deploy(self, *names: str, file: str = "flows.py", **fields: Any) -> None:
        """Make a deployment of each function of a file, under the function's name."""
        for name in names:
            await self.control.put_deployment(
                Deployment(name=name, flow=f"{file}:{name}", path=str(self.root), **fields)
            )

    async def ask(self, name: str, **fields: Any) -> FlowRun:
        return await self.control.run_deployment(name, **{"cause": Cause("api"), **fields})

    async def run(self, name: str, **fields: Any) -> FlowRun:
        """Ask for a run and return it once it has ended."""
        return await self.end(await self.ask(name, **fields))

    async def end(self, run: FlowRun) -> FlowRun:
        return await self.control.wait(run.id, timeout_s=60)

    async def until(self, run: FlowRun, is_so: Callable[[FlowRun], bool]) -> FlowRun:
        return await self.control.wait(run.id, is_so, timeout_s=60)

    async def states(self, run: FlowRun) -> list[str]:
        """Return the last words of a run's events, in order."""
        return [recorded.event.type.partition(".")[2] for recorded in await self.control.runs.history(run.id)]

    async def said(self) -> Counter[str]:
        """Return how often each word has been said."""
        return await said(self.bus)

    async def hear(self, pattern: str, *, times: int = 1) -> None:
        """Wait until ``times`` events of a type have been in the log."""
        await hear(self.bus, pattern, times=times)

    @asynccontextmanager
    async def working(self, *, engine: EngineConfig | None = None, **worker: Any) -> AsyncIterator[Worker]:
        """A dispatcher that leads, and a worker."""
        engine = engine or EngineConfig()
        async with AsyncExitStack() as stack:
            dispatcher = await stack.enter_async_context(Dispatcher(self.bus, engine))
            await dispatcher.leading()
            config = WorkerConfig(**{"drain_s": 0.0, **worker})
            yield await stack.enter_async_context(Worker(self.bus, config, engine))


@pytest.fixture
def stage(bus: Bus, tmp_path: Path) -> Stage:
    """Where flows of this test live."""
    root = tmp_path / "project"
    root.mkdir()
    return Stage(bus, root)
