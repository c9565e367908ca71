"""Ctrl-C in a plain call, at every place where Python can hear it."""

from __future__ import annotations

import concurrent.futures
import inspect
import logging
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hark import engine, flow, get_run_logger, task
from hark.bus.subject import flow_run_filter
from hark.engine.runs.run import FlowRun
from hark.testing import harness

from .conftest import events

_OURS = (str(Path(engine.__file__).parent), str(Path(concurrent.futures.__file__).parent))
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""They are told of, too, where something is thrown into them; what the tracer raises there runs none of their ``finally``."""


def struck(call: Callable[[], object], at: int) -> bool:
    """Make a call, and raise KeyboardInterrupt in it where the ``at``-th function of ours begins; whether it came so far."""
    left = at

    def strike(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        code = frame.f_code
        if code.co_filename.startswith(_OURS) and not code.co_flags & _GENERATOR:
            left -= 1
            if not left:
                raise KeyboardInterrupt

    return interrupted(call, strike)


def interrupted(call: Callable[[], object], trace: Callable[[FrameType, str, Any], Any]) -> bool:
    """Make a call under a tracer that may interrupt it; whether it did."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupted_call_leaves_no_run_behind() -> None:
    """Wherever it is interrupted: who called it sees the interrupt, and its run has ended, hooks and tries or not."""
    tries: dict[int, int] = {}

    def told(*_: object) -> None: ...

    @flow(retries=1, on_completion=[told], on_crashed=[told])
    def plain(number: int) -> None:
        tries[number] = tries.get(number, 0) + 1
        if tries[number] == 1:
            raise ValueError("the first try fails")

    with harness() as rig:
        for number in range(-6, 0):  # as many as it takes to open a line
            plain(number)
        at = 1
        while struck(partial(plain, at), at):
            at += 2  # every place takes twice as long, and finds no more
        stories = rig.session.call(events, rig.bus, flow_run_filter("*"))
    runs = {recorded.event.subject: FlowRun.from_recorded(recorded) for recorded in stories}
    assert [run for run in runs.values() if not run.is_final] == []
    ends = {run.state_name for run in runs.values()}
    assert ends == {"Completed", "Crashed"}
    assert at > 100


def test_an_interrupted_wait_leaves_nothing_locked() -> None:
    """Ctrl-C where a thread has just locked what it waits or logs with: the other threads go on, and so does the session."""

    @task
    def number(n: int) -> int:
        get_run_logger().warning("by this thread or another")
        return n

    @flow
    def submits(n: int) -> int:
        return number(n) + sum(future.result() for future in [number.submit(n), number.submit(n)])

    def struck_in_lock(call: Callable[[], object], at: int) -> bool:
        left = at

        def watch(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left
            if event == "call":
                code = frame.f_code
                if code.co_filename == logging.__file__ and code.co_name == "acquire":
                    handler = type(frame.f_locals.get("self"))
                    return watch if handler.__module__.startswith("hark") else None  # pytest has some, too
                is_lock = code.co_filename == threading.__file__ and code.co_name == "__enter__"
                return watch if is_lock else None
            if event == "return":
                left -= 1
                if not left:
                    raise KeyboardInterrupt
            return watch

        return interrupted(call, watch)

    with harness() as rig:
        submits(0)
        at = 1
        while struck_in_lock(partial(submits, at), at):
            assert submits(at) == 3 * at
            at += 1
        stories = rig.session.call(events, rig.bus, flow_run_filter("*"))
    runs = {recorded.event.subject: FlowRun.from_recorded(recorded) for recorded in stories}
    assert [run for run in runs.values() if not run.is_final] == []
