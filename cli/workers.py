"""``hark worker``: processes that run flows of one pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .call import AsJson, ago, ask, group, show, table

worker = group("Processes that run flows: start, ls.")


@worker.command("ls")
def ls(
    pool: Annotated[str | None, typer.Option("--pool", "-p", help="Only those of this pool.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the workers that are there: places taken of those they have, and runs that wait in them without one."""
    items = ask(lambda h: h.workers(pool=pool))
    rows = [
        [
            one["name"], one["pool"], f"{one['host']}:{one['pid']}", _taken(one["async"]), _taken(one["sync"]),
            _waiting(one["async"], one["sync"]), ago(one["started_at"]), one["version"],
        ]
        for one in items
    ]  # fmt: skip
    columns = ["NAME", "POOL", "WHERE", "ASYNC", "SYNC", "WAITING", "UP", "VERSION"]
    show(items, table(columns, rows, empty="no workers"), as_json=as_json)


def _taken(held: Any) -> str:
    return f"{held['taken']}/{held['places']}"


def _waiting(*held: Any) -> int:
    return sum(one["waiting"] for one in held)


@worker.command("start")
def start(
    pool: Annotated[
        str | None, typer.Option("--pool", "-p", help="The pool it serves; default: HARK_WORKER__POOL.")
    ] = None,
    nats: Annotated[
        str | None, typer.Option("--nats", help="An external broker: nats://host:4222[,…].")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where data lives (HARK_HOME).")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what decisions saw, too.")] = False,
) -> None:
    """Run flows of one pool until stopped, on a broker that runs: what `hark up --role worker` does."""
    from .up import up

    up(role=["worker"], nats=nats, home=home, pool=pool, verbose=verbose)
