"""Runs that wait in a worker's memory without a place in it: counting, and on a real broker with a dispatcher and a worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest
from hark.bus import Event
from hark.config import EngineConfig
from hark.engine.code.lane import LOOP, PROCESS
from hark.engine.dispatching.presence import live_workers
from hark.engine.life.holding import IN_TASK
from hark.engine.runs.run import FlowRun
from hark.engine.workers.places import Places
from hark.vocabulary import StateType
from hypothesis import given
from hypothesis import strategies as st

from .conftest import events
from .test_resting import IN_PLACE, STAYED, result_of, said_in_log

if TYPE_CHECKING:
    from hark.engine.workers.worker import Worker

    from .conftest import Stage

QUICK = EngineConfig(suspend_after_s=0.2)


@given(
    size=st.integers(0, 3),
    most=st.integers(0, 3),
    steps=st.lists(st.tuples(st.sampled_from(("give", "take")), st.sampled_from("abcde"))),
)
def test_no_place_is_lost_or_made(size: int, most: int, steps: list[tuple[str, str]]) -> None:
    """In whatever order runs give their places and take them again: a lane may have in hand its number and those that wait.

    Those that had to keep theirs give them, in their order, as soon as fewer wait.
    """
    places, changes = Places(size, most), list[int]()
    places.on_change(lambda: changes.append(places.capacity))
    waiting, refused, let, told = set[str](), list[str](), list[str](), list[str]()
    for word, run in steps:
        before = places.capacity
        changes.clear()
        if word == "give":
            may = run in waiting or len(waiting) < most
            assert places.give(run, lambda run=run: told.append(run)) == may  # type: ignore[misc]
            waiting |= {run} if may else set()
            refused += [run] if not may and run not in refused else []
        else:
            places.take(run)
            waiting -= {run}
            refused = [one for one in refused if one != run]
            if refused and len(waiting) < most:
                let.append(refused.pop(0))
                waiting.add(let[-1])
        assert told == let
        assert places.waiting == len(waiting) <= most
        assert places.capacity == size + len(waiting)
        assert changes == ([places.capacity] if places.capacity != before else [])
    for run in "abcde":
        places.take(run)
    assert places.capacity == size


@given(
    now=st.lists(st.one_of(st.none(), st.floats(0, 9)), max_size=4),
    later=st.lists(st.one_of(st.none(), st.floats(0, 9)), max_size=4),
    until=st.floats(0, 9),
)
def test_who_waits_too_long_is_told_of(
    now: list[float | None], later: list[float | None], until: float
) -> None:
    """Once, whether it waits already or begins to, with its place or without; not who goes on before, nor who has gone on."""
    places, told, ends = Places(1, 2), list[int](), [*now, *later, None]
    gone = len(ends) - 1
    places.give(str(gone), lambda: None, None)
    places.take(str(gone))
    for number in range(len(now)):
        places.give(str(number), lambda: None, ends[number])
    places.on_wait(until, lambda run: told.append(int(run)))
    for number in range(len(now), gone):
        places.give(str(number), lambda: None, ends[number])
    waiting_long = [number for number in range(gone) if (end := ends[number]) is None or end >= until]
    assert sorted(told) == waiting_long
    assert [places.is_waiting(str(number), until) for number in range(gone + 1)] == [
        number in waiting_long for number in range(gone + 1)
    ]


FLOWS = """
from hark import flow, sleep, task, wait_for_event

@task
{kind} naps(word):
    {wait}{say}(word)
    {wait}wait_for_event("go." + word)
    return "woken"

@task(retries=1, retry_delay_seconds=600)
{kind} fails(word):
    {wait}{say}(word)
    raise RuntimeError("not yet")

@task
{kind} sleeps(word):
    {wait}{say}(word)
    {wait}sleep("1h")

@flow
{kind} inner(word):
    return {wait}sleeps(word)

@task
{kind} around(which, word):
    return {wait}which(word)

@task
{kind} asks(which, word):
    future = which.submit(word)
    return {wait}{result}(future)

@flow
{kind} parks():
    return {wait}naps("parks")

@flow
{kind} quick():
    return "quick"

@flow
{kind} in_task(word):
    {wait}around(fails, word)

@flow
{kind} in_subflow(word):
    {wait}around(inner, word)

@flow
{kind} submitted(word):
    future = asks.submit(sleeps, word)
    {wait}{result}(future)
