"""Spans from emit through rule and action to run and task, with the real SDK; nothing of it where there is none."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

HEAD = """
import asyncio, json, sys
from pathlib import Path
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

def show():
    print(json.dumps([
        {
            "name": s.name, "kind": s.kind.name, "trace": s.context.trace_id, "id": s.context.span_id,
            "parent": s.parent.span_id if s.parent else None, "status": s.status.status_code.name,
            "why": s.status.description, "attributes": dict(s.attributes),
            "exceptions": [e.attributes["exception.type"] for e in s.events],
        }
        for s in exporter.get_finished_spans()
    ]))
"""
CHAIN = """
from hark import emit
from hark.testing import service

async def main():
    folder = Path.cwd()
    (folder / "flows.py").write_text(
        "from hark import emit, flow, task\\n"
        "from opentelemetry import trace\\n"
        "@task\\nasync def step(n):\\n    await emit('step.done', data={'n': n})\\n    return n\\n"
        "@flow\\nasync def handle(n: int):\\n"
        "    with trace.get_tracer('mine').start_as_current_span('by hand'):\\n"
        "        return await step(n)\\n"
    )
    (folder / "hark.yaml").write_text(
        "deployments: {handle: {flow: 'flows.py:handle'}}\\n"
        "automations: {paid: {on: order.paid, do: [{run: handle, parameters: {n: '{{ event.data.n }}'}}]}}\\n"
    )
    async with service(folder / "hark.yaml") as hark:
        with trace.get_tracer("mine").start_as_current_span("request"):
            event = await emit("order.paid", data={"n": 3})
        async with hark.bus.log.follow(["hark.ev.flow-run.completed.*"], after=0) as batches:
            async for batch in batches:
                if batch.records:
                    break
        done = batch.records[0].event
        assert done.traceparent.split("-")[1] == event.traceparent.split("-")[1], (done, event)

asyncio.run(main())
show()
"""
PLAIN = """
from hark import flow, task
from hark.testing import harness

@task(retries=1, retry_delay_seconds=0)
def broken(n):
    raise ValueError(f"no {n}")

@task
def fine():
    return 1

@flow
def inner():
    return fine.submit().result()

@flow
def outer():
    inner()
    return broken(7)

with harness():
    outer(return_state=True)
outer(return_state=True)
show()
"""


def spans_of(script: str, folder: Path) -> list[dict[str, Any]]:
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        if os.environ.get("CI"):
            pytest.fail("the OpenTelemetry SDK is missing: install the group `test`")
        pytest.skip("the OpenTelemetry SDK is not installed")
    file = folder / "script.py"
    file.write_text(HEAD + script)
    done = subprocess.run(
        [sys.executable, str(file)], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def line_of(spans: list[dict[str, Any]], last: dict[str, Any]) -> list[str]:
    """Return the names from the first span of a trace down to this one."""
    by_id = {span["id"]: span for span in spans}
    names: list[str] = []
    at: dict[str, Any] | None = last
    while at is not None:
        names.insert(0, at["name"])
        at = by_id.get(at["parent"])
    return names


def test_one_trace_leads_from_an_emit_through_the_rule_to_the_task_it_ran(tmp_path: Path) -> None:
    """Each span is the child of what it follows from, across the log, and spans made by hand stand among them."""
    spans = spans_of(CHAIN, tmp_path)
    (last,) = [span for span in spans if span["name"] == "emit step.done"]
    assert line_of(spans, last) == [
        "request", "emit order.paid", "rule paid", "action run", "flow handle", "by hand", "task step",
        "emit step.done",
    ]  # fmt: skip
    assert len({span["trace"] for span in spans}) == 1
    named = {span["name"]: span for span in spans}
    assert named["emit order.paid"]["kind"] == "PRODUCER"
    assert named["rule paid"]["kind"] == named["flow handle"]["kind"] == "CONSUMER"
    about = named["flow handle"]["attributes"]
    assert about["hark.deployment"] == "handle"
    assert about["hark.state"] == "Completed"
    assert named["rule paid"]["attributes"]["hark.automation"] == "paid"


def test_plain_calls_subflows_and_failures_are_spans_too(tmp_path: Path) -> None:
    """Tracked or not: tasks below their flow, subflows below theirs; what failed says why."""
    spans = spans_of(PLAIN, tmp_path)
    assert len(spans) == 8
    for half in (spans[:4], spans[4:]):
        lines = sorted("/".join(line_of(spans, span)) for span in half)
        assert lines == [
            "flow outer", "flow outer/flow inner", "flow outer/flow inner/task fine", "flow outer/task broken",
        ]  # fmt: skip
        named = {span["name"]: span for span in half}
        assert named["task fine"]["status"] == "UNSET"
        failed = named["task broken"]
        assert failed["status"] == named["flow outer"]["status"] == "ERROR"
        assert "ValueError: no 7" in failed["why"]
        assert failed["exceptions"] == ["ValueError"]
        assert failed["attributes"]["hark.task_run.tries"] == 2


def test_without_an_sdk_nothing_of_opentelemetry_is_loaded(tmp_path: Path) -> None:
    """Neither by flows nor by events; and no event has a traceparent."""
    script = dedent(
        """
        import sys
        from hark import emit, flow, task
        from hark.testing import harness

        @task
        def one():
            return emit("order.paid", wait=True)

        @flow
        def f():
            assert one().traceparent is None

        with harness():
            f()
        assert not [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
        """
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
