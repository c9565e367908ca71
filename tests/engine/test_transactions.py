"""Transactions: what counts together, what is undone, in which order, and what the log knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hark import flow, get_transaction, task, transaction
from hark.bus import Bus
from hark.bus.session import use_session
from hark.engine.cache_policies import NO_CACHE
from hark.engine.locking import MemoryLockManager
from hark.engine.results import ResultStore
from hark.engine.states import Failed
from hark.engine.transactions import CommitMode, IsolationLevel, Transaction
from hark.errors import DefinitionError, ResultMissing

if TYPE_CHECKING:
    from .conftest import Stage

Said = list[str]


def noisy(said: Said, name: str, body: Callable[[], Any] = lambda: None, **options: Any) -> Any:
    """A task that says what happens to it."""

    @task(name=name, **options)
    def run() -> Any:
        said.append(name)
        return body()

    run.on_commit(lambda txn: said.append(f"commit {name}"))
    run.on_rollback(lambda txn: said.append(f"undo {name}"))
    return run


def fail() -> None:
    raise ZeroDivisionError("no")


# --- the order of things ------------------------------------------------------------------------------


def test_a_block_commits_its_tasks_in_order() -> None:
    """Nothing is committed before the block ends; then each, as they came."""
    said: Said = []
    one, two = noisy(said, "one"), noisy(said, "two")

    @flow
    def go() -> None:
        with transaction() as txn:
            one()
            two()
            assert txn.is_active()
            said.append("end")
        assert txn.is_committed()

    go()
    assert said == ["one", "two", "end", "commit one", "commit two"]


def test_a_failing_block_undoes_its_tasks_in_reverse() -> None:
    """The one that failed has nothing to undo; nothing is committed; the exception goes on."""
    said: Said = []
    one, two, bad = noisy(said, "one"), noisy(said, "two"), noisy(said, "bad", fail)

    @flow
    def go() -> None:
        with transaction() as txn:
            try:
                one()
                two()
                bad()
            finally:
                assert txn.is_rolled_back()

    with pytest.raises(ZeroDivisionError):
        go()
    assert said == ["one", "two", "bad", "undo two", "undo one"]


def test_a_failure_that_is_caught_has_rolled_back_all_the_same() -> None:
    """As in Prefect: a part that fails is the failure of the whole, whoever catches the exception."""
    said: Said = []
    one, bad = noisy(said, "one"), noisy(said, "bad", fail)

    @flow
    def go() -> None:
        with transaction() as txn:
            one()
            assert bad(return_state=True).is_failed()
            assert txn.is_rolled_back()

    go()
    assert said == ["one", "bad", "undo one"]


def test_a_task_that_succeeds_at_its_second_try_undoes_nothing() -> None:
    """What counts is how the task ends."""
    said: Said = []
    tries: list[int] = []

    def second() -> None:
        tries.append(1)
        if len(tries) == 1:
            fail()

    one, two = noisy(said, "one"), noisy(said, "two", second, retries=1)

    @flow
    def go() -> None:
        with transaction():
            one()
            two()

    go()
    assert said == ["one", "two", "two", "commit one", "commit two"]


def test_what_a_task_called_is_undone_when_it_fails() -> None:
    """A task run is a transaction: of a try that failed, what it did by other tasks is taken back."""
    said: Said = []
    inner = noisy(said, "inner")
    tries: list[int] = []

    @task(retries=1)
    def outer() -> None:
        inner()
        tries.append(1)
        if len(tries) == 1:
            fail()

    @task
    def far() -> None:
        outer()

    @flow
    def go() -> None:
        far()

    go()
    assert said == ["inner", "undo inner", "inner", "commit inner"]


def test_blocks_nest_and_the_outermost_decides() -> None:
    """A block in a block, or in a task, commits with the outermost and is undone with it; EAGER ones are not."""
    said: Said = []
    one, two, eager = noisy(said, "one"), noisy(said, "two"), noisy(said, "eager")

    @flow
    def go(fails: bool) -> None:
        with transaction():
            one()
            with transaction():
                two()
            with transaction(commit_mode=CommitMode.EAGER):
                eager()
            said.append("end")
            if fails:
                fail()

    go(False)
    assert said == ["one", "two", "eager", "commit eager", "end", "commit one", "commit two"]
    said.clear()
    with pytest.raises(ZeroDivisionError):
        go(True)
    assert said == ["one", "two", "eager", "commit eager", "end", "undo two", "undo one"]


def test_off_undoes_what_nobody_commits() -> None:
    """CommitMode.OFF is rolled back at its end, unless ``commit`` was called."""
    said: Said = []
    one = noisy(said, "one")
    for commits in (False, True):
        with transaction(commit_mode="off") as txn:
            one()
            if commits:
                assert txn.commit()
        assert txn.is_committed() is commits
    assert said == ["one", "undo one", "one", "commit one"]


def test_a_commit_hook_that_fails_rolls_back() -> None:
    """The task's value stands; a rollback hook that fails keeps no other from being called."""
    said: Said = []

    @task(on_commit=[lambda txn: fail()], on_rollback=[lambda txn: said.append("undo"), lambda txn: fail()])
    def alone() -> int:
        return 1

    assert alone() == 1
    assert said == ["undo"]


