"""Running by functions, contexts that travel, and what is known of results: as code written for Prefect asks for it."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import anyio
import anyio.lowlevel
import cloudpickle  # type: ignore[import-untyped]
import pytest
from anyio import to_thread
from hark import flow, get_client, runtime, tags, task
from hark.bus.session import Session
from hark.engine.cache_policies import INPUTS
from hark.engine.context import (
    FlowRunContext,
    TagsContext,
    TaskRunContext,
    hydrated_context,
    serialize_context,
    with_context,
)
from hark.engine.exceptions import (
    MissingResult,
    SerializationError,
)
from hark.engine.filesystems import LocalFileSystem
from hark.engine.persistence.result_defaults import (
    aget_default_result_storage,
    get_default_persist_setting,
    get_default_result_serializer,
    get_default_result_storage,
    resolve_result_storage,
    resolve_serializer,
    should_persist_result,
)
from hark.engine.persistence.result_record import ResultRecord, ResultRecordMetadata
from hark.engine.persistence.result_store import ResultStore
from hark.engine.running import run_flow, run_flow_async, run_task, run_task_async, run_task_sync
from hark.engine.runs.task_run import TaskRun, TaskRunResult
from hark.engine.serializers import JSONSerializer, PickleSerializer
from hark.engine.utilities.asyncness import (
    is_async_fn,
    is_async_gen_fn,
    run_coro_as_sync,
    run_sync_in_worker_thread,
)
from hark.errors import RefusedError
from hark.testing.equality import exceptions_equal
from hark.testing.temporary import temporary_settings

from .far_tasks import where_am_i

# --- results --------------------------------------------------------------------------------------------


def test_a_record_goes_through_bytes() -> None:
    """In one piece or in two; what cannot be written or read says so."""
    until = datetime(2030, 1, 1, tzinfo=UTC)
    record = ResultRecord({"x": 1}, ResultRecordMetadata("k", until, JSONSerializer()))
    assert ResultRecord.deserialize(record.serialize()) == record
    again = ResultRecord.deserialize_from_result_and_metadata(
        record.serialize_result(), record.serialize_metadata()
    )
    assert (again.result, again.expiration, again.serializer) == ({"x": 1}, until, JSONSerializer())
    with pytest.raises(SerializationError, match="cannot be written as json"):
        ResultRecord(object(), record.metadata).serialize_result()
    with pytest.raises(MissingResult):
        ResultRecord.deserialize_from_result_and_metadata(b"{", record.serialize_metadata())
    assert PickleSerializer().loads(pickle.dumps(5)) == 5
    other = ResultRecord.deserialize_from_result_and_metadata(
        pickle.dumps(5), record.serialize_metadata(), backup_serializer=PickleSerializer()
    )
    assert other.result == 5


async def test_defaults_of_results_can_be_asked_for(tmp_path: Path) -> None:
    """Storage, serializer, and whether they are kept at all."""

    @task(
        persist_result=True,
        result_storage=tmp_path,
        cache_policy=INPUTS.configure(key_storage=tmp_path / "keys"),
    )
    def keeps() -> bool:
        return should_persist_result()

    @flow(result_serializer="json")
    def as_json() -> None: ...

    with temporary_settings({"HARK_ENGINE__RESULT_STORAGE": str(tmp_path)}):
        storage = get_default_result_storage(_sync=True)
        assert await aget_default_result_storage() == storage == LocalFileSystem(basepath=tmp_path)
        assert await get_default_result_storage() == storage
    assert resolve_result_storage(tmp_path, _sync=True) == LocalFileSystem(basepath=str(tmp_path))
    assert await resolve_result_storage(tmp_path) == LocalFileSystem(basepath=str(tmp_path))
    assert (resolve_serializer("json"), get_default_result_serializer()) == (
        JSONSerializer(),
        PickleSerializer(),
    )
    assert (get_default_persist_setting(), should_persist_result()) == (False, False)
    assert keeps() is True
    store = ResultStore().update_for_task(keeps)
    assert (store.result_storage, store.metadata_storage) == (tmp_path, tmp_path / "keys")
    assert (await ResultStore().aupdate_for_flow(as_json)).serializer == JSONSerializer()


def test_exceptions_are_compared_by_what_they_were_made_with() -> None:
    """Which they are not by themselves."""
    assert exceptions_equal(ValueError("a"), ValueError("a"))
    assert not exceptions_equal(ValueError("a"), ValueError("b"))
    assert not exceptions_equal(ValueError("a"), TypeError("a"))


# --- running by function --------------------------------------------------------------------------------


async def test_tasks_run_by_a_function() -> None:
    """Of every kind, with an id that was chosen."""
    chosen = uuid.uuid4()

    @task
    def plain(x: int, y: int = 2) -> Any:
        context = TaskRunContext.get()
        assert context is not None
        return x, y, context.task_run.id

    @task
    async def later(x: int) -> int:
        return x

    @task
    def items(n: int) -> Iterator[int]:
        yield from range(n)

    @task
    async def items_later(n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    assert run_task_sync(plain, task_run_id=chosen, parameters={"x": 1}) == (1, 2, str(chosen))
    assert run_task(plain, parameters={"x": 1}, return_type="state").name == "Completed"
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        run_task(plain)
    assert await run_task_async(later, parameters={"x": 4}) == 4
    assert list(run_task(items, parameters={"n": 2})) == [0, 1]
    assert [i async for i in run_task(items_later, parameters={"n": 2})] == [0, 1]
    with pytest.raises(ValueError, match="must be 'result'"):
        run_task(items, parameters={"n": 2}, return_type="state")


def test_a_task_run_says_what_it_depends_on() -> None:
    """By parameter; and how it is tried again, and by whom it was called."""
    seen: list[Any] = []

    def here() -> TaskRun:
        context = TaskRunContext.get()
        assert context is not None
        return context.task_run

    @task
    def first() -> int:
        return 1

    @task
    def inner() -> None:
        seen.append(here())

    @task(retries=2, retry_delay_seconds=[1, 2], version="7")
    def outer(x: list[int], y: int = 2) -> None:
        seen.append(here())
        inner()

    @flow
    def whole() -> None:
        one, two = first.submit(), first.submit()
        outer([one, two], wait_for=[two])
        run_task(inner, dependencies={"z": {TaskRunResult("abc")}})
        ids.extend([one.task_run_id, two.task_run_id])

    ids: list[str] = []
    whole()
    of_outer, of_inner, alone = seen
    assert of_outer.task_inputs == {
        "x": [TaskRunResult(ids[0]), TaskRunResult(ids[1])], "y": [], "wait_for": [TaskRunResult(ids[1])],
    }  # fmt: skip
    assert of_outer.task_inputs["x"][0].input_type == "task_run"
    assert of_inner.task_inputs == {"__parents__": [TaskRunResult(of_outer.id)]}
    assert alone.task_inputs == {"z": [TaskRunResult("abc")]}
    assert (of_outer.task_version, of_outer.empirical_policy.retries) == ("7", 2)
    assert of_outer.empirical_policy.retry_delay == [1.0, 2.0]
    assert len({run.dynamic_key for run in seen}) == 3


async def test_flows_run_by_a_function(caplog: pytest.LogCaptureFixture) -> None:
    """With a logger to tell of what is raised."""
    logger = MagicMock()

    @flow
    def plain(x: int, y: int = 2) -> tuple[int, int]:
        if x < 0:
            raise ValueError("below")
        return x, y

    @flow
    async def later(x: int) -> int:
        return x

    @flow
    def items() -> Iterator[int]:
        yield 1

    assert run_flow(plain, parameters={"x": 1}) == (1, 2)
    assert run_flow(plain, parameters={"x": 1}, return_type="state").name == "Completed"
    with pytest.raises(ValueError, match="below"):
        run_flow(plain, parameters={"x": -1}, error_logger=logger)
    logger.exception.assert_called_once()
    assert await run_flow_async(later, parameters={"x": 4}) == 4
    assert list(run_flow(items)) == [1]


# --- the context, elsewhere -----------------------------------------------------------------------------


def test_a_run_is_taken_along_as_bytes() -> None:
    """Flow, task, parameters that can be pickled, and tags; a task run there is one of the flow's."""

    @task
    def inner(x: int, lock: Any) -> Any:
        with tags("a"):
            return cloudpickle.dumps(serialize_context()), runtime.task_run.id

    @flow(log_prints=True)
    def outer(p: str) -> Any:
        return inner(3, threading.Lock()), runtime.flow_run.id

    @task
    def there() -> Any:
        return runtime.flow_run.id, sorted(TagsContext.get().current_tags)

    assert serialize_context()["flow_run_context"] == {}
    (packed, task_run_id), flow_run_id = outer("pp")
    told = cloudpickle.loads(packed)
    with hydrated_context(told):
        flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
        assert flow_context is not None
        assert task_context is not None
        assert (flow_context.flow_run.id, task_context.task_run.id) == (flow_run_id, task_run_id)
        assert (flow_context.parameters, task_context.parameters) == ({"p": "pp"}, {"x": 3})
        assert flow_context.log_prints
        assert task_context.task.name == "inner"
    assert FlowRunContext.get() is None
    assert run_task(there, context=told) == (flow_run_id, ["a"])
    with hydrated_context():
        assert FlowRunContext.get() is None


