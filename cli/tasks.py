"""``hark tasks``: serving what ``task.delay`` asks for, and looking at task runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .call import AsJson, ask, group, pairs, show

tasks = group("Background tasks: serve, show.")


@tasks.command("serve")
def serve(
    entrypoints: Annotated[
        list[str],
        typer.Argument(metavar="FILE:TASK…", help="path/file.py:task or module:task, one or several."),
    ],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Runs at once.")] = 10,
) -> None:
    """Run what `task.delay(…)` asks of tasks in this process, until it is stopped."""
    from ..engine.tasks import Task
    from ..errors import DefinitionError
    from ..server.serving import serve as serve_all
    from .run import load_entrypoint

    found = [load_entrypoint(entrypoint) for entrypoint in entrypoints]
    for entrypoint, one in zip(entrypoints, found, strict=True):
        if not isinstance(one, Task):
            raise DefinitionError(
                f"{entrypoint} is no task", hint="decorate it with @task; flows: `hark run`"
            )
    serve_all(*found, limit=limit)


@tasks.command("show")
def show_one(
    task_run: Annotated[str, typer.Argument(help="The task run's id.")], as_json: AsJson = False
) -> None:
    """Show one task run, of a flow or of `delay`."""
    item = ask(lambda h: h.task_run(task_run))
    show(item, pairs(item), as_json=as_json)