def test_a_task_that_returns_a_failed_state_is_undone_with_its_block() -> None:
    """Failing on purpose is failing."""
    said: Said = []
    one, bad = noisy(said, "one"), noisy(said, "bad", lambda: Failed(message="on purpose"))

    @flow
    def go() -> None:
        with transaction():
            one()
            bad(return_state=True)

    go()
    assert said == ["one", "bad", "undo one"]


def test_submitted_tasks_are_part_of_the_block() -> None:
    """Also those that end after it: they follow it."""
    said: Said = []
    one, two = noisy(said, "one"), noisy(said, "two")

    @flow
    def go(fails: bool) -> None:
        with transaction():
            one.submit().wait()
            two.submit().wait()
            if fails:
                fail()

    go(False)
    assert said == ["one", "two", "commit one", "commit two"]
    said.clear()
    with pytest.raises(ZeroDivisionError):
        go(True)
    assert said == ["one", "two", "undo two", "undo one"]


async def test_async_blocks_and_hooks() -> None:
    """``async with`` awaits async hooks; a plain ``with`` in async code works, too."""
    said: Said = []

    @task
    async def one() -> None:
        said.append("one")

    @one.on_rollback
    async def undo(txn: Transaction) -> None:
        await asyncio.sleep(0)
        said.append("undo")

    @one.on_commit
    async def commit(txn: Transaction) -> None:
        await asyncio.sleep(0)
        said.append("commit")

    @flow
    async def go(fails: bool) -> None:
        async with transaction():
            await one()
            if fails:
                fail()

    @flow
    async def plain() -> None:
        with transaction():
            await one()

    await go(False)
    with pytest.raises(ZeroDivisionError):
        await go(True)
    await plain()
    assert said == ["one", "commit", "one", "undo", "one", "commit"]


# --- values and keys ----------------------------------------------------------------------------------


def test_values_are_copies_and_are_looked_for_outwards() -> None:
    """A task sets a value for its own hooks; blocks inside see those of blocks outside."""
    seen: list[Any] = []

    @task
    def write() -> None:
        txn = get_transaction()
        assert txn is not None
        txn.set("file", ["a"])

    write.on_rollback(lambda txn: seen.append((txn.get("file"), txn.get("day"))))
    with pytest.raises(ZeroDivisionError), transaction() as outer:  # noqa: PT012  the block is what is tested
        outer.set("day", [1])
        outer.get("day").append(2)
        with transaction() as inner:
            assert inner.get("day") == [1]
            assert inner.get("none", 5) == 5
            with pytest.raises(ValueError, match="unknown key: none"):
                inner.get("none")
        write()
        fail()
    assert seen == [(["a"], [1])]
    assert get_transaction() is None


