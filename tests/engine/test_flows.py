"""Flows where nothing is tracked: parameters, final states, retries, subflows, names, tags, logs, runners."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from hark import Abort, Skip, flow, get_run_context, get_run_logger, runtime, tags, task
from hark.engine import (
    AsyncTaskRunner,
    FlowRunContext,
    TaskRunContext,
    ThreadPoolTaskRunner,
    as_completed,
    wait,
)
from hark.engine.states import Completed, Failed, State
from hark.errors import DefinitionError, FlowFailed, MissingContextError, ParameterError, UpstreamFailed


@task
def one() -> int:
    return 1


@task
def broken() -> int:
    raise ValueError("broken")


async def test_a_flow_is_called_like_its_function() -> None:
    """Sync and async; parameters are coerced by their hints."""

    @flow
    def double(n: int) -> int:
        return n * 2

    @flow
    async def triple(n: int) -> int:
        return n * 3

    assert double("4") == 8  # type: ignore[call-overload]
    assert await triple(2) == 6
    assert double.name == "double"


def test_parameters_that_do_not_fit_fail_the_run() -> None:
    """The error names the parameter; no code of the flow runs; without validation they are taken as they come."""
    ran: list[object] = []

    def body(n: int) -> None:
        ran.append(n)

    state = flow(body)("x", return_state=True)
    assert state.is_failed()
    assert "Validation of flow parameters failed" in state.message
    with pytest.raises(ParameterError, match="n: "):
        flow(body)("x")  # type: ignore[call-overload]
    assert ran == []
    flow(validate_parameters=False)(body)("x")  # type: ignore[call-overload]
    assert ran == ["x"]
    assert flow(body).validate_parameters({"n": "3"}) == {"n": 3}


def test_the_return_value_decides() -> None:
    """Data completes; states and futures that did not complete fail; states made by hand are taken."""

    @flow
    def returns(what: str) -> Any:
        match what:
            case "data":
                return {"a": 1}
            case "future":
                return broken.submit()
            case "futures":
                return [one.submit(), broken.submit()]
            case "state":
                return one(return_state=True)
            case "by hand":
                return Completed(name="Enough", message="said so")
            case "failed by hand":
                return Failed(message="on purpose")
            case "caught":
                broken(return_state=True)
                return 3

    outcome = {
        what: returns(what, return_state=True)
        for what in ("data", "future", "futures", "state", "by hand", "failed by hand", "caught")
    }
    assert outcome["data"].result() == {"a": 1}
    assert outcome["future"].is_failed()
    assert outcome["futures"].message == "1/2 states failed."
    assert outcome["state"].is_completed()
    assert outcome["by hand"].name == "Enough"
    assert outcome["caught"].result() == 3
    assert [state.name for state in returns("futures")] == ["Completed", "Failed"]
    with pytest.raises(ValueError, match="broken"):
        returns("future")
    with pytest.raises(FlowFailed, match="on purpose"):
        returns("failed by hand")


async def test_a_failure_is_raised_and_returned() -> None:
    """Calling raises it, `return_state` returns it."""

    @flow
    async def fails() -> None:
        raise KeyError("k")

    state = await fails(return_state=True)
    assert state.message == "Flow run encountered an exception: KeyError: 'k'"
    with pytest.raises(KeyError):
        await fails()


async def test_flows_are_retried() -> None:
    """The whole function again, as often as said; also for a returned failure; never after Abort."""
    counts: dict[str, int] = {}

    def count(name: str) -> int:
        counts[name] = counts.get(name, 0) + 1
        return counts[name]

    @flow(retries=2)
    def raises() -> int:
        if count("raises") < 3:
            raise ValueError("x")
        return runtime.flow_run.run_count

    @flow(retries=2, retry_delay_seconds=0.01)
    async def returns() -> Any:
        count("returns")
        return Failed()

    @flow(retries=2)
    def aborts() -> None:
        count("aborts")
        raise Abort("enough")

    @task(retries=2)
    async def gives_up() -> None:
        count("gives_up")
        raise Abort("enough")

    @flow(retries=2)
    async def passes_it_on() -> Any:
        try:
            return await asyncio.gather(gives_up(), gives_up())
        except Exception:
            return "swallowed"

    @flow(retries=2)
    def skips() -> None:
        count("skips")
        raise Skip("nothing to do")

    assert raises() == 3
    assert (await returns(return_state=True)).is_failed()
    assert aborts(return_state=True).is_failed()
    assert skips(return_state=True).name == "Skipped"
    aborted = await passes_it_on(return_state=True)
    assert (aborted.type.value, aborted.message) == ("FAILED", "Flow run was aborted: enough")
    with pytest.raises(Abort):
        await passes_it_on()
    assert counts == {"raises": 3, "returns": 3, "aborts": 1, "skips": 1, "gives_up": 4}


def test_a_retry_reads_back_what_should_persist() -> None:
    """Without a broker, tasks marked `persist_result` are not run again by a retry of their flow; others are."""
    ran: list[str] = []

    @task(persist_result=True)
    def kept(n: int) -> int:
        ran.append("kept")
        return n

    @task
    def again(n: int) -> int:
        ran.append("again")
        return n

    @flow(retries=1)
    def twice() -> list[int]:
        found = [kept(1), kept(3), kept(2), again(1)]
        if len(ran) < 5:
            raise ValueError("first time")
        return found

    assert twice() == [1, 3, 2, 1]
    assert ran == ["kept", "kept", "kept", "again", "again"]


async def test_a_flow_in_a_flow_has_a_run_of_its_own() -> None:
    """With the parent's id, its own context, runner and name."""
    seen: dict[str, Any] = {}

    @flow
    def child(n: int) -> int:
        context = FlowRunContext.get()
        assert context is not None
        seen["child"] = context.flow_run
        return n

    @flow
    async def parent() -> int:
        context = FlowRunContext.get()
        assert context is not None
        seen["parent"] = context.flow_run
        return child(1) + child(2)

    assert await parent() == 3
    assert seen["child"].parent == seen["parent"].id
    assert seen["child"].id != seen["parent"].id


