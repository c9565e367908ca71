"""``hark events replay``: past events again, as new ones."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import HarkError
from .call import AsJson, ask, show, table
from .ident import event_id_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..bus.event import Event
    from ..server.client import Hark
    from ..server.replay import Selected
    from ..vocabulary import JsonObject

_SHOWN = 20


async def _select_ids(hark: Hark, ids: Sequence[str]) -> Selected:
    from ..server.replay import select_ids

    return await select_ids(hark, [await event_id_of(hark, one) for one in ids])


def replay(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]…", help="Events by their ids, or their beginnings.")
    ] = None,
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="Types, such as order.paid or order.*; repeatable.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Only of this source.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Only about this subject; order/* are all that begin so.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Not older than this: 10m, 2h, 7d, or a time.")] = None,
    until: Annotated[str | None, typer.Option(help="Older than this: 10m, or a time.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="Refuse to replay more than so many.")
    ] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be emitted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Emit past events again, oldest first, as new ones that name the first in `replayof`; rules act on them anew."""
    from ..server.replay import replay as emit_again
    from ..server.replay import select
    from ..vocabulary import new_id

    filters = [type_, source, subject, since, until]
    if bool(ids) == any(filters):
        raise typer.BadParameter(
            "say which events: ids, or some of --type, --source, --subject, --since, --until"
        )
    selected = ask(
        lambda h: (
            _select_ids(h, ids)
            if ids
            else select(
                h, types=type_ or (), source=source, subject=subject, since=since, until=until, limit=limit
            )
        )
    )
    total = len(selected.events)
    if not as_json:
        typer.echo(_plan_text(selected))
    if dry_run or not total:
        if as_json:
            show(_plan(selected), "", as_json=True)
        return
    if not yes:
        if as_json or not sys.stdin.isatty():
            typer.echo("nothing has been emitted; add --yes", err=True)
            return
        if not typer.confirm(f"Emit {total} events again?"):
            raise typer.Exit(1)

    replay_id = new_id()
    emitted: list[JsonObject] = []

    def stored(events: Sequence[Event]) -> None:
        emitted.extend({"id": one.id, "replayof": one.replayof} for one in events)
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[K{len(emitted)}/{total}", err=True, nl=len(emitted) == total)

    async def go(hark: Hark) -> None:
        await emit_again(hark, selected.events, replay_id=replay_id, stored=stored)

    try:
        ask(go)
    except HarkError:
        typer.echo(f"{len(emitted)} of {total} events were emitted (replayid {replay_id})", err=True)
        raise
    value: JsonObject = {**_plan(selected), "replayid": replay_id, "emitted": list(emitted)}
    show(value, f"{total} emitted, replayid {replay_id}", as_json=as_json)


def _plan(selected: Selected) -> JsonObject:
    return {
        "events": [
            {"seq": past.seq, "id": past.event.id, "type": past.event.type, "subject": past.event.subject}
            for past in selected.events
        ],
        "left_out": {"own": selected.own, "replays": selected.replays},
    }


def _plan_text(selected: Selected) -> str:
    events = selected.events
    rows = [[p.seq, p.event.time, p.event.type, p.event.subject, p.event.id] for p in events]
    cut = len(rows) - _SHOWN
    if cut > 0:
        half = _SHOWN // 2
        rows = [*rows[:half], ["…", f"{cut} more", "", "", ""], *rows[-half:]]
    lines = [table(["SEQ", "TIME", "TYPE", "SUBJECT", "ID"], rows, empty="no events to replay")]
    if events:
        kinds = Counter(past.event.type for past in events)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        lines.append(f"{len(events)} to emit again: {said}")
    if selected.own:
        lines.append(f"{selected.own} of Hark's own are left out: they only say what happened")
    if selected.replays:
        lines.append(f"{selected.replays} that are replays themselves are left out; their ids replay them")
    return "\n".join(lines)
