"""Cached results: which calls are the same, for how long, in which runs and processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from hark import flow, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.config import load_settings
from hark.engine.cache_policies import (
    DEFAULT,
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    NONE,
    RUN_ID,
    TASK_SOURCE,
    CachePolicy,
    hash_objects,
    task_input_hash,
)
from hark.engine.locking import BrokerLockManager, MemoryLockManager
from hark.engine.transactions import IsolationLevel
from hark.errors import HashError
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["in files", "in the broker"])
async def anywhere(
    request: pytest.FixtureRequest, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """Where cached results are kept: without a broker, and with one."""
    monkeypatch.setenv("HARK_HOME", str(tmp_path / "cached"))
    load_settings.cache_clear()
    if request.param == "in the broker":
        with use_session(bus):
            yield
    else:
        yield
    load_settings.cache_clear()


# --- keys ---------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(min_size=1, max_size=3), JSON, max_size=4), st.randoms())
def test_keys_do_not_depend_on_the_order_of_names(inputs: dict[str, Any], random: Any) -> None:
    """Equal inputs, equal keys."""
    names = list(inputs)
    random.shuffle(names)
    shuffled = {name: inputs[name] for name in names}
    assert INPUTS.compute_key(None, inputs, {}) == INPUTS.compute_key(None, shuffled, {})


@given(JSON, JSON)
def test_different_values_have_different_hashes(one: Any, other: Any) -> None:
    """And equal ones equal hashes; True is not 1."""
    assert (hash_objects(one) == hash_objects(other)) == (repr(one) == repr(other) or _same(one, other))


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@given(st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4), st.sampled_from("abcd"))
def test_taking_an_argument_out_makes_its_value_indifferent(inputs: dict[str, Any], name: str) -> None:
    """For every policy that has inputs in it, alone or among others."""
    changed = {**inputs, name: "something else"}
    with_it = {**inputs, name: 1}
    for policy in (INPUTS - name, (INPUTS + FLOW_PARAMETERS) - name, INPUTS + FLOW_PARAMETERS - name):
        assert policy.compute_key(None, with_it, {"p": 1}) == policy.compute_key(None, changed, {"p": 1})


def test_policies_add_up_and_nothing_adds_nothing() -> None:
    """NO_CACHE is the zero; keys of parts that have none are passed over."""
    assert NO_CACHE is NONE
    assert INPUTS + NO_CACHE == INPUTS
    assert NO_CACHE + INPUTS == INPUTS
    assert (INPUTS + FLOW_PARAMETERS).compute_key(None, {}, {}) is None
    assert (INPUTS + FLOW_PARAMETERS).compute_key(None, {"a": 1}, {}) is not None
    assert INPUTS + TASK_SOURCE + RUN_ID == DEFAULT
    with pytest.raises(TypeError):
        INPUTS - 5  # type: ignore[operator]
    with pytest.raises(TypeError):
        INPUTS + "x"  # type: ignore[operator]
    with pytest.raises(HashError):
        INPUTS.compute_key(None, {"a": threading.Lock()}, {})


# --- hits ---------------------------------------------------------------------------------------------


async def test_equal_inputs_run_once_across_runs(anywhere: None) -> None:
    """The second call, in another run, ends Completed named Cached, with the value; hooks are told."""
    ran: list[int] = []
    told: list[str] = []

    @task(cache_policy=INPUTS, on_completion=[lambda task, run, state: told.append(state.name)])
    async def double(n: int) -> dict[str, int]:
        ran.append(n)
        return {"n": 2 * n}

    @flow
    async def doubles(n: int) -> Any:
        state = await double(n, return_state=True)
        return state.name, await state.aresult()

    assert await doubles(2) == ("Completed", {"n": 4})
    assert await doubles(2) == ("Cached", {"n": 4})
    assert await doubles(3) == ("Completed", {"n": 6})
    assert (ran, told) == ([2, 3], ["Completed", "Cached", "Completed"])


async def test_sync_and_submitted_tasks_are_cached_too(anywhere: None) -> None:
    """In threads, mapped, and of values that are no JSON or large."""
    ran: list[int] = []

    @task(cache_policy=INPUTS)
    def make(n: int) -> tuple[bytes, ...]:
        ran.append(n)
        return (b"x" * n,)

    @flow
    def makes() -> list[int]:
        direct = [make(5), make(5)]
        mapped = make.map([5, 300_000]).result()
        return [len(one[0]) for one in (*direct, *mapped)]

    for _ in range(2):
        assert await asyncio.to_thread(makes) == [5, 5, 5, 300_000]
    assert ran == [5, 300_000]


async def test_a_key_of_the_authors_own(anywhere: None) -> None:
    """The function sees the context and the arguments; None means no cache; what it raises only costs the cache."""
    seen: list[tuple[str, Any]] = []
    ran: list[int] = []

    def key(context: Any, parameters: dict[str, Any]) -> str | None:
        seen.append((context.task.name, parameters["n"]))
        if parameters["n"] < 0:
            raise ZeroDivisionError
        return f"parity/{parameters['n'] % 2}" if parameters["n"] < 10 else None

    @task(cache_key_fn=key)
    async def remember(n: int) -> int:
        ran.append(n)
        return n

    @flow
    async def go() -> list[int]:
        return [await remember(n) for n in (2, 4, 5, 10, 10, -1, -1)]

    assert await go() == [2, 2, 5, 10, 10, -1, -1]
    assert ran == [2, 5, 10, 10, -1, -1]
    assert seen[0] == ("remember", 2)


async def test_task_input_hash_tells_tasks_apart(anywhere: None) -> None:
    """The same arguments of another task are another call."""

    @task(cache_key_fn=task_input_hash)
    async def one(n: int) -> str:
        return "one"

    @task(cache_key_fn=task_input_hash)
    async def other(n: int) -> str:
        return "other"

    @flow
    async def go() -> list[str]:
        return [await one(1), await other(1), await one(1)]

    assert await go() == ["one", "other", "one"]


async def test_results_expire_and_are_refreshed(anywhere: None) -> None:
    """After their time they are made anew; refresh_cache makes them anew at once, for others too."""
    ran: list[str] = []

    @task(cache_policy=INPUTS, cache_expiration=timedelta(seconds=2))
    async def short(n: int) -> int:
        ran.append("short")
        return len(ran)

    @task(cache_policy=INPUTS)
    async def kept(word: str) -> int:
        ran.append("kept")
        return len(ran)

    @flow
    async def go(what: str) -> Any:
        if what == "short":
            return await short(1)
        fresh = kept.with_options(refresh_cache=True) if what == "refresh" else kept
        return await fresh("x")

    assert await go("short") == await go("short") == 1
    with anyio.fail_after(60):
        while await go("short") == 1:  # noqa: ASYNC110 - it expires by the clock
            await asyncio.sleep(0.1)
    assert len(ran) == 2
    assert await go("kept") == await go("kept") == 3
    assert await go("refresh") == 4
    assert await go("kept") == 4


async def test_default_holds_within_one_run(anywhere: None) -> None:
    """Equal calls in one run are one; the next run makes its own. So says persist_result=True alone, as in Prefect."""
    ran: list[str] = []

    @task(cache_policy=DEFAULT)
    async def said(n: int) -> None:
        ran.append("said")

    @task(persist_result=True)
    async def implied(n: int) -> None:
        ran.append("implied")

    @task
    async def plain(n: int) -> None:
        ran.append("plain")

    @flow
    async def go() -> list[str]:
        every = (said, implied, plain)
        return [(await one(1, return_state=True)).name for _ in range(2) for one in every]

    for _ in range(2):
        ran.clear()
        assert await go() == ["Completed", "Completed", "Completed", "Cached", "Cached", "Completed"]
        assert ran == ["said", "implied", "plain", "plain"]


async def test_what_is_not_to_be_cached_is_not(anywhere: None) -> None:
    """NO_CACHE, persist_result=False, failures, inputs that cannot be hashed."""
    ran: list[str] = []

    @task(cache_policy=NO_CACHE, persist_result=True)
    async def never(n: int) -> None:
        ran.append("never")

    @task(cache_policy=INPUTS, persist_result=False)
    async def unkept(n: int) -> None:
        ran.append("unkept")

    @task(cache_policy=INPUTS)
    async def fails(n: int) -> None:
        ran.append("fails")
        raise ValueError

    @task(cache_policy=INPUTS)
    async def odd(n: Any) -> None:
        ran.append("odd")

    @flow
    async def go() -> None:
        for _ in range(2):
            await never(1)
            await unkept(1)
            await fails(1, return_state=True)
            await odd(threading.Lock())

    await go()
    assert sorted(ran) == sorted(["never", "unkept", "fails", "odd"] * 2)


async def test_retries_and_caching_go_together(anywhere: None) -> None:
    """A failed try is not kept; what the retry came to is."""
    ran: list[int] = []

    @task(cache_policy=INPUTS, retries=1)
    async def flaky(n: int) -> int:
        ran.append(n)
        if len(ran) == 1:
            raise ValueError
        return len(ran)

    @flow
    async def go() -> int:
        return await flaky(1)

    assert [await go(), await go()] == [2, 2]


async def test_flow_parameters_and_source_are_part_of_keys(anywhere: None) -> None:
    """Each policy sees what it is named for."""
    ran: list[Any] = []

    @task(cache_policy=FLOW_PARAMETERS)
    async def by_parameters() -> None:
        ran.append("parameters")

    @flow
    async def go(n: int) -> None:
        await by_parameters()

    for n in (1, 1, 2):
        await go(n)
    assert ran == ["parameters"] * 2

    def versions() -> list[Any]:
        @task(cache_policy=TASK_SOURCE)
        async def same() -> str:
            return "first"

        first = same

        @task(cache_policy=TASK_SOURCE)  # type: ignore[no-redef]
        async def same() -> str:
            return "second"

        return [first, same]

    @flow
    async def both() -> list[str]:
        return [await version() for version in versions()]

    assert await both() == ["first", "second"]


@pytest.mark.parametrize(
    "options",
    [{"cache_policy": "INPUTS"}, {"cache_key_fn": 5}, {"cache_expiration": -1, "cache_policy": INPUTS}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    """When the task is made."""
    with pytest.raises((TypeError, ValueError)):
        task(**options)(lambda: None)


def test_another_process_finds_what_was_cached(tmp_path: Path) -> None:
    """The key does not depend on the process, nor on its hash seed."""
    program = """
