"""``hark worker``: a process that runs flows of one pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .call import group

worker = group("Processes that run flows: start.")


@worker.callback()
def _group() -> None:
    """Keep ``start`` a word of its own: a group of one command would be that command."""


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
