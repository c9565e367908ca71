"""Describing deployments in code: what ``flow.to_deployment`` gives, for ``serve`` and ``deploy`` (``serving.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from ..engine.annotations import freeze
from ..engine.calls.call_key import inputs_hash
from ..engine.calls.parameters import parameters_json
from ..engine.deployments import EntrypointType, where_of
from ..engine.sync_async.either import takes_async
from ..errors import DefinitionError, InvalidNameError, InvalidValueError
from ..triggers.schedule_kinds import DeploymentSchedule
from ..vocabulary import JsonObject

if TYPE_CHECKING:
    from ..engine.code_source import GitSource
    from ..engine.dispatching.deployment import Deployment
    from ..engine.flows import Flow

__all__ = [
    "ConcurrencyLimitConfig", "ConcurrencyLimitStrategy", "ConcurrencyOptions", "RunnerDeployment", "describe", "pool_for",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerDeployment:
    """A deployment as code describes it, to be given to ``serve`` or ``deploy``. Made by ``flow.to_deployment``.

    Attributes:
        schedules: as in ``hark.yaml``: mappings with one of ``cron, interval, rrule``.
        version, description: those of the flow where none was given.
        triggers: rules that run it: mappings as in ``hark.yaml``, or the models of ``hark.automations``.
    """

    name: str
    flow: Flow[..., Any]
    parameters: JsonObject = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    description: str | None = None
    version: str | None = None
    schedules: list[DeploymentSchedule] = field(default_factory=list)
    triggers: list[object] = field(default_factory=list)
    paused: bool = False
    concurrency: JsonObject | None = None
    pool: str | None = None
    queue: str = "default"
    retries: int | None = None
    crash_retries: int | None = None
    executor: str = "auto"
    checks_parameters: bool = True
    job_variables: JsonObject = field(default_factory=dict)
    entrypoint_type: EntrypointType = EntrypointType.FILE_PATH

    @property
    def flow_name(self) -> str:
        return self.flow.name

    @property
    def full_name(self) -> str:
        """``flow/deployment``."""
        return f"{self.flow.name}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """Where a worker finds the flow. Raises ``DefinitionError`` if no other process could."""
        return self._where()[0]

    @property
    def storage(self) -> object:
        """The source that the flow was loaded from; None: it is where it was imported."""
        return self.flow._origin[0] if self.flow._origin is not None else None

    @property
    def work_pool_name(self) -> str | None:
        return self.pool

    @property
    def work_queue_name(self) -> str | None:
        """None: that of its pool."""
        return None if self.queue == "default" else self.queue

    @property
    def enforce_parameter_schema(self) -> bool:
        return self.checks_parameters

    @property
    def concurrency_options(self) -> ConcurrencyOptions | None:
        """What becomes of a run past the limit, where that was said."""
        strategy = _WORDS.get(str((self.concurrency or {}).get("on_conflict")))
        return None if strategy is None else ConcurrencyOptions(collision_strategy=strategy)

    @classmethod
    def from_flow(cls, flow: Flow[..., Any], name: str, **options: Any) -> RunnerDeployment:
        """Return what ``flow.to_deployment(name, …)`` does."""
        return describe(flow, name, **options)

    @classmethod
    def from_entrypoint(cls, entrypoint: str, name: str, **options: Any) -> RunnerDeployment:
        """Return the description of a deployment of a flow in a file below the working directory."""
        from ..engine.options.deployable import load_from

        return describe(load_from(Path.cwd(), entrypoint), name, **options)

    @classmethod
    def from_storage(cls, storage: object, entrypoint: str, name: str, **options: Any) -> Any:
        """Return the description of a deployment of a flow in a folder or repository; awaited in async code."""
        from ..engine.options.deployable import load_from

        if takes_async(options):
            return cls.afrom_storage(storage, entrypoint, name, **options)
        return describe(load_from(storage, entrypoint), name, **options)

    @classmethod
    async def afrom_storage(
        cls, storage: object, entrypoint: str, name: str, **options: Any
    ) -> RunnerDeployment:
        """Do what ``from_storage`` does, in async code."""
        from anyio import to_thread

        from ..engine.options.deployable import load_from

        return describe(await to_thread.run_sync(load_from, storage, entrypoint), name, **options)

    def apply(self, schedules: Iterable[Any] | None = None, work_pool_name: str | None = None) -> Any:
        """Store it, and return its name; what ``deploy(…)`` does. Awaited in async code.

        Args:
            schedules: in place of its own.
            work_pool_name: where it runs, if it does not say so itself; default ``default``.
        """
        from .serving import deploy

        names = deploy(self._with(schedules), work_pool_name=work_pool_name)
        return names[0] if isinstance(names, list) else _first_of(names)

    async def aapply(self, schedules: Iterable[Any] | None = None, work_pool_name: str | None = None) -> str:
        """Do what ``apply`` does, in async code."""
        from .serving import deploy

        return await _first_of(deploy.aio(self._with(schedules), work_pool_name=work_pool_name))

    def _with(self, schedules: Iterable[Any] | None) -> RunnerDeployment:
        if schedules is None:
            return self
        return replace(self, schedules=_schedules(None, None, None, None, schedules))

    def _where(self) -> tuple[str, str | None, GitSource | None]:
        return where_of(self.flow, as_module=self.entrypoint_type == EntrypointType.MODULE_PATH)

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

        from ..engine.dispatching.deployment import Deployment

        entrypoint, path, source = self._where()
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
    entrypoint_type: EntrypointType | str | None = None,
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
        entrypoint_type: ``EntrypointType.MODULE_PATH`` names the flow's module in place of its file.
        job_variables, version_type: do nothing here; for flows written for Prefect.
    Raises:
        DefinitionError: two kinds of schedule were given at once, or one makes no sense.
        InvalidNameError: the name has a character that none may have.
    """
    given = {"interval": interval, "cron": cron, "rrule": rrule, "schedule": schedule, "schedules": schedules}
    said = [kind for kind, value in given.items() if value is not None]
    if len(said) > 1:
        raise InvalidValueError(
            "Only one of interval, cron, rrule, schedule, or schedules can be provided: "
            f"deployment {name!r} is given {' and '.join(said)}",
            hint="put them all into schedules=[…]",
        )
    if any(letter in name for letter in "/%&<>"):
        raise InvalidNameError(f"{name!r} is no name for a deployment: it has one of / % & < >")
    del version_type
    if name.endswith(".py"):
        name = Path(name).stem
    return RunnerDeployment(
        name=name, flow=flow, parameters=parameters_json(_unfrozen(parameters or {})), tags=list(tags or ()),
        description=description or flow.description, version=version or flow.version,
        schedules=_schedules(interval, cron, rrule, schedule, schedules),
        paused=paused, concurrency=_concurrency(concurrency_limit), pool=work_pool_name,
        queue=work_queue_name or "default", retries=retries, crash_retries=crash_retries, executor=executor,
        checks_parameters=enforce_parameter_schema, triggers=list(triggers or ()),
        job_variables=parameters_json(job_variables or {}), entrypoint_type=EntrypointType(entrypoint_type or "file_path"),
    )  # fmt: skip


