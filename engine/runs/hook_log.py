"""What the log says of hooks: which ends of runs still owe theirs, who has begun to call them, and that they have run.

An end that owes hooks says so in its ``details``: ``hooks: here`` when whoever wrote it holds the run's work message and
calls them itself (if it dies, the message comes again, to a successor), ``hooks: anyone`` when nobody does, so that the
dispatcher has a worker see to it. That they have run is an event, ``hark.hooks.ran``; a successor says ``hark.hooks.began``
before each of its tries, so that a hook that kills its process is not called for ever. So a hook is called at least
once for each state, and again only when the process died before it could say so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

import orjson

from ...bus.event import Event, readable
from ...bus.subject import hooks_filter
from ...vocabulary import JsonObject, JsonValue, new_id
from ..states import State, StateType
from .run import SOURCE, FlowRun
from .task_run import TaskRun, stamp

if TYPE_CHECKING:
    from ...bus import Bus

__all__ = [
    "ANYONE",
    "DETAIL",
    "HERE",
    "ROLLBACK",
    "TRIES",
    "HookLog",
    "hooked_payload",
    "is_from_outside",
    "is_owed",
    "owing",
]

log = logging.getLogger(__name__)

DETAIL = "hooks"
HERE, ANYONE = "here", "anyone"
ROLLBACK = "rollback"
"""``rollback: owed`` in an end: whoever wrote it had not seen the run's code leave its transactions. So it is of ``anyone``."""
TRIES = 3
"""How often successors begin the hooks of one end before they give up: a hook that ends its process every time."""

Word: TypeAlias = Literal["began", "ran", "abandoned"]


def owing(state: State, whom: str, *, is_unwound: bool = True) -> State:
    """Return an end that says who is to call its hooks, and whether the run's code has yet to leave its transactions."""
    if not state.type.is_terminal or DETAIL in state.details:
        return state
    more: JsonObject = {} if is_unwound else {ROLLBACK: "owed"}
    return state.replace(details={**state.details, DETAIL: whom, **more})


def is_owed(run: FlowRun, whom: str) -> bool:
    """Return whether the run's end says that ``whom`` is to call its hooks; whether they have run, ``HookLog`` knows."""
    return run.is_final and run.state_details.get(DETAIL) == whom


def is_from_outside(run: FlowRun) -> bool:
    """Return whether the run's end was written by one who was not executing it: its process is gone, or it had none."""
    return is_owed(run, ANYONE) or (run.is_final and run.state_details.get(ROLLBACK) == "owed")


