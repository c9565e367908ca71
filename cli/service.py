"""``hark status``, ``audit``, ``rebuild``, ``doctor``, ``version``: the service itself."""

from __future__ import annotations

from typing import Annotated

import typer

from .call import AsJson, ask, pairs, run_async, show, table


def status(as_json: AsJson = False) -> None:
    """Show what the service is doing; exit 1 when a part of it is down."""
    value = ask(lambda h: h.status())
    show(value, pairs(value), as_json=as_json)
    if not value.get("ready"):
        raise typer.Exit(1)


def rebuild(as_json: AsJson = False) -> None:
    """Fold the read model anew from the event log."""
    value = ask(lambda h: h.rebuild())
    show(value, f"rebuilt: {value.get('events')} events in {value.get('took_s')} s", as_json=as_json)


def audit(
    by: Annotated[
        str | None, typer.Option(help="Only what was called with the key of this name; or `configuration`.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Not older than this: 10m, 2h, 7d, or a time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, newest first."""
    page = ask(lambda h: h.audit(by=by, since=since, limit=limit))
    rows = [
        [item["seq"], item["time"], item["by"], item["from"], item["what"], item["on"]] for item in page.items
    ]
    show(
        page.items,
        table(["SEQ", "TIME", "BY", "FROM", "WHAT", "ON"], rows, empty="nothing was changed"),
        as_json=as_json,
    )


def doctor(
    path: Annotated[str | None, typer.Option("--config", help="The configuration to check.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check what Hark needs: Python, broker, home, disk, port, clock, configuration."""
    from pathlib import Path

    from ..config import load_settings
    from ..server.doctor import examine

    found = run_async(lambda: examine(load_settings(), config=Path(path) if path else None))
    items = [f.to_json() for f in found]
    rows = [[f.verdict.value, f.what, f.said + (f"; {f.advice}" if f.advice else "")] for f in found]
    show([*items], table(["", "CHECK", "FOUND"], rows), as_json=as_json)
    if any(f.verdict.value == "BAD" for f in found):
        raise typer.Exit(1)


def version() -> None:
    """Print the version."""
    from importlib.metadata import version as of

    typer.echo(of("hark"))
