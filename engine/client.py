"""``get_client``: reading and steering runs from code, in the words of Prefect's client. It speaks to the broker alone.

Runs are read out of the log itself, so what has just happened is there; a listing reads the log from its beginning, which is
for tests and tools: over a long history ask the server, by ``hark.Hark().flow_runs(…)``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from inspect import iscoroutinefunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..bus.subject import deleted_subject
from ..errors import DefinitionError, MoveRefused, UnknownName
from ..vocabulary import FlowRunId, StateType
from .calls.parameters import parameters_json
from .client_calls.kept_calls import KeptCalls
from .client_calls.log_calls import LogCalls
from .client_calls.queue_calls import QueueCalls
from .client_calls.read_calls import ReadCalls, deployments_in
from .client_calls.run_filters import ids_in
from .client_calls.run_records import (
    LogRecord,
    TaskRunRecord,
    line_of,
    records_of,
    task_runs_in,
    where_flow_runs_are,
    where_task_runs_are,
)
from .client_calls.run_sorts import DeploymentSort, FlowRunSort, LogSort, TaskRunSort
from .flow_runs import resume_flow_run
from .pausing.kept_inputs import InputCalls
from .runs.run import Cause, FlowRun, run_id_for
from .runs.run_log import readable_run
from .states import State
from .sync_async.either import blocking_session, session_here

if TYPE_CHECKING:
    from ..bus.session import Session
    from .client_calls.run_filters import (
        DeploymentFilter,
        FlowFilter,
        FlowRunFilter,
        LogFilter,
        TaskRunFilter,
    )
    from .dispatching.control import Control
    from .dispatching.deployment import Deployment

__all__ = ["OrchestrationResult", "RunClient", "SetStateStatus", "SyncRunClient", "TaskRunRecord"]

S = StateType
T = TypeVar("T")


class SetStateStatus(StrEnum):
    """What became of a wish for a state."""

    ACCEPT = "ACCEPT"
    ABORT = "ABORT"


@dataclass(frozen=True, slots=True)
class OrchestrationResult:
    """What became of a wish for a state: the state the run has now, and why it has no other."""

    state: State | None
    status: SetStateStatus
    details: str = ""


_ORDERS: Mapping[str, tuple[Callable[[FlowRun], Any], bool]] = {
    "ID_DESC": (lambda run: run.id, True),
    "START_TIME_ASC": (lambda run: run.started_at or run.scheduled_at or run.updated_at, False),
    "START_TIME_DESC": (lambda run: run.started_at or run.scheduled_at or run.updated_at, True),
    "EXPECTED_START_TIME_ASC": (lambda run: run.scheduled_at or run.updated_at, False),
    "EXPECTED_START_TIME_DESC": (lambda run: run.scheduled_at or run.updated_at, True),
    "NAME_ASC": (lambda run: run.name, False),
    "NAME_DESC": (lambda run: run.name, True),
    "NEXT_SCHEDULED_START_TIME_ASC": (
        lambda run: (run.next_scheduled_start_time is None, run.scheduled_at or run.updated_at),
        False,
    ),
    "END_TIME_DESC": (lambda run: (run.ended_at is not None, run.ended_at or run.updated_at), True),
}


_TASK_ORDERS: Mapping[str, tuple[Callable[[TaskRunRecord], Any], bool]] = {
    "ID_DESC": (lambda run: run.id, True),
    "EXPECTED_START_TIME_ASC": (lambda run: run.expected_start_time, False),
    "EXPECTED_START_TIME_DESC": (lambda run: run.expected_start_time, True),
    "NAME_ASC": (lambda run: run.name, False),
    "NAME_DESC": (lambda run: run.name, True),
    "NEXT_SCHEDULED_START_TIME_ASC": (
        lambda run: (run.next_scheduled_start_time is None, run.updated), False,
    ),
    "END_TIME_DESC": (lambda run: (run.end_time is not None, run.end_time or run.updated), True),
}  # fmt: skip
_DEPLOYMENT_ORDERS: Mapping[str, tuple[Callable[[Deployment], Any], bool]] = {
    "NAME_ASC": (lambda one: one.name, False),
    "NAME_DESC": (lambda one: one.name, True),
    "CONCURRENCY_LIMIT_ASC": (lambda one: one.concurrency_limit or 0, False),
    "CONCURRENCY_LIMIT_DESC": (lambda one: one.concurrency_limit or 0, True),
}


_KEPT = "a run keeps what it was asked for with"
_BLOCK = "a block is kept whole: await block.save(name), await Block.load('kind/name'), await Block.delete('kind/name')"
_RUN_BY_HAND = "task runs are written by the run that calls them; set_flow_run_state(…) moves that one"
INSTEAD: Mapping[str, str] = {
    "update_flow_run": f"{_KEPT}: give name=, tags= and parameters= to what asks for it, or flow_run_name= to the flow",
    "set_flow_run_name": f"{_KEPT}: give name= to what asks for it, or flow_run_name= to the flow",
    "set_task_run_name": "give task_run_name= to the task",
    "set_task_run_state": _RUN_BY_HAND,
    "create_task_run": _RUN_BY_HAND,
    "delete_task_run": "task runs stay as long as their flow run: delete_flow_run(…)",
    "create_flow": "a flow is there when it has runs or deployments",
    "create_flow_from_name": "a flow is there when it has runs or deployments",
    "delete_flow": "a flow is there as long as it has runs or deployments: delete those",
    "read_events": "hark.Hark().events(type=…, since=…) lists events, hark.Hark().watch_events(…) follows them",
    **{
        f"{word}_block_{what}": _BLOCK
        for what in ("document", "documents", "document_by_name", "documents_by_type", "type", "types", "type_by_slug", "schema", "schemas")
        for word in ("create", "read", "update", "delete")
    },
}  # fmt: skip
"""Calls of Prefect's client that are not here, and what to do instead."""


