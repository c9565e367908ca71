"""Tasks where nothing is tracked: calls, futures, retries, timeouts, mapping, hooks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hark import Abort, Skip, allow_failure, flow, quote, task
from hark.engine import SequentialTaskRunner, TaskFuture
from hark.engine.states import Completed, Failed, State
from hark.errors import (
    ParameterBindError,
    RunTimedOut,
    UpstreamFailed,
)
from pydantic import BaseModel


@task
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@task
async def double(a: int) -> int:
    return a * 2


@task
def broken(_: object = None) -> int:
    raise ValueError("broken")


async def test_a_task_is_called_like_its_function() -> None:
    """Sync and async, with defaults and names; the function itself is at hand, its docstring too."""
    assert add(1) == 2
    assert add(1, b=5) == 6
    assert await double(2) == 4
    assert add.fn(1, 1) == 2
    assert add.__doc__ == "Add two numbers."
    assert add.name == "add"
    with pytest.raises(ParameterBindError, match=r"function 'add'.*'a'.*task 'add'"):
        add()  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="broken"):
        broken()


def test_wrong_options_are_refused_with_a_suggestion() -> None:
    """A typing mistake in an option does not pass in silence."""
    with pytest.raises(TypeError, match="did you mean 'retries'"):
        task(retrys=1)(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="retries"):
        task(retries=-1)(lambda: None)
    with pytest.raises(TypeError, match="Expected iterable for 'on_failure'"):
        task(on_failure=print)(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="retry_condition_fn"):
        task(retry_condition_fn=3)(lambda: None)  # type: ignore[call-overload]


async def test_return_state_never_raises() -> None:
    """The state says what happened, and its result raises it."""
    state = broken(return_state=True)
    assert state.is_failed()
    assert state.message == "Task run encountered an exception ValueError: broken"
    with pytest.raises(ValueError, match="broken"):
        state.result()
    assert (await double(1, return_state=True)).result() == 2


def test_a_task_is_retried_until_it_works() -> None:
    """Each try is counted; the delays are those of the list."""
    tries: list[float] = []

    @task(retries=3, retry_delay_seconds=[0, 0.02])
    def flaky() -> int:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise ValueError("not yet")
        return len(tries)

    assert flaky() == 3
    assert tries[2] - tries[1] >= 0.02


async def test_retries_end() -> None:
    """After the last one the failure stands."""
    tries: list[int] = []

    @task(retries=2)
    async def always() -> None:
        tries.append(1)
        raise ValueError(f"try {len(tries)}")

    with pytest.raises(ValueError, match="try 3"):
        await always()
    assert len(tries) == 3


@pytest.mark.parametrize(("wanted", "tries"), [(True, 3), (False, 1)])
async def test_a_condition_decides_about_retries(wanted: bool, tries: int) -> None:
    """It sees task, run and failed state; it may be async; one that raises means no."""
    seen: list[State] = []
    made: list[int] = []

    def condition(task_: Any, run: Any, state: State) -> bool:
        assert run.state is state
        seen.append(state)
        return wanted

    async def slow_condition(task_: Any, run: Any, state: State) -> bool:
        return condition(task_, run, state)

    def bad_condition(task_: Any, run: Any, state: State) -> bool:
        raise RuntimeError("no idea")

    def body() -> None:
        made.append(1)
        raise ValueError("x")

    async def async_body() -> None:
        body()

    for fn in (condition, slow_condition):
        made.clear()
        state = await asyncio.to_thread(task(retries=2, retry_condition_fn=fn)(body), return_state=True)
        assert state.is_failed()
        assert len(made) == tries
        made.clear()
        await task(retries=2, retry_condition_fn=fn)(async_body)(return_state=True)
        assert len(made) == tries
    assert all(state.is_failed() for state in seen)
    made.clear()
    task(retries=2, retry_condition_fn=bad_condition)(body)(return_state=True)
    assert len(made) == 1


def test_abort_fails_at_once_and_skip_completes() -> None:
    """Neither is retried."""
    tries: list[int] = []

    @task(retries=5)
    def ends(how: type[Exception]) -> None:
        tries.append(1)
        raise how("because")

    aborted = ends(Abort, return_state=True)
    skipped = ends(Skip, return_state=True)
    assert aborted.is_failed()
    assert (skipped.name, skipped.is_completed(), skipped.message) == ("Skipped", True, "because")
    ends(Skip)
    assert len(tries) == 3


def test_a_returned_state_is_the_state() -> None:
    """A task may choose its end too."""

    @task
    def chooses(state: Any) -> Any:
        return state

    assert chooses(quote(Failed(message="no")), return_state=True).is_failed()
    assert chooses(quote(Completed(name="Mine", data=3)), return_state=True).name == "Mine"


# --- timeouts -----------------------------------------------------------------------------------------


def spin() -> None:
    while True:
        time.sleep(0.001)


async def test_a_limit_stops_code() -> None:
    """In the main thread even what blocks, in other threads between instructions, async at an await; named TimedOut."""

    @task(timeout_seconds=0.05)
    async def waits() -> None:
        await asyncio.sleep(30)

    limited = task(timeout_seconds=0.05)(spin)
    states = [
        await waits(return_state=True),
        task(timeout_seconds=0.05)(lambda: time.sleep(30))(return_state=True),
        limited(return_state=True),
        await asyncio.to_thread(limited, return_state=True),
        limited.submit(return_state=True),
    ]
    for state in states:
        assert (state.type, state.name) == ("FAILED", "TimedOut")
        with pytest.raises(RunTimedOut, match=r"0\.05 s"):
            state.result()


def test_a_limit_holds_for_each_try() -> None:
    """A try that took too long is retried like any failure."""
    tries: list[int] = []

    @task(timeout_seconds=1, retries=1)
    def slow_once() -> int:
        tries.append(1)
        if len(tries) == 1:
            spin()
        return len(tries)

    assert slow_once() == 2


async def test_a_timeout_of_the_code_itself_is_told_apart_from_the_limit() -> None:
    """Any TimeoutError makes TimedOut, and the message says whether it was the task's own limit."""

    @task(timeout_seconds=30)
    async def own() -> None:
        raise TimeoutError("mine")

    state = await own(return_state=True)
    assert (state.name, state.message) == (
        "TimedOut",
        "Task run failed due to timeout: TimeoutError('mine')",
    )