"""


def flows(kind: str) -> str:
    is_async = kind == "async def"
    text = FLOWS.format(
        kind=kind, wait="await " if is_async else "", say="asay" if is_async else "say", result="result_of",
    )  # fmt: skip
    awaits = "async def result_of(future): return await future"
    return f"{awaits if is_async else 'def result_of(future): return future.result()'}\n{text}"


def was_handed_back(run: FlowRun) -> bool:
    return run.state_message == "its worker stopped"


async def waiting(worker: Worker, count: int) -> None:
    """Wait until so many runs of a worker wait without a place."""
    with anyio.fail_after(30):
        while sum(places.waiting for places in worker.places.values()) != count:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_long_wait_in_a_task_leaves_the_place_to_others(
    stage: Stage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of one place runs another meanwhile. Then the first goes on where it was; it has never left, and says so.

    The worker says of itself how many do. When it stops it hands back at once what only waits, unless that goes on in time, and lets the
    rest work until it has ended or waits, too.
    """
    monkeypatch.setattr("hark.engine.dispatching.presence.BEAT_S", 0.1)
    stage.write(
        flows(kind)
        + f"""
@task
def works(marker):
    say("works")
    while not os.path.exists(marker):
        time.sleep(0.01)
    say("works.done")

@task
{kind} brief():
    {"await " if kind == "async def" else ""}sleep("2s")
    return "rested"

@flow
{kind} rests():
    return {"await " if kind == "async def" else ""}brief()

@flow
{kind} lasts(marker):
    {"await asyncio.to_thread(works, marker)" if kind == "async def" else "works(marker)"}
    {"await " if kind == "async def" else ""}naps("later")
"""
    )
    await stage.deploy("parks", "quick", "lasts", "rests")
    marker = stage.root / "marker"

    async def end_work(parked: FlowRun) -> None:
        await stage.until(parked, was_handed_back)
        marker.touch()

    async with (
        anyio.create_task_group() as tg,
        stage.working(engine=QUICK, concurrency=1, processes=1, drain_s=300.0) as worker,
    ):
        parks = await stage.ask("parks")
        await stage.hear("said.parks")
        assert result_of(await stage.run("quick")) == "quick"
        assert parks.id in worker.held
        lane = LOOP if kind == "async def" else PROCESS
        assert (worker.places[lane].waiting, worker.places[lane].capacity) == (1, 2)
        with anyio.fail_after(30):
            while (await live_workers(stage.bus))[0][0].held_in(lane) != (1, 0, 1):  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.05)
        if (pool := worker.processes) is not None and lane == PROCESS:
            assert len(pool.kept) >= 2
        await stage.bus.log.append(Event(type="go.parks", source="/test"))
        assert result_of(await stage.end(parks)) == "woken"
        await waiting(worker, 0)
        assert result_of(await stage.run("quick")) == "quick"
        left = [await stage.ask("parks")]
        await waiting(worker, 1)
        rests = await stage.ask("rests")
        await waiting(worker, 2)
        left.append(await stage.ask("lasts", parameters={"marker": str(marker)}))
        await stage.hear("said.works")
        with anyio.fail_after(30):
            while (await live_workers(stage.bus))[0][0].held_in(lane)[:2] != (1, 1):  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.05)
        tg.start_soon(end_work, left[0])
    assert await live_workers(stage.bus) == []
    for run in left:
        await stage.until(run, was_handed_back)
    assert (await stage.said())["works.done"] == 1
    rested = await stage.control.get(rests.id)
    assert rested is not None
    assert (result_of(rested), rested.attempt) == ("rested", 1)
    assert await stage.states(parks) == STAYED
    told = (
        "task 'naps' waits for an event in place: it is part of a task, whose code would have to run again. The run stays in memory. "
        "It has given its place in the worker to others until it goes on"
    )
    assert await said_in_log(stage, parks, told) == 1


async def test_a_run_of_which_something_goes_on_has_a_place(stage: Stage) -> None:
    """It keeps its own while a task works beside the one that waits, and takes one again, over the number, for one that begins later."""
    stage.write(
        flows("async def")
        + """
@task
async def works(word, marker, for_s):
    await asay(word)
    await asyncio.sleep(for_s)
    while not os.path.exists(marker):
        await asyncio.sleep(0.01)
    await asay(word + ".done")

@flow
async def mixed(go, end):
    async def later():
        while not os.path.exists(go):
            await asyncio.sleep(0.01)
        await works("second", end, 0)
    await asyncio.gather(sleeps("mixed"), works("first", os.devnull, 0.8), later())
"""
    )
    await stage.deploy("mixed", "quick")
    go, end = stage.root / "go", stage.root / "end"
    async with stage.working(engine=QUICK, concurrency=1, processes=0) as worker:
        mixed = await stage.ask("mixed", parameters={"go": str(go), "end": str(end)})
        await stage.hear("said.first")
        quick = await stage.run("quick")
        order = [
            one.event.type for one in await events(stage.bus) if one.event.subject != f"flow-run/{mixed.id}"
        ]
        assert order.index("said.first.done") < order.index("flow-run.running"), order
        assert result_of(quick) == "quick"
        await waiting(worker, 1)
        go.touch()
        await stage.hear("said.second")
        await waiting(worker, 0)
        assert worker.places[LOOP].capacity == 1
        end.touch()
        await waiting(worker, 1)
        await stage.control.cancel(mixed.id)
        assert (await stage.end(mixed)).state_type is StateType.CANCELLED


