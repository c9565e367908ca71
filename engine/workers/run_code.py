"""What a worker has to know of a run's code before it executes it: where it is, what it says of itself, why it cannot run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from anyio import to_thread
from pydantic import ValidationError

from ...bus import Bus
from ...errors import DefinitionError, SecretUnreadable, SourceFailed, UnknownName
from ..code.lane import PROCESS
from ..code.loader import Facts, facts_of, find_source
from ..code.script_code import NO_CODE, ScriptCode, recorded_code
from ..code.subflow_code import outermost_run, unfindable
from ..code_source import fetched
from ..dispatching.deployment import BUCKET as DEPLOYMENTS
from ..dispatching.deployment import Deployment, is_name, read_deployment
from ..runs.run import FlowRun
from ..runs.run_log import RunLog

__all__ = ["RunCode"]


@dataclass(frozen=True, slots=True)
class RunCode:
    """What was found out.

    Attributes:
        deployment: as it is now; None if the run has none, or one that is gone.
        facts: what the code says of itself.
        problem: why it cannot run; None if it can.
    """

    deployment: Deployment | None = None
    facts: Facts = field(default_factory=Facts)
    problem: str | None = None
    script: ScriptCode | None = None
    """Of a plain call, whose hooks are to be called."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether only another worker can have it: the machine, or the user, is another."""
        return self.script is not None and not self.script.is_here

    @property
    def path(self) -> str | None:
        """The folder the entrypoint is relative to; None: the worker's own."""
        if self.script is not None:
            return self.script.root
        return self.deployment.path if self.deployment is not None else None

    @property
    def retries(self) -> int | None:
        """What the deployment says instead of the flow."""
        return self.deployment.retries if self.deployment is not None else None

    def crash_retries(self, default: int) -> int:
        """Return how often a run whose worker died is taken up again."""
        for said in (self.deployment.crash_retries if self.deployment else None, self.facts.crash_retries):
            if said is not None:
                return said
        return default

    @classmethod
    async def of(cls, bus: Bus, run: FlowRun) -> RunCode:
        """Look it up, bringing code from a repository up to date first. That of a subflow is where that of the run around it is."""
        around = await outermost_run(RunLog(bus), run)
        if around is None:
            return cls(problem="the run it is part of has left the log, and with it where its code is")
        if around.pool is None:
            script = await recorded_code(RunLog(bus), run.id)
            problem = NO_CODE if script is None else await to_thread.run_sync(script.problem)
            # In a process of its own: whatever is beside it can be imported there, and nothing of it stays in the worker.
            return cls(facts=Facts(PROCESS), problem=problem, script=script)
        name = around.deployment
        deployment: Deployment | None = None
        if name and is_name(name):
            entry = await bus.bucket(DEPLOYMENTS).get(name)
            try:
                deployment = read_deployment(entry.value) if entry else None
            except ValidationError as exc:
                return cls(problem=f"deployment {name!r} cannot be read: {exc}")
        if deployment is not None and deployment.source is not None:
            try:
                deployment = deployment.model_copy(update={"path": await fetched(bus, deployment.source)})
            except (SourceFailed, UnknownName, SecretUnreadable) as exc:
                return cls(deployment, problem=str(exc))
        if (why := unfindable(run)) is not None:
            return cls(deployment, problem=why)
        if not run.entrypoint:
            return cls(deployment, problem="the run has no entrypoint, so no worker can find its code")
        try:
            facts = facts_of(find_source(run.entrypoint, deployment.path if deployment else None))
        except DefinitionError as exc:
            return cls(deployment, problem=str(exc))
        # One process for each commit: modules that a flow imports while it runs would else be those of another commit.
        if deployment is not None and (deployment.executor == "process" or deployment.source is not None):
            facts = replace(facts, lane=PROCESS)
        return cls(deployment, facts)