def test_an_outer_limit_ends_an_inner_one() -> None:
    """The one that is due first fires, and the other does not linger."""
    inner = task(timeout_seconds=30)(spin)
    outer = task(timeout_seconds=0.05)(inner)
    assert outer(return_state=True).name == "TimedOut"
    short = task(timeout_seconds=0.02)(spin)
    both = task(timeout_seconds=30)(lambda: short(return_state=True).name)
    assert both() == "TimedOut"


# --- futures and runners ------------------------------------------------------------------------------


async def test_submit_gives_a_future() -> None:
    """From sync and async code; done, state and result; `await` works as well as `.result()`."""
    future = add.submit(1)
    assert isinstance(future, TaskFuture)
    assert future.result(timeout=60) == 2
    assert future.done
    assert future.state.is_completed()
    assert double.submit(4).result() == 8
    assert await double.submit(5) == 10
    failed = broken.submit()
    assert isinstance(failed.result(raise_on_failure=False), ValueError)
    with pytest.raises(ValueError, match="broken"):
        failed.result()
    assert add.submit(1, return_state=True).result() == 2


def test_futures_are_inputs() -> None:
    """A task waits for what it is given, wherever it stands: lists, mappings, dataclasses, models."""

    @dataclass
    class Box:
        item: Any

    class Model(BaseModel):
        item: Any

    @task
    def look(*things: Any) -> Any:
        return things

    one = add.submit(1)
    things = look.submit(
        one, [one, (one, 3)], {"k": one}, Box(one), Model(item=one), {1: {2: [one]}}
    ).result()
    assert things == (2, [2, (2, 3)], {"k": 2}, Box(2), Model(item=2), {1: {2: [2]}})
    assert look(add(1, return_state=True)) == (2,)

    @task
    def kind(items: list[Any]) -> str:
        return type(items[0]).__name__

    assert kind.submit(quote([one])).result() == "TaskFuture"
    assert kind([quote(one)]) == "TaskFuture"
    assert kind([one]) == "int"


def test_what_waits_for_a_failure_does_not_run() -> None:
    """It stays PENDING, named NotReady, down the whole chain; `allow_failure` hands the exception in instead."""
    ran: list[object] = []

    @task
    def after(x: Any = None) -> Any:
        ran.append(x)
        return x

    first = after.submit(broken.submit())
    second = after.submit(first)
    third = after.submit(1, wait_for=[second])
    for future in (first, second, third):
        future.wait()
        assert (future.state.type, future.state.name) == ("PENDING", "NotReady")
        with pytest.raises(UpstreamFailed, match="did not run"):
            future.result()
    with pytest.raises(UpstreamFailed):
        after(broken.submit())
    assert ran == []
    handed = after.submit(allow_failure(broken.submit())).result()
    assert isinstance(handed, ValueError)
    after.submit(2, wait_for=[allow_failure(broken.submit())]).result()
    assert ran == [handed, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_that_submit_tasks_never_block_a_pool(workers: int) -> None:
    """A pool of one thread still finishes a tree of tasks that wait for their children."""
    from hark.engine import ThreadPoolTaskRunner

    @task
    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        return fibonacci.submit(n - 1).result() + fibonacci.submit(n - 2).result()

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=workers))
    def tree() -> int:
        return fibonacci.submit(8).result()

    assert tree() == 21


