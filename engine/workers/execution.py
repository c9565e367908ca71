"""Executing one run that a worker has taken: its code is loaded, then it is the engine's.

The same in the worker's loop (async flows) and in a child process (sync flows). A flow that does not import ends its run
as FAILED with the traceback; nothing that user code does ends the worker.
"""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from anyio import to_thread

from ...bus.event import Event, Recorded
from ...bus.subject import subject_of
from ...config import EngineConfig
from ...errors import BusUnavailable, DefinitionError, HarkError, RunLost
from ...vocabulary import JsonObject, sendable
from ..code.loader import Loader
from ..code.script_code import loading
from ..life.user_frames import format_for_author
from ..runs.hook_log import HERE, owing
from ..runs.run import FlowRun, transition_event
from ..runs.run_log import RunLog
from ..signals import Interrupted
from ..states import Failed, State

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..life.holding import Place

__all__ = ["Job", "Outcome", "OutcomeKind", "execute_in_loop", "execute_in_process", "failed_unread"]

OutcomeKind: TypeAlias = Literal["ended", "lost", "interrupted", "unavailable", "error", "died"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an execution came to its end; what became of the run is in the log.

    ``ended``: the engine has written what it came to. ``lost``: another worker has it. ``interrupted``: it was asked to
    stop, and did. ``unavailable``: the broker did not answer. ``error``: it ended in a way that wrote nothing.
    ``died``: its process did.
    """

    kind: OutcomeKind
    detail: str = ""
    run: FlowRun | None = None
    """The run after the last transition that was made here, where that is known."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that was taken, and where its code is.

    Attributes:
        path: folder the entrypoint is relative to; None is the worker's own.
        retries: overrides the flow's own.
    """

    run: FlowRun
    entrypoint: str
    path: str | None = None
    retries: int | None = None
    hooks: bool = False
    """Only the hooks of the run's end are to be called: whoever wrote it could not."""
    is_script: bool = False
    """It is, or is part of, a plain call: its program must not be run again by being loaded."""
    problem: str | None = None
    """Why its code cannot be had, where that is known: then only hooks of its tasks are looked for."""

    @property
    def code(self) -> str:
        """What a process that has loaded this job's code may also run: the same file for the same deployment."""
        where = self.entrypoint.rpartition(":")[0]  # of a run without code, there may be none
        return f"{self.run.deployment or ''}|{self.path or ''}|{where}"

    def to_json(self) -> JsonObject:
        event = transition_event(self.run, previous=None, result=self.run.result).to_dict()
        return {
            "run": event, "seq": self.run.seq, "entrypoint": self.entrypoint, "path": self.path, "retries": self.retries,
            "hooks": self.hooks, "is_script": self.is_script, "problem": self.problem,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: JsonObject) -> Self:
        message: Any = value
        event = Event.from_dict(message["run"])
        recorded = Recorded(message["seq"], subject_of(event), event.time, event.to_json())
        return cls(
            FlowRun.from_recorded(recorded), message["entrypoint"], message["path"], message["retries"],
            message["hooks"], message["is_script"], message["problem"],
        )  # fmt: skip


async def execute_in_loop(
    job: Job, loader: Loader, session: Session, engine: EngineConfig, place: Place | None = None
) -> Outcome:
    """Execute an async flow in the running loop, where it has ``place``. Being cancelled stops it; what that makes of the run is in the log."""
    from ..life.flow_engine import execute_run
    from ..life.owed_hooks import call_owed_hooks_async, call_owed_task_hooks_async

    find_module = partial(loader.module, path=job.path)
    try:
        if job.problem is not None:
            raise DefinitionError(job.problem)
        flow: Any = loader.loaded(job.entrypoint, job.path)
        if flow is None:
            # One at a time: of a thousand runs that begin together, all but the first find their code loaded.
            async with loader.turn:
                flow = loader.loaded(job.entrypoint, job.path)
                if flow is None:
                    # Importing may take seconds, and the loop holds other runs.
                    flow = await to_thread.run_sync(_load_async, job, loader)
    except Exception as exc:
        failed = await _failed_to_load(job, session, format_for_author(exc))
        try:
            if job.hooks:
                await call_owed_task_hooks_async(job.run, session, engine, find_module)
        except CancelledError:
            raise
        except BaseException as exc:
            return outcome_of(exc)
        return failed
    try:
        if job.hooks:
            await call_owed_hooks_async(flow, job.run, session, engine, find_module)
            return Outcome("ended")
        _, run = await execute_run(
            flow, job.run, session=session, run_log=RunLog(session.bus), retries=job.retries, config=engine,
            find_module=find_module, place=place,
        )  # fmt: skip
    except CancelledError:
        raise
    except BaseException as exc:
        return outcome_of(exc)
    return Outcome("ended", run=run)


def execute_in_process(
    job: Job, loader: Loader, session: Session, engine: EngineConfig, place: Place | None = None
) -> Outcome:
    """Execute a flow in this thread, the main one of its process."""
    from ..life.flow_engine import execute_sync
    from ..life.owed_hooks import call_owed_hooks, call_owed_task_hooks

    find_module: Callable[[str], ModuleType] = partial(loader.module, path=job.path)
    try:
        if job.problem is not None:
            raise DefinitionError(job.problem)
        with loading(job.entrypoint) if job.is_script else nullcontext():
            flow = loader.load(job.entrypoint, job.path)
    except Interrupted:
        return Outcome("interrupted")
    except BaseException as exc:
        # Also sys.exit() at the top of a file: it must not look like the end of the process.
        failed = session.call(_failed_to_load, job, session, format_for_author(exc))
        try:
            if job.hooks and not job.is_script:
                call_owed_task_hooks(job.run, session, engine, find_module)
        except BaseException as exc:
            return outcome_of(exc)
        return failed
    if job.is_script:
        find_module = partial(_module_of_script, flow, find_module)
    try:
        if job.hooks:
            call_owed_hooks(flow, job.run, session, engine, find_module, is_script=job.is_script)
            return Outcome("ended")
        execute_sync(
            flow, job.run, session=session, run_log=RunLog(session.bus), retries=job.retries, config=engine,
            find_module=find_module, place=place,
        )  # fmt: skip
    except BaseException as exc:
        return outcome_of(exc)
    return Outcome("ended")


def _module_of_script(flow: Any, find_module: Callable[[str], ModuleType], name: str) -> ModuleType:
    """Return a module by the name it had in the program; ``__main__`` is the flow's own, which has another name here."""
    return find_module(flow.fn.__module__ if name == "__main__" else name)


def outcome_of(exc: BaseException) -> Outcome:
    """Return what an exception that left the engine means."""
    if isinstance(exc, RunLost):
        return Outcome("lost", str(exc))
    if isinstance(exc, BusUnavailable):
        return Outcome("unavailable", str(exc))
    if isinstance(exc, Interrupted | CancelledError):
        return Outcome("interrupted")
    # A refused move among them: what the run has become meanwhile says what is to follow.
    return Outcome("error", _cut("".join(traceback.format_exception(exc))))


def _load_async(job: Job, loader: Loader) -> Any:
    try:
        return loader.load(job.entrypoint, job.path)
    except SystemExit as exc:
        # A thread that ends this way would take the exception out of our sight.
        raise DefinitionError(f"{job.entrypoint} calls sys.exit({exc.code!r}) when it is imported") from exc


async def _failed_to_load(job: Job, session: Session, text: str) -> Outcome:
    message = job.problem or f"flow {job.entrypoint} could not be loaded:\n{_cut(text)}"
    if job.hooks:
        return Outcome("error", message)
    try:
        await RunLog(session.bus).move(job.run, failed_unread(job.run, message))
    except HarkError as exc:
        return outcome_of(exc)
    return Outcome("error", message)


def failed_unread(run: FlowRun, message: str) -> State:
    """Return the end of a run whose code cannot be had. What earlier attempts of it had begun is ended from outside then."""
    state = Failed(message=message)
    return owing(state, HERE, is_unwound=False) if run.attempt > 1 else state


def _cut(text: str) -> str:
    """Keep the end, where the cause is, within what an event can carry beside the parameters, and what can be sent."""
    text = sendable(text)
    return text if len(text) <= MAX_TEXT_CHARS else f"…{text[-MAX_TEXT_CHARS:]}"


MAX_TEXT_CHARS = 16_384