import sys
from hark import flow, task
from hark.engine.cache_policies import INPUTS, TASK_SOURCE

@task(cache_policy=INPUTS + TASK_SOURCE)
def work(words: set, options: dict) -> str:
    print("ran")
    return "done"

@flow
def go():
    return work({"a", "b", "c", "d"}, {"x": 1})

print(go())
"""
    (tmp_path / "cached_program.py").write_text(program)
    outputs = []
    for seed in ("1", "2"):
        environment = {"HARK_HOME": str(tmp_path / "home"), "PYTHONHASHSEED": seed, "PATH": ""}
        done = subprocess.run(
            [sys.executable, str(tmp_path / "cached_program.py")], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    assert outputs == [["ran", "done"], ["done"]]


async def test_a_cached_call_stands_in_the_log(bus: Bus) -> None:
    """As task-run.cached, with its result, and no try."""

    @task(cache_policy=INPUTS)
    async def one(n: int) -> int:
        return n

    @flow
    async def go() -> int:
        return await one(1)

    with use_session(bus):
        await go()
        await go()
    await bus.publisher.barrier()
    found: list[Any] = []
    async with bus.log.read(["hark.ev.task-run.>"]) as batches:
        async for batch in batches:
            found += [recorded.event for recorded in batch.records]
    words = [event.type.partition(".")[2] for event in found]
    assert words == ["pending", "running", "completed", "pending", "cached"]
    assert found[-1].data["result"] == {"inline": 1, "format": "json"}


def test_policies_can_be_written() -> None:
    """A policy of one's own is a class with one method."""

    class ByLength(CachePolicy):
        def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
            return str(len(inputs["word"]))

    both = ByLength() + INPUTS - "word"
    assert both.compute_key(None, {"word": "ab"}, {}) == both.compute_key(None, {"word": "cd"}, {})
    assert both.compute_key(None, {"word": "ab"}, {}) != both.compute_key(None, {"word": "abc"}, {})


