"""``task.delay``: any worker serves it, and what was accepted is neither lost nor done twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import pytest
from hark import allow_failure, flow, get_run_logger, tags, task, wait_for_event
from hark.bus import Bus, Event
from hark.bus.emit import emit
from hark.bus.session import Session
from hark.bus.subject import waits_subject
from hark.config import EngineConfig
from hark.engine.background_tasks.background import BackgroundLog
from hark.engine.background_tasks.delay import key_of
from hark.engine.background_tasks.distributed_future import DistributedFuture
from hark.engine.futures import as_completed, wait
from hark.engine.limits.limit import BUCKET, Limit
from hark.engine.limits.limit import key_of as limit_key
from hark.engine.states import State
from hark.engine.task_worker import TaskWorker
from hark.engine.tasks import Task
from hark.errors import DefinitionError, Unpicklable, UpstreamFailed
from hark.vocabulary import FlowRunId

from .conftest import hear

ENGINE = EngineConfig(ack_wait_s=2.0)


@asynccontextmanager
async def serving(bus: Bus, *tasks: Task[..., Any], **options: Any) -> AsyncIterator[TaskWorker]:
    with anyio.fail_after(60):
        async with TaskWorker(*tasks, bus=bus, **{"engine": ENGINE, "drain_s": 0.0, **options}) as worker:
            yield worker


async def words(bus: Bus, future: DistributedFuture[Any]) -> list[str]:
    """Return the last words of a run's events, in order."""
    history = await BackgroundLog(bus).history(future.task_run_id)
    return [recorded.event.type.partition(".")[2] for recorded in history]


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task
async def aadd(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


@task
def fails(text: str) -> None:
    raise ValueError(text)


async def test_a_run_waits_for_a_worker_and_gives_its_result(bus: Bus, session: Session) -> None:
    """The future is there at once; sync and async tasks alike, and by each way of asking for the result."""
    futures = [add.delay(1, b=2), aadd.delay(3), add.apply_async((4,), {"b": 4}), add.apply_async([5])]
    assert [future.done for future in futures] == [False] * 4
    assert await words(bus, futures[0]) == ["scheduled"]
    async with serving(bus, add, aadd):
        assert [await future for future in futures] == [3, 4, 8, 6]
        assert futures[0].state.is_completed()
        again = DistributedFuture[int](futures[0].task_run_id)
        assert await asyncio.to_thread(again.result, 30) == 3
        assert (await asyncio.to_thread(lambda: again.state)).name == "Completed"
    assert await words(bus, futures[0]) == ["scheduled", "pending", "running", "completed"]


async def test_a_failure_is_raised_as_it_was(bus: Bus, session: Session) -> None:
    """The exception itself, with where it came from; asked not to raise, it is returned."""
    async with serving(bus, fails):
        future = fails.delay("nothing to eat")
        with pytest.raises(ValueError, match="nothing to eat") as caught:
            await future
        assert "raise ValueError(text)" in str(caught.value.__cause__)
        assert isinstance(await future.result_async(raise_on_failure=False), ValueError)
    assert future.state.message is not None
    assert "nothing to eat" in future.state.message


async def test_retries_hooks_and_tags_are_those_of_any_task(bus: Bus, session: Session) -> None:
    """In order, each once; the tags of where it was asked for included; what it emits follows from it."""
    seen: list[tuple[str, str]] = []
    tries: list[frozenset[str]] = []
    ended = threading.Event()

    def note(task: Task[..., Any], run: Any, state: State) -> None:
        seen.append((run.name, state.name))
        if state.is_final():
            ended.set()

    @task(retries=2, tags=["mine"], on_running=[note], on_completion=[note], task_run_name="flaky-{word}")
    def flaky(word: str) -> str:
        from hark import runtime

        tries.append(frozenset(runtime.task_run.tags))
        emit("said.tried")
        if len(tries) < 3:
            raise RuntimeError("again")
        return word.upper()

    with tags("given"):
        future = flaky.delay("x")
    async with serving(bus, flaky):
        assert await future == "X"
        # Hooks of an end are called once it is in the log, and so may be later than whoever waits for the result.
        assert await asyncio.to_thread(ended.wait, 60)
    assert tries == [frozenset({"given", "mine"})] * 3
    assert seen == [
        ("flaky-x", "Running"),
        ("flaky-x", "Retrying"),
        ("flaky-x", "Retrying"),
        ("flaky-x", "Completed"),
    ]
    assert await words(bus, future) == [
        "scheduled", "pending", "running", "awaiting-retry", "retrying", "awaiting-retry", "retrying", "completed",
    ]  # fmt: skip
    async with bus.log.read(["hark.ev.said.>"]) as batches:
        records = [record async for batch in batches for record in batch.records]
    first = (await BackgroundLog(bus).history(future.task_run_id))[0].event
    assert {record.event.causationid for record in records} == {first.id}


async def test_a_long_retry_delay_holds_no_worker(bus: Bus, session: Session) -> None:
    """The run is in nobody's hands until it is due, and the count of tries goes on, also by another worker."""
    engine = EngineConfig(ack_wait_s=2.0, suspend_after_s=0.2)
    tried: list[int] = []

    @task(retries=1, retry_delay_seconds=0.8)
    async def late() -> int:
        tried.append(len(tried))
        if len(tried) == 1:
            raise RuntimeError("later")
        return len(tried)

    future = late.delay()
    async with serving(bus, late, engine=engine, limit=1) as worker:
        with anyio.fail_after(30):
            while "awaiting-retry" not in await words(bus, future) or worker.held:  # noqa: ASYNC110  no event
                await asyncio.sleep(0.01)
    async with serving(bus, late, add, engine=engine, limit=1):
        assert await add.delay(1) == 2
        assert await future == 2
    assert await words(bus, future) == [
        "scheduled",
        "pending",
        "running",
        "awaiting-retry",
        "pending",
        "retrying",
        "completed",
    ]


@task
async def aexits() -> None:
    raise SystemExit(3)


@task
def exits() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("leaves", [exits, aexits], ids=["sync", "async"])
async def test_a_task_that_exits_ends_its_own_run_alone(
    bus: Bus, session: Session, leaves: Task[..., Any]
) -> None:
    """Its run is Crashed at once, and the worker serves the others."""
    async with serving(bus, leaves, aadd, limit=1):
        future = leaves.delay()
        await future.wait_async()
        assert (future.state.name, await aadd.delay(1)) == ("Crashed", 2)
        assert await words(bus, future) == ["scheduled", "pending", "running", "crashed"]


@task
async def atotal(parts: list[str]) -> int:
    await asyncio.sleep(0)
    return sum(map(len, parts))


@task
def text(chars: int) -> str:
    return "x" * chars


async def test_async_tasks_are_given_what_others_returned(bus: Bus, session: Session) -> None:
    """Small results and stored ones, however deep, of a flow's tasks too; all at the first try."""

    @flow
    async def total() -> int:
        return await atotal.submit([text.delay(1), text.delay(100_000)])

    async with serving(bus, atotal, text, limit=1):
        future = atotal.delay([text.delay(2), text.delay(100_000)])
        assert await future == 100_002
        assert await words(bus, future) == ["scheduled", "pending", "running", "completed"]
        assert await total() == 100_001


@pytest.mark.parametrize("after", [add, aadd])
async def test_a_run_whose_upstream_kept_nothing_says_so(
    bus: Bus, session: Session, after: Task[..., Any]
) -> None:
    """It will never begin, and is not tried as if its worker had died."""
    forgetful = add.with_options(persist_result=False)
    async with serving(bus, forgetful, aadd, limit=1) if after is aadd else serving(bus, forgetful):
        future = after.delay(forgetful.delay(1))
        with pytest.raises(UpstreamFailed, match="cannot be read"):
            await future
        assert (await words(bus, future), future.state.name) == (
            ["scheduled", "pending", "pending"],
            "NotReady",
        )


async def test_futures_among_the_arguments_are_waited_for_without_holding_a_place(
    bus: Bus, session: Session
) -> None:
    """Whatever the order in which they come, with one place for all; a failure upstream leaves the run NotReady."""
    async with serving(bus, add, fails, limit=1):
        first = add.delay(1)
        second = add.delay(first, b=10)
        third = add.apply_async((second,), {"b": 100}, wait_for=[first])
        assert await third == 112
        bad = fails.delay("no")
        left = add.delay(bad)
        with pytest.raises(UpstreamFailed):
            await left
        assert (await words(bus, left))[-1] in ("not-ready", "pending")
        after = add.apply_async((1,), wait_for=[allow_failure(bad)])
        assert await after == 2
    # Asked for in the wrong order, while nobody serves what it waits for.
    one = aadd.delay(1)
    two = add.delay(one)
    async with serving(bus, add) as only:
        with anyio.fail_after(30):
            while await bus.log.next(waits_subject(one.task_run_id)) is None or only.held:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with serving(bus, aadd):
            assert await two == 3


@task
async def anaps() -> str:
    await emit("napping")
    await wait_for_event("go.on", since="1h")
    return "woken"


@task
def naps() -> str:
    emit("napping", wait=True)
    wait_for_event("go.on", since="1h")
    return "woken"


@task
def naps_within() -> str:
    return naps()


@task(retries=1, retry_delay_seconds=600)
async def afails() -> None:
    await emit("napping")
    raise RuntimeError("not yet")


@task
async def afails_beside(marker: str) -> None:
    async def adds() -> None:
        await works(marker)

    await asyncio.gather(afails(), adds())


@task
async def works(marker: str) -> None:
    while not Path(marker).exists():  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0.01)