def test_a_subflow_takes_futures() -> None:
    """They are waited for, and a failed one leaves the subflow NotReady."""

    @flow
    def child(x: int) -> int:
        return x + 1

    @flow
    def parent() -> Any:
        assert child(one.submit()) == 2  # type: ignore[call-overload]
        state = child(broken.submit(), return_state=True)
        assert state.name == "NotReady"
        assert child(1, wait_for=[broken.submit()], return_state=True).name == "NotReady"
        with pytest.raises(UpstreamFailed):
            child(1, wait_for=[broken.submit()])
        return Completed()

    assert parent(return_state=True).is_completed()


def test_runs_have_names() -> None:
    """From a template, from a function, or two words; tasks too."""

    @task(task_run_name="load-{day}")
    def load(day: str) -> str:
        return str(runtime.task_run.name)

    @task(task_run_name=lambda parameters: parameters["day"].upper())
    def named(day: str) -> str:
        return str(runtime.task_run.name)

    @flow(flow_run_name="etl-{day}")
    def etl(day: str) -> list[str | None]:
        return [runtime.flow_run.name, load(day), named(day)]

    @flow(flow_run_name=lambda: f"for-{runtime.flow_run.parameters['n']}")
    def by_function(n: int) -> str:
        return str(runtime.flow_run.name)

    @flow(flow_run_name="{nope}")
    def misnamed() -> None: ...

    assert etl("monday") == ["etl-monday", "load-monday", "MONDAY"]
    assert by_function(3) == "for-3"
    with pytest.raises(DefinitionError, match="nope"):
        misnamed()


def test_tags_are_put_on_runs() -> None:
    """Those of the block, of the flow, and of the task, down to subflows."""

    @task(tags=["t"])
    def task_tags() -> list[str]:
        return list(runtime.task_run.tags)

    @flow(tags=["inner"])
    def inner() -> list[str]:
        return list(runtime.flow_run.tags)

    @flow(tags=["f"])
    def outer() -> Any:
        with tags("b"):
            return runtime.flow_run.tags, task_tags(), inner()

    with tags("a", "x"):
        assert outer() == (["a", "f", "x"], ["a", "b", "f", "t", "x"], ["a", "b", "f", "inner", "x"])
    assert outer()[0] == ["f"]
    for wrong in (lambda: tags(1).__enter__(), lambda: task(tags=[1])(len), lambda: flow(tags=[1])(len)):  # type: ignore[arg-type,list-item]
        with pytest.raises(TypeError, match="a tag is a text, got 1; write '1'"):
            wrong()


