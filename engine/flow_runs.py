"""What code may ask of flow runs: cancel, pause, suspend, resume, wait for one. Sync and async alike (``either.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..duration import format_duration, seconds_of
from ..errors import (
    MissingContextError,
    MoveRefused,
    PauseTimedOut,
    RefusedError,
    RunWaitTimedOut,
    SuspendRefused,
)
from ..vocabulary import FlowRunId, JsonObject, StateType
from .context import FlowRunContext, TaskRunContext
from .life.held_here import held_later
from .life.holding import IN_PAUSE
from .life.resting import staying
from .logging import run_loggers
from .pausing.durable import Wait, now
from .pausing.pause import NEVER_RESUMED
from .signals import Interrupted
from .states import Paused, Running, Suspended
from .sync_async.either import Either, blocking_session, takes_async

if TYPE_CHECKING:
    from ..bus.session import Session
    from .runs.run import FlowRun

__all__ = [
    "acancel_flow_run", "apause_flow_run", "aresume_flow_run", "asuspend_flow_run", "await_for_flow_run",
    "cancel_flow_run", "pause_flow_run", "resume_flow_run", "suspend_flow_run", "wait_for_flow_run",
]  # fmt: skip

S = StateType
PAUSE_S = 3600.0
"""How long a pause lasts before the run fails, where nothing else is said (as in Prefect)."""


@Either
async def cancel_flow_run(session: Session, flow_run_id: str, *, reason: str = "") -> FlowRun:
    """Ask a run to stop, and what it began with it; return it as it is now, CANCELLING until its worker has stopped it.

    Raises:
        UnknownName: there is no such run.
    """
    from .dispatching.control import Control

    return await Control(session.bus).cancel(FlowRunId(str(flow_run_id)), reason=reason)


@Either
async def resume_flow_run(
    session: Session, flow_run_id: str, run_input: Mapping[str, Any] | Any = None
) -> FlowRun:
    """Have a paused or suspended run go on; return it.

    Args:
        run_input: what the run asked for when it paused: by field, a model, or for a plain type the value itself.
    Raises:
        UnknownName: there is no such run.
        NotPaused: it is not paused.
        PauseTimedOut: its time was over before; it has failed instead.
        InputRefused: the input does not fit what the run asked for.
    """
    from .dispatching.control import Control

    run = await Control(session.bus).resume(FlowRunId(str(flow_run_id)), run_input=_as_fields(run_input))
    if run.is_final:
        raise PauseTimedOut("Flow run can no longer be resumed.")
    return run


@Either
async def wait_for_flow_run(
    session: Session,
    flow_run_id: str,
    timeout: float | None = 10800,
    poll_interval: float | None = None,
    log_states: bool = False,
) -> FlowRun:
    """Return a run once it has ended, hearing of it from the log as it happens.

    Args:
        timeout: in seconds; None: for as long as it takes.
        poll_interval: does nothing here. For flows written for Prefect.
        log_states: write each state it comes to into the log of ``hark.flow_runs``.

    Raises:
        UnknownName: there is no such run.
        RunWaitTimedOut: it has not ended within ``timeout`` seconds; also a ``TimeoutError``.
    """
    from .dispatching.control import Control

    del poll_interval
    run_id = FlowRunId(str(flow_run_id))

    def has_ended(run: FlowRun) -> bool:
        if log_states:
            run_loggers()[0].info("Flow run is in state %r", run.state_name, extra={"flow_run_id": run.id})
        return run.is_final

    try:
        return await Control(session.bus).wait(run_id, has_ended, timeout_s=timeout)
    except TimeoutError:
        raise RunWaitTimedOut(f"flow run {run_id} has not ended within {timeout} s") from None


def suspend_flow_run(
    wait_for_input: Any = None,
    flow_run_id: str | None = None,
    timeout: float | str | timedelta | None = None,
    key: str | None = None,
    **which: bool,
) -> Any:
    """Take a run off its worker until it is resumed; then it goes on after its last finished task.

    Without ``flow_run_id``, the run the code is in: call it as ``await suspend_flow_run(…)`` in async flows. Tasks that
    were submitted are seen to their end first. The call returns when the run has been resumed, with the input.

    Args:
        wait_for_input: a pydantic model (or any type) that whoever resumes the run fills in; the value returned.
        flow_run_id: another run, which is stopped where it is.
        timeout: in seconds, ``"2h"`` or a ``timedelta``; a run that has not been resumed by then fails. Default: never.
        key: names the pause; a run pauses once for each key. Default: its place in the code.
    Raises:
        MissingContextError: outside a flow, without ``flow_run_id``; or in a task.
        SuspendRefused: the run is not that of a deployment, so nobody could take it up; or it is a subflow; or, of another
            run, it has ended or is being cancelled (``NotRunning``).
    """
    if flow_run_id is not None:
        return _suspend_other(str(flow_run_id), **which)
    if _is_async("suspend_flow_run", which):
        return _suspend_async(wait_for_input, timeout, key)
    pause = _Pause("suspend", wait_for_input, timeout, key)
    if pause.wait.is_over:
        return pause.input_from(pause.wait.value())
    return pause.after_suspension()


async def _suspend_async(
    wait_for_input: Any = None, timeout: float | str | timedelta | None = None, key: str | None = None
) -> Any:
    pause = _Pause("suspend", wait_for_input, timeout, key)
    if pause.wait.is_over:
        return pause.input_from(await pause.wait.avalue())
    return pause.after_suspension()


@Either
async def _suspend_other(session: Session, flow_run_id: str) -> FlowRun:
    from .dispatching.control import Control

    return await Control(session.bus).suspend(FlowRunId(flow_run_id))


def pause_flow_run(
    wait_for_input: Any = None,
    timeout: float | str | timedelta | None = PAUSE_S,
    poll_interval: float | None = None,
    key: str | None = None,
    **which: bool,
) -> Any:
    """Pause the run the code is in, its process waiting, until somebody resumes it; returns the input, if one was asked.

    As ``await pause_flow_run(…)`` in async flows. The arguments are those of ``suspend_flow_run``, with a ``timeout`` of an hour; ``poll_interval`` is
    there for flows written for Prefect, and does nothing: the run hears of its resumption at once.

    Raises:
        MissingContextError: outside a flow, or in a task.
        PauseTimedOut: nobody has resumed it in time.
    """
    if _is_async("pause_flow_run", which):
        return _pause_async(wait_for_input, timeout, key)
    pause = _Pause("pause", wait_for_input, timeout, key)
    if pause.wait.is_over:
        return pause.input_from(pause.wait.value())
    session = blocking_session("pause_flow_run()")
    given = session.call(pause.in_place)
    return pause.resumed(given)


async def _pause_async(
    wait_for_input: Any = None, timeout: float | str | timedelta | None = PAUSE_S, key: str | None = None
) -> Any:
    pause = _Pause("pause", wait_for_input, timeout, key)
    if pause.wait.is_over:
        return pause.input_from(await pause.wait.avalue())
    given = await pause.wait.tracker.session.acall(pause.in_place)
    return pause.resumed(given)


class _Pause:
    """One pause of the run the code is in: what it asks for, and what it came to."""

    def __init__(
        self, what: str, wanted: Any, timeout: float | str | timedelta | None, key: str | None
    ) -> None:
        if TaskRunContext.here() is not None:
            raise MissingContextError(
                f"Cannot {what} task runs.",
                hint="pause in the flow, between its tasks; what is finished is kept",
            )
        flow = FlowRunContext.get()
        if flow is None:
            raise MissingContextError(
                f"Flow runs can only be {what.rstrip('e')}ed from within a flow run.",
                hint="call it in a flow, or say which run: flow_run_id=…",
            )
        wait = Wait.here(what, {"key": key} if key is not None else {})
        if wait is None:
            raise RefusedError(
                f"only a tracked run can {what}, since somebody has to be able to resume it",
                hint="start `hark up`, or set HARK_NATS_URL",
            )
        self.what, self.wait, self.flow = what, wait, flow
        self._seconds = None if timeout is None else seconds_of(timeout)
        self._form: Any = None
        if wanted is not None:
            from .run_input import InputForm

            self._form = InputForm(wanted)

    def after_suspension(self) -> Any:
        """Return the input if the run has been resumed here; otherwise leave the worker."""
        if self.wait.noted.get("resumed"):
            return self.resumed(self.wait.noted.get("input"))
        if self.flow.parent is not None:
            raise SuspendRefused("Cannot suspend subflows.", hint="suspend the parent, or use pause_flow_run")
        if not self.wait.can_leave:
            raise SuspendRefused(
                "Cannot suspend flows without a deployment: nobody could take this run up again",
                hint="make a deployment of the flow and start it by a worker, or use pause_flow_run",
            )
        raise self.wait.leave(Suspended(message=self._message(), details=self._details()), due_at=None)

    async def in_place(self) -> Any:
        """Pause, wait until resumed, and run again; return the input as given. On the session's loop."""
        tracker = self.wait.tracker
        if self.wait.noted.get("resumed"):
            return self.wait.noted.get("input")
        details = {**self._details(), "in_process": True}
        expires = self._expires()
        left_s = None if expires is None else max(0.0, (expires - now()).total_seconds())
        try:
            with staying(self.flow), held_later("is paused", IN_PAUSE):
                await tracker.barrier()
                await tracker.move(Paused(message=self._message(), details=details))
                run = await tracker.run_log.wait(
                    tracker.flow_run.id, lambda run: run.state_type is not S.PAUSED, timeout_s=left_s
                )
        except TimeoutError:
            # Code may catch it and go on. Not where the run is being stopped at this very moment: it ends so or so.
            with suppress(MoveRefused):
                await tracker.move(Running(message=NEVER_RESUMED))
            raise PauseTimedOut(NEVER_RESUMED) from None
        if run.state_type is S.CANCELLING:
            raise Interrupted("cancelled while it was paused")
        await tracker.adopt(run)
        given = run.state_details.get("input")
        await tracker.move(Running(message="resumed"))
        return given

    def resumed(self, given: Any) -> Any:
        """Record that the pause is over; return the input as the author asked for it."""
        self.flow.flow_run = self.wait.tracker.flow_run
        value = self.input_from(given)
        self.wait.finish(given)
        return value

    def input_from(self, given: Any) -> Any:
        return self._form.read(given) if self._form is not None else None

    def _expires(self) -> datetime | None:
        noted = self.wait.moment("expires")
        if noted is not None or self._seconds is None:
            return noted
        return now() + timedelta(seconds=self._seconds)

    def _details(self) -> JsonObject:
        facts: dict[str, Any] = {}
        expires = self._expires()
        if expires is not None:
            facts["expires"] = expires
        if self._form is not None:
            facts["schema"] = self._form.schema
        return self.wait.note(facts)

    def _message(self) -> str:
        wanted = "waits for input" if self._form is not None else "waits to be resumed"
        if self._seconds is None:
            return wanted
        return f"{wanted}, for {format_duration(self._seconds)} at most"


def _is_async(name: str, which: dict[str, bool]) -> bool:
    """Return whether a call is to be awaited; ``_sync`` is the only word it takes besides those that are written out."""
    awaited = takes_async(which)
    if which:
        raise TypeError(f"{name}() got an unexpected keyword argument {next(iter(which))!r}")
    return awaited


def _as_fields(run_input: Any) -> JsonObject | None:
    if run_input is None:
        return None
    dump = getattr(run_input, "model_dump", None)
    if dump is not None and not isinstance(run_input, type):
        fields: JsonObject = dump(mode="json")
        return fields
    if isinstance(run_input, Mapping):
        return {str(name): value for name, value in run_input.items()}
    return {"value": run_input}


acancel_flow_run = cancel_flow_run.aio
aresume_flow_run = resume_flow_run.aio
await_for_flow_run = wait_for_flow_run.aio
apause_flow_run = _pause_async
asuspend_flow_run = _suspend_async
