"""``hark approvals``: questions that rules ask people, and their answers."""

from __future__ import annotations

from typing import Annotated

import typer

from .call import AsJson, ago, ask, group, show, table, when
from .silences import user

approvals = group("Questions that rules ask people: ls, approve, reject.")

_Id = Annotated[str, typer.Argument(help="Its id, or the beginning of it.")]
_By = Annotated[str | None, typer.Option(help="Who; default: you.")]


@approvals.command("ls")
def ls(
    everything: Annotated[bool, typer.Option("--all", help="Also those that ended lately.")] = False,
    as_json: AsJson = False,
) -> None:
    """List questions that wait for an answer, the newest first."""
    items = [a for a in ask(lambda h: h.approvals()) if everything or a.get("state") == "open"]
    rows = [
        [a["id"], a.get("state"), a.get("automation"), ago(a.get("asked_at")), when(a.get("expires_at")), a.get("title"),
         a.get("by")]
        for a in items
    ]  # fmt: skip
    heads = ["ID", "STATE", "RULE", "ASKED", "UNTIL", "QUESTION", "BY"]
    show(items, table(heads, rows, empty="nothing waits for an answer"), as_json=as_json)


@approvals.command("approve")
def approve(approval: _Id, by: _By = None, as_json: AsJson = False) -> None:
    """Say yes: the actions of `yes` are carried out."""
    _answer(approval, "yes", by, as_json)


@approvals.command("reject")
def reject(approval: _Id, by: _By = None, as_json: AsJson = False) -> None:
    """Say no: the actions of `no` are carried out."""
    _answer(approval, "no", by, as_json)


def _answer(approval: str, word: str, by: str | None, as_json: bool) -> None:
    who = by if by is not None else user()
    made = ask(lambda h: h.answer_approval(approval, word, by=who))
    show(made, f"{made['id']} is {made['state']}", as_json=as_json)
