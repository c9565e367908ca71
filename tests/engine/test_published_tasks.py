"""Tasks, their states and their transactions do what Prefect 3 publishes of them, where that is told from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hark import allow_failure, flow, quote, task, unmapped
from hark.engine.cache_policies import DEFAULT, INPUTS, NO_CACHE, CacheKeyFnPolicy
from hark.engine.context import FlowRunContext, TaskRunContext
from hark.engine.exceptions import MissingResult, UnfinishedRun
from hark.engine.filesystems import LocalFileSystem
from hark.engine.locking import FileSystemLockManager, MemoryLockManager
from hark.engine.results import ResultStore
from hark.engine.runs.state_details import StateDetails
from hark.engine.states import (
    Cancelled,
    Completed,
    Failed,
    Paused,
    Running,
    Scheduled,
    State,
    StateType,
    Suspended,
)
from hark.engine.transactions import Transaction, TransactionState


@task
def same(x: Any = None) -> Any:
    return x


@task
def fails() -> None:
    raise ValueError("no")


def key_of(context: object, parameters: dict[str, Any]) -> str:
    return "key"


# --- what a task says of itself -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, DEFAULT),
        ({"cache_policy": INPUTS}, INPUTS),
        ({"cache_policy": None}, None),
        ({"result_storage_key": "k"}, None),
        ({"persist_result": False}, NO_CACHE),
        ({"persist_result": False, "cache_policy": INPUTS}, NO_CACHE),
        ({"persist_result": False, "cache_policy": None}, None),
        ({"cache_key_fn": key_of, "cache_policy": INPUTS}, CacheKeyFnPolicy(cache_key_fn=key_of)),
    ],
)
def test_a_task_shows_the_policy_in_force(options: Any, policy: object) -> None:
    """``task.cache_policy`` is the default, what was said, or what that comes to."""
    assert task(same.fn, **options).cache_policy == policy


def test_none_takes_away_only_what_it_says_something_of() -> None:
    """In ``with_options``, None is no answer for names, tags, time limits and hooks, and is one for the rest."""
    hook = key_of
    full: Any = task(
        same.fn, name="n", description="d", tags={"a"}, timeout_seconds=4, retries=3, retry_delay_seconds=2,
        persist_result=True, on_failure=[hook], cache_expiration=timedelta(days=1), viz_return_value=7,
    )  # fmt: skip
    less = full.with_options(
        name=None, description=None, tags=None, timeout_seconds=None, retries=None, retry_delay_seconds=None,
        persist_result=None, on_failure=None, cache_expiration=None, viz_return_value=None,
    )  # fmt: skip
    assert (less.name, less.description, less.tags, less.timeout_seconds) == ("n", "d", {"a"}, 4.0)
    assert (less.on_failure_hooks, less.cache_expiration, less.viz_return_value) == (
        [hook],
        timedelta(days=1),
        7,
    )
    assert (less.retries, less.retry_delay_seconds, less.persist_result) == (0, 0, None)
    assert full.with_options(tags=()).tags == set()


def test_options_may_be_set_on_the_task_itself() -> None:
    """What is assigned to a task later holds for the calls after that, as if it had been said in the decorator."""
    seen: list[Any] = []

    @task
    def named(x: int) -> int:
        context = TaskRunContext.get()
        assert context is not None
        seen.append(context.task_run.name)
        return x

    named.on_completion(lambda *_: seen.append("hook"))
    named.task_run_name = "run-{x}"
    assert named(1) == 1
    named.fn = lambda x: x + 1
    assert named(1) == 2
    named.retries = 2
    assert (named.retries, named.task_run_name) == (2, "run-{x}")
    assert seen == ["run-1", "hook", "hook"]
    cast(Any, named).task_run_name = 3
    with pytest.raises(
        TypeError, match=r"Expected string or callable for 'task_run_name'; got int instead\."
    ):
        named(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": 60, "retry_delay_seconds": [1] * 51}, "more than 50 retry delays"),
        ({"retry_delay_seconds": "soon"}, "must be an int, float, list or callable"),
        ({"retry_jitter_factor": -1}, "must be >= 0"),
        ({"retry_condition_fn": 3}, "to be callable, got int"),
        ({"task_run_name": 3}, "Expected string or callable"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_in_the_words_people_know(options: Any, message: str) -> None:
    """The words are those that code written for Prefect looks for."""
    with pytest.raises((TypeError, ValueError), match=message):
        task(same.fn, **options)


# --- calls --------------------------------------------------------------------------------------------


def test_map_gives_every_call_the_exception_of_an_upstream_that_failed() -> None:
    """``allow_failure`` of a future that has no list to give stands for its exception, whole."""

    @task
    def pair(x: Any, y: Any) -> tuple[Any, Any]:
        return x, y

    @flow
    def go() -> Any:
        upstream = fails.submit()
        states = [fails(return_state=True)]
        return quote(
            [
                pair.map([1, 2], allow_failure(upstream)).result(),
                pair.map([1], unmapped(allow_failure(upstream))).result(),
                pair.map([1], allow_failure(states[0])).result(),
                same.map(allow_failure([upstream, 3])).result(),
                same.map(quote([4, 5])).result(),
            ]
        )

    shown = repr(go().unquote())
    no = "ValueError('no')"
    assert shown == f"[[(1, {no}), (2, {no})], [(1, {no})], [(1, {no})], [{no}, 3], [4, 5]]"


def test_a_task_that_waits_for_itself_is_told_so() -> None:
    """A future put into its own task's arguments after the call is an error, not a wait without end."""

    @flow
    def go() -> str:
        gate, waits = threading.Event(), []

        @task
        def first() -> None:
            gate.wait(30)

        waits.append(first.submit())
        again = same.submit(waits)
        waits.append(again)
        gate.set()
        with pytest.raises(ValueError, match="deadlock"):
            again.result(timeout=30)
        assert again.state.name == "NotReady"
        return "went on"

    assert go() == "went on"


