"""``hark runs cancel``: of one run, or of all that filters find, which are shown first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RefusedError
from .call import AsJson, ago, ask, show, table
from .ident import run_id_of

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..vocabulary import JsonObject

__all__ = ["cancel"]

_OPEN = ("scheduled", "pending", "running", "paused")
_SHOWN = 20
_PAGE = 500


def cancel(
    run_ids: Annotated[
        list[str] | None,
        typer.Argument(help="The runs' ids, or their beginnings.", metavar="[RUN_ID]..."),
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="All in this state: scheduled, late, running …")
    ] = None,
    flow: Annotated[str | None, typer.Option(help="All of this flow.")] = None,
    deployment: Annotated[str | None, typer.Option(help="All of this deployment.")] = None,
    tag: Annotated[str | None, typer.Option(help="All with this tag.")] = None,
    since: Annotated[str | None, typer.Option(help="Not older than this: 10m, 2h, 7d, or a time.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="Refuse to cancel more than so many.")
    ] = 1000,
    reason: Annotated[str, typer.Option(help="Said in the state's message.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask runs to stop: those named, or all that filters find. With filters, they are shown first.

    A run that is over, or is being cancelled, is left out. Subflows are cancelled with the run above them.
    """
    filters = {"state": state, "flow": flow, "deployment": deployment, "tag": tag, "since": since}
    if bool(run_ids) == any(filters.values()):
        raise typer.BadParameter(
            "say which runs: ids, or some of --state, --flow, --deployment, --tag, --since"
        )
    if run_ids:
        for run in (stopped := ask(lambda h: _cancel_named(h, run_ids, reason))):
            if not as_json:
                typer.echo(f"{run['id']}  {run.get('state_name')}")
        if as_json:
            show(stopped[0] if len(stopped) == 1 else stopped, "", as_json=True)
        return
    found = ask(lambda h: _found(h, filters, limit))
    if not as_json:
        typer.echo(_plan_text(found))
    if not found or not yes:
        if as_json:
            show(found, "", as_json=True)
        if not found:
            return
        if as_json or not sys.stdin.isatty():
            typer.echo("nothing has been cancelled; add --yes", err=True)
            return
        if not typer.confirm(f"Cancel {_runs(len(found))}?"):
            raise typer.Exit(1)
    done: list[JsonObject] = []
    try:
        ask(lambda h: _cancel_all(h, [str(run["id"]) for run in found], reason, done))
    finally:
        if as_json:
            show(done, "", as_json=True)
        else:
            typer.echo(_done_text(done, len(found)))


async def _cancel_named(hark: Hark, run_ids: list[str], reason: str) -> list[JsonObject]:
    # All are known before the first is asked to stop.
    known = [await run_id_of(hark, one) for one in run_ids]
    return [await hark.cancel_flow_run(run_id, reason=reason) for run_id in known]


async def _found(hark: Hark, filters: dict[str, Any], limit: int) -> list[JsonObject]:
    """Return the runs to cancel, oldest first, without those that are over, and subflows of those that are among them.

    Raises:
        RefusedError: there are more than ``limit``.
    """
    asked = {**filters, "state": filters["state"] or list(_OPEN)}
    found: dict[str, JsonObject] = {}
    cursor: str | None = None
    while True:
        page = await hark.flow_runs(**asked, limit=_PAGE, cursor=cursor)
        for run in page.items:
            if str(run.get("state_type")).lower() in _OPEN:
                found[str(run["id"])] = run
        cursor = page.next
        if len(found) > limit:
            raise RefusedError(
                f"more than {limit} runs match; nothing has been cancelled",
                hint="say more of which are meant, or allow more with --limit",
            )
        if cursor is None:
            break
    return [run for run in reversed(found.values()) if run.get("parent") not in found]


async def _cancel_all(hark: Hark, run_ids: list[str], reason: str, done: list[JsonObject]) -> None:
    for run_id in run_ids:
        done.append(await hark.cancel_flow_run(run_id, reason=reason))
        if sys.stderr.isatty():
            count = len(done)
            typer.echo(f"\r\x1b[K{count}/{len(run_ids)}", err=True, nl=count == len(run_ids))


def _plan_text(found: list[JsonObject]) -> str:
    rows = [
        [r["id"], r.get("name"), r.get("flow_name"), r.get("deployment"), r.get("state_name"), ago(r.get("updated_at"))]
        for r in found
    ]  # fmt: skip
    cut = len(rows) - _SHOWN
    if cut > 0:
        half = _SHOWN // 2
        rows = [*rows[:half], [f"… {cut} more", "", "", "", "", ""], *rows[-half:]]
    shown = table(["ID", "NAME", "FLOW", "DEPLOYMENT", "STATE", "AGE"], rows, empty="no runs to cancel")
    return f"{shown}\n{_runs(len(found))} to cancel" if found else shown


def _done_text(done: list[JsonObject], asked: int) -> str:
    words: dict[str, int] = {}
    for run in done:
        state = str(run.get("state_name"))
        words[state] = words.get(state, 0) + 1
    said = ", ".join(f"{count} {state}" for state, count in sorted(words.items()))
    left = f"; {asked - len(done)} were not asked" if len(done) < asked else ""
    return f"{_runs(len(done))} asked to stop" + (f": {said}" if said else "") + left


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