class RunClient(ReadCalls, KeptCalls, InputCalls, LogCalls, QueueCalls):
    """What ``get_client()`` gives in async code: ``async with get_client() as client: await client.read_flow_run(id)``.

    What is kept (limits, variables, artifacts) is in ``KeptCalls``, inputs of runs in ``InputCalls``,
    what writes logs in ``LogCalls``, and queues of pools in ``QueueCalls``.

    Ids of deployments and flows are their names.

    Raises (every method):
        UnknownName: there is no such run or deployment. BusUnavailable: no broker is known, or it does not answer.
    """

    async def __aenter__(self) -> Self:
        session_here("get_client()")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close nothing: the connection is that of the process."""

    def __getattr__(self, name: str) -> Any:
        if name in INSTEAD:
            raise AttributeError(f"Hark's client has no {name!r}: {INSTEAD[name]}")
        raise AttributeError(
            f"Hark's client has no {name!r}: it has {', '.join(calls_of(type(self)))}; hark.Hark does all that the HTTP"
            " API does"
        )

    async def api_healthcheck(self) -> Exception | None:
        """Return None if the broker answers, else why it does not."""
        from ..errors import UnavailableError

        try:
            await self._ask(lambda session: session.bus.log.head())
        except UnavailableError as exc:
            return exc
        return None

    # --- runs -----------------------------------------------------------------------------------------

    async def read_flow_run(self, flow_run_id: object) -> FlowRun:
        """Return a run as it is now."""

        async def read(session: Session) -> FlowRun:
            await session.bus.publisher.barrier()
            return await _control(session).present(FlowRunId(str(flow_run_id)))

        return await self._ask(read)

    async def read_flow_runs(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
        sort: FlowRunSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[FlowRun]:
        """Return the runs that fit; the newest first, unless it is said otherwise.

        Raises:
            ValueError: there is no such order.
        """
        if sort is not None and str(sort) not in _ORDERS:
            raise ValueError(f"there is no order {str(sort)!r}; there are {', '.join(_ORDERS)}")

        async def read(session: Session) -> list[FlowRun]:
            found: dict[str, FlowRun] = {}
            for recorded in await records_of(session, *where_flow_runs_are(ids_in(flow_run_filter, "id"))):
                if (run := readable_run(recorded)) is not None:
                    found[run.id] = run
            for said in await records_of(session, deleted_subject("*")):
                id_ = said.subject.rpartition(".")[2]
                if id_ in found and found[id_].seq < said.seq:
                    del found[id_]
            names: set[str] | None = None
            if deployment_filter is not None:
                names = {one.name for one in await deployments_in(session) if deployment_filter.holds(one)}
            with_tasks: set[str | None] | None = None
            if task_run_filter is not None:
                where = where_task_runs_are(ids_in(task_run_filter, "flow_run_id"))
                with_tasks = {
                    one.flow_run_id
                    for one in task_runs_in(await records_of(session, *where)).values()
                    if task_run_filter.holds(one)
                }
            runs = [
                run
                for run in reversed(found.values())
                if (flow_run_filter is None or flow_run_filter.holds(run))
                and (flow_filter is None or flow_filter.holds(run))
                and (names is None or run.deployment in names)
                and (with_tasks is None or run.id in with_tasks)
            ]
            if sort is not None:
                key, newest_first = _ORDERS[str(sort)]
                runs.sort(key=key, reverse=newest_first)
            return runs[offset : None if limit is None else offset + limit]

        return await self._ask(read)

    async def create_flow_run_from_deployment(
        self,
        deployment_id: object,
        *,
        parameters: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        state: State | None = None,
        name: str | None = None,
        tags: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        work_queue_name: str | None = None,
        job_variables: Mapping[str, Any] | None = None,
    ) -> FlowRun:
        """Ask for a run of a deployment; return it, scheduled.

        Args:
            state: ``Scheduled(scheduled_time=…)`` says when it is to start.
            idempotency_key: asking twice with the same one is asking once.
            context, job_variables: do nothing here.
        Raises:
            DefinitionError: the state is none a run can begin in. ParameterError: the parameters do not fit.
        """
        del context, job_variables
        if state is not None and not state.is_scheduled():
            raise DefinitionError(
                f"a run begins Scheduled, not {state.name}", hint="state=Scheduled(scheduled_time=…)"
            )
        when = state.state_details.scheduled_time if state is not None else None

        async def ask(session: Session) -> FlowRun:
            named = str(deployment_id).rpartition("/")[2]
            key = idempotency_key
            return await _control(session).run_deployment(
                named, parameters=parameters_json(parameters or {}), tags=tuple(tags or ()), queue=work_queue_name,
                scheduled_at=when, run_name=name or "", cause=Cause("api", "get_client", key=key),
                run_id=run_id_for("idempotency", named, key) if key is not None else None,
            )  # fmt: skip

        return await self._ask(ask)

    async def set_flow_run_state(
        self, flow_run_id: object, state: State, force: bool = False
    ) -> OrchestrationResult:
        """Have a run come to a state, and say what became of that.

        ``Cancelling()`` and ``Cancelled()`` stop it; ``Scheduled()`` retries one that has failed; ``Suspended()`` takes it off its
        worker. Others are written down where the table of moves allows it, ``force`` or not.
        """
        del force
        run_id = FlowRunId(str(flow_run_id))

        async def move(session: Session) -> OrchestrationResult:
            control = _control(session)
            message = state.message or ""
            try:
                if state.type in (S.CANCELLING, S.CANCELLED):
                    run = await control.cancel(run_id, reason=message)
                elif state.type is S.PAUSED:
                    run = await control.suspend(run_id, reason=message)
                elif state.type is S.SCHEDULED and (found := await control.get(run_id)) and found.is_final:
                    run = await control.retry(run_id, reason=message)
                else:
                    run = await control.set_state(run_id, state.type, name=state.name, message=state.message)
            except MoveRefused as exc:
                stays = await control.get(run_id)
                return OrchestrationResult(stays.state if stays else None, SetStateStatus.ABORT, str(exc))
            return OrchestrationResult(run.state, SetStateStatus.ACCEPT)

        return await self._ask(move)

    async def resume_flow_run(
        self, flow_run_id: object, run_input: Mapping[str, Any] | None = None
    ) -> OrchestrationResult:
        """Have a paused run go on, with what it asked for."""
        try:
            run = await resume_flow_run.aio(str(flow_run_id), run_input)
        except MoveRefused as exc:
            return OrchestrationResult(None, SetStateStatus.ABORT, str(exc))
        return OrchestrationResult(run.state, SetStateStatus.ACCEPT)

    async def delete_flow_run(self, flow_run_id: object) -> None:
        """Delete a run that is over.

        Raises:
            UnknownName: there is no such run (any more). RefusedError: it is not over.
        """

        async def delete(session: Session) -> None:
            await session.bus.publisher.barrier()
            await _control(session).delete(FlowRunId(str(flow_run_id)), cause=Cause("api", "get_client"))

        await self._ask(delete)

    async def read_task_runs(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
        sort: TaskRunSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[TaskRunRecord]:
        """Return the task runs that fit, in the order in which they began, unless it is said otherwise.

        Raises:
            ValueError: there is no such order.
        """
        if sort is not None and str(sort) not in _TASK_ORDERS:
            raise ValueError(f"there is no order {str(sort)!r}; there are {', '.join(_TASK_ORDERS)}")

        async def read(session: Session) -> list[TaskRunRecord]:
            wanted = ids_in(task_run_filter, "flow_run_id")
            if flow_filter is not None or flow_run_filter is not None or deployment_filter is not None:
                runs = await self.read_flow_runs(
                    flow_filter=flow_filter,
                    flow_run_filter=flow_run_filter,
                    deployment_filter=deployment_filter,
                )
                of_runs = {str(run.id) for run in runs}
                wanted = of_runs if wanted is None else wanted & of_runs
            found = task_runs_in(await records_of(session, *where_task_runs_are(wanted)))
            runs_ = [
                run
                for run in found.values()
                if (task_run_filter is None or task_run_filter.holds(run))
                and (wanted is None or run.flow_run_id in wanted)
            ]
            if sort is not None:
                key, newest_first = _TASK_ORDERS[str(sort)]
                runs_.sort(key=key, reverse=newest_first)
            return runs_[offset : None if limit is None else offset + limit]

        return await self._ask(read)

    async def read_logs(
        self,
        log_filter: LogFilter | None = None,
        limit: int | None = None,
        offset: int = 0,
        sort: LogSort | str = LogSort.TIMESTAMP_ASC,
    ) -> list[LogRecord]:
        """Return lines of the logs of runs.

        Raises:
            DefinitionError: the filter does not say of which flow runs (``flow_run_id={"any_": […]}``).
        """
        condition = log_filter.flow_run_id if log_filter is not None else None
        if log_filter is None or condition is None or not condition.any_:
            raise DefinitionError(
                "logs are read by run", hint='LogFilter(flow_run_id={"any_": [flow_run.id]})'
            )
        ids: list[Any] = condition.any_

        async def read(session: Session) -> list[LogRecord]:
            lines: list[LogRecord] = []
            for one in ids:
                lines += [line_of(line) for line in await session.bus.run_logs.read(FlowRunId(one))]
            kept = [line for line in lines if log_filter.holds(line)]
            kept.sort(key=lambda line: line.timestamp, reverse=str(sort) == "TIMESTAMP_DESC")
            return kept[offset : None if limit is None else offset + limit]

        return await self._ask(read)

    # --- deployments ----------------------------------------------------------------------------------

    async def read_deployment(self, deployment_id: object) -> Deployment:
        """Return a deployment."""
        return await self._ask(lambda session: _control(session).deployment(str(deployment_id)))

    async def read_deployment_by_name(self, name: str) -> Deployment:
        """Return a deployment by ``"flow/deployment"``, or by its own name."""
        flow_name, _, short = name.rpartition("/")
        found = await self.read_deployment(short)
        if flow_name and flow_name != found.shown_flow_name:
            raise UnknownName("deployment", name, known=[f"{found.shown_flow_name}/{found.name}"])
        return found

    async def read_deployments(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
        sort: DeploymentSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Deployment]:
        """Return the deployments that fit, by name, unless it is said otherwise.

        Raises:
            ValueError: there is no such order: when a deployment was made is not kept.
        """
        if sort is not None and str(sort) not in _DEPLOYMENT_ORDERS:
            raise ValueError(f"there is no order {str(sort)!r}; there are {', '.join(_DEPLOYMENT_ORDERS)}")
        found = [
            one
            for one in await self._ask(deployments_in)
            if (deployment_filter is None or deployment_filter.holds(one))
            and (flow_filter is None or flow_filter.holds(one))
        ]
        if sort is not None:
            key, falling = _DEPLOYMENT_ORDERS[str(sort)]
            found.sort(key=key, reverse=falling)
        return found[offset : None if limit is None else offset + limit]

    async def pause_deployment(self, deployment_id: object) -> None:
        """Hold back what of it has not started, and its schedules."""
        await self._ask(lambda session: _control(session).pause_deployment(str(deployment_id)))

    async def resume_deployment(self, deployment_id: object) -> None:
        """Let it start again."""
        await self._ask(lambda session: _control(session).resume_deployment(str(deployment_id)))

    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        session = session_here("get_client()")
        return await session.acall(what, session)


def calls_of(client: type[object]) -> list[str]:
    """Return what a client can be asked for, by name."""
    return sorted(word for word in dir(client) if not word.startswith("_"))


class SyncRunClient:
    """What ``get_client(sync_client=True)`` gives: the same calls, holding the thread."""

    _client: type[RunClient] = RunClient

    def __enter__(self) -> Self:
        blocking_session("get_client()")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close nothing: the connection is that of the process."""

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client(), name)
        if not iscoroutinefunction(call):
            return call

        def blocking(*args: Any, **kwargs: Any) -> Any:
            async def ask() -> Any:
                return await call(*args, **kwargs)

            return blocking_session("get_client()").call(ask)

        blocking.__name__, blocking.__doc__ = name, call.__doc__
        return blocking


def _control(session: Session) -> Control:
    from .dispatching.control import Control

    return Control(session.bus)
