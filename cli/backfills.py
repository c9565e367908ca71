"""``hark deployments backfill`` and ``hark backfills``: running the slots of the past, with a plan first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .call import AsJson, ago, ask, group, key_values, pairs, show, table

if TYPE_CHECKING:
    from ..server.client import Hark
    from ..vocabulary import JsonObject

backfills = group("Slots of the past that are being run: ls, show, watch, cancel.")

_Name = Annotated[str, typer.Argument(help="The backfill.")]
_SHOWN = 40
_WAIT_S = 25.0


def backfill(
    name: Annotated[str, typer.Argument(help="The deployment.")],
    start: Annotated[str, typer.Option("--from", help="First day or moment: 2026-01-01.")],
    end: Annotated[str, typer.Option("--to", help="Day or moment before which it ends: 2026-02-01.")],
    max_parallel: Annotated[int, typer.Option(min=1, max=1000, help="So many runs at once.")] = 1,
    schedule: Annotated[list[str] | None, typer.Option(help="Only this schedule; may be repeated.")] = None,
    reprocess: Annotated[
        str, typer.Option(help="Slots that have had a run: none, failed (those again) or all.")
    ] = "none",
    newest_first: Annotated[bool, typer.Option("--newest-first", help="Begin with the last slot.")] = False,
    queue: Annotated[str | None, typer.Option(help="Another queue of its pool.")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME=VALUE; may use {{ slot }}, {{ next_slot }}."),
    ] = None,
    own_name: Annotated[
        str | None,
        typer.Option("--name", help="Its name; under another name, reprocessed slots run once more."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is stored.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the slots of a stretch of the past. The plan comes first; nothing runs before it is agreed to.

    The server carries it out, so this command may be killed; asked again, it goes on watching. Exit 1 if a run failed.
    """
    asked: JsonObject = {
        "from_": start, "to": end, "max_parallel": max_parallel, "schedules": [*(schedule or ())],
        "reprocess": reprocess, "newest_first": newest_first, "queue": queue,
        "parameters": key_values(parameters or []), "name": own_name,
    }  # fmt: skip
    plan = ask(lambda h: h.backfill(name, **asked, dry_run=True))
    existing = plan.get("existing")
    if not yes and not isinstance(existing, dict):
        show(plan, _plan_text(plan), as_json=as_json)
        if not plan["to_run"]:
            return
        if as_json or not sys.stdin.isatty():
            typer.echo("nothing has been started; add --yes", err=True)
            return
        if not typer.confirm(f"Start {plan['to_run']} runs, {max_parallel} at once?"):
            raise typer.Exit(1)
    elif not as_json:
        typer.echo(_plan_text(plan))
    if not plan["to_run"] and not isinstance(existing, dict):
        if as_json and yes:
            show(plan, "", as_json=True)
        return
    stored = ask(lambda h: h.backfill(name, **asked))
    if not detach:
        stored = ask(lambda h: _watch(h, str(stored["name"]), is_quiet=as_json))
    show(stored, _line(stored), as_json=as_json)
    _leave(stored, detached=detach)


def _plan_text(plan: JsonObject) -> str:
    slots: Any = plan["slots"]
    rows = [[s["slot"], s["local"], s["schedule"], s["left_out"] or "to run"] for s in slots]
    cut = len(rows) - _SHOWN
    if cut > 0:
        half = _SHOWN // 2
        rows = [*rows[:half], [f"… {cut} more", "", "", ""], *rows[-half:]]
    lines = [
        table(["SLOT", "LOCAL", "SCHEDULE", ""], rows, empty="no slots in this stretch"),
        f"{plan['to_run']} to run, {plan['left_out']} left out; backfill {plan['name']}",
    ]
    if isinstance(existing := plan.get("existing"), dict):
        lines.append(f"this backfill was asked for before: {_line(existing)}")
    return "\n".join(lines)


def _line(item: JsonObject) -> str:
    ended: Any = item.get("ended") or {}
    active: Any = item.get("active") or []
    words = ", ".join(f"{count} {word}" for word, count in sorted(ended.items()))
    tail = f"  {item['error']}" if item.get("error") else ""
    return f"{item['name']}  {item['status']}  {item['over']}/{item['total']}, {len(active)} running" + (
        f"  ({words}){tail}" if words else tail
    )


async def _watch(hark: Hark, name: str, *, is_quiet: bool) -> JsonObject:
    """Follow a backfill to its end; on a terminal in one line, elsewhere a line for each change."""
    item = await hark.backfill_progress(name)
    while True:
        if not is_quiet:
            is_terminal = sys.stderr.isatty()
            typer.echo(("\r\x1b[K" if is_terminal else "") + _line(item), err=True, nl=not is_terminal)
        if item["status"] not in ("running", "cancelling"):
            if not is_quiet and sys.stderr.isatty():
                typer.echo("", err=True)
            item.pop("slots", None)
            return item
        over: Any = item["over"]
        item = await hark.backfill_progress(name, wait_s=_WAIT_S, over=over)


def _leave(item: JsonObject, *, detached: bool) -> None:
    if not detached and (item["status"] != "finished" or item["went_wrong"]):
        raise typer.Exit(1)


@backfills.command("ls")
def ls(
    deployment: Annotated[str | None, typer.Option(help="Only of this deployment.")] = None,
    as_json: AsJson = False,
) -> None:
    """List backfills and how far each has come."""
    items = ask(lambda h: h.backfills(deployment=deployment))
    rows = [
        [
            b["name"],
            b["deployment"],
            b["status"],
            f"{b['over']}/{b['total']}",
            b["went_wrong"],
            ago(b["asked_at"]),
        ]
        for b in items
    ]
    head = ["NAME", "DEPLOYMENT", "STATUS", "OVER", "WRONG", "ASKED"]
    show(items, table(head, rows, empty="no backfills"), as_json=as_json)


@backfills.command("show")
def show_one(name: _Name, as_json: AsJson = False) -> None:
    """Show one backfill with its slots and their runs."""
    item = ask(lambda h: h.backfill_progress(name))
    show(item, pairs(item), as_json=as_json)


@backfills.command("watch")
def watch(name: _Name, as_json: AsJson = False) -> None:
    """Follow a backfill to its end; exit 1 if a run failed."""
    item = ask(lambda h: _watch(h, name, is_quiet=as_json))
    show(item, _line(item), as_json=as_json)
    _leave(item, detached=False)


@backfills.command("cancel")
def cancel(
    name: _Name,
    runs: Annotated[bool, typer.Option("--runs", help="Cancel the runs under way too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start no more runs of a backfill; asked for again, it goes on."""
    item = ask(lambda h: h.cancel_backfill(name, runs=runs))
    show(item, _line(item), as_json=as_json)
