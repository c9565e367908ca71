"""``hark dlq``: actions that failed for good and wait for a person."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ago, ask, group, pairs, show, table

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..vocabulary import JsonObject

dlq = group("Dead letters: actions that failed for good: ls, show, redrive, drop.")

_Id = Annotated[str, typer.Argument(help="The dead letter's id.")]
_Rule = Annotated[str | None, typer.Option("--rule", help="Only of this rule.")]


@dlq.command("ls")
def ls(
    rule: _Rule = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    page = ask(lambda h: h.dead_letters(automation=rule, limit=limit))
    rows = [
        [d["id"], ago(d.get("at")), d.get("automation"), d.get("kind"), d.get("error")] for d in page.items
    ]
    show(
        page.items,
        table(["ID", "AGE", "RULE", "ACTION", "ERROR"], rows, empty="no dead letters"),
        as_json=as_json,
    )


@dlq.command("show")
def show_one(letter: _Id, as_json: AsJson = False) -> None:
    """Show one dead letter."""
    item = ask(lambda h: h.dead_letter(letter))
    show(item, pairs(item), as_json=as_json)


@dlq.command("redrive")
def redrive(
    letters: Annotated[list[str] | None, typer.Argument(help="Dead letters' ids.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    rule: _Rule = None,
) -> None:
    """Try the action of a dead letter again."""
    for letter in _chosen(letters, everything, rule):
        ask(_calling("redrive", letter))
        typer.echo(f"{letter} is tried again")


@dlq.command("drop")
def drop(
    letters: Annotated[list[str] | None, typer.Argument(help="Dead letters' ids.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    rule: _Rule = None,
) -> None:
    """Give a dead letter up."""
    for letter in _chosen(letters, everything, rule):
        ask(_calling("drop", letter))
        typer.echo(f"{letter} is dropped")


def _calling(verb: str, letter: str) -> Callable[[Hark], Awaitable[JsonObject]]:
    return lambda hark: hark.redrive(letter) if verb == "redrive" else hark.drop(letter)


def _chosen(letters: list[str] | None, everything: bool, rule: str | None) -> list[str]:
    if bool(letters) == (everything or rule is not None):
        raise typer.BadParameter("name dead letters, or give --all, or the --rule whose they are")
    return letters or [str(d["id"]) for d in ask(lambda h: h.all_dead_letters(automation=rule))]