def test_a_pool_bounds_what_works_at_once() -> None:
    """No more than `max_workers` tasks are in their code at the same time."""
    from hark.engine import ThreadPoolTaskRunner

    now, most, lock, full = 0, 0, threading.Lock(), threading.Event()

    @task
    def busy() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now >= 3:
                full.set()
        full.wait(60)
        time.sleep(0.005)
        with lock:
            now -= 1

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=3))
    def many() -> None:
        for future in [busy.submit() for _ in range(20)]:
            future.wait()

    many()
    assert most == 3


def test_a_sequential_runner_runs_at_once() -> None:
    """Submitting is running, in order, in the thread that submits."""
    order: list[object] = []

    @task
    def note(x: int) -> int:
        order.append((x, threading.get_ident()))
        return x

    @flow(task_runner=SequentialTaskRunner)
    def one_by_one() -> list[int]:
        futures = note.map([1, 2, 3])
        assert all(future.done for future in futures)
        double.submit(2).result()
        return futures.result()

    assert one_by_one() == [1, 2, 3]
    assert order == [(x, threading.get_ident()) for x in (1, 2, 3)]


# --- methods, options, generators, hooks --------------------------------------------------------------


class Worker:
    factor = 3

    @task
    def times(self, x: int) -> int:
        return x * self.factor

    @task
    @classmethod
    def by_class(cls, x: int) -> int:
        return x * cls.factor

    @staticmethod
    @task
    def by_nothing(x: int) -> int:
        return x


def test_methods_are_tasks() -> None:
    """Instance, class and static methods; called, submitted, mapped."""
    worker = Worker()
    assert worker.times(2) == 6
    assert worker.times.submit(3).result() == 9
    assert worker.times.map([1, 2]).result() == [3, 6]
    assert Worker.by_class(2) == 6
    assert Worker.by_nothing(2) == 2


def test_with_options_makes_a_copy() -> None:
    """What is given changes, the rest stays, and the original too."""

    @task(retries=3, tags=["a"], name="first")
    def fn() -> None: ...

    other = fn.with_options(retries=0, timeout_seconds=5)
    assert (other.retries, other.timeout_seconds, other.tags, other.name) == (0, 5, frozenset({"a"}), "first")
    assert (fn.retries, fn.timeout_seconds) == (3, None)
    assert fn.with_options(name="second").name == "second"


async def test_generators_yield_through() -> None:
    """Values come one by one; submitted, they come as a list."""

    @task
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    @task
    async def count_slowly(n: int) -> Any:
        for i in range(n):
            yield i

    assert list(count(3)) == [0, 1, 2]
    assert list(count.submit(3).result()) == [0, 1, 2]
    assert [i async for i in count_slowly(2)] == [0, 1]
    assert count_slowly.submit(2).result() == [0, 1]


async def test_hooks_are_told() -> None:
    """In order, sync and async, with task, run and state; what they raise changes nothing."""
    told: list[tuple[str, str, int]] = []

    def running(_task: Any, run: Any, state: State) -> None:
        told.append(("running", state.name, run.run_count))

    async def ended(_task: Any, run: Any, state: State) -> None:
        told.append(("ended", state.name, run.run_count))

    def bad(*_: Any) -> None:
        raise RuntimeError("a bad hook")

    @task(retries=1, on_running=[bad, running], on_failure=[bad, ended], on_completion=[ended])
    def fails() -> None:
        raise ValueError("x")

    @task(on_running=[running])
    async def works() -> None: ...

    @works.on_completion
    def completed(_task: Any, run: Any, state: State) -> None:
        told.append(("decorated", state.name, run.run_count))

    fails(return_state=True)
    await works()
    assert told == [
        ("running", "Running", 1),
        ("running", "Retrying", 2),
        ("ended", "Failed", 2),
        ("running", "Running", 1),
        ("decorated", "Completed", 1),
    ]
