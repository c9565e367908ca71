"""``hark dlq``: actions that failed for good and wait for a person."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

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
    _see_to("redrive", "tried again", letters, everything, rule)


@dlq.command("drop")
def drop(
    letters: Annotated[list[str] | None, typer.Argument(help="Dead letters' ids.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    rule: _Rule = None,
) -> None:
    """Give a dead letter up."""
    _see_to("drop", "dropped", letters, everything, rule)


def _see_to(verb: str, done: str, letters: list[str] | None, everything: bool, rule: str | None) -> None:
    if bool(letters) == (everything or rule is not None):
        raise typer.BadParameter("name dead letters, or give --all, or the --rule whose they are")
    for letter in letters or ():
        ask(_calling(verb, letter))
        typer.echo(f"{letter} is {done}")
    if not letters:
        seen_to, left = ask(lambda hark: _many(hark, verb, done, rule))
        typer.echo(f"{seen_to} dead letter{' is' if seen_to == 1 else 's are'} {done}")
        if left:
            raise typer.Exit(1)


def _calling(verb: str, letter: str) -> Callable[[Hark], Awaitable[JsonObject]]:
    return lambda hark: hark.redrive(letter) if verb == "redrive" else hark.drop(letter)


async def _many(hark: Hark, verb: str, done: str, rule: str | None) -> tuple[int, int]:
    """See to all (of a rule), telling of each page on stderr; return how many, and how many were left."""
    seen_to = left = 0
    pages = hark.redrive_all(automation=rule) if verb == "redrive" else hark.drop_all(automation=rule)
    page: Any
    async for page in pages:
        seen_to += len(page["ids"])
        for letter in page["left"]:
            left += 1
            typer.echo(f"left as it is: {letter['id']}: {letter['error']}", err=True)
        if page["next_cursor"] is not None:
            typer.echo(f"{seen_to} {done}, and on", err=True)
    return seen_to, left
