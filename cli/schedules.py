"""``hark schedules``: when deployments run by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ago, ask, group, show, table

if TYPE_CHECKING:
    from ..vocabulary import JsonValue

schedules = group("When deployments run by themselves: ls, next, pause, resume.")

_Key = Annotated[str, typer.Argument(help="The schedule: <deployment>/<number or name>.")]


@schedules.command("ls")
def ls(
    deployment: Annotated[str | None, typer.Option(help="Only of this deployment.")] = None,
    as_json: AsJson = False,
) -> None:
    """List schedules and when each fires next."""
    items = ask(lambda h: h.schedules(deployment=deployment))
    rows = []
    for s in items:
        following = s.get("next")
        first = following[0] if isinstance(following, list) and following else None
        rows.append([s["key"], s.get("description"), first, ago(first), s.get("paused")])
    show(
        items, table(["SCHEDULE", "WHEN", "NEXT", "", "PAUSED"], rows, empty="no schedules"), as_json=as_json
    )


@schedules.command("next")
def next_(
    deployment: Annotated[str | None, typer.Argument(help="Only of this deployment.")] = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="So many of each schedule.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show the next fire times, soonest first."""
    items = ask(lambda h: h.schedules(deployment=deployment, count=count))
    fires: list[tuple[str, str]] = []
    for s in items:
        following = s.get("next")
        if isinstance(following, list) and not s.get("paused"):
            fires += [(str(at), str(s["key"])) for at in following]
    fires.sort()
    listed: list[JsonValue] = [{"at": at, "schedule": key} for at, key in fires]
    text = table(["AT", "", "SCHEDULE"], [[at, ago(at), key] for at, key in fires], empty="nothing will fire")
    show(listed, text, as_json=as_json)


@schedules.command("pause")
def pause(key: _Key, as_json: AsJson = False) -> None:
    """Stop a schedule."""
    show(ask(lambda h: h.pause("schedule", key)), f"{key} is paused", as_json=as_json)


@schedules.command("resume")
def resume(key: _Key, as_json: AsJson = False) -> None:
    """Let a schedule fire again."""
    show(ask(lambda h: h.resume("schedule", key)), f"{key} goes on", as_json=as_json)
