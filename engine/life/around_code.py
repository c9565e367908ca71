"""What surrounds the author's code of a flow run wherever it is called: its function, and its hooks."""

from __future__ import annotations

from contextlib import ExitStack

from ...bus.emit import CauseAttrs, current_cause
from ..context import FlowRunContext, current_run, current_tags
from ..logging import printing

__all__ = ["around_code"]


def around_code(context: FlowRunContext) -> ExitStack:
    """Return, entered, the run the code is in, its tags, the cause of what it emits, its span, and what becomes of its prints."""
    stack, run = ExitStack(), context.flow_run
    token = current_run.set(context)
    stack.callback(current_run.reset, token)
    tags = current_tags.set(current_tags.get() | frozenset(run.tags))
    stack.callback(current_tags.reset, tags)
    if context.tracker is not None:
        cause = CauseAttrs(
            correlationid=run.correlationid or run.id,
            causationid=run.event_id or run.causationid,
            causaldepth=run.causaldepth + 1,
            owner=context.tracker.owner,
            traceparent=run.traceparent,
        )
        causes = current_cause.set(cause)
        stack.callback(current_cause.reset, causes)
    if context.span is not None:
        stack.enter_context(context.span.attached())
    stack.enter_context(printing(context.log_prints))
    return stack
