"""``hark deployments``: flows that can be run by name."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from .backfills import backfill
from .call import AsJson, ask, group, json_argument, key_values, pairs, plain, show, table

deployments = group(
    "Flows with a name, parameters, schedules and a pool: ls, show, run, pause, resume, delete, backfill."
)
deployments.command("backfill")(backfill)

_Name = Annotated[str, typer.Argument(help="The deployment.")]


@deployments.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List deployments."""
    items = ask(lambda h: h.deployments())
    rows = [
        [d["name"], d.get("flow"), d.get("pool"), d.get("queue"), d.get("schedules", 0), d.get("paused")]
        for d in items
    ]
    head = ["NAME", "FLOW", "POOL", "QUEUE", "SCHEDULES", "PAUSED"]
    show(items, table(head, rows, empty="no deployments; write some into hark.yaml"), as_json=as_json)


@deployments.command("show")
def show_one(name: _Name, as_json: AsJson = False) -> None:
    """Show one deployment."""
    item = ask(lambda h: h.deployment(name))
    show(item, pairs(item), as_json=as_json)


@deployments.command("run")
def run(
    name: _Name,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="NAME=VALUE; JSON keeps its type.")
    ] = None,
    params: Annotated[
        str | None, typer.Option(help="All parameters as one JSON object, or - for stdin.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tags of the run.")] = None,
    queue: Annotated[str | None, typer.Option(help="Another queue of its pool.")] = None,
    delay: Annotated[str | None, typer.Option(help="Start after this: 30s, 10m.")] = None,
    key: Annotated[str | None, typer.Option(help="Asking twice with one key is asking once.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when it is over; exit 1 if it failed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a deployment now."""
    from ..duration import parse_duration

    given = json_argument(params)
    if given is not None and not isinstance(given, dict):
        raise typer.BadParameter("--params must be a JSON object")
    sent = {**(given or {}), **key_values(parameters or [])}
    try:
        later = timedelta(seconds=parse_duration(delay)) if delay else None
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    result = ask(
        lambda h: h.run_deployment(
            name, parameters=sent, tags=tag or (), queue=queue, delay=later, key=key, wait=wait, kind="cli"
        )
    )
    message = f"  {plain(result['state_message'])}" if result.get("state_message") else ""
    show(result, f"{result['id']}  {result.get('state_name')}{message}", as_json=as_json)
    if wait and result.get("state_type") != "COMPLETED":
        raise typer.Exit(1)


@deployments.command("pause")
def pause(name: _Name, as_json: AsJson = False) -> None:
    """Stop starting runs of a deployment; what runs goes on."""
    show(ask(lambda h: h.pause("deployment", name)), f"{name} is paused", as_json=as_json)


@deployments.command("resume")
def resume(name: _Name, as_json: AsJson = False) -> None:
    """Start runs of a deployment again."""
    show(ask(lambda h: h.resume("deployment", name)), f"{name} goes on", as_json=as_json)


@deployments.command("delete")
def delete(name: _Name, as_json: AsJson = False) -> None:
    """Take a deployment away, with its schedules and triggers; one that stands in a configuration comes back with it."""
    result = ask(lambda h: h.delete_deployment(name))
    triggers = result.get("triggers")
    went = (
        f", and so are its triggers: {', '.join(map(str, triggers))}"
        if isinstance(triggers, list) and triggers
        else ""
    )
    show(result, f"{name} is gone{went}", as_json=as_json)
