"""``get_client``: the client in Prefect's words, whole: runs (``engine/client.py``), and here what is defined.

Deployments with their schedules, automations and work pools are each kept in a bucket; what is written here, a running
server and its workers hear of at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field

from ..engine.client import RunClient, SyncRunClient
from ..engine.dispatching.deployment import BUCKET as DEPLOYMENTS
from ..engine.dispatching.deployment import ConcurrencySpec, Deployment
from ..engine.dispatching.pool import BUCKET as POOLS
from ..engine.dispatching.pool import Pool
from ..errors import AlreadyExists, AlreadyHeld, DefinitionError, InvalidValueError, UnknownName
from ..triggers.schedule import StoredSchedule, parse_schedule
from ..triggers.schedule_kinds import DeploymentSchedule
from .ownership import SCHEDULES, delete_deployment

if TYPE_CHECKING:
    from ..automations.prefect_automation import Automation, AutomationCore
    from ..bus.session import Session
    from ..engine.client_calls.run_filters import DeploymentFilter, FlowFilter
    from ..engine.client_calls.run_sorts import DeploymentSort

__all__ = [
    "DeploymentUpdate", "PrefectClient", "ReadDeployment", "SyncPrefectClient", "WorkPool", "WorkPoolCreate", "WorkPoolUpdate",
    "get_client",
]  # fmt: skip

T = TypeVar("T")


class ReadDeployment(Deployment):
    """A deployment with its schedules, as it is now."""

    schedules: list[DeploymentSchedule] = Field(default_factory=list)

    model_config = ConfigDict(arbitrary_types_allowed=True)


class DeploymentUpdate(BaseModel):
    """What of a deployment is to be changed; what is not said stays."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    version: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    parameters: dict[str, Any] | None = None
    paused: bool | None = None
    concurrency_limit: int | None = None
    entrypoint: str | None = None
    path: str | None = None
    work_pool_name: str | None = None
    work_queue_name: str | None = None
    parameter_openapi_schema: dict[str, Any] | None = None
    schedules: list[Any] | None = None


_FIELDS = {
    "version": "flow_version", "entrypoint": "flow", "work_pool_name": "pool", "work_queue_name": "queue",
    "parameter_openapi_schema": "parameter_schema",
}  # fmt: skip


class WorkPoolCreate(BaseModel):
    """A pool to be made."""

    model_config = ConfigDict(extra="ignore")

    name: str
    description: str | None = None
    type: str = "process"
    is_paused: bool = False
    concurrency_limit: int | None = Field(None, ge=0)


class WorkPoolUpdate(BaseModel):
    """What of a pool is to be changed; what is not said stays."""

    model_config = ConfigDict(extra="ignore")

    description: str | None = None
    is_paused: bool | None = None
    concurrency_limit: int | None = Field(None, ge=0)


class WorkPool(WorkPoolCreate):
    """A pool as it is now; its id is its name."""

    @property
    def id(self) -> str:
        return self.name

    @property
    def is_push_pool(self) -> bool:
        return False


