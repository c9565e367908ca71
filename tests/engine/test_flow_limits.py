"""Flows that are stopped: by their limit, by who called them, by a signal; and what that stops in them."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from hark import flow, task
from hark.engine import (
    as_completed,
)


async def test_flows_have_limits() -> None:
    """A flow that takes too long ends FAILED, named TimedOut, and its tasks do not go on."""

    @flow(timeout_seconds=0.05)
    def slow() -> None:
        time.sleep(30)

    @flow(timeout_seconds=0.05)
    async def waits() -> None:
        await asyncio.sleep(30)

    assert slow(return_state=True).name == "TimedOut"
    assert (await waits(return_state=True)).name == "TimedOut"


def test_what_comes_from_outside_crashes_a_flow() -> None:
    """Ctrl-C goes on up, and the hook for crashes is told."""
    told: list[str] = []

    @flow(on_crashed=[lambda _flow, run, state: told.append(state.name)])
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert told == ["Crashed"]


async def test_a_cancelled_flow_crashes_and_lets_go() -> None:
    """Cancelling the caller reaches the flow, which records it and goes on up."""
    told: list[str] = []
    began = asyncio.Event()

    @flow(on_crashed=[lambda _flow, run, state: told.append(state.message)])
    async def waits() -> None:
        began.set()
        await asyncio.sleep(30)

    running = asyncio.create_task(waits())
    await began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert told == ["Execution was cancelled by the runtime environment."]


@task
def spins() -> None:
    while True:
        time.sleep(0.001)


async def test_a_limit_reaches_a_flow_that_waits_for_its_task() -> None:
    """In the main thread and in others; the task in its thread is stopped with it."""

    @flow(timeout_seconds=0.5)
    def waits() -> None:
        futures.append(spins.submit())
        futures[-1].result()

    @flow(timeout_seconds=0.5)
    def iterates() -> None:
        futures.append(spins.submit())
        list(as_completed(futures[-1:]))

    futures: list[Any] = []
    for fn in (waits, iterates):
        assert fn(return_state=True).name == "TimedOut"
        assert (await asyncio.to_thread(fn, return_state=True)).name == "TimedOut"
    assert len(futures) == 4
    assert all(future.state.is_crashed() for future in futures)


def test_an_interrupted_flow_stops_its_tasks() -> None:
    """Ctrl-C does not wait for threads that would go on for ever."""

    @flow
    def interrupted() -> None:
        futures.append(spins.submit())
        raise KeyboardInterrupt

    futures: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert futures[0].state.is_crashed() or futures[0].state.is_cancelled()


def test_a_retry_in_a_thread_is_cut_short_by_a_limit() -> None:
    """Waiting for the next try counts too."""

    @task(retries=1, retry_delay_seconds=300)
    def fails() -> None:
        raise ValueError("x")

    @flow(timeout_seconds=0.05)
    def limited() -> None:
        fails()

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(limited(return_state=True).name))
    thread.start()
    thread.join(60)
    assert found == ["TimedOut"]
    assert limited(return_state=True).name == "TimedOut"