def test_a_key_that_has_a_result_is_committed_from_the_start(tmp_path: Path) -> None:
    """The staged value is kept at the commit; the next one with the key reads it; ``overwrite`` does not look."""
    store = ResultStore(tmp_path, serializer="json")
    with transaction(key="day/1", store=store) as txn:
        assert not txn.is_committed()
        txn.stage({"rows": 3})
        assert txn.is_staged()
        assert not store.exists("day/1")
    with transaction(key="day/1", store=store) as txn:
        assert txn.is_committed()
        assert txn.read().result == {"rows": 3}
        txn.stage("ignored")
    with transaction(key="day/1", store=store, overwrite=True) as txn:
        assert not txn.is_committed()
        txn.stage("new")
    assert store.read("day/1").result == "new"
    with pytest.raises(ZeroDivisionError), transaction(key="day/2", store=store) as txn:  # noqa: PT012
        txn.stage(1)
        fail()
    with pytest.raises(ResultMissing, match="day/2"):
        store.read("day/2")
    assert (tmp_path / "day" / "1").exists()


def test_wrong_uses_say_so(tmp_path: Path) -> None:
    """Entered twice; SERIALIZABLE without a lock manager."""
    with transaction() as txn:
        pass
    with pytest.raises(RuntimeError, match=r"already entered.*entered once"), txn:
        pass
    store = ResultStore(tmp_path)
    with pytest.raises(DefinitionError, match="lock manager"):
        transaction("k", store, isolation_level=IsolationLevel.SERIALIZABLE).__enter__()
    locked = ResultStore(tmp_path, lock_manager=MemoryLockManager())
    with transaction("k", locked, isolation_level="SERIALIZABLE"):
        assert locked.is_locked("k")
        assert not locked.acquire_lock("k", "another", timeout=0)
    assert not locked.is_locked("k")


# --- in tracked runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tracked", [True, False])
async def test_a_retry_of_the_flow_runs_again_what_was_rolled_back(bus: Bus, tracked: bool) -> None:
    """And does not run again what was not: the first try's task outside the block."""
    said: Said = []
    kept: dict[str, Any] = {"persist_result": True, "cache_policy": NO_CACHE}
    before, one = noisy(said, "before", **kept), noisy(said, "one", **kept)
    tries: list[int] = []

    @flow(retries=1)
    def go() -> None:
        before()
        with transaction():
            one()
            tries.append(1)
            if len(tries) == 1:
                fail()

    if tracked:
        with use_session(bus):
            await asyncio.to_thread(go)
    else:
        go()
    assert said == ["before", "commit before", "one", "undo one", "one", "commit one"]


CRASHES = """
from hark import transaction

@task
def reserve(n):
    say(f"reserve-{n}")
    from hark import get_transaction
    get_transaction().set("place", f"seat-{n}")
    return n

@reserve.on_rollback
def give_back(txn):
    say("back-" + txn.get("place"))

@reserve.on_commit
def keep(txn):
    say("keep-" + txn.get("place"))

@task
def weigh(n):
    say(f"weigh-{n}")  # it sets nothing in its transaction

@task
def charge(how):
    say("charge")
    if how == "fails":
        raise ValueError("no money")

@flow
def order(how: str, marker: str):
    with transaction():
        reserve(0)
    with transaction():
        reserve(1)
        weigh(1)
        reserve(2)
        if not os.path.exists(marker):
            open(marker, "w").close()
            say("dies")  # which is stored after what was said of the tasks before it
            os.kill(os.getpid(), signal.SIGKILL)
        charge(how)
"""


@pytest.mark.parametrize("how", ["works", "fails"])
async def test_a_transaction_survives_the_death_of_its_process(stage: Stage, how: str) -> None:
    """kill -9 in the middle: whoever takes the run up completes the block with what is recorded, or undoes all of it."""
    stage.write(CRASHES)
    await stage.deploy("order")
    async with stage.working():
        run = await stage.ask("order", parameters={"how": how, "marker": str(stage.root / "marker")})
        run = await stage.control.wait(run.id, timeout_s=60)
    assert run.attempt == 2
    assert run.state_type.value == ("COMPLETED" if how == "works" else "FAILED"), run.state_message
    ends = {"keep-seat-1", "keep-seat-2"} if how == "works" else {"back-seat-1", "back-seat-2"}
    once = {"dies", "reserve-0", "keep-seat-0", "reserve-1", "weigh-1", "reserve-2", "charge", *ends}
    assert await stage.said() == dict.fromkeys(once, 1)