def _unfrozen(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, freeze) else value for name, value in parameters.items()}


def _schedules(
    interval: Any, cron: Any, rrule: Any, schedule: Any, schedules: Any
) -> list[DeploymentSchedule]:
    several = {
        "interval": [_interval_text(one) for one in _several(interval)],
        "cron": _several(cron),
        "rrule": _several(rrule),
    }
    found = [DeploymentSchedule({kind: one}) for kind, these in several.items() for one in these]
    found += [DeploymentSchedule(one) for one in (*_several(schedule), *(schedules or ()))]
    return found


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _interval_text(value: Any) -> Any:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    if value <= 0:
        raise InvalidValueError(f"an interval lies ahead, got {value} seconds")
    from ..duration import format_duration

    return format_duration(float(value))


class ConcurrencyLimitStrategy(StrEnum):
    """What becomes of a run past the limit of its deployment: it waits, or ends as cancelled."""

    ENQUEUE = "ENQUEUE"
    CANCEL_NEW = "CANCEL_NEW"


class ConcurrencyOptions(BaseModel):
    """What becomes of a run past a limit. ``grace_period_seconds`` does nothing here: who holds a slot is known."""

    collision_strategy: ConcurrencyLimitStrategy = ConcurrencyLimitStrategy.ENQUEUE
    grace_period_seconds: int | None = Field(None, ge=60, le=86400)


class ConcurrencyLimitConfig(ConcurrencyOptions):
    """A limit of a deployment as Prefect's flows write it: ``concurrency_limit=ConcurrencyLimitConfig(limit=1)``."""

    limit: int


_STRATEGIES = {"ENQUEUE": "queue", "CANCEL_NEW": "skip"}
_WORDS = {ours: ConcurrencyLimitStrategy(theirs) for theirs, ours in _STRATEGIES.items()}


def _concurrency(given: int | Mapping[str, Any] | ConcurrencyLimitConfig | None) -> JsonObject | None:
    if given is None:
        return None
    if isinstance(given, int):
        return {"limit": given}
    value = given.model_dump() if isinstance(given, ConcurrencyLimitConfig) else dict(given)
    strategy = value.pop("collision_strategy", None)
    value.pop("grace_period_seconds", None)
    if strategy is not None:
        word = str(getattr(strategy, "value", strategy))
        value["on_conflict"] = _STRATEGIES.get(word, word)
    return value


async def _first_of(names: Any) -> str:
    found: list[str] = await names
    return found[0]


def pool_for(deployments: Sequence[RunnerDeployment]) -> str:
    """Return the pool that a process which serves these deployments has for itself: the same when it starts again."""
    names = sorted(deployment.name for deployment in deployments)
    if len(names) == 1:
        return f"serve-{names[0]}"[:100]
    return f"serve-{sha256(inputs_hash({'names': names}).encode()).hexdigest()[:12]}"
