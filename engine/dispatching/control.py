"""What people, rules and schedules may ask of runs, deployments and pools.

Every request is one guarded append (runs) or one guarded write (definitions); nothing here executes anything. Who
carries it out hears it from the log or the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...bus import Bus
from ...bus.bucket import Bucket
from ...bus.event import Event
from ...clock import SYSTEM_CLOCK, Clock
from ...errors import (
    AlreadyHeld,
    DefinitionError,
    GuardFailed,
    InvalidNameError,
    MoveRefused,
    NotPaused,
    NotRunning,
    ParameterError,
    RefusedError,
    SuspendRefused,
    UnknownName,
)
from ...tracing import current_traceparent
from ...vocabulary import FlowRunId, JsonObject, StateType, new_id
from ..calls.schema_check import problems_in
from ..code.loader import facts_of, find_source
from ..life.undoing import owes_undoing
from ..pausing.pause import NEVER_RESUMED, PauseSpec
from ..runs.deletion import delete_run, present_run
from ..runs.hook_log import HookLog
from ..runs.run import Cause, FlowRun, RunRequest
from ..runs.run_log import MAX_TRIES, RunLog
from ..states import Cancelled, Cancelling, Failed, Resuming, Scheduled, State, Suspended
from .deployment import BUCKET as DEPLOYMENTS
from .deployment import Deployment, is_name
from .pool import BUCKET as POOLS
from .pool import Pool, QueueSpec

__all__ = ["Control", "cancelled_state", "check_parameters"]

S = StateType
ModelT = TypeVar("ModelT", bound=BaseModel)


def cancelled_state(run: FlowRun, *, reason: str = "", details: JsonObject | None = None) -> State | None:
    """Return the state a cancel request takes a run to; None if there is nothing left to cancel.

    A run that no process executes is cancelled at once; one that a process executes is asked to stop.
    """
    if run.is_final or run.state_type is S.CANCELLING:
        return None
    facts: dict[str, Any] = {"message": reason or None, "details": details or {}}
    held = run.state_type in (S.PENDING, S.RUNNING) or run.waits_in_process
    held = held or (run.state_type is S.PAUSED and run.state_name != "Suspended")
    return Cancelling(**facts) if held else Cancelled(**facts)


def check_parameters(deployment: Deployment, parameters: Mapping[str, Any]) -> None:
    """Check parameters against what the flow takes, where that is known: names, presence, and plain types.

    Known is the schema that the deployment brings, else what the text of its function says, where the code can be read
    from here. What that cannot say is checked when the run begins, by the flow's own annotations.

    Raises:
        ParameterError: names what is missing, unknown or of the wrong kind.
    """
    schema = deployment.parameter_schema or _schema_in_code(deployment)
    if not schema:
        return
    problems = problems_in(parameters, schema)
    if problems:
        raise ParameterError(
            f"deployment {deployment.name!r} cannot run with these parameters: {'; '.join(problems)}"
        )


def _schema_in_code(deployment: Deployment) -> dict[str, Any] | None:
    # Relative to no folder, the code is relative to the worker's own, which need not be ours.
    if deployment.path is None:
        return None
    try:
        return facts_of(find_source(deployment.flow, deployment.path)).parameter_schema
    except DefinitionError:
        return None  # the worker says what is wrong with it


class Control:
    """The one door for requests. Stateless: any number may be used side by side."""

    def __init__(self, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bus = bus
        self._clock = clock
        self.runs = RunLog(bus, clock)

    # --- runs -----------------------------------------------------------------------------------------

    async def run_deployment(
        self,
        name: str,
        *,
        parameters: JsonObject | None = None,
        tags: Sequence[str] = (),
        queue: str | None = None,
        scheduled_at: datetime | None = None,
        cause: Cause,
        trigger_event: Event | None = None,
        run_id: FlowRunId | None = None,
        run_name: str = "",
        parent: FlowRunId | None = None,
    ) -> FlowRun:
        """Ask for a run of a deployment and return it, SCHEDULED. With the ``run_id`` of an existing run: that run.

        Args:
            parameters: over those of the deployment, name by name.
            run_id: derived from the cause (``run_id_for``) where asking twice must be asking once.
        Raises:
            UnknownName: there is no such deployment.
            ParameterError: the parameters do not fit the flow's schema, where that is known.
            TemplateError: the key of the deployment's limit cannot be made from these parameters.
        """
        deployment = await self.deployment(name)
        merged = {**deployment.parameters, **(parameters or {})}
        check_parameters(deployment, merged)
        all_tags = tuple(dict.fromkeys([*deployment.tags, *tags]))
        return await self.runs.request(
            RunRequest(
                id=run_id or FlowRunId(new_id()), name=run_name, flow_name=deployment.shown_flow_name,
                flow_version=deployment.flow_version, deployment=deployment.name, entrypoint=deployment.flow,
                parameters=merged, tags=all_tags, pool=deployment.pool, queue=queue or deployment.queue, parent=parent,
                scheduled_at=scheduled_at, concurrency_key=deployment.concurrency_key(merged, all_tags), cause=cause,
                trigger_event=trigger_event, traceparent=current_traceparent(),
            )
        )  # fmt: skip

    async def get(self, run_id: FlowRunId) -> FlowRun | None:
        """Return the run as it is now; None if there is none."""
        return await self.runs.get(run_id)

    async def present(self, run_id: FlowRunId) -> FlowRun:
        """Return the run as it is now. Raises ``UnknownName`` if there is none, or it has been deleted."""
        return await present_run(self._bus, self.runs, run_id)

    async def delete(self, run_id: FlowRunId, *, reason: str = "", cause: Cause | None = None) -> FlowRun:
        """Hide a run that is over, with its task runs, logs and artifacts, and return it as it was.

        Raises:
            UnknownName: there is no such run (any more).
            RefusedError: it is not over; cancel it first.
        """
        return await delete_run(self._bus, self.runs, run_id, reason=reason, cause=cause)

    async def wait(
        self,
        run_id: FlowRunId,
        until: Callable[[FlowRun], bool] = lambda run: run.is_final,
        *,
        timeout_s: float | None = None,
    ) -> FlowRun:
        """Return the run once ``until`` holds of it. Raises ``UnknownName`` and ``TimeoutError``."""
        return await self.runs.wait(run_id, until, timeout_s=timeout_s)

    async def cancel(self, run_id: FlowRunId, *, reason: str = "", cause: Cause | None = None) -> FlowRun:
        """Ask a run to stop and return it: CANCELLED if nothing executes it, else CANCELLING until its worker has
        stopped it. A run that has ended or is stopping already is returned as it is. Runs it began are cancelled too,
        by the dispatcher.

        Raises:
            UnknownName: there is no such run.
        """
        details = _by(cause)
        return await self.runs.change(
            run_id, lambda run: cancelled_state(run, reason=reason, details=details)
        )

    async def suspend(self, run_id: FlowRunId, *, reason: str = "", cause: Cause | None = None) -> FlowRun:
        """Take a run off its worker until it is resumed; what it has finished is kept.

        Raises:
            UnknownName: there is no such run.
            SuspendRefused: it does not belong to a pool, so nobody could take it up again.
            NotRunning: it has ended or is being cancelled.
        """
        details = _by(cause)

        def decide(run: FlowRun) -> State | None:
            if run.is_final or run.state_type is S.CANCELLING:
                raise NotRunning(run.id, from_state=run.state_type)
            if run.pool is None:
                raise SuspendRefused(
                    f"run {run.id} was not started by a worker, so it could not be resumed",
                    hint="only runs of deployments can be suspended; cancel it instead",
                )
            if run.state_type is S.PAUSED and run.state_name == "Suspended":
                return None
            return Suspended(message=reason or None, details=details)

        return await self.runs.change(run_id, decide)

    pause = suspend

    async def resume(
        self, run_id: FlowRunId, *, run_input: JsonObject | None = None, cause: Cause | None = None
    ) -> FlowRun:
        """Have a paused or suspended run go on after its last finished task. One that waited too long fails instead.

        Args:
            run_input: what the run asked for when it paused (``wait_for_input``), by field.
        Raises:
            UnknownName: there is no such run.
            NotPaused: it is not.
            InputRefused: the input does not fit what the run asked for.
        """
        details = _by(cause)

        def decide(run: FlowRun) -> State | None:
            if run.state_type is not S.PAUSED:
                raise NotPaused(run.id, from_state=run.state_type)
            pause = PauseSpec.of(run)
            if pause.expires_at is not None and pause.expires_at <= self._clock.now():
                return Failed(message=NEVER_RESUMED, details=details)
            given = pause.check(run.id, run_input)
            more: JsonObject = {} if given is None else {"input": given}
            if run.state_details.get("in_process"):
                more["in_process"] = True
            return Resuming(details={**details, **more})

        return await self.runs.change(run_id, decide, scheduled_at=self._clock.now())

    async def retry(
        self, run_id: FlowRunId, *, from_start: bool = False, reason: str = "", cause: Cause | None = None
    ) -> FlowRun:
        """Have a run that failed, crashed or was cancelled go on from what it has finished, or ``from_start``.

        Raises:
            UnknownName: there is no such run.
            MoveRefused: it has not ended, or it completed, or what it had begun is being undone.
            RefusedError: no worker could run it: it was a plain call.
        """
        await self.present(run_id)
        details: JsonObject = {**_by(cause), **({"from_start": True} if from_start else {})}

        def decide(run: FlowRun) -> State | None:
            if run.pool is None or run.entrypoint is None:
                raise RefusedError(
                    f"run {run.id} was not started by a worker, so no worker can retry it",
                    hint="call the flow again, or make a deployment of it",
                )
            if run.state_type not in (S.FAILED, S.CRASHED, S.CANCELLED):
                why = "it completed" if run.is_final else "it has not ended"
                raise MoveRefused(run.id, from_state=run.state_type, to_state="retried", why=why)
            return Scheduled(message=reason or "retried", details=details)

        run = await self.runs.get(run_id)
        if run is not None and owes_undoing(run) and await HookLog(self._bus).is_being_undone(run):
            why = "its transactions are being rolled back; ask again when that is done, in a moment"
            raise MoveRefused(run.id, from_state=run.state_type, to_state="retried", why=why)
        return await self.runs.change(run_id, decide, retry=True, scheduled_at=self._clock.now())

    async def set_state(
        self,
        run_id: FlowRunId,
        type_: StateType,
        *,
        name: str = "",
        message: str | None = None,
        cause: Cause | None = None,
    ) -> FlowRun:
        """Put a run into a state by hand, where the table of moves allows it.

        Raises:
            UnknownName, MoveRefused.
        """
        await self.present(run_id)
        details = _by(cause)
        return await self.runs.change(run_id, lambda _: State(type_, name, message, details=details))

    # --- definitions ----------------------------------------------------------------------------------

    async def deployment(self, name: str) -> Deployment:
        """Return a deployment. Raises ``UnknownName``, with the nearest name there is."""
        bucket = self._bus.bucket(DEPLOYMENTS)
        entry = await bucket.get(name) if is_name(name) else None
        if entry is None:
            raise UnknownName("deployment", name, known=await bucket.keys())
        return _parse(Deployment, entry.value, f"deployment {name!r}")

    async def put_deployment(self, deployment: Deployment) -> int:
        """Write a deployment and return its revision."""
        bucket = self._bus.bucket(DEPLOYMENTS)
        return await bucket.put(deployment.name, deployment.model_dump_json().encode())

    async def pool(self, name: str) -> Pool:
        """Return a pool; one that nobody defined is there all the same, without limits."""
        entry = await self._bus.bucket(POOLS).get(name)
        return _parse(Pool, entry.value, f"pool {name!r}") if entry else Pool(name=name)

    async def put_pool(self, pool: Pool) -> int:
        """Write a pool and return its revision."""
        return await self._bus.bucket(POOLS).put(pool.name, pool.model_dump_json().encode())

    async def pause_deployment(self, name: str) -> Deployment:
        """Hold back every run of a deployment that has not started, and its schedules. Raises ``UnknownName``."""
        return await self._set_deployment(name, paused=True)

    async def resume_deployment(self, name: str) -> Deployment:
        """Let runs of a deployment start again. Raises ``UnknownName``."""
        return await self._set_deployment(name, paused=False)

    async def _set_deployment(self, name: str, *, paused: bool) -> Deployment:
        return await self._update(
            DEPLOYMENTS, name, Deployment, lambda found: found.model_copy(update={"paused": paused})
        )

    async def pause_pool(self, name: str, *, queue: str | None = None) -> Pool:
        """Hold back every run of a pool, or of one queue of it, that has not started."""
        return await self._set_pool(name, queue, paused=True)

    async def resume_pool(self, name: str, *, queue: str | None = None) -> Pool:
        """Let runs of a pool, or of one queue of it, start again."""
        return await self._set_pool(name, queue, paused=False)

    async def _set_pool(self, name: str, queue: str | None, *, paused: bool) -> Pool:
        def change(pool: Pool) -> Pool:
            if queue is None:
                return pool.model_copy(update={"paused": paused})
            spec = pool.queues.get(queue, QueueSpec()).model_copy(update={"paused": paused})
            return pool.model_copy(update={"queues": {**pool.queues, queue: spec}})

        return await self._update(POOLS, name, Pool, change, missing=lambda: Pool(name=name))

    async def change_queue(
        self, pool: str, queue: str, change: Callable[[QueueSpec | None], QueueSpec | None]
    ) -> Pool:
        """Change what a pool says of one of its queues.

        Args:
            change: given what it says now, None for nothing; returns what it is to say. It may raise, which ends the matter.
        Raises:
            InvalidNameError: no pool or queue can have this name.
        """
        for name in (pool, queue):
            if not is_name(name):
                raise InvalidNameError(f"no pool or queue can be named {name!r}")

        def decide(found: Pool) -> Pool:
            others = {name: spec for name, spec in found.queues.items() if name != queue}
            spec = change(found.queues.get(queue))
            return found.model_copy(update={"queues": others if spec is None else {**others, queue: spec}})

        return await self._update(POOLS, pool, Pool, decide, missing=lambda: Pool(name=pool))

    async def _update(
        self,
        bucket_name: str,
        key: str,
        model: type[ModelT],
        change: Callable[[ModelT], ModelT],
        *,
        missing: Callable[[], ModelT] | None = None,
    ) -> ModelT:
        """Change a definition under guard; nothing is written where nothing changes."""
        bucket: Bucket = self._bus.bucket(bucket_name)
        for _ in range(MAX_TRIES):
            entry = await bucket.get(key) if is_name(key) else None
            if entry is None and missing is None:
                raise UnknownName(bucket_name.removesuffix("s"), key, known=await bucket.keys())
            before = _parse(model, entry.value, f"{bucket_name} {key!r}") if entry else (missing or _never)()
            after = change(before)
            if entry is not None and after == before:
                return before
            value = after.model_dump_json().encode()
            try:
                if entry is None:
                    await bucket.create(key, value)
                else:
                    await bucket.update(key, value, revision=entry.revision)
            except (GuardFailed, AlreadyHeld):
                continue
            return after
        raise RefusedError(f"{bucket_name} {key!r} is being changed by too many at once; try again")


def _never() -> Any:
    raise AssertionError("unreachable: guarded by the check above")


def _parse(model: type[ModelT], raw: bytes, what: str) -> ModelT:
    try:
        return model.model_validate_json(raw)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DefinitionError(
            f"the stored {what} cannot be read: {where}: {first['msg']}",
            hint="write it anew with `hark apply`",
        ) from exc


def _by(cause: Cause | None) -> JsonObject:
    """Return the part of a state's details that says who asked for it."""
    return {"by": cause.to_json()} if cause else {}
