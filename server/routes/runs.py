"""``/api/flow-runs``, ``/api/task-runs``: looking at runs and steering them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query, Request, Response

from ...bus.run_logs import LogPlace
from ...engine.dispatching.control import Control
from ...engine.runs.hook_account import account_of_hooks
from ...engine.runs.run import Cause, FlowRun
from ...errors import HarkError, UnknownName
from ...storage import FlowRunRow, RunFilter
from ...storage.row import decode_cursor, encode_cursor
from ...vocabulary import FlowRunId
from ..answer import answer, moment, page
from ..bodies import ReasonBody, ResumeBody, RetryBody, SetStateBody
from ..context import ServerContext, context_of
from ..openapi import REFUSED
from ..taken import Taken

router = APIRouter(tags=["runs"])

Reason = Annotated[ReasonBody, Depends(Taken(ReasonBody))]


def run_json(run: FlowRun) -> dict[str, Any]:
    """Return a run as the log tells it, in the words of the listing."""
    duration = (run.ended_at - run.started_at).total_seconds() if run.ended_at and run.started_at else None
    return {
        "id": run.id, "seq": run.seq, "name": run.name, "flow_name": run.flow_name, "flow_version": run.flow_version,
        "deployment": run.deployment, "pool": run.pool, "queue": run.queue, "parent": run.parent, "tags": run.tags,
        "cause_kind": run.cause.kind if run.cause else None, "cause_name": run.cause.name if run.cause else None,
        "cause_event": run.cause.event if run.cause else None, "state_type": run.state_type,
        "state_name": run.state_name, "state_message": run.state_message, "attempt": run.attempt,
        "scheduled_at": run.scheduled_at, "started_at": run.started_at, "ended_at": run.ended_at,
        "duration_s": duration, "updated_at": run.updated_at, "correlationid": run.correlationid,
        "causationid": run.causationid, "parameters": run.parameters, "entrypoint": run.entrypoint,
        "is_final": run.is_final,
    }  # fmt: skip


@router.get("/api/flow-runs")
async def list_flow_runs(
    request: Request,
    state: Annotated[
        list[str] | None, Query(description="type, name or event word: FAILED, timed-out")
    ] = None,
    flow: str | None = None,
    deployment: str | None = None,
    pool: str | None = None,
    tag: Annotated[list[str] | None, Query()] = None,
    parent: str | None = None,
    top_level: bool = False,
    cause: str | None = None,
    id_prefix: str | None = None,
    text: str | None = None,
    since: str | None = None,
    until: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List flow runs, the latest due first."""
    where = RunFilter(
        states=tuple(state or ()), flow=flow, deployment=deployment, pool=pool, tags=tuple(tag or ()), parent=parent,
        top_level=top_level, cause=cause, id_prefix=id_prefix, text=text, since=moment(since, name="since"),
        until=moment(until, name="until"),
    )  # fmt: skip
    return page(await context_of(request).queries.flow_runs(where, cursor=cursor, limit=limit))


async def _known(context: ServerContext, run_id: str) -> FlowRun:
    """Return a run from the log: always as it is now, however far behind the read model is."""
    return await context.control.present(FlowRunId(run_id))


@router.get("/api/flow-runs/{run_id}")
async def show_flow_run(request: Request, run_id: str) -> Response:
    """Show one run: its state, transitions, subflows, and what led to it."""
    context = context_of(request)
    run = await _known(context, run_id)
    out = run_json(run)
    # From the log, as the state is: the read model may be a moment behind.
    out["result"] = run.result
    out["hooks"] = await account_of_hooks(context.bus, run)
    try:
        detail = await context.queries.flow_run(run_id)
    except UnknownName:
        return answer(out)  # so new that the read model has not seen it
    out["transitions"] = [
        {"seq": e.seq, "type": e.type, "time": e.time, "state": _member(e.data, "state")}
        for e in detail.transitions
    ]
    out["children"] = [_brief(child) for child in detail.children]
    out["task_states"] = dict(detail.task_states)
    out["caused_by"] = [
        {"id": e.id, "type": e.type, "subject": e.subject, "time": e.time} for e in detail.causes
    ]
    return answer(out)


def _member(data: object, name: str) -> object:
    return data.get(name) if isinstance(data, dict) else None


def _brief(run: FlowRunRow) -> dict[str, Any]:
    return {"id": run.id, "name": run.name, "flow_name": run.flow_name, "state_name": run.state_name}


async def _first_of(*waits: Callable[[], Awaitable[object]], within_s: float) -> None:
    """Return once one of ``waits`` is over, or after so long. What one of them raises is raised."""
    failed: list[HarkError] = []
    async with anyio.create_task_group() as tg:

        async def one(wait: Callable[[], Awaitable[object]]) -> None:
            try:
                await wait()
            except HarkError as exc:
                failed.append(exc)
            tg.cancel_scope.cancel("one is over")

        tg.cancel_scope.deadline = anyio.current_time() + within_s
        for wait in waits:
            tg.start_soon(one, wait)
    if failed:
        raise failed[0]


