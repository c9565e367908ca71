"""Ends for the task runs whose process is gone: of a flow run that was ended while nobody was executing it, or taken up again.

Each gets an event: CRASHED, or CANCELLED where the flow run was. Of a run that goes on, a call that had not begun is CANCELLED, too;
its calls are made again, as other task runs, and those call the hooks. One whose process lives all the same and finishes it
later says so behind that, and its last event is what counts.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ...bus.event import Event, Recorded, parse_time, readable
from ...bus.subject import completed_subject, is_for_resuming, task_run_subject
from ...errors import EventInvalid, EventTooLarge
from ...vocabulary import TERMINAL, StateType, derived_id
from ..code.named_code import MARK
from .run import SOURCE

if TYPE_CHECKING:
    from ...bus import Bus
    from .run import FlowRun

__all__ = ["MADE_AGAIN", "WITH_RUN", "end_open_tasks", "leaves_tasks_open"]

WITH_RUN = "ended_with_run"
"""The member of the data of such an end that tells it from one that the task itself came to."""

MADE_AGAIN = "made_again"
"""Beside it, where its flow run goes on, and makes the call again as another task run."""

log = logging.getLogger("hark.engine")

_NEEDED = ("flow_run", "flow", "deployment", "task", "run", "state", "call", MARK)
"""Without the tags, and the task runs before it, of which there may be any number."""
_LEFT_OUT = ("result", "retry_at", "state", "previous", "run")


def leaves_tasks_open(run: FlowRun, previous: object) -> bool:
    """Return whether ``run`` was just taken up again, so that task runs of an attempt before may be without an end.

    Args:
        previous: the type of the state before.
    """
    if run.attempt < 2:
        return False
    if run.state_type is StateType.PENDING:
        return previous == StateType.SCHEDULED
    # Its worker was lost. In a retry of the flow itself its process is alive.
    is_running = run.state_type is StateType.RUNNING and run.state_name != "Retrying"
    return is_running and previous == StateType.RUNNING


async def end_open_tasks(bus: Bus, run: FlowRun) -> int:
    """End the task runs that have none, and had begun before ``run`` came to be in its state: its end, or that it was taken up.

    Returns how many. Doing it again ends no other. What a run that goes on takes up under the same id, because it was between
    two tries, is left to it.

    Raises:
        BusUnavailable: the broker did not answer.
    """
    open_: dict[str, dict[str, Any]] = {}
    async with bus.log.read([task_run_subject(run.id), completed_subject(run.id)]) as batches:
        async for batch in batches:
            for recorded in readable(batch.records):
                data = _transition_in(recorded, run)
                if data is None:
                    continue
                task_run_id = data["run"]["id"]
                if data["state"]["type"] in TERMINAL or (not run.is_final and _goes_on(data)):
                    open_.pop(task_run_id, None)
                elif recorded.seq < run.seq or task_run_id in open_:
                    open_[task_run_id] = data
    for data in open_.values():
        await _append_end(bus, run, data)
    return len(open_)


async def _append_end(bus: Bus, run: FlowRun, data: dict[str, Any]) -> None:
    try:
        await bus.log.append(_end_of(run, data))
    except EventTooLarge:
        # What it began with was as large as an event may be, which is no reason to have no end.
        needed = {name: data[name] for name in _NEEDED if name in data}
        try:
            await bus.log.append(_end_of(run, needed))
        except EventTooLarge as exc:
            # Nor for the others to have none.
            log.error("open_tasks.too_large", extra={"run_id": run.id, "error": str(exc)})


def _goes_on(data: dict[str, Any]) -> bool:
    tries = data["run"].get("attempt")
    return is_for_resuming(
        data["state"]["type"], str(data["state"].get("name")), tries if isinstance(tries, int) else 0
    )


def _transition_in(recorded: Recorded, run: FlowRun) -> dict[str, Any] | None:
    """Return the data of a transition of a task run of ``run``; None for a note, and for what is not of our making."""
    data: Any = recorded.event.data
    if not isinstance(data, dict) or isinstance(data.get("background"), dict):
        return None
    about, state, flow_run = data.get("run"), data.get("state"), data.get("flow_run")
    if not (isinstance(about, dict) and isinstance(state, dict) and isinstance(flow_run, dict)):
        return None
    id_, type_ = about.get("id"), state.get("type")
    if not (isinstance(id_, str) and isinstance(type_, str) and flow_run.get("id") == run.id):
        return None
    return data if type_ in StateType.__members__ else None


def _end_of(run: FlowRun, data: dict[str, Any]) -> Event:
    ended_at = run.ended_at if run.is_final else run.updated_at
    about = {**data["run"], "duration_s": _between(data["run"].get("started_at"), ended_at)}
    type_ = StateType.CRASHED
    if run.is_final:
        message = f"Its flow run ended as {run.state_name}, and no process was at work on it"
        if run.state_type is StateType.CANCELLED:
            type_ = StateType.CANCELLED
    else:
        again = f"attempt {run.attempt} of its flow run makes the call again"
        message = f"No process was at work on it any more; {again}"
        if data["state"]["type"] != StateType.RUNNING:
            type_, message = StateType.CANCELLED, f"It had not begun; {again}"
    return Event(
        type=f"task-run.{type_.lower()}",
        source=SOURCE,
        id=derived_id("open-task", run.id, about["id"], str(run.seq)),
        subject=f"task-run/{about['id']}",
        correlationid=run.correlationid or run.id,
        causationid=run.event_id or run.causationid,
        causaldepth=run.causaldepth,
        data={
            **{name: value for name, value in data.items() if name not in _LEFT_OUT},
            "run": about,
            "state": {"type": type_.value, "name": type_.value.title(), "message": message},
            "previous": data["state"]["type"],
            WITH_RUN: True,
            **({} if run.is_final else {MADE_AGAIN: True}),
        },
    )


def _between(started_at: object, ended_at: datetime | None) -> float | None:
    if not isinstance(started_at, str) or ended_at is None:
        return None
    try:
        return max(0.0, (ended_at - parse_time(started_at)).total_seconds())
    except EventInvalid:  # no time
        return None
