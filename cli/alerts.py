"""``hark alerts``: open incidents, and taking them on."""

from __future__ import annotations

from typing import Annotated

import typer

from .call import AsJson, ago, ask, group, pairs, show, table
from .silences import user

alerts = group("Open incidents, as the routing of notifications groups them: ls, show, ack.")

_Id = Annotated[str, typer.Argument(help="Its id, or the beginning of it.")]


@alerts.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List open incidents, oldest first."""
    items = ask(lambda h: h.alerts())
    rows = [
        [a["id"], ago(a.get("opened_at")), a.get("state"), a.get("severity"), a.get("alerts"), a.get("title"),
         a.get("told_to")]
        for a in items
    ]  # fmt: skip
    heads = ["ID", "AGE", "STATE", "SEVERITY", "ALERTS", "TITLE", "TOLD TO"]
    show(items, table(heads, rows, empty="nothing is open"), as_json=as_json)


@alerts.command("show")
def show_one(incident: _Id, as_json: AsJson = False) -> None:
    """Show an open incident with its alerts."""
    item = ask(lambda h: h.alert(incident))
    show(item, pairs(item), as_json=as_json)


@alerts.command("ack")
def ack(
    incident: _Id,
    by: Annotated[str | None, typer.Option(help="Who; default: you.")] = None,
    note: Annotated[str, typer.Option(help="What you have to say about it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Take on an incident: it is not repeated and not escalated until something new comes."""
    who = by if by is not None else user()
    answer = ask(lambda h: h.acknowledge(incident, by=who, note=note))
    show(answer, f"{answer['id']} is {answer['state']}", as_json=as_json)