def test_a_function_with_context_is_in_the_run_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has been pickled, as a pool of processes does it."""
    (tmp_path / "whereabouts.py").write_text(
        "from hark import runtime\n\ndef ids(x):\n    return x, runtime.flow_run.id, runtime.task_run.id\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ids = import_module("whereabouts").ids
    code = (
        f"import pickle, sys; sys.path.insert(0, {str(tmp_path)!r}); found = pickle.load(sys.stdin.buffer)(1);"
        "pickle.dump(found, sys.stdout.buffer)"
    )

    @task
    def spreads() -> Any:
        work = with_context(ids)
        assert work.fn is ids
        ran = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(work), stdout=subprocess.PIPE, check=True
        )
        return pickle.loads(ran.stdout), (1, runtime.flow_run.id, runtime.task_run.id)

    @flow
    def outer() -> Any:
        return spreads()

    there, here = outer()
    assert there == here


async def test_a_function_that_has_travelled_is_in_a_tracked_run(session: Session) -> None:
    """What is called there is recorded as the run's."""

    @task
    def inner() -> str | None:
        return runtime.flow_run.id

    @flow
    def outer() -> Any:
        arrived = pickle.loads(pickle.dumps(with_context(where_am_i)))
        with hydrated_context(serialize_context()):
            context = FlowRunContext.get()
            assert context is not None
            assert context.tracker is not None
            assert inner() == runtime.flow_run.id
        return arrived(1), runtime.flow_run.id

    found, flow_run_id = await to_thread.run_sync(outer)
    assert found == (1, flow_run_id, None)
    async with get_client() as client:
        runs = await client.read_task_runs()
    assert [run.flow_run_id for run in runs] == [flow_run_id]