def test_what_did_not_become_ready_says_why() -> None:
    """The message of a NotReady run names its upstream run and the state that this is in."""

    @flow
    def go() -> Any:
        return same(fails.submit(), return_state=True)

    state = go(return_state=True).result(raise_on_failure=False)
    assert (state.type, state.name) == (StateType.PENDING, "NotReady")
    assert "did not reach a 'COMPLETED' state" in state.message
    with pytest.raises(UnfinishedRun):
        state.result(raise_on_failure=False)


def test_the_context_knows_when_the_try_began_and_where_results_go(tmp_path: Path) -> None:
    """Each try has its own time of beginning, and the store is the one that was chosen around."""
    began: list[datetime] = []

    @task(retries=2)
    def again() -> str:
        context = TaskRunContext.get()
        assert context is not None
        assert context.start_time is not None
        began.append(context.start_time)
        if len(began) < 3:
            raise ValueError
        kind = context.result_store.serializer
        return kind.type if kind is not None and context.persist_result else "nothing said"

    @flow(result_serializer="json", result_storage=tmp_path)
    def go() -> tuple[str, object]:
        context = FlowRunContext.get()
        assert context is not None
        return again(), context.result_store.result_storage

    assert go() == ("json", tmp_path)
    assert began == sorted(set(began))
    assert again() == "nothing said"


# --- states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [type_ for type_ in StateType if not type_.is_terminal])
@pytest.mark.parametrize("data", [None, 5, ValueError("v")])
@pytest.mark.parametrize("raises", [True, False])
def test_a_run_that_goes_on_has_no_result(type_: StateType, data: Any, raises: bool) -> None:
    """Whatever is asked for and whatever the state carries, there is no result before the end."""
    with pytest.raises(UnfinishedRun):
        State(type_, data=data).result(raise_on_failure=raises)


def test_states_know_their_runs() -> None:
    """``state_details`` names the flow run or the task run a state is of, and the flow run around that."""

    @flow
    def go() -> Any:
        context = FlowRunContext.get()
        assert context is not None
        here = context.flow_run.id
        future = same.submit()
        future.wait()
        states = [
            same(return_state=True),
            future.state,
            fails(return_state=True),
            same(fails.submit(), return_state=True),
        ]
        assert [state.state_details.flow_run_id for state in states] == [here] * 4
        assert len({state.state_details.task_run_id for state in states}) == 4
        assert future.state.state_details.task_run_id == future.task_run_id
        return here

    state = go(return_state=True)
    assert (state.state_details.flow_run_id, state.state_details.task_run_id) == (state.result(), None)
    alone = same(return_state=True).state_details
    assert (alone.flow_run_id, alone.task_run_id is not None) == (None, True)
    by_hand = Completed().state_details
    assert (by_hand.flow_run_id, by_hand.task_run_id) == (None, None)


