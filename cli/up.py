"""``hark up``: the service in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def up(
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="server, dispatcher, automations, worker or all; may be repeated."),
    ] = None,
    nats: Annotated[
        str | None, typer.Option("--nats", help="An external broker: nats://host:4222[,…].")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Where data lives (HARK_HOME).")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; any but loopback needs a key.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="hark.yaml or a folder of such; default: HARK_CONFIG, else hark.yaml here."),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="The pool the worker serves.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what decisions saw, too.")] = False,
) -> None:
    """Serve: embedded broker, HTTP, schedules, rules, workers, all in one process, until stopped."""
    import gc

    # Start makes a few hundred thousand objects that live for ever; collecting among them costs a tenth of a second.
    gc.disable()
    from ..config import load_settings
    from ..server.address import config_path
    from ..server.log_line import setup_logging
    from ..server.roles import parse_roles
    from ..server.whose import said_of_owner

    settings = load_settings()
    changes: dict[str, object] = {}
    if home is not None:
        changes["home"] = home
    if nats is not None:
        changes["nats_url"] = nats
    server = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
    if server:
        changes["server"] = settings.server.model_copy(update=server)
    if pool is not None:
        changes["worker"] = settings.worker.model_copy(update={"pool": pool})
    settings = settings.model_copy(update=changes)
    roles = parse_roles(role or ["all"])
    setup_logging(verbose=verbose)
    # Only a warning: in a container root often serves a volume that is somebody else's.
    for line in said_of_owner(settings.home_path) or ():
        typer.echo(f"hark: {line}", err=True)

    from ..server.service import Service, serve

    # People begin in an empty folder and write the file while it serves.
    found = config_path(settings, config)
    service = Service(
        settings,
        roles=roles,
        config=found or Path("hark.yaml"),
        awaits_config=found is None,
        worker_apart=True,
    )
    code = serve(service, announce=lambda text: typer.echo(text, file=sys.stdout))
    if code:
        raise typer.Exit(code)