class HookLog:
    """Reads and writes what became of hooks. Stateless."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def is_settled(self, run: FlowRun) -> bool:
        """Whether the hooks of the run's end have run, or have been given up."""
        return any(_word(note) in ("ran", "abandoned") for note in await self._notes(run))

    async def words(self, run: FlowRun) -> dict[str, str | None]:
        """Return what was noted of the hooks of the run's end, by ``Word``, and why where that was said."""
        return {str(_word(note)): _why(note) for note in await self._notes(run)}

    async def is_being_undone(self, run: FlowRun) -> bool:
        """Whether somebody has begun to undo what the run had begun, and nobody has come to the end of that."""
        notes = list(await self._notes(run))
        ended = any(_word(note) in ("ran", "abandoned") for note in notes)
        return not ended and any(note.get("undoes") for note in notes)

    async def begin(self, run: FlowRun, *, undoes: bool = False) -> int:
        """Note that we are about to call the hooks of the run's end; return which try that is, 0 if nothing is left to do.

        Args:
            undoes: what the run had begun is undone first.
        """
        words = [_word(note) for note in await self._notes(run)]
        if "ran" in words or "abandoned" in words:
            return 0
        if (tries := words.count("began")) >= TRIES:
            why = f"{TRIES} processes in a row died before these hooks had run"
            log.error("hooks.abandoned", extra={"run_id": run.id, "state": run.state_name, "why": why})
            await self.note(run, "abandoned", why=why)
            return 0
        await self.note(run, "began", undoes=undoes)
        return tries + 1

    async def note(self, run: FlowRun, word: Word, *, why: str | None = None, undoes: bool = False) -> None:
        """Append what became of the hooks of the run's end."""
        data: JsonObject = {
            "run": {"id": run.id, "name": run.name}, "flow": {"name": run.flow_name}, "seq": run.seq,
            "state": {"type": run.state_type.value, "name": run.state_name},
        }  # fmt: skip
        if why is not None:
            data["why"] = why
        if undoes:
            data["undoes"] = True
        await self._bus.log.append(
            Event(
                type=f"hark.hooks.{word}", source=SOURCE, id=new_id(), subject=f"flow-run/{run.id}", data=data,
                correlationid=run.correlationid or run.id, causationid=run.causationid, causaldepth=run.causaldepth,
            )
        )  # fmt: skip

    async def note_call(self, task_run_id: str) -> None:
        """Append that the hooks of the end of a task run of ``delay`` have run."""
        data: JsonObject = {"run": {"id": task_run_id}, "task_run": {"id": task_run_id}, "call": task_run_id}
        await self._bus.log.append(
            Event(
                type="hark.hooks.ran",
                source=SOURCE,
                id=new_id(),
                subject=f"flow-run/{task_run_id}",
                data=data,
            )
        )

    async def abandon_task(self, run: FlowRun, task_run_id: str, *, name: str, why: str) -> None:
        """Append that the hooks of the end of a task run of a flow run are given up."""
        data: JsonObject = {
            "run": {"id": run.id, "name": run.name}, "flow": {"name": run.flow_name},
            "task_run": {"id": task_run_id, "name": name}, "why": why,
        }  # fmt: skip
        await self._bus.log.append(
            Event(
                type="hark.hooks.abandoned", source=SOURCE, id=new_id(), subject=f"flow-run/{run.id}", data=data,
                correlationid=run.correlationid or run.id, causationid=run.causationid, causaldepth=run.causaldepth,
            )
        )  # fmt: skip

    async def task_runs(self, run_id: str) -> set[str]:
        """Return the ids of the task runs of a run whose hooks have run for their end, or are given up; the keys of completed calls."""
        found: set[str] = set()
        for note in await self._read(run_id):
            if isinstance(about := note.get("task_run"), dict):
                found |= {str(about.get("id")), str(note.get("call"))}
        return found

    async def calls(self, run_id: str, *, after: int = 0, before: int | None = None) -> set[str]:
        """Return the keys of the task calls of a run whose ``on_completion`` hooks have run, by what was noted in between."""
        return {
            call
            for note in await self._read(run_id, after=after, before=before)
            if isinstance(call := note.get("call"), str)
        }

    async def _notes(self, run: FlowRun) -> Iterable[JsonObject]:
        # Those of another end, before a retry, say nothing of this one; and there may be one of each task before it.
        return [note for note in await self._read(run.id, after=run.seq) if note.get("seq") == run.seq]

    async def _read(self, run_id: str, *, after: int = 0, before: int | None = None) -> list[JsonObject]:
        found: list[JsonObject] = []
        async with self._bus.log.read([hooks_filter(run_id)], after=after) as batches:
            async for batch in batches:
                for recorded in readable(batch.records):
                    data = recorded.event.data
                    if isinstance(data, dict) and (before is None or recorded.seq < before):
                        found.append({**data, "type": recorded.event.type})
        return found


def hooked_payload(run: TaskRun, *, run_id: str, event_id: str, is_keyed: bool = True) -> bytes:
    """Return the event that says that the hooks of a task call have run for its end; of one that completed, by its key."""
    # By its state, not by what it has written last: a call whose result was recorded has written nothing.
    is_completed = run.state is not None and run.state.type is StateType.COMPLETED
    key = {"call": run.call} if is_completed and is_keyed else {}
    return orjson.dumps(
        {
            "specversion": "1.0", "id": event_id, "source": SOURCE, "type": "hark.hooks.ran",
            "time": stamp(time.time_ns()), "subject": f"flow-run/{run_id}",
            "data": {"run": {"id": run_id}, "task_run": {"id": run.id, "name": run.name}, **key},
        }
    )  # fmt: skip


def _why(note: JsonObject) -> str | None:
    why = note.get("why")
    return why if isinstance(why, str) else None


def _word(note: JsonObject) -> JsonValue:
    type_ = note.get("type")
    return type_.rpartition(".")[2] if isinstance(type_, str) and "call" not in note else None