def test_the_context_is_where_one_is() -> None:
    """In a flow, in its task, in threads of the task; outside there is none, and that is said."""

    @task
    def inside() -> tuple[str, str]:
        found, above = TaskRunContext.get(), FlowRunContext.get()
        assert found is not None
        assert found is get_run_context()
        assert above is not None
        return found.task.name, above.flow.name

    @flow
    def outside() -> Any:
        assert TaskRunContext.get() is None
        return inside(), inside.submit().result()

    assert outside() == (("inside", "outside"), ("inside", "outside"))
    with pytest.raises(MissingContextError):
        get_run_context()
    with pytest.raises(MissingContextError):
        get_run_logger()
    assert runtime.flow_run.id is None
    assert runtime.task_run.run_count == 0


def test_the_environment_can_stand_in_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of code that asks the runtime."""
    monkeypatch.setenv("HARK__RUNTIME__FLOW_RUN__NAME", "mocked")
    assert runtime.flow_run.name == "mocked"


def test_logs_carry_their_run(caplog: pytest.LogCaptureFixture) -> None:
    """Through standard logging, with the run's fields, prints too where asked for."""

    @task
    def talks() -> None:
        get_run_logger(extra_field=7).warning("from a task")
        print("printed in a task")

    @flow(log_prints=True)
    def speaks() -> None:
        get_run_logger().info("from a flow")
        print("printed", "twice", sep="-")
        talks()

    with caplog.at_level(logging.INFO):
        speaks()
    found = {r.getMessage(): r for r in caplog.records if r.name in ("hark.flow_runs", "hark.task_runs")}
    assert set(found) == {"from a flow", "printed-twice", "from a task", "printed in a task"}
    assert found["from a flow"].flow_name == "speaks"  # type: ignore[attr-defined]
    assert found["from a task"].task_name == "talks"  # type: ignore[attr-defined]
    assert found["from a task"].extra_field == 7  # type: ignore[attr-defined]
    assert found["from a task"].name == "hark.task_runs"


