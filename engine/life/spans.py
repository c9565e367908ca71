"""Flow runs and task runs as spans (``hark.tracing``)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...tracing import Span, begin_span, current_traceparent, span
from ..runs.final_state import describe
from ..states import State

if TYPE_CHECKING:
    from ..calls.task_call import TaskCall
    from ..runs.run import FlowRun

__all__ = ["end_span", "flow_span", "task_span"]


def flow_span(flow: Any, run: FlowRun) -> Span | None:
    """Begin the span of a flow run: below what the run follows from, else below the span the code is in."""
    return begin_span(
        f"flow {flow.name}",
        kind="consumer" if run.traceparent is not None else "internal",
        parent=run.traceparent,
        attributes={
            "hark.flow.name": flow.name, "hark.flow_run.id": run.id, "hark.flow_run.name": run.name,
            "hark.flow_run.attempt": max(1, run.attempt), "hark.deployment": run.deployment, "hark.pool": run.pool,
        },
    )  # fmt: skip


def end_span(begun: Span | None, state: State | None, exc: BaseException | None = None) -> None:
    """End the span of a run, with the state it came to, or what interrupted it."""
    if begun is None:
        return
    if state is not None:
        _say(begun, state)
    elif exc is not None:
        begun.fail(describe(exc), exc)
    begun.end()


@contextmanager
def task_span(call: TaskCall) -> Generator[None]:
    """Be in the span of a task run, below the span the code is in, else below that of its flow run."""
    flow, run = call.flow, call.run
    above = flow.span.traceparent if flow is not None and flow.span is not None else None
    attributes = {
        "hark.task.name": call.task.name,
        "hark.task_run.id": run.id,
        "hark.task_run.name": run.name,
    }
    parent = above if current_traceparent() is None else None
    with span(f"task {call.task.name}", parent=parent, attributes=attributes) as begun:
        yield
        if begun is not None:
            begun.set("hark.task_run.tries", run.run_count)
            if run.state is not None:
                _say(begun, run.state)


def _say(begun: Span, state: State) -> None:
    begun.set("hark.state", state.name)
    if state.is_failed() or state.is_crashed():
        begun.fail(state.message, state.data)
