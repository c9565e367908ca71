"""``hark blocks`` and ``hark artifacts``: what code keeps, and what it shows people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .call import AsJson, ago, ask, group, pairs, show, table, to_json
from .ident import run_id_of

if TYPE_CHECKING:
    from ..server.client import Hark, Page

blocks = group("Typed configuration kept by code: ls, show, rm.")
artifacts = group("What runs show people: ls, show.")

_Block = Annotated[str, typer.Argument(help="TYPE/NAME, such as warehouse/main.")]


def _parts(block: str) -> tuple[str, str]:
    kind, slash, name = block.partition("/")
    if not slash or not kind or not name:
        raise typer.BadParameter(f"{block!r} is not TYPE/NAME, such as warehouse/main")
    return kind, name


@blocks.command("ls")
def blocks_ls(
    type: Annotated[str | None, typer.Option(help="Only of this type.")] = None, as_json: AsJson = False
) -> None:
    """List blocks; what is in them is not shown."""
    items = ask(lambda h: h.blocks(type=type))
    rows = [[f"{b['type']}/{b['name']}", ago(b["changed_at"])] for b in items]
    show(items, table(["BLOCK", "CHANGED"], rows, empty="no blocks"), as_json=as_json)


@blocks.command("show")
def blocks_show(block: _Block, as_json: AsJson = False) -> None:
    """Show the fields of a block, its secrets masked."""
    kind, name = _parts(block)
    found = ask(lambda h: h.block(kind, name))
    show(found, pairs(found), as_json=as_json)


@blocks.command("rm")
def blocks_rm(block: _Block) -> None:
    """Remove a block."""
    kind, name = _parts(block)
    ask(lambda h: h.remove_block(kind, name))
    typer.echo(f"{block} is removed")


@artifacts.command("ls")
def artifacts_ls(
    type: Annotated[str | None, typer.Option(help="markdown, table, link, image or progress.")] = None,
    run: Annotated[str | None, typer.Option(help="Last shown by this flow run.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List artifacts as they are now, the latest first."""

    async def read(hark: Hark) -> Page:
        shown_by = None if run is None else await run_id_of(hark, run)
        return await hark.artifacts(type=type, flow_run=shown_by, limit=limit)

    items = ask(read).items
    rows = [[a["id"], a["type"], a["flow"] or "-", ago(a["time"]), a["description"] or ""] for a in items]
    head = ["KEY OR ID", "TYPE", "FLOW", "SHOWN", "DESCRIPTION"]
    show(items, table(head, rows, empty="no artifacts"), as_json=as_json)


@artifacts.command("show")
def artifacts_show(
    name: Annotated[str, typer.Argument(help="Its key, or its id.")], as_json: AsJson = False
) -> None:
    """Show one artifact with its content."""
    found = ask(lambda h: h.artifact(name))
    data = found.get("data")
    about = pairs({k: v for k, v in found.items() if k not in ("data", "versions")})
    show(found, f"{about}\n\n{data if isinstance(data, str) else to_json(data)}", as_json=as_json)
