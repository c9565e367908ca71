"""Running deployments from code, and describing them in code: ``run_deployment``, ``flow.to_deployment``.

What a description becomes, a deployment that is served or applied, is done higher up (``server/serving.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DefinitionError, InvalidNameError, InvalidValueError, UnknownName
from ..vocabulary import FlowRunId, JsonObject, StateType
from .annotations import freeze
from .call_key import inputs_hash
from .context import FlowRunContext, current_run
from .either import Either
from .futures import resolve_futures_to_results, settle_futures
from .parameters import parameters_json
from .replay import begins_anew
from .run import Cause, FlowRun, run_id_for

if TYPE_CHECKING:
    from ..bus.session import Session
    from .code_source import GitSource
    from .control import Control
    from .deployment import Deployment
    from .flows import Flow

__all__ = [
    "ConcurrencyLimitConfig", "ConcurrencyLimitStrategy", "RunnerDeployment", "arun_deployment", "entrypoint_of",
    "run_deployment",
]  # fmt: skip

S = StateType


# --- running ------------------------------------------------------------------------------------------


@Either
async def run_deployment(
    session: Session,
    name: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    scheduled_time: datetime | None = None,
    flow_run_name: str | None = None,
    timeout: float | None = None,
    poll_interval: float | None = None,
    tags: Iterable[str] | None = None,
    idempotency_key: str | None = None,
    work_queue_name: str | None = None,
    as_subflow: bool = True,
    job_variables: Mapping[str, Any] | None = None,
    client: object = None,
) -> FlowRun:
    """Run a deployment and return its run once it has ended; ``run.state.result()`` is what it returned.

    As ``await run_deployment(…)`` in async code. A run that fails is returned like any other: look at ``run.state``.
    In a flow, the run is the child of the one the code is in. When a flow is resumed or retried, it gets the same run
    again; one that did not complete before a retry is retried with it.

    Args:
        name: of the deployment; ``flow/deployment`` names its flow, too.
        parameters: over those of the deployment; futures among them are waited for.
        scheduled_time: when it is to start; default now.
        timeout: in seconds; the run is returned as it is by then. 0: at once. None: when it has ended.
        poll_interval: does nothing here: the end is heard of from the log. For flows written for Prefect.
        idempotency_key: asking twice with the same one is asking once.
        as_subflow: False: a run of its own, which does not end with this one.
        job_variables, client: do nothing here: there are no jobs to configure. For flows written for Prefect.
    Raises:
        UnknownName: there is no such deployment.
        ParameterError: the parameters do not fit.
        ValueError: the time limit is negative.
    """
    from .control import Control

    if timeout is not None and timeout < 0:
        raise ValueError(f"`timeout` cannot be negative, got {timeout}: leave it out to wait for the end")
    del poll_interval, job_variables, client
    control = Control(session.bus)
    deployment = await _deployment(control, name)
    given = dict(parameters or {})
    await settle_futures(given)
    values = parameters_json(resolve_futures_to_results(given))
    parent = FlowRunContext.get() if as_subflow else None
    run_id: FlowRunId | None = None
    if idempotency_key is not None:
        run_id = run_id_for("idempotency", deployment.name, idempotency_key)
    elif parent is not None and parent.tracker is not None:
        run_id = await _id_in_parent(control, parent, deployment.name, values)
    cause = (
        Cause("flow-run", parent.flow_run.name, event=parent.flow_run.event_id or parent.flow_run.causationid)
        if parent is not None
        else Cause("api", "run_deployment")
    )
    run = await control.run_deployment(
        deployment.name, parameters=values, tags=tuple(tags or ()), queue=work_queue_name,
        scheduled_at=scheduled_time, run_id=run_id, run_name=flow_run_name or "", cause=cause,
        parent=parent.flow_run.id if parent is not None and parent.tracker is not None else None,
    )  # fmt: skip
    if parent is not None and run.is_final and run.state_type is not S.COMPLETED:
        run = await _again_if_retried(control, parent, run)
    if timeout == 0:
        return run
    try:
        return await control.wait(run.id, timeout_s=timeout)
    except TimeoutError:
        return await control.get(run.id) or run


arun_deployment = run_deployment.aio


async def _deployment(control: Control, name: str) -> Deployment:
    flow_name, _, short = str(name).rpartition("/")
    deployment = await control.deployment(short)
    if flow_name and flow_name != deployment.shown_flow_name:
        raise UnknownName("deployment", name, known=[f"{deployment.shown_flow_name}/{deployment.name}"])
    return deployment


async def _id_in_parent(
    control: Control, parent: FlowRunContext, name: str, parameters: JsonObject
) -> FlowRunId:
    """Return the id of the run that this very call asks for, the same when the parent is taken up again."""
    context = current_run.get()
    assert context is not None
    key, _ = context.calls.key(f"run_deployment:{name}", parameters)
    run = parent.flow_run
    # A parent that is run again from its start asks for everything anew.
    anew = begins_anew(await control.runs.history(run.id)) if run.attempt > 1 else 0
    run_id = run_id_for("run-deployment", run.id, key, str(anew))
    undoing = parent.tracker.undoing if parent.tracker is not None else None
    if undoing is not None:
        child = await control.get(run_id)
        if child is None or not child.is_final:
            undoing.stop()
    return run_id


async def _again_if_retried(control: Control, parent: FlowRunContext, child: FlowRun) -> FlowRun:
    """Retry a child that had failed before its parent was tried again."""
    retried = 0
    for recorded in await control.runs.history(parent.flow_run.id):
        data: Any = recorded.event.data
        is_retry = data["state"]["type"] == S.SCHEDULED and data.get("previous") in (
            "FAILED",
            "CRASHED",
            "CANCELLED",
        )
        if is_retry or recorded.event.type == "flow-run.retrying":
            retried = recorded.seq
    if child.seq < retried:
        return await control.retry(child.id, reason=f"its parent {parent.flow_run.name} was retried")
    return child


# --- describing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerDeployment:
    """A deployment as code describes it, to be given to ``serve`` or ``deploy``. Made by ``flow.to_deployment``.

    Attributes:
        schedules: as in ``hark.yaml``: mappings with one of ``cron, interval, rrule``.
        triggers: rules that run it: mappings as in ``hark.yaml``, or the models of ``hark.automations``.
    """

    name: str
    flow: Flow[..., Any]
    parameters: JsonObject = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    description: str | None = None
    version: str | None = None
    schedules: tuple[JsonObject, ...] = ()
    triggers: tuple[object, ...] = ()
    paused: bool = False
    concurrency: JsonObject | None = None
    pool: str | None = None
    queue: str = "default"
    retries: int | None = None
    crash_retries: int | None = None
    executor: str = "auto"
    checks_parameters: bool = True

    @property
    def concurrency_limit(self) -> int | None:
        """How many of its runs there are at once; None: as many as may be."""
        limit = (self.concurrency or {}).get("limit")
        return limit if isinstance(limit, int) else None

    def definition(self, *, pool: str) -> Deployment:
        """Return the deployment's definition.

        Args:
            pool: where it runs if it does not say so itself.
        Raises:
            DefinitionError: something in it is wrong, or no worker could find the flow's function.
        """
        from pydantic import ValidationError

        from .deployment import Deployment

        entrypoint, path, source = _where(self.flow)
        values: dict[str, Any] = {
            "name": self.name, "flow": entrypoint, "flow_name": self.flow.name, "path": path, "source": source,
            "flow_version": self.version or self.flow.version, "description": self.description or self.flow.description,
            "parameters": self.parameters, "tags": (*sorted(self.flow.tags), *self.tags), "paused": self.paused,
            "parameter_schema": self.flow.parameters if self.checks_parameters else None, "pool": self.pool or pool,
            "queue": self.queue, "concurrency": self.concurrency, "retries": self.retries,
            "crash_retries": self.crash_retries, "executor": self.executor,
        }  # fmt: skip
        try:
            return Deployment.model_validate(values)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise DefinitionError(f"deployment {self.name!r} ({where}): {message}") from exc


def describe(
    flow: Flow[..., Any],
    name: str,
    *,
    interval: Any = None,
    cron: str | Sequence[str] | None = None,
    rrule: str | Sequence[str] | None = None,
    schedule: Any = None,
    schedules: Iterable[Any] | None = None,
    triggers: Iterable[object] | None = None,
    paused: bool = False,
    concurrency_limit: int | Mapping[str, Any] | ConcurrencyLimitConfig | None = None,
    parameters: Mapping[str, Any] | None = None,
    description: str | None = None,
    tags: Iterable[str] | None = None,
    version: str | None = None,
    enforce_parameter_schema: bool = True,
    work_pool_name: str | None = None,
    work_queue_name: str | None = None,
    retries: int | None = None,
    crash_retries: int | None = None,
    executor: str = "auto",
    job_variables: Mapping[str, Any] | None = None,
    entrypoint_type: object = None,
    version_type: object = None,
) -> RunnerDeployment:
    """Return the description of a deployment; what ``flow.to_deployment`` is.

    Args:
        name: ``"nightly"``; the file name of a script (``__file__``) counts by its stem.
        interval: seconds, a ``timedelta`` or ``"15m"``; or a list of them. cron, rrule: a text or a list.
        schedule, schedules: mappings as in ``hark.yaml``, or schedule models.
        triggers: rules that run it, such as ``DeploymentEventTrigger(on="order.paid")`` of ``hark.automations``.
        paused: nothing of it starts until it is resumed.
        concurrency_limit: runs at once; or ``{"limit": 1, "on_conflict": "skip"}``. Prefect's ``collision_strategy``
            is understood: ENQUEUE waits, CANCEL_NEW skips.
        work_pool_name: default: ``default`` when deployed, a pool of its own when served.
        job_variables, entrypoint_type, version_type: do nothing here; for flows written for Prefect.
    Raises:
        DefinitionError: two kinds of schedule were given at once, or one makes no sense.
        InvalidNameError: the name has a character that none may have.
    """
    given = {"interval": interval, "cron": cron, "rrule": rrule, "schedule": schedule, "schedules": schedules}
    said = [kind for kind, value in given.items() if value is not None]
    if len(said) > 1:
        raise InvalidValueError(
            f"deployment {name!r} is given {' and '.join(said)}", hint="put them all into schedules=[…]"
        )
    if any(letter in name for letter in "/%&<>"):
        raise InvalidNameError(f"{name!r} is no name for a deployment: it has one of / % & < >")
    del job_variables, entrypoint_type, version_type
    if name.endswith(".py"):
        name = Path(name).stem
    return RunnerDeployment(
        name=name, flow=flow, parameters=parameters_json(_unfrozen(parameters or {})), tags=tuple(tags or ()),
        description=description, version=version, schedules=tuple(_schedules(interval, cron, rrule, schedule, schedules)),
        paused=paused, concurrency=_concurrency(concurrency_limit), pool=work_pool_name,
        queue=work_queue_name or "default", retries=retries, crash_retries=crash_retries, executor=executor,
        checks_parameters=enforce_parameter_schema, triggers=tuple(triggers or ()),
    )  # fmt: skip


def _unfrozen(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, freeze) else value for name, value in parameters.items()}


def _schedules(interval: Any, cron: Any, rrule: Any, schedule: Any, schedules: Any) -> list[JsonObject]:
    found: list[JsonObject] = [{"interval": _interval_text(one)} for one in _several(interval)]
    found.extend({"cron": one} for one in _several(cron))
    found.extend({"rrule": one} for one in _several(rrule))
    for one in (*_several(schedule), *(schedules or ())):
        dump = getattr(one, "model_dump", None)
        value = dump(mode="json", exclude_defaults=True) if dump is not None else one
        if not isinstance(value, Mapping):
            raise DefinitionError(
                f"{one!r} is no schedule",
                hint='write a mapping such as {"cron": "0 6 * * *", "timezone": "UTC"}',
            )
        found.append(dict(value))
    return found


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _interval_text(value: Any) -> str:
    from ..duration import format_duration

    if isinstance(value, timedelta):
        return format_duration(value.total_seconds())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_duration(float(value))
    return str(value)


class ConcurrencyLimitStrategy(StrEnum):
    """What becomes of a run past the limit of its deployment: it waits, or ends as cancelled."""

    ENQUEUE = "ENQUEUE"
    CANCEL_NEW = "CANCEL_NEW"


@dataclass(frozen=True)
class ConcurrencyLimitConfig:
    """A limit of a deployment as Prefect's flows write it: ``concurrency_limit=ConcurrencyLimitConfig(limit=1)``.

    ``grace_period_seconds`` does nothing here: who holds a slot is known.
    """

    limit: int
    collision_strategy: ConcurrencyLimitStrategy | str = ConcurrencyLimitStrategy.ENQUEUE
    grace_period_seconds: int | None = None


_STRATEGIES = {"ENQUEUE": "queue", "CANCEL_NEW": "skip"}


def _concurrency(given: int | Mapping[str, Any] | ConcurrencyLimitConfig | None) -> JsonObject | None:
    if given is None:
        return None
    if isinstance(given, int):
        return {"limit": given}
    if isinstance(given, ConcurrencyLimitConfig):
        given = asdict(given)
    value = dict(given)
    strategy = value.pop("collision_strategy", None)
    value.pop("grace_period_seconds", None)
    if strategy is not None:
        word = str(getattr(strategy, "value", strategy))
        value["on_conflict"] = _STRATEGIES.get(word, word)
    return value


def _where(flow: Flow[..., Any]) -> tuple[str, str | None, GitSource | None]:
    """Return how a worker finds a flow: its entrypoint, the folder that is relative to, and the repository to fetch first."""
    if flow._origin is None:
        return *entrypoint_of(flow), None
    from .code_source import GitRepository

    source, entrypoint = flow._origin
    if isinstance(source, GitRepository):
        return entrypoint, None, source.stored()
    return entrypoint, str(source.path), None


def entrypoint_of(flow: Flow[..., Any]) -> tuple[str, str]:
    """Return (entrypoint, folder it is relative to) by which a worker finds a flow.

    Raises:
        DefinitionError: it is not at the top level of a file, so no other process can find it.
    """
    import inspect

    function: Callable[..., Any] = inspect.unwrap(flow.fn)
    module = sys.modules.get(getattr(function, "__module__", ""))
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    what = _name_in(module, flow) if module is not None else None
    if file is None or what is None or not Path(file).exists():
        raise DefinitionError(
            f"no other process can find flow {flow.name!r}: it has to stand at the top level of a file",
            hint="move it out of the function it is made in, and give it a name there",
        )
    source = Path(file).resolve()
    name = module.__name__ if module is not None else "__main__"
    if "." in name and name != "__main__":
        root = source.parent if source.name != "__init__.py" else source.parent.parent
        for _ in name.split(".")[:-1]:
            root = root.parent
        return f"{name}:{what}", str(root)
    return f"{source.name}:{what}", str(source.parent)


def _name_in(module: Any, flow: Flow[..., Any]) -> str | None:
    """Return the name under which a module has the flow, or the flow it is a variant of."""
    same: list[str] = [str(name) for name, value in vars(module).items() if value is flow]
    if same:
        return same[0]
    for name, value in vars(module).items():
        if getattr(value, "fn", None) is flow.fn and type(value) is type(flow):
            return str(name)
    return None


def pool_for(deployments: Sequence[RunnerDeployment]) -> str:
    """Return the pool that a process which serves these deployments has for itself: the same when it starts again."""
    names = sorted(deployment.name for deployment in deployments)
    if len(names) == 1:
        return f"serve-{names[0]}"[:100]
    return f"serve-{sha256(inputs_hash({'names': names}).encode()).hexdigest()[:12]}"