@router.get("/api/flow-runs/{run_id}/logs")
async def show_logs(
    request: Request,
    run_id: str,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=20_000)] = 1000,
    wait_s: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            description="while the run goes on, wait so long for lines; `next_cursor` is null at its end",
        ),
    ] = 0,
) -> Response:
    """Return the log lines of a run, oldest first. With `wait_s`, ask on with `next_cursor` to follow it."""
    context = context_of(request)
    logs, id_ = context.bus.run_logs, FlowRunId(run_id)
    # Looked at before its log is: what a run has said is stored before its end is.
    run = await _known(context, run_id)
    begin = LogPlace(*decode_cursor(cursor, int, int)) if cursor is not None else LogPlace()
    shown = await logs.page(id_, begin=begin, limit=limit)
    if wait_s and not shown.lines and not run.is_final:

        async def end() -> None:
            await context.control.wait(id_, timeout_s=wait_s + 5)

        await _first_of(lambda: logs.wait(id_, begin=begin), end, context.closing.wait, within_s=wait_s)
        run = await _known(context, run_id)
        shown = await logs.page(id_, begin=begin, limit=limit)
    goes_on = shown.more or (wait_s > 0 and not run.is_final)
    next_cursor = encode_cursor(shown.end.seq, shown.end.taken) if goes_on else None
    return answer({"items": shown.lines, "next_cursor": next_cursor})


@router.get("/api/flow-runs/{run_id}/task-runs")
async def show_task_runs(
    request: Request,
    run_id: str,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> Response:
    """Return the task runs of a flow run in the order of their calls."""
    return page(await context_of(request).queries.task_runs(run_id, cursor=cursor, limit=limit))


@router.get("/api/task-runs")
async def list_task_runs(
    request: Request,
    state: Annotated[
        list[str] | None, Query(description="type, name or event word: FAILED, timed-out")
    ] = None,
    task: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List task runs outside any flow (background tasks, mostly), those that changed last first."""
    queries = context_of(request).queries
    return page(await queries.tasks_alone(states=state or (), task=task, cursor=cursor, limit=limit))


@router.get("/api/task-runs/{run_id}")
async def show_task_run(request: Request, run_id: str) -> Response:
    """Show one task run."""
    return answer(await context_of(request).queries.task_run(run_id))


@router.get("/api/flow-runs/{run_id}/wait")
async def wait_for_flow_run(
    request: Request, run_id: str, timeout_s: Annotated[float, Query(gt=0, le=60)] = 25
) -> Response:
    """Answer once the run is over, or as it is after `timeout_s` seconds (`is_final` tells)."""
    context = context_of(request)
    await _known(context, run_id)

    async def end() -> None:
        await context.control.wait(FlowRunId(run_id), timeout_s=timeout_s + 5)

    await _first_of(end, context.closing.wait, within_s=timeout_s)
    run = await _known(context, run_id)
    if run.is_final:  # who asks next for its tasks finds them all
        await context.until_readable(run.seq)
    return answer(run_json(run))


@router.delete("/api/flow-runs/{run_id}", responses=REFUSED)
async def delete_flow_run(request: Request, run_id: str, reason: str = "") -> Response:
    """Delete a run that is over, with its task runs, logs and artifacts: they are listed no more. The events stay."""
    run = await context_of(request).control.delete(FlowRunId(run_id), reason=reason, cause=Cause(kind="api"))
    return answer({"id": run.id, "name": run.name, "deleted": True})


@router.post("/api/flow-runs/{run_id}/cancel", responses=REFUSED)
async def cancel_flow_run(request: Request, run_id: str, body: Reason) -> Response:
    """Cancel a run: at once where nothing works on it, else as soon as its worker has heard of it."""
    control = await _control(request, run_id)
    run = await control.cancel(FlowRunId(run_id), reason=body.reason or "", cause=Cause(kind="api"))
    return answer(run_json(run))


@router.post("/api/flow-runs/{run_id}/suspend", responses=REFUSED)
async def suspend_flow_run(request: Request, run_id: str, body: Reason) -> Response:
    """Stop a run and free its worker; `resume` goes on behind its last finished task."""
    control = await _control(request, run_id)
    run = await control.suspend(FlowRunId(run_id), reason=body.reason or "", cause=Cause(kind="api"))
    return answer(run_json(run))


@router.post("/api/flow-runs/{run_id}/resume", responses=REFUSED)
async def resume_flow_run(
    request: Request, run_id: str, body: Annotated[ResumeBody, Depends(Taken(ResumeBody))]
) -> Response:
    """Let a paused or suspended run go on, with the input it waits for."""
    control = await _control(request, run_id)
    run = await control.resume(FlowRunId(run_id), run_input=body.input, cause=Cause(kind="api"))
    return answer(run_json(run))


@router.post("/api/flow-runs/{run_id}/retry", responses=REFUSED)
async def retry_flow_run(
    request: Request, run_id: str, body: Annotated[RetryBody, Depends(Taken(RetryBody))]
) -> Response:
    """Run again what is over, from the task that failed; with `from_start` all of it."""
    control = await _control(request, run_id)
    run = await control.retry(
        FlowRunId(run_id), from_start=body.from_start, reason=body.reason or "", cause=Cause(kind="api")
    )
    return answer(run_json(run))


@router.post("/api/flow-runs/{run_id}/set-state", responses=REFUSED)
async def set_flow_run_state(
    request: Request, run_id: str, body: Annotated[SetStateBody, Depends(Taken(SetStateBody))]
) -> Response:
    """Put a run into a state, where the table of moves allows it."""
    control = await _control(request, run_id)
    run = await control.set_state(
        FlowRunId(run_id), body.type, name=body.name or "", message=body.message or None,
        cause=Cause(kind="api"),
    )  # fmt: skip
    return answer(run_json(run))


@router.post("/api/flow-runs/{run_id}/{action}", include_in_schema=False)
async def steer_flow_run(request: Request, run_id: str, action: str) -> Response:
    """Say what can be done to a run, as this cannot."""
    await _known(context_of(request), run_id)
    raise UnknownName("action", action, known=["cancel", "suspend", "resume", "retry", "set-state"])


async def _control(request: Request, run_id: str) -> Control:
    """Return what steers runs. Raises ``UnknownName``: there is no such run."""
    context = context_of(request)
    await _known(context, run_id)
    return context.control