def test_prints_outside_stay_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Only runs that ask for it have their prints taken, and only those to the standard streams."""
    import io

    other = io.StringIO()

    @flow(log_prints=True)
    def quiet() -> None:
        print("elsewhere", file=other)
        thread = threading.Thread(target=print, args=("from a bare thread",))
        thread.start()
        thread.join()

    @flow
    def loud() -> None:
        print("plain")

    quiet()
    loud()
    captured = capsys.readouterr()
    assert captured.out == "from a bare thread\nplain\n"
    assert other.getvalue() == "elsewhere\n"


def test_hooks_are_told() -> None:
    """Running, then the end; failure only after the retries."""
    told: list[tuple[str, str]] = []

    def hook(which: str) -> Any:
        return lambda _flow, run, state: told.append((which, state.name))

    @flow(
        retries=1,
        on_running=[hook("running")],
        on_failure=[hook("failure")],
        on_completion=[hook("completion")],
    )
    def fails() -> None:
        raise ValueError("x")

    @fails.on_failure
    async def also(_flow: Any, run: Any, state: State) -> None:
        told.append(("async", run.state_name))

    fails(return_state=True)
    assert told == [
        ("running", "Running"),
        ("running", "Retrying"),
        ("failure", "Failed"),
        ("async", "Failed"),
    ]


async def test_async_flows_run_tasks_in_their_own_loop() -> None:
    """With AsyncTaskRunner: any number at once; `await` gives results, and blocking on one says what to write."""

    @task
    async def waits(n: int) -> int:
        await asyncio.sleep(0.01)
        assert asyncio.get_running_loop() is loop
        return n

    @task
    def in_thread() -> str:
        return threading.current_thread().name

    @flow(task_runner=AsyncTaskRunner())
    async def many() -> Any:
        futures = waits.map(range(100))
        with pytest.raises(RuntimeError, match="await future"):
            futures[0].result()
        assert sum(await futures) == 4950
        assert {f.name async for f in as_completed(futures)} == {f.name for f in futures}
        assert (await in_thread.submit()).startswith("hark-task")
        return [waits.submit(1), waits.submit(futures[3])]

    loop = asyncio.get_running_loop()
    states = await many()
    assert [state.result() for state in states] == [1, 3]

    @flow(task_runner=AsyncTaskRunner())
    def from_sync() -> list[int]:
        return sleepy.map(range(50)).result()

    assert await asyncio.to_thread(from_sync) == list(range(50))


@task
async def sleepy(n: int) -> int:
    await asyncio.sleep(0.01)
    return n


def test_a_flow_waits_for_what_it_submitted() -> None:
    """Also for tasks whose futures nobody asked; a failing flow begins no more of them."""
    done: list[int] = []
    gate, begun = threading.Event(), threading.Event()

    @task
    def slow(n: int) -> None:
        begun.set()
        gate.wait(60)
        done.append(n)

    @flow
    def forgets() -> None:
        slow.submit(1)
        slow.submit(2)
        gate.set()

    forgets()
    assert sorted(done) == [1, 2]
    gate.clear()
    begun.clear()
    done.clear()

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
    def fails() -> None:
        futures.extend(
            slow.submit(n) for n in range(3)
        )  # the first has a place, however slow its thread is to begin
        threading.Timer(1, gate.set).start()
        raise ValueError("x")

    futures: list[Any] = []
    fails(return_state=True)
    assert done == [0]
    assert [future.state.name for future in futures] == ["Completed", "Cancelled", "Cancelled"]


def test_waiting_for_many() -> None:
    """`wait` tells done from not done; `as_completed` gives the first one first and knows a limit."""
    gate = threading.Event()

    @task
    def when_open(n: int) -> int:
        gate.wait(60)
        return n

    @flow
    def waits() -> Any:
        quick, slow = one.submit(), when_open.submit(5)
        quick.wait()
        found = wait([quick, slow], timeout=0.01)
        assert (found.done, found.not_done) == ({quick}, {slow})
        ready = iter(as_completed([slow, quick], timeout=60))
        assert next(ready) is quick
        with pytest.raises(TimeoutError):
            slow.result(timeout=0.01)
        with pytest.raises(TimeoutError):
            list(as_completed([slow], timeout=0.01))
        gate.set()
        assert next(ready) is slow
        return slow.result()

    assert waits() == 5


async def test_generator_flows_yield_through() -> None:
    """Values come one by one; the run ends when they are read, and fails if reading fails."""
    told: list[str] = []

    @flow(on_completion=[lambda _f, run, state: told.append(state.name)])
    def numbers(n: int) -> Any:
        yield from range(n)

    @flow(on_completion=[lambda _f, run, state: told.append(state.name)])
    async def slowly(n: int) -> Any:
        for i in range(n):
            yield i

    @flow
    def fails() -> Any:
        yield 1
        raise ValueError("later")

    assert list(numbers(3)) == [0, 1, 2]
    assert [i async for i in slowly(2)] == [0, 1]
    generator = fails()
    assert next(generator) == 1
    with pytest.raises(ValueError, match="later"):
        next(generator)
    assert told == ["Completed", "Completed"]


class Pipeline:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @flow
    def scale(self, n: int) -> int:
        return n * self.factor

    @flow
    async def scale_later(self, n: int) -> int:
        return n * self.factor


async def test_methods_are_flows() -> None:
    """With their instance."""
    assert Pipeline(3).scale("2") == 6
    assert await Pipeline(4).scale_later(2) == 8


def test_with_options_makes_a_copy() -> None:
    """And wrong options are refused."""

    @flow(retries=2, tags=["a"])
    def fn() -> None: ...

    other = fn.with_options(retries=0, name="other")
    assert (other.retries, other.name, other.tags) == (0, "other", frozenset({"a"}))
    assert (fn.retries, fn.name) == (2, "fn")
    with pytest.raises(TypeError, match="no option"):
        flow(nonsense=1)(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="task_runner"):
        flow(task_runner="threads")(lambda: None)  # type: ignore[call-overload]


async def test_a_sync_flow_of_an_async_flow_may_use_its_own_loop() -> None:
    """Submitting async tasks from sync flows in a running loop works: they run elsewhere."""

    @flow
    def inner() -> int:
        return sleepy.submit(3).result()

    @flow
    async def outer() -> int:
        return inner()

    assert await outer() == 3
