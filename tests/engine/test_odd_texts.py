"""Texts that no UTF-8 can write: half characters, which Python makes of bytes that are no text."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hark import Flow, emit, flow, tags, task
from hark.bus import Bus
from hark.bus.session import use_session
from hark.engine.states import State
from hark.errors import DefinitionError
from hark.vocabulary import StateType, sendable

HALF = "half \ud83d done"


@pytest.fixture
async def session(bus: Bus) -> AsyncIterator[None]:
    """Runs are tracked. Nothing goes to this process's own log, which the test runner could not hand on."""
    logging.disable(logging.CRITICAL)
    try:
        with use_session(bus):
            yield
    finally:
        logging.disable(logging.NOTSET)


@task
async def same(x: object) -> object:
    return x


@task(task_run_name="run-{x}")
async def broken(x: str) -> None:
    raise ValueError(x)


@flow
async def carries(x: str) -> str:
    with tags(x):
        await same(x)
    return x


@flow(flow_run_name="run-{x}")
async def fails(x: str) -> None:
    raise ValueError(x)


@flow
async def fails_in_a_task(x: str) -> None:
    await broken(x)


@flow
async def emits(x: str) -> None:
    emit("order.paid", data=x)


@pytest.mark.parametrize(
    ("one", "type_", "message"),
    [
        (carries, StateType.COMPLETED, ""),
        (fails, StateType.FAILED, "ValueError: half"),
        (fails_in_a_task, StateType.FAILED, "ValueError: half"),
        (emits, StateType.FAILED, "surrogates not allowed"),
    ],
)
@pytest.mark.usefixtures("session")
async def test_a_run_ends_as_its_code_says(
    one: Flow[..., Any], type_: StateType, message: str, bus: Bus
) -> None:
    """In parameters, results, tags, names and messages alike; what is stored has a `?` in its place."""
    state: State = await one(HALF, return_state=True)
    assert state.type is type_
    assert message in (state.message or "")
    await bus.publisher.barrier()
    last = await bus.log.last("hark.ev.flow-run.>")
    assert last is not None
    assert last.event.type == f"flow-run.{type_.value.lower()}"
    last.raw.decode()


def test_a_name_that_is_written_down_is_refused() -> None:
    """There is somebody to tell, and it is part of addresses."""
    with pytest.raises(DefinitionError, match="ud83d"):
        flow(name=HALF)(lambda: None)


def test_a_text_that_can_be_sent_is_left_alone() -> None:
    """Only what cannot is changed."""
    assert [sendable(text) for text in ("a", "über 😀", HALF)] == ["a", "über 😀", "half ? done"]
