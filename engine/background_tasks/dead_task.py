"""Task runs of ``delay`` that were given up: dead letters, to be tried again or dropped by a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...bus.event import Event
from ...errors import GuardFailed, RefusedError, UnknownName
from ...vocabulary import JsonObject, StateType, derived_id
from ..runs.run import SOURCE
from ..states import Crashed, Scheduled
from .background import BackgroundLog, BackgroundRun, Ticket

if TYPE_CHECKING:
    from ...bus import Bus

__all__ = ["PREFIX", "DeadTasks", "give_up"]

PREFIX = "task-run/"
"""What the keys of these dead letters begin with; the run's id follows."""


async def give_up(bus: Bus, run: BackgroundRun, *, why: str, lost: int) -> None:
    """End a run as CRASHED, and lay it before a person. Raises ``GuardFailed`` if somebody wrote since it was read."""
    # The letter first: should we die in between, whoever comes next ends the run.
    await bus.log.append(_event("dead-lettered", run, error=f"task {run.task_name!r}: {why}", lost=lost))
    await BackgroundLog(bus).move(run, Crashed(message=why), lost=lost, token=run.token)


class DeadTasks:
    """The door to them. Stateless."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._runs = bus, BackgroundLog(bus)

    async def redrive(self, key: str) -> int:
        """Have the run served again, from its first try; return the sequence of ``action.redriven``.

        Raises:
            UnknownName: there is no such run. RefusedError: it is no dead letter.
        """
        run = await self._find(key)
        if run.last["background"].get("redriven"):
            seq = run.seq  # somebody died before it was on the queue: put it there now, once
        else:
            try:
                seq = await self._runs.move(run, Scheduled(message="tried again by a person"), redriven=True)
            except GuardFailed as exc:
                raise RefusedError(f"the dead letter {key!r} is being tried again at this moment") from exc
        token = derived_id("redriven", run.id, str(seq))
        await self._runs.push(Ticket(token, run.event), msg_id=f"{run.id}/redriven/{seq}")
        return (await self._bus.log.append(_event("redriven", run, error=None, lost=seq))).seq

    async def drop(self, key: str) -> int:
        """Give the run up for good; return the sequence of ``action.dropped``. Errors as ``redrive``."""
        run = await self._find(key)
        return (await self._bus.log.append(_event("dropped", run, error=run.message, lost=run.seq))).seq

    async def _find(self, key: str) -> BackgroundRun:
        run = await self._runs.get(key.removeprefix(PREFIX))
        if run is None:
            raise UnknownName("dead letter", key)
        waits_again = run.type is StateType.SCHEDULED and bool(run.last["background"].get("redriven"))
        if run.type is not StateType.CRASHED and not waits_again:
            raise RefusedError(f"the task run {run.id} is {run.state_name}, not a dead letter")
        return run


def _event(word: str, run: BackgroundRun, *, error: str | None, lost: int) -> Event:
    data: JsonObject = {
        "key": f"{PREFIX}{run.id}", "kind": "task", "task": {"name": run.task_name},
        "task_run": {"id": run.id, "name": run.name}, "flow_run": run.data["flow_run"], "attempt": lost,
    }  # fmt: skip
    if error is not None:
        data["error"] = error
    return Event(
        type=f"action.{word}", source=SOURCE, id=derived_id("dead-task", run.id, word, str(run.seq)),
        subject=f"action/{PREFIX}{run.id}", data=data, correlationid=run.event.correlationid,
        causationid=run.event.id, causaldepth=run.event.causaldepth + 1,
    )  # fmt: skip
