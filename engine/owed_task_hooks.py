"""Hooks of tasks whose run was ended from outside: those that had come to an end, and whose process died before it had told.

The event of an end that has hooks says where its task is found. Ends that no process wrote have none: a task that was running
when its process died has come to no end.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from ..bus.subject import completed_subject, task_run_subject
from ..errors import MissingFlow
from ..vocabulary import StateType
from .context import FlowRunContext, TaskRunContext
from .hook_log import HookLog
from .hooks import HOOK_OF_TYPE, Hook
from .named_code import MARK, split_name
from .results import RecordedResult
from .run_log import RunLog
from .states import State
from .task_run import TaskRun

if TYPE_CHECKING:
    from ..bus import Bus
    from .run import FlowRun

__all__ = ["OwedCall", "owed_calls"]


@dataclass(frozen=True, slots=True)
class OwedCall:
    """One end of a task run, as the log has it."""

    data: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.data["run"]["id"])

    @property
    def name(self) -> str:
        return str(self.data["run"]["name"])

    @property
    def type(self) -> StateType:
        return StateType(self.data["state"]["type"])

    def enter(self, flow: FlowRunContext) -> tuple[TaskRunContext, State, list[Hook]]:
        """Return the context of the task run, its state, and the hooks to call. What it was given is not recorded.

        Raises:
            Exception: its task cannot be found.
        """
        module, what = split_name(str(self.data[MARK]))
        thing: Any = importlib.import_module(module)
        for name in what.split("."):
            thing = thing.__dict__[name] if isinstance(thing, type) else getattr(thing, name)
        if getattr(thing, "task_key", None) != self.data["task"]["key"]:
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
        if self.type is StateType.COMPLETED and flow.tracker is not None:
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

    One that had not completed is run again by the next attempt, hooks and all: so only those of the last attempt count. One that
    had is told of by the next attempt, if somebody has retried the run since.
    """
    now = await RunLog(bus).get(run.id)
    is_retried = now is not None and now.seq != run.seq
    noted = await HookLog(bus).task_runs(run.id)
    found: dict[str, OwedCall] = {}
    async with bus.log.read([task_run_subject(run.id), completed_subject(run.id)]) as batches:
        async for batch in batches:
            for recorded in batch.records:
                # What comes behind the end is of another attempt, or of a process that is not gone: they see to theirs.
                if recorded.seq > run.seq or b'"hooks":"' not in recorded.raw:
                    continue
                data = orjson.loads(recorded.raw).get("data")
                if not isinstance(data, dict) or not isinstance(data.get(MARK), str):
                    continue
                one = OwedCall(data)
                if one.type is StateType.COMPLETED:
                    # Of a later attempt it is told by its key: the task run it has there is another.
                    is_owed = not is_retried and data["call"] not in noted
                else:
                    is_owed = data["flow_run"]["attempt"] == run.attempt
                if is_owed and one.id not in noted:
                    found[one.id] = one
    return list(found.values())