async def test_a_run_that_waits_for_long_leaves_its_place_to_others(
    bus: Bus, session: Session, tmp_path: Path
) -> None:
    """With one place and one thread for all, what is asked for last is served first; what works beside such a wait keeps the place."""
    engine = EngineConfig(ack_wait_s=2.0, suspend_after_s=0.2)
    marker = tmp_path / "go"
    async with serving(bus, naps, naps_within, anaps, afails_beside, add, engine=engine, limit=1) as worker:
        waiting = [naps.delay(), naps_within.delay(), anaps.delay()]
        assert await add.delay(1) == 2
        assert worker.places.waiting == 3
        beside = afails_beside.delay(str(marker))
        await hear(bus, "napping", times=4)
        last = add.delay(2)
        await bus.log.append(Event(type="go.on", source="/test"))
        assert [await future for future in waiting] == ["woken"] * 3
        with anyio.fail_after(60):
            # That it has ended is heard before the worker has let it go, or after.
            while worker.held != [beside.task_run_id]:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.01)
        assert not last.done
        marker.touch()
        assert await last == 3
        assert (worker.places.waiting, worker.places.capacity) == (1, 2)


async def test_a_worker_that_stops_does_not_wait_for_a_thread_that_waits(
    bus: Bus, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the worker let it work on meanwhile, and a thread cannot be stopped in a wait: it is left, and another serves the run."""
    monkeypatch.setattr("hark.engine.task_worker.STOPPING_S", 0.1)
    engine = EngineConfig(ack_wait_s=2.0, suspend_after_s=0.05)
    async with serving(bus, naps, engine=engine, drain_s=300.0) as worker:
        future = naps.delay()
        with anyio.fail_after(30):
            while not worker.places.waiting:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.01)
    await bus.log.append(Event(type="go.on", source="/test"))
    async with serving(bus, naps):
        assert await future == "woken"


async def test_futures_work_with_wait_and_as_completed(bus: Bus, session: Session) -> None:
    """As those of submitted tasks do; callbacks included."""
    called: list[str] = []
    async with serving(bus, add):
        futures = [add.delay(n) for n in range(5)]
        futures[0].add_done_callback(lambda future: called.append(future.task_run_id))
        async for future in as_completed(futures, timeout=30):
            assert future.done
        assert called == [futures[0].task_run_id]
        others = [add.delay(n) for n in range(3)]
        waited = await asyncio.to_thread(wait, others, 30)
        assert waited.done == set(others)
    nobody = add.delay(1)
    assert not (await asyncio.to_thread(wait, [nobody], 0.05)).done
    with pytest.raises(TimeoutError):
        await nobody.result_async(timeout=0.05)
    with pytest.raises(RuntimeError, match="await future"):
        nobody.wait()


async def test_a_flow_that_is_run_again_gets_the_runs_it_had_asked_for(bus: Bus, session: Session) -> None:
    """A retry of the flow asks for the same ones: each is run once."""
    ran: list[int] = []

    @task
    def once(n: int) -> int:
        ran.append(n)
        return n * 2

    tries: list[list[str]] = []

    @flow(retries=1)
    async def asks() -> int:
        futures = [once.delay(n) for n in (1, 1, 2)]
        tries.append([future.task_run_id for future in futures])
        total: int = sum([await future for future in futures])
        if len(tries) == 1:
            raise RuntimeError("again")
        return total

    async with serving(bus, once):
        assert await asks() == 8
    assert tries[0] == tries[1]
    assert sorted(ran) == [1, 1, 2]
    history = await BackgroundLog(bus).history(tries[0][0])
    data: Any = history[-1].event.data
    assert data["flow"]["name"] == "asks"


async def test_a_submitted_tasks_future_is_waited_for_before_it_is_sent(bus: Bus, session: Session) -> None:
    """Its result travels; if it failed, nothing is sent."""

    @flow
    def both() -> tuple[int, str]:
        mine = add.submit(1)
        sent = add.delay(mine)
        broken = fails.submit("no")
        try:
            add.delay(broken)
        except UpstreamFailed as exc:
            return sent.result(30), str(exc)
        raise AssertionError("it was sent")

    async with serving(bus, add):
        value, why = await asyncio.to_thread(both)
    assert value == 3
    assert "Upstream" in why


async def test_what_cannot_travel_is_named(bus: Bus, session: Session) -> None:
    """The argument, and what to do about it; nothing is sent. So is a method, whose object would have to travel too."""
    with pytest.raises(Unpicklable, match="argument 'a' of task 'add'"):
        add.delay(n for n in range(3))

    class Thing:
        @task
        def method(self) -> None: ...

    with pytest.raises(DefinitionError, match="is a method"):
        Thing().method.delay()


async def test_large_arguments_and_results_go_by_the_object_store(bus: Bus, session: Session) -> None:
    """Beyond what an event carries; also more than one message of the broker holds."""

    @task
    async def twice(text: str, more: set[int]) -> tuple[str, set[int]]:
        return text + text, more

    async with serving(bus, twice):
        text, more = await twice.delay("x" * 1_500_000, {1, 2})
    assert (len(text), more) == (3_000_000, {1, 2})


async def test_log_lines_stand_under_the_run(bus: Bus, session: Session) -> None:
    """Of a run that no flow asked for, under its own id; else under the flow's run."""

    @task(log_prints=True)
    def speaks() -> None:
        get_run_logger().info("from the logger")
        print("from print")

    async with serving(bus, speaks):
        future = speaks.delay()
        await future
        await bus.publisher.barrier()
    lines = await bus.run_logs.read(FlowRunId(future.task_run_id))
    assert [line.message for line in lines] == ["from the logger", "from print"]


async def test_limits_of_tags_hold_back_runs(bus: Bus, session: Session) -> None:
    """As of any task: no more at once than the limit has slots."""
    limit = Limit(slots=1)
    await bus.bucket(BUCKET).put(limit_key("tag:db"), limit.model_dump_json().encode())
    at_once: list[int] = [0, 0]

    @task(tags=["db"])
    async def careful() -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0.01)
        at_once[0] -= 1

    async with serving(bus, careful):
        await asyncio.gather(*(careful.delay().result_async() for _ in range(5)))
    assert at_once == [0, 1]


