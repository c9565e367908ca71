"""The command ``hark``. Commands import what they need when they run, so that ``hark --help`` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from .automations import automations
from .call import Group, group
from .channels import channels, pools
from .config import apply, lint, plan, run_tests
from .deployments import deployments
from .dlq import dlq
from .events import emit, events
from .run import run
from .runs import runs
from .schedules import schedules
from .service import doctor, rebuild, status, version
from .up import up
from .values import keys, secrets, variables
from .webhooks import webhooks

__all__ = ["app", "main"]

app = group("Hark listens for events and makes things follow: it runs flows and tells people.")


def _say_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command()
def demo() -> None:
    """Play the main job end to end on an embedded broker, and check every effect."""
    from .demo import run as play

    code = play()
    if code:
        raise typer.Exit(code)


app.command("test")(run_tests)
for _command in (up, run, emit, plan, apply, lint, status, rebuild, doctor, version):
    app.command()(_command)
for _name, _group in (
    ("events", events), ("runs", runs), ("deployments", deployments), ("automations", automations),
    ("schedules", schedules), ("webhooks", webhooks), ("channels", channels), ("pools", pools),
    ("variables", variables), ("secrets", secrets), ("dlq", dlq), ("keys", keys),
):  # fmt: skip
    app.add_typer(_group, name=_name, cls=Group)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
