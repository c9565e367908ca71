"""Pausing, suspending and resuming: as published for Prefect 3, seen there, written down here."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pydantic
import pytest
from hark import flow, pause_flow_run, resume_flow_run, suspend_flow_run, task
from hark.bus import Bus
from hark.bus.session import Session
from hark.engine.dispatching.control import Control
from hark.engine.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
from hark.engine.run_input import RunInput
from hark.engine.runs.run import FlowRun
from hark.vocabulary import FlowRunId, new_id


class Order(RunInput):
    """What a run asks for."""

    item: str
    n: int = 2


class Plain(pydantic.BaseModel):
    """What a run asks for, of a class that knows nothing of runs."""

    x: int


def _default_of_timeout(fn: Any) -> Any:
    return inspect.signature(fn).parameters["timeout"].default


def test_a_pause_lasts_an_hour_and_a_suspension_until_somebody_ends_it() -> None:
    """Where no timeout is said."""
    assert _default_of_timeout(pause_flow_run) == 3600
    assert _default_of_timeout(suspend_flow_run) is None


@pytest.mark.parametrize("in_subflow", [False, True])
async def test_a_pause_nobody_ended_fails_its_run(session: Session, in_subflow: bool) -> None:
    """It is ``Failed``, not ``TimedOut``, and raises ``FlowPauseTimeout``."""

    @flow
    async def asker() -> None:
        await pause_flow_run(timeout=0.02, poll_interval=0.01)

    @flow
    async def parent() -> Any:
        return await asker(return_state=True)

    run: Any = parent if in_subflow else asker
    state = await run(return_state=True)
    assert (state.type.value, state.name) == ("FAILED", "Failed")
    if not in_subflow:
        assert "paused and never resumed" in state.message
        with pytest.raises(FlowPauseTimeout):
            await run()


async def test_code_may_go_on_without_an_answer(session: Session) -> None:
    """The timeout can be caught."""

    @flow
    async def asker() -> str:
        try:
            await pause_flow_run(timeout=0.02)
        except FlowPauseTimeout:
            return "nobody"
        return "somebody"

    assert await asker() == "nobody"


async def test_what_cannot_pause_or_be_suspended_is_a_runtime_error(session: Session) -> None:
    """Outside of runs, in a task, in a subflow, and where no deployment could take the run up."""

    @flow
    async def plain() -> None:
        await suspend_flow_run()

    @flow
    async def parent() -> None:
        await plain()

    @task
    async def suspends() -> None:
        await suspend_flow_run()

    @flow
    async def through_a_task() -> None:
        await suspends()

    for calling in (plain, parent, through_a_task, suspend_flow_run, pause_flow_run):
        with pytest.raises(RuntimeError):
            await calling()


async def test_only_what_is_paused_can_be_resumed(session: Session) -> None:
    """A run that has ended is not, and one that nobody knows is not found."""
    ended: list[str] = []

    @flow
    async def done() -> None:
        from hark import runtime

        ended.append(str(runtime.flow_run.id))

    await done()
    with pytest.raises(NotPausedError):
        await resume_flow_run(ended[0])
    with pytest.raises(ObjectNotFound):
        await resume_flow_run(new_id())


@pytest.mark.parametrize(
    ("wanted", "wrong", "right", "value"),
    [
        (Order, [{"n": "x"}, {"item": "a", "zzz": 1}, None], {"item": "tea"}, Order(item="tea")),
        (Plain, [{"x": "zz"}], {"x": 4}, Plain(x=4)),
        (int, [{"value": "abc"}], {"value": 3}, 3),
        (str, [{"value": 3}], {"value": "q"}, "q"),
        (list[int], [{"value": "q"}, {"value": [1, "q"]}], {"value": [1, 2]}, [1, 2]),
        (dict[str, int], [{"value": 1}], {"value": {"a": 1}}, {"a": 1}),
        (Order.with_initial_data(item="coffee", description="hi"), [{"n": "x"}], {}, None),
        (None, [], None, None),
    ],
)
async def test_input_that_does_not_fit_leaves_the_run_paused(
    session: Session, bus: Bus, wanted: Any, wrong: list[Any], right: Any, value: Any
) -> None:
    """It is a ``RuntimeError``; a fitting answer is given to the run as what it asked for."""
    began: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @flow
    async def asker() -> Any:
        from hark import runtime

        began.set_result(str(runtime.flow_run.id))
        return await pause_flow_run(wait_for_input=wanted, timeout=60)

    running = asyncio.ensure_future(asker())
    run_id = FlowRunId(await began)

    def is_paused(run: FlowRun) -> bool:
        return run.state_name == "Paused"

    await Control(bus).wait(run_id, is_paused, timeout_s=60)
    for given in wrong:
        with pytest.raises(RuntimeError):
            await resume_flow_run(run_id, run_input=given)
    await resume_flow_run(run_id, run_input=right)
    answer = await running
    if isinstance(value, pydantic.BaseModel):
        assert answer.model_dump() == value.model_dump()
    elif right == {}:
        assert (answer.item, answer.n) == ("coffee", 2)
    else:
        assert answer == value


@pytest.mark.parametrize("persist", [None, True, False])
def test_a_result_is_there_whatever_is_said_of_memory(persist: bool | None) -> None:
    """``cache_result_in_memory=False`` takes nothing from who holds the state, kept or not."""

    @task(cache_result_in_memory=False, persist_result=persist)
    def numbers() -> list[int]:
        return [1, 2]

    @flow(cache_result_in_memory=False)
    def summing() -> list[int]:
        state: Any = numbers(return_state=True)
        assert state.result() == numbers() == numbers.submit().result() == [1, 2]
        return [3]

    ended: Any = summing(return_state=True)
    assert ended.result() == [3]