async def test_a_task_that_waits_in_a_process_of_its_own_holds_no_place(stage: Stage) -> None:
    """The run gives its place back once all of its processes wait, and not before; and takes it again when one goes on."""
    stage.write(
        flows("def")
        + """
from hark.engine import ProcessPoolTaskRunner

@task
def works(word, marker, for_s):
    say(word)
    time.sleep(for_s)
    while not os.path.exists(marker):
        time.sleep(0.01)
    say(word + ".done")
    sleep("1h")

@flow
def inside(marker):
    naps("inside")
    works("again", marker, 0)

@task
def calls(marker):
    inside(marker)

@flow(task_runner=ProcessPoolTaskRunner(3))
def far(marker):
    futures = around.submit(fails, "far"), calls.submit(marker), works.submit("busy", os.devnull, 1.0)
    return [future.result() for future in futures]
"""
    )
    await stage.deploy("far", "quick")
    again = stage.root / "again"
    async with stage.working(engine=QUICK, concurrency=1, processes=1) as worker:
        far = await stage.ask("far", parameters={"marker": str(again)})
        for word in ("far", "inside", "busy"):
            await stage.hear(f"said.{word}")
        quick = await stage.run("quick")
        order = [
            one.event.type
            for one in await events(stage.bus)
            if one.event.subject == f"flow-run/{quick.id}" or one.event.type.startswith("said.")
        ]
        assert order.index("said.busy.done") < order.index("flow-run.running"), order
        assert result_of(quick) == "quick"
        await waiting(worker, 1)
        await stage.bus.log.append(Event(type="go.inside", source="/test"))
        await stage.hear("said.again")
        await waiting(worker, 0)
        again.touch()
        await waiting(worker, 1)
        await stage.control.cancel(far.id)
        assert (await stage.end(far)).state_type is StateType.CANCELLED
        await waiting(worker, 0)
    for does in ("task 'fails' waits 600 s for its next try", "task 'works' sleeps 3600 s"):
        assert await said_in_log(stage, far, f"{does} {IN_PLACE.format(IN_TASK)}") == 1


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_no_long_wait_holds_a_place_however_it_is_nested(stage: Stage, kind: str) -> None:
    """A retry delay of a task in a task, a sleep in a subflow of a task, and in a task that a submitted one has submitted.

    Such runs are cancelled as others are; and of those that may wait so there are no more than was said.
    """
    stage.write(flows(kind))
    names = ["in_task", "in_subflow", "submitted"]
    await stage.deploy("quick", *names)
    engine = QUICK.model_copy(update={"cancel_grace_s": 60.0})
    async with stage.working(
        engine=engine, concurrency=1, processes=1, parked=3, parked_processes=3
    ) as worker:
        runs = [await stage.ask(name, parameters={"word": "began"}) for name in names]
        await stage.hear("said.began", times=3)
        assert result_of(await stage.run("quick")) == "quick"
        await waiting(worker, 3)
        last = await stage.ask("in_subflow", parameters={"word": "last"})
        await stage.hear("said.last")
        told = (
            "task 'sleeps' sleeps 3600 s in place and holds its worker: it is part of a task, whose code would have to run again. It "
            "keeps its place, since as many runs as may do so wait in that worker without one (HARK_WORKER__PARKED, "
            "HARK_WORKER__PARKED_PROCESSES)"
        )
        with anyio.fail_after(30):
            while await said_in_log(stage, last, told) == 0:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.05)
        # It gives its own in the place of one that goes on.
        await stage.control.cancel(runs[0].id)
        assert result_of(await stage.run("quick")) == "quick"
        await waiting(worker, 3)
        for run in (last, *runs[1:]):
            await stage.control.cancel(run.id)
        ended = [await stage.end(run) for run in (last, *runs)]
        assert {run.state_type for run in ended} == {StateType.CANCELLED}
        await waiting(worker, 0)
        assert result_of(await stage.run("quick")) == "quick"