# --- one at a time ------------------------------------------------------------------------------------


async def test_two_who_compute_one_key_at_once_compute_it_once(anywhere: None) -> None:
    """SERIALIZABLE: the second waits, and gets the result of the first; other keys do not wait."""
    ran: list[int] = []
    both = asyncio.Event()

    @task(cache_policy=INPUTS.configure(isolation_level="SERIALIZABLE"))
    async def slow(n: int) -> int:
        ran.append(n)
        if len(ran) == 2:
            both.set()
        await both.wait()
        return n * 2

    @flow
    async def go(n: int) -> Any:
        state = await slow(n, return_state=True)
        return state.name, await state.aresult()

    async with asyncio.timeout(60):
        found = await asyncio.gather(go(1), go(2), go(1), go(1))
    assert sorted(ran) == [1, 2]
    assert sorted(found) == [("Cached", 2), ("Cached", 2), ("Completed", 2), ("Completed", 4)]


async def test_the_next_one_computes_what_the_first_could_not(anywhere: None) -> None:
    """A task that fails, or is cancelled, gives the lock back at once; in threads as well."""
    ran: list[str] = []

    @task(cache_policy=INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE))
    def once(n: int) -> int:
        ran.append("try")
        if len(ran) == 1:
            raise ValueError("not yet")
        return n

    @flow
    def go() -> list[str]:
        return sorted(state.name for state in once.map([4, 4, 4], return_state=True))

    assert await asyncio.to_thread(go) == ["Cached", "Completed", "Failed"]
    assert ran == ["try", "try"]

    began = asyncio.Event()

    @task(cache_policy=INPUTS.configure(isolation_level="SERIALIZABLE"))
    async def slow(n: int) -> int:
        ran.append("slow")
        if ran.count("slow") == 1:
            began.set()
            await asyncio.sleep(1000)
        return n

    first = asyncio.ensure_future(slow(1))
    await began.wait()
    first.cancel()
    async with asyncio.timeout(60):
        assert await slow(1) == 1