class PrefectClient(RunClient):
    """What ``get_client()`` gives in async code: ``async with get_client() as client: await client.read_flow_run(id)``.

    Ids of deployments, flows, automations and pools are their names; that of a schedule is ``deployment/name``.

    Raises (every method):
        UnknownName: there is none. BusUnavailable: no broker is known, or it does not answer.
    """

    # --- deployments ----------------------------------------------------------------------------------

    async def create_deployment(
        self,
        flow_id: object,
        name: str,
        version: str | None = None,
        schedules: Iterable[Any] | None = None,
        concurrency_limit: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        description: str | None = None,
        work_queue_name: str | None = None,
        work_pool_name: str | None = None,
        tags: Iterable[str] | None = None,
        path: str | None = None,
        entrypoint: str | None = None,
        parameter_openapi_schema: dict[str, Any] | None = None,
        paused: bool | None = None,
        job_variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Make a deployment of a flow, or change the one of this name; return its name.

        Args:
            entrypoint: where workers find the flow.
            job_variables: does nothing here: there are no jobs to configure.
        Raises:
            InvalidValueError: it says no entrypoint, or something in it is wrong.
        """
        del job_variables
        if entrypoint is None:
            raise InvalidValueError(
                f"deployment {name!r} says not where its flow is", hint='entrypoint="path/file.py:function"'
            )
        values: dict[str, Any] = {
            "name": name, "flow": entrypoint, "flow_name": str(flow_id), "path": path, "description": description,
            "flow_version": version, "parameters": dict(parameters or {}), "tags": tuple(tags or ()),
            "parameter_schema": parameter_openapi_schema, "paused": bool(paused), "concurrency": concurrency_limit,
            "pool": work_pool_name or "default", "queue": work_queue_name or "default",
        }  # fmt: skip
        made = _checked(Deployment, values, f"deployment {name!r}")
        stored = _stored(name, schedules or ())

        async def make(session: Session) -> str:
            from ..engine.dispatching.control import Control
            from .ownership import store_schedules

            await Control(session.bus).put_deployment(made)
            await store_schedules(session.bus, name, stored)
            return name

        return await self._ask(make)

    async def read_deployment(self, deployment_id: object) -> ReadDeployment:
        """Return a deployment with its schedules."""
        found = await super().read_deployment(deployment_id)
        return await self._with_schedules(found)

    async def read_deployment_by_name(self, name: str) -> ReadDeployment:
        """Return a deployment by ``"flow/deployment"``, or by its own name."""
        return await self._with_schedules(await super().read_deployment_by_name(name))

    async def read_deployments(
        self,
        *,
        flow_filter: FlowFilter | None = None,
        deployment_filter: DeploymentFilter | None = None,
        sort: DeploymentSort | str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Deployment]:
        """Return the deployments that fit, with their schedules; by name, unless it is said otherwise."""
        found = await super().read_deployments(
            flow_filter=flow_filter,
            deployment_filter=deployment_filter,
            sort=sort,
            limit=limit,
            offset=offset,
        )
        if len(found) < 2:
            return [await self._with_schedules(one) for one in found]
        every = await self._ask(lambda session: _schedules(session, ""))
        return [_with(one, every.get(one.name, [])) for one in found]

    async def update_deployment(self, deployment_id: object, deployment: DeploymentUpdate) -> None:
        """Change what is said of a deployment; its schedules are replaced where any are said.

        Raises:
            InvalidValueError: it would be none.
        """
        said = deployment.model_dump(exclude_unset=True, exclude={"schedules"})
        # As they are: put down, an interval loses the moment it is counted from.
        schedules = deployment.schedules
        values: dict[str, Any] = {_FIELDS.get(word, word): value for word, value in said.items()}
        if "concurrency_limit" in values:
            limit = values.pop("concurrency_limit")
            values["concurrency"] = None if limit is None else ConcurrencySpec(limit=limit)
        if "tags" in values:
            values["tags"] = tuple(values["tags"] or ())
        name = str(deployment_id)

        async def change(session: Session) -> None:
            from ..engine.dispatching.control import Control
            from .ownership import store_schedules

            control = Control(session.bus)
            before = await control.deployment(name)
            after = _checked(Deployment, {**before.model_dump(), **values}, f"deployment {name!r}")
            if after != before:
                await control.put_deployment(after)
            if schedules is not None:
                await store_schedules(session.bus, name, _stored(name, schedules))

        await self._ask(change)

    async def set_deployment_paused_state(self, deployment_id: object, paused: bool) -> None:
        """Pause a deployment, or resume it."""
        await (self.pause_deployment if paused else self.resume_deployment)(deployment_id)

    async def delete_deployment(self, deployment_id: object) -> None:
        """Remove a deployment, with its schedules and triggers."""
        name = str(deployment_id)
        await super().read_deployment(name)

        async def delete(session: Session) -> None:
            entry = await session.bus.bucket(DEPLOYMENTS).get(name)
            if entry is not None:
                await delete_deployment(session.bus, name, revision=entry.revision)

        await self._ask(delete)

    # --- schedules ------------------------------------------------------------------------------------

    async def create_deployment_schedules(
        self,
        deployment_id: object,
        schedules: Iterable[Any],
        max_scheduled_runs: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        slug: str | None = None,
    ) -> list[DeploymentSchedule]:
        """Give a deployment more schedules; return them.

        Args:
            schedules: schedules of any kind, or pairs of one and whether it is active.
            parameters, slug: of those that say none themselves.
            max_scheduled_runs: does nothing here: no runs are made ahead of time.
        Raises:
            AlreadyExists: one of this name is there. InvalidValueError: one makes no sense.
        """
        del max_scheduled_runs
        name = str(deployment_id)
        await super().read_deployment(name)
        made: list[DeploymentSchedule] = []
        for one in schedules:
            kind, active = one if isinstance(one, tuple) else (one, None)
            made.append(DeploymentSchedule(kind, active=active, parameters=parameters, slug=slug))

        async def make(session: Session) -> list[DeploymentSchedule]:
            bucket = session.bus.bucket(SCHEDULES)
            taken = {key.rpartition("/")[2] for key in await bucket.keys(f"{name}/")}
            found = []
            for one in made:
                free = next(str(number) for number in range(len(taken) + 1) if str(number) not in taken)
                stored = StoredSchedule(
                    deployment=name,
                    name=one.slug or free,
                    schedule=parse_schedule(dict(one)),
                    paused=not one.active,
                )
                try:
                    await bucket.create(stored.key, _dumped(stored))
                except AlreadyHeld:
                    raise AlreadyExists("schedule", stored.key) from None
                taken.add(stored.name)
                found.append(_read(stored))
            return found

        return await self._ask(make)

    async def read_deployment_schedules(self, deployment_id: object) -> list[DeploymentSchedule]:
        """Return the schedules of a deployment, by name."""
        return (await self.read_deployment(deployment_id)).schedules

    async def update_deployment_schedule(
        self,
        deployment_id: object,
        schedule_id: str,
        active: bool | None = None,
        schedule: object = None,
        max_scheduled_runs: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Change a schedule of a deployment: when it fires, whether it does, what its runs are given."""
        del max_scheduled_runs
        name = schedule_id.rpartition("/")[2]
        key = f"{deployment_id}/{name}"

        async def change(session: Session) -> None:
            bucket = session.bus.bucket(SCHEDULES)
            entry = await bucket.get(key)
            if entry is None:
                raise UnknownName("schedule", key, known=await bucket.keys(f"{deployment_id}/"))
            before = _read(StoredSchedule.model_validate_json(entry.value))
            after = DeploymentSchedule(
                before if schedule is None else schedule,
                active=before.active if active is None else active,
                parameters=before.parameters if parameters is None else parameters,
                slug=before.slug,
            )
            stored = StoredSchedule(
                deployment=str(deployment_id),
                name=name,
                schedule=parse_schedule(dict(after)),
                paused=not after.active,
            )
            await bucket.update(key, _dumped(stored), revision=entry.revision)

        await self._ask(change)

    async def delete_deployment_schedule(self, deployment_id: object, schedule_id: str) -> None:
        """Take a schedule from a deployment."""
        key = f"{deployment_id}/{schedule_id.rpartition('/')[2]}"

        async def delete(session: Session) -> None:
            bucket = session.bus.bucket(SCHEDULES)
            if await bucket.get(key) is None:
                raise UnknownName("schedule", key, known=await bucket.keys(f"{deployment_id}/"))
            await bucket.delete(key)

        await self._ask(delete)

    async def _with_schedules(self, found: Deployment) -> ReadDeployment:
        every = await self._ask(lambda session: _schedules(session, f"{found.name}/"))
        return _with(found, every.get(found.name, []))

    # --- automations ----------------------------------------------------------------------------------

    async def create_automation(self, automation: AutomationCore) -> str:
        """Make an automation; return its id."""
        from ..automations.prefect_automation import Automation

        made = await Automation(**dict(automation)).acreate()
        assert made.id is not None
        return str(made.id)

    async def read_automation(self, automation_id: object) -> Automation | None:
        """Return an automation; None if there is none of this id."""
        from ..automations.prefect_automation import Automation, UnknownAutomation

        try:
            return await Automation.aread(id=str(automation_id))
        except UnknownAutomation:
            return None

    async def read_automations(self) -> list[Automation]:
        """Return the automations that are written in Prefect's words, by name; ``hark automations ls`` shows all."""
        from ..automations.prefect_automation import automations_in

        return await self._ask(automations_in)

    async def read_automations_by_name(self, name: str) -> list[Automation]:
        """Return the automations of a name: it need not be one."""
        return [one for one in await self.read_automations() if one.name == name]

    async def find_automation(self, id_or_name: object) -> Automation | None:
        """Return the automation of an id or a name, whatever case it is written in; None if there is none."""
        wanted = str(id_or_name)
        all_ = await self.read_automations()
        fits = [one for one in all_ if wanted in (one.id, one.name)]
        fits += [one for one in all_ if one.name.lower() == wanted.lower()]
        return fits[0] if fits else None

    async def update_automation(self, automation_id: object, automation: AutomationCore) -> None:
        """Put another in the place of an automation."""
        from ..automations.prefect_automation import Automation

        await Automation(**{**dict(automation), "id": str(automation_id)}).aupdate()

    async def pause_automation(self, automation_id: object) -> None:
        """Pause an automation."""
        await (await self._automation(automation_id)).adisable()

    async def resume_automation(self, automation_id: object) -> None:
        """Resume an automation."""
        await (await self._automation(automation_id)).aenable()

    async def delete_automation(self, automation_id: object) -> None:
        """Remove an automation; nothing happens if it is gone already."""
        found = await self.read_automation(automation_id)
        if found is not None:
            await found.adelete()

    async def _automation(self, automation_id: object) -> Automation:
        from ..automations.prefect_automation import Automation

        return await Automation.aread(id=str(automation_id))

    # --- pools ----------------------------------------------------------------------------------------

    async def create_work_pool(self, work_pool: WorkPoolCreate, overwrite: bool = False) -> WorkPool:
        """Make a pool; its workers run everything in processes of theirs, whatever its ``type`` says.

        Raises:
            AlreadyExists: there is one of this name, and ``overwrite`` was not said.
        """
        made = _checked(
            Pool,
            {
                "name": work_pool.name, "description": work_pool.description, "paused": work_pool.is_paused,
                "concurrency": work_pool.concurrency_limit,
            },
            f"pool {work_pool.name!r}",
        )  # fmt: skip

        async def make(session: Session) -> WorkPool:
            bucket = session.bus.bucket(POOLS)
            raw = made.model_dump_json().encode()
            try:
                await (bucket.put if overwrite else bucket.create)(made.name, raw)
            except AlreadyHeld:
                raise AlreadyExists("work pool", made.name) from None
            return _pool(made)

        return await self._ask(make)

    async def read_work_pool(self, work_pool_name: str) -> WorkPool:
        """Return a pool that was made."""
        pools = {one.name: one for one in await self.read_work_pools()}
        if work_pool_name not in pools:
            raise UnknownName("work pool", work_pool_name, known=list(pools))
        return pools[work_pool_name]

    async def read_work_pools(self, limit: int | None = None, offset: int = 0) -> list[WorkPool]:
        """Return the pools that were made, by name; any other name is a pool without limits."""

        async def read(session: Session) -> list[WorkPool]:
            entries = await session.bus.bucket(POOLS).entries()
            pools = sorted((Pool.model_validate_json(one.value) for one in entries), key=lambda one: one.name)
            return [_pool(one) for one in pools][offset : None if limit is None else offset + limit]

        return await self._ask(read)

    async def update_work_pool(self, work_pool_name: str, work_pool: WorkPoolUpdate) -> None:
        """Change what is said of a pool. Raises ``InvalidValueError`` if it would be none."""
        said = work_pool.model_dump(exclude_unset=True)
        words = {"is_paused": "paused", "concurrency_limit": "concurrency"}

        async def change(session: Session) -> None:
            bucket = session.bus.bucket(POOLS)
            entry = await bucket.get(work_pool_name)
            if entry is None:
                raise UnknownName("work pool", work_pool_name, known=await bucket.keys())
            before = Pool.model_validate_json(entry.value)
            changed = {words.get(word, word): value for word, value in said.items()}
            after = _checked(Pool, {**before.model_dump(), **changed}, f"pool {work_pool_name!r}")
            await bucket.update(work_pool_name, after.model_dump_json().encode(), revision=entry.revision)

        await self._ask(change)

    async def delete_work_pool(self, work_pool_name: str) -> None:
        """Remove what is said of a pool; its name stays a pool without limits."""
        await self.read_work_pool(work_pool_name)
        await self._ask(lambda session: session.bus.bucket(POOLS).delete(work_pool_name))


def _pool(pool: Pool) -> WorkPool:
    return WorkPool(
        name=pool.name, description=pool.description, type=pool.type, is_paused=pool.paused,
        concurrency_limit=pool.concurrency,
    )  # fmt: skip


ModelT = TypeVar("ModelT", bound=BaseModel)


def _checked(model: type[ModelT], values: Mapping[str, Any], what: str) -> ModelT:
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidValueError(f"{what} ({where}): {first['msg'].removeprefix('Value error, ')}") from exc


def _stored(deployment: str, schedules: Iterable[Any]) -> list[StoredSchedule]:
    try:
        stored = [
            StoredSchedule.of(deployment, number, parse_schedule(dict(DeploymentSchedule(one))))
            for number, one in enumerate(schedules)
        ]
    except DefinitionError as exc:
        raise InvalidValueError(str(exc)) from exc
    if len({one.name for one in stored}) < len(stored):
        raise InvalidValueError(f"deployment {deployment!r} has two schedules of one name")
    return stored


def _dumped(stored: StoredSchedule) -> bytes:
    return stored.model_dump_json(exclude_defaults=True, by_alias=True).encode()


def _read(stored: StoredSchedule) -> DeploymentSchedule:
    text = stored.schedule.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    found = DeploymentSchedule(text, active=not stored.is_paused, slug=stored.name)
    found.id, found.deployment_id = stored.key, stored.deployment
    return found


class SyncPrefectClient(SyncRunClient):
    """What ``get_client(sync_client=True)`` gives: the same calls, holding the thread."""

    _client = PrefectClient


@overload
def get_client(*, sync_client: Literal[False] = ..., httpx_settings: object = ...) -> PrefectClient: ...


@overload
def get_client(*, sync_client: Literal[True], httpx_settings: object = ...) -> SyncPrefectClient: ...


def get_client(
    *, sync_client: bool = False, httpx_settings: object = None
) -> PrefectClient | SyncPrefectClient:
    """Return a client for runs and what they are made of; see ``PrefectClient``. ``hark.Hark`` is the one of the HTTP API.

    Args:
        sync_client: one for sync code: ``with get_client(sync_client=True) as client: client.read_flow_run(id)``.
        httpx_settings: does nothing here.
    """
    del httpx_settings
    return SyncPrefectClient() if sync_client else PrefectClient()


async def _schedules(session: Session, prefix: str) -> dict[str, list[DeploymentSchedule]]:
    """Return the schedules whose keys begin so, by deployment: one listing, however many there are."""
    entries = await session.bus.bucket(SCHEDULES).entries(prefix)
    found: dict[str, list[DeploymentSchedule]] = {}
    for one in sorted(
        (StoredSchedule.model_validate_json(e.value) for e in entries), key=lambda one: one.name
    ):
        found.setdefault(one.deployment, []).append(_read(one))
    return found


def _with(found: Deployment, schedules: list[DeploymentSchedule]) -> ReadDeployment:
    return ReadDeployment(**{**dict(found), "schedules": schedules})