async def test_no_more_run_at_once_than_the_worker_may_hold(bus: Bus, session: Session) -> None:
    """``limit`` counts sync and async runs together; the rest waits on the bus, where another worker can take it."""
    running, most, enough = 0, 0, asyncio.Event()

    @task
    async def holds() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            enough.set()
        await enough.wait()
        running -= 1

    async with serving(bus, holds, limit=2):
        await asyncio.gather(*(holds.delay().result_async() for _ in range(8)))
    assert most == 2


async def test_a_worker_that_stops_hands_back_what_it_holds(bus: Bus, session: Session) -> None:
    """Another runs it again at once, and that does not count as a loss."""
    begun: list[int] = []
    started = asyncio.Event()

    @task
    async def long() -> str:
        begun.append(1)
        started.set()
        if len(begun) == 1:
            await asyncio.sleep(3600)
        return "done"

    future = long.delay()
    async with serving(bus, long):
        with anyio.fail_after(30):
            await started.wait()
    async with serving(bus, long):
        assert await future == "done"
    assert await words(bus, future) == [
        "scheduled",
        "pending",
        "running",
        "resuming",
        "pending",
        "running",
        "completed",
    ]


async def test_two_tasks_of_one_key_are_refused(bus: Bus) -> None:
    """One would be run for the other."""

    def made() -> Task[..., Any]:
        @task
        def twin() -> None: ...

        return twin

    with pytest.raises(DefinitionError, match="both known as"):
        TaskWorker(made(), made(), bus=bus)
    with pytest.raises(DefinitionError, match="nothing to serve"):
        TaskWorker(bus=bus)


def test_a_task_is_known_alike_where_its_file_is_the_program_and_where_it_is_imported(tmp_path: Path) -> None:
    """What is asked for by one is served by the other."""
    (tmp_path / "jobs.py").write_text(
        dedent(
            """
            from hark import task
            from hark.engine.background_tasks.delay import key_of

            @task
            def mail(): ...

            if __name__ == "__main__":
                print(key_of(mail))
            """
        )
    )
    program = subprocess.run(
        [sys.executable, "jobs.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    imported = subprocess.run(
        [sys.executable, "-c", "import jobs; print(jobs.key_of(jobs.mail))"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert program.stdout == imported.stdout == "mail-jobs.mail\n"
    assert len(key_of(add.with_options(name="n" * 500))) < 200
