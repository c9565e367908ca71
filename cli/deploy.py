"""``hark deploy FILE:FLOW``: what ``flow.deploy(…)`` does, from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, json_argument, key_values, run_async, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..server.description import RunnerDeployment
    from ..vocabulary import JsonObject


def deploy(
    entrypoint: Annotated[str, typer.Argument(metavar="FILE:FLOW", help="path/file.py:flow or module:flow")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Default: the flow's name.")] = None,
    cron: Annotated[list[str] | None, typer.Option(help="'0 6 * * mon-fri'; may be repeated.")] = None,
    interval: Annotated[list[str] | None, typer.Option(help="15m, 6h; may be repeated.")] = None,
    rrule: Annotated[list[str] | None, typer.Option(help="An iCalendar rule; may be repeated.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="The clock of the schedules: Europe/Berlin. Default: UTC.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--param", "--parameter", help="NAME=VALUE; JSON keeps its type."),
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="All parameters as one JSON object, or - for stdin.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tags of its runs.")] = None,
    pool: Annotated[str, typer.Option(help="Whose workers run it.")] = "default",
    queue: Annotated[str | None, typer.Option(help="A queue of the pool.")] = None,
    description: Annotated[str | None, typer.Option(help="Default: the flow's.")] = None,
    version: Annotated[str | None, typer.Option(help="Default: the flow's.")] = None,
    concurrency_limit: Annotated[int | None, typer.Option(min=1, help="Its runs at once.")] = None,
    on_conflict: Annotated[
        str | None, typer.Option(help="What a run past the limit does: queue, skip or cancel-running.")
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Nothing of it starts until resumed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a deployment of a flow for the workers of a pool; one of this name is replaced, its schedules too."""
    from ..engine.tasks import Task
    from ..errors import DefinitionError
    from .run import load_entrypoint

    schedules = _schedules(cron or (), interval or (), rrule or (), timezone)
    limit = _limit(concurrency_limit, on_conflict)
    given = json_argument(params)
    if given is not None and not isinstance(given, dict):
        raise typer.BadParameter("--params must be a JSON object")
    flow = load_entrypoint(entrypoint)
    if isinstance(flow, Task):
        raise DefinitionError(f"{entrypoint} is a task, not a flow", hint="serve it with `hark tasks serve`")
    described = flow.to_deployment(
        name or flow.name, schedules=schedules or None, parameters={**(given or {}), **key_values(parameters or [])},
        tags=tag or (), work_pool_name=pool, work_queue_name=queue, description=description, version=version,
        concurrency_limit=limit, paused=paused,
    )  # fmt: skip
    run_async(lambda: _store(described, pool))
    value: JsonObject = {"name": described.name, "pool": pool, "schedules": schedules, "paused": paused}
    text = f"{described.name} is deployed to pool {pool}; run it with `hark deployments run {described.name}`"
    show(value, text, as_json=as_json)


def _schedules(
    cron: Sequence[str], interval: Sequence[str], rrule: Sequence[str], timezone: str | None
) -> list[Any]:
    clock = {} if timezone is None else {"timezone": timezone}
    found: list[JsonObject] = [
        {kind: one, **clock}
        for kind, several in (("cron", cron), ("interval", interval), ("rrule", rrule))
        for one in several
    ]
    if clock and not found:
        raise typer.BadParameter("--timezone is the clock of a schedule: give --cron, --interval or --rrule")
    return found


def _limit(limit: int | None, on_conflict: str | None) -> JsonObject | None:
    if limit is None:
        if on_conflict is not None:
            raise typer.BadParameter("--on-conflict says what --concurrency-limit does: give that, too")
        return None
    return {"limit": limit} if on_conflict is None else {"limit": limit, "on_conflict": on_conflict}


async def _store(described: RunnerDeployment, pool: str) -> None:
    from ..bus.address import locate_broker
    from ..bus.session import no_broker, open_bus
    from ..config import load_settings
    from ..server.serving import store

    settings = load_settings()
    address = locate_broker(settings)
    if address is None:
        raise no_broker("there is nothing to deploy to")
    async with open_bus(address, settings.bus) as bus:
        await store(bus, [described], pool=pool)
