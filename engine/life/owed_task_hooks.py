"""Hooks of tasks whose run was ended from outside: those that had come to an end, and whose process died before it had told.

The event of an end that has hooks says where its task is found. A task that was running when its process died has come to no
end: it is given one (``open_tasks.py``), and what stands before that says where the task is found.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from ...bus.subject import completed_subject, task_run_subject
from ...errors import MissingFlow
from ...vocabulary import StateType
from ..code.named_code import MARK, split_name
from ..context import FlowRunContext, TaskRunContext
from ..options.hooks import HOOK_OF_TYPE, Hook
from ..results import RecordedResult
from ..runs.final_state import describe
from ..runs.hook_log import HookLog
from ..runs.open_tasks import MADE_AGAIN, WITH_RUN
from ..runs.run_log import RunLog
from ..runs.task_run import TaskRun
from ..states import State
from .flow_steps import CallHooks, OnBus, Step

if TYPE_CHECKING:
    from ...bus import Bus
    from ..runs.run import FlowRun

__all__ = ["OwedCall", "owed_calls", "tell_owed", "untold_calls"]

log = logging.getLogger("hark.engine")


@dataclass(frozen=True, slots=True)
class OwedCall:
    """One transition of a task run, its end mostly, as the log has it."""

    data: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.data["run"]["id"])

    @property
    def name(self) -> str:
        return str(self.data["run"]["name"])

    @property
    def key(self) -> str:
        """What is the same of its call in each attempt that goes on from another."""
        return str(self.data["call"])

    @property
    def attempt(self) -> int:
        """That of the flow run in which it was made."""
        return int(self.data["flow_run"]["attempt"])

    @property
    def is_given(self) -> bool:
        """Whether it is an end that others gave the task, once its process was gone."""
        return bool(self.data.get(WITH_RUN))

    @property
    def is_replaceable(self) -> bool:
        """Whether it is such an end of a call that a later attempt was to make again. It may have died before it did."""
        return bool(self.data.get(MADE_AGAIN))

    @property
    def type(self) -> StateType:
        return StateType(self.data["state"]["type"])

    def enter(
        self, flow: FlowRunContext, *, at: str | None = None
    ) -> tuple[TaskRunContext, State, list[Hook]]:
        """Return the context of the task run, its state, and the hooks to call. What it was given is not recorded.

        Args:
            at: where the task is found, as ``module:name``; default: where its end says.
        Raises:
            Exception: its task cannot be found.
        """
        module, what = split_name(str(self.data[MARK]) if at is None else at)
        assert flow.tracker is not None, "hooks are owed of tracked runs"
        thing: Any = flow.tracker.find_module(module)
        for name in what.split("."):
            thing = thing.__dict__[name] if isinstance(thing, type) else getattr(thing, name)
        key = getattr(thing, "task_key", "")
        if module == "__main__":  # which has another name wherever else it is loaded
            key = key.replace(f"-{thing.fn.__module__}.", f"-{module}.", 1)
        if key != self.data["task"]["key"]:
            raise MissingFlow(f"task in {module}", what, known=[])
        about, state = self.data["run"], self.data["state"]
        task_run = TaskRun(
            self.id, self.name, thing, flow_run_id=flow.flow_run.id, parameters={},
            tags=frozenset(self.data.get("tags") or ()), upstream=tuple(self.data.get("upstream") or ()),
        )  # fmt: skip
        task_run.call, task_run.index, task_run.run_count = (
            self.data["call"] or "",
            about["index"],
            about["attempt"],
        )
        value: Any = None
        if self.type is StateType.COMPLETED:
            result = self.data.get("result") or {"inline": None, "format": "json"}
            value = RecordedResult(flow.tracker.session, result, run_id=self.id, key=task_run.call)
        ended = State(
            self.type, state["name"], state["message"], data=value, run_id=self.id, task_of=flow.flow_run.id
        )
        task_run.state = ended
        context = TaskRunContext(thing, task_run, {}, flow, flow.log_prints, flow)
        return context, ended, thing.hooks.get(HOOK_OF_TYPE[self.type], [])


async def owed_calls(bus: Bus, run: FlowRun) -> list[OwedCall]:
    """Return the ends of task runs of a run whose hooks have not run, in order.

    One that had not completed is run again by the next attempt, hooks and all: so only those of the last attempt count, and those
    that no later attempt came to. One that had is told of by the next attempt, if somebody has retried the run since.
    """
    now = await RunLog(bus).get(run.id)
    is_retried = now is not None and now.seq != run.seq
    noted = await HookLog(bus).task_runs(run.id)
    found: dict[str, OwedCall] = {}
    last_made: dict[str, int] = {}
    async for seq, one in _marked(bus, task_run_subject(run.id), completed_subject(run.id)):
        if not one.is_given:
            last_made[one.key] = max(one.attempt, last_made.get(one.key, 0))
        if not one.type.is_terminal:
            continue
        # What comes behind the end is of another attempt, or of a process that is not gone: they see to theirs.
        if seq > run.seq and not one.is_given:
            continue
        if one.is_given:
            is_owed = True
        elif one.type is StateType.COMPLETED:
            # Of a later attempt it is told by its key: the task run it has there is another.
            is_owed = not is_retried and one.key not in noted
        else:
            is_owed = one.attempt == run.attempt
        if is_owed and one.id not in noted:
            found[one.id] = one
    return [
        one for one in found.values() if not (one.is_replaceable and one.attempt < last_made.get(one.key, 0))
    ]


async def untold_calls(bus: Bus, run_id: str, *, before: int) -> list[OwedCall]:
    """Return the task runs of a run that had completed before it was retried from its start, and whose hooks have not run.

    No attempt comes to them again, as one that goes on from what was finished does.

    Args:
        before: the sequence of the retry.
    """
    hooks = HookLog(bus)
    noted = await hooks.task_runs(run_id) - await hooks.calls(run_id)
    noted |= await hooks.calls(run_id, before=before)
    ends = _marked(bus, completed_subject(run_id))
    # Those of one key are attempts at the same call: it is told of once.
    found = {
        one.key: one
        async for seq, one in ends
        if seq < before and one.type is StateType.COMPLETED and not {one.id, one.key} & noted
    }
    return list(found.values())


async def _marked(bus: Bus, *subjects: str) -> AsyncIterator[tuple[int, OwedCall]]:
    """Yield the transitions, with their sequences, that say where the hooks of their task are found."""
    async with bus.log.read(list(subjects)) as batches:
        async for batch in batches:
            for recorded in batch.records:
                if b'"hooks":"' not in recorded.raw:
                    continue
                data = orjson.loads(recorded.raw).get("data")
                if isinstance(data, dict) and isinstance(data.get(MARK), str):
                    yield recorded.seq, OwedCall(data)


def tell_owed(
    flow: FlowRunContext, calls: Iterable[OwedCall], *, is_anew: bool = False
) -> Generator[Step, Any, None]:
    """Call the hooks of ends of task runs, each in its own run, and note that they have run, or why they cannot.

    Args:
        is_anew: the run has been begun anew since, so that another call has the key now.
    """
    tracker = flow.tracker
    assert tracker is not None
    for call in calls:
        try:
            context, state, hooks = call.enter(flow)
        except Exception as exc:
            # Importing is running other people's code.
            why = describe(exc)
            log.error("hooks.abandoned", extra={"run_id": flow.flow_run.id, "task": call.name, "why": why})
            note = partial(HookLog(tracker.session.bus).abandon_task, name=call.name, why=why)
            yield OnBus(note, (flow.flow_run, call.id))
            continue
        yield CallHooks(hooks, state, context)
        tracker.events.write_hooked(context.task_run, is_keyed=not is_anew)
