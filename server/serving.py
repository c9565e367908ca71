"""Deployments out of code: ``deploy`` stores them for workers of a pool, ``serve`` is itself the worker they run in."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..engine.sync_async.either import Either
from ..errors import DefinitionError, GuardFailed, UnavailableError
from ..triggers.schedule import StoredSchedule, parse_schedule
from .description import RunnerDeployment, pool_for

if TYPE_CHECKING:
    from ..bus import Bus
    from ..bus.session import Session
    from ..config import Settings
    from ..engine.task_worker import TaskWorker
    from ..engine.tasks import Task
    from .service import Service

__all__ = ["adeploy", "aserve", "deploy", "serve", "serving", "serving_tasks"]

log = logging.getLogger("hark.serve")

SCHEDULES = "schedules"
_TRIES = 20


@Either
async def deploy(
    session: Session,
    *deployments: RunnerDeployment,
    work_pool_name: str | None = None,
    image: object = None,
    build: bool = True,
    push: bool = True,
    print_next_steps_message: bool = True,
    ignore_warnings: bool = False,
) -> list[str]:
    """Store deployments for the workers of their pools; return their names. As ``await deploy(…)`` in async code.

    What a deployment does not say any more (a schedule, a trigger) is gone afterwards.

    Args:
        work_pool_name: for those that name none; default ``default``.
        image, build, push, print_next_steps_message, ignore_warnings: do nothing here: no images are built. For
            programs written for Prefect.
    Raises:
        DefinitionError: one of them is wrong; then none is stored.
    """
    del image, build, push, print_next_steps_message, ignore_warnings
    return await store(session.bus, deployments, pool=work_pool_name or "default")


adeploy = deploy.aio


async def store(bus: Bus, deployments: Sequence[RunnerDeployment], *, pool: str) -> list[str]:
    """Store deployments with their schedules and triggers; see ``deploy``."""
    from ..automations.deployment_trigger import trigger_rules
    from ..engine.dispatching.control import Control
    from .ownership import check_triggers, store_schedules, store_triggers

    if not deployments:
        raise DefinitionError("there is nothing to deploy", hint="give it what flow.to_deployment(…) returns")
    made = [
        (one.definition(pool=pool), _stored_schedules(one), trigger_rules(one.name, tuple(one.triggers)))
        for one in deployments
    ]
    for definition, _, rules in made:
        await check_triggers(bus, definition.name, rules)
    control = Control(bus)
    for definition, schedules, rules in made:
        await control.put_deployment(definition)
        await store_schedules(bus, definition.name, schedules)
        await store_triggers(bus, definition.name, rules)
    return [definition.name for definition, _, _ in made]


def _stored_schedules(described: RunnerDeployment) -> list[StoredSchedule]:
    stored = [
        StoredSchedule.of(described.name, number, parse_schedule(dict(written)))
        for number, written in enumerate(described.schedules)
    ]
    if len({one.name for one in stored}) < len(stored):
        raise DefinitionError(f"deployment {described.name!r} has two schedules of one name")
    return stored


def serve(
    *deployments: RunnerDeployment | Task[..., Any],
    limit: int | None = None,
    pause_on_shutdown: bool = True,
    print_starting_message: bool = True,
) -> None:
    """Store deployments and run what is asked of them in this process, until it is stopped (Ctrl-C, TERM).

    They get a pool of their own, so nobody else's workers take their runs. Where a broker is known, this process is
    a worker on it; where none is, it starts everything, as ``hark up`` does, on ``HARK_HOME``.

    Given tasks, it serves what their ``delay`` asks for, together with all other processes that serve them.

    Args:
        limit: runs at once; default: the worker's settings, and 10 of tasks. One that waits for long is none of them.
        pause_on_shutdown: pause their schedules when it stops.
    Raises:
        DefinitionError: one of them is wrong, or they are deployments and tasks.
        RefusedError: called from async code, whose loop it would hold for good.
    """
    from ..engine.sync_async.either import is_async_here
    from ..errors import RefusedError

    if is_async_here():
        raise RefusedError(
            "serve() runs until it is stopped, and would hold this event loop",
            hint="call it from sync code, or use `async with serving(…)`",
        )
    tasks = [one for one in deployments if not isinstance(one, RunnerDeployment)]
    described = [one for one in deployments if isinstance(one, RunnerDeployment)]
    if tasks and described:
        raise DefinitionError(
            "deployments and tasks cannot be served together", hint="serve each kind in a process of its own"
        )
    import anyio

    async def run() -> None:
        import signal

        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with AsyncExitStack() as stack:
                if tasks:
                    await stack.enter_async_context(serving_tasks(*tasks, limit=limit or 10))
                    service = None
                else:
                    service = await stack.enter_async_context(
                        serving(*described, limit=limit, pause_on_shutdown=pause_on_shutdown)
                    )
                if print_starting_message:
                    _say_served(deployments, service)
                async for _ in signals:
                    break

    anyio.run(run)


async def aserve(
    *deployments: RunnerDeployment,
    limit: int | None = None,
    pause_on_shutdown: bool = True,
    print_starting_message: bool = True,
) -> None:
    """Do what ``serve`` does in async code, until it is cancelled."""
    import anyio

    async with serving(*deployments, limit=limit, pause_on_shutdown=pause_on_shutdown) as service:
        if print_starting_message:
            _say_served(deployments, service)
        await anyio.sleep_forever()


def _say_served(served: Sequence[RunnerDeployment | Task[..., Any]], service: Service | None) -> None:
    names = ", ".join(repr(one.name) for one in served)
    where = f", see {service.url}" if service is not None and service.url else ""
    if service is None:
        text = f"Serving task{'s' if len(served) > 1 else ''} {names}. Ask for a run with `task.delay(…)`."
    else:
        text = f"Serving {names}{where}. Ask for a run with `hark deployments run NAME`."
    print(text, flush=True)  # noqa: T201  it speaks to who started it


@asynccontextmanager
async def serving(
    *deployments: RunnerDeployment,
    limit: int | None = None,
    pause_on_shutdown: bool = True,
    settings: Settings | None = None,
    pool: str | None = None,
) -> AsyncGenerator[Service]:
    """Serve deployments while inside; see ``serve``. ``pool`` is the name of the pool they get."""
    from ..bus import locate_broker
    from ..config import load_settings
    from .roles import ALL_ROLES, Role
    from .service import Service

    if not deployments:
        raise DefinitionError("there is nothing to serve", hint="give it what flow.to_deployment(…) returns")
    settings = settings or load_settings()
    pool = pool or pool_for(deployments)
    changes: dict[str, Any] = {"pool": pool}
    if limit is not None:
        changes |= {"concurrency": limit, "processes": limit}
    settings = settings.model_copy(update={"worker": settings.worker.model_copy(update=changes)})
    # The dispatcher stands by where another one leads; beside a bare broker it is the only one.
    alone = locate_broker(settings) is None
    roles = ALL_ROLES if alone else frozenset({Role.WORKER, Role.DISPATCHER})
    async with Service(settings, roles=roles) as service:
        served = [_into(one, pool) for one in deployments]
        names = await store(service.bus, served, pool=pool)
        try:
            yield service
        finally:
            if pause_on_shutdown:
                await _pause_schedules(service.bus, names)


@asynccontextmanager
async def serving_tasks(
    *tasks: Task[..., Any], limit: int | None = 10, settings: Settings | None = None
) -> AsyncGenerator[TaskWorker]:
    """Serve tasks while inside; see ``serve``."""
    from ..config import load_settings
    from ..engine.task_worker import TaskWorker

    settings = settings or load_settings()
    async with AsyncExitStack() as stack:
        bus = await known_bus(stack, settings)
        worker = TaskWorker(
            *tasks, limit=limit, bus=bus, engine=settings.engine, drain_s=settings.worker.drain_s,
            parked=settings.worker.parked,
        )  # fmt: skip
        yield await stack.enter_async_context(worker)


async def known_bus(stack: AsyncExitStack, settings: Settings | None = None) -> Bus:
    """Open the bus of the broker that is known, as long as ``stack``; where none is, start everything."""
    from ..bus import locate_broker
    from ..bus.session import open_bus
    from ..config import load_settings
    from .roles import ALL_ROLES
    from .service import Service

    settings = settings or load_settings()
    address = locate_broker(settings)
    if address is None:
        return (await stack.enter_async_context(Service(settings, roles=ALL_ROLES))).bus
    return await stack.enter_async_context(open_bus(address, settings.bus))


def _into(described: RunnerDeployment, pool: str) -> RunnerDeployment:
    if described.pool not in (None, pool):
        raise DefinitionError(
            f"deployment {described.name!r} names pool {described.pool!r}, and what is served runs in this process",
            hint="leave work_pool_name out, or use deploy(…) and a worker of that pool",
        )
    return described


async def _pause_schedules(bus: Bus, deployments: Sequence[str]) -> None:
    """Pause schedules whose process goes away, so that no runs pile up which nobody takes."""
    bucket = bus.bucket(SCHEDULES)
    try:
        for name in deployments:
            for entry in await bucket.entries(f"{name}/"):
                stored = StoredSchedule.model_validate_json(entry.value)
                if not stored.is_paused:
                    paused = stored.model_copy(update={"paused": True})
                    raw = paused.model_dump_json(exclude_defaults=True, by_alias=True).encode()
                    await bucket.update(entry.key, raw, revision=entry.revision)
    except (UnavailableError, GuardFailed) as exc:
        log.warning("serve.schedules_not_paused", extra={"error": str(exc)})