@pytest.mark.parametrize(
    "state",
    [
        Completed(message="m", name="Mine"),
        Failed(message="x"),
        Paused(timeout_seconds=60, pause_key="k"),
        Scheduled(scheduled_time=datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_state_becomes_a_mapping_and_back(state: State) -> None:
    """What ``model_dump`` and its JSON say of a state makes an equal one, but for what it carries."""
    for dumped in (state.model_dump(), state.model_dump(mode="json")):
        back = State.model_validate(dumped)
        assert (back, back.state_details, back.timestamp) == (state, state.state_details, state.timestamp)
    assert '"type":"' + state.type.value in state.model_dump_json(exclude={"id"})
    assert "id" not in state.model_dump(exclude={"id"})
    assert State.model_validate(state) is state


def test_a_copy_may_be_of_now() -> None:
    """``model_copy`` is the same state; ``copy`` and ``fresh_copy`` are new ones."""
    state = Running(timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    assert state.model_copy(update={"message": "m"}).timestamp == state.timestamp
    new = state.copy(update={"message": "m"})
    assert (new.message, new.timestamp > state.timestamp, new.id != state.id) == ("m", True, True)
    assert state.model_copy().id == state.id


def test_what_is_scheduled_is_due_at_once_unless_it_says_when() -> None:
    """A SCHEDULED state always has a time, and a suspended run has left its worker."""
    assert Scheduled().state_details.scheduled_time is not None
    assert Suspended(timeout_seconds=1).state_details.pause_reschedule
    assert not Paused(timeout_seconds=1).state_details.pause_reschedule
    assert Cancelled().state_details.scheduled_time is None


def test_details_may_be_said_of_a_state_that_is_made() -> None:
    """As a mapping or whole; nothing is said twice."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert Scheduled(state_details={"scheduled_time": at}).state_details.scheduled_time == at
    said = StateDetails(flow_run_id="f", task_run_id="t", cache_key="k", retriable=False)
    assert Completed(state_details=said, name="Mine").state_details == said
    assert Failed(state_details={}) == Failed()
    with pytest.raises(ValueError, match="An extra scheduled_time was provided in state_details"):
        Scheduled(scheduled_time=at, state_details={"scheduled_time": at})
    with pytest.raises(ValueError, match="An extra pause timeout was provided in state_details"):
        Paused(timeout_seconds=1, state_details={"pause_timeout": at})
    with pytest.raises(ValueError, match="Cannot supply both a pause_expiration_time and timeout_seconds"):
        Paused(timeout_seconds=1, pause_expiration_time=at)


# --- transactions and results -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(TransactionState))
def test_a_transaction_may_be_made_in_any_state(state: TransactionState) -> None:
    """Its questions answer for exactly that one."""
    made = Transaction(state=state)
    answers = {
        name: getattr(made, f"is_{name}")()
        for name in ("pending", "active", "staged", "committed", "rolled_back")
    }
    assert [name for name, answer in answers.items() if answer] == [state.name.lower()]


def test_parts_of_ones_own_making_are_asked_to_end() -> None:
    """A part whose commit fails rolls the whole back; one whose rollback fails is told of, and the rest is undone."""

    class Stubborn(Transaction):
        def commit(self) -> bool:
            raise ValueError("not now")

        def rollback(self) -> bool:
            raise ValueError("never")

    with Transaction() as whole:
        whole.add_child(Stubborn())
    assert whole.is_rolled_back()
    with Transaction() as other:
        other.add_child(Stubborn())
        assert other.rollback() is False


def test_a_store_keeps_records_and_refuses_who_has_no_lock(tmp_path: Path) -> None:
    """A record may be made first and kept later; a locked key is a ``RuntimeError``, one that is missing a ``ValueError``."""
    store = ResultStore(LocalFileSystem(basepath=str(tmp_path)), lock_manager=MemoryLockManager())
    record = store.create_result_record({"a": 1}, key="one")
    assert not store.exists("one")
    store.persist_result_record(record)
    assert store.read("one").result == record.result == {"a": 1}
    store.acquire_lock("published-locked", "me")
    with pytest.raises(RuntimeError, match="locked by another"):
        store.write(1, "published-locked", holder="you")
    store.release_lock("published-locked", "me")
    with pytest.raises(ValueError, match="cannot be read") as missing:
        store.read("nothing")
    assert isinstance(missing.value, MissingResult)


@pytest.mark.parametrize(
    ("key", "file"), [("abc-1", "abc-1.lock"), ("a/b", None), ("..", None), ("A", None), ("a" * 300, None)]
)
def test_a_lock_is_a_file_named_like_its_key(tmp_path: Path, key: str, file: str | None) -> None:
    """Where the key can be the name of a file everywhere; every other key has a file of its own all the same."""
    locks = FileSystemLockManager(tmp_path)
    assert locks.acquire_lock(key, "me")
    (found,) = (path.name for path in tmp_path.iterdir())
    assert found == file or (file is None and found.startswith("key-"))
    locks.release_lock(key, "me")
    assert list(tmp_path.iterdir()) == []


def test_marks_are_shown_as_they_are_written() -> None:
    """``repr`` of an annotation is the call that makes it."""
    marks: list[tuple[Callable[[], object], str]] = [
        (lambda: unmapped([1]), "unmapped([1])"), (lambda: quote("a"), "quote('a')"), (lambda: allow_failure(1), "allow_failure(1)"),
    ]  # fmt: skip
    assert [repr(made()) for made, _ in marks] == [shown for _, shown in marks]


def test_hooks_read_times_and_keys_of_the_run_they_are_told_of() -> None:
    """When it began and ended and how long it took, as of a run that the client reads."""
    told: dict[str, Any] = {}

    def note(task_: Any, run: Any, state: Any) -> None:
        told[state.name] = (
            run.start_time,
            run.end_time,
            run.total_run_time,
            run.flow_run_run_count,
            run.state_id == state.id,
        )
        assert (run.created, run.expected_start_time, run.cache_key) == (run.start_time, run.start_time, None)
        assert (run.labels, run.next_scheduled_start_time) == ({"prefect.flow-run.id": run.flow_run_id}, None)

    @task(on_completion=[note], on_running=[note])
    def works() -> None: ...

    @flow
    def runs() -> None:
        works()

    runs()
    began, ended, took, attempt, is_same = told["Completed"]
    assert began <= ended
    assert (took, attempt, is_same) == (ended - began, 1, True)
    assert (told["Running"][0], told["Running"][1]) == (began, None)
