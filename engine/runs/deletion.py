"""Deleting a run that is over: an event that says so. The log keeps what happened; nobody is shown it any more.

The event stands outside the run's own subjects (``hark.ev.hark.flow-run.deleted.<run_id>``), so it is no state: who folds
transitions (the dispatcher, rules, waits) does not see it. It is guarded by the run's last transition all the same, so a
run that is retried at that moment is not deleted. A transition behind it, which only a race could bring, shows the run again.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson

from ...bus import Bus
from ...bus.event import Event, readable
from ...bus.subject import RUN_DELETED, completed_subject, deleted_subject, flow_run_filter
from ...errors import BusUnavailable, GuardFailed, RefusedError, RunLost, UnknownName
from ...vocabulary import FlowRunId, JsonObject
from .run import Cause, FlowRun
from .run_log import MAX_TRIES, RunLog

__all__ = ["delete_run", "present_run"]

log = logging.getLogger(__name__)


async def present_run(bus: Bus, runs: RunLog, run_id: FlowRunId) -> FlowRun:
    """Return a run as it is now.

    Raises:
        UnknownName: there is none, or it has been deleted.
    """
    run = await runs.get(run_id)
    if run is None or (run.is_final and await _is_deleted(bus, run)):
        raise UnknownName("flow run", run_id)
    return run


async def _is_deleted(bus: Bus, run: FlowRun) -> bool:
    said = await bus.log.last(deleted_subject(run.id))
    return said is not None and said.seq > run.seq


async def delete_run(
    bus: Bus, runs: RunLog, run_id: FlowRunId, *, reason: str = "", cause: Cause | None = None
) -> FlowRun:
    """Hide a run that is over, with its task runs, logs and artifacts, and return it as it was.

    Its log lines are removed. So are the large results that only this run refers to, unless another run began it: that one
    reads them when it is retried. What is cached for other runs stays.

    Raises:
        UnknownName: there is no such run (any more).
        RefusedError: it is not over.
    """
    for _ in range(MAX_TRIES):
        run = await present_run(bus, runs, run_id)
        if not run.is_final:
            raise RefusedError(
                f"run {run_id} is {run.state_name}; only what is over can be deleted",
                hint=f"cancel it first: hark runs cancel {run_id}",
            )
        data: JsonObject = {
            "flow": {"name": run.flow_name}, "run": {"id": run.id, "name": run.name},
            "state": {"type": run.state_type, "name": run.state_name}, "reason": reason or None,
            "by": cause.to_json() if cause else None,
        }  # fmt: skip
        event = Event(
            type=RUN_DELETED, source="/hark/engine", subject=f"flow-run/{run.id}", data=data,
            correlationid=run.correlationid,
        )  # fmt: skip
        try:
            await bus.log.append(event, after=run.seq, guard=flow_run_filter(run.id))
        except GuardFailed:
            continue
        await _free(bus, run)
        return run
    raise RunLost(run_id, reason=f"{MAX_TRIES} others wrote first, one after the other")


async def _free(bus: Bus, run: FlowRun) -> None:
    """Remove what is stored for the run alone. What a broken connection leaves goes by its age, as it would have anyway."""
    try:
        await bus.run_logs.delete(run.id)
        if run.parent is None:
            for name in await _own_results(bus, run.id):
                await bus.objects.delete(name)
    except BusUnavailable as exc:
        log.warning("run.not_all_freed", extra={"run_id": run.id, "error": str(exc)})


async def _own_results(bus: Bus, run_id: str) -> list[str]:
    """Return the names in the object store of the results the run and its tasks recorded under the run's id."""
    found: set[str] = set()
    # Of a hundred thousand task runs only what may name one is taken apart: nobody else is served meanwhile.
    begin = f"results/{run_id}/"
    mark = begin.encode()
    async with bus.log.read([flow_run_filter(run_id), completed_subject(run_id)]) as batches:
        async for batch in batches:
            for record in readable(record for record in batch.records if mark in record.raw):
                name = _object_in(record.raw)
                if name is not None and name.startswith(begin):
                    found.add(name)
    return sorted(found)


def _object_in(raw: bytes) -> str | None:
    event: Any = orjson.loads(raw)
    data = event.get("data")
    result = data.get("result") if isinstance(data, dict) else None
    name = result.get("object") if isinstance(result, dict) else None
    return name if isinstance(name, str) else None