async def test_async_code_on_the_loop_of_its_session_enters_a_context(session: Session) -> None:
    """As an async flow in a worker: it returns what it came to, and what was called there is recorded as the run's."""

    @task
    async def inner(x: int) -> tuple[int, str | None]:
        return x, runtime.flow_run.id

    @flow
    async def outer() -> Any:
        told = serialize_context()
        with hydrated_context(told):
            first = await inner(1)
        return first, await run_task(inner, parameters={"x": 2}, context=told), runtime.flow_run.id

    assert session.is_own_loop
    first, second, flow_run_id = await outer()
    assert (first, second) == ((1, flow_run_id), (2, flow_run_id))
    async with get_client() as client:
        runs = await client.read_task_runs()
    assert [run.flow_run_id for run in runs] == [flow_run_id, flow_run_id]


# --- async from sync, and back ----------------------------------------------------------------------------


def test_a_coroutine_runs_from_sync_code_wherever_that_is() -> None:
    """With a loop around it or none, in the run."""

    async def where() -> str | None:
        return runtime.flow_run.id

    def with_one(*, x: int) -> tuple[str | None, int]:
        return runtime.flow_run.id, x

    @flow
    def plain() -> bool:
        return run_coro_as_sync(where()) == runtime.flow_run.id

    @flow
    async def inside_a_loop() -> bool:
        here = runtime.flow_run.id
        in_thread = await run_sync_in_worker_thread(with_one, x=1)
        return run_coro_as_sync(where()) == here and in_thread == (here, 1)

    assert plain()
    assert run_coro_as_sync(inside_a_loop())
    assert is_async_fn(where)
    assert is_async_fn(inside_a_loop)
    assert not is_async_fn(plain)
    assert not is_async_gen_fn(where)


# --- settings -------------------------------------------------------------------------------------------


def test_settings_say_how_often_tasks_are_tried_again() -> None:
    """Those that do not say so themselves."""
    with temporary_settings(
        {"PREFECT_TASKS_DEFAULT_RETRIES": 2, "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": [0, 0.001]}
    ):
        tries: list[int] = []

        @task
        def thrice() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise ValueError("again")
            return len(tries)

        @task(retries=0)
        def never() -> None: ...

        assert (thrice.retries, thrice.retry_delay_seconds, never.retries) == (2, [0.0, 0.001], 0)
        assert thrice() == 3
    assert thrice.retries == 0


def test_a_lambda_is_a_task_of_its_own_name() -> None:
    """Unless it is given one."""
    assert task(lambda x: x).name == "<lambda>"
    named: Callable[..., Any] = task(lambda x: x, name="same")
    assert named(5) == 5
    assert inspect.signature(named) == inspect.signature(lambda x: x)


async def test_a_worker_is_not_held_up_by_its_own_code(session: Session) -> None:
    """What an async flow asks of the loop it runs in would never be answered."""
    assert session.is_own_loop
    with pytest.raises(RefusedError, match="hold up the loop"):
        run_coro_as_sync(anyio.lowlevel.checkpoint())


def test_the_id_of_a_run_is_a_uuid() -> None:
    """It goes into events as it is."""

    @task
    def plain() -> None: ...

    with pytest.raises(ValueError, match="badly formed"):
        run_task(plain, task_run_id='x"}')
