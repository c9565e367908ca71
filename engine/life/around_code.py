"""What surrounds the author's code of a flow run wherever it is called: its function, and its hooks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ...bus.emit import CauseAttrs, current_cause
from ..context import FlowRunContext, current_run, current_tags
from ..logging import printing

__all__ = ["around_code"]


@contextmanager
def around_code(context: FlowRunContext) -> Generator[None]:
    """Set, inside the block, the run the code is in, its tags, the cause of what it emits, its span, and what becomes of its prints."""
    # By hand, and what is seldom there apart: as a stack of callbacks it cost more than an empty flow's code.
    run = context.flow_run
    token = current_run.set(context)
    tags = current_tags.set(current_tags.get() | frozenset(run.tags))
    causes = None
    if context.tracker is not None:
        cause = CauseAttrs(
            correlationid=run.correlationid or run.id,
            causationid=run.event_id or run.causationid,
            causaldepth=run.causaldepth + 1,
            owner=context.tracker.owner,
            traceparent=run.traceparent,
        )
        causes = current_cause.set(cause)
    try:
        if context.span is None and not context.log_prints:
            yield
        else:
            with _traced(context), printing(context.log_prints):
                yield
    finally:
        if causes is not None:
            current_cause.reset(causes)
        current_tags.reset(tags)
        current_run.reset(token)


@contextmanager
def _traced(context: FlowRunContext) -> Generator[None]:
    if context.span is None:
        yield
        return
    with context.span.attached():
        yield
