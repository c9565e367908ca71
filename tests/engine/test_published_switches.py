"""How calls, settings and the environment switch things: as published for Prefect 3, seen there, written down here."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
from hark import (
    Flow,
    flow,
    get_client,
    get_run_logger,
    pause_flow_run,
    resume_flow_run,
    run_deployment,
    runtime,
    suspend_flow_run,
    task,
)
from hark.bus.session import Session
from hark.config import EngineConfig
from hark.engine.client_calls.run_filters import LogFilter
from hark.engine.context import FlowRunContext
from hark.engine.exceptions import MissingContextError
from hark.engine.flows import load_flow_from_entrypoint
from hark.engine.run_input import RunInput, receive_input, send_input
from hark.testing.temporary import temporary_settings
from hark.vocabulary import new_id
from pydantic import ValidationError


class Word(RunInput):
    """Sent to runs."""

    text: str


async def test_a_call_may_say_whether_it_is_awaited() -> None:
    """Wherever it is made."""
    nobody = new_id()
    resume: Any = resume_flow_run
    run: Any = run_deployment
    for made in (
        pause_flow_run(_sync=False),
        suspend_flow_run(_sync=False),
        suspend_flow_run(flow_run_id=nobody, _sync=False),
        resume(nobody, _sync=False),
        run("x", _sync=False),
    ):
        assert inspect.iscoroutine(made)
        made.close()
    with pytest.raises(MissingContextError, match="Flow runs can only be paused from within a flow run"):
        pause_flow_run(_sync=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        pause_flow_run(nope=True)


async def test_a_negative_time_limit_is_refused(session: Session) -> None:
    """Before anything is run."""
    with pytest.raises(ValueError, match="`timeout` cannot be negative"):
        await run_deployment("x", timeout=-1)


def test_flows_are_retried_as_the_settings_say() -> None:
    """Those that say nothing of it themselves."""
    tries: list[int] = []

    def body() -> None:
        tries.append(1)
        raise ValueError

    with temporary_settings({"PREFECT_FLOW_DEFAULT_RETRIES": 2, "HARK_ENGINE__FLOW_RETRY_DELAY_S": 0}):
        silent, own = flow(body), flow(retries=0)(body)
        assert (silent.retries, own.retries, silent.retry_delay_seconds) == (2, 0, 0)
        silent(return_state=True)
        assert len(tries) == 3
        own(return_state=True)
        assert len(tries) == 4
    assert silent.retries == 0


def test_prints_and_refreshed_caches_are_as_the_settings_say() -> None:
    """Of flows and tasks that say nothing of it themselves."""
    calls: list[int] = []
    new_key = new_id()

    @task(cache_key_fn=lambda *_: new_key, persist_result=True)
    def computes() -> int:
        calls.append(1)
        return len(calls)

    @flow
    def prints() -> tuple[bool, int]:
        context = FlowRunContext.get()
        assert context is not None
        return context.log_prints, computes()

    assert prints() == (False, 1) == prints()
    with temporary_settings({"PREFECT_LOGGING_LOG_PRINTS": True, "PREFECT_TASKS_REFRESH_CACHE": True}):
        assert prints() == (True, 2)
        assert prints.with_options(log_prints=False)() == (False, 3)
        assert computes.with_options(refresh_cache=False)() == 3


@pytest.mark.parametrize("delays", [-1.0, float("nan"), [0.0, -2.0], [0.0] * 51])
def test_a_delay_of_retries_that_cannot_be_is_refused_with_the_settings(delays: float | list[float]) -> None:
    """Not at the first retry, in place of what the task failed of."""
    with pytest.raises(ValidationError, match=r"task_retry_delay_s\n.*seconds >= 0"):
        EngineConfig(task_retry_delay_s=delays)


def test_the_environment_stands_in_for_a_run_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tests of flows that were written for Prefect, too."""
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "7")
    assert runtime.flow_run.run_count == 7
    monkeypatch.setenv("HARK__RUNTIME__FLOW_RUN__RUN_COUNT", "8")
    assert runtime.flow_run.run_count == 8


async def test_inputs_are_received_one_by_one_in_sync_flows(session: Session) -> None:
    """``next()`` is awaited in async code alone."""

    @flow
    def talks() -> Any:
        here = runtime.flow_run.id
        assert here is not None
        send_input(7, here)
        Word(text="hi").send_to(here)
        return receive_input(int, timeout=30).next(), Word.receive(timeout=30).next().text

    assert await asyncio.to_thread(talks) == (7, "hi")


def test_a_line_may_stay_here_and_a_logger_may_have_children(caplog: pytest.LogCaptureFixture) -> None:
    """The child is the run's logger, with more on every line."""

    @flow(name="lines", log_prints=True)
    def f() -> None:
        get_run_logger(shop=1).getChild("tea", {"cup": 2}).warning("poured", extra={"sugar": 3})
        print("to the other stream", file=sys.stderr)

    with caplog.at_level("INFO", "hark.flow_runs"):
        f()
    poured = next(record for record in caplog.records if record.message == "poured")
    assert (poured.name, poured.flow_name) == ("hark.flow_runs.tea", "lines")  # type: ignore[attr-defined]
    assert (poured.shop, poured.cup, poured.sugar) == (1, 2, 3)  # type: ignore[attr-defined]
    assert "to the other stream" in caplog.messages


async def test_what_is_not_for_the_service_is_not_kept_with_the_run(session: Session) -> None:
    """``send_to_api`` in ``extra`` says so."""

    @flow
    async def f() -> str | None:
        get_run_logger().info("kept")
        get_run_logger().info("not kept", extra={"send_to_api": False})
        return runtime.flow_run.id

    run_id = await f()
    assert run_id is not None
    async with get_client() as client:
        lines = await client.read_logs(LogFilter(flow_run_id={"any_": [run_id]}))
    assert [line.message for line in lines if "kept" in line.message] == ["kept"]


def test_a_source_that_is_none_is_a_type_error() -> None:
    """Of flows to load."""
    with pytest.raises(TypeError, match="Unsupported source type 'int'"):
        Flow.from_source(3, "f.py:f")


def test_a_flow_is_named_by_dots_alone_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``module.function``."""
    (tmp_path / "dotty_flows.py").write_text("from hark import flow\n@flow\ndef dots(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_flow_from_entrypoint("dotty_flows.dots").name == "dots"


def test_outside_of_runs_it_is_due_now() -> None:
    """Where nothing else is known."""
    assert runtime.flow_run.scheduled_start_time is not None
    assert runtime.flow_run.id is None
