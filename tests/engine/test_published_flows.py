"""Flows as they are called, end and are told of: as published for Prefect 3, seen there, written down here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hark import Flow, State, flow, get_run_context, runtime, task
from hark.bus.session import Session
from hark.engine.dispatching.control import Control
from hark.engine.exceptions import (
    InvalidNameError,
    ParameterBindError,
    ParameterTypeError,
    ReservedArgumentError,
)
from hark.engine.states import Cancelling, Completed, Crashed, Failed
from hark.vocabulary import FlowRunId


def nothing() -> None:
    """Does nothing."""


loose: Any = flow
"""What takes anything, for what no type checker lets pass."""


@pytest.mark.parametrize(
    ("made", "raises", "match"),
    [
        (lambda: loose(name=1)(nothing), TypeError, "Expected string for flow parameter 'name'; got int"),
        (
            lambda: loose(name=nothing)(nothing),
            TypeError,
            "got function instead. Perhaps you meant to call it",
        ),
        (lambda: loose(name="a/b")(nothing), InvalidNameError, "contains an invalid character"),
        (
            lambda: loose(flow_run_name=[1])(nothing),
            TypeError,
            "string or callable for 'flow_run_name'; got list",
        ),
        (
            lambda: loose(lambda return_state: 1),
            ReservedArgumentError,
            "'return_state' is a reserved argument name",
        ),
        (
            lambda: loose(on_crashed=nothing)(nothing),
            TypeError,
            "Expected iterable for 'on_crashed'; got function",
        ),
        (lambda: loose(on_running=["x"])(nothing), TypeError, "Expected callables in 'on_running'; got str"),
        (loose(lambda x: x), ParameterBindError, "Error binding parameters for function"),
    ],
)
def test_what_makes_no_sense_is_said_in_the_words_people_match(
    made: Callable[[], Any], raises: type[Exception], match: str
) -> None:
    """Of flows; the rest of each message is ours."""
    with pytest.raises(raises, match=match):
        made()


def test_a_flow_without_a_name_of_its_own_has_one() -> None:
    """Also where its function has none."""
    assert Flow(lambda: 1).name == "unknown-lambda"


def test_a_parameter_that_does_not_fit_is_in_the_state() -> None:
    """And hooks of failure hear of it."""
    heard: list[str | None] = []

    @flow(on_failure=[lambda flow, run, state: heard.append(state.message)])
    def f(x: int) -> None: ...

    loose_f: Any = f
    with pytest.raises(ParameterTypeError, match="Flow run received invalid parameters"):
        loose_f("z")
    assert heard[0] is not None
    assert heard[0].startswith("Validation of flow parameters failed with error: ParameterTypeError")


def test_a_name_that_is_no_text_fails_the_run() -> None:
    """Whether the option was bad when the run began, or its function gave no text."""

    @flow
    def f() -> None: ...

    f.flow_run_name = 5  # type: ignore[assignment]
    with pytest.raises(TypeError, match="Expected string or callable for 'flow_run_name'; got int"):
        f()
    f.flow_run_name = nothing  # type: ignore[assignment]
    with pytest.raises(TypeError, match="returned type NoneType but a string is required"):
        f()


def test_several_states_are_what_the_call_returns() -> None:
    """Whatever became of them: their run has failed, and who called it has them in hand."""

    @task
    def bad() -> None:
        raise ValueError("bad")

    @task
    def ok() -> int:
        return 1

    @flow
    def both() -> Any:
        return ok.submit(), bad.submit()

    @flow
    async def aboth() -> Any:
        return [ok(return_state=True), bad(return_state=True)]

    @flow
    def parent() -> int:
        return len(both())

    assert [state.name for state in both()] == ["Completed", "Failed"]
    assert [state.name for state in asyncio.run(aboth())] == ["Completed", "Failed"]
    assert parent() == 2
    with pytest.raises(ValueError, match="bad"):
        both(return_state=True).result()


def test_a_state_knows_its_run() -> None:
    """That of a flow run the run, that of a task run the task run and the flow run it is part of."""

    @task(retries=0)
    def work(fails: bool) -> int:
        if fails:
            raise ValueError
        return 1

    def seen(state: State) -> tuple[str | None, str | None]:
        return state.state_details.flow_run_id, state.state_details.task_run_id

    @flow
    def f() -> Any:
        here = runtime.flow_run.id
        found = []
        for fails in (False, True):
            future = work.submit(fails)
            future.wait()
            found.append(seen(future.state) == (here, future.task_run_id))
            flow_run_id, task_run_id = seen(work(fails, return_state=True))
            found.append(flow_run_id == here and task_run_id not in (None, here))
        return found, here

    state = f(return_state=True)
    found, here = state.result()
    assert found == [True] * 4
    assert seen(state) == (here, None)
    outside = seen(work(True, return_state=True))
    assert outside[0] is None
    assert outside[1] is not None
    assert seen(Completed()) == (None, None)


@pytest.mark.parametrize("argument", ["on_running", "on_completion", "on_failure"])
def test_hooks_are_in_the_run_they_are_told_of(argument: str) -> None:
    """What asks for the run finds it; tasks called and submitted there run, whatever has become of the flow."""
    heard: list[Any] = []

    @task
    def notify(word: str) -> str:
        return word

    def hook(flow: Any, run: Any, state: State) -> None:
        context: Any = get_run_context()
        heard.append((context.flow is flow, context.flow_run == run, runtime.flow_run.id == run.id))
        heard.append((notify("called"), notify.submit("submitted").result()))

    @flow(**{argument: [hook]})  # type: ignore[call-overload,untyped-decorator]
    def f() -> None:
        if argument == "on_failure":
            raise ValueError

    f(return_state=True)
    assert heard == [(True, True, True), ("called", "submitted")]


def test_hooks_of_async_flows_are_in_their_run() -> None:
    """Also those that are async themselves."""
    heard: list[Any] = []

    async def hook(flow: Any, run: Any, state: State) -> None:
        await asyncio.sleep(0)
        heard.append(runtime.flow_run.id == run.id)

    @flow(on_completion=[hook])
    async def f() -> None: ...

    asyncio.run(f())
    assert heard == [True]


async def test_to_return_cancelling_is_to_be_cancelled(session: Session) -> None:
    """The hooks are told, who called it gets what was returned, and the log has an end."""
    heard: list[str] = []

    @flow(on_cancellation=[lambda flow, run, state: heard.append(state.name)])
    async def f() -> State:
        return Cancelling()

    state = await f(return_state=True)
    assert (state.type.value, heard) == ("CANCELLING", ["Cancelling"])
    run = await Control(session.bus).runs.get(FlowRunId(state.state_details.flow_run_id))
    assert run is not None
    assert run.state_type.value == "CANCELLED"


@pytest.mark.parametrize("made", [Crashed, Failed])
def test_the_end_of_a_subflow_that_is_not_asked_for_its_state_is_raised(made: Callable[..., State]) -> None:
    """And fails its parent."""

    @flow
    def child() -> State:
        return made()

    @flow
    def parent() -> None:
        child()

    state: State = parent(return_state=True)
    assert state.is_failed()
    assert (state.message or "").startswith("Flow run encountered an exception: ")


# --- generators -----------------------------------------------------------------------------------------


def read_into(read: list[int], values: Iterator[int]) -> None:
    """Read values until there are no more, or reading raises; ``read`` has those that came."""
    for value in values:
        read.append(value)  # noqa: PERF402


def test_a_generator_flow_is_tried_again_from_its_beginning() -> None:
    """To the same reader: what has been yielded cannot be taken back."""
    closed: list[int] = []

    @flow(retries=2)
    def counts() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(runtime.flow_run.run_count)
        raise ValueError("done")

    read: list[int] = []
    with pytest.raises(ValueError, match="done"):
        read_into(read, counts())
    assert read == [1, 2] * 3
    assert closed == [1, 2, 3]


async def test_an_async_generator_flow_is_tried_again_from_its_beginning() -> None:
    """As a sync one."""

    @flow(retries=1)
    async def counts() -> AsyncIterator[int]:
        yield 1
        raise ValueError("done")

    read: list[int] = []

    async def go() -> None:
        async for value in counts():
            read.append(value)  # noqa: PERF401

    with pytest.raises(ValueError, match="done"):
        await go()
    assert read == [1, 1]


def test_a_generator_flow_has_a_time_limit_of_its_own_code() -> None:
    """The state names the whole of it."""
    heard: list[str | None] = []

    @flow(timeout_seconds=0.1, on_failure=[lambda flow, run, state: heard.append(state.message)])
    def slow() -> Iterator[int]:
        yield 1
        while True:
            pass

    read: list[int] = []
    with pytest.raises(TimeoutError):
        read_into(read, slow())
    assert (read, heard) == ([1], ["Flow run exceeded timeout of 0.1 second(s)"])


def test_a_reader_may_stop_and_may_answer() -> None:
    """The generator is closed at once, and its run has completed; what is sent reaches it, and what it returns the reader."""
    heard: list[str] = []

    @flow(on_completion=[lambda flow, run, state: heard.append(state.name)])
    def echo() -> Any:
        try:
            said = yield "first"
            yield said
        finally:
            heard.append("closed")
        return "end"

    reader = echo()
    assert next(reader) == "first"
    reader.close()
    assert heard == ["closed", "Completed"]
    reader = echo()
    next(reader)
    assert reader.send("hello") == "hello"
    with pytest.raises(StopIteration) as end:
        next(reader)
    assert end.value.value == "end"
    with pytest.raises(ValueError, match="return_type for a generator flow must be 'result'"):
        list(echo(return_state=True))


async def test_a_subflow_has_all_its_retries_each_time_its_parent_is_tried(session: Session) -> None:
    """Though it is the same run."""
    tries: list[str] = []

    @flow(retries=1)
    async def child() -> None:
        tries.append("child")
        raise ValueError

    @flow(retries=1)
    async def parent() -> None:
        tries.append("parent")
        await child()

    with pytest.raises(ValueError):
        await parent()
    assert tries == ["parent", "child", "child"] * 2