def test_policies_that_differ_in_how_do_not_add_up() -> None:
    """What one says holds for the sum; two that contradict each other are refused."""
    serial = INPUTS.configure(isolation_level="SERIALIZABLE")
    assert (serial + TASK_SOURCE).isolation_level == "SERIALIZABLE"
    assert (serial - "n").isolation_level == "SERIALIZABLE"
    assert INPUTS.isolation_level is None
    with pytest.raises(ValueError, match="isolation levels"):
        serial + TASK_SOURCE.configure(isolation_level="READ_COMMITTED")
    with pytest.raises(ValueError, match="READ_COMMITTED or SERIALIZABLE"):
        INPUTS.configure(isolation_level="sometimes")


HOLDER = """
import sys, time
from hark.bus.session import current_session
from hark.engine.locking import default_lock_manager
locks = default_lock_manager()
assert type(locks).__name__ == "BrokerLockManager"
assert locks.acquire_lock("key", "holder")
print("held", flush=True)
time.sleep(1000)
"""


async def test_a_lock_in_the_broker_is_free_when_its_holder_dies(bus: Bus, home: Path) -> None:
    """kill -9: whoever asks next on the machine has it at once; until then it is not to be had."""
    with use_session(bus):
        locks = BrokerLockManager()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDER, stdout=subprocess.PIPE, env={**os.environ, "HARK_HOME": str(home)}
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"held\n"
            assert not await locks.aacquire_lock("key", "me", acquire_timeout=0.3)
        finally:
            process.kill()
            await process.wait()
        async with asyncio.timeout(60):
            assert await locks.aacquire_lock("key", "me")
        assert locks.is_lock_holder("key", "me")
        with pytest.raises(ValueError, match="does not have the lock"):
            locks.release_lock("key", "another")
        locks.release_lock("key", "me")
        assert await locks.await_for_lock("key", 60)


def test_locks_in_memory_are_given_back() -> None:
    """To one holder at a time; again for the same; for no longer than was said."""
    locks = MemoryLockManager()
    assert locks is MemoryLockManager()
    assert locks.acquire_lock("m", "a")
    assert locks.acquire_lock("m", "a")
    assert not locks.acquire_lock("m", "b", acquire_timeout=0)
    assert locks.is_locked("m")
    locks.release_lock("m", "a")
    assert locks.acquire_lock("m", "b", hold_timeout=0.05)
    assert locks.wait_for_lock("m", 10)
    with pytest.raises(ValueError, match="does not have the lock"):
        locks.release_lock("m", "b")


async def test_hooks_of_a_call_whose_result_is_cached_are_those_of_one_that_runs(anywhere: None) -> None:
    """As in Prefect: ``on_running`` first, then ``on_completion`` with the state Cached."""
    heard: list[str] = []

    def hook(_task: Any, run: Any, state: Any) -> None:
        assert run.state.name == state.name
        heard.append(state.name)

    @task(cache_policy=INPUTS, persist_result=True, on_running=[hook], on_completion=[hook])
    def square(n: int) -> int:
        heard.append("body")
        return n * n

    @task(cache_policy=INPUTS, persist_result=True, on_running=[hook], on_completion=[hook])
    async def cube(n: int) -> int:
        heard.append("body")
        return n**3

    @flow
    async def twice() -> tuple[int, int, int, int]:
        return square(7), square(7), await cube(5), await cube(5)

    assert await twice() == (49, 49, 125, 125)
    assert heard == ["Running", "body", "Completed", "Running", "Cached"] * 2
