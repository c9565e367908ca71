"""Runs that wait for events: those that came before, those that come at once, those that come when no worker is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import pytest
from hark import emit, flow, wait_for_event
from hark.automations.event_wait import EventPattern
from hark.automations.waker import Waker, _Term
from hark.bus import Bus, Recorded
from hark.bus.session import Session
from hark.bus.subject import PREFIX
from hark.clock import SYSTEM_CLOCK
from hark.config import EngineConfig, WorkerConfig
from hark.engine.dispatching.control import Control
from hark.engine.dispatching.deployment import Deployment
from hark.engine.dispatching.dispatcher import Dispatcher
from hark.engine.runs.run import Cause, FlowRun
from hark.engine.workers.worker import Worker
from hark.errors import DefinitionError, EventWaitTimedOut, MissingContextError
from hark.vocabulary import FlowRunId, JsonValue, StateType

QUICK = EngineConfig(suspend_after_s=0.1)


def counts(run: FlowRun) -> bool:
    return run.state_name == "AwaitingEvent"


class Waiting:
    """Deployments of one file of flows, a dispatcher and a worker."""

    def __init__(self, bus: Bus, root: Path) -> None:
        self.bus, self.root, self.control = bus, root, Control(bus)

    async def begin(self, text: str, *names: str) -> list[FlowRun]:
        head = "from hark import flow, task, wait_for_event, emit\n"
        # Once: a worker may be reading it.
        if not (self.root / "waits.py").exists():
            (self.root / "waits.py").write_text(head + dedent(text))
        runs = []
        for name in names:
            await self.control.put_deployment(
                Deployment(name=name, flow=f"waits.py:{name}", path=str(self.root))
            )
            runs.append(await self.control.run_deployment(name, cause=Cause("api")))
        return runs

    async def at_rest(self, *runs: FlowRun) -> None:
        for run in runs:
            now = await self.control.wait(run.id, lambda now: counts(now) or now.is_final, timeout_s=60)
            assert counts(now) or "no event" in (now.state_message or ""), now.state_message

    async def result(self, run: FlowRun) -> Any:
        run = await self.control.wait(run.id, timeout_s=60)
        assert run.state_type is StateType.COMPLETED, (run.state_name, run.state_message)
        return run.state.result()


@pytest.fixture
async def waiting(session: Session, bus: Bus, tmp_path: Path) -> AsyncIterator[Waiting]:
    """A stage with a dispatcher that leads and a worker that leaves early."""
    async with Dispatcher(bus, QUICK) as dispatcher, Worker(bus, WorkerConfig(drain_s=0, processes=1), QUICK):
        await dispatcher.leading()
        yield Waiting(bus, tmp_path)


async def test_an_event_that_came_before_the_wait_is_seen(session: Session) -> None:
    """Since the run was asked for; the first that fits; not what came before the run."""
    await emit("order.paid", data={"order": 1, "n": 0})

    @flow
    async def looks() -> Any:
        await emit("order.paid", data={"order": 2, "n": 1})
        await emit("order.paid", data={"order": 1, "n": 2})
        await emit("order.paid", data={"order": 1, "n": 3})
        event = await wait_for_event("order.paid", where={"data.order": 1})
        later = await wait_for_event("order.*", where={"data.n": ">= 3"}, since="10m")
        return event.data, later.data

    first, second = await looks()
    assert (first["n"], second["n"]) == (2, 3)


@pytest.mark.parametrize("is_sync", [False, True])
async def test_a_plain_call_waits_in_place(session: Session, is_sync: bool) -> None:
    """Until it comes, or until time is up."""

    @flow
    async def waits() -> Any:
        return (await wait_for_event("a.b", since="now", within="60s")).data

    @flow
    def waits_sync() -> Any:
        return wait_for_event("a.b", since="now", within=60).data

    running = asyncio.ensure_future(asyncio.to_thread(waits_sync) if is_sync else waits())
    while not running.done():  # "now" is when it gets there, which nothing tells
        await emit("a.b", data=5)
        await asyncio.wait([running], timeout=0.02)
    assert await running == 5

    @flow
    async def in_vain() -> None:
        await wait_for_event("never.comes", within=0.02)

    with pytest.raises(EventWaitTimedOut, match=r"never\.comes"):
        await in_vain()


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_wait_holds_no_worker_and_ends_when_the_event_comes(waiting: Waiting, kind: str) -> None:
    """The run leaves its worker and is woken; only by what fits; what it had done is not done again."""
    wait = "await " if kind.startswith("async") else ""
    text = f"""
    @task
    {kind} step(word):
        {"await emit('said.' + word)" if wait else "emit('said.' + word, wait=True)"}

    @flow
    {kind} waits():
        {wait}step("before")
        event = {wait}wait_for_event("order.paid", where={{"data.order": 42}}, within="1h")
        {wait}step("after")
        return event.data["n"]
    """
    async with Waker(waiting.bus) as waker:
        await waker.leading()
        (run,) = await waiting.begin(text, "waits")
        await waiting.at_rest(run)
        await emit("order.paid", data={"order": 7, "n": 1})
        await emit("order.paid", data={"order": 42, "n": 2})
        await emit("order.paid", data={"order": 42, "n": 3})
        assert await waiting.result(run) == 2
        with anyio.fail_after(60):
            while waker.waiting:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.01)
    said = []
    async with waiting.bus.log.read(["hark.ev.said.>"]) as batches:
        async for batch in batches:
            said += [recorded.event.type for recorded in batch.records]
    assert said == ["said.before", "said.after"]


async def test_readers_come_and_go_with_the_waits_that_change(bus: Bus) -> None:
    """A wait that ends before its reader has begun leaves none behind; others keep theirs, and the last one ends it."""

    def begin(run: str, *types: str) -> None:
        waits: list[JsonValue] = [{"key": type_, "event": {"types": [type_]}, "after": 0} for type_ in types]
        term._add(FlowRunId(run), {"waits": waits})

    def end(run: str) -> None:
        subject = f"{PREFIX}flow-run.completed.{run}"
        term._fold(Recorded(1, subject, SYSTEM_CLOCK.now(), b"{}"))

    def read_for() -> list[list[str]]:
        return sorted(sorted(waiter.run_id for waiter in group.members) for group in term._groups.values())

    term = _Term(bus, SYSTEM_CLOCK)
    async with anyio.create_task_group() as tg:
        term._tg = tg
        begin("a", "order.paid", "order.lost")
        begin("b", "order.paid")
        begin("never", "order.paid")
        end("never")
        term._arrange()
        assert read_for() == [["a"], ["a", "b"]]
        end("a")
        begin("c", "order.paid")
        term._arrange()
        assert read_for() == [["b", "c"]]
        await anyio.wait_all_tasks_blocked()
        end("b")
        end("c")
        begin("c", "order.paid")
        term._arrange()
        assert read_for() == [["c"]]
        end("c")
        term._arrange()
        assert read_for() == []


async def test_a_wait_that_nobody_ends_fails_its_run(waiting: Waiting) -> None:
    """When its time is up, without a worker held until then."""
    text = """
    @flow
    async def waits():
        await wait_for_event("order.paid", within="1s")
    """
    (run,) = await waiting.begin(text, "waits")
    await waiting.at_rest(run)
    done = await waiting.control.wait(run.id, timeout_s=60)
    assert done.state_type is StateType.FAILED
    assert "no event order.paid has come in time" in (done.state_message or "")


async def test_what_came_while_nobody_woke_runs_is_seen_by_the_next_waker(waiting: Waiting) -> None:
    """A waker that starts late, or takes over, reads on from where each wait had looked."""
    text = """
    @flow
    async def one():
        return (await wait_for_event("a.one")).data

    @flow
    async def two():
        return (await wait_for_event(["a.two", "a.other"])).data

    @flow
    async def same():
        return (await wait_for_event("a.one")).data
    """
    runs = await waiting.begin(text, "one", "two")
    async with Waker(waiting.bus) as waker:
        await waiting.at_rest(*runs)
        await waker.leading()
    await emit("a.one", data=1)
    await emit("a.other", data=2)
    async with Waker(waiting.bus):
        assert [await waiting.result(run) for run in runs] == [1, 2]
        more = [*await waiting.begin(text, "one"), *await waiting.begin(text, "same")]
        await waiting.at_rest(*more)
        await emit("a.one", data=3)
        assert [await waiting.result(run) for run in more] == [3, 3]


async def test_a_run_that_is_cancelled_while_it_waits_stays_so(waiting: Waiting) -> None:
    """Its event wakes nobody."""
    text = """
    @flow
    async def waits():
        await wait_for_event("a.b")
    """
    async with Waker(waiting.bus) as waker:
        await waker.leading()
        (run,) = await waiting.begin(text, "waits")
        await waiting.at_rest(run)
        await waiting.control.cancel(run.id)
        await emit("a.b")
        (other,) = await waiting.begin(text, "waits")
        await emit("a.b")
        await waiting.control.wait(other.id, timeout_s=60)
    now = await waiting.control.get(run.id)
    assert now is not None
    assert now.state_type is StateType.CANCELLED


@pytest.mark.parametrize(
    ("type_", "where"), [("", None), (5, None), ([], None), ("a.b", {"data.x": {"nonsense": 1}})]
)
def test_a_pattern_that_makes_no_sense_is_refused(type_: Any, where: Any) -> None:
    """Before anything waits."""
    with pytest.raises(DefinitionError):
        EventPattern.of(type_, where)


async def test_outside_a_run_there_is_no_since_run(session: Session) -> None:
    """Everything else works there."""
    with pytest.raises(MissingContextError, match="since"):
        await wait_for_event("a.b")
    await emit("a.b", data=1)
    assert (await wait_for_event("a.b", since="1m")).data == 1
    with pytest.raises(DefinitionError, match="since is"):
        await wait_for_event("a.b", since="yesterday")
