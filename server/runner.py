"""``Runner``: serving deployments in Prefect's words: flows are added one by one, then it is started, and stopped.

As ``serve(…)`` (``serving.py``), which is the shorter way.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from ..engine.annotations import NotSet
from ..engine.sync_async.either import is_async_here
from ..errors import InvalidNameError, MissingContextError
from ..vocabulary import StateType, new_id
from .description import pool_for
from .stopping import StopAsked, term_heard

if TYPE_CHECKING:
    from ..bus import Bus
    from ..engine.flows import Flow
    from .description import RunnerDeployment

__all__ = ["Runner"]


class Runner:
    """Runs what is asked of the flows that were added to it, in this process.

    Attributes:
        started: it takes work now. stopping: somebody has asked it to stop.

    Args:
        name: of deployments that are given none, and of its pool; default: made up, and the pool is that of the first deployment.
        limit: runs at once; default: the worker's settings.
        pause_on_shutdown: pause schedules when it stops.
        query_seconds, prefetch_seconds, heartbeat_seconds, webserver: do nothing here: runs are heard of at once, and
            ``hark up`` has a web server. For programs written for Prefect.
    Raises:
        InvalidNameError: the name has a ``/`` or a ``%``.
    """

    def __init__(
        self,
        name: str | None = None,
        query_seconds: float | None = None,
        prefetch_seconds: float = 10,
        heartbeat_seconds: float | None = None,
        limit: int | type[NotSet] | None = NotSet,
        pause_on_shutdown: bool = True,
        webserver: bool = False,
    ) -> None:
        del query_seconds, prefetch_seconds, heartbeat_seconds, webserver
        if name is not None and ("/" in name or "%" in name):
            raise InvalidNameError(f"the name of a runner cannot have '/' or '%', got {name!r}")
        self.name = name or f"runner-{new_id()}"
        self.limit = limit if isinstance(limit, int) else None
        self.pause_on_shutdown = pause_on_shutdown
        self.started = self.stopping = False
        # One that has a name of its own keeps the pool when it starts again; of another, see ``_pool_of``.
        self._pool = f"serve-{name}"[:100] if name is not None else None
        self._added: dict[str, RunnerDeployment] = {}
        self._stop_asked = StopAsked()

    def add_flow(self, flow: Flow[..., Any], name: str | None = None, **options: Any) -> Any:
        """Add a flow to be run, as a deployment, and return that deployment's name; awaited in async code.

        Args:
            name: of the deployment; default: the runner's.
            options: as of ``flow.to_deployment``.
        """
        return self.add_deployment(flow.to_deployment(name or self.name, **options))

    async def aadd_flow(self, flow: Flow[..., Any], name: str | None = None, **options: Any) -> str:
        """Do what ``add_flow`` does, in async code."""
        return await self.aadd_deployment(flow.to_deployment(name or self.name, **options))

    def add_deployment(self, deployment: RunnerDeployment) -> Any:
        """Add what ``flow.to_deployment`` gave; return its name. Where a broker is known, it is stored at once.

        Awaited in async code.
        """
        if is_async_here():
            return self.aadd_deployment(deployment)
        from ..bus.session import current_session
        from .serving import deploy

        self._added[deployment.name] = deployment
        if current_session(tracking=False) is not None:
            deploy.blocking(deployment, work_pool_name=self._pool_of(deployment))
        return deployment.name

    async def aadd_deployment(self, deployment: RunnerDeployment) -> str:
        """Do what ``add_deployment`` does, in async code."""
        from ..bus.session import current_session
        from .serving import adeploy

        self._added[deployment.name] = deployment
        if current_session(tracking=False) is not None:
            await adeploy(deployment, work_pool_name=self._pool_of(deployment))
        return deployment.name

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        """Run what is asked of the flows that were added, until ``stop`` is called or this is cancelled.

        Args:
            run_once: end once no run is due, nor going on.
            webserver: does nothing here.
        Raises:
            DefinitionError: nothing was added.
            SystemExit: the process was asked to end (TERM); what runs is handed back, and schedules are paused.
        """
        del webserver
        from .serving import serving

        with term_heard() as term:
            async with serving(
                *self._added.values(),
                limit=self.limit,
                pause_on_shutdown=self.pause_on_shutdown,
                pool=self._pool,
            ) as service:
                self._stop_asked.begin()
                self.started, self.stopping = True, False
                try:
                    with term:
                        await (self._once(service.bus) if run_once else self._stop_asked.wait())
                finally:
                    self.started = False
        if term.cancel_called:
            raise SystemExit(0)

    def stop(self) -> Any:
        """Have it stop. From any thread; async code may await it.

        Raises:
            MissingContextError: it has not been started.
        """
        if not self.started:
            raise MissingContextError("this runner has not yet started", hint="call its start() first")
        self.stopping = True
        return self._stop_asked.ask()

    async def astop(self) -> None:
        """Do what ``stop`` does, in async code."""
        await self.stop()

    def _pool_of(self, deployment: RunnerDeployment) -> str:
        """Return the pool of what is served here: the runner's, else that of the first deployment that was added.

        So a program whose runner has no name finds its pool again whenever it is started.
        """
        if self._pool is None:
            self._pool = pool_for([deployment])
        return self._pool

    async def _once(self, bus: Bus) -> None:
        """Wait until nothing of ours is due or going on, or until somebody asks to stop."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._stopped, group.cancel_scope)
            await self._until_idle(bus)
            group.cancel_scope.cancel()

    async def _stopped(self, scope: anyio.CancelScope) -> None:
        await self._stop_asked.wait()
        scope.cancel()

    async def _until_idle(self, bus: Bus) -> None:
        """Wait until every run of ours that is due by now has ended."""
        from ..bus.session import use_session
        from ..engine.dispatching.control import Control
        from .prefect_client import get_client

        by, control = datetime.now(UTC), Control(bus)
        with use_session(bus):
            async with get_client() as client:
                runs = await client.read_flow_runs()
        for run in runs:
            is_due = run.state_type is not StateType.SCHEDULED or (run.scheduled_at or by) <= by
            if (
                run.deployment in self._added
                and is_due
                and not run.is_final
                and run.state_type is not StateType.PAUSED
            ):
                await control.wait(run.id)
