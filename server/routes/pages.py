"""``/runs/{id}`` and ``/firings/{id}``: what stands behind a line of the status page, and what can be done about it.

Plain forms, no script: a browser that may read the page may press its buttons, and those of other sites are refused
as everywhere.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from ...automations.acting.waiting import waiting_in
from ...engine.runs.run import Cause
from ...errors import DefinitionError, UnknownName
from ...vocabulary import FlowRunId
from ..body import read_body
from ..context import context_of
from ..page import page_of

router = APIRouter(include_in_schema=False)

_LINES = 500
"""So many of a run's latest log lines are on its page; all of them are in ``/api/flow-runs/{id}/logs``."""
_TASKS = 200
"""So many of its tasks, the first; all are in ``/api/flow-runs/{id}/task-runs``."""
_OVER = ("FAILED", "CRASHED", "CANCELLED")


@router.get("/runs/{run_id}")
async def show_run(request: Request, run_id: str) -> Response:
    """Show one run: its state, tasks, log, what led to it; with a button to retry or cancel it."""
    context = context_of(request)
    found = await context.queries.flow_run(run_id)
    tasks = await context.queries.task_runs(run_id, limit=_TASKS)
    lines, is_whole = await context.bus.run_logs.tail(FlowRunId(run_id), _LINES)
    return page_of(
        "run.html", run=found.run, data=found.data, transitions=found.transitions, children=found.children,
        causes=found.causes, tasks=tasks.items, more_tasks=tasks.next_cursor is not None,
        lines=lines, is_whole=is_whole,
        can_retry=found.run.state_type in _OVER,
        can_cancel=found.run.state_type not in (*_OVER, "COMPLETED", "CANCELLING"),
        now=context.clock.now(),
    )  # fmt: skip


@router.post("/runs/{run_id}/{action}")
async def steer_run(request: Request, run_id: str, action: str) -> Response:
    """Retry or cancel a run, and show it again."""
    context = context_of(request)
    cause = Cause(kind="api", name="page")
    if action == "retry":
        await context.control.retry(FlowRunId(run_id), reason="asked for on its page", cause=cause)
    elif action == "cancel":
        await context.control.cancel(FlowRunId(run_id), reason="asked for on its page", cause=cause)
    else:
        raise UnknownName("action", action, known=["retry", "cancel"])
    await context.until_readable(await context.bus.log.head())
    return RedirectResponse(f"/runs/{run_id}", 303)


@router.get("/firings/{firing_id}")
async def show_firing(request: Request, firing_id: str) -> Response:
    """Show one decision of a rule: the events that led to it, what became of its actions, the runs it started."""
    context = context_of(request)
    found, now = await context.queries.firing(firing_id), context.clock.now()
    return page_of(
        "firing.html", firing=found.firing, event=found.event, causes=found.causes, actions=found.actions,
        runs=found.runs, now=now,
        waiting=waiting_in(
            found.event.data, decided_at=found.event.time, now=now,
            begun={int(action.key.rpartition("/")[2]) for action in found.actions},
        ),
    )  # fmt: skip


@router.post("/firings/{firing_id}/redrive")
async def redrive(request: Request, firing_id: str) -> Response:
    """Try a dead letter of this firing again, and show it."""
    context = context_of(request)
    form = parse_qs((await read_body(request, limit_bytes=4096)).decode(errors="replace"))
    letter = form.get("letter", [""])[0]
    if not letter.startswith(f"{firing_id}/"):
        raise DefinitionError(f"{letter!r} is no action of this firing")
    await context.dead_letters.redrive(letter)
    await context.until_readable(await context.bus.log.head())
    return RedirectResponse(f"/firings/{firing_id}", 303)
