"""What the client of ``get_client()`` reads of flows, states and single task runs; and whether the broker answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ...bus.subject import FLOW_RUNS, TASK_RUNS
from ...errors import UnknownName
from ...vocabulary import FlowRunId
from ..calls.parameters import parameters_json
from ..runs.run import Cause, FlowRun, RunRequest
from ..runs.run_log import RunLog, readable_run
from ..states import Pending, State
from .run_records import FlowRecord, TaskRunRecord, records_of, state_of, task_runs_in

if TYPE_CHECKING:
    from ...bus.session import Session
    from ..dispatching.deployment import Deployment
    from ..flows import Flow
    from .run_filters import DeploymentFilter, FlowFilter, FlowRunFilter, TaskRunFilter
    from .run_sorts import FlowSort

__all__ = ["ReadCalls", "deployments_in"]

T = TypeVar("T")


async def deployments_in(session: Session) -> Sequence[Deployment]:
    """Return all deployments, by name."""
    from ..dispatching.deployment import BUCKET, Deployment

    entries = await session.bus.bucket(BUCKET).entries()
    return [Deployment.model_validate_json(entry.value) for entry in sorted(entries, key=lambda one: one.key)]


class ReadCalls:
    """Calls that read. A flow's id is its name: it is known by its runs and its deployments.

    Raises:
        UnknownName: there is none.
    """

    async def _ask(self, what: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError

    async def read_flow_runs(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
    ) -> list[FlowRun]:
        raise NotImplementedError

    # --- flows ----------------------------------------------------------------------------------------

    async def read_flow(self, flow_id: object) -> FlowRecord:
        """Return a flow."""
        flows = {one.name: one for one in await self._ask(_flows)}
        if str(flow_id) not in flows:
            raise UnknownName("flow", str(flow_id), known=list(flows))
        return flows[str(flow_id)]

    async def read_flow_by_name(self, flow_name: str) -> FlowRecord:
        """Return a flow; its id is its name."""
        return await self.read_flow(flow_name)

    async def read_flows(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
        sort: FlowSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[FlowRecord]:
        """Return the flows that fit, by name, unless it is said otherwise.

        Raises:
            ValueError: there is no such order.
        """
        orders = ("CREATED_DESC", "UPDATED_DESC", "NAME_ASC", "NAME_DESC")
        if sort is not None and str(sort) not in orders:
            raise ValueError(f"there is no order {str(sort)!r}; there are {', '.join(orders)}")
        flows = [one for one in await self._ask(_flows) if flow_filter is None or flow_filter.holds(one)]
        if flow_run_filter is not None:
            ran = {run.flow_name for run in await self.read_flow_runs(flow_run_filter=flow_run_filter)}
            flows = [one for one in flows if one.name in ran]
        if deployment_filter is not None:
            deployed = {
                one.shown_flow_name for one in await self._ask(deployments_in) if deployment_filter.holds(one)
            }
            flows = [one for one in flows if one.name in deployed]
        if str(sort) in ("CREATED_DESC", "UPDATED_DESC"):
            word = "created" if str(sort) == "CREATED_DESC" else "updated"
            flows.sort(key=lambda one: str(getattr(one, word) or ""), reverse=True)
        elif str(sort) == "NAME_DESC":
            flows.reverse()
        return flows[offset : None if limit is None else offset + limit]

    # --- runs -----------------------------------------------------------------------------------------

    async def create_flow_run(
        self,
        flow: Flow[..., Any],
        name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        state: State | None = None,
    ) -> FlowRun:
        """Write down a run of a flow that no worker will take, and return it: for who then moves it by hand.

        Args:
            state: the one it begins in; default Pending.
            context: does nothing here.
        Raises:
            MoveRefused: no run begins in this state.
        """
        del context

        async def begin(session: Session) -> FlowRun:
            request = RunRequest(
                flow_name=flow.name, flow_version=flow.version, name=name or "", parameters=parameters_json(parameters or {}),
                tags=tuple(dict.fromkeys([*sorted(flow.tags), *(tags or ())])), cause=Cause("api", "get_client"),
            )  # fmt: skip
            runs = RunLog(session.bus)
            begins = state if state is not None else Pending()
            return await runs.begin(FlowRun.requested(request, now=begins.timestamp), begins)

        return await self._ask(begin)

    async def count_flow_runs(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
    ) -> int:
        """Return how many flow runs fit."""
        return len(
            await self.read_flow_runs(
                flow_filter=flow_filter, flow_run_filter=flow_run_filter, task_run_filter=task_run_filter,
                deployment_filter=deployment_filter,
            )
        )  # fmt: skip

    async def read_flow_run_states(self, flow_run_id: object) -> list[State]:
        """Return the states a run has been in, the first first."""

        async def read(session: Session) -> list[State]:
            await session.bus.publisher.barrier()
            history = await RunLog(session.bus).history(FlowRunId(str(flow_run_id)))
            states = [state for recorded in history if (state := state_of(recorded)) is not None]
            if not states:
                raise UnknownName("flow run", str(flow_run_id))
            return states

        return await self._ask(read)

    async def read_task_run(self, task_run_id: object) -> TaskRunRecord:
        """Return a task run as it is now; found by reading all of them."""
        found = await self._ask(_task_runs)
        if str(task_run_id) not in found:
            raise UnknownName("task run", str(task_run_id))
        return found[str(task_run_id)]

    async def read_task_run_states(self, task_run_id: object) -> list[State]:
        """Return the states a task run has been in, the first first."""

        async def read(session: Session) -> list[State]:
            all_ = [state_of(recorded) for recorded in await records_of(session, TASK_RUNS)]
            states = [state for state in all_ if state is not None and state.run_id == str(task_run_id)]
            if not states:
                raise UnknownName("task run", str(task_run_id))
            return states

        return await self._ask(read)

    # --- itself ---------------------------------------------------------------------------------------

    @property
    def api_url(self) -> str:
        """Where the broker is that answers."""
        from ..sync_async.either import session_here

        return session_here("get_client()").bus.info.url

    async def hello(self) -> str:
        """Return a word of the broker that answers: its version."""
        return await self.api_version()

    async def api_version(self) -> str:
        """Return the version of the broker that answers."""

        async def read(session: Session) -> str:
            await session.bus.log.head()
            return session.bus.info.version

        return await self._ask(read)

    def client_version(self) -> str:
        """Return the version of Hark."""
        from importlib.metadata import version

        return version("hark")


async def _task_runs(session: Session) -> dict[str, TaskRunRecord]:
    return task_runs_in(await records_of(session, TASK_RUNS))


async def _flows(session: Session) -> list[FlowRecord]:
    found: dict[str, FlowRecord] = {
        one.shown_flow_name: FlowRecord(one.shown_flow_name) for one in await deployments_in(session)
    }
    for recorded in await records_of(session, FLOW_RUNS):
        if (run := readable_run(recorded)) is not None:
            before = found.get(run.flow_name)
            began = (
                before.created if before is not None and before.created is not None else recorded.event.time
            )
            found[run.flow_name] = FlowRecord(run.flow_name, began, recorded.event.time)
    return [found[name] for name in sorted(found)]
